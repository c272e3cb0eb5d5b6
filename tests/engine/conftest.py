"""Provide a forge, a host with a checkout, and a way to run the script."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scratch import GIT_ENV, Upstream, git

from gitops_hook.outcomes import OUTCOMES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gitops_sync.sh"
PARTS = sorted((SCRIPT.parent / "sync").glob("*.sh"))

#: The exit status of each outcome that the script reports. It also reports `failed`, for a fault of git or of its own.
EXIT = {outcome.name: outcome.exit for outcome in OUTCOMES if outcome.by_script or outcome.name == "failed"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and become another user")


class Run(NamedTuple):
    """The result file and the output of one run."""

    outcome: str
    before: str
    after: str
    message: str
    fix: str
    output: str
    #: The end of each step in seconds since the epoch, in order.
    steps: dict[str, float]
    #: Why a person must act although the run succeeded, or empty.
    cause: str = ""


class Site:
    """One repository on the forge, `upstream`, and its checkout on the host, `path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self.upstream = Upstream(folder / "forge")
        self.path = self.root / "acme" / "site"
        self.environment = {
            **GIT_ENV,
            "GITOPS_ROOT": str(self.root),
            "GITOPS_REPOSITORY": "acme/site",
            "TRACE": str(folder / "trace"),
        }

    def checkout(self, **settings: str) -> Path:
        """Clone as an operator would, and run the script once, so that the checkout has been synced."""
        if settings or not self.upstream.is_untouched():
            self.upstream.checkout(self.root, **settings)
            self.run()
        else:
            self.path.parent.mkdir(exist_ok=True)
            self.upstream.copy_checkout(_synced_checkout(), self.path)
        return self.path

    def set(self, key: str, value: str) -> None:
        git("config", f"gitops.{key}", value, cwd=self.path)

    def home(self, config: str) -> dict[str, str]:
        """Return the environment of a user with this git configuration. (GIT_CONFIG_GLOBAL needs git 2.32.)"""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        (home / ".gitconfig").write_text(config)
        return {"HOME": str(home)}

    def command(self, *options: str, name: str = "site") -> list[str]:
        return ["/bin/bash", str(SCRIPT), *options, name]

    def run(
        self,
        *options: str,
        name: str = "site",
        prefix: list[str] | None = None,
        **environment: str | None,
    ) -> Run:
        """Run the script; `environment` adds to its environment, None takes away."""
        result = self.folder / "result"
        result.unlink(missing_ok=True)
        merged = {**self.environment, "GITOPS_RESULT": str(result), **environment}
        done = subprocess.run(
            [*(prefix or []), *self.command(*options, name=name)],
            env={key: value for key, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            close_fds=False,  # as in scratch.git()
        )
        output = done.stdout.decode(errors="replace")
        assert result.exists(), f"exit {done.returncode} without a result\n{output}"
        lines = result.read_text(errors="replace").splitlines()
        keys = [line.partition("=")[0] for line in lines]
        assert keys[:5] == ["outcome", "before", "after", "message", "fix"], f"the result file is {lines}"
        assert set(keys[5:]) <= {"cause", "fetched", "deployed", "healthy"}, f"the result file is {lines}"
        values = [line.partition("=")[2] for line in lines]
        subject = values[3].partition(": ")[0].rpartition("/")[2]
        assert subject in (name.rpartition("/")[2], "gitops_sync.sh"), f"the message is {values[3]!r}"
        more = dict(zip(keys[5:], values[5:]))
        cause = more.pop("cause", "")
        run = Run(*values[:5], output, {step: float(at) for step, at in more.items()}, cause)
        assert not re.search(r"\bsudo |\bgit -C |\bgit config |--force", run.message), "a command in the message"
        assert done.returncode == EXIT[run.outcome], output
        # A line with a process id reports a command that a signal ended.
        assert not re.search(r"\.sh: line \d+: (?!\s*\d+ )", output), f"bash reports an error\n{output}"
        return run

    def start(self, **environment: str) -> subprocess.Popen:
        """Start the script in its own process group, which the test can kill."""
        return subprocess.Popen(
            self.command(),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, run: subprocess.Popen) -> None:
        """Kill the run and its children, as a crash of the host would."""
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()

    def git(self, *args: object, check: bool = True) -> str:
        return git(*args, cwd=self.path, check=check)

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def ref(self, name: str) -> str:
        """Return the commit of a ref, or an empty string."""
        return self.git("for-each-ref", "--format=%(objectname)", name)

    def status(self) -> str:
        return self.git("status", "--porcelain")

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit_here(self, name: str = "local", text: str = "local\n") -> str:
        """Commit in the checkout, as a person would."""
        self.write(name, text)
        self.git("add", name)
        self.git("commit", "--quiet", "--message", f"local {name}")
        return self.head()

    def is_at_upstream(self) -> bool:
        """Return True if HEAD, its branch and the deployed commit are upstream's."""
        tip = self.upstream.head()
        refs = self.git("rev-parse", "HEAD", "refs/gitops/deployed", "--symbolic-full-name", "HEAD", check=False)
        return refs.splitlines() == [tip, tip, f"refs/heads/{self.upstream.branch}"]


@cache
def _synced_checkout() -> Path:
    """Create a checkout that the script has synced, once for each process."""
    folder = Path(tempfile.mkdtemp(prefix="gitops-hook-synced-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    site = Site(folder)
    site.upstream.checkout(site.root)
    site.run()
    return site.path


def tool(site: Site, body: str) -> str:
    """Put a git first on PATH that runs `body` and then git; return the PATH."""
    tools = site.folder / "tools"
    tools.mkdir()
    (tools / "git").write_text(f'#!/bin/bash\nreal={shutil.which("git")}\n{body}\nexec "$real" "$@"\n')
    (tools / "git").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


def meanwhile(site: Site, word: str, act: str) -> dict[str, str]:
    """Return the environment of a run in which `act` runs in the checkout after `git <word>`."""
    act = f"(unset GIT_DIR GIT_WORK_TREE; PATH='{os.environ['PATH']}'; {act}) &>/dev/null"
    return {
        "PATH": tool(site, f'for it; do [[ $it != {word} ]] || {{ "$real" "$@"; done=$?; {act}; exit $done; }}; done')
    }


@pytest.fixture()
def site(tmp_path: Path) -> Site:
    """A forge and a host; no checkout yet."""
    return Site(tmp_path)


@pytest.fixture()
def synced(site: Site) -> Site:
    """A forge and a host with a checkout that has been synced."""
    site.checkout()
    return site


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make file systems of a few KiB."""
    mounted = []

    def mount(kib: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", place], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this process may not mount: {done.stderr.decode()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(place, ignore_errors=True)
