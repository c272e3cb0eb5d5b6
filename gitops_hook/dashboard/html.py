"""The private page as HTML: facts go in, text comes out; no I/O.

Rules:

1. All text from outside (names, messages, commits, logs) passes `_e` or `ansi.render` on its way in.
2. Everything is there without the script, which only loads the same pages again and swaps in what is within ``#live``.
3. No state is told by colour alone: there is a word beside it, or a mark in a picture, which has a text of its own.
4. The page may load nothing, and runs no script and obeys no style sheet but the two below (`POLICY`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import pkgutil
import re
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

from gitops_hook.model import COUNTED, Commit, Delivery, Run, Served
from gitops_hook.outcomes import RUNNING, STATES, severity_of
from gitops_hook.sync.status import InForce, RepositoryStatus
from gitops_hook.text import age, rfc3339, span, utc


def _shipped(name: str) -> str:
    return (pkgutil.get_data(__package__, name) or b"").decode()


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_STYLE, _SCRIPT = _shipped("page.css"), _shipped("page.js")
#: The Content-Security-Policy of every answer. The one image is the icon in the tab, which the page itself holds.
POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The columns of the overview; by all but the picture rows can be sorted, and with a minus before it the other way.
_COLUMNS = (
    ("repository", "Repository"),
    ("state", "State"),
    ("commit", "Commit"),
    ("confirmed", "Confirmed in sync"),
    ("past", "Last 30 runs"),
    ("run", "Last run"),
)
_PICTURE_COLUMN = "past"
#: What needs a person is listed on top with its fix; so much of it, for what is more has one cause, most likely.
MOST_CURES = 20
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Ccircle cx='4' cy='4' r='4' fill='%23{}'/%3E%3C/svg%3E"
)
_ICON_COLOURS = {"good": "2da44e", "wait": "d4a72c", "rest": "8c959f", "bad": "cf222e"}
_e = html.escape


class Health(NamedTuple):
    """How the daemon itself is."""

    version: str
    #: When it started, in seconds since the epoch.
    started: float
    #: Why the journal cannot be written, or None if it can.
    fault: str | None
    #: Runs of the script now, and deliveries that no run has settled yet.
    running: int
    pending: int


class Query(NamedTuple):
    """What the overview was asked for."""

    words: str = ""
    state: str = ""
    order: str = "state"

    def but(self, **changes: str) -> str:
        """The address of the overview with these changes."""
        asked = self._replace(**changes)
        given = {"q": asked.words, "state": asked.state, "sort": asked.order if asked.order != "state" else ""}
        given = {name: value for name, value in given.items() if value}
        return "/?" + urlencode(given) if given else "/"


class Output(NamedTuple):
    """What a run has printed, as HTML, and while it is in hand the address where what comes next is to be had."""

    html: str
    follow: str | None


class Chapter(NamedTuple):
    """A run, and what belongs to it."""

    run: Run
    commits: Sequence[Commit]


def overview(
    everything: Sequence[RepositoryStatus],
    shown: Sequence[RepositoryStatus],
    query: Query,
    health: Health,
    tails: Mapping[int, str],
) -> str:
    """The first page: `shown` of `everything`, in the order in which they are given.

    `tails` are, as HTML, the last lines of runs by their numbers, as far as they are known.
    """
    needy = [standing for standing in everything if severity_of(standing.state) == "bad"]
    title = f"{len(needy)} need you · gitops-hook" if needy else "gitops-hook"
    worst = "bad" if needy or health.fault else "good"
    if not everything:
        return _document(title, _health(health) + _BEGIN, worst)
    counts = Counter(standing.state for standing in everything)
    fixes = [standing for standing in shown if is_urgent(standing)][:MOST_CURES]
    return _document(
        title,
        '<h1 class="unseen">Where each repository stands</h1>'
        + _health(health)
        + _chips(counts, len(everything), query)
        + (_needs(fixes, tails) if fixes else "")
        + (_repositories(shown, query) if shown else _nothing(query)),
        worst,
        query.words,
    )


def repository(
    standing: RepositoryStatus, settings: Sequence[InForce], runs: Sequence[Chapter], older: int | None
) -> str:
    """The page of one repository; `older` is the id below which there are more runs."""
    name = _e(standing.repository)
    never = f"<p>It never ran. It does at the next push, or with <code>gitops-hook sync {name}</code>.</p>"
    more = f'<p><a href="{_repository_path(standing.repository)}?before={older}">Older runs</a></p>' if older else ""
    gone = "<p>There is no checkout of it on this host (any more).</p>"
    return _document(
        f"{standing.repository} · gitops-hook",
        f'<h1>{name}</h1><p class="lead">{_word(standing.state)} last confirmed in sync {_ago(standing.confirmed)}</p>'
        + (_fix(standing.run) if standing.run and standing.fix else "")
        + f'<p class="stands">{_commit(standing.commit)}</p>{_picture(standing.history)}'
        + _section("runs", "Runs", _runs(runs) + more if runs else never)
        + _section("settings", "Settings in force", _settings(settings) if settings else gone),
        severity_of(standing.state),
    )


def run(chapter: Chapter, served: Served, output: Output) -> str:
    """The page of one run."""
    told = chapter.run
    name = _e(told.repository)
    outcome = told.outcome or RUNNING
    return _document(
        f"Run {told.id}: {outcome}, {told.repository} · gitops-hook",
        f'<h1><a href="{_repository_path(told.repository)}">{name}</a> <span class="quiet">run {told.id}</span></h1>'
        f'<p class="lead">{_word(outcome)} {_took(told)}, trigger: {_e(told.trigger)}</p>'
        + _fix(told)
        + _time_line(told, served.received)
        + _moved(told, chapter.commits)
        + (_served(served) if served.number else ""),
        severity_of(told.outcome),
        behind=_section("output", "Output", _output(told.id, output)),
    )


def delivery(guid: str, deliveries: Sequence[Delivery], runs: Mapping[int, Chapter]) -> str:
    """What became of one push, each time that it was delivered."""
    body = "".join(_became(delivery, runs.get(delivery.run)) for delivery in deliveries)
    return _document(
        f"Delivery {guid} · gitops-hook", f'<h1>Delivery <code class="guid">{_e(guid)}</code></h1>{body}', "rest"
    )


def problem(status: str, reason: str) -> str:
    """What is shown where there is nothing to show."""
    return _document(
        f"{status} · gitops-hook",
        f'<h1>{_e(status.partition(" ")[2])}</h1><p>{_e(reason[:1].upper() + reason[1:])}.</p>'
        '<p><a href="/">All repositories</a></p>',
        "rest",
    )  # fmt: skip


def is_urgent(standing: RepositoryStatus) -> bool:
    """Whether this stands on top of the overview, with its fix."""
    return standing.fix is not None and severity_of(standing.state) == "bad"


def _document(title: str, live: str, worst: str, words: str = "", behind: str = "") -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{_e(title)}</title><link rel="icon" href="{_ICON.format(_ICON_COLOURS[worst])}">'
        f"<style>{_STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        '<header><a class="home" href="/">gitops-hook</a><form role="search" action="/" method="get">'
        '<label for="q">Search</label>'
        f'<input id="q" name="q" type="search" value="{_e(words)}" autocomplete="off" spellcheck="false"'
        ' placeholder="repository, commit, author, GUID"><button>Search</button></form></header>'
        f'<p id="said" role="status"></p><main id="main" tabindex="-1"><div id="live">{live}</div>{behind}</main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(name: str, heading: str, body: str) -> str:
    """A part of a page with its heading, both called `name`."""
    return f'<section class="{name}" aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{body}</section>'


def _table(name: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML, the first of each row its heading; on a narrow screen it scrolls in itself."""
    heading = "".join(f'<th scope="col">{word}</th>' for word in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="group" aria-labelledby="{name}"><table>'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


_BEGIN = """<section class="begin"><h1>No repository yet</h1>
<p>On this host, as root, for each repository that is to go live when it is pushed:</p>
<pre>gitops-hook add OWNER/NAME --deploy 'sh deploy.sh'</pre>
<p>It clones the repository or adopts the checkout that is there, syncs it, and tells what to enter at the forge.
<code>--deploy</code> is what to run in the checkout after it moved; leave it out where moving the files is all.</p>
<p><code>gitops-hook doctor</code> looks whether this host has all that it takes, and
<code>gitops-hook send OWNER/NAME</code> tries the whole way with a push of its own.</p></section>"""


def _health(health: Health) -> str:
    state = f"The journal cannot be written: {_e(health.fault)}" if health.fault else "The daemon is well"
    facts = [
        f"up {age(health.started)}",
        f"{_count(health.running, 'run')} in hand",
        f"{_count(health.pending, 'delivery', 'deliveries')} owed",
        f"version {_e(health.version)}",
    ]
    return (
        f'<p class="health"><span class="word {"bad" if health.fault else "good"}">{state}</span> '
        + " ".join(f"<span>{fact}</span>" for fact in facts)
        + "</p>"
    )


def _chips(counts: Mapping[str, int], total: int, query: Query) -> str:
    chips = [("", "all", total, "all"), *((state, state, counts[state], severity_of(state)) for state in STATES)]
    links = (
        f'<li><a class="chip {kind}" href="{_e(query.but(state=state))}"'
        + (' aria-current="true"' if state == query.state else "")
        + f"><b>{number}</b> {word}</a></li>"
        for state, word, number, kind in chips
        if number
    )
    return f'<nav aria-label="States"><ul class="chips">{"".join(links)}</ul></nav>'


def _needs(fixes: Sequence[RepositoryStatus], tails: Mapping[int, str]) -> str:
    rows = "".join(_need(standing, standing.run, tails) for standing in fixes if standing.run)
    return _section("needs", "Needs you", f"<ul>{rows}</ul>")


def _need(standing: RepositoryStatus, run: Run, tails: Mapping[int, str]) -> str:
    tail = tails.get(run.id)
    return (
        f'<li><h3><a href="{_repository_path(standing.repository)}">{_e(standing.repository)}</a> '
        f'{_word(run.outcome or RUNNING)} <span class="quiet">{_ago(run.ended)}</span></h3>'
        f"<p>{_message(run)}</p>"
        + (f'<pre class="tail">{tail}</pre>' if tail else "")
        + f'<p><a href="/runs/{run.id}">Run {run.id}, with its output</a></p></li>'
    )


def _nothing(query: Query) -> str:
    asked = " and ".join(f"“{_e(word)}”" for word in (query.words, query.state) if word)
    return f'<p>Nothing here is called, or said by, {asked}. <a href="/">Show all</a></p>'


def _repositories(shown: Iterable[RepositoryStatus], query: Query) -> str:
    head = "".join(_heading(name, heading, query) for name, heading in _COLUMNS)
    rows = "".join(map(_repository_row, shown))
    return (
        f'<table class="overview"><caption>Repositories</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _heading(name: str, heading: str, query: Query) -> str:
    if name == _PICTURE_COLUMN:
        return f'<th scope="col" class="{name}">{heading}</th>'
    sorting = {name: "ascending", f"-{name}": "descending"}.get(query.order)
    address = query.but(order=f"-{name}" if sorting == "ascending" else name)
    aria = f' aria-sort="{sorting}"' if sorting else ""
    return f'<th scope="col" class="{name}"{aria}><a href="{_e(address)}">{heading}</a></th>'


def _repository_row(standing: RepositoryStatus) -> str:
    run = standing.run
    last = (
        f'<a href="/runs/{run.id}">{run.outcome or RUNNING}</a> <span class="quiet">{_took(run)}</span>' if run else ""
    )
    return (
        f'<tr><th scope="row"><a href="{_repository_path(standing.repository)}">{_name(standing.repository)}</a></th>'
        f'<td class="state">{_word(standing.state)}</td><td class="commit">{_commit(standing.commit)}</td>'
        f'<td class="confirmed">{_ago(standing.confirmed)}</td><td class="past">{_picture(standing.history)}</td>'
        f'<td class="run">{last}</td></tr>'
    )


#: A bar's width with its gap, how many there are, and where they stand; below that bad ones have their mark.
_BAR, _BARS, _BASE = 4, 30, 24
#: Each bar's beginning, the newest at the right, and its mark.
_PLACES = tuple((f"M{left} {_BASE}v-", f"M{left} {_BASE + 2}v3") for left in range(_BAR * _BARS - 2, 0, -_BAR))
#: From how many seconds on a bar is a step higher: ten times as long makes it five higher, so that both a run of 10 ms
#: shows and one of 10 minutes fits. Tables, since a page of 1,000 repositories draws 30,000 bars.
_STEPS = tuple((10 ** (step / 5) - 1) / 100 for step in range(1, _BASE - 1))


def _picture(history: Sequence[tuple[str | None, float, float | None]]) -> str:
    """The last runs as bars: height is duration, colour is outcome; a bad one has a mark below."""
    if not history:
        return ""
    now = time.time()
    bars: dict[str | None, str] = {}
    for (outcome, started, ended), (place, mark) in zip(history, _PLACES):
        height = bisect(_STEPS, (now if ended is None else ended) - started) + 1
        bars[outcome] = f"{bars.get(outcome, '')}{place}{height}{mark if severity_of(outcome) == 'bad' else ''}"
    outcomes = Counter(outcome or RUNNING for outcome, _, _ in history)
    told = ", ".join(f"{number} {word}" for word, number in outcomes.most_common())
    paths = "".join(f'<path class="{severity_of(outcome)}" d="{drawn}"/>' for outcome, drawn in bars.items())
    return (
        f'<svg class="past" viewBox="0 0 {_BAR * _BARS} {_BASE + 6}" role="img">'
        f"<title>Last {_count(len(history), 'run')}: {_e(told)}</title>{paths}</svg>"
    )


#: What a run goes through, by what is over at the end of each part.
_PARTS = (
    ("started", "Queued"),
    ("fetched", "Fetched"),
    ("deployed", "Deployed"),
    ("healthy", "Healthy"),
    ("ended", ""),
)
#: What a run's end is called, by how its outcome is to be taken.
_ENDS = {"good": "Done", "bad": "Failed"}


def _time_line(run: Run, received: float | None) -> str:
    """From the delivery to the end, as a list and as a bar of the same parts."""
    begin = last = run.started if received is None else min(received, run.started)
    items = [_moment("received" if received else "started", "Received" if received else "Started", begin, "")]
    parts = []
    for step, label in _PARTS:
        moment = getattr(run, step)
        if moment is None or (step == "started" and received is None):
            continue
        called = label or _ENDS.get(severity_of(run.outcome), "Ended")
        items.append(_moment(step, called, moment, f"after {span(moment - last)}"))
        parts.append((step, last - begin, moment - last))
        last = moment
    whole = (last - begin) or 1.0
    rects = "".join(
        f'<rect class="{step}" x="{1000 * before / whole:.1f}" width="{1000 * taken / whole:.1f}" height="10"/>'
        for step, before, taken in parts
    )
    bar = f'<svg class="line" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'
    total = f"{span(last - begin)} in all" if run.outcome else "so far"
    heading = f'Time line <span class="quiet">{total}</span>'
    return _section("line", heading, f'{bar if parts else ""}<ol class="line">{"".join(items)}</ol>')


def _moment(step: str, label: str, moment: float, note: str) -> str:
    clock = utc(moment).strftime("%H:%M:%S.%f")[:-3]
    when = f'<time datetime="{rfc3339(moment)}" title="{_when(moment)} UTC">{clock}</time>'
    return f'<li class="{step}"><b>{label}</b> {when} <span class="quiet">{note}</span></li>'


def _moved(run: Run, commits: Sequence[Commit]) -> str:
    rows = [
        ("Before", f"<code>{_e(run.before or 'none')}</code>"),
        ("After", f"<code>{_e(run.after or 'none')}</code>"),
    ]
    if run.exit is not None:
        rows.append(("Exit", f"<code>{run.exit}</code>"))
    rows.append(("Started", f"{_when(run.started)} UTC"))
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    brought = _brought(run, commits)
    heading = f'Commits it brought <span class="quiet">{_how_many(run)}</span>' if brought else "Where it stands"
    listed = brought or commits[:1]
    return _section("commits", heading, f"{_commits(listed)}{_rest(run, listed)}<dl>{facts}</dl>")


def _brought(run: Run, commits: Sequence[Commit]) -> Sequence[Commit]:
    """Of what is kept of a run, what it brought: not the one at which it found its checkout."""
    return commits[: run.brought or 0]


def _how_many(run: Run) -> str:
    return f"{run.brought} or more" if run.brought == COUNTED else str(run.brought)


def _rest(run: Run, listed: Sequence[Commit]) -> str:
    rest = (run.brought or 0) - len(listed)
    return f"<p>And {rest} {'or ' if run.brought == COUNTED else ''}more before these.</p>" if rest > 0 else ""


def _commits(commits: Iterable[Commit]) -> str:
    return '<ul class="commits">' + "".join(f"<li>{_commit(commit)}</li>" for commit in commits) + "</ul>"


def _served(served: Served) -> str:
    rows = (
        (
            _guid(delivery.guid),
            _e(delivery.event),
            _e(delivery.pusher),
            f"<code>{_e(delivery.ref)}</code>",
            _ago(delivery.received),
        )
        for delivery in served.deliveries
    )
    rest = served.number - len(served.deliveries)
    more = f"<p>And {rest} more.</p>" if rest else ""
    heading = f'Deliveries it served <span class="quiet">{served.number}</span>'
    return _section("served", heading, _table("served", ("GUID", "Event", "Pusher", "Ref", "Received"), rows) + more)


def _output(run: int, output: Output) -> str:
    grows = ' <span id="following">It grows here as the run prints.</span>' if output.follow else ""
    follow = f' data-next="{_e(output.follow)}"' if output.follow else ""
    return (
        f'<p class="quiet"><a href="/runs/{run}/log">As plain text</a>{grows}</p>'
        f'<pre id="log" tabindex="0" aria-labelledby="output"{follow}>{output.html}</pre>'
    )


def _runs(chapters: Iterable[Chapter]) -> str:
    rows = (
        (
            f'<a href="/runs/{run.id}">{run.id}</a>',
            _word(run.outcome or RUNNING),
            _ago(run.started),
            _span((run.ended or time.time()) - run.started),
            _e(run.trigger),
            _brought_in_short(run, commits),
        )
        for run, commits in chapters
    )
    return _table("runs", ("Run", "Outcome", "Started", "Took", "Trigger", "Brought"), rows)


def _brought_in_short(run: Run, commits: Sequence[Commit]) -> str:
    brought = _brought(run, commits)
    if len(brought) < 2:
        return _commit(brought[0]) if brought else ""
    return (
        f'<details id="r{run.id}"><summary>{_how_many(run)} commits: {_e(brought[0].subject)}</summary>'
        f"{_commits(brought)}{_rest(run, brought)}</details>"
    )


def _settings(settings: Iterable[InForce]) -> str:
    rows = (
        (
            f"<code>{'' if name == 'origin' else 'gitops.'}{_e(name)}</code>",
            "none" if value is None else f"<code>{_e(value)}</code>",
            _e(origin),
        )
        for name, value, origin in settings
    )
    return _table("settings", ("Setting", "Value", "Where it comes from"), rows)


def _became(delivery: Delivery, chapter: Chapter | None) -> str:
    """What became of one delivery: a sentence, and the facts."""
    name = f'<a href="{_repository_path(delivery.repository)}">{_e(delivery.repository)}</a>'
    commit = f"<code>{_e(delivery.after[:10])}</code>" if delivery.after else "a commit that it did not name"
    pusher = f"{_e(delivery.pusher)} pushed" if delivery.pusher else "A push of"
    return (
        f'<section class="became"><h2>{name} <span class="quiet">{_ago(delivery.received)}</span></h2>'
        f"<p>{pusher} {commit} to <code>{_e(delivery.ref)}</code>.</p>{_fate(delivery, chapter)}</section>"
    )


def _fate(delivery: Delivery, chapter: Chapter | None) -> str:
    if not chapter:
        waits = delivery.pending and not delivery.run
        told = f"{_word('queued')} It waits for its turn." if waits else "Its run is not remembered any more."
        return f'<p class="lead">{told}</p>'
    run = chapter.run
    link = f'<a href="/runs/{run.id}">run {run.id}</a>'
    if not run.outcome or not run.ended:
        return f'<p class="lead">{_word(RUNNING)} {link} is at work on it, since {age(run.started)}.</p>'
    again = ", and is tried again" if delivery.pending else ""
    return (
        f'<p class="lead">{_word(run.outcome)} {link} ended {span(run.ended - delivery.received)} after it was received'
        f"{again}.</p>"
        + (f"<p>{_message(run)}</p>" if run.message else "")
        + (_commits(chapter.commits[:1]) if chapter.commits else "")
    )


#: Where in a message a command begins; it ends with the part of the sentence.
_COMMAND = re.compile(r"\b(?:git -C|git clone|sudo|mkdir -p|mv|rm|gitops_sync\.sh|gitops-hook|systemctl) [^;,]+")


def _command(message: str) -> str:
    """A message, with the commands in it told from the words around them."""
    parts, begin = [], 0
    for command in _COMMAND.finditer(message):
        parts.append(f"{_e(message[begin : command.start()])}<code>{_e(command[0])}</code>")
        begin = command.end()
    return "".join(parts) + _e(message[begin:])


def _message(run: Run) -> str:
    """What a run has to say, without the repository's name before it, which stands above."""
    return _command((run.message or "").removeprefix(f"{run.repository}: "))


def _fix(run: Run) -> str:
    return f'<p class="fix {severity_of(run.outcome)}">{_message(run)}</p>' if run.message else ""


def _word(word: str) -> str:
    return f'<span class="word {severity_of(word)}">{_e(word)}</span>'


def _commit(commit: Commit | None) -> str:
    if not commit:
        return ""
    subject = f' <span class="subject">{_e(commit.subject)}</span>' if commit.subject else ""
    by = f' <span class="quiet">{_e(commit.author)}, {_ago(commit.time)}</span>' if commit.author else ""
    return f"<code>{_e(commit.id[:10])}</code>{subject}{by}"


def _name(repository: str) -> str:
    """A repository's name, with a place where a narrow column may break it."""
    return _e(repository).replace("/", "/<wbr>")


def _guid(guid: str) -> str:
    return f'<a href="/deliveries/{quote(guid, safe="")}"><code>{_e(guid)}</code></a>' if guid else "none"


def _repository_path(repository: str) -> str:
    return "/repositories/" + quote(repository)


def _took(run: Run) -> str:
    return f"{_span(run.ended - run.started)}, {_ago(run.ended)}" if run.ended else f"since {age(run.started)}"


def _span(seconds: float) -> str:
    """A time span that no line's end tears apart."""
    return span(seconds).replace(" ", "\u00a0")


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    when = _when(moment)
    return f'<time datetime="{when}Z" title="{when} UTC">{age(moment)} ago</time>'


def _when(moment: float) -> str:
    """The date and the time of day, to the second, in UTC."""
    return utc(moment).isoformat(" ")[:19]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
