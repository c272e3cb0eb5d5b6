"""Create a checkout: clone next to its place, apply the settings, rename it into place.

Rules:

1. A push that arrives during the clone sees either no checkout or a complete one with its settings.
2. The temporary directory has a name that no repository can have, so nothing lists it.
3. The checkout's lock is held during the rename, so no run can use the checkout before it is in place.
4. git cannot prompt, and its messages never reach the terminal unescaped.
5. An impossible request is rejected before the clone: a name in use, a branch that the remote lacks, a wrong URL.
6. The URL may contain a token, and git stores it in a file that everyone can read, so the repository's directory is
   closed to other users. A clone that fails leaves no directory behind.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.cli.messages import EX_DATAERR, EX_NOINPUT, EX_NOPERM, EX_TEMPFAIL, EX_USAGE
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_in_url, is_valid_checkout, repository_of
from gitops_hook.sync.checkouts import Checkouts, is_checkout
from gitops_hook.sync.moves import KEPT_GIT, checkout_lock
from gitops_hook.sync.settings import check_setting
from gitops_hook.text import suggest

#: The number of lines of git's messages in an error.
_MESSAGE_LINES = 5


class Source(NamedTuple):
    """Where a checkout comes from: the URL, and the git configuration that gives access, as ``name=value``."""

    url: str
    config: Sequence[str] = ()


def check(names: Iterable[str], settings: Mapping[str, str]) -> None:
    """Raise `GitopsError` if a name or a setting is invalid."""
    for name in names:
        if not is_valid_checkout(name) or "/" not in name:
            raise GitopsError(EX_USAGE, f"`{name}` is not OWNER/NAME or OWNER/NAME@ENVIRONMENT")
    for setting, value in settings.items():
        try:
            check_setting(setting, value)
        except ValueError as error:
            raise GitopsError(EX_USAGE, str(error)) from None


def check_place(root: Path, name: str) -> None:
    """Raise `GitopsError` if something that is no checkout occupies the place of the checkout `name`."""
    path = root / name
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path / KEPT_GIT):
        fix = f"mv {path / KEPT_GIT} {path / '.git'}"
        raise GitopsError(EX_DATAERR, f"{path} was removed with --keep-files; to adopt it again: {fix}")
    if os.path.lexists(path):
        raise GitopsError(EX_DATAERR, f"{path} exists and is no checkout; move it away and repeat")
    if path.parent != root and is_checkout(path.parent):
        raise GitopsError(EX_DATAERR, f"{path.parent} is itself a checkout; move it away and repeat")


def check_url(name: str, url: str) -> None:
    """Raise `GitopsError` if `url` leads to another repository than that of the checkout `name`."""
    if not is_in_url(repository_of(name), url):
        raise GitopsError(EX_USAGE, f"the URL {url} does not end in {repository_of(name)}")


def list_branches(source: Source) -> list[str]:
    """Return the branches of the remote. Raises `GitopsError` with git's messages if it cannot be read."""
    answer = git(f"{source.url} cannot be read", *_options(source), "ls-remote", "--heads", "--", source.url)
    return [line.partition("\trefs/heads/")[2] for line in answer.splitlines()]


def check_branch(source: Source, branches: Sequence[str], branch: str | None) -> None:
    """Raise `GitopsError` if the remote lacks `branch`."""
    if branch and branch not in branches:
        hint = suggest(branch, branches)
        raise GitopsError(EX_NOINPUT, f"the branch {branch} does not exist at {source.url}{hint}")


def create(root: Path, name: str, source: Source, settings: Mapping[str, str]) -> Path | None:
    """Clone a repository to the place of the checkout `name`, with ``gitops.*`` settings.

    Returns the path of the checkout, or None if there is one already. Raises `GitopsError` if git fails.
    """
    if Checkouts(root).find(name):
        return None
    path = root / name
    temporary = path.with_name(f"{path.name}~clone-{os.getpid()}")  # no repository's name contains ~
    is_first = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        options = ["--branch", settings["branch"]] if "branch" in settings else []
        options += [word for entry in source.config for word in ("--config", entry)]
        git(f"{source.url} cannot be cloned to {path}", "clone", "--quiet", *options, "--", source.url, str(temporary))
        for setting, value in settings.items():
            git(f"gitops.{setting} cannot be set", "-C", str(temporary), "config", f"gitops.{setting}", value)
        # git lets the group write to the directory of a group-shared repository.
        shared = (temporary / ".git").stat().st_mode & stat.S_IWGRP
        (temporary / ".git").chmod(0o2770 if shared else 0o700)
        temporary.chmod(path.parent.stat().st_mode & 0o2777)
        return path if _rename(temporary, path) else None
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{error.filename}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_first:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


def configure(path: Path, source: Source) -> None:
    """Give the existing checkout at `path` the URL and the configuration of `source`. Raises `GitopsError`."""
    with checkout_lock(path):
        git("the origin cannot be set", "-C", str(path), "remote", "set-url", "origin", source.url)
        for name in dict.fromkeys(entry.partition("=")[0] for entry in source.config):
            values = [entry.partition("=")[2] for entry in source.config if entry.startswith(f"{name}=")]
            git(f"{name} cannot be set", "-C", str(path), "config", "--replace-all", name, values[0])
            for value in values[1:]:
                git(f"{name} cannot be set", "-C", str(path), "config", "--add", name, value)


def _options(source: Source) -> list[str]:
    return [word for entry in source.config for word in ("-c", entry)]


def _rename(temporary: Path, path: Path) -> bool:
    """Rename the clone into place; return False if another process has created the checkout meanwhile."""
    with checkout_lock(temporary):
        try:
            temporary.rename(path)  # replaces an empty directory, and fails for any other
        except OSError:
            if (path / ".git").exists():
                return False
            raise
    return True


def git(problem: str, *arguments: str) -> str:
    """Run git without a terminal, and return its output.

    Raises `GitopsError` with the last lines of its messages if it fails.
    """
    done = subprocess.run(
        ["git", *arguments],
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,  # ssh would prompt on the controlling terminal
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().split("\n")[-_MESSAGE_LINES:]
        raise GitopsError(EX_TEMPFAIL, f"{problem}: {' / '.join(line.strip() for line in lines)}")
    return done.stdout.decode("utf-8", "replace")
