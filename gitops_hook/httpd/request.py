"""The head of an HTTP/1.1 request: from bytes to a WSGI environ, or a refusal.

Rules (RFC 9112, read strictly):

1. A head that two readers could understand in two ways is refused: that is how requests are smuggled past a proxy.
   So no line without a colon, no folded line, no control character, no second Content-Length or Host, no length
   beside a Transfer-Encoding.
2. A header whose name holds an underscore is refused, for in a WSGI environ ``X_GitHub_Event`` is
   ``X-GitHub-Event``, and a proxy that guards the one may let the other pass.
3. No I/O. Whatever bytes come, the answer is a `Request` or a `HTTPError`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from gitops_hook.errors import HTTPError

#: More lines than any forge and three proxies send.
MAX_LINES = 100
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21\x22\x24-\x7e]+) HTTP/([0-9]\.[0-9])")
#: A name without an underscore (rule 2), and a value. The blanks around it are stripped elsewhere: a pattern that
#: could give them to one part or another would try every way, for seconds where there are 32 KiB of them.
_HEADER = re.compile(r"([!#$%&'*+.^`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_ABSOLUTE = re.compile(r"https?://[^/?]+(.*)", re.IGNORECASE)
#: Eighteen digits are an exabyte; Python's int() would take a sign, underscores and other alphabets' digits too.
_LENGTH = re.compile(r"[0-9]{1,18}")


class Request(NamedTuple):
    """A request whose head is in, and whose body may not be."""

    #: What the head says, in the words of CGI and WSGI.
    environ: dict[str, str]
    #: The bytes of the body that follows; None where that cannot be known (chunked), so nothing may follow it.
    length: int | None
    keep_alive: bool
    expects_continue: bool


def parse_head(head: bytes) -> Request:
    r"""Read a head, from the request line to the last header, without the empty line; lines end in ``\r\n``.

    Raises `HTTPError`: 505 for another major version, 431 for too many lines, 400 for everything else.
    """
    refuse_bare_line_feeds(head)
    request_line, *lines = head.decode("latin-1").split("\r\n")
    environ, version = _parse_request_line(request_line)
    if len(lines) > MAX_LINES:
        raise HTTPError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"there are more than {MAX_LINES} header lines")
    for line in lines:
        field = _HEADER.fullmatch(line)
        if not field:
            raise _bad("a header line is malformed")
        key, value = _environ_key(field[1]), field[2].strip(" \t")
        if key not in environ:
            environ[key] = value
        elif key in ("CONTENT_LENGTH", "HTTP_HOST"):
            raise _bad("a header that may stand once stands twice")
        else:
            environ[key] += "," + value
    modern = version != "1.0"
    if modern and "HTTP_HOST" not in environ:
        raise _bad("there is no Host header")
    connection = {word.strip() for word in environ.get("HTTP_CONNECTION", "").lower().split(",")}
    return Request(
        environ=environ,
        length=_body_length(environ),
        keep_alive=modern and "close" not in connection,
        expects_continue=modern and environ.get("HTTP_EXPECT", "").lower() == "100-continue",
    )


def refuse_bare_line_feeds(head: bytes | bytearray) -> None:
    """Raise `HTTPError` (400) where a line ends in a line feed alone; it takes no whole head to see that."""
    if head.count(b"\n") > head.count(b"\r\n"):
        raise _bad("a line does not end in CR LF")


@lru_cache(maxsize=256)  # the same few from every forge
def _environ_key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _parse_request_line(line: str) -> tuple[dict[str, str], str]:
    words = _REQUEST_LINE.fullmatch(line)
    if not words:
        raise _bad("the request line is malformed")
    method, target, version = words.groups()
    if not version.startswith("1."):
        raise HTTPError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken here")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:  # as if sent to a proxy; a server must take it, and RFC 9112 (3.2.2) has its host win: we have one
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
            raise _bad("there is a Content-Length beside a Transfer-Encoding")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise _bad("the Content-Length is not a number")
    return int(length)


def _bad(reason: str) -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, reason)
