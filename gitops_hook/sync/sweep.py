"""Visit many checkouts with a bound on how many of them are in progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def feed(repositories: Iterable[str], lanes: int, start: Callable[[str, Callable[[], None]], bool]) -> None:
    """Start `repositories` one after another, at most `lanes` of them at the same time.

    `start` gets a repository and a function to call at its end. It returns False if there is nothing to wait for.
    """
    rest = iter(repositories)
    lock = threading.Lock()  # guards `rest`, which workers advance, and which may start git to read a name

    def next_one() -> None:
        while True:
            with lock:
                repository = next(rest, None)
            if not repository or start(repository, next_one):
                return

    for _ in range(lanes):
        next_one()
