"""Exit statuses, and messages on standard error."""

from __future__ import annotations

import sys

from gitops_hook.text import escape, redact

#: Exit statuses of sysexits(3).
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


def print_error(message: str) -> None:
    """Print a message as one line on standard error, without control characters and without credentials in URLs."""
    print(f"gitops-hook: {escape(redact(message))}", file=sys.stderr)


def show_progress(number: int, total: int, subject: str) -> None:
    """Replace the progress line on a terminal. The line stays when `number` reaches `total`."""
    if sys.stderr.isatty():
        end = "\n" if number == total else ""
        print(f"\r\033[K{number} of {total}  {escape(subject)}", end=end, file=sys.stderr, flush=True)


def clear_progress() -> None:
    """Remove the progress line, so that a line of output can take its place."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
