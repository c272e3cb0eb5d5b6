"""The lock of a checkout: its file, its owner, and its life through clones and repairs."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import Site, needs_root, tool
from scratch import git
from test_recovery import corrupt_head


def test_only_the_owner_can_open_the_lock(synced: Site) -> None:
    assert stat.S_IMODE((synced.path / ".git/gitops.lock").stat().st_mode) == 0o600


def test_locks_on_directories_are_ignored(synced: Site) -> None:
    """Any local user can lock a directory that it can read."""
    synced.upstream.commit()
    holders = []
    for place in (synced.path, synced.path / ".git"):
        holder = subprocess.Popen(["flock", place, "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
        holder.stdout.readline()
        holders.append(holder)
    assert synced.run().outcome == "updated"
    for holder in holders:
        holder.communicate(b"\n")


def test_a_repair_keeps_the_lock(synced: Site) -> None:
    inode = (synced.path / ".git/gitops.lock").stat().st_ino
    corrupt_head(synced)
    assert synced.run().outcome == "unchanged"
    assert (synced.path / ".git/gitops.lock").stat().st_ino == inode


def test_a_run_that_waited_for_a_replaced_lock_takes_the_new_one(synced: Site) -> None:
    """The lock file is replaced while a run waits: holding the old one is not enough."""
    lock = synced.path / ".git/gitops.lock"
    old = subprocess.Popen(["flock", lock, "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    old.stdout.readline()
    run = synced.start()
    while "flock" not in {Path(f"/proc/{child}/comm").read_text().strip() for child in children(run.pid)}:
        assert run.poll() is None
    lock.unlink()
    new = subprocess.Popen(["flock", lock, "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    new.stdout.readline()
    old.communicate(b"\n")
    assert run.wait() == 75
    new.communicate(b"\n")
    assert synced.run().outcome == "unchanged"


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_linked_worktree_has_its_own_lock(synced: Site) -> None:
    main = synced.folder / "main"
    synced.path.rename(main)
    git("worktree", "add", "--quiet", "-b", "other", synced.path, cwd=main)
    synced.git("push", "--quiet", "origin", "other")
    synced.git("config", "extensions.worktreeConfig", "true")
    synced.git("config", "--worktree", "gitops.branch", "other")
    assert synced.run().outcome in ("updated", "unchanged")
    assert (main / ".git/worktrees/site/gitops.lock").exists()


def test_two_first_clones_at_once(site: Site) -> None:
    cloning = {"GITOPS_CLONE_URL": str(site.upstream.bare)}
    os.mkfifo(site.folder / "fetching")
    os.mkfifo(site.folder / "go")
    stop = (
        f'for it; do [[ $it != fetch ]] || {{ echo >"{site.folder}/fetching"; read -r x <"{site.folder}/go"; }}; done'
    )
    first = site.start(**cloning, PATH=tool(site, stop))
    (site.folder / "fetching").read_text()
    run = site.run(**cloning)
    assert run.outcome == "unreachable" and "another run" in run.message
    (site.folder / "go").write_text("\n")
    assert first.wait() == 0 and site.is_at_upstream()
    assert [path.name for path in site.path.glob(".git*")] == [".git"]


@needs_root
@pytest.mark.parametrize("value", ["group", "0660"])
def test_a_group_shared_checkout(synced: Site, value: str) -> None:
    """Two users of one group sync a checkout in turn."""
    for place in (synced.folder, *list(synced.folder.parents)[:-2]):
        place.chmod(place.stat().st_mode | 0o777)
    synced.git("config", "core.sharedRepository", value)
    subprocess.run(["chgrp", "-R", "4242", synced.path], check=True)
    subprocess.run(["chmod", "-R", "g+rwXs", synced.path], check=True)
    home = synced.home("[safe]\n\tdirectory = *\n")
    for number, user in enumerate(["4343", "4444", "4343"]):
        synced.upstream.commit({f"page{number}": "1\n"})
        member = [
            "setpriv",
            f"--reuid={user}",
            "--regid=4242",
            "--clear-groups",
            "sh",
            "-c",
            'umask 007; exec "$@"',
            "sh",
        ]
        (synced.folder / "result").unlink(missing_ok=True)
        run = synced.run(prefix=member, **home)
        assert run.outcome == "updated", run.output
    mode = stat.S_IMODE((synced.path / ".git/gitops.lock").stat().st_mode)
    assert mode & 0o660 == 0o660 and not mode & 0o007


@needs_root
def test_a_user_without_a_passwd_entry(synced: Site) -> None:
    for place in (synced.folder, *list(synced.folder.parents)[:-2]):
        place.chmod(place.stat().st_mode | 0o777)
    subprocess.run(["chown", "-R", "4343:4343", synced.path], check=True)
    synced.upstream.commit({"README": "theirs\n"})
    subprocess.run(["chown", "-R", "4343:4343", synced.upstream.bare], check=True)
    user = ["setpriv", "--reuid=4343", "--regid=4343", "--clear-groups"]
    names = ["HOME", "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"]
    anonymous = dict.fromkeys(names)
    synced.write("README", "mine\n")
    subprocess.run([*user, "git", "config", "gitops.dirty", "stash"], cwd=synced.path, check=True)
    run = synced.run(prefix=user, **anonymous)
    assert run.outcome == "updated" and "stash" in run.message, run.output
    (synced.root / "acme").chmod(0o755)
    subprocess.run(["chown", "-R", "0:0", synced.path], check=True)
    run = synced.run(prefix=user, **anonymous)
    assert run.outcome == "denied" and "4343" in run.fix
