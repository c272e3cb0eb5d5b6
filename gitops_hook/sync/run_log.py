"""TODO."""

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


class LogPart(NamedTuple):
    """A part of a run's output. `offset` counts the bytes of all that was printed, up to the end of this part."""

    content: bytes
    offset: int


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
