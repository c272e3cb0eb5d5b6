"""Call GitHub's REST API within its rate limits, and explain its errors.

Rules:

1. The token is sent to the scheme, host and port of the API only, regardless of redirects and links. No error shows it.
2. GitHub sets the limits: ``Retry-After``, ``x-ratelimit-*``, and a second between writes. If the wait exceeds the
   patience of the caller, the call raises an error with the time of the next attempt.
3. A call has one deadline for connection, headers, body and redirects together. A listing never requests the same
   page twice.

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
from urllib.request import OpenerDirector, ProxyHandler, Request

from gitops_hook import __version__
from gitops_hook.errors import GitopsError
from gitops_hook.github.deadline import Deadline, DeadlineHandler
from gitops_hook.text import local, printable

#: The version of the API that this client implements.
_API_VERSION = "2022-11-28"
#: The time limits in seconds: of each operation on the connection, and of a whole call.
_TIMEOUT = 15
_DEADLINE = 60
#: The largest answer in bytes. The largest legitimate one is a delivery with its payload of 25 MiB.
_MAX_BYTES = 32 << 20
#: The most redirects of a call. A renamed repository has one.
_MAX_REDIRECTS = 4
#: The most pages of a listing: 100,000 objects.
_MAX_PAGES = 1000
#: Seconds between writes, as GitHub recommends, and after a secondary limit without a time.
_BETWEEN_WRITES = 1.0
_SECONDARY = 60.0
#: The reason of a call that reached its deadline.
_TOO_SLOW = "the answer takes too long"
#: The longest wait of a command for a rate limit, in seconds. The primary limit lasts an hour.
PATIENCE = 3900.0
#: The attempts of a command for a call that can be repeated, see `Client.call`.
TRIES = 4
#: A token. Other characters are not valid in a header, and http.client would show them in its error.
_TOKEN = re.compile(r"[\x21-\x7e]+")
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="next"')
#: For each path, the necessary permission of a fine-grained token and the necessary scope of a classic one.
_NEEDS = (
    (re.compile(r"/orgs/[^/]+/hooks"), "the organization permission Webhooks: read and write", "admin:org_hook"),
    (re.compile(r"/repos/.+/hooks"), "the repository permission Webhooks: read and write", "admin:repo_hook"),
    (re.compile(r"/repos/.+/statuses/"), "the repository permission Commit statuses: read and write", "repo:status"),
    (re.compile(r"/repos/.+/deployments"), "the repository permission Deployments: read and write", "repo_deployment"),
    (re.compile(""), "the repository permission Metadata: read", "repo"),
)


class ApiError(GitopsError):
    """A rejected or failed call. The exit status is 77, or 75 (EX_TEMPFAIL) if a later attempt may succeed.

    `http` is the HTTP status, or 0 without an answer. `again` is the time of the next attempt in seconds since the
    epoch, or None if another attempt cannot succeed.
    """

    def __init__(self, message: str, http: int = 0, again: float | None = None) -> None:
        super().__init__(77 if again is None else 75, message)
        self.http = http
        self.again = again


class Answer(NamedTuple):
    """An answer: HTTP status, headers, JSON value (None without one), and whether it followed a redirect."""

    status: int
    headers: Message
    value: Any
    moved: bool = False


def read_token(path: Path | None) -> str | None:
    """Return the token in a file; None without a file or a token. Raises `GitopsError` for any other content."""
    try:
        token = path.read_bytes().strip() if path else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GitopsError(77, f"{path}: {error.strerror}") from None
    if token and not _TOKEN.fullmatch(token.decode("latin-1")):
        raise GitopsError(
            78, f"GITHUB_TOKEN_FILE={str(path)!r} is invalid: it contains more than one token in one line"
        )
    return token.decode("ascii") or None


def web_url(api_url: str) -> str:
    """Return the URL of the web site of the forge whose API is at `api_url`."""
    url = urlsplit(api_url)
    return f"{url.scheme}://{url.netloc[4:] if url.netloc.startswith('api.') else url.netloc}"


def _host_of(url: str) -> str:
    """Return the host of a URL, or "" if it has none or is malformed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_at(api_url: str, clone_url: str) -> bool:
    """Return True if a clone URL, in any form that git accepts, is at the forge whose API is at `api_url`."""
    forge = _host_of(web_url(api_url))
    if "://" in clone_url:
        host = _host_of(clone_url)
    else:
        host = clone_url.partition(":")[0].rpartition("@")[2] if ":" in clone_url else ""
    return host.lower() in (forge, f"ssh.{forge}", f"www.{forge}")


class Client:
    """Calls the API with one token. One thread at a time may use it."""

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
        """Create a client for the API at `api_url`.

        `patience` is the longest wait for a rate limit in seconds, `tries` the maximum number of attempts of a call.
        `clock` returns seconds since the epoch.
        """
        self.api_url = api_url
        self._token = token
        self._patience = patience
        self._tries = tries
        self._clock = clock
        self._sleep = sleep
        #: The times before which no request, and no write, is permitted.
        self._ready = self._ready_to_write = 0.0
        self._tls_context = ssl.create_default_context()

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request and return the answer with a status of 2xx. Raises `ApiError` for any other.

        Waits for a rate limit. A GET is repeated after an error of the network or the server. A write is not, because
        it may have taken effect.
        """
        for attempt in range(1, self._tries + 1):
            self._await_turn(method)
            try:
                return self._follow(method, path, body)
            except ApiError as error:
                limited = error.http in (403, 429)
                if error.again is None or attempt == self._tries or not (limited or method == "GET"):
                    raise
                now = self._clock()
                self._ready = max(self._ready, now + max(1.0, error.again - now) * 2.0 ** (attempt - 1))
        raise AssertionError

    def listing(self, path: str) -> tuple[list[dict[str, Any]], bool]:
        """Return all objects of a listing, and whether it followed a redirect, as for a renamed repository."""
        answers: list[Answer] = []
        found = list(self.pages(path, answers.append))
        return found, any(answer.moved for answer in answers)

    def pages(self, path: str, on_answer: Callable[[Answer], object] = id) -> Iterator[dict[str, Any]]:
        """Yield each object of a listing. The next page is requested when it is needed; `on_answer` gets each answer.

        Raises `ApiError`, also for a page that is not a listing or that was requested before.
        """
        seen: set[str] = set()
        while path:
            if path in seen or len(seen) == _MAX_PAGES:
                raise ApiError(f"the pages of {printable(path)} do not end")
            seen.add(path)
            answer = self.call("GET", path)
            on_answer(answer)
            if not isinstance(answer.value, list):
                raise ApiError(f"{printable(path)} is not a listing", answer.status)
            yield from (item for item in answer.value if isinstance(item, dict))
            link = _NEXT.search(answer.headers.get("Link", ""))
            path = link[1] if link else ""
            path = path[len(self.api_url) :] if path.startswith(f"{self.api_url}/") else path

    def _await_turn(self, method: str) -> None:
        now = self._clock()
        ready = self._ready if method == "GET" else max(self._ready, self._ready_to_write)
        if ready - now > self._patience:
            until = local(ready, "%H:%M:%S")
            raise ApiError(f"GitHub's rate limit permits no request before {until}", 429, ready)
        if ready > now:
            self._sleep(ready - now)
        if method != "GET":
            self._ready_to_write = self._clock() + _BETWEEN_WRITES

    def _follow(self, method: str, path: str, body: object) -> Answer:
        """Return the answer after redirects within the API's origin."""
        url, moved = self._within(self.api_url, self.api_url + path if path.startswith("/") else path), False
        with Deadline(_DEADLINE) as deadline:
            for _ in range(_MAX_REDIRECTS):
                answer = self._exchange(method, url, body, deadline)
                location = answer.headers.get("Location", "")
                if answer.status not in (301, 302, 307, 308) or not location:
                    break
                url, moved = self._within(url, location), True
        self._note_limits(answer)
        if 200 <= answer.status < 300:
            return answer._replace(moved=moved)
        raise self._rejection(answer, method, path)

    def _within(self, base: str, location: str) -> str:
        """Return the URL of `location`, which must be within the API."""
        try:
            url = urljoin(base, location)
            origin = urlsplit(url)[:2]
        except ValueError:
            url, origin = "", ("", "a malformed URL")
        if origin != urlsplit(self.api_url)[:2]:
            where = self._clean(origin[1].rpartition("@")[2])
            raise ApiError(f"{self.api_url} leads to {where}, which must not get the token")
        return url

    def _exchange(self, method: str, url: str, body: object, deadline: Deadline) -> Answer:
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
            data = b""  # so that urllib sends a Content-Length
        opener = OpenerDirector()  # without urllib's redirects, which would send the token to any host
        opener.add_handler(ProxyHandler())
        opener.add_handler(DeadlineHandler(self._tls_context, deadline))
        try:
            request = Request(url, data, headers, method=method)  # noqa: S310 - `_within` checks the URL
            with opener.open(request, timeout=_TIMEOUT) as response:
                status, fields, content = response.status, response.headers, _read(response, deadline)
        except (OSError, HTTPException, ValueError) as error:
            raise self._failure(_TOO_SLOW if deadline.is_over else _reason(error)) from None
        try:
            value = json.loads(content) if content else None
        except (ValueError, RecursionError):
            if status < 300:
                raise self._failure("the answer is incomplete or not JSON") from None
            value = None  # for example the page of a proxy
        return Answer(status, fields, value)

    def _failure(self, reason: str) -> ApiError:
        return ApiError(f"{self.api_url} does not answer: {self._clean(reason)}", 0, self._clock())

    def _note_limits(self, answer: Answer) -> None:
        reset = answer.headers.get("x-ratelimit-reset", "")
        if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
            self._ready = max(self._ready, float(reset))

    def _rejection(self, answer: Answer, method: str, path: str) -> ApiError:
        """Return the error for an answer that is not a success."""
        status, now = answer.status, self._clock()
        value = answer.value if isinstance(answer.value, dict) else {}
        errors = value.get("errors")
        details = [e.get("message") or e.get("code") if isinstance(e, dict) else e for e in errors or []]
        details_text = "; ".join(str(part) for part in (value.get("message"), *details) if part)
        message = f"{self.api_url} answers {status} to {method} {path}" + (
            f": {self._clean(details_text)}" if details_text else ""
        )
        if status >= 500:
            return ApiError(message, status, now)
        if status in (403, 429):
            wait = answer.headers.get("Retry-After", "")
            if wait.isdecimal():
                return ApiError(message, status, now + int(wait))
            if answer.headers.get("x-ratelimit-remaining") == "0":
                return ApiError(message, status, max(self._ready, now + 1))
            if status == 429 or "secondary rate limit" in details_text.lower():
                return ApiError(message, status, now + _SECONDARY)
        if status in (401, 403, 404):
            message += f". {self._fix(answer, path)}"
        return ApiError(message, status)

    def _fix(self, answer: Answer, path: str) -> str:
        """Return instructions for the owner of the token after a 401, 403 or 404."""
        web = web_url(self.api_url)
        fine, classic = f"{web}/settings/personal-access-tokens", f"{web}/settings/tokens"
        if answer.status == 401:
            return f"The token is not valid or has expired. Create one at {fine} and write it to the token file."
        sso = re.search(r"url=(\S+)", answer.headers.get("X-GitHub-SSO", ""))
        if sso:
            return f"The organization requires an authorization of this token: {printable(sso[1], 300)}"
        permission, scope = next(need[1:] for need in _NEEDS if need[0].match(path))
        accepted = printable(answer.headers.get("X-Accepted-GitHub-Permissions", ""))
        fine = f"a fine-grained token needs {permission}" + (f" ({accepted})" if accepted else "") + f", set at {fine}"
        scopes = answer.headers.get("X-OAuth-Scopes")
        has = "" if scopes is None else f"; this one has {printable(scopes) or 'none'}"
        wanted = printable(answer.headers.get("X-Accepted-OAuth-Scopes", ""))
        scope += f" (or any of: {wanted})" if wanted else ""
        classic = f"a classic one needs the scope {scope}, set at {classic}{has}"
        # The headers show which kind of token this is.
        needs = fine if accepted and scopes is None else classic if scopes is not None else f"{fine}; {classic}"
        return f"It does not exist, or the token may not access it: {needs}."

    def _clean(self, text: str) -> str:
        """Return a text from the API or the network without the token and without control characters."""
        return printable(text.replace(self._token, "[the token]"), 300)


def _read(response: Any, deadline: Deadline) -> bytes:
    """Return the body. Raises `TimeoutError` if it is too large or too slow."""
    content = bytearray()
    while True:
        chunk: bytes = response.read1(1 << 16)
        content += chunk
        if deadline.is_over:
            raise TimeoutError(_TOO_SLOW)
        if len(content) > _MAX_BYTES:
            raise TimeoutError("the answer is too large")
        if not chunk:
            return bytes(content)


def _reason(error: BaseException) -> str:
    """Return the reason of a request without an answer. urllib wraps the original error."""
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
