"""The log of a real daemon: from a GUID, grep gives the whole story; a failure shows its last words, and no secret."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from harness import Daemon, push
from scratch import Upstream

#: A script that reports its start on one fifo, and ends after a line on another.
GATED = 'echo running > "$GITOPS_ROOT/../running"; read -r status < "$GITOPS_ROOT/../go"; exit "$status"'


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    for name in ("running", "go"):
        os.mkfifo(tmp_path / name)
    return tmp_path


def grep(daemon: Daemon, guid: str) -> list[dict[str, object]]:
    """The lines of a log in JSON that hold `guid`."""
    return [json.loads(line) for line in daemon.lines if guid in line]


def test_the_log_lines_of_a_guid_describe_its_delivery(tmp_path, fifos, start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script(GATED), GITOPS_LOG_FORMAT="json")
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    for guid in ("first", "second", "third"):
        daemon.deliver(push("acme/site", "a" * 40), guid=guid)
        if guid == "first":
            (fifos / "running").read_text()  # the other two share the next run
    (fifos / "go").write_text("0\n")
    (fifos / "running").read_text()
    (fifos / "go").write_text("0\n")
    daemon.wait_for('"delivery settled".*second')
    for guid, run, messages in (
        ("first", 1, {"webhook queued", "run started", "run updated"}),
        ("second", 2, {"webhook queued", "delivery claimed", "delivery settled"}),
        ("third", 2, {"webhook queued", "run started", "run updated"}),
    ):
        story = grep(daemon, guid)
        assert {line["message"] for line in story} == messages
        assert all((line["repository"], line["delivery"]) == ("acme/site", guid) for line in story)
        assert {line["run"] for line in story if "run" in line} == {run}
        (accepted,) = [line for line in story if line["message"] == "webhook queued"]
        (ended,) = [line for line in story if "outcome" in line]
        assert (accepted["commit"], accepted["http"], ended["outcome"]) == ("a" * 40, 202, "updated")
        assert isinstance(ended["ms"], (int, float))


def test_the_log_of_a_delivery_continues_after_a_kill(fifos, start_daemon, script):
    daemon = start_daemon(GITOPS_SYNC_SCRIPT=script(GATED), GITOPS_LOG_FORMAT="json")
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    daemon.deliver(push("acme/site"), guid="the-guid")
    (fifos / "running").read_text()
    daemon.kill()
    daemon.start()
    (fifos / "running").read_text()
    (fifos / "go").write_text("0\n")
    daemon.wait_for('"run updated".*the-guid')
    lines = [(line["message"], line.get("run")) for line in grep(daemon, "the-guid")]
    assert sorted(lines, key=str) == [
        ("run interrupted", 1), ("run started", 1), ("run started", 2), ("run updated", 2), ("webhook queued", None),
    ]  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log_entry_of_a_failed_run_has_its_last_line_without_credentials(tmp_path, start_daemon, log_format):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(GITOPS_LOG_FORMAT=log_format, GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    upstream.checkout(
        daemon.root,
        deploy=r"""printf 'line %s\n' {1..30}; printf '\e[31mred\a\n'; echo git clone https://ada:hidden@host/x; exit 3""",
    )
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})), guid="the-guid")
    line = daemon.wait_for(".*run deploy-failed.*").group()
    assert daemon.stop() == 0
    assert not re.search("[\x00-\x1f\x7f-\x9f]", line)
    if log_format == "json":
        output = json.loads(line)["output"].split("\n")
        assert len(output) == 10
    else:
        output = re.search(r'output="(.*)"', line)[1].split("\\n")
    assert output[:2] == ["line 24", "line 25"]
    assert output[7:9] == ["red", "git clone https://***@host/x"]
    everything = [path.read_bytes() for path in daemon.state.rglob("*") if path.is_file()]
    assert not [content for content in everything if b"hidden" in content]
    assert "hidden" not in daemon.log


def test_no_credential_of_an_origin_is_shown(tmp_path, start_daemon):
    daemon = start_daemon()
    checkout = Upstream(tmp_path / "forge").checkout(daemon.root)
    config = checkout / ".git/config"
    config.write_text(re.sub("url = .*", "url = http://ada:hidden@127.0.0.1:9/acme/site.git", config.read_text()))
    daemon.deliver(push("acme/site", "a" * 40))
    line = daemon.wait_for("run unreachable.*").group()
    assert "http://127.0.0.1:9/acme/site.git" in line
    assert daemon.stop() == 0
    assert "hidden" not in daemon.log
    assert "hidden" not in (daemon.state / "runs/1.log").read_text()
    assert b"hidden" not in (daemon.state / "journal.db").read_bytes()
