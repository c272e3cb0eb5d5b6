"""The daemon as the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, push, until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


def children(process: int) -> dict[int, str]:
    """The children of a process, with their states."""
    found = {}
    for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        found[int(pid)] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return found


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="no permission to create a PID namespace",
)
def test_the_first_process_reaps_orphans_and_ends_like_the_daemon(
    start_daemon: Callable[..., Daemon], script: Callable[..., str], tmp_path: Path
):
    orphan = script('setsid --fork sh -c "sleep 0.2; echo >>$GITOPS_ROOT/../ended"')
    daemon = start_daemon(launcher=[*UNSHARE, sys.executable], GITOPS_SYNC_SCRIPT=orphan)
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    (first,) = children(daemon.process.pid)
    for number in range(3):
        daemon.deliver(push("acme/site"))
        daemon.wait_for_run()
        until(lambda number=number: (tmp_path / "ended").exists() and len((tmp_path / "ended").read_text()) > number)
    until(lambda: len(children(first)) == 1)
    assert "Z" not in children(first).values()
    os.kill(first, signal.SIGTERM)
    assert daemon.wait() == 0
    assert " stopped exit=0" in daemon.log
