"""The metrics of the daemon and its repositories.

Rules:

1. `METRICS` is the table of all metrics. To add a metric, add a row; if it counts events, also add its counter to
   `Metrics` and increment it where the event happens. docs/monitoring.md repeats the table; a test compares the two.
2. Counters and histograms start at 0 with the daemon. Gauges are computed from the journal and the checkouts at each
   request, so they survive a restart.
3. A repository becomes a label only if it has a checkout here or a pending delivery. Names from strangers never do.
4. While the journal cannot be read, the metrics that need it are left out. The others are still served.
"""

from __future__ import annotations

import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gitops_hook import __version__
from gitops_hook.errors import JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Run
from gitops_hook.observers.prometheus import Counter, Histogram, Sample, format_family
from gitops_hook.outcomes import BY_NAME, outcome_of
from gitops_hook.sync.checkouts import Checkouts, position
from gitops_hook.sync.runner import Task
from gitops_hook.sync.status import RepositoryStatus, repository_statuses

#: Upper bounds of the buckets in seconds, from a push on one machine to the longest delay between two retries.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Snapshot(NamedTuple):
    """The values of one request, which the rows of `METRICS` convert to samples."""

    metrics: Metrics
    now: float
    #: The values of this process by the names of their metrics, without "process_".
    process: Mapping[str, float]
    #: The number of pending deliveries, or None if the journal cannot be read.
    pending: int | None
    #: The repositories that may become labels; none if the journal cannot be read.
    repositories: Sequence[RepositoryStatus]
    #: The values of the fleet by metric (without "gitops_hook_fleet_") and by label; none without a fleet.
    fleet: Mapping[str, Mapping[str, float]] = {}


class Metric(NamedTuple):
    """A row of the table of metrics. A metric without samples is left out."""

    name: str
    kind: str
    help: str
    samples: Callable[[Snapshot], Iterable[Sample]]


class Metrics:
    """Counts runs and deliveries, and serves all metrics. It is a run observer. Threads may share it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        results: Iterable[tuple[str, str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start every counter at 0. `results` are all pairs of a result and a reason that `answered` may receive."""
        #: Returns the values of the fleet, as `Snapshot.fleet` has them. The daemon replaces it in a fleet.
        self.read_fleet: Callable[[], Mapping[str, Mapping[str, float]]] = dict
        self.journal = journal
        self.checkouts = checkouts
        self.deliveries = Counter(("result", "reason"), results)
        self.runs = Counter(("outcome",), [(outcome,) for outcome in BY_NAME])
        self.queued = Histogram(_BOUNDS)
        self.duration = Histogram(_BOUNDS)
        self.live = Histogram(_BOUNDS)
        self._clock = clock
        # Guards _running. The threads of the runs and of the requests take it.
        self._lock = threading.Lock()
        self._running: set[int] = set()

    @property
    def running(self) -> int:
        """Return the number of runs that this daemon is running."""
        with self._lock:
            return len(self._running)

    def answered(self, result: str, reason: str) -> None:
        """Count an answered request to the webhook."""
        self.deliveries.add(result, reason)

    def began(self, claim: Claim, task: Task) -> None:
        """Count a run that starts, and the waiting times of the deliveries that no run claimed before."""
        with self._lock:
            self._running.add(claim.run.id)
        for delivery in claim.served:
            if not delivery.run:
                self.queued.observe(claim.run.started - delivery.received)

    def ended(self, run: Run, claim: Claim, task: Task) -> None:
        """Count a run that ended."""
        with self._lock:
            self._running.discard(run.id)
        assert run.outcome and run.ended
        self.runs.add(run.outcome)
        self.duration.observe(run.ended - run.started)
        if outcome_of(run.outcome).confirms:
            for delivery in claim.served:
                self.live.observe(run.ended - delivery.received)

    def exposition(self) -> str:
        """Return all metrics in the text format of Prometheus (`prometheus.CONTENT_TYPE`)."""
        snapshot = self._snapshot()
        families = ((metric, list(metric.samples(snapshot))) for metric in METRICS)
        return "".join(
            line
            for metric, samples in families
            if samples
            for line in format_family(metric.name, metric.kind, metric.help, samples)
        )

    def _snapshot(self) -> Snapshot:
        pending, repositories = None, list[RepositoryStatus]()
        try:
            pending = sum(count for _, count in self.journal.pending_counts())
            statuses = repository_statuses(self.journal, self.checkouts)
            repositories = [status for status in statuses if status.path or status.pending]
        except (JournalError, OSError):
            pending = None
        return Snapshot(self, self._clock(), _read_process(), pending, repositories, self.read_fleet())


def _build_info(snapshot: Snapshot) -> Iterator[Sample]:
    yield Sample(1, {"version": __version__, "python": platform.python_version()})


def _last_success(snapshot: Snapshot) -> Iterator[Sample]:
    for status in snapshot.repositories:
        if status.confirmed is not None:
            yield Sample(status.confirmed, {"repository": status.repository})


def _unconfirmed(snapshot: Snapshot) -> Iterator[Sample]:
    for confirmed, labels, _ in _last_success(snapshot):
        yield Sample(max(0.0, snapshot.now - confirmed), labels)


def _out_of_sync(snapshot: Snapshot) -> Iterator[Sample]:
    for status in snapshot.repositories:
        checkout = snapshot.metrics.checkouts.find(status.repository)
        found = position(checkout) if checkout else None
        if found and found.upstream:
            yield Sample(found.deployed != found.upstream, {"repository": status.repository})


def _last_outcome(snapshot: Snapshot) -> Iterator[Sample]:
    for status in snapshot.repositories:
        if status.last_outcome:
            yield Sample(1, {"repository": status.repository, "outcome": status.last_outcome})


def _fleet(name: str, label: str = "") -> Callable[[Snapshot], Iterable[Sample]]:
    """Return the function that selects a metric of the fleet, with a value for each value of the label."""
    return lambda snapshot: [
        Sample(value, {label: key} if label else {}) for key, value in snapshot.fleet.get(name, {}).items()
    ]


def _process(name: str) -> Callable[[Snapshot], Iterable[Sample]]:
    """Return the function that selects a value of the process, if it could be read."""
    return lambda snapshot: [Sample(snapshot.process[name])] if name in snapshot.process else []


#: All metrics in the order of the page. The names of the process metrics are those of the official client libraries.
METRICS = (
    Metric("gitops_hook_build_info", "gauge", "The version of gitops-hook and of Python; always 1.", _build_info),
    Metric(
        "gitops_hook_deliveries_total",
        "counter",
        "Requests to the webhook, by result and reason.",
        lambda snapshot: snapshot.metrics.deliveries.samples(),
    ),
    Metric(
        "gitops_hook_runs_total",
        "counter",
        "Runs that ended in this daemon, by outcome.",
        lambda snapshot: snapshot.metrics.runs.samples(),
    ),
    Metric(
        "gitops_hook_runs_in_hand",
        "gauge",
        "Runs that are running in this daemon.",
        lambda snapshot: [Sample(snapshot.metrics.running)],
    ),
    Metric(
        "gitops_hook_delivery_queued_seconds",
        "histogram",
        "Time from the acceptance of a delivery to the start of the first run that claims it.",
        lambda snapshot: snapshot.metrics.queued.samples(),
    ),
    Metric(
        "gitops_hook_run_duration_seconds",
        "histogram",
        "Time from the start of a run to its end.",
        lambda snapshot: snapshot.metrics.duration.samples(),
    ),
    Metric(
        "gitops_hook_push_to_live_seconds",
        "histogram",
        "Time from the acceptance of a delivery to the end of the run that brought the checkout to upstream.",
        lambda snapshot: snapshot.metrics.live.samples(),
    ),
    Metric(
        "gitops_hook_journal_writable",
        "gauge",
        "1 if the last write to the journal succeeded, else 0.",
        lambda snapshot: [Sample(not snapshot.metrics.journal.fault)],
    ),
    Metric(
        "gitops_hook_deliveries_owed",
        "gauge",
        "Pending deliveries: accepted, and not settled by a run yet.",
        lambda snapshot: [] if snapshot.pending is None else [Sample(snapshot.pending)],
    ),
    Metric(
        "gitops_hook_repository_last_success_timestamp_seconds",
        "gauge",
        "When a run last confirmed that the checkout is at upstream, in seconds since the epoch.",
        _last_success,
    ),
    Metric(
        "gitops_hook_repository_unconfirmed_seconds",
        "gauge",
        "Time since a run last confirmed that the checkout is at upstream.",
        _unconfirmed,
    ),
    Metric(
        "gitops_hook_repository_out_of_sync",
        "gauge",
        "1 if the deployed commit differs from upstream as last fetched, else 0.",
        _out_of_sync,
    ),
    Metric(
        "gitops_hook_repository_last_outcome",
        "gauge",
        "The outcome of the last run that ended; always 1.",
        _last_outcome,
    ),
    Metric("gitops_hook_fleet_connected", "gauge", "1 while this host follows etcd, else 0.", _fleet("connected")),
    Metric("gitops_hook_fleet_outbox", "gauge", "Accepted pushes that etcd does not have yet.", _fleet("outbox")),
    Metric("gitops_hook_fleet_hosts", "gauge", "Live hosts, as this host sees them.", _fleet("hosts")),
    Metric("gitops_hook_fleet_rollouts", "gauge", "Checkouts with a plan.", _fleet("rollouts")),
    Metric("gitops_hook_fleet_halted", "gauge", "Roll-outs that are halted.", _fleet("halted")),
    Metric(
        "gitops_hook_fleet_role",
        "gauge",
        "1 for each role in which this host reports for the fleet; only hosts that can have one.",
        _fleet("role", "role"),
    ),
    Metric(
        "gitops_hook_fleet_checkouts",
        "gauge",
        "Checkouts of the fleet by the worst state among their live hosts; only from hosts with a role.",
        _fleet("checkouts", "state"),
    ),
    Metric("process_cpu_seconds_total", "counter", "User and system CPU time.", _process("cpu_seconds_total")),
    Metric(
        "process_start_time_seconds",
        "gauge",
        "Start of the process, in seconds since the epoch.",
        _process("start_time_seconds"),
    ),
    Metric("process_threads", "gauge", "Threads.", _process("threads")),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory.", _process("virtual_memory_bytes")),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory.", _process("resident_memory_bytes")),
    Metric("process_open_fds", "gauge", "Open file descriptors.", _process("open_fds")),
    Metric("process_max_fds", "gauge", "Maximum number of open file descriptors.", _process("max_fds")),
)


def _read_process() -> dict[str, float]:
    """Return the values of this process (proc(5)), without those that cannot be read."""
    times = os.times()
    values: dict[str, float] = {"cpu_seconds_total": times.user + times.system}
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from field 3, the state
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - without the one that lists them
    except (OSError, StopIteration):
        return values
    values["start_time_seconds"] = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    values["threads"] = int(fields[17])
    values["virtual_memory_bytes"] = int(fields[20])
    values["resident_memory_bytes"] = int(fields[21]) * resource.getpagesize()
    values["open_fds"] = descriptors
    values["max_fds"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return values
