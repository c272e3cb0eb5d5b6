"""How a moment, in seconds since the epoch, is told: to people, to programs, in UTC and by this host's clock.

Not every moment is of our own clock. Who commits says when, and git keeps dates far beyond every calendar: such a one
is told as the nearest that a calendar with years of four digits has, so that it spoils no answer.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

#: What may not stand in a line of text: control characters, and surrogates, which have no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str, limit: int = 100) -> str:
    """`text` cut to `limit` characters, with every control character and surrogate as U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text[:limit])


def span(seconds: float) -> str:
    """A time span as a person tells it: ``82 ms``, ``1.5 s``, ``40 s``, ``119 min``, ``3 d``."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def age(moment: float | None) -> str:
    """How long ago `moment` (seconds since the epoch) was, in seconds at the finest; ``never`` for None."""
    if moment is None:
        return "never"
    seconds = max(0, int(time.time() - moment))
    return f"{seconds} s" if seconds < 120 else span(seconds)


def redacted(output: bytes) -> bytes:
    """`redact` for bytes, which need not be text."""
    return redact(output.decode("latin-1")).encode("latin-1") if b"://" in output else output


#: C0 and C1 controls, DEL, the line ends of Unicode, its switches of writing direction, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: What may be a user and a password in a URL. It begins with three fixed characters, which a search finds fast, and
#: ends before the next slash, so that no text takes longer than its length.
_USERINFO = re.compile(r"""://([^\x00-\x20/"'<>]+)@""")


def redact(text: str) -> str:
    """`text` without credentials in URLs: ``https://ada:secret@host`` leaves as ``https://***@host``.

    A token may stand alone before the ``@`` of an http URL. In others a name does, such as ssh's ``git``, which is no
    secret; there only what follows its colon goes.
    """
    return _USERINFO.sub(_hide, text) if "://" in text else text


def _hide(match: re.Match[str]) -> str:
    user, colon, _ = match[1].partition(":")
    if match.string[max(0, match.start() - 5) : match.start()].lower().endswith(("http", "https")):
        return "://***@"
    return f"://{user}:***@" if colon else match[0]


def escape(text: str) -> str:
    r"""`text` on one line: every unsafe character as a backslash escape."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


#: 9999-12-31T23:59:59Z.
_LAST = 253_402_300_799.0


def utc(moment: float) -> datetime:
    """A moment in UTC."""
    return datetime.fromtimestamp(_within(moment), timezone.utc)


def rfc3339(moment: float, timespec: str = "milliseconds") -> str:
    """A moment as RFC 3339 has it, in UTC, to the `timespec` of `datetime.isoformat`."""
    return utc(moment).isoformat(timespec=timespec).replace("+00:00", "Z")


def local(moment: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A moment by this host's clock, for people."""
    return time.strftime(form, time.localtime(_within(moment)))


def _within(moment: float) -> float:
    return min(max(0.0, moment), _LAST)
