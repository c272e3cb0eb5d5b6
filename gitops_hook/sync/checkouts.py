"""Repositories as this host keeps them: their names, where a checkout lies, its ``gitops.*`` settings.

Rules:

1. A repository is called ``owner/name``, as the forge calls it, or plain ``name`` where no owner is known.
   Every name from outside passes `is_valid` before it touches a path.
2. A checkout is a folder with a ``.git``, at ``<root>/<owner>/<name>`` or else at ``<root>/<name>``.
   Forges take names without regard to case, so an exact match wins and one that differs in case serves.
3. Settings stand in the checkout's own git config (and what it includes), out of reach of whoever can push.
   git reads them once; they are read again when a file that they came from has changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gitops_hook.names import is_valid, name_in_url

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMOTE = "refs/remotes/origin"
#: Settings that have git read another file (git-config(1), "Includes").
_INCLUDE = re.compile(r"include(if\..*)?\.path", re.DOTALL)
#: The coarsest step of a file's time, 10 ms where the kernel ticks at 100 Hz. What changed that shortly before it was
#: read can change again and look the same.
_TICK_NS = 10_000_000
#: Names whose checkouts are remembered: several for each of a thousand checkouts, in a few megabytes.
_MOST_KNOWN = 4096


class Checkout(NamedTuple):
    """A checkout on this host, and its settings when they were last looked at.

    `settings` holds its ``gitops.*`` by their names in lower case without the prefix, and the URL of its origin as
    ``origin``. They are empty where git cannot read the config: the script meets the same fault, and reports it.
    """

    repository: str
    path: Path
    settings: Mapping[str, str]
    #: The file that each setting stands in, by its name.
    origins: Mapping[str, str] = MappingProxyType({})


class _Stamp(NamedTuple):
    """What a file looked like, or that it was not there; any change to it changes one of these."""

    path: str
    inode: int = 0
    size: int = 0
    ctime_ns: int = 0

    @classmethod
    def of(cls, path: str) -> _Stamp:
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path would cost more than the system call
        except OSError:
            return cls(path)
        return cls(path, stat.st_ino, stat.st_size, stat.st_ctime_ns)


class _Known(NamedTuple):
    """A checkout that was found, and the files whose looks say that it still is what it was.

    Without any, it has to be looked at again: git could not read it, or it had changed in that very moment.
    """

    checkout: Checkout
    stamps: Sequence[_Stamp]


class Checkouts:
    """The checkouts under one root. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # By repository. Replaced entry by entry, each in one step, so no lock is needed; at worst two threads read
        # the same config. A checkout right below the root goes by as many names as one can make up, hence the bound.
        self._known: dict[str, _Known] = {}

    def find(self, repository: str) -> Checkout | None:
        """The checkout of `repository`, or None if there is none, as for a name that is none.

        While its config is unchanged this costs a stat(2) or two, and no process. Raises OSError where git is needed
        and cannot be started.
        """
        known = self._known.get(repository)
        if known and all(_Stamp.of(stamp.path) == stamp for stamp in known.stamps):
            return known.checkout
        if not is_valid(repository):  # whoever asks may forget to, and then a path would lead out of the root
            return None
        owner, _, name = repository.rpartition("/")
        nested = _descend(self.root, [owner, name]) if owner else None
        path = nested or _descend(self.root, [name])
        if not path:
            self._known.pop(repository, None)
            return None
        known = _read(repository, path)
        self._known.pop(repository, None)
        if known.stamps:
            exact = self.root / repository
            if path != exact:  # it would take precedence, should it come
                known = known._replace(stamps=[*known.stamps, _Stamp.of(str(exact / ".git"))])
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[repository] = known
        return known.checkout

    def __iter__(self) -> Iterator[str]:
        """The repositories that have a checkout; one that lies in no owner's folder is called as its origin is."""
        for path in _folders(self.root):
            if is_checkout(path):
                yield self._name_by_origin(path)
            else:
                for nested in filter(is_checkout, _folders(path)):
                    yield f"{path.name}/{nested.name}"

    def canonical_name(self, repository: str) -> str:
        """What a repository is called in a listing (`__iter__`) that somebody names by its folder below the root alone.

        Any other name stays as it is, and so does one whose origin's name leads to another checkout. Raises OSError
        as `find` does.
        """
        checkout = None if "/" in repository else self.find(repository)
        if not checkout:
            return repository
        name = self._name_by_origin(checkout.path)
        found = self.find(name)
        return name if found and found.path == checkout.path else repository

    def _name_by_origin(self, path: Path) -> str:
        """What the checkout at `path` is called by its origin, if that agrees with its folder's name."""
        try:
            checkout = self.find(path.name)
        except OSError:  # no process to be had; its run will say so
            checkout = None
        name = name_in_url(checkout.settings.get("origin", "") if checkout else "") or ""
        return name if name.rpartition("/")[2].lower() == path.name.lower() else path.name

    def count(self) -> int:
        """How many checkouts there are; unlike a look at each, this reads nothing but folders."""
        return sum(1 if is_checkout(path) else sum(map(is_checkout, _folders(path))) for path in _folders(self.root))


def at(path: Path) -> Checkout:
    """The checkout at `path`, wherever that is, called as its origin is, or else as its folder."""
    checkout = _read(path.name, path).checkout
    return checkout._replace(repository=name_in_url(checkout.settings.get("origin", "")) or path.name)


def is_checkout(path: Path) -> bool:
    """Whether this folder is a checkout."""
    return os.path.lexists(path / ".git")


def _folders(path: Path) -> list[Path]:
    """The folders in `path` whose names could be a repository's, sorted; none if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if is_valid(entry.name) and entry.is_dir())
            return [path / name for name in names]
    except OSError:
        return []


def _descend(root: Path, parts: Sequence[str]) -> Path | None:
    """The checkout at `root`/`parts`, exact or else case aside; None if there is no such folder or no git in it."""
    exact = root.joinpath(*parts)
    if _stands(exact, root):
        return exact
    paths = [root]
    for part in parts:
        paths = [child for path in paths for child in _folders(path) if child.name.lower() == part.lower()]
    return next((path for path in paths if _stands(path, root)), None)


def _stands(path: Path, root: Path) -> bool:
    """Whether `path` is a checkout, and none that another's tree holds: a submodule, or what a link in it leads to."""
    return is_checkout(path) and (path.parent == root or not is_checkout(path.parent))


def _read(repository: str, path: Path) -> _Known:
    """Have git read the config of the checkout at `path`."""
    config = _git_folders(path)[1] / "config"
    # Stamps are taken before a file is read where that can be: a change in between is seen at the next look.
    began = time.time_ns()
    stamps = [_Stamp.of(str(file)) for file in (config, path / ".git") if not _is_folder(file)]
    listing = subprocess.run(
        ["git", "config", "--file", config, "--includes", "--show-origin", "--null", "--list"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    settings: dict[str, str] = {}
    origins: dict[str, str] = {}
    fields = os.fsdecode(listing.stdout).split("\0")
    for origin, entry in zip(fields[::2], fields[1::2]):
        key, equals, value = entry.partition("\n")
        name = "origin" if key == "remote.origin.url" else key[len("gitops.") :] if key.startswith("gitops.") else ""
        if name:
            if name == "paths" and name in settings:  # the one that may be given several times
                value = f"{settings[name]} {value}"
            settings[name], origins[name] = value if equals else "true", origin[len("file:") :]
        elif _INCLUDE.fullmatch(key):  # whether it is there and in force or not: it may come to be
            folder = os.path.dirname(origin[len("file:") :])  # noqa: PTH120 - as git takes it
            stamps.append(_Stamp.of(os.path.join(folder, os.path.expanduser(value))))  # noqa: PTH111, PTH118
    if listing.returncode or any(stamp.ctime_ns > began - _TICK_NS for stamp in stamps):
        stamps = []
    return _Known(Checkout(repository, path, settings, origins), stamps)


def _git_folders(checkout: Path) -> tuple[Path, Path]:
    """The checkout's own git folder and the one that holds what it shares: for all but a linked worktree, the same."""
    own = checkout / ".git"
    if _is_folder(own):
        return own, own
    try:
        own = checkout / own.read_text().partition("gitdir:")[2].partition("\0")[0].strip()
        return own, own / (own / "commondir").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return own, own  # a submodule's, which has no common folder


def _is_folder(path: Path) -> bool:
    """Whether there is a folder; no, where we may not look. Before Python 3.14 Path.is_dir raises there."""
    return os.path.isdir(path)  # noqa: PTH112 - for that reason


class Position(NamedTuple):
    """Where a checkout stands, as commit ids: what was last deployed with success, and what upstream was last seen at.

    None is what has not come to pass yet, or cannot be told without git.
    """

    deployed: str | None
    upstream: str | None


def position(checkout: Checkout) -> Position:
    """Read off the refs as files, which takes no process; at most a fifth of a millisecond."""
    own, common = _git_folders(checkout.path)
    branch = checkout.settings.get("branch") or ""
    if not branch:
        branch = (_first_line(common / _REMOTE / "HEAD") or "").partition(f"ref: {_REMOTE}/")[2]
    deployed = "refs/gitops/deployed" if own == common else "refs/worktree/gitops/deployed"
    upstream = f"{_REMOTE}/{branch}"
    return Position(_ref(own, deployed), _ref(common, upstream) if branch else None)


def _ref(folder: Path, name: str) -> str | None:
    """The commit id of a ref, from its own file or else from the packed ones."""
    line = _first_line(folder / name)
    if line is None:
        packed = _packed_refs(folder)
        end = packed.find(f" {name}\n")
        line = packed[packed.rfind("\n", 0, end) + 1 : end] if end >= 0 else ""
    return line if _COMMIT.fullmatch(line) else None


def _packed_refs(folder: Path) -> str:
    try:
        return (folder / "packed-refs").read_text("utf-8", "replace")
    except OSError:
        return ""


def _first_line(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(1000).strip()
    except (OSError, ValueError):  # the latter for a name that no file can have
        return None
