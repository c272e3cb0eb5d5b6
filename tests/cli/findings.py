"""Run one check of doctor."""

from __future__ import annotations

from harness import SECRET

from gitops_hook.cli import doctor
from gitops_hook.cli.doctor import OK, SKIPPED, Finding
from gitops_hook.config import Settings


def of(name: str, settings: Settings) -> list[Finding]:
    """Return the findings of one check."""
    for table in (doctor.AS_CALLER, doctor.AS_SERVICE):
        if name in table:
            return doctor.run({name: table[name]}, settings)
    return [finding for finding in doctor.run_for_checkouts(settings) if finding.check == name]


def only(name: str, settings: Settings, level: str) -> Finding:
    """Return the single finding of a check, which must have this level."""
    (finding,) = of(name, settings)
    assert finding.level == level, finding
    assert bool(finding.fix) == (level not in (OK, SKIPPED))
    assert SECRET not in str(finding)
    return finding
