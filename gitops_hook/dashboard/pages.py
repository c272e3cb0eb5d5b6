"""The first page, which lists the repositories, and the page of an error. Values in, HTML out, without I/O.

To add a column to the list of repositories, add a row to `COLUMNS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from gitops_hook.dashboard.charts import history_chart
from gitops_hook.dashboard.deliveries import Day, day_sections
from gitops_hook.dashboard.html import (
    Page,
    ago,
    commit_id,
    commit_line,
    count,
    elapsed,
    escape,
    keyed,
    label,
    repository_link,
    repository_path,
    section,
    unbroken_span,
)
from gitops_hook.dashboard.runs import RunWithCommits, next_command, reason, run_table
from gitops_hook.model import Commit, Run
from gitops_hook.outcomes import BAD, GOOD, STATES, severity_of
from gitops_hook.sync.status import MISSING, RepositoryStatus

#: The state that needs a person. It includes every state with the severity `BAD`.
ACTION_NEEDED = "action needed"
#: The number of repositories on a page, and of problems above the list. The first problems leave the list in sight.
PAGE_SIZE, FIRST_PROBLEMS = 100, 5
#: The characters of a name that fit into every column.
_SHORT_NAME = 20


class Column(NamedTuple):
    """A column of the list of repositories."""

    name: str
    heading: str
    #: The HTML of a cell. The first column is the heading of its row.
    cell: Callable[[RepositoryStatus], str]
    #: The sort key, or None if the list cannot be sorted by this column.
    key: Callable[[RepositoryStatus], Any] | None = None


def _state_cell(status: RepositoryStatus) -> str:
    """Return a state that opens to the command for it and to the newest run."""
    newest = f' <a href="/runs/{status.run.id}">Run {status.run.id}</a>' if status.run else ""
    return (
        f'<details name="next" id="n-{escape(status.repository)}"><summary>{label(status.state)}</summary>'
        f"<p>{next_command(status.state, status.run, status.repository, status.hold)}{newest}</p></details>"
    )


COLUMNS = (
    Column(
        "repository",
        "Repository",
        lambda status: _repository_link(status.repository),
        lambda status: status.repository.lower(),
    ),
    Column("state", "State", _state_cell, lambda status: list(STATES).index(status.state)),
    Column(
        "commit",
        "Commit",
        lambda status: _short_commit(status.commit, status.origin),
        lambda status: status.commit.time if status.commit else 0.0,
    ),
    Column("author", "Author", lambda status: escape(status.commit.author) if status.commit else ""),
    Column(
        "deployed",
        "Deployed",
        lambda status: ago(status.deployed) if status.deployed else "",
        lambda status: status.deployed or 0.0,
    ),
    Column("confirmed", "Checked", lambda status: ago(status.confirmed), lambda status: status.confirmed or 0.0),
    Column("history", "Last 30 runs", lambda status: history_chart(status.history)),
    Column(
        "run",
        "Took",
        lambda status: _duration(status.run),
        lambda status: status.run.started if status.run else 0.0,
    ),
)
#: The columns by which the list can be sorted, by name.
SORTABLE = {column.name: column for column in COLUMNS if column.key}


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
    """A request for the list of repositories. `page` counts from 1."""

    words: str = ""
    state: str = ""
    order: str = "state"
    page: int = 1

    def path(self, **changes: Any) -> str:
        """Return the path of the list with these changes to the query. A change leads to the first page."""
        query = self._replace(page=1)._replace(**changes)
        fields = {
            "q": query.words,
            "state": query.state,
            "sort": query.order if query.order != "state" else "",
            "page": str(query.page) if query.page > 1 else "",
        }
        fields = {name: value for name, value in fields.items() if value}
        return "/?" + urlencode(fields) if fields else "/"


class Overview(NamedTuple):
    """The content of the first page."""

    #: The number of all repositories by state, and of those that match the query.
    counts: Mapping[str, int]
    matching: int
    #: The matching repositories of the current page, in the order of the query.
    page: Sequence[RepositoryStatus]
    #: Those of the first page that need a person, and the number of all that match.
    problems: Sequence[RepositoryStatus]
    matching_problems: int
    query: Query
    health: Health
    #: The name of this host.
    host: str
    #: The rejected commit and the last lines of output as HTML of each problem, by the number of its run.
    rejected: Mapping[int, Commit]
    tails: Mapping[int, str]
    day: Day = Day()
    #: The newest runs that match the words of the query.
    runs: Sequence[RunWithCommits] = ()

    @property
    def total(self) -> int:
        """Return the number of all repositories."""
        return sum(self.counts.values())

    @property
    def filters(self) -> Counter[str]:
        """Return the number of all repositories by filter."""
        found = Counter[str]()
        for state, number in self.counts.items():
            found[filter_of(state)] += number
        return found


_NO_REPOSITORY = """<section class="begin"><h1>No repository yet</h1>
<p>On this host, run as root for each repository:</p>
<pre>gitops-hook add OWNER/NAME --deploy 'sh deploy.sh'</pre>
<p>The command clones the repository or adopts an existing checkout, syncs it, and prints the settings for the forge.
<code>--deploy</code> is the command to run in the checkout after each update. Omit it if updating the files is
enough.</p>
<p><code>gitops-hook doctor</code> checks this host, and <code>gitops-hook send OWNER/NAME</code> delivers a test
push.</p></section>"""


def overview(view: Overview, known: Collection[str] = ()) -> Page:
    """Return the first page. `known` are the keys of the rows that the browser has already."""
    failed = view.filters[ACTION_NEEDED]
    verdict = _verdict(view, failed)
    footer = _footer(view.health)
    severity = "bad" if failed or view.health.fault else "good"
    title = f"{verdict} · {view.host or 'gitops-hook'}"
    if not view.total:
        return Page(title, _NO_REPOSITORY + day_sections(view.day) + footer, severity)
    live = (
        f'<h1 class="verdict {severity}">{verdict}</h1>'
        + _state_filters(view)
        + (_problem_list(view, known) if view.problems else "")
        + (_repository_list(view, known) if view.page else _no_match(view.query))
        + (section("runs", "Runs", run_table(view.runs, with_repository=True)) if view.runs else "")
        + day_sections(view.day)
        + footer
    )
    return Page(title, live, severity, failed, view.query.words)


def error(status: str, reason: str) -> Page:
    """Return the page of an HTTP error."""
    return Page(
        f"{status} · gitops-hook",
        f"<h1>{escape(status.partition(' ')[2])}</h1><p>{escape(reason[:1].upper() + reason[1:])}.</p>"
        '<p><a href="/">All repositories</a></p>',
        "rest",
    )


def filter_of(state: str) -> str:
    """Return the filter that includes a state."""
    return ACTION_NEEDED if severity_of(state) == BAD else state


def _verdict(view: Overview, failed: int) -> str:
    total = view.total
    if view.health.fault:
        return f"The journal cannot be written: {escape(view.health.fault)}"
    if failed:
        return f"{failed} of {total} need action" if failed > 1 else f"1 of {total} needs action"
    current = sum(number for state, number in view.counts.items() if severity_of(state) == GOOD)
    if current == total:
        return f"All {total} up to date" if total else "No repository yet"
    return f"{current} of {total} up to date, no action needed"


def _footer(health: Health) -> str:
    state = "Journal not writable" if health.fault else "Daemon running"
    facts = (
        f'<span class="word {"bad" if health.fault else "good"}">{state}</span>',
        f"version {escape(health.version)}",
        f"started {ago(health.started)}",
        count(health.running, "run") + " now",
        f"{count(health.pending, 'delivery', 'deliveries')} pending",
    )
    return f"<footer>{' '.join(f'<span>{fact}</span>' for fact in facts)}</footer>"


def _state_filters(view: Overview) -> str:
    counts = view.filters
    filters = [("", "all", view.total, "all"), *((state, state, counts[state], severity_of(state)) for state in STATES)]
    links = (
        f'<li><a class="chip {kind}" href="{escape(view.query.path(state=state))}"'
        + (' aria-current="true"' if state == view.query.state else "")
        + f"><b>{number}</b> {word}</a></li>"
        for state, word, number, kind in filters
        if number and (not state or filter_of(state) == state)
    )
    return f'<nav aria-label="States"><ul class="chips">{"".join(links)}</ul></nav>'


def _problem_list(view: Overview, known: Collection[str]) -> str:
    rows = "".join(keyed("li", _problem(status, view), known) for status in view.problems)
    rest = view.matching_problems - len(view.problems)
    path = escape(view.query.path(state=ACTION_NEEDED))
    more = f'<p class="more"><a href="{path}">{rest} more</a></p>' if rest > 0 else ""
    return section("needs", "Action needed", f"<ul>{rows}</ul>{more}")


def _problem(status: RepositoryStatus, view: Overview) -> str:
    name = status.repository
    failed = status.run if status.state != MISSING else None
    commit = view.rejected.get(failed.id) if failed else None
    tail = view.tails.get(failed.id) if failed else None
    what = f'<span class="what">{_short_commit(commit)}</span>'
    author = f'<span class="author">{escape(commit.author) if commit else ""}</span>'
    when = failed.ended if failed and failed.ended else status.confirmed
    return (
        f'<details id="p-{escape(name)}"><summary><b>{escape(name)}</b> '
        f"{label(_problem_word(status))} {what} {author} {ago(when)}</summary>"
        f'<div class="more"><p>{reason(status)}</p>'
        + (f'<pre class="tail">{tail}</pre>' if tail else "")
        + f"<p>Next: {next_command(status.state, status.run, name)}</p>"
        + (f"<p>{commit_line(commit, status.origin)}</p>" if commit else "")
        + (f'<p><a href="/runs/{failed.id}">Run {failed.id} with its output</a> · ' if failed else "<p>")
        + f"{repository_link(name)}</p></div></details>"
    )


def _problem_word(status: RepositoryStatus) -> str:
    """Return the outcome or the cause for which a repository needs a person, or else its state."""
    run = status.run
    if not run or status.state == MISSING:
        return status.state
    return (run.outcome if severity_of(run.outcome) == BAD else run.cause) or status.state


def _no_match(query: Query) -> str:
    criteria = " and ".join(f"“{escape(word)}”" for word in (query.words, query.state) if word)
    return f'<p>No repository matches {criteria or "this page"}. <a href="/">Show all</a></p>'


def _repository_list(view: Overview, known: Collection[str]) -> str:
    head = "".join(_heading(column, view.query) for column in COLUMNS)
    rows = "".join(keyed("tr", _repository_row(status), known) for status in view.page)
    return (
        f'<table class="overview"><caption>Repositories</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{_pager(view)}"
    )


def _pager(view: Overview) -> str:
    total, page = view.matching, view.query.page
    first = (page - 1) * PAGE_SIZE
    if total <= PAGE_SIZE:
        return ""
    links = [f"<span>{first + 1} to {min(first + PAGE_SIZE, total)} of {total}</span>"]
    if page > 1:
        links.insert(0, f'<a rel="prev" href="{escape(view.query.path(page=page - 1))}">Previous</a>')
    if first + PAGE_SIZE < total:
        links.append(f'<a rel="next" href="{escape(view.query.path(page=page + 1))}">Next</a>')
    return f'<nav class="pager" aria-label="Pages">{" ".join(links)}</nav>'


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
    return f'<th scope="row">{first.cell(status)}</th>{cells}'


def _repository_link(repository: str) -> str:
    """Return a link to the page of a repository. A long name has a tooltip, because a narrow column cuts it off."""
    name, at_sign, environment = repository.partition("@")
    shown = escape(name) + (f'<span class="quiet">@{escape(environment)}</span>' if at_sign else "")
    tooltip = f' title="{escape(repository)}"' if len(repository) > _SHORT_NAME else ""
    return f'<a href="{repository_path(repository)}"{tooltip}>{shown}</a>'


def _short_commit(commit: Commit | None, origin: str = "") -> str:
    if not commit:
        return ""
    return f'{commit_id(commit.id, origin, 8)} <span class="subject">{escape(commit.subject)}</span>'


def _duration(last: Run | None) -> str:
    if not last:
        return ""
    return unbroken_span(last.ended - last.started) if last.ended else elapsed(last.started)
