"""The suggested command (`fix=`) works when it is pasted, and contains nothing from outside except quoted."""

from __future__ import annotations

import os
import pty
import shlex
import socket
import subprocess
import threading

import pytest
from conftest import Run, Site, needs_root
from scratch import GIT_ENV, git


def paste(site: Site, run: Run, **environment: str) -> subprocess.CompletedProcess:
    """Run the fix as a person's shell would: in another directory, without the daemon's environment."""
    assert run.fix and "\n" not in run.fix
    return subprocess.run(
        ["bash", "-c", run.fix], cwd="/", env={**GIT_ENV, **environment}, capture_output=True, text=True, check=True
    )


def test_fix_of_conflicting_changes(synced: Site) -> None:
    synced.write("README", "mine\n")
    synced.upstream.commit({"README": "theirs\n"})
    run = synced.run()
    assert run.outcome == "dirty"
    paste(synced, run)
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_fix_of_local_commits(synced: Site) -> None:
    mine = synced.commit_here()
    paste(synced, synced.run())
    assert synced.run().outcome == "updated" and synced.ref("refs/gitops/backup") == mine


@pytest.mark.parametrize("scope", ["--local", "--worktree", "include"])
def test_fix_of_an_invalid_setting(synced: Site, scope: str) -> None:
    synced.git("config", "extensions.worktreeConfig", "true")
    if scope == "include":
        synced.git("config", "include.path", synced.folder / "more")
        synced.git("config", "--file", synced.folder / "more", "gitops.timeout", "soon")
    else:
        synced.git("config", scope, "gitops.timeout", "soon")
    run = synced.run()
    assert run.outcome == "usage"
    paste(synced, run)
    assert synced.run().outcome == "unchanged"


def test_fix_of_a_pause(synced: Site) -> None:
    synced.set("paused", "true")
    paste(synced, synced.run())
    assert synced.run().outcome == "unchanged"


def test_fix_of_a_renamed_repository(synced: Site) -> None:
    renamed = synced.upstream.bare.with_name("renamed.git")
    synced.upstream.bare.rename(renamed)
    synced.path.rename(synced.path.with_name("renamed"))
    run = synced.run(name="renamed", GITOPS_REPOSITORY="acme/renamed")
    assert run.outcome == "mismatch"
    paste(synced, run)
    assert synced.run(name="renamed", GITOPS_REPOSITORY="acme/renamed").outcome == "unchanged"


def test_a_fix_contains_no_password(synced: Site) -> None:
    synced.git("remote", "set-url", "origin", "https://ada:secret@forge.example/acme/other.git")
    run = synced.run()
    assert run.outcome == "mismatch" and "secret" not in run.fix + run.message


def test_fix_of_a_missing_checkout(site: Site) -> None:
    run = site.run("--dry-run", GITOPS_CLONE_URL=str(site.upstream.bare))
    assert run.outcome == "missing"
    paste(site, run)
    assert site.run().outcome in ("updated", "unchanged") and site.is_at_upstream()


def test_fix_of_a_rolled_back_commit(synced: Site) -> None:
    synced.set("health", f"[[ ! -e sick || -e {synced.folder}/well ]]")
    synced.set("healthTimeout", "0")
    synced.run("--force")
    synced.upstream.commit({"sick": "1\n"})
    synced.run()
    run = synced.run()
    assert run.outcome == "rolled-back"
    (synced.folder / "well").touch()
    assert paste(synced, run).stdout.startswith("updated: ") and synced.is_at_upstream()


@needs_root
def test_a_fix_runs_as_the_owner_of_the_checkout(synced: Site) -> None:
    synced.commit_here()
    subprocess.run(["chown", "-R", "nobody", synced.path], check=True)
    home = synced.home("[safe]\n\tdirectory = *\n")
    tools = synced.folder / "tools"
    tools.mkdir()
    (tools / "sudo").write_text('#!/bin/sh\nexec setpriv --reuid="$2" --clear-groups -- "${@:3}"\n')
    (tools / "sudo").chmod(0o755)
    run = synced.run(PATH=f"{tools}:{os.environ['PATH']}", **home)
    assert run.outcome == "diverged" and run.fix.startswith(f"sudo -u nobody git -C {synced.path} config ")
    run = synced.run(**home)
    for place in (synced.folder, *list(synced.folder.parents)[:-2]):
        place.chmod(place.stat().st_mode | 0o755)
    paste(synced, run)  # without sudo
    assert (synced.path / ".git/config").stat().st_uid == 65534
    assert synced.run(**home).outcome == "updated"


NAMES = ["a; touch ran", "$(touch ran)", "`touch ran`", "a'b\"c", "new\nline; touch ran", "-rf"]


def test_names_from_a_pushed_tree_are_not_commands(synced: Site) -> None:
    for name in NAMES:
        (synced.upstream.work / name).write_text("theirs\n")
        (synced.path / name).write_text("mine\n")
    synced.upstream.commit()
    run = synced.run()
    assert run.outcome == "dirty" and not any(name in run.fix for name in NAMES)
    assert shlex.split(run.fix)[:1] == ["git"]
    paste(synced, run)
    assert not list(synced.folder.rglob("ran"))


@pytest.mark.parametrize("branch", ["a;touch${IFS}ran", "$(touch${IFS}ran)"])
def test_a_branch_name_is_not_a_command(synced: Site, branch: str) -> None:
    git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", cwd=synced.upstream.work)
    git("symbolic-ref", "HEAD", f"refs/heads/{branch}", cwd=synced.upstream.bare)
    synced.run()
    synced.commit_here()
    run = synced.run()
    assert run.outcome == "diverged" and branch not in run.fix


def test_a_remote_s_message_is_not_a_command(synced: Site) -> None:
    line = b"ERR no\rsuch\x1b[31m thing; sudo sh -c 'touch ran'\n"
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"%04x" % (len(line) + 4) + line)

    thread = threading.Thread(target=answer)
    thread.start()
    synced.git("remote", "set-url", "origin", f"git://127.0.0.1:{server.getsockname()[1]}/acme/site.git")
    result = synced.folder / "answer"
    subprocess.run(synced.command(), env={**synced.environment, "GITOPS_RESULT": str(result)}, check=False)
    thread.join()
    server.close()
    values = dict(line.split("=", 1) for line in result.read_text().splitlines())
    assert values["outcome"] == "unreachable" and not values["fix"]
    assert "such" in values["message"] and "\\x" not in values["message"]


def test_a_terminal_shows_the_fix_on_its_own_line(synced: Site) -> None:
    synced.set("paused", "true")
    ours, theirs = pty.openpty()
    subprocess.run(synced.command(), env=synced.environment, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert lines[-1].startswith(f"fix: git config --file {synced.path}/.git/config")
