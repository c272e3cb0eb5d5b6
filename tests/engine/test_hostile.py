"""Hostile trees and remotes: nothing from them runs, and nothing is written outside the checkout.

Rows of docs/security.md name these tests. Each tries the attack with real git; what would run, would leave `ran`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Run, Site
from scratch import GIT_ENV, Upstream, git
from test_submodules import add_submodule


def program(path: Path, marker: Path) -> Path:
    """Create an executable that creates `marker`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    path.chmod(0o755)
    return path


def push_tree(upstream: Upstream, name: str) -> None:
    """Push a commit whose tree has a directory with this name, which `git add` would refuse."""
    blob = git("rev-parse", "HEAD:README", cwd=upstream.work)
    folder = make_tree(upstream, f"100755 blob {blob}\tpayload\n")
    tree = make_tree(upstream, f"{git('ls-tree', 'HEAD', cwd=upstream.work)}\n040000 tree {folder}\t{name}\n")
    commit = git("commit-tree", "-p", "HEAD", "-m", "hostile", tree, cwd=upstream.work)
    git("push", "--quiet", "origin", f"{commit}:refs/heads/{upstream.branch}", cwd=upstream.work)


def make_tree(upstream: Upstream, listing: str) -> str:
    made = subprocess.run(["git", "mktree"], input=listing, cwd=upstream.work, env=GIT_ENV, stdout=-1, text=True)
    return made.stdout.strip()


def nothing_ran(site: Site, run: Run) -> bool:
    assert not list(site.folder.rglob("ran")), run.output
    return True


@pytest.fixture()
def outside(site: Site) -> Path:
    """A directory outside the checkouts that the same user can write."""
    folder = site.folder / "outside"
    folder.mkdir()
    (folder / "file").write_text("mine\n")
    (folder / "empty").touch()
    return folder


def untouched(outside: Path) -> bool:
    return {path.name: path.read_text() for path in outside.iterdir()} == {"file": "mine\n", "empty": ""}


# -- what git can be made to run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["post-checkout", "reference-transaction", "post-index-change"])
def test_hooks_in_the_repository_do_not_run(synced: Site, hook: str) -> None:
    synced.upstream.commit({"page": "1\n"})
    program(synced.path / ".git/hooks" / hook, synced.folder / "ran")
    run = synced.run()
    assert run.outcome == "updated" and nothing_ran(synced, run)


def test_a_file_system_monitor_in_the_tree_does_not_run(synced: Site) -> None:
    program(synced.upstream.work / "monitor", synced.folder / "ran")
    synced.upstream.commit()
    synced.run()
    synced.git("config", "core.fsmonitor", "./monitor")
    synced.upstream.commit({"page": "1\n"})
    synced.write("README", "edited\n")
    for options in ((), ("--dry-run",), ("--force",)):
        assert nothing_ran(synced, synced.run(*options))


def test_filters_and_drivers_that_a_tree_names_do_not_run(synced: Site) -> None:
    """Attributes may name them, but only the host's configuration defines their commands."""
    program(synced.upstream.work / "driver", synced.folder / "ran")
    evil = "./driver %f"
    synced.upstream.commit(
        {
            ".gitattributes": "* filter=evil diff=evil merge=evil ident\n",
            ".gitconfig": f'[filter "evil"]\n\tsmudge = {evil}\n\tclean = {evil}\n\trequired\n[diff "evil"]\n\tcommand = {evil}\n',
            ".lfsconfig": f"[lfs]\n\turl = ext::{evil}\n[core]\n\tsshCommand = {evil}\n",
            ".git-hooks/post-checkout": "#!/bin/sh\n./driver\n",
        }
    )
    assert synced.run().outcome == "updated"
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream() and nothing_ran(synced, run)


@pytest.mark.parametrize(
    "url", ["ext::touch {ran} x/acme/site", "--upload-pack=touch {ran};x/acme/site", "-u{ran}/acme/site"]
)
def test_an_origin_that_is_an_option_or_a_command_is_rejected(synced: Site, url: str) -> None:
    """The host allows every protocol."""
    allowed = synced.folder / "gitconfig"
    allowed.write_text("[protocol]\n\tallow = always\n")
    synced.git("config", "remote.origin.url", url.format(ran=synced.folder / "ran"))
    run = synced.run(GIT_CONFIG_GLOBAL=str(allowed))
    assert run.outcome == "unreachable" and nothing_ran(synced, run)


SUBMODULES = {
    "a command": ('[submodule "lib"]\n\tpath = lib\n\turl = ext::sh -c touch% {ran}\n'),
    "an option": ('[submodule "lib"]\n\tpath = lib\n\turl = --upload-pack=touch {ran}\n'),
    "an option and a path": ('[submodule "lib"]\n\tpath = lib\n\turl = -u./evil\n'),
    "a path that is an option": ('[submodule "lib"]\n\tpath = --upload-pack=./evil\n\turl = ../lib.git\n'),
    "an update by a command": ('[submodule "lib"]\n\tpath = lib\n\turl = ../lib.git\n\tupdate = !./evil\n'),
    "a name that leads out": ('[submodule "../../../out"]\n\tpath = lib\n\turl = ../lib.git\n'),
    "a name that leads into hooks": ('[submodule "../hooks"]\n\tpath = lib\n\turl = ../lib.git\n'),
    "a line feed in a URL": ('[submodule "lib"]\n\tpath = lib\n\turl = "https://127.0.0.1:1/\\nhost=evil"\n'),
}


@pytest.mark.parametrize("modules", SUBMODULES.values(), ids=SUBMODULES)
def test_a_hostile_submodule_runs_nothing_and_leaves_its_place_nowhere(synced: Site, modules: str) -> None:
    allowed = synced.folder / "gitconfig"
    allowed.write_text("[protocol]\n\tallow = always\n")
    synced.set("submodules", "true")
    lib = Upstream(synced.folder / "forge", "acme/lib")
    program(synced.upstream.work / "evil", synced.folder / "ran")
    add_submodule(synced.upstream, "../lib.git", "lib")
    synced.upstream.commit({".gitmodules": modules.format(ran=synced.folder / "ran")})
    before = set(synced.folder.glob("*")) | set((synced.path / ".git/hooks").glob("*"))
    run = synced.run(GIT_CONFIG_GLOBAL=str(allowed))
    assert run.outcome in ("updated", "unreachable") and nothing_ran(synced, run)
    after = set(synced.folder.glob("*")) | set((synced.path / ".git/hooks").glob("*"))
    assert after - before <= {synced.folder / "result"}
    assert lib.bare.exists()


def test_a_submodule_does_not_read_repositories_of_this_host(synced: Site) -> None:
    """Since 2.38.1, git does not accept a path as the URL of a submodule."""
    private = Upstream(synced.folder / "elsewhere", "acme/private")
    synced.set("submodules", "true")
    synced.upstream.commit({".gitmodules": f'[submodule "p"]\n\tpath = p\n\turl = {private.bare}\n'})
    git("update-index", "--add", "--cacheinfo", f"160000,{private.head()},p", cwd=synced.upstream.work)
    git("commit", "--quiet", "-m", "link", cwd=synced.upstream.work)
    git("push", "--quiet", "origin", "HEAD", cwd=synced.upstream.work)
    assert synced.run().outcome == "unreachable"
    assert not (synced.path / "p/README").exists()


HOSTILE_BRANCHES = ["$(touch${IFS}ran)", "`touch${IFS}ran`", "a;touch${IFS}ran", "a]=$(touch${IFS}ran)", "a'b\"c|d&e"]


@pytest.mark.parametrize("branch", HOSTILE_BRANCHES)
def test_a_default_branch_whose_name_is_a_command_is_a_name(synced: Site, branch: str) -> None:
    git("checkout", "--quiet", "-b", branch, cwd=synced.upstream.work)
    synced.upstream.branch = branch
    synced.upstream.commit({"page": "1\n"})
    git("symbolic-ref", "HEAD", f"refs/heads/{branch}", cwd=synced.upstream.bare)
    synced.set("deploy", ': "$GITOPS_REF"')
    synced.run()
    run = synced.run(GITOPS_REF=f"refs/heads/{branch}", GITOPS_AFTER=synced.upstream.head())
    assert run.outcome in ("unchanged", "updated") and synced.is_at_upstream() and nothing_ran(synced, run)


HOSTILE_FILES = ["--help", "-rf", "$(touch ran)", "a\nb", "*", ":(exclude)*", "\x1b[2J", "\udcff"]


def test_files_whose_names_are_options_or_patterns_are_files(synced: Site) -> None:
    synced.set("dirty", "stash")
    for name in HOSTILE_FILES:
        (synced.upstream.work / name).write_text("1\n")
    synced.upstream.commit()
    assert synced.run().outcome == "updated"
    for name in HOSTILE_FILES:
        (synced.path / name).write_text("mine\n")
        (synced.upstream.work / name).write_text("2\n")
    synced.upstream.commit()
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream() and "\x1b" not in run.message
    assert all((synced.path / name).read_text() == "2\n" for name in HOSTILE_FILES) and nothing_ran(synced, run)


# -- what a tree can hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", "..", ".", ".git "])
def test_a_tree_with_a_forbidden_name_writes_nothing(synced: Site, name: str) -> None:
    before = synced.head()
    push_tree(synced.upstream, name)
    run = synced.run()
    assert run.outcome in ("failed", "unreachable"), run
    assert synced.head() == before and not synced.status()
    assert not list(synced.root.rglob("payload"))


LEFT_BY_RUNS = [".git.gitops-ready", ".git.gitops-old", ".git.gitops-building", ".git:gitops-ready"]


@pytest.mark.parametrize("name", LEFT_BY_RUNS)
def test_a_tree_cannot_contain_a_repository(synced: Site, name: str) -> None:
    """The worst moment: `.git` is missing, and the run looks for the files of a killed repair."""
    hostile = synced.upstream.work / name
    git("clone", "--quiet", "--bare", synced.upstream.bare, hostile, cwd=synced.folder)
    git("config", "--file", hostile / "config", "gitops.deploy", f"touch '{synced.folder}/ran'", cwd=synced.folder)
    git("config", "--file", hostile / "config", "core.bare", "false", cwd=synced.folder)
    for folder in ("refs/heads", "refs/tags"):  # git keeps no empty ones, and knows no repository without them
        (hostile / folder).mkdir(parents=True, exist_ok=True)
        (hostile / folder / "kept").touch()
    for place in (synced.upstream.work, synced.path):  # git would not add `.git:`, nor check it out
        git("config", "core.protectNTFS", "false", cwd=place)
    synced.upstream.commit()
    synced.run()
    (synced.path / ".git").rename(synced.folder / "aside")
    run = synced.run()
    assert run.outcome == "missing" and nothing_ran(synced, run)


@pytest.mark.parametrize("target", ["outside", "../../../outside", "/dev/null", ".git"])
def test_links_in_a_tree_are_links_and_nothing_is_written_through_them(
    synced: Site, outside: Path, target: str
) -> None:
    target = str(outside) if target == "outside" else target
    (synced.upstream.work / "link").symlink_to(target)
    synced.upstream.commit()
    assert synced.run().outcome == "updated"
    assert (synced.path / "link").is_symlink()
    (synced.upstream.work / "link").unlink()
    synced.upstream.commit({"link/file": "theirs\n", "link/config": "[gitops]\n\tdeploy = touch ran\n"})
    assert synced.run().outcome == "updated"
    assert not (synced.path / "link").is_symlink() and (synced.path / "link/file").read_text() == "theirs\n"
    assert untouched(outside) and "touch ran" not in (synced.path / ".git/config").read_text()


@pytest.mark.parametrize("killed", [True, False], ids=["a run that was killed", "a move that git refuses"])
def test_undoing_a_move_reaches_nothing_through_a_link_of_the_tree(synced: Site, outside: Path, killed: bool) -> None:
    """A link becomes a directory with the same file names as behind the link. The move stops halfway and is undone."""
    (synced.upstream.work / "link").symlink_to(outside)
    old = synced.upstream.commit()
    synced.run()
    (synced.upstream.work / "link").unlink()
    tip = synced.upstream.commit({"link/file": "theirs\n", "link/empty": "theirs\n", "link/deep/file": "theirs\n"})
    if killed:
        synced.git("fetch", "--quiet")
        (synced.path / ".git/gitops-unfinished").write_text(f"{old} {tip} \n")
        assert synced.run().outcome == "updated" and synced.is_at_upstream()
    else:
        push_tree(synced.upstream, "git~1")
        assert synced.run().outcome == "failed"
        assert synced.head() == old and (synced.path / "link").readlink() == outside
    assert untouched(outside), sorted(outside.iterdir())


def test_a_link_in_place_of_a_file_or_a_folder_is_work_in_the_way(synced: Site, outside: Path) -> None:
    """A deploy replaced files that git will write with links to another directory."""
    synced.upstream.commit({"page": "1\n", "folder/file": "1\n"})
    synced.run()
    (synced.path / "page").unlink()
    (synced.path / "page").symlink_to(outside / "file")
    (synced.path / "folder/file").unlink()
    (synced.path / "folder").rmdir()
    (synced.path / "folder").symlink_to(outside)
    (synced.path / "new").symlink_to(outside / "empty")
    for files in ({"page": "2\n"}, {"folder/file": "2\n"}, {"new": "2\n"}):
        synced.upstream.commit(files)
        synced.run()
        assert untouched(outside)
    assert synced.run().outcome == "dirty"


def test_a_link_to_another_checkout_is_not_a_checkout(synced: Site) -> None:
    """`acme` is itself a checkout, and its tree has a link `acme/other` to a checkout in another place."""
    other = Upstream(synced.folder / "forge", "acme/other")
    elsewhere = other.checkout(synced.folder / "elsewhere", deploy=f"touch '{synced.folder}/ran'")
    other.commit({"page": "1\n"})
    git("init", "--quiet", synced.root / "acme", cwd=synced.root)
    (synced.root / "acme/other").symlink_to(elsewhere)
    run = synced.run(name="other", GITOPS_REPOSITORY="acme/other")
    assert run.outcome == "missing" and nothing_ran(synced, run)
