"""The messages of etcd's JSON gateway: requests from Python values, Python values from answers. No I/O.

Rules:

1. Keys are text, values are bytes; on the wire both are base64. Integers of 64 bits are strings of digits.
2. The gateway omits each field that is empty, 0, false or the first value of an enumeration. A missing field is that
   value, never an error.
3. The gateway ignores fields that it does not know, so a misspelled request looks like a shorter one. The tests
   therefore run against a real etcd, and against lines that were recorded from etcd 3.4.23 and 3.5.16.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

#: The codes of gRPC that matter here. https://grpc.io/docs/guides/status-codes/
INVALID_ARGUMENT = 3
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
UNAUTHENTICATED = 16
#: With these etcd says that it did not apply the request. Every other code leaves that open.
_NOT_APPLIED = {
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    FAILED_PRECONDITION,
    OUT_OF_RANGE,
    UNIMPLEMENTED,
    UNAUTHENTICATED,
}
#: HTTP statuses of answers that are no JSON. Below 500 a proxy or the gateway refused the request.
_SERVER_FAULT = 500
#: Errors that carry the code of an invalid argument although only the token is missing or old.
_TOKEN_FAULTS = ("user name is empty", "revision of auth store is old")
#: The error of a member that has no leader. With ``hasleader`` it is sent before the request is looked at.
_NO_LEADER = "no leader"


class EtcdError(Exception):
    """A request that did not succeed."""


class Unavailable(EtcdError):
    """No member can serve the request now. Nothing was written."""


class Unknown(Unavailable):
    """No answer arrived in time, or one that leaves the result open: the request may have been applied."""


class Rejected(EtcdError):
    """etcd refused the request, for the reason of the gRPC code `code`. Nothing was written."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_token_fault(self) -> bool:
        """Return True if a new token may make the request succeed."""
        return self.code == UNAUTHENTICATED or any(fault in str(self) for fault in _TOKEN_FAULTS)

    @property
    def is_without_users(self) -> bool:
        """Return True if the cluster has no access control, so that nobody can authenticate."""
        return self.code == FAILED_PRECONDITION and "not enabled" in str(self)


class Compacted(EtcdError):
    """The revision that was asked for is no longer stored."""


class KeyValue(NamedTuple):
    """One key with its value. `value` is empty and `version` is 0 if an event deleted the key."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @property
    def is_deleted(self) -> bool:
        """Return True if this is the event of a deletion."""
        return self.version == 0


class Answer(NamedTuple):
    """The answer to a transaction: the branch that ran, and one result per operation of that branch.

    A result is None for a put, the number of deleted keys for a delete, the pairs for a range, and an `Answer` for a
    nested transaction.
    """

    succeeded: bool
    revision: int
    results: Sequence[Any]


class Batch(NamedTuple):
    """One message of a watch: the events up to `revision`, in order. A progress message has no events."""

    revision: int
    events: Sequence[KeyValue]


Operation = Mapping[str, Any]
Comparison = Mapping[str, Any]
Json = Union[bytes, str]


# -- requests ---------------------------------------------------------------------------------------------------------


def put(key: str, value: bytes, lease: int = 0) -> Operation:
    """Return the operation that stores `value`; `lease` deletes the key when it ends."""
    return {"request_put": {"key": encode(key), "value": _base64(value), "lease": str(lease)}}


def delete(key: str) -> Operation:
    """Return the operation that deletes one key."""
    return {"request_delete_range": {"key": encode(key)}}


def delete_prefix(prefix: str) -> Operation:
    """Return the operation that deletes every key below `prefix`."""
    return {"request_delete_range": key_range(prefix)}


def get(key: str) -> Operation:
    """Return the operation that reads one key."""
    return {"request_range": {"key": encode(key)}}


def nested(compare: Sequence[Comparison], then: Sequence[Operation], otherwise: Sequence[Operation] = ()) -> Operation:
    """Return a transaction as an operation of another one."""
    return {"request_txn": transaction(compare, then, otherwise)}


def transaction(
    compare: Sequence[Comparison], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
) -> dict[str, Any]:
    """Return the body of a transaction."""
    return {"compare": list(compare), "success": list(then), "failure": list(otherwise)}


def absent(key: str) -> Comparison:
    """Return the comparison that holds while there is no such key."""
    return {"key": encode(key), "target": "CREATE", "create_revision": "0"}


def present(key: str) -> Comparison:
    """Return the comparison that holds while there is such a key."""
    return {"key": encode(key), "target": "CREATE", "result": "GREATER", "create_revision": "0"}


def unchanged(key: str, mod_revision: int) -> Comparison:
    """Return the comparison that holds while the key was last written at `mod_revision`; 0 is a key that is absent."""
    return {"key": encode(key), "target": "MOD", "mod_revision": str(mod_revision)}


def equal(key: str, value: bytes) -> Comparison:
    """Return the comparison that holds while the key has `value`."""
    return {"key": encode(key), "target": "VALUE", "value": _base64(value)}


def key_range(prefix: str) -> dict[str, str]:
    """Return the two fields that select every key below `prefix`."""
    start = prefix.encode()
    # The end is the prefix with its last byte increased; UTF-8 has no byte 0xff, so there is no carry.
    return {"key": _base64(start), "range_end": _base64(start[:-1] + bytes([start[-1] + 1]))}


def encode(key: str) -> str:
    """Return a key as it is sent."""
    return _base64(key.encode())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# -- answers ----------------------------------------------------------------------------------------------------------


def integer(message: Mapping[str, Any], field: str) -> int:
    """Return a number from a message; 0 if it was omitted."""
    return int(message.get(field, 0))


def revision_of(message: Mapping[str, Any]) -> int:
    """Return the revision that a message's header names; 0 if it names none."""
    return integer(message.get("header", {}), "revision")


def pairs(message: Mapping[str, Any]) -> list[KeyValue]:
    """Return the pairs in the answer to a range."""
    return [_pair(pair) for pair in message.get("kvs", ())]


def _pair(message: Mapping[str, Any]) -> KeyValue:
    return KeyValue(
        base64.b64decode(message["key"]).decode("utf-8", "replace"),
        base64.b64decode(message.get("value", "")),
        integer(message, "create_revision"),
        integer(message, "mod_revision"),
        integer(message, "version"),
        integer(message, "lease"),
    )


def answer(message: Mapping[str, Any]) -> Answer:
    """Return the answer to a transaction."""
    results = [_result(response) for response in message.get("responses", ())]
    return Answer(bool(message.get("succeeded", False)), revision_of(message), results)


def _result(response: Mapping[str, Any]) -> Any:
    ((kind, content),) = response.items()
    if kind == "response_txn":
        return answer(content)
    if kind == "response_range":
        return pairs(content)
    return integer(content, "deleted") if kind == "response_delete_range" else None


def watch_batch(line: Json) -> Batch | None:
    """Return the content of one line of a watch, or None for the message that the watch exists.

    Raises Compacted if the start of the watch is no longer stored, Rejected if etcd denied or canceled it (the stream
    stays open and silent after that, so the caller must end it), and Unavailable if the member lost its leader.
    """
    message = _parse(line)
    if "error" in message:
        raise error_of(_SERVER_FAULT, line)
    result = message.get("result", {})
    if result.get("canceled"):
        if integer(result, "compact_revision"):
            raise Compacted(f"the oldest stored revision is {result['compact_revision']}")
        reason = str(result.get("cancel_reason", "the watch was canceled"))
        raise Rejected(reason, PERMISSION_DENIED if "denied" in reason else 0)
    if result.get("created"):
        return None
    events = [_event(event) for event in result.get("events", ())]
    return Batch(max([revision_of(result), *(event.mod_revision for event in events)]), events)


def _event(message: Mapping[str, Any]) -> KeyValue:
    pair = _pair(message["kv"])
    # The pair of a deletion has only the key and the revision.
    return pair if message.get("type") != "DELETE" else pair._replace(version=0)


def error_of(status: int, body: Json) -> EtcdError:
    """Return the error that an answer describes; `status` is its HTTP status.

    3.4 sends ``{"error": TEXT, "message": TEXT, "code": N}``, 3.5 ``{"code": N, "message": TEXT}``, a watch wraps
    either in ``{"error": ...}`` (3.4 with ``grpc_code``), and some answers are plain text.
    """
    message = _parse(body)
    inner = message.get("error")
    if isinstance(inner, Mapping):
        message = inner
    code = integer(message, "code") or integer(message, "grpc_code")
    text = str(message.get("message") or (body.decode("utf-8", "replace") if isinstance(body, bytes) else body).strip())
    text = f"{text[:300]} (HTTP {status}, code {code})"
    if code == RESOURCE_EXHAUSTED or _NO_LEADER in text:
        return Unavailable(text)
    if code == OUT_OF_RANGE and "compacted" in text:
        return Compacted(text)
    if code in _NOT_APPLIED or (not code and status < _SERVER_FAULT):
        return Rejected(text, code)
    return Unknown(text)


def _parse(body: Json) -> Mapping[str, Any]:
    try:
        message = json.loads(body)
    except ValueError:
        return {}
    return message if isinstance(message, Mapping) else {}
