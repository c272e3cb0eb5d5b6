"""Raw requests and their responses: the table that the direct and the proxied tests run and that docs/security.md shows.

The body of every request has a valid signature, so a reader that interprets the request differently would queue it. Each
request is followed on its connection by `PROBE`, for a path that no proxy forwards. If the daemon responds to the probe
through a proxy, a request was smuggled.

    python3 tests/raw_requests.py    prints the table for the document
"""

from __future__ import annotations

import json
from itertools import count
from typing import NamedTuple

from harness import WEBHOOK, headers, push

BODY = json.dumps(push("acme/site")).encode()
PROBE = b"GET /smuggled HTTP/1.1\r\nHost: hooks\r\nConnection: close\r\n\r\n"

#: The versions of the proxies in the table.
VERSIONS = {"nginx": "1.22.1", "caddy": "2.6.2"}

FIRST = f"POST {WEBHOOK} HTTP/1.1"
HOST = "Host: hooks"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
_numbers = count()


def post(
    *more: str, first: str = FIRST, host: str | None = HOST, length: str | None = LENGTH, body: bytes = BODY
) -> bytes:
    """A signed delivery; `more` are header lines, and with None a line is left out. Latin-1 is what stands in heads."""
    signed = [f"{name}: {value}" for name, value in headers(BODY, guid=f"row-{next(_numbers)}").items()]
    lines = [first, *(line for line in (host, length) if line is not None), *signed, *more, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunks(body: bytes = BODY) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


class Case(NamedTuple):
    """A request, what we answer (status and reason, or the statuses of several answers), and why."""

    sent: str
    raw: bytes
    answer: str
    why: str
    #: What a client sees through a proxy, and what we answered that, "none" where nothing reached us. It varies where
    #: we and the client's end reach the proxy at the same time.
    nginx: str = ""
    caddy: str = ""
    #: "" sends all at once; "waits" sends the body only when something was answered; "ends" half-closes after it.
    manner: str = ""


NOT_A_NUMBER = "400 the Content-Length is not a number, closed"
TWICE = "400 a header that must be unique is repeated, closed"
BOTH = "400 there are both a Content-Length and a Transfer-Encoding, closed"
BARE_LF = "400 a line does not end in CR LF, closed"
MALFORMED = "400 a header line is malformed, closed"
IMITATES = "400 a header with an underscore imitates another one, closed"
CHUNKS = "400 the chunked body is malformed"
NO_REQUEST_LINE = "400 the request line is malformed, closed"
NO_PATH = "400 the request's target is not a path, closed"
UNSIGNED = "401 the signature X-Hub-Signature-256 is missing or wrong"
NO_LENGTH = "411 there is no Content-Length"
TOO_LARGE = "413 the body is larger than 25 MiB, closed"

CASES = [
    # The end of the body. If two parsers disagree about it, an attacker can smuggle a request past one of them.
    Case("a delivery", post(), "202", "the measure of all that follows", "202 / 202", "202 / 202"),
    Case("no `Content-Length`", post(length=None, body=b""), NO_LENGTH, "a delivery has a body, and says how long it is", "411 / 411", "401 / 401"),
    Case("`Content-Length: 0`", post(length="Content-Length: 0", body=b""), UNSIGNED, "no body, and not its signature", "401 / 401", "401 / 401"),
    Case("`Content-Length: 00…`", post(length=f"Content-Length: {len(BODY):030}"), NOT_A_NUMBER, "more digits than any length has", "202 / 202", "202 / 202"),
    Case("`Content-Length: -1`", post(length="Content-Length: -1"), NOT_A_NUMBER, "a negative size reads for ever", "400 / none", "400 / none"),
    Case("`Content-Length: +3`", post(length="Content-Length: +3"), NOT_A_NUMBER, "a sign passes int(), and not everywhere else", "400 / none", "400 / none"),
    Case("`Content-Length: 1_0`", post(length="Content-Length: 1_0"), NOT_A_NUMBER, "so does an underscore", "400 / none", "400 / none"),
    Case("`Content-Length: ²`", post(length="Content-Length: \xb2"), NOT_A_NUMBER, "isdigit() takes it", "400 / none", "400 / none"),
    Case("`Content-Length: 0x10`", post(length="Content-Length: 0x10"), NOT_A_NUMBER, "0 to some, 16 to others", "400 / none", "400 / none"),
    Case("`Content-Length: 5.0`", post(length="Content-Length: 5.0"), NOT_A_NUMBER, "only digits are a length", "400 / none", "400 / none"),
    Case("`Content-Length: 1 0`", post(length="Content-Length: 1 0"), NOT_A_NUMBER, "1 to some, 10 to others", "400 / none", "400 / none"),
    Case("`Content-Length:` and nothing", post(length="Content-Length:"), NOT_A_NUMBER, "0 to some, missing to others", "400 / none", "401, 400 / 401"),
    Case("`Content-Length: 5, 5`", post(length="Content-Length: 5, 5"), NOT_A_NUMBER, "a list may be merged, or read up to the comma", "400 / none", "400 / none"),
    Case("19 digits of length", post(length="Content-Length: " + "9" * 19), NOT_A_NUMBER, "beyond 64 bits it may wrap", "400 / none", "400 / none"),
    Case("20,000 digits of length", post(length="Content-Length: " + "9" * 20_000), NOT_A_NUMBER, "int() would take long over it", "400 / none", "400 / none"),
    Case("18 digits of length", post(length="Content-Length: " + "9" * 18), TOO_LARGE, "refused before it is read", "413 / none", "varies", manner="ends"),
    Case("25 MiB and one byte announced", post(length=f"Content-Length: {(25 << 20) + 1}"), TOO_LARGE, "no forge sends more", "413 / none", "varies", manner="ends"),
    Case("two lengths that differ", post("Content-Length: 5"), TWICE, "the first wins here, the last there", "400 / none", "400 / none"),
    Case("two lengths that agree", post(LENGTH), TWICE, "one reader may drop one, and another may not", "400 / none", "202 / 202"),
    Case("two lengths, in two cases", post("content-length: 5"), TWICE, "a header's name has no case", "400 / none", "400 / none"),
    Case("chunked", post(CHUNKED, length=None, body=chunks()), "202", "some tunnels and proxies send chunks", "202 / 202", "202 / 202"),
    Case("chunked, in capitals", post("TRANSFER-ENCODING: CHUNKED", length=None, body=chunks()), "202", "the same", "202 / 202", "202 / 202"),
    Case("chunked, with a bare LF", post(CHUNKED, length=None, body=chunks().replace(b"\r\n", b"\n")), f"{CHUNKS}, closed", "it ends a line for some", "varies", "varies", manner="ends"),
    Case("chunked, with a size `0x…`", post(CHUNKED, length=None, body=b"0x" + chunks()), f"{CHUNKS}, closed", "only hexadecimal digits are a size", "varies", "varies", manner="ends"),
    Case("chunked, with more data than its size", post(CHUNKED, length=None, body=b"1\r\n" + BODY + b"\r\n0\r\n\r\n"), f"{CHUNKS}, closed", "the rest would be a request to some", "varies", "varies", manner="ends"),
    Case("length and chunked", post(CHUNKED, body=chunks()), BOTH, "the body ends in two places", "400 / none", "202 / 202"),
    Case("length and chunked, the probe within", post(CHUNKED, body=b"0\r\n\r\n" + PROBE), BOTH, "how requests are smuggled", "400 / none", "401 / 401"),
    Case("chunked and length", post(CHUNKED, "Content-Length: 3", length=None, body=chunks()), BOTH, "the same, the other way round", "400 / none", "202 / 202"),
    Case("`Transfer-Encoding: identity` and length", post("Transfer-Encoding: identity"), BOTH, "no encoding to some", "501 / none", "501 / none"),
    Case("`Transfer-Encoding: xchunked` and length", post("Transfer-Encoding: xchunked"), BOTH, "chunked to who looks for the end of it", "501 / none", "501 / none"),
    Case("`Transfer-Encoding: gzip`", post("Transfer-Encoding: gzip", length=None, body=b""), f"{NO_LENGTH}, closed", "any encoding has no length", "501 / none", "501 / none"),
    Case("`Transfer-Encoding:` and nothing", post("Transfer-Encoding:", length=None, body=b""), f"{NO_LENGTH}, closed", "the same", "501 / none", "501 / none"),
    Case("chunked twice", post(CHUNKED, CHUNKED, length=None, body=chunks()), f"{NO_LENGTH}, closed", "the same", "400 / none", "501 / none"),
    Case("chunked in HTTP/1.0", post(CHUNKED, first=FIRST[:-1] + "0", body=chunks()), BOTH, "HTTP/1.0 knows no chunks, so the length would count", "400 / none", "401 / 401"),
    Case("a body shorter than announced", post(body=BODY[:-1]), "400 the body ends early, closed", "half a delivery is none", "closed / none", "varies", manner="ends"),
    Case("a body longer than announced", post(body=BODY + b"GET /smuggled HTTP/1.1\r\nX: "), "202, 404, closed", "what follows is the next request", "202 / 202", "202 / 202"),
    # Which header is that?
    Case("`X_GitHub_Event: ping`", post("X_GitHub_Event: ping"), IMITATES, "in a WSGI environ an underscore is a hyphen", "202 / 202", "400 / 400"),
    Case("`Content_Length: 5`", post("Content_Length: 5"), IMITATES, "the same", "202 / 202", "400 / 400"),
    Case("`X_Request_Id: x`", post("X_Request_Id: x"), "202", "dropped, as nginx does: it imitates no header", "202 / 202", "202 / 202"),
    Case("a line without a colon", post("X-GitHub-Event push"), MALFORMED, "http.server would drop all that follow", "400 / none", "400 / none"),
    Case("a line that is a colon", post(": push"), MALFORMED, "a header has a name", "400 / none", "202 / 202"),
    Case("`Content-Length : 5`", post(length=f"Content-Length : {len(BODY)}"), MALFORMED, "a blank before the colon: a name to some", "400 / none", "400 / none"),
    Case("`Transfer-Encoding⇥: chunked`", post("Transfer-Encoding\t: chunked"), MALFORMED, "the same, by a tab", "400 / none", "400 / none"),
    Case("a folded line", post("X-A: one", " two"), MALFORMED, "one header or two (RFC 9112, 5.2)", "400 / none", "202 / 202"),
    Case("a folded line, by a tab", post("X-A: one", "\tTransfer-Encoding: chunked"), MALFORMED, "the same", "400 / none", "202 / 202"),
    Case("a folded first line", post(host=" Host: hooks"), MALFORMED, "the same", "400 / none", "400 / none"),
    Case("a NUL in a value", post("X-A: one\0two"), MALFORMED, "it ends a string in C", "400 / none", "400 / none"),
    Case("a NUL in a name", post("X\0-A: one"), MALFORMED, "the same", "400 / none", "400 / none"),
    Case("a bare CR in a value", post("X-A: one\rContent-Length: 5"), MALFORMED, "it ends a line for some", "400 / none", "400 / none"),
    Case("a bare LF in a value", post("X-A: one\nContent-Length: 5"), BARE_LF, "it ends a line for most", "400 / none", "400 / none"),
    Case("CR CR LF", post("X-A: one\r"), MALFORMED, "the same", "202 / 202", "400 / none"),
    Case("lines that end in LF alone", post().replace(b"\r\n", b"\n"), BARE_LF, "the same", "202 / 202", "202 / 202"),
    Case("an escape sequence", post("X-A: \x1b[2J"), MALFORMED, "it would paint a terminal", "400 / 400", "400 / none"),
    Case("DEL", post("X-A: \x7f"), MALFORMED, "a control character like any other", "400 / 400", "400 / none"),
    Case("a name beyond ASCII", post("X-\xe9: one"), MALFORMED, "a name is a token", "202 / 202", "400 / none"),
    Case("101 header lines", post(*["X-A: x"] * 101), "431 there are more than 100 header lines, closed", "more than any forge and three proxies send", "431 / 431", "431 / 431"),
    Case("40 KB of head", post("X-A: " + "x" * 40_000), "431 the head is too large, closed", "bounded at 32 KiB", "400 / none", "431 / 431"),
    Case("the signature twice", post(f"X-Hub-Signature-256: {headers(BODY)['X-Hub-Signature-256']}"), UNSIGNED, "joined, they have no form; none is picked", "401 / 401", "401 / 401"),
    Case("the event twice", post("X-GitHub-Event: ping"), "200", "joined, they name no event that moves anything", "200 / 200", "200 / 200"),
    # The host.
    Case("no `Host`", post(host=None), "400 there is no Host header, closed", "RFC 9112, 3.2", "400 / none", "400 / none"),
    Case("two `Host`", post("Host: elsewhere"), TWICE, "the proxy may route by one and we by the other", "400 / none", "400 / none"),
    Case("two `Host` that agree", post(HOST.lower()), TWICE, "the same", "400 / none", "400 / none"),
    Case("two `Host` in HTTP/1.0", post("Host: elsewhere", first=FIRST[:-1] + "0"), TWICE, "the same", "400 / none", "400 / none"),
    # The method and the path.
    Case("HTTP/1.0", post(first=FIRST[:-1] + "0"), "202, closed", "old, and well formed", "202 / 202", "202 / 202"),
    Case("HTTP/1.0 without `Host`", post(first=FIRST[:-1] + "0", host=None), "202, closed", "it needs none there", "400 / 400", "202 / 202"),
    Case("HTTP/1.2", post(first=FIRST[:-1] + "2"), "202", "as good as 1.1 (RFC 9110, 2.5)", "202 / 202", "202 / 202"),
    Case("HTTP/2.0", post(first=FIRST[:-3] + "2.0"), "505 only HTTP/1.1 is supported, closed", "another language", "505 / none", "505 / none"),
    Case("HTTP/0.9", post(first=FIRST[:-3] + "0.9"), "505 only HTTP/1.1 is supported, closed", "the same", "400 / none", "505 / none"),
    Case("the absolute form", post(first=f"POST http://hooks{WEBHOOK} HTTP/1.1"), "202", "a server must take it (RFC 9112, 3.2.2)", "202 / 202", "202 / 202"),
    Case("the absolute form of another host", post(first=f"POST http://elsewhere{WEBHOOK} HTTP/1.1"), "202", "we have one host, and believe none", "202 / 202", "202 / 202"),
    Case("the absolute form without a host", post(first=f"POST http://{WEBHOOK} HTTP/1.1"), NO_PATH, "no URL", "400 / none", "202 / 202"),
    Case("another scheme", post(first=f"POST ftp://hooks{WEBHOOK} HTTP/1.1"), NO_PATH, "not ours", "202 / 202", "202 / 202"),
    Case("`CONNECT hooks:443`", post(first="CONNECT hooks:443 HTTP/1.1"), NO_PATH, "a tunnel", "400 / none", "404 / none"),
    Case("`POST *`", post(first="POST * HTTP/1.1"), NO_PATH, "that is for OPTIONS alone", "400 / none", "404 / none"),
    Case("a path without its slash", post(first=f"POST {WEBHOOK[1:]} HTTP/1.1"), NO_PATH, "no path", "400 / none", "400 / none"),
    Case("`post`", post(first=f"post {WEBHOOK} HTTP/1.1"), "405 this path accepts only POST, closed", "a method's case matters (RFC 9110, 9.1)", "400 / none", "405 / 405"),
    Case("a method of 33 letters", post(first="A" * 33 + f" {WEBHOOK} HTTP/1.1"), NO_REQUEST_LINE, "no method is so long", "400 / 400", "405 / none"),
    Case("a method that is no token", post(first=f"PO(ST {WEBHOOK} HTTP/1.1"), NO_REQUEST_LINE, "RFC 9110, 5.6.2", "400 / none", "400 / none"),
    Case("two blanks", post(first=f"POST  {WEBHOOK} HTTP/1.1"), NO_REQUEST_LINE, "an empty target to some", "202 / 202", "400 / none"),
    Case("a blank in front", post(first=f" POST {WEBHOOK} HTTP/1.1"), NO_REQUEST_LINE, "an empty method to some", "400 / none", "400 / none"),
    Case("a blank at the end", post(first=f"POST {WEBHOOK} HTTP/1.1 "), NO_REQUEST_LINE, "another version to some", "202 / 202", "400 / none"),
    Case("a blank in the target", post(first=f"POST {WEBHOOK} x HTTP/1.1"), NO_REQUEST_LINE, "where does it end?", "400 / none", "400 / none"),
    Case("tabs", post(first=f"POST\t{WEBHOOK}\tHTTP/1.1"), NO_REQUEST_LINE, "only a blank parts the words", "400 / none", "400 / none"),
    Case("no version", post(first=f"POST {WEBHOOK}"), NO_REQUEST_LINE, "as in HTTP/0.9", "closed / none", "400 / none"),
    Case("no target", post(first="POST HTTP/1.1"), NO_REQUEST_LINE, "nothing is asked", "400 / none", "400 / none"),
    Case("`HTTP/11`", post(first=f"POST {WEBHOOK} HTTP/11"), NO_REQUEST_LINE, "no version", "505 / none", "400 / none"),
    Case("`HTTP/1.10`", post(first=f"POST {WEBHOOK} HTTP/1.10"), NO_REQUEST_LINE, "no version; 1.1 to who reads so far", "202 / 202", "400 / none"),
    Case("`http/1.1`", post(first=f"POST {WEBHOOK} http/1.1"), NO_REQUEST_LINE, "RFC 9112, 2.3", "400 / none", "400 / none"),
    Case("a fragment", post(first=f"POST {WEBHOOK}#x HTTP/1.1"), NO_REQUEST_LINE, "it is the browser's own", "400 / 400", "404 / none"),
    Case("a target beyond ASCII", post(first=f"POST {WEBHOOK}\xe9 HTTP/1.1"), NO_REQUEST_LINE, "RFC 3986", "404 / none", "404 / none"),
    Case("a NUL in the target", post(first=f"POST {WEBHOOK}\0 HTTP/1.1"), NO_REQUEST_LINE, "it ends a string in C", "400 / none", "400 / none"),
    Case("an empty head", b"\r\n\r\n\r\n", NO_REQUEST_LINE, "one empty line is overlooked (RFC 9112, 2.2)", "404 / none", "400 / none"),
    Case("the first bytes of TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", "400 TLS on the plain port, closed", "answered at once, without waiting for more", "400 / none", "400 / none"),
    # One after another.
    Case("two deliveries at once", post() + post(), "202, 202", "answered in turn", "202, 202 / 202, 202", "202, 202 / 202, 202"),
    Case("an empty line before it", b"\r\n" + post(), "202", "some clients end a body so (RFC 9112, 2.2)", "202 / 202", "400 / none"),
    Case("`Connection: close`", post("Connection: close"), "202, closed", "as asked", "202 / 202", "202 / 202"),
    Case("`Expect: 100-continue`, and waits", post("Expect: 100-continue"), "100, 202", "the body follows 100 Continue", "100, 202 / 202", "100, 202 / 202", manner="waits"),
    Case("`Expect: 100-continue`, and does not wait", post("Expect: 100-continue"), "202", "the client may send the body at once", "100, 202 / 202", "100, 202 / 202"),
    Case("`Expect: 200-ok`", post("Expect: 200-ok"), "202", "not understood, and harmless", "202 / 202", "417 / none"),
    Case("`Expect: 100-continue` with 26 MiB", post("Expect: 100-continue", length=f"Content-Length: {26 << 20}"), TOO_LARGE, "refused before it is sent", "413 / none", "varies", manner="waits"),
]  # fmt: skip


def table() -> str:
    """Return the table for docs/security.md."""
    rows = [f"| {case.sent} | {case.answer} | {case.why} | {case.nginx} | {case.caddy} |" for case in CASES]
    heads = ["request", "response", "reason", *(f"{name} {number}" for name, number in VERSIONS.items())]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


if __name__ == "__main__":
    print(table())
