"""Create a checkout: clone next to its place, apply the settings, rename it into place.

Rules:

1. A push that arrives during the clone sees either no checkout or a complete one with its settings.
2. The temporary directory has a name that no repository can have, so nothing lists it.
3. The checkout's lock is held during the rename, so no run can use the checkout before it is in place.
4. git cannot prompt, and its messages never reach the terminal unescaped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from gitops_hook.cli.messages import EX_NOPERM, EX_TEMPFAIL, EX_USAGE
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.settings import check_setting

#: The number of lines of git's messages in an error.
_MESSAGE_LINES = 5


def check(repositories: Iterable[str], settings: Mapping[str, str]) -> None:
    """Raise `GitopsError` if a name or a setting is invalid."""
    for repository in repositories:
        if not is_valid(repository) or "/" not in repository:
            raise GitopsError(EX_USAGE, f"`{repository}` is not OWNER/NAME")
    for name, value in settings.items():
        try:
            check_setting(name, value)
        except ValueError as error:
            raise GitopsError(EX_USAGE, str(error)) from None


def create(root: Path, repository: str, url: str, settings: Mapping[str, str]) -> Path | None:
    """Clone a repository from `url`, which may contain ``{repository}``, with ``gitops.*`` settings.

    Returns the path of the checkout, or None if there is one already. Raises `GitopsError` if git fails.
    """
    if Checkouts(root).find(repository):
        return None
    url = url.replace("{repository}", repository)
    path = root / repository
    temporary = path.with_name(f"{path.name}~clone-{os.getpid()}")  # no repository's name contains ~
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        branch = ["--branch", settings["branch"]] if "branch" in settings else []
        _git(f"{url} cannot be cloned to {path}", "clone", "--quiet", *branch, "--", url, str(temporary))
        for name, value in settings.items():
            _git(f"gitops.{name} cannot be set", "-C", str(temporary), "config", f"gitops.{name}", value)
        return path if _rename(temporary, path) else None
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{error.filename}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, path: Path) -> bool:
    """Rename the clone into place; return False if another process has created the checkout meanwhile."""
    # scripts/sync/lock.sh has the same file.
    lock = os.open(temporary / ".git/gitops.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.rename(path)  # replaces an empty directory, and fails for any other
    except OSError:
        if (path / ".git").exists():
            return False
        raise
    finally:
        os.close(lock)
    return True


def _git(problem: str, *arguments: str) -> None:
    """Run git without a terminal. Raises `GitopsError` with the last lines of its messages if it fails."""
    done = subprocess.run(
        ["git", *arguments],
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # ssh would prompt on the controlling terminal
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().split("\n")[-_MESSAGE_LINES:]
        raise GitopsError(EX_TEMPFAIL, f"{problem}: {' / '.join(line.strip() for line in lines)}")
