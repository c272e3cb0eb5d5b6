"""The private WSGI application: where each repository stands, and its runs, as a page and as JSON. It reads only.

Rules:

1. No request changes anything; only GET and HEAD are answered.
2. What comes from outside (names, messages, logs) is escaped where it is written, and the page may load nothing and
   run nothing: its Content-Security-Policy allows its own style sheet alone.
3. A Host that is no address is refused: a page elsewhere may have its name point here, and read (DNS rebinding).
4. Times are RFC 3339 in JSON, and how long ago on the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from gitops_hook import metrics
from gitops_hook.journal import Delivery, JournalError, JournalReader, Run
from gitops_hook.overview import Standing, standings
from gitops_hook.repository import Checkouts

#: Rows that one answer holds at the most, and where nothing is asked.
_MOST_RUNS, _SOME_RUNS = 1000, 100
#: Bytes of a log in one answer; the next `offset` is in it.
_LOG_PART = 1 << 20

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { margin: 0 auto; max-width: 75rem; padding: 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top }
code, pre { font: .9em ui-monospace, monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8888; padding: .8rem }
a { color: light-dark(#0550ae, #79c0ff) }
.good { color: light-dark(#116329, #56d364) }
.wait { color: light-dark(#7d4e00, #e3b341) }
.bad { color: light-dark(#a40e26, #ff7b72); font-weight: bold }
@media (max-width: 40rem) { .wide { display: none } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS = [
    ("Content-Security-Policy", f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]

_GOOD = {"in sync", "paused", "updated", "unchanged", "cloned"}
_BAD = {"needs you", "rolled back"}
_WAIT = {"waiting to retry", "queued", "syncing", "never synced", "unreachable", "interrupted", "in hand"}


class _Refused(Exception):
    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Metrics(NamedTuple):
    """An exposition for Prometheus."""

    text: str


class _Page(NamedTuple):
    """A page's title, and the HTML below it."""

    title: str
    body: str


class Dashboard:
    """The callable. Threads may share it."""

    def __init__(
        self, journal: JournalReader, checkouts: Checkouts, exposition: Callable[[], str] = lambda: ""
    ) -> None:
        """`exposition` gives what Prometheus is told."""
        self._exposition = exposition
        self._journal = journal
        self._checkouts = checkouts
        self._routes: list[tuple[re.Pattern[str], Callable[..., Any]]] = [
            (re.compile(r"/"), self._overview),
            (re.compile(r"/runs/([0-9]{1,18})"), self._run_page),
            (re.compile(r"/metrics"), self._metrics),
            (re.compile(r"/api/repositories"), self._repositories),
            (re.compile(r"/api/repositories/([^/]+(?:/[^/]+)?)"), self._repository),
            (re.compile(r"/api/runs"), self._runs),
            (re.compile(r"/api/runs/([0-9]{1,18})"), self._run),
            (re.compile(r"/api/runs/([0-9]{1,18})/log"), self._log),
            (re.compile(r"/api/deliveries/([^/]+)"), self._deliveries),
        ]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        status = "200 OK"
        try:
            content = self._answer(environ)
        except _Refused as refused:
            status, content = refused.status, {"reason": str(refused)}
        except JournalError:
            status, content = "503 Service Unavailable", {"reason": "the journal cannot be read now"}
        if isinstance(content, _Page):
            media_type, body = "text/html; charset=utf-8", _document(content).encode("utf-8", "replace")
        elif isinstance(content, _Metrics):
            media_type, body = metrics.CONTENT_TYPE, content.text.encode("utf-8", "replace")
        else:
            media_type, body = "application/json", (json.dumps(content) + "\n").encode()
        headers = [*_HEADERS, ("Content-Type", media_type), ("Content-Length", str(len(body)))]
        start_response(status, headers + ([("Allow", "GET, HEAD")] if status.startswith("405") else []))
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _answer(self, environ: dict[str, Any]) -> Any:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise _Refused("405 Method Not Allowed", "everything here is read with GET")
        if not _is_address(environ.get("HTTP_HOST", "")):
            raise _Refused("421 Misdirected Request", "ask by address, not by name")
        query = {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        for route, answer in self._routes:
            match = route.fullmatch(environ.get("PATH_INFO", ""))
            if match:
                return answer(query, *match.groups())
        raise _Refused("404 Not Found", "there is nothing at this path")

    # -- pages ------------------------------------------------------------------------------------------------------

    def _overview(self, query: dict[str, str]) -> _Page:
        found = standings(self._journal, self._checkouts)
        if not found:
            return _Page(
                "gitops-hook", "<p>No repository yet. On the host: <code>gitops-hook add OWNER/NAME</code></p>"
            )
        needy = [standing for standing in found if standing.state in _BAD and standing.run and standing.run.message]
        cures = "".join(f"<li>{html.escape(standing.run.message or '')}" for standing in needy if standing.run)
        rows = "".join(_standing_row(standing) for standing in found)
        head = "<th>repository<th>state<th>commit<th class=wide>in sync<th>last run"
        return _Page(
            "gitops-hook",
            (f"<h2>Needs you</h2><ul>{cures}</ul>" if cures else "")
            + f"<h2>Repositories</h2><table><thead><tr>{head}<tbody>{rows}</table>",
        )

    def _run_page(self, query: dict[str, str], number: str) -> _Page:
        run = self._known_run(number)
        facts = {
            "repository": run.repository,
            "outcome": run.outcome or "in hand",
            "message": run.message,
            "trigger": run.trigger,
            "before": run.before,
            "after": run.after,
            "exit": run.exit,
            "started": _rfc3339(run.started),
            "ended": _rfc3339(run.ended),
        }
        rows = "".join(
            f"<tr><th scope=row>{name}<td>{html.escape(str(value))}"
            for name, value in facts.items()
            if value is not None
        )
        text, _ = self._read_log(run.id, 0)
        return _Page(
            f"Run {run.id}", f"<p><a href=/>All repositories</a><table>{rows}</table><pre>{html.escape(text)}</pre>"
        )

    def _metrics(self, query: dict[str, str]) -> _Metrics:
        return _Metrics(self._exposition())

    # -- JSON -------------------------------------------------------------------------------------------------------

    def _repositories(self, query: dict[str, str]) -> dict[str, Any]:
        return {"repositories": [_standing(found) for found in standings(self._journal, self._checkouts)]}

    def _repository(self, query: dict[str, str], name: str) -> dict[str, Any]:
        (found,) = standings(self._journal, self._checkouts, [name])
        if found.path is None and found.run is None:
            raise _Refused("404 Not Found", "nothing is known of this repository")
        return _standing(found)

    def _runs(self, query: dict[str, str]) -> dict[str, Any]:
        limit = query.get("limit", str(_SOME_RUNS))
        if not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= _MOST_RUNS:
            raise _Refused("400 Bad Request", f"limit is a number from 1 to {_MOST_RUNS}")
        return {"runs": [_run(run) for run in self._journal.runs(query.get("repository"), int(limit))]}

    def _run(self, query: dict[str, str], number: str) -> dict[str, Any]:
        return _run(self._known_run(number))

    def _log(self, query: dict[str, str], number: str) -> dict[str, Any]:
        offset = query.get("offset", "0")
        if not offset.isdecimal() or len(offset) > 18:
            raise _Refused("400 Bad Request", "offset is a number of bytes")
        run = self._known_run(number)
        text, end = self._read_log(run.id, int(offset))
        return {"text": text, "offset": end, "ended": run.outcome is not None}

    def _deliveries(self, query: dict[str, str], guid: str) -> dict[str, Any]:
        found = self._journal.deliveries(guid)
        if not found:
            raise _Refused("404 Not Found", "no such delivery was accepted")
        return {"deliveries": [_delivery(delivery) for delivery in found]}

    # -- what they share --------------------------------------------------------------------------------------------

    def _known_run(self, number: str) -> Run:
        run = self._journal.run(int(number))
        if not run:
            raise _Refused("404 Not Found", "there is no such run")
        return run

    def _read_log(self, run: int, offset: int) -> tuple[str, int]:
        """A part of a run's output from `offset` on, and the offset behind it; empty where it was pruned."""
        try:
            with self._journal.log_path(run).open("rb") as file:
                file.seek(offset)
                part = file.read(_LOG_PART)
        except OSError:
            return "", offset
        return part.decode("utf-8", "replace"), offset + len(part)


def _is_address(host: str) -> bool:
    name = re.sub(r":[0-9]+$", "", host)
    if name == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(name[1:-1] if name.startswith("[") else name))
    except ValueError:
        return False


def _document(page: _Page) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style>"
        f"<body><main><h1>{html.escape(page.title)}</h1>{page.body}</main></html>\n"
    )


def _standing_row(standing: Standing) -> str:
    run = standing.run
    last = (
        f"<a href=/runs/{run.id}>{_coloured(run.outcome or 'in hand')}</a>, {_ago(run.ended or run.started)}"
        if run
        else ""
    )
    return (
        f"<tr><th scope=row>{html.escape(standing.repository)}<td>{_coloured(standing.state)}"
        f"<td><code>{html.escape((run.after or '')[:10] if run else '')}</code>"
        f"<td class=wide>{_ago(standing.confirmed)}<td>{last}"
    )


def _coloured(word: str) -> str:
    kind = "good" if word in _GOOD else "wait" if word in _WAIT else "bad"
    return f"<span class={kind}>{html.escape(word)}</span>"


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0, int(time.time() - moment))
    unit, size = next(
        ((unit, size) for unit, size in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= size), ("s", 1)
    )
    return f"{seconds // size} {unit} ago"


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "repository": standing.repository,
        "state": standing.state,
        "path": str(standing.path) if standing.path else None,
        "confirmed": _rfc3339(standing.confirmed),
        "owed": standing.owed,
        "run": _run(standing.run) if standing.run else None,
    }


def _run(run: Run) -> dict[str, Any]:
    return {**run._asdict(), "started": _rfc3339(run.started), "ended": _rfc3339(run.ended)}


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {**delivery._asdict(), "received": _rfc3339(delivery.received), "run": delivery.run or None}


def _rfc3339(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
