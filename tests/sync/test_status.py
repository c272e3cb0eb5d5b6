"""The states of repositories, and the settings in force."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from harness import SOURCE
from scratch import Upstream, git

from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.settings import SETTINGS, check_setting
from gitops_hook.sync.status import repository_statuses, settings_in_force


def test_there_is_a_status_for_each_checkout_and_for_all_that_ran(tmp_path: Path, upstream: Upstream):
    upstream.checkout(tmp_path / "root", paused="true")
    Upstream(tmp_path / "forge", "acme/new").checkout(tmp_path / "root")
    with closing(Journal(tmp_path / "state")) as journal:

        def ran(repository: str, outcome: str | None, message: str = "", fix: str = "") -> None:
            claim = journal.start(repository, "push")
            assert claim
            if outcome:
                ended = claim.run._replace(ended=9.0, outcome=outcome, after="a" * 40, message=message, fix=fix)
                journal.finish(ended, settled=True)

        ran("ACME/Site", "updated")
        ran("acme/gone", "dirty", "commit or stash it", "git stash")
        ran("acme/now", None)
        journal.record(Delivery("g", "push", 1.0, "acme/new", "refs/heads/main"))
        found = repository_statuses(journal, Checkouts(tmp_path / "root"))
        assert [(status.repository, status.state) for status in found] == [
            ("acme/gone", "missing"),
            ("acme/now", "running"),
            ("acme/new", "queued"),
            ("acme/site", "paused"),
        ]
        gone, _, new, site = found
        assert (gone.fix, gone.path, gone.confirmed) == ("sudo gitops-hook remove acme/gone", None, None)
        assert "gitops-hook add acme/gone" in gone.problem
        assert (new.pending, new.run, new.commit, new.fix) == (1, None, None, None)
        assert (site.confirmed, site.commit.id, site.deployed, site.last_outcome) == (9.0, "a" * 40, 9.0, "updated")
        assert repository_statuses(journal, Checkouts(tmp_path / "root"), ["ACME/gone"]) == [gone]
        (unknown,) = repository_statuses(journal, Checkouts(tmp_path / "root"), ["acme/none"])
        assert (unknown.path, unknown.run) == (None, None)


@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize(
    ("outcome", "cause", "state", "with_pending"),
    [
        ("unreachable", None, "waiting to retry", "waiting to retry"),
        ("no-access", None, "action needed", "action needed"),
        ("interrupted", "shutdown", "waiting to retry", "waiting to retry"),
        ("interrupted", "cancelled", "action needed", "queued"),
        ("unreachable", "cancelled", "action needed", "queued"),
        ("rolled-back", None, "rolled back", "rolled back"),
        ("dirty", None, "action needed", "queued"),
        ("updated", None, "in sync", "queued"),
        ("updated", "loop", "action needed", "action needed"),
    ],
)
def test_the_state_follows_from_the_newest_run(tmp_path: Path, outcome, cause, state, with_pending, pending):
    with closing(Journal(tmp_path / "state")) as journal:
        claim = journal.start("acme/site", "sweep")
        assert claim
        journal.finish(claim.run._replace(ended=9.0, outcome=outcome, cause=cause), settled=False)
        if pending:
            journal.record(Delivery("g", "push", 1.0, "acme/site", "refs/heads/main"))
        (status,) = repository_statuses(journal, Checkouts(tmp_path))
    assert status.state == (with_pending if pending else state)


def test_the_settings_in_force_name_their_source(tmp_path: Path, upstream: Upstream):
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
    found = {setting.name: (setting.value, setting.origin) for setting in settings_in_force(checkout, 600)}
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
def test_a_shown_url_has_its_user_and_no_password(tmp_path, upstream, url: str, shown: str):
    git("remote", "set-url", "origin", url, cwd=upstream.checkout(tmp_path / "root"))
    checkout = Checkouts(tmp_path / "root").find("acme/site")
    assert checkout
    assert settings_in_force(checkout, 600)[0].value == shown


def test_the_settings_and_their_defaults_are_those_of_the_document():
    document = (SOURCE / "docs/sync.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+)", document, re.MULTILINE)
    mentioned = set(re.findall(r"`gitops\.(\w+)`", document))  # the script does not know all settings of the daemon
    assert {name for name, _ in rows} <= set(SETTINGS) <= {name for name, _ in rows} | mentioned
    for name, default in rows:
        assert SETTINGS[name].default in (None, default)


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("branch", "release/1.x", True),
        ("branch", "a..b", False),
        ("branch", "-x", False),
        ("branch", "a.lock", False),
        ("branch", "a/", False),
        ("branch", "a b", False),
        ("branch", "", False),
        ("healthtimeout", "0", True),
        ("timeout", "0", False),
        ("timeout", "999999", True),
        ("timeout", "1000000", False),
        ("paused", "ON", True),
        ("paused", "maybe", False),
        ("diverged", "reset", True),
        ("diverged", "stash", False),
        ("deploy", "make\nmake install", True),
        ("deploy", "", False),
        ("brnach", "main", False),
    ],
)
def test_a_value_is_checked_against_the_format_of_its_setting(name: str, value: str, valid: bool):
    if valid:
        check_setting(name, value)
    else:
        with pytest.raises(ValueError, match=rf"(?i)gitops\.{name}"):
            check_setting(name, value)


def test_every_default_has_the_format_of_its_setting():
    for setting in SETTINGS.values():
        if setting.default is not None:
            check_setting(setting.name, setting.default)
