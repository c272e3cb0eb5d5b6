"""A deploy that uses up the processes, and a daemon that can start no more: real limits, as a user that is not root."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from harness import Daemon, burst, push, until

#: The limit counts all processes of a user, so no other process has this user id. root would be exempt.
USER = 50_000 + os.getpid() % 10_000
#: Becomes that user, who may read and write every directory.
AS_USER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]
#: Starts processes until the system refuses, reports that, and continues.
FORKS = """\
import os, sys, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError:
        open(sys.argv[1], "w").close()
        time.sleep(0.05)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a daemon as another user")


@pytest.fixture
def limited() -> Iterator[Daemon]:
    """A daemon with a limit on its processes; a run of acme/bomb uses them up."""
    with TemporaryDirectory() as place:  # the directories of pytest are closed to the user
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "forks.py").write_text(FORKS)
        script = folder / "sync.sh"
        script.write_text(f"#!/bin/bash\n[[ $1 != *bomb ]] || exec {sys.executable} {place}/forks.py {place}/refused\n")
        script.chmod(0o755)
        with Daemon(
            folder, launcher=[*AS_USER, "prlimit", "--nproc=400:400", sys.executable], GITOPS_SYNC_SCRIPT=str(script)
        ) as daemon:
            for name in ("bomb", "site"):
                (daemon.root / f"acme/{name}/.git").mkdir(parents=True)
            yield daemon


def test_a_deploy_that_uses_up_the_processes_stops_no_webhook(limited: Daemon) -> None:
    limited.deliver(push("acme/bomb"))
    until((limited.root.parent / "refused").exists, timeout=60)
    # Each connection needs a thread, and there are more than the reserve has.
    assert burst(limited.port, [push("acme/site")] * 60, 60) == {202: 60}
    # The daemon still starts runs. Those that start many processes share the limit of deploys and may fail.
    limited.wait_for("run updated repository=acme/site ")
    assert limited.query("SELECT outcome FROM runs WHERE repository = 'acme/bomb'") == [(None,)]


def test_the_threads_for_webhooks_exist_when_the_daemon_is_ready(limited: Daemon) -> None:
    subprocess.run([*AS_USER, "prlimit", f"--pid={limited.process.pid}", "--nproc=1:1"], check=True)
    with ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", limited.port), 30))
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
