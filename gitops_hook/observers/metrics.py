"""What the daemon measures of itself and of its repositories, for Prometheus.

Rules:

1. What happens is counted as it happens, by a observer of runs and by whoever answers deliveries; these begin at 0 with
   the daemon. What is (who waits, where each repository stands) is looked up when it is asked for, and so survives it.
2. Only a repository that has a checkout here, or that an accepted delivery waits for, becomes a label.
3. While the journal cannot be read, what comes from it is left out; all else is told, for that is when it is needed.

docs/monitoring.md tells what each is good for.
"""

from __future__ import annotations

import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gitops_hook import __version__
from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Run
from gitops_hook.observers.prometheus import Counter, Family, Histogram, Sample, exposition, gauge
from gitops_hook.outcomes import BY_NAME, outcome_of
from gitops_hook.sync.checkouts import Checkouts, position
from gitops_hook.sync.runner import Task
from gitops_hook.sync.status import RepositoryStatus, repository_statuses

#: Outcomes that leave the checkout where upstream is.


#: The ends of the buckets, in seconds: from what a push takes on one machine to the longest wait between two tries.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counts runs (it is their observer) and deliveries, and tells all there is to tell. Threads may share it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        results: Iterable[tuple[str, str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`results` are all that a delivery can come to, and the class of the reason for it."""
        self._journal = journal
        self._checkouts = checkouts
        self._clock = clock
        self._deliveries = Counter(
            "gitops_hook_deliveries_total",
            "CommitStatusReporter at the webhook, by what became of the request and why.",
            ("result", "reason"),
            results,
        )
        self._runs = Counter(
            "gitops_hook_runs_total",
            "Runs that the daemon has ended, by outcome.",
            ("outcome",),
            [(outcome,) for outcome in BY_NAME],
        )
        self._queued = Histogram(
            "gitops_hook_delivery_queued_seconds",
            "From the acceptance of a delivery to the start of the first run that serves it.",
            _BOUNDS,
        )
        self._sync = Histogram("gitops_hook_run_duration_seconds", "From the start of a run to its end.", _BOUNDS)
        self._live = Histogram(
            "gitops_hook_push_to_live_seconds",
            "From the acceptance of a delivery to the end of the run that left the checkout where upstream is.",
            _BOUNDS,
        )
        self._running: set[int] = set()
        self._lock = threading.Lock()  # guards _running, for a step

    # -- what is counted --------------------------------------------------------------------------------------------

    def answered(self, result: str, reason: str) -> None:
        """A request at the webhook has been answered."""
        self._deliveries.add(result, reason)

    def began(self, claim: Claim, task: Task) -> None:
        """A run has begun."""
        with self._lock:
            self._running.add(claim.run.id)
        for delivery in claim.served:
            if not delivery.run:
                self._queued.observe(max(0.0, claim.run.started - delivery.received))

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """A run has ended."""
        with self._lock:
            self._running.discard(run.id)
        assert run.outcome and run.ended
        self._runs.add(run.outcome)
        self._sync.observe(max(0.0, run.ended - run.started))
        if outcome_of(run.outcome).confirms:
            for delivery in claim.served:
                self._live.observe(max(0.0, run.ended - delivery.received))

    # -- what is told -----------------------------------------------------------------------------------------------

    def exposition(self) -> str:
        """All of it, in Prometheus' text format."""
        return "".join(exposition(self.families()))

    def families(self) -> Iterator[Family]:
        """All of it."""
        version = {"version": __version__, "python": platform.python_version()}
        yield gauge("gitops_hook_build_info", "What runs here; the value is always 1.", 1, **version)
        yield self._deliveries.family()
        yield self._runs.family()
        running = len(self._running)
        yield gauge("gitops_hook_runs_in_hand", "Runs that the daemon has in hand now.", running)
        yield self._queued.family()
        yield self._sync.family()
        yield self._live.family()
        writable = not self._journal.fault
        yield gauge("gitops_hook_journal_writable", "Whether the journal took its last write (1) or not (0).", writable)
        try:
            owed = sum(count for _, count in self._journal.pending_counts())
            found = repository_statuses(self._journal, self._checkouts)
        except (JournalError, OSError):
            pass
        else:
            yield gauge("gitops_hook_deliveries_owed", "Accepted deliveries that no run has settled yet.", owed)
            yield from self._repositories([standing for standing in found if standing.path or standing.pending])
        yield from process_families()

    def _repositories(self, known: Sequence[RepositoryStatus]) -> Iterator[Family]:
        """Where each repository stands."""
        now = self._clock()
        confirmed = [(found.repository, found.confirmed) for found in known if found.confirmed is not None]
        yield Family(
            "gitops_hook_repository_last_success_timestamp_seconds",
            "gauge",
            "When a run last left the checkout where upstream was, in seconds since the epoch.",
            [Sample({"repository": name}, when) for name, when in confirmed],
        )
        yield Family(
            "gitops_hook_repository_unconfirmed_seconds",
            "gauge",
            "Seconds since a run has last found or left the checkout where upstream is.",
            [Sample({"repository": name}, max(0.0, now - when)) for name, when in confirmed],
        )
        yield Family(
            "gitops_hook_repository_out_of_sync",
            "gauge",
            "Whether what is deployed differs from upstream as last seen (1) or not (0).",
            list(self._differences(found.repository for found in known)),
        )
        yield Family(
            "gitops_hook_repository_last_outcome",
            "gauge",
            "The outcome of the last run that has ended; the value is always 1.",
            list(_outcomes(known)),
        )

    def _differences(self, repositories: Iterable[str]) -> Iterator[Sample]:
        """Whether deployed and upstream differ, as the checkouts' own refs have it, where upstream is known."""
        for name in repositories:
            checkout = self._checkouts.find(name)
            deployed, upstream = position(checkout) if checkout else (None, None)
            if upstream:
                yield Sample({"repository": name}, deployed != upstream)


def _outcomes(known: Iterable[RepositoryStatus]) -> Iterator[Sample]:
    """How the last run of each ended that has; one that is in hand says nothing yet."""
    for found in known:
        outcome = next((outcome for outcome, _, _ in found.history if outcome), None)
        if outcome:
            yield Sample({"repository": found.repository, "outcome": outcome}, 1)


def process_families() -> Iterator[Family]:
    """What Prometheus' own clients tell of a process, by the same names (proc(5)); nothing of what cannot be read."""
    used = os.times()
    yield Family(
        "process_cpu_seconds_total", "counter", "User and system CPU time.", [Sample({}, used.user + used.system)]
    )
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from field 3 on
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the one that looks
    except (OSError, StopIteration):
        return
    started = int(boot.split()[1]) + int(stat[19]) / os.sysconf("SC_CLK_TCK")
    yield gauge("process_start_time_seconds", "Start of the process, in seconds since the epoch.", started)
    yield gauge("process_threads", "Threads.", int(stat[17]))
    yield gauge("process_virtual_memory_bytes", "Virtual memory.", int(stat[20]))
    yield gauge("process_resident_memory_bytes", "Resident memory.", int(stat[21]) * resource.getpagesize())
    yield gauge("process_open_fds", "Open file descriptors.", descriptors)
    yield gauge("process_max_fds", "Most file descriptors allowed.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
