"""An operator holds a checkout at a commit: runs go to it and stay there, although the branch is ahead."""

from __future__ import annotations

import pytest
from conftest import Site, tool

NOTE = "ada 2026-01-31T12:00:00Z it broke the cart"


def test_a_run_goes_to_the_pin_and_stays_there(synced: Site) -> None:
    first = synced.head()
    synced.set("deploy", "git log -1 --format=%H > live")
    tip = synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated"
    synced.set("pin", first)
    synced.set("pinnedBy", NOTE)
    run = synced.run()
    assert (run.outcome, run.after, synced.ref("refs/gitops/deployed")) == ("held", first, first)
    assert (synced.path / "live").read_text() == f"{first}\n"
    for part in (tip[:10], "by ada", "2026-01-31T12:00:00Z", "it broke the cart"):
        assert part in run.message
    newer = synced.upstream.commit({"page": "2\n"})
    run = synced.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER=newer)
    assert (run.outcome, run.after, synced.ref("refs/remotes/origin/main")) == ("held", first, newer)
    assert synced.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER="1" * 40).outcome == "held"
    synced.git("config", "--unset", "gitops.pin")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_a_pin_at_the_newest_commit_is_in_sync(synced: Site) -> None:
    synced.set("pin", synced.head())
    assert synced.run().outcome == "unchanged"


def test_a_pin_takes_precedence_over_a_roll_out(synced: Site) -> None:
    first = synced.head()
    approved = synced.upstream.commit({"page": "1\n"})
    synced.upstream.commit({"page": "2\n"})
    synced.set("pin", first)
    for value in (approved, "hold"):
        synced.set("approved", value)
        assert (synced.run().outcome, synced.head()) == ("held", first)


@pytest.mark.parametrize("moved", [False, True])
def test_a_pin_that_is_no_longer_in_the_branch_stays_and_is_reported(synced: Site, moved: bool) -> None:
    first = synced.head()
    pinned = synced.upstream.commit({"page": "1\n"})
    if moved:
        assert synced.run().outcome == "updated"
    synced.set("pin", pinned)
    synced.upstream.go_back(first)
    synced.upstream.commit({"page": "2\n"})
    run = synced.run()
    assert (run.outcome, run.after) == ("usage", pinned if moved else first)
    assert "gitops.pin" in run.message and pinned[:10] in run.message
    assert synced.git("config", "gitops.pin") == pinned


def test_a_new_commit_at_the_remote_releases_a_pin_until_the_next_push(synced: Site) -> None:
    first = synced.head()
    tip = synced.upstream.commit({"page": "1\n"})
    for name, value in (("pin", first), ("pinTip", tip), ("pinnedBy", NOTE)):
        synced.set(name, value)
    assert synced.run().outcome == "held"
    hint = {"GITOPS_REF": "refs/heads/main", "GITOPS_AFTER": "1" * 40}
    assert (synced.run(**hint).outcome, synced.head()) == ("early", first)  # a hint alone releases nothing
    assert synced.git("config", "gitops.pin") == first
    synced.upstream.commit({"page": "2\n"})
    assert synced.run("--dry-run").outcome == "unchanged"
    assert synced.git("config", "gitops.pin") == first
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    assert first[:10] in run.message
    assert "gitops.pin" not in synced.git("config", "--local", "--list")


def test_again_repeats_a_deploy_but_not_that_of_a_bad_commit(synced: Site) -> None:
    synced.set("deploy", "echo deployed >> deploys")
    synced.set("health", "[[ ! -e sick ]]")
    synced.set("healthTimeout", "0")
    synced.set("paths", "page")
    assert synced.run("--again").outcome == "updated"
    assert synced.run().outcome == "unchanged"
    assert (synced.path / "deploys").read_text() == "deployed\n"
    bad = synced.upstream.commit({"sick": "1\n", "page": "1\n"})
    assert synced.run().outcome == "rolled-back"
    assert synced.run("--again").outcome == "rolled-back"
    assert synced.ref("refs/gitops/bad") == bad


@pytest.mark.parametrize("key", ["pin", "approved"])
def test_a_held_commit_that_fails_its_health_check_is_rolled_back(synced: Site, key: str) -> None:
    first = synced.head()
    synced.set("health", "[[ ! -e sick ]]")
    synced.set("healthTimeout", "0")
    bad = synced.upstream.commit({"sick": "1\n"})
    synced.upstream.commit({"sick": None})
    synced.set(key, bad)
    for _ in range(2):
        assert (synced.run().outcome, synced.head()) == ("rolled-back", first)
    tools = tool(synced, "").partition(":")[0]
    (synced.folder / "tools/gitops-hook").symlink_to("/bin/true")
    run = synced.run(PATH=f"{tools}:{synced.environment['PATH']}")
    wanted = f"--commit {bad} " if key == "pin" else ""
    assert run.fix.endswith(f"gitops-hook deploy --force {wanted}acme/site")
