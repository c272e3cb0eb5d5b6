"""The pages of a fleet: every checkout on every host as a grid, and one checkout on its hosts. Values in, HTML out.

A row of the grid is one chart instead of one cell per host, so a page of 50 checkouts on 100 hosts stays small. The
words beside it state the same as the chart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlencode

from gitops_hook.dashboard.html import (
    MakePage,
    Page,
    ago,
    command,
    count,
    escape,
    keyed,
    label,
    section,
    table,
)
from gitops_hook.errors import HTTPError
from gitops_hook.model import FleetCell, FleetGrid, FleetHalt, FleetHost, FleetRow, FleetStage
from gitops_hook.outcomes import BAD, FLEET_STATES, GOOD, REST, WAIT, severity_of

#: The checkouts of a page.
PAGE_SIZE = 50
#: The width of a column with its gap, and the height of the chart.
_COLUMN, _HEIGHT = 5, 18
#: The top and the height of a bar by severity: the shape alone shows it, too.
_BARS = {BAD: "2v16", WAIT: "8v10", REST: "15v3", GOOD: "12v6"}
#: The hosts that a row names, and characters of a reason or a commit.
_NAMED, _REASON, _SHORT = 3, 90, 10
#: The longest wait for the first state in seconds. The page asks again by itself.
_PATIENCE = 2.0


class Fleet(Protocol):
    """The source of the pages. The methods return None while the fleet's state cannot be read."""

    def grid(self, words: str, state: str, page: int, size: int, patience: float) -> FleetGrid | None:
        """Return one page of the grid, after at most `patience` seconds."""

    def row(self, checkout: str, patience: float) -> FleetRow | None:
        """Return one checkout. Raises KeyError if no host has it."""


class Query(NamedTuple):
    """A request for the grid. `page` counts from 1."""

    words: str = ""
    state: str = ""
    page: int = 1

    def path(self, **changes: object) -> str:
        """Return the path of the grid with these changes to the query. A change leads to the first page."""
        query = self._replace(page=1)._replace(**changes)  # type: ignore[arg-type]
        fields = {"q": query.words, "state": query.state, "page": str(query.page) if query.page > 1 else ""}
        fields = {name: value for name, value in fields.items() if value}
        return "/fleet?" + urlencode(fields) if fields else "/fleet"


def fleet_pages(fleet: Fleet) -> dict[str, MakePage]:
    """Return the pages by the patterns of their paths."""

    def grid(given: dict[str, str]) -> Callable[[Collection[str]], Page]:
        number = given.get("page", "1")
        query = Query(given.get("q", "").strip(), given.get("state", ""), int(number[:9]) if number.isdecimal() else 1)
        found = fleet.grid(query.words, query.state, max(1, query.page), PAGE_SIZE, _PATIENCE)
        return lambda known: grid_page(found, query, known) if found else _no_state()

    def checkout(given: dict[str, str], name: str) -> Callable[[Collection[str]], Page]:
        try:
            row = fleet.row(name, _PATIENCE)
        except KeyError:
            raise HTTPError(404, "no host of the fleet has this checkout") from None
        return lambda known: checkout_page(row) if row else _no_state()

    return {"/fleet": grid, r"/fleet/([^/]+(?:/[^/]+)?)": checkout}


def _no_state() -> Page:
    return Page(
        "Fleet",
        '<h1 class="verdict">The state of the fleet is not available</h1>'
        "<p>This host is reading it, or etcd does not answer. This page refreshes itself. On this host, "
        f"{command('gitops-hook doctor')} checks the connection.</p>",
        "wait",
    )


def grid_page(grid: FleetGrid, query: Query, known: Collection[str] = ()) -> Page:
    """Return the page of the whole fleet. `known` are the keys of the rows that the browser has already."""
    total = sum(grid.counts.values())
    failed, halted = grid.counts.get("failed", 0), sum(bool(row.halt) for row in grid.rollouts)
    severity = "bad" if failed or halted else "good" if grid.counts.get("up to date", 0) == total else "wait"
    verdict = _verdict(grid, total, failed, halted)
    live = (
        f'<h1 class="verdict {severity}">{verdict}</h1>{_hosts(grid.hosts)}{_filters(grid, query, total)}'
        f"{_rollouts(grid)}{_rows(grid, query, known)}"
        f"<footer><span>fleet {escape(grid.fleet)}</span><span>as of revision {grid.revision}</span></footer>"
    )
    return Page(f"{verdict} · fleet {grid.fleet}", live, severity, failed)


def _verdict(grid: FleetGrid, total: int, failed: int, halted: int) -> str:
    if failed:
        return f"{failed} of {count(total, 'checkout')} failed on a host"
    if halted:
        return f"{count(halted, 'roll-out')} halted"
    current = grid.counts.get("up to date", 0)
    if current == total:
        return f"{count(total, 'checkout')} up to date on every host"
    return f"{current} of {count(total, 'checkout')} up to date on every host"


def _hosts(hosts: Sequence[FleetHost]) -> str:
    """Return the number of live hosts, and each offline one with its age."""
    offline = [host for host in hosts if not host.is_live]
    listed = "".join(
        f"<li>{label('offline')} <b>{escape(host.name)}</b> "
        f'<span class="quiet">last seen {ago(host.seen or None)}</span></li>'
        for host in offline
    )
    text = f"<p>{count(len(hosts), 'host')}, {len(hosts) - len(offline)} live, {len(offline)} offline.</p>"
    if not offline:
        return text
    return f'<details id="offline"><summary>{text[3:-4]}</summary><ul class="offline">{listed}</ul></details>'


def _filters(grid: FleetGrid, query: Query, total: int) -> str:
    entries = [("", "all", total, "all")]
    entries += [(state, state, grid.counts.get(state, 0), severity) for state, severity in FLEET_STATES.items()]
    links = "".join(
        f'<li><a class="chip {kind}" href="{escape(query.path(state=state))}"'
        + (' aria-current="true"' if state == query.state else "")
        + f"><b>{number}</b> {word}</a></li>"
        for state, word, number, kind in entries
        if number
    )
    return f'<nav aria-label="States"><ul class="chips">{links}</ul></nav>'


# -- roll-outs --------------------------------------------------------------------------------------------------------


def _rollouts(grid: FleetGrid) -> str:
    if not grid.rollouts:
        return ""
    items = "".join(
        f'<li><a href="{fleet_path(row.checkout)}">{escape(row.checkout)}</a>{_steps(row)}</li>'
        for row in grid.rollouts
    )
    more = f'<p class="more">{grid.more_rollouts} more</p>' if grid.more_rollouts else ""
    return section("rollouts", "Current roll-outs", f"<ul>{items}</ul>{more}")


def _steps(row: FleetRow) -> str:
    """Return the stages in their order, and what halted them."""
    stages = "".join(_step(stage, row.halt) for stage in row.stages)
    return f'<ol class="stages">{stages}</ol>' + (_halt(row, row.halt) if row.halt else "")


def _step(stage: FleetStage, halt: FleetHalt | None) -> str:
    if not stage.target:
        word, severity, detail = "waiting", "rest", "no commit has reached it"
    elif halt and halt.commit in ("", stage.target) and stage.passed != stage.target:
        word, severity, detail = "halted", "bad", f"<code>{escape(stage.target[:_SHORT])}</code>"
    elif stage.passed == stage.target:
        word, severity, detail = "passed", "good", f"<code>{escape(stage.passed[:_SHORT])}</code>"
    else:
        word, severity, detail = "deploying", "wait", f"<code>{escape(stage.target[:_SHORT])}</code>"
    return (
        f'<li><b>{escape(stage.plan)}</b> <span class="word {severity}">{word}</span> {detail} '
        f'<span class="quiet">{f"{stage.done} of " if stage.target else ""}{count(stage.hosts, "host")}</span></li>'
    )


def _halt(row: FleetRow, halt: FleetHalt) -> str:
    what = f"<code>{escape(halt.commit[:_SHORT])}</code>" if halt.commit else "every commit"
    reason = f": {escape(halt.reason)}" if halt.reason else ""
    return (
        f'<p class="fix bad">{escape(halt.by)} halted {what} {ago(halt.at)}{reason}<br>'
        f"Next: {command(f'gitops-hook fleet resume {row.checkout}')}, or push a newer commit.</p>"
    )


# -- the grid ---------------------------------------------------------------------------------------------------------


def _rows(grid: FleetGrid, query: Query, known: Collection[str]) -> str:
    if not grid.rows:
        return '<p>No checkout matches. <a href="/fleet">Show all</a></p>'
    head = "".join(
        f'<th scope="col" class="{name}">{text}</th>'
        for name, text in (
            ("checkout", "Checkout"),
            ("current", "Up to date"),
            ("attention", "Attention"),
            ("hosts", f"Hosts {_groups(grid.hosts)}"),
        )
    )
    rows = "".join(keyed("tr", _row(row, grid.hosts), known) for row in grid.rows)
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="Checkouts by hosts"><table class="grid">'
        f"<caption>Checkouts</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{_pager(grid, query)}"
    )


def _groups(hosts: Sequence[FleetHost]) -> str:
    """Return the stages of the columns from left to right, each with its number of hosts."""
    numbers = Counter(host.stage or "no stage" for host in hosts)
    return f'<span class="quiet">{", ".join(f"{escape(name)} {number}" for name, number in numbers.items())}</span>'


def _row(row: FleetRow, hosts: Sequence[FleetHost]) -> str:
    numbers = Counter(cell.state for cell in row.cells)
    return (
        f'<th scope="row"><a href="{fleet_path(row.checkout)}">{escape(row.checkout)}</a></th>'
        f"<td>{numbers['up to date']} of {len(row.cells)}</td><td>{_attention(row, numbers)}</td>"
        f"<td>{_chart(row, hosts, numbers)}</td>"
    )


def _attention(row: FleetRow, numbers: Counter[str]) -> str:
    """Return the number of hosts in each other state, and the first hosts of the worst one."""
    words = [
        f'<span class="word {severity}">{numbers[state]} {state}</span>'
        for state, severity in FLEET_STATES.items()
        if numbers[state] and severity != GOOD
    ]
    worst = [cell.host.name for cell in row.cells if cell.state == row.state and severity_of(row.state) != GOOD]
    names = ", ".join(map(escape, worst[:_NAMED])) + (f" and {len(worst) - _NAMED} more" if worst[_NAMED:] else "")
    return " ".join(words) + (f' <span class="quiet">{names}</span>' if names else "")


def _chart(row: FleetRow, hosts: Sequence[FleetHost], numbers: Counter[str]) -> str:
    """Return one bar for each host in the order of the columns; a host without the checkout has none."""
    states = {cell.host.name: cell.state for cell in row.cells}
    paths: dict[str, str] = {}
    for number, host in enumerate(hosts):
        if host.name in states:
            severity = severity_of(states[host.name])
            paths[severity] = f"{paths.get(severity, '')}M{number * _COLUMN + 2} {_BARS[severity]}"
    summary = ", ".join(f"{numbers[state]} {state}" for state in FLEET_STATES if numbers[state])
    width = _COLUMN * len(hosts)
    return (
        f'<svg class="hosts" viewBox="0 0 {width} {_HEIGHT + 2}" width="{width}" height="{_HEIGHT + 2}" role="img">'
        f"<title>{escape(row.checkout)}: {summary}</title>"
        + "".join(f'<path class="{severity}" d="{path}"/>' for severity, path in paths.items())
        + "</svg>"
    )


def _pager(grid: FleetGrid, query: Query) -> str:
    first = (query.page - 1) * PAGE_SIZE
    if grid.matching <= PAGE_SIZE:
        return ""
    links = [f"<span>{first + 1} to {min(first + PAGE_SIZE, grid.matching)} of {grid.matching}</span>"]
    if query.page > 1:
        links.insert(0, f'<a rel="prev" href="{escape(query.path(page=query.page - 1))}">Previous</a>')
    if first + PAGE_SIZE < grid.matching:
        links.append(f'<a rel="next" href="{escape(query.path(page=query.page + 1))}">Next</a>')
    return f'<nav class="pager" aria-label="Pages">{" ".join(links)}</nav>'


# -- one checkout -----------------------------------------------------------------------------------------------------


def fleet_path(checkout: str) -> str:
    """Return the path of a checkout's page."""
    return "/fleet/" + quote(checkout)


def checkout_page(row: FleetRow) -> Page:
    """Return the page of one checkout on all of its hosts, those that need attention first."""
    numbers = Counter(cell.state for cell in row.cells)
    order = list(FLEET_STATES)
    cells = sorted(row.cells, key=lambda cell: order.index(cell.state))
    severity = severity_of(row.state) if row.cells else REST
    requested = f"<code>{escape(row.requested[:_SHORT])}</code> requested {ago(row.received)}" if row.requested else ""
    live = (
        f'<h1>{escape(row.checkout)}</h1><p class="lead">{numbers["up to date"]} of '
        f"{count(len(cells), 'host')} up to date{'. ' if requested else ''}{requested}</p>"
        + (section("rollouts", "Roll-out", _steps(row)) if row.stages else "")
        + section(
            "by-host",
            "Hosts",
            table("by-host", ("Host", "State", "Stage", "Commit", "Outcome", "Since", "Details"), map(_host, cells)),
        )
        + '<p><a href="/fleet">All checkouts</a></p>'
    )
    return Page(f"{row.checkout} · fleet", live, severity)


def _host(cell: FleetCell) -> Sequence[str]:
    expected = f" instead of {escape(cell.expected[:_SHORT])}" if cell.expected not in ("", cell.commit) else ""
    seen = f" last seen {ago(cell.host.seen or None)}." if not cell.host.is_live else ""
    return (
        escape(cell.host.name),
        label(cell.state),
        escape(cell.host.stage),
        f"<code>{escape(cell.commit[:_SHORT])}</code>{expected}",
        label(cell.outcome) if cell.outcome else "",
        ago(cell.ended or None),
        escape(cell.message[:_REASON]) + seen,
    )
