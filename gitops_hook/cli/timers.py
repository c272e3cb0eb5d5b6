"""Timers that poll a checkout each, as systemd knows them: what came before the webhook.

Rules:

1. A timer is an instance such as ``gitops-sync@site.timer``; what it starts is the service that it names (``Unit=``).
2. Which checkout it polls is told by that service's ``WorkingDirectory=`` and ``ExecStart=``, else by the instance's
   name. A timer of which none of them tells is found all the same, without a checkout.
3. Looking changes nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.sync.checkouts import Checkout, Checkouts, at, is_checkout

#: What timers of this kind are called, up to their instance.
UNIT = "gitops-sync@"
#: Seconds for one question to systemd, which answers in milliseconds or not at all; starting a timer takes no longer.
_PATIENCE = 20
#: What may stand in a unit's name (systemd.unit(5)); so it is no option of systemctl's either.
_NAME = re.compile(r"[A-Za-z0-9_.:@\\][A-Za-z0-9_.:@\\-]{0,250}")
#: The words of a command line as ``systemctl show`` prints them.
_ARGV = re.compile(r"argv\[\]=(.*?) ; ")


class TimerError(GitopsError):
    """systemd is not there, or refuses; the message has its words. Exit 69 (EX_UNAVAILABLE)."""

    def __init__(self, message: str) -> None:
        super().__init__(69, message)


class Timer(NamedTuple):
    """A timer, and the checkout that it polls."""

    unit: str
    #: Whether it is started with the host, and whether it ticks now.
    enabled: bool
    active: bool
    #: The files that it and its service are made from.
    files: tuple[Path, ...]
    #: What its service executes.
    command: str
    #: None where that cannot be told.
    checkout: Checkout | None

    @property
    def polls(self) -> bool:
        """Whether it does so now, or will after the next start of the host."""
        return self.enabled or self.active


def find(root: Path, prefix: str = UNIT) -> list[Timer]:
    """The timers called `prefix` and an instance; a `prefix` without ``@`` is the name of a single one.

    `root` is where checkouts are looked for by name. Raises `TimerError` where systemd does not answer.
    """
    name = prefix.removesuffix(".timer")
    if not _NAME.fullmatch(name):
        raise TimerError(f"`{prefix}` is not a unit's name")
    pattern = f"{name}*.timer" if name.endswith("@") else f"{name}.timer"
    listed = _ask("list-units", "--all", "--plain", "--no-legend", "--full", "--type=timer", pattern)
    return [_look_at(line.split()[0], Checkouts(root)) for line in listed.splitlines() if line.strip()]


def switch_on(unit: str, *, at_boot: bool, now: bool) -> None:
    """Have a timer start with the host, or tick now, or both. Raises `TimerError`."""
    if at_boot:
        _ask("enable", "--quiet", unit)
    if now:
        _ask("start", unit)


def switch_off(unit: str) -> None:
    """Have a timer neither start with the host nor tick now. Raises `TimerError`."""
    _ask("disable", "--quiet", "--now", unit)


def reload() -> None:
    """Have systemd read its unit files again. Raises `TimerError`."""
    _ask("daemon-reload")


def _look_at(unit: str, checkouts: Checkouts) -> Timer:
    timer = _properties(unit, "ActiveState", "UnitFileState", "FragmentPath", "Unit")
    service = _properties(timer["Unit"], "WorkingDirectory", "ExecStart", "FragmentPath")
    argv = _ARGV.search(service["ExecStart"])
    words = argv[1].split() if argv else []
    # systemd-escape(1) has written a dash for a slash.
    instance = unit.rpartition("@")[2].removesuffix(".timer") if "@" in unit else ""
    names = [instance, _unescaped(instance), *words[1:]]
    folders = [service["WorkingDirectory"].lstrip("!-"), *words[1:], "/" + _unescaped(instance)]
    return Timer(
        unit=unit,
        enabled=timer["UnitFileState"].startswith("enabled"),
        active=timer["ActiveState"] == "active",
        files=tuple(Path(path) for path in (timer["FragmentPath"], service["FragmentPath"]) if path),
        command=" ".join(words),
        checkout=next(_candidates(folders, names, checkouts), None),
    )


def _candidates(folders: Sequence[str], names: Sequence[str], checkouts: Checkouts) -> Iterator[Checkout]:
    for folder in folders:
        if folder.startswith("/") and is_checkout(Path(folder)):
            yield at(Path(folder))
    for name in filter(is_valid, names):
        found = checkouts.find(name)
        if found:
            yield at(found.path)
        alike = [known for known in checkouts if known.rpartition("/")[2].lower() == name.lower()]
        if len(alike) == 1:
            found = checkouts.find(alike[0])
            if found:
                yield found


def _unescaped(instance: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), instance.replace("-", "/"))


def _properties(unit: str, *names: str) -> dict[str, str]:
    shown = _ask("show", f"--property={','.join(names)}", unit) if unit else ""
    pairs = (line.partition("=") for line in shown.splitlines())
    return {**dict.fromkeys(names, ""), **{name: value for name, _, value in pairs}}


def _ask(*words: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", "--no-ask-password", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TimerError(f"systemctl: {error}") from None
    if done.returncode:
        raise TimerError(f"systemctl {' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
