"""What the daemon promises under a burst and under kill -9, shown with real processes."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPException
from typing import Any

from harness import burst, processes_of, push
from scratch import Upstream, git

#: How often the daemon is killed. Continuous integration asks for more than a person who waits for his tests.
ROUNDS = int(os.environ.get("KILL_ROUNDS", "8"))


def test_a_burst_is_answered_collapsed_and_never_run_twice_at_a_time(tmp_path, start_daemon, script):
    # A folder can be made once only: it tells when two runs of one repository are on the way. What is appended in one
    # short write stands whole, so the trace is in the order in which runs began and ended.
    traced = script(
        'mkdir "$GITOPS_ROOT/$GITOPS_REPOSITORY/running" || echo overlap >> "$GITOPS_ROOT/trace"\n'
        'echo "begin" >> "$GITOPS_ROOT/trace"; sleep 0.3; echo "end" >> "$GITOPS_ROOT/trace"\n'
        'echo "$GITOPS_AFTER" > "$GITOPS_ROOT/$GITOPS_REPOSITORY/live"\n'
        'rmdir "$GITOPS_ROOT/$GITOPS_REPOSITORY/running"'
    )
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=traced, GITOPS_MAX_SYNCS="3")
    repositories = [f"acme/site{number}" for number in range(5)]
    for repository in repositories:
        (daemon.root / repository / ".git").mkdir(parents=True)

    pushes = [push(repositories[number % 5], f"{number + 1:040x}") for number in range(500)]
    assert burst(daemon.port, pushes) == {202: 500}
    assert daemon.stop() == 0  # runs in hand end
    daemon.start()
    while daemon.query("SELECT count(*) FROM deliveries WHERE owed") != [(0,)]:
        daemon.wait_for(r"run \w+ ")
    assert daemon.stop() == 0

    trace = (daemon.root / "trace").read_text().split()
    assert "overlap" not in trace
    at_once = [trace[: index + 1].count("begin") - trace[: index + 1].count("end") for index in range(len(trace))]
    assert max(at_once) == 3
    served = daemon.query("SELECT repository, count(DISTINCT run) FROM deliveries GROUP BY repository")
    assert sorted(name for name, runs in served) == repositories
    assert all(runs <= 5 for name, runs in served), served
    assert daemon.query(
        "SELECT count(*), sum(runs.outcome = 'updated' AND runs.started >= received AND runs.repository ="
        " deliveries.repository) FROM deliveries JOIN runs ON runs.id = run"
    ) == [(500, 500)]
    for repository in repositories:
        newest = daemon.query("SELECT after FROM deliveries WHERE repository = ? ORDER BY id DESC LIMIT 1", repository)
        assert (daemon.root / repository / "live").read_text() == newest[0][0] + "\n"


def test_whatever_was_answered_202_is_served_however_often_the_daemon_is_killed(tmp_path, start_daemon):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown by pytest when this fails
    moments = random.Random(seed)
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root, deploy='echo "$GITOPS_DELIVERY" >> ../deployed; sleep 0.02')
    acknowledged: list[str] = []

    def deliver(guid: str, after: str) -> None:
        try:
            status, _ = daemon.deliver(push("acme/site", after), guid=guid)
        except (OSError, HTTPException, ValueError):
            return  # killed before it could answer
        assert status == 202
        acknowledged.append(guid)

    for number in range(ROUNDS):
        after = upstream.commit({"number": str(number)})
        with ThreadPoolExecutor(4) as forge:
            for part in range(4):
                forge.submit(deliver, f"{number}-{part}", after)
            time.sleep(moments.uniform(0, 0.15))  # not a wait for anything: the moment of the kill is the test
            daemon.kill()
        deadline = time.monotonic() + 30
        while processes_of(daemon.root):
            assert time.monotonic() < deadline, "a run outlived its daemon"
        daemon.start()

    while daemon.query("SELECT count(*) FROM deliveries WHERE owed") != [(0,)]:
        daemon.wait_for(r"run \w+ ")
    assert daemon.stop() == 0
    assert len(acknowledged) >= ROUNDS / 2, "hardly anything was answered before the kill: the test shows nothing"
    served = daemon.query(
        "SELECT guid FROM deliveries JOIN runs ON runs.id = run"
        " WHERE outcome IN ('updated', 'unchanged') AND started >= received"
    )
    assert set(acknowledged) <= {guid for (guid,) in served}
    assert daemon.query("SELECT count(*) FROM runs WHERE outcome IS NULL") == [(0,)]
    assert git("rev-parse", "HEAD", cwd=checkout) == git("rev-parse", "refs/gitops/deployed", cwd=checkout) == after
    assert not processes_of(daemon.root)
    assert not re.search("fault of our own|DAMAGED", daemon.log)
