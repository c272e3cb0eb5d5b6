"""``gitops-hook fleet``: views of all hosts, and orders to roll-outs."""

from __future__ import annotations

import json
import re

import pytest
from harness import push, until
from hosts import KEYS, Hosts, command
from scratch import Upstream
from test_deployer import SITE, Stages, stages  # noqa: F401 - a fixture


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_views_of_a_fleet_with_an_offline_host(hosts: Hosts, forge: Upstream) -> None:
    for name, labels in (("a", "region=eu"), ("b", "")):
        hosts.checkout(name, forge)
        hosts.start(name, labels)
    hosts.wait_until_live("a", "b")
    first = forge.head()
    until(lambda: hosts.status("b").commit == first, "b has no status")
    assert hosts.daemons["b"].stop() == 0
    commit = forge.commit({"x": "1"})
    hosts.daemons["a"].deliver(push(SITE, commit), guid="guid-1")
    until(lambda: hosts.status("a").commit == commit, "a has no status")

    (site,) = rows(command(hosts, "status", "--json"))
    assert (site["checkout"], site["requested"]["after"], site["plan"]) == (SITE, commit, None)
    a, b = site["hosts"]
    assert (a["host"], a["live"], a["commit"], a["labels"]) == ("a", True, commit, {"region": "eu"})
    assert (b["host"], b["live"], b["commit"], b["expected"]) == ("b", False, first, commit)
    assert b["seen"]
    assert "1 of 2" in command(hosts, "status")
    table = command(hosts, "status", SITE)
    assert f"{commit[:10]} of refs/heads/main requested" in table
    assert "offline, seen" in table
    assert re.search(
        r"requested .* ago, received by a\n(?s:.*)\nas of \d{4}-\d\d-\d\dT[\d:]+Z, revision \d+$", table.strip()
    )

    assert [row["live"] for row in rows(command(hosts, "hosts", "--json"))] == [True, False]
    assert "region=eu" in command(hosts, "hosts")
    (drift,) = rows(command(hosts, "drift", "--json", status=1))
    assert (drift["host"], drift["commit"], drift["expected"]) == ("b", first, commit)
    hosts.daemons["b"].start()
    until(lambda: hosts.status("b").commit == commit, "b does not catch up")
    assert rows(command(hosts, "drift", "--json")) == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["status", "acme/other"], 66, "no host of the fleet has acme/other"),
        (["plan"], 64, "needs the name of a repository"),
        (["plan", "../etc", "rest"], 64, "needs the name of a repository"),
        (["plan", SITE, "canary"], 64, "the last stage must be `rest`"),
        (["plan", SITE], 66, "has no plan"),
        (["halt", SITE], 66, "has no plan"),
        (["resume", SITE, "now"], 64, "takes no more words"),
        (["promote", SITE], 64, "name the repository and the stage"),
    ],
)
def test_invalid_commands_to_a_rollout(
    hosts: Hosts, forge: Upstream, words: list[str], status: int, message: str
) -> None:
    hosts.checkout("a", forge)
    hosts.start("a")
    assert message in command(hosts, *words, status=status)


def test_without_etcd_a_command_says_so(hosts: Hosts) -> None:
    hosts.start("a")
    hosts.endpoints = ["http://127.0.0.1:1"]
    assert "does not answer" in command(hosts, "status", status=69)


def test_commands_to_a_rollout(stages: Stages) -> None:  # noqa: F811
    stages.start_all()
    assert command(stages, "plan", SITE).strip() == "canary:1 web:2 rest:1"
    command(stages, "halt", SITE, "maintenance", "tonight")
    halted = stages.push({"x": "1"})
    stages.daemons["c1"].wait_for_run("outcome=held")
    assert "HALTED (every commit, by ada: maintenance tonight)" in command(stages, "status")
    assert "the halt was by ada: maintenance tonight" in command(stages, "resume", SITE)
    stages.wait_for_commit(halted, timeout=40)
    assert command(stages, "resume", SITE, status=66)

    bad = stages.push({"bad": "x"})
    until(lambda: stages.value(KEYS.halt(SITE)), "the canary does not halt the commit", 40)
    assert f"({bad[:10]}, by c1: deploy-failed: " in command(stages, "status", SITE)
    assert bad in command(stages, "promote", SITE, "canary")
    until(lambda: stages.value(KEYS.halt(SITE)), "no web host halts the promoted commit", 40)
    assert stages.value(KEYS.halt(SITE))["by"].startswith("w")

    command(stages, "plan", SITE, "--delete")
    good = stages.push({"bad": None})
    stages.wait_for_commit(good, timeout=40)
