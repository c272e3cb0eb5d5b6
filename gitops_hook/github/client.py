"""GitHub's REST API: a client that keeps to GitHub's rules, and says in words what is wrong and whose it is to mend.

Rules:

1. The token goes to the API's own scheme, host and port, and nowhere else, whatever a redirect or a link says. No
   error shows it.
2. Limits are GitHub's to set: ``Retry-After``, ``x-ratelimit-*``, and a second between writes. Who cannot wait as long
   as they ask gets an error that says until when.
3. Whatever answers, or does not, comes back as an `Answer` or an `ApiError`; nothing here waits for ever.

Sources: GitHub, "Best practices for using the REST API", "Rate limits for the REST API", "Permissions required for
fine-grained personal access tokens", "Scopes for OAuth apps".
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from gitops_hook import __version__
from gitops_hook.errors import GitopsError
from gitops_hook.text import local, printable

#: The version of the API that this was written for.
_API_VERSION = "2022-11-28"
#: Seconds for a connection and each piece of an answer, and for its body as a whole.
_TIMEOUT = 15
_DEADLINE = 60
#: No answer is larger than a delivery with its payload: 25 MiB, and what goes with it.
_MOST = 32 << 20
#: A renamed repository takes one hop; more than a few go in circles.
_HOPS = 4
#: Seconds between writes, as GitHub advises, and before another try after a secondary limit that names no time.
_BETWEEN_WRITES = 1.0
_SECONDARY = 60.0
#: How long a command waits for a limit to pass: the primary one lasts an hour.
PATIENCE = 3900.0
#: How often a command tries what can be tried again, see `Client.call`.
TRIES = 4
#: What cannot stand in a header, and so is no token; http.client would show it in its error.
_TOKEN = re.compile(r"[\x21-\x7e]+")
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="next"')
#: What a token must be allowed, by the path: the permission of a fine-grained one, and the scope of a classic one.
_NEEDS = (
    (re.compile(r"/orgs/[^/]+/hooks"), "the organization permission Webhooks: read and write", "admin:org_hook"),
    (re.compile(r"/repos/.+/hooks"), "the repository permission Webhooks: read and write", "admin:repo_hook"),
    (re.compile(r"/repos/.+/statuses/"), "the repository permission Commit statuses: read and write", "repo:status"),
    (re.compile(r"/repos/.+/deployments"), "the repository permission Deployments: read and write", "repo_deployment"),
    (re.compile(""), "the repository permission Metadata: read", "repo"),
)


class ApiError(GitopsError):
    """GitHub refused, or could not be asked. Ends a command with 77, or with 75 (EX_TEMPFAIL) where time may heal it.

    `http` is the status of the answer, 0 where there was none; `again` is the moment (seconds since the epoch) from
    which on it makes sense to try again, None if it does not.
    """

    def __init__(self, message: str, http: int = 0, again: float | None = None) -> None:
        super().__init__(77 if again is None else 75, message)
        self.http = http
        self.again = again


class Answer(NamedTuple):
    """What came back: the status, the headers, the JSON (None where there is none), whether a redirect led to it."""

    status: int
    headers: Message
    value: Any
    moved: bool = False


def read_token(path: Path | None) -> str | None:
    """The token in a file; None where there is no file, or nothing in it. Raises `GitopsError`."""
    try:
        token = path.read_bytes().strip() if path else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GitopsError(77, f"{path}: {error.strerror}") from None
    if token and not _TOKEN.fullmatch(token.decode("latin-1")):
        raise GitopsError(78, f"GITHUB_TOKEN_FILE={str(path)!r} will not do: it holds more than one token in one line")
    return token.decode("ascii") or None


def web_url(api_url: str) -> str:
    """Where people meet the forge whose API is at `api_url`."""
    url = urlsplit(api_url)
    return f"{url.scheme}://{url.netloc[4:] if url.netloc.startswith('api.') else url.netloc}"


def _host_of(url: str) -> str:
    """The host of a URL; "" where it has none, or is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_at(api_url: str, clone_url: str) -> bool:
    """Whether a clone URL, in any form that git takes, leads to the forge whose API is at `api_url`."""
    forge = _host_of(web_url(api_url))
    if "://" in clone_url:
        host = _host_of(clone_url)
    else:
        host = clone_url.partition(":")[0].rpartition("@")[2] if ":" in clone_url else ""
    return host.lower() in (forge, f"ssh.{forge}", f"www.{forge}")


class Client:
    """Asks as the owner of one token. For one thread at a time."""

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        patience: float = PATIENCE,
        tries: int = TRIES,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`patience` is how many seconds a call may wait for a limit to pass; `clock` counts since the epoch."""
        self.api_url = api_url
        self._token = token
        self._next_timeout = patience
        self._tries = tries
        self._clock = clock
        self._sleep = sleep
        #: The moments before which nothing may be asked, and nothing written.
        self._ready = self._ready_to_write = 0.0
        self._opener = OpenerDirector()  # without urllib's redirects, which would carry the token anywhere
        for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(context=ssl.create_default_context())):
            self._opener.add_handler(handler)

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """The answer to a request, a 2xx; raises `ApiError` for any other.

        A limit is waited for, and a GET that met a fault of the network or of the server is tried again; a write is
        not, for it may have been done.
        """
        for tries in range(1, self._tries + 1):
            self._await_turn(method)
            try:
                return self._follow(method, path, body)
            except ApiError as error:
                limited = error.http in (403, 429)
                if error.again is None or tries == self._tries or not (limited or method == "GET"):
                    raise
                now = self._clock()
                self._ready = max(self._ready, now + max(1.0, error.again - now) * 2.0 ** (tries - 1))
        raise AssertionError

    def listing(self, path: str) -> tuple[list[dict[str, Any]], bool]:
        """All objects of a listing, and whether a redirect led to it, as for a repository that was renamed."""
        answers: list[Answer] = []
        found = list(self.pages(path, answers.append))
        return found, any(answer.moved for answer in answers)

    def pages(self, path: str, tell: Callable[[Answer], object] = id) -> Iterator[dict[str, Any]]:
        """Each object of a listing, page after page, as long as they are asked for; `tell` hears each answer."""
        while path:
            answer = self.call("GET", path)
            tell(answer)
            if not isinstance(answer.value, list):
                raise ApiError(f"{path} is no listing", answer.status)
            yield from (item for item in answer.value if isinstance(item, dict))
            link = _NEXT.search(answer.headers.get("Link", ""))
            path = link[1] if link else ""

    def _await_turn(self, method: str) -> None:
        now = self._clock()
        ready = self._ready if method == "GET" else max(self._ready, self._ready_to_write)
        if ready - now > self._next_timeout:
            until = local(ready, "%H:%M:%S")
            raise ApiError(f"GitHub's rate limit lets nothing through before {until}", 429, ready)
        if ready > now:
            self._sleep(ready - now)
        if method != "GET":
            self._ready_to_write = self._clock() + _BETWEEN_WRITES

    def _follow(self, method: str, path: str, body: object) -> Answer:
        """The answer, redirects followed within the API's own origin."""
        url, moved = self._within(self.api_url, self.api_url + path if path.startswith("/") else path), False
        for _ in range(_HOPS):
            answer = self._exchange(method, url, body)
            location = answer.headers.get("Location", "")
            if answer.status not in (301, 302, 307, 308) or not location:
                break
            url, moved = self._within(url, location), True
        self._note_limits(answer)
        if 200 <= answer.status < 300:
            return answer._replace(moved=moved)
        raise self._judge(answer, method, path)

    def _within(self, base: str, location: str) -> str:
        """Where `location` leads, which must be the API itself."""
        try:
            url = urljoin(base, location)
            origin = urlsplit(url)[:2]
        except ValueError:
            url, origin = "", ("", "what is no URL")
        if origin != urlsplit(self.api_url)[:2]:
            where = self._clean(origin[1].rpartition("@")[2])
            raise ApiError(f"{self.api_url} leads to {where}, where the token does not go")
        return url

    def _exchange(self, method: str, url: str, body: object) -> Answer:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._token}",
            "User-Agent": f"gitops-hook/{__version__}",
            "X-GitHub-Api-Version": _API_VERSION,
        }
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        elif method == "POST":
            data = b""  # or there would be no Content-Length
        try:
            with self._opener.open(Request(url, data, headers, method=method), timeout=_TIMEOUT) as response:  # noqa: S310 - see _within
                status, fields, content = response.status, response.headers, _read(response)
        except (OSError, HTTPException, ValueError) as error:
            raise self._fault(_reason(error)) from None
        try:
            value = json.loads(content) if content else None
        except (ValueError, RecursionError):
            if status < 300:
                raise self._fault("the answer ends early, or is no JSON") from None
            value = None  # a proxy's page, say
        return Answer(status, fields, value)

    def _fault(self, reason: str) -> ApiError:
        return ApiError(f"{self.api_url} cannot be asked: {self._clean(reason)}", 0, self._clock())

    def _note_limits(self, answer: Answer) -> None:
        reset = answer.headers.get("x-ratelimit-reset", "")
        if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
            self._ready = max(self._ready, float(reset))

    def _judge(self, answer: Answer, method: str, path: str) -> ApiError:
        """What an answer means that is no success."""
        status, now = answer.status, self._clock()
        value = answer.value if isinstance(answer.value, dict) else {}
        errors = value.get("errors")
        details = [e.get("message") or e.get("code") if isinstance(e, dict) else e for e in errors or []]
        said = "; ".join(str(word) for word in (value.get("message"), *details) if word)
        told = f"{self.api_url} answers {status} to {method} {path}" + (f": {self._clean(said)}" if said else "")
        if status >= 500:
            return ApiError(told, status, now)
        if status in (403, 429):
            wait = answer.headers.get("Retry-After", "")
            if wait.isdecimal():
                return ApiError(told, status, now + int(wait))
            if answer.headers.get("x-ratelimit-remaining") == "0":
                return ApiError(told, status, max(self._ready, now + 1))
            if status == 429 or "secondary rate limit" in said.lower():
                return ApiError(told, status, now + _SECONDARY)
        if status in (401, 403, 404):
            told += f". {self._fix(answer, path)}"
        return ApiError(told, status)

    def _fix(self, answer: Answer, path: str) -> str:
        """What the owner of the token can do, after a 401, a 403 or a 404."""
        web = web_url(self.api_url)
        fine, classic = f"{web}/settings/personal-access-tokens", f"{web}/settings/tokens"
        if answer.status == 401:
            return f"The token is not valid, or no more. Make another at {fine} and write it to the file of the token."
        sso = re.search(r"url=(\S+)", answer.headers.get("X-GitHub-SSO", ""))
        if sso:
            return f"The organisation wants this token to be authorised: {printable(sso[1], 300)}"
        permission, scope = next(need[1:] for need in _NEEDS if need[0].match(path))
        accepted = printable(answer.headers.get("X-Accepted-GitHub-Permissions", ""))
        fine = f"a fine-grained token needs {permission}" + (f" ({accepted})" if accepted else "") + f", set at {fine}"
        scopes = answer.headers.get("X-OAuth-Scopes")
        has = "" if scopes is None else f"; this one has {printable(scopes) or 'none'}"
        wanted = printable(answer.headers.get("X-Accepted-OAuth-Scopes", ""))
        scope += f" (or any of: {wanted})" if wanted else ""
        classic = f"a classic one needs the scope {scope}, set at {classic}{has}"
        # The headers tell which kind of token this is.
        needs = fine if accepted and scopes is None else classic if scopes is not None else f"{fine}; {classic}"
        return f"There is no such thing, or the token may not see or change it: {needs}."

    def _clean(self, text: str) -> str:
        """A text from elsewhere, in which the token must not stand, whoever put it there."""
        return printable(text.replace(self._token, "[the token]"), 300)


def _read(response: Any) -> bytes:
    """The body, unless it is too large, or too slow in coming."""
    deadline, content = time.monotonic() + _DEADLINE, bytearray()
    while True:
        chunk: bytes = response.read1(1 << 16)
        content += chunk
        if not chunk:
            return bytes(content)
        if len(content) > _MOST or time.monotonic() > deadline:
            raise TimeoutError("the answer takes too long")


def _reason(error: BaseException) -> str:
    """Why a request met no answer; urllib wraps the reason that it had."""
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
