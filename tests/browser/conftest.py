"""A real Chromium, and pages whose errors fail the test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import generated
from harness import Daemon
from scenes import Scene, a_busy_week

#: Debian's name first. Without these flags it would look for updates, and refuse to be run by root.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright in this environment")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., object]]:
    """Opens pages; at the end, none may have met an error, or asked anybody but the daemon for anything."""
    wrong: list[str] = []
    with ExitStack() as stack:

        def make(
            url: str, width: int = 1200, height: int = 800, *, ignore_status: bool = False, **options: object
        ) -> object:
            context = chromium.new_context(viewport={"width": width, "height": height}, **options)
            stack.callback(context.close)
            page = context.new_page()
            reported = () if ignore_status else ("error", "warning")
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            page.on("console", lambda entry: wrong.append(entry.text) if entry.type in reported else None)
            ours = "/".join(url.split("/")[:3]) + "/"
            page.on("request", lambda asked: None if asked.url.startswith((ours, "data:")) else wrong.append(asked.url))
            page.goto(url)
            return page

        yield make
    assert wrong == []


@pytest.fixture(scope="session")
def violations() -> Callable[[Any], list[str]]:
    """Return a function that returns what axe-core reports about a page: its faults of accessibility."""
    package = pytest.importorskip("axe_core_python", reason="no axe-core-python in this environment")
    script = (Path(package.__file__).parent / "axe.min.js").read_text()

    def check(page: Any) -> list[str]:
        if page.evaluate("typeof axe === 'undefined'"):
            page.evaluate(script)
        # The elements without a fault would be most of the report.
        found = page.evaluate("axe.run({resultTypes: ['violations']}).then(report => report.violations)")
        return [
            f"{fault['impact']} {fault['id']}: {[node['html'][:200] for node in fault['nodes']]}" for fault in found
        ]

    return check


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Iterator[Scene]:
    """A host on which a lot has happened; tests only look at it."""
    folder = tmp_path_factory.mktemp("week")
    with Daemon(folder, GITOPS_DASHBOARD_LISTEN="127.0.0.1:0") as daemon:
        made = Scene(folder, daemon)
        a_busy_week(made)
        yield made


@pytest.fixture(scope="session")
def generated_host(tmp_path_factory) -> Iterator[Callable[[int], generated.Host]]:
    """Serve pages over generated repositories, one host for each number. Tests only read them."""
    hosts: dict[int, generated.Host] = {}
    with ExitStack() as stack:

        def serve(repositories: int) -> generated.Host:
            if repositories not in hosts:
                folder = tmp_path_factory.mktemp("generated")
                hosts[repositories] = stack.enter_context(generated.serve(folder, repositories))
            return hosts[repositories]

        yield serve


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    """A host on which nothing has happened yet."""
    with Daemon(tmp_path, GITOPS_DASHBOARD_LISTEN="127.0.0.1:0") as daemon:
        yield Scene(tmp_path, daemon)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return the directory of screenshots: $PICTURES, or else a temporary directory."""
    return Path(os.environ.get("PICTURES") or tmp_path)
