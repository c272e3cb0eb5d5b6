"""The directory of a checkout, and its owner."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Callable

import pytest
from conftest import Site, needs_root
from scratch import git


def test_nested_in_another_repository(site: Site) -> None:
    git("init", "--quiet", cwd=site.folder)
    (site.folder / ".gitignore").write_text("*\n")
    git("add", "--force", ".gitignore", cwd=site.folder)
    git("commit", "--quiet", "-m", "outer", cwd=site.folder)
    outer = git("rev-parse", "HEAD", cwd=site.folder)
    site.checkout()
    site.upstream.commit({"page": "1\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream()
    shutil.rmtree(site.path / ".git")
    assert site.run().outcome == "missing"
    assert git("rev-parse", "HEAD", cwd=site.folder) == outer and not git("status", "--porcelain", cwd=site.folder)


def test_nested_with_a_broken_repository(site: Site) -> None:
    git("init", "--quiet", cwd=site.folder)
    site.checkout()
    (site.path / ".git/HEAD").unlink()
    assert site.run().outcome == "unchanged" and site.is_at_upstream()
    assert not git("for-each-ref", cwd=site.folder)


@pytest.mark.parametrize(
    "name", ["with space", "ünïcödé 字", 'it\'s "quoted"', "co:lon", "glob*[x]", "-dash", "new\nline"]
)
def test_strange_paths(tmp_path: Path, name: str) -> None:
    site = Site(tmp_path / name)
    site.checkout(deploy='echo "$PWD" >>"$TRACE"')
    site.upstream.commit({"page": "1\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream()
    assert (site.folder / "trace").read_text().endswith(f"{site.path}\n")
    site.write("page", "mine\n")
    site.upstream.commit({"page": "2\n"})
    run = site.run()
    assert run.outcome == "dirty" and "page" in run.message


def test_root_through_a_symlink(synced: Site) -> None:
    link = synced.folder / "link"
    link.symlink_to(synced.root)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run(GITOPS_ROOT=str(link)).outcome == "updated" and synced.is_at_upstream()


@pytest.mark.parametrize("nested", [True, False])
def test_nested_and_flat_layout(site: Site, nested: bool) -> None:
    site.path = site.upstream.checkout(site.root, nested=nested)
    site.upstream.commit({"page": "1\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream()
    assert site.run(GITOPS_REPOSITORY=None).outcome == "unchanged"


def test_nested_layout_takes_precedence(synced: Site) -> None:
    other = synced.upstream.checkout(synced.root, nested=False)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert not (other / "page").exists()


def test_a_linked_worktree(synced: Site) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/staging", cwd=synced.upstream.work)
    main = synced.folder / "main"
    synced.path.rename(main)
    git("fetch", "--quiet", cwd=main)
    git("worktree", "add", "--quiet", synced.path, "staging", cwd=main)
    git("config", "extensions.worktreeConfig", "true", cwd=main)
    synced.git("config", "--worktree", "gitops.branch", "staging")
    deployed = git("rev-parse", "refs/gitops/deployed", cwd=main)
    synced.upstream.commit({"page": "1\n"})
    git("push", "--quiet", "origin", "HEAD:staging", cwd=synced.upstream.work)
    lock = main / ".git/worktrees/site/index.lock"
    lock.touch()
    assert synced.run().outcome == "updated"
    assert synced.head() == synced.upstream.head() and (synced.path / "page").exists() and not lock.exists()
    assert synced.run().outcome == "unchanged"
    assert git("rev-parse", "refs/gitops/deployed", cwd=main) == deployed and not (main / "page").exists()


def test_a_linked_worktree_whose_repository_is_gone(synced: Site) -> None:
    main = synced.folder / "main"
    synced.path.rename(main)
    git("worktree", "add", "--quiet", "--detach", synced.path, cwd=main)
    shutil.rmtree(main)
    run = synced.run()
    assert run.outcome == "missing" and "worktrees" in run.message


def test_directory_without_a_repository(site: Site) -> None:
    site.write("index.html", "by hand\n")
    run = site.run()
    assert run.outcome == "missing" and str(site.path) in run.message
    run = site.run(GITOPS_CLONE_URL=str(site.upstream.bare))
    assert run.outcome == "missing" and "clone" in run.message
    assert [path.name for path in site.path.iterdir()] == ["index.html"]


def test_empty_directory(site: Site) -> None:
    site.path.mkdir(parents=True)
    run = site.run()
    assert run.outcome == "missing" and "clone" in run.message and not list(site.path.iterdir())
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare)).outcome == "cloned"


def test_no_directory(site: Site) -> None:
    run = site.run()
    assert run.outcome == "missing" and "clone" in run.message and not list(site.root.iterdir())


def test_no_clone_inside_another_checkout(site: Site) -> None:
    outer = site.root / "acme"
    outer.mkdir()
    git("init", "--quiet", cwd=outer)
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare)).outcome == "missing"
    assert [path.name for path in outer.iterdir()] == [".git"]


def test_a_file_where_the_checkout_should_be(site: Site) -> None:
    (site.root / "acme").mkdir()
    (site.root / "acme/site").write_text("")
    assert site.run().outcome == "missing"
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare)).outcome in ("missing", "denied")


def test_root_missing(site: Site) -> None:
    run = site.run(GITOPS_ROOT=str(site.folder / "nowhere"))
    assert run.outcome == "missing" and "install -d" in run.fix


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def opened(folder: Path) -> None:
    """Give other users access to the directory and its parents, up to the system's directory for temporary files."""
    while folder != folder.parent and not folder.stat().st_mode & stat.S_ISVTX:
        folder.chmod(folder.stat().st_mode | 0o777)
        folder = folder.parent


@needs_root
def test_a_directory_of_another_user(synced: Site) -> None:
    opened(synced.folder)
    head = synced.head()
    synced.upstream.commit({"page": "1\n"})
    run = synced.run(prefix=NOBODY)
    assert run.outcome == "denied" and run.fix.endswith(f"chown -R nobody {synced.path}")
    assert synced.head() == head
    subprocess.run(["chown", "-R", "nobody", synced.path], check=True)
    run = synced.run(prefix=NOBODY, **synced.home("[safe]\n\tdirectory = *\n"))
    assert run.outcome == "updated", run.output


@needs_root
def test_root_does_not_run_in_another_user_s_checkout_unless_git_may(synced: Site) -> None:
    subprocess.run(["chown", "-R", "nobody", synced.path], check=True)
    assert synced.run().outcome == "denied"
    assert synced.run(**synced.home(f"[safe]\n\tdirectory = {synced.path}\n")).outcome == "unchanged"


@needs_root
@pytest.mark.parametrize("position", ["on the branch", "on another", "detached", "on a branch that is new here"])
def test_an_unwritable_directory_in_the_tree(synced: Site, position: str) -> None:
    """git prints an error, moves HEAD nevertheless, and exits 0."""
    synced.upstream.commit({"shut/page": "old\n", "shut/old": "old\n", "open/page": "old\n"})
    synced.set("deploy", 'echo "$GITOPS_AFTER" >>"$TRACE"')
    synced.run()
    (synced.folder / "trace").unlink()
    synced.upstream.commit({"shut/page": "new\n", "open/page": "new\n", "open/added": "new\n"})
    if position == "on another":
        synced.git("checkout", "--quiet", "-b", "other")
    elif position == "detached":
        synced.git("checkout", "--quiet", "--detach")
    elif position == "on a branch that is new here":
        git("checkout", "--quiet", "-b", "new", cwd=synced.upstream.work)
        synced.upstream.branch = "new"
        synced.upstream.commit()
        synced.set("branch", "new")
    synced.write("README", "mine\n")
    opened(synced.folder)
    subprocess.run(["chown", "-R", "nobody", synced.path], check=True)
    home = synced.home("[safe]\n\tdirectory = *\n")
    place = place_of(synced)
    changes = ({"shut/old": None, "shut/page": "old\n"}, {"shut/old": "old\n", "shut/added": "new\n"})
    for change in (None, *(changes if position == "on the branch" else ())):
        if change:
            synced.upstream.commit(change)
        (synced.path / "shut").chmod(0o555)
        run = synced.run(prefix=NOBODY, **home)
        assert run.outcome == "failed" and "put back" in run.message and "Permission denied" in run.message
        assert place_of(synced) == place and not (synced.folder / "trace").exists()
        (synced.path / "shut").chmod(0o755)
    assert synced.run(prefix=NOBODY, **home).outcome == "updated"
    subprocess.run(["chown", "-R", "root", synced.path], check=True)
    assert synced.is_at_upstream() and synced.status() == "M README"


def place_of(site: Site) -> bytes:
    """Return HEAD, the branches and the status, as the owner sees them."""
    look = (
        "git rev-parse HEAD && git rev-parse --symbolic-full-name HEAD && git for-each-ref refs/heads && git status -s"
    )
    return subprocess.run(
        [*NOBODY, "sh", "-c", look], cwd=site.path, env=site.environment, stdout=subprocess.PIPE, check=True
    ).stdout


@needs_root
def test_a_directory_that_cannot_be_entered(synced: Site) -> None:
    opened(synced.folder)
    (synced.root / "acme").chmod(0o700)
    assert synced.run(prefix=NOBODY).outcome == "denied"
    (synced.root / "acme").chmod(0o755)
    for mode in (0o700, 0o744):
        synced.path.chmod(mode)
        assert synced.run(prefix=NOBODY).outcome == "denied"


@needs_root
def test_a_read_only_file_system(site: Site, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(4096)
    site.root, site.path = disk, disk / "acme" / "site"
    site.environment["GITOPS_ROOT"] = str(disk)
    site.checkout()
    site.upstream.commit({"page": "1\n"})
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    run = site.run()
    assert run.outcome == "denied" and "read-only" in run.message
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert site.run().outcome == "updated"


def test_a_result_file_that_cannot_be_written_is_no_success(synced: Site) -> None:
    environment = {**synced.environment, "GITOPS_RESULT": "/nonexistent/result"}
    done = subprocess.run(synced.command(), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "unchanged" in done.stdout


def test_hooks_in_the_tree_do_not_run(synced: Site) -> None:
    """husky sets core.hooksPath to a directory of the tree. A push must not run code through it."""
    synced.git("config", "core.hooksPath", ".hooks")
    hook = synced.upstream.work / ".hooks" / "post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {synced.folder}/ran\n")
    hook.chmod(0o755)
    synced.upstream.commit()
    synced.run()
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and not (synced.folder / "ran").exists()


@needs_root
@pytest.mark.parametrize(("paused", "status"), [("true", 1), ("false", 0)])
def test_an_unreported_outcome_is_not_success(
    synced: Site, small_disk: Callable[[int], Path], paused: str, status: int
) -> None:
    synced.set("paused", paused)
    synced.upstream.commit({"page": "1\n"})
    disk = small_disk(64)
    (disk / "ballast").write_bytes(bytes(64 << 10))
    done = subprocess.run(synced.command(), env={**synced.environment, "GITOPS_RESULT": str(disk / "result")})
    assert done.returncode == status
