"""First clones of unusual repositories, and repairs that lose nothing."""

from __future__ import annotations

import stat
import subprocess

import pytest
from conftest import Site
from scratch import GIT_ENV, git
from test_recovery import corrupt_head, head_tree_gone, unpack


def test_a_sha256_repository_is_cloned(site: Site) -> None:
    bare, work = site.folder / "forge256/acme/site.git", site.folder / "work256"
    bare.mkdir(parents=True)
    git("init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", cwd=bare)
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", work, cwd=site.folder)
    git("remote", "add", "origin", bare, cwd=work)
    for number in range(2):
        (work / "page").write_text(f"{number}\n")
        git("add", "page", cwd=work)
        git("commit", "--quiet", "-m", "work", cwd=work)
        git("push", "--quiet", "origin", "main", cwd=work)
        assert site.run(GITOPS_CLONE_URL=str(bare)).outcome == ("updated" if number else "cloned")
        assert site.head() == git("rev-parse", "HEAD", cwd=work) and len(site.head()) == 64


@pytest.mark.parametrize("branch", ["HEAD", "x" * 245, "main.d/" + "y" * 240])
def test_no_pushed_branch_breaks_a_clone(site: Site, branch: str) -> None:
    git("update-ref", f"refs/heads/{branch}", "refs/heads/main", cwd=site.upstream.bare)
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare)).outcome == "cloned"
    assert site.is_at_upstream()
    site.upstream.commit({"page": "1\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream()


def test_an_empty_remote_leaves_nothing(site: Site) -> None:
    empty = site.folder / "empty/acme/site.git"
    empty.mkdir(parents=True)
    git("init", "--quiet", "--bare", cwd=empty)
    assert site.run(GITOPS_CLONE_URL=str(empty)).outcome == "missing"
    assert not list(site.root.iterdir())


def test_a_clone_that_fails_leaves_no_directory(site: Site) -> None:
    assert site.run(GITOPS_CLONE_URL=str(site.folder / "nowhere/acme/site.git")).outcome == "unreachable"
    assert not list(site.root.iterdir())
    site.path.mkdir(parents=True)
    assert site.run(GITOPS_CLONE_URL=str(site.folder / "nowhere/acme/site.git")).outcome == "unreachable"
    assert site.path.is_dir() and not list(site.path.iterdir()), "an operator's directory stays"


@pytest.mark.parametrize(("shared", "mode"), [("", 0o700), ("[core]\n\tsharedRepository = group\n", 0o2770)])
def test_only_the_owner_or_the_group_can_enter_a_cloned_repository(site: Site, shared: str, mode: int) -> None:
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare), **site.home(shared)).outcome == "cloned"
    assert stat.S_IMODE((site.path / ".git").stat().st_mode) == mode
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o755, "a web server can read the tree"


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_repair_keeps_the_mode_of_the_repository(synced: Site, mode: int) -> None:
    (synced.path / ".git").chmod(mode)
    (synced.path / ".git/HEAD").unlink()
    assert "was rebuilt" in synced.run().message
    assert stat.S_IMODE((synced.path / ".git").stat().st_mode) == mode


def test_a_clone_that_takes_too_long_names_the_setting(site: Site) -> None:
    run = site.run(
        GITOPS_CLONE_URL="ssh://forge.example/acme/site.git", GITOPS_TIMEOUT="2", GIT_SSH_COMMAND="sleep 30;"
    )
    assert run.outcome == "unreachable" and "GITOPS_SYNC_TIMEOUT" in run.message


def test_a_repair_keeps_what_other_tools_stored(synced: Site) -> None:
    keys = synced.path / ".git/git-crypt/keys/default"
    keys.parent.mkdir(parents=True)
    keys.write_text("secret\n")
    (synced.path / ".git/some-tool").write_text("state\n")
    corrupt_head(synced)
    assert synced.run().outcome == "unchanged"
    assert keys.read_text() == "secret\n" and (synced.path / ".git/some-tool").read_text() == "state\n"


def test_one_damaged_copy_is_kept(synced: Site) -> None:
    for _ in range(3):
        corrupt_head(synced)
        assert "damaged" in synced.run().message
    assert len(list((synced.path / ".git").glob("broken-*"))) == 1
    assert not list((synced.path / ".git").glob("broken-*/broken-*"))


def malformed_commit(site: Site, author: str) -> str:
    """Push a commit with this author line, of which `git fsck` complains."""
    tree = git("rev-parse", "HEAD^{tree}", cwd=site.upstream.work)
    parent = site.upstream.head()
    text = f"tree {tree}\nparent {parent}\nauthor {author}\ncommitter {author}\n\nold\n"
    commit = subprocess.run(
        ["git", "hash-object", "--literally", "-t", "commit", "-w", "--stdin"],
        cwd=site.upstream.work, env=GIT_ENV, input=text, stdout=-1, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    git("reset", "--quiet", "--hard", commit, cwd=site.upstream.work)
    site.upstream.commit({"page": "1\n"})
    return commit


AUTHORS = {
    "no date": "Ada <ada@example.org>",
    "no address": "Ada 1 +0000",
    "1 MiB": "A" * (1 << 20) + " <ada@example.org> 1 +0000",
}


@pytest.mark.parametrize("author", AUTHORS.values(), ids=AUTHORS)
def test_malformed_history_is_not_damage(synced: Site, author: str) -> None:
    malformed_commit(synced, author)
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    if len(author) < 100:
        assert subprocess.run(["git", "fsck"], cwd=synced.path, env=GIT_ENV, stderr=-3, check=False).returncode
    # A move that fails for another reason makes the script look for damage.
    (synced.path / ".git/info/attributes").write_text("late filter=fail\n")
    synced.git("config", "filter.fail.smudge", "false")
    synced.git("config", "filter.fail.required", "true")
    synced.upstream.commit({"late": "1\n"})
    run = synced.run()
    assert run.outcome == "failed" and "damaged" not in run.message and len(run.message) < 2000
    assert not list((synced.path / ".git").glob("broken-*"))


def test_a_malformed_tip_is_deployed_or_explained(synced: Site) -> None:
    tip = malformed_commit(synced, AUTHORS["no date"])
    synced.upstream.go_back(tip)
    synced.set("verify", "false")
    assert synced.run().outcome == "updated" and synced.head() == tip


@pytest.mark.parametrize("kind", ["tree", "link", "submodule"])
def test_a_path_that_was_a_file_becomes_something_else(synced: Site, kind: str) -> None:
    synced.set("submodules", "true")
    synced.upstream.commit({"thing": "1\n"})
    assert synced.run().outcome == "updated"
    work = synced.upstream.work
    (work / "thing").unlink()
    if kind == "tree":
        synced.upstream.commit({"thing/inner": "1\n"})
    elif kind == "link":
        (work / "thing").symlink_to("README")
        synced.upstream.commit()
    else:
        git("rm", "--quiet", "--cached", "thing", cwd=work)
        git("update-index", "--add", "--cacheinfo", f"160000,{synced.upstream.head()},thing", cwd=work)
        git("commit", "--quiet", "-m", "a submodule without .gitmodules", cwd=work)
        git("push", "--quiet", "origin", "HEAD", cwd=work)
    run = synced.run()
    assert run.outcome in ("updated", "unreachable") and run.message
    synced.upstream.go_back("HEAD~1")
    assert synced.run().outcome == "updated" and (synced.path / "thing").read_text() == "1\n"


def test_history_with_malformed_commits_is_repaired_once(synced: Site) -> None:
    malformed_commit(synced, AUTHORS["no date"])
    synced.run()
    unpack(synced)
    head_tree_gone(synced)
    assert "damaged" in synced.run().message
    for _ in range(2):
        run = synced.run()
        assert run.outcome == "unchanged" and "damaged" not in run.message
