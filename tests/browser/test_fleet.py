"""The page of a fleet in a browser: 100 hosts and 1,000 checkouts stay readable."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from big_fleet import big_fleet

from gitops_hook.config import Address
from gitops_hook.dashboard.app import Dashboard
from gitops_hook.dashboard.fleet import fleet_pages
from gitops_hook.fleet.grid import Grid
from gitops_hook.httpd.limits import PAGE_LIMITS
from gitops_hook.httpd.server import Server
from gitops_hook.httpd.sockets import listen_on_address
from gitops_hook.journal.writer import Journal
from gitops_hook.sync.checkouts import Checkouts


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The address of a dashboard whose fleet has 100 hosts and 1,000 checkouts."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "root").mkdir()
    state = big_fleet(100, 1000).state()
    journal = Journal(folder / "state")
    dashboard = Dashboard(journal, Checkouts(folder / "root"), more=fleet_pages(Grid("big", lambda patience: state)))
    server = Server(listen_on_address(Address("127.0.0.1", 0)), dashboard, PAGE_LIMITS, "dashboard")
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.drain(5)
    thread.join(10)
    journal.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_hundred_hosts_by_a_thousand_checkouts_are_readable(open_page, address, pictures: Path, scheme: str):
    begin = time.monotonic()
    page = open_page(f"{address}/fleet", width=1440, height=900, color_scheme=scheme)
    assert time.monotonic() - begin < 15
    page.screenshot(path=str(pictures / f"fleet-{scheme}.png"))
    assert page.inner_text("h1") == "2 of 1000 checkouts failed on a host"
    assert page.locator("table.grid tbody tr").count() == 50
    # Every host has a bar of 5 pixels with its gap, and the whole row is in sight.
    chart = page.locator("svg.hosts").nth(0).bounding_box()
    assert chart["width"] == 500
    assert chart["x"] + chart["width"] <= 1440
    row = page.locator("table.grid tbody tr").nth(1)
    assert "98 of 100" in row.inner_text()
    assert "host-050" in row.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_rollouts_show_their_stages_and_their_halt_above_the_grid(open_page, address):
    page = open_page(f"{address}/fleet", width=1440, height=900)
    rollouts = page.locator("section.rollouts")
    assert rollouts.bounding_box()["y"] < page.locator("table.grid").bounding_box()["y"]
    assert [item.inner_text().split()[1] for item in rollouts.locator("ol.stages").nth(2).locator("li").all()] == [
        "passed",
        "deploying",
        "waiting",
    ]
    assert "host-000 halted bbbbbbbbbb" in rollouts.inner_text()
    assert "<b>exit 3</b>" in rollouts.inner_text()


def test_a_filter_and_a_checkout_lead_to_its_hosts(open_page, address):
    page = open_page(f"{address}/fleet")
    page.get_by_role("link", name="2 failed").click()
    page.wait_for_url("**/fleet?state=failed")
    page.locator("table.grid tbody tr").nth(1).wait_for()
    page.get_by_role("row").get_by_role("link", name="acme/r2").click()
    page.wait_for_url("**/fleet/acme/r2")
    assert page.locator("table tbody tr").count() == 100
    assert "host-050" in page.locator("table tbody tr").nth(0).inner_text()


@pytest.mark.parametrize("path", ["/fleet", "/fleet/acme/r2"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_is_accessible(open_page, violations, address, path: str, scheme: str):
    page = open_page(address + path, color_scheme=scheme)
    for width in (1440, 768, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page) == [], width
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_phone_scrolls_the_grid_and_not_the_page(open_page, address):
    page = open_page(f"{address}/fleet", width=360, height=700)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("document.querySelector('.wide').scrollWidth > document.querySelector('.wide').clientWidth")
