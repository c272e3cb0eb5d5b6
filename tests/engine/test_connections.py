"""The number of connections of a run. A run without an answer confirms nothing."""

from __future__ import annotations

import pytest
from conftest import Site
from scratch import git


@pytest.fixture()
def counted(synced: Site) -> Site:
    """A synced checkout whose remote writes a line to the file `connections` for each connection."""
    log = synced.folder / "connections"
    wrapper = synced.folder / "upload-pack"
    wrapper.write_text(f'#!/bin/sh\necho >>"{log}"\nexec git-upload-pack "$@"\n')
    wrapper.chmod(0o755)
    synced.git("config", "remote.origin.uploadpack", wrapper)
    return synced


def connections(site: Site) -> int:
    """Return the number of connections since the last call."""
    log = site.folder / "connections"
    count = len(log.read_text().splitlines()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


def hint(commit: str, branch: str = "main") -> dict[str, str]:
    return {"GITOPS_REF": f"refs/heads/{branch}", "GITOPS_AFTER": commit}


def test_a_run_that_finds_nothing_new_talks_once(counted: Site) -> None:
    for hints in ({}, hint(counted.head()), {"GITOPS_REPOSITORY": None}):
        assert counted.run(**hints).outcome == "unchanged"
        assert connections(counted) == 1
    counted.set("branch", "main")
    assert counted.run().outcome == "unchanged"
    assert connections(counted) == 1
    assert counted.run("--dry-run").outcome == "unchanged"
    assert connections(counted) == 1


def test_an_announced_commit_is_fetched_in_one_connection(counted: Site) -> None:
    assert counted.run(**hint(counted.upstream.commit({"page": "1\n"}))).outcome == "updated"
    assert connections(counted) == 1 and counted.is_at_upstream()


def test_an_unannounced_commit_is_fetched_in_two_connections(counted: Site) -> None:
    counted.upstream.commit({"page": "1\n"})
    assert counted.run().outcome == "updated"
    assert connections(counted) == 2 and counted.is_at_upstream()


@pytest.mark.parametrize("deliveries", ["1", "2"])
def test_a_redelivered_webhook_hides_no_newer_push(counted: Site, deliveries: str) -> None:
    old, new = counted.head(), counted.upstream.commit()
    assert counted.run(**hint(old), GITOPS_DELIVERIES=deliveries).outcome == "updated"
    assert counted.head() == new


@pytest.mark.parametrize("packed", [False, True])
def test_without_an_answer_nothing_is_confirmed(counted: Site, packed: bool) -> None:
    if packed:
        counted.git("pack-refs", "--all")
    bare = counted.upstream.bare
    bare.rename(bare.with_suffix(".away"))
    for hints in ({}, hint(counted.head()), hint(counted.head(), "other"), hint("f" * 40)):
        assert counted.run(**hints).outcome == "unreachable"


def test_refs_whose_names_end_like_the_tracked_one_are_ignored(counted: Site) -> None:
    bare = counted.upstream.bare
    tip = counted.upstream.head()
    other = git("commit-tree", "-m", "other", f"{tip}^{{tree}}", cwd=bare)
    for name in ("refs/heads/HEAD", "refs/archive/refs/heads/main", "refs/remotes/x/HEAD"):
        git("update-ref", name, other, cwd=bare)
    assert counted.run().outcome == "unchanged"
    assert connections(counted) == 1 and counted.head() == tip


def test_git_gc_runs_only_after_the_repository_has_grown(synced: Site) -> None:
    trace = {"GIT_TRACE": str(synced.folder / "git-trace")}
    synced.upstream.commit()
    synced.run(**trace)
    assert "git gc" not in (synced.folder / "git-trace").read_text()
    directory = synced.path / ".git/objects/17"
    directory.mkdir(exist_ok=True)
    for number in range(28):
        (directory / f"{number:038x}").touch()
    synced.upstream.commit()
    synced.run(**trace)
    assert "git gc --auto" in (synced.folder / "git-trace").read_text()
