"""contrib/: commands that send notices by mail and to a chat, alert rules, a dashboard, all with real programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from harness import SOURCE, Daemon, push
from scratch import Upstream
from test_metrics import Host, host  # noqa: F401 - a fixture

CONTRIB = SOURCE / "contrib"
RULES = CONTRIB / "prometheus/gitops-hook.rules.yml"
DASHBOARD = json.loads((CONTRIB / "grafana/gitops-hook.json").read_text())

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on this machine")
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")


# -- who listens ---------------------------------------------------------------------------------------------------


class Mailbox(socketserver.StreamRequestHandler):
    """The part of SMTP (RFC 5321) that a client needs to send one mail."""

    def handle(self) -> None:
        """One connection."""
        self.say("220 here")
        for line in iter(self.rfile.readline, b""):
            word = line[:4].upper()
            if word == b"DATA":
                self.say("354 go on")
                letter = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.letters.append((letter, self.server.commands.copy()))  # type: ignore[attr-defined]
            self.server.commands.append(line.strip().decode())  # type: ignore[attr-defined]
            self.say("221 bye" if word == b"QUIT" else "250 ok")

    def say(self, words: str) -> None:
        self.wfile.write(words.encode() + b"\r\n")


class ChatRoom(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, self.headers["Content-Type"], body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def listening(server: socketserver.TCPServer, **attributes: object) -> Iterator[socketserver.TCPServer]:
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mailbox() -> Iterator[socketserver.TCPServer]:
    yield from listening(socketserver.TCPServer(("127.0.0.1", 0), Mailbox), letters=[], commands=[])


@pytest.fixture
def chat_room() -> Iterator[socketserver.TCPServer]:
    yield from listening(HTTPServer(("127.0.0.1", 0), ChatRoom), posts=[], status=200)


def port(server: socketserver.TCPServer) -> int:
    return int(server.server_address[1])


FACTS = {
    "GITOPS_NOTICE": "failing",
    "GITOPS_SUMMARY": "acme/site on host fails: deploy-failed",
    "GITOPS_HOST": "host",
    "GITOPS_REPOSITORY": "acme/site",
    "GITOPS_OUTCOME": "deploy-failed",
    "GITOPS_RUN": "7",
    "GITOPS_MESSAGE": r"""it "failed" at \x1b and 'é' $(touch x) `touch x`""",
    "GITOPS_OUTPUT": "first\n.\nlast",
}


def notify(command: str, *arguments: object, status: int = 0, **more: str) -> str:
    done = subprocess.run(
        [CONTRIB / "notify" / command, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", **FACTS, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def is_the_letter(content: bytes) -> None:
    letter = message_from_bytes(content, policy=policy.default)
    assert (letter["To"], letter["Subject"]) == ("ops@example.org", FACTS["GITOPS_SUMMARY"])
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter["Date"].datetime
    text = letter.get_content().replace("\r\n", "\n")
    assert FACTS["GITOPS_MESSAGE"] in text
    assert text.endswith("On host: gitops-hook logs 7\n\nfirst\n.\nlast\n")


# -- by mail -------------------------------------------------------------------------------------------------------


@needs_curl
def test_a_mail_is_sent_to_a_mail_server(mailbox):
    notify("mail", "ops@example.org", f"smtp://127.0.0.1:{port(mailbox)}")
    ((content, commands),) = mailbox.letters
    assert "MAIL FROM:<gitops-hook@host>" in commands[1]
    assert commands[2] == "RCPT TO:<ops@example.org>"
    is_the_letter(content.replace(b"\r\n..", b"\r\n."))  # a dot at the beginning of a line travels as two


def test_a_mail_is_sent_with_sendmail(tmp_path):
    sendmail = tmp_path / "sendmail"
    sendmail.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >"$0.arguments"; cat >"$0.letter"\n')
    sendmail.chmod(0o755)
    notify("mail", "ops@example.org", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert Path(f"{sendmail}.arguments").read_text().splitlines() == [
        "-i", "-f", "gitops-hook@host", "--", "ops@example.org",
    ]  # fmt: skip
    is_the_letter(Path(f"{sendmail}.letter").read_bytes())


@needs_curl
def test_a_mail_server_that_does_not_answer_is_reported():
    assert "curl" in notify("mail", "ops@example.org", "smtp://127.0.0.1:9", status=7)


# -- by chat -------------------------------------------------------------------------------------------------------


@needs_curl
@pytest.mark.parametrize("member", ["text", "content"])
def test_a_chat_receives_a_notice(tmp_path, chat_room, member):
    (tmp_path / "url").write_text(f"http://127.0.0.1:{port(chat_room)}/hook/secret\n")
    notify("chat", tmp_path / "url", *([member] if member != "text" else []))
    ((path, media_type, body),) = chat_room.posts
    assert (path, media_type) == ("/hook/secret", "application/json")
    sent = json.loads(body)[member]
    sent = sent if member == "text" else re.sub(r"\\(?=[\\`])", "", sent)
    assert sent == f"{FACTS['GITOPS_SUMMARY']}. {FACTS['GITOPS_MESSAGE']}"


MARKUP = "<!channel> @here <https://evil.example|docs> [docs](https://evil.example) *a* & _b_ `c` \\ ||d||"


@needs_curl
@pytest.mark.parametrize(
    ("member", "sent"),
    [
        (
            "text",
            {
                "text": "&lt;!channel&gt; @\u200bhere &lt;https://evil.example|docs&gt; "
                "[docs]\u200b(https://evil.example) *a* &amp; _b_ `c` \\ ||d||"
            },
        ),
        (
            "content",
            {
                "content": r"\<!channel\> @{gap}here \<https://evil.example\|docs\> "
                r"\[docs\]{gap}(https://evil.example) \*a\* & \_b\_ \`c\` \\ \|\|d\|\|".replace("{gap}", "\u200b"),
                "allowed_mentions": {"parse": []},
            },
        ),
    ],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_markup_of_a_chat_is_escaped(tmp_path, chat_room, member, sent, locale):
    (tmp_path / "url").write_text(f"http://127.0.0.1:{port(chat_room)}/hook\n")
    notify("chat", tmp_path / "url", member, GITOPS_SUMMARY="s", GITOPS_MESSAGE=MARKUP, LC_ALL=locale)
    ((_, _, body),) = chat_room.posts
    assert json.loads(body) == {**sent, member: f"s. {sent[member]}"}


@needs_curl
def test_the_file_of_a_chat_needs_no_newline_at_its_end(tmp_path, chat_room):
    (tmp_path / "url").write_text(f"http://127.0.0.1:{port(chat_room)}/hook/secret")
    notify("chat", tmp_path / "url")
    assert [path for path, _, _ in chat_room.posts] == ["/hook/secret"]


def test_a_chat_file_without_a_url_is_reported(tmp_path):
    (tmp_path / "url").write_text("\n")
    assert f"{tmp_path}/url has no URL in its first line" in notify("chat", tmp_path / "url", status=78)
    (tmp_path / "url").write_text("")
    assert f"{tmp_path}/url has no URL in its first line" in notify("chat", tmp_path / "url", status=78)
    assert f"{tmp_path}/none: No such file" in notify("chat", tmp_path / "none", status=78)


@needs_curl
def test_an_error_of_the_chat_is_reported(tmp_path, chat_room):
    chat_room.status = 404
    (tmp_path / "url").write_text(f"http://127.0.0.1:{port(chat_room)}/hook/secret\n")
    said = notify("chat", tmp_path / "url", status=22)
    assert "404" in said and "secret" not in said


@needs_curl
def test_a_daemon_sends_a_notice_to_a_chat(tmp_path, start_daemon, chat_room):
    (tmp_path / "url").write_text(f"http://127.0.0.1:{port(chat_room)}/hook\n")
    upstream = Upstream(tmp_path / "forge")
    daemon: Daemon = start_daemon(GITOPS_NOTIFY=f"{CONTRIB}/notify/chat {tmp_path}/url")
    upstream.checkout(daemon.root, deploy="exit 3")
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for("notice sent ")
    ((_, _, body),) = chat_room.posts
    assert "fails: deploy-failed. acme/site: gitops.deploy failed with exit 3" in json.loads(body)["text"]


# -- for Prometheus and Grafana ------------------------------------------------------------------------------------


@needs_promtool
def test_the_alert_rules_are_sound_and_fire_when_they_should():
    for what, path in (("check", RULES), ("test", RULES.with_name("gitops-hook.rules.test.yml"))):
        done = subprocess.run(["promtool", what, "rules", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """Every expression of the dashboard, with Grafana's variables as Prometheus could take them."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in found]


@needs_promtool
def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    assert len(rules) > 15
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_use_existing_metrics(host: Host):  # noqa: F811 - the fixture
    host.upstream.checkout(host.root)
    host.end(host.begin(), "updated")
    host.metrics.read_fleet = lambda: {name: {"": 0.0} for name in ("connected", "outbox", "halted")}
    labels: dict[str, set[str]] = {}
    for name in host.values():
        labels.setdefault(name.partition("{")[0], {"job", "instance"}).update(re.findall(r'(\w+)="', name))
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    asked = "\n".join([*expressions(), *variables, re.sub("#.*", "", RULES.read_text())])
    metrics = re.findall(r"\b((?:gitops_hook|process)_\w+)(?:\{(.*?)\})?", asked)
    assert len(metrics) > 25
    for metric, matchers in metrics:
        assert metric in labels, f"there is no metric {metric}"
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= labels[metric], f"{metric} has no such label: {matchers}"


def test_the_panels_of_the_dashboard_are_complete():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"] and panel["datasource"]["uid"] == "${datasource}"
