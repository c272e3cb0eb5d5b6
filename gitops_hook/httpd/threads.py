"""Threads that serve connections: a reserve from the start, more on demand."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Threads(Generic[T]):
    """Calls a function with each submitted item, each in a thread.

    The reserve exists before the first item. It still serves when the system refuses new threads, because another
    process of the same user or unit has used them up. If there are `most` threads, an item waits for one of them.
    """

    def __init__(self, reserve: int, most: int, serve: Callable[[T], None]) -> None:
        """Start `reserve` threads. Raise RuntimeError if the system refuses. `serve` must not raise."""
        self._reserve = reserve
        self._most = most
        self._serve = serve
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        # Guards the three below. Any thread takes it, for a few steps.
        self._lock = threading.Lock()
        self._threads = reserve
        #: Threads that wait for an item, minus the items that wait for a thread.
        self._idle = 0
        self._closed = False
        for _ in range(reserve):
            threading.Thread(target=self._run, daemon=True).start()

    def submit(self, item: T) -> bool:
        """Serve an item. Return False if every thread is busy and the system refuses another one."""
        with self._lock:
            if self._idle > 0 or self._threads >= self._most:
                self._idle -= 1
                self._items.put(item)
                return True
            self._threads += 1
        try:
            threading.Thread(target=self._run, args=(item,), daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
            return False
        return True

    def enqueue(self, item: T) -> None:
        """Serve an item as soon as a thread is free."""
        with self._lock:
            self._idle -= 1
            self._items.put(item)

    def close(self) -> None:
        """End every idle thread now, and the others when they become idle."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._items.put(None)
            self._idle = min(0, self._idle)

    def _run(self, item: T | None = None) -> None:
        """Serve items until there are more idle threads than the reserve needs."""
        while True:
            if item is not None:
                self._serve(item)
            with self._lock:
                if self._idle >= (0 if self._closed else self._reserve):
                    self._threads -= 1
                    return
                self._idle += 1
            item = self._items.get()
            if item is None:  # the end, in `close`
                return
