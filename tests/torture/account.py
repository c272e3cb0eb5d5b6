"""The table of results: the number of attempts for each promise and each fault, and the number of successes."""

from __future__ import annotations

from typing import TextIO

#: The promises, by their numbers in docs/reliability.md.
PROMISES = {
    1: "a delivery answered 202 is served by a run that began after it was received",
    2: "two runs of one repository never overlap",
    3: "an outcome is never better than the truth",
    4: "without a valid signature nothing is parsed, written, queued or run",
    5: "no repository, client or deploy starves the others: 202 within a second, p99",
    6: "memory, disk, threads and descriptors stay bounded, and come back",
}
#: The number of reasons that a failed line prints; the rest is only counted.
_REASONS = 5


class Line:
    """One row of the table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tried = 0
        self.held = 0
        #: A measured figure, printed after the counts.
        self.remark = ""
        #: The reason why the test cannot run on this machine; a skipped line counts neither as held nor as failed.
        self.skipped = ""
        self.reasons: list[str] = []

    @property
    def failed(self) -> bool:
        """Return True if an attempt failed, or if there was no attempt."""
        return not self.skipped and (self.tried == 0 or self.held < self.tried)

    def check(self, held: object, reason: str = "") -> None:
        """Count one attempt; `reason` explains a failure."""
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
        return "\n".join([row, *(f"    FAILED: {reason}" for reason in reasons or ["there was no attempt"])])


class Account:
    """All lines: a fault is printed after its test, the promises at the end."""

    def __init__(self, out: TextIO) -> None:
        self.promises = {number: Line(f"{number}  {promise}") for number, promise in PROMISES.items()}
        self.faults: list[Line] = []
        self._out = out

    def fault(self, name: str) -> Line:
        """Add a line for a fault and return it."""
        self.faults.append(Line(name))
        return self.faults[-1]

    def print(self, line: object) -> None:
        """Print a line of the table immediately."""
        print(line, file=self._out, flush=True)

    @property
    def failed(self) -> list[Line]:
        """The lines with a failure or without an attempt."""
        return [line for line in [*self.faults, *self.promises.values()] if line.failed]
