"""Fixtures for the tests of GitHub's API. After each test, no file and no output contains the token or the secret."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_github import TOKEN, Forge
from harness import SECRET, WEBHOOK, Daemon

from gitops_hook.control.client import post
from gitops_hook.github.client import Client
from gitops_hook.github.webhooks import Hooks, Registration
from gitops_hook.journal.reader import JournalReader
from gitops_hook.lock import holder


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forge() -> Iterator[Forge]:
    made = Forge()
    made.add("acme/site")
    yield made
    made.close()


@pytest.fixture
def client(forge: Forge, clock: Clock) -> Client:
    """Asks the forge; its waits cost no time."""
    return Client(forge.url, TOKEN, clock=clock, sleep=clock.sleep)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "github-token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    return start_daemon()


@pytest.fixture
def make_hooks(client: Client, daemon: Daemon) -> Callable[..., Hooks]:
    """The webhooks, as one who asks beside the daemon that they lead to."""

    class RememberedHooks(Hooks):
        """Hooks whose registrations the daemon stores, as the command does it."""

        def register(self, target: str, *, dry_run: bool = False) -> Registration:  # type: ignore[override]
            def remember(hook: int) -> None:
                found = holder(self.journal.log_path("").parent.parent)
                assert found and found.socket
                status, _ = post(found.socket, "/remember-hook", {"hook": hook, "target": target, "url": self.url})
                assert status == 200

            return super().register(target, remember, dry_run=dry_run)

    def make(url: str | None = None, through: Client | None = None, **more: Any) -> Hooks:
        url = f"http://127.0.0.1:{daemon.port}{WEBHOOK}" if url is None else url
        secret = more.pop("secret", SECRET).encode()
        pause = threading.Event()
        return RememberedHooks(
            through or client, JournalReader(daemon.state), secret, url, sleep=lambda _: pause.wait(0.005), **more
        )

    return make


@pytest.fixture(autouse=True)
def nothing_is_told(
    tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """No token and no secret in a journal, a log, an output, an error."""
    yield
    said = "".join(capfd.readouterr())
    daemon = request.node.funcargs.get("daemon")
    said += daemon.log if daemon else ""
    assert TOKEN not in said
    assert SECRET not in said
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "github-token":
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            assert SECRET.encode() not in content, path
