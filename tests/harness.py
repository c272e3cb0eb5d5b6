"""Run a real daemon as a process and deliver to it like a forge; standard library only, because the demo uses it."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent
SECRET = "It's a Secret to Everybody"
WEBHOOK = "/api/webhook/gitops"
NOBODY = "0" * 40
#: The environment variables that enable coverage measurement in child processes.
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def push(
    repository: str, after: str = "1" * 40, *, ref: str = "refs/heads/main", before: str = NOBODY, **more: Any
) -> dict[str, Any]:
    """Return a push payload with the members of GitHub's payload that the project reads; `more` replaces members."""
    return {
        "ref": ref,
        "before": before,
        "after": after,
        "created": False,
        "deleted": after == NOBODY,
        "forced": False,
        "repository": {
            "name": repository.rpartition("/")[2],
            "full_name": repository,
            "default_branch": "main",
            "private": False,
        },
        "pusher": {"name": "ada", "email": "ada@example.org"},
        "commits": [],
        **more,
    }


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers(body: bytes, event: str = "push", *, guid: str | None = None, secret: str = SECRET) -> dict[str, str]:
    """Return the headers that GitHub sends with `body`."""
    return {
        "User-Agent": "GitHub-Hookshot/044aadd",
        "Accept": "*/*",
        "Content-Type": "application/json",
        "X-GitHub-Delivery": guid or str(uuid.uuid4()),
        "X-GitHub-Event": event,
        "X-GitHub-Hook-ID": "292430182",
        "X-GitHub-Hook-Installation-Target-ID": "79929171",
        "X-GitHub-Hook-Installation-Target-Type": "repository",
        "X-Hub-Signature": "sha1=" + hmac.new(secret.encode(), body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": sign(body, secret),
    }


def processes_of(root: Path) -> list[int]:
    """Return the running processes that a run under `root` started, including orphaned processes."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_text().split("\0")
            if f"GITOPS_ROOT={root}" in variables and any(name.startswith("GITOPS_RUN=") for name in variables):
                found.append(int(environ.parent.name))
        except (OSError, UnicodeDecodeError):
            pass  # the process has ended, or belongs to another user
    return found


def until(condition: Callable[[], object], message: str = "", timeout: float = 20) -> None:
    """Poll `condition` until it is true; fail with `message` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, message or "the condition did not become true"
        time.sleep(0.003)


def burst(
    port: int, pushes: list[Any], connections: int = 16, guids: Sequence[str | None] | None = None
) -> Counter[int]:
    """Deliver pushes without waiting for responses, as fast as possible; return the number of each status."""
    guids = guids or [None] * len(pushes)
    connections = min(connections, len(pushes))
    with ExitStack() as stack:
        forge = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(connections)]
        for number, channel in enumerate(forge):
            requests = []
            for payload, guid in zip(pushes[number::connections], guids[number::connections]):
                body = json.dumps(payload).encode()
                requests.append(raw_delivery(body, headers(body, guid=guid)))
            requests[-1] = requests[-1].replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            channel.sendall(b"".join(requests))
        answers = b"".join(channel.makefile("rb").read() for channel in forge)
    return Counter(map(int, re.findall(rb"HTTP/1\.1 (\d+) ", answers)))


def raw_delivery(body: bytes, fields: dict[str, str], length: int | None = None) -> bytes:
    """Return the bytes of a delivery; `length` replaces the true Content-Length."""
    fields = {"Host": "forge", "Content-Length": str(len(body) if length is None else length), **fields}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {WEBHOOK} HTTP/1.1\r\n{head}\r\n".encode() + body


class Daemon:
    """``gitops-hook serve`` on a free port, with access to its log lines and its journal.

    The root and the state directory are ``root`` and ``state`` below `folder`; `settings` replace the defaults.
    `launcher` starts the program instead of this Python. `spawn` starts ``gitops-hook`` instead of Popen.
    """

    def __init__(
        self,
        folder: Path,
        *,
        program: list[str] | None = None,
        keep_open: list[int] | None = None,
        launcher: list[str] | None = None,
        spawn: Callable[..., Any] | None = None,
        **settings: str,
    ) -> None:
        self.root = folder / "root"
        self.state = folder / "state"
        self.root.mkdir(parents=True, exist_ok=True)
        interpreter = [] if spawn else [*(launcher or [sys.executable]), *(program or ["-m", "gitops_hook"])]
        self._command = [*interpreter, "serve"]
        self._spawn = spawn or subprocess.Popen
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(SOURCE),
            **MEASURED,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GITHUB_WEBHOOK_SECRET": SECRET,
            "GITOPS_ROOT": str(self.root),
            "GITOPS_STATE": str(self.state),
            "GITOPS_LISTEN": "127.0.0.1:0",
            "GITOPS_DASHBOARD_LISTEN": "",
            **settings,
        }
        self._keep_open = keep_open or []
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._position = 0
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise

    def start(self) -> None:
        """Start or restart the daemon, and wait until it listens."""
        self._position = len(self.lines)
        self.process = self._spawn(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=self._keep_open,
            text=True,
        )
        self._gatherer = threading.Thread(target=self._gather, daemon=True)
        self._gatherer.start()
        line = self.wait_for(r"listening for the webhook\W.*address\W+[^ \"]*:(\d+)")
        self.port = int(line[1])

    def _gather(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait for a log line that matches `pattern`, after the line that the previous call returned."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while self._position < len(self.lines):
                    self._position += 1
                    found = re.search(pattern, self.lines[self._position - 1])
                    if found:
                        return found
                if self.process.poll() is not None and not self._gatherer.is_alive():
                    raise AssertionError(
                        f"the daemon ended with {self.process.returncode} before {pattern!r}:\n" + self.log
                    )
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise AssertionError(f"no line matches {pattern!r}:\n" + self.log)
                self._news.wait(min(remaining, 0.5))

    def wait_for_run(self, having: str = "", timeout: float = 30) -> re.Match[str]:
        """Wait for the end of a run whose log line contains `having`; the groups are the outcome and the run."""
        return self.wait_for(rf"run (?!started)(\S+) (?=.*{having}).* run=(\d+)", timeout)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, patience: float = 30
    ) -> tuple[int, dict[str, Any]]:
        """Send one request on a new connection; return the status and the parsed JSON of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        with closing(connection):
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def deliver(
        self,
        payload: Any,
        event: str = "push",
        *,
        guid: str | None = None,
        secret: str = SECRET,
        patience: float = 30,
    ) -> tuple[int, dict[str, Any]]:
        """Deliver a payload like GitHub."""
        body = json.dumps(payload).encode()
        return self.request("POST", WEBHOOK, body, headers(body, event, guid=guid, secret=secret), patience)

    def query(self, sql: str, *values: object) -> list[Any]:
        """Query the journal, read-only."""
        with closing(sqlite3.connect(f"file:{self.state}/journal.db?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql, values).fetchall()

    def stop(self, timeout: float = 90) -> int:
        """Send SIGTERM and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        self.process.kill()
        self.wait(10)

    def wait(self, timeout: float = 90) -> int:
        """Wait for the end of the process and return its exit status."""
        status = self.process.wait(timeout)
        self._gatherer.join(timeout)
        assert self.process.stderr
        self.process.stderr.close()
        return status

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            for _ in range(2 if MEASURED else 0):  # a killed process loses its measurement
                self.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
            self.process.kill()
        if not self.process.stderr.closed:  # type: ignore[union-attr]
            self.wait(10)
