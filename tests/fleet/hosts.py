"""Hosts of a fleet: real daemons on loopback that share one forge and one etcd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from harness import Daemon, push, until
from scratch import Upstream, git

from gitops_hook.fleet.etcd import Credentials, Etcd
from gitops_hook.fleet.keys import Have, Keys, load

FLEET = "test"
KEYS = Keys(FLEET)


class Hosts:
    """Daemons by name, each with its own folder, that follow the repositories of one forge."""

    def __init__(
        self,
        folder: Path,
        endpoints: Sequence[str],
        *,
        credentials: Callable[[], Credentials] | None = None,
        **settings: str,
    ) -> None:
        """`credentials` are those of the test; the settings name those of the hosts."""
        self.folder = folder
        self.endpoints = list(endpoints)
        self.daemons: dict[str, Daemon] = {}
        self.client = Etcd(endpoints, credentials=credentials)
        self._settings = settings
        self._stack = ExitStack()

    def start(self, name: str, labels: str = "", **settings: str) -> Daemon:
        """Start a host and wait until it takes webhooks."""
        daemon = Daemon(
            self.folder / name,
            GITOPS_FLEET=FLEET,
            GITOPS_ETCD=",".join(self.endpoints),
            GITOPS_FLEET_HOST=name,
            GITOPS_FLEET_LABELS=labels,
            **{**self._settings, **settings},
        )
        self.daemons[name] = self._stack.enter_context(daemon)
        return daemon

    def checkout(self, name: str, upstream: Upstream, **settings: str) -> Path:
        """Make a host's checkout before the host starts."""
        root = self.folder / name / "root"
        root.mkdir(parents=True, exist_ok=True)
        return upstream.checkout(root, **settings)

    def commit_of(self, name: str, repository: str = "acme/site") -> str:
        """Return the commit that a host has checked out."""
        return git("rev-parse", "HEAD", cwd=self.folder / name / "root" / repository)

    def wait_for_commit(self, commit: str, *names: str, repository: str = "acme/site", timeout: float = 60) -> None:
        """Wait until hosts, or all of them, have a commit."""
        for name in names or self.daemons:
            until(
                lambda name=name: self.commit_of(name, repository) == commit,
                f"{name} does not have {commit}:\n{self.daemons[name].log[-3000:]}",
                timeout,
            )

    def push(self, receiver: str, commit: str, guid: str, repository: str = "acme/site", **more: str) -> None:
        """Deliver a push to a host, and wait until the fleet has it.

        On a busy machine the response may be that the push is pending: the receiver waits two seconds for etcd.
        """
        status, answer = self.daemons[receiver].deliver(push(repository, commit, **more), guid=guid)
        assert (status, answer["fleet"] in ("committed", "pending")) == (202, True), answer
        until(lambda: self.client.get(KEYS.seen(guid)), f"{receiver} does not forward {guid}", 60)

    def status(self, name: str, checkout: str = "acme/site") -> Have:
        """Return the status that a host has written."""
        pair = self.client.get(KEYS.have(name, checkout))
        return (load(Have, pair.value) if pair else None) or Have()

    def wait_until_live(self, *names: str) -> None:
        """Wait until the keys of hosts exist."""
        for name in names:
            until(lambda name=name: self.client.get(KEYS.host(name)), f"{name} is not live")

    def value(self, key: str) -> dict | None:
        """Return the JSON value of a key."""
        pair = self.client.get(key)
        return json.loads(pair.value) if pair else None

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self.client.close()


def command(hosts: Hosts, *words: str, status: int = 0) -> str:
    """Run ``gitops-hook fleet`` with the settings of one of the hosts, and return its output."""
    return command_on(hosts, next(iter(hosts.daemons)), "fleet", *words, status=status)


def command_on(hosts: Hosts, name: str, *words: str, status: int = 0) -> str:
    """Run ``gitops-hook`` on a host, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "gitops_hook", *words],
        env={
            **hosts.daemons[name]._env,
            "GITOPS_FLEET": FLEET,
            "GITOPS_ETCD": ",".join(hosts.endpoints),
            "SUDO_USER": "ada",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if not status else done.stdout + done.stderr
