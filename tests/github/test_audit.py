"""Missed deliveries: found, shown, replaced by runs, or delivered again to a real daemon."""

from __future__ import annotations

import time

import pytest
from fake_github import Fault
from harness import push
from scratch import Upstream

from gitops_hook.github.audit import Audit, Missed
from gitops_hook.github.client import ApiError
from gitops_hook.github.webhooks import Hooks


def audit(hooks: Hooks, *, kept: object = None, redeliver: bool = False) -> list[Missed]:
    return [
        missed
        for ping in Audit(hooks).known()
        for missed in Audit(hooks).missed(ping, lambda name: [name] * (kept in (None, name)), redeliver=redeliver)
    ]


@pytest.fixture
def hook(forge, make_hooks) -> int:
    """A hook of acme/site that has reached us."""
    return make_hooks().register("acme/site").hook


def test_received_or_irrelevant_deliveries_are_not_missed(forge, make_hooks, daemon, hook, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    ((made,),) = [forge.hooks["acme/site"]]
    forge.deliver("acme/site", made, "push", push("acme/site", upstream.head()))
    forge.deliver("acme/site", made, "push", push("acme/other"))  # answered 200: it is not kept here
    forge.missed("acme/site", hook, status=502, event="issues")
    forge.missed("acme/site", hook, status=502, ago=4 * 86400)
    late = forge.missed("acme/site", hook, status=504, said="timed out", ago=30)
    daemon.deliver(push("acme/site", upstream.head()), guid=late["guid"])  # it had arrived, only too late for the forge
    assert audit(make_hooks()) == []


def test_missed_deliveries_are_reported_with_their_reason(forge, make_hooks, hook):
    failed = forge.missed("acme/site", hook, guid="one", status=413, said="Invalid HTTP Response: 413", ago=7200)
    forge.missed("acme/site", hook, guid="two", status=500, ago=3600)
    again = forge.missed("acme/site", hook, guid="two", status=502, said="timed out", ago=1800, redelivery=True)
    lost = forge.missed("acme/site", hook, guid="three", status=202, said="OK", ago=60)
    one, two, three = audit(make_hooks())
    assert one[:5] == ("acme/site", "acme/site", hook, failed["id"], "one")
    assert one.then == "missed"
    assert "client_max_body_size" in one.reason
    assert two.delivery == again["id"]  # the newest try is what counts
    assert two.delivered < time.time() - 3500
    assert "no answer within 10 s" in two.reason
    assert three.delivery == lost["id"]
    assert "by a daemon with another journal" in three.reason


def test_a_later_successful_redelivery_replaces_failed_ones(forge, make_hooks, daemon, hook, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    forge.missed("acme/site", hook, guid="two", status=500, ago=3600)
    forge.deliver("acme/site", forge.hooks["acme/site"][0], "push", push("acme/site", upstream.head()), "two", True)
    assert audit(make_hooks()) == []


def test_a_missed_delivery_is_redelivered_and_runs(forge, make_hooks, daemon, hook, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    payload = push("acme/site", upstream.commit({"a": "b"}))
    missed = forge.missed("acme/site", hook, guid="lost", payload=payload)
    assert [found.then for found in audit(make_hooks(), redeliver=True)] == ["redelivered"]
    assert "delivery=lost" in daemon.wait_for("run updated .*").group()
    assert forge.writes()[-1].path == f"/repos/acme/site/hooks/{hook}/deliveries/{missed['id']}/attempts"
    assert audit(make_hooks()) == []


def test_a_delivery_that_a_run_replaced_is_not_requested_again(forge, make_hooks, daemon, hook, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    forge.missed("acme/site", hook, guid="before", ago=600)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for("run updated ")
    forge.missed("acme/site", hook, guid="after", ago=0)
    writes = len(forge.writes())
    assert [(found.guid, found.then) for found in audit(make_hooks(), redeliver=True)] == [
        ("before", "repaired"),
        ("after", "redelivered"),
    ]
    assert len(forge.writes()) == writes + 1


def test_a_failed_run_does_not_replace_a_missed_delivery(forge, make_hooks, daemon, hook, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root, deploy="exit 1")
    forge.missed("acme/site", hook, ago=600)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for("run deploy-failed ")
    assert [found.then for found in audit(make_hooks())] == ["missed"]


def test_the_event_of_an_organization_hook_names_the_repository(forge, make_hooks):
    forge.hooks["acme"] = []
    hook = make_hooks().register("acme").hook
    forge.missed("acme", hook, payload=push("acme/site"))
    forge.missed("acme", hook, payload=push("acme/elsewhere"))
    forge.missed("acme", hook, payload={"repository": {"full_name": "../etc"}})
    forge.missed("acme", hook, payload={"repository": "none"})
    assert [found.repository for found in audit(make_hooks(), kept="acme/site")] == ["acme/site"]


def test_a_hook_that_is_gone_is_an_error(forge, make_hooks, hook):
    forge.hooks["acme/site"].clear()
    with pytest.raises(ApiError, match="404"):
        audit(make_hooks())


def test_malformed_deliveries_of_a_listing_are_skipped(forge, make_hooks, hook):
    good = {"id": 7, "guid": "g", "event": "push", "status_code": 502, "status": "x"}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    items = [{**good, "id": None, "delivered_at": now}, "text", {**good, "status": None, "status_code": "502", "delivered_at": now}, {**good, "delivered_at": "?"}]  # fmt: skip
    forge.faults.append(Fault("GET .*/deliveries", 200, body=items))
    assert [(found.guid, found.delivery) for found in audit(make_hooks())] == [("g", 7)]


def test_a_thousand_deliveries_are_audited_in_pages(forge, make_hooks, hook):
    for number in range(1000):
        lost = number % 100 == 7
        forge.missed("acme/site", hook, guid=f"g{number}", status=502 if lost else 200, ago=100 + number)
    asked = len(forge.asked)
    assert [found.guid for found in audit(make_hooks())] == [f"g{number}" for number in range(907, 0, -100)]
    assert len(forge.asked) == asked + 11  # a thousand and the pings, a hundred at a time
