"""The table: how often each promise and each fault was tried, and how often all held."""

from __future__ import annotations

from typing import TextIO

#: The promises, by their numbers in docs/reliability.md.
PROMISES = {
    1: "a delivery answered 202 is served by a run that began after it was received",
    2: "two runs of one repository never overlap, whoever starts them",
    3: "an outcome is never better than the truth",
    4: "without a valid signature nothing is parsed, written, queued or run",
    5: "no repository, client or deploy starves the others: 202 within a second, p99",
    6: "memory, disk, threads and descriptors stay bounded, and come back",
}
#: So many reasons are told for a line that did not hold; the rest is counted.
_REASONS = 5


class Line:
    """A row of the table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tried = 0
        self.held = 0
        #: A figure worth its place behind the counts.
        self.remark = ""
        #: Why this could not be tried here; it counts as neither held nor failed.
        self.skipped = ""
        self.reasons: list[str] = []

    @property
    def failed(self) -> bool:
        """Whether it did not hold every time; what was never tried holds nothing."""
        return not self.skipped and (self.tried == 0 or self.held < self.tried)

    def check(self, held: object, reason: str = "") -> None:
        """Count one try."""
        self.tried += 1
        if held:
            self.held += 1
        else:
            self.reasons.append(reason)

    def __str__(self) -> str:
        counts = f"{'':>8} skipped" if self.skipped else f"{self.tried:8,} {self.held:7,}"
        row = f"{self.name:79} {counts}  {self.skipped or self.remark}".rstrip()
        if not self.failed:
            return row
        more = len(self.reasons) - _REASONS
        reasons = [*self.reasons[:_REASONS], *([f"and {more} more"] if more > 0 else [])]
        return "\n".join([row, *(f"    FAILED: {reason}" for reason in reasons or ["it was never tried"])])


class Account:
    """All lines, each printed when its ordeal is over, the promises at the end."""

    def __init__(self, out: TextIO) -> None:
        self.promises = {number: Line(f"{number}  {promise}") for number, promise in PROMISES.items()}
        self.faults: list[Line] = []
        self._out = out

    def fault(self, name: str) -> Line:
        """A new line."""
        self.faults.append(Line(name))
        return self.faults[-1]

    def print(self, line: object) -> None:
        """Print something of the table."""
        print(line, file=self._out, flush=True)

    @property
    def failed(self) -> list[Line]:
        """The lines that did not hold."""
        return [line for line in [*self.faults, *self.promises.values()] if line.failed]
