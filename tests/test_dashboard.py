"""The private application: what it shows, to whom, and that it changes nothing."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path

import pytest
from harness import push
from scratch import Upstream
from webtest import TestApp

from gitops_hook.dashboard import Dashboard
from gitops_hook.journal import Delivery, Journal
from gitops_hook.repository import Checkouts

HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\ud800"


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal(tmp_path / "state")
    yield journal
    journal.close()


@pytest.fixture
def page(tmp_path: Path, journal: Journal) -> TestApp:
    (tmp_path / "root").mkdir()
    return TestApp(Dashboard(journal, Checkouts(tmp_path / "root")), extra_environ={"HTTP_HOST": "127.0.0.1:8788"})


def finished(journal: Journal, repository: str, outcome: str, **more: object) -> int:
    """A run that has ended so, which served one delivery called as its outcome."""
    journal.record(Delivery(outcome, "push", time.time(), repository, "refs/heads/main"))
    claim = journal.start(repository, "push")
    assert claim
    journal.finish(claim.run._replace(ended=time.time(), outcome=outcome, **more), settled=True)
    return claim.run.id


def test_the_page_puts_first_what_needs_a_person_with_its_cure(page, journal):
    finished(journal, "acme/fine", "updated", after="a" * 40)
    finished(journal, "acme/stuck", "dirty", message="commit or stash <README>")
    shown = page.get("/").text
    assert shown.index("commit or stash &lt;README&gt;") < shown.index("acme/stuck") < shown.index("acme/fine")
    assert "needs you" in shown
    assert "in sync" in shown
    assert "aaaaaaaaaa<" in shown


def test_an_empty_page_says_how_to_begin(page):
    assert "gitops-hook add OWNER/NAME" in page.get("/").text


def test_a_run_is_shown_with_its_log_and_harms_no_browser(page, journal):
    run = finished(journal, "acme/site", "deploy-failed", message=HOSTILE[:31], exit=70)
    journal.log_path(run).write_bytes(HOSTILE[:-1].encode() + b"\xff\n")
    answer = page.get(f"/runs/{run}")
    assert "deploy-failed" in answer.text
    assert "<script>" not in answer.text
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style
    assert "default-src 'none'" in policy
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_same_facts_as_json(page, journal):
    run = finished(journal, "acme/site", "updated", after="a" * 40, exit=0)
    journal.log_path(run).write_text("first\nsecond\n")
    (standing,) = page.get("/api/repositories").json["repositories"]
    assert (standing["repository"], standing["state"], standing["run"]["id"]) == ("acme/site", "in sync", run)
    assert page.get("/api/repositories/ACME/Site").json == standing
    assert page.get("/api/runs?repository=acme/site").json == {"runs": [standing["run"]]}
    assert page.get(f"/api/runs/{run}").json == standing["run"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", standing["run"]["started"])
    assert page.get(f"/api/runs/{run}/log?offset=6").json == {"text": "second\n", "offset": 13, "ended": True}
    (delivery,) = page.get("/api/deliveries/updated").json["deliveries"]
    assert (delivery["run"], delivery["owed"]) == (run, False)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/api/runs/77", 404),
        ("/api/runs/77/log", 404),
        ("/runs/77", 404),
        ("/api/repositories/acme/none", 404),
        ("/api/repositories/../../etc", 404),
        ("/api/repositories/../outside", 404),
        ("/api/deliveries/none", 404),
        ("/api/runs?limit=0", 400),
        ("/api/runs?limit=99999999999999999999", 400),
        ("/api/runs?limit=00000000199999999", 400),
        ("/api/runs?limit=x", 400),
    ],
)
def test_what_is_not_there_is_answered_so(page, tmp_path, path, status):
    (tmp_path / "outside/.git").mkdir(parents=True)
    assert page.get(path, status=status).json["reason"]


def test_a_bad_offset_is_answered_so(page, journal):
    run = finished(journal, "acme/site", "updated")
    page.get(f"/api/runs/{run}/log?offset=-1", status=400)
    assert page.get(f"/api/runs/{run}/log?offset=999").json["text"] == ""  # pruned, or not there yet


def test_it_is_read_only(page):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert page.request("/", method=method, status=405).headers["Allow"] == "GET, HEAD"
    assert page.head("/").body == b""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8788", "", "[::1].evil"])
def test_a_name_that_points_here_reads_nothing(page, host):
    page.get("/api/repositories", extra_environ={"HTTP_HOST": host}, status=421)


@pytest.mark.parametrize("host", ["localhost:8788", "[::1]:8788", "127.0.0.1", "10.0.0.7:80"])
def test_an_address_reads(page, host):
    page.get("/api/repositories", extra_environ={"HTTP_HOST": host}, status=200)


def test_a_journal_that_cannot_be_read_is_503(page, journal, tmp_path):
    journal.close()
    (tmp_path / "state/journal.db").write_bytes(b"noise" * 1000)
    page.get("/", status=503)


def test_the_daemon_serves_it_on_a_listener_of_its_own(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    port = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
    upstream.checkout(daemon.root)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for("run updated ")
    webhook_port, daemon.port = daemon.port, port
    status, shown = daemon.request("GET", "/api/repositories")
    assert (status, shown["repositories"][0]["state"]) == (200, "in sync")
    assert daemon.request("POST", "/api/webhook/gitops", b"{}")[0] == 405
    daemon.port = webhook_port
    assert daemon.request("GET", "/api/repositories")[0] == 404
