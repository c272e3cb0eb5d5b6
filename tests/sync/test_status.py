"""Where repositories stand, and how it is told."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from harness import SOURCE
from scratch import Upstream, git

from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery
from gitops_hook.outcomes import BY_SCRIPT as OUTCOMES
from gitops_hook.sync import status as overview
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.status import SETTINGS, STATES, repository_statuses, settings_in_force, tone
from gitops_hook.text import span


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0 ms"), (0.2604, "260 ms"), (0.9996, "1.0 s"), (9.96, "10 s"), (119.4, "119 s"), (120, "2 min"), (7199, "119 min"),
     (7200, "2 h"), (172799, "47 h"), (172800, "2 d")],
)  # fmt: skip
def test_a_span_is_told_in_one_unit(seconds, told):
    assert span(seconds) == told


def test_an_age_is_told_in_whole_units(monkeypatch):
    monkeypatch.setattr(overview.time, "time", lambda: 1000.0)
    assert [overview.age(moment) for moment in (None, 1000.5, 996.1, 100)] == ["never", "0 s", "3 s", "15 min"]


def test_every_word_has_a_tone():
    words = {outcome for outcomes in OUTCOMES.values() for outcome in outcomes} | {"failed", "timed-out", "interrupted"}
    tones = {word: tone(word) for word in words | set(STATES)}
    assert {word for word, told in tones.items() if told == "wait"} == {
        "waiting to retry", "running", "queued", "unreachable", "interrupted"}  # fmt: skip
    assert {word for word, told in tones.items() if told == "rest"} == {"paused", "never synced"}
    assert {"dirty", "deploy-failed", "rolled-back", "action needed", "rolled back"} <= {
        word for word, told in tones.items() if told == "bad"}  # fmt: skip
    assert tone(None) == "wait"


def test_standings_are_of_checkouts_and_of_what_ran(tmp_path: Path, upstream: Upstream):
    upstream.checkout(tmp_path / "root", paused="true")
    Upstream(tmp_path / "forge", "acme/new").checkout(tmp_path / "root")
    with closing(Journal(tmp_path / "state")) as journal:

        def ran(repository: str, outcome: str | None, message: str = "") -> None:
            claim = journal.start(repository, "push")
            assert claim
            if outcome:
                ended = claim.run._replace(ended=9.0, outcome=outcome, after="a" * 40, message=message)
                journal.finish(ended, settled=True)

        ran("ACME/Site", "updated")
        ran("acme/gone", "dirty", "commit or stash it")
        ran("acme/now", None)
        journal.record(Delivery("g", "push", 1.0, "acme/new", "refs/heads/main"))
        found = repository_statuses(journal, Checkouts(tmp_path / "root"))
        assert [(standing.repository, standing.state) for standing in found] == [
            ("acme/gone", "action needed"),
            ("acme/now", "running"),
            ("acme/new", "queued"),
            ("acme/site", "paused"),
        ]
        gone, _, new, site = found
        assert (gone.fix, gone.path, gone.confirmed) == ("commit or stash it", None, None)
        assert (new.pending, new.run, new.commit, new.fix) == (1, None, None, None)
        assert (site.confirmed, site.commit.id, site.history) == (9.0, "a" * 40, [("updated", site.run.started, 9.0)])
        assert repository_statuses(journal, Checkouts(tmp_path / "root"), ["ACME/gone"]) == [gone]
        (unknown,) = repository_statuses(journal, Checkouts(tmp_path / "root"), ["acme/none"])
        assert (unknown.path, unknown.run) == (None, None)


def test_what_settled_nothing_waits_to_be_tried_again_unless_the_daemon_s_end_was_its_end(tmp_path: Path):
    with closing(Journal(tmp_path / "state")) as journal:
        for name, outcome, cause in (
            ("away", "unreachable", None), ("killed", "interrupted", None), ("died", "interrupted", "killed"),
            ("ours", "interrupted", "shutdown"),
        ):  # fmt: skip
            claim = journal.start(name, "sweep")
            assert claim
            journal.finish(claim.run._replace(ended=9.0, outcome=outcome, cause=cause), settled=False)
        found = {standing.repository: standing.state for standing in repository_statuses(journal, Checkouts(tmp_path))}
    assert found == {**dict.fromkeys(("away", "killed", "died"), "waiting to retry"), "ours": "action needed"}


def test_settings_tell_what_is_in_force_and_where_it_comes_from(tmp_path: Path, upstream: Upstream):
    path = upstream.checkout(
        tmp_path / "root", branch="main", healthTimeout="5", brnach="x", deploy="curl https://a:b@c/d"
    )
    git("config", "include.path", tmp_path / "more", cwd=path)
    git("config", "--file", tmp_path / "more", "gitops.dirty", "stash", cwd=path)
    git("config", "--add", "gitops.paths", "web", cwd=path)
    git("config", "--add", "gitops.paths", "api", cwd=path)
    git("remote", "set-url", "origin", "https://ada:hunter2@forge.example/acme/site.git", cwd=path)
    with (path / ".git/config").open("a") as config:
        config.write("[gitops]\n\tverify\n")  # no value: true, as git takes it
    checkout = Checkouts(tmp_path / "root").find("acme/site")
    assert checkout
    found = {name: (value, origin) for name, value, origin in settings_in_force(checkout, 600)}
    own = str(path / ".git/config")
    assert found["origin"] == ("https://***@forge.example/acme/site.git", own)
    assert found["branch"] == ("main", own)
    assert found["deploy"] == ("curl https://***@c/d", own)
    assert found["healthTimeout"] == ("5", own)
    assert found["dirty"] == ("stash", str(tmp_path / "more"))
    assert found["paths"] == ("web api", own)
    assert found["verify"] == ("true", own)
    assert found["diverged"] == ("refuse", "default")
    assert found["timeout"] == ("600", "the daemon's GITOPS_SYNC_TIMEOUT, in seconds")
    assert found["health"] == (None, "no check")
    assert found["brnach"] == ("x", "not a setting of gitops-hook: is it mistyped?")
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ada:p@ss@forge.example/acme/site", "https://***@forge.example/acme/site"),
        ("ssh://git@forge.example/acme/site", "ssh://git@forge.example/acme/site"),
    ],
)
def test_a_url_is_shown_with_its_user_but_without_any_part_of_a_password(tmp_path, upstream, url: str, shown: str):
    git("remote", "set-url", "origin", url, cwd=upstream.checkout(tmp_path / "root"))
    checkout = Checkouts(tmp_path / "root").find("acme/site")
    assert checkout
    assert settings_in_force(checkout, 600)[0].value == shown


def test_the_settings_and_their_defaults_are_those_of_the_document():
    document = (SOURCE / "docs/sync.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+)", document, re.MULTILINE)
    beside = re.findall(r"the daemon's alone: `gitops\.(\w+)`", document)  # the script knows nothing of it
    assert {name for name, _ in rows} | set(beside) == set(SETTINGS)
    for name, default in rows:
        value, _ = SETTINGS[name]
        assert value is None or value == default
