"""A checkout with gitops.tag follows the highest version tag that matches."""

from __future__ import annotations

import pytest
from conftest import Site, tool
from scratch import git


def release(site: Site, *names: str, annotated: bool = False) -> str:
    """Commit, tag the commit and push the tags; return the commit."""
    commit = site.upstream.commit({"page": f"{names}\n"})
    for name in names:
        git("tag", *(["--annotate", "--message", name] if annotated else []), name, cwd=site.upstream.work)
    push(site, *names)
    return commit


def push(site: Site, *names: str) -> None:
    git("push", "--quiet", "--force", "origin", *(f"refs/tags/{name}" for name in names), cwd=site.upstream.work)


def delete(site: Site, name: str) -> None:
    git("push", "--quiet", "origin", f":refs/tags/{name}", cwd=site.upstream.work)


def followed(site: Site) -> str:
    return site.git("symbolic-ref", "refs/gitops/tag").removeprefix("refs/gitops/tags/")


@pytest.fixture()
def tagged(synced: Site) -> Site:
    """A checkout that follows v*, at v1.9."""
    synced.set("tag", "v*")
    synced.set("deploy", 'echo "$GITOPS_REF" > deployed')
    release(synced, "v1.9")
    assert synced.run().outcome == "updated"
    return synced


@pytest.mark.parametrize("annotated", [False, True])
def test_the_highest_version_is_deployed(tagged: Site, annotated: bool) -> None:
    tagged.upstream.commit({"page": "not released\n"})
    assert tagged.run().outcome == "unchanged"
    commit = release(tagged, "v1.10", annotated=annotated)
    release(tagged, "v1.10.0-rc1", "w2", "v1.2")
    run = tagged.run()
    assert (run.outcome, run.after, tagged.head()) == ("updated", commit, commit)
    assert tagged.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert (tagged.path / "deployed").read_text() == "refs/tags/v1.10\n"
    assert "v1.10 is at" in run.message and followed(tagged) == "v1.10"
    assert tagged.run().outcome == "unchanged"


def test_nothing_new_takes_one_exchange(tagged: Site) -> None:
    trace = tagged.folder / "exchanges"
    path = tool(tagged, f'for it; do case $it in ls-remote | fetch) echo "$it" >> {trace} ;; esac; done')
    assert tagged.run(PATH=path).outcome == "unchanged"
    assert trace.read_text() == "ls-remote\n"
    release(tagged, "v2.0")
    assert tagged.run(PATH=path, GITOPS_REF="refs/tags/v2.0").outcome == "updated"
    assert trace.read_text() == "ls-remote\n" * 2 + "fetch\n"


def test_pre_releases_need_a_hyphen_in_the_pattern(tagged: Site) -> None:
    release(tagged, "v3.0-rc1")
    release(tagged, "v3.0-rc2")
    release(tagged, "v2.0")
    tagged.run()
    highest = {
        "v*": "v2.0",
        "v*-*": "v3.0-rc2",
        "v[0-9]*": "v2.0",
        "v1.*": "v1.9",
        "*": "v2.0",
        "v3*-rc1": "v3.0-rc1",
    }
    for pattern, tag in highest.items():
        tagged.git("checkout", "--quiet", "-B", "main", "refs/gitops/tags/v1.9")
        tagged.set("tag", pattern)
        tagged.run()
        assert followed(tagged) == tag, pattern


def test_a_lower_version_is_not_deployed(tagged: Site) -> None:
    high = release(tagged, "v2.0")
    assert tagged.run().outcome == "updated"
    delete(tagged, "v2.0")
    run = tagged.run()
    assert (run.outcome, run.after, tagged.head()) == ("held", high, high)
    assert "v1.9" in run.message
    higher = release(tagged, "v2.1")
    assert (tagged.run().outcome, tagged.head()) == ("updated", higher)


def test_a_deleted_tag_whose_commit_was_rolled_back_is_forgotten(tagged: Site) -> None:
    good = tagged.head()
    tagged.set("health", "[[ $GITOPS_REF != refs/tags/v2.0 || $GITOPS_AFTER == " + good + " ]]")
    tagged.set("healthTimeout", "0")
    release(tagged, "v2.0")
    for _ in range(2):
        assert (tagged.run().outcome, tagged.head()) == ("rolled-back", good)
    delete(tagged, "v2.0")
    assert tagged.run().outcome == "unchanged"
    assert followed(tagged) == "v1.9"


def test_a_tag_that_was_moved_is_followed(tagged: Site) -> None:
    commit = tagged.upstream.commit({"page": "again\n"})
    git("tag", "--force", "v1.9", commit, cwd=tagged.upstream.work)
    push(tagged, "v1.9")
    assert (tagged.run().outcome, tagged.head()) == ("updated", commit)


def test_no_matching_tag(tagged: Site) -> None:
    before = tagged.head()
    tagged.set("tag", "release/*")
    run = tagged.run()
    assert (run.outcome, run.after) == ("missing", before)
    assert run.message.startswith("acme/site: no tag at ")
    assert "release/*" in run.message and "gitops.tag" in run.fix
    commit = release(tagged, "release/1")
    assert (tagged.run().outcome, tagged.head()) == ("updated", commit)


def test_a_tag_that_the_remote_does_not_show_yet(tagged: Site) -> None:
    announced = {"GITOPS_REF": "refs/tags/v2.0", "GITOPS_AFTER": "1" * 40}
    assert tagged.run(**announced).outcome == "early"
    assert tagged.run(**{**announced, "GITOPS_REF": "refs/tags/v2.0-rc1"}).outcome == "unchanged"
    assert tagged.run(**{**announced, "GITOPS_REF": "refs/heads/main"}).outcome == "unchanged"
    release(tagged, "v2.0", annotated=True)
    object_id = git("rev-parse", "v2.0", cwd=tagged.upstream.work)
    for _ in range(2):  # the second time, as an old webhook that is delivered again
        assert tagged.run(**{**announced, "GITOPS_AFTER": object_id}).outcome in ("updated", "unchanged")


def test_a_pin_at_a_tag_outside_the_newest_one_s_history(tagged: Site) -> None:
    old = tagged.head()
    tagged.upstream.go_back(git("rev-parse", "v1.9~1", cwd=tagged.upstream.work))
    release(tagged, "v2.0")
    assert tagged.run().outcome == "updated"
    tagged.set("pin", old)
    run = tagged.run()
    assert (run.outcome, tagged.head()) == ("held", old)
    assert f"main is at {old[:10]}" in run.message and "v2.0" not in run.message
    tagged.set("pin", "1" * 40)
    assert tagged.run().outcome == "usage"


def test_a_linked_worktree_follows_tags(synced: Site) -> None:
    main = synced.folder / "main"
    synced.path.rename(main)
    git("worktree", "add", "--quiet", "-b", "releases", synced.path, cwd=main)
    git("config", "extensions.worktreeConfig", "true", cwd=main)
    for key, value in (("branch", "releases"), ("tag", "v*")):
        synced.git("config", "--worktree", f"gitops.{key}", value)
    commit = release(synced, "v1.0")
    assert synced.run().outcome == "updated"
    assert synced.git("symbolic-ref", "refs/worktree/gitops/tag") == "refs/gitops/tags/v1.0"
    assert (synced.head(), synced.git("symbolic-ref", "--short", "HEAD")) == (commit, "releases")
    assert synced.run().outcome == "unchanged"


def test_a_dry_run_reports_the_tag(tagged: Site) -> None:
    before = tagged.head()
    commit = release(tagged, "v2.0")
    run = tagged.run("--dry-run")
    assert run.outcome == "unchanged" and commit[:10] in run.message
    assert (tagged.head(), followed(tagged)) == (before, "v1.9")


def test_local_commits_are_kept(tagged: Site) -> None:
    mine = tagged.commit_here()
    release(tagged, "v2.0")
    assert (tagged.run().outcome, tagged.head()) == ("diverged", mine)
