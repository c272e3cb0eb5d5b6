"""Unreachable, slow, wrong and renamed remotes: no prompt, no hang, no change."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Site
from forge import served
from scratch import Upstream, git


def test_a_remote_that_recovers(synced: Site) -> None:
    bare = synced.upstream.bare
    synced.upstream.commit({"page": "1\n"})
    bare.rename(bare.with_suffix(".away"))
    run = synced.run()
    assert run.outcome == "unreachable" and str(bare) in run.message and "does not appear" in run.output
    bare.with_suffix(".away").rename(bare)
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


@pytest.mark.parametrize("scheme", ["http", "git", "ssh"])
def test_a_refused_connection(synced: Site, scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    synced.git("remote", "set-url", "origin", f"{scheme}://127.0.0.1:{port}/acme/site.git")
    assert synced.run().outcome == "unreachable"


@pytest.fixture()
def listener() -> Iterator[Callable[[bytes], int]]:
    """Return a function that starts a server and returns its port. The server sends the same bytes to every client."""
    sockets = []

    def serve(answer: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                sockets.append(peer)
                if answer:
                    peer.recv(65536)
                    peer.sendall(answer)

        threading.Thread(target=accept, daemon=True).start()
        return server.getsockname()[1]

    yield serve
    for each in sockets:
        each.close()


HALF = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"
    b"Content-Length: 5000\r\n\r\n001e# se"
)


@pytest.mark.parametrize(("scheme", "answer"), [("git", b""), ("http", HALF), ("git", b"0032")])
def test_a_remote_that_hangs(synced: Site, listener: Callable[[bytes], int], scheme: str, answer: bytes) -> None:
    synced.set("timeout", "2")
    synced.git("remote", "set-url", "origin", f"{scheme}://127.0.0.1:{listener(answer)}/acme/site.git")
    start = time.monotonic()
    run = synced.run(GITOPS_REF="refs/heads/main")
    assert run.outcome == "unreachable" and "no complete answer within 1 s" in run.message
    assert time.monotonic() - start < 5


def test_a_run_waits_for_a_slow_remote(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    synced.git("config", "remote.origin.uploadpack", "sleep 1; git-upload-pack")
    assert synced.run(GITOPS_REF="refs/heads/main").outcome == "updated"


def test_wrong_credentials_do_not_prompt(synced: Site, listener: Callable[[bytes], int]) -> None:
    refusal = (
        b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\n'
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    synced.git("remote", "set-url", "origin", f"http://127.0.0.1:{listener(refusal)}/acme/site.git")
    run = synced.run()
    assert run.outcome == "no-access" and "Authentication failed" in run.message


SSH = """#!/bin/bash
printf '%s\\n' "$@" >>"$TRACE"
[[ $BEHAVIOUR == changed ]] && {{ echo 'Host key verification failed.' >&2; exit 255; }}
[[ $BEHAVIOUR == denied ]] && {{ echo 'git@forge.example: Permission denied (publickey).' >&2; exit 255; }}
[[ $BEHAVIOUR == silent ]] && exit 255
[[ $BEHAVIOUR == hang ]] && exec sleep 30
shift $(($# - 1)); exec bash -c "$1"
"""


@pytest.fixture()
def by_ssh(synced: Site) -> Site:
    """A checkout with an ssh URL as origin, and a program named ssh first on PATH."""
    tools = synced.folder / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(SSH.replace("{{", "{").replace("}}", "}"))
    (tools / "ssh").chmod(0o755)
    synced.environment.update(PATH=f"{tools}:{synced.environment['PATH']}", BEHAVIOUR="")
    synced.git("remote", "set-url", "origin", f"git@forge.example:{synced.upstream.bare}")
    return synced


def test_ssh_runs_in_batch_mode(by_ssh: Site) -> None:
    by_ssh.upstream.commit({"page": "1\n"})
    assert by_ssh.run().outcome == "updated"
    assert "BatchMode=yes" in (by_ssh.folder / "trace").read_text()


def test_an_ssh_host_key_that_changed(by_ssh: Site) -> None:
    run = by_ssh.run(BEHAVIOUR="changed")
    assert run.outcome == "no-access" and "Host key verification failed" in run.output
    assert "ssh -T" in run.fix and run.fix.endswith(" git@forge.example")
    assert by_ssh.run().outcome == "unchanged"


def test_message_contains_the_cause_and_not_git_s_advice(by_ssh: Site) -> None:
    complaint = "git@forge.example: Permission denied (publickey)"
    run = by_ssh.run(BEHAVIOUR="denied")
    assert run.outcome == "no-access" and run.message.endswith(f" ({complaint}); tried again later")
    assert "and the repository exists" in run.output
    run = by_ssh.run("--dry-run", BEHAVIOUR="denied")
    assert f"({complaint})" in run.message and "see the messages above" not in run.output
    run = by_ssh.run(BEHAVIOUR="silent")
    assert "cannot be fetched: fatal: Could not read from remote repository; tried again" in run.message


@pytest.mark.skipif(
    not (shutil.which("localedef") and Path("/usr/share/locale/de/LC_MESSAGES/git.mo").exists()),
    reason="no German messages of git, or no localedef, of Debian's package locales",
)
def test_message_is_english_in_every_locale(by_ssh: Site) -> None:
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", by_ssh.folder / "de_DE.UTF-8"], check=True)
    run = by_ssh.run(BEHAVIOUR="denied", LOCPATH=str(by_ssh.folder), LC_ALL="de_DE.UTF-8")
    assert "(git@forge.example: Permission denied (publickey)); tried again" in run.message


def test_a_dry_run_leaves_no_file_behind(by_ssh: Site) -> None:
    place = by_ssh.folder / "tmp"
    place.mkdir()
    by_ssh.run("--dry-run", BEHAVIOUR="denied", TMPDIR=str(place))
    assert not list(place.iterdir())
    assert (
        "cannot be fetched: see the messages above"
        in by_ssh.run("--dry-run", BEHAVIOUR="denied", TMPDIR="/nonexistent").message
    )


def test_ssh_that_hangs(by_ssh: Site) -> None:
    by_ssh.set("timeout", "2")
    assert by_ssh.run(BEHAVIOUR="hang", GITOPS_REF="refs/heads/main").outcome == "unreachable"


def test_a_configured_ssh_command_is_used(by_ssh: Site) -> None:
    by_ssh.git("config", "core.sshCommand", "ssh -i /the/key")
    by_ssh.run()
    trace = (by_ssh.folder / "trace").read_text()
    assert "/the/key" in trace and "BatchMode" not in trace


def test_origin_is_another_repository(synced: Site) -> None:
    other = Upstream(synced.folder / "forge", "acme/other")
    synced.git("remote", "set-url", "origin", other.bare)
    before = synced.git("for-each-ref")
    run = synced.run()
    assert run.outcome == "mismatch" and str(other.bare) in run.message and "acme/site" in run.message
    assert synced.git("for-each-ref") == before


@pytest.mark.parametrize("name", ["acme/renamed", "other/site"])
def test_a_renamed_or_transferred_repository_is_explained(synced: Site, name: str) -> None:
    """The webhook has the new name, and the checkout was moved to it, but its origin is the old URL."""
    owner, new = name.split("/")
    (synced.root / owner).mkdir(exist_ok=True)
    synced.path.rename(synced.root / name)
    run = synced.run(name=new, GITOPS_REPOSITORY=name)
    assert run.outcome == "mismatch" and "renamed or transferred" in run.message
    assert run.fix == f"git -C {synced.root / name} remote set-url origin {synced.folder}/forge/{name}.git"


@pytest.mark.parametrize("new", ["acme/renamed", "other/site"])
def test_a_redirect_to_another_name_is_reported(synced: Site, new: str) -> None:
    """The forge redirects the old URL, so the run succeeds. Under the new name, no push arrives here."""
    place = synced.folder / f"forge/{new}.git"
    place.parent.mkdir(exist_ok=True)
    synced.upstream.commit({"page": "1\n"})
    tip = synced.upstream.head()
    synced.upstream.bare.rename(place)
    tools = synced.folder / "tools"
    tools.mkdir()
    (tools / "gitops-hook").symlink_to("/bin/true")
    with served(synced.folder / "forge", {"acme/site": new}) as url:
        synced.git("remote", "set-url", "origin", f"{url}/acme/site.git")
        for outcome in ("updated", "unchanged"):
            run = synced.run(PATH=f"{tools}:{os.environ['PATH']}")
            assert (run.outcome, run.cause, run.after) == (outcome, "renamed", tip), run.output
            assert f"the forge calls the repository {new} now" in run.message
            assert shlex.split(run.fix)[-4:] == ["gitops-hook", "rename", "acme/site", new]
        synced.git("remote", "set-url", "origin", f"{url}/{new}.git")
        owner, _, name = new.partition("/")
        (synced.root / owner).mkdir(exist_ok=True)
        synced.path.rename(synced.root / new)
        run = synced.run(name=name, GITOPS_REPOSITORY=new)
        assert (run.outcome, run.cause, run.fix) == ("unchanged", "", "")


@pytest.mark.parametrize("new", ["acme/site", "ACME/Site"])
def test_a_redirect_to_the_same_name_is_not_reported(synced: Site, new: str) -> None:
    place = synced.folder / f"forge/moved/{new}.git"
    place.parent.mkdir(parents=True)
    synced.upstream.bare.rename(place)
    with served(synced.folder / "forge", {"acme/site": f"moved/{new}"}) as url:
        synced.git("remote", "set-url", "origin", f"{url}/acme/site.git")
        assert (synced.run().outcome, synced.run().cause) == ("unchanged", "")


def test_a_new_name_that_a_webhook_announced_is_reported_without_a_command(synced: Site) -> None:
    run = synced.run(GITOPS_RENAMED="acme/renamed")
    assert (run.outcome, run.cause, run.fix) == ("unchanged", "renamed", "")
    assert "a webhook calls the repository acme/renamed" in run.message
    for name in ("acme/site", "ACME/SITE", "renamed", "a/b/c", "../x", "acme/$(touch ran)", "acme/--force"):
        assert synced.run(GITOPS_RENAMED=name).cause == ""


def test_no_origin(synced: Site) -> None:
    synced.git("remote", "remove", "origin")
    run = synced.run()
    assert run.outcome == "mismatch" and "no remote named origin" in run.message


@pytest.mark.parametrize(
    "url",
    [
        "https://forge.example/acme/site.git",
        "https://forge.example/Acme/Site/",
        "git@forge.example:acme/site",
        "ssh://git@forge.example:2222/acme/site.git",
        "forge:acme/site.git",
    ],
)
def test_url_forms_and_instead_of(synced: Site, url: str) -> None:
    synced.git("remote", "set-url", "origin", url)
    synced.git("config", f"url.{synced.upstream.bare}.insteadOf", url)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_a_name_known_only_through_instead_of(synced: Site) -> None:
    synced.git("remote", "set-url", "origin", "forge:")
    synced.git("config", f"url.{synced.upstream.bare}.insteadOf", "forge:")
    assert synced.run().outcome == "unchanged"


def test_a_password_in_a_url_is_not_shown(synced: Site) -> None:
    for url, outcome in [
        ("http://ada:secret@127.0.0.1:1/acme/site", "unreachable"),
        ("http://ada:se@cret@127.0.0.1:1/x", "mismatch"),
    ]:
        synced.git("remote", "set-url", "origin", url)
        run = synced.run(GITOPS_REF="refs/heads/main")
        assert run.outcome == outcome and "127.0.0.1" in run.message and "cret" not in run.message


def test_a_name_with_the_same_suffix_is_different(synced: Site) -> None:
    for url in (
        "https://forge.example/acme/website",
        "https://forge.example/notacme/site",
        "https://forge.example/acme/site/more",
    ):
        synced.git("remote", "set-url", "origin", url)
        assert synced.run().outcome == "mismatch"


def test_a_remote_helper_that_runs_commands_is_refused(site: Site) -> None:
    run = site.run(GITOPS_CLONE_URL=f"ext::touch {site.folder}/x y/acme/site")
    assert run.outcome == "unreachable" and not (site.folder / "x").exists() and not site.path.exists()


def test_clone(site: Site) -> None:
    run = site.run(GITOPS_CLONE_URL=str(site.upstream.bare))
    assert (run.outcome, run.before, run.after) == ("cloned", "", site.upstream.head())
    assert site.is_at_upstream() and not site.status()
    site.upstream.commit({"page": "1\n"})
    assert site.run().outcome == "updated"
    assert site.git("status", "--branch", "--porcelain").startswith("## main")


def test_a_clone_that_fails_leaves_nothing(site: Site) -> None:
    run = site.run(GITOPS_CLONE_URL=str(site.folder / "nowhere/acme/site.git"))
    assert run.outcome == "unreachable" and "nowhere" in run.message
    assert not site.path.exists()
    assert site.run(GITOPS_CLONE_URL=str(site.upstream.bare)).outcome == "cloned"


def test_git_variables_of_the_operator_have_no_effect(synced: Site) -> None:
    other = Upstream(synced.folder / "forge", "acme/other")
    before = git("for-each-ref", cwd=other.work)
    synced.upstream.commit({"page": "1\n"})
    run = synced.run(GIT_DIR=f"{other.work}/.git", GIT_WORK_TREE=str(other.work), GIT_INDEX_FILE="/nowhere")
    assert run.outcome == "updated" and synced.is_at_upstream()
    assert git("for-each-ref", cwd=other.work) == before
