"""The WSGI application of the status page and its JSON API. It is read only.

Rules:

1. No request changes anything. Only GET and HEAD are accepted.
2. Text from outside (names, messages, logs) is escaped where it is written. The page can load and run nothing except
   what it contains (`html.POLICY`).
3. A Host header that is not an address is rejected, because a page elsewhere could resolve its own name to this host
   and read the response (DNS rebinding). A tunnel uses ``localhost``, a proxy the address that it connects to.
4. Every response has an ETag. A request with the same ETag gets 304. The first page derives it from the values, so an
   unchanged page is not rendered.
5. A refresh has the parameter ``known``: the keys of the rows that the browser has. The response is JSON without them.

docs/api.md explains the JSON API, and docs/openapi.json describes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from gitops_hook import __version__
from gitops_hook.dashboard import ansi, details, pages
from gitops_hook.dashboard.api import commit_object, delivery_object, repository_object, run_object, time_text
from gitops_hook.dashboard.html import POLICY, MakePage, Page, document
from gitops_hook.dashboard.lookup import LOG_PART, Lookup, output_path
from gitops_hook.dashboard.pages import Query
from gitops_hook.dashboard.query import entity_tags, is_address, limit_field, number_field, query_fields
from gitops_hook.dashboard.rejections import Rejected
from gitops_hook.errors import HTTPError, JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.outcomes import STATES
from gitops_hook.sync.checkouts import Checkouts, Position, position
from gitops_hook.sync.run_log import read_log
from gitops_hook.text import rfc3339

#: The runs on the page of a repository.
_PAGE_ROWS = 50
#: Deliveries that the page of a run lists. One run can claim thousands.
_SHOWN_DELIVERIES = 100
#: The period in seconds in which a page without the script keeps its ETag although its ages change.
_AGE_PERIOD = 60
_HEADERS = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "private, no-cache"),
]


class Content(NamedTuple):
    """A response: its media type, text, status, and additional headers."""

    media_type: str
    text: str | Callable[[], str]
    status: str = "200 OK"
    headers: Sequence[tuple[str, str]] = ()
    #: The hash of the values behind the text, or nothing if the hash of the text itself is the ETag.
    tag: str = ""


def _json(value: Mapping[str, Any]) -> Content:
    return Content("application/json", json.dumps(value) + "\n")


class Dashboard:
    """The WSGI application. Any thread may call it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        sync_timeout: int = 600,
        metrics: Callable[[], tuple[str, str]] = lambda: ("text/plain", ""),
        rejections: Callable[[], list[Rejected]] = list,
        *,
        secret_places: Sequence[str] = (),
        more: Mapping[str, MakePage] = {},
    ) -> None:
        """Create the application.

        `sync_timeout` is the daemon's time limit of a run in seconds. `metrics` returns the media type and the text for
        Prometheus. `rejections` returns the rejected webhooks of the last day. `secret_places` are where an operator
        finds the shared secrets. `more` has further pages by pattern.
        """
        self._lookup = Lookup(journal, checkouts, sync_timeout, rejections, secret_places)
        self._read_metrics = metrics
        name, number = r"([^/]+(?:/[^/]+)?)", r"([0-9]{1,18})"
        self._routes: list[tuple[re.Pattern[str], Callable[..., Content]]] = [
            (re.compile(route), answer)
            for route, answer in (
                (r"/", self._overview),
                (rf"/repositories/{name}", self._repository_page),
                (rf"/runs/{number}", self._run_page),
                (rf"/runs/{number}/output", self._output),
                (rf"/runs/{number}/log", self._plain_log),
                (r"/deliveries/(.+)", self._delivery_page),
                (r"/metrics", self._metrics),
                (r"/api/repositories", self._repositories),
                (rf"/api/repositories/{name}", self._repository),
                (r"/api/runs", self._runs),
                (rf"/api/runs/{number}", self._run),
                (rf"/api/runs/{number}/log", self._log),
                (r"/api/deliveries/(.+)", self._deliveries),
            )
        ]
        self._links = [("/fleet", "Fleet")] if "/fleet" in more else []
        for route, make in more.items():
            self._routes.append((re.compile(route), functools.partial(self._made_page, make)))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Return the response to a request."""
        try:
            content = self._answer(environ)
        except HTTPError as error:
            content = self._error(environ, f"{error.status.value} {error.status.phrase}", error.reason)
        except JournalError:
            content = self._error(environ, "503 Service Unavailable", "the journal cannot be read now")
        headers = [*_HEADERS, *content.headers]
        status = content.status
        body = b"" if content.tag else _body(content)
        if status == "200 OK":
            tag = f'"{content.tag or _hash(body)}"'
            headers.append(("ETag", tag))
            if {tag, "*"} & entity_tags(environ.get("HTTP_IF_NONE_MATCH", "")):
                start_response("304 Not Modified", headers)
                return []
        body = body or _body(content)
        start_response(status, [*headers, ("Content-Type", content.media_type), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _answer(self, environ: dict[str, Any]) -> Content:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise HTTPError(405, "this server accepts only GET and HEAD")
        if not is_address(environ.get("HTTP_HOST", "")):
            raise HTTPError(421, "the Host header must be an address or localhost")
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")  # PEP 3333
        for route, answer in self._routes:
            match = route.fullmatch(path)
            if match:
                return answer(query_fields(environ), *match.groups())
        raise HTTPError(404, "no such path")

    # -- pages ------------------------------------------------------------------------------------------------------

    def _overview(self, given: dict[str, str]) -> Content:
        order = given.get("sort", "")
        order = order if order.lstrip("-") in pages.SORTABLE else "state"
        query = Query(given.get("q", "").strip(), given.get("state", ""), order, number_field(given, "page", 1) or 1)
        if query.words and self._lookup.journal.deliveries(query.words, 1):
            address = f"/deliveries/{quote(query.words, safe='')}"
            return Content("text/plain", "", "303 See Other", [("Location", address)])
        view = self._lookup.overview(query)
        period = 0 if "known" in given else int(time.time() // _AGE_PERIOD)
        tag = _hash(repr((__version__, period, given.get("known"), view)).encode("utf-8", "replace"))
        return self._page(given, lambda known: pages.overview(self._lookup.with_tails(view), known), tag)

    def _repository_page(self, given: dict[str, str], name: str) -> Content:
        status, settings = self._lookup.repository(name)
        checkout = self._lookup.checkouts.find(name)
        at = position(checkout) if checkout else Position()
        runs, older = self._lookup.page_of_runs(given, status.repository, _PAGE_ROWS)
        shown = self._lookup.with_commits(runs)
        return self._page(given, lambda known: details.repository(status, settings, at, shown, older))

    def _run_page(self, given: dict[str, str], number: str) -> Content:
        run = self._lookup.run(number)
        output = self._lookup.output(run)
        served = self._lookup.journal.served(run.id, _SHOWN_DELIVERIES)
        (shown,) = self._lookup.with_commits([run])
        return self._page(given, lambda known: details.run(shown, served, output))

    def _output(self, given: dict[str, str], number: str) -> Content:
        """Return the output after an offset as HTML, and the path of the next part, for the script of the page."""
        run = self._lookup.run(number)  # before the log, so that no output is missed
        part = read_log(self._lookup.journal.log_path(run.id), number_field(given, "offset", 0), LOG_PART)
        more = not run.outcome or bool(part.content)
        log = ansi.render(part.content, given.get("pen", ""), more=more)
        if run.outcome and not log.size:  # a killed run never completes a truncated sequence
            log = ansi.render(part.content, given.get("pen", ""), more=False)
        offset = part.offset - len(part.content) + log.size
        return _json({"html": log.shown, "next": output_path(run.id, offset, log.pen) if more else None})

    def _plain_log(self, given: dict[str, str], number: str) -> Content:
        printed, _ = self._lookup.whole_log(self._lookup.run(number).id)
        return Content("text/plain; charset=utf-8", printed.decode("utf-8", "replace"))

    def _delivery_page(self, given: dict[str, str], guid: str) -> Content:
        deliveries = self._lookup.deliveries(guid)
        runs = [self._lookup.journal.run(number) for number in {delivery.run for delivery in deliveries}]
        shown = {shown.run.id: shown for shown in self._lookup.with_commits([run for run in runs if run])}
        return self._page(given, lambda known: details.delivery(guid, deliveries, shown))

    def _page(self, given: dict[str, str], render: Callable[[Collection[str]], Page], tag: str = "") -> Content:
        """Return a page, or its variable parts as JSON if the request is a refresh."""
        if "known" not in given:
            return Content(
                "text/html; charset=utf-8", lambda: document(render(()), self._lookup.host, self._links), tag=tag
            )

        def parts() -> str:
            page = render(frozenset(given["known"].split(".")))
            return json.dumps({"title": page.title, "icon": page.icon, "live": page.live, "after": page.after}) + "\n"

        return Content("application/json", parts, tag=tag)

    def _made_page(self, make: MakePage, given: dict[str, str], *names: str) -> Content:
        return self._page(given, make(given, *names))

    def _error(self, environ: dict[str, Any], status: str, reason: str) -> Content:
        """Return an error, as a page for browsers and as JSON for programs."""
        headers = [("Allow", "GET, HEAD")] if status.startswith("405") else []
        if "text/html" in environ.get("HTTP_ACCEPT", "") and not environ.get("PATH_INFO", "").startswith("/api/"):
            text = document(pages.error(status, reason), self._lookup.host)
            return Content("text/html; charset=utf-8", text, status, headers)
        return _json({"reason": reason})._replace(status=status, headers=headers)

    def _metrics(self, given: dict[str, str]) -> Content:
        return Content(*self._read_metrics())

    # -- JSON -------------------------------------------------------------------------------------------------------

    def _repositories(self, given: dict[str, str]) -> Content:
        limit, after = limit_field(given), given.get("after", "").lower()
        found = self._lookup.statuses()
        found.sort(key=lambda status: status.repository.lower())
        rest = [status for status in found if status.repository.lower() > after]
        health = self._lookup.health(found)
        return _json(
            {
                "daemon": {**health._asdict(), "started": rfc3339(health.started)},
                "counts": {state: sum(status.state == state for status in found) for state in STATES},
                "repositories": [repository_object(status) for status in rest[:limit]],
                "next": rest[limit - 1].repository if len(rest) > limit else None,
            }
        )

    def _repository(self, given: dict[str, str], name: str) -> Content:
        status, settings = self._lookup.repository(name)
        return _json(
            {
                **repository_object(status),
                "settings": [{"name": name, "value": value, "origin": origin} for name, value, origin, _ in settings],
            }
        )

    def _runs(self, given: dict[str, str]) -> Content:
        runs, older = self._lookup.page_of_runs(given, given.get("repository") or None, limit_field(given))
        return _json({"runs": [run_object(run) for run in runs], "next": older})

    def _run(self, given: dict[str, str], number: str) -> Content:
        run = self._lookup.run(number)
        served = self._lookup.journal.served(run.id, _SHOWN_DELIVERIES)
        return _json(
            {
                **run_object(run),
                "received": time_text(served.received),
                "served": served.number,
                "deliveries": [delivery_object(delivery) for delivery in served.deliveries],
                "commits": [commit_object(commit) for commit in self._lookup.with_commits([run])[0].commits],
            }
        )

    def _log(self, given: dict[str, str], number: str) -> Content:
        run = self._lookup.run(number)
        part = read_log(self._lookup.journal.log_path(run.id), number_field(given, "offset", 0), LOG_PART)
        text = part.content.decode("utf-8", "replace")
        return _json({"text": text, "offset": part.offset, "ended": run.outcome is not None})

    def _deliveries(self, given: dict[str, str], guid: str) -> Content:
        deliveries = self._lookup.deliveries(guid)
        runs = (self._lookup.journal.run(number) for number in sorted({delivery.run for delivery in deliveries}))
        return _json(
            {
                "deliveries": [delivery_object(delivery) for delivery in deliveries],
                "runs": [run_object(run) for run in runs if run],
            }
        )


def _body(content: Content) -> bytes:
    text = content.text() if callable(content.text) else content.text
    return text.encode("utf-8", "replace")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
