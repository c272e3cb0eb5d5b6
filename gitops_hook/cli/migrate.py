"""From a timer for each repository to webhooks for all: adopt what they poll, switch them off, and back again.

Rules:

1. A plan is made by looking alone (`plan`), so that it can be shown first. What it cannot do, it says, with the fix;
   that timer goes on as it was.
2. What is about to be done is written down before it is (`Record`), so it can be undone wherever it ended. Doing or
   undoing it twice does no more than once.
3. A checkout stays where it is; one outside of the root is linked into it. No file of it is touched.
4. Who migrates is root, and the record lies in a folder of the service's user: one that is not our own is not believed.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gitops_hook.cli import timers
from gitops_hook.cli.timers import Timer
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.sync.checkouts import Checkouts

#: Where an administrator's own units stand; those elsewhere are a package's to remove.
OWN_UNITS = Path("/etc/systemd/system")
#: What the unit's daemon does not see (ProtectHome=).
_HOMES = ("/home", "/root", "/run/user")


class Step(NamedTuple):
    """What is to be done about one timer, or what keeps that from being done."""

    timer: Timer
    #: Where its checkout is to be linked into the root; None where it is there already.
    link: Path | None = None
    #: Why this timer is left alone, and what to do about that.
    obstacle: str = ""

    def __str__(self) -> str:
        checkout = self.timer.checkout
        polls = f"polls {checkout.repository} at {checkout.path}" if checkout else f"runs `{self.timer.command}`"
        lines = [f"{self.timer.unit} {polls}"]
        if self.obstacle:
            lines.append(f"is left as it is: {self.obstacle}")
        else:
            lines += [f"link {self.link} to it"] * bool(self.link)
            lines.append("switch the timer off; pushes move the checkout from now on")
        if checkout and not self.obstacle and "gitops_sync" not in self.timer.command:
            lines.append(f"to note: what `{self.timer.command}` did beyond pulling belongs in gitops.deploy")
        return "\n  ".join(lines)


class Record:
    """What was done, by unit, in a file of the state folder. Raises `GitopsError` where it cannot be believed."""

    def __init__(self, state: Path) -> None:
        if not state.is_dir():
            raise GitopsError(
                66, f"there is no state folder {state} to write down in what was done: sudo gitops-hook doctor"
            )
        self._path = state / "migrated.json"
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    raise GitopsError(77, f"{self._path} is not your own; if all timers are as they should be, rm it")
                self.entries = json.load(file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise GitopsError(77, f"{self._path} cannot be read: {error}") from None

    def note(self, step: Step) -> None:
        """Write down a step that is about to be done. Of one that was begun before, the first word counts."""
        timer, link = step.timer, str(step.link) if step.link else None
        known = self.entries.setdefault(timer.unit, {"enabled": timer.enabled, "active": timer.active, "link": link})
        known["link"] = known["link"] or link
        known["files"] = list(map(str, timer.files))
        self._save()

    def forget(self, unit: str) -> None:
        """Drop what was undone, or can be undone no more."""
        del self.entries[unit]
        self._save()

    def _save(self) -> None:
        if not self.entries:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(self.entries, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def plan(found: Iterable[Timer], root: Path, service: os.stat_result) -> list[Step]:
    """What is to be done about the timers that still poll. `service` is the state folder's, which tells whose it is."""
    checkouts = Checkouts(root)
    steps: list[Step] = []
    taken: dict[str, Path] = {}  # which checkout is to be linked where; names differ without regard to case
    for timer in found:
        step = _step(timer, checkouts, service.st_uid) if timer.polls else None
        if step and step.link and timer.checkout:
            taker = taken.setdefault(str(step.link).lower(), timer.checkout.path)
            if not taker.samefile(timer.checkout.path):
                step = Step(timer, obstacle=f"{taker} takes its place; move that away, and again")
        steps += [step] if step else []
    return steps


def migrate(step: Step, record: Record, service: os.stat_result) -> None:
    """Do a step that has no obstacle. Raises `GitopsError` where the host refuses."""
    record.note(step)
    if step.link and step.timer.checkout:
        _as(service, "mkdir", "-p", "--", str(step.link.parent))
        _as(service, "ln", "-sfT", "--", str(step.timer.checkout.path), str(step.link))
    timers.switch_off(step.timer.unit)


def undo(unit: str, record: Record) -> None:
    """Put a timer back to what it was before `migrate`."""
    entry = record.entries[unit]
    timers.switch_on(unit, at_boot=entry["enabled"], now=entry["active"])
    if entry["link"] and Path(entry["link"]).is_symlink():
        Path(entry["link"]).unlink()
    record.forget(unit)


def removable(record: Record, found: Iterable[Timer]) -> list[Path]:
    """The unit files of the timers that were switched off, but for those that another timer still needs."""
    needed = {path for timer in found if timer.polls for path in timer.files}
    files = {Path(path) for entry in record.entries.values() for path in entry["files"]}
    return sorted(path for path in files - needed if path.parent == OWN_UNITS and path.exists())


def remove(files: Iterable[Path], record: Record) -> None:
    """Remove unit files for good. What was made from them can be switched on no more, so it is forgotten."""
    gone = set(map(str, files))
    for path in gone:
        Path(path).unlink()
    timers.reload()
    for unit in [unit for unit, entry in record.entries.items() if gone & set(entry["files"])]:
        record.forget(unit)


def _step(timer: Timer, checkouts: Checkouts, user: int) -> Step:
    checkout = timer.checkout
    if not checkout:
        return Step(
            timer,
            obstacle="neither its name nor its service tells which checkout that moves; gitops-hook add OWNER/NAME, "
            f"then systemctl disable --now {timer.unit}",
        )
    path, owner = checkout.path, checkout.path.stat().st_uid
    if owner != user:
        return Step(timer, obstacle=f"the checkout belongs to another user; chown -R {_name(user)}: {path}, and again")
    managed = checkouts.find(checkout.repository) if is_valid(checkout.repository) else None
    if managed and managed.path.samefile(path):
        return Step(timer)
    link = checkouts.root / checkout.repository
    if managed or os.path.lexists(link):
        there = managed.path if managed else link
        return Step(timer, obstacle=f"{there} is in its place; move that away, and again")
    if str(path.resolve()).startswith(tuple(f"{home}/" for home in _HOMES)):
        moved = f"mkdir -p {link.parent} && mv {path} {link}"
        return Step(timer, obstacle=f"the service does not see what lies in homes; {moved}, and again")
    return Step(timer, link)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _as(service: os.stat_result, *command: str) -> None:
    """Have a program do it as the service's user: what it makes is its own, and where it may not, root does not."""
    other = service.st_uid != os.geteuid()
    done = subprocess.run(
        command,
        user=service.st_uid if other else None,
        group=service.st_gid if other else None,
        extra_groups=[] if other else None,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise GitopsError(77, done.stderr.strip())
