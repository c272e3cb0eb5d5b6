r"""Write log lines to standard error: one sentence and its fields per line, through `logging`.

Rules:

1. A line is a short sentence followed by ``key=value`` fields. The fields delivery, repository, run, outcome, commit,
   ms and reason have the same names everywhere. docs/monitoring.md lists them all.
2. Text from outside cannot break a line or control a terminal: control characters are escaped as ``\n``, ``\x1b``, …
3. No line contains a credential of a URL (`redact`), wherever the text came from.
4. Under systemd a line starts with its priority, ``<N>`` (sd-daemon(3)), and the journal adds the time.
5. Each line is one write(2). A pipe takes 4 KiB at once, so another process cannot split a line that is shorter.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress

from gitops_hook.text import escape, redact, rfc3339

#: Priorities of syslog(3), by the names of the levels.
_PRIORITIES = {"error": 3, "warning": 4, "info": 6}
#: A value that needs no quotes: printable ASCII without spaces, quotes and backslashes.
_BARE = re.compile(r"[!#-\[\]-~]+")
# No line names a thread or a process ("Logging HOWTO", Optimization).
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class Log:
    """A logger that takes the fields of a line as keywords. It omits a field whose value is None."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("gitops_hook")
        self._logger.propagate = False

    def info(self, sentence: str, /, **fields: object) -> None:
        """Log an event that an operator may look up later."""
        self._log(logging.INFO, sentence, fields)

    def warning(self, sentence: str, /, **fields: object) -> None:
        """Log a problem that the daemon handles by itself."""
        self._log(logging.WARNING, sentence, fields)

    def error(self, sentence: str, /, **fields: object) -> None:
        """Log a problem that needs a person."""
        self._log(logging.ERROR, sentence, fields)

    def exception(self, sentence: str, /, **fields: object) -> None:
        """Log an internal error, with the traceback of the current exception as the last field."""
        self._log(logging.ERROR, sentence, {**fields, "traceback": traceback.format_exc().rstrip("\n")})

    def _log(self, level: int, sentence: str, fields: Mapping[str, object]) -> None:
        """Log a record without the place of the call, which takes longer to find than a line takes to format."""
        record = {"levelno": level, "levelname": logging.getLevelName(level), "msg": sentence, "fields": fields}
        self._logger.handle(logging.makeLogRecord(record))

    def use(self, formatter: logging.Formatter) -> None:
        """Write all further lines with `formatter`."""
        handler = _StandardError()
        handler.setFormatter(formatter)
        self._logger.handlers = [handler]
        self._logger.disabled = False

    def mute(self) -> None:
        """Write no further lines."""
        self._logger.disabled = True


class _StandardError(logging.Handler):
    """Write each line to descriptor 2 in one system call. If nobody reads it, continue without."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Write without a lock, because write(2) needs none."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        with suppress(OSError):
            os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")


class TextFormatter(logging.Formatter):
    """``<time> <level> <sentence> <key>=<value> ...``, or with the priority of sd-daemon(3) in place of the time."""

    def __init__(self, *, under_systemd: bool) -> None:
        super().__init__()
        self._under_systemd = under_systemd

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        level = record.levelname.lower()
        prefix = f"<{_PRIORITIES[level]}>" if self._under_systemd else f"{rfc3339(record.created)} {level} "
        fields = [f"{key}={_quote(redact(str(value)))}" for key, value in _fields(record)]
        return prefix + " ".join([escape(redact(record.msg)), *fields])


class JSONFormatter(logging.Formatter):
    """One JSON object per line. It is ASCII, so every control character is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        head = {"time": rfc3339(record.created), "level": record.levelname.lower(), "message": redact(record.msg)}
        return json.dumps({**head, **{key: _plain(value) for key, value in _fields(record)}})


def setup(log_format: str, *, under_systemd: bool) -> None:
    """Select the format of all further lines: ``text`` or ``json``."""
    log.use(JSONFormatter() if log_format == "json" else TextFormatter(under_systemd=under_systemd))


def mute() -> None:
    """Write no further lines, for a command that prints its own messages."""
    log.mute()


def _fields(record: logging.LogRecord) -> list[tuple[str, object]]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return [field for field in fields.items() if field[1] is not None]


def _plain(value: object) -> object:
    """Return numbers unchanged, and all else as text without credentials."""
    return value if isinstance(value, (int, float)) else redact(str(value))


def _quote(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    return '"' + escape(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'


log = Log()
setup("text", under_systemd=False)
