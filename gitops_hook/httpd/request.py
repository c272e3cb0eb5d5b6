"""The head of an HTTP/1.1 request: from bytes to a WSGI environ.

Rules (RFC 9112, read strictly):

1. Reject every head that two readers could understand in two ways. Such heads smuggle requests past a proxy. So no
   line without a colon, no folded line, no control character, no second Content-Length or Host, no Content-Length
   together with a Transfer-Encoding.
2. Drop a header whose name contains an underscore, as nginx does. In a WSGI environ, ``X_GitHub_Event`` is
   ``X-GitHub-Event``, and a proxy that filters one of them may pass the other. Reject it if the request also has the
   header that it imitates, or if it imitates a header that frames the request.
3. No I/O. For any bytes, the result is a `Request` or an `HTTPError`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from gitops_hook.errors import HTTPError

#: The limit on header lines. A forge and three proxies send fewer.
MAX_LINES = 100
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21\x22\x24-\x7e]+) HTTP/([0-9]\.[0-9])")
#: A name and a value. The spaces around the value are stripped elsewhere: a pattern
#: that could match them in two places would backtrack for seconds over 32 KiB of spaces.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
#: The headers that determine where a request ends and who sent it.
_FRAMING = frozenset(
    ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_HOST", "HTTP_CONNECTION", "HTTP_EXPECT", "HTTP_X_FORWARDED_FOR")
)
_ABSOLUTE = re.compile(r"https?://[^/?]+(.*)", re.IGNORECASE)
#: Python's int() also accepts a sign, underscores, and the digits of other alphabets.
_LENGTH = re.compile(r"[0-9]{1,18}")


class Request(NamedTuple):
    """A request whose head is complete."""

    #: The head as the variables of CGI and WSGI.
    environ: dict[str, str]
    #: The size of the body in bytes; None if the head does not contain it.
    length: int | None
    #: Whether the body is chunked. If not, and if the length is None, nothing can follow the head.
    chunked: bool
    keep_alive: bool
    expects_continue: bool


def parse_head(head: bytes) -> Request:
    r"""Parse a head, from the request line to the last header, without the empty line. Lines end in ``\r\n``.

    Raise `HTTPError`: 505 for another major version, 431 for too many lines, 400 for everything else.
    """
    reject_bare_line_feeds(head)
    request_line, *lines = head.decode("latin-1").split("\r\n")
    environ, version = _parse_request_line(request_line)
    if len(lines) > MAX_LINES:
        raise HTTPError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"there are more than {MAX_LINES} header lines")
    dropped = set()
    for line in lines:
        field = _HEADER.fullmatch(line)
        if not field:
            raise _bad("a header line is malformed")
        if "_" in field[1]:
            dropped.add(_environ_key(field[1]))
            continue
        key, value = _environ_key(field[1]), field[2].strip(" \t")
        if key not in environ:
            environ[key] = value
        elif key in ("CONTENT_LENGTH", "HTTP_HOST"):
            raise _bad("a header that must be unique is repeated")
        else:
            environ[key] += "," + value
    if dropped and not dropped.isdisjoint(_FRAMING.union(environ)):
        raise _bad("a header with an underscore imitates another one")
    modern = version != "1.0"
    if modern and "HTTP_HOST" not in environ:
        raise _bad("there is no Host header")
    connection = {word.strip() for word in environ.get("HTTP_CONNECTION", "").lower().split(",")}
    return Request(
        environ=environ,
        length=_body_length(environ),
        chunked=modern and environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked",
        keep_alive=modern and "close" not in connection,
        expects_continue=modern and environ.get("HTTP_EXPECT", "").lower() == "100-continue",
    )


def reject_bare_line_feeds(head: bytes | bytearray) -> None:
    """Raise `HTTPError` (400) if a line ends in a bare line feed. The head may be incomplete."""
    if head.count(b"\n") > head.count(b"\r\n"):
        raise _bad("a line does not end in CR LF")


@lru_cache(maxsize=256)  # every forge sends the same few
def _environ_key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _parse_request_line(line: str) -> tuple[dict[str, str], str]:
    match = _REQUEST_LINE.fullmatch(line)
    if not match:
        raise _bad("the request line is malformed")
    method, target, version = match.groups()
    if not version.startswith("1."):
        raise HTTPError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is supported")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:  # a server must accept the form for proxies (RFC 9112, 3.2.2)
        target = absolute[1] if absolute[1].startswith("/") else "/" + absolute[1]
    if not target.startswith("/") and (method, target) != ("OPTIONS", "*"):
        raise _bad("the request's target is not a path")
    path, _, query = target.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": f"HTTP/{version}",
    }
    return environ, version


def _body_length(environ: dict[str, str]) -> int | None:
    length = environ.get("CONTENT_LENGTH")
    if "HTTP_TRANSFER_ENCODING" in environ:
        if length is not None:
            raise _bad("there are both a Content-Length and a Transfer-Encoding")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise _bad("the Content-Length is not a number")
    return int(length)


def _bad(reason: str) -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, reason)
