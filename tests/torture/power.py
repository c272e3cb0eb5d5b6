"""Power cuts, failing writes and clock changes; the daemon runs with faulty.c loaded before the C library."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import threading
import unittest
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from torture.account import Account
from torture.host import Host

_PAGE = 4096


class Faulty:
    """The settings that load faulty.c into a daemon, and the control of its faults."""

    def __init__(self, folder: Path) -> None:
        library = folder / "faulty.so"
        source = Path(__file__).with_name("faulty.c")
        if not shutil.which("gcc"):
            raise unittest.SkipTest("gcc, which compiles faulty.c, is not installed")
        subprocess.run(
            ["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl", "-pthread"],
            check=True,
        )
        self.synced = folder / "synced"
        self.synced.mkdir()
        control = folder / "fault"
        control.write_bytes(struct.pack("iiii", 0, 0, 0, 0))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)
        self.settings = {
            "LD_PRELOAD": str(library),
            "TORTURE_FAULT": str(control),
            "TORTURE_FOLDER": f"{folder}/state/",
            "TORTURE_SYNCED": str(self.synced),
        }

    def set(self, *, writes: int = 0, syncs: int = 0, error: int = 0, hours: int = 0) -> None:
        """Let `writes` and `syncs` of a thousand calls fail with `error`, and advance the clock by `hours`."""
        self._control[:] = struct.pack("iiii", writes, syncs, error, hours)


@contextmanager
def _load(host: Host) -> Iterator[None]:
    """Deliver continuously inside the block, with one thread for each repository."""
    over = threading.Event()

    def keep_on(repository: str) -> None:
        while not over.is_set():
            host.deliver(repository)

    threads = [threading.Thread(target=keep_on, args=(repository,)) for repository in host.repositories]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def cut_the_power(folder: Path, account: Account, rounds: int, seed: int) -> None:
    """Copy the state directory under load: once unchanged, once with a random subset of the unsynced pages."""
    moments = random.Random(seed)
    whole = account.fault("power cut: the state folder copied at a random moment")
    torn = account.fault("power cut: any page that was not synced may be missing")
    faulty = Faulty(folder)
    with Host(folder, account, settings=faulty.settings) as host:
        with _load(host):
            for number in range(rounds):
                threading.Event().wait(moments.uniform(0, 0.1))
                promised = set(host.acknowledged)
                live, synced = folder / f"live {number}", folder / f"synced {number}"
                host.daemon.process.send_signal(signal.SIGSTOP)
                os.waitpid(host.daemon.process.pid, os.WUNTRACED)
                shutil.copytree(
                    host.state, live, ignore=shutil.ignore_patterns("*-shm", "*.log", "*.result", "*.new", "*.sock")
                )
                shutil.copytree(faulty.synced, synced)
                host.daemon.process.send_signal(signal.SIGCONT)
                mixed = folder / f"torn {number}"
                _tear(live, synced, mixed, moments)
                whole.check(*_holds(live, promised))
                torn.check(*_holds(mixed, promised))
                for copy in (live, synced, mixed):
                    if not account.failed:
                        shutil.rmtree(copy)
        host.settle()
        host.verify_outcomes()
    account.print(whole)
    account.print(torn)


def _tear(live: Path, synced: Path, mixed: Path, moments: random.Random) -> None:
    """Simulate a power cut: take each page, and the length, at random from the synced or the last written file."""
    shutil.copytree(live, mixed)
    for file in ("journal.db", "journal.db-wal"):
        new = (live / file).read_bytes() if (live / file).exists() else b""
        old = (synced / file).read_bytes() if (synced / file).exists() else b""
        size = moments.choice((len(new), len(old)))
        pages = (moments.choice((new, old))[at : at + _PAGE].ljust(_PAGE, b"\0") for at in range(0, size, _PAGE))
        (mixed / file).write_bytes(b"".join(pages)[:size])


def _holds(state: Path, promised: set[str]) -> tuple[bool, str]:
    """Check that a journal opens without damage and holds every promised delivery."""
    from gitops_hook.journal.writer import Journal

    with closing(Journal(state)) as journal:
        journal.end_unfinished()
    with closing(sqlite3.connect(state / "journal.db")) as connection:
        held = {guid for (guid,) in connection.execute("SELECT guid FROM deliveries")}
    damaged = list(state.glob("*.damaged-*"))
    missing = promised - held
    return not missing and not damaged, f"{state}: {len(missing)} of {len(promised)} are missing, damaged: {damaged}"


def fail_writes(folder: Path, account: Account, rounds: int) -> None:
    """Let writes and syncs in the state directory fail with one error after another, then succeed again."""
    names = {
        "a bad disk (EIO)": errno.EIO,
        "a full disk (ENOSPC)": errno.ENOSPC,
        "a quota (EDQUOT)": errno.EDQUOT,
        "a read-only disk (EROFS)": errno.EROFS,
    }
    faulty = Faulty(folder)
    with Host(folder, account, settings=faulty.settings) as host:
        for name, error in names.items():
            line = account.fault(f"writes and syncs in the state folder fail as on {name}")
            for number in range(rounds):
                share = (50, 300, 1000)[number % 3]
                faulty.set(writes=share, syncs=share, error=error)
                host.push(host.number + 1)
                answers = {*host.deliver_all(), *host.deliver_all(), *host.deliver_all()}
                health = host.daemon.request("GET", "/healthz")[0] if share == 1000 else 503
                faulty.set()
                recovered = host.recovers()
                line.check(
                    answers <= {202, 503} and (share < 1000 or answers == {503}) and health == 503 and recovered,
                    f"answers {answers}, health {health}, recovered {recovered}",
                )
            account.print(line)
        host.verify_outcomes()
        assert "DAMAGED" not in host.daemon.log, host.daemon.log


def move_the_clock(folder: Path, account: Account, rounds: int) -> None:
    """Set the wall clock an hour forward and back while deliveries are pending and runs are running."""
    line = account.fault("the clock set forward and back by an hour")
    faulty = Faulty(folder)
    with Host(folder, account, settings=faulty.settings) as host:
        for number in range(rounds):
            host.push(host.number + 1)
            host.deliver_all()
            faulty.set(hours=(1, 0, -1, 0)[number % 4])
            line.check(host.deliver_all() == {202} and host.recovers(), "deliveries were not accepted or not served")
        faulty.set()
        host.settle()
        host.verify_outcomes(clock_moved=True)
    account.print(line)
