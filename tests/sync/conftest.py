"""The stage on which the tests of this directory run scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import until
from stage import Stage

from gitops_hook.sync import backoff, executor, runner
from gitops_hook.sync.backoff import Backoff


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setitem(backoff.RETRIES, "backoff", Backoff(0.02, 900.0))
    monkeypatch.setattr(executor, "JOURNAL_WAIT", 0.02)
    monkeypatch.setattr(runner, "GRACE", 2)  # bash handles a TERM that arrives just before `read` only after it
    threads = set(threading.enumerate())
    made = Stage(tmp_path)
    yield made
    made.close()
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
