"""Follow requested runs until they end, by reading the journal and the logs.

Rules:

1. A request is a delivery row. It has ended when the run that claimed it has an outcome, or when it was settled
   without a run.
2. On a terminal, one line shows the progress, and disappears at the end.
3. A failed run is printed with its message, the last lines of its output, and the command that prints all of it.
4. An interrupt ends the following, not the runs.
5. If the process that performs the runs has disappeared, the requests are repeated.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from gitops_hook.cli import render
from gitops_hook.cli.messages import clear_progress, print_error
from gitops_hook.cli.session import open_reader
from gitops_hook.cli.writer import Post
from gitops_hook.config import Settings
from gitops_hook.journal.reader import JournalReader
from gitops_hook.lock import holder
from gitops_hook.model import Run
from gitops_hook.outcomes import BAD, BY_NAME, outcome_of, severity_of
from gitops_hook.sync.run_log import last_lines
from gitops_hook.text import escape, span
from gitops_hook.users import requesting_user

#: Seconds between two queries of the journal.
_POLL = 0.1
#: Seconds between two looks whether a process performs the runs.
_REPEAT = 1.0
#: The number of requests to query at once. Runs start in the order of the requests, so the first ones suffice.
_WINDOW = 50
#: The exit status of a request that was cancelled before it had a run.
_CANCELLED = BY_NAME["interrupted"].exit


class Request(NamedTuple):
    """A request that the writer of the journal has accepted."""

    checkout: str
    delivery: str


def accepted_requests(answer: Mapping[str, Any]) -> list[Request]:
    """Return the requests in the answer to a request for runs."""
    return [Request(row["checkout"], row["delivery"]) for row in answer["requests"]]


def follow(settings: Settings, post: Post, answer: Mapping[str, Any], *, as_json: bool) -> int:
    """Wait for the runs of the requests in `answer`, print them, and return the exit status of the worst outcome.

    `post` repeats the requests if no process performs them any more.
    """
    journal, requests = open_reader(settings), accepted_requests(answer)
    following = _Following(journal, requests)
    due = time.monotonic() + _REPEAT
    try:
        while following.pending:
            following.update()
            following.show()
            if following.pending and time.monotonic() > due:
                if not holder(settings.state):  # the run of the new request claims the first one too
                    checkouts = [request.checkout for request in following.pending]
                    post("/runs", {"checkouts": checkouts, "trigger": "manual", "by": requesting_user()})
                due = time.monotonic() + _REPEAT
            if following.pending:
                time.sleep(_POLL)
    except KeyboardInterrupt:
        clear_progress()
        names = " ".join(request.checkout for request in following.pending)
        print_error(f"stopped following; the runs continue. To end them: gitops-hook sync --cancel {names}")
        raise
    clear_progress()
    runs = following.runs
    if runs or not requests:
        render.print_runs(runs, as_json=as_json)
    for request in following.cancelled:
        print_error(f"{request.checkout}: the request was cancelled")
    if not as_json:
        _print_failures(journal, runs)
    worst = max((outcome_of(run.outcome) for run in runs), key=lambda outcome: outcome.rank, default=BY_NAME["updated"])
    return worst.exit or (_CANCELLED if following.cancelled else 0)


class _Following:
    """The state of following."""

    def __init__(self, journal: JournalReader, requests: Sequence[Request]) -> None:
        self._journal = journal
        self._total = len(requests)
        #: The requests without an ended run, and the current run of those that have one.
        self.pending: dict[Request, Run | None] = dict.fromkeys(requests)
        #: The ended runs in the order of their ends, and the requests that were settled without a run.
        self._ended: dict[int, Run] = {}
        self.cancelled: list[Request] = []

    @property
    def runs(self) -> list[Run]:
        return list(self._ended.values())

    def update(self) -> None:
        """Query the first pending requests."""
        for request in list(islice(self.pending, _WINDOW)):
            for delivery in self._journal.deliveries(request.delivery):
                run = self._journal.run(delivery.run) if delivery.run else None
                if run and run.outcome:
                    self._ended[run.id] = run
                    self.pending.pop(request, None)
                elif run:
                    self.pending[request] = run
                elif not delivery.pending:
                    self.cancelled.append(request)
                    self.pending.pop(request, None)

    def show(self) -> None:
        """Replace the progress line on a terminal."""
        if not sys.stderr.isatty() or not self.pending:
            return
        running = [run for run in self.pending.values() if run]
        text = ""
        if self._total > 1:
            text = f"{self._total - len(self.pending)} of {self._total}  "
            text += ", ".join(run.repository for run in running)
        else:
            (request,) = self.pending
            text = f"{request.checkout}: waiting for its turn"
        if self._total == 1 and running:
            output = last_lines(self._journal.log_path(running[0].id)).split("\n")[-1]
            text = f"{running[0].repository}: running for {span(time.time() - running[0].started)}  {output}"
        # Before Python 3.11, a terminal without a size has 0 columns.
        width = (shutil.get_terminal_size().columns or 80) - 1
        print(f"\r\033[K{escape(text)[:width]}", end="", file=sys.stderr, flush=True)


def _print_failures(journal: JournalReader, runs: Sequence[Run]) -> None:
    """Print the messages of the runs that did not succeed, and the last lines of the output of those that failed."""
    for run in runs:
        if severity_of(run.outcome) == "good":
            continue
        if run.message:
            print(f"\n{escape(run.message)}")
        if severity_of(run.outcome) == BAD:
            for line in last_lines(journal.log_path(run.id)).splitlines():
                print(f"    {escape(line)}")
            print(f"All output: gitops-hook logs {run.id}")
