"""The output of a run: a file that keeps the beginning and the end, and readers of it.

Rules:

1. Output flows through a pipe into a file of bounded size. If there is more, the middle is dropped while the run goes
   on, and a note in its place says how much.
2. The file can be read at any time: it is replaced in one step, so a reader sees a complete file.
3. No credential in a URL reaches the file.
4. A fault of the disk loses output, and never stops the script.
"""

from __future__ import annotations

import errno
import os
import re
import select
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gitops_hook.log import log
from gitops_hook.text import redacted

#: The bytes that are kept of the beginning and of the end. A failure shows at the end, its cause often at the start.
HEAD_BYTES = 256 << 10
TAIL_BYTES = 1 << 20
#: The bytes of one read: the size of a pipe.
_CHUNK = 64 << 10
#: The bytes that are still read after the script has ended: as much as a pipe can hold. A process that a deploy left
#: behind may write for ever.
_MAX_AFTER_END = 1 << 20
#: The part of the output that the log line of a failure shows: enough for the last errors of a compiler, and so little
#: that the line normally stays below the 4 KiB that a pipe takes in one piece.
_LAST_LINES = 10
_LAST_BYTES = 1500
#: The start of a URL at the end of the data, which may continue with a credential of at most 4 KiB.
_UNFINISHED_URL = re.compile(rb"""(?i:\b(?:h|ht|htt|https?)|(?:\bhttps?)?(?::|:/|://[^\x00-\x20/"'<>]{0,4096}))\Z""")
#: Control sequences of a terminal (ECMA-48), and other control characters except the line feed.
_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class LogPart(NamedTuple):
    """A part of a run's output. `offset` is the position of its end among all bytes that were printed."""

    content: bytes
    offset: int


def last_lines(path: Path) -> str:
    """Return the last lines of a run's output, at most 10 lines or 1,500 bytes, without control characters."""
    try:
        with path.open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), 4 * _LAST_BYTES), os.SEEK_END)
            text = _CONTROLS.sub("", file.read().decode("utf-8", "replace"))
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return "\n".join(lines[-_LAST_LINES:]).encode()[-_LAST_BYTES:].decode("utf-8", "ignore")


class BoundedLog:
    """A pipe to write to, and a file that keeps the first and the last bytes that were written.

    The file grows to the head plus twice the tail. Then it is written again without the middle and moved into place.
    If the disk is slow, the writers wait, as usual with a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._dropped = 0
        self._held = b""
        self._fault: OSError | None = None

    def __enter__(self) -> BoundedLog:
        """Create the file, and read from `pipe` until the block ends. Raises OSError, and leaves nothing open then."""
        with ExitStack() as opened:
            self._file = self._path.open("w+b", buffering=0)
            opened.callback(lambda: self._file.close())  # noqa: PLW0108 - _drop_middle replaces the file
            self._output, self.pipe = _pipe(opened)
            self._over, self._end = _pipe(opened)
            self._reader = threading.Thread(target=self._read, name=f"log of run {self._path.stem}", daemon=True)
            try:
                self._reader.start()
            except RuntimeError as error:  # Python reports EAGAIN like this
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
        """Keep the output until no writer is left, or until the run is over and the pipe is empty."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(self._over, select.POLLIN)  # readable when the run is over
        after_end = 0
        while True:
            ready = dict(poll.poll())
            if self._output in ready:
                chunk = os.read(self._output, _CHUNK)
                if not chunk:
                    return self._keep(redacted(self._held))
                self._keep(self._redact(chunk))
                after_end += len(chunk) if self._over in ready else 0
            if self._over in ready and (self._output not in ready or after_end > _MAX_AFTER_END):
                return self._keep(redacted(self._held))

    def _redact(self, chunk: bytes) -> bytes:
        """Return the output so far without credentials. The start of a URL is held back until its rest arrives."""
        output = self._held + chunk
        unfinished = _UNFINISHED_URL.search(output, max(0, len(output) - 5000))
        end = unfinished.start() if unfinished else len(output)
        self._held = output[end:]
        return redacted(output[:end])

    def _keep(self, chunk: bytes) -> None:
        if self._fault:
            return  # the pipe is still read, or the script would block
        try:
            self._size += len(chunk)
            while chunk:  # a disk that becomes full accepts a part, and rejects the rest
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
        # From the second time on, the previous note is in the middle too.
        self._dropped += self._size - len(head) - len(tail) - (len(_note(self._dropped)) if self._dropped else 0)
        note = _note(self._dropped)
        new = self._path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.writelines((head, note, tail))
            new.replace(self._path)
        except OSError:
            new.unlink(missing_ok=True)  # it would occupy the rest of a full disk
            raise
        self._file.close()
        self._file = self._path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        self._size = len(head) + len(note) + len(tail)


def read_log(path: Path, offset: int, size: int) -> LogPart:
    """Return about `size` bytes of a run's output from `offset` on; nothing if its log does not exist (any more).

    An offset counts the bytes that were printed, kept or not, so a reader that follows a log sees no byte twice. If the
    middle was dropped in the meantime, the reader gets the note, and the output after it.
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


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """Return the two ends of a pipe, which `opened` closes."""
    ends = os.pipe()
    for descriptor in ends:
        opened.callback(os.close, descriptor)
    return ends


def _note(dropped: int) -> bytes:
    """Return the line that replaces the middle."""
    return b"\n[gitops-hook left out %d bytes here]\n" % dropped


_NOTE = re.compile(re.escape(_note(0)).replace(b"0", b"([0-9]{1,18})"))
_LONGEST_NOTE = len(_note(10**18 - 1))
