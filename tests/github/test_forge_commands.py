"""The commands that speak to the forge, as an operator types them, beside a real daemon."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_github import TOKEN, Fault, Forge
from harness import SECRET, WEBHOOK, Daemon, push
from scratch import Upstream, git

from gitops_hook.cli import doctor, forge_commands
from gitops_hook.config import load
from gitops_hook.names import name_in_url

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def at_forge(environ: dict[str, str], forge: Forge, token_file: Path) -> dict[str, str]:
    """The settings of a host with a token."""
    environ.update(GITHUB_API_URL=forge.url, GITHUB_TOKEN_FILE=str(token_file))
    return environ


@pytest.fixture
def url(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}"


def checkouts(daemon: Daemon, *origins: str) -> None:
    """A checkout for each of these URLs, called as its last two parts are."""
    for origin in origins:
        path = daemon.root / (name_in_url(origin) or "")
        path.mkdir(parents=True)
        git("init", "--quiet", cwd=path)
        git("remote", "add", "origin", origin, cwd=path)


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_checkouts_of_the_forge_are_registered_and_a_second_call_says_so(forge, daemon, hook, at_forge, url):
    forge.add("acme/Blog")
    checkouts(daemon, "git@127.0.0.1:acme/site.git", "https://127.0.0.1/acme/Blog", "https://elsewhere.org/acme/other")
    first = hook("register", "--all", "--url", url)
    ours = {name: hooks[0]["id"] for name, hooks in forge.hooks.items()}
    assert sorted(first.stdout.splitlines()) == [
        f"acme/Blog: created (hook {ours['acme/blog']})",
        f"acme/site: created (hook {ours['acme/site']})",
    ]
    assert f"not at {forge.url}, so left out: acme/other" in first.stderr
    again = objects(hook("register", "--all", "--json"))  # the journal has the URL
    assert {row["target"]: (row["change"], row["trouble"]) for row in again} == {
        "acme/site": ("unchanged", ""),
        "acme/Blog": ("unchanged", ""),
    }
    assert len(forge.writes()) == 4


def test_hooks_are_listed_and_deleted(forge, daemon, hook, at_forge, url):
    forge.hook("acme/site", "https://ci.example.org/\x1b[31m")
    hook("register", "acme/site", "--url", url)
    head, foreign, ours = hook("hooks", "acme/site").stdout.splitlines()
    assert head.split() == ["repository", "hook", "standing", "wrong", "events", "last", "delivery", "status", "url"]
    assert foreign.split()[:5] == ["acme/site", "1000", "foreign", "push,", "repository"]
    assert "\x1b" not in foreign
    assert ours.split()[2:5] == ["right", "push,", "repository"]
    assert ours.endswith(f"200 OK  {url}{WEBHOOK}")
    assert objects(hook("hooks", "acme/site", "--json"))[1]["standing"] == "right"
    assert hook("unregister", "acme/site", "--dry-run").stdout.startswith("acme/site: would be deleted (hook ")
    assert hook("unregister", "acme/site").stdout.startswith("acme/site: deleted (hook ")
    assert hook("unregister", "acme/site", "--url", url).stdout == "acme/site: unchanged\n"
    assert len(forge.hooks["acme/site"]) == 1
    assert daemon.query("SELECT * FROM pings") == []  # so no audit asks about it
    assert "no webhook has reached this host" in hook("audit", status=66).stderr


def test_remove_deletes_the_webhook_unless_another_checkout_needs_it(forge, daemon, hook, at_forge, url):
    checkouts(daemon, "git@127.0.0.1:acme/site.git")
    shutil.copytree(daemon.root / "acme/site", daemon.root / "acme/site@staging")
    hook("register", "acme/site", "--url", url)
    words = ["remove", "--webhook", "--force"]
    message = hook(*words, "acme/site", status=64).stderr
    assert "acme/site@staging needs the webhook; repeat without --webhook" in message
    hook("remove", "--force", "acme/site@staging")
    said = hook(*words, "acme/site").stdout
    assert "acme/site was removed\nacme/site: deleted (hook " in said
    assert forge.hooks["acme/site"] == []
    assert daemon.query("SELECT * FROM pings") == []


def test_a_deleted_hook_is_reported_with_the_command_that_forgets_it(forge, daemon, hook, at_forge, url):
    hook("register", "acme/site", "--url", url)
    forge.hooks["acme/site"].clear()
    assert "gitops-hook unregister acme/site" in hook("audit", status=69).stderr
    hook("unregister", "acme/site")
    hook("audit", status=66)


def test_an_organization_has_one_hook_for_all_repositories(forge, daemon, hook, at_forge, url):
    forge.hooks["acme"] = []
    assert hook("register", "--org", "acme", "--url", url).stdout.startswith("acme: created (hook ")
    assert hook("hooks", "--org", "acme").stdout.count("right") == 1


def test_wrong_calls(forge, daemon, hook, at_forge, url, token_file):
    for words in ([], ["acme/site", "--all"], ["--org", "acme", "--all"], ["acme/site", "--org", "acme"], ["acme"],
                  ["--org", "acme/site"], ["../etc"], ["acme/site", "--url", "hooks.example.org"]):  # fmt: skip
        hook("register", "--url", url, *words, status=64)
    assert "give --url" in hook("register", "acme/site", status=64).stderr
    assert "no webhook has reached this host yet" in hook("audit", status=66).stderr
    assert "there is no token for GitHub's API" in hook("register", "acme/site", status=78, GITHUB_TOKEN_FILE="").stderr
    token_file.write_text(f"{TOKEN} {TOKEN}")
    assert "more than one token" in hook("hooks", status=78).stderr
    assert forge.asked == []


def test_a_rejected_hook_does_not_stop_others_and_an_invalid_token_does(forge, daemon, hook, at_forge, url, token_file):  # fmt: skip
    forge.add("acme/b")
    done = hook("register", "acme/none", "acme/site", "--url", url, status=69)
    assert "acme/none: failed; " in done.stdout
    assert "Webhooks: read and write" in done.stdout
    assert "acme/site: created" in done.stdout
    token_file.write_text("expired")
    done = hook("register", "acme/site", "acme/b", status=69)
    assert "The token is not valid" in done.stdout
    assert "1 more were not tried" in done.stderr
    assert hook("hooks", "acme/site", "acme/b", status=69).stderr.count("not valid") == 1


def test_registration_ends_when_pings_do_not_arrive(forge, daemon, hook, at_forge):
    forge.add("acme/b")
    done = hook("register", "acme/site", "acme/b", "--url", "http://127.0.0.1:9", "--timeout", "1", status=69)
    assert (
        "acme/site: created (hook 1000); its ping did not arrive: 502 failed to connect to host: no connection"
        in done.stdout
    )
    assert "1 more were not tried" in done.stderr


def test_a_long_wait_for_a_rate_limit_is_reported(monkeypatch, capfd):
    slept: list[float] = []
    monkeypatch.setattr(forge_commands.time, "sleep", slept.append)
    forge_commands.announced_sleep(3.0)
    assert capfd.readouterr().err == ""
    forge_commands.announced_sleep(600.0)
    assert capfd.readouterr().err == "GitHub's rate limit: waiting for 600 s\n"
    assert slept == [3.0, 600.0]


def test_interrupted_and_called_again_it_goes_on(forge, daemon, at_forge, hook, url):
    names = [f"acme/{letter}" for letter in "abcd"]
    forge.add(*names)
    forge.faults.append(Fault("POST /repos/acme/b/hooks$", 201, manner="hang"))
    command = [sys.executable, "-m", "gitops_hook", "register", *names, "--url", url]
    with subprocess.Popen(command, env=at_forge, stdout=subprocess.PIPE, text=True) as typed:
        assert typed.stdout
        assert typed.stdout.readline().startswith("acme/a: created")
        while not any(asked.path == "/repos/acme/b/hooks" for asked in forge.writes()):
            time.sleep(0.01)
        typed.send_signal(signal.SIGINT)
        assert typed.wait(30) == 130
    done = hook("register", *names)
    assert done.stdout.splitlines()[0].startswith("acme/a: unchanged")
    assert [len(forge.hooks[name]) for name in names] == [1] * 4
    assert len([asked for asked in forge.writes() if asked.path == "/repos/acme/a/hooks"]) == 1


def test_a_terminal_shows_progress(forge, daemon, at_forge, url):
    terminal, slave = pty.openpty()
    command = [sys.executable, "-m", "gitops_hook", "register", "acme/site", "--url", url]
    done = subprocess.Popen(command, env=at_forge, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
    os.close(terminal)
    assert done.wait(30) == 0
    assert b"acme/site: created" in shown
    assert b"1 of 1  acme/site" in shown


def test_an_invalid_url_is_reported(daemon, hook, at_forge):
    for url in ("https://[x", "https://h:port/", "ftp://h/"):
        said = hook("register", "acme/site", "--url", url, status=64).stderr
        assert said == f"gitops-hook: `{url}` is not a URL that a forge could deliver to\n"


# -- missed deliveries ---------------------------------------------------------------------------------------------


def test_audit_shows_what_was_missed_and_has_it_delivered_again(forge, daemon, hook, at_forge, url, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    hook("register", "acme/site", "--url", url)
    assert hook("audit").stdout == "No push of the last three days was missed.\n"
    number = forge.hooks["acme/site"][0]["id"]
    forge.missed("acme/site", number, guid="lost", payload=push("acme/site", upstream.commit({"a": "b"})))
    shown = hook("audit", status=1).stdout
    assert "acme/site" in shown
    assert shown.splitlines()[1].split()[-2:] == ["lost", "missed"]
    assert "no connection" in shown
    said = hook("audit", "acme/site", "acme/other", status=66)
    assert "no webhook of acme/other has reached this host" in said.stderr and not said.stdout
    assert "`site` is not OWNER/NAME" in hook("audit", "site", status=64).stderr
    (row,) = objects(hook("audit", "ACME/site", "--redeliver", "--json"))
    assert (row["guid"], row["then"]) == ("lost", "redelivered")
    daemon.wait_for("run updated .*delivery=lost")
    assert git("rev-parse", "HEAD", cwd=daemon.root / "acme/site") == upstream.head()


def test_a_push_is_repaired_only_after_a_run_of_every_checkout_of_its_repository(
    forge, daemon, hook, at_forge, url, tmp_path
):
    upstream = Upstream(tmp_path / "forge")
    git("branch", "staging", cwd=upstream.bare)
    upstream.checkout(daemon.root)
    hook("add", "acme/site@staging", "--branch", "staging")
    hook("register", "acme/site", "--url", url)
    payload = push("acme/site", upstream.head(), ref="refs/heads/staging")
    forge.missed("acme/site", forge.hooks["acme/site"][0]["id"], payload=payload, ago=120)
    with closing(sqlite3.connect(daemon.state / "journal.db")) as journal, journal:
        journal.execute("UPDATE runs SET started = started - 600, ended = ended - 600")
    hook("sync", "acme/site")
    (row,) = objects(hook("audit", "--json", status=1))
    assert row["then"] == "missed"
    hook("sync", "acme/site@staging")
    (row,) = objects(hook("audit", "--json"))
    assert row["then"] == "repaired"
    # A repository may have no checkout except its environments.
    hook("remove", "acme/site")
    (row,) = objects(hook("audit", "--json"))
    assert row["then"] == "repaired"


def test_a_sweep_requests_only_redeliveries_that_no_run_replaced(forge, daemon, hook, at_forge, url, tmp_path):
    upstream, other = Upstream(tmp_path / "forge"), Upstream(tmp_path / "forge", "acme/other")
    upstream.checkout(daemon.root)
    forge.add("acme/other")
    hook("register", "acme/site", "acme/other", "--url", url)
    for name in ("acme/site", "acme/other"):
        forge.missed(name, forge.hooks[name][0]["id"], payload=push(name, other.head()))
    before = len(forge.writes())
    # acme/other has no checkout yet: only its delivery can clone it, by the pattern.
    shown = hook("sync", "--all", "--audit", GITOPS_CLONE="acme/*").stdout
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("acme/")] == ["redelivered", "repaired"]
    assert [asked.path.split("/")[3] for asked in forge.writes()[before:]] == ["other"]
    hook("sync", "--all")
    assert len(forge.writes()) == before + 1


def test_a_sweep_works_without_a_token_or_a_forge(forge, daemon, hook, at_forge, url, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    upstream.checkout(daemon.root)
    hook("register", "acme/site", "--url", url)
    asked = len(forge.asked)
    hook("sync", "--all", "--audit", GITHUB_TOKEN_FILE="/nonexistent")
    assert len(forge.asked) == asked
    forge.faults.append(Fault("", 401, times=-1))
    done = hook("sync", "--all", "--audit")
    assert "cannot be asked about" in done.stderr
    assert "was missed" not in done.stdout + hook("audit", status=69).stdout
    assert "was missed" not in hook("audit", GITHUB_API_URL="http://127.0.0.1:1", status=69).stdout


def test_a_check_that_never_ran_is_not_ok(forge, daemon, hook, at_forge, tmp_path):
    """No ping has come, so there is no webhook that could be asked about."""
    Upstream(tmp_path / "forge").checkout(daemon.root)
    done = hook("sync", "--all", "--audit")
    assert "was missed" not in done.stdout
    assert "no webhook has reached this host yet" in done.stderr


# -- the doctor ----------------------------------------------------------------------------------------------------


def findings(environ: dict[str, str]) -> list[tuple[str, str]]:
    found = doctor.run({"token": doctor.AS_CALLER["token"]}, load(environ, {}))
    assert all(finding.fix for finding in found if finding.level != doctor.OK)
    assert TOKEN not in str(found)
    return [(finding.level, finding.message) for finding in found]


def test_the_doctor_tries_a_token_where_there_is_one(forge, at_forge, token_file, tmp_path):
    (tmp_path / "root").mkdir()
    token_file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert findings(at_forge) == [("ok", f"{forge.url} accepts the token; 4999 requests remain in this hour")]
    token_file.chmod(0o644)
    assert findings(at_forge)[0] == ("failure", f"every user of this host can read or write {token_file}")
    token_file.chmod(0o600)
    token_file.write_text("expired")
    ((level, message),) = findings(at_forge)
    assert (level, "not valid" in message) == ("failure", True)
    forge.faults.append(Fault("", 502))
    assert findings(at_forge)[0][0] == "warning"
    token_file.write_text("\n")
    assert findings(at_forge) == []
    assert findings({**at_forge, "GITHUB_TOKEN_FILE": ""}) == []
    assert findings({**at_forge, "GITOPS_REPORT": "status"}) == [
        ("failure", "GITOPS_REPORT is set, but there is no token for GitHub")
    ]


def test_an_unreadable_token_is_not_a_failure(at_forge, token_file, tmp_path):
    (tmp_path / "root").mkdir()
    token_file.unlink()
    token_file.symlink_to("github-token")  # even root cannot read what leads to itself
    assert [level for level, _ in findings(at_forge)] == ["failure"]


def test_the_secret_that_is_registered_is_the_newest(forge, daemon, hook, at_forge, url):
    hook("register", "acme/site", "--url", url)
    assert forge.hooks["acme/site"][0]["config"]["secret"] == SECRET
    assert time.time() - daemon.query("SELECT received FROM pings")[0][0] < 600
