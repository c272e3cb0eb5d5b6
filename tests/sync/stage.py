"""A dispatcher with a real journal, a real runner, and tiny real scripts around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import until

from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery, Run
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.sync.executor import Executor
from gitops_hook.sync.runner import Runner

#: Notes its start and its end, and waits in between for a line from the gate.
GATED = 'echo "+ $1" >>$0.notes; read -r _ <$0.gate; echo "- $1" >>$0.notes'
#: Notes its start and its end, and takes a moment in which others could overlap.
BRIEF = 'echo "+ $1" >>$0.notes; sleep 0.01; echo "- $1" >>$0.notes'
#: The same, but the first two, or three, wait for one another.
TWO_AT_ONCE = BRIEF.replace("sleep 0.01", "until (($(grep -c ^+ $0.notes) >= 2)); do sleep 0.01; done")
THREE_AT_ONCE = TWO_AT_ONCE.replace(">= 2", ">= 3")
#: Reports the outcome that its checkout is called by.
REPORTS = 'echo "outcome=$1" >"$GITOPS_RESULT"; echo after=abc >>"$GITOPS_RESULT"; sleep 0.1'


class Stage:
    """The journal, the root and the script of a test, and the dispatchers that it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.script = folder / "script"
        self.notes_file = folder / "script.notes"
        self.notes_file.touch()
        os.mkfifo(folder / "script.gate")
        self.gate = os.open(folder / "script.gate", os.O_RDWR)
        self.journal = Journal(folder / "state")
        self.dispatchers: list[Dispatcher] = []

    def dispatcher(
        self,
        script: str,
        max_syncs: int = 4,
        *,
        scheduled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **more: object,
    ) -> Dispatcher:
        executor = self.executor(script, clock=clock, **more)
        checkouts = Checkouts(self.root)
        made = Dispatcher(self.journal, checkouts, executor, max_syncs=max_syncs, clock=clock, jitter=lambda: 0.5)
        self.dispatchers.append(made)
        if scheduled:
            made.start_scheduler()
        return made

    def executor(self, script: str, **more: object) -> Executor:
        self.write(script)
        runner = Runner(self.script, self.root, os.environ)
        return Executor(self.journal, Checkouts(self.root), runner, sync_timeout=60, **more)  # type: ignore[arg-type]

    def write(self, script: str) -> None:
        new = self.folder / "new"
        new.write_text(f"#!/bin/bash\n{script}\n")
        new.chmod(0o755)
        new.rename(self.script)

    def record(self, repository: str = "acme/site", guid: str = "g") -> None:
        self.journal.record(Delivery(guid, "push", time.time(), repository, "refs/heads/main", "", guid))

    def push(self, dispatcher: Dispatcher, repository: str = "acme/site", guid: str = "g") -> None:
        self.record(repository, guid)
        dispatcher.notify(repository)

    def checkouts(self, *repositories: str) -> None:
        for repository in repositories:
            (self.root / repository / ".git").mkdir(parents=True)
            (self.root / repository / ".git" / "config").touch()

    def open_gate(self, count: int = 1) -> None:
        os.write(self.gate, b"\n" * count)

    def notes(self) -> list[str]:
        return self.notes_file.read_text().splitlines()

    def runs(self) -> list[Run]:
        return self.journal.runs(limit=10_000)[::-1]

    def wait_for_runs(self, count: int) -> list[Run]:
        until(lambda: sum(run.outcome is not None for run in self.runs()) >= count, f"no {count} runs: {self.runs()}")
        return self.runs()

    def began(self, count: int) -> None:
        until(lambda: sum(note[0] == "+" for note in self.notes()) >= count, f"no {count} began: {self.notes()}")

    def close(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.stop()
            dispatcher.terminate()
            assert dispatcher.join(20)
        self.journal.close()
        os.close(self.gate)


def most_at_once(notes: list[str], only: str | None = None) -> int:
    """The largest number of runs at the same time, of all checkouts or of one."""
    now = most = 0
    for sign, name in (note.split() for note in notes):
        if only in (None, name):
            now += 1 if sign == "+" else -1
            most = max(most, now)
    return most
