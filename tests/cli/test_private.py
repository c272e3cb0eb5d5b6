"""Private repositories: a real sshd with a deploy key, and a real HTTPS server that checks a token, on loopback."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import code_blocks
from fake_github import TOKEN as API_TOKEN
from fake_github import Forge
from harness import push, until
from private_forge import PrivateHandler, Sshd, create_certificate, https_server, needs_openssl, needs_sshd
from scratch import Upstream, git

from gitops_hook.cli.access import token_file_of, token_source
from gitops_hook.sync.deploy_keys import key_of

TOKEN = "glpat-a-token-of-the-forge"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    started = Sshd(tmp_path / "sshd")
    yield started
    started.stop()


def public_key(said: str) -> str:
    found = re.search(r"^ssh-ed25519 \S+ .*$", said, re.MULTILINE)
    assert found, said
    return found[0]


# -- an SSH key ----------------------------------------------------------------------------------------------------


@needs_sshd
def test_add_creates_a_key_shows_it_and_continues_after_it_was_entered(tmp_path, upstream, server, hook, start_daemon):
    daemon = start_daemon()
    command, *_ = code_blocks("docs/private.md", "A key", "sh")
    words = [*shlex.split(command)[1:-1], server.url(upstream)]
    done = hook(*words, status=75)
    key = tmp_path / "state/keys/acme/site/id_ed25519"
    assert public_key(done.stdout) == key.with_suffix(".pub").read_text().strip()
    assert "Settings, Deploy keys" in done.stdout
    assert shlex.join(["gitops-hook", *words]) in done.stderr
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "sshd/host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert f"  {fingerprint} (ED25519)\n" in done.stdout
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not (daemon.root / "acme").exists()
    server.authorize(public_key(done.stdout))
    hook(*words)
    checkout = daemon.root / "acme/site"
    assert str(key) in git("config", "core.sshCommand", cwd=checkout)
    # The daemon's own runs use the key, too.
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    until((checkout / "a").exists)
    # A second checkout of the repository uses the same key.
    hook("add", "acme/site@staging", *words[2:])
    hook("remove", "acme/site@staging")
    assert key.exists()
    hook("rename", "acme/site", "acme/shop", status=75)  # the forge has not renamed it
    hook("remove", "acme/shop")
    assert not key.exists()


@needs_sshd
def test_a_renamed_repository_keeps_its_key_in_every_environment(tmp_path, upstream, server, hook):
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    public = public_key(hook(*words, status=75).stdout)
    server.authorize(public)
    hook(*words)
    hook("add", "acme/site@staging", *words[2:])
    keys = tmp_path / "state/keys/acme"
    pinned = (keys / "site/known_hosts").read_text()
    upstream.rename("acme/shop")
    hook("rename", "acme/site", "acme/shop")
    for name in ("acme/shop", "acme/shop@staging"):
        command = git("config", "core.sshCommand", cwd=tmp_path / "root" / name)
        assert key_of(command) == keys / "shop/id_ed25519"
        assert f"UserKnownHostsFile={keys}/shop/known_hosts" in command
        assert findings(hook, name)["access"] == ("ok", "")
    assert sorted(keys.iterdir()) == [keys / "shop"]
    assert (keys / "shop/known_hosts").read_text() == pinned
    assert stat.S_IMODE((keys / "shop/id_ed25519").stat().st_mode) == 0o600
    # `add --ssh-key` uses the same key, and an unrelated repository with the old name gets its own.
    hook("add", "acme/shop", "--ssh-key", "--url", server.url(upstream))
    assert (keys / "shop/id_ed25519.pub").read_text().strip() == public
    upstream.rename("acme/site")
    assert public_key(hook(*words, status=75).stdout) != public


@needs_sshd
def test_an_environment_that_moves_to_another_repository_uses_the_key_of_that_repository(
    tmp_path, upstream, server, hook
):
    other = Upstream(tmp_path / "forge", "acme/blog")
    for name, repository, is_new in (
        ("acme/site", upstream, True),
        ("acme/site@test", upstream, False),
        ("acme/blog", other, True),
    ):
        words = ["add", name, "--ssh-key", "--url", server.url(repository)]
        if is_new:
            server.authorize(public_key(hook(*words, status=75).stdout))
        hook(*words)
    hook("rename", "acme/site@test", "acme/blog@test")
    keys = tmp_path / "state/keys/acme"
    for name, key in (("acme/site", "site"), ("acme/blog", "blog"), ("acme/blog@test", "blog")):
        command = git("config", "core.sshCommand", cwd=tmp_path / "root" / name)
        assert key_of(command) == keys / key / "id_ed25519"
    public = [(keys / name / "id_ed25519.pub").read_text() for name in ("site", "blog")]
    assert public[0] != public[1]


@needs_sshd
def test_add_asks_the_remote_once_before_it_clones(tmp_path, upstream, server, hook):
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream), "--branch", "main"]
    server.authorize(public_key(hook(*words, status=75).stdout))
    assert "did you mean main?" in hook(*words[:-1], "mian", status=66).stderr
    assert server.log().count("Accepted publickey") == 1
    assert not (tmp_path / "root/acme").exists()
    hook(*words)
    assert server.log().count("Accepted publickey") == 1 + 3  # the check, the clone, and the run


@needs_sshd
def test_an_impossible_request_creates_no_key(tmp_path, upstream, server, hook):
    (tmp_path / "root/acme/site").mkdir(parents=True)
    (tmp_path / "root/acme/site/notes").touch()
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    assert "is no checkout" in hook(*words, status=65).stderr
    shutil.rmtree(tmp_path / "root/acme")
    assert "does not end in acme/blog" in hook("add", "acme/blog", *words[2:], status=64).stderr
    assert not (tmp_path / "state/keys").exists()


@needs_sshd
def test_add_with_a_key_reports_a_checkout_in_use(tmp_path, upstream, server, hook):
    checkout = upstream.checkout(tmp_path / "root")
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    server.authorize(public_key(hook(*words, status=75).stdout))
    command = ["flock", checkout / ".git/gitops.lock", "bash", "-c", "echo; read -r"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert "try again after its end" in hook(*words, status=75).stderr
        holder.communicate(b"\n")
    hook(*words)


@needs_sshd
def test_a_changed_host_key_ends_every_run_without_access(tmp_path, upstream, server, hook, environ):
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    (tmp_path / "bin").mkdir()
    for name, command in (("sudo", 'exec "$@"'), ("gitops-hook", f'exec {sys.executable} -m gitops_hook "$@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    server.authorize(public_key(hook(*words, status=75).stdout))
    hook(*words)
    server.stop()
    server.new_host_key()
    server.start()
    (row,) = map(json.loads, hook("sync", "--json", "acme/site", status=75, **path).stdout.splitlines())
    assert row["outcome"] == "no-access"
    assert "host key" in row["message"]
    known_hosts = tmp_path / "state/keys/acme/site/known_hosts"
    assert row["fix"] == f"sudo rm -f -- {known_hosts} && sudo gitops-hook add --ssh-key acme/site"
    subprocess.run(["bash", "-c", row["fix"]], env={**environ, **path}, check=True, stdin=subprocess.DEVNULL)
    hook("sync", "acme/site")
    # The forge no longer knows the key: the fix shows it, and where to enter it.
    server.authorized.write_text("")
    (row,) = map(json.loads, hook("sync", "--json", "acme/site", status=75, **path).stdout.splitlines())
    assert row["fix"] == "sudo gitops-hook add --ssh-key acme/site"
    done = subprocess.run(
        ["bash", "-c", row["fix"]], env={**environ, **path}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 75
    server.authorize(public_key(done.stdout))
    hook("sync", "acme/site")


@needs_sshd
def test_a_person_at_a_terminal_enters_the_key_and_continues(tmp_path, upstream, server, environ):
    terminal, inside = pty.openpty()
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    command = [sys.executable, "-m", "gitops_hook", *words]
    with subprocess.Popen(command, env=environ, stdin=inside, stdout=subprocess.PIPE, text=True) as process:
        said = ""
        while "Press Enter" not in said:
            said += process.stdout.read(1)
        server.authorize(public_key(said))
        os.write(terminal, b"\n")
        said += process.stdout.read()
    os.close(terminal)
    os.close(inside)
    assert process.returncode == 0, said
    assert (tmp_path / "root/acme/site/README").exists()


@needs_sshd
def test_with_a_token_add_enters_the_key_at_github_itself(tmp_path, upstream, server, hook):
    forge = Forge()
    forge.add("acme/site")
    forge.key_added = server.authorize
    (tmp_path / "token").write_text(API_TOKEN)
    environ = {"GITHUB_API_URL": forge.url, "GITHUB_TOKEN_FILE": f"{tmp_path}/token"}
    try:
        said = hook("add", "acme/site", "--ssh-key", "--url", server.url(upstream), **environ).stdout
    finally:
        forge.close()
    assert "was entered as a deploy key with read access" in said
    (key,) = forge.keys
    assert (key["target"], key["read_only"]) == ("acme/site", True)


@needs_sshd
def test_an_existing_checkout_gets_a_key(tmp_path, upstream, server, hook):
    checkout = upstream.checkout(tmp_path / "root")
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    server.authorize(public_key(hook(*words, status=75).stdout))
    hook(*words)
    assert git("remote", "get-url", "origin", cwd=checkout) == server.url(upstream)
    assert key_of(git("config", "core.sshCommand", cwd=checkout))


def test_a_key_needs_a_host_that_answers(upstream, hook):
    assert "needs the URL of a host" in hook("add", "acme/site", "--ssh-key", status=64).stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"ssh://git@127.0.0.1:{port}/acme/site"
    assert "no SSH server answers" in hook("add", "acme/site", "--ssh-key", "--url", url, status=69).stderr


# -- a token -------------------------------------------------------------------------------------------------------


@pytest.fixture
def https(tmp_path: Path, upstream: Upstream) -> Iterator[str]:
    """The URL of an HTTPS server for `upstream`. Its certificate is in ``ca.pem``, which git trusts through HOME."""
    certificate, key = create_certificate(tmp_path)
    PrivateHandler.accepted = f"x-access-token:{TOKEN}"
    server = https_server(upstream.bare.parents[1], certificate, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    (tmp_path / ".gitconfig").write_text(f"[http]\n\tsslCAInfo = {certificate}\n")
    yield f"https://127.0.0.1:{server.server_port}/acme/site.git"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "site-token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@needs_openssl
@pytest.mark.parametrize("line", [TOKEN, f"x-access-token:{TOKEN}", f"deploy:{TOKEN}"])
def test_a_token_file_gives_access_over_https(tmp_path, upstream, https, token, hook, start_daemon, line):
    daemon = start_daemon()
    token.write_text(line)
    if line.startswith("deploy:"):
        PrivateHandler.accepted = line
    (block,) = code_blocks("docs/private.md", "A token", "sh")
    words = shlex.split(block.splitlines()[-1].replace("/etc/gitops-hook/site-token", str(token)))
    hook(*words[1:-1], https, HOME=str(tmp_path))
    checkout = daemon.root / "acme/site"
    assert git("remote", "get-url", "origin", cwd=checkout) == https
    assert TOKEN not in (checkout / ".git/config").read_text()
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    until((checkout / "a").exists)


@needs_openssl
def test_a_rejected_token_is_reported_before_the_clone(tmp_path, https, token, hook):
    token.write_text("an-old-token\n")
    message = hook("add", "acme/site", "--token-file", str(token), "--url", https, HOME=str(tmp_path), status=75).stderr
    assert "Authentication failed" in message
    assert "an-old-token" not in message
    assert not (tmp_path / "root/acme").exists()


@needs_openssl
def test_a_token_that_expires_names_its_file(tmp_path, https, token, hook):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sudoedit").write_text(f'#!/bin/sh\nprintf %s {TOKEN} > "$1"\n')
    (tmp_path / "bin/sudoedit").chmod(0o755)
    words = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    hook("add", "acme/site", "--token-file", str(token), "--url", https, **words)
    token.write_text("an-old-token\n")
    (row,) = map(json.loads, hook("sync", "--json", "acme/site", status=75, **words).stdout.splitlines())
    assert row["fix"] == f"sudoedit {token}"
    subprocess.run(["bash", "-c", row["fix"]], env={**os.environ, **words}, check=True)
    hook("sync", "acme/site", **words)


def test_a_token_file_must_be_private_and_its_url_https(tmp_path, upstream, hook, token):
    url = "--url=https://127.0.0.1:9/acme/site.git"
    words = ["add", "acme/site", "--token-file", str(token)]
    assert "needs an https:// URL" in hook(*words, status=64).stderr
    assert "without a user" in hook(*words, "--url=https://ada:x@127.0.0.1:9/acme/site", status=64).stderr
    assert "not both" in hook(*words, url, "--ssh-key", status=64).stderr
    token.chmod(0o644)
    assert f"sudo chmod 600 {token}" in hook(*words, url, status=77).stderr
    token.unlink()
    assert f"there is no file {token}" in hook(*words, url, status=77).stderr


# -- doctor --------------------------------------------------------------------------------------------------------


def findings(hook, name: str = "acme/site", **more: str) -> dict[str, tuple[str, str]]:
    (command,) = code_blocks("docs/private.md", "Problems", "sh")
    done = hook(*shlex.split(command.replace("acme/site", name))[1:], "--json", **more)
    return {row["check"]: (row["level"], row["fix"]) for row in map(json.loads, done.stdout.splitlines())}


@needs_sshd
def test_doctor_checks_the_key_and_the_known_hosts_of_one_repository(tmp_path, upstream, server, hook):
    words = ["add", "acme/site", "--ssh-key", "--url", server.url(upstream)]
    server.authorize(public_key(hook(*words, status=75).stdout))
    hook(*words)
    Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root", branch="none")
    assert findings(hook)["access"] == ("ok", "")
    key = tmp_path / "state/keys/acme/site/id_ed25519"
    key.chmod(0o644)
    assert findings(hook, status=2)["access"] == ("failure", f"sudo chmod 600 {key}")
    key.chmod(0o600)
    key.with_name("known_hosts").unlink()
    fix = "sudo gitops-hook add acme/site --ssh-key"
    assert findings(hook, status=2)["access"] == ("failure", fix)
    hook(*shlex.split(fix)[2:])
    assert findings(hook)["access"] == ("ok", "")
    key.unlink()
    assert findings(hook, status=2)["access"] == ("failure", fix)


@needs_openssl
def test_doctor_checks_the_token_of_a_repository(tmp_path, upstream, https, token, hook):
    home = {"HOME": str(tmp_path)}
    hook("add", "acme/site", "--token-file", str(token), "--url", https, **home)
    assert findings(hook, **home)["access"] == ("ok", "")
    token.chmod(0o644)
    assert findings(hook, status=2, **home)["access"] == ("failure", f"sudo chmod 600 {token}")
    token.unlink()
    assert findings(hook, status=2, **home)["access"][0] == "failure"


def test_doctor_of_an_unknown_repository_suggests_a_name(upstream, hook, tmp_path):
    upstream.checkout(tmp_path / "root")
    assert "did you mean acme/site?" in hook("doctor", "acme/stie", status=66).stderr


def test_a_command_whose_quotes_are_not_closed_names_no_file(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    helper = token_source("https://git.example/acme/site", token).config[-1].partition("=")[2]
    assert token_file_of(helper) == token
    assert token_file_of(f"{helper}'") is None
    assert key_of("ssh -i 'key") is None
