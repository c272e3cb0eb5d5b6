"""One run of the sync script: its arguments, its environment, its output, and what came of it.

Rules:

1. The script runs in a process group of its own, under a limit: ``timeout(1)`` ends the whole group, ``setpriv(1)``
   has that done when the daemon dies, however it dies. A run that did not end by itself leaves nothing of its group.
2. It inherits nothing by accident: an environment of named variables only, no descriptor but its output, standard
   input from /dev/null. The webhook's secret is in none of them.
3. The exit status is the judge; the result file may only refine what the status allows (`judge`).
4. Output flows through a pipe into a file that never grows beyond its bound: the beginning and the end are kept,
   the middle is dropped while it runs (`BoundedLog`). Reading the file is always possible, and tells what is missing.
5. No credential in a URL gets into that file, nor into a message: both are shown to people, and copied to others.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gitops_hook.logs import escape, log, redact

#: Exit statuses of the script and the outcomes that each allows (sysexits(3)); the first is what a script means that
#: says no more.
OUTCOMES: Mapping[int, tuple[str, ...]] = {
    0: ("updated", "unchanged", "cloned", "paused"),
    64: ("usage",),
    65: ("diverged", "dirty", "unverified"),
    66: ("missing", "mismatch"),
    70: ("deploy-failed",),
    71: ("rolled-back",),
    75: ("unreachable",),
    77: ("denied",),
}
#: All of them, and those that are not the script's to choose.
EVERY_OUTCOME = (*chain.from_iterable(OUTCOMES.values()), "failed", "timed-out", "interrupted")

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
#: What is kept of a run's output. A failure shows at the end, its cause often at the beginning.
HEAD_BYTES = 256 << 10
TAIL_BYTES = 1 << 20
#: How much is read at once: the size of a pipe.
_CHUNK = 64 << 10
#: What is still read of a pipe after the script has ended: all that it can hold, and no more, for a process that a
#: deploy left behind may go on writing for ever.
_AFTERMATH = 1 << 20
#: What a failure's own log entry shows of the output: enough for a compiler's last words, and little enough that the
#: whole line, unless most of it is beyond ASCII, stays below the 4 KiB that a pipe takes at once.
_LAST_LINES = 10
_LAST_BYTES = 1500

#: The beginning of a URL at the end of what has been read, which may go on with a credential. Beyond 4 KiB it does not.
_UNFINISHED = re.compile(rb"""(?i:\b(?:h|ht|htt|https?)|(?:\bhttps?)?(?::|:/|://[^\x00-\x20/"'<>]{0,4096}))\Z""")
#: What paints a terminal or moves its cursor (ECMA-48: control sequences), and what else is not to be read.
_PAINT = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


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


class LogPart(NamedTuple):
    """A part of a run's output. `offset` counts the bytes of all that was printed, up to the end of this part."""

    content: bytes
    offset: int


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
        with self._in_hand():
            status = confined(command, environment, log_path, limit)
        timed_out = time.monotonic() - started >= limit
        said = _read_result(result_file)
        with suppress(OSError):
            result_file.unlink()
        result = judge(status, said, timed_out=timed_out)
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
    def _in_hand(self) -> Iterator[None]:
        """Let `terminate` know, while this lasts, that this thread has a run in hand."""
        thread = threading.get_native_id()
        with self._lock:
            self._threads.add(thread)
        try:
            yield
        finally:
            with self._lock:
                self._threads.discard(thread)


def confined(
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


def judge(status: int, said: Mapping[str, str], *, timed_out: bool = False) -> Result:
    """What a run came to, from its exit `status` (negative for a signal) and from what it `said` in its result file.

    `timed_out` says that the limit had passed; then timeout(1) was the one who ended it.
    """
    if status in OUTCOMES:
        allowed = OUTCOMES[status]
        outcome = said.get("outcome", "")
        outcome = outcome if outcome in allowed else allowed[0]
    elif timed_out and (status in (124, 137, 143) or status < 0):
        outcome = "timed-out"
    elif status < 0 or status in (128 + signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGINT):
        outcome = "interrupted"
    else:
        outcome = "failed"
    before, after, message = (escape(redact(said.get(key, "")))[:1000] for key in ("before", "after", "message"))
    return Result(outcome, status, before, after, message)


def last_lines(path: Path) -> str:
    """The last lines of a run's output, without colours and controls: `_LAST_LINES` or `_LAST_BYTES` at most."""
    try:
        with path.open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), 4 * _LAST_BYTES), os.SEEK_END)
            text = _PAINT.sub("", file.read().decode("utf-8", "replace"))
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return "\n".join(lines[-_LAST_LINES:]).encode()[-_LAST_BYTES:].decode("utf-8", "ignore")


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


class BoundedLog:
    """A pipe to write to, and a file that keeps the first and the last of what was written.

    The file grows to head plus twice the tail, then is written anew without the middle and moved into place. So
    whoever reads it sees whole files only, and neither disk nor memory is ever asked for more than a few times the
    bound. The reader keeps the writers waiting rather than the disk growing: that is what a pipe does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._dropped = 0
        self._held = b""
        self._fault: OSError | None = None

    def __enter__(self) -> BoundedLog:
        """Begin the file, and read from `pipe` until the block ends. Raises OSError, and leaves nothing open then."""
        with ExitStack() as opened:
            self._file = self._path.open("w+b", buffering=0)
            opened.callback(lambda: self._file.close())  # noqa: PLW0108 - whichever it is then, see _drop_middle
            self._output, self.pipe = _pipe(opened)
            self._over, self._end = _pipe(opened)
            self._reader = threading.Thread(target=self._read, name=f"log of run {self._path.stem}", daemon=True)
            try:
                self._reader.start()
            except RuntimeError as error:  # that is how Python reports EAGAIN
                raise OSError(errno.EAGAIN, str(error)) from error
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        os.write(self._end, b"\0")
        self._reader.join()
        self._opened.close()
        if self._fault:
            log.warning("output of a run is lost", run=self._path.stem, file=self._path, reason=self._fault)

    def _read(self) -> None:
        """Keep what comes until nobody can write any more, or until the run is over and the pipe is empty."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(self._over, select.POLLIN)  # when the run is over
        aftermath = 0
        while True:
            ready = dict(poll.poll())
            if self._output in ready:
                chunk = os.read(self._output, _CHUNK)
                if not chunk:
                    return self._keep(redacted(self._held))
                self._keep(self._fit(chunk))
                aftermath += len(chunk) if self._over in ready else 0
            if self._over in ready and (self._output not in ready or aftermath > _AFTERMATH):
                return self._keep(redacted(self._held))

    def _fit(self, chunk: bytes) -> bytes:
        """What of the output so far is fit to be kept: a URL that is cut in two is held back until its rest comes."""
        output = self._held + chunk
        unfinished = _UNFINISHED.search(output, max(0, len(output) - 5000))
        end = unfinished.start() if unfinished else len(output)
        self._held = output[end:]
        return redacted(output[:end])

    def _keep(self, chunk: bytes) -> None:
        if self._fault:
            return  # the pipe is read all the same, or the script would wait for ever
        try:
            self._size += len(chunk)
            while chunk:  # a disk that fills takes a part, and refuses the rest
                chunk = chunk[self._file.write(chunk) :]
            if self._size > HEAD_BYTES + 2 * TAIL_BYTES:
                self._drop_middle()
        except OSError as error:
            self._fault = error

    def _drop_middle(self) -> None:
        self._file.seek(0)
        head = self._file.read(HEAD_BYTES)
        self._file.seek(-TAIL_BYTES, os.SEEK_END)
        tail = self._file.read(TAIL_BYTES)
        # From the second time on, the note of the last time is among what goes.
        self._dropped += self._size - len(head) - len(tail) - (len(_note(self._dropped)) if self._dropped else 0)
        note = _note(self._dropped)
        new = self._path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.writelines((head, note, tail))
            new.replace(self._path)
        except OSError:
            new.unlink(missing_ok=True)  # it would take what a full disk has left
            raise
        self._file.close()
        self._file = self._path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        self._size = len(head) + len(note) + len(tail)


def read_log(path: Path, offset: int, size: int) -> LogPart:
    """What a run printed from `offset` on, some `size` bytes at most; nothing where its log is not there (any more).

    An offset counts the bytes that were printed, kept or not, so who follows a log sees none of them twice. Where the
    middle was dropped meanwhile, he gets the line that says so, and what comes behind it.
    """
    try:
        with path.open("rb") as file:
            file.seek(HEAD_BYTES)
            note = _NOTE.match(file.read(_LONGEST_NOTE))
            if note and offset >= HEAD_BYTES:
                kept_from = HEAD_BYTES + int(note[1])
                start = max(offset, kept_from)
                file.seek(HEAD_BYTES + len(note[0]) + start - kept_from)
                content = file.read(size)
                return LogPart((note[0] if offset < kept_from else b"") + content, start + len(content))
            file.seek(offset)
            content = file.read(min(size, HEAD_BYTES - offset) if note else size)
            return LogPart(content, offset + len(content))
    except OSError:
        return LogPart(b"", offset)


def redacted(output: bytes) -> bytes:
    """`redact` for bytes, which need not be text."""
    return redact(output.decode("latin-1")).encode("latin-1") if b"://" in output else output


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """A pipe whose ends `opened` closes."""
    ends = os.pipe()
    for descriptor in ends:
        opened.callback(os.close, descriptor)
    return ends


def _note(dropped: int) -> bytes:
    """The line that stands where the middle was."""
    return b"\n[gitops-hook left out %d bytes here]\n" % dropped


_NOTE = re.compile(re.escape(_note(0)).replace(b"0", b"([0-9]{1,18})"))
_LONGEST_NOTE = len(_note(10**18 - 1))
