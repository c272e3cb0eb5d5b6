"""The private WSGI application: where each repository stands, its runs and what was delivered. It reads only.

Rules:

1. No request changes anything; only GET and HEAD are answered.
2. What comes from outside (names, messages, logs) is escaped where it is written, and the page may load nothing and
   run nothing but what it holds itself (`pages.POLICY`).
3. A Host that is no address is refused: a page elsewhere may have its name point here, and read (DNS rebinding).
   Who comes through a tunnel says ``localhost``; a proxy says the address that it calls.
4. Times are RFC 3339 in JSON, and how long ago on the page. What is not known is null.
5. Every answer has an ETag; who sends it back (If-None-Match) is told in 304 that nothing has changed.

docs/api.md tells of the JSON, and docs/openapi.json describes it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

from gitops_hook import __version__
from gitops_hook.dashboard import ansi
from gitops_hook.dashboard import html as pages
from gitops_hook.dashboard.html import Chapter, Health, Output, Query
from gitops_hook.errors import HTTPError, JournalError
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Commit, Delivery, Run
from gitops_hook.observers.prometheus import CONTENT_TYPE
from gitops_hook.outcomes import STATES
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.run_log import read_log
from gitops_hook.sync.status import InForce, RepositoryStatus, repository_statuses, settings_in_force
from gitops_hook.text import rfc3339

#: Rows that one answer holds at the most, and where nothing is asked; and runs on the page of a repository.
_MOST_ROWS, _SOME_ROWS, _PAGE_ROWS = 1000, 100, 50
#: Deliveries that are shown of one run: a burst of thousands collapses into one.
_SHOWN_DELIVERIES = 100
#: Bytes of a log in one answer; the next `offset` is in it.
_LOG_PART = 1 << 20
#: Of a failed run, so many of its last lines are shown with the fix, out of so many bytes.
_TAIL_LINES, _TAIL_BYTES = 4, 2 << 10
#: The longest list of query fields that anybody sends.
_MOST_FIELDS = 16
_HEADERS = [
    ("Content-Security-Policy", pages.POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "private, no-cache"),
]


class Content(NamedTuple):
    """What is answered: its media type, its text, and headers of its own."""

    media_type: str
    text: str
    status: str = "200 OK"
    headers: Sequence[tuple[str, str]] = ()


def _html(text: str) -> Content:
    return Content("text/html; charset=utf-8", text)


def _json(value: Mapping[str, Any]) -> Content:
    return Content("application/json", json.dumps(value) + "\n")


class Dashboard:
    """The callable. Threads may share it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        sync_timeout: int = 600,
        exposition: Callable[[], str] = lambda: "",
    ) -> None:
        """`sync_timeout` is what is in force, in seconds, where a checkout says nothing else.

        `exposition` gives what Prometheus is told.
        """
        self._exposition = exposition
        self._journal = journal
        self._checkouts = checkouts
        self._sync_timeout = sync_timeout
        self._started = time.time()
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

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        try:
            content = self._answer(environ)
        except HTTPError as error:
            content = _problem(environ, f"{error.status.value} {error.status.phrase}", error.reason)
        except JournalError:
            content = _problem(environ, "503 Service Unavailable", "the journal cannot be read now")
        body = content.text.encode("utf-8", "replace")
        headers = [*_HEADERS, *content.headers]
        status = content.status
        if status == "200 OK":
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers.append(("ETag", tag))
            if {tag, "*"} & _tags(environ.get("HTTP_IF_NONE_MATCH", "")):
                start_response("304 Not Modified", headers)
                return []
        start_response(status, [*headers, ("Content-Type", content.media_type), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _answer(self, environ: dict[str, Any]) -> Content:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise HTTPError(405, "everything here is read with GET")
        if not _is_address(environ.get("HTTP_HOST", "")):
            raise HTTPError(421, "ask by address, not by name")
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")  # PEP 3333
        for route, answer in self._routes:
            match = route.fullmatch(path)
            if match:
                return answer(_query(environ), *match.groups())
        raise HTTPError(404, "there is nothing at this path")

    # -- pages ------------------------------------------------------------------------------------------------------

    def _overview(self, given: dict[str, str]) -> Content:
        order = given.get("sort", "")
        order = order if order.lstrip("-") in _ORDERS else "state"
        query = Query(given.get("q", "").strip(), given.get("state", ""), order)
        if query.words and self._journal.deliveries(query.words, 1):
            address = f"/deliveries/{quote(query.words, safe='')}"
            return Content("text/plain", "", "303 See Other", [("Location", address)])
        found = repository_statuses(self._journal, self._checkouts)
        shown = [standing for standing in found if _is_asked_for(standing, query)]
        shown.sort(key=_ORDERS[order.lstrip("-")], reverse=order.startswith("-"))
        urgent = [standing.run for standing in shown if pages.is_urgent(standing) and standing.run][: pages.MOST_CURES]
        tails = {run.id: self._tail(run) for run in urgent}
        return _html(pages.overview(found, shown, query, self._health(found), tails))

    def _repository_page(self, given: dict[str, str], name: str) -> Content:
        standing, settings = self._known_repository(name)
        runs, older = self._page_of_runs(given, standing.repository, _PAGE_ROWS)
        commits = self._journal.commits([run.id for run in runs])
        chapters = [Chapter(run, commits.get(run.id, ())) for run in runs]
        return _html(pages.repository(standing, settings, chapters, older))

    def _run_page(self, given: dict[str, str], number: str) -> Content:
        run = self._known_run(number)  # asked before the log is read, so that nothing is missed
        printed, offset = self._whole_log(run.id)
        log = ansi.render(printed, more=not run.outcome)
        follow = None if run.outcome else _output_path(run.id, offset - len(printed) + log.size, log.pen)
        served = self._journal.served(run.id, _SHOWN_DELIVERIES)
        return _html(pages.run(self._chapter(run), served, Output(log.shown, follow)))

    def _output(self, given: dict[str, str], number: str) -> Content:
        """What the script of the page asks for: the HTML of what was printed since, and where to ask next."""
        run = self._known_run(number)  # before the log is read, as above
        part = read_log(self._journal.log_path(run.id), _number(given, "offset", 0), _LOG_PART)
        more = not run.outcome or bool(part.content)
        log = ansi.render(part.content, given.get("pen", ""), more=more)
        if run.outcome and not log.size:  # what a killed run only began to print will never be whole
            log = ansi.render(part.content, given.get("pen", ""), more=False)
        offset = part.offset - len(part.content) + log.size
        return _json({"html": log.shown, "next": _output_path(run.id, offset, log.pen) if more else None})

    def _plain_log(self, given: dict[str, str], number: str) -> Content:
        printed, _ = self._whole_log(self._known_run(number).id)
        return Content("text/plain; charset=utf-8", printed.decode("utf-8", "replace"))

    def _delivery_page(self, given: dict[str, str], guid: str) -> Content:
        deliveries = self._known_deliveries(guid)
        runs = {delivery.run: self._journal.run(delivery.run) for delivery in deliveries}
        return _html(
            pages.delivery(guid, deliveries, {number: self._chapter(run) for number, run in runs.items() if run})
        )

    def _health(self, found: Sequence[RepositoryStatus]) -> Health:
        running = sum(1 for standing in found if standing.run and not standing.run.outcome)
        return Health(
            __version__, self._started, self._journal.fault, running, sum(standing.pending for standing in found)
        )

    def _metrics(self, given: dict[str, str]) -> Content:
        return Content(CONTENT_TYPE, self._exposition())

    # -- JSON -------------------------------------------------------------------------------------------------------

    def _repositories(self, given: dict[str, str]) -> Content:
        limit, after = _limit(given), given.get("after", "").lower()
        found = repository_statuses(self._journal, self._checkouts)
        found.sort(key=lambda standing: standing.repository.lower())
        rest = [standing for standing in found if standing.repository.lower() > after]
        health = self._health(found)
        return _json(
            {
                "daemon": {**health._asdict(), "started": rfc3339(health.started)},
                "counts": {state: sum(standing.state == state for standing in found) for state in STATES},
                "repositories": [_standing(standing) for standing in rest[:limit]],
                "next": rest[limit - 1].repository if len(rest) > limit else None,
            }
        )

    def _repository(self, given: dict[str, str], name: str) -> Content:
        standing, settings = self._known_repository(name)
        return _json({**_standing(standing), "settings": [setting._asdict() for setting in settings]})

    def _runs(self, given: dict[str, str]) -> Content:
        runs, older = self._page_of_runs(given, given.get("repository"), _limit(given))
        return _json({"runs": [_run(run) for run in runs], "next": older})

    def _run(self, given: dict[str, str], number: str) -> Content:
        run = self._known_run(number)
        served = self._journal.served(run.id, _SHOWN_DELIVERIES)
        return _json(
            {
                **_run(run),
                "received": _time(served.received),
                "served": served.number,
                "deliveries": [_delivery(delivery) for delivery in served.deliveries],
                "commits": [_commit(commit) for commit in self._chapter(run).commits],
            }
        )

    def _log(self, given: dict[str, str], number: str) -> Content:
        run = self._known_run(number)
        part = read_log(self._journal.log_path(run.id), _number(given, "offset", 0), _LOG_PART)
        text = part.content.decode("utf-8", "replace")
        return _json({"text": text, "offset": part.offset, "ended": run.outcome is not None})

    def _deliveries(self, given: dict[str, str], guid: str) -> Content:
        deliveries = self._known_deliveries(guid)
        runs = (self._journal.run(number) for number in sorted({delivery.run for delivery in deliveries}))
        return _json(
            {"deliveries": [_delivery(delivery) for delivery in deliveries], "runs": [_run(run) for run in runs if run]}
        )

    # -- what they share --------------------------------------------------------------------------------------------

    def _known_repository(self, name: str) -> tuple[RepositoryStatus, list[InForce]]:
        (found,) = repository_statuses(self._journal, self._checkouts, [name])
        if found.path is None and found.run is None:
            raise HTTPError(404, "nothing is known of this repository")
        checkout = self._checkouts.find(name)
        return found, settings_in_force(checkout, self._sync_timeout) if checkout else []

    def _known_run(self, number: str) -> Run:
        run = self._journal.run(int(number))
        if not run:
            raise HTTPError(404, "there is no such run")
        return run

    def _known_deliveries(self, guid: str) -> list[Delivery]:
        found = self._journal.deliveries(guid)
        if not found:
            raise HTTPError(404, "no such delivery was accepted")
        return found

    def _page_of_runs(self, given: dict[str, str], repository: str | None, limit: int) -> tuple[list[Run], int | None]:
        """Runs below the id that ``before`` gives, `limit` at the most; and the id below which there are more."""
        before = _number(given, "before", None)
        runs = self._journal.runs(repository, limit + 1, before)
        return runs[:limit], runs[limit - 1].id if len(runs) > limit else None

    def _chapter(self, run: Run) -> Chapter:
        return Chapter(run, self._journal.commits([run.id]).get(run.id, ()))

    def _tail(self, run: Run) -> str:
        """The last lines that a run printed before its outcome, as HTML."""
        try:
            with self._journal.log_path(run.id).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return ""
        outcome = f"{run.outcome}: ".encode()
        shown = [line for line in lines if line.strip() and not line.startswith(outcome)][-_TAIL_LINES:]
        return ansi.render(b"\n".join(shown)).shown

    def _whole_log(self, run: int) -> tuple[bytes, int]:
        """All that is kept of a run's output, and the offset behind it."""
        printed, offset = b"", 0
        while True:
            part = read_log(self._journal.log_path(run), offset, _LOG_PART)
            if not part.content:
                return printed, offset
            printed, offset = printed + part.content, part.offset


#: How the rows of the overview are sorted, by the word that asks for it.
_ORDERS: Mapping[str, Callable[[RepositoryStatus], Any]] = {
    "state": lambda standing: list(STATES).index(standing.state),
    "repository": lambda standing: standing.repository.lower(),
    "commit": lambda standing: standing.commit.time if standing.commit else 0.0,
    "confirmed": lambda standing: standing.confirmed or 0.0,
    "run": lambda standing: standing.run.started if standing.run else 0.0,
}


def _is_asked_for(standing: RepositoryStatus, query: Query) -> bool:
    """Whether every word of the query is in what the row shows."""
    if query.state and standing.state != query.state:
        return False
    commit = standing.commit
    text = " ".join((standing.repository, *commit[:3]) if commit else (standing.repository,)).lower()
    return all(word in text for word in query.words.lower().split())


def _is_address(host: str) -> bool:
    name = re.sub(r":[0-9]+$", "", host)
    if name == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(name[1:-1] if name.startswith("[") else name))
    except ValueError:
        return False


def _problem(environ: dict[str, Any], status: str, reason: str) -> Content:
    """A refusal, as a page for people and as JSON for programs."""
    headers = [("Allow", "GET, HEAD")] if status.startswith("405") else []
    if "text/html" in environ.get("HTTP_ACCEPT", "") and not environ.get("PATH_INFO", "").startswith("/api/"):
        return Content("text/html; charset=utf-8", pages.problem(status, reason), status, headers)
    return _json({"reason": reason})._replace(status=status, headers=headers)


def _query(environ: dict[str, Any]) -> dict[str, str]:
    try:
        given = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise HTTPError(400, "the query has too many fields") from None
    return {name: values[-1] for name, values in given.items()}


def _number(given: dict[str, str], name: str, default: Any) -> Any:
    text = given.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise HTTPError(400, f"{name} is a number of at most 18 digits")
    return int(text)


def _limit(given: dict[str, str]) -> int:
    limit: int = _number(given, "limit", _SOME_ROWS)
    if not 1 <= limit <= _MOST_ROWS:
        raise HTTPError(400, f"limit is a number from 1 to {_MOST_ROWS}")
    return limit


def _tags(header: str) -> set[str]:
    """The entity tags of If-None-Match, which are compared weakly (RFC 9110, 13.1.2)."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _output_path(run: int, offset: int, pen: str) -> str:
    return f"/runs/{run}/output?offset={offset}" + (f"&pen={quote(pen)}" if pen else "")


def _standing(standing: RepositoryStatus) -> dict[str, Any]:
    return {
        "repository": standing.repository,
        "state": standing.state,
        "fix": standing.fix,
        "path": str(standing.path) if standing.path else None,
        "commit": _commit(standing.commit) if standing.commit else None,
        "confirmed": _time(standing.confirmed),
        "owed": standing.pending,
        "run": _run(standing.run) if standing.run else None,
    }


def _run(run: Run) -> dict[str, Any]:
    moments = {step: _time(getattr(run, step)) for step in ("started", "fetched", "deployed", "healthy", "ended")}
    return {**{name: None if value == "" else value for name, value in run._asdict().items()}, **moments}


def _commit(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.id,
        "author": commit.author or None,
        "subject": commit.subject or None,
        "time": _time(commit.time or None),
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    known = {name: value or None for name, value in delivery._asdict().items()}
    return {**known, "received": rfc3339(delivery.received), "owed": delivery.pending}


def _time(moment: float | None) -> str | None:
    return None if moment is None else rfc3339(moment)
