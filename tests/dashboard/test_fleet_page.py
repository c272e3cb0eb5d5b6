"""The page of a fleet: a grid that stays small and readable, roll-outs as stages, and hosts that are never hidden."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from big_fleet import NEW, OLD, big_fleet
from webtest import TestApp

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.dashboard.fleet import fleet_pages
from gitops_hook.fleet.grid import Grid
from gitops_hook.journal.writer import Journal
from gitops_hook.sync.checkouts import Checkouts


@pytest.fixture(scope="module")
def state():
    return big_fleet(checkouts=200).state()


@pytest.fixture
def page(tmp_path: Path, state):
    (tmp_path / "root").mkdir()
    journal = Journal(tmp_path / "state")
    dashboard = Dashboard(journal, Checkouts(tmp_path / "root"), more=fleet_pages(Grid("big", lambda patience: state)))
    yield TestApp(dashboard, extra_environ={"HTTP_HOST": "127.0.0.1:8788"})
    journal.close()


def row(text: str, checkout: str) -> str:
    (found,) = [part for part in text.split("<tr")[1:] if f'href="/fleet/{checkout}"' in part]
    return found


def test_problems_come_first_and_each_row_states_its_hosts_in_words(page):
    text = page.get("/fleet").text
    assert "2 of 200 checkouts failed on a host" in text
    order = re.findall(r'<th scope="row"><a href="/fleet/([^"]+)"', text)
    assert set(order[:2]) == {"acme/r0", "acme/r2"}
    assert "<td>98 of 100</td>" in row(text, "acme/r2")
    for words in ("1 failed", "1 offline", "host-050", "<title>acme/r2: 1 failed, 1 offline, 98 up to date</title>"):
        assert words in row(text, "acme/r2")
    assert "1 behind" in row(text, "acme/r4")


def test_an_offline_host_is_listed_with_its_age(page):
    text = page.get("/fleet").text
    assert "100 hosts, 99 live, 1 offline." in text
    assert re.search(r"<b>host-007</b> <span[^>]*>last seen <time[^>]*>3 h ago", text)


def test_current_rollouts_are_stages_with_the_reason_of_a_halt(page):
    text = page.get("/fleet").text
    section = re.search(r'<section class="rollouts".*?</section>', text)[0]
    halted, operator, running = (
        re.search(rf"<li><a [^>]*>acme/{name}</a>.*?</ol>(<p class=.fix bad.*?</p>)?", section)[0]
        for name in ("r0", "r3", "r1")
    )
    assert re.findall(r'<span class="word \w+">(\w+)<', running) == ["passed", "deploying", "waiting"]
    assert "17 of 37 hosts" in running
    assert re.findall(r'<span class="word \w+">(\w+)<', halted)[0] == "halted"
    assert f"host-000 halted <code>{NEW[:10]}</code>" in halted
    assert "deploy-failed: &lt;b&gt;exit 3&lt;/b&gt;" in halted
    assert "gitops-hook fleet resume acme/r0" in halted
    assert "ada halted every commit" in operator


def test_a_page_of_the_grid_is_small_and_filtered(page):
    start = time.monotonic()
    response = page.get("/fleet?page=2")
    assert time.monotonic() - start < 10
    assert len(response.body) < 200_000
    assert len(re.findall("<tr data-key=", response.text)) == 50
    assert "51 to 100 of 200" in response.text
    assert len(re.findall("<tr data-key=", page.get("/fleet?state=failed").text)) == 2
    assert len(re.findall("<tr data-key=", page.get("/fleet?q=acme+r19").text)) == 11
    assert "No checkout matches" in page.get("/fleet?q=nothing").text


def test_a_refresh_sends_only_rows_that_changed(page):
    text = page.get("/fleet").text
    known = ".".join(re.findall(r'data-key="?(\w+)', text))
    live = page.get("/fleet", {"known": known}).json["live"]
    assert live.count("<tr data-key=") == 50
    assert "<title>" not in live


def test_a_checkout_lists_its_hosts_those_with_a_problem_first(page):
    text = page.get("/fleet/acme/r0").text
    hosts = re.findall(r"<th[^>]*>(host-\d+)</th><td[^>]*><span[^>]*>([\w ]+)<", text)
    assert len(hosts) == 100
    assert hosts[0] == ("host-000", "failed")
    assert ("host-007", "offline") in hosts
    assert f"<code>{OLD[:10]}</code> instead of {NEW[:10]}" in text
    assert page.get("/fleet/acme/none", status=404)


def test_without_a_fleet_there_is_no_such_page(tmp_path: Path):
    (tmp_path / "root").mkdir()
    journal = Journal(tmp_path / "state")
    page = TestApp(Dashboard(journal, Checkouts(tmp_path / "root")), extra_environ={"HTTP_HOST": "127.0.0.1"})
    page.get("/fleet", status=404)
    assert "/fleet" not in page.get("/").text
    journal.close()


def test_every_page_of_a_fleet_links_to_it(page):
    assert '<a href="/fleet">Fleet</a>' in page.get("/").text


def test_a_state_that_cannot_be_read_is_said_at_once(tmp_path: Path):
    (tmp_path / "root").mkdir()
    journal = Journal(tmp_path / "state")
    dashboard = Dashboard(journal, Checkouts(tmp_path / "root"), more=fleet_pages(Grid("big", lambda patience: None)))
    page = TestApp(dashboard, extra_environ={"HTTP_HOST": "127.0.0.1"})
    assert "state of the fleet is not available" in page.get("/fleet").text
    assert "state of the fleet is not available" in page.get("/fleet/acme/r0").text
    journal.close()
