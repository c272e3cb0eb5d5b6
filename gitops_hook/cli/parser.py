"""The commands, their arguments and their help texts.

Rules:

1. Each command names the function that runs it, as ``module.function`` in this package.
2. A flag for a setting exists exactly once, as a row of `config.OPTIONS`. It is absent from the result if it was not
   given.
3. docs/gitops-hook.8 and docs/gitops-hook.bash list every command and flag. A test compares them with this parser.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

from gitops_hook import __version__
from gitops_hook.cli.messages import EX_USAGE
from gitops_hook.config import OPTIONS
from gitops_hook.text import suggest

Arguments = argparse.Namespace

#: The prefix of the names of the timers that ``migrate`` looks for.
TIMER_PREFIX = "gitops-sync@"
#: The number of digits of the largest number that is accepted: 31 years in seconds, and within SQLite's integers.
MAX_DIGITS = 9

#: The units of a time span, in seconds.
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_SERVE_NOTE = (
    "The secret is in GITHUB_WEBHOOK_SECRET or in the file. It is not an option, "
    "because every user of the host can read the arguments of a process."
)
_AUDIT_NOTE = "Exits with 1 if a push was missed, no run has repaired it, and no redelivery was requested."
_FLEET_NOTE = (
    "A plan names stages by label: canary:1 web:25%,wait=2m rest. After the colon goes how many hosts deploy at once, "
    "a number or a share that is rounded up to at least 1. "
    "Drift exits with 1 if a host has another commit than it should."
)
_DOCTOR_NOTE = "Exits with 0 if all checks pass, 1 if there is a warning, 2 if there is a failure."


class Parser(argparse.ArgumentParser):
    """A parser that exits with EX_USAGE for a wrong call, and prints one line about it."""

    #: The names of the commands; empty in the parser of a command.
    commands: Sequence[str] = ()
    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Accept options between the arguments of a command, and reject an unknown argument with the command's usage.

        argparse alone would fill an optional argument with nothing at the first option, and print the program's usage.
        """
        if self._intermixed:
            return super().parse_known_args(args, namespace)
        if self.commands or "--" in args:
            found, unknown = super().parse_known_args(args, namespace)
        else:
            self._intermixed = True  # older versions of the method call this one
            try:
                found, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._intermixed = False
        if unknown:
            option = unknown[0].partition("=")[0]
            hint = suggest(option, self._option_string_actions) if option.startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with a similar command as suggestion, and exit."""
        unknown = re.search(r"COMMAND: invalid choice: '([^']*)'", message)
        if unknown:
            message = f"there is no command {unknown[1]}{suggest(unknown[1], self.commands)}"
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


@cache
def build_parser() -> Parser:
    """Return the parser of the command line, which a process builds once."""
    parser = Parser(
        prog="gitops-hook",
        description="Keep git checkouts up to date: a signed push arrives, and the checkout is deployed.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gitops-hook {__version__}")
    commands = _Commands(parser)
    _add_daemon(commands)
    _add_views(commands)
    _add_runs(commands)
    _add_checkouts(commands)
    _add_settings(commands)
    _add_host(commands)
    _add_forge(commands)
    _add_fleet(commands)
    parser.commands = list(commands.names)
    return parser


class _Commands:
    """The commands of a parser."""

    def __init__(self, parser: Parser) -> None:
        self._parsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=Parser)
        self.names: list[str] = []

    def add(
        self, name: str, run: str, text: str, *, settings: set[str], epilog: str = "", json: bool = False
    ) -> Parser:
        """Add a command that the function `run` executes, with flags for the fields in `settings`."""
        self.names.append(name)
        parser: Parser = self._parsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog, allow_abbrev=False
        )
        parser.set_defaults(run=run)
        if json:
            parser.add_argument("--json", action="store_true", help="print one JSON object per line")
        for option in OPTIONS:
            if option.flag and option.field in settings:
                help_text = f"{option.help} [{option.env}; default: {option.shown}]".replace("`", "").replace("%", "%%")
                parser.add_argument(option.flag, metavar=option.metavar, default=argparse.SUPPRESS, help=help_text)
        return parser


_FOLDERS = {"root", "state"}
_FLEET = {"root", "state", *(option.field for option in OPTIONS if option.field.startswith(("fleet", "etcd")))}
_FORGE = {"root", "state", "token_file", "api_url"}


def _add_daemon(commands: _Commands) -> None:
    commands.add(
        "serve",
        "serve.serve",
        "run the daemon in the foreground",
        settings={option.field for option in OPTIONS},
        epilog=_SERVE_NOTE,
    )


def _add_views(commands: _Commands) -> None:
    text = "show the state of each repository; those that need an action come first"
    status = commands.add("status", "view_commands.status", text, settings=_FOLDERS, json=True)
    status.add_argument("repository", nargs="?", metavar="REPO")

    text = "show the newest runs, or the runs that served a delivery"
    runs = commands.add("runs", "view_commands.runs", text, settings=_FOLDERS, json=True)
    runs.add_argument("repository", nargs="?", metavar="REPO")
    runs.add_argument("--delivery", metavar="GUID", help="show the runs that served this delivery of the forge")
    runs.add_argument("--failed", action="store_true", help="show only runs that need an action")
    runs.add_argument(
        "--since", type=_time_span, metavar="SPAN", help="show only runs of the last SPAN: 90min, 12h, 2d"
    )
    runs.add_argument(
        "-n", "--number", type=_number, metavar="COUNT", help="show at most COUNT runs [20; with --since, all]"
    )

    text = "print the output of a run, or of the newest run of a repository"
    logs = commands.add("logs", "view_commands.logs", text, settings=_FOLDERS)
    logs.add_argument("what", metavar="RUN|REPO")
    follow = "continue until the run has ended; for a repository, continue with its next runs"
    logs.add_argument("-f", "--follow", action="store_true", help=follow)


def _add_runs(commands: _Commands) -> None:
    text = "sync repositories now; exits with the status of the worst outcome"
    sync = commands.add("sync", "run_commands.sync", text, settings=_FOLDERS, json=True)
    sync.add_argument("repository", nargs="*", metavar="REPO")
    sync.add_argument("--all", action="store_true", help="sync every checkout under the root")
    sync.add_argument(
        "--audit", action="store_true", help="then request redelivery of missed pushes from GitHub, if there is a token"
    )

    sync.add_argument("--cancel", action="store_true", help="end the current runs instead, and settle their deliveries")

    resume = commands.add("resume", "run_commands.resume", "end a pause, and sync", settings=_FOLDERS, json=True)
    resume.add_argument("repository", nargs="+", metavar="REPO")

    text = "deploy the newest commit again, or hold a checkout at --commit; without it, a pin is released"
    deploy = commands.add("deploy", "run_commands.deploy", text, settings=_FOLDERS, json=True)
    deploy.add_argument("repository", metavar="REPO")
    deploy.add_argument("--commit", default="", metavar="COMMIT", help="a commit of the branch, to deploy and hold")
    deploy.add_argument("--force", action="store_true", help="deploy even a commit whose health check failed")
    text = "hold a checkout at the commit that was deployed before, or at COMMIT, until deploy"
    rollback = commands.add("rollback", "run_commands.rollback", text, settings=_FOLDERS, json=True)
    rollback.add_argument("repository", metavar="REPO")
    rollback.add_argument("commit", nargs="?", default="", metavar="COMMIT", help="a commit of the branch")
    for parser in (deploy, rollback):
        parser.add_argument("--reason", default="", metavar="TEXT", help="the reason, for the status")
        parser.add_argument("--until-push", action="store_true", help="release the checkout when the branch changes")

    text = "deliver a signed test push to the local daemon, and wait for its run"
    send = commands.add("send", "run_commands.send", text, settings=_FOLDERS, json=True)
    send.add_argument("repository", metavar="REPO")
    send.add_argument("--branch", help="the branch that the push names [the tracked branch]")
    send.add_argument("--timeout", type=_number, default=60, metavar="SECONDS", help="wait at most SECONDS [60]")


def _add_checkouts(commands: _Commands) -> None:
    text = "clone or adopt checkouts, sync them, and print the settings of the webhook"
    add = commands.add("add", "checkout_commands.add", text, settings=_FOLDERS)
    add.add_argument("repository", nargs="+", metavar="OWNER/NAME[@ENVIRONMENT]")
    add.add_argument("--branch", help="the branch to track [the remote's default branch]")
    add.add_argument("--deploy", metavar="COMMAND", help="the command to run in the checkout after an update")
    add.add_argument("--url", help="the URL to clone from [GITOPS_CLONE_URL]")
    text = "create an SSH key for the repository, and wait until the forge accepts it"
    add.add_argument("--ssh-key", action="store_true", help=text)
    text = "clone over HTTPS with the token, or USER:TOKEN, in FILE"
    add.add_argument("--token-file", dest="token", default="", metavar="FILE", help=text)
    add.add_argument("--yes", action="store_true", help="with --ssh-key: exit with 75 instead of waiting for a person")

    text = "rename a checkout, or all checkouts of a repository, with their history"
    rename = commands.add("rename", "checkout_commands.rename", text, settings=_FOLDERS, json=True)
    rename.add_argument("repository", metavar="OLD")
    rename.add_argument("name", metavar="NEW")

    text = "remove a checkout and its history"
    remove = commands.add("remove", "checkout_commands.remove", text, settings=_FORGE)
    remove.add_argument("repository", metavar="REPO")
    remove.add_argument("--keep-files", action="store_true", help="keep the directory, whose .git becomes .git.removed")
    remove.add_argument("--force", action="store_true", help="also delete local changes, commits and stashes")
    remove.add_argument("--webhook", action="store_true", help="also delete the repository's webhook at GitHub")


def _add_settings(commands: _Commands) -> None:
    text = "show or change the settings of a checkout"
    config = commands.add("config", "setting_commands.config", text, settings=_FOLDERS, json=True)
    config.add_argument("repository", metavar="REPO")
    config.add_argument("name", nargs="?", metavar="NAME", help="the setting, such as branch or deploy [all]")
    config.add_argument("value", nargs="?", metavar="VALUE", help="the new value")
    config.add_argument("--unset", action="store_true", help="remove the setting NAME")

    pause = commands.add(
        "pause", "setting_commands.pause", "stop updates of a checkout until resume", settings=_FOLDERS
    )
    pause.add_argument("repository", nargs="+", metavar="REPO")
    pause.add_argument("--reason", default="", metavar="TEXT", help="the reason, for the status and the log")
    pause.add_argument(
        "--for", dest="span", type=_time_span, metavar="SPAN", help="resume by itself after SPAN: 90min, 12h, 2d"
    )


def _add_host(commands: _Commands) -> None:
    text = "adopt the checkouts that timers poll, and disable the timers"
    migrate = commands.add("migrate", "host_commands.migrate", text, settings=_FOLDERS)
    migrate.add_argument(
        "--unit", default=TIMER_PREFIX, metavar="NAME", help=f"the prefix of the timers' names [{TIMER_PREFIX}]"
    )
    _add_dry_run(migrate)
    direction = migrate.add_mutually_exclusive_group()
    direction.add_argument("--undo", action="store_true", help="restore the timers to their earlier state")
    direction.add_argument("--remove", action="store_true", help="delete the unit files of the disabled timers")

    text = "check this host, and print a command that fixes each problem"
    doctor = commands.add("doctor", "host_commands.doctor", text, settings=_FOLDERS, epilog=_DOCTOR_NOTE, json=True)
    doctor.add_argument("repository", nargs="?", metavar="REPO", help="check only this checkout [the host and all]")


def _add_forge(commands: _Commands) -> None:
    text = "create or repair webhooks at GitHub, and verify that their pings arrive"
    register = commands.add("register", "forge_commands.register", text, settings=_FORGE, json=True)
    text = "delete our webhooks at GitHub"
    unregister = commands.add("unregister", "forge_commands.unregister", text, settings=_FORGE, json=True)
    text = "list the webhooks at GitHub, and show which are ours and correct"
    hooks = commands.add("hooks", "forge_commands.hooks", text, settings=_FORGE, json=True)
    for parser in (register, unregister, hooks):
        parser.add_argument("repository", nargs="*", metavar="OWNER/NAME")
        parser.add_argument("--org", default="", metavar="ORG", help="the webhook of an organization")
        parser.add_argument("--all", action="store_true", help="every checkout whose origin is at GitHub")
        parser.add_argument("--url", default="", help="the URL at which GitHub reaches this host [the newest ping's]")
    _add_dry_run(register)
    _add_dry_run(unregister)
    register.add_argument(
        "--timeout", type=_number, default=30, metavar="SECONDS", help="wait at most SECONDS for each ping [30]"
    )

    text = "list the pushes that GitHub could not deliver, with the reasons"
    audit = commands.add("audit", "forge_commands.audit", text, settings=_FORGE, epilog=_AUDIT_NOTE, json=True)
    audit.add_argument("repository", nargs="*", metavar="OWNER/NAME")
    audit.add_argument("--redeliver", action="store_true", help="request redelivery of those that no run has repaired")


def _add_fleet(commands: _Commands) -> None:
    text = "show the hosts of the fleet and their commits, or control the roll-out of a repository"
    fleet = commands.add("fleet", "fleet_commands.fleet", text, settings=_FLEET, epilog=_FLEET_NOTE, json=True)
    fleet.add_argument("action", choices=("status", "hosts", "drift", "plan", "promote", "halt", "resume"))
    fleet.add_argument("repository", nargs="?", metavar="REPO")
    fleet.add_argument("words", nargs="*", metavar="STAGE", default=[])
    fleet.add_argument("--commit", default="", metavar="ID", help="promote: the commit, instead of the stage's own")
    fleet.add_argument("--delete", action="store_true", help="plan: end the plan")


def _add_dry_run(parser: Parser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="print the changes without making them")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and text.strip("0") and len(text) <= MAX_DIGITS):
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number from 1 to {10**MAX_DIGITS - 1}")
    return int(text)


def _time_span(text: str) -> float:
    """Return the seconds of a span such as ``90min``, ``12h`` or ``2d``."""
    parts = re.fullmatch(rf"([0-9]{{1,{MAX_DIGITS}}})(s|m|min|h|d|w)", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"`{text}` is not a time span such as 90min, 12h or 2d")
    return float(parts[1]) * _UNITS[parts[2]]
