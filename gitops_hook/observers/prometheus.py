"""Count events, and format metrics in the text format of Prometheus.

Rules:

1. Nothing here does I/O or knows what is measured.
2. The label values of a counter are declared when it is created. No text from outside becomes a label, and a rate is
   known from the first event.

Source: Prometheus, "Exposition formats", text format version 0.0.4.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """A value with its labels, and the suffix that a histogram appends to the name."""

    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


class Counter:
    """The number of events of each kind. Threads may share it."""

    def __init__(self, labels: Sequence[str], kinds: Iterable[Sequence[str]]) -> None:
        """Start every count at 0. `kinds` are the values of `labels` for every possible kind of event."""
        self._labels = labels
        # Guards _counts. `add` and `samples` take it.
        self._lock = threading.Lock()
        self._counts = {tuple(kind): 0 for kind in kinds}

    def add(self, *kind: str) -> None:
        """Count one event. Raises `KeyError` for an undeclared kind."""
        with self._lock:
            self._counts[kind] += 1

    def samples(self) -> list[Sample]:
        """Return one sample for each kind."""
        with self._lock:
            counts = list(self._counts.items())
        return [Sample(count, dict(zip(self._labels, kind))) for kind, count in counts]


class Histogram:
    """The distribution of durations. Threads may share it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with empty buckets. `bounds` are their upper bounds in ascending order; a last bucket has none."""
        self._bounds = bounds
        # Guards _counts and _sum. `observe` and `samples` take it.
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one value. A negative value, measured by a clock that was set back, counts as 0."""
        value = max(0.0, value)
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def samples(self) -> list[Sample]:
        """Return the cumulative buckets, the sum and the count."""
        with self._lock:
            cumulative, total = list(accumulate(self._counts)), self._sum
        bounds = [*map(_format, self._bounds), "+Inf"]
        buckets = [Sample(count, {"le": bound}, "_bucket") for bound, count in zip(bounds, cumulative)]
        return [*buckets, Sample(total, suffix="_sum"), Sample(cumulative[-1], suffix="_count")]


def format_family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of one metric. `kind` is ``counter``, ``gauge`` or ``histogram``; `text` is its help text."""
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for value, labels, suffix in samples:
        pairs = ",".join(f'{label}="{content.translate(_ESCAPES)}"' for label, content in labels.items())
        yield f"{name}{suffix}{f'{{{pairs}}}' if pairs else ''} {_format(value)}\n"


def _format(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
