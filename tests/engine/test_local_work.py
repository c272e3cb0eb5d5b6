"""A person's work is never destroyed, and prevents a sync only if it conflicts."""

from __future__ import annotations

import pytest
from conftest import Site, meanwhile
from scratch import git


def test_edits_that_upstream_does_not_touch_are_kept(synced: Site) -> None:
    synced.write("README", "mine\n")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert (synced.path / "README").read_text() == "mine\n"


def test_conflicting_edits(synced: Site) -> None:
    synced.write("README", "mine\n")
    before = synced.head()
    synced.upstream.commit({"README": "theirs\n"})
    run = synced.run()
    assert run.outcome == "dirty" and "README" in run.message and "acme/site" in run.message
    assert (synced.path / "README").read_text() == "mine\n" and synced.head() == before
    synced.git("checkout", "README")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


@pytest.mark.parametrize("kind", ["edited", "staged", "untracked", "ignored"])
def test_conflicting_changes_are_stashed_if_configured(synced: Site, kind: str) -> None:
    synced.set("dirty", "stash")
    name = "README" if kind in ("edited", "staged") else "page"
    if kind == "ignored":
        (synced.path / ".git/info/exclude").write_text("page\n")
    synced.write(name, "mine\n")
    synced.write("elsewhere", "stays\n")
    if kind == "staged":
        synced.git("add", name)
    synced.upstream.commit({name: "theirs\n"})
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    stash = synced.git("rev-parse", "--short", "refs/stash")
    assert stash in run.message and name in run.message
    assert (synced.path / name).read_text() == "theirs\n" and (synced.path / "elsewhere").read_text() == "stays\n"
    part = "stash^3" if kind in ("untracked", "ignored") else "stash"
    assert synced.git("show", f"{part}:{name}") == "mine"


def test_a_staged_deletion_is_stashed_if_configured(synced: Site) -> None:
    synced.set("dirty", "stash")
    synced.git("rm", "--quiet", "README")
    synced.upstream.commit({"README": "theirs\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert synced.git("diff", "--name-status", "stash^", "stash") == "D\tREADME"


def test_staged_edits_stay_staged(synced: Site) -> None:
    synced.write("README", "staged\n")
    synced.write("fresh", "staged\n")
    synced.git("add", "README", "fresh")
    synced.write("README", "and edited\n")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert synced.git("show", ":README") == "staged" and synced.git("show", ":fresh") == "staged"
    assert (synced.path / "README").read_text() == "and edited\n"


def test_conflicting_staged_edits(synced: Site) -> None:
    synced.write("README", "staged\n")
    synced.git("add", "README")
    synced.upstream.commit({"README": "theirs\n"})
    run = synced.run()
    assert run.outcome == "dirty" and "README" in run.message
    assert synced.git("show", ":README") == "staged"


def test_untracked_files_are_kept(synced: Site) -> None:
    synced.write("notes/todo", "mine\n")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated"
    assert (synced.path / "notes/todo").read_text() == "mine\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_conflicting_untracked_file(synced: Site, ignored: bool) -> None:
    if ignored:
        synced.upstream.commit({".gitignore": ".env\n"})
        synced.run()
    synced.write(".env", "secret\n")
    git("add", "--force", ".", cwd=synced.upstream.work)
    (synced.upstream.work / ".env").write_text("theirs\n")
    git("add", "--force", ".env", cwd=synced.upstream.work)
    synced.upstream.commit()
    run = synced.run()
    assert run.outcome == "dirty" and ".env" in run.message
    assert (synced.path / ".env").read_text() == "secret\n"


def test_untracked_file_in_a_directory_that_becomes_a_file(synced: Site) -> None:
    synced.upstream.commit({"folder/page": "1\n"})
    synced.run()
    synced.write("folder/mine", "mine\n")
    synced.upstream.commit({"folder/page": None})
    (synced.upstream.work / "folder").rmdir() if (synced.upstream.work / "folder").exists() else None
    synced.upstream.commit({"folder": "a file\n"})
    run = synced.run()
    assert run.outcome == "dirty" and "folder" in run.message
    assert (synced.path / "folder/mine").read_text() == "mine\n" and (synced.path / "folder/page").exists()


def test_unusual_file_names_in_a_message(synced: Site) -> None:
    for name in ("a b", "é", "c\td"):
        synced.write(name, "mine\n")
    synced.upstream.commit(dict.fromkeys(("a b", "é", "c\td"), "theirs\n"))
    run = synced.run()
    assert run.outcome == "dirty" and "a b" in run.message and "é" in run.message and "c\\x09d" in run.message


def test_local_commits(synced: Site) -> None:
    mine = synced.commit_here()
    run = synced.run()
    assert run.outcome == "diverged" and mine[:10] in run.message
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "diverged"
    assert synced.head() == mine


#: A person commits in the checkout.
COMMIT = "echo mine >mine; git add mine; git commit -m mine"


@pytest.mark.parametrize("prepare", ["", "git checkout --detach; ", "git checkout -b idea; git checkout main; "])
def test_a_commit_made_during_the_fetch(synced: Site, prepare: str) -> None:
    synced.upstream.commit({"page": "1\n"})
    run = synced.run(**meanwhile(synced, "fetch", prepare + COMMIT))
    mine = synced.head()
    assert synced.git("show", "HEAD:mine") == "mine", "HEAD is where the person left it"
    assert run.outcome == "diverged" and mine[:10] in run.message
    synced.set("diverged", "reset")
    run = synced.run()
    assert run.outcome == "updated" and "refs/gitops/backup" in run.message and synced.is_at_upstream()
    assert synced.ref("refs/gitops/backup") == mine


def test_a_commit_made_while_git_writes_the_tree(synced: Site) -> None:
    """`git commit` does the same if it waited for its editor: it holds no lock meanwhile."""
    (synced.path / ".git/info/attributes").write_text("page filter=person\n")
    commit = "git update-ref refs/heads/main $(git commit-tree -p main -m mine main^{tree})"
    synced.git("config", "filter.person.smudge", f"{commit}; git rev-parse main >{synced.folder}/mine; cat")
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    mine = (synced.folder / "mine").read_text().strip()
    assert run.outcome == "updated" and synced.is_at_upstream() and not synced.status()
    assert synced.ref("refs/gitops/backup") == mine and "refs/gitops/backup" in run.message


def test_upstream_s_commits_fetched_and_merged_by_a_person_during_the_fetch(synced: Site) -> None:
    tip = synced.upstream.commit({"page": "1\n"})
    assert synced.run(**meanwhile(synced, "fetch", "git merge --ff-only origin/main")).after == tip
    assert synced.is_at_upstream()


def test_local_commits_are_backed_up_if_configured(synced: Site) -> None:
    synced.set("diverged", "reset")
    mine = synced.commit_here()
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    [backup] = synced.git("for-each-ref", "--format=%(refname)", "refs/gitops/backup").splitlines()
    assert synced.ref(backup) == mine and backup in run.message
    for _ in range(2):  # two within one second
        other = synced.commit_here("other")
        assert synced.run().outcome == "updated"
        assert other in synced.git("for-each-ref", "--format=%(objectname)", "refs/gitops/backup").splitlines()


def test_a_backup_is_made_once_although_the_move_is_refused(synced: Site) -> None:
    synced.set("diverged", "reset")
    mine = synced.commit_here()
    synced.write("README", "mine\n")
    synced.upstream.commit({"README": "theirs\n"})
    run = synced.run()
    assert run.outcome == "dirty" and "refs/gitops/backup" in run.message
    assert synced.run().outcome == "dirty" and synced.head() == mine
    assert synced.ref("refs/gitops/backup") == mine


def test_unreadable_history_prevents_a_move(synced: Site) -> None:
    synced.commit_here("first")
    first = synced.git("rev-parse", "HEAD")
    mine = synced.commit_here("second")
    (synced.path / f".git/objects/{first[:2]}/{first[2:]}").unlink()
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    assert run.outcome == "missing" and synced.head() == mine


def test_pushed_local_commits_are_not_backed_up(synced: Site) -> None:
    synced.commit_here()
    synced.git("push", "--quiet", "origin", "HEAD:main")
    git("pull", "--quiet", "origin", "main", cwd=synced.upstream.work)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_unpushed_local_branches_are_kept(synced: Site) -> None:
    synced.git("checkout", "--quiet", "-b", "idea")
    mine = synced.commit_here()
    synced.git("checkout", "--quiet", "main")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert synced.ref("refs/heads/idea") == mine


def test_another_branch_is_left_for_the_tracked_one(synced: Site) -> None:
    synced.git("checkout", "--quiet", "-b", "idea")
    mine = synced.commit_here()
    assert synced.run().outcome == "updated", "even where upstream did not move"
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert synced.ref("refs/heads/idea") == mine


def test_on_another_branch_with_commits_on_the_tracked_one(synced: Site) -> None:
    mine = synced.commit_here()
    synced.git("checkout", "--quiet", "-b", "idea", "origin/main")
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "diverged"
    assert synced.ref("refs/heads/main") == mine and synced.git("symbolic-ref", "--short", "HEAD") == "idea"


def test_local_commits_on_the_branch_that_upstream_makes_its_default(synced: Site) -> None:
    synced.git("checkout", "--quiet", "-b", "trunk")
    mine = synced.commit_here()
    synced.git("checkout", "--quiet", "main")
    synced.upstream.commit({"page": "1\n"})
    git("branch", "--move", "main", "trunk", cwd=synced.upstream.bare)
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=synced.upstream.bare)
    run = synced.run()
    assert run.outcome == "diverged" and mine[:10] in run.message
    assert synced.ref("refs/heads/trunk") == mine and synced.git("symbolic-ref", "--short", "HEAD") == "main"


def test_detached_head_returns_to_the_branch(synced: Site) -> None:
    synced.git("checkout", "--quiet", "--detach")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    synced.git("branch", "idea")
    synced.git("checkout", "--quiet", "idea")
    mine = synced.commit_here()
    synced.git("checkout", "--quiet", "--detach")
    assert synced.run().outcome == "updated", "a branch keeps what was detached"
    assert synced.is_at_upstream() and synced.ref("refs/heads/idea") == mine


def test_detached_head_with_own_commits(synced: Site) -> None:
    synced.git("checkout", "--quiet", "--detach")
    mine = synced.commit_here()
    run = synced.run()
    assert run.outcome == "diverged" and mine[:10] in run.message and synced.head() == mine
    synced.set("diverged", "reset")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert mine in synced.git("for-each-ref", "--format=%(objectname)", "refs/gitops/backup")


@pytest.mark.parametrize("what", ["merge", "rebase", "cherry-pick"])
def test_unfinished_merge(synced: Site, what: str) -> None:
    synced.set("diverged", "reset")
    synced.git("checkout", "--quiet", "-b", "idea")
    mine = synced.commit_here("README", "mine\n")
    synced.git("checkout", "--quiet", "main")
    synced.commit_here("README", "other\n")
    synced.git(what, *(["idea"] if what != "cherry-pick" else [mine]), check=False)
    synced.upstream.commit({"page": "1\n"})
    conflict = (synced.path / "README").read_text()
    run = synced.run()
    assert run.outcome == "dirty" and "unfinished" in run.message
    assert (synced.path / "README").read_text() == conflict and "<<<<" in conflict


@pytest.mark.parametrize("how", ["checkout --orphan", "switch --orphan"])  # the latter empties the index and the tree
@pytest.mark.parametrize("moved", [True, False], ids=["upstream moved", "upstream still"])
def test_unborn_branch_with_staged_files(synced: Site, how: str, moved: bool) -> None:
    synced.set("deploy", f"touch {synced.folder}/ran")
    synced.git(*how.split(), "mine")
    synced.write("draft", "mine\n")
    synced.git("add", "draft")
    if moved:
        synced.upstream.commit({"page": "1\n"})
    before = synced.status()
    run = synced.run()
    assert run.outcome == "dirty" and "mine has no commit yet" in run.message
    assert synced.git("symbolic-ref", "HEAD") == "refs/heads/mine" and synced.status() == before
    assert not list(synced.path.glob(".git/broken-*")) and not (synced.folder / "ran").exists()
    assert synced.run("--dry-run").outcome == "dirty"
    mine = synced.commit_here()
    assert synced.run().outcome == "updated" and synced.is_at_upstream() and synced.ref("refs/heads/mine") == mine


def test_unborn_branch_without_staged_files(synced: Site) -> None:
    synced.git("switch", "--quiet", "--orphan", "mine")
    synced.write("draft", "mine\n")
    assert "would move" in synced.run("--dry-run").message
    assert synced.run().outcome == "updated" and synced.is_at_upstream() and synced.status() == "?? draft"


def test_unborn_branch_created_during_the_fetch(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    assert synced.run(**meanwhile(synced, "fetch", "git checkout --orphan mine")).outcome == "dirty"
    assert synced.git("symbolic-ref", "HEAD") == "refs/heads/mine" and not list(synced.path.glob(".git/broken-*"))
