"""One run of the sync script: its arguments, its environment, its output, and what came of it.

Rules:

1. The script runs in a process group of its own, under a limit: ``timeout(1)`` ends the whole group, ``setpriv(1)``
   has that done when the daemon dies, however it dies. A run that did not end by itself leaves nothing of its group.
2. It inherits nothing by accident: an environment of named variables only, no descriptor but its output, standard
   input from /dev/null. The webhook's secret is in none of them.
3. The exit status is the classify_exit; the result file may only refine what the status allows (`classify_exit`).
4. Output flows through a pipe into a file that never grows beyond its bound: the beginning and the end are kept,
   the middle is dropped while it runs (`BoundedLog`). Reading the file is always possible, and tells what is missing.
5. No credential in a URL gets into that file, nor into a message: both are shown to people, and copied to others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.outcomes import BY_SCRIPT
from gitops_hook.sync.run_log import BoundedLog
from gitops_hook.text import escape, redact

#: The steps of a run whose ends the script tells, in their order.
STEPS = ("fetched", "deployed", "healthy")
_MOMENT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
#: What a script and its deploy commands may see of the daemon's environment: who and where they are, how to reach
#: the network, and what git and ssh were told. Names, not patterns of secrets to hide, for those are never complete.
_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "TZ", "TMPDIR",
    "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "GIT_SSH", "GIT_SSH_COMMAND", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM",
)  # fmt: skip
#: Seconds between TERM and KILL for a group that has to go.
GRACE = 10
#: Ends what it starts with its parent: timeout(1) with the daemon, and the script with timeout(1), which forgets its
#: child where it is told to end in the moment of its fork.
_MORTAL = ("setpriv", "--pdeathsig", "TERM")


class Task(NamedTuple):
    """What the script is told. All of it but `repository` is hints."""

    repository: str
    run: int
    ref: str = ""
    after: str = ""
    event: str = ""
    delivery: str = ""
    #: How many deliveries the run serves; the hints above are the newest one's.
    deliveries: int = 0
    clone_url: str = ""


class Result(NamedTuple):
    """What came of a run; `exit` is negative for the signal that ended it, None where nothing was started."""

    outcome: str
    exit: int | None
    before: str = ""
    after: str = ""
    message: str = ""
    #: When steps were over, those that came to pass, in seconds since the epoch.
    fetched: float | None = None
    deployed: float | None = None
    healthy: float | None = None
    #: Why it did not end by itself, a key of `outcomes.CAUSES`.
    cause: str | None = None


class Runner:
    """Runs one script for repositories under one root. Threads may share it."""

    def __init__(self, script: Path, root: Path, environ: Mapping[str, str]) -> None:
        self._script = script
        self._environment = inherited(environ, root)
        # The threads with a run in hand, by their ids in the kernel. Guarded by _lock, which nobody holds for long.
        self._threads: set[int] = set()
        self._lock = threading.Lock()

    def run(self, task: Task, log_path: Path, limit: int) -> Result:
        """Run the script for `task`, `limit` seconds at most, its output in `log_path`; it blocks until the end.

        Raises OSError where it could not be started at all, for want of descriptors, processes or disk.
        """
        result_file = log_path.with_suffix(".result")
        command = [str(self._script), task.repository.rpartition("/")[2]]
        environment = {**self._environment, **_context(task, result_file)}
        began, started = time.time(), time.monotonic()
        with self._running():
            status = run_limited(command, environment, log_path, limit)
        timed_out = time.monotonic() - started >= limit
        said = _read_result(result_file)
        with suppress(OSError):
            result_file.unlink()
        result = classify_exit(status, said, timed_out=timed_out)
        if result.outcome in ("timed-out", "interrupted"):
            _end_remains({name: environment[name] for name in ("GITOPS_ROOT", "GITOPS_RUN")})
        moments = _moments(said, began, time.time())
        return result._replace(
            fetched=moments.get("fetched"), deployed=moments.get("deployed"), healthy=moments.get("healthy")
        )

    def terminate(self) -> None:
        """End every run in hand: TERM for its whole group, KILL after a grace. It does not wait for them."""
        with self._lock:
            for thread in self._threads:
                for child in _children(thread):
                    # timeout(1) hands it on to its group, but not while it forks: then it would leave the script.
                    for end in (os.killpg, os.kill):
                        with suppress(ProcessLookupError):
                            end(child, signal.SIGTERM)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let `terminate` know, while this lasts, that this thread has a run in hand."""
        thread = threading.get_native_id()
        with self._lock:
            self._threads.add(thread)
        try:
            yield
        finally:
            with self._lock:
                self._threads.discard(thread)


def run_limited(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path, limit: int, stdin: int = subprocess.DEVNULL
) -> int:
    """Run `command` in a process group of its own, `limit` seconds at most, its output in `log_path`.

    Returns its exit status, that of timeout(1) where the limit ended it, or less than 0 for a signal. Raises OSError
    where it could not be started at all.
    """
    with BoundedLog(log_path) as output:
        return subprocess.run(
            [*_MORTAL, "timeout", f"--kill-after={GRACE}", str(limit), *_MORTAL, *command],
            env=environment,
            stdin=stdin,
            stdout=output.pipe,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def inherited(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """What of `environ` a script may see, and the root that it is to work under."""
    return {**{name: environ[name] for name in _INHERITED if name in environ}, "GITOPS_ROOT": str(root)}


def classify_exit(status: int, said: Mapping[str, str], *, timed_out: bool = False) -> Result:
    """What a run came to, from its exit `status` (negative for a signal) and from what it `said` in its result file.

    `timed_out` says that the limit had passed; then timeout(1) was the one who ended it.
    """
    if status in BY_SCRIPT:
        allowed = BY_SCRIPT[status]
        outcome = said.get("outcome", "")
        outcome = outcome if outcome in allowed else allowed[0]
    elif timed_out and (status in (124, 137, 143) or status < 0):
        outcome = "timed-out"
    elif status < 0 or status in (128 + signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGINT):
        outcome = "interrupted"
    else:
        outcome = "failed"
    before, after, message = (escape(redact(said.get(key, "")))[:1000] for key in ("before", "after", "message"))
    cause = "limit" if outcome == "timed-out" else None
    return Result(outcome, status, before, after, message, cause=cause)


def _moments(said: Mapping[str, str], began: float, ended: float) -> dict[str, float]:
    """When steps were over, by the script's word, as far as that can be: within the run, or at most its second off.

    An old bash tells whole seconds, which may lie before the beginning.
    """
    told = {step: said[step] for step in STEPS if _MOMENT.fullmatch(said.get(step, ""))}
    moments = {step: float(moment) for step, moment in told.items()}
    return {step: min(max(at, began), ended) for step, at in moments.items() if began - 1 <= at <= ended + 1}


def _context(task: Task, result_file: Path) -> dict[str, str]:
    """The contract with the script, as environment; what is not known is not set."""
    context = {
        "GITOPS_REPOSITORY": task.repository if "/" in task.repository else "",
        "GITOPS_REF": task.ref,
        "GITOPS_AFTER": task.after,
        "GITOPS_EVENT": task.event,
        "GITOPS_DELIVERY": task.delivery,
        "GITOPS_DELIVERIES": str(task.deliveries or ""),
        "GITOPS_RUN": str(task.run),
        "GITOPS_RESULT": str(result_file),
        "GITOPS_CLONE_URL": task.clone_url,
    }
    return {name: value for name, value in context.items() if value}


def _read_result(path: Path) -> dict[str, str]:
    """The ``key=value`` lines that the script left, or nothing. 64 KiB bound what a broken script can make of it."""
    try:
        if not path.is_file():
            return {}  # to open a FIFO would wait for ever
        with path.open("rb") as file:
            text = file.read(64 << 10).decode("utf-8", "replace")
    except OSError:
        return {}
    # Not splitlines(), for which a form feed in the middle of a message would begin another line.
    return {key: value for key, equals, value in (line.partition("=") for line in text.split("\n")) if equals}


def _children(thread: int) -> list[int]:
    """The processes that the thread of this kernel id has started and not yet reaped (proc(5))."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{thread}/children").read_text().split()]
    except OSError:
        return []


def _end_remains(environment: Mapping[str, str]) -> None:
    """Kill what is left of a run's group when its leader, timeout(1), is gone: it goes on without the script's lock.

    Its processes are known by what they have of the run's `environment`. One in a group of its own was meant to stay.
    """
    ours = {f"{name}={value}".encode() for name, value in environment.items()}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if ours <= set((process / "environ").read_bytes().split(b"\0")):
                group = os.getpgid(int(process.name))
                if not Path(f"/proc/{group}").exists():
                    os.killpg(group, signal.SIGKILL)
