"""A fresh Debian with its own systemd, in a container, and a forge outside of it.

The root is unpacked anew for each machine from a tarball under ``.cache``, which is made once. The machine's network
is a loopback alone. Programs of the host that speak to it, the forge's git server and what delivers webhooks, are
started in that network, and in nothing else of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, SOURCE
from memory import memory_limit, own_group
from scratch import GIT_ENV, Upstream

from gitops_hook import __version__

SUITE = os.environ.get("DEBIAN_SUITE", "bookworm")
#: A server's minimum, what the package depends on, and what an operator has at hand who follows the README.
PACKAGES = (
    "apt,ca-certificates,curl,dbus,git,libpam-systemd,make,openssh-client,openssl,polkitd,procps,python3,sudo,systemd,"
    "systemd-sysv"
)
#: Another list of packages makes another tarball.
CACHE = SOURCE / ".cache" / f"debian-{SUITE}-{zlib.crc32(PACKAGES.encode()):08x}.tar"


def missing() -> str | None:
    """Return the reason why this host cannot boot a machine, or None if it can."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    tools = [tool for tool in ("systemd-nspawn", "nsenter", "dpkg-deb") if not shutil.which(tool)]
    if not CACHE.exists() and not shutil.which("debootstrap"):
        tools.append("debootstrap")
    return "; ".join(f"no {tool} on this machine" for tool in tools) or None


def make_root() -> None:
    """Create the tarball of a minimal Debian, unless it exists. Raises CalledProcessError if debootstrap or tar fails."""
    if CACHE.exists():
        return
    CACHE.parent.mkdir(exist_ok=True)
    folder = CACHE.with_suffix(".root")
    shutil.rmtree(folder, ignore_errors=True)
    _quietly("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder)
    unfinished = CACHE.with_suffix(".part")
    leave_out = ("var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/doc")
    _quietly("tar", "-C", folder, *(f"--exclude=./{path}/*" for path in leave_out), "-cf", unfinished, ".")
    unfinished.rename(CACHE)
    shutil.rmtree(folder)


def boot(folder: Path) -> Machine:
    """Boot a machine in `folder`, or skip the test with the reason."""
    reason = missing()
    if reason:
        pytest.skip(f"the tests under systemd: {reason}")
    try:
        make_root()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the tests under systemd: no Debian root can be made: {error}")
    try:
        return Machine(folder)
    except AssertionError as error:
        pytest.skip(f"the tests under systemd: {error}")


def package(folder: Path, version: str = __version__) -> Path:
    """Build the package of this tree, with another version number.

    The copy leaves out what git ignores: other tests that run at the same time create and delete such files.
    """
    tree = folder / "tree"
    listed = subprocess.check_output(
        ["git", "-C", SOURCE, "ls-files", "--cached", "--others", "--exclude-standard"], text=True
    )
    for name in listed.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, tree / name)
    init = tree / "gitops_hook/__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', f'"{version}"'))
    subprocess.run(["make", "--silent", "deb", f"PYTHON={sys.executable}"], cwd=tree, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    return tree / f"dist/gitops-hook_{version}_all.deb"


class Machine:
    """A booted container."""

    def __init__(self, folder: Path) -> None:
        """Boot a machine in `folder`; `close` ends it."""
        self.root = folder / "root"
        self.root.mkdir()
        _quietly("tar", "-C", self.root, "-xf", CACHE)
        self._stack = ExitStack()
        console = self._stack.enter_context((folder / "console").open("wb"))
        self._container = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", "--boot", "--console=pipe"),
                *("--register=no", "--keep-unit", "--private-network", "--machine=gitops-host"),
                f"--directory={self.root}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(self._power_off)
        try:
            self._init = wait_for(self._find_init, "the machine has no init yet")
            wait_for(self._is_up, "the machine does not come up")
            self.forge = folder / "forge"
            self.forge.mkdir()
            self._serve_git()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Power the machine off."""
        self._stack.close()

    def run(self, command: str, *, check: bool = True, cwd: str = "/root", timeout: float = 120) -> str:
        """Run a command in root's shell on the machine, and return both of its outputs."""
        done = subprocess.run(
            [*self._enter("--all"), "/bin/bash", "-c", f"cd {cwd} && {command}"],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def show(self, name: str, unit: str = "gitops-hook") -> str:
        """Return a property of a unit."""
        return self.run(f"systemctl show --value --property {name} {unit}")

    def log(self, unit: str = "gitops-hook") -> str:
        """Return the lines of a unit in the system's journal."""
        return self.run(f"journalctl --output=cat --unit {unit}")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the machine, as root. It must not be below /run, which is another file system on the machine."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def query(self, sql: str, *values: object) -> list[Any]:
        """Query the daemon's journal."""
        path = self.root / "var/lib/gitops-hook/journal.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql, values).fetchall()

    @contextmanager
    def delivering(self, *arguments: object) -> Any:
        """Deliver webhooks from outside during the block. Yields a function that waits for the counts of the responses."""
        sender = subprocess.Popen(
            [*self._enter("--net"), sys.executable, str(HERE / "systemd/sender.py"), *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

        def answers() -> dict[str, int]:
            output, _ = sender.communicate(timeout=120)
            return json.loads(output)

        try:
            yield answers
        finally:
            sender.kill()
            sender.wait()
            sender.stdout.close()  # type: ignore[union-attr]

    def deliver(self, repository: str, after: str, *, secret: str, count: int = 1) -> dict[str, int]:
        """Deliver pushes from outside, and return the number of responses by status."""
        with self.delivering(repository, after, secret, count) as answers:
            return answers()

    def upstream(self, repository: str) -> Upstream:
        """Create a repository at the forge."""
        return Upstream(self.forge, repository)

    def serve(self, *command: str) -> None:
        """Start a program of this host in the machine's network. It ends with the machine."""
        server = subprocess.Popen(
            [*self.network(), *command],
            env=GIT_ENV,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.callback(server.wait)
        self._stack.callback(os.killpg, server.pid, signal.SIGTERM)

    def memory_limit(self, size: int) -> Any:
        """Limit the memory of the daemon and its runs from outside of the machine, as `memory.memory_limit` does.

        systemd on the machine cannot do it where the host has control groups of version 1.
        """
        if not own_group():
            pytest.skip("this host has no writable control groups of version 1 for memory")
        return memory_limit(self._host_pid(int(self.show("MainPID"))), size)

    def _host_pid(self, pid: int) -> int:
        """Return the process id on this host of a process of the machine."""
        namespace = Path(f"/proc/{self._init}/ns/pid").readlink()
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it has ended
                inner = status.read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
                if inner == str(pid) and (status.with_name("ns") / "pid").readlink() == namespace:
                    return int(status.parent.name)
        raise AssertionError(f"process {pid} does not run")

    def network(self) -> tuple[str, ...]:
        """Return the command that runs its arguments, a program of this host, in the machine's network."""
        return ("nsenter", "--target", str(self._init), "--net")

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", "--target", str(self._init), *namespaces]

    def _find_init(self) -> int | None:
        assert self._container.poll() is None, "the container did not start"
        pid = self._container.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next((int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "systemd\n"), None)

    def _is_up(self) -> bool:
        return self.run("systemctl is-system-running", check=False) in ("running", "degraded")

    def _serve_git(self) -> None:
        # On the machine, https://github.com leads to the local forge.
        self.put("/etc/gitconfig", '[url "git://127.0.0.1/"]\n\tinsteadOf = https://github.com/\n')
        self.serve("git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--base-path={self.forge}")

    def _power_off(self) -> None:
        self._container.terminate()
        try:
            self._container.wait(60)
        except subprocess.TimeoutExpired:
            self._container.kill()
            self._container.wait()


def wait_for(look: Callable[[], Any], otherwise: str, timeout: float = 60) -> Any:
    """Wait until `look` returns a true value, and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(otherwise)


def _quietly(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
