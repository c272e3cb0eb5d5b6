"""Commands beside the daemon: killed at random moments, during an upgrade from version 0.1, and sweeps beside pushes.

Rules:

1. After each round the host must become idle: no delivery is pending, and no run is running.
2. Every deploy of a commit that begins is noted, so a second one of the same commit is a double deploy. No round kills
   a run, and none repeats a deploy on purpose.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from harness import SECRET, SOURCE, until
from scratch import GIT_ENV

from gitops_hook.journal.schema import STEPS
from torture.account import Account, Line
from torture.host import Host

#: The maximum delay of a kill, in seconds: a command starts, sends its request and follows the run within this time.
_MOMENTS = 1.0
#: The commands to kill; "{}" stands for a repository.
_COMMANDS = (("sync", "{}"), ("sync", "--all"), ("resume", "{}"), ("add", "{}"), ("config", "{}", "timeout", "600"))
#: The number of steps that lead to the journal of version 0.1.
_VERSION_0_1 = 4
#: Seconds in which a host must become idle.
_IDLE = 120


def _command(host: Host, *arguments: str) -> subprocess.Popen[str]:
    environ = {
        **GIT_ENV,
        "PYTHONPATH": str(SOURCE),
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "GITOPS_ROOT": str(host.root),
        "GITOPS_STATE": str(host.state),
        "GITOPS_DASHBOARD_LISTEN": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "gitops_hook", *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


class _Round:
    """One attempt: every promise must hold when the host is idle again."""

    def __init__(self, host: Host, line: Line, name: str, first: int | None = None) -> None:
        """`first` is the position of the first acknowledged delivery of the round, if it is not the next one."""
        self._host = host
        self._line = line
        self._name = name
        self._first = len(host.acknowledged) if first is None else first
        self._doubles = _double_deploys(host)

    def check(self, problem: str = "") -> None:
        """Count the attempt; `problem` is one that was seen already."""
        try:
            until(self._host.is_idle, "deliveries stay pending, or a run stays running", _IDLE)
        except AssertionError as error:
            problem = problem or str(error)
        doubles = _double_deploys(self._host) - self._doubles
        if doubles:
            problem = problem or f"deployed twice: {dict(doubles)}"
        known = {guid for (guid,) in self._host.daemon.query("SELECT guid FROM deliveries WHERE NOT pending")}
        lost = set(list(self._host.acknowledged)[self._first :]) - known
        if lost:
            problem = problem or f"lost: {lost}"
        self._line.check(not problem, f"{self._name}: {problem}, in {self._host.folder}")


def _double_deploys(host: Host) -> Counter[tuple[str, str]]:
    """Return the deploys of a commit beyond the first, by repository and commit."""
    begun = Counter(
        (repository, commit)
        for repository in host.repositories
        for event, commit in host.noted(repository)
        if event == "begin"
    )
    return Counter({key: count - 1 for key, count in begun.items() if count > 1})


def kill_commands(folder: Path, account: Account, rounds: int, seed: int) -> None:
    """Kill a command at a random moment, during deliveries of the same repositories."""
    moments = random.Random(seed)
    line = account.fault("kill -9 of a command at a random moment, beside the daemon")
    with Host(folder, account, 2, commits=rounds + 3) as host:
        for number in range(rounds):
            host.push(host.number + 1)
            arguments = [word.format(moments.choice(host.repositories)) for word in _COMMANDS[number % len(_COMMANDS)]]
            attempt = _Round(host, line, f"{' '.join(arguments)}, seed {seed}")
            process = _command(host, *arguments)
            with ThreadPoolExecutor(2) as forge:
                for repository in host.repositories:
                    forge.submit(host.deliver, repository)
                time.sleep(moments.uniform(0, _MOMENTS))  # a random moment, not a wait for an event
                process.send_signal(signal.SIGKILL)
            process.communicate()
            attempt.check()
        host.settle()
        host.verify_outcomes()
        assert "internal error" not in host.daemon.log, host.daemon.log
    account.print(line)


def sweep_beside_pushes(folder: Path, account: Account, rounds: int) -> None:
    """Sweep every repository, by command and by SIGHUP, while each of them is pushed."""
    line = account.fault("a sweep by command and one by SIGHUP, beside pushes")
    with Host(folder, account, 4, commits=rounds + 3) as host:
        for _ in range(rounds):
            host.push(host.number + 1)
            attempt = _Round(host, line, "sweep")
            process = _command(host, "sync", "--all")
            host.daemon.process.send_signal(signal.SIGHUP)
            with ThreadPoolExecutor(4) as forge:
                statuses = set(forge.map(host.deliver, host.repositories))
            error = process.communicate()[1]
            problem = f"exit {process.returncode}: {error}" if process.returncode else ""
            attempt.check(problem or ("" if statuses == {202} else f"answers {statuses}"))
        host.settle()
        host.verify_outcomes()
    account.print(line)


def upgrade(folder: Path, account: Account, rounds: int) -> None:
    """Start the daemon on a journal of version 0.1, while the forge delivers and a command asks for a run."""
    line = account.fault("an upgrade from the journal of version 0.1, under traffic")
    with Host(folder, account, 3, commits=2 * rounds + 3) as host:
        for _ in range(rounds):
            assert host.daemon.stop() == 0
            host.acknowledged.clear()  # the journal that has them is replaced
            host.push(host.number + 1)
            _write_old_journal(host)
            attempt = _Round(host, line, "upgrade", first=0)
            process = _command(host, "sync", host.repositories[0])
            with ThreadPoolExecutor(3) as forge:
                host.daemon.start()
                statuses = set(forge.map(host.deliver, host.repositories))
            error = process.communicate()[1]
            ((version,),) = host.daemon.query("PRAGMA user_version")
            problem = f"exit {process.returncode}: {error}" if process.returncode else ""
            problem = problem or ("" if statuses == {202} else f"answers {statuses}")
            attempt.check(problem or ("" if version == len(STEPS) else f"the journal has version {version}"))
            host.settle()
            host.verify_outcomes()
    account.print(line)


def _write_old_journal(host: Host) -> None:
    """Replace the journal by one of version 0.1, with a pending push of each repository and a run that was killed."""
    for file in host.state.glob("journal.db*"):
        file.unlink()
    with closing(sqlite3.connect(host.state / "journal.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for step in STEPS[:_VERSION_0_1]:
            connection.executescript(step)
        sql = "INSERT INTO runs (repository, trigger, started) VALUES (?, 'push', ?)"
        run = connection.execute(sql, (host.repositories[0], time.time())).lastrowid
        for repository in host.repositories:
            guid = str(uuid.uuid4())
            connection.execute(
                "INSERT INTO deliveries (guid, event, received, repository, ref, before, after, pusher, run)"
                " VALUES (?, 'push', ?, ?, 'refs/heads/main', '', ?, 'ada', ?)",
                (guid, time.time(), repository, host.commits[host.number], run if repository.endswith("0") else None),
            )
            host.acknowledged[guid] = (repository, host.number)
        connection.execute(f"PRAGMA user_version = {_VERSION_0_1}")
        connection.commit()
    (host.state / "journal.db").chmod(0o600)
