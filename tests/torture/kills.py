"""kill -9, at random moments: of the daemon, and of what it started."""

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

#: Who is killed, and how such a process is known: by its name, and by its first argument.
_VICTIMS: Mapping[str, Callable[[str, str], bool]] = {
    "the daemon": lambda name, argument: False,
    "the script": lambda name, argument: name == "gitops_sync.sh",
    "git": lambda name, argument: name == "git" or name.startswith("git-"),
    "the deploy": lambda name, argument: name == "bash" and argument == "-c",
}
#: A push is followed by its run within a tenth of a second, where nothing else is to do.
_MOMENTS = 0.15


def kill_at_random_moments(folder: Path, account: Account, rounds: int, seed: int) -> None:
    """So many kills, of each kind of victim in turn, while pushes come; then see whether all was made good."""
    moments = random.Random(seed)
    lines = {victim: account.fault(f"kill -9 of {victim} at a random moment") for victim in _VICTIMS}
    with Host(folder, account, commits=3 * rounds + 2, settings={"GITOPS_MAX_SYNCS": "3"}) as host:
        told: list[tuple[Line, list[str]]] = []
        while len(told) < rounds and host.number < 3 * rounds:
            victim = list(_VICTIMS)[len(told) % len(_VICTIMS)]
            before = len(host.acknowledged)
            if _one_round(host, victim, moments):
                told.append((lines[victim], list(host.acknowledged)[before:]))
        host.settle()
        unserved = set(host.verify_outcomes())
        for line, guids in told:
            line.check(not unserved & set(guids), f"deliveries of such a round were not served; seed {seed}")
        account.print("".join(f"{line}\n" for line in lines.values()).rstrip())
        assert host.daemon.stop() == 0
        assert "internal error" not in host.daemon.log, host.daemon.log
        assert "DAMAGED" not in host.daemon.log, host.daemon.log


def _one_round(host: Host, victim: str, moments: random.Random) -> bool:
    """Push, and kill while it is delivered; returns whether there was something to kill."""
    host.push(host.number + 1)
    with ThreadPoolExecutor(4) as forge:
        for repository in host.repositories * 2:
            forge.submit(host.deliver, repository)
        time.sleep(moments.uniform(0, _MOMENTS))  # not a wait for anything: the moment of the kill is what is tried
        if victim != "the daemon":
            return _kill_one(host.daemon.process.pid, _VICTIMS[victim], moments)
        host.daemon.kill()
    host.daemon.start()  # while what the dead one started may still be on its way
    return True


def _kill_one(daemon: int, is_victim: Callable[[str, str], bool], moments: random.Random) -> bool:
    """Kill one such process of the daemon's, as soon as there is one; False if there is none for a while."""
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
                pass  # it has ended meanwhile
    return False
