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
