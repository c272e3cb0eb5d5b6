"""Signatures and payloads: what is read from them, and that nothing else than `HTTPError` comes out of any bytes."""

from __future__ import annotations

import json
import random
import time
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from harness import NOBODY, push, sign

from gitops_hook.errors import HTTPError
from gitops_hook.names import is_valid
from gitops_hook.receiver.events import Event, Ignored, Ping, Push, parse_event
from gitops_hook.receiver.forges import GITHUB
from gitops_hook.receiver.payload import RefChange
from gitops_hook.secrets import Secrets, fingerprint
from gitops_hook.sync.settings import follows

SECRET = b"It's a Secret to Everybody"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def match(secrets: Secrets, body: bytes, signature: str) -> str | None:
    return secrets.match(GITHUB.signature.proof({"HTTP_X_HUB_SIGNATURE_256": signature}, body, 0))


def parse_as(event: str, media_type: str, body: bytes) -> Event:
    return parse_event(GITHUB, {"HTTP_X_GITHUB_EVENT": event, "CONTENT_TYPE": media_type}, body)


def read(payload: Any, event: str = "push") -> Event:
    return parse_as(event, JSON, json.dumps(payload).encode())


def read_change(payload: Any) -> RefChange:
    event = read(payload)
    assert isinstance(event, Push)
    (change,) = event.changes
    return change


# -- signatures -----------------------------------------------------------------------------------------------------


def test_githubs_own_example_is_accepted() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert match(Secrets({"environment": SECRET}), b"Hello, World!", signature) == "environment"


def test_every_secret_is_accepted_and_the_matching_one_is_returned() -> None:
    secrets = Secrets({"line 1": b"new", "line 2": b"old"})
    assert match(secrets, b"body", sign(b"body", "new")) == "line 1"
    assert match(secrets, b"body", sign(b"body", "old")) == "line 2"
    assert match(secrets, b"body", sign(b"body", "older")) is None


def test_a_fingerprint_is_stable() -> None:
    """The journal keeps it. openssl dgst -sha256 -hmac says the same."""
    assert fingerprint(SECRET) == Secrets({"line 1": SECRET}).fingerprint("line 1") == "8180bf2a9ce014e7"


@pytest.mark.parametrize("secrets", [{}, {"environment": b""}, {"line 1": b"new", "line 2": b""}])
def test_an_empty_secret_is_rejected(secrets: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Secrets(secrets)


# -- payloads -------------------------------------------------------------------------------------------------------


def test_a_push_is_read() -> None:
    assert read(push("acme/site", "2" * 40, before="1" * 40)) == Push(
        repository="acme/site",
        changes=[RefChange("refs/heads/main", before="1" * 40, after="2" * 40, deleted=False)],
        default_branch="main",
        pusher="ada",
    )


def test_a_push_in_a_form_is_the_same() -> None:
    payload = push("acme/site", pusher={"name": "A & B; 100% é+\u2028"})
    form = urlencode({"payload": json.dumps(payload, ensure_ascii=False)}).encode()
    assert parse_as("push", FORM + "; charset=utf-8", form) == read(payload)


@pytest.mark.parametrize(
    ("more", "deleted"),
    [
        pytest.param({"deleted": True}, True, id="GitHub says so"),
        pytest.param({"after": NOBODY, "deleted": None}, True, id="Gitea sends zeros"),
        pytest.param({"after": "0" * 64, "deleted": None}, True, id="zeros of SHA-256"),
        pytest.param({"before": NOBODY}, False, id="a creation is none"),
        pytest.param({"deleted": "false"}, False, id="a word is no truth"),
        pytest.param({"after": None}, False, id="nothing said"),
    ],
)
def test_a_deletion_is_recognized(more: dict[str, Any], deleted: bool) -> None:
    assert read_change(push("acme/site", **{"after": "1" * 40, **more})).deleted is deleted


def test_a_push_moves_its_own_branch_and_no_other() -> None:
    change = read_change(push("acme/site", ref="refs/heads/gh-readonly-queue/main/pr-1-0123"))
    assert follows({"branch": "gh-readonly-queue/main/pr-1-0123"}, "main", change.ref)
    for branch in ("main", "gh-readonly-queue/main", "pr-1-0123", "refs/heads/main"):
        assert not follows({"branch": branch}, "", change.ref)
        assert not follows({}, branch, change.ref)
    assert follows({}, "", change.ref)
    assert not follows({"tag": "v*"}, "", change.ref)
    assert follows({"tag": "v*"}, "main", "refs/tags/v1")


@pytest.mark.parametrize(
    ("payload", "event", "expected"),
    [
        ({"zen": "Keep it logically awesome."}, "ping", Ping(None)),
        ({"repository": {"full_name": "acme/site"}}, "ping", Ping("acme/site")),
        (
            {"repository": {"full_name": "acme/site"}, "hook_id": 7, "hook": {"config": {"url": "https://a/\n"}}},
            "ping",
            Ping("acme/site", 7, "acme/site", "https://a/\ufffd"),
        ),
        (
            {"organization": {"login": "acme"}, "hook_id": 2**53 - 1, "hook": {"config": {"url": "https://a/"}}},
            "ping",
            Ping(None, 2**53 - 1, "acme", "https://a/"),
        ),
        ({"organization": {"login": "../a"}, "hook_id": 7, "hook": {"config": {"url": "u"}}}, "ping", Ping(None)),
        ({"organization": {"login": "acme"}, "hook_id": 2**53, "hook": {"config": {"url": "u"}}}, "ping", Ping(None)),
        ({"organization": {"login": "acme"}, "hook_id": "7", "hook": {"config": {"url": "u"}}}, "ping", Ping(None)),
        ({"organization": {"login": "acme"}, "hook_id": 7, "hook": {"config": {"url": 7}}}, "ping", Ping(None)),
        ({"organization": "acme", "hook_id": 7, "hook": []}, "ping", Ping(None)),
        ({"repository": None}, "issues", Ignored(None, "event", "the event `issues` starts no run")),
        ({"repository": {"full_name": "../etc"}}, "ping", Ping(None)),
        (
            {"repository": {"name": "site"}},
            "a\nb" + "c" * 200,
            Ignored("site", "event", f"the event `a\ufffdb{'c' * 97}` starts no run"),
        ),
    ],
)
def test_other_events_are_named(payload: Any, event: str, expected: Event) -> None:
    assert read(payload, event) == expected


def raw(payload: Any) -> bytes:
    return json.dumps(payload).encode()


REFUSALS: dict[str, tuple[int, str, str, bytes]] = {
    "another media type": (415, "push", "text/plain", raw(push("acme/site"))),
    "no media type": (415, "push", "", raw(push("acme/site"))),
    "a media type that only begins so": (415, "push", "application/jsonp", raw(push("acme/site"))),
    "two media types": (415, "push", f"{JSON},{JSON}", raw(push("acme/site"))),
    "no event": (400, "", JSON, raw(push("acme/site"))),
    "nothing": (400, "push", JSON, b""),
    "half": (400, "push", JSON, raw(push("acme/site"))[:-1]),
    "something behind": (400, "push", JSON, raw(push("acme/site")) + b"}"),
    "a byte order mark": (400, "push", JSON, b"\xef\xbb\xbf" + raw(push("acme/site"))),
    "UTF-16": (400, "push", JSON, json.dumps(push("acme/site")).encode("utf-16")),
    "no UTF-8": (400, "push", JSON, b'{"a": "\xff"}'),
    "surrogates in UTF-8": (400, "push", JSON, b'{"a": "\xed\xa0\x80"}'),
    "a NUL in a string": (400, "push", JSON, b'{"a": "\0"}'),
    "deep lists": (400, "push", JSON, b"[" * 200_000),
    "deep objects": (400, "push", JSON, b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "a list": (400, "push", JSON, b"[]"),
    "a number": (400, "push", JSON, b"1" * 100_000),
    "null": (400, "push", JSON, b"null"),
    "an empty form": (400, "push", FORM, b""),
    "a form without its field": (400, "push", FORM, b"a=b"),
    "a form with an empty field": (400, "push", FORM, b"payload="),
    "a form with two": (400, "push", FORM, b"payload={}&payload={}"),
    "a form of many fields": (400, "push", FORM, b"a=b&" * 100_000),
    "a form that is JSON": (400, "push", FORM, raw(push("acme/site"))),
    "no repository": (400, "push", JSON, b"{}"),
    "a repository that is text": (400, "push", JSON, b'{"repository": "acme/site"}'),
    "a repository that is null": (400, "push", JSON, b'{"repository": null}'),
    "a repository without a name": (400, "push", JSON, b'{"repository": {}}'),
    "a name that is a number": (400, "push", JSON, raw({"repository": {"full_name": 1}})),
}


@pytest.mark.parametrize(("status", "event", "media_type", "body"), REFUSALS.values(), ids=REFUSALS)
def test_a_payload_of_no_known_forge_is_rejected(status: int, event: str, media_type: str, body: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        parse_as(event, media_type, body)
    assert caught.value.status == status


BAD_NAMES = [
    *(".", "..", "-", "-rf", ".git", "acme/.git", "acme/..", "../site", "acme/-site"),
    *("/site", "acme/", "acme//site", "a/b/c", "a b", "é", "a\\b", "a:b", "$(reboot)", "~"),
    *("a\0", "a\n", "acme/site\n", "\ud800", "x" * 101),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_no_checkout_can_have_is_ignored(name: str) -> None:
    event = read({**push("acme/site"), "repository": {"full_name": name}})
    assert isinstance(event, Ignored)
    assert (event.repository, event.kind) == (None, "name")
    assert is_clean(event.reason)


REASONS: dict[str, tuple[str, str, bytes]] = {
    "the media type is neither application/json nor application/x-www-form-urlencoded": ("push", "text/plain", b"{}"),
    "there is no X-GitHub-Event header": ("", JSON, b"{}"),
    "the body is not UTF-8": ("push", JSON, b"\xff"),
    "the form is not one field `payload`": ("push", FORM, b"a=b"),
    "the payload is not JSON": ("push", JSON, b"{"),
    "the payload is not a JSON object": ("push", JSON, b"[]"),
    "the payload names no repository": ("push", JSON, b"{}"),
}


@pytest.mark.parametrize(("reason", "request_"), REASONS.items(), ids=list(REASONS))
def test_a_rejection_has_a_reason(reason: str, request_: tuple[str, str, bytes]) -> None:
    with pytest.raises(HTTPError) as caught:
        parse_as(*request_)
    assert caught.value.reason == str(caught.value) == reason


def test_missing_fields_of_a_push_are_empty() -> None:
    event = read({"ref": "refs/heads/main", "repository": {"full_name": "acme/site"}})
    assert event == Push("acme/site", [RefChange("refs/heads/main", "", "", False)], "", "")


def test_missing_fields_of_a_ping_are_empty() -> None:
    assert read({"zen": "Design for failure."}, "ping") == Ping(None, 0, "", "")


def test_a_pusher_may_have_only_a_login() -> None:
    event = read(push("acme/site", pusher={"login": "ada"}))
    assert isinstance(event, Push) and event.pusher == "ada"


def test_a_default_branch_longer_than_a_ref_is_ignored() -> None:
    payload = push("acme/site")
    payload["repository"]["default_branch"] = "b" * 251
    event = read(payload)
    assert isinstance(event, Push) and event.default_branch == "b" * 250


# -- any bytes at all -----------------------------------------------------------------------------------------------

#: What a fuzzer puts where something else is expected.
ODDITIES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e999,
    "",
    "a",
    "\0",
    "\ud800",
    "é\u2028\x9b",
    [],
    {},
    [[]],
    {"name": []},
    NOBODY,
]


def twist(value: Any, chance: random.Random) -> Any:
    """`value` with members replaced, dropped and exchanged."""
    if chance.random() < 0.05:
        return chance.choice(ODDITIES)
    if isinstance(value, dict):
        return {name: twist(member, chance) for name, member in value.items() if chance.random() > 0.05}
    return value


def smash(body: bytes, chance: random.Random) -> bytes:
    """`body` with bytes changed, dropped, doubled."""
    smashed = bytearray(body)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(smashed) or 1)
        smashed[at : at + chance.randrange(3)] = chance.choice(
            [b"", b"\0", b"\\ud800", b'"', b"{", b"\xff", b"9" * 400]
        )
    return bytes(smashed)


def is_clean(text: str) -> bool:
    return not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or letter in "\u2028\u2029" for letter in text)


def test_every_payload_is_a_clean_event_or_a_value_error() -> None:
    chance = random.Random(0)
    counts = {"event": 0, "refused": 0}
    for _ in range(6000):
        body = smash(json.dumps(twist(push("acme/site"), chance)).encode(), chance)
        media_type = JSON
        if chance.random() < 0.2:
            media_type, body = FORM, b"payload=" + quote_plus(body).encode()
        try:
            event = parse_as(chance.choice(["push", "push", "push", "ping", "x\x1b"]), media_type, body)
        except HTTPError:
            counts["refused"] += 1
            continue
        counts["event"] += 1
        assert event.repository is None or is_valid(event.repository)
        for text in (*event, *(event.changes[0] if isinstance(event, Push) else ())):
            if isinstance(text, str):
                assert is_clean(text)
                text.encode()
    assert min(counts.values()) > 1000


def test_no_bytes_raise_another_exception() -> None:
    chance = random.Random(1)
    for _ in range(3000):
        body = bytes(
            chance.choices(b'{}[]",:0123456789.eE-\\u \0\xff\xc3\xa9truefalsnN&=%+;payload', k=chance.randrange(60))
        )
        with pytest.raises(HTTPError):
            parse_as("push", chance.choice([JSON, FORM]), body)


def test_no_signature_makes_it_raise() -> None:
    chance = random.Random(2)
    secrets = Secrets({"environment": SECRET})
    for _ in range(3000):
        signature = bytearray(sign(b"body", "another").encode())
        for _ in range(chance.randrange(3)):
            signature[chance.randrange(len(signature)) :] = bytes(chance.choices(range(256), k=chance.randrange(70)))
        assert match(secrets, b"body", signature.decode("latin-1")) is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"9" * 1_000_000, id="a million digits"),
        pytest.param(b"-0." + b"9" * 1_000_000 + b"e-999999999", id="a million digits behind the point"),
        pytest.param(b'"' + b"\\\\" * 500_000 + b'"', id="a million backslashes"),
        pytest.param(b" " * 1_000_000 + b"1", id="a million blanks"),
        pytest.param(b"[" + b"0," * 500_000 + b"0]", id="half a million numbers"),
        pytest.param(b"{" + b'"a":1,' * 150_000 + b'"a":1}', id="one key many times"),
    ],
)
def test_a_megabyte_is_processed_in_linear_time(value: bytes) -> None:
    body = json.dumps(push("acme/site", odd="here")).encode().replace(b'"here"', value)
    began = time.process_time()
    assert isinstance(parse_as("push", JSON, body), Push)
    assert time.process_time() - began < 1
