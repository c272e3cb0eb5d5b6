"""Attacks on the daemon: by who has no secret, by who has stolen it, by who reads what is no business of theirs.

Rows of docs/security.md name these tests, and others elsewhere: tests/engine/test_hostile.py has those on git.
"""

from __future__ import annotations

import ast
import hmac
import http.client
import json
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import SOURCE, WEBHOOK, Daemon, headers, push, sign, until
from scratch import Upstream, git

from gitops_hook.receiver.forges import FORGES, Forge
from gitops_hook.secrets import Secrets


def contents(daemon: Daemon) -> tuple[dict[str, bytes], dict[str, list[Any]]]:
    """Every file with what it holds, less the journal's; and of that, every table with its rows."""
    files = [path for folder in (daemon.root, daemon.state) for path in folder.rglob("*") if path.is_file()]
    tables = [name for (name,) in daemon.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return (
        {str(path): path.read_bytes() for path in files if not path.name.startswith("journal.db")},
        {table: daemon.query(f"SELECT * FROM {table}") for table in tables},
    )


# -- without the secret ------------------------------------------------------------------------------------------------

BODY = json.dumps(push("acme/site")).encode()
UNPROVEN = {
    "no signature": (BODY, {}),
    "another secret's": (BODY, headers(BODY, secret="guess")),
    "of other bytes": (BODY + b" ", headers(BODY)),
    "by SHA-1": (BODY, {**headers(BODY), "X-Hub-Signature-256": ""}),
    "a ping": (b"{}", headers(b"{}", "ping", secret="guess")),
    "deep JSON": (b"[" * 100_000, headers(b"[", secret="guess")),
    "no UTF-8": (b"\xff" * 1000, headers(b"\xff", secret="guess")),
    "a mebibyte": (b"0" * (1 << 20), headers(b"0", secret="guess")),
}


def test_an_unsigned_request_is_not_parsed_stored_or_queued(tmp_path: Path, start_daemon: Any) -> None:
    Upstream(tmp_path / "forge").checkout(tmp_path / "root")
    daemon = start_daemon()
    # The look at each checkout at the start, and what is written of it afterwards.
    until(lambda: daemon.query("SELECT 1 FROM runs JOIN commits ON run = runs.id WHERE brought NOTNULL"))
    before = contents(daemon)
    answers = [daemon.request("POST", WEBHOOK, body, sent) for body, sent in UNPROVEN.values() for _ in range(5)]
    known = daemon.request("POST", WEBHOOK, BODY, headers(BODY, secret="guess"))
    other = json.dumps(push("acme/nowhere")).encode()
    assert known == daemon.request("POST", WEBHOOK, other, headers(other, secret="guess"))
    assert answers == [known] * len(answers) and known[0] == 401
    assert contents(daemon) == before


PROOFS: dict[str, Callable[[str], dict[str, str]]] = {
    "GitHub": lambda secret: {"HTTP_X_HUB_SIGNATURE_256": sign(BODY, secret)},
    "Gitea": lambda secret: {"HTTP_X_GITEA_SIGNATURE": sign(BODY, secret)[7:]},
    "GitLab": lambda secret: {"HTTP_X_GITLAB_TOKEN": secret},
}


@pytest.mark.parametrize("forge", [forge for forge in FORGES if forge.name in PROOFS], ids=lambda forge: forge.name)
def test_a_signature_is_compared_in_constant_time_with_every_secret(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not measured, for that would show little, but seen: the one comparison there is, how often, and of what."""
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *sides: compared.append(sides) or real(*sides))
    secrets = Secrets({"line 1": b"newest", "line 2": b"older", "line 3": b"oldest"})
    for used, name in {"newest": "line 1", "older": "line 2", "oldest": "line 3", "guess": None}.items():
        compared.clear()
        assert secrets.match(forge.signature.proof(PROOFS[forge.name](used), BODY, 0)) == name
        assert len(compared) == 3, "no early end, whichever matches"
        assert all(type(side) is bytes and len(side) == 32 for sides in compared for side in sides)


def test_no_secret_is_compared_with_equals() -> None:
    """``==`` returns at the first difference, so its time would reveal a prefix."""
    for module, names in (("receiver/signatures", ("Digest", "Token", "_hmac_proof")), ("secrets", ("Secrets",))):
        tree = ast.parse((SOURCE / f"gitops_hook/{module}.py").read_text())
        for name in names:
            (definition,) = (node for node in ast.walk(tree) if getattr(node, "name", None) == name)
            equals = [
                node for node in ast.walk(definition) if isinstance(node, ast.Compare) and "==" in ast.unparse(node)
            ]
            assert [ast.unparse(node) for node in equals] in ([], ["media_type(headers) == FORM"])


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        f"{WEBHOOK}/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        f"{WEBHOOK}%00",
    ],
)
def test_no_request_path_reads_a_file(start_daemon: Any, path: str) -> None:
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    dashboard = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
    assert daemon.request("GET", path)[0] == 404
    for prefix in ("", "/runs/", "/runs/1/..", "/api/runs/", "/api/repositories/"):
        with closing(http.client.HTTPConnection("127.0.0.1", dashboard, timeout=30)) as connection:
            connection.request("GET", prefix + path)
            assert connection.getresponse().status in (400, 404)


# -- with a stolen secret ----------------------------------------------------------------------------------------------


def test_a_stolen_secret_fetches_only_upstream_commits(tmp_path: Path, start_daemon: Any) -> None:
    """Every member of a payload that could name a place, a branch, a commit or a command does."""
    upstream = Upstream(tmp_path / "forge")
    checkout = upstream.checkout(tmp_path / "root", deploy='echo "$GITOPS_REF $GITOPS_AFTER $GITOPS_DELIVERY"')
    git("checkout", "--quiet", "-b", "evil", cwd=upstream.work)
    evil = upstream.commit({"evil": "evil\n"})
    git("checkout", "--quiet", "main", cwd=upstream.work)
    tip = upstream.commit({"page": "1\n"})
    daemon = start_daemon(GITOPS_CLONE="acme/*", GITOPS_CLONE_URL=f"{tmp_path}/forge/{{repository}}.git")
    command = f"$(touch {tmp_path}/ran);`touch {tmp_path}/ran`"
    elsewhere = dict.fromkeys(("clone_url", "ssh_url", "git_url", "url", "html_url"), f"ext::touch {tmp_path}/ran")
    for ref, default, after in (
        ("refs/heads/evil", "evil", evil),
        ("refs/heads/main", "evil", evil),
        ("refs/heads/main", "main", evil),
        ("refs/heads/main", "main", "f" * 40),
    ):
        payload = push("acme/site", after, ref=ref, pusher={"name": command}, deploy=command, environment={"PATH": "."})
        payload["repository"].update(default_branch=default, **elsewhere)
        status, answer = daemon.deliver(payload, guid=command)
        assert status == (202 if ref == f"refs/heads/{default}" else 200), answer
    for name in ("../../outside", "--upload-pack=touch/ran", "acme/-x", "acme/..", "/etc/passwd", "acme/a b"):
        assert daemon.deliver(push(name))[1]["status"] == "ignored"
    assert daemon.deliver(push("acme/nowhere"))[0] == 202  # it may be cloned, but upstream has none such
    daemon.wait_for(r"run unreachable .*acme/nowhere")
    assert daemon.stop() == 0
    assert git("rev-parse", "HEAD", cwd=checkout) == tip and not (checkout / "evil").exists()
    outputs = "".join(path.read_text() for path in (daemon.state / "runs").glob("*.log"))
    assert f"refs/heads/main {tip} " in outputs and evil not in outputs
    assert [path.name for path in daemon.root.glob("*/*")] == ["site"]
    assert not list(tmp_path.rglob("ran"))


def test_a_replay_moves_nothing_back_and_deploys_nothing_again(tmp_path: Path, start_daemon: Any) -> None:
    upstream = Upstream(tmp_path / "forge")
    checkout = upstream.checkout(tmp_path / "root", deploy="echo deployed >> ../deploys")
    daemon = start_daemon()
    daemon.wait_for("run (unchanged|updated)")
    first = json.dumps(push("acme/site", upstream.commit({"page": "1\n"}))).encode()
    captured = headers(first)
    assert daemon.request("POST", WEBHOOK, first, captured)[0] == 202
    daemon.wait_for("run updated")
    daemon.deliver(push("acme/site", upstream.commit({"page": "2\n"})))
    daemon.wait_for("run updated")
    deploys = (checkout.parent / "deploys").read_text()
    for _ in range(3):
        assert daemon.request("POST", WEBHOOK, first, captured)[0] == 202
        daemon.wait_for("run unchanged")
    assert git("rev-parse", "HEAD", cwd=checkout) == upstream.head()
    assert (checkout.parent / "deploys").read_text() == deploys


# -- on the host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["by the daemon", "by somebody else"])
def test_the_files_of_the_daemon_are_private(tmp_path: Path, start_daemon: Any, made: str) -> None:
    """Even under a careless umask, and in a folder that is open."""
    Upstream(tmp_path / "forge").checkout(tmp_path / "root", deploy="cat /proc/self/environ")
    usual = os.umask(0)
    try:
        if made == "by somebody else":
            (tmp_path / "state").mkdir()
        daemon = start_daemon()
        daemon.deliver(push("acme/site"))
        daemon.wait_for("run updated")
    finally:
        os.umask(usual)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [daemon.state, *daemon.state.iterdir()]}
    if made == "by the daemon":
        assert modes.pop("state") == 0o700
    modes.pop("state", None)
    assert modes.pop("runs") == 0o700
    assert {"journal.db", "journal.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}, modes


def test_a_page_rejects_an_unknown_host_name(start_daemon: Any) -> None:
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    dashboard = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
    for host, status in ((f"127.0.0.1:{dashboard}", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421)):
        with closing(http.client.HTTPConnection("127.0.0.1", dashboard, timeout=30)) as connection:
            connection.request("GET", "/api/repositories", headers={"Host": host})
            assert connection.getresponse().status == status
