"""Add the daemon's log to the report of a failed test under systemd."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.when == "call" and report.failed and machine:
        report.sections.append(("the daemon's log", "\n".join(machine.log().splitlines()[-40:])))
