"""Send the requests of a command to the process that performs runs and writes the journal.

Rules:

1. That process is the daemon. If no daemon is running, `gitops_hook.local` starts a temporary one, which needs the
   permissions of the caller to become the service's user. After that, the command itself becomes that user.
2. A request that was not accepted is repeated for a while, because the daemon may be restarting. If it does not return,
   the command starts a temporary daemon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from gitops_hook.cli.messages import EX_DATAERR, EX_NOINPUT, EX_NOPERM, EX_UNAVAILABLE, EX_USAGE
from gitops_hook.cli.session import become_owner, check_access
from gitops_hook.config import Settings
from gitops_hook.control import client
from gitops_hook.errors import GitopsError
from gitops_hook.local import performer
from gitops_hook.lock import DAEMON, holder

#: Sends a request body to a path, and returns the answer. Raises `GitopsError` if the request was rejected.
Post = Callable[[str, Mapping[str, object]], Mapping[str, Any]]

#: Seconds to repeat a request that was not accepted, and between two attempts.
_PATIENCE = 30.0
_INTERVAL = 0.2
#: Seconds in which a daemon that restarts is expected to take the lock again.
_RESTART = 2.0
#: The exit statuses for rejected requests, by HTTP status.
_STATUSES = {400: EX_USAGE, 403: EX_NOPERM, 404: EX_NOINPUT, 409: EX_DATAERR}


@contextmanager
def requests_to_daemon(settings: Settings, what: str) -> Iterator[Post]:
    """Yield a function that posts requests to the daemon, or to a temporary one that ends after its runs.

    `what` names this command for others. The command continues as the owner of the state directory.
    """
    check_access(settings)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        print(f"gitops-hook: {message}", file=sys.stderr)

    with ExitStack() as stack:
        socket = stack.enter_context(performer(settings, what, warn))
        found = holder(settings.state)
        if found and found.what != DAEMON and not warnings:
            warn(f"no daemon is running; {found.what} (process {found.pid}) performs the runs")
        become_owner(settings)

        def post(path: str, body: Mapping[str, object]) -> Mapping[str, Any]:
            nonlocal socket
            began = time.monotonic()
            while True:
                answer = _try_to_post(socket, path, body)
                if answer is not None:
                    return answer
                time.sleep(_INTERVAL)
                waited, found = time.monotonic() - began, holder(settings.state)
                if found and found.socket:
                    socket = found.socket
                elif not found and waited > _RESTART:
                    socket = stack.enter_context(performer(settings, what, warn))
                if waited > _PATIENCE:
                    raise GitopsError(EX_UNAVAILABLE, f"no daemon accepts requests at {socket}")

        yield post


def _try_to_post(socket: str, path: str, body: Mapping[str, object]) -> Mapping[str, Any] | None:
    """Send a request once. Return the answer, or None if the request was not accepted and can be repeated."""
    try:
        status, answer = client.post(socket, path, body)
    except client.NotAccepted:
        return None
    except OSError as error:
        raise GitopsError(EX_UNAVAILABLE, f"control socket: {error}") from None
    if 200 <= status < 300:
        return answer
    if answer.get("stopping") is True:
        return None
    raise GitopsError(_STATUSES.get(status, EX_UNAVAILABLE), str(answer.get("reason") or f"status {status}"))
