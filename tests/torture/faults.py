"""Temporary failures of disks, journals and resource limits; no accepted delivery is lost."""

from __future__ import annotations

import os
import random
import resource
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from disks import fill, small_disk
from harness import SOURCE, until

from torture.account import Account, Line
from torture.host import DEPLOY, Host

#: An unused user ID: RLIMIT_NPROC does not apply to root.
NOBODY = 54321
_USER = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@contextmanager
def _line(account: Account, name: str) -> Iterator[Line]:
    """Add a line to the table and print it at the end of the block."""
    line = account.fault(name)
    yield line
    account.print(line)


def disks(folder: Path, account: Account, rounds: int, seed: int) -> None:
    """Fill the disks of the state directory and of the root, make the root read-only, then undo that."""
    moments = random.Random(seed)
    (folder / "state disk").mkdir()
    state = folder / "state disk/state"
    with small_disk(state, "16m"), Host(folder / "state disk", account) as host:
        with _line(account, "disk full in the state folder during runs") as line:
            for _ in range(rounds):
                line.check(*_refuses_and_recovers(host, lambda: fill(state), moments))
        host.verify_outcomes()
    (folder / "root disk").mkdir()
    with small_disk(folder / "root disk/root", "16m") as root, Host(folder / "root disk", account) as host:
        with _line(account, "disk full in the root, before and in the middle of a run") as line:
            for _ in range(rounds):
                ballast = _at_some_moment(host, lambda: fill(root), moments)
                until(host.has_ended, "runs do not end", 60)
                ballast.unlink()
                line.check(host.recovers(), f"not every checkout reached the next push: {host.folder}")
        with _line(account, "the root read-only") as line:
            for _ in range(rounds):
                until(host.is_idle, timeout=60)
                subprocess.run(["mount", "-o", "remount,ro", root], check=True)
                host.push(host.number + 1)
                answers = host.deliver_all()
                until(host.is_idle, "denied runs are not settled", 60)
                outcomes = host.daemon.query("SELECT DISTINCT outcome FROM runs ORDER BY id DESC LIMIT 1")
                subprocess.run(["mount", "-o", "remount,rw", root], check=True)
                line.check(answers == {202} and outcomes == [("denied",)] and host.recovers(), f"{answers} {outcomes}")
        host.verify_outcomes()


def _at_some_moment(host: Host, fault: Callable[[], Path], moments: random.Random) -> Path:
    """Push, call `fault` at a random moment of the runs that follow, and return its result."""
    host.push(host.number + 1)
    host.deliver_all()
    time.sleep(moments.uniform(0, 0.2))
    return fault()


def _refuses_and_recovers(host: Host, fault: Callable[[], Path], moments: random.Random) -> tuple[bool, str]:
    """Check that the daemon responds 503 while the journal cannot be written, and then recovers.

    This does not check /healthz: its small write may still fit on the last page, where a delivery does not.
    """
    ballast = _at_some_moment(host, fault, moments)
    answers: list[int] = []
    while answers.count(503) < 3 and len(answers) < 300:  # the journal may still have room for some
        answers.append(host.deliver(host.repositories[0]))
    ballast.unlink()
    healed = host.recovers()
    return {*answers} <= {202, 503} and 503 in answers and healed, f"{answers[-5:]}, healed {healed}"


def journals(folder: Path, account: Account, rounds: int) -> None:
    """Lock, damage and replace the journal, and delete the logs of runs."""
    with Host(folder, account) as host:
        journal = host.state / "journal.db"
        with _line(account, "the journal locked by another process for six seconds") as line:
            for _ in range(max(1, rounds // 4)):
                with closing(sqlite3.connect(journal, isolation_level=None)) as neighbor:
                    neighbor.execute("BEGIN IMMEDIATE")
                    answer = host.deliver(host.repositories[0])
                    time.sleep(1)  # the lock outlasts the daemon's busy timeout
                line.check(answer == 503 and host.recovers(), f"the answer was {answer}")
        with _line(account, "logs of runs deleted during runs") as line:
            for _ in range(rounds):
                host.push(host.number + 1)
                answers = host.deliver_all()
                for log in (host.state / "runs").iterdir():
                    log.unlink(missing_ok=True)
                line.check(answers == {202} and host.recovers(), f"answers {answers}")
        host.verify_outcomes()
        with _line(account, "a journal from a newer version: refused and not modified") as line:
            line.check(*_refuses_a_newer_one(host, journal))
        for name, damage in _DAMAGE.items():
            with _line(account, f"the journal {name}, then a start: every checkout is synced") as line:
                for _ in range(rounds):
                    line.check(*_survives_damage(host, lambda damage=damage: damage(journal)))
        with _line(account, "the journal overwritten with noise while it is open") as line:
            for _ in range(rounds):
                _overwrite(journal)
                _empty(Path(f"{journal}-wal"))
                host.deliver_all()  # the next read or write detects the damage
                line.check(host.recovers(), "it did not recover")
                host.acknowledged.clear()


def _refuses_a_newer_one(host: Host, journal: Path) -> tuple[bool, str]:
    host.daemon.stop()
    with closing(sqlite3.connect(journal, isolation_level=None)) as later:
        ((version,),) = later.execute("PRAGMA user_version").fetchall()
        later.execute("PRAGMA user_version = 99")
    before = journal.read_bytes()
    with suppress(AssertionError):
        host.daemon.start()
    status = host.daemon.wait()
    untouched = journal.read_bytes() == before
    with closing(sqlite3.connect(journal, isolation_level=None)) as later:
        later.execute(f"PRAGMA user_version = {version}")
    host.daemon.start()
    return (
        status == 69 and untouched and host.recovers(),
        f"exit {status}, untouched {untouched}: {host.daemon.lines[-3:]}",
    )


def _survives_damage(host: Host, damage: Callable[[], None]) -> tuple[bool, str]:
    """Accept a push, kill the daemon, damage the journal: the sweep at the next start must deploy the push."""
    host.push(host.number + 1)
    host.deliver_all()
    host.daemon.kill()
    damage()
    host.daemon.start()
    try:
        until(host.is_at_the_last_push, timeout=60)
    except AssertionError:
        return False, f"checkouts do not reach the accepted push: {host.folder}"
    kept = list(host.state.glob("journal.db.damaged-*"))
    if kept:
        host.acknowledged.clear()  # their rows are in the damaged journal, which the daemon renamed
    else:  # the write-ahead log repaired it
        until(host.is_idle, timeout=60)
        host.verify_outcomes()
    return True, ""


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _overwrite(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


_DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "emptied": _empty,
    "overwritten with noise": _overwrite,
    "deleted": Path.unlink,
}


def limits(folder: Path, account: Account, rounds: int) -> None:
    """Exhaust file descriptors, memory and processes for a while."""
    (folder / "usual").mkdir()
    with Host(
        folder / "usual", account, deploy=f'[[ ! -e "$GITOPS_ROOT/hungry" ]] || {_HUNGRY} || exit\n{DEPLOY}'
    ) as host:
        with _line(account, "out of descriptors (RLIMIT_NOFILE)") as line:
            for _ in range(rounds):
                line.check(*_without_descriptors(host))
        with _line(account, "a deploy that reaches its memory limit (RLIMIT_AS)") as line:
            for _ in range(rounds):
                (host.root / "hungry").touch()
                host.push(host.number + 1)
                answers = host.deliver_all()
                until(host.is_idle, timeout=60)
                newest = "SELECT outcome FROM runs WHERE id IN (SELECT max(run) FROM deliveries GROUP BY repository)"
                outcomes = {outcome for (outcome,) in host.daemon.query(newest)}
                (host.root / "hungry").unlink()
                line.check(
                    answers == {202} and outcomes == {"deploy-failed"} and host.recovers(), f"{answers} {outcomes}"
                )
        host.verify_outcomes()
    (folder / "nobody").mkdir()
    with _line(account, "out of processes (RLIMIT_NPROC)") as line:
        line.skipped = "" if os.geteuid() == 0 else "this requires root, to switch to another user"
        if not line.skipped:
            _without_processes(folder / "nobody", account, line, rounds)


_HUNGRY = "(ulimit -v 500000; python3 -c 'bytearray(1 << 30)')"


def _without_descriptors(host: Host) -> tuple[bool, str]:
    daemon = host.daemon.process.pid
    usual = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon, resource.RLIMIT_NOFILE, (24, usual[1]))
    host.push(host.number + 1)
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", host.daemon.port)))
        answers = {host.deliver(repository, patience=5) for repository in host.repositories * 2}
    resource.prlimit(daemon, resource.RLIMIT_NOFILE, usual)
    return answers <= {0, 202, 503} and host.recovers(), f"answers {answers}"


def python_for_nobody() -> str | None:
    """Return a Python that an unused user can run, or None."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([*_USER, python, "-c", "import sqlite3"], cwd=SOURCE, capture_output=True).returncode == 0:
            return python
    return None


def _without_processes(folder: Path, account: Account, line: Line, rounds: int) -> None:
    python = python_for_nobody()
    if not python:
        line.skipped = "another user cannot run Python on this machine"
        return
    user = _USER
    with Host(folder, account, owner=NOBODY, launcher=[*user, python]) as host:
        daemon = host.daemon.process.pid

        def allow(processes: str) -> None:
            subprocess.run([*user, "prlimit", f"--pid={daemon}", f"--nproc={processes}:"], check=True)

        for _ in range(rounds):
            allow("1")
            host.push(host.number + 1)
            answers = {host.deliver(repository, patience=5) for repository in host.repositories}
            allow("10000")
            line.check(answers <= {0, 202, 503} and host.recovers(), f"answers {answers}")
        host.verify_outcomes()
