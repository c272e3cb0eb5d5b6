"""The command line: what can be asked of gitops-hook, and the exit status that it ends with.

Exit statuses are those of sysexits(3): 64 for a wrong call, 66 for a repository or run that is not known, 69 where a
daemon cannot start or does not answer, 74 for a fault of the disk or output that cannot be written, 77 for want of
permission, 78 for a bad setting; ``sync`` ends with that of the worst outcome, which is the script's own, and
``doctor`` as monitoring plugins do: 0, 1 for a warning, 2 for a failure.

Each command is a function of the parsed arguments; what it needs is imported when it runs, so ``--help`` waits for
nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from gitops_hook import __version__
from gitops_hook.cli.timers import UNIT
from gitops_hook.config import OPTIONS, Settings, load, unit_environment
from gitops_hook.errors import ConfigError, GitopsError
from gitops_hook.github.client import Client
from gitops_hook.github.webhooks import Hooks, Listed, Registration
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Run
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.text import escape, redact

EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77
#: What leads git to another repository than the one that it is called in (git rev-parse --local-env-vars), or to
#: another part of it: a caller that is itself a hook of git's, or a shell at work elsewhere, has such.
LEADING_ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
    "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_IMPLICIT_WORK_TREE", "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE",
)  # fmt: skip
#: Digits of the largest number that is taken: of seconds 31 years, of runs more than there will be. SQLite takes 18.
_DIGITS = 9


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` (by default the process's) ask for; returns the exit status."""
    given = _parser().parse_args(arguments)
    for name in LEADING_ELSEWHERE:
        os.environ.pop(name, None)
    try:
        _open_output(given)
        status: int = given.run(given)
        sys.stdout.flush()
    except GitopsError as failure:
        _close_output()
        _tell(str(failure))
        return failure.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read us has seen enough
        _close_output()
        return 0
    except OSError as error:
        if given.run is _serve:  # a fault of ours
            raise
        _close_output()
        what = f"{error.filename}: " if error.filename else ""
        _tell(f"{what}{error.strerror or error}")
        return EX_NOPERM if isinstance(error, PermissionError) else EX_IOERR
    return status


def _open_output(given: argparse.Namespace) -> None:
    """Let every character be printed, whatever the terminal's encoding; and see that there is where to print."""
    if not sys.stderr:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    if not sys.stdout:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as above
        if given.run is not _serve:  # which prints nothing
            raise GitopsError(EX_IOERR, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """Write what was printed so far, or drop what cannot be: else Python would complain of it on its way out."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _serve(given: argparse.Namespace) -> int:
    from gitops_hook import daemon
    from gitops_hook import log as logs

    settings = load(os.environ, _flags(given))
    logs.setup(settings.log_format, under_systemd="JOURNAL_STREAM" in os.environ)
    return daemon.serve(settings, os.environ)


def _status(given: argparse.Namespace) -> int:
    from gitops_hook.cli import render as reports
    from gitops_hook.sync import status as overview

    settings = _settings(given)
    only = [_called(settings, given.repository)] if given.repository else []
    repository_statuses = overview.repository_statuses(_reader(settings), _checkouts(settings), only)
    if only and repository_statuses[0].run is None and repository_statuses[0].path is None:
        raise GitopsError(EX_NOINPUT, f"nothing is known of {given.repository}")
    reports.show_standings(repository_statuses, as_json=given.json)
    return 0


def _runs(given: argparse.Namespace) -> int:
    from gitops_hook.cli import render as reports

    if given.repository and given.delivery:
        raise GitopsError(EX_USAGE, "give REPO or --delivery, not both")
    settings = _settings(given)
    journal = _reader(settings)
    if given.delivery:
        return _show_delivery(journal, given.delivery, as_json=given.json)
    runs = journal.runs(_called(settings, given.repository) if given.repository else None, given.number)
    if given.repository and not runs:
        raise GitopsError(EX_NOINPUT, f"{given.repository} never ran")
    reports.show_runs(runs, as_json=given.json)
    return 0


def _show_delivery(journal: JournalReader, guid: str, *, as_json: bool) -> int:
    """The runs that served a delivery, each time that it came; and that it waits, where none has begun."""
    from gitops_hook.cli import render as reports

    deliveries = journal.deliveries(guid)
    if not deliveries:
        raise GitopsError(EX_NOINPUT, f"no delivery {guid} was accepted")
    numbers = dict.fromkeys(delivery.run for delivery in deliveries if delivery.run)
    if numbers:
        reports.show_runs([run for run in map(journal.run, numbers) if run], as_json=as_json)
    reports.show_waiting([delivery for delivery in deliveries if not delivery.run], as_json=as_json)
    return 0


def _logs(given: argparse.Namespace) -> int:
    from gitops_hook.cli import render as reports

    settings = _settings(given)
    journal = _reader(settings)
    by_number = given.what.isdecimal()
    number = int(given.what) if by_number and len(given.what) <= _DIGITS else 0
    name = given.what if by_number else _called(settings, given.what)
    run = journal.run(number) if by_number else next(iter(journal.runs(name, 1)), None)
    if not run:
        raise GitopsError(EX_NOINPUT, f"there is no run {given.what}" if by_number else f"{given.what} never ran")
    reports.show_log(journal, run, follow=given.follow)
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from gitops_hook.cli import doctor
    from gitops_hook.cli import render as reports

    environ = {**unit_environment(), **os.environ}
    try:
        settings = load(environ, _flags(given))
    except ConfigError as error:
        findings = [doctor.examine_settings(error, os.environ)]
    else:
        findings = doctor.examine(doctor.BY_CALLER, settings)
        _become_owner(settings)
        findings += doctor.examine(doctor.BY_SERVICE, settings)
        findings += doctor.examine_checkouts(settings)
    reports.show_findings(findings, as_json=given.json)
    return doctor.EXIT[doctor.worst(findings)]


def _sync(given: argparse.Namespace) -> int:
    if bool(given.repository) == given.all:
        raise GitopsError(EX_USAGE, "give repositories, or --all")
    settings = _settings(given)
    client = _client_if_any(settings) if given.audit else None
    _become_owner(settings)
    names = list(_checkouts(settings)) if given.all else given.repository
    status = _sync_now(settings, names, as_json=given.json, trigger="sweep" if given.all else "manual")
    if client:
        _audit_after(settings, client, as_json=given.json)
    return status


def _pause(given: argparse.Namespace) -> int:
    from gitops_hook.cli import actions

    settings = _settings(given)
    _become_owner(settings)
    for name in given.repository:
        actions.pause(_checkout(settings, name))
        print(f"{name} is paused: nothing moves until gitops-hook resume {name}")
    return 0


def _resume(given: argparse.Namespace) -> int:
    from gitops_hook.cli import actions

    settings = _settings(given)
    _become_owner(settings)
    for name in given.repository:
        actions.resume(_checkout(settings, name))
    return _sync_now(settings, given.repository, as_json=False)


def _add(given: argparse.Namespace) -> int:
    from gitops_hook.cli import actions
    from gitops_hook.config import WEBHOOK

    settings = _settings(given)
    _become_owner(settings)
    for name in given.repository:
        url = given.url or settings.clone_url
        path = actions.add(
            settings.root, name, url.replace("{repository}", name), branch=given.branch, deploy=given.deploy
        )
        print(f"{name} is at {path}")
    status = _sync_now(settings, given.repository, as_json=False)
    print(
        "\nAt GitHub, once for a repository or an organisation: Settings, Webhooks, Add webhook\n"
        f"  Payload URL   https://<this host>{WEBHOOK}, which a proxy hands to {settings.listen}\n"
        "  Content type  application/json\n"
        "  Secret        the newest line of the secrets file\n"
        "  Events        just the push event\n"
        f"Or, with a token: gitops-hook register {' '.join(given.repository)} --url https://<this host>"
    )
    return status


def _migrate(given: argparse.Namespace) -> int:
    from gitops_hook.cli import migrate as migration
    from gitops_hook.cli import timers

    settings = _settings(given)
    record = migration.Record(settings.state)
    if given.undo:
        for unit in sorted(record.entries):
            print(f"{unit}: back to what it was")
            if not given.dry_run:
                migration.undo(unit, record)
        return 0
    found = timers.find(settings.root, given.unit)
    if given.remove:
        files = migration.removable(record, found)
        for path in files:
            print(f"remove {path}")
        if files and not given.dry_run:
            migration.remove(files, record)
        return 0
    service = settings.state.stat()
    steps = migration.plan(found, settings.root, service)
    print(*(map(str, steps) if steps else [f"no timer {given.unit} polls a checkout"]), sep="\n")
    for step in steps:
        if not step.obstacle and not given.dry_run:
            migration.migrate(step, record, service)
    return EX_DATAERR if any(step.obstacle for step in steps) else 0


def _send(given: argparse.Namespace) -> int:
    from gitops_hook.cli import actions
    from gitops_hook.cli import render as reports

    settings = _settings(given)
    secret = actions.newest_secret(settings)
    _become_owner(settings)
    branch = given.branch or _checkout(settings, given.repository).settings.get("branch") or "main"
    guid, status, answer = actions.send(settings, secret, _called(settings, given.repository), branch)
    print(escape(f"{status} {answer}"))
    if status != 202:
        return EX_UNAVAILABLE
    run = actions.wait_for(_reader(settings), guid, given.timeout)
    if not run:
        raise GitopsError(75, f"no run of it has ended within {given.timeout} s; gitops-hook runs --delivery {guid}")
    reports.show_runs([run], as_json=given.json)
    return outcome_of(run.outcome).exit


def _sync_now(settings: Settings, names: Sequence[str], *, as_json: bool, trigger: str = "manual") -> int:
    """Sync each of `names`, a progress line on a terminal meanwhile; returns the exit status of the worst outcome."""
    from gitops_hook import log as logs
    from gitops_hook.cli import actions
    from gitops_hook.cli import render as reports
    from gitops_hook.github.commit_status import CommitStatusReporter
    from gitops_hook.journal.writer import Journal
    from gitops_hook.names import is_valid, may_clone
    from gitops_hook.observers.commits import Commits
    from gitops_hook.sync.dispatcher import Dispatcher, RunObserver

    for name in names:
        if not is_valid(name):
            raise GitopsError(EX_USAGE, f"`{name}` is not a repository's name")
        if not may_clone(name, settings.clone):
            _checkout(settings, name)
    names = list(dict.fromkeys(_called(settings, name) for name in names))
    logs.mute()  # what there is to say is said below
    runs: list[Run] = []

    def tell(number: int, run: Run) -> None:
        runs.append(run)
        _progress(number, len(names), f"{run.repository} {run.outcome}")

    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(Journal(settings.state, repair=False)) as journal:
            checkouts = _checkouts(settings)
            observers: list[RunObserver] = [Commits(journal, checkouts)]
            if settings.report:
                observers.append(CommitStatusReporter(journal))  # it leaves rows that the daemon sends
            dispatcher = Dispatcher.from_settings(settings, os.environ, journal, checkouts, observers)
            status = actions.sync(dispatcher, names, trigger, settings.max_syncs, tell)
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{error.filename}: {error.strerror}") from error
    reports.show_runs(runs, as_json=as_json)
    if not as_json:
        reports.show_messages(runs)
    return status


def _register(given: argparse.Namespace) -> int:
    settings, hooks = _hooks_at_forge(given)
    return _at_each(given, settings, lambda target: hooks.register(target, dry_run=given.dry_run))


def _unregister(given: argparse.Namespace) -> int:
    from gitops_hook import log as logs
    from gitops_hook.journal.writer import Journal

    settings, hooks = _hooks_at_forge(given)
    logs.mute()  # what there is to say is said below
    with closing(Journal(settings.state, repair=False)) as journal:

        def unregister(target: str) -> Registration:
            done = hooks.unregister(target, dry_run=given.dry_run)
            if not given.dry_run:  # even where it was gone already, so that no audit asks about it any more
                journal.forget_pings(target, hooks.url)
            return done

        return _at_each(given, settings, unregister)


def _at_each(given: argparse.Namespace, settings: Settings, act: Callable[[str], Registration]) -> int:
    """Have `act` see to each target that was given, and tell what came of it, as it comes."""
    from gitops_hook.cli import actions
    from gitops_hook.cli import render as reports

    targets = _targets(given, settings)
    count = 0

    def tell(number: int, done: Registration) -> None:
        nonlocal count
        count = number
        _make_room()
        reports.show_registration(done, as_json=given.json, dry_run=given.dry_run)
        _progress(number, len(targets), done.target)

    well = actions.register(act, targets, tell)
    if count < len(targets):
        rest = len(targets) - count
        _tell(f"{rest} more were not tried; once that is mended, give the command again")
    return 0 if well else EX_UNAVAILABLE


def _hooks(given: argparse.Namespace) -> int:
    from gitops_hook.cli import render as reports
    from gitops_hook.github.client import ApiError

    settings, hooks = _hooks_at_forge(given, needs_url=False)
    targets, status = _targets(given, settings, all_by_default=True), 0
    found: list[Listed] = []
    for number, target in enumerate(targets, 1):
        _progress(number, len(targets), target)
        try:
            found += hooks.listed(target)
        except ApiError as error:
            _tell(f"{target}: {error}")
            status = EX_UNAVAILABLE
            if error.http in (0, 401):
                break
    reports.show_hooks(found, as_json=given.json)
    return status


def _audit(given: argparse.Namespace) -> int:
    settings, hooks = _hooks_at_forge(given, needs_url=False)
    for name in given.repository:
        if "/" not in name:  # an organisation's deliveries tell of none but such names
            raise GitopsError(EX_USAGE, f"`{name}` is not OWNER/NAME")
    return _show_missed(hooks, settings, given.repository, redeliver=given.redeliver, as_json=given.json)


def _show_missed(hooks: Hooks, settings: Settings, only: Sequence[str], *, redeliver: bool, as_json: bool) -> int:
    from gitops_hook.cli import actions
    from gitops_hook.cli import render as reports

    troubles: list[str] = []
    missed = actions.audit(hooks, settings, only, redeliver=redeliver, tell=troubles.append)
    reports.show_missed(missed, whole=not troubles, as_json=as_json)
    for trouble in troubles:
        _tell(trouble)
    return EX_UNAVAILABLE if troubles else int(any(push.then == "missed" for push in missed))


def _client_if_any(settings: Settings) -> Client | None:
    """Whoever asks GitHub, where there is a token that can be read; what cannot be is told."""
    from gitops_hook.cli import actions
    from gitops_hook.github import client as github

    try:
        return actions.client(settings) if github.read_token(settings.token_file) else None
    except GitopsError as failure:
        _tell(str(failure))
        return None


def _audit_after(settings: Settings, client: Client, *, as_json: bool) -> None:
    """After a sweep, ask for what it could not make up for; a forge that cannot be asked is no fault of the sweep."""
    from gitops_hook.github.webhooks import Hooks

    try:
        _show_missed(Hooks(client, _reader(settings), b""), settings, (), redeliver=True, as_json=as_json)
    except GitopsError as failure:
        _tell(str(failure))


def _hooks_at_forge(given: argparse.Namespace, *, needs_url: bool = True) -> tuple[Settings, Hooks]:
    """The settings, and the webhooks as one who has secret and token; what root alone may read is read first."""
    from gitops_hook.cli import actions
    from gitops_hook.github.webhooks import Hooks

    settings = _settings(given)
    client, secret = actions.client(settings), actions.newest_secret(settings)
    _become_owner(settings)
    hooks = Hooks(client, _reader(settings), secret, getattr(given, "url", ""), timeout=getattr(given, "timeout", 0))
    if needs_url and not hooks.url:
        raise GitopsError(EX_USAGE, "give --url, where GitHub reaches this host: https://hooks.example.org")
    return settings, hooks


def _targets(given: argparse.Namespace, settings: Settings, *, all_by_default: bool = False) -> list[str]:
    """The repositories, or the organisation, whose webhooks are meant."""
    from gitops_hook.cli import actions
    from gitops_hook.github.client import web_url
    from gitops_hook.names import is_valid

    names: list[str] = given.repository + ([given.org] if given.org else [])
    if (bool(given.repository) + bool(given.org) + given.all) > 1 or not (names or given.all or all_by_default):
        raise GitopsError(EX_USAGE, "give repositories, or --org, or --all")
    for name in names:
        if not is_valid(name) or ("/" in name) == bool(given.org):
            raise GitopsError(EX_USAGE, f"`{name}` is not {'an organisation' if given.org else 'OWNER/NAME'}")
    if names:
        return names
    there, elsewhere = actions.at_forge(settings)
    if elsewhere:
        _tell(f"not at {web_url(settings.api_url)}, so left out: {', '.join(elsewhere)}")
    return there


def _settings(given: argparse.Namespace) -> Settings:
    """The settings that the daemon has: those of its unit, of our own environment, and flags."""
    return load({**unit_environment(), **os.environ}, _flags(given))


def _tell(trouble: str) -> None:
    """Say what is problems: one line, and no password of a URL in it, for settings and remotes have such."""
    print(f"gitops-hook: {escape(redact(trouble))}", file=sys.stderr)


def _progress(number: int, total: int, what: str) -> None:
    """On a terminal, one line that tells how far we are."""
    if sys.stderr.isatty():
        end = "\n" if number == total else ""
        print(f"\r\033[K{number} of {total}  {what}", end=end, file=sys.stderr, flush=True)


def _make_room() -> None:
    """Take the line of progress away, for one that stays."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _flags(given: argparse.Namespace) -> dict[str, str]:
    fields = {option.field for option in OPTIONS}
    return {name: value for name, value in vars(given).items() if name in fields}


def _become_owner(settings: Settings) -> None:
    """As root, go on as whoever the state folder belongs to, or else git would find files that are not root's."""
    owner = settings.state if settings.state.exists() else settings.root
    try:
        uid = owner.stat().st_uid
        if os.geteuid() == 0 and uid != 0:
            account = pwd.getpwuid(uid)
            os.initgroups(account.pw_name, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(uid)
            os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    except (OSError, KeyError) as error:
        raise GitopsError(EX_NOPERM, f"{owner}: {error}") from error


def _checkouts(settings: Settings) -> Checkouts:
    from gitops_hook.sync.checkouts import Checkouts

    return Checkouts(settings.root)


def _checkout(settings: Settings, name: str) -> Checkout:
    checkout = _checkouts(settings).find(name)
    if not checkout:
        raise GitopsError(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}")
    return checkout


def _called(settings: Settings, name: str) -> str:
    """What the daemon calls a repository that was named: a checkout right below the root goes by two names."""
    return _checkouts(settings).canonical_name(name)


def _reader(settings: Settings) -> JournalReader:
    from gitops_hook.journal.reader import JournalReader

    if not (settings.state / "journal.db").exists():
        raise GitopsError(EX_NOINPUT, f"there is no journal in {settings.state}: has the daemon run with this state?")
    return JournalReader(settings.state)


def _parser() -> _Parser:
    parser = _Parser(
        prog="gitops-hook",
        description="Keeps git checkouts at what their forge has: a signed push arrives, and it is live.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gitops-hook {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, epilog: str = "") -> _Parser:
        added = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog, allow_abbrev=False
        )
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "run the daemon in the foreground", _ON_SECRETS)
    _add_settings(serve, {option.field for option in OPTIONS})

    status = command("status", _status, "show where each repository stands, and what needs a person")
    status.add_argument("repository", nargs="?", metavar="REPO")

    runs = command("runs", _runs, "show the newest runs, or those that served a delivery")
    runs.add_argument("repository", nargs="?", metavar="REPO")
    runs.add_argument("--delivery", metavar="GUID", help="what became of the push that the forge numbers so")
    runs.add_argument("-n", "--number", type=_whole, default=20, metavar="COUNT", help="how many at most [20]")

    logs = command("logs", _logs, "print the output of a run, or of a repository's newest one")
    logs.add_argument("what", metavar="RUN|REPO")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")

    sync = command("sync", _sync, "sync repositories now; ends with the status of the worst outcome")
    sync.add_argument("repository", nargs="*", metavar="REPO")
    sync.add_argument("--all", action="store_true", help="every checkout under the root")
    sync.add_argument(
        "--audit", action="store_true", help="then have GitHub deliver again what it missed, where there is a token"
    )

    pause = command("pause", _pause, "let nothing move in a checkout")
    pause.add_argument("repository", nargs="+", metavar="REPO")

    resume = command("resume", _resume, "end a pause, and sync")
    resume.add_argument("repository", nargs="+", metavar="REPO")

    add = command("add", _add, "clone or adopt checkouts, sync them, and tell what to enter at GitHub")
    add.add_argument("repository", nargs="+", metavar="OWNER/NAME")
    add.add_argument("--branch", help="the branch to track, instead of the remote's default")
    add.add_argument("--deploy", metavar="COMMAND", help="what to run in the checkout after it moved")
    add.add_argument("--url", help="where to clone from [GITOPS_CLONE_URL]")

    send = command("send", _send, "deliver a signed test push to the local daemon, and wait for its run")
    send.add_argument("repository", metavar="REPO")
    send.add_argument("--branch", help="the branch that the push claims to move [the tracked one]")
    send.add_argument("--timeout", type=_whole, default=60, metavar="SECONDS", help="how long to wait for the run [60]")

    migrate = command("migrate", _migrate, "adopt what timers poll, and switch them off; --dry-run shows how")
    migrate.add_argument("--unit", default=UNIT, metavar="NAME", help=f"what the timers are called [{UNIT}]")
    migrate.add_argument("-n", "--dry-run", action="store_true", help="tell what would be done, and do nothing")
    way = migrate.add_mutually_exclusive_group()
    way.add_argument("--undo", action="store_true", help="put the timers back to what they were")
    way.add_argument(
        "--remove", action="store_true", help="remove the units of timers that were switched off, for good"
    )

    doctor = command("doctor", _doctor, "check this host, and tell the command that mends what is problems", _ON_LEVELS)

    for printing in (status, runs, sync, send, doctor):
        printing.add_argument("--json", action="store_true", help="an object a line, for programs")
    for asking in (status, runs, logs, sync, pause, resume, add, send, migrate, doctor):
        _add_settings(asking, {"root", "state"})
    _add_forge_commands(command)
    return parser


def _add_forge_commands(command: Callable[..., _Parser]) -> None:
    """The words of what is done at GitHub."""
    register = command("register", _register, "have GitHub's webhooks made and mended, and see that they reach us")
    unregister = command("unregister", _unregister, "take our webhooks away from GitHub")
    hooks = command("hooks", _hooks, "show the webhooks that GitHub has, and which of them are ours and right")
    for asked in (register, unregister, hooks):
        asked.add_argument("repository", nargs="*", metavar="OWNER/NAME")
        asked.add_argument("--org", default="", metavar="ORG", help="the one webhook of an organisation")
        asked.add_argument("--all", action="store_true", help="every checkout whose origin is at GitHub")
        asked.add_argument("--url", default="", help="where GitHub reaches this host [where its newest ping went]")
    for asked in (register, unregister):
        asked.add_argument("-n", "--dry-run", action="store_true", help="tell what would be done, and do nothing")
    register.add_argument(
        "--timeout", type=_whole, default=30, metavar="SECONDS", help="how long to wait for each ping [30]"
    )

    audit = command("audit", _audit, "show the pushes that GitHub could not deliver, and why", _ON_AUDIT)
    audit.add_argument("repository", nargs="*", metavar="OWNER/NAME")
    audit.add_argument("--redeliver", action="store_true", help="have those delivered again that nothing made up for")

    for asking in (register, unregister, hooks, audit):
        asking.add_argument("--json", action="store_true", help="an object a line, for programs")
        _add_settings(asking, {"root", "state", "token_file", "api_url"})


_ON_SECRETS = (
    "The secret itself stands in GITHUB_WEBHOOK_SECRET or in the file; it is no option, "
    "for options are open to every user of the host."
)
_ON_AUDIT = "It ends with 1 if a push was missed that no run has made up for and nobody has asked for again."
_ON_LEVELS = "It ends with 0 if all is well, 1 if there is a warning, 2 if there is a failure."


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and text.strip("0") and len(text) <= _DIGITS):
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 1 to {10**_DIGITS - 1}")
    return int(text)


def _add_settings(parser: argparse.ArgumentParser, fields: set[str]) -> None:
    """A flag for each option of these fields, absent from what is parsed where it is not given."""
    for option in OPTIONS:
        if option.flag and option.field in fields:
            text = f"{option.help} [{option.env}; default: {option.shown}]".replace("`", "").replace("%", "%%")
            parser.add_argument(option.flag, metavar=option.metavar, default=argparse.SUPPRESS, help=text)
