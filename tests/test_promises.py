"""The promises of the daemon under a burst, under kill -9 and after a power failure, with real processes."""

from __future__ import annotations

import random
import sys
from functools import partial

import pytest
from harness import burst, push
from torture.account import Account
from torture.kills import kill_at_random_moments
from torture.power import cut_the_power


def test_a_burst_shares_runs_that_never_overlap(tmp_path, start_daemon, script):
    # A folder can be made once only: it detects two simultaneous runs of one repository. What is appended in one
    # short write stands whole, so the trace is in the order in which runs began and ended.
    traced = script(
        'mkdir "$GITOPS_ROOT/$GITOPS_REPOSITORY/running" || echo overlap >> "$GITOPS_ROOT/trace"\n'
        'echo "begin" >> "$GITOPS_ROOT/trace"\n'
        'until [ -e "$GITOPS_ROOT/go" ]; do sleep 0.02; done; sleep 0.1; echo "end" >> "$GITOPS_ROOT/trace"\n'
        'echo "$GITOPS_AFTER" > "$GITOPS_ROOT/$GITOPS_REPOSITORY/live"\n'
        'rmdir "$GITOPS_ROOT/$GITOPS_REPOSITORY/running"'
    )
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=traced, GITOPS_MAX_SYNCS="3")
    repositories = [f"acme/site{number}" for number in range(5)]
    for repository in repositories:
        (daemon.root / repository / ".git").mkdir(parents=True)

    pushes = [push(repositories[number % 5], f"{number + 1:040x}") for number in range(500)]
    assert burst(daemon.port, pushes) == {202: 500}
    (daemon.root / "go").touch()  # the first runs last until every push has been accepted
    assert daemon.stop() == 0  # current runs end
    daemon.start()
    while daemon.query("SELECT count(*) FROM deliveries WHERE pending") != [(0,)]:
        daemon.wait_for_run()
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


@pytest.mark.parametrize("ordeal", [partial(kill_at_random_moments, rounds=8), partial(cut_the_power, rounds=5)])
def test_nothing_is_lost_at_random_moments(tmp_path, ordeal):
    """Run a few rounds of `make torture`."""
    seed = random.randrange(1 << 32)
    account = Account(sys.stdout)
    ordeal(tmp_path, account, seed=seed)
    assert not [str(line) for line in account.failed if line.tried], f"seed {seed}"
