"""The commits of a run, read with real git after real runs of the real script."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from scratch import GIT_ENV, Upstream, git
from webtest import TestApp

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Commit, Delivery, Run
from gitops_hook.observers.commits import Commits
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.runner import Task
from gitops_hook.text import rfc3339


@pytest.fixture
def journal(tmp_path: Path):
    with closing(Journal(tmp_path / "state")) as opened:
        yield opened


class Host:
    """A checkout, and an observer of the runs that moved it."""

    def __init__(self, journal: Journal, root: Path) -> None:
        self.journal = journal
        self.observer = Commits(journal, Checkouts(root))

    def ran(self, before: str, after: str, outcome: str = "updated") -> Run:
        """Record a run with this result, inform the observer, and return the run from the journal."""
        claim = self.journal.start("acme/site", "push")
        assert claim
        ended = claim.run._replace(ended=1.0, outcome=outcome, before=before, after=after)
        self.journal.finish(ended, settled=True)
        self.observer.ended(ended, Claim(claim.run), Task("acme/site", claim.run.id))
        run = self.journal.run(claim.run.id)
        assert run
        return run


@pytest.fixture
def host(journal: Journal, tmp_path: Path, upstream: Upstream) -> Host:
    upstream.checkout(tmp_path / "root")
    return Host(journal, tmp_path / "root")


def commits_of(journal: Journal, run: int) -> list[Commit]:
    return journal.commits([run]).get(run, [])


def fetch(tmp_path: Path) -> None:
    git("fetch", "--quiet", "origin", cwd=tmp_path / "root/acme/site")


def test_the_commits_of_a_run_newest_first(host, upstream, tmp_path):
    before = upstream.head()
    first, last = upstream.commit({"a": "1"}, "Say hello"), upstream.commit({"a": "2"}, "Say it louder\n\nand why")
    fetch(tmp_path)
    run = host.ran(before, last)
    commits = commits_of(host.journal, run.id)
    assert run.brought == 2
    assert [(commit.id, commit.author, commit.subject) for commit in commits] == [
        (last, "Ada", "Say it louder"),
        (first, "Ada", "Say hello"),
    ]
    assert commits[0].time == float(git("log", "-1", "--format=%ct", cwd=upstream.work))


def test_a_commit_date_after_the_year_9999_is_clamped(tmp_path, upstream, hook, monkeypatch):
    upstream.checkout(tmp_path / "root")
    monkeypatch.setitem(GIT_ENV, "GIT_COMMITTER_DATE", "@999999999999 +0000")
    upstream.commit({"a": "1"})
    hook("sync", "acme/site")
    with closing(Journal(tmp_path / "state")) as journal:
        page = TestApp(Dashboard(journal, Checkouts(tmp_path / "root")), extra_environ={"HTTP_HOST": "localhost:8788"})
        assert "9999-12-31 23:59:59" in page.get("/repositories/acme/site").text
        assert "9999-12-31T23:59:59.000Z" in page.get("/api/repositories").text


def test_the_commit_of_an_unchanged_checkout_is_stored_once(host, upstream):
    head = upstream.head()
    first, second = host.ran(head, head, "unchanged"), host.ran(head, head, "unchanged")
    assert [commit.id for commit in commits_of(host.journal, first.id)] == [head]
    assert (first.brought, second.brought, commits_of(host.journal, second.id)) == (0, None, [])


@pytest.mark.parametrize(("outcome", "rejects"), [("updated", False), ("rolled-back", True)])
def test_a_move_back_deploys_no_new_commit(host, upstream, tmp_path, outcome, rejects):
    old, new = upstream.head(), upstream.commit({"a": "1"})
    fetch(tmp_path)
    run = host.ran(new, old, outcome)
    stored = [commit.id for commit in commits_of(host.journal, run.id)]
    assert (run.brought, stored) == (0, [old, new] if rejects else [old])


@pytest.mark.parametrize("outcome", ["dirty", "diverged", "unverified"])
def test_a_run_that_moved_nothing_stores_the_commit_that_it_rejected(host, upstream, tmp_path, outcome):
    head, rejected = upstream.head(), upstream.commit({"a": "1"}, "Break it")
    fetch(tmp_path)
    run = host.ran(head, head, outcome)
    assert [commit.id for commit in commits_of(host.journal, run.id)] == [head, rejected]


def test_a_run_without_a_result_stores_the_announced_commit(host, upstream, tmp_path):
    announced = upstream.commit({"a": "1"}, "Hang")
    never_fetched = "1" * 40
    fetch(tmp_path)
    stored = []
    for commit in (announced, never_fetched):
        host.journal.record(Delivery("g", "push", 1.0, "acme/site", "refs/heads/main", "", commit))
        claim = host.journal.start("acme/site", "push")
        ended = claim.run._replace(ended=1.0, outcome="timed-out")
        host.journal.finish(ended, settled=True)
        host.observer.ended(ended, claim, Task("acme/site", claim.run.id))
        stored.append([commit.id for commit in commits_of(host.journal, claim.run.id)])
    assert stored == [[announced], []]


def test_many_commits_are_counted_up_to_a_limit(host, upstream, tmp_path):
    before = upstream.head()
    commits = "".join(
        f"commit refs/heads/main\ncommitter Ada <ada@example.org> {1700000000 + number} +0000\ndata 2\nhi\n"
        + (f"from {before}\n" if not number else "")
        for number in range(1200)
    )
    subprocess.run(["git", "fast-import", "--quiet"], cwd=upstream.bare, input=commits.encode(), check=True)
    fetch(tmp_path)
    run = host.ran(before, git("rev-parse", "main", cwd=upstream.bare))
    assert (run.brought, len(commits_of(host.journal, run.id))) == (1000, 50)


def test_control_characters_of_authors_are_replaced(host, upstream, tmp_path):
    before = upstream.head()
    (upstream.work / "a").write_text("1")
    git("add", "a", cwd=upstream.work)
    subprocess.run(
        ["git", "-c", "user.name=M\u00fcller\x1b[31m", "-c", "user.email=x", "commit", "--quiet", "--cleanup=verbatim",
         "--author=M\u00fcller\x1b[31m <x@example.org>", "--file=-"],
        cwd=upstream.work, input=b"\x1b]0;title\x07 <script>\xff " + b"x" * 5000, check=True,
    )  # fmt: skip
    git("push", "--quiet", "origin", "HEAD", cwd=upstream.work)
    fetch(tmp_path)
    (commit,) = commits_of(host.journal, host.ran(before, upstream.head()).id)
    assert commit.author == "M\u00fcller\ufffd[31m"
    assert commit.subject.startswith("\ufffd]0;title\ufffd <script>")
    assert len(commit.subject) == 200


@pytest.mark.parametrize(
    ("before", "after"), [("", "--all"), ("--output=pwned", "1" * 40), ("", "HEAD"), ("", ""), ("2" * 40, "1" * 40)]
)
def test_a_script_cannot_pass_options_to_git(host, before, after):
    run = host.ran(before, after)
    assert (run.brought, commits_of(host.journal, run.id)) == (None, [])


def test_a_repository_around_the_checkout_is_not_read(host, upstream, tmp_path):
    git("init", "--quiet", cwd=tmp_path / "root")
    git("fetch", "--quiet", upstream.bare, "main", cwd=tmp_path / "root")
    (tmp_path / "root/acme/site/.git/HEAD").unlink()
    run = host.ran("", upstream.head())
    assert commits_of(host.journal, run.id) == []


def test_a_sync_command_stores_commits(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    after = upstream.commit({"a": "1"}, "Say hello")
    hook("sync", "--all")
    (row,) = [json.loads(line) for line in hook("status", "--json").stdout.splitlines()]
    assert row["commit"] == {**row["commit"], "id": after, "author": "Ada", "subject": "Say hello"}
    assert row["run"]["fetched"] <= row["run"]["deployed"] <= row["run"]["ended"]
    assert row["fix"] is None
    with closing(Journal(tmp_path / "state")) as journal:
        (commit,) = commits_of(journal, row["run"]["id"])
    assert commit == Commit(after, "Ada", "Say hello", commit.time)
    assert row["commit"]["time"] == rfc3339(commit.time)
