"""The commands about the host: migrate, doctor."""

from __future__ import annotations

import os

from gitops_hook.cli import doctor as checks
from gitops_hook.cli import migrate as migration
from gitops_hook.cli import render, timers
from gitops_hook.cli.messages import EX_DATAERR
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import become_owner, find_checkout, given_flags, load_settings
from gitops_hook.config import UNIT_STATE, Settings, load, unit_environment
from gitops_hook.errors import ConfigError


def doctor(given: Arguments) -> int:
    """Check the host, print the findings, and return the exit status of the worst level."""
    environ = {**unit_environment(), **os.environ}
    try:
        settings = load(environ, given_flags(given))
    except ConfigError as error:
        other_user = checks.finding_of_user(UNIT_STATE)
        findings = [other_user or checks.finding_of_setting(error, os.environ)]
    else:
        findings = _check_host(settings, given.repository)
    render.print_findings(findings, as_json=given.json)
    return checks.EXIT[checks.worst_level(findings)]


def _check_host(settings: Settings, repository: str | None) -> list[checks.Finding]:
    """Run all checks, or those of one repository."""
    other_user = checks.finding_of_user(settings.state)
    if other_user:
        return [other_user]
    if repository:
        become_owner(settings)
        return checks.run_for_checkouts(settings, find_checkout(settings, repository))
    findings = checks.run(checks.AS_CALLER, settings)
    become_owner(settings)
    findings += checks.run(checks.AS_SERVICE, settings)
    return findings + checks.run_for_checkouts(settings)


def migrate(given: Arguments) -> int:
    """Adopt the checkouts that timers poll, or undo that, or delete the units. Return 65 if a timer remains."""
    settings = load_settings(given)
    record = migration.Record(settings.state)
    if given.undo:
        for unit in sorted(record.entries):
            print(f"{unit}: restored to its earlier state")
            if not given.dry_run:
                migration.undo(unit, record)
        return 0
    found = timers.find_timers(settings.root, given.unit)
    if given.remove:
        files = migration.removable_files(record, found)
        for path in files:
            print(f"remove {path}")
        if files and not given.dry_run:
            migration.remove(files, record)
        return 0
    return _migrate(given, settings, record, found)


def _migrate(given: Arguments, settings: Settings, record: migration.Record, found: list[timers.Timer]) -> int:
    service = settings.state.stat()
    steps = migration.plan(found, settings.root, service)
    print(*(map(str, steps) if steps else [f"no timer {given.unit} polls a checkout"]), sep="\n")
    for step in steps:
        if not step.obstacle and not given.dry_run:
            migration.migrate(step, record, service)
    return EX_DATAERR if any(step.obstacle for step in steps) else 0
