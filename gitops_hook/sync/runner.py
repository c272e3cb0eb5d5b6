"""One execution of the sync script: arguments, environment, process group, limits, result.

Rules:

1. The script runs in a process group of its own, under a time limit. ``timeout(1)`` ends the whole group;
   ``setpriv(1)`` ends it when the daemon dies, also after SIGKILL. A deploy can stop its whole group, ``timeout(1)``
   included, so the daemon kills the group itself soon after the limit. A run that did not end by itself leaves nothing
   of its group behind.
2. The script inherits named environment variables, its output and ``/dev/null`` as standard input, and nothing else.
   The webhook's secret is in none of them.
3. The exit status decides the outcome. The result file only chooses among the outcomes of that status.
4. A run is identified by a random token in its environment. After a lost journal, two runs can have the same number.
5. A deploy cannot start the last `RESERVED_PROCESSES` processes of the daemon's user or control group. One that forks
   without end leaves the daemon able to answer. The kernel does not apply this limit to root.
6. Messages and logs contain no credentials of URLs, because people read them and copy them.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.names import repository_of
from gitops_hook.outcomes import BY_SCRIPT, SCRIPT_CAUSES
from gitops_hook.sync.run_log import BoundedLog
from gitops_hook.text import escape, redact

#: The steps of a run whose end times the script reports, in their order.
STEPS = ("fetched", "deployed", "healthy")
#: The file next to the log into which the script writes its result, and until then the steps so far.
_RESULT_SUFFIX = ".result"
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
#: The variables of the daemon's environment that a script and its deploy commands inherit. A list of permitted names
#: is complete; a list of secrets to remove never is.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "TZ", "TMPDIR",
    "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "GIT_SSH", "GIT_SSH_COMMAND", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM",
)  # fmt: skip
#: The longest suggested command.
_MAX_FIX = 4000
#: Seconds between SIGTERM and SIGKILL for a process group that must end.
GRACE = 10
#: Seconds beyond the limit and the grace period after which the daemon kills a group whose timeout(1) did not.
_KILL_MARGIN = 2.0
#: The processes and threads that are left to the daemon and its git commands.
RESERVED_PROCESSES = 256
#: Sends SIGTERM to a command when its parent dies: to timeout(1) when the daemon dies, and to the script when
#: timeout(1) dies, which does not know its child yet if a signal ends it during its fork.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")


class Task(NamedTuple):
    """The input of a run. Everything except `repository` is a hint."""

    repository: str
    run: int
    ref: str = ""
    after: str = ""
    event: str = ""
    delivery: str = ""
    #: The number of deliveries that the run claimed; the hints above are those of the newest.
    deliveries: int = 0
    clone_url: str = ""
    #: Whether to deploy even if no deploy is pending, and even a commit that was rolled back.
    again: bool = False
    force: bool = False
    #: The repository's new name, if it was renamed.
    renamed: str = ""


class Result(NamedTuple):
    """The result of a run. `exit` is negative for a signal, and None if the script could not be started."""

    outcome: str
    exit: int | None
    before: str = ""
    after: str = ""
    message: str = ""
    #: The end times of the steps that were done, in seconds since the epoch.
    fetched: float | None = None
    deployed: float | None = None
    healthy: float | None = None
    #: Why it did not end by itself, or why a person must act after it: a key of `outcomes.CAUSES`.
    cause: str | None = None
    #: One command that repairs the problem, or empty.
    fix: str = ""


class Runner:
    """Executes one script for checkouts under one root. Threads may share it."""

    def __init__(self, script: Path, root: Path, environ: Mapping[str, str]) -> None:
        self._script = script
        self._environment = inherited(environ, root)
        # The runs whose script is executed, by the kernel ids of their threads. Guarded by _lock, which `run` takes at
        # its start and end, and `terminate` while it sends signals.
        self._threads: dict[int, int] = {}
        self._lock = threading.Lock()

    def run(self, task: Task, log_path: Path, limit: int) -> Result:
        """Execute the script for at most `limit` seconds, with its output in `log_path`, and wait for its end.

        Raises OSError if it cannot be started, for want of descriptors, processes or disk space.
        """
        result_file = log_path.with_suffix(_RESULT_SUFFIX)
        command = [str(self._script), *_options(task), task.repository.rpartition("/")[2]]
        environment = {**self._environment, **_contract(task, result_file, limit)}
        began, started = time.time(), time.monotonic()
        with self._registered(task.run):
            status = run_limited(command, environment, log_path, limit)
        timed_out = time.monotonic() - started >= limit
        fields = read_result(result_file)
        with suppress(OSError):
            result_file.unlink()
        result = classify_exit(status, fields, timed_out=timed_out)
        if result.outcome in ("timed-out", "interrupted"):
            _kill_remains(environment["GITOPS_RUN_TOKEN"])
        times = _step_times(fields, began, time.time())
        return result._replace(
            fetched=times.get("fetched"), deployed=times.get("deployed"), healthy=times.get("healthy")
        )

    def terminate(self, run: int | None = None) -> None:
        """End the script of a run, or of all: SIGTERM for its group, SIGKILL after the grace period. Do not wait."""
        with self._lock:
            for thread in [thread for thread, number in self._threads.items() if run in (None, number)]:
                for child in _children(thread):
                    # timeout(1) forwards a signal to its group, except during its fork.
                    for send in (os.killpg, os.kill):
                        with suppress(ProcessLookupError):
                            send(child, signal.SIGTERM)

    @contextmanager
    def _registered(self, run: int) -> Iterator[None]:
        """Make the current thread known to `terminate`."""
        thread = threading.get_native_id()
        with self._lock:
            self._threads[thread] = run
        try:
            yield
        finally:
            with self._lock:
                del self._threads[thread]


def _options(task: Task) -> list[str]:
    return ["--force"] if task.force else ["--again"] if task.again else []


def run_limited(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path, limit: int, stdin: int = subprocess.DEVNULL
) -> int:
    """Run `command` in a process group of its own for at most `limit` seconds, with its output in `log_path`.

    Return its exit status, that of timeout(1) if the limit ended it, or the negative number of a signal. Raises OSError
    if it cannot be started.
    """
    timeout = ["timeout", f"--kill-after={GRACE}", str(limit)]
    with BoundedLog(log_path) as output:
        try:
            return subprocess.run(
                [*_DIE_WITH_PARENT, *timeout, *_DIE_WITH_PARENT, *_limit_processes(), *command],
                env=environment,
                stdin=stdin,
                stdout=output.pipe,
                stderr=subprocess.STDOUT,
                timeout=limit + GRACE + _KILL_MARGIN,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:  # only timeout(1) is dead; the caller kills what is left of its group
            return -signal.SIGKILL


def _limit_processes() -> list[str]:
    """Return the command that starts another with fewer processes than the daemon may have, if those are bounded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    bounds = [bound for bound in (soft, hard, _cgroup_limit()) if bound not in (None, resource.RLIM_INFINITY)]
    if not bounds:
        return []
    bound = min(int(bound) for bound in bounds if bound is not None)
    return ["prlimit", f"--nproc={max(bound - RESERVED_PROCESSES, bound // 2)}"]


def _cgroup_limit() -> int | None:
    """Return the maximal number of tasks in the daemon's control group (cgroups(7), version 2), or None."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        text = Path(f"/sys/fs/cgroup{path}/pids.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def inherited(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the part of `environ` that a script inherits, with the root that it works under."""
    return {**{name: environ[name] for name in INHERITED if name in environ}, "GITOPS_ROOT": str(root)}


def classify_exit(status: int, fields: Mapping[str, str], *, timed_out: bool = False) -> Result:
    """Return the result of a script that ended with `status`, negative for a signal, and wrote `fields`.

    `timed_out` says that the time limit had passed, so that timeout(1) was the one that ended it.
    """
    if status in BY_SCRIPT:
        allowed = BY_SCRIPT[status]
        outcome = fields.get("outcome", "")
        outcome = outcome if outcome in allowed else allowed[0]
    elif timed_out and (status in (124, 137, 143) or status < 0):
        outcome = "timed-out"
    elif status < 0 or status in (128 + signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGINT):
        outcome = "interrupted"
    else:
        outcome = "failed"
    before, after, message = (escape(redact(fields.get(key, "")))[:1000] for key in ("before", "after", "message"))
    cause = "limit" if outcome == "timed-out" else fields["cause"] if fields.get("cause") in SCRIPT_CAUSES else None
    fix = redact(fields.get("fix", ""))
    # A command that had to be escaped or shortened would be another command.
    fix = fix if escape(fix) == fix and len(fix) <= _MAX_FIX else ""
    return Result(outcome, status, before, after, message, cause=cause, fix=fix)


def steps_so_far(log_path: Path, began: float) -> dict[str, float]:
    """Return the end times of the steps of a current run, whose output is in `log_path`."""
    return _step_times(read_result(log_path.with_suffix(_RESULT_SUFFIX)), began, time.time())


def _step_times(fields: Mapping[str, str], began: float, ended: float) -> dict[str, float]:
    """Return the end times of the steps that the script reports, as far as they are plausible.

    A time is plausible if it is within the run, or at most a second away: an old bash reports whole seconds, which may
    lie before the start.
    """
    reported = {step: float(fields[step]) for step in STEPS if _TIME.fullmatch(fields.get(step, ""))}
    return {step: min(max(at, began), ended) for step, at in reported.items() if began - 1 <= at <= ended + 1}


def _contract(task: Task, result_file: Path, limit: int) -> dict[str, str]:
    """Return the variables that the script's contract defines; one without a value is not set."""
    variables = {
        "GITOPS_REPOSITORY": repository_of(task.repository) if "/" in task.repository else "",
        "GITOPS_REF": task.ref,
        "GITOPS_AFTER": task.after,
        "GITOPS_EVENT": task.event,
        "GITOPS_DELIVERY": task.delivery,
        "GITOPS_DELIVERIES": str(task.deliveries or ""),
        "GITOPS_RUN": str(task.run),
        "GITOPS_RUN_TOKEN": secrets.token_hex(16),
        "GITOPS_TIMEOUT": str(limit),
        "GITOPS_RESULT": str(result_file),
        "GITOPS_CLONE_URL": task.clone_url,
        "GITOPS_RENAMED": task.renamed,
    }
    return {name: value for name, value in variables.items() if value}


def read_result(path: Path) -> dict[str, str]:
    """Return the ``key=value`` lines that the script wrote, at most 64 KiB; none if there is no regular file."""
    try:
        if not path.is_file():
            return {}  # opening a FIFO would block for ever
        with path.open("rb") as file:
            text = file.read(64 << 10).decode("utf-8", "replace")
    except OSError:
        return {}
    # Not splitlines(), which takes a form feed in a message for the end of a line.
    return {key: value for key, equals, value in (line.partition("=") for line in text.split("\n")) if equals}


def _children(thread: int) -> list[int]:
    """Return the processes that the thread with this kernel id has started and not yet reaped (proc(5))."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{thread}/children").read_text().split()]
    except OSError:
        return []


def _kill_remains(token: str) -> None:
    """Kill the rest of a run's process group whose leader, timeout(1), is gone; it no longer has the script's lock.

    Its processes are identified by the run's token in their environment. A process in another group was meant to stay.
    """
    variable = f"GITOPS_RUN_TOKEN={token}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if variable in (process / "environ").read_bytes().split(b"\0"):
                group = os.getpgid(int(process.name))
                if not Path(f"/proc/{group}").exists():
                    os.killpg(group, signal.SIGKILL)
