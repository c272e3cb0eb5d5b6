"""Read from the journal, the checkouts and the logs what a page or a response of the API shows."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

from gitops_hook import __version__
from gitops_hook.dashboard import ansi, pages
from gitops_hook.dashboard.deliveries import Day
from gitops_hook.dashboard.details import Output
from gitops_hook.dashboard.pages import FIRST_PROBLEMS, PAGE_SIZE, Health, Overview, Query
from gitops_hook.dashboard.query import number_field
from gitops_hook.dashboard.rejections import Rejected
from gitops_hook.dashboard.runs import RunWithCommits
from gitops_hook.errors import HTTPError
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Commit, Delivery, Run
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.run_log import read_log
from gitops_hook.sync.runner import steps_so_far
from gitops_hook.sync.status import (
    InForce,
    RepositoryStatus,
    repository_statuses,
    settings_in_force,
    with_history,
)

#: Bytes of a log in one response, which has the offset of the next part.
LOG_PART = 1 << 20
#: The last lines of a failed run that the first page shows, and the bytes of the log to look for them.
_TAIL_LINES, _TAIL_BYTES = 4, 2 << 10
#: Failed runs whose commit is looked up, the limit of `JournalReader.commits`.
_MOST_PROBLEMS = 999
#: The runs that a search finds, and the characters from which on a word is searched for in runs.
_FOUND_RUNS, _SHORTEST_WORD = 20, 3
#: The period of the report about deliveries, and the wait that it reports, in seconds. A wait is in whole minutes.
_DAY, _MINUTE = 24 * 3600, 60


class Lookup:
    """Reads the content of the pages. Any thread may use it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        sync_timeout: int,
        rejections: Callable[[], list[Rejected]],
        secret_places: Sequence[str],
    ) -> None:
        self.host = os.uname().nodename
        self.journal = journal
        self.checkouts = checkouts
        self._started = time.time()
        self._sync_timeout = sync_timeout
        self._rejections = rejections
        self._secret_places = secret_places

    def statuses(self) -> list[RepositoryStatus]:
        """Return the status of every repository, most severe first."""
        return repository_statuses(self.journal, self.checkouts)

    def overview(self, query: Query) -> Overview:
        """Return the content of the first page without the output of runs."""
        found = self.statuses()
        failed = [status.run for status in found if status.run and _needs_person(status)]
        tried = {shown.run.id: shown.tried for shown in self.with_commits(failed[:_MOST_PROBLEMS])}
        rejected = {run: commit for run, commit in tried.items() if commit}
        shown = [status for status in found if _matches(status, query, rejected)]
        shown.sort(key=pages.SORTABLE[query.order.lstrip("-")].key, reverse=query.order.startswith("-"))
        first = (query.page - 1) * PAGE_SIZE
        problems = [status for status in shown if _needs_person(status)]
        return Overview(
            counts=Counter(status.state for status in found),
            matching=len(shown),
            page=with_history(self.journal, shown[first : first + PAGE_SIZE]),
            problems=problems[: PAGE_SIZE if query.state else FIRST_PROBLEMS] if query.page == 1 else [],
            matching_problems=len(problems),
            query=query,
            health=self.health(found),
            host=self.host,
            rejected=rejected,
            tails={},
            day=self._day(),
            runs=self._search(query),
        )

    def health(self, found: Sequence[RepositoryStatus]) -> Health:
        """Return the state of the daemon, with the sums over all repositories."""
        running = sum(1 for status in found if status.run and not status.run.outcome)
        return Health(__version__, self._started, self.journal.fault, running, sum(status.pending for status in found))

    def _day(self) -> Day:
        now = self.journal.now()
        waited = self.journal.waited(now - _DAY, now, _MINUTE)
        # A push that still waits must not change the ETag at each refresh.
        waited = [row._replace(longest=row.longest // _MINUTE * _MINUTE) for row in waited]
        found = self.with_commits(self.journal.found_by_sweep(now - _DAY))
        return Day(self._rejections(), waited, found, self._secret_places)

    def _search(self, query: Query) -> list[RunWithCommits]:
        words = query.words.split()
        if not words or query.page > 1 or max(map(len, words)) < _SHORTEST_WORD:
            return []
        return self.with_commits(self.journal.search_runs(words, _FOUND_RUNS))

    def with_tails(self, view: Overview) -> Overview:
        """Return the content with the last lines of output of each listed problem."""
        runs = [status.run for status in view.problems if status.run]
        return view._replace(tails={run.id: self._tail(run) for run in runs})

    def repository(self, name: str) -> tuple[RepositoryStatus, list[InForce]]:
        """Return the status of a repository and its settings. Raises `HTTPError` if it is unknown."""
        (found,) = repository_statuses(self.journal, self.checkouts, [name])
        if found.path is None and found.run is None:
            raise HTTPError(404, "this repository is unknown")
        (found,) = with_history(self.journal, [found])
        checkout = self.checkouts.find(name)
        return found, settings_in_force(checkout, self._sync_timeout) if checkout else []

    def run(self, number: str) -> Run:
        """Return a run, with the steps so far if it is running. Raises `HTTPError` if it is unknown."""
        run = self.journal.run(int(number))
        if not run:
            raise HTTPError(404, "no such run")
        if run.outcome:
            return run
        ended = steps_so_far(self.journal.log_path(run.id), run.started).get
        return run._replace(fetched=ended("fetched"), deployed=ended("deployed"), healthy=ended("healthy"))

    def deliveries(self, guid: str) -> list[Delivery]:
        """Return the deliveries with a GUID. Raises `HTTPError` if there is none."""
        found = self.journal.deliveries(guid)
        if not found:
            raise HTTPError(404, "no such delivery")
        return found

    def page_of_runs(self, given: dict[str, str], repository: str | None, limit: int) -> tuple[list[Run], int | None]:
        """Return at most `limit` runs below the id ``before``, and the id below which there are more, or None."""
        before = number_field(given, "before", None)
        runs = self.journal.runs(repository, limit + 1, before)
        return runs[:limit], runs[limit - 1].id if len(runs) > limit else None

    def with_commits(self, runs: Sequence[Run]) -> list[RunWithCommits]:
        """Return runs with their commits and the URLs of their remotes."""
        commits = self.journal.commits([run.id for run in runs])
        origins = {run.repository: self._origin(run.repository) for run in runs}
        return [RunWithCommits(run, commits.get(run.id, ()), origins[run.repository]) for run in runs]

    def _origin(self, repository: str) -> str:
        checkout = self.checkouts.find(repository)
        return checkout.settings.get("origin", "") if checkout else ""

    def output(self, run: Run) -> Output:
        """Return the end of a run's output as HTML. Read the run before, so that no output is missed."""
        printed, offset = self.whole_log(run.id)
        printed, whole = ansi.end_of(printed)
        log = ansi.render(printed, more=not run.outcome)
        follow = None if run.outcome else output_path(run.id, offset - len(printed) + log.size, log.pen)
        return Output(log.shown, follow, whole)

    def whole_log(self, run: int) -> tuple[bytes, int]:
        """Return the stored output of a run, and the offset after it."""
        printed, offset = b"", 0
        while True:
            part = read_log(self.journal.log_path(run), offset, LOG_PART)
            if not part.content:
                return printed, offset
            printed, offset = printed + part.content, part.offset

    def _tail(self, run: Run) -> str:
        """Return the last lines of output before the outcome as HTML."""
        try:
            with self.journal.log_path(run.id).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return ""
        outcome = f"{run.outcome}: ".encode()
        shown = [line for line in lines if line.strip() and not line.startswith(outcome)][-_TAIL_LINES:]
        return ansi.render(b"\n".join(shown)).shown


def output_path(run: int, offset: int, pen: str) -> str:
    """Return the path of the output of a run from an offset on."""
    return f"/runs/{run}/output?offset={offset}" + (f"&pen={quote(pen)}" if pen else "")


def _needs_person(status: RepositoryStatus) -> bool:
    return pages.filter_of(status.state) == pages.ACTION_NEEDED


def _matches(status: RepositoryStatus, query: Query, rejected: Mapping[int, Commit]) -> bool:
    """Return whether a repository matches the state and every word of the query."""
    if query.state and query.state not in (status.state, pages.filter_of(status.state)):
        return False
    if not query.words:
        return True
    run = status.run
    commits = [commit for commit in (status.commit, rejected.get(run.id) if run else None) if commit]
    outcome = (run.outcome or "", run.after or "") if run else ()
    text = " ".join((status.repository, *outcome, *(part for commit in commits for part in commit[:3]))).lower()
    return all(word in text for word in query.words.lower().split())
