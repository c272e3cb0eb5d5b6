"""Runs that a command performs itself, with the daemon's own code.

They are in the journal like the daemon's runs and claim pending deliveries. The script's lock prevents overlap.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager

from gitops_hook import log
from gitops_hook.cli import render
from gitops_hook.cli.session import EX_NOPERM, EX_USAGE, canonical_name, find_checkout, show_progress
from gitops_hook.config import Settings
from gitops_hook.errors import GitopsError
from gitops_hook.github.commit_status import CommitStatusReporter
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Run
from gitops_hook.names import is_valid, may_clone
from gitops_hook.observers.commits import Commits
from gitops_hook.outcomes import BY_NAME, outcome_of
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import Dispatcher, RunObserver
from gitops_hook.sync.runner import GRACE


def sync_now(settings: Settings, names: Sequence[str], *, as_json: bool, trigger: str = "manual") -> int:
    """Sync repositories with a progress line on a terminal; return the exit status of the worst outcome."""
    for name in names:
        if not is_valid(name):
            raise GitopsError(EX_USAGE, f"`{name}` is not a repository's name")
        if not may_clone(name, settings.clone):
            find_checkout(settings, name)
    names = list(dict.fromkeys(canonical_name(settings, name) for name in names))
    log.mute()  # the command prints its own messages
    runs: list[Run] = []

    def on_end(number: int, run: Run) -> None:
        runs.append(run)
        show_progress(number, len(names), f"{run.repository} {run.outcome}")

    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(Journal(settings.state, repair=False)) as journal:
            checkouts = Checkouts(settings.root)
            observers: list[RunObserver] = [Commits(journal, checkouts)]
            if settings.report:
                observers.append(CommitStatusReporter(journal))  # it leaves rows that the daemon sends
            dispatcher = Dispatcher.from_settings(settings, os.environ, journal, checkouts, observers)
            status = _run_all(dispatcher, names, trigger, settings.max_syncs, on_end)
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{error.filename}: {error.strerror}") from error
    render.print_runs(runs, as_json=as_json)
    if not as_json:
        render.print_messages(runs)
    return status


def _run_all(
    dispatcher: Dispatcher, repositories: Sequence[str], trigger: str, limit: int, on_end: Callable[[int, Run], None]
) -> int:
    """Sync `repositories`, at most `limit` at a time; return the exit status of the worst outcome.

    A signal that ends the process ends the current runs first, and raises SystemExit after they are recorded.
    """
    worst = BY_NAME["updated"]
    runs: list[Future[Run]] = []
    with _signals_raise(), ThreadPoolExecutor(limit) as pool:
        try:
            for name in repositories:
                runs.append(pool.submit(dispatcher.run_now, name, trigger))
            for number, future in enumerate(runs, 1):
                run = future.result()
                on_end(number, run)
                worst = max(worst, outcome_of(run.outcome), key=lambda outcome: outcome.rank)
        except SystemExit:
            pool.shutdown(wait=False, cancel_futures=True)
            dispatcher.stop()
            dispatcher.terminate()
            # A run that was about to start its script misses the first signal.
            while wait([future for future in runs if not future.cancelled()], GRACE + 1).not_done:
                dispatcher.terminate()
            raise
    return worst.exit


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise SystemExit on the first signal that ends the process, and ignore later ones.

    A signal that was ignored before, as under nohup(1), stays ignored.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def end(number: int, frame: object) -> None:
        for other in handled:
            signal.signal(other, lambda number, frame: None)
        raise SystemExit(128 + number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
