"""Send the commit statuses of the journal to GitHub, as commit statuses or as deployments.

Rules:

1. One thread sends. No run waits for it or fails because of it.
2. A status that cannot be sent now is retried with backoff. A status that GitHub rejects is dropped with one log line.
3. A deployment can start workflows, so it is created only for a commit that the remote has, as git shows in the
   checkout. A commit status needs no such check here: GitHub rejects the id of an unknown commit.

Sources: GitHub, REST API endpoints for commit statuses, for deployments and for deployment statuses.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable

from gitops_hook.config import Settings
from gitops_hook.errors import GitopsError, JournalError
from gitops_hook.github.client import ApiError, Client, is_at, read_token
from gitops_hook.github.commit_status import DESCRIPTION_LENGTH, is_at_remote
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import CommitStatus
from gitops_hook.names import name_in_url
from gitops_hook.sync.backoff import Backoff
from gitops_hook.sync.checkouts import Checkout, Checkouts

#: The delays after a status that could not be sent.
RETRY = Backoff(5.0, 900.0)
#: Seconds between reads of the journal, for the statuses that the runs of commands stored.
_POLL = 30.0


class CommitStatusSender:
    """The thread that sends commit statuses."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        checkouts: Checkouts,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Create the sender. `wait` waits for seconds, or until `stop`; `clock` returns seconds since the epoch."""
        self._settings = settings
        self._journal = journal
        self._checkouts = checkouts
        self._clock = clock
        self._jitter = jitter
        #: The name in the statuses: a fleet reports as one.
        self._host = settings.fleet or socket.gethostname()
        self._client: tuple[str, Client] | None = None
        #: The time before which the rate limit permits no request.
        self._ready = 0.0
        #: True if the current problem is in the log. The next success resets it.
        self._logged = False
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._thread = threading.Thread(target=self._work, name="commit statuses", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Wake the thread, because there may be new statuses. Any thread may call this."""
        self._changed.set()

    def stop(self, timeout: float) -> None:
        """Stop the thread; wait at most `timeout` seconds for its current request. The next start sends the rest."""
        self._stopping.set()
        self._changed.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._changed.clear()
            delay = _POLL
            try:
                delay = self.run_once()
            except JournalError:
                pass  # the journal's thread has logged it
            except Exception:
                log.exception("internal error in the sender of commit statuses")
            self._changed.wait(delay)

    def run_once(self) -> float:
        """Send the statuses that are due; return the seconds until the next one is due, at most `_POLL`."""
        due = self._journal.statuses_due(self._clock()) if self._clock() >= self._ready else []
        client = self._find_client() if due else None
        if client:
            for status in due:
                if self._stopping.is_set() or self._clock() < self._ready:
                    break
                self._send(client, status)
        following = self._journal.next_status_due() if client or not due else None
        if following is None:
            return _POLL
        return min(_POLL, max(0.0, max(following, self._ready) - self._clock()))

    def _find_client(self) -> Client | None:
        """Return a client with the current token; None, logged once, if there is none."""
        try:
            token, reason = read_token(self._settings.token_file), None
        except GitopsError as error:
            token, reason = None, str(error)
        if not token:
            if not self._logged:
                log.error("commit statuses cannot be sent: there is no token", reason=reason)
            self._logged = True
            return None
        if not self._client or self._client[0] != token:
            # One attempt per call, because the journal schedules the retries; 2 s allow the pause between writes.
            client = Client(self._settings.api_url, token, patience=2, tries=1, clock=self._clock, sleep=self._wait)
            self._client = (token, client)
        return self._client[1]

    def _send(self, client: Client, status: CommitStatus) -> None:
        """Send a status, postpone it, or drop it."""
        try:
            checkout = self._checkouts.find(status.repository)
            repository = self._forge_name(status.repository, checkout)
            if not repository:
                return self._journal.status_sent(status, final=True)
            if self._settings.report == "deployment":
                # The hosts of a fleet have fetched the commit (rule 3), and this host may have no checkout.
                if not self._settings.fleet and not status.deployment and not is_at_remote(checkout, status.commit):
                    return self._skip_deployment(status)
                self._send_deployment(client, repository, status, checkout)
            else:
                self._send_status(client, repository, status)
            self._journal.status_sent(status, final=status.state != "pending")
            self._logged = False
        except ApiError as error:
            if error.again is None:
                log.error(
                    "GitHub rejected a commit status, which is dropped",
                    repository=status.repository,
                    commit=status.commit,
                    run=status.run,
                    reason=error,
                )
                return self._journal.status_sent(status, final=True)
            if error.http in (403, 429):  # a rate limit applies to all statuses
                self._ready = error.again
            self._postpone(status, error.again, error)
        except OSError as error:  # git cannot be started
            self._postpone(status, 0.0, error)

    def _skip_deployment(self, status: CommitStatus) -> None:
        """Drop the status of an unknown commit; wait if it is pending, because its run may still fetch the commit."""
        if status.state == "pending":
            self._journal.postpone_status(status, self._clock() + RETRY.delay(status.tries + 1, self._jitter))
        else:
            self._journal.status_sent(status, final=True)

    def _postpone(self, status: CommitStatus, earliest: float, reason: Exception) -> None:
        if not self._logged:
            log.warning("commit statuses cannot be sent now and are retried", reason=reason)
        self._logged = True
        delay = RETRY.delay(status.tries + 1, self._jitter)
        self._journal.postpone_status(status, max(earliest, self._clock() + delay))

    def _forge_name(self, repository: str, checkout: Checkout | None) -> str:
        """Return the repository's name at the forge, or "" if it is not there."""
        origin = checkout.settings.get("origin", "") if checkout else self._settings.clone_url
        if not is_at(self._settings.api_url, origin):
            return ""
        base = repository.partition("@")[0]
        name = base if "/" in base else name_in_url(origin) or ""
        return name if "/" in name else ""

    def _send_status(self, client: Client, repository: str, status: CommitStatus) -> None:
        context = f"gitops/{_place(self._host, status.repository)}"
        body = {"state": status.state, "description": status.description, "context": context}
        if self._settings.public_url:
            body["target_url"] = self._run_url(status)
        client.call("POST", f"/repos/{repository}/statuses/{status.commit}", body)

    def _send_deployment(
        self, client: Client, repository: str, status: CommitStatus, checkout: Checkout | None
    ) -> None:
        environment = (checkout.settings.get("environment") if checkout else "") or _place(
            self._host, status.repository
        )
        path, deployment = f"/repos/{repository}/deployments", status.deployment
        if not deployment:
            request = {
                "ref": status.commit,
                "environment": environment,
                "auto_merge": False,
                "required_contexts": [],
                "description": f"gitops-hook on {self._host}"[:DESCRIPTION_LENGTH],
            }
            value = client.call("POST", path, request).value
            deployment = value.get("id", 0) if isinstance(value, dict) else 0
            if not deployment:
                raise ApiError(f"the answer to POST {path} is not a deployment")
            self._journal.save_deployment(status, deployment)
        body = {"state": status.state.replace("pending", "in_progress"), "description": status.description}
        if self._settings.public_url:
            body["log_url"] = self._run_url(status)
        client.call("POST", f"{path}/{deployment}/statuses", {**body, "environment": environment})

    def _run_url(self, status: CommitStatus) -> str:
        page = f"runs/{status.run}" if status.run else f"fleet/{status.repository}"
        return f"{self._settings.public_url}/{page}"


def _place(host: str, checkout: str) -> str:
    """Return the place that a commit was deployed to: the host, and the environment of the checkout if it has one."""
    environment = checkout.partition("@")[2]
    return f"{host}/{environment}" if environment else host
