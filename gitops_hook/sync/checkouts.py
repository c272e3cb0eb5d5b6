"""The checkouts on this host: where they are, what they are called, which commits they are at.

Rules:

1. A repository is called ``owner/name``, as the forge calls it, or ``name`` if no owner is known. Every name from
   outside passes `is_valid` before it becomes part of a path.
2. A checkout is a directory with a ``.git``, at ``<root>/<owner>/<name>`` or at ``<root>/<name>``. Forges ignore the
   case of names, so a directory whose name differs only in case matches too; an exact match wins.
3. ``<name>@<environment>`` is an additional checkout of the same repository.
4. A checkout directly below the root belongs to the repository that its origin names, and to no other.
5. A lookup starts no process while the configuration of the checkout is unchanged (`settings`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gitops_hook.names import is_in_url, is_valid, is_valid_checkout, name_in_url, repository_of
from gitops_hook.sync.settings import Stamp, git_directories, is_settled, read_config

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMOTE = "refs/remotes/origin"
_TAGS = "refs/gitops/tags/"
#: Names whose checkouts are cached: several for each of a thousand checkouts, in a few megabytes.
MAX_CACHED = 4096


class Checkout(NamedTuple):
    """A checkout on this host, and its settings at the time of the lookup.

    `settings` are the values of `settings.Config`. They are empty if git cannot read the configuration; the script
    meets the same fault and reports it.
    """

    repository: str
    path: Path
    settings: Mapping[str, str]
    #: The file that each setting comes from, by the name of the setting.
    origins: Mapping[str, str] = MappingProxyType({})


class _Cached(NamedTuple):
    """The result of a lookup, and the stamps of the files that must be unchanged for it to be still valid."""

    checkout: Checkout | None
    stamps: Sequence[Stamp]


class Checkouts:
    """The checkouts under one root. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # By name. Each entry is replaced in one step, so no lock is needed; at worst two threads read the same
        # configuration. A peer can invent many owners for a checkout directly below the root, hence MAX_CACHED.
        self._cache: dict[str, _Cached] = {}
        # The environments of each repository in lower case, and the stamps of the directories that have them.
        self._cached_environments: dict[str, tuple[Sequence[str], Sequence[Stamp]]] = {}

    def find(self, repository: str) -> Checkout | None:
        """Return the checkout of `repository`, or None if there is none or the name is invalid.

        While the configuration is unchanged, this costs one or two stat(2) calls and no process. Raises OSError if git
        is needed and cannot be started.
        """
        cached = self._cache.get(repository)
        if cached and all(stamp.is_current() for stamp in cached.stamps):
            return cached.checkout
        if not is_valid_checkout(repository):  # checked here too, because an invalid name could lead out of the root
            return None
        owner, _, name = repository.rpartition("/")
        nested = _descend(self.root, [owner, name]) if owner else None
        path = nested or _descend(self.root, [name])
        self._cache.pop(repository, None)
        if not path:
            return None
        config = read_config(path)
        checkout = Checkout(repository, path, config.values, config.origins)
        origin = config.values.get("origin")
        is_foreign = not nested and owner and origin and not is_in_url(repository_of(repository), origin)
        found = None if is_foreign else checkout
        if config.stamps:
            self._keep(repository, path, _Cached(found, config.stamps))
        return found

    def find_all(self, repository: str, path: str = "") -> list[Checkout]:
        """Return every checkout of `repository`: its own, and one for each environment.

        `path` is the full path at a forge whose groups nest. Two such paths can have the same end, so the origin of a
        checkout must agree with it. Raises OSError like `find`.
        """
        if not is_valid(repository):
            return []
        found: dict[Path, Checkout] = {}
        for name in (repository, *(f"{repository}@{environment}" for environment in self._environments(repository))):
            checkout = self.find(name)
            origin = checkout.settings.get("origin", "") if checkout else ""
            if checkout and (not path or is_in_url(path, origin)):
                found.setdefault(checkout.path, checkout)
        return list(found.values())

    def _environments(self, repository: str) -> Sequence[str]:
        """Return the environments that have a directory, sorted. Cached while the parent directories are unchanged."""
        key = repository.lower()
        cached = self._cached_environments.get(key)
        if cached and all(stamp.is_current() for stamp in cached[1]):
            return cached[0]
        owner, _, name = key.rpartition("/")
        began = time.time_ns()
        parents = [self.root]
        stamps = [Stamp.of(self.root)]
        if owner:
            parents += [child for child in _directories(self.root) if child.name.lower() == owner]
            stamps += [Stamp.of(parent) for parent in parents[1:]]
        environments = {
            child.name.partition("@")[2]
            for parent in parents
            for child in _directories(parent)
            if child.name.lower().startswith(f"{name}@")
        }
        if all(is_settled(stamp, began) for stamp in stamps):
            if len(self._cached_environments) >= MAX_CACHED:
                self._cached_environments.clear()
            self._cached_environments[key] = sorted(environments), stamps
        return sorted(environments)

    def _keep(self, repository: str, path: Path, cached: _Cached) -> None:
        exact = self.root / repository
        if path != exact:  # a checkout that appears there takes precedence
            cached = cached._replace(stamps=[*cached.stamps, Stamp.of(exact / ".git")])
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[repository] = cached

    def __iter__(self) -> Iterator[str]:
        """Yield the name of each checkout. One directly below the root has the name that its origin ends in."""
        for path in _directories(self.root):
            if is_checkout(path):
                yield self._name_by_origin(path)
            else:
                yield from (f"{path.name}/{nested.name}" for nested in _nested(path))

    def canonical_name(self, repository: str) -> str:
        """Map a bare directory name to the name that iteration yields; return any other name unchanged.

        A name is also unchanged if the name in its origin leads to another checkout. Raises OSError like `find`.
        """
        checkout = None if "/" in repository else self.find(repository)
        if not checkout:
            return repository
        name = self._name_by_origin(checkout.path)
        found = self.find(name)
        return name if found and found.path == checkout.path else repository

    def _name_by_origin(self, path: Path) -> str:
        """Return the name in the origin of the checkout at `path` if it ends in the directory's name, else that."""
        try:
            checkout = self.find(path.name)
        except OSError:  # no process can be started; the run of the checkout reports it
            checkout = None
        name = name_in_url(checkout.settings.get("origin", "") if checkout else "") or ""
        own, at_sign, environment = path.name.partition("@")
        return f"{name}{at_sign}{environment}" if name.rpartition("/")[2].lower() == own.lower() else path.name

    def count(self) -> int:
        """Return the number of checkouts. This reads directories only, unlike a lookup of each."""
        return sum(1 if is_checkout(path) else len(_nested(path)) for path in _directories(self.root))


def at(path: Path) -> Checkout:
    """Return the checkout at any `path`, with the name in its origin, or else the name of its directory."""
    config = read_config(path)
    name = name_in_url(config.values.get("origin", "")) or path.name
    return Checkout(name, path, config.values, config.origins)


def is_checkout(path: Path) -> bool:
    """Return True if the directory at `path` is a checkout."""
    return os.path.lexists(f"{path}/.git")  # a Path would cost more than the system call


def _directories(path: Path) -> list[Path]:
    """Return the directories in `path` whose names are valid for a repository, sorted; none if it is unreadable."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if is_valid_checkout(entry.name) and entry.is_dir())
            return [path / name for name in names]
    except OSError:
        return []


def _nested(owner: Path) -> list[Path]:
    """Return the checkouts in the directory of an owner."""
    return list(filter(is_checkout, _directories(owner))) if is_valid(owner.name) else []


def _descend(root: Path, parts: Sequence[str]) -> Path | None:
    """Return the checkout at `root`/`parts`, exact or else ignoring case; None if there is none."""
    exact = root.joinpath(*parts)
    if _is_own_checkout(exact, root):
        return exact
    paths = [root]
    for part in parts:
        paths = [child for path in paths for child in _directories(path) if child.name.lower() == part.lower()]
    return next((path for path in paths if _is_own_checkout(path, root)), None)


def _is_own_checkout(path: Path, root: Path) -> bool:
    """Return True if `path` is a checkout outside the tree of another: not a submodule, nor the target of its link."""
    return is_checkout(path) and (path.parent == root or not is_checkout(path.parent))


class Position(NamedTuple):
    """Commits of a checkout: last deployed successfully, the last known one of its branch or tag, checked out.

    None if it does not exist, or cannot be read without git.
    """

    deployed: str | None = None
    upstream: str | None = None
    #: The version tag that is deployed, if the checkout follows tags.
    tag: str | None = None
    head: str | None = None


def default_branch(checkout: Checkout) -> str:
    """Return the remote's default branch as the checkout knows it, or an empty string."""
    _, common = git_directories(checkout.path)
    return (_first_line(common / _REMOTE / "HEAD") or "").partition(f"ref: {_REMOTE}/")[2]


def position(checkout: Checkout) -> Position:
    """Read the position of a checkout from its ref files, without a process; this takes at most 0.2 ms."""
    own, common = git_directories(checkout.path)
    branch = checkout.settings.get("branch") or ""
    if not branch:
        branch = default_branch(checkout)
    state = "refs/gitops" if own == common else "refs/worktree/gitops"
    deployed, tag = _read_ref(own, f"{state}/deployed"), None
    upstream = f"{_REMOTE}/{branch}" if branch else ""
    if checkout.settings.get("tag"):  # see scripts/sync/tags.sh
        upstream = (_first_line(own / state / "tag") or "").partition("ref: ")[2]
        tag = upstream[len(_TAGS) :]
    commit = _read_ref(common, upstream) if upstream else None
    head = _first_line(own / "HEAD") or ""
    head_commit = _read_ref(common, head[5:]) if head.startswith("ref: ") else head if _COMMIT.fullmatch(head) else None
    return Position(deployed, commit, tag if tag and commit == deployed else None, head_commit)


def _read_ref(directory: Path, name: str) -> str | None:
    """Return the commit id of a ref from its own file, or else from the packed refs."""
    line = _first_line(directory / name)
    if line is None:
        packed = _packed_refs(directory)
        end = packed.find(f" {name}\n")
        line = packed[packed.rfind("\n", 0, end) + 1 : end] if end >= 0 else ""
    return line if _COMMIT.fullmatch(line) else None


def _packed_refs(directory: Path) -> str:
    try:
        return (directory / "packed-refs").read_text("utf-8", "replace")
    except OSError:
        return ""


def _first_line(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(1000).strip()
    except (OSError, ValueError):  # ValueError: the name contains a NUL
        return None
