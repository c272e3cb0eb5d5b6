"""Lock the state directory. Only the process that holds the lock writes the journal.

Rules:

1. The lock is flock(2) on the state directory itself. The kernel releases it when the holder dies, however it dies.
2. The holder describes itself in the file ``holder.json``: its process, its purpose and its control socket. The file is
   valid only while the lock is held.
3. A daemon that finds the lock held by a command's temporary process asks that process to stop, and waits.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from gitops_hook.errors import GitopsError, StartError

#: What the daemon calls itself in ``holder.json``.
DAEMON = "the daemon"
#: Seconds between two attempts to get the lock.
_INTERVAL = 0.1
#: Seconds for a holder to write its description, or to end after it has closed its socket.
_PATIENCE = 3.0


class Holder(NamedTuple):
    """The process that holds the lock."""

    pid: int
    #: The path of its control socket; empty while it starts.
    socket: str
    #: Its purpose, such as "the daemon" or "gitops-hook sync".
    what: str


def holder(state: Path) -> Holder | None:
    """Return the process that holds the lock of a state directory, or None.

    Raises `GitopsError` (77) without permission to look.
    """
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GitopsError(77, f"{state}: {error.strerror}") from None
    try:
        # A process that wants the lock at this very moment tries again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read(state)
    finally:
        os.close(descriptor)


class StateLock:
    """The lock of one state directory, held until `release`."""

    def __init__(self, state: Path, what: str) -> None:
        """Create a lock that is not held. `what` describes the holder."""
        self._state = state
        self._what = what
        self._descriptor = -1

    def acquire(self, wait: float = _PATIENCE, waiting: Callable[[Holder], None] = lambda holder: None) -> None:
        """Create the state directory and lock it, after waiting at most `wait` seconds for another holder.

        `waiting` is called every second with that holder. Raises `StartError`.
        """
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._state, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StartError(f"GITOPS_STATE={str(self._state)!r} cannot be used: {error.strerror}") from None
        deadline, report = time.monotonic() + wait, time.monotonic() + 1
        while not self._try():
            found = _read(self._state)
            # Another daemon does not stop for this one.
            if time.monotonic() >= deadline or (self._what == found.what == DAEMON):
                self.release()
                raise StartError(f"another gitops-hook uses GITOPS_STATE={str(self._state)!r}: {found.what}")
            if time.monotonic() >= report:
                report += 1
                waiting(found)
            time.sleep(_INTERVAL)
        self.describe("")

    def describe(self, control: str) -> None:
        """Write the description of this process, with the path of its control socket."""
        content = json.dumps(Holder(os.getpid(), control, self._what)._asdict()).encode() + b"\n"
        temporary = self._state / "holder.json.new"
        with suppress(FileNotFoundError):
            temporary.unlink()
        try:
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb"
            ) as file:
                file.write(content)
            temporary.replace(self._state / "holder.json")
        except OSError as error:  # without it, commands cannot send requests; deliveries and runs go on
            raise StartError(f"{temporary}: {error.strerror}") from None

    def release(self) -> None:
        """Release the lock. Calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _try(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False


def ask_to_stop(found: Holder) -> None:
    """Send SIGTERM to the temporary process of a command. The kernel confirms the process by its control socket."""
    if found.what == DAEMON or not found.socket:
        return
    with suppress(OSError), closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(1)
        connection.connect(found.socket)
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid == found.pid:
            os.kill(pid, signal.SIGTERM)


def _read(state: Path) -> Holder:
    """Return the description of the holder; a holder of version 0.1 has none."""
    try:
        fields = json.loads((state / "holder.json").read_bytes())
        return Holder(int(fields["pid"]), str(fields["socket"]), str(fields["what"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "", DAEMON)
