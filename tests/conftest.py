"""Fixtures that several modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import Daemon


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons over folders in `tmp_path`, and ends whichever still runs."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Daemon(tmp_path, **options))


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Makes bash scripts to stand where the sync script does: a tiny real program each."""

    def make(body: str, name: str = "sync.sh") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\nset -eu\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make
