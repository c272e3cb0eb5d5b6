"""Properties of all inputs: webhooks, heads, names, settings; and the findings of the fuzzer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from harness import SOURCE, WEBHOOK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from request_path import FORM, KEY, NOW, RequestPath, check_log_lines, secret, sign
from test_forges import PUSHES

from gitops_hook import config
from gitops_hook import log as logs
from gitops_hook.errors import ConfigError, HTTPError
from gitops_hook.httpd import forwarded as proxies
from gitops_hook.httpd import request as framing
from gitops_hook.names import is_valid, may_clone, name_in_url
from gitops_hook.receiver.events import Push, parse_event
from gitops_hook.receiver.forges import FORGES, GITHUB, Forge, claimed_forge
from gitops_hook.receiver.signatures import form_field, header_key
from gitops_hook.secrets import Secrets, read_secrets
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.text import escape, printable

# -- what things are made of ----------------------------------------------------------------------------------------

ROWS = st.sampled_from(FORGES)
#: The number of examples of a property in this profile of conftest.py.
EXAMPLES = settings.default.max_examples
#: Text of anything that JSON can hold, lone surrogates and NUL too.
TEXT = st.text(max_size=20)
PART = st.from_regex(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(
    lambda part: part.lower() not in {".", "..", ".git"}
)
NAMES = st.builds("{}/{}".format, PART, PART)
COMMITS = st.from_regex(r"[0-9a-f]{40}|[0-9a-f]{64}", fullmatch=True)
BRANCHES = st.from_regex(r"[A-Za-z0-9_./é-]{1,60}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=8,
)


@st.composite
def twisted(draw: st.DrawFn, value: Any) -> Any:
    """`value`, of which any part may be anything else, or gone."""
    if draw(st.integers(0, 19)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        return {name: draw(twisted(part)) for name, part in value.items() if draw(st.integers(0, 29))}
    if isinstance(value, list):
        return [draw(twisted(part)) for part in value]
    return value


def environ(forge: Forge, event: str, media_type: str = "application/json") -> dict[str, str]:
    return {**{header_key(name): event for name in (forge.mark, forge.event) if name}, "CONTENT_TYPE": media_type}


def is_clean(text: str) -> bool:
    return printable(text, len(text)) == text and text.encode() is not None


# -- the webhook ----------------------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES * 3 // 2)
@given(data=st.data(), forge=ROWS)
def test_parsed_events_contain_no_control_characters(data: st.DataObject, forge: Forge) -> None:
    push = data.draw(st.sampled_from(PUSHES[forge.name][1:]))
    event = data.draw(st.sampled_from([*forge.pushes, *forge.pushes, forge.ping or "x"]) | TEXT)
    body = json.dumps(data.draw(twisted(push))).encode()
    try:
        read = parse_event(forge, environ(forge, event), body)
    except HTTPError as refused:
        assert refused.status == 400
        assert is_clean(refused.reason)
        return
    assert read.repository is None or is_valid(read.repository)
    changes = read.changes if isinstance(read, Push) else ()
    assert all(is_clean(text) for part in (read, *changes) for text in part if isinstance(text, str))
    assert all(not change.ref or change.ref.startswith("refs/") for change in changes)


@given(forge=ROWS, body=st.binary(), event=TEXT, media_type=st.sampled_from(["application/json", FORM]) | TEXT)
def test_any_bytes_give_an_event_or_an_error(forge: Forge, body: bytes, event: str, media_type: str) -> None:
    try:
        parse_event(forge, environ(forge, event, media_type), body)
    except HTTPError as refused:
        assert refused.status in (400, 415)


@given(name=NAMES, branch=BRANCHES, before=COMMITS, after=COMMITS, default=BRANCHES)
def test_a_push_event_is_parsed(name: str, branch: str, before: str, after: str, default: str) -> None:
    """By every row alike."""
    owner, _, slug = name.partition("/")
    owner_and_name = {
        "full_name": name,
        "name": slug,
        "default_branch": default,
        "slug": slug,
        "project": {"key": owner},
    }
    one = {"ref": f"refs/heads/{branch}", "before": before, "after": after, "pusher": {"name": "ada"}}
    states = [{"type": "branch", "name": branch, "target": {"hash": commit}} for commit in (before, after)]
    payload = {
        **one,
        "repository": {**owner_and_name, "mainbranch": {"name": default}},
        "project": {"path_with_namespace": name, "default_branch": default},
        "user_username": "ada",
        "actor": {"nickname": "ada", "name": "ada"},
        "changes": [{"ref": {"id": f"refs/heads/{branch}"}, "fromHash": before, "toHash": after, "type": "UPDATE"}],
        "push": {"changes": [dict(zip(("old", "new"), states))]},
    }
    body = json.dumps(payload).encode()
    read = {forge.name: parse_event(forge, environ(forge, next(iter(forge.pushes))), body) for forge in FORGES}
    first = read["GitHub"]
    assert isinstance(first, Push)
    assert (first.repository, first.default_branch, first.pusher) == (name, default, "ada")
    assert first.changes[0][:3] == (f"refs/heads/{branch}", before, after)
    read.pop("Bitbucket")  # a deletion is null there, not zeros
    assert all(other == first for other in read.values())


@given(forge=ROWS, body=st.binary(max_size=200), flipped=st.integers(0, 10_000), other=st.binary(min_size=1))
def test_only_signed_bytes_are_accepted(forge: Forge, body: bytes, flipped: int, other: bytes) -> None:
    request = framing.parse_head(sign(forge, "x", body).partition(b"\r\n\r\n")[0])
    secrets = Secrets({"line 1": other + b"x", "line 2": secret()})
    assert secrets.match(forge.signature.proof(request.environ, body, NOW)) == "line 2"
    assert Secrets({"line 1": other}).match(forge.signature.proof(request.environ, body, NOW)) is None
    at = flipped % (len(body) + 1)
    changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] if at < len(body) else body + b" "
    assert secrets.match(forge.signature.proof(request.environ, changed, NOW)) is None


@given(forge=ROWS, value=TEXT, time=st.integers() | TEXT, body=st.binary(max_size=20))
def test_no_header_is_accepted_or_raises_another_exception(forge: Forge, value: str, time: Any, body: bytes) -> None:
    names = ("X_HUB_SIGNATURE_256", "X_HUB_SIGNATURE", "X_GITLAB_TOKEN", "WEBHOOK_ID", "WEBHOOK_SIGNATURE")
    headers = {f"HTTP_{name}": value for name in names}
    headers.update({"HTTP_X_GITEA_SIGNATURE": value, "HTTP_WEBHOOK_TIMESTAMP": str(time), "CONTENT_TYPE": FORM})
    try:
        assert Secrets({"line 1": KEY}).match(forge.signature.proof(headers, body, NOW)) is None
    except HTTPError as refused:
        assert refused.status == 401


@given(st.binary())
@example(b"=3D%3D=\r\n")
@example(b"a \t\r\n")
def test_a_form_field_is_decoded_exactly(value: bytes) -> None:
    assert form_field(b"payload=" + quote_plus(value).encode()) == value


@given(st.sets(st.integers(0, len(FORGES) - 1)))
def test_a_forge_header_selects_exactly_one_forge(rows: set[int]) -> None:
    forges = [FORGES[row] for row in sorted(rows)]
    headers = {key: "x" for forge in forges for key in environ(forge, "x")}
    first = forges[0] if forges else GITHUB
    strangers = [forge.name for forge in forges[1:] if forge.name not in first.also]
    try:
        assert claimed_forge(headers) is first
        assert not strangers
    except HTTPError as refused:
        assert refused.status == 401
        assert strangers


# -- heads, paths, addresses ----------------------------------------------------------------------------------------

TOKEN = st.from_regex(r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,20}", fullmatch=True)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=30)


@settings(max_examples=EXAMPLES * 3)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"\r\n", b"Host: a", b"GET / HTTP/1.1", b"X: y", b":"])))
def test_any_head_gives_a_request_or_an_error(pieces: list[bytes]) -> None:
    try:
        request = framing.parse_head(b"".join(pieces))
    except framing.HTTPError as refused:
        assert 400 <= refused.status < 600
        return
    assert request.length is None or 0 <= request.length < 10**18
    for name, value in request.environ.items():
        assert re.fullmatch("[!#$%&'*+.^`|~0-9A-Z_]+", name)
        assert name == "PATH_INFO" or not re.search("[\0-\x08\x0a-\x1f\x7f]", value)


@given(fields=st.lists(st.tuples(TOKEN, VALUE), max_size=8), path=st.from_regex(r"/[!-~]{0,30}", fullmatch=True))
def test_a_valid_head_is_parsed(fields: list[tuple[str, str]], path: str) -> None:
    own = {"host", "content-length", "content-type", "transfer-encoding"}
    fields = [(name, value) for name, value in fields if name.lower() not in own]
    lines = "".join(f"\r\n{name}:{value}" for name, value in [("Host", "here"), *fields])
    path = path.replace("#", "")
    got = framing.parse_head(f"POST {path} HTTP/1.1{lines}".encode("latin-1")).environ
    for name, _ in fields:
        same = [value.strip(" \t") for other, value in fields if other.upper() == name.upper()]
        assert got["HTTP_" + name.upper().replace("-", "_")] == ",".join(same)
    assert got["PATH_INFO"].encode("latin-1").isascii() or "%" in path
    assert got["QUERY_STRING"] == path.partition("?")[2]


@pytest.fixture(scope="module")
def request_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestPath]:
    check_log_lines()
    made = RequestPath(tmp_path_factory.mktemp("host"))
    yield made
    made.close()
    logs.setup("text", under_systemd=False)


REQUEST = st.sampled_from(
    [
        *(sign(forge, next(iter(forge.pushes)), json.dumps(PUSHES[forge.name][1]).encode()) for forge in FORGES[:2]),
        b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n",
        f"POST {WEBHOOK} HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc".encode(),
        f"POST {WEBHOOK} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\nHost: here\nX: y\r\n\r\n",
    ]
) | st.binary(max_size=40)


@settings(max_examples=EXAMPLES * 3 // 5)
@example(requests=[b"GET / HTTP/1.1\r\nHost: here\nX: y\r\n\r\n"], cuts=[30])
@example(requests=[b"\r\n"], cuts=[1])
@given(requests=st.lists(REQUEST, max_size=4), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_the_split_into_packets_changes_no_response(
    request_path: RequestPath, requests: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(requests)
    ends = [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    packets = [stream[begin:end] for begin, end in zip([0, *ends], ends)]
    assert request_path.check(packets, proven=True) == request_path.check([stream], proven=True)


def test_findings_of_the_fuzzer_stay_fixed(request_path: RequestPath) -> None:
    for case in sorted((SOURCE / "tests/cases").glob("*-*")):
        request_path.judge_case(case.read_bytes())


@given(how=st.integers(0, 255), rest=st.binary(max_size=100))
def test_the_seeds_of_the_fuzzer_are_valid(request_path: RequestPath, how: int, rest: bytes) -> None:
    request_path.judge_case(bytes([how]) + rest)


@given(
    peer=st.ip_addresses().map(str) | st.just(""), forwarded=st.lists(st.ip_addresses().map(str) | TEXT).map(",".join)
)
def test_a_client_has_an_address_for_every_forwarded_header(peer: str, forwarded: str) -> None:
    client = proxies.client_address(peer, forwarded)
    assert client == peer or str(ip_address(client)) == client
    if peer and not ip_address(peer).is_loopback and not getattr(ip_address(peer), "ipv4_mapped", None):
        assert client == peer, "believed whom nobody trusts"


# -- names ----------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("./\\-_ab:@~\0\n é"), max_size=12) | TEXT)
def test_a_valid_name_stays_below_the_root(name: str) -> None:
    if is_valid(name):
        root = Path("/srv/gitops")
        path = Path(os.path.normpath(root / name))
        assert root in path.parents
        assert path == root / name
        assert ".git" not in path.parts
        assert not any(part.startswith("-") for part in path.parts)
    else:
        assert Checkouts(Path("/")).find(name) is None
    assert may_clone(name, ["*/*"]) in (True, False)


@given(name=NAMES)
def test_a_name_is_found_in_every_form_of_a_url(name: str) -> None:
    if name.endswith(".git"):
        return  # git takes that for the suffix
    for url in (
        "https://h/{}.git",
        "https://u:p@h:8/{}",
        "ssh://git@h/x/{}.git/",
        "git@h:{}.git",
        "/srv/{}",
        "h:a/b/{}",
    ):
        assert name_in_url(url.format(name)) == name


@given(st.text(st.sampled_from("./:@a-g\n ") | st.characters(), max_size=30))
def test_no_url_gives_an_invalid_name(url: str) -> None:
    name = name_in_url(url)
    assert name is None or is_valid(name)


# -- settings -------------------------------------------------------------------------------------------------------

#: What an environment can hold: any bytes but NUL, as Python has them.
ENVIRONMENT = st.binary(max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))


@settings(max_examples=EXAMPLES * 2)
@given(
    values=st.dictionaries(st.sampled_from([option.env for option in config.OPTIONS]), ENVIRONMENT, max_size=3),
    unknown=st.dictionaries(ENVIRONMENT.map(lambda name: "GITOPS_" + name), ENVIRONMENT, max_size=1),
)
def test_any_environment_gives_settings_or_one_line_with_the_reason(
    values: dict[str, str], unknown: dict[str, str]
) -> None:
    hidden = "hunter2-the-secret"
    try:
        loaded = config.load(
            {"GITOPS_ROOT": "/", "GITHUB_WEBHOOK_SECRET": hidden, **unknown, **values},
            {},
        )
    except ConfigError as error:
        assert error.status == 78
        assert hidden not in str(error)
        assert "\n" not in escape(str(error))
    else:
        assert loaded.max_syncs >= 1 and loaded.sync_timeout >= 1 and loaded.state.is_absolute()
        assert "{repository}" in loaded.clone_url


@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"\r\n", b" ", b"GITOPS_ROOT=", b"#", b'"']), max_size=10)
)
def test_every_file_of_settings_or_secrets_is_parsed_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(b"".join(pieces))
    for name, value in config.read_environment(path).items():
        assert name == name.strip() and "\n" not in name + value
    try:
        secrets = read_secrets(path)
    except ValueError as error:
        assert "is not UTF-8" in str(error)
        with pytest.raises(UnicodeDecodeError):
            path.read_bytes().decode()
        return
    for secret_ in secrets.values():
        assert secret_ and secret_ == secret_.strip() and b"\n" not in secret_
