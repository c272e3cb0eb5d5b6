"""Every request that is made of GitHub, held to GitHub's own description of its API.

Between us and the forge stands Prism, which knows the description: as a proxy before the small forge, where whole
commands are tried and it rejects every request and response that is not described (`--errors`); and as a mock, which
answers with the description's own examples. `make test-github` installs it, and cuts the description to size.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from fake_github import TOKEN, Forge
from harness import SECRET, SOURCE, WEBHOOK, push
from scratch import git

from gitops_hook.config import load
from gitops_hook.control.client import post
from gitops_hook.github.audit import Audit
from gitops_hook.github.client import ApiError, Client
from gitops_hook.github.status_sender import CommitStatusSender
from gitops_hook.github.webhooks import Hooks
from gitops_hook.journal.reader import JournalReader
from gitops_hook.journal.writer import Journal
from gitops_hook.lock import holder
from gitops_hook.model import CommitStatus, HookPing
from gitops_hook.sync.checkouts import Checkouts

CACHE = SOURCE / ".cache/openapi"
PRISM = CACHE / "node_modules/.bin/prism"
SLICE = CACHE / "slice.json"

pytestmark = [
    pytest.mark.openapi,
    pytest.mark.skipif(
        not (shutil.which("node") and PRISM.exists() and SLICE.exists()), reason="make test-github gets it"
    ),
]


@contextmanager
def prism(*arguments: str) -> Iterator[str]:
    """Prism in one of its manners, on a free port; yields its URL."""
    command = [str(PRISM), *arguments, "--host", "127.0.0.1", "--port", "0", "--verboseLevel", "info", "--errors"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_COLOR": "1"}
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            for line in process.stdout:
                found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", line)
                if found:
                    yield found[1]
                    break
            else:
                raise AssertionError("Prism did not start")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=30)


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with prism("mock", str(SLICE)) as url:
        yield url


@pytest.fixture
def proxy(forge: Forge) -> Iterator[str]:
    with prism("proxy", str(SLICE), forge.url) as url:
        yield url


def client_of(url: str, clock: Any) -> Client:
    return Client(url, TOKEN, clock=clock, sleep=clock.sleep, tries=1)


def test_the_mock_rejects_undocumented_requests(mock, clock):
    for path, body in (
        ("/repos/acme/site/statuses/" + "a" * 40, {"state": "fine"}),
        ("/orgs/acme/hooks", {"name": "web"}),
    ):
        with pytest.raises(ApiError, match="answers 422"):
            client_of(mock, clock).call("POST", path, body)


@pytest.mark.parametrize("target", ["acme/site", "acme"])
def test_webhooks_are_registered_listed_audited_and_deleted(forge, proxy, clock, daemon, tmp_path, target):
    forge.hooks["acme"] = []
    (daemon.root / "acme/site/.git").mkdir(parents=True)
    url = f"http://127.0.0.1:{daemon.port}{WEBHOOK}"

    def hooks() -> Hooks:
        return Hooks(client_of(proxy, clock), JournalReader(daemon.state), SECRET.encode(), url)

    def remember(hook: int) -> None:
        found = holder(daemon.state)
        assert found
        assert post(found.socket, "/remember-hook", {"hook": hook, "target": target, "url": url})[0] == 200

    made = hooks().register(target, remember)
    assert (made.change, made.trouble) == ("created", "")
    forge.hooks[target][0]["events"] = ["*"]
    assert hooks().register(target, remember).change == "updated"
    (listed,) = hooks().listed(target)
    assert listed.standing == "right"
    forge.missed(target, made.hook, payload=push("acme/site"))
    (ping,) = Audit(hooks()).known()
    missed = Audit(hooks()).missed(ping, lambda name: ["acme/site"] if name == "acme/site" else [], redeliver=True)
    assert [found.then for found in missed] == ["redelivered"]
    assert hooks().unregister(target).change == "deleted"


@pytest.mark.parametrize("report", ["status", "deployment"])
def test_responses_are_documented(mock, clock, tmp_path, token_file, report, capfd):
    path = tmp_path / "root/acme/site"
    path.mkdir(parents=True)
    git("init", "--quiet", cwd=path)
    git("remote", "add", "origin", "http://127.0.0.1/acme/site", cwd=path)
    git("commit", "--quiet", "--allow-empty", "--message", "work", cwd=path)
    commit = git("rev-parse", "HEAD", cwd=path)
    git("update-ref", "refs/remotes/origin/main", commit, cwd=path)
    git("config", "gitops.branch", "main", cwd=path)
    settings = load(
        {
            "GITOPS_ROOT": str(tmp_path / "root"),
            "GITHUB_API_URL": mock,
            "GITHUB_TOKEN_FILE": str(token_file),
            "GITOPS_REPORT": report,
            "GITOPS_PUBLIC_URL": "https://page.example.org",
        },
        {},
    )
    journal = Journal(tmp_path / "state")
    sender = CommitStatusSender(settings, journal, Checkouts(settings.root), clock=clock)
    sender._stopping.wait = clock.sleep  # type: ignore[method-assign]
    for state in ("pending", "success"):
        journal.save_statuses(CommitStatus("acme/site", commit, 7, state, "updated in 1.2 s", changed=clock.now))
        sender.run_once()
        assert journal.next_status_due() is None
    journal.close()
    assert capfd.readouterr().err == ""  # or it would say that one was not wanted


def test_the_descriptions_own_examples_are_understood(mock, clock, tmp_path):
    with closing(Journal(tmp_path / "state")) as journal:
        hooks = Hooks(client_of(mock, clock), journal, b"secret", "https://example.com/webhook", timeout=0, clock=clock)
        (listed,) = hooks.listed("octocat/hello-world")
        assert (listed.hook, listed.url, listed.events) == (12345678, "https://example.com/webhook", ("push", "pull_request"))  # fmt: skip
        assert (listed.standing, listed.problems) == ("wrong", ("secret", "events"))
        done = hooks.register("octocat/hello-world", lambda hook: None)
        assert (done.change, done.hook, done.problems) == ("updated", 12345678, ("secret", "events"))
        assert hooks.unregister("octocat/hello-world").change == "deleted"
        clock.now = 1_560_000_000.0  # when the example's deliveries were made
        list(Audit(hooks, clock).missed(HookPing(12345678, "octocat/hello-world", "", "", 0, ""), lambda name: [name]))
    assert client_of(mock, clock).call("GET", "/rate_limit").status == 200
