"""kill -9 of the daemon and of its child processes at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torture.account import Account, Line
from torture.host import Host, children_of

#: The kinds of victim, each with a function that recognizes the process by its name and its first argument.
_VICTIMS: Mapping[str, Callable[[str, str], bool]] = {
    "the daemon": lambda name, argument: False,
    "the script": lambda name, argument: name == "gitops_sync.sh",
    "git": lambda name, argument: name == "git" or name.startswith("git-"),
    "the deploy": lambda name, argument: name == "bash" and argument == "-c",
}
#: The maximum delay of a kill, in seconds. On an idle host a run starts and ends within a tenth of a second.
_MOMENTS = 0.15


def kill_at_random_moments(folder: Path, account: Account, rounds: int, seed: int) -> None:
    """Kill each kind of victim in turn during deliveries, then check that every accepted delivery was served."""
    moments = random.Random(seed)
    lines = {victim: account.fault(f"kill -9 of {victim} at a random moment") for victim in _VICTIMS}
    with Host(folder, account, commits=3 * rounds + 2, settings={"GITOPS_MAX_SYNCS": "3"}) as host:
        killed: list[tuple[Line, list[str]]] = []
        while len(killed) < rounds and host.number < 3 * rounds:
            victim = list(_VICTIMS)[len(killed) % len(_VICTIMS)]
            before = len(host.acknowledged)
            if _one_round(host, victim, moments):
                killed.append((lines[victim], list(host.acknowledged)[before:]))
        host.settle()
        unserved = set(host.verify_outcomes())
        for line, guids in killed:
            line.check(not unserved & set(guids), f"deliveries of a round were not served; seed {seed}")
        account.print("".join(f"{line}\n" for line in lines.values()).rstrip())
        assert host.daemon.stop() == 0
        assert "internal error" not in host.daemon.log, host.daemon.log
        assert "DAMAGED" not in host.daemon.log, host.daemon.log


def _one_round(host: Host, victim: str, moments: random.Random) -> bool:
    """Push, and kill during the deliveries; return True if there was a process to kill."""
    host.push(host.number + 1)
    with ThreadPoolExecutor(4) as forge:
        for repository in host.repositories * 2:
            forge.submit(host.deliver, repository)
        time.sleep(moments.uniform(0, _MOMENTS))  # a random moment, not a wait for an event
        if victim != "the daemon":
            return _kill_one(host.daemon.process.pid, _VICTIMS[victim], moments)
        host.daemon.kill()
    host.daemon.start()  # its child processes may still run
    return True


def _kill_one(daemon: int, is_victim: Callable[[str, str], bool], moments: random.Random) -> bool:
    """Kill a matching descendant of the daemon; return False if none appears within half a second."""
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        processes = children_of(daemon)
        moments.shuffle(processes)
        for process in processes:
            try:
                name = Path(f"/proc/{process}/comm").read_text().strip()
                arguments = Path(f"/proc/{process}/cmdline").read_text("utf-8", "replace").split("\0")
                if is_victim(name, arguments[1] if len(arguments) > 1 else ""):
                    os.kill(process, signal.SIGKILL)
                    return True
            except OSError:
                pass  # the process has ended
    return False
