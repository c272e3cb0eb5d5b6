"""A roll-out approves a commit on this host: runs go to it and stay there, although the branch is ahead."""

from __future__ import annotations

from conftest import Site


def test_a_run_goes_to_the_approved_commit_and_stays_there(synced: Site) -> None:
    first = synced.head()
    approved = synced.upstream.commit({"page": "1\n"})
    tip = synced.upstream.commit({"page": "2\n"})
    synced.set("approved", first)
    run = synced.run()
    assert (run.outcome, synced.head(), synced.ref("refs/gitops/deployed")) == ("held", first, first)
    assert synced.ref("refs/remotes/origin/main") == tip  # the run has seen what it may not deploy yet
    assert tip[:10] in run.message
    synced.set("approved", approved)
    run = synced.run(GITOPS_EVENT="rollout", GITOPS_AFTER=approved)
    assert (run.outcome, run.after, synced.ref("refs/gitops/deployed")) == ("held", approved, approved)
    assert synced.run("--force").after == approved
    synced.set("approved", tip)
    assert synced.run().outcome == "updated"
    assert synced.run().outcome == "unchanged"
    assert synced.is_at_upstream()


def test_a_pin_until_the_next_push_stays_in_a_rollout(synced: Site) -> None:
    first = synced.head()
    tip = synced.upstream.commit({"page": "1\n"})
    for name, value in (("approved", tip), ("pin", first), ("pinTip", tip)):
        synced.set(name, value)
    synced.upstream.commit({"page": "2\n"})
    assert (synced.run().outcome, synced.head()) == ("held", first)
    assert synced.git("config", "gitops.pin") == first


def test_an_approved_commit_may_lie_behind(synced: Site) -> None:
    first = synced.head()
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated"
    synced.set("approved", first)
    run = synced.run()
    assert (run.outcome, synced.head(), synced.ref("refs/gitops/deployed")) == ("held", first, first)
    synced.git("config", "--unset", "gitops.approved")
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream()


def test_hold_permits_neither_a_move_nor_a_deploy(synced: Site) -> None:
    synced.set("deploy", "exit 3")
    failed = synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "deploy-failed"  # so a deploy is pending
    synced.set("deploy", "touch deployed")
    synced.set("approved", "hold")
    tip = synced.upstream.commit({"page": "2\n"})
    run = synced.run("--force")
    assert (run.outcome, synced.head()) == ("held", failed)
    assert not (synced.path / "deployed").exists()
    assert synced.ref("refs/remotes/origin/main") == tip


def test_an_approved_commit_that_the_branch_lacks(synced: Site) -> None:
    first = synced.head()
    for commit in ("1" * 40, synced.commit_here()):
        synced.set("approved", commit)
        synced.upstream.commit()
        assert synced.run().outcome == "early"
    assert synced.git("merge-base", first, "HEAD") == first


def test_a_person_s_commits_are_kept(synced: Site) -> None:
    first = synced.head()
    synced.upstream.commit({"page": "1\n"})
    own = synced.commit_here()
    synced.set("approved", first)
    assert synced.run().outcome == "diverged"
    assert synced.head() == own
