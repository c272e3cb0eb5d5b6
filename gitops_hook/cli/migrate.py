"""Migrate from a timer per repository to webhooks: adopt the checkouts, disable the timers; and the reverse.

Rules:

1. `plan` only reads, so the plan can be shown first. A step that is impossible names the obstacle and its fix, and
   its timer stays as it was.
2. A step is recorded (`Record`) before it is done, so it can be undone even if the process died. Steps and their
   reversal are idempotent.
3. A checkout stays where it is. One outside of the root is linked into it. No file of it is changed.
4. Root migrates, but the record is in a directory of the service's user. So a record of another owner is rejected.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gitops_hook.cli import timers
from gitops_hook.cli.timers import Timer
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.users import user_name

#: The directory of the administrator's units. Units elsewhere belong to packages.
OWN_UNITS = Path("/etc/systemd/system")
#: The directories that are hidden from the daemon (ProtectHome=).
HOMES = ("/home", "/root", "/run/user")


class Step(NamedTuple):
    """The migration of one timer, or the obstacle to it."""

    timer: Timer
    #: The link to create under the root; None if the checkout is there already.
    link: Path | None = None
    #: The reason why this timer is not migrated, and the fix.
    obstacle: str = ""

    def __str__(self) -> str:
        checkout = self.timer.checkout
        polls = f"polls {checkout.repository} at {checkout.path}" if checkout else f"runs `{self.timer.command}`"
        lines = [f"{self.timer.unit} {polls}"]
        if self.obstacle:
            lines.append(f"not migrated: {self.obstacle}")
        else:
            lines += [f"link {self.link} to the checkout"] * bool(self.link)
            lines.append("disable the timer; from now on, pushes update the checkout")
        if checkout and not self.obstacle and "gitops_sync" not in self.timer.command:
            lines.append(f"note: everything that `{self.timer.command}` did after the pull belongs in gitops.deploy")
        return "\n  ".join(lines)


class Record:
    """The steps that were done, by unit, in a file of the state directory."""

    def __init__(self, state: Path) -> None:
        """Read the record. Raises `GitopsError` if it cannot be read or has another owner."""
        if not state.is_dir():
            raise GitopsError(66, f"there is no state directory {state} for the record: sudo gitops-hook doctor")
        self._path = state / "migrated.json"
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    raise GitopsError(77, f"{self._path} belongs to another user; if all timers are correct, delete it")
                self.entries = json.load(file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise GitopsError(77, f"{self._path} cannot be read: {error}") from None

    def add(self, step: Step) -> None:
        """Record a step before it is done. If it was recorded before, the earliest state of the timer is kept."""
        timer, link = step.timer, str(step.link) if step.link else None
        known = self.entries.setdefault(timer.unit, {"enabled": timer.enabled, "active": timer.active, "link": link})
        known["link"] = known["link"] or link
        known["files"] = list(map(str, timer.files))
        self._save()

    def forget(self, unit: str) -> None:
        """Remove the entry of a timer."""
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
    """Return the steps for the timers that still poll.

    `service` is the status of the state directory, whose owner is the service's user.
    """
    checkouts = Checkouts(root)
    steps: list[Step] = []
    links: dict[str, Path] = {}  # the checkout of each planned link, by its path in lower case
    for timer in found:
        step = _step(timer, checkouts, service.st_uid) if timer.polls else None
        if step and step.link and timer.checkout:
            other = links.setdefault(str(step.link).lower(), timer.checkout.path)
            if not other.samefile(timer.checkout.path):
                step = Step(timer, obstacle=f"{other} is linked under its name; move that checkout and repeat")
        steps += [step] if step else []
    return steps


def migrate(step: Step, record: Record, service: os.stat_result) -> None:
    """Do a step that has no obstacle. Raises `GitopsError` if a program fails."""
    record.add(step)
    if step.link and step.timer.checkout:
        _run_as(service, "mkdir", "-p", "--", str(step.link.parent))
        _run_as(service, "ln", "-sfT", "--", str(step.timer.checkout.path), str(step.link))
    timers.disable(step.timer.unit)


def undo(unit: str, record: Record) -> None:
    """Restore the state of a timer before `migrate`."""
    entry = record.entries[unit]
    timers.enable(unit, at_boot=entry["enabled"], now=entry["active"])
    if entry["link"] and Path(entry["link"]).is_symlink():
        Path(entry["link"]).unlink()
    record.forget(unit)


def removable_files(record: Record, found: Iterable[Timer]) -> list[Path]:
    """Return the unit files of the disabled timers, except those that another timer still needs."""
    needed = {path for timer in found if timer.polls for path in timer.files}
    files = {Path(path) for entry in record.entries.values() for path in entry["files"]}
    return sorted(path for path in files - needed if path.parent == OWN_UNITS and path.exists())


def remove(files: Iterable[Path], record: Record) -> None:
    """Delete unit files, and the entries of the timers that used them, which can no longer be enabled."""
    deleted = set(map(str, files))
    for path in deleted:
        Path(path).unlink()
    timers.reload()
    for unit in [unit for unit, entry in record.entries.items() if deleted & set(entry["files"])]:
        record.forget(unit)


def _step(timer: Timer, checkouts: Checkouts, user: int) -> Step:
    checkout = timer.checkout
    if not checkout:
        return Step(
            timer,
            obstacle="neither its name nor its service identifies a checkout; gitops-hook add OWNER/NAME, "
            f"then systemctl disable --now {timer.unit}",
        )
    path, owner = checkout.path, checkout.path.stat().st_uid
    if owner != user:
        return Step(
            timer,
            obstacle=f"the checkout belongs to another user; systemctl stop {timer.unit}, "
            f"then chown -R {user_name(user)}: {path}, and repeat",
        )
    managed = checkouts.find(checkout.repository) if is_valid(checkout.repository) else None
    if managed and managed.path.samefile(path):
        return Step(timer)
    link = checkouts.root / checkout.repository
    if managed or os.path.lexists(link):
        other = managed.path if managed else link
        return Step(timer, obstacle=f"{other} exists under its name; move that checkout and repeat")
    if str(path.resolve()).startswith(tuple(f"{home}/" for home in HOMES)):
        moved = f"mkdir -p {link.parent} && mv {path} {link}"
        return Step(timer, obstacle=f"home directories are hidden from the service; {moved}, and repeat")
    return Step(timer, link)


def _run_as(service: os.stat_result, *command: str) -> None:
    """Run a program as the service's user, so that it owns the new files and root follows no link of that user.

    Raises `GitopsError` with the program's message if it fails.
    """
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
