r"""Log lines: one line per fact, a sentence and its fields, on standard error.

Rules:

1. A line is a short sentence followed by ``key=value`` fields that are called the same everywhere: delivery,
   repository, run, outcome, commit, ms, reason. docs/monitoring.md lists them all.
2. No text from outside can break a line or paint a terminal: control characters leave as ``\n``, ``\x1b``, …
3. No credential in a URL gets into a line (`redact`), wherever the text came from.
4. Under systemd a line begins with its priority, ``<N>`` (sd-daemon(3)), and leaves the time to the journal.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress

from gitops_hook.text import escape, redact

#: Priorities of syslog(3).
_PRIORITIES = {"error": 3, "warning": 4, "info": 6}
#: What needs no quotes: printable ASCII without spaces, quotes, backslashes.
_BARE = re.compile(r"[!#-\[\]-~]+")


class Log:
    """A logger that takes its facts as keywords; one that is None is left out."""

    def info(self, sentence: str, /, **fields: object) -> None:
        """A fact that an operator may want to read later."""
        _emit("info", sentence, fields)

    def warning(self, sentence: str, /, **fields: object) -> None:
        """A fact that needs an eye, sooner or later."""
        _emit("warning", sentence, fields)

    def error(self, sentence: str, /, **fields: object) -> None:
        """A fact that needs a person."""
        _emit("error", sentence, fields)

    def exception(self, sentence: str, /, **fields: object) -> None:
        """A fault of our own: the sentence, and the traceback of the exception in hand as its last field."""
        _emit("error", sentence, {**fields, "traceback": traceback.format_exc()})


def _emit(level: str, sentence: str, fields: Mapping[str, object]) -> None:
    known = {key: _plain(value) for key, value in fields.items() if value is not None}
    line = _format(level, redact(sentence), known)
    if not line:
        return
    with suppress(OSError):  # nobody reads; the work goes on
        # One write for a line, which a pipe takes whole up to 4 KiB, so threads need no lock. The few that are longer,
        # such as a failure's last words in Japanese, may meet another line there; journald's socket takes more.
        os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")


def _plain(value: object) -> object:
    """A field's value as it may be shown: a number or a truth as it is, all else as text without credentials."""
    return value if isinstance(value, (int, float)) else redact(str(value))


def _as_text(level: str, sentence: str, fields: Mapping[str, object]) -> str:
    words = [escape(sentence), *(f"{key}={_quote(str(value))}" for key, value in fields.items())]
    return " ".join(words)


def _as_timed_text(level: str, sentence: str, fields: Mapping[str, object]) -> str:
    return f"{_now()} {level} {_as_text(level, sentence, fields)}"


def _as_journal_text(level: str, sentence: str, fields: Mapping[str, object]) -> str:
    return f"<{_PRIORITIES[level]}>{_as_text(level, sentence, fields)}"


def _as_json(level: str, sentence: str, fields: Mapping[str, object]) -> str:
    # ASCII, so every control character is escaped.
    return json.dumps({"time": _now(), "level": level, "message": sentence, **fields})


_format = _as_timed_text


def setup(log_format: str, *, under_systemd: bool) -> None:
    """Have lines in `log_format`, ``text`` or ``json``; before this is called they are text."""
    global _format  # noqa: PLW0603 - a process has one standard error
    _format = _as_json if log_format == "json" else _as_journal_text if under_systemd else _as_timed_text


def mute() -> None:
    """Write no lines: for a command that tells in its own words."""
    global _format  # noqa: PLW0603 - as above
    _format = _as_nothing


def _as_nothing(level: str, sentence: str, fields: Mapping[str, object]) -> str:
    return ""


def _quote(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    return '"' + escape(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


log = Log()
