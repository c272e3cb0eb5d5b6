"""Fixtures that several modules share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fork_server
import hypothesis
import pytest
from fixes import Observer
from fork_server import Program
from harness import MEASURED, SECRET, SOURCE, Daemon
from scratch import GIT_ENV, Upstream

from gitops_hook import log

# A shell starts a background job with SIGINT ignored, and the children of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, because machines are busy. The gate uses the same examples each time, and `make test-slow` more of them;
# `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile(
    "search", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "gate", hypothesis.settings.get_profile("search"), derandomize=True, max_examples=40
)
hypothesis.settings.register_profile("slow", hypothesis.settings.get_profile("gate"), max_examples=300)
hypothesis.settings.load_profile("gate")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def restore_the_log() -> Iterator[None]:
    """Undo what a test changed about the process's log."""
    yield
    log.setup("text", under_systemd=False)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return a function that puts a small program first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, body: str) -> Path:
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
        return folder / name

    return make


@pytest.fixture
def apply_fix(
    tool: Callable[[str, str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., str]]:
    """Return a function that pastes a fix into a shell, checks its exit status, and returns its output.

    The programs that need a real host write their arguments to ``calls``. ``sudo`` runs its command directly, with the
    directory ``etc`` instead of /etc. The test fails if a place of its markers ``fixes`` produced no pasted fix.
    """
    (tmp_path / "etc/gitops-hook").mkdir(parents=True)
    (tmp_path / "etc/default").mkdir()
    here = r'"${@//\/etc\/' + f"/{tmp_path}/etc/" + '}"'
    tool("sudo", f"[[ $1 == -u ]] && shift 2\nexec {here}")
    for name in ("systemctl", "apt-get", "sudoedit", "journalctl"):
        tool(name, f'echo "{name} $*" >> {tmp_path}/calls')
    tool("gitops-hook", f'PYTHONPATH={SOURCE} exec {sys.executable} -m gitops_hook "$@"')

    def run(fix: str, status: int = 0, given: str = "") -> str:
        observer.paste(fix)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", fix], cwd=tmp_path, input=given, capture_output=True, text=True
        )
        assert done.returncode == status, (fix, done.stdout, done.stderr)
        return done.stdout + done.stderr

    with Observer() as observer:
        yield run
    expected = {name for marker in request.node.iter_markers("fixes") for name in marker.args}
    assert expected <= observer.pasted, f"pasted only the fixes of {sorted(observer.pasted)}"


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons over folders in `tmp_path`, and ends whichever still runs."""
    with ExitStack() as stack:

        def start(**options: Any) -> Daemon:
            spawn = None if {"launcher", "program"} & options.keys() else Program
            return stack.enter_context(Daemon(tmp_path, spawn=spawn, **options))

        yield start


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Makes bash scripts to stand where the sync script does: a tiny real program each."""

    def make(body: str, name: str = "sync.sh") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\nset -eu\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    (tmp_path / "root").mkdir()
    return Upstream(tmp_path / "forge")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        **GIT_ENV,
        "PYTHONPATH": str(SOURCE),
        **MEASURED,
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "GITOPS_ROOT": str(tmp_path / "root"),
        "GITOPS_STATE": str(tmp_path / "state"),
        "GITOPS_CLONE_URL": f"{tmp_path}/forge/{{repository}}.git",
        "GITOPS_LISTEN": "127.0.0.1:9",
    }


@pytest.fixture
def hook(environ: dict[str, str]) -> Command:
    """Runs a command, which must exit with `status`; `python` starts it from another interpreter."""

    def run(*words: str, status: int = 0, python: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        done = fork_server.run(list(words), {**environ, **more}, python)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done

    return run
