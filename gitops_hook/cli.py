"""The command line: what can be asked of gitops-hook, and the exit status that it ends with.

Exit statuses are those of sysexits(3): 64 for a wrong call, 66 for a repository or run that is not known, 69 where a
daemon cannot start or does not answer, 74 for a fault of the disk, 77 for want of permission, 78 for a bad setting;
``sync`` ends with that of the worst outcome, which is the script's own.

Each command is a function of the parsed arguments; what it needs is imported when it runs, so ``--help`` waits for
nothing.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gitops_hook import __version__
from gitops_hook.config import ENVIRONMENT_FILE, OPTIONS, ConfigError, Settings, load, read_environment

if TYPE_CHECKING:
    from gitops_hook.dispatcher import Dispatcher
    from gitops_hook.journal import Journal, Run
    from gitops_hook.repository import Checkout

EX_USAGE = 64
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_NOPERM = 77
EX_CONFIG = 78


class _Failure(Exception):
    """A command cannot do what was asked: the exit status, and the line that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
    except ConfigError as error:
        return _complain(EX_CONFIG, error)
    except _Failure as failure:
        return _complain(failure.status, failure)
    except BrokenPipeError:
        # Whoever read us has seen enough; without this, Python would complain as it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


# -- the daemon ---------------------------------------------------------------------------------------------------------


def _serve(given: argparse.Namespace) -> int:
    from gitops_hook import daemon, logs

    settings = load(os.environ, _flags(given))
    logs.setup(settings.log_format, under_systemd="JOURNAL_STREAM" in os.environ)
    try:
        return daemon.serve(settings, os.environ)
    except daemon.StartError as error:
        raise _Failure(EX_UNAVAILABLE, str(error)) from error


# -- what stands where --------------------------------------------------------------------------------------------------


def _status(given: argparse.Namespace) -> int:
    from gitops_hook import overview, reports

    settings = _settings(given)
    only = [given.repository] if given.repository else []
    standings = overview.standings(_reader(settings), _checkouts(settings), only)
    if only and standings[0].run is None and standings[0].path is None:
        raise _Failure(EX_NOINPUT, f"nothing is known of {given.repository}")
    reports.show_standings(standings, as_json=given.json)
    return 0


def _runs(given: argparse.Namespace) -> int:
    from gitops_hook import reports

    journal = _reader(_settings(given))
    if given.delivery:
        deliveries = journal.deliveries(given.delivery)
        if not deliveries:
            raise _Failure(EX_NOINPUT, f"no delivery {given.delivery} was accepted")
        known = {delivery.run: journal.run(delivery.run) for delivery in deliveries if delivery.run}
        runs = [run for run in known.values() if run]
    else:
        runs = journal.runs(given.repository, given.number)
    reports.show_runs(runs, as_json=given.json)
    return 0


def _logs(given: argparse.Namespace) -> int:
    from gitops_hook import reports

    journal = _reader(_settings(given))
    if given.what.isdecimal():
        run = journal.run(int(given.what))
    else:
        run = next(iter(journal.runs(given.what, 1)), None)
    if not run:
        raise _Failure(EX_NOINPUT, f"there is no run {given.what}" if given.what.isdecimal() else f"{given.what} never ran")
    reports.show_log(journal, run, follow=given.follow)
    return 0


# -- what can be done ---------------------------------------------------------------------------------------------------


def _sync(given: argparse.Namespace) -> int:
    if bool(given.repository) == given.all:
        raise _Failure(EX_USAGE, "give repositories, or --all")
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
        f"  Payload URL   https://<this host>{WEBHOOK_PATH}, which a proxy hands to {settings.listen}\n"
        "  Content type  application/json\n"
        "  Secret        the newest line of the secrets file\n"
        "  Events        just the push event"
    )
    return status


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
        raise _Failure(75, f"no run of it has ended within {given.timeout} s; gitops-hook runs --delivery {guid}")
    reports.show_runs([run], as_json=given.json)
    return actions.EXIT_OF_OUTCOME.get(run.outcome or "", 1)


# -- what they share ----------------------------------------------------------------------------------------------------


def _settings(given: argparse.Namespace) -> Settings:
    """The settings that the daemon has: those of its environment file, of our own environment, and flags."""
    return load({**read_environment(ENVIRONMENT_FILE), **os.environ}, _flags(given))


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
        raise _Failure(EX_NOPERM, f"{owner}: {error}") from error


def _checkouts(settings: Settings) -> Checkouts:
    from gitops_hook.repository import Checkouts

    return Checkouts(settings.root)


def _checkout(settings: Settings, name: str) -> Checkout:
    from gitops_hook.repository import is_valid

    checkout = _checkouts(settings).find(name) if is_valid(name) else None
    if not checkout:
        raise _Failure(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}")
    return checkout


def _reader(settings: Settings) -> JournalReader:
    from gitops_hook.journal import JournalReader

    if not (settings.state / "journal.db").exists():
        raise _Failure(EX_NOINPUT, f"there is no journal in {settings.state}: has the daemon run with this state?")
    return JournalReader(settings.state)
