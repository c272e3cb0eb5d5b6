"""Checks of a host: whether a push can be deployed, and if not, the command that fixes it.

Rules:

1. A check is one function in a table. It yields results: a message each, and with a problem the command that fixes it.
   Only `failure` and `warning` create a problem, so a test finds each of them.
2. A failure keeps pushes from being deployed. A warning does not. A check that does not apply to this host, such as
   one that needs systemd, is skipped. A check that could not run is a warning or a failure, never ok.
3. A check changes nothing except fetched objects, waits a bounded time, and shows no secret.
4. `AS_CALLER` runs with the caller's permissions, because it reads files of root. `AS_SERVICE` and `OF_CHECKOUT` run
   as the service's user, because that user's permissions decide.

To add a check, write a function in the module of its topic and add it to one of the tables.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gitops_hook.cli.doctor import access, checkout, credentials, fleet, host
from gitops_hook.cli.doctor.finding import (
    EXIT,
    FAILURE,
    OK,
    SKIPPED,
    WARNING,
    Finding,
    Results,
    current_user,
    failure,
    quote,
    service_user,
    worst_level,
)
from gitops_hook.config import ENVIRONMENT_FILE, Settings
from gitops_hook.errors import ConfigError
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.text import redact

__all__ = [
    "AS_CALLER", "AS_SERVICE", "EXIT", "FAILURE", "OF_CHECKOUT", "OK", "SKIPPED", "WARNING", "Finding",
    "finding_of_setting", "finding_of_user", "run", "run_for_checkouts", "worst_level",
]  # fmt: skip

#: The checks by name, in the order of the output.
AS_CALLER: Mapping[str, Callable[[Settings], Results]] = {
    "secret": credentials.secret,
    "ping": credentials.ping,
    "token": credentials.token,
    "timers": host.timers,
    "clock": host.clock,
}
AS_SERVICE: Mapping[str, Callable[[Settings], Results]] = {
    "user": host.user,
    "journal": host.journal,
    "state": partial(host.writable, lambda settings: settings.state),
    "root": partial(host.writable, lambda settings: settings.root),
    "disk of the state": partial(host.free_space, lambda settings: settings.state),
    "disk of the root": partial(host.free_space, lambda settings: settings.root),
    "script": host.script,
    "programs": host.programs,
    "socket": host.socket,
    "etcd": fleet.etcd,
    "certificates of etcd": fleet.certificate,
    "clocks of etcd": fleet.clocks,
}
OF_CHECKOUT: Mapping[str, Callable[[Settings, Checkout], Results]] = {
    "ownership": checkout.ownership,
    "origin": checkout.origin,
    "branch": checkout.branch,
    "access": access.access,
    "lfs": access.lfs,
    "fetch": checkout.fetch,
    "deploy": checkout.deploy,
    "polkit": checkout.polkit,
}
#: The number of checks that run at the same time. Most of them wait.
_THREADS = 8


def finding_of_setting(error: ConfigError, environ: Mapping[str, str]) -> Finding:
    """Return the finding for an invalid setting. Without settings, no other check can run."""
    if error.option == "GITOPS_ROOT":
        fix = f"sudo install -d -o {service_user()} {quote(error.value)}"
    elif error.option == "GITOPS_SYNC_SCRIPT" and Path(error.value).is_file():
        fix = f"sudo chmod +x {quote(error.value)}"
    elif error.option in environ:
        fix = f"unset {error.option}"
    else:
        fix = f"sudoedit {ENVIRONMENT_FILE}"
    return Finding("settings", *failure(redact(str(error)), fix))


def finding_of_user(state: Path) -> Finding | None:
    """Return the only finding for a user who is neither root nor the owner of `state`, or None for those two.

    Another user can read neither the settings nor the state, so every check would report this user's permissions.
    """
    if os.geteuid() == 0 or not state.exists() or state.stat().st_uid == os.geteuid():
        return None
    message = f"{current_user()} can read neither the settings nor {state}; run doctor as root"
    return Finding("user", *failure(message, "sudo gitops-hook doctor"))


def run(checks: Mapping[str, Callable[[Settings], Results]], settings: Settings) -> list[Finding]:
    """Run the checks of one table, and return their findings in the order of the table."""
    return _run_all(partial(_findings, name, partial(check, settings)) for name, check in checks.items())


def run_for_checkouts(settings: Settings, only: Checkout | None = None) -> list[Finding]:
    """Run the checks of every checkout, or of `only` one, and return their findings."""
    checkouts = Checkouts(settings.root)
    found = [only] if only else filter(None, map(checkouts.find, checkouts))
    return _run_all(
        partial(_findings, name, partial(check, settings, checkout), checkout.repository)
        for checkout in found
        for name, check in OF_CHECKOUT.items()
    )


def _run_all(checks: Iterable[Callable[[], list[Finding]]]) -> list[Finding]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return [finding for found in pool.map(lambda check: check(), checks) for finding in found]


def _findings(name: str, check: Callable[[], Results], repository: str = "") -> list[Finding]:
    try:
        return [Finding(name, *result, repository) for result in check()]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = failure(f"the check could not run: {error}", "sudo gitops-hook doctor")
        return [Finding(name, *problem, repository)]
