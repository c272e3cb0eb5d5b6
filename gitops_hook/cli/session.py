"""The parts that several commands share: settings, the user to run as, and lookups."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gitops_hook.cli.messages import EX_NOINPUT, EX_NOPERM
from gitops_hook.config import OPTIONS, Settings, load, unit_environment
from gitops_hook.errors import GitopsError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.text import suggest
from gitops_hook.users import owner_of


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
    `GitopsError` if that is impossible.
    """
    owner = settings.state if settings.state.exists() else settings.root
    try:
        account = owner_of(owner)
        if os.geteuid() == 0 and account.uid != 0:
            os.initgroups(account.name, account.gid)
            os.setgid(account.gid)
            os.setuid(account.uid)
            os.environ.update(HOME=account.home, USER=account.name, LOGNAME=account.name)
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{owner}: {error}") from error
    try:
        Path.cwd().stat()
    except OSError:
        os.chdir("/")  # git fails in a directory that this user cannot reach, such as one below /root


def find_checkout(settings: Settings, name: str) -> Checkout:
    """Return the checkout of a repository. Raises `GitopsError` if there is none, with a similar name as suggestion."""
    checkouts = Checkouts(settings.root)
    checkout = checkouts.find(name)
    if not checkout:
        hint = suggest(name, checkouts)
        raise GitopsError(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}{hint}")
    return checkout


def canonical_name(settings: Settings, name: str) -> str:
    """Return the name that the daemon and the journal use: a checkout directly under the root has two names."""
    return Checkouts(settings.root).canonical_name(name)


def check_access(settings: Settings, alternative: str = "") -> None:
    """Raise `GitopsError` if this user cannot read the state directory, with an `alternative` to sudo."""
    if settings.state.exists() and not os.access(settings.state, os.R_OK | os.X_OK):
        owner = owner_of(settings.state).name
        raise GitopsError(EX_NOPERM, f"only root and {owner} can read {settings.state}: use sudo{alternative}")


def open_reader(settings: Settings) -> JournalReader:
    """Return the reader of the journal. Raises `GitopsError` if there is no journal or this user cannot read it."""
    check_access(settings, f", or read http://{settings.dashboard_listen}/api" if settings.dashboard_listen else "")
    if not (settings.state / "journal.db").exists():
        raise GitopsError(EX_NOINPUT, f"there is no journal in {settings.state}: has the daemon run with this state?")
    return JournalReader(settings.state)
