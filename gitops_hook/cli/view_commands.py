"""The commands that only read: status, runs, logs. They work without a daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from gitops_hook.cli import render
from gitops_hook.cli.messages import EX_NOINPUT, EX_USAGE
from gitops_hook.cli.parser import MAX_DIGITS, Arguments
from gitops_hook.cli.session import canonical_name, load_settings, open_reader
from gitops_hook.errors import GitopsError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Run
from gitops_hook.outcomes import BAD, severity_of
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.status import repository_statuses
from gitops_hook.text import suggest

#: The number of runs to print, and to read at once.
_DEFAULT_NUMBER = 20
_PAGE = 100
#: Seconds between two queries for the next run.
_POLL = 0.5


def status(given: Arguments) -> int:
    """Print the state of every repository, or of one."""
    settings = load_settings(given)
    only = [canonical_name(settings, given.repository)] if given.repository else []
    statuses = repository_statuses(open_reader(settings), Checkouts(settings.root), only)
    if only and statuses[0].run is None and statuses[0].path is None:
        raise GitopsError(EX_NOINPUT, f"{given.repository} has neither a checkout nor a run")
    render.print_statuses(statuses, as_json=given.json)
    return 0


def runs(given: Arguments) -> int:
    """Print the newest runs, of all repositories or of one, or those that served a delivery."""
    if given.delivery and (given.repository or given.failed or given.since):
        raise GitopsError(EX_USAGE, "give --delivery alone, without REPO, --failed and --since")
    settings = load_settings(given)
    journal = open_reader(settings)
    if given.delivery:
        return _print_delivery(journal, given.delivery, as_json=given.json)
    name = canonical_name(settings, given.repository) if given.repository else None
    if name and not journal.runs(name, 1):
        raise GitopsError(EX_NOINPUT, f"{given.repository} never ran{suggest(name, Checkouts(settings.root))}")
    number = given.number or (None if given.since else _DEFAULT_NUMBER)
    found = islice(_matching_runs(journal, name, given.since, failed=given.failed), number)
    if_none = "No run matches." if given.failed or given.since else "No run yet."
    render.print_runs(list(found), as_json=given.json, if_none=if_none)
    return 0


def _matching_runs(journal: JournalReader, name: str | None, since: float | None, *, failed: bool) -> Iterator[Run]:
    """Yield the runs of one repository or of all, newest first; of the last `since` seconds, if given."""
    start = time.time() - since if since else 0.0
    before: int | None = None
    while True:
        page = journal.runs(name, _PAGE, before)
        for run in page:
            if run.started < start:
                return
            if not failed or (run.outcome and severity_of(run.outcome) == BAD):
                yield run
        if len(page) < _PAGE:
            return
        before = page[-1].id


def _print_delivery(journal: JournalReader, guid: str, *, as_json: bool) -> int:
    """Print the runs that served a delivery, once for each time it arrived, and the rows that no run has claimed."""
    deliveries = journal.deliveries(guid)
    if not deliveries:
        raise GitopsError(EX_NOINPUT, f"no delivery {guid} was accepted")
    numbers = dict.fromkeys(delivery.run for delivery in deliveries if delivery.run)
    if numbers:
        render.print_runs([run for run in map(journal.run, numbers) if run], as_json=as_json)
    render.print_unclaimed([delivery for delivery in deliveries if not delivery.run], as_json=as_json)
    return 0


def logs(given: Arguments) -> int:
    """Print the output of a run by its number, or of the newest run of a repository."""
    settings = load_settings(given)
    journal = open_reader(settings)
    if given.what.isdecimal():
        run = journal.run(int(given.what) if len(given.what) <= MAX_DIGITS else 0)
        if not run:
            raise GitopsError(EX_NOINPUT, f"there is no run {given.what}")
        render.print_log(journal, run, follow=given.follow)
        return 0
    name = canonical_name(settings, given.what)
    run = next(iter(journal.runs(name, 1)), None)
    if not run:
        raise GitopsError(EX_NOINPUT, f"{given.what} never ran{suggest(name, Checkouts(settings.root))}")
    render.print_log(journal, run, follow=given.follow)
    while given.follow:
        run = _next_run(journal, run)
        print(f"==> run {run.id} of {run.repository} <==", flush=True)
        render.print_log(journal, run, follow=True)
    return 0


def _next_run(journal: JournalReader, run: Run) -> Run:
    """Wait for the run of the same repository after `run`, and return it."""
    while True:
        later = [other for other in journal.runs(run.repository, _PAGE) if other.id > run.id]
        if later:
            return later[-1]
        time.sleep(_POLL)
