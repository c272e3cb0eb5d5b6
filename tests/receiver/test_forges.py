"""The table of forges, row by row: payloads as each forge's documentation writes them, signatures by openssl."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from harness import NOBODY, SECRET, WEBHOOK, push
from scratch import Upstream, git
from webtest import TestApp

from gitops_hook.errors import HTTPError
from gitops_hook.journal.writer import Journal
from gitops_hook.receiver.app import MAX_FORM, WebhookApp
from gitops_hook.receiver.events import parse_event
from gitops_hook.receiver.forges import FORGES, claimed_forge
from gitops_hook.receiver.payload import RefChange
from gitops_hook.receiver.signatures import TOLERANCE, Token, form_field
from gitops_hook.secrets import Secrets, signing_key
from gitops_hook.sync.checkouts import Checkouts

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
OLD, NEW = "1" * 40, "2" * 40
#: What GitLab's form offers as a signing token: 32 bytes.
SIGNING_TOKEN = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOW = 1_700_000_000.0


def openssl(message: bytes, key: bytes = SECRET.encode()) -> bytes:
    """HMAC-SHA256, by somebody else's hand."""
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}", "-binary"]
    return subprocess.run(command, input=message, stdout=subprocess.PIPE, check=True).stdout


# -- what each forge sends ------------------------------------------------------------------------------------------


def github(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": guid,
        "X-GitHub-Event": event,
        "X-Hub-Signature": "sha1=" + "0" * 40,
        "X-Hub-Signature-256": "sha256=" + openssl(signed).hex(),
    }


def gogs(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        "User-Agent": "GogsServer",
        "X-Github-Delivery": guid,
        "X-Github-Event": event,
        "X-Gogs-Delivery": guid,
        "X-Gogs-Event": event,
        "X-Gogs-Signature": openssl(signed).hex(),
    }


def gitea(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        **github(event, signed, guid),
        **gogs(event, signed, guid),
        "User-Agent": "Go-http-client/1.1",
        "X-Gitea-Delivery": guid,
        "X-Gitea-Event": event,
        "X-Gitea-Event-Type": event,
        "X-Gitea-Signature": openssl(signed).hex(),
    }


def forgejo(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        **gitea(event, signed, guid),
        "X-Forgejo-Delivery": guid,
        "X-Forgejo-Event": event,
        "X-Forgejo-Event-Type": event,
        "X-Forgejo-Signature": openssl(signed).hex(),
    }


def gitlab(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        "User-Agent": "GitLab/17.11.0",
        "Idempotency-Key": "f5e5f430-f57b-4e6e-9fac-d9128cd7232f",
        "X-Gitlab-Event": event,
        "X-Gitlab-Event-UUID": guid,
        "X-Gitlab-Instance": "https://gitlab.example.org",
        "X-Gitlab-Token": SECRET,
        "X-Gitlab-Webhook-UUID": "02affd2d-2cba-4033-917d-ec22d5dc4b38",
    }


def gitlab_signed(event: str, signed: bytes, guid: str, at: str = str(int(NOW)), token: str = SIGNING_TOKEN) -> Any:
    name = "f5e5f430-f57b-4e6e-9fac-d9128cd7232f"
    digest = openssl(f"{name}.{at}.".encode() + signed, base64.b64decode(token[6:]))
    sent = gitlab(event, signed, guid)
    del sent["X-Gitlab-Token"]
    return {
        **sent,
        "webhook-id": name,
        "webhook-timestamp": at,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def bitbucket(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        "User-Agent": "Bitbucket-Webhooks/2.0",
        "X-Attempt-Number": "1",
        "X-Event-Key": event,
        "X-Hook-UUID": "0302255c-f4f0-4232-916b-bef521fbdd08",
        "X-Hub-Signature": "sha256=" + openssl(signed).hex(),
        "X-Request-UUID": guid,
    }


def bitbucket_data_center(event: str, signed: bytes, guid: str) -> dict[str, str]:
    return {
        "User-Agent": "Atlassian HttpClient 4.2.0 / Bitbucket-8.19.1 (8019001) / Default",
        "X-Event-Key": event,
        "X-Hub-Signature": "sha256=" + openssl(signed).hex(),
        "X-Request-Id": guid,
    }


SPEAKERS = {
    "GitHub": github,
    "Gitea": gitea,
    "Forgejo": forgejo,
    "Gogs": gogs,
    "GitLab": gitlab,
    "GitLab, signed": gitlab_signed,
    "Bitbucket": bitbucket,
    "Bitbucket Data Center": bitbucket_data_center,
}

# -- their pushes ---------------------------------------------------------------------------------------------------


def push_of_gitea(after: str = NEW, ref: str = "refs/heads/main") -> dict[str, Any]:
    """Of Gitea, Forgejo and Gogs: no word of ``created``, ``deleted`` or ``forced``."""
    return {
        "ref": ref,
        "before": OLD,
        "after": after,
        "compare_url": f"https://git.example.org/acme/site/compare/{OLD}...{after}",
        "commits": [],
        "repository": {
            "id": 140,
            "owner": {"id": 1, "login": "acme", "full_name": "Acme", "username": "acme"},
            "name": "site",
            "full_name": "acme/site",
            "clone_url": "https://git.example.org/acme/site.git",
            "default_branch": "main",
        },
        "pusher": {"id": 1, "login": "ada", "full_name": "Ada", "username": "ada"},
        "sender": {"id": 1, "login": "ada", "full_name": "Ada", "username": "ada"},
    }


def push_of_gitlab(after: str = NEW, ref: str = "refs/heads/main", path: str = "acme/site") -> dict[str, Any]:
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": OLD,
        "after": after,
        "ref": ref,
        "ref_protected": True,
        "checkout_sha": None if after == NOBODY else after,
        "user_name": "Ada Lovelace",
        "user_username": "ada",
        "project_id": 15,
        "project": {
            "id": 15,
            "name": "The Site of Acme",  # what people call it, not where it lies
            "namespace": "Acme",
            "path_with_namespace": path,
            "default_branch": "main",
            "git_http_url": f"https://gitlab.example.org/{path}.git",
        },
        "repository": {"name": "The Site of Acme", "url": f"git@gitlab.example.org:{path}.git"},
        "commits": [],
        "total_commits_count": 0,
    }


def change(
    name: str, old: str | None = OLD, new: str | None = NEW, kind: str = "branch", **more: Any
) -> dict[str, Any]:
    def state(commit: str | None) -> Any:
        return commit and {"type": kind, "name": name, "target": {"type": "commit", "hash": commit}}

    return {
        "old": state(old),
        "new": state(new),
        "created": old is None,
        "closed": new is None,
        "forced": False,
        "commits": [],
        "truncated": False,
        **more,
    }


def push_of_bitbucket(*changes: Any, mainbranch: str | None = None) -> dict[str, Any]:
    return {
        "actor": {"type": "user", "display_name": "Ada Lovelace", "nickname": "ada"},
        "repository": {
            "type": "repository",
            "name": "The Site of Acme",
            "full_name": "acme/site",
            "uuid": "{673a6070-3421-46c9-9d48-90745f7bfe8e}",
            "scm": "git",
            **({"mainbranch": {"type": "branch", "name": mainbranch}} if mainbranch else {}),
        },
        "push": {"changes": list(changes or [change("main")])},
    }


def data_center_change(name: str, after: str = NEW, kind: str = "UPDATE") -> dict[str, Any]:
    ref = {"id": f"refs/heads/{name}", "displayId": name, "type": "BRANCH"}
    return {"ref": ref, "refId": ref["id"], "fromHash": OLD, "toHash": after, "type": kind}


def push_of_data_center(*changes: Any) -> dict[str, Any]:
    """A push as Bitbucket Data Center's "Event payload" has it. Its repository has no full name and no main branch."""
    return {
        "eventKey": "repo:refs_changed",
        "date": "2026-01-13T22:26:25+1100",
        "actor": {
            "name": "ada",
            "displayName": "Ada Lovelace",
            "id": 1,
            "active": True,
            "slug": "ada",
            "type": "NORMAL",
        },
        "repository": {
            "slug": "shop",
            "id": 84,
            "name": "The Shop of Acme",
            "scmId": "git",
            "state": "AVAILABLE",
            "project": {"key": "ACME", "id": 84, "name": "Acme", "public": False, "type": "NORMAL"},
            "public": False,
        },
        "changes": list(changes or [data_center_change("live")]),
    }


#: By speaker: what a push is called; one to main, one to another branch, one that deletes main.
PUSHES: dict[str, tuple[str, Any, Any, Any]] = {
    "GitHub": (
        "push",
        push("acme/site", NEW, before=OLD),
        push("acme/site", ref="refs/heads/topic"),
        push("acme/site", NOBODY, before=OLD),
    ),
    **dict.fromkeys(
        ("Gitea", "Forgejo", "Gogs"),
        ("push", push_of_gitea(), push_of_gitea(ref="refs/heads/topic"), push_of_gitea(NOBODY)),
    ),
    **dict.fromkeys(
        ("GitLab", "GitLab, signed"),
        ("Push Hook", push_of_gitlab(), push_of_gitlab(ref="refs/heads/topic"), push_of_gitlab(NOBODY)),
    ),
    "Bitbucket": (
        "repo:push",
        push_of_bitbucket(mainbranch="main"),
        push_of_bitbucket(change("topic"), mainbranch="main"),
        push_of_bitbucket(change("main", new=None), mainbranch="main"),
    ),
    "Bitbucket Data Center": (
        "repo:refs_changed",
        push_of_data_center(),
        push_of_data_center(data_center_change("topic")),
        push_of_data_center(data_center_change("live", NOBODY, "DELETE")),
    ),
}
#: The repository of a speaker's pushes and the branch that its checkout tracks.
TRACKED = {**dict.fromkeys(PUSHES, ("acme/site", "main")), "Bitbucket Data Center": ("ACME/shop", "live")}


class Host:
    """The application on a host of its own; `site` follows the forge's default branch, `shop` the branch live."""

    def __init__(self, folder: Path) -> None:
        root = folder / "root"
        root.mkdir()
        Upstream(folder / "forge", "acme/site").checkout(root)
        Upstream(folder / "forge", "acme/shop").checkout(root, branch="live")
        nested = Upstream(folder / "forge", "acme/nested").checkout(root)
        git("remote", "set-url", "origin", "https://gitlab.example.org/x/acme/nested.git", cwd=nested)
        self.journal = Journal(folder / "state")
        secrets = Secrets({"line 1": b"newer", "line 2": SECRET.encode(), "line 3": SIGNING_TOKEN.encode()})
        app = WebhookApp(lambda: secrets, Checkouts(root), self.journal, lambda repository: None, now=lambda: NOW)
        self.web = TestApp(app)

    def post(self, body: bytes, sent: dict[str, str], media_type: str = JSON) -> Any:
        return self.web.post(WEBHOOK, body, headers={**sent, "Content-Type": media_type}, status="*")

    def deliver(self, speaker: str, payload: Any, event: str | None = None, guid: str = "") -> Any:
        body = json.dumps(payload).encode()
        return self.post(body, SPEAKERS[speaker](event or PUSHES[speaker][0], body, guid))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    yield host
    host.journal.close()


@pytest.fixture
def guid() -> str:
    return str(uuid.uuid4())


# -- each row -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_tried_here() -> None:
    assert {speaker.partition(",")[0] for speaker in PUSHES} == {forge.name for forge in FORGES}


@pytest.mark.parametrize("speaker", PUSHES)
def test_a_push_is_queued(host: Host, guid: str, speaker: str) -> None:
    answer = host.deliver(speaker, PUSHES[speaker][1], guid=guid)
    repository, branch = TRACKED[speaker]
    assert answer.json == {"status": "queued", "repository": repository, "delivery": guid}
    assert answer.status_int == 202
    (row,) = host.journal.deliveries(guid)
    assert row[:2] == (guid, "push")
    assert row[3:8] == (repository, f"refs/heads/{branch}", OLD, NEW, "ada")


@pytest.mark.parametrize("speaker", PUSHES)
def test_a_push_to_another_branch_is_ignored(host: Host, guid: str, speaker: str) -> None:
    answer = host.deliver(speaker, PUSHES[speaker][2], guid=guid)
    assert (answer.status_int, answer.json["reason"]) == (200, f"the tracked branch is `{TRACKED[speaker][1]}`")
    assert host.journal.deliveries(guid) == []


@pytest.mark.parametrize("speaker", PUSHES)
def test_a_deletion_is_marked_as_a_deletion(host: Host, guid: str, speaker: str) -> None:
    answer = host.deliver(speaker, PUSHES[speaker][3], guid=guid)
    assert (answer.status_int, answer.json["reason"]) == (200, "the ref was deleted")
    assert host.journal.deliveries(guid) == []


@pytest.mark.parametrize("speaker", PUSHES)
def test_another_event_is_ignored(host: Host, speaker: str) -> None:
    payload = PUSHES[speaker][1]
    answer = host.deliver(speaker, {"repository": payload["repository"]} if "project" not in payload else {}, "Other")
    assert (answer.status_int, answer.json["reason"]) == (200, "the event `Other` starts no run")


@pytest.mark.parametrize("speaker", PUSHES)
def test_without_a_valid_signature_every_request_is_401(host: Host, guid: str, speaker: str) -> None:
    body = json.dumps(PUSHES[speaker][1]).encode()
    sent = SPEAKERS[speaker](PUSHES[speaker][0], body, guid)
    for name, value in sent.items():
        if "ignature" in name or name in ("X-Gitlab-Token", "webhook-id", "webhook-timestamp"):
            sent[name] = value[:-1] + ("0" if value[-1] != "0" else "1")
    answer = host.post(body, sent)
    assert (answer.status_int, answer.json["status"]) == (401, "refused")
    assert answer.json.keys() == {"status", "reason"}
    assert host.journal.deliveries(guid) == []


@pytest.mark.parametrize("speaker", PUSHES)
@pytest.mark.parametrize("bad", ["", "{", "[]", "null", "{}", '{"push": {"changes": 1}}', '{"project": 1}', "\xff"])
def test_a_verified_body_that_is_not_a_payload_is_rejected(host: Host, speaker: str, bad: str) -> None:
    body = bad.encode("latin-1")
    answer = host.post(body, SPEAKERS[speaker](PUSHES[speaker][0], body, ""))
    assert (answer.status_int, answer.json["status"]) == (400, "refused")


def without(sent: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in sent.items() if name not in names}


@pytest.mark.parametrize("speaker", ["Gitea", "Forgejo", "Gogs"])
def test_a_signature_of_gitea_is_read_as_gitea(host: Host, guid: str, speaker: str) -> None:
    body = json.dumps(push_of_gitea()).encode()
    sent = SPEAKERS[speaker]("push", body, guid)
    assert host.post(body, without(sent, f"X-{speaker}-Signature")).status_int == 401
    assert host.post(body, without(sent, "X-Hub-Signature-256", "X-Hub-Signature")).status_int == 202


def test_a_hook_of_gitea_without_a_secret_is_rejected(host: Host) -> None:
    body = json.dumps(push_of_gitea()).encode()
    sent = gitea("push", body, "")
    empty = {**dict.fromkeys(("X-Gitea-Signature", "X-Gogs-Signature"), ""), "X-Hub-Signature-256": "sha256="}
    assert host.post(body, {**sent, **empty}).status_int == 401


# -- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaker", ["Gitea", "Forgejo", "Gogs"])
def test_forms_of_other_forges_are_signed_over_the_field(host: Host, guid: str, speaker: str) -> None:
    value = json.dumps({**push_of_gitea(), "extra": "é & ü = 100% + more; \x7f\n~\u2028"}, ensure_ascii=False).encode()
    body = urlencode({"payload": value}).encode()
    assert host.post(body, SPEAKERS[speaker]("push", value, guid), FORM).status_int == 202
    assert host.post(body, SPEAKERS[speaker]("push", body, guid), FORM).status_int == 401
    assert len(host.journal.deliveries(guid)) == 1


def test_githubs_forms_are_signed_by_their_bytes(host: Host) -> None:
    value = json.dumps(push("acme/site")).encode()
    body = urlencode({"payload": value}).encode()
    assert host.post(body, github("push", body, ""), FORM).status_int == 202
    assert host.post(body, github("push", value, ""), FORM).status_int == 401


FORMS = {
    "two fields": b"payload={}&payload={}",
    "another field behind": b"payload={}&a=b",
    "another field before": b"a=b&payload={}",
    "a name that only begins so": b"payloads={}",
    "no value": b"payload",
    "an escape cut short": b"payload={}%2",
    "an escape that is none": b"payload={}%zz",
    "an escaped line break of quoted-printable": b"payload={}=\r\n",
    "a blank": b"payload={} ",
    "a byte beyond ASCII": b"payload={}\xe9",
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_a_form_with_several_fields_is_rejected(host: Host, body: bytes) -> None:
    for signed in (b"{}", body):
        assert host.post(body, gitea("push", signed, ""), FORM).status_int == 401
    assert host.post(body, github("push", body, ""), FORM).status_int == 400


@pytest.mark.parametrize("speaker", ["Gitea", "Forgejo", "Gogs"])
def test_a_form_that_is_decoded_before_it_is_verified_is_small(host: Host, speaker: str) -> None:
    value = json.dumps({**push_of_gitea(), "commits": ["x" * MAX_FORM]}).encode()
    body = urlencode({"payload": value}).encode()
    sent = SPEAKERS[speaker]("push", value, "")
    answer = host.post(body, sent, FORM)
    assert (answer.status_int, answer.json["reason"]) == (413, "forms are limited to 1 MiB; use application/json")
    assert host.post(value, sent).status_int == 202


def test_the_largest_form_is_decoded_in_little_time() -> None:
    value = b"\xff" * (8 << 20)
    body = b"payload=" + quote_plus(value).encode()
    began = time.process_time()
    assert form_field(body) == value
    assert time.process_time() - began < 5  # some 1.5 s here; what takes a step of Python for each escape takes 30


# -- GitLab ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", SECRET[:-1], SECRET + "x", SECRET.upper(), "é", f"{SECRET},{SECRET}", "\u20ac"])
def test_a_token_must_equal_the_secret(token: str) -> None:
    headers = {"HTTP_X_GITLAB_TOKEN": token}
    assert Secrets({"line 1": SECRET.encode()}).match(Token().proof(headers, b"", NOW)) is None


def test_a_token_in_utf_8_arrives_as_its_bytes() -> None:
    headers = {"HTTP_X_GITLAB_TOKEN": "clé".encode().decode("latin-1")}
    assert Secrets({"line 1": "clé".encode()}).match(Token().proof(headers, b"", NOW)) == "line 1"


@pytest.mark.parametrize("off", [-TOLERANCE, 0, TOLERANCE])
def test_a_signed_timestamp_near_now_is_accepted(host: Host, off: int) -> None:
    body = json.dumps(push_of_gitlab()).encode()
    assert host.post(body, gitlab_signed("Push Hook", body, "", str(int(NOW) + off))).status_int == 202


@pytest.mark.parametrize("off", [-TOLERANCE - 1, TOLERANCE + 1, -int(NOW)])
def test_a_signed_timestamp_far_from_now_is_rejected(host: Host, off: int) -> None:
    body = json.dumps(push_of_gitlab()).encode()
    answer = host.post(body, gitlab_signed("Push Hook", body, "", str(int(NOW) + off)))
    assert answer.status_int == 401
    assert answer.json["reason"] == "the webhook-timestamp is more than 300 s from this host's clock"


@pytest.mark.parametrize("at", ["", "x", "-1", "1e9", "+1700000000", "1_700_000_000", "²", "9" * 13, "1700000000.0"])
def test_an_invalid_timestamp_is_rejected(host: Host, at: str) -> None:
    body = json.dumps(push_of_gitlab()).encode()
    sent = {**gitlab_signed("Push Hook", body, ""), "webhook-timestamp": at}
    assert host.post(body, sent).status_int == 401


def test_a_signature_takes_precedence_over_a_token(host: Host) -> None:
    body = json.dumps(push_of_gitlab()).encode()
    both = {**gitlab_signed("Push Hook", body, ""), "X-Gitlab-Token": SECRET}
    assert host.post(body, both).status_int == 202
    for wrong in ("", "v1,", "v1,AAAA", "v2," + both["webhook-signature"][3:], "v1," + "é" * 44, " ", "v1"):
        assert host.post(body, {**both, "webhook-signature": wrong}).status_int == 401
    assert host.post(body, {**both, "webhook-id": ""}).status_int == 401
    assert host.post(body + b" ", both).status_int == 401


def test_one_valid_signature_of_several_is_enough(host: Host) -> None:
    body = json.dumps(push_of_gitlab()).encode()
    sent = gitlab_signed("Push Hook", body, "")
    other = gitlab_signed("Push Hook", body, "", token="whsec_" + base64.b64encode(b"x" * 32).decode())
    assert host.post(body, other).status_int == 401
    several = f"v1a,AAAA {other['webhook-signature']} {sent['webhook-signature']}"
    assert host.post(body, {**sent, "webhook-signature": several}).status_int == 202


@pytest.mark.parametrize(
    "secret", ["whsec_", "whsec_====", "whsec_é", "whsec_a", "whsec_AA!AA", "whsec", "", "hunter2"]
)
def test_a_secret_without_a_key_signs_nothing(secret: str) -> None:
    """An empty key is everybody's."""
    assert signing_key(secret.encode()) is None


def test_the_example_of_standard_webhooks_is_proven() -> None:
    secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = {
        "HTTP_WEBHOOK_ID": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "HTTP_WEBHOOK_TIMESTAMP": "1614265330",
        "HTTP_WEBHOOK_SIGNATURE": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    proof = Token().proof(headers, b'{"test": 2432232314}', 1614265330)
    assert Secrets({"line 1": secret}).match(proof) == "line 1"


@pytest.mark.parametrize(
    ("path", "name"), [("acme/site", "acme/site"), ("world/acme/site", "acme/site"), ("a/b/c/acme/site", "acme/site")]
)
def test_the_last_of_nested_groups_is_the_owner(host: Host, guid: str, path: str, name: str) -> None:
    assert host.deliver("GitLab", push_of_gitlab(path=path), guid=guid).json["repository"] == name


def test_nested_groups_that_end_alike_do_not_share_a_checkout(host: Host) -> None:
    assert host.deliver("GitLab", push_of_gitlab(path="x/acme/nested")).status_int == 202
    assert host.deliver("GitLab", push_of_gitlab(path="y/acme/nested")).json["status"] == "ignored"


@pytest.mark.parametrize("path", ["world/..", "a/-b/c/-d", "a/b/.git", "/", "a//", "a/b/c\n"])
def test_nested_groups_do_not_lead_out_of_the_root(host: Host, path: str) -> None:
    answer = host.deliver("GitLab", push_of_gitlab(path=path))
    assert (answer.status_int, answer.json["status"]) == (200, "ignored")
    assert answer.json["reason"].startswith("a checkout cannot have the name ")


def test_a_project_of_255_characters_does_not_get_a_4xx(host: Host) -> None:
    """GitLab disables a hook after four of them, for every project behind it."""
    assert host.deliver("GitLab", push_of_gitlab(path="acme/" + "a" * 255)).json["status"] == "ignored"


def test_system_hooks_of_gitlab_are_accepted(host: Host) -> None:
    assert host.deliver("GitLab", push_of_gitlab(), "System Hook").status_int == 202
    for other in ({"event_name": "user_create", "username": "ada"}, {"event_name": ["push"]}, {}):
        answer = host.deliver("GitLab", other, "System Hook")
        assert (answer.status_int, answer.json["reason"]) == (200, "the event `System Hook` starts no run")


@pytest.mark.parametrize("event", ["project_rename", "project_transfer"])
def test_system_hooks_of_gitlab_report_a_new_name(host: Host, guid: str, event: str) -> None:
    paths = {"old_path_with_namespace": "x/acme/nested", "path_with_namespace": "x/world/nested"}
    answer = host.deliver("GitLab", {"event_name": event, **paths}, "System Hook", guid)
    assert (answer.status_int, answer.json["repository"]) == (202, "acme/nested")
    claim = host.journal.start("acme/nested", "push")
    assert claim and claim.renamed == "world/nested" and claim.newest and claim.newest.event == "renamed"
    host.journal.finish(claim.run._replace(ended=1.0, outcome="unchanged"), settled=True)
    foreign = {**paths, "old_path_with_namespace": "y/acme/nested"}
    assert host.deliver("GitLab", {"event_name": event, **foreign}, "System Hook").json["status"] == "ignored"


# -- Bitbucket ------------------------------------------------------------------------------------------------------


def test_the_change_of_the_tracked_branch_counts(host: Host, guid: str) -> None:
    payload = push_of_bitbucket(
        change("topic", new="3" * 40),
        change("main", kind="tag", new="4" * 40),
        change("gone", new=None),
        change("main", old=None, new="5" * 40),
        change("mainly", new="6" * 40),
        mainbranch="main",
    )
    assert host.deliver("Bitbucket", payload, guid=guid).status_int == 202
    ((_, _, _, _, ref, before, after, *_),) = host.journal.deliveries(guid)
    assert (ref, before, after) == ("refs/heads/main", "", "5" * 40)


def test_the_branch_that_the_checkout_names_is_tracked(host: Host, guid: str) -> None:
    payload = push_of_bitbucket(change("main"), change("live", new="7" * 40))
    payload["repository"]["full_name"] = "acme/shop"
    assert host.deliver("Bitbucket", payload, guid=guid).status_int == 202
    assert host.journal.deliveries(guid)[0].after == "7" * 40


def test_an_unknown_branch_is_left_to_the_script(host: Host, guid: str) -> None:
    assert (
        host.deliver("Bitbucket", push_of_bitbucket(change("gone", new=None), change("any")), guid=guid).status_int
        == 202
    )
    assert host.journal.deliveries(guid)[0].ref == "refs/heads/any"


def test_a_new_name_at_bitbucket_is_reported(host: Host, guid: str) -> None:
    changes = {"full_name": {"old": "acme/site", "new": "acme/renamed"}}
    answer = host.deliver("Bitbucket", {"changes": changes}, "repo:updated", guid)
    assert (answer.status_int, answer.json["repository"]) == (202, "acme/site")
    assert host.journal.deliveries(guid)[0].event == "renamed"
    other = {"changes": {"description": {"old": "", "new": "x"}}, "repository": {"full_name": "acme/site"}}
    assert host.deliver("Bitbucket", other, "repo:updated").json["status"] == "ignored"


def test_a_push_that_moved_nothing_is_ignored(host: Host) -> None:
    payload = push_of_bitbucket()
    payload["push"]["changes"] = []
    answer = host.deliver("Bitbucket", payload)
    assert (answer.status_int, answer.json["reason"]) == (200, "the push changed no ref")


UNKNOWN_CHANGES: dict[str, Any] = {
    "nothing": None,
    "text": "main",
    "neither old nor new": {"old": None, "new": None},
    "a type that git does not have": change("main", kind="bookmark"),
    "a type that is a list": {"old": None, "new": {"type": ["branch"], "name": "main"}},
    "no name": {"old": None, "new": {"type": "branch"}},
    "a name with a line end": change("main\n"),
}


@pytest.mark.parametrize("unknown", UNKNOWN_CHANGES.values(), ids=UNKNOWN_CHANGES)
def test_an_unknown_change_does_not_hide_a_known_one(host: Host, guid: str, unknown: Any) -> None:
    known = change("main")
    assert host.deliver("Bitbucket", push_of_bitbucket(unknown, known, mainbranch="main"), guid=guid).status_int == 202
    assert host.journal.deliveries(guid)[0].ref == "refs/heads/main"
    answer = host.deliver("Bitbucket", push_of_bitbucket(unknown), guid=guid)
    assert (answer.status_int, answer.json["status"]) == (200, "ignored")


@pytest.mark.parametrize("commit", ["--output=/etc/passwd", ["x"], 1, "x"])
def test_a_malformed_commit_of_a_change_is_no_hint(host: Host, guid: str, commit: Any) -> None:
    payload = push_of_bitbucket(change("main", old=commit, new=commit), mainbranch="main")
    assert host.deliver("Bitbucket", payload, guid=guid).status_int == 202
    assert host.journal.deliveries(guid)[0][5:7] == ("", "")


def test_an_annotated_tag_is_a_tag() -> None:
    event = parsed("Bitbucket", "repo:push", push_of_bitbucket(change("v1", kind="annotated_tag")))
    assert event.changes[0].ref == "refs/tags/v1"


@pytest.mark.parametrize(("event", "more"), [("Tag Push Hook", {}), ("System Hook", {"event_name": "tag_push"})])
def test_gitlab_announces_a_tag_with_an_event_of_its_own(event: str, more: dict[str, str]) -> None:
    project = {"path_with_namespace": "acme/site", "default_branch": "main"}
    payload = {"object_kind": "tag_push", "ref": "refs/tags/v1", "after": "1" * 40, "project": project, **more}
    assert parsed("GitLab", event, payload).changes[0].ref == "refs/tags/v1"


@pytest.mark.parametrize("event", ["repo:forked", "repo:comment:added", "pr:opened", "mirror:repo_synchronized"])
def test_other_events_of_data_center_are_ignored(host: Host, event: str) -> None:
    answer = host.deliver("Bitbucket Data Center", {"test": True, "repository": {"slug": 1}}, event)
    assert (answer.status_int, answer.json["reason"]) == (200, f"the event `{event}` starts no run")


def test_a_test_of_a_hook_of_data_center_is_a_ping(host: Host) -> None:
    assert host.deliver("Bitbucket Data Center", {"test": True}, "diagnostics:ping").json["status"] == "pong"


UNSUPPORTED_FORGES = {
    "Azure DevOps": {
        "User-Agent": "VSServices/18.170",
        "X-VSS-SubscriptionId": "d7f5a3c0",
        "Authorization": "Basic eDp5",
    },
    "Gitee": {"User-Agent": "git-oschina-hook", "X-Gitee-Event": "Push Hook", "X-Gitee-Token": "x"},
    "Harness": {"X-Harness-Trigger": "branch_updated", "X-Harness-Signature": "0" * 64},
}


@pytest.mark.parametrize("name", UNSUPPORTED_FORGES)
def test_an_unsupported_forge_is_rejected_by_name(host: Host, name: str) -> None:
    answer = host.post(b"{}", UNSUPPORTED_FORGES[name])
    assert answer.status_int == 401
    assert name in answer.json["reason"]
    assert "X-Hub-Signature-256" not in answer.json["reason"]


def parsed(name: str, event: str, payload: Any) -> Any:
    (forge,) = (forge for forge in FORGES if forge.name == name)
    sent = {"CONTENT_TYPE": JSON, "HTTP_" + forge.event.upper().replace("-", "_"): event}
    return parse_event(forge, sent if event else {"CONTENT_TYPE": JSON}, json.dumps(payload).encode())


def test_missing_fields_of_a_change_are_empty() -> None:
    event = parsed("Bitbucket", "repo:push", push_of_bitbucket(change("main", new=None), change("new", old=None)))
    assert event.changes == [RefChange("refs/heads/main", OLD, "", True), RefChange("refs/heads/new", "", NEW, False)]


def test_the_pusher_has_the_best_available_name() -> None:
    gitlab, bitbucket = push_of_gitlab(), push_of_bitbucket()
    del gitlab["user_username"], bitbucket["actor"]["nickname"]
    pushes = parsed("GitLab", "Push Hook", gitlab), parsed("Bitbucket", "repo:push", bitbucket)
    assert [event.pusher for event in pushes] == ["Ada Lovelace"] * 2


def test_without_an_event_nothing_is_read() -> None:
    with pytest.raises(HTTPError, match="there is no X-Event-Key header"):
        parsed("Bitbucket", "", push_of_bitbucket())


# -- whose request is it? -------------------------------------------------------------------------------------------


def test_a_payload_without_a_forge_header_is_read_as_github() -> None:
    assert claimed_forge({}).name == "GitHub"


@pytest.mark.parametrize("speaker", PUSHES)
def test_each_forge_is_recognized_by_its_headers(speaker: str) -> None:
    sent = SPEAKERS[speaker]("push", b"", "")
    assert (
        claimed_forge({"HTTP_" + name.upper().replace("-", "_"): value for name, value in sent.items()}).name
        == (speaker.partition(",")[0])
    )


TWO_CLAIMS = [
    (one, other)
    for one in SPEAKERS
    for other in SPEAKERS
    if one < other and not {one, other} <= {"GitHub", "Gitea", "Forgejo", "Gogs"} and one[:6] != other[:6]
]


@pytest.mark.parametrize(("one", "other"), TWO_CLAIMS)
def test_a_request_with_two_forge_headers_is_rejected(host: Host, guid: str, one: str, other: str) -> None:
    body = json.dumps({**PUSHES[one][1], **PUSHES[other][1]}).encode()
    sent = {**SPEAKERS[one](PUSHES[one][0], body, guid), **SPEAKERS[other](PUSHES[other][0], body, guid)}
    answer = host.post(body, sent)
    assert answer.status_int == 401
    assert answer.json["reason"].startswith("the request claims to come from ")
    assert host.journal.deliveries(guid) == []


def test_two_forge_headers_are_both_named() -> None:
    with pytest.raises(HTTPError) as caught:
        claimed_forge({"HTTP_X_GITLAB_EVENT": "Push Hook", "HTTP_X_HOOK_UUID": "x", "HTTP_X_EVENT_KEY": "repo:push"})
    assert caught.value.reason == "the request claims to come from GitLab and from Bitbucket"


def test_a_claim_counts_even_if_it_says_nothing() -> None:
    with pytest.raises(HTTPError):
        claimed_forge({"HTTP_X_GITHUB_EVENT": "push", "HTTP_X_EVENT_KEY": ""})


def test_the_log_names_the_forge(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    host.deliver("GitLab", push_of_gitlab())
    (line,) = capfd.readouterr().err.splitlines()
    assert f'event="Push Hook" commit={"2" * 40} http=202 secret="line 2" forge=GitLab' in line
    assert SECRET not in line
