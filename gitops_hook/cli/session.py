"""The parts that several commands share: settings, the user to run as, lookups, and messages on standard error."""

from __future__ import annotations

import argparse
import os
import pwd
import sys

from gitops_hook.config import OPTIONS, Settings, load, unit_environment
from gitops_hook.errors import GitopsError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.text import escape, redact

#: Exit statuses of sysexits(3).
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


def load_settings(given: argparse.Namespace) -> Settings:
    """Return the daemon's settings: from its unit's files, the environment and the flags; the last one wins.

    Raises `ConfigError` for an invalid one.
    """
    return load({**unit_environment(), **os.environ}, given_flags(given))


def given_flags(given: argparse.Namespace) -> dict[str, str]:
    """Return the settings that were given as flags, by field."""
    fields = {option.field for option in OPTIONS}
    return {name: value for name, value in vars(given).items() if name in fields}


def become_owner(settings: Settings) -> None:
    """Continue as the owner of the state directory if the process is root's.

    git rejects a checkout of another user, and files that root creates there would block the daemon. Raises
    `GitopsError` if the owner is unknown.
    """
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


def find_checkout(settings: Settings, name: str) -> Checkout:
    """Return the checkout of a repository. Raises `GitopsError` if there is none."""
    checkout = Checkouts(settings.root).find(name)
    if not checkout:
        raise GitopsError(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}")
    return checkout


def canonical_name(settings: Settings, name: str) -> str:
    """Return the name that the daemon and the journal use: a checkout directly under the root has two names."""
    return Checkouts(settings.root).canonical_name(name)


def open_reader(settings: Settings) -> JournalReader:
    """Return the reader of the journal. Raises `GitopsError` if there is no journal."""
    if not (settings.state / "journal.db").exists():
        raise GitopsError(EX_NOINPUT, f"there is no journal in {settings.state}: has the daemon run with this state?")
    return JournalReader(settings.state)


def print_error(message: str) -> None:
    """Print a message as one line on standard error, without control characters and without credentials in URLs."""
    print(f"gitops-hook: {escape(redact(message))}", file=sys.stderr)


def show_progress(number: int, total: int, subject: str) -> None:
    """Replace the progress line on a terminal. The line stays when `number` reaches `total`."""
    if sys.stderr.isatty():
        end = "\n" if number == total else ""
        print(f"\r\033[K{number} of {total}  {escape(subject)}", end=end, file=sys.stderr, flush=True)


def clear_progress() -> None:
    """Remove the progress line, so that a line of output can take its place."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
