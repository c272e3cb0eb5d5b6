"""Large payloads: the child process returns what the parser returns, within its limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import push
from test_forges import FORM, JSON, PUSHES, push_of_bitbucket

from gitops_hook.errors import HTTPError
from gitops_hook.receiver.events import parse_event
from gitops_hook.receiver.forges import FORGES, GITHUB, Forge
from gitops_hook.receiver.large import parse_in_child
from gitops_hook.receiver.signatures import header_key


def headers(forge: Forge, event: str, media_type: str = JSON) -> dict[str, str]:
    return {"CONTENT_TYPE": media_type, header_key(forge.event): event}


PING = {"repository": {"full_name": "acme/site"}, "hook_id": 7, "hook": {"config": {"url": "https://a/\u2028"}}}


@pytest.mark.parametrize(
    ("forge", "event", "payload"),
    [
        *((forge, next(iter(forge.pushes)), PUSHES[forge.name][1]) for forge in FORGES),
        (FORGES[5], "repo:push", push_of_bitbucket(None)),
        (GITHUB, "ping", PING),
        (GITHUB, "iss\nues", PING),
    ],
)
def test_the_child_returns_the_event_of_the_parser(forge: Forge, event: str, payload: Any) -> None:
    body = json.dumps(payload).encode()
    sent = headers(forge, event)
    assert parse_in_child(forge, sent, body) == parse_event(forge, sent, body)


@pytest.mark.parametrize(
    ("media_type", "body", "status"),
    [
        (JSON, b"{", 400),
        (JSON, b"{}", 400),
        (JSON, b"[" * 100_000, 400),
        ("text/plain", b"{}", 415),
        (FORM, b"a=b", 400),
    ],
)
def test_the_child_returns_the_error_of_the_parser(media_type: str, body: bytes, status: int) -> None:
    with pytest.raises(HTTPError) as caught:
        parse_in_child(GITHUB, headers(GITHUB, "push", media_type), body)
    assert caught.value.status == status


def test_a_payload_that_needs_too_much_memory_is_503() -> None:
    body = (
        json.dumps(push("acme/site", odd="here"))
        .encode()
        .replace(b'"here"', b"[" + b'{"a":{}},' * ((25 << 20) // 9) + b"0]")
    )
    with pytest.raises(HTTPError) as caught:
        parse_in_child(GITHUB, headers(GITHUB, "push"), body)
    assert caught.value.status == 503
