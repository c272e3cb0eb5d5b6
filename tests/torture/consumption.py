"""What deploys, peers, forges and local users can use up or read: processes, threads, locks, files, calls."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import SECRET, SOURCE, Daemon, burst, push, until
from memory import MANY_PROCESSES, memory_limit, own_group

from gitops_hook.github import client as api
from gitops_hook.journal.writer import Journal
from gitops_hook.shipped import unpack
from torture.account import Account, Line
from torture.faults import NOBODY, python_for_nobody
from torture.honest import Honest
from torture.host import DEPLOY, Host, children_of

_TOKEN = "ghp_" + "t0ken" * 7
#: A deploy that starts processes until the system refuses, and leaves them asleep.
_FORKS = """\
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError:
        time.sleep(0.05)
"""


def consumption(folder: Path, account: Account, short: bool) -> None:
    """Add one line for each way to use up or to read what belongs to others."""
    ordeals: dict[str, Callable[[Path, Line], None]] = {
        "a deploy that forks without end: deliveries during it": lambda place, line: _forks(place, account, line),
        "a deploy that uses up the memory: it dies before the daemon": lambda place, line: _memory(
            place, account, line
        ),
        "signed names pushed at once: each is served, and few threads": lambda place, line: _names(
            place, line, 300 if short else 3000
        ),
        "checkouts locked by another user: each is synced": lambda place, line: _locks(place, account, line),
        "a token in clone URLs: no other user can read it": _token,
        "answers of GitHub's API that never end: each call ends": _endless_answers,
        "listings of GitHub's API that link to themselves: each call ends": _endless_listings,
        "300 unreachable runs in 20 minutes: the operator is notified": _late_notice,
        "markup of chats in messages: sent escaped": _chat_markup,
        "the journal locked, 450 deliveries waiting: the watchdog is notified": lambda place, line: _locked_journal(
            place, line, 15 if short else 40
        ),
        "git hangs when a run is recorded: the only slot is free": lambda place, line: _hanging_git(
            place, account, line
        ),
        "2,000 connections: no more threads than the limit": _connections,
        "systemd's exposure of the units: below 2.0": _exposure,
        "clones that fail: no directory is left": _failed_clones,
        "a secret that is not UTF-8: each command rejects it": _secrets,
        "a file of secrets that is empty, or has comments or short secrets": _secret_files,
        "links planted where root unpacks the single file: not followed": _planted_links,
    }
    for number, (name, ordeal) in enumerate(ordeals.items()):
        place = folder / str(number)
        place.mkdir()
        place.chmod(0o755)
        line = account.fault(name)
        ordeal(place, line)
        account.print(line)


def _needs_nobody(line: Line) -> str:
    """Return a Python that another user can run, or "" after skipping the line."""
    python = python_for_nobody() if os.geteuid() == 0 else None
    if not python:
        line.skipped = "this requires root, and a Python that another user can run"
    return python or ""


def _as_nobody(*command: object) -> list[str]:
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *map(str, command)]


def _forks(place: Path, account: Account, line: Line) -> None:
    python = _needs_nobody(line)
    if not python:
        return
    (place / "forks.py").write_text(_FORKS)
    deploy = f'{DEPLOY}\n[[ $PWD != */bomb ]] || exec python3 "$GITOPS_ROOT/../forks.py"'
    launcher = ["prlimit", "--nproc=600:600", *_as_nobody(python)]
    settings = {"GITOPS_SYNC_TIMEOUT": "10"}
    with Host(
        place, account, ["bomb", "site"], deploy=deploy, owner=NOBODY, launcher=launcher, settings=settings
    ) as host:
        bomb, site = host.repositories
        with Honest(host, line):
            host.push(host.number + 1)
            line.check(host.deliver(bomb) == 202, "the bomb's delivery was refused")
            until(lambda: len(children_of(host.daemon.process.pid)) > 300, "the deploy starts no processes", 60)
            for _ in range(20):
                status = host.deliver(site)
                line.check(status == 202, f"the answer was {status}")
            until(host.has_ended, "the deploy does not end", 120)
        sql = "SELECT outcome FROM runs WHERE repository = ? ORDER BY id DESC LIMIT 1"
        outcome = host.daemon.query(sql, bomb)
        line.check(outcome == [("timed-out",)], f"the outcome was {outcome}")


def _memory(place: Path, account: Account, line: Line) -> None:
    if not own_group():
        line.skipped = "this requires writable control groups of version 1 for memory"
        return
    (place / "many.py").write_text(MANY_PROCESSES)
    # The first sweep deploys too, before there is a limit.
    hungry = "case $PWD in */one) exec tail /dev/zero ;; */many) exec python3 $GITOPS_ROOT/../many.py ;; esac"
    deploy = f"{DEPLOY}\n[[ ! -e $GITOPS_ROOT/../limited ]] || {hungry}"
    with Host(place, account, ["one", "many", "site"], deploy=deploy) as host:
        for repository in host.repositories[:2]:
            with memory_limit(host.daemon.process.pid, 192 << 20) as count_kills:
                (place / "limited").touch()
                host.push(host.number + 1)
                line.check(host.deliver(repository) == 202, "the delivery was refused")
                until(lambda: count_kills() and host.is_idle(), "the kernel kills no process", 120)
                (place / "limited").unlink()
            outcome = host.daemon.query("SELECT outcome FROM runs WHERE repository = ? ORDER BY id DESC", repository)[0]
            line.check(outcome == ("deploy-failed",), f"the outcome of {repository} was {outcome}")
            line.check(host.daemon.process.poll() is None, f"{repository}: the daemon was killed")
        host.settle()


def _threads(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


@contextmanager
def _peak_threads(daemon: Daemon) -> Iterator[Callable[[], int]]:
    """Sample the number of threads; yields a function that returns the maximum so far."""
    peak, over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not over.wait(0.01):
            with suppress(OSError):  # the daemon has ended
                peak = max(peak, _threads(daemon))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield lambda: peak
    finally:
        over.set()
        sampler.join()


def _names(place: Path, line: Line, count: int) -> None:
    script = place / "sync.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    settings = {"GITOPS_SYNC_SCRIPT": str(script), "GITOPS_CLONE": "acme/*"}
    with Daemon(place, **settings) as daemon, _peak_threads(daemon) as peak:
        before = _threads(daemon)
        answers = burst(daemon.port, [push(f"acme/name{number}") for number in range(count)], 16)
        pending = "SELECT count(*) FROM deliveries WHERE pending"
        until(lambda: daemon.query(pending) == [(0,)], "deliveries are pending", 300)
        line.tried, line.held = count, answers[202]
        # The connections, and the slots with those whose observers still work.
        line.check(peak() <= before + 16 + 4 + 4, f"{peak()} threads, {before} before")
        line.remark = f"{peak()} threads at most, {before} before"
        daemon.kill()


def _locks(place: Path, account: Account, line: Line) -> None:
    if not _needs_nobody(line):
        return
    with Host(place, account, 3) as host, ExitStack() as held:
        for repository in host.repositories:
            lock = host.root / repository / ".git/gitops.lock"
            allowed = subprocess.run(_as_nobody("flock", "--nonblock", lock, "true"), capture_output=True)
            line.check(allowed.returncode != 0, "another user can lock .git/gitops.lock")
            for path in (host.root / repository, host.root / "acme"):
                descriptor = os.open(path, os.O_RDONLY)
                held.callback(os.close, descriptor)
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host.settle()
        for repository in host.repositories:
            refs = host.checkout_refs(repository)
            line.check(refs == [host.commits[host.number]] * 2, f"{repository} is at {refs}")


def _token(place: Path, line: Line) -> None:
    if not _needs_nobody(line):
        return
    bare, work = place / "forge/acme/site.git", place / "work"
    git = ["git", "-c", "init.defaultBranch=main", "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (
        ["init", "--quiet", "--bare", bare],
        ["clone", "--quiet", bare, work],
        ["-C", work, "commit", "--quiet", "--allow-empty", "--message=one"],
        ["-C", work, "push", "--quiet", "origin", "HEAD:main"],
    ):
        subprocess.run([*git, *map(str, command)], check=True, capture_output=True)
    (bare.parent / "other.git").symlink_to(bare)
    url = f"https://x:{_TOKEN}@forge.example/{{repository}}.git"
    (place / ".gitconfig").write_text(
        f'[url "{place}/forge/"]\n\tinsteadOf = https://x:{_TOKEN}@forge.example/\n[safe]\n\tdirectory = *\n'
    )
    (place / ".gitconfig").chmod(0o600)
    settings = {"GITOPS_CLONE": "acme/site", "GITOPS_CLONE_URL": url}
    with Daemon(place, **settings) as daemon:
        head = subprocess.run(["git", "-C", work, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        daemon.deliver(push("acme/site", head))
        daemon.wait_for("run cloned")
        done = _command(daemon, "add", "acme/other", **settings)
        line.check(done.returncode in (0, os.EX_NOINPUT), done.stderr)
        line.check(_TOKEN not in daemon.log + done.stdout + done.stderr, "the token is in a message")
        configs = [config for config in daemon.root.rglob("config") if _TOKEN in config.read_text()]
        line.check(len(configs) == 2, f"the token is in {configs}")
        found = subprocess.run(_as_nobody("grep", "-rlF", _TOKEN, place), capture_output=True, text=True)
        line.check(not found.stdout, f"another user can read {found.stdout}")
        daemon.kill()


def _command(daemon: Daemon, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside the daemon."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(daemon.root.parent),
        "PYTHONPATH": str(SOURCE),
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "GITOPS_ROOT": str(daemon.root),
        "GITOPS_STATE": str(daemon.state),
        "GITOPS_LISTEN": f"127.0.0.1:{daemon.port}",
        **settings,
    }
    command = [sys.executable, "-m", "gitops_hook", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


#: The beginning of an answer, and what follows it every 20 ms.
_ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" "),
    "the handshake of TLS": (b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x00"),
}


def _endless_answers(place: Path, line: Line) -> None:
    usual = api._DEADLINE
    api._DEADLINE = 1
    try:
        for name, (start, more) in _ENDLESS.items():
            with _dripping(start, more) as port:
                scheme = "https" if "TLS" in name else "http"
                client = api.Client(f"{scheme}://127.0.0.1:{port}", "token", tries=1)
                began = time.monotonic()
                try:
                    client.call("GET", "/rate_limit")
                    line.check(False, f"{name}: an answer")
                except api.ApiError as error:
                    seconds = time.monotonic() - began
                    line.check("takes too long" in str(error) and seconds < 10, f"{name}: {error}, {seconds:.1f} s")
    finally:
        api._DEADLINE = usual


@contextmanager
def _dripping(start: bytes, more: bytes) -> Iterator[int]:
    """Serve one connection with an answer that does not end; yields the port."""
    over = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(start)
            while not over.wait(0.02):
                connection.sendall(more)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        over.set()
        thread.join()


def _endless_listings(place: Path, line: Line) -> None:
    for link in ("", "?page=1&again=1"):
        with _answering(lambda port, link=link: [("Link", f'<http://127.0.0.1:{port}/list{link}>; rel="next"')]) as (
            port,
            asked,
        ):
            client = api.Client(f"http://127.0.0.1:{port}", "token", tries=1)
            try:
                list(client.pages("/list"))
                line.check(False, "the listing ended")
            except api.ApiError as error:
                line.check("do not end" in str(error) and len(asked) <= 2, f"{error}, after {len(asked)} calls")


@contextmanager
def _answering(fields: Callable[[int], list[tuple[str, str]]]) -> Iterator[tuple[int, list[bytes]]]:
    """Answer every request with an empty JSON list and the header fields for a port; yields the port and the bodies."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(200)
            for name, value in [*fields(self.server.server_address[1]), ("Content-Length", "4")]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"[{}]")

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port, bodies
        server.shutdown()
        thread.join()


def _late_notice(place: Path, line: Line) -> None:
    checkout = place / "root/acme/site"
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", checkout], check=True)
    git = ["git", "-C", str(checkout), "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=one"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "git://127.0.0.1:1/acme/site.git"], check=True)
    now = time.time()
    with closing(Journal(place / "state")) as journal:
        for number in range(300):
            claim = journal.start("acme/site", "push")
            if claim:
                ended = now - 1200 + 4 * number
                journal.finish(claim.run._replace(started=ended, ended=ended, outcome="unreachable"), settled=True)
    notices = place / "notices"
    (place / "notify").write_text(f'#!/bin/sh\necho "$GITOPS_NOTICE $GITOPS_OUTCOME" >>{notices}\n')
    (place / "notify").chmod(0o755)
    with Daemon(place, GITOPS_NOTIFY=str(place / "notify")) as daemon:
        for number in range(3):
            daemon.deliver(push("acme/site", f"{number + 1:040x}"))
            daemon.wait_for("run unreachable")
        until(notices.exists, "no notice is sent", 60)
        found = notices.read_text().splitlines()
        line.check(found == ["failing unreachable"], f"the notices are {found}")
        daemon.kill()


def _chat_markup(place: Path, line: Line) -> None:
    markup = ("<!channel> look", "@here", "<https://evil.example|docs>", "[docs](https://evil.example)")
    with _answering(lambda port: []) as (port, posted):
        (place / "chat").write_text(f"http://127.0.0.1:{port}/\n")
        for member in ("text", "content"):
            for text in markup:
                environ = {"PATH": os.environ["PATH"], "GITOPS_SUMMARY": text, "GITOPS_MESSAGE": text}
                command = [SOURCE / "contrib/notify/chat", place / "chat", member]
                subprocess.run(command, env=environ, check=True, timeout=60)
                sent = json.loads(posted[-1])[member]
                # A backslash, a zero-width space or an entity separates each character that has a meaning.
                active = re.search(r"(?<!\\)[<@](?!\u200b)|\](?!\u200b)\(", sent)
                line.check(not active, f"{member}: {text} was sent as {sent}")


def _locked_journal(place: Path, line: Line, seconds: int) -> None:
    """Lock the journal, keep 450 deliveries waiting, and check each pause between two notifications of the watchdog."""

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(place / "notify"))
        limit = 4.0  # the unit has 30
        settings = {"NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": str(int(limit * 1e6))}
        (place / "root/acme/site/.git").mkdir(parents=True)
        with Daemon(place, **settings) as daemon, closing(sqlite3.connect(place / "state/journal.db")) as neighbor:
            neighbor.execute("BEGIN IMMEDIATE")
            over = threading.Event()
            answers: list[int] = []

            def deliver() -> None:
                while not over.is_set():
                    with suppress(OSError, ValueError, IndexError):
                        answers.extend(burst(daemon.port, [push("acme/site")] * 450, 450))

            forge = threading.Thread(target=deliver)
            forge.start()
            last = ends = time.monotonic()
            ends += seconds
            reported = False
            supervisor.settimeout(2 * limit)
            while time.monotonic() < ends:
                with suppress(TimeoutError, socket.timeout):
                    message = supervisor.recv(4096)
                    reported |= b"the journal cannot be written: database is locked" in message
                    if message != b"WATCHDOG=1":
                        continue
                pause, last = time.monotonic() - last, time.monotonic()
                line.check(pause < limit, f"{pause:.1f} s without a notification")
            neighbor.rollback()
            over.set()
            forge.join()
            line.check(reported, "the locked journal was not reported")
            line.check(503 in answers and daemon.process.poll() is None, f"answers {set(answers)}")
            daemon.kill()


def _hanging_git(place: Path, account: Account, line: Line) -> None:
    """Stop the git that reads the commits of a run after its end, and deploy another checkout."""
    hangs = place / "hangs"
    (place / "tools").mkdir()
    git = place / "tools/git"
    git.write_text(
        f"""#!/bin/bash
if [[ -z ${{GITOPS_RUN:-}} && $* == */slow\\ *\\ rev-list\\ * && -e {hangs} ]]; then
    touch {hangs}.now
    while [[ -e {hangs} ]]; do sleep 0.05; done
fi
exec {shutil.which("git")} "$@"
"""
    )
    git.chmod(0o755)
    settings = {"PATH": f"{git.parent}:{os.environ['PATH']}", "GITOPS_MAX_SYNCS": "1"}
    with Host(place, account, ["slow", "site"], settings=settings) as host:

        def is_deployed() -> bool:
            return host.checkout_refs("acme/site") == [host.commits[host.number]] * 2

        for _ in range(3):
            hangs.touch()
            host.push(host.number + 1)
            host.deliver("acme/slow")
            until((place / "hangs.now").exists, "git does not hang", 60)
            host.deliver("acme/site")
            with suppress(AssertionError):
                until(is_deployed, timeout=8)  # git is killed after 10 s
            line.check(is_deployed(), "the other checkout was not deployed")
            hangs.unlink()
            (place / "hangs.now").unlink()
            until(host.is_idle, "the runs do not end", 60)


def _connections(place: Path, line: Line) -> None:
    with Daemon(place) as daemon, _peak_threads(daemon) as peak, ExitStack() as stack:
        before = _threads(daemon)
        for _ in range(2000):
            with suppress(OSError):
                peer = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 10))
                peer.sendall(b"POST /api/webhook/gitops HTTP/1.1\r\n")
                line.check(True)
        status = daemon.deliver(push("acme/site"))[0]
        line.check(status == 200, f"the answer was {status}")
        line.check(peak() <= before + 512, f"{peak()} threads")
        line.remark = f"{peak()} threads at most"
        daemon.kill()


def _exposure(place: Path, line: Line) -> None:
    if not shutil.which("systemd-analyze"):
        line.skipped = "systemd-analyze is not installed"
        return
    for unit in SOURCE.glob("gitops-hook*.service"):
        command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=19", unit]
        done = subprocess.run(command, capture_output=True, text=True)
        line.check(done.returncode == 0, done.stdout[-100:] + done.stderr)


def _failed_clones(place: Path, line: Line) -> None:
    settings = {"GITOPS_CLONE": "*/*", "GITOPS_CLONE_URL": f"{place}/nowhere/{{repository}}.git"}
    with Daemon(place, **settings) as daemon:
        for number in range(5):
            daemon.deliver(push(f"owner{number}/site"))
            daemon.wait_for(rf"run (?!started)\S+ repository=owner{number}/site")
            done = _command(daemon, "add", f"other{number}/site", **settings)
            left = list(daemon.root.iterdir())
            line.check(done.returncode == os.EX_TEMPFAIL and not left, f"exit {done.returncode}, left {left}")
        daemon.kill()


def _secrets(place: Path, line: Line) -> None:
    bad: dict[str, Any] = {
        "GITHUB_WEBHOOK_SECRET": {"GITHUB_WEBHOOK_SECRET": os.fsdecode(b"a-secret-that-is-not-utf-8-\xff")},
        "GITHUB_WEBHOOK_SECRET_FILE": {
            "GITHUB_WEBHOOK_SECRET": "",
            "GITHUB_WEBHOOK_SECRET_FILE": str(place / "secret"),
        },
    }
    (place / "secret").write_bytes(b"a-secret-that-is-not-utf-8-\xff\n")
    (place / "token").write_text("token\n")
    with Daemon(place) as daemon:
        for name, settings in bad.items():
            for words in (
                ["serve"],
                ["send", "acme/site"],
                ["register", "acme/site", "--url", "https://hooks.example.org"],
            ):
                done = _command(daemon, *words, GITHUB_TOKEN_FILE=str(place / "token"), **settings)
                clear = name in done.stderr and "is not UTF-8" in done.stderr and done.stderr.count("\n") == 1
                line.check(done.returncode == os.EX_CONFIG and clear, f"{words}: {done.returncode} {done.stderr}")
        daemon.kill()


def _secret_files(place: Path, line: Line) -> None:
    secrets = place / "secrets"
    settings = {"GITHUB_WEBHOOK_SECRET": "", "GITHUB_WEBHOOK_SECRET_FILE": str(secrets)}
    with Daemon(place) as daemon:  # the command's other settings
        for content in ("", "\n\n", "# a comment that is long enough\n"):
            secrets.write_text(content)
            done = _command(daemon, "serve", **settings)
            line.check(done.returncode == os.EX_CONFIG and done.stderr.count("\n") == 1, f"{content!r}: {done.stderr}")
        daemon.kill()
    secrets.write_text(f"# {SECRET}\nshort\n")
    with Daemon(place, **settings) as daemon:
        line.check("less than 16 bytes" in daemon.log, "there is no warning about a short secret")
        for secret, status in (("short", 200), (f"# {SECRET}", 401), (SECRET, 401), ("", 401)):
            answer = daemon.deliver({"zen": ""}, "ping", secret=secret)[0]
            line.check(answer == status, f"{secret!r}: the answer was {answer}")
        daemon.kill()


def _planted_links(place: Path, line: Line) -> None:
    files = {"gitops_sync.sh": b"#!/bin/bash\n", "sync/git.sh": b"echo\n"}
    for name in ("", "gitops_sync.sh", "sync", "sync/git.sh"):
        state = place / f"state-{name.replace('/', '-')}"
        directory = unpack(files, state)
        target = place / f"target-{name.replace('/', '-')}"
        (directory / name).rename(target)
        (directory / name).symlink_to(target)
        before = target.stat()
        unpacked = unpack(files, state)
        written = {path: (unpacked / path).read_bytes() for path in files}
        line.check(not (unpacked / name).is_symlink() and written == files, f"the link {name!r} stays")
        line.check(target.stat() == before, f"the target of {name!r} was changed")
