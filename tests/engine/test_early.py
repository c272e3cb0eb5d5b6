"""A webhook can be faster than the remote: the announced commit is not there yet, or never will be."""

from __future__ import annotations

from conftest import Site
from scratch import git

UNKNOWN = "f" * 40


def hint(commit: str, branch: str = "main") -> dict[str, str]:
    return {"GITOPS_REF": f"refs/heads/{branch}", "GITOPS_AFTER": commit}


def test_an_announced_commit_that_the_remote_does_not_show_yet(synced: Site) -> None:
    old = synced.head()
    tip = synced.upstream.commit({"page": "1\n"})
    git("update-ref", "refs/heads/main", old, cwd=synced.upstream.bare)  # the replica is behind
    run = synced.run(**hint(tip))
    assert run.outcome == "early" and tip[:10] in run.message and not run.fix
    git("update-ref", "refs/heads/main", tip, cwd=synced.upstream.bare)
    assert synced.run(**hint(tip)).outcome == "updated" and synced.is_at_upstream()


def test_an_early_run_still_moves_to_the_remote_s_commit(synced: Site) -> None:
    """A force push replaced the announced commit, or the replica shows only the push before it."""
    tip = synced.upstream.commit({"page": "1\n"})
    run = synced.run(**hint(UNKNOWN))
    assert run.outcome == "early" and run.after == tip and synced.is_at_upstream()


def test_an_older_announced_commit_is_not_early(synced: Site) -> None:
    old = synced.upstream.commit({"page": "1\n"})
    synced.upstream.commit({"page": "2\n"})
    assert synced.run(**hint(old)).outcome == "updated"
    assert synced.run(**hint(old)).outcome == "unchanged"


def test_a_replaced_commit_that_was_here_is_not_early(synced: Site) -> None:
    first = synced.head()
    replaced = synced.upstream.commit({"page": "1\n"})
    synced.run()
    synced.upstream.go_back(first)
    synced.upstream.commit({"page": "2\n"})
    assert synced.run(**hint(replaced)).outcome == "updated"


def test_the_hint_of_another_branch_is_not_early(synced: Site) -> None:
    assert synced.run(**hint(UNKNOWN, "other")).outcome == "unchanged"


def test_a_failed_deploy_is_reported_before_an_early_hint(synced: Site) -> None:
    synced.set("deploy", "false")
    synced.upstream.commit()
    assert synced.run(**hint(UNKNOWN)).outcome == "deploy-failed"


def test_a_rolled_back_run_with_an_early_hint_is_early(synced: Site) -> None:
    synced.set("health", "[[ ! -e sick ]]")
    synced.set("healthTimeout", "0")
    synced.run("--force")
    synced.upstream.commit({"sick": "1\n"})
    assert synced.run().outcome == "rolled-back"
    assert synced.run(**hint(UNKNOWN)).outcome == "early"
