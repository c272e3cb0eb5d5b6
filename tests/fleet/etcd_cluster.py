"""A real etcd cluster on loopback: free ports, data in memory where possible, ended by process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.messages import key_range

SOURCE = Path(__file__).resolve().parents[2]
#: Seconds until a new member serves. It takes a tenth of that on an idle machine.
START_LIMIT = 30.0


def binaries() -> dict[str, Path]:
    """Return the etcd programs that tests can use, by version.

    They come from ``ETCD`` (paths, separated by colons), from the packages that ``make test-fleet`` unpacks, and from
    the installed package.
    """
    named = os.environ.get("ETCD", "").split(":")
    unpacked = sorted(map(str, (SOURCE / ".cache" / "etcd").glob("*/usr/bin/etcd")))
    found = {}
    for path in filter(None, [*named, *unpacked, shutil.which("etcd") or ""]):
        with suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
            found.setdefault(text.split()[2], Path(path))
    return found


def free_ports(number: int) -> list[int]:
    """Return distinct ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def enable_authentication(client: Etcd, prefix: str = "/a/") -> None:
    """Make the users root, and host, which may read and write below a prefix only."""
    grant = {"permType": "READWRITE", **key_range(prefix)}
    for path, body in [
        ("user/add", {"name": "root", "password": "secret"}),
        ("user/add", {"name": "host", "password": "secret"}),
        ("role/add", {"name": "root"}),
        ("role/add", {"name": "host"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/grant", {"user": "host", "role": "host"}),
        ("role/grant", {"name": "host", "perm": grant}),
        ("enable", {}),
    ]:
        client.call(f"/v3/auth/{path}", body, within=20)


class Member:
    """One member: a process, its ports and its data."""

    def __init__(self, name: str, command: list[str], endpoint: str, folder: Path) -> None:
        self.name = name
        self.endpoint = endpoint
        self.folder = folder
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, or start it again over the same data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "GOMAXPROCS": "2"},
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process with a signal and wait for its end."""
        if self._process:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """Stop the process so that it keeps its connections and answers nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a paused process."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Return True while the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id of a running member."""
        assert self._process
        return self._process.pid

    def log(self) -> str:
        """Return the log of the process."""
        return (self.folder / "log").read_text(errors="replace")


class Cluster:
    """Members that form one cluster. Use it as a context manager.

    `options` are further flags of etcd; `tls` are flags for both sides of TLS, and switches the URLs to https.
    """

    def __init__(
        self, program: Path, members: int = 1, options: tuple[str, ...] = (), *, tls: tuple[str, ...] = ()
    ) -> None:
        memory = Path("/dev/shm")
        base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="gitops-etcd-", dir=base))
        ports = free_ports(2 * members)
        scheme = "https" if tls else "http"
        clients = [f"{scheme}://127.0.0.1:{port}" for port in ports[:members]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
        names = [f"m{number}" for number in range(members)]
        initial = ",".join(f"{name}={peer}" for name, peer in zip(names, peers))
        self.members = [
            Member(
                name,
                [
                    str(program),
                    f"--name={name}",
                    f"--data-dir={self.folder / name / 'data'}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={initial}",
                    "--logger=zap",
                    "--log-level=error",
                    *options,
                    *tls,
                ],
                client,
                self.folder / name,
            )
            for name, client, peer in zip(names, clients, peers)
        ]

    @property
    def endpoints(self) -> list[str]:
        """Return the client URL of each member."""
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        """Start every member and wait until the cluster has a leader."""
        for member in self.members:
            if not member.is_running:
                member.start()
        self.wait()

    def wait(self) -> None:
        """Wait until every running member serves requests."""
        for member in self.members:
            if member.is_running and member.endpoint.startswith("http:"):
                deadline = time.monotonic() + START_LIMIT
                while not self._serves(member):
                    assert member.is_running and time.monotonic() < deadline, member.log()[-2000:]
                    time.sleep(0.02)

    def _serves(self, member: Member) -> bool:
        try:
            return bool(self._post(member, "/v3/kv/range", {"key": "Lw=="}))
        except urllib.error.HTTPError as error:
            return error.code < 500  # with authentication it refuses this request
        except (OSError, ValueError):
            return False

    def leader(self) -> Member:
        """Return the member that leads, as the running members agree."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            for member in self.members:
                with suppress(OSError, ValueError, KeyError):
                    status = self._post(member, "/v3/maintenance/status", {})
                    if status["leader"] == status["header"]["member_id"]:
                        return member
            time.sleep(0.05)
        raise AssertionError("the cluster has no leader")

    @staticmethod
    def _post(member: Member, path: str, body: dict[str, object]) -> dict[str, object] | None:
        request = urllib.request.Request(member.endpoint + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=1) as answer:
            return json.load(answer)

    def wipe(self) -> None:
        """Replace the cluster by an empty one that has the same names and addresses."""
        for member in self.members:
            member.kill()
            shutil.rmtree(member.folder / "data")
        self.start()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every member and delete the data."""
        try:
            for member in self.members:
                member.resume()
                member.kill()
        finally:
            shutil.rmtree(self.folder)
