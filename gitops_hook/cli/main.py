"""The entry point of the command line: parse, run the command, turn exceptions into an exit status.

Rules:

1. Exit statuses are those of sysexits(3). A command that performs runs exits with the status of the worst outcome,
   and ``doctor`` exits like a monitoring plugin. docs/gitops-hook.8 lists every status.
2. An error of the operator or of the host is one line on standard error, without control characters and without
   credentials.
3. A command module is imported when its command runs, so ``--help`` needs the parser alone.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from gitops_hook.cli.messages import EX_IOERR, EX_NOPERM, print_error
from gitops_hook.cli.parser import Arguments, build_parser
from gitops_hook.errors import GitopsError

#: The variables that make git work on another repository, or on another part of it, than the one it is called in
#: (``git rev-parse --local-env-vars``). They are set in a git hook, and in a shell that works on another repository.
GIT_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
    "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_IMPLICIT_WORK_TREE", "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name and return its exit status.

    `arguments` default to those of the process. A wrong call ends the process with status 64.
    """
    given = build_parser().parse_args(arguments)
    for name in GIT_VARIABLES:
        os.environ.pop(name, None)
    is_daemon = given.command == "serve"
    try:
        _open_output(is_daemon=is_daemon)
        status = _load_command(given)(given)
        sys.stdout.flush()
    except GitopsError as error:
        _close_output()
        print_error(str(error))
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as head(1) does
        _close_output()
        return 0
    except OSError as error:
        if is_daemon:  # a fault of the daemon: show the traceback
            raise
        _close_output()
        subject = f"{error.filename}: " if error.filename else ""
        print_error(f"{subject}{error.strerror or error}")
        return EX_NOPERM if isinstance(error, PermissionError) else EX_IOERR
    return status


def _load_command(given: Arguments) -> Callable[[Arguments], int]:
    """Import the module of the command and return its function."""
    module, _, function = given.run.rpartition(".")
    return cast("Callable[[Arguments], int]", getattr(import_module(f"gitops_hook.cli.{module}"), function))


def _open_output(*, is_daemon: bool) -> None:
    """Replace closed streams, and let standard output accept every character in every encoding."""
    if not sys.stderr:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    if not sys.stdout:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as above
        if not is_daemon:  # the daemon prints nothing there
            raise GitopsError(EX_IOERR, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """Write the buffered output, or drop it if that fails, so that Python reports no second error at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
