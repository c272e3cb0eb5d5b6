"""The commands that only read: status, runs, logs. They work without a daemon."""

from __future__ import annotations

from gitops_hook.cli import render
from gitops_hook.cli.parser import MAX_DIGITS, Arguments
from gitops_hook.cli.session import EX_NOINPUT, EX_USAGE, canonical_name, load_settings, open_reader
from gitops_hook.errors import GitopsError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.status import repository_statuses


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
    if given.repository and given.delivery:
        raise GitopsError(EX_USAGE, "give REPO or --delivery, not both")
    settings = load_settings(given)
    journal = open_reader(settings)
    if given.delivery:
        return _print_delivery(journal, given.delivery, as_json=given.json)
    found = journal.runs(canonical_name(settings, given.repository) if given.repository else None, given.number)
    if given.repository and not found:
        raise GitopsError(EX_NOINPUT, f"{given.repository} never ran")
    render.print_runs(found, as_json=given.json)
    return 0


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
        problem = f"there is no run {given.what}"
    else:
        run = next(iter(journal.runs(canonical_name(settings, given.what), 1)), None)
        problem = f"{given.what} never ran"
    if not run:
        raise GitopsError(EX_NOINPUT, problem)
    render.print_log(journal, run, follow=given.follow)
    return 0
