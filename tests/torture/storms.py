"""High load: many deliveries, many repositories, misbehaving deploys, and all programs that start runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from harness import SECRET, SOURCE, burst, push, until
from scratch import GIT_ENV, git

from torture.account import Account, Line
from torture.honest import Honest
from torture.host import DEPLOY, Host

_SCRIPT = SOURCE / "scripts/gitops_sync.sh"


def _storm(host: Host, line: Line, repositories: list[str], count: int, connections: int) -> None:
    """Send `count` pushes to the repositories in turn, as fast as possible; each must receive a 202."""
    host.push(host.number + 1)
    pushes = [push(repositories[number % len(repositories)], host.commits[host.number]) for number in range(count)]
    guids = [str(uuid.uuid4()) for _ in pushes]
    answers = burst(host.daemon.port, pushes, connections, guids)
    if answers == {202: count}:
        for guid, payload in zip(guids, pushes):
            host.acknowledged[guid] = (payload["repository"]["full_name"], host.number)
    line.tried += count
    line.held += answers[202]
    line.reasons += [] if answers == {202: count} else [f"the answers were {dict(answers)}"]


def deliveries(folder: Path, account: Account, short: bool) -> None:
    """Send many deliveries for some repositories, one for each of many repositories, and many for one repository."""
    count, repositories = (2000, 20) if short else (10_000, 100)
    many = 50 if short else 1000
    with Host(folder, account, many + 1) as host:
        for name, names, pushes, connections in (
            (f"{count:,} deliveries over {repositories} repositories, 64 connections", repositories, count, 64),
            (f"{many:,} repositories pushed at once, 64 connections", many, many, 64),
            ("one repository pushed 1,000 times, 16 connections", 1, 1000, 16),
        ):
            line = account.fault(name)
            with Honest(host, line):
                _storm(host, line, host.repositories[:names], pushes, connections)
                until(host.is_idle_but_for_the_last, "the runs of the burst do not end", 600)
            account.print(line)
        host.settle(600)
        host.verify_outcomes()


#: Misbehaving deploys by name: the command, the expected outcome, and the time limit of the run in seconds.
_MISBEHAVIOUR = {
    "hangs": ("sleep 600", "timed-out", 2),
    "ignores TERM": ("trap '' TERM; sleep 600; sleep 600", "timed-out", 2),
    "stops its whole group, timeout(1) included": ("kill -STOP 0", "timed-out", 2),
    "leaves a process behind": ("setsid sleep 20 8>&- & exit 0", "updated", 60),
    "prints a gigabyte": ("head -c 1G /dev/zero | tr '\\0' x", "updated", 120),
    "is killed": ("kill -KILL $$", "deploy-failed", 60),
}


def misbehaving_deploys(folder: Path, account: Account, rounds: int) -> None:
    """Run all misbehaving deploys at once, beside a repository whose deploy is correct."""
    names = [f"bad{number}" for number in range(len(_MISBEHAVIOUR))]
    with Host(folder, account, [*names, "honest"]) as host:
        lines = {name: account.fault(f"a deploy that {name}") for name in _MISBEHAVIOUR}
        for _ in range(rounds):
            for repository, (command, _, limit) in zip(host.repositories, _MISBEHAVIOUR.values()):
                git("config", "gitops.deploy", f"{DEPLOY}\n{command}", cwd=host.root / repository)
                git("config", "gitops.timeout", limit, cwd=host.root / repository)
            with Honest(host, lines["prints a gigabyte"]):
                host.push(host.number + 1)
                answers = host.deliver_all()
                until(host.is_idle_but_for_the_last, "runs do not end", 120)
            for repository, (name, (_, expected, _)) in zip(host.repositories, _MISBEHAVIOUR.items()):
                newest = "SELECT outcome FROM runs WHERE repository = ? ORDER BY id DESC LIMIT 1"
                ((outcome,),) = host.daemon.query(newest, repository)
                lines[name].check(answers == {202} and outcome == expected, f"{answers}, outcome {outcome}")
            for repository in host.repositories:
                git("config", "gitops.deploy", DEPLOY, cwd=host.root / repository)
            host.settle()
        host.verify_outcomes()
        for line in lines.values():
            account.print(line)


def everyone(folder: Path, account: Account, seconds: float) -> None:
    """Sync the same repositories with the daemon, the command line and the script; then start a second daemon."""
    with Host(folder, account, 2) as host:
        environ = {
            **GIT_ENV,
            "PYTHONPATH": str(SOURCE),
            "GITHUB_WEBHOOK_SECRET": SECRET,
            "GITOPS_ROOT": str(host.root),
            "GITOPS_STATE": str(host.state),
            "GITOPS_LISTEN": "127.0.0.1:0",
            "GITOPS_DASHBOARD_LISTEN": "",
        }
        commands = {
            "the command line": [sys.executable, "-m", "gitops_hook", "sync"],
            "a timer": ["timeout", "60", str(_SCRIPT)],
        }
        lines = {who: account.fault(f"{who} beside the daemon: its runs end as expected") for who in commands}
        over = threading.Event()

        def keep_on(who: str, repository: str) -> None:
            name = repository if who == "the command line" else repository.rpartition("/")[2]
            while not over.is_set():
                done = subprocess.run([*commands[who], name], env=environ, capture_output=True, text=True)
                lines[who].check(done.returncode in (0, 75), f"exit {done.returncode}: {done.stdout}{done.stderr}")

        threads = [threading.Thread(target=keep_on, args=(who, name)) for who in commands for name in host.repositories]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and host.number < len(host.commits) - 3:
            host.push(host.number + 1)
            host.deliver_all()
            over.wait(0.2)
        over.set()
        for thread in threads:
            thread.join()
        host.settle()
        host.verify_outcomes()
        for line in lines.values():
            account.print(line)
        line = account.fault("a second daemon on the same state folder: refused in one line, exit 69")
        for _ in range(3):
            second = subprocess.run(
                [sys.executable, "-m", "gitops_hook", "serve"], env=environ, capture_output=True, text=True, timeout=60
            )
            refused = "another gitops-hook uses" in second.stderr and second.stderr.count("\n") == 1
            line.check(second.returncode == os.EX_UNAVAILABLE and refused, second.stderr)
        account.print(line)
