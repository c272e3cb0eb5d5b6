"""The SSH key of a private repository: where it is, and how a checkout names it.

Rules:

1. A key belongs to one repository. All environments of the repository use it.
2. ``core.sshCommand`` of a checkout decides which key a run uses. It always names a key that exists: a new key is
   complete before a checkout names it, and an old one is deleted after the last checkout has changed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from gitops_hook.names import repository_of
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.git import git_output


def key_directory(state: Path, name: str) -> Path:
    """Return the directory of the key of a checkout's repository: ``id_ed25519``, its ``.pub``, and ``known_hosts``."""
    return state / "keys" / repository_of(name)


def words_of(command: str) -> list[str]:
    """Return the words of a shell command; an empty list if its quotes are not closed, as a person may leave them."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def key_of(ssh_command: str) -> Path | None:
    """Return the key that a ``core.sshCommand`` of ours names."""
    words = words_of(ssh_command)
    return Path(words[2]) if words[:2] == ["ssh", "-i"] and len(words) > 2 else None


def key_of_checkout(state: Path, path: Path) -> Path | None:
    """Return the key below `state` that the checkout at `path` uses, or None."""
    try:
        key = key_of(git_output(path, "config", "core.sshCommand"))
    except subprocess.CalledProcessError:  # there is none
        return None
    return key if key and key.is_relative_to(state / "keys") else None


def follow_rename(state: Path, checkouts: Checkouts, path: Path, old: str, new: str) -> None:
    """Let the checkout at `path`, which changed its name from `old` to `new`, use the key of its new repository.

    That is the key of the other checkouts of that repository, if they have one. Otherwise the key of the old name moves
    with the checkout. The caller holds the lock of the checkout. Raises OSError and `subprocess.SubprocessError`.
    """
    key, target = key_of_checkout(state, path), key_directory(state, new)
    if not key or key.parent == target or repository_of(old) == repository_of(new):
        return
    if not _is_used(target / key.name, state, checkouts, new):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(key.parent, target, dirs_exist_ok=True)
    command = git_output(path, "config", "core.sshCommand").rstrip("\n")
    git_output(path, "config", "core.sshCommand", command.replace(f"{key.parent}/", f"{target}/"))
    if not _is_used(key, state, checkouts, old):
        shutil.rmtree(key.parent, ignore_errors=True)


def _is_used(key: Path, state: Path, checkouts: Checkouts, name: str) -> bool:
    """Return True if a checkout of the repository of `name` uses the key."""
    found = checkouts.find_all(repository_of(name))
    return any(key_of_checkout(state, checkout.path) == key for checkout in found)
