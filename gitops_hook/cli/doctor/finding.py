"""The result of a check: a level, a message, and with a problem the command that fixes it."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gitops_hook.users import user_name

OK, SKIPPED, WARNING, FAILURE = "ok", "skipped", "warning", "failure"
#: The exit statuses of monitoring plugins, by the worst level.
EXIT = {OK: 0, SKIPPED: 0, WARNING: 1, FAILURE: 2}
#: Seconds to wait for a program of this host, or for the daemon.
TIMEOUT = 10


class Finding(NamedTuple):
    """The result of a check. `fix` is a command; `repository` is empty for a check of the host."""

    check: str
    level: str
    message: str
    fix: str = ""
    repository: str = ""


class Result(NamedTuple):
    """A finding before the name of its check and its repository are added."""

    level: str
    message: str
    fix: str = ""


Results = Iterator[Result]


def passed(message: str) -> Result:
    """Return the result of a check that found no problem."""
    return Result(OK, message)


def skipped(message: str) -> Result:
    """Return the result of a check that does not apply to this host or checkout now."""
    return Result(SKIPPED, message)


def warning(message: str, fix: str) -> Result:
    """Return a problem that does not keep pushes from being deployed."""
    return Result(WARNING, message, fix)


def failure(message: str, fix: str) -> Result:
    """Return a problem that keeps pushes from being deployed, or will."""
    return Result(FAILURE, message, fix)


def worst_level(findings: Iterable[Finding]) -> str:
    """Return the worst level among the findings; `OK` if there are none."""
    return max((finding.level for finding in findings), key=lambda level: EXIT[level], default=OK)


def output_of(*command: str | Path) -> str | None:
    """Return the stripped output of a program, or None if it fails, exceeds `TIMEOUT`, or does not exist."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            cwd="/",  # the caller's directory may be closed to the service's user, and then find(1) fails
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def service_user() -> str:
    """Return the user of the installed unit, or the current user if no unit is installed."""
    try:
        return pwd.getpwnam("gitops-hook").pw_name
    except KeyError:
        return current_user()


def current_user() -> str:
    """Return the name of the current user, or its number if it has no name."""
    return user_name(os.geteuid())


def quote(text: str | Path) -> str:
    """Quote `text` for a shell."""
    return shlex.quote(str(text))
