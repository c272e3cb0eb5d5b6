"""The webhook's WSGI application under WebTest, its linter on: the table of answers, row by row."""

from __future__ import annotations

import json
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from harness import NOBODY, SECRET, WEBHOOK, headers, push, sign
from scratch import Upstream, git
from webtest import TestApp, TestRequest

from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery
from gitops_hook.receiver.app import MAX_BODY, WebhookApp
from gitops_hook.secrets import Secrets, fingerprint
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.text import printable

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class Host:
    """The application on a host of its own. `site` follows the forge's default branch, `shop` the branch live."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.state = folder / "state"
        self.root.mkdir()
        self.state.mkdir()
        Upstream(folder / "forge", "acme/site").checkout(self.root)
        Upstream(folder / "forge", "acme/shop").checkout(self.root, branch="live")
        Upstream(folder / "forge", "acme/flat").checkout(self.root).rename(self.root / "flat")
        self.journal = Journal(self.state)
        self.woken: list[str] = []
        secrets = Secrets({"line 1": b"newer", "line 2": SECRET.encode()})
        self.web = TestApp(
            WebhookApp(lambda: secrets, Checkouts(self.root), self.journal, self.woken.append, ["Widgets/*"])
        )

    def post(self, body: bytes, sent: dict[str, str]) -> Any:
        return self.web.post(WEBHOOK, body, headers=sent, status="*")

    def deliver(self, payload: Any, event: str = "push", guid: str | None = None) -> Any:
        """Sign a body as GitHub does."""
        body = json.dumps(payload).encode()
        return self.post(body, headers(body, event, guid=guid))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    yield host
    host.journal.close()


@pytest.fixture
def guid() -> str:
    return str(uuid.uuid4())


# -- 202 ------------------------------------------------------------------------------------------------------------


def test_a_push_to_the_tracked_branch_is_queued_in_the_journal(host: Host, guid: str) -> None:
    host.woken.clear()
    answer = host.deliver(push("acme/site", "2" * 40, before="1" * 40), guid=guid)
    assert answer.status == "202 Accepted"
    assert answer.content_type == JSON
    assert answer.json == {"status": "queued", "repository": "acme/site", "delivery": guid}
    (row,) = host.journal.deliveries(guid)
    assert row == Delivery(
        guid=guid,
        event="push",
        received=row.received,
        repository="acme/site",
        ref="refs/heads/main",
        before="1" * 40,
        after="2" * 40,
        pusher="ada",
        id=row.id,
    )
    assert host.woken == ["acme/site"]


def test_a_redelivery_is_queued_again(host: Host, guid: str) -> None:
    payload = push("acme/site")
    assert [host.deliver(payload, guid=guid).status_int for _ in range(2)] == [202, 202]
    assert len(host.journal.deliveries(guid)) == 2


QUEUED: dict[str, dict[str, Any]] = {
    "the branch that the checkout names, not the default": push("acme/shop", ref="refs/heads/live"),
    "a name in another case": push("ACME/Site"),
    "no checkout, but it may be cloned": push("widgets/new"),
    "no default branch is given: the script finds it": {**push("acme/site"), "repository": {"full_name": "acme/site"}},
    "a checkout by its name alone": {**push("acme/site"), "repository": {"name": "Site", "full_name": "acme/Site"}},
    "a branch that begins": push("acme/site", before=NOBODY),
    "before is after, as in Gitea's test": push("acme/site", before="1" * 40),
}


@pytest.mark.parametrize("payload", QUEUED.values(), ids=QUEUED)
def test_a_push_that_may_move_something_is_queued(host: Host, guid: str, payload: dict[str, Any]) -> None:
    answer = host.deliver(payload, guid=guid)
    assert (answer.status_int, answer.json["status"]) == (202, "queued")
    assert [row.repository for row in host.journal.deliveries(guid)] == [payload["repository"]["full_name"]]


def test_a_form_is_verified_over_its_raw_bytes(host: Host, guid: str) -> None:
    body = urlencode({"payload": json.dumps(push("acme/site"))}).encode()
    answer = host.post(body, {**headers(body, guid=guid), "Content-Type": FORM})
    assert (answer.status_int, len(host.journal.deliveries(guid))) == (202, 1)


def test_every_current_secret_is_accepted(host: Host) -> None:
    body = json.dumps(push("acme/site")).encode()
    assert host.post(body, headers(body, secret="newer")).status_int == 202


def test_a_delivery_without_a_guid_is_queued_too(host: Host) -> None:
    body = json.dumps(push("acme/site")).encode()
    answer = host.post(body, {**headers(body), "X-GitHub-Delivery": ""})
    assert (answer.status_int, answer.json) == (202, {"status": "queued", "repository": "acme/site"})


# -- 200 ------------------------------------------------------------------------------------------------------------


def test_the_newest_ping_of_a_hook_is_kept_with_the_secret_that_signed_it(host: Host) -> None:
    ping = {"hook_id": 7, "hook": {"config": {"url": "https://hooks.example.org"}}, "organization": {"login": "acme"}}
    host.deliver(ping, "ping", "unknown")
    assert host.journal.hook_pings() == []
    host.journal.remember_hook(7, "acme", "https://hooks.example.org")
    host.deliver(ping, "ping", "first")
    assert host.deliver(ping, "ping", "second").json == {"status": "pong", "delivery": "second"}
    assert host.post(b"{}", headers(b"{}", "ping", secret="wrong")).status_int == 401
    (kept,) = host.journal.hook_pings()
    assert (kept.hook, kept.target, kept.url, kept.guid) == (7, "acme", "https://hooks.example.org", "second")
    assert kept.signed == fingerprint(SECRET.encode()) != fingerprint(b"newer")
    assert host.journal.deliveries("second") == []  # it is owed nothing


def test_a_ping_is_answered_with_and_without_a_repository(host: Host, guid: str) -> None:
    assert host.deliver({"zen": "Design for failure."}, "ping", guid).json == {"status": "pong", "delivery": guid}
    answer = host.deliver({"repository": {"full_name": "acme/site"}}, "ping", guid)
    assert (answer.status_int, answer.json["repository"]) == (200, "acme/site")
    assert host.journal.deliveries(guid) == []


IGNORED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another event": ("issues", push("acme/site"), "the event `issues` starts no run"),
    "another event, of no repository": ("organization", {}, "the event `organization` starts no run"),
    "another branch": ("push", push("acme/site", ref="refs/heads/topic"), "the tracked branch is `main`"),
    "the default branch, where another is tracked": ("push", push("acme/shop"), "the tracked branch is `live`"),
    "a branch of the same beginning": (
        "push",
        push("acme/site", ref="refs/heads/mainly"),
        "the tracked branch is `main`",
    ),
    "a branch in another case": ("push", push("acme/site", ref="refs/heads/Main"), "the tracked branch is `main`"),
    "a merge queue": (
        "push",
        push("acme/site", ref="refs/heads/gh-readonly-queue/main/pr-7-0123456"),
        "the tracked branch is `main`",
    ),
    "a tag of the branch's name": ("push", push("acme/site", ref="refs/tags/main"), "the tracked branch is `main`"),
    "the branch was deleted": ("push", push("acme/site", NOBODY), "the ref was deleted"),
    "deleted, by its zeros": ("push", push("acme/site", NOBODY, deleted=None), "the ref was deleted"),
    "no checkout": ("push", push("acme/other"), "this host has no checkout of the repository"),
    "no checkout, and a pattern for another owner": (
        "push",
        push("gadgets/new"),
        "this host has no checkout of the repository",
    ),
}


@pytest.mark.parametrize(("event", "payload", "why"), IGNORED.values(), ids=IGNORED)
def test_an_irrelevant_push_is_ignored_with_a_reason(
    host: Host, guid: str, event: str, payload: dict[str, Any], why: str
) -> None:
    host.woken.clear()
    answer = host.deliver(payload, event, guid)
    assert answer.status_int == 200
    assert (answer.json["status"], answer.json["reason"], answer.json["delivery"]) == ("ignored", why, guid)
    assert answer.json.get("repository") == payload.get("repository", {}).get("full_name")
    assert (host.journal.deliveries(guid), host.woken) == ([], [])


LONG = "a" * 255
UNUSUAL: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"the name {name[:12]!r}": (
            {**push("a"), "repository": {"full_name": name}},
            f"a checkout cannot have the name `{printable(name)}`",
        )
        for name in ("..", ".", "acme/..", "../acme", "-rf", "acme/-rf", ".git", "a b", "a/b/c", "caf\xe9", "a\n", LONG)
    },
    **{
        f"the ref {str(ref)[:20]!r}": (
            push("acme/site", ref=ref),
            "the name of the ref is missing, too long or unusual",
        )
        for ref in (None, "main", "refs/heads/" + LONG, "refs/heads/a\x85b", "refs/heads/a\u2028b", "refs/heads/a\nb")
    },
}


@pytest.mark.parametrize(("payload", "reason"), UNUSUAL.values(), ids=UNUSUAL)
def test_a_name_or_ref_that_no_checkout_can_have_is_ignored(
    host: Host, guid: str, payload: dict[str, Any], reason: str
) -> None:
    answer = host.deliver(payload, guid=guid)
    assert (answer.status_int, answer.json["status"], answer.json["reason"]) == (200, "ignored", reason)
    assert host.journal.deliveries(guid) == []


def test_a_malformed_commit_is_no_hint(host: Host, guid: str) -> None:
    answer = host.deliver(push("acme/site", "--output=/etc/passwd", before="1" * 39), guid=guid)
    assert answer.status_int == 202
    assert host.journal.deliveries(guid)[0][5:7] == ("", "")


def test_the_branch_distinguishes_the_environments_of_a_repository(tmp_path: Path) -> None:
    host = Host(tmp_path)
    git("clone", "--quiet", tmp_path / "forge/acme/site.git", host.root / "acme/site@staging", cwd=tmp_path)
    git("config", "gitops.branch", "next", cwd=host.root / "acme/site@staging")
    git("clone", "--quiet", tmp_path / "forge/acme/site.git", host.root / "acme/site@preview", cwd=tmp_path)
    for ref, names in (
        ("refs/heads/main", ["acme/site", "acme/site@preview"]),
        ("refs/heads/next", ["acme/site@staging"]),
        ("refs/heads/other", []),
    ):
        guid = str(uuid.uuid4())
        host.woken.clear()
        answer = host.deliver(push("acme/site", ref=ref), guid=guid)
        assert answer.json["status"] == ("queued" if names else "ignored")
        assert sorted(delivery.repository for delivery in host.journal.deliveries(guid)) == names
        assert sorted(host.woken) == names
    assert "`main`, `next`" in answer.json["reason"]
    host.journal.close()


RENAMES: dict[str, tuple[str, dict[str, Any], str]] = {
    "renamed": ("renamed", {"repository": {"name": {"from": "site"}}}, "acme/new"),
    "transferred by a user": ("transferred", {"owner": {"from": {"user": {"login": "acme"}}}}, "other/site"),
    "by an organization": ("transferred", {"owner": {"from": {"organization": {"login": "Acme"}}}}, "other/site"),
}


@pytest.mark.parametrize(("action", "changes", "new"), RENAMES.values(), ids=RENAMES)
def test_a_new_name_asks_for_a_run_that_reports_it(host: Host, guid: str, action, changes, new) -> None:
    host.woken.clear()
    answer = host.deliver({"action": action, "changes": changes, "repository": {"full_name": new}}, "repository", guid)
    assert (answer.status_int, answer.json["status"]) == (202, "queued")
    (delivery,) = host.journal.deliveries(guid)
    assert (delivery.event, delivery.repository.lower(), delivery.pending) == ("renamed", "acme/site", True)
    assert host.woken == [delivery.repository]
    claim = host.journal.start("acme/site", "push")
    assert claim and claim.renamed == new
    host.journal.finish(claim.run._replace(ended=1.0, outcome="unchanged"), settled=True)


def test_a_new_name_and_its_delivery_are_one_commit(host: Host, guid: str) -> None:
    refuse = "BEFORE INSERT ON deliveries WHEN new.event = 'renamed' BEGIN SELECT RAISE(ABORT, 'refused'); END"
    host.journal.write(lambda connection: connection.execute(f"CREATE TRIGGER refuse {refuse}"))
    changes = {"repository": {"name": {"from": "shop"}}}
    payload = {"action": "renamed", "changes": changes, "repository": {"full_name": "acme/store"}}
    assert host.deliver(payload, "repository", guid).status_int == 503
    host.journal.write(lambda connection: connection.execute("DROP TRIGGER refuse"))
    claim = host.journal.start("acme/shop", "push")
    assert claim and claim.renamed == ""
    host.journal.finish(claim.run._replace(ended=1.0, outcome="unchanged"), settled=True)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"action": "renamed", "changes": {"repository": {"name": {"from": "none"}}}}, "no checkout"),
        ({"action": "renamed", "changes": {"repository": {"name": {"from": "../site"}}}}, "not one of a checkout"),
        ({"action": "renamed", "changes": {"repository": {"name": {"from": "new"}}}}, "is the same"),
        ({"action": "renamed", "changes": []}, "is the same"),
        ({"action": "archived"}, "starts no run"),
    ],
)
def test_another_change_of_a_repository_is_ignored(host: Host, guid: str, payload: dict[str, Any], kind: str) -> None:
    answer = host.deliver({**payload, "repository": {"full_name": "acme/new"}}, "repository", guid)
    assert (answer.status_int, answer.json["status"]) == (200, "ignored")
    assert kind in answer.json["reason"]
    assert host.journal.deliveries(guid) == []


@pytest.mark.parametrize("name", ["ada/flat", "flatter/flat"])
def test_a_push_of_a_fork_does_not_concern_the_flat_checkout(host: Host, guid: str, name: str) -> None:
    answer = host.deliver(push(name), guid=guid)
    reason = "the checkout of this name on this host belongs to another repository"
    assert (answer.status_int, answer.json["status"], answer.json["reason"]) == (200, "ignored", reason)
    assert host.deliver(push("acme/flat"), guid=guid).status_int == 202
    assert host.deliver(push("Acme/Flat"), guid=guid).status_int == 202
    assert [row.repository for row in host.journal.deliveries(guid)] == ["acme/flat", "Acme/Flat"]


# -- 400, 415: proven, but no payload -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "malformed JSON": (400, b'{"ref":', {}),
    "nothing": (400, b"", {}),
    "not an object": (400, b"[]", {}),
    "not UTF-8": (400, b'{"a": "\xff"}', {}),
    "no repository": (400, b'{"ref": "refs/heads/main"}', {}),
    "no event": (400, json.dumps(push("acme/site")).encode(), {"X-GitHub-Event": ""}),
    "a form without payload": (400, b"a=b", {"Content-Type": FORM}),
    "another media type": (415, json.dumps(push("acme/site")).encode(), {"Content-Type": "text/plain"}),
    "an empty name": (400, json.dumps({**push("a"), "repository": {"full_name": ""}}).encode(), {}),
}


@pytest.mark.parametrize(("status", "body", "more"), REFUSED.values(), ids=REFUSED)
def test_a_verified_body_that_is_not_a_payload_is_rejected(
    host: Host, guid: str, status: int, body: bytes, more: dict[str, str]
) -> None:
    answer = host.post(body, {**headers(body, guid=guid), **more})
    assert (answer.status_int, answer.json["status"], answer.json["delivery"]) == (status, "refused", guid)
    assert answer.json["reason"]
    assert host.journal.deliveries(guid) == []


# -- 401: not proven ------------------------------------------------------------------------------------------------

BODY = json.dumps(push("acme/site")).encode()
GOOD = sign(BODY)
UNPROVEN: dict[str, dict[str, str]] = {
    "no signature": {"X-Hub-Signature-256": ""},
    "of another secret": {"X-Hub-Signature-256": sign(BODY, "guess")},
    "of other bytes": {"X-Hub-Signature-256": sign(BODY + b" ")},
    "in upper case": {"X-Hub-Signature-256": "sha256=" + GOOD[7:].upper()},
    "its name in upper case": {"X-Hub-Signature-256": GOOD.upper()},
    "a digit short": {"X-Hub-Signature-256": GOOD[:-1]},
    "a digit long": {"X-Hub-Signature-256": GOOD + "0"},
    "a line end long": {"X-Hub-Signature-256": GOOD + "\n"},
    "without its name": {"X-Hub-Signature-256": GOOD[7:]},
    "empty, as from a hook without a secret": {"X-Hub-Signature-256": "sha256="},
    "sha1 under the name of sha256": {"X-Hub-Signature-256": headers(BODY)["X-Hub-Signature"]},
    "twice": {"X-Hub-Signature-256": f"{GOOD},{GOOD}"},
    "beyond ASCII": {"X-Hub-Signature-256": "sha256=" + "\xe9" * 64},
    "digits of another alphabet": {"X-Hub-Signature-256": "sha256=" + "\xb2" * 64},
}


@pytest.mark.parametrize("more", UNPROVEN.values(), ids=UNPROVEN)
def test_an_unverified_request_receives_only_401(host: Host, guid: str, more: dict[str, str]) -> None:
    answer = host.post(BODY, {**headers(BODY, guid=guid), **more})
    assert answer.status_int == 401
    assert answer.json == {"status": "refused", "reason": "the signature X-Hub-Signature-256 is missing or wrong"}
    assert host.journal.deliveries(guid) == []


def test_a_sha1_signature_alone_is_rejected(host: Host) -> None:
    sent = headers(BODY)
    del sent["X-Hub-Signature-256"]
    assert "X-Hub-Signature" in sent
    assert host.post(BODY, sent).status_int == 401


@pytest.mark.parametrize("event", ["push", "ping", ""])
@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff", b""])
def test_nothing_is_parsed_before_verification(host: Host, event: str, body: bytes) -> None:
    sent = {**headers(body, event, secret="guess"), "Content-Type": "text/plain"}
    assert host.post(body, sent).status_int == 401


# -- before the body ------------------------------------------------------------------------------------------------


class Untouchable:
    """A body that must not be read."""

    def read(self, *size: int) -> bytes:
        raise AssertionError("the body was read")

    readline = readlines = __iter__ = read


def untouchable(**environ: str) -> Any:
    made = TestRequest.blank(WEBHOOK, {"wsgi.input": Untouchable(), "CONTENT_TYPE": JSON}, method="POST")
    made.environ.pop("CONTENT_LENGTH", None)
    made.environ.update(environ)
    return made


@pytest.mark.parametrize("path", ["/", "/api/webhook", f"{WEBHOOK}//", f"{WEBHOOK}\0", f"/{WEBHOOK}", "/healthz/"])
def test_another_path_is_404_and_the_response_names_the_right_one(host: Host, path: str) -> None:
    answer = host.web.do_request(untouchable(PATH_INFO=path), status="*")
    assert (answer.status_int, answer.json) == (404, {"status": "refused", "reason": f"webhooks go to {WEBHOOK}"})


def test_a_trailing_slash_is_accepted(host: Host) -> None:
    body = json.dumps(push("acme/site")).encode()
    assert host.web.post(f"{WEBHOOK}/", body, headers=headers(body), status="*").status_int == 202


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *((method, WEBHOOK, "POST") for method in ("GET", "PUT", "DELETE", "OPTIONS")),
        *((method, "/healthz", "GET, HEAD") for method in ("POST", "PUT", "DELETE", "OPTIONS")),
    ],
)
def test_another_method_is_405_with_the_allowed_method(host: Host, method: str, path: str, allow: str) -> None:
    answer = host.web.request(path, method=method, status="*")
    assert (answer.status_int, answer.headers["Allow"], answer.json["status"]) == (405, allow, "refused")


def test_head_of_the_webhook_is_405_without_a_body(host: Host) -> None:
    answer = host.web.head(WEBHOOK, status=405)
    assert (answer.headers["Allow"], answer.body) == ("POST", b"")


def test_no_length_is_411(host: Host) -> None:
    assert host.web.do_request(untouchable(), status="*").status_int == 411
    assert host.web.do_request(untouchable(HTTP_TRANSFER_ENCODING="chunked"), status="*").status_int == 411


@pytest.mark.parametrize("length", [str(MAX_BODY + 1), "9" * 18])
def test_a_body_over_25_mib_is_413_before_it_is_read(host: Host, length: str) -> None:
    answer = host.web.do_request(untouchable(CONTENT_LENGTH=length), status="*")
    assert (answer.status_int, answer.json["reason"]) == (413, "the body is larger than 25 MiB")


def test_a_body_of_25_mib_is_read(host: Host) -> None:
    body = json.dumps(push("acme/site")).encode()
    body += b" " * (MAX_BODY - len(body))
    assert host.post(body, headers(body)).status_int == 202


# -- 503, and health ------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(state: Path) -> Iterator[None]:
    """No file of this process may grow past the journal's, so the next write to that fails."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = state / "journal.db-wal"
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size if wal.exists() else 0, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_push_that_cannot_be_kept_is_503_and_not_half_accepted(host: Host, guid: str) -> None:
    host.woken.clear()
    with full_disk(host.state):
        answer = host.deliver(push("acme/site"), guid=guid)
    assert (answer.status_int, answer.headers["Retry-After"]) == (503, "10")
    assert answer.json == {
        "status": "unavailable",
        "delivery": guid,
        "reason": "the journal cannot be written now",
    }
    assert (host.journal.deliveries(guid), host.woken) == ([], [])
    assert host.deliver(push("acme/site"), guid=guid).status_int == 202  # once there is room, without a restart


def test_health_reports_an_unwritable_journal_and_its_recovery(host: Host) -> None:
    assert host.web.get("/healthz", status=200).json == {"status": "ok"}
    with full_disk(host.state):
        assert host.deliver(push("acme/site")).status_int == 503
        answer = host.web.get("/healthz", status=503)
        assert answer.json == {"status": "unavailable", "reason": "the journal cannot be written"}
        assert answer.headers["Retry-After"] == "10"
        assert host.web.head("/healthz", status=503).body == b""
    assert host.web.get("/healthz", status=200).json == {"status": "ok"}
    assert host.web.head("/healthz", status=200).body == b""


def test_a_journal_that_is_closed_is_503(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.journal.close()
    assert host.deliver(push("acme/site")).status_int == 503
    assert host.deliver(push("acme/other")).status_int == 200  # what need not be kept is answered all the same


def test_a_host_where_git_cannot_run_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = host.deliver(push("acme/site"))
    host.journal.close()
    assert (answer.status_int, answer.headers["Retry-After"]) == (503, "10")
    assert answer.json["reason"] == "the checkouts cannot be read now"


# -- the log --------------------------------------------------------------------------------------------------------


def test_a_delivery_is_one_line_of_the_log(host: Host, guid: str, capfd: pytest.CaptureFixture[str]) -> None:
    host.deliver(push("acme/site"), guid=guid)
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        f"info webhook queued delivery={guid} repository=acme/site event=push commit={'1' * 40} http=202 secret="
        in line
    )
    assert 'secret="line 2"' in line


def test_control_characters_in_headers_are_escaped(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    request = untouchable(
        CONTENT_LENGTH="0",
        HTTP_X_GITHUB_DELIVERY='a\n<3>forged="yes" \x1b[2J\x9b\x85',
        HTTP_X_GITHUB_EVENT="push\r\n" + "x" * 10_000,
    )
    request.environ["wsgi.input"] = TestRequest.blank("/").body_file_raw
    assert host.web.do_request(request, status="*").status_int == 401
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in error[:-1])
    assert "warning webhook refused" in error
    assert '\\"yes\\"' in error
    assert len(error) < 1000
