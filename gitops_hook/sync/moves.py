"""Rename a checkout, or remove it from the root, on request of an operator.

Rules:

1. The caller holds the checkout's lock (`checkout_lock`), so no run uses the directory meanwhile.
2. A directory changes its place in one step (rename(2)). A reader sees it complete at one place or at the other.
3. A link under the root is moved or removed as a link. The directory that it leads to stays as it is.
4. Nobody's work is removed unless the operator asks for that: local changes, commits that no remote has, stashes.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.errors import GitopsError
from gitops_hook.names import replace_in_url, repository_of
from gitops_hook.sync.checkouts import Checkout, Checkouts, is_checkout
from gitops_hook.sync.git import git_output
from gitops_hook.sync.settings import git_directories

#: The name of ``.git`` in a directory that stays after `remove`. To undo that, rename it back.
KEPT_GIT = ".git.removed"
#: Seconds to wait for the lock of a checkout: less than a server that stops gives to its requests.
_PATIENCE = 3.0
_INTERVAL = 0.05


class MoveError(GitopsError):
    """A checkout that cannot be moved or removed now: exit 75 (EX_TEMPFAIL)."""

    def __init__(self, message: str) -> None:
        super().__init__(75, message)


class Removed(NamedTuple):
    """The result of a removal. Both are None for a link."""

    #: The directory to delete: the checkout, under a name that no repository can have.
    leftover: Path | None = None
    #: The directory that stays without being a checkout.
    kept: Path | None = None


@contextmanager
def checkout_lock(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the lock of the checkout at `path`, which scripts/sync/lock.sh takes for each run.

    Raises `MoveError` if a run holds it for more than `patience` seconds.
    """
    lock = os.open(git_directories(path)[0] / "gitops.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MoveError(f"a run or a command uses {path}; try again after its end") from None
                time.sleep(_INTERVAL)
        yield
    finally:
        os.close(lock)


def remove(checkout: Checkout, *, keep_files: bool, force: bool) -> Removed:
    """Remove a checkout from the root. The caller deletes `Removed.leftover`.

    With `keep_files`, the directory stays, but its ``.git`` gets the name `KEPT_GIT`. `force` permits the loss of local
    work. Raises `MoveError` and OSError.
    """
    path = checkout.path
    if path.is_symlink():
        path.unlink()
        return Removed()
    if keep_files:
        target = path / KEPT_GIT
        if os.path.lexists(target):
            raise MoveError(f"{target} exists; move it away and repeat")
        (path / ".git").rename(target)
        return Removed(kept=path)
    if (path / ".git/worktrees").is_dir():
        raise MoveError(f"other worktrees use the repository in {path}: git -C {path} worktree list")
    work = "" if force else _local_work(path)
    if work:
        raise MoveError(f"{path} has {work}; --keep-files keeps the directory, --force deletes it")
    leftover = path.with_name(f"{path.name}~removed-{time.time_ns()}")  # no repository's name contains ~
    path.rename(leftover)
    return Removed(leftover)


def _local_work(path: Path) -> str:
    """Return the kind of local work that the checkout at `path` contains, or "" if there is none."""
    try:
        if _git_lines(path, "status", "--porcelain", "--untracked-files=normal"):
            return "local changes"
        if _git_lines(path, "rev-list", "--max-count=1", "HEAD", "--branches", "--not", "--remotes"):
            return "commits that are not at the remote"
        return "stashes" if _git_lines(path, "stash", "list") else ""
    except subprocess.SubprocessError:
        return "a repository that git cannot read"


def _git_lines(path: Path, *arguments: str) -> list[str]:
    return git_output(path, *arguments).splitlines()


def new_place(checkouts: Checkouts, checkout: Checkout, name: str) -> Path:
    """Return the path of `checkout` after its change of name to `name`; a flat checkout stays flat.

    Raises `MoveError` if something else is there.
    """
    flat = checkout.path.parent == checkouts.root
    path = checkouts.root / (name.rpartition("/")[2] if flat else name)
    taken = checkouts.find(name)
    if taken and not taken.path.samefile(checkout.path):
        raise MoveError(f"there is a checkout of {name} at {taken.path}")
    if not flat and is_checkout(path.parent):
        raise MoveError(f"{path.parent} is itself a checkout")
    if os.path.lexists(path) and not path.samefile(checkout.path):
        raise MoveError(f"{path} exists; move it away and repeat")
    return path


def rename(checkout: Checkout, path: Path, name: str) -> None:
    """Move a checkout to `path`, and let its origin be the repository of its new name `name`.

    Raises OSError, and `MoveError` if git rejects the URL.
    """
    set_origin(checkout, name)
    if path == checkout.path:
        return
    path.parent.mkdir(exist_ok=True)
    checkout.path.rename(path)
    with suppress(OSError):
        checkout.path.parent.rmdir()  # if it was the owner's last checkout
    with suppress(OSError, subprocess.SubprocessError):  # links of worktrees have absolute paths
        git_output(path, "worktree", "repair")


def set_origin(checkout: Checkout, name: str) -> None:
    """Replace the repository in the URL of the origin, unless the URL ends in another repository than the old name."""
    url = checkout.settings.get("origin", "")
    changed = replace_in_url(url, repository_of(checkout.repository), repository_of(name))
    if changed != url:
        try:
            git_output(checkout.path, "config", "remote.origin.url", changed)
        except subprocess.SubprocessError as error:
            raise MoveError(f"the origin of {checkout.path} cannot be changed: {error}") from None
