"""Start gitops-hook in a process that is forked from an interpreter that has already imported it.

The start of an interpreter and its imports take most of the processor time of a test that runs a command. Each process
of pytest starts one fork server, which imports the package once. A request names the arguments, the environment, the
working directory and the standard streams of a program. The program is a process of its own, with its own descriptors,
signals and exit status. Only the interpreter's own settings (PYTHON*, LC_*) and ``/proc/PID/cmdline`` are the server's.

    pytest --request, descriptors--> server --fork--> program
       ^                               |
       +-- pid, then the exit status --+
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from harness import MEASURED, SOURCE

#: The size in bytes of a pid or a wait status in a report of the server.
WORD = 4


def run(words: list[str], env: dict[str, str], python: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within a minute; `python` is an interpreter to start instead."""
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        command = [python, "-m", "gitops_hook", *words] if python else words
        spawn = subprocess.Popen if python else Program
        status = spawn(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors).wait(60)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(words, status, output.read(), errors.read())


class Program:
    """A running ``gitops-hook``, with the parts of Popen's interface that the tests use."""

    def __init__(
        self,
        words: list[str],
        *,
        env: dict[str, str],
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.DEVNULL,
        stderr: int | IO[str] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        text: bool = True,
    ) -> None:
        """Start the program. Of the streams, `stderr` alone may be PIPE; the pipe carries text."""
        self.args = words
        self.returncode: int | None = None
        self.stderr: IO[str] | None = None
        opened = []
        if stderr == subprocess.PIPE:
            ours, stderr = os.pipe()
            opened.append(stderr)
            self.stderr = open(ours, encoding="utf-8")  # noqa: SIM115, PTH123 - the owner of the program closes it
        null = os.open(os.devnull, os.O_RDWR)
        self._report, theirs = socket.socketpair()
        report = theirs.detach()
        opened += [null, report]
        streams = [null if stream == subprocess.DEVNULL else stream for stream in (stdin, stdout, stderr)]
        numbers = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
        request = {
            "words": words,
            "env": env,
            "directory": str(Path.cwd()),
            "targets": [0, 1, 2, *pass_fds],
        }
        socket.send_fds(_server(), [json.dumps(request).encode()], [report, *numbers, *pass_fds])
        for descriptor in opened:
            os.close(descriptor)
        self.pid = int.from_bytes(self._report.recv(WORD), sys.byteorder)

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            status = int.from_bytes(self._report.recv(WORD), sys.byteorder)
            self._report.close()
            self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status as soon as the program has ended."""
        if self.returncode is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> socket.socket:
    """Start the server of this process and return the socket for requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(SOURCE), **MEASURED},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


# -- The server -----------------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Fork a program for each request; return in the program, and end the server when nobody can request more."""
    reports: dict[int, int] = {}  # the descriptor on which the end of each running program is reported
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # a full pipe wakes the server too
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal with a handler wakes the server
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to pytest, and pytest ends the programs
    while True:
        ready, _, _ = select.select([requests, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            report_ends(reports)
        if requests not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, 65536, 64)
        if not message:
            os._exit(0)
        report, *streams = descriptors
        pid = os.fork()
        if pid == 0:
            break
        reports[pid] = report
        send_word(report, pid)
        for descriptor in streams:
            os.close(descriptor)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests.close()
    for descriptor in (report, reading, writing, *reports.values()):
        os.close(descriptor)
    become(json.loads(message), streams)


def report_ends(reports: dict[int, int]) -> None:
    """Report the wait status of each program that has ended."""
    for pid in list(reports):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report = reports.pop(pid)
            send_word(report, status)
            os.close(report)


def send_word(report: int, word: int) -> None:
    """Send a pid or a wait status to pytest, which may no longer listen."""
    with suppress(BrokenPipeError):
        os.write(report, word.to_bytes(WORD, sys.byteorder))


def become(request: dict, descriptors: list[int]) -> None:
    """Give this process the arguments, environment, directory and descriptors of a request."""
    # First move them out of the way: a source may have the number of another one's target.
    moved = [os.dup2(descriptor, 100 + number, inheritable=False) for number, descriptor in enumerate(descriptors)]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, target in zip(moved, request["targets"]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["directory"])
    sys.argv[1:] = request["words"]


def end_with(status: object) -> None:
    """End this process like the interpreter, without freeing its objects, which takes as long as a command.

    multiprocessing ends its processes in the same way.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    import gitops_hook
    from gitops_hook.cli.main import main
    from gitops_hook.cli.parser import build_parser

    for module in pkgutil.walk_packages(gitops_hook.__path__, "gitops_hook."):
        import_module(module.name)
    build_parser()
    gc.collect()
    gc.freeze()  # the collector of a program leaves the pages that it shares with the server unchanged
    serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        ended_with: object = main()
    except SystemExit as exit_:
        ended_with = exit_.code
    except BaseException:
        traceback.print_exc()
        ended_with = 1
    end_with(ended_with)
