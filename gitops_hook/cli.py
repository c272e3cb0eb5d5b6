"""The command line: what can be asked of gitops-hook, and the exit status that it ends with.

Exit statuses are those of sysexits(3): 64 for a wrong call, 66 for a repository or run that is not known, 69 where a
daemon cannot start or does not answer, 74 for a fault of the disk, 77 for want of permission, 78 for a bad setting;
``sync`` ends with that of the worst outcome, which is the script's own, and
``doctor`` as monitoring plugins do: 0, 1 for a warning, 2 for a failure.

Each command is a function of the parsed arguments; what it needs is imported when it runs, so ``--help`` waits for
nothing.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

from gitops_hook import __version__
from gitops_hook.config import OPTIONS, ConfigError, Failure, Settings, load, unit_environment
from gitops_hook.timers import UNIT

if TYPE_CHECKING:
    from gitops_hook.journal import JournalReader, Run
    from gitops_hook.repository import Checkout, Checkouts

EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_NOPERM = 77


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` (by default the process's) ask for; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(given)
        sys.stdout.flush()
    except Failure as failure:
        print(f"gitops-hook: {failure}", file=sys.stderr)
        return failure.status
    except BrokenPipeError:
        # Whoever read us has seen enough; without this, Python would complain as it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


# -- the daemon ----------------------------------------------------------------------------------------------------


def _serve(given: argparse.Namespace) -> int:
    from gitops_hook import daemon, logs

    settings = load(os.environ, _flags(given))
    logs.setup(settings.log_format, under_systemd="JOURNAL_STREAM" in os.environ)
    return daemon.serve(settings, os.environ)


# -- what stands where ---------------------------------------------------------------------------------------------


def _status(given: argparse.Namespace) -> int:
    from gitops_hook import overview, reports

    settings = _settings(given)
    only = [given.repository] if given.repository else []
    standings = overview.standings(_reader(settings), _checkouts(settings), only)
    if only and standings[0].run is None and standings[0].path is None:
        raise Failure(EX_NOINPUT, f"nothing is known of {given.repository}")
    reports.show_standings(standings, as_json=given.json)
    return 0


def _runs(given: argparse.Namespace) -> int:
    from gitops_hook import reports

    journal = _reader(_settings(given))
    if given.delivery:
        deliveries = journal.deliveries(given.delivery)
        if not deliveries:
            raise Failure(EX_NOINPUT, f"no delivery {given.delivery} was accepted")
        known = {delivery.run: journal.run(delivery.run) for delivery in deliveries if delivery.run}
        runs = [run for run in known.values() if run]
    else:
        runs = journal.runs(given.repository, given.number)
    reports.show_runs(runs, as_json=given.json)
    return 0


def _logs(given: argparse.Namespace) -> int:
    from gitops_hook import reports

    journal = _reader(_settings(given))
    by_number = given.what.isdecimal()
    run = journal.run(int(given.what)) if by_number else next(iter(journal.runs(given.what, 1)), None)
    if not run:
        raise Failure(EX_NOINPUT, f"there is no run {given.what}" if by_number else f"{given.what} never ran")
    reports.show_log(journal, run, follow=given.follow)
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from gitops_hook import doctor, reports

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


# -- what can be done ----------------------------------------------------------------------------------------------


def _sync(given: argparse.Namespace) -> int:
    if bool(given.repository) == given.all:
        raise Failure(EX_USAGE, "give repositories, or --all")
    settings = _settings(given)
    _become_owner(settings)
    names = list(_checkouts(settings)) if given.all else given.repository
    return _sync_now(settings, names, as_json=given.json)


def _pause(given: argparse.Namespace) -> int:
    from gitops_hook import actions

    settings = _settings(given)
    _become_owner(settings)
    for name in given.repository:
        actions.pause(_checkout(settings, name))
        print(f"{name} is paused: nothing moves until gitops-hook resume {name}")
    return 0


def _resume(given: argparse.Namespace) -> int:
    from gitops_hook import actions

    settings = _settings(given)
    _become_owner(settings)
    for name in given.repository:
        actions.resume(_checkout(settings, name))
    return _sync_now(settings, given.repository, as_json=False)


def _add(given: argparse.Namespace) -> int:
    from gitops_hook import actions
    from gitops_hook.app import WEBHOOK

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
        "  Events        just the push event"
    )
    return status


def _migrate(given: argparse.Namespace) -> int:
    from gitops_hook import migration, timers

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
    from gitops_hook import actions, reports

    settings = _settings(given)
    secret = actions.newest_secret(settings)
    _become_owner(settings)
    branch = given.branch or _checkout(settings, given.repository).settings.get("branch") or "main"
    guid, status, answer = actions.send(settings, secret, given.repository, branch)
    print(f"{status} {answer}")
    if status != 202:
        return EX_UNAVAILABLE
    run = actions.wait_for(_reader(settings), guid, given.timeout)
    if not run:
        raise Failure(75, f"no run of it has ended within {given.timeout} s; gitops-hook runs --delivery {guid}")
    reports.show_runs([run], as_json=given.json)
    return actions.EXIT_OF_OUTCOME.get(run.outcome or "", 1)


def _sync_now(settings: Settings, names: Sequence[str], *, as_json: bool) -> int:
    """Sync each of `names`, a progress line on a terminal meanwhile; returns the exit status of the worst outcome."""
    from gitops_hook import actions, logs, reports
    from gitops_hook.commits import Commits
    from gitops_hook.dispatcher import Dispatcher
    from gitops_hook.journal import Journal
    from gitops_hook.repository import is_valid, may_clone

    for name in names:
        if not is_valid(name):
            raise Failure(EX_USAGE, f"`{name}` is not a repository's name")
        if not may_clone(name, settings.clone):
            _checkout(settings, name)
    logs.mute()  # what there is to say is said below
    runs: list[Run] = []

    def tell(number: int, run: Run) -> None:
        runs.append(run)
        if sys.stderr.isatty():
            end = "\n" if number == len(names) else ""
            print(
                f"\r\033[K{number} of {len(names)}  {run.repository} {run.outcome}",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(Journal(settings.state, mends=False)) as journal:
            checkouts = _checkouts(settings)
            dispatcher = Dispatcher.by(settings, os.environ, journal, checkouts, [Commits(journal, checkouts)])
            status = actions.sync(dispatcher, names, settings.max_syncs, tell)
    except OSError as error:
        raise Failure(EX_NOPERM, f"{error.filename}: {error.strerror}") from error
    reports.show_runs(runs, as_json=as_json)
    if not as_json:
        reports.show_messages(runs)
    return status


# -- what they share -----------------------------------------------------------------------------------------------


def _settings(given: argparse.Namespace) -> Settings:
    """The settings that the daemon has: those of its unit, of our own environment, and flags."""
    return load({**unit_environment(), **os.environ}, _flags(given))


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
        raise Failure(EX_NOPERM, f"{owner}: {error}") from error


def _checkouts(settings: Settings) -> Checkouts:
    from gitops_hook.repository import Checkouts

    return Checkouts(settings.root)


def _checkout(settings: Settings, name: str) -> Checkout:
    checkout = _checkouts(settings).find(name)
    if not checkout:
        raise Failure(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}")
    return checkout


def _reader(settings: Settings) -> JournalReader:
    from gitops_hook.journal import JournalReader

    if not (settings.state / "journal.db").exists():
        raise Failure(EX_NOINPUT, f"there is no journal in {settings.state}: has the daemon run with this state?")
    return JournalReader(settings.state)


# -- the words -----------------------------------------------------------------------------------------------------


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
    runs.add_argument("-n", "--number", type=int, default=20, metavar="COUNT", help="how many at most [20]")

    logs = command("logs", _logs, "print the output of a run, or of a repository's newest one")
    logs.add_argument("what", metavar="RUN|REPO")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")

    sync = command("sync", _sync, "sync repositories now; ends with the status of the worst outcome")
    sync.add_argument("repository", nargs="*", metavar="REPO")
    sync.add_argument("--all", action="store_true", help="every checkout under the root")

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
    send.add_argument("--timeout", type=int, default=60, metavar="SECONDS", help="how long to wait for the run [60]")

    migrate = command("migrate", _migrate, "adopt what timers poll, and switch them off; --dry-run shows how")
    migrate.add_argument("--unit", default=UNIT, metavar="NAME", help=f"what the timers are called [{UNIT}]")
    migrate.add_argument("-n", "--dry-run", action="store_true", help="tell what would be done, and do nothing")
    way = migrate.add_mutually_exclusive_group()
    way.add_argument("--undo", action="store_true", help="put the timers back to what they were")
    way.add_argument(
        "--remove", action="store_true", help="remove the units of timers that were switched off, for good"
    )

    doctor = command("doctor", _doctor, "check this host, and tell the command that mends what is amiss", _ON_LEVELS)

    for printing in (status, runs, sync, send, doctor):
        printing.add_argument("--json", action="store_true", help="an object a line, for programs")
    for asking in (status, runs, logs, sync, pause, resume, add, send, migrate, doctor):
        _add_settings(asking, {"root", "state"})
    return parser


_ON_SECRETS = (
    "The secret itself stands in GITHUB_WEBHOOK_SECRET or in the file; it is no option, "
    "for options are open to every user of the host."
)
_ON_LEVELS = "It ends with 0 if all is well, 1 if there is a warning, 2 if there is a failure."


def _add_settings(parser: argparse.ArgumentParser, fields: set[str]) -> None:
    """A flag for each option of these fields, absent from what is parsed where it is not given."""
    for option in OPTIONS:
        if option.flag and option.field in fields:
            text = f"{option.help} [{option.env}; default: {option.shown}]".replace("`", "").replace("%", "%%")
            parser.add_argument(option.flag, metavar=option.metavar, default=argparse.SUPPRESS, help=text)
