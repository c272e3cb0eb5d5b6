"""The settings of a checkout: ``gitops.*`` in its own git config, out of reach of anyone who can push.

Rules:

1. `SETTINGS` defines each setting once. Validation, defaults and display derive from it; a test compares it with
   docs/sync.md.
2. Only the local and the worktree scope count, with the files that they include. The settings of a user or of the host
   do not. scripts/gitops_sync.sh reads the same scopes with the same git command.
3. The command runs with ``GIT_DIR`` set, because without it git silently drops the local scope in the checkout of
   another user.
4. A configuration is read again only if one of its files has changed. `Stamp` detects a change.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: Keys that include another file (git-config(1), "Includes").
_INCLUDE = re.compile(r"include(if\..*)?\.path", re.DOTALL)
#: Keys of includes that depend on the branch that is checked out.
_ON_BRANCH = re.compile(r"includeif\.onbranch:.*\.path", re.DOTALL)
#: The coarsest resolution of a file's time: 10 ms if the kernel ticks at 100 Hz. A file that changed less than that
#: before it was read can change again and keep its stamp.
_TICK_NS = 10_000_000
#: The values that git accepts for a boolean (git-config(1), "Values").
_TRUE = ("true", "yes", "on", "1")
#: The exit status of ``git config --unset-all`` for a setting that does not exist.
_NOT_SET = 5
_BOOLEAN = (*_TRUE, "false", "no", "off", "0", "")


class Setting(NamedTuple):
    """One setting of a checkout."""

    name: str
    #: The pattern that a whole value must match.
    pattern: re.Pattern[str]
    #: The format in words: "gitops.<name> must be <format>".
    format: str
    default: str | None
    #: The effect of the default, or of a setting that has no default and is not set.
    meaning: str


_COMMAND = re.compile(r"(?s)[^\0]+")
_SWITCH = re.compile("(?i)" + "|".join(_BOOLEAN))
#: The time at which a pause ends, in UTC (RFC 3339).
_PAUSE = re.compile(_SWITCH.pattern + "|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z")
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
#: git check-ref-format(1), without its process; the script has the same rule.
_BRANCH = re.compile(
    r"(?![-/.])(?!.*(\.\.|//|@\{|/\.))(?!.*(/|\.|\.lock)\Z)[^\x00-\x20\x7f~^:?*\\\[]+"  # no control character, no glob
)
#: The script has the same rule.
_TAGS = re.compile(r"[^\x00-\x20\x7f~^:\\]{1,200}")

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("branch", _BRANCH, "the name of a branch", None, "upstream's default branch"),
        Setting("tag", _TAGS, "a pattern of tags, such as v*", None, "the checkout follows its branch"),
        Setting("deploy", _COMMAND, "a command", None, "moving the tree is the deploy"),
        Setting("health", _COMMAND, "a command", None, "no check"),
        Setting("healthTimeout", re.compile("0|[1-9][0-9]{0,5}"), "a number of seconds", "30", "default, in seconds"),
        Setting("paths", _COMMAND, "a pattern of paths", None, "any change is deployed"),
        Setting("verify", _SWITCH, "true or false", "false", "default"),
        Setting("submodules", _SWITCH, "true or false", "false", "default"),
        Setting("paused", _PAUSE, "true, false or a time such as 2026-01-31T12:00:00Z", "false", "default"),
        Setting("pausedBy", _COMMAND, "USER TIME REASON", None, "no pause, or not by `gitops-hook pause`"),
        Setting("pin", _COMMIT, "a full commit id", None, "the checkout follows its branch"),
        Setting("pinnedBy", _COMMAND, "USER TIME REASON", None, "no pin, or not by `gitops-hook deploy` or `rollback`"),
        Setting("pinTip", _COMMIT, "a full commit id", None, "a pin ends with `gitops-hook deploy` only"),
        Setting(
            "approved",
            re.compile(f"hold|{_COMMIT.pattern}"),
            "a commit id or hold",
            None,
            "no roll-out holds the checkout",
        ),
        Setting("diverged", re.compile("refuse|reset"), "refuse or reset", "refuse", "default"),
        Setting("dirty", re.compile("refuse|stash"), "refuse or stash", "refuse", "default"),
        Setting("environment", re.compile(r"[^\x00-\x1f\x7f]{1,255}"), "a name", None, "the host's name"),
        Setting(
            "timeout",
            re.compile("[1-9][0-9]{0,5}"),
            "a number of seconds",
            None,
            "the daemon's GITOPS_SYNC_TIMEOUT, in seconds",
        ),
    )
}
_BY_KEY = {name.lower(): setting for name, setting in SETTINGS.items()}


def check_setting(name: str, value: str, *, removal: bool = False) -> None:
    """Raise ValueError if `name` is not a setting of a checkout, or, unless for a removal, `value` is invalid."""
    setting = _BY_KEY.get(name.lower())
    if not setting:
        raise ValueError(f"there is no setting gitops.{name}")
    if not removal and not setting.pattern.fullmatch(value):
        raise ValueError(f"gitops.{setting.name} must be {setting.format}")


def is_true(value: str) -> bool:
    """Return True if git takes the boolean `value` for true."""
    return value.lower() in _TRUE


def follows(settings: Mapping[str, str], default_branch: str, ref: str) -> bool:
    """Return True if a push of `ref`, a full name, can concern a checkout with these settings.

    If no branch is known, any push can: the script asks the remote. It also decides which tags match.
    """
    if settings.get("tag"):
        return ref.startswith("refs/tags/")
    branch = settings.get("branch") or default_branch
    return not branch or ref == f"refs/heads/{branch}"


def time_limit(settings: Mapping[str, str], default: int) -> int:
    """Return the time limit of a run in seconds: ``gitops.timeout`` if it is valid, else `default`."""
    own = settings.get("timeout", "")
    return int(own) if SETTINGS["timeout"].pattern.fullmatch(own) else default


class Stamp(NamedTuple):
    """The identity and state of a file, or its absence. Any change to the file changes the stamp."""

    path: str
    inode: int = 0
    size: int = 0
    ctime_ns: int = 0

    @classmethod
    def of(cls, path: str | Path) -> Stamp:
        """Return the stamp of the file at `path` now."""
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path would cost more than the system call
        except OSError:
            return cls(str(path))
        return cls(str(path), stat.st_ino, stat.st_size, stat.st_ctime_ns)

    def is_current(self) -> bool:
        """Return True if the file has not changed. This runs for every delivery, so it builds no other stamp."""
        try:
            stat = os.stat(self.path)  # noqa: PTH116 - see `of`
        except OSError:
            return not self.inode
        return (stat.st_ino, stat.st_size, stat.st_ctime_ns) == self[1:]


def is_settled(stamp: Stamp, began: int) -> bool:
    """Return True if any change to a file after `began`, in nanoseconds since the epoch, changes its stamp."""
    return stamp.ctime_ns <= began - _TICK_NS


class Config(NamedTuple):
    """The settings of a checkout, where they come from, and the files that they depend on."""

    #: The ``gitops.*`` settings by name, in lower case without the prefix, and the URL of the remote as ``origin``.
    values: Mapping[str, str]
    #: The file that each setting comes from.
    origins: Mapping[str, str]
    #: The stamps of all files from before they were read. Empty if the configuration must be read again: git could not
    #: read it, or a file changed at that moment.
    stamps: Sequence[Stamp]


def git_directories(checkout: Path) -> tuple[Path, Path]:
    """Return the git directory of a checkout, and the one that it shares with other worktrees.

    The two differ only in a linked worktree.
    """
    own = checkout / ".git"
    if os.path.isdir(own):  # noqa: PTH112 - before Python 3.14, Path.is_dir raises if a parent may not be searched
        return own, own
    try:
        own = checkout / own.read_text().partition("gitdir:")[2].partition("\0")[0].strip()
        return own, own / (own / "commondir").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return own, own  # the git directory of a submodule has no common directory


def read_config(checkout: Path) -> Config:
    """Read the settings of the checkout at `checkout` with git. Raises OSError if git cannot be started."""
    own, common = git_directories(checkout)
    # Stamps are taken before a file is read, so that a change in between shows at the next look.
    began = time.time_ns()
    stamps = [Stamp.of(common / "config"), Stamp.of(own / "config.worktree")]
    if own != checkout / ".git":
        stamps.append(Stamp.of(checkout / ".git"))
    head = Stamp.of(own / "HEAD")
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    succeeded, entries = _list_entries(own, common)
    for origin, key, value in entries:
        name = "origin" if key == "remote.origin.url" else key[len("gitops.") :] if key.startswith("gitops.") else ""
        if name:
            # Of all settings, only paths can have several values.
            values[name] = f"{values[name]} {value}" if name == "paths" and name in values else value
            origins[name] = origin
        elif _INCLUDE.fullmatch(key):  # the file may be missing and its condition false; both can change
            included = os.path.join(os.path.dirname(origin), os.path.expanduser(value))  # noqa: PTH111, PTH118, PTH120
            stamps.append(Stamp.of(included))
            if _ON_BRANCH.fullmatch(key):
                stamps.append(head)
    if not succeeded or not all(is_settled(stamp, began) for stamp in stamps):
        stamps = []
    return Config(values, origins, stamps)


def _list_entries(own: Path, common: Path) -> tuple[bool, list[tuple[str, str, str]]]:
    """Return whether git could read the configuration, and (file, key, value) of each entry of the checkout."""
    status, fields = _git_config({"GIT_DIR": str(own)}, "--show-scope")
    rows = list(zip(fields[::3], fields[1::3], fields[2::3]))
    entries = [(origin, entry) for scope, origin, entry in rows if scope in ("local", "worktree")]
    if status == 0 and not entries:
        # A damaged git directory is none for git. The script repairs it, and keeps its settings.
        status, fields = _git_config({}, "--file", str(common / "config"), "--includes")
        entries = list(zip(fields[::2], fields[1::2]))
    found = []
    for origin, entry in entries:
        key, equals, value = entry.partition("\n")
        found.append((origin[len("file:") :], key, value if equals else "true"))
    return status == 0, found


def write_setting(checkout: Path, name: str, value: str | None) -> None:
    """Set ``gitops.<name>`` in the checkout's own configuration, or remove it if `value` is None.

    Raises ValueError for an unknown name, an invalid value, or the reason of git's failure.
    """
    check_setting(name, "" if value is None else value, removal=value is None)
    arguments = ["--unset-all", f"gitops.{name}"] if value is None else ["--replace-all", f"gitops.{name}", value]
    done = subprocess.run(
        ["git", "config", "--local", *arguments],
        env={**os.environ, "GIT_DIR": str(git_directories(checkout)[0])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode and not (value is None and done.returncode == _NOT_SET):
        raise ValueError(f"git config in {checkout}: {os.fsdecode(done.stderr).strip()}")


def _git_config(variables: Mapping[str, str], *options: str) -> tuple[int, list[str]]:
    listing = subprocess.run(
        ["git", "config", *options, "--show-origin", "--null", "--list"],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return listing.returncode, os.fsdecode(listing.stdout).split("\0")
