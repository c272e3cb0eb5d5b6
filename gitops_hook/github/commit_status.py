"""What GitHub is told of each run, on the commit itself: pending when it begins, success or failure when it has ended.

Rules:

1. A report is a row in the journal before anything is sent, so it survives whatever dies, and whoever made it: a sync
   from the command line leaves its rows to the daemon.
2. A newer state of a commit takes the place of an older one that was not sent yet.
3. No run waits for this, or fails of it. One thread sends (`CommitStatusSender`); what the forge cannot take now is tried again,
   later each time; what it does not want is dropped with one line in the log.
4. NoticeState is the commit that was pushed, and the one that is live where that is another: see `CommitStatusReporter`.

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
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Claim, CommitStatus, Run
from gitops_hook.names import name_in_url
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.runner import Task

#: The first and the longest wait before another try, in seconds.
_FIRST_WAIT = 5.0
_LONGEST_WAIT = 900.0
#: Seconds between looks for rows that nobody announced: those of a sync from the command line.
_LOOK = 30.0
#: What GitHub takes of a description, in characters.
_DESCRIPTION = 140


class CommitStatusReporter:
    """Writes down what is to be told of each run. A `dispatcher.RunObserver`.

    A run serves the newest push that was delivered, and leaves the checkout at what git says is newest; mostly that is
    one commit. Where it is not, because a later push is already in it or webhooks came out of order, the live commit
    is told a success too, and the pushed one which other commit is live. A failure is the pushed commit's alone, for
    what the checkout then stands at was not asked for. Pushes that a later one overtook before a run began are told
    nothing: nobody promised them anything. A run that no push asked for is told only if it has moved the checkout.
    """

    def __init__(self, journal: Journal, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when there is something new to tell."""
        self._journal = journal
        self._changed = changed

    def began(self, claim: Claim, task: Task) -> None:
        """Tell the pushed commit that its run has begun."""
        if task.after:
            begun = _report(claim.run, task, task.after, "pending", "the run has begun")
            self._journal.save_statuses(begun, then=self._changed)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Tell how it ended."""
        reports = _reports(run, task)
        if reports:
            self._journal.save_statuses(*reports, then=self._changed)

    def catch_up(self) -> None:
        """At the start: tell the end of runs that the last daemon recorded, but died before it could say so.

        What it has interrupted is owed still, and will have its run.
        """
        for begun in self._journal.pending_statuses():
            run = self._journal.run(begun.run)
            if run and run.outcome not in (None, "interrupted"):
                self.ended(run, Claim(run, ()), Task(begun.repository, run.id, after=begun.commit))


def _reports(run: Run, task: Task) -> list[CommitStatus]:
    """What is to be told of a run that has ended."""
    pushed, live = task.after, run.after or ""
    took = f"{(run.ended or run.started) - run.started:.1f} s"
    if outcome_of(run.outcome).confirms and live:
        told = f"{run.outcome} in {took}"
        is_news = pushed == live or run.outcome != "unchanged"
        reports = [_report(run, task, live, "success", told)] if is_news else []
        if pushed not in ("", live):
            reports.append(_report(run, task, pushed, "success", f"{told}; {live[:10]} is live by now"))
        return reports
    commit = pushed or (live if run.outcome == "deploy-failed" else "")
    if not commit:
        return []
    if outcome_of(run.outcome).commit_status == "pending":
        return [_report(run, task, commit, "pending", f"{run.outcome} after {took}; it is done again later")]
    return [_report(run, task, commit, "failure", f"{run.outcome} after {took}")]


def _report(run: Run, task: Task, commit: str, state: str, description: str) -> CommitStatus:
    return CommitStatus(task.repository, commit, run.id, state, description[:_DESCRIPTION], time.time())


class CommitStatusSender:
    """The one thread that tells GitHub what the journal says is to be told."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        checkouts: Checkouts,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._checkouts = checkouts
        self._clock = clock
        self._jitter = jitter
        self._host = socket.gethostname()
        self._client: tuple[str, Client] | None = None
        #: The moment before which the forge lets nothing through.
        self._ready = 0.0
        #: Whether the log has been told what keeps us from sending, since it was last possible.
        self._said = False
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def notify(self) -> None:
        """There may be something new to send; from any thread."""
        self._news.set()

    def stop(self, timeout: float) -> None:
        """Send no more, and wait `timeout` seconds at most for a request in hand; the rest is the next daemon's."""
        self._stopping.set()
        self._news.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        """Never dies: what is due would wait for the next start."""
        while not self._stopping.is_set():
            self._news.clear()
            wait = _LOOK
            try:
                wait = self.step()
            except JournalError:
                pass  # the writing thread has said so
            except Exception:
                log.exception("answers met a fault of our own")
            self._news.wait(wait)

    def step(self) -> float:
        """Send what is due; returns the seconds until there is more to send, as far as is known."""
        due = self._journal.statuses_due(self._clock()) if self._clock() >= self._ready else []
        client = self._find_client() if due else None
        if client:
            for report in due:
                if self._stopping.is_set() or self._clock() < self._ready:
                    break
                self._tell(client, report)
        following = self._journal.next_status_due() if client or not due else None
        if following is None:
            return _LOOK
        return min(_LOOK, max(0.0, max(following, self._ready) - self._clock()))

    def _find_client(self) -> Client | None:
        """A client with the token as it stands now; None, said once, where there is none."""
        try:
            token, reason = read_token(self._settings.token_file), None
        except GitopsError as failure:
            token, reason = None, str(failure)
        if not token:
            if not self._said:
                log.error("GitHub cannot be told of runs: there is no token", reason=reason)
            self._said = True
            return None
        if not self._client or self._client[0] != token:
            # One try: the journal remembers what has to be tried again. It may wait for the second between writes.
            url, wait = self._settings.api_url, self._stopping.wait
            self._client = (token, Client(url, token, patience=2, tries=1, clock=self._clock, sleep=wait))
        return self._client[1]

    def _tell(self, client: Client, report: CommitStatus) -> None:
        """Send one report, or put it off, or drop it."""
        try:
            repository = self._name(report.repository)
            if repository:
                tell = self._tell_deployment if self._settings.report == "deployment" else self._tell_status
                tell(client, repository, report)
            self._journal.status_sent(report, final=report.state != "pending" or not repository)
            self._said = False
        except ApiError as error:
            if error.again is None:
                log.error(
                    "GitHub does not want a report, which is dropped",
                    repository=report.repository,
                    commit=report.commit,
                    run=report.run,
                    reason=error,
                )
                self._journal.status_sent(report, final=True)
                return
            if error.http in (403, 429):  # a limit holds for all that is to be sent
                self._ready = error.again
            self._put_off(report, error.again, error)
        except OSError as error:  # git cannot be run
            self._put_off(report, 0.0, error)

    def _put_off(self, report: CommitStatus, earliest: float, reason: Exception) -> None:
        if not self._said:
            log.warning("GitHub cannot be told of runs now; it is tried again", reason=reason)
        self._said = True
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(report.tries, 10)) * (0.75 + self._jitter() / 2)
        self._journal.postpone_status(report, max(earliest, self._clock() + wait))

    def _name(self, repository: str) -> str:
        """What the forge calls the repository; "" where it is not at that forge."""
        checkout = self._checkouts.find(repository)
        origin = checkout.settings.get("origin", "") if checkout else self._settings.clone_url
        if not is_at(self._settings.api_url, origin):
            return ""
        name = repository if "/" in repository else name_in_url(origin) or ""
        return name if "/" in name else ""

    def _tell_status(self, client: Client, repository: str, report: CommitStatus) -> None:
        body = {"state": report.state, "description": report.description, "context": f"gitops/{self._host}"}
        if self._settings.public_url:
            body["target_url"] = self._url(report)
        client.call("POST", f"/repos/{repository}/statuses/{report.commit}", body)

    def _tell_deployment(self, client: Client, repository: str, report: CommitStatus) -> None:
        checkout = self._checkouts.find(report.repository)
        environment = (checkout.settings.get("environment") if checkout else "") or self._host
        path, deployment = f"/repos/{repository}/deployments", report.deployment
        if not deployment:
            wanted = {
                "ref": report.commit,
                "environment": environment,
                "auto_merge": False,
                "required_contexts": [],
                "description": f"gitops-hook on {self._host}"[:_DESCRIPTION],
            }
            value = client.call("POST", path, wanted).value
            deployment = value.get("id", 0) if isinstance(value, dict) else 0
            if not deployment:
                raise ApiError(f"the answer to POST {path} is no deployment")
            self._journal.save_deployment(report, deployment)
        body = {"state": report.state.replace("pending", "in_progress"), "description": report.description}
        if self._settings.public_url:
            body["log_url"] = self._url(report)
        client.call("POST", f"{path}/{deployment}/statuses", {**body, "environment": environment})

    def _url(self, report: CommitStatus) -> str:
        return f"{self._settings.public_url}/runs/{report.run}"
