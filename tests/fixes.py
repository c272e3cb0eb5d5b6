"""Find every place that produces a fix of doctor, and observe which of them produced a fix that a test pastes.

The constructors of a problem are `failure` and `warning`. A place is named ``module.function N``: the Nth call of a
constructor in that function. A test declares the places whose fixes it pastes with the marker ``fixes``.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from harness import HERE, SOURCE

from gitops_hook.cli.doctor import finding

CONSTRUCTORS = (finding.failure, finding.warning)
_NAMES = [constructor.__name__ for constructor in CONSTRUCTORS]


class Place(NamedTuple):
    """A call of a constructor, and its lines."""

    name: str
    path: Path
    first: int
    last: int


@cache
def places() -> tuple[Place, ...]:
    """Return every place in gitops_hook that produces a fix."""
    found = []
    for path, tree in _sources():
        module = path.parent.name if path.stem == "__init__" else path.stem
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and _name(node) in _NAMES]
            calls.sort(key=lambda call: (call.lineno, call.col_offset))
            for number, call in enumerate(calls, 1):
                found.append(Place(f"{module}.{function.name} {number}", path, call.lineno, call.end_lineno or 0))
    return tuple(found)


def other_problems() -> list[str]:
    """Return the places outside of the constructors that create a problem."""
    found = []
    for path, tree in _sources():
        own = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in _NAMES]
        constructors = {id(child) for function in own for child in ast.walk(function)}
        for node in ast.walk(tree):
            is_result = isinstance(node, ast.Call) and _name(node) in ("Finding", "Result")
            if is_result and id(node) not in constructors and re.search(r"\b(FAILURE|WARNING)\b", ast.unparse(node)):
                found.append(f"{path.name}:{node.lineno}")
    return found


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    """Yield the modules that create a finding, parsed."""
    for path in sorted((SOURCE / "gitops_hook").rglob("*.py")):
        text = path.read_text()
        if re.search(r"(?<![.\w])(failure|warning|Finding|Result)\(", text):
            yield path, ast.parse(text)


def declared() -> set[str]:
    """Return the places that the tests declare."""
    found: set[str] = set()
    for path in HERE.rglob("test_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "mark.fixes(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fixes":
                found.update(word.value for word in node.args if isinstance(word, ast.Constant))
    return found


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", "")


class Observer:
    """Observe the constructors in every thread that starts later, and in this one."""

    def __init__(self) -> None:
        self._places = places()
        self._codes = {constructor.__code__ for constructor in CONSTRUCTORS}
        self._producers: dict[str, set[str]] = defaultdict(set)
        #: The places of the pasted fixes.
        self.pasted: set[str] = set()

    def __enter__(self) -> Observer:
        threading.setprofile(self._observe)
        sys.setprofile(self._observe)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def paste(self, fix: str) -> None:
        """Note that the test runs a fix."""
        self.pasted |= self._producers[fix]

    def _observe(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in self._codes and frame.f_back:
            path, line = Path(frame.f_back.f_code.co_filename), frame.f_back.f_lineno
            names = {place.name for place in self._places if place.path == path and place.first <= line <= place.last}
            self._producers[frame.f_locals["fix"]] |= names
