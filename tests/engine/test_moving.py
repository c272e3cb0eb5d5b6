"""Every kind of change at the remote."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Site, meanwhile
from scratch import Upstream, git


def test_no_change(synced: Site) -> None:
    run = synced.run()
    assert (run.outcome, run.before, run.after) == ("unchanged", synced.head(), synced.head())
    assert synced.is_at_upstream()


def test_one_commit_forward(synced: Site) -> None:
    before = synced.head()
    tip = synced.upstream.commit({"page": "new\n"})
    run = synced.run()
    assert (run.outcome, run.before, run.after) == ("updated", before, tip)
    assert synced.is_at_upstream() and (synced.path / "page").read_text() == "new\n" and not synced.status()


def test_many_commits_forward(synced: Site) -> None:
    for number in range(7):
        synced.upstream.commit({f"page{number}": "x\n", "README": f"{number}\n"})
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream() and not synced.status()


def test_an_old_hint_updates_to_the_newest_commit(synced: Site) -> None:
    old = synced.upstream.commit({"a": "1\n"})
    synced.upstream.commit({"a": "2\n"})
    assert synced.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER=old).outcome == "updated"
    assert synced.is_at_upstream()


def test_upstream_moved_backward(synced: Site) -> None:
    first = synced.head()
    synced.upstream.commit({"page": "mistake\n"})
    synced.run()
    synced.upstream.go_back(first)
    assert synced.run().outcome == "updated"
    assert synced.head() == first and synced.is_at_upstream() and not (synced.path / "page").exists()


def rewrite(upstream: Upstream) -> str:
    """Replace upstream's history and delete the old objects."""
    git("checkout", "--quiet", "--orphan", "fresh", cwd=upstream.work)
    git("commit", "--quiet", "--allow-empty", "-m", "a new beginning", cwd=upstream.work)
    git("branch", "-M", "main", cwd=upstream.work)
    tip = upstream.commit({"README": "rewritten\n"})
    git("reflog", "expire", "--expire=now", "--all", cwd=upstream.bare)
    git("gc", "--quiet", "--prune=now", cwd=upstream.bare)
    return tip


def test_upstream_rewritten_and_the_old_commit_gone(synced: Site) -> None:
    tip = rewrite(synced.upstream)
    run = synced.run()
    assert (run.outcome, run.after) == ("updated", tip)
    assert synced.is_at_upstream() and not synced.status()


def test_upstream_rewritten_while_a_deploy_is_pending(synced: Site) -> None:
    synced.set("deploy", "false")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "deploy-failed"
    rewrite(synced.upstream)
    synced.set("deploy", "true")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_branch_switched_in_the_settings(synced: Site) -> None:
    git("checkout", "--quiet", "-b", "production", cwd=synced.upstream.work)
    synced.upstream.branch = "production"
    synced.upstream.commit({"page": "production\n"})
    old = synced.head()
    synced.set("branch", "production")
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream()
    assert synced.ref("refs/heads/main") == old, "the branch that was left is kept"


def test_default_branch_renamed_upstream(synced: Site) -> None:
    git("branch", "--move", "main", "trunk", cwd=synced.upstream.bare)
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=synced.upstream.bare)
    git("branch", "--move", "main", "trunk", cwd=synced.upstream.work)
    synced.upstream.branch = "trunk"
    synced.upstream.commit({"page": "trunk\n"})
    assert synced.run(GITOPS_REF="refs/heads/main").outcome == "updated", "the old name is gone"
    assert synced.is_at_upstream()


@pytest.mark.parametrize("hint", [None, "refs/heads/trunk"])
def test_another_branch_made_the_default(synced: Site, hint: str) -> None:
    git("checkout", "--quiet", "-b", "trunk", cwd=synced.upstream.work)
    synced.upstream.branch = "trunk"
    synced.upstream.commit({"page": "trunk\n"})
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=synced.upstream.bare)
    assert synced.run(GITOPS_REF=hint).outcome == "updated"
    assert synced.is_at_upstream()


def test_branch_absent_upstream(synced: Site) -> None:
    synced.set("branch", "gone")
    files, head = sorted(synced.path.iterdir()), synced.head()
    run = synced.run()
    assert run.outcome == "missing" and "branch gone does not exist" in run.message
    assert sorted(path for path in synced.path.iterdir()) == files and synced.head() == head


def test_upstream_without_any_branch(synced: Site) -> None:
    git("update-ref", "-d", "refs/heads/main", cwd=synced.upstream.bare)
    head = synced.head()
    assert synced.run().outcome == "missing"
    assert synced.run(GITOPS_REF="refs/heads/main").outcome == "missing"
    assert synced.head() == head and (synced.path / "README").exists()


def test_a_stale_tracking_branch_is_pruned(synced: Site) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/release", cwd=synced.upstream.work)
    synced.git("fetch", "--quiet")
    git(
        "push",
        "--quiet",
        "origin",
        ":refs/heads/release",
        "HEAD:refs/heads/release/2",
        cwd=synced.upstream.work,
    )
    synced.set("branch", "release/2")
    assert synced.run().outcome == "updated"
    assert synced.git("symbolic-ref", "--short", "HEAD") == "release/2"


def test_a_tag_and_a_branch_of_one_name(synced: Site) -> None:
    git("tag", "main", "HEAD", cwd=synced.upstream.work)
    git("push", "--quiet", "origin", "refs/tags/main", cwd=synced.upstream.work)
    synced.git("fetch", "--quiet", "--tags")
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", cwd=synced.upstream.work)
    git("commit", "--quiet", "--allow-empty", "-m", "x", cwd=synced.upstream.work)
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", cwd=synced.upstream.work)
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


@pytest.mark.parametrize("annotated", [True, False])
def test_new_tags_are_fetched_and_moved_tags_are_kept(synced: Site, annotated: bool) -> None:
    options = ["--annotate", "--message", "tag"] if annotated else []
    synced.git("config", "remote.origin.tagOpt", "--tags")
    synced.git("tag", *options, "v1")
    mine = synced.ref("refs/tags/v1")
    synced.upstream.commit({"page": "1\n"})
    for name in ("v1", "v2"):
        git("tag", "--force", *options, name, cwd=synced.upstream.work)
    git("push", "--quiet", "--force", "--tags", cwd=synced.upstream.work)
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert synced.ref("refs/tags/v1") == mine
    assert synced.git("describe", "--tags", "--match", "v2") == "v2"


def clone_by_protocol(site: Site, *options: str) -> None:
    """Clone through a pack, as from a forge, so that --depth and --filter have an effect."""
    git("config", "uploadpack.allowFilter", "true", cwd=site.upstream.bare)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=site.upstream.bare)
    site.path.parent.mkdir()
    git("clone", "--quiet", *options, f"file://{site.upstream.bare}", site.path, cwd=site.root)


def test_shallow_clone(site: Site) -> None:
    for number in range(4):
        site.upstream.commit({"page": f"{number}\n"})
    clone_by_protocol(site, "--depth=1")
    site.run()
    site.upstream.commit({"page": "next\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream() and not site.status()
    assert site.git("rev-parse", "--is-shallow-repository") == "true"
    tip = rewrite(site.upstream)
    assert site.run().after == tip and site.is_at_upstream()


def test_partial_clone(site: Site) -> None:
    for number in range(4):
        site.upstream.commit({"page": f"{number}\n"})
    clone_by_protocol(site, "--filter=blob:none")
    assert site.run().outcome == "unchanged"
    site.upstream.commit({"page": "next\n", "other": "x\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream() and not site.status()
    assert site.run().outcome == "unchanged"


def test_packed_refs(synced: Site) -> None:
    synced.git("pack-refs", "--all")
    tip = synced.upstream.commit({"page": "1\n"})
    synced.git("gc", "--quiet")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    synced.git("pack-refs", "--all")
    assert synced.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER=tip).outcome == "unchanged"


def test_a_pull_by_hand_is_recorded(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    synced.git("pull", "--quiet")
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream()


def test_git_lfs_filters_run(synced: Site, tmp_path: Path) -> None:
    work = synced.upstream.work
    try:
        git("lfs", "version", cwd=work)
    except AssertionError:
        pytest.skip("no git-lfs on this machine")
    for place in (work, synced.path):
        git("lfs", "install", "--local", cwd=place)
    git("lfs", "track", "*.bin", cwd=work)
    synced.upstream.commit({"big.bin": "large\n" * 100})
    git("lfs", "push", "--all", "origin", cwd=work)
    assert git("cat-file", "blob", "HEAD:big.bin", cwd=work).startswith("version https://git-lfs")
    assert synced.run().outcome == "updated"
    assert (synced.path / "big.bin").read_text() == "large\n" * 100 and not synced.status()


def test_a_concurrent_fetch_of_another_branch(synced: Site) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/feature", cwd=synced.upstream.work)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run(**meanwhile(synced, "fetch", "git fetch origin feature")).outcome == "updated"
    assert synced.is_at_upstream()
