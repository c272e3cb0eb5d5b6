"""TODO."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from gitops_hook.log import log

if TYPE_CHECKING:
    from gitops_hook.sync.dispatcher import Dispatcher

#: Seconds that a worker waits for more work before it goes: a thread is cheap to start, and a sweep needs many.
_IDLE = 1.0
#: The first and the longest wait before another try, in seconds. The longest is what a polling timer would take.
_FIRST_WAIT = 5.0
_LONGEST_WAIT = 900.0


class WakeUp(NamedTuple):
    """What a queue carries: why to look, and whom to tell when that has been done."""

    trigger: str
    done: Callable[[], None] | None = None


class Worker:
    """The thread that runs one repository."""

    def __init__(self, dispatcher: Dispatcher, repository: str) -> None:
        self.repository = repository
        self.queue: queue.Queue[WakeUp] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name=f"worker {repository}", daemon=True)
        self._dispatcher = dispatcher
        #: How many tries in a row have settled nothing.
        self._failures = 0
        #: When the next try is due, or when this worker has been idle for long enough, on the dispatcher's clock.
        self.due = dispatcher._clock() + self._next_timeout()

    def _work(self) -> None:
        while self.run_once():
            pass

    def run_once(self) -> bool:
        """Wait for a wake-up, or until a try is due, and act on it; returns whether there is to be another turn."""
        wakes = self._wait()
        if any(wake.trigger == "stop" for wake in wakes):
            return False
        if not wakes and not self._failures:
            return not self._dispatcher._retire(self)
        # A push alone runs only what is owed; whatever else was asked for, or a try that is due, runs anyway.
        triggers = [wake.trigger for wake in wakes] or ["retry"]
        trigger = next((trigger for trigger in triggers if trigger != "push"), "push")
        settled = False
        try:
            try:
                settled = self._dispatcher.step(self.repository, trigger)
            finally:
                for wake in wakes:
                    if wake.done:
                        wake.done()
        except Exception:
            log.exception("a worker met a fault of our own", repository=self.repository)
        self._failures = 0 if settled else self._failures + 1
        self.due = self._dispatcher._clock() + self._next_timeout()
        return True

    def _next_timeout(self) -> float:
        """How long to wait for a wake-up: until the next try is due, or until this worker is idle."""
        if not self._failures:
            return _IDLE
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._failures - 1, 10))
        return wait * (0.75 + self._dispatcher._jitter() / 2)

    def _wait(self) -> list[WakeUp]:
        """Every wake-up in the queue once there is one; none if there was none until it is due to look."""
        wakes = []
        with suppress(queue.Empty):
            wakes.append(self.queue.get(timeout=max(0.0, self.due - self._dispatcher._clock())))
            while True:
                wakes.append(self.queue.get_nowait())
        return wakes
