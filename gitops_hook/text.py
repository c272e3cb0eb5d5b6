"""Format text that comes from outside, credentials in URLs, timestamps and time spans.

Rules:

1. Text from outside goes through `escape` or `printable` before it reaches a line, and through `redact` before it
   reaches a person or a file.
2. Timestamps are in seconds since the epoch. A commit can have any date, so a timestamp outside the years 1970 to 9999
   is formatted as the nearest one inside.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime, timezone

#: Characters that a line must not contain: control characters, line separators, and surrogates, which have no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: The same, and the characters that change the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: A user and a password in a URL. The match starts with three fixed characters, which a search finds quickly, and ends
#: before the next slash, so the time is linear in the length of the text.
_USERINFO = re.compile(r"""://([^\x00-\x20/"'<>]+)@""")
#: 9999-12-31T23:59:59Z.
_LAST = 253_402_300_799.0


def printable(text: str, limit: int = 100) -> str:
    """Return the first `limit` characters, with U+FFFD in place of control characters and surrogates."""
    return _UNPRINTABLE.sub("\ufffd", text[:limit])


def span(seconds: float) -> str:
    """Format a time span for people: ``82 ms``, ``1.5 s``, ``40 s``, ``119 min``, ``3 d``."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def age(moment: float | None) -> str:
    """Format the time since `moment` with a resolution of one second; ``never`` for None."""
    if moment is None:
        return "never"
    seconds = max(0, int(time.time() - moment))
    return f"{seconds} s" if seconds < 120 else span(seconds)


def redacted(output: bytes) -> bytes:
    """Apply `redact` to bytes in any encoding."""
    return redact(output.decode("latin-1")).encode("latin-1") if b"://" in output else output


def redact(text: str) -> str:
    """Remove credentials from URLs: ``https://ada:secret@host`` becomes ``https://***@host``.

    In an http URL, the part before the ``@`` may be a token. In other URLs it is a user name, such as ``git`` for ssh,
    and only a password after a colon is removed.
    """
    return _USERINFO.sub(_hide, text) if "://" in text else text


def _hide(match: re.Match[str]) -> str:
    user, colon, _ = match[1].partition(":")
    if match.string[max(0, match.start() - 5) : match.start()].lower().endswith(("http", "https")):
        return "://***@"
    return f"://{user}:***@" if colon else match[0]


def escape(text: str) -> str:
    r"""Return `text` on one line, with a backslash escape in place of every unsafe character."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def utc(moment: float) -> datetime:
    """Convert a timestamp to a datetime in UTC."""
    return datetime.fromtimestamp(_within(moment), timezone.utc)


def rfc3339(moment: float, timespec: str = "milliseconds") -> str:
    """Format a timestamp by RFC 3339, in UTC. `timespec` is that of `datetime.isoformat`."""
    return utc(moment).isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Return a time of RFC 3339 in seconds since the epoch. Raises ValueError."""
    # Before Python 3.11, fromisoformat does not accept the Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def local(moment: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Format a timestamp in the host's time zone, for people."""
    return time.strftime(form, time.localtime(_within(moment)))


def _within(moment: float) -> float:
    return min(max(0.0, moment), _LAST)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word that is most similar to `word`, or "" if none is."""
    from difflib import get_close_matches  # noqa: PLC0415 - only an error message needs it

    similar = get_close_matches(word, list(known), 1)
    return f"; did you mean {similar[0]}?" if similar else ""
