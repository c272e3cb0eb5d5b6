"""Daily operation on a fresh Debian, with the commands of the documents only.

One machine goes through the tests in their order, from the installation to the purge.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import private_forge
import pytest
from documents import code_blocks
from machine import Machine, boot, package, wait_for
from private_forge import Sshd, create_certificate, needs_openssl, needs_sshd
from scratch import Upstream, git

pytestmark = pytest.mark.systemd


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    machine = boot(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def upstream(machine: Machine) -> Upstream:
    upstream = machine.upstream("acme/site")
    upstream.commit({"deploy.sh": "cp page live\n", "page": "1"})
    git("push", "--quiet", "origin", "HEAD:staging", cwd=upstream.work)
    return upstream


def push(machine: Machine, upstream: Upstream, page: str, branch: str = "main") -> None:
    """Push a commit with a new page to a branch of the forge, and deliver its webhook."""
    git("fetch", "--quiet", "origin", cwd=upstream.work)
    git("checkout", "--quiet", "-B", branch, f"origin/{branch}", cwd=upstream.work)
    after = upstream.commit({"page": page}, page)
    deliver(machine, upstream, after, f"refs/heads/{branch}")


def deliver(machine: Machine, upstream: Upstream, after: str, ref: str) -> None:
    """Deliver the webhook of a push."""
    secret = (machine.root / "etc/gitops-hook/webhook-secret").read_text().split()[0]
    with machine.delivering(upstream.repository, after, secret, 1, 1, ref) as answers:
        assert answers() == {"202": 1}


def status(machine: Machine, checkout: str = "acme/site") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run(f"gitops-hook status {checkout} --json"))
    return found


def live(machine: Machine, checkout: str = "acme/site") -> str:
    """Return the page that the deploy command copied last."""
    return (machine.root / f"srv/gitops/{checkout}/live").read_text()


def reaches(machine: Machine, state: str, page: str, checkout: str = "acme/site") -> None:
    """Wait until a checkout has a state and serves a page."""
    wait_for(
        lambda: (status(machine, checkout)["state"], live(machine, checkout)) == (state, page),
        f"{checkout} is not {state} with {page}",
    )


def test_a_new_host_deploys_its_first_push(machine, upstream, tmp_path):
    shutil.copy(package(tmp_path), machine.root / "root")
    (commands,) = code_blocks("README.md", "Install", "sh")
    machine.run("set -e\n" + commands)
    push(machine, upstream, "2")
    reaches(machine, "in sync", "2")


def test_an_environment_follows_its_own_branch(machine, upstream):
    (commands,) = code_blocks("docs/operations.md", "Environments", "sh")
    machine.run("set -e\n" + commands)
    assert live(machine, "acme/site@staging") == "1"
    push(machine, upstream, "staged", "staging")
    reaches(machine, "in sync", "staged", "acme/site@staging")
    push(machine, upstream, "3")
    reaches(machine, "in sync", "3")
    assert live(machine, "acme/site@staging") == "staged"


def test_a_setting_is_changed_and_restored(machine):
    (command,) = code_blocks("docs/sync.md", "Settings", "sh")
    before = machine.run("gitops-hook config acme/site deploy")
    machine.run(command)
    assert machine.run("gitops-hook config acme/site deploy") == "make install && systemctl reload site"
    machine.run(f"gitops-hook config acme/site deploy '{before}'")


def test_a_bad_commit_is_rolled_back(machine, upstream):
    machine.run('gitops-hook config acme/site health "grep -qv broken page"')
    machine.run("gitops-hook config acme/site healthTimeout 0")
    push(machine, upstream, "broken")
    reaches(machine, "rolled back", "3")
    assert status(machine)["fix"] == "sudo gitops-hook deploy --force acme/site"
    push(machine, upstream, "4")
    reaches(machine, "in sync", "4")


def test_an_operator_rolls_back_and_releases(machine, upstream):
    (commands,) = code_blocks("docs/operations.md", "Rolling back", "sh")
    rollback, release = commands.splitlines()
    machine.run(rollback)
    assert live(machine) == "3"
    push(machine, upstream, "5")
    reaches(machine, "held", "3")
    assert "pinned" in machine.run("gitops-hook status")
    machine.run(release)
    reaches(machine, "in sync", "5")


def test_a_push_waits_for_the_end_of_a_pause(machine, upstream):
    (commands,) = code_blocks("docs/operations.md", "Pausing", "sh")
    pause, resume = commands.splitlines()
    machine.run(pause)
    push(machine, upstream, "6")
    wait_for(lambda: status(machine)["pending"] == 1, "no delivery waits")
    reaches(machine, "paused", "5")
    machine.run(resume)
    reaches(machine, "in sync", "6")


def test_a_release_is_deployed_by_its_tag(machine, upstream):
    git("tag", "v1.9", "HEAD~1", cwd=upstream.work)
    git("push", "--quiet", "origin", "v1.9", cwd=upstream.work)
    (commands,) = code_blocks("docs/operations.md", "Following releases", "sh")
    machine.run("set -e\n" + commands)
    assert live(machine) == "5"
    git("tag", "v1.10", cwd=upstream.work)
    git("push", "--quiet", "origin", "v1.10", cwd=upstream.work)
    deliver(machine, upstream, upstream.head(), "refs/tags/v1.10")
    reaches(machine, "in sync", "6")
    assert "v1.10" in machine.run("gitops-hook status acme/site")
    machine.run("gitops-hook config acme/site --unset tag")
    machine.run("gitops-hook sync acme/site")


@needs_sshd
def test_a_private_repository_with_a_key(machine, tmp_path):
    private = machine.upstream("acme/blog")
    server = Sshd(tmp_path / "sshd", machine.network())
    try:
        (command, *_) = code_blocks("docs/private.md", "A key", "sh")
        add = shlex.join([*shlex.split(command)[:-1], server.url(private)]).replace("acme/site", "acme/blog")
        said = machine.run(add, check=False)
        server.authorize(re.search("^ssh-ed25519 .*", said, re.MULTILINE)[0])
        machine.run(add)
        after = private.commit({"a": "by ssh"})
        deliver(machine, private, after, "refs/heads/main")
        wait_for((machine.root / "srv/gitops/acme/blog/a").exists, "it is not deployed")
        (command,) = code_blocks("docs/private.md", "Problems", "sh")
        machine.run(command.replace("acme/site", "acme/blog"))
        machine.run("gitops-hook remove acme/blog")
        assert not (machine.root / "var/lib/gitops-hook/keys/acme/blog").exists()
    finally:
        server.stop()


@needs_openssl
def test_a_private_repository_with_a_token(machine, tmp_path):
    private = machine.upstream("acme/docs")
    certificate, key = create_certificate(tmp_path)
    machine.put("/etc/ssl/forge.pem", certificate.read_text())
    machine.run("git config --system http.sslCAInfo /etc/ssl/forge.pem")
    (block,) = code_blocks("docs/private.md", "A token", "sh")
    create, write, add = block.replace("acme/site", "acme/docs").splitlines()
    url = shlex.split(add)[-1]
    address = "https://127.0.0.1:8443/acme/docs.git"
    program = Path(private_forge.__file__)
    machine.serve(
        sys.executable, str(program), str(machine.forge), str(certificate), str(key), "8443", "x-access-token:s3cret"
    )
    probe = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert /etc/ssl/forge.pem {address}/info/refs"
    wait_for(lambda: machine.run(probe, check=False) == "401", "the forge does not answer")
    machine.run(create)
    machine.run(f"echo s3cret | {write}")
    machine.run(add.replace(url, address))
    deliver(machine, private, private.commit({"a": "by https"}), "refs/heads/main")
    wait_for((machine.root / "srv/gitops/acme/docs/a").exists, "it is not deployed")
    assert "s3cret" not in machine.log() + machine.run("cat /srv/gitops/acme/docs/.git/config")
    machine.run("gitops-hook remove acme/docs && rm /etc/gitops-hook/site-token")


def test_a_backup_restores_a_lost_host(machine, upstream):
    backup, restore = code_blocks("docs/operations.md", "Backup and restore", "sh")
    for _ in range(2):  # the second backup replaces the first one
        machine.run("set -e\n" + backup)
    (runs,) = machine.query("SELECT count(*) FROM runs")[0]
    machine.run("systemctl stop 'gitops-hook*.socket' gitops-hook-sweep.timer gitops-hook")
    machine.run("rm -r /srv/gitops/acme /var/lib/gitops-hook/* /etc/gitops-hook/webhook-secret")
    upstream.commit({"page": "7"})
    machine.run("set -e\n" + restore)
    reaches(machine, "in sync", "7")  # the first sweep deploys the push that the backup lacks
    assert machine.query("SELECT count(*) FROM runs")[0][0] > runs
    push(machine, upstream, "8")
    reaches(machine, "in sync", "8")
    assert "failure" not in machine.run("gitops-hook doctor", check=False)


def test_a_renamed_repository_keeps_its_history(machine, upstream):
    upstream.rename("acme/shop")
    machine.run("gitops-hook rename acme/site acme/shop")
    assert machine.query("SELECT count(*) FROM runs WHERE repository = 'acme/site'") == [(0,)]
    upstream.repository = "acme/shop"
    push(machine, upstream, "9")
    reaches(machine, "in sync", "9", "acme/shop")
    assert status(machine, "acme/shop@staging")["state"] == "in sync"


def test_a_removed_repository_leaves_nothing(machine):
    machine.run("gitops-hook remove acme/shop@staging --force")
    assert not (machine.root / "srv/gitops/acme/shop@staging").exists()
    machine.run("gitops-hook remove acme/shop --keep-files")
    assert live(machine, "acme/shop") == "9"
    assert "No repository yet" in machine.run("gitops-hook status")


def test_a_purge_keeps_only_the_files_of_the_operator(machine):
    machine.run("apt-get purge --yes gitops-hook")
    left = machine.run("find /etc /usr /var/lib /run -xdev -iname '*gitops*'")
    assert left == ""
    assert live(machine, "acme/shop") == "9"
