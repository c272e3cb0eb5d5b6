"""Filters, sparse checkouts and user settings: git's own changes are not a person's work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Site
from scratch import git
from test_recovery import killed_half_way


def raw_commit(site: Site, files: dict[str, bytes], attributes: str) -> str:
    """Push files whose blobs are not what the filters of `attributes` would store."""
    for name, content in files.items():
        (site.upstream.work / name).write_bytes(content)
        git("add", name, cwd=site.upstream.work)
    (site.upstream.work / ".gitattributes").write_text(attributes)
    git("add", ".gitattributes", cwd=site.upstream.work)
    git("commit", "--quiet", "--message", "raw", cwd=site.upstream.work)
    git("push", "--quiet", "--force", "origin", "HEAD", cwd=site.upstream.work)
    return site.upstream.head()


@pytest.fixture()
def filtered(synced: Site) -> Site:
    """A checkout in which `page` appears modified: its blob has CRLF, and its attribute wants LF in the repository."""
    raw_commit(synced, {"page": b"one\r\ntwo\r\n"}, "")
    raw_commit(synced, {}, "page text\n")
    assert synced.run().outcome == "updated"
    os.utime(synced.path / "page", (1, 1))
    assert synced.status() == "M page"
    return synced


def change_page(site: Site) -> None:
    raw_commit(site, {}, "")
    raw_commit(site, {"page": b"one\r\nthree\r\n"}, "")
    raw_commit(site, {}, "page text\n")


def test_line_endings_are_not_a_person_s_work(filtered: Site) -> None:
    change_page(filtered)
    run = filtered.run()
    assert run.outcome == "updated" and filtered.is_at_upstream(), run.output
    assert (filtered.path / "page").read_bytes().replace(b"\r", b"") == b"one\nthree\n"


def test_an_edit_of_a_filtered_file_is_a_person_s_work(filtered: Site) -> None:
    (filtered.path / "page").write_bytes(b"one\r\nmine\r\n")
    change_page(filtered)
    run = filtered.run()
    assert run.outcome == "dirty" and "page" in run.message
    assert (filtered.path / "page").read_bytes() == b"one\r\nmine\r\n"


def test_a_refused_move_restores_filtered_files(filtered: Site) -> None:
    before = (filtered.path / "page").read_bytes()
    change_page(filtered)
    filtered.upstream.commit({"README": "theirs\n"})
    filtered.write("README", "mine\n")
    run = filtered.run()
    assert run.outcome == "dirty" and "README" in run.message and "page" not in run.message
    assert (filtered.path / "page").read_bytes() == before
    filtered.set("dirty", "stash")
    assert filtered.run().outcome == "updated" and filtered.is_at_upstream()


LFS = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"


def without_lfs(site: Site) -> str:
    """Return a PATH whose programs do not include git-lfs."""
    tools = site.folder / "without-lfs"
    tools.mkdir()
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else ():
            if program.name != "git-lfs" and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    return str(tools)


def test_lfs_files_need_git_lfs(synced: Site) -> None:
    before = synced.head()
    raw_commit(synced, {"big.bin": POINTER}, LFS)
    run = synced.run(PATH=without_lfs(synced))
    assert run.outcome == "missing" and "Git LFS" in run.message and synced.head() == before
    synced.git("config", "filter.lfs.smudge", "cat")  # the operator wants the pointers
    assert synced.run().outcome == "updated" and (synced.path / "big.bin").read_bytes() == POINTER


def test_a_tree_without_lfs_needs_no_git_lfs(synced: Site) -> None:
    raw_commit(synced, {"big.bin": b"1\n"}, "# filter=lfs is not used here\n*.bin -text\n")
    assert synced.run(PATH=without_lfs(synced)).outcome == "updated"


@pytest.fixture()
def sparse(synced: Site) -> Site:
    """A sparse checkout with the directory `in` and without `out`; the remote has changed both."""
    synced.upstream.commit({"in/stop": "1\n", "in/z": "1\n", "out/a": "1\n", "out/z": "1\n"})
    synced.git("sparse-checkout", "set", "in")
    assert synced.run().outcome == "updated"
    assert not (synced.path / "out").exists()
    synced.upstream.commit({"in/stop": "2\n", "in/z": "2\n", "out/a": "2\n", "out/new": "2\n", "out/z": None})
    return synced


def is_sparse(site: Site) -> bool:
    return not (site.path / "out").exists() and not site.status()


def test_a_sparse_checkout_stays_sparse(sparse: Site) -> None:
    assert sparse.run().outcome == "updated" and sparse.is_at_upstream() and is_sparse(sparse)


def test_a_sparse_checkout_survives_a_killed_move(sparse: Site) -> None:
    (sparse.path / ".git/info").mkdir(exist_ok=True)
    os.mkfifo(sparse.folder / "moment")
    (sparse.path / ".git/info/attributes").write_text("in/stop filter=stop\n")
    marker = sparse.folder / "moment"
    sparse.git("config", "filter.stop.smudge", f'[ -p "{marker}" ] && {{ echo >"{marker}"; sleep 60; }}; cat')
    run = sparse.start()
    marker.read_text()
    sparse.kill(run)
    marker.unlink()
    (sparse.path / ".git/info/attributes").unlink()
    assert sparse.run().outcome == "updated" and sparse.is_at_upstream() and is_sparse(sparse)


def test_a_sparse_checkout_survives_a_failing_filter(sparse: Site) -> None:
    (sparse.path / ".git/info/attributes").write_text("in/z filter=fail\n")
    sparse.git("config", "filter.fail.smudge", "sed /2/q1")
    sparse.git("config", "filter.fail.clean", "cat")
    sparse.git("config", "filter.fail.required", "true")
    run = sparse.run()
    assert run.outcome == "failed" and "put back" in run.message, run.output
    assert is_sparse(sparse) and (sparse.path / "in/stop").read_text() == "1\n"
    sparse.git("config", "filter.fail.smudge", "cat")
    assert sparse.run().outcome == "updated" and is_sparse(sparse)


def test_a_person_s_empty_file_is_not_a_half_written_one(synced: Site) -> None:
    synced.upstream.commit({"a": "old\n", "b": "old\n", "gone": "old\n", "stop": "old\n"})
    synced.run()
    synced.upstream.commit({"a": "new\n", "b": "new\n", "fresh": "new\n", "gone": None, "stop": "new\n"})
    killed_half_way(synced)
    for name in ("a", "fresh", "gone"):
        (synced.path / name).write_text("")
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    for name in ("a", "fresh", "gone"):
        [kept] = synced.path.glob(f"{name}.kept-*")
        assert kept.read_text() == "" and kept.name in run.message


USER = """
[submodule]
    recurse = true
[fetch]
    prune = true
    pruneTags = true
    recurseSubmodules = true
[color]
    ui = always
    advice = always
[push]
    recurseSubmodules = check
[diff]
    ignoreSubmodules = all
    noprefix = true
[status]
    showUntrackedFiles = no
[grep]
    patternType = fixed
[core]
    quotePath = false
[checkout]
    defaultRemote = nowhere
"""


def test_a_user_s_settings_have_no_effect(synced: Site) -> None:
    home = synced.home(USER)
    synced.git("tag", "mine")
    synced.git("update-ref", "refs/remotes/origin/gone", "HEAD")
    git("update-index", "--add", "--cacheinfo", f"160000,{synced.upstream.head()},lib", cwd=synced.upstream.work)
    git("config", "--file", ".gitmodules", "submodule.lib.path", "lib", cwd=synced.upstream.work)
    git("config", "--file", ".gitmodules", "submodule.lib.url", "/nonexistent/acme/lib", cwd=synced.upstream.work)
    git("add", ".gitmodules", cwd=synced.upstream.work)
    git("commit", "--quiet", "-m", "lib", cwd=synced.upstream.work)
    git("push", "--quiet", "origin", "HEAD", cwd=synced.upstream.work)
    assert synced.run(**home).outcome == "updated"
    assert synced.ref("refs/tags/mine") and synced.ref("refs/remotes/origin/gone")
    (synced.upstream.work / "README").write_text("theirs\n")
    git("commit", "--quiet", "-am", "x", cwd=synced.upstream.work)
    git("push", "--quiet", "origin", "HEAD", cwd=synced.upstream.work)
    synced.write("README", "mine\n")
    run = synced.run(**home)
    assert run.outcome == "dirty" and "README" in run.message and "\\x1b" not in run.message


def test_an_adopted_checkout_keeps_its_branch(site: Site) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/production", cwd=site.upstream.work)
    site.upstream.checkout(site.root)
    site.git("checkout", "--quiet", "production")
    run = site.run("--dry-run")
    assert run.outcome == "unchanged" and "production" in run.message
    assert not site.git("config", "gitops.branch", check=False)
    run = site.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER="f" * 40)
    assert "production, which is now its gitops.branch" in run.message
    assert site.git("symbolic-ref", "--short", "HEAD") == "production"
    assert site.git("config", "gitops.branch") == "production"
    assert site.run().outcome == "unchanged"


def test_an_adopted_checkout_on_a_local_branch_follows_the_default(site: Site) -> None:
    site.upstream.checkout(site.root)
    site.git("checkout", "--quiet", "-b", "idea")
    assert site.run().outcome == "updated" and site.is_at_upstream() and site.ref("refs/heads/idea")
