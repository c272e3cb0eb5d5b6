"""The command line: ``gitops-hook serve`` and what it is told.

Exit statuses are those of sysexits(3): 64 for a wrong call, 69 where the daemon cannot start here and now, 78 for a
bad setting.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gitops_hook import __version__
from gitops_hook.config import OPTIONS, ConfigError, load

EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_CONFIG = 78


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` (by default the process's) ask for; returns the exit status."""
    given = vars(_parser().parse_args(arguments))
    del given["command"]
    return _serve(given)


def _serve(flags: dict[str, str]) -> int:
    from gitops_hook import daemon, logs  # noqa: PLC0415 - --help need not wait for SQLite

    try:
        settings = load(os.environ, flags)
        logs.setup(settings.log_format, under_systemd="JOURNAL_STREAM" in os.environ)
        return daemon.serve(settings, os.environ)
    except ConfigError as error:
        return _complain(EX_CONFIG, error)
    except daemon.StartError as error:
        return _complain(EX_UNAVAILABLE, error)


def _complain(status: int, error: Exception) -> int:
    print(f"gitops-hook: {error}", file=sys.stderr)
    return status


def _parser() -> _Parser:
    parser = _Parser(
        prog="gitops-hook",
        description="Keeps git checkouts on this host at what their forge has: a signed push arrives, and it is live.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gitops-hook {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="run the daemon in the foreground",
        description="Run the daemon in the foreground. Every option may stand in the environment instead.",
        epilog="The secret itself stands in GITHUB_WEBHOOK_SECRET or in the file; it is no option, for options are "
        "open to every user of the host.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for option in OPTIONS:
        if option.flag:
            text = f"{option.help} [{option.env}; default: {option.shown}]"
            serve.add_argument(option.flag, metavar=option.metavar, help=text.replace("`", "").replace("%", "%%"))
    return parser
