"""The first page, which lists the repositories, and the page of an error. Values in, HTML out, without I/O.

To add a column to the list of repositories, add a row to `COLUMNS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from gitops_hook.dashboard.charts import history_chart
from gitops_hook.dashboard.html import (
    ago,
    breakable_name,
    commit_line,
    count,
    document,
    duration,
    escape,
    label,
    message,
    repository_path,
    section,
)
from gitops_hook.model import Run
from gitops_hook.outcomes import RUNNING, STATES, severity_of
from gitops_hook.sync.status import RepositoryStatus
from gitops_hook.text import age


class Column(NamedTuple):
    """A column of the list of repositories."""

    name: str
    heading: str
    #: The HTML of a cell. The first column is the heading of its row.
    cell: Callable[[RepositoryStatus], str]
    #: The sort key, or None if the list cannot be sorted by this column.
    key: Callable[[RepositoryStatus], Any] | None = None


COLUMNS = (
    Column(
        "repository",
        "Repository",
        lambda status: f'<a href="{repository_path(status.repository)}">{breakable_name(status.repository)}</a>',
        lambda status: status.repository.lower(),
    ),
    Column("state", "State", lambda status: label(status.state), lambda status: list(STATES).index(status.state)),
    Column(
        "commit",
        "Commit",
        lambda status: commit_line(status.commit),
        lambda status: status.commit.time if status.commit else 0.0,
    ),
    Column(
        "confirmed", "Confirmed in sync", lambda status: ago(status.confirmed), lambda status: status.confirmed or 0.0
    ),
    Column("history", "Last 30 runs", lambda status: history_chart(status.history)),
    Column(
        "run",
        "Last run",
        lambda status: _last_run(status.run),
        lambda status: status.run.started if status.run else 0.0,
    ),
)
#: The columns by which the list can be sorted, by name.
SORTABLE = {column.name: column for column in COLUMNS if column.key}
#: The number of problems that the first page shows with their fix. More problems usually have one cause.
MOST_PROBLEMS = 20


class Health(NamedTuple):
    """The state of the daemon."""

    version: str
    #: When it started, in seconds since the epoch.
    started: float
    #: Why the journal cannot be written, or None if it can.
    fault: str | None
    #: The number of current runs, and of deliveries that no run has settled yet.
    running: int
    pending: int


class Query(NamedTuple):
    """A request for the list of repositories."""

    words: str = ""
    state: str = ""
    order: str = "state"

    def path(self, **changes: str) -> str:
        """Return the path of the list with these changes to the query."""
        query = self._replace(**changes)
        fields = {"q": query.words, "state": query.state, "sort": query.order if query.order != "state" else ""}
        fields = {name: value for name, value in fields.items() if value}
        return "/?" + urlencode(fields) if fields else "/"


_NO_REPOSITORY = """<section class="begin"><h1>No repository yet</h1>
<p>On this host, run as root for each repository:</p>
<pre>gitops-hook add OWNER/NAME --deploy 'sh deploy.sh'</pre>
<p>The command clones the repository or adopts an existing checkout, syncs it, and prints the settings for the forge.
<code>--deploy</code> is the command to run in the checkout after each update. Omit it if updating the files is
enough.</p>
<p><code>gitops-hook doctor</code> checks this host, and <code>gitops-hook send OWNER/NAME</code> delivers a test
push.</p></section>"""


def overview(
    everything: Sequence[RepositoryStatus],
    shown: Sequence[RepositoryStatus],
    query: Query,
    health: Health,
    tails: Mapping[int, str],
) -> str:
    """Return the first page: `shown` of `everything`, in the given order.

    `tails` are the last lines of output of failed runs as HTML, by the number of the run.
    """
    failed = [status for status in everything if severity_of(status.state) == "bad"]
    title = f"{len(failed)} need action · gitops-hook" if failed else "gitops-hook"
    severity = "bad" if failed or health.fault else "good"
    if not everything:
        return document(title, _health_line(health) + _NO_REPOSITORY, severity)
    counts = Counter(status.state for status in everything)
    problems = [status for status in shown if has_problem(status)][:MOST_PROBLEMS]
    return document(
        title,
        '<h1 class="unseen">Repositories</h1>'
        + _health_line(health)
        + _state_filters(counts, len(everything), query)
        + (_problem_list(problems, tails) if problems else "")
        + (_repository_list(shown, query) if shown else _no_match(query)),
        severity,
        query.words,
    )


def error(status: str, reason: str) -> str:
    """Return the page of an HTTP error."""
    return document(
        f"{status} · gitops-hook",
        f"<h1>{escape(status.partition(' ')[2])}</h1><p>{escape(reason[:1].upper() + reason[1:])}.</p>"
        '<p><a href="/">All repositories</a></p>',
        "rest",
    )


def has_problem(status: RepositoryStatus) -> bool:
    """Return whether the first page shows this repository among the problems."""
    return status.problem is not None and severity_of(status.state) == "bad"


def _health_line(health: Health) -> str:
    state = f"The journal cannot be written: {escape(health.fault)}" if health.fault else "Running"
    facts = [
        f"up {age(health.started)}",
        count(health.running, "run"),
        f"{count(health.pending, 'delivery', 'deliveries')} pending",
        f"version {escape(health.version)}",
    ]
    return (
        f'<p class="health"><span class="word {"bad" if health.fault else "good"}">{state}</span> '
        + " ".join(f"<span>{fact}</span>" for fact in facts)
        + "</p>"
    )


def _state_filters(counts: Mapping[str, int], total: int, query: Query) -> str:
    filters = [("", "all", total, "all"), *((state, state, counts[state], severity_of(state)) for state in STATES)]
    links = (
        f'<li><a class="chip {kind}" href="{escape(query.path(state=state))}"'
        + (' aria-current="true"' if state == query.state else "")
        + f"><b>{number}</b> {word}</a></li>"
        for state, word, number, kind in filters
        if number
    )
    return f'<nav aria-label="States"><ul class="chips">{"".join(links)}</ul></nav>'


def _problem_list(problems: Sequence[RepositoryStatus], tails: Mapping[int, str]) -> str:
    rows = "".join(_problem(status, status.run, tails) for status in problems if status.run)
    return section("needs", "Action needed", f"<ul>{rows}</ul>")


def _problem(status: RepositoryStatus, failed: Run, tails: Mapping[int, str]) -> str:
    tail = tails.get(failed.id)
    return (
        f'<li><h3><a href="{repository_path(status.repository)}">{escape(status.repository)}</a> '
        f'{label(failed.outcome or RUNNING)} <span class="quiet">{ago(failed.ended)}</span></h3>'
        f"<p>{message(failed)}</p>"
        + (f'<pre class="tail">{tail}</pre>' if tail else "")
        + f'<p><a href="/runs/{failed.id}">Run {failed.id}, with its output</a></p></li>'
    )


def _no_match(query: Query) -> str:
    criteria = " and ".join(f"“{escape(word)}”" for word in (query.words, query.state) if word)
    return f'<p>No repository matches {criteria}. <a href="/">Show all</a></p>'


def _repository_list(shown: Iterable[RepositoryStatus], query: Query) -> str:
    head = "".join(_heading(column, query) for column in COLUMNS)
    rows = "".join(map(_repository_row, shown))
    return (
        f'<table class="overview"><caption>Repositories</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _heading(column: Column, query: Query) -> str:
    name = column.name
    if name not in SORTABLE:
        return f'<th scope="col" class="{name}">{column.heading}</th>'
    sorting = {name: "ascending", f"-{name}": "descending"}.get(query.order)
    path = query.path(order=f"-{name}" if sorting == "ascending" else name)
    aria = f' aria-sort="{sorting}"' if sorting else ""
    return f'<th scope="col" class="{name}"{aria}><a href="{escape(path)}">{column.heading}</a></th>'


def _repository_row(status: RepositoryStatus) -> str:
    first, *rest = COLUMNS
    cells = "".join(f'<td class="{column.name}">{column.cell(status)}</td>' for column in rest)
    return f'<tr><th scope="row">{first.cell(status)}</th>{cells}</tr>'


def _last_run(last: Run | None) -> str:
    if not last:
        return ""
    return f'<a href="/runs/{last.id}">{last.outcome or RUNNING}</a> <span class="quiet">{duration(last)}</span>'
