"""The gateway's messages, with lines that were recorded from etcd 3.4.23 and 3.5.16."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitops_hook.fleet.messages import (
    Batch,
    Compacted,
    KeyValue,
    Rejected,
    Unavailable,
    Unknown,
    answer,
    encode,
    error_of,
    key_range,
    nested,
    pairs,
    put,
    watch_batch,
)

HEADER_34 = (
    '"header":{"cluster_id":"12132438752958633780","member_id":"1469477627276022583","revision":"4","raft_term":"2"}'
)
HEADER_35 = '"header":{"cluster_id":"14500303446014019550", "member_id":"12536780788877343392", "revision":"4", "raft_term":"2"}'


@pytest.mark.parametrize("header", [HEADER_34, HEADER_35], ids=["3.4", "3.5"])
def test_a_range(header: str) -> None:
    line = (
        "{"
        + header
        + ',"kvs":[{"key":"L2EvMQ==","create_revision":"2","mod_revision":"2","version":"1","value":"eA=="}'
        ',{"key":"L2EvMg==","create_revision":"3","mod_revision":"3","version":"1"}],"count":"2"}'
    )
    assert pairs(json.loads(line)) == [KeyValue("/a/1", b"x", 2, 2, 1, 0), KeyValue("/a/2", b"", 3, 3, 1, 0)]


@pytest.mark.parametrize("header", [HEADER_34, HEADER_35], ids=["3.4", "3.5"])
def test_a_transaction_that_took_the_other_branch_and_holds_another(header: str) -> None:
    line = (
        "{" + header + ',"responses":[{"response_range":{"header":{"revision":"3"},"kvs":[{"key":"L2EvMQ==",'
        '"create_revision":"2","mod_revision":"2","version":"1","value":"eA=="}],"count":"1"}},{"response_txn":{"header":{},'
        '"succeeded":true,"responses":[{"response_delete_range":{"header":{"revision":"4"},"deleted":"1"}}]}}]}'
    )
    found = answer(json.loads(line))
    assert (found.succeeded, found.revision) == (False, 4)
    assert found.results[0] == [KeyValue("/a/1", b"x", 2, 2, 1, 0)]
    assert (found.results[1].succeeded, found.results[1].results) == (True, [1])


def test_the_events_of_a_watch() -> None:
    line = (
        b'{"result":{"header":{"cluster_id":"12132438752958633780","member_id":"1469477627276022583","revision":"4",'
        b'"raft_term":"2"},"events":[{"kv":{"key":"L2EvMQ==","create_revision":"2","mod_revision":"2","version":"1",'
        b'"value":"eA=="}},{"type":"DELETE","kv":{"key":"L2EvMg==","mod_revision":"4"}}]}}\n'
    )
    put_event, deletion = KeyValue("/a/1", b"x", 2, 2, 1, 0), KeyValue("/a/2", b"", 0, 4, 0, 0)
    assert watch_batch(line) == Batch(4, [put_event, deletion])
    assert not put_event.is_deleted
    assert deletion.is_deleted


def test_the_first_message_of_a_watch_and_one_of_progress() -> None:
    assert watch_batch(b'{"result":{' + HEADER_35.encode() + b',"created":true}}\n') is None
    assert watch_batch(b'{"result":{' + HEADER_35.encode() + b"}}\n") == Batch(4, [])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"result":{"header":{"raft_term":"2"},"canceled":true,"compact_revision":"5"}}\n', Compacted),
        (
            b'{"result":{"header":{"revision":"6"},"watch_id":"-1","created":true,"canceled":true,'
            b'"cancel_reason":"rpc error: code = PermissionDenied desc = etcdserver: permission denied"}}\n',
            Rejected,
        ),
        (
            b'{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader",'
            b'"http_status":"Service Unavailable"}}',
            Unavailable,
        ),
        (b'{"error":{"code":14,"message":"etcdserver: no leader"}}\n', Unavailable),
    ],
    ids=["compacted", "denied", "no leader 3.4", "no leader 3.5"],
)
def test_messages_that_end_a_watch(line: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        watch_batch(line)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            404,
            b'{"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found","code":5}',
            Rejected,
        ),
        (404, b'{"code":5, "message":"etcdserver: requested lease not found"}', Rejected),
        (404, b"Not Found\n", Rejected),
        (400, b'{"code":11, "message":"etcdserver: mvcc: required revision has been compacted"}', Compacted),
        (400, b'{"code":11, "message":"etcdserver: mvcc: required revision is a future revision"}', Rejected),
        (429, b'{"code":8, "message":"etcdserver: mvcc: database space exceeded"}', Unavailable),
        (
            503,
            b'{"error":"etcdserver: request timed out","message":"etcdserver: request timed out","code":14}',
            Unknown,
        ),
        (503, b'{"code":14, "message":"etcdserver: request timed out"}', Unknown),
        (503, b'{"code":14, "message":"etcdserver: no leader"}', Unavailable),
        (500, b"upstream connect error", Unknown),
        (502, b"<html>", Unknown),
    ],
)
def test_errors_of_both_versions(status: int, body: bytes, error: type[Exception]) -> None:
    assert type(error_of(status, body)) is error


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b'{"error":"etcdserver: invalid auth token","message":"etcdserver: invalid auth token","code":16}', True),
        (400, b'{"code":3, "message":"etcdserver: user name is empty"}', True),
        (403, b'{"code":7, "message":"etcdserver: permission denied"}', False),
        (400, b'{"code":3, "message":"etcdserver: authentication failed, invalid user ID or password"}', False),
    ],
)
def test_errors_that_a_new_token_corrects(status: int, body: bytes, expected: bool) -> None:
    error = error_of(status, body)
    assert isinstance(error, Rejected)
    assert error.is_token_fault is expected


@given(st.text(min_size=1), st.text())
def test_a_range_contains_exactly_the_keys_with_its_prefix(prefix: str, other: str) -> None:
    start, end = (__import__("base64").b64decode(part) for part in key_range(prefix).values())
    for key in (prefix, prefix + other, other):
        assert (start <= key.encode() < end) == key.startswith(prefix)


def test_a_nested_transaction_is_an_operation() -> None:
    assert nested([], [put("/a", b"1", 7)]) == {
        "request_txn": {
            "compare": [],
            "success": [{"request_put": {"key": encode("/a"), "value": "MQ==", "lease": "7"}}],
            "failure": [],
        }
    }
