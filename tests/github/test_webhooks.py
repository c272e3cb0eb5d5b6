"""Webhooks created, corrected, tested and deleted: a forge that delivers, and a real daemon that it delivers to."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from fake_github import Fault, Forge
from harness import SECRET, WEBHOOK

from gitops_hook.errors import GitopsError
from gitops_hook.github import webhooks as module
from gitops_hook.github.client import ApiError
from gitops_hook.github.webhooks import complete


@pytest.fixture
def url(daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}{WEBHOOK}"


def shapes(forge: Forge, target: str = "acme/site") -> list[dict[str, Any]]:
    return [{"active": hook["active"], "events": hook["events"], **hook["config"]} for hook in forge.hooks[target]]


def right(url: str) -> dict[str, Any]:
    return {
        "active": True,
        "events": ["push", "repository"],
        "url": url,
        "content_type": "json",
        "insecure_ssl": "0",
        "secret": SECRET,
    }


@pytest.mark.parametrize("target", ["acme/site", "acme"])
def test_a_hook_is_created_with_the_correct_settings_and_verified_by_a_ping(forge, make_hooks, daemon, url, target):
    forge.hooks["acme"] = []
    done = make_hooks().register(target)
    assert shapes(forge, target) == [right(url)]
    assert done == (target, "created", forge.hooks[target][0]["id"], (), "", "")
    ((hook, whose, where),) = daemon.query("SELECT hook, target, url FROM pings")
    assert (hook, whose, where) == (done.hook, target, url)
    assert [asked.path.split("/")[-1] for asked in forge.writes()] == ["hooks", "pings"]


def test_a_second_call_changes_nothing_and_says_so(forge, make_hooks):
    first = make_hooks().register("acme/site")
    writes = len(forge.writes())
    assert make_hooks().register("acme/site") == first._replace(change="unchanged")
    assert len(forge.writes()) == writes
    # A proof that is no longer fresh is made anew; the hook stays as it is.
    assert make_hooks(clock=lambda: forge.clock() + module._FRESH + 60, timeout=0).register("acme/site").change == "unchanged"  # fmt: skip
    assert [asked.method for asked in forge.writes()[writes:]] == ["POST"]


@pytest.mark.parametrize(
    ("problems", "change"),
    [
        (("content_type",), {"config": {"content_type": "form"}}),
        (("insecure_ssl",), {"config": {"insecure_ssl": "1"}}),
        (("secret",), {"config": {"secret": ""}}),
        (("events",), {"events": ["push", "issues"]}),
        (("events", "active"), {"events": ["*"], "active": False}),
    ],
)
def test_a_hook_with_our_url_is_corrected_and_other_hooks_stay(forge, make_hooks, url, problems, change):
    foreign = forge.hook("acme/site", "https://ci.example.org/api/webhook/gitops", secret="theirs", events=["*"])
    ours = forge.hook("acme/site", url, secret=SECRET)
    config = {**ours["config"], **change.pop("config", {})}
    ours.update(change, config=config)
    before = json.dumps(foreign)
    done = make_hooks().register("acme/site")
    assert (done.change, done.problems, done.hook, done.trouble) == ("updated", problems, ours["id"], "")
    assert shapes(forge)[1] == right(url)
    assert json.dumps({**foreign, "last_response": json.loads(before)["last_response"]}) == before
    assert [asked.method for asked in forge.writes()] == ["PATCH", "POST"]


def test_a_ping_reveals_another_secret_and_the_hook_is_corrected(forge, make_hooks, url):
    forge.hook("acme/site", url, secret="an older one")
    done = make_hooks(timeout=1).register("acme/site")
    assert (done.change, done.problems, done.trouble) == ("updated", ("secret",), "")
    assert shapes(forge) == [right(url)]


def test_a_rotated_secret_is_entered_though_the_old_one_is_still_valid(forge, make_hooks, tmp_path, start_daemon):
    secrets = tmp_path / "github-token"  # any file that may hold one
    secrets.write_text(f"{SECRET}\nthe-old-one\n")
    daemon = start_daemon(GITHUB_WEBHOOK_SECRET="", GITHUB_WEBHOOK_SECRET_FILE=str(secrets), GITOPS_STATE=str(tmp_path / "other"))  # fmt: skip
    url = f"http://127.0.0.1:{daemon.port}{WEBHOOK}"
    forge.hook("acme/site", url, secret="the-old-one")
    hooks = make_hooks(url)
    hooks.journal = type(hooks.journal)(tmp_path / "other")
    assert hooks.register("acme/site")[1:4:2] == ("updated", ("secret",))
    assert shapes(forge) == [right(url)]


def test_a_dry_run_writes_nothing(forge, make_hooks, url):
    assert make_hooks().register("acme/site", dry_run=True).change == "created"
    forge.hook("acme/site", url, secret=SECRET, events=["*"])
    assert make_hooks().register("acme/site", dry_run=True)[1:4:2] == ("updated", ("events",))
    assert make_hooks().unregister("acme/site", dry_run=True).change == "deleted"
    assert forge.writes() == []


def test_a_renamed_repository_keeps_its_hook_and_the_new_name_is_reported(forge, make_hooks, url):
    made = make_hooks().register("acme/site")
    forge.rename("acme/site", "acme/web")
    assert make_hooks().register("acme/site") == made._replace(change="unchanged", moved="acme/web")
    assert make_hooks().unregister("acme/site")[1:5:3] == ("deleted", "acme/web")
    assert forge.hooks["acme/web"] == []


def test_unregistering_deletes_only_our_hook(forge, make_hooks, url):
    forge.hook("acme/site", "https://ci.example.org/")
    make_hooks().register("acme/site")
    assert make_hooks().unregister("acme/site").change == "deleted"
    assert make_hooks().unregister("acme/site").change == "unchanged"
    assert [shape["url"] for shape in shapes(forge)] == ["https://ci.example.org/"]


def test_the_url_is_known_from_the_newest_ping(forge, make_hooks, url):
    assert make_hooks("").url == ""
    make_hooks().register("acme/site")
    assert make_hooks("").url == url
    forge.add("acme/new")
    assert make_hooks("").register("acme/new").change == "created"


def test_a_url_without_a_path_receives_the_endpoint_path():
    assert complete("https://hooks.example.org") == complete("https://hooks.example.org/") == "https://hooks.example.org" + WEBHOOK  # fmt: skip
    assert complete("https://example.org/hook") == "https://example.org/hook"
    for bad in ("hooks.example.org", "ftp://a", "https://", "https://u:p@host/"):
        with pytest.raises(GitopsError):
            complete(bad)


# -- where the way broke -------------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[HTTPServer]:
    """Answer every request with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the secret differs"),
        (404, "does not reach the daemon"),
        (413, "client_max_body_size"),
        (502, "the proxy does not reach the daemon"),
        (200, "by a daemon with another journal"),
        (302, "a redirect"),
        (418, "the forge gives no details"),
    ],
)
def test_a_response_of_a_proxy_is_recognized(forge, make_hooks, proxy, status, words):
    proxy.status = status  # type: ignore[attr-defined]
    hooks = make_hooks(f"http://127.0.0.1:{proxy.server_port}/", timeout=1)
    trouble = hooks.register("acme/site").trouble
    assert f"its ping did not arrive: {status} " in trouble
    assert words in trouble


def test_a_missing_server_is_reported(forge, make_hooks):
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "no connection" in make_hooks(f"http://127.0.0.1:{port}/", timeout=1).register("acme/site").trouble


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Couldn't resolve host name", "DNS: the forge cannot resolve the URL's host. Check its public name: dig hooks.example.org"),
        ("Peer certificate cannot be authenticated with given CA certificates", "TLS: "),
        ("timed out", "no answer within 10 s"),
        ("failed to connect to host", "no connection"),
    ],
)  # fmt: skip
def test_errors_of_the_forge_have_readable_messages(make_hooks, said, words):
    assert words in make_hooks("https://hooks.example.org").reason({"status_code": 502, "status": said})
    assert make_hooks("https://hooks.example.org").reason({}).endswith("the forge gives no details")


def test_a_delivery_that_the_forge_has_not_sent_yet_is_reported(forge, make_hooks, monkeypatch):
    monkeypatch.setattr(forge, "ping", lambda target, hook: None)
    assert "has not tried to deliver it yet" in make_hooks(timeout=0.1).register("acme/site").trouble


@pytest.mark.parametrize("body", [[], {}, {"id": "x"}])
def test_a_response_without_a_hook_is_an_error(forge, make_hooks, body):
    forge.faults.append(Fault("POST", 201, body=body))
    with pytest.raises(ApiError, match="is not a webhook"):
        make_hooks().register("acme/site")


# -- listed --------------------------------------------------------------------------------------------------------


def test_hooks_are_listed_with_whose_they_are_and_what_is_wrong(forge, make_hooks, url):
    forge.hook("acme/site", "https://ci.example.org/", last_response={"code": 500, "message": "no\x1b"})
    make_hooks().register("acme/site")
    forge.add("acme/new")
    forge.hook("acme/new", url, secret=SECRET, events=["*"])
    foreign, ours = make_hooks().listed("acme/site")
    assert foreign[1:] == (1000, "https://ci.example.org/", ("push", "repository"), None, "500 no\ufffd", "foreign", ())
    assert (ours.url, ours.status, ours.standing, ours.problems) == (url, "200 OK", "right", ())
    assert ours.last == pytest.approx(forge.clock(), abs=60)
    assert [(hook.standing, hook.problems) for hook in make_hooks().listed("acme/new")] == [("wrong", ("events",))]
    forge.hooks["acme/new"][0]["events"] = ["push", "repository"]
    assert [hook.standing for hook in make_hooks().listed("acme/new")] == ["unproven"]
    rotated = list(make_hooks(secret="a newer one").listed("acme/site"))
    assert (rotated[1].standing, rotated[1].problems) == ("wrong", ("secret",))


# -- a thousand ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_registering_a_thousand_repositories_respects_the_rate_limit_and_resumes(forge, make_hooks, clock, daemon):
    names = [f"acme/site{number}" for number in range(1000)]
    forge.add(*names)
    forge.clock, forge.limit = clock, 700
    began = clock.now

    def register(count: int) -> list[str]:
        hooks = make_hooks()
        return [hooks.register(name).change for name in names[:count]]

    assert register(400) == ["created"] * 400  # and here somebody interrupts it
    writes = len(forge.writes())
    assert register(1000) == ["unchanged"] * 400 + ["created"] * 600
    assert len(forge.writes()) == writes + 1200
    assert forge.turned_away == 0
    assert clock.now - began > 3600 * (len(forge.asked) // 700 - 1)
    moments = [asked.when for asked in forge.writes()]
    assert min(later - sooner for sooner, later in zip(moments, moments[1:])) >= 1
    assert daemon.query("SELECT count(*) FROM pings") == [(1000,)]
    assert all(len(forge.hooks[name]) == 1 for name in names)
