"""Heads as bytes, and what `parse_head` makes of those that are well formed; tests/raw_requests.py has the others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gitops_hook.httpd.request import MAX_LINES, HTTPError, Request, parse_head


def head(*lines: bytes, first: bytes = b"POST /hook HTTP/1.1", host: bytes = b"Host: here") -> bytes:
    """A head as it arrives, without the empty line; `host` b"" leaves that line out."""
    return b"\r\n".join([first, *filter(None, [host]), *lines])


def refusal(raw: bytes) -> tuple[int, str]:
    with pytest.raises(HTTPError) as caught:
        parse_head(raw)
    return caught.value.status, caught.value.reason


def test_as_many_lines_as_allowed_pass_and_one_more_does_not() -> None:
    lines = [b"X-%d: x" % number for number in range(MAX_LINES - 1)]
    assert parse_head(head(*lines)).environ[f"HTTP_X_{MAX_LINES - 2}"] == "x"
    assert refusal(head(*lines, b"X-Last: x"))[0] == 431


ENVIRONS: dict[str, tuple[bytes, dict[str, str]]] = {
    "a path and a query": (
        head(first=b"GET /hook?a=%20&b=/ HTTP/1.1"),
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/hook", "QUERY_STRING": "a=%20&b=/", "SERVER_PROTOCOL": "HTTP/1.1"},
    ),
    "the path is decoded, as latin-1": (head(first=b"GET /%61%C3%A9%2f%00 HTTP/1.1"), {"PATH_INFO": "/a\xc3\xa9/\0"}),
    "the path is decoded once": (head(first=b"GET /%2561 HTTP/1.1"), {"PATH_INFO": "/%61"}),
    "what is no escape stays": (head(first=b"GET /%zz% HTTP/1.1"), {"PATH_INFO": "/%zz%"}),
    "an escaped question mark asks nothing": (head(first=b"GET /a%3Fb HTTP/1.1"), {"PATH_INFO": "/a?b"}),
    "slashes and dots stay as they are": (head(first=b"GET //a/../b HTTP/1.1"), {"PATH_INFO": "//a/../b"}),
    "a method's case matters": (head(first=b"post / HTTP/1.1"), {"REQUEST_METHOD": "post"}),
    "the absolute form": (head(first=b"GET http://elsewhere/hook?a=b HTTP/1.1"), {"PATH_INFO": "/hook"}),
    "the absolute form, its host is not believed": (
        head(first=b"GET HTTPS://elsewhere/hook HTTP/1.1"),
        {"HTTP_HOST": "here"},
    ),
    "the absolute form without a path": (
        head(first=b"GET http://elsewhere?a=b HTTP/1.1"),
        {"PATH_INFO": "/", "QUERY_STRING": "a=b"},
    ),
    "the absolute form names the same path": (head(first=b"GET http://here//hook HTTP/1.1"), {"PATH_INFO": "//hook"}),
    "OPTIONS *": (head(first=b"OPTIONS * HTTP/1.1"), {"PATH_INFO": "*"}),
    "blanks around a value are not of it": (head(b"X-A: \t one two\t "), {"HTTP_X_A": "one two"}),
    "an empty value": (head(b"X-A:", b"X-B: \t "), {"HTTP_X_A": "", "HTTP_X_B": ""}),
    "a value beyond ASCII is latin-1": (head(b"X-A: \xc3\xa9"), {"HTTP_X_A": "\xc3\xa9"}),
    "a colon in a value": (head(b"X-A: a:b: c"), {"HTTP_X_A": "a:b: c"}),
    "a header that stands twice is joined": (head(b"X-A: one", b"x-a: two"), {"HTTP_X_A": "one,two"}),
    "two signatures are no signature": (
        head(b"X-Hub-Signature-256: sha256=a", b"X-Hub-Signature-256: sha256=b"),
        {"HTTP_X_HUB_SIGNATURE_256": "sha256=a,sha256=b"},
    ),
    "type and length go without HTTP_": (
        head(b"content-type: text/plain", b"content-length: 007"),
        {"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "007"},
    ),
    "no header can pass for the server's word": (
        head(b"Request-Method: GET", b"Path-Info: /", b"Remote-Addr: ::1", b"Http-Host: elsewhere"),
        {"REQUEST_METHOD": "POST", "PATH_INFO": "/hook", "HTTP_REMOTE_ADDR": "::1", "HTTP_HOST": "here"},
    ),
}


@pytest.mark.parametrize(("raw", "facts"), ENVIRONS.values(), ids=ENVIRONS)
def test_a_head_becomes_an_environ(raw: bytes, facts: dict[str, str]) -> None:
    environ = parse_head(raw).environ
    assert {name: environ[name] for name in facts} == facts


OLD = b"GET / HTTP/1.0"
REQUESTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "no length is no body": (head(), {"length": 0, "keep_alive": True, "expects_continue": False}),
    "a length": (head(b"Content-Length: 0026214400"), {"length": 26214400}),
    "the largest length": (head(b"Content-Length: " + b"9" * 18), {"length": 10**18 - 1}),
    "chunked has no length": (head(b"Transfer-Encoding: chunked"), {"length": None}),
    "any encoding has no length": (head(b"Transfer-Encoding: gzip"), {"length": None}),
    "an empty encoding is one": (head(b"Transfer-Encoding:"), {"length": None}),
    "close": (head(b"Connection: close"), {"keep_alive": False}),
    "close, in any case and place": (head(b"Connection: TE ,\tCLOSE"), {"keep_alive": False}),
    "close, in a line of its own": (head(b"Connection: TE", b"Connection: close"), {"keep_alive": False}),
    "a word that only holds close": (head(b"Connection: enclosed, close-not"), {"keep_alive": True}),
    "HTTP/1.0 closes": (head(first=OLD), {"keep_alive": False}),
    "HTTP/1.0 closes, regardless of Connection": (head(b"Connection: keep-alive", first=OLD), {"keep_alive": False}),
    "HTTP/1.0 needs no host": (head(first=OLD, host=b""), {"keep_alive": False}),
    "HTTP/1.2 is as good as 1.1": (head(first=b"GET / HTTP/1.2"), {"keep_alive": True}),
    "expects": (head(b"Expect: 100-Continue"), {"expects_continue": True}),
    "expects something else": (head(b"Expect: 200-ok"), {"expects_continue": False}),
    "HTTP/1.0 cannot expect": (head(b"Expect: 100-continue", first=OLD), {"expects_continue": False}),
}


@pytest.mark.parametrize(("raw", "facts"), REQUESTS.values(), ids=REQUESTS)
def test_a_head_describes_the_body(raw: bytes, facts: dict[str, Any]) -> None:
    request = parse_head(raw)
    assert isinstance(request, Request)
    assert {name: getattr(request, name) for name in facts} == facts


SLOW = {
    "blanks before a NUL": head(b"X-A:" + b" " * 32_000 + b"\0"),
    "blanks after a value": head(b"X-A: x" + b" " * 32_000 + b"\0"),
    "blanks between values": head(b"X-A: " + b"x " * 16_000 + b"\0"),
    "a long name": head(b"x" * 32_000),
    "a long target": head(first=b"GET http://" + b"a" * 32_000 + b" HTTP/1.1\n"),
    "many short lines": head(*[b"a:"] * 10_000),
}


@pytest.mark.parametrize("raw", SLOW.values(), ids=SLOW)
def test_no_head_of_the_allowed_size_takes_long(raw: bytes) -> None:
    began = time.process_time()
    refusal(raw)
    assert time.process_time() - began < 0.1
