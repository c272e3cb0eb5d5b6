"""Metrics in the text format that Prometheus reads.

Rules:

1. No I/O, and nothing is known here of what is measured.
2. Labels are bounded: the samples of a counter are all declared when it is made, so no text from outside can make one,
   and a rate is known from the first event on.
3. Names and units are the maker's care; a gauge has no memory, it is what its samples say when they are asked for.

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
    """A value, by what its labels say."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """Everything of one name: its kind (``counter``, ``gauge`` or ``histogram``), what it means, its samples."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


def gauge(name: str, text: str, value: float, /, **labels: str) -> Family:
    """A gauge of one sample."""
    return Family(name, "gauge", text, [Sample(labels, value)])


class Counter:
    """A number of events, by what kind of event it was. Threads may share it."""

    def __init__(self, name: str, text: str, labels: Sequence[str], known: Iterable[Sequence[str]]) -> None:
        """`known` holds the values of `labels` for each kind of event that there can be."""
        self._name = name
        self._text = text
        self._labels = labels
        self._counts = {tuple(values): 0 for values in known}
        self._lock = threading.Lock()  # guards _counts, for a step

    def add(self, *values: str) -> None:
        """Count an event of this kind; raises KeyError for a kind that was not declared."""
        with self._lock:
            self._counts[values] += 1

    def family(self) -> Family:
        """What was counted so far."""
        with self._lock:
            counts = list(self._counts.items())
        samples = [Sample(dict(zip(self._labels, values)), count) for values, count in counts]
        return Family(self._name, "counter", self._text, samples)


class Histogram:
    """How often something took how long. Threads may share it."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """`bounds` are the upper ends of the buckets, rising; what is longer than all of them counts too."""
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()  # guards the two above, for a step

    def observe(self, value: float) -> None:
        """Note one more."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def family(self) -> Family:
        """What was noted so far: buckets that hold the lesser ones too, the sum and the count."""
        with self._lock:
            running, total = list(accumulate(self._counts)), self._sum
        ends = [*map(_number, self._bounds), "+Inf"]
        samples = [Sample({"le": end}, count, "_bucket") for end, count in zip(ends, running)]
        samples += [Sample({}, total, "_sum"), Sample({}, running[-1], "_count")]
        return Family(self._name, "histogram", self._text, samples)


def exposition(families: Iterable[Family]) -> Iterator[str]:
    """The lines that tell of `families`, each with its end."""
    for name, kind, text, samples in families:
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
        for labels, value, suffix in samples:
            named = ",".join(f'{label}="{told.translate(_ESCAPES)}"' for label, told in labels.items())
            yield f"{name}{suffix}{{{named}}} {_number(value)}\n" if named else f"{name}{suffix} {_number(value)}\n"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
