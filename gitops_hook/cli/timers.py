"""The systemd timers that poll a checkout each, which the webhook replaces.

Rules:

1. A timer is an instance such as ``gitops-sync@site.timer``. It starts the service that ``Unit=`` names.
2. The service's ``WorkingDirectory=`` and ``ExecStart=`` identify the checkout, or else the instance's name does. A
   timer that none of them identifies is returned without a checkout.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gitops_hook.cli.parser import TIMER_PREFIX
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.sync.checkouts import Checkout, Checkouts, at, is_checkout

#: Seconds to wait for systemctl, which usually answers in milliseconds.
_TIMEOUT = 20
#: The characters of a unit's name (systemd.unit(5)). It cannot start with a dash, so it is not an option.
_NAME = re.compile(r"[A-Za-z0-9_.:@\\][A-Za-z0-9_.:@\\-]{0,250}")
#: A command line as ``systemctl show`` prints it.
_ARGV = re.compile(r"argv\[\]=(.*?) ; ")


class TimerError(GitopsError):
    """systemctl failed; the message is its own. Exit 69 (EX_UNAVAILABLE)."""

    def __init__(self, message: str) -> None:
        super().__init__(69, message)


class Timer(NamedTuple):
    """A timer, and the checkout that it polls."""

    unit: str
    #: Whether it starts with the host, and whether it runs now.
    enabled: bool
    active: bool
    #: The unit files of the timer and of its service.
    files: tuple[Path, ...]
    #: The command line of its service.
    command: str
    #: None if it cannot be identified.
    checkout: Checkout | None

    @property
    def polls(self) -> bool:
        """Return whether the timer polls now, or will poll after the next start of the host."""
        return self.enabled or self.active


def find_timers(root: Path, prefix: str = TIMER_PREFIX) -> list[Timer]:
    """Return the timers whose names start with `prefix`; a `prefix` without ``@`` is the name of one timer.

    Checkouts are searched by name under `root`. Raises `TimerError` if systemd does not answer.
    """
    name = prefix.removesuffix(".timer")
    if not _NAME.fullmatch(name):
        raise TimerError(f"`{prefix}` is not a unit's name")
    pattern = f"{name}*.timer" if name.endswith("@") else f"{name}.timer"
    listed = _systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "--type=timer", pattern)
    return [_read_timer(line.split()[0], Checkouts(root)) for line in listed.splitlines() if line.strip()]


def enable(unit: str, *, at_boot: bool, now: bool) -> None:
    """Let a timer start with the host, or start it now, or both. Raises `TimerError`."""
    if at_boot:
        _systemctl("enable", "--quiet", unit)
    if now:
        _systemctl("start", unit)


def disable(unit: str) -> None:
    """Stop a timer now, and do not start it with the host. Raises `TimerError`."""
    _systemctl("disable", "--quiet", "--now", unit)


def reload() -> None:
    """Let systemd read its unit files again. Raises `TimerError`."""
    _systemctl("daemon-reload")


def _read_timer(unit: str, checkouts: Checkouts) -> Timer:
    timer = _properties(unit, "ActiveState", "UnitFileState", "FragmentPath", "Unit")
    service = _properties(timer["Unit"], "WorkingDirectory", "ExecStart", "FragmentPath")
    argv = _ARGV.search(service["ExecStart"])
    words = argv[1].split() if argv else []
    # systemd-escape(1) replaces slashes with dashes.
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
    """Yield the checkouts that the paths and the names identify, the most specific first."""
    for folder in folders:
        if folder.startswith("/") and is_checkout(Path(folder)):
            yield at(Path(folder))
    for name in filter(is_valid, names):
        found = checkouts.find(name)
        if found:
            yield at(found.path)
        same_name = [known for known in checkouts if known.rpartition("/")[2].lower() == name.lower()]
        if len(same_name) == 1:
            found = checkouts.find(same_name[0])
            if found:
                yield found


def _unescaped(instance: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), instance.replace("-", "/"))


def _properties(unit: str, *names: str) -> dict[str, str]:
    shown = _systemctl("show", f"--property={','.join(names)}", unit) if unit else ""
    pairs = (line.partition("=") for line in shown.splitlines())
    return {**dict.fromkeys(names, ""), **{name: value for name, _, value in pairs}}


def _systemctl(*words: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", "--no-ask-password", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TimerError(f"systemctl: {error}") from None
    if done.returncode:
        raise TimerError(f"systemctl {' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
