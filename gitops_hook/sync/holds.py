"""Holds: an operator's decision that a checkout must not follow its branch, and who decided it, when and why.

Rules:

1. ``gitops.paused`` and ``gitops.pin`` decide, here and in scripts/sync/settings.sh alike. ``gitops.pausedBy`` and
   ``gitops.pinnedBy`` only describe the decision: ``USER TIME REASON``.
2. The description is written before the decision and removed after it, so that every decision has one.
3. Times are in UTC by RFC 3339, in seconds. They are compared as text, as in the script.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.sync.settings import is_true, write_setting
from gitops_hook.text import parse_rfc3339, printable, rfc3339

#: The setting that describes each setting that decides.
DESCRIPTIONS = {"paused": "pausedBy", "pin": "pinnedBy"}
#: The longest reason, in characters.
_MAX_REASON = 500


class Hold(NamedTuple):
    """A hold in force. Every time is in seconds since the epoch."""

    #: ``paused`` or ``pinned``.
    state: str
    #: The user who decided it, or "" if git set it without a command.
    by: str = ""
    since: float | None = None
    reason: str = ""
    #: When a pause ends by itself, or None.
    until: float | None = None
    #: The commit of a pin, and whether a new commit at the remote ends it.
    commit: str | None = None
    until_push: bool = False


def is_paused(settings: Mapping[str, str], now: float) -> bool:
    """Return True if ``gitops.paused`` is true, or a time that is later than `now`."""
    value = settings.get("paused", "")
    return is_true(value) or (value[:1].isdigit() and value > rfc3339(now, "seconds"))


def hold_in_force(settings: Mapping[str, str], now: float) -> Hold | None:
    """Return the hold that `settings` describe at the time `now`, or None. A pause comes before a pin."""
    if is_paused(settings, now):
        return Hold("paused", *_parse_description(settings.get("pausedby", "")), _moment(settings["paused"]))
    if settings.get("pin"):
        return Hold(
            "pinned",
            *_parse_description(settings.get("pinnedby", "")),
            commit=settings["pin"],
            until_push="pintip" in settings,
        )
    return None


def pause(checkout: Path, describe: str, until: float | None) -> None:
    """Pause a checkout until `until`, or until `resume`; `describe` is a `description`.

    Raises ValueError and OSError like `write_setting`.
    """
    write_setting(checkout, "pausedBy", describe)
    write_setting(checkout, "paused", "true" if until is None else rfc3339(until, "seconds"))


def resume(checkout: Path) -> None:
    """End the pause of a checkout. Raises ValueError and OSError like `write_setting`."""
    for name in ("paused", "pausedBy"):
        write_setting(checkout, name, None)


def pin(checkout: Path, describe: str, commit: str, tip: str | None) -> None:
    """Hold a checkout at a commit until `unpin`, or until the remote has another commit than `tip`.

    Raises ValueError and OSError like `write_setting`.
    """
    write_setting(checkout, "pinnedBy", describe)
    write_setting(checkout, "pinTip", tip)
    write_setting(checkout, "pin", commit)


def unpin(checkout: Path) -> None:
    """Let a checkout follow its branch again. Raises ValueError and OSError like `write_setting`."""
    for name in ("pin", "pinTip", "pinnedBy"):
        write_setting(checkout, name, None)


def description(by: str, reason: str, now: float) -> str:
    """Return the description of a decision that the user `by` made at the time `now`."""
    user = "".join(printable(by).split()) or "-"
    return f"{user} {rfc3339(now, 'seconds')} {printable(reason, _MAX_REASON)}".rstrip()


def _parse_description(text: str) -> tuple[str, float | None, str]:
    by, _, rest = text.partition(" ")
    since, _, reason = rest.partition(" ")
    return by, _moment(since), reason


def _moment(text: str) -> float | None:
    with suppress(ValueError):
        return parse_rfc3339(text) if text[:1].isdigit() else None
    return None
