"""The pages of one repository, one run and one delivery. Values in, HTML out, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gitops_hook.dashboard.charts import history_chart, timeline
from gitops_hook.dashboard.html import (
    Page,
    ago,
    commit_id,
    commit_line,
    commit_list,
    count,
    date_and_time,
    delivery_link,
    duration,
    elapsed,
    escape,
    facts,
    label,
    message,
    message_box,
    repository_link,
    repository_path,
    section,
    table,
)
from gitops_hook.dashboard.runs import RunWithCommits, next_command, reason, run_table
from gitops_hook.model import Delivery, Served
from gitops_hook.outcomes import BAD, GOOD, RUNNING, WAIT, outcome_of, severity_of
from gitops_hook.sync.checkouts import Position
from gitops_hook.sync.holds import Hold
from gitops_hook.sync.status import InForce, RepositoryStatus
from gitops_hook.text import span


class Output(NamedTuple):
    """The output of a run as HTML, and the path of the next part while the run continues."""

    html: str
    follow: str | None
    #: False if `html` is only the end of the output.
    whole: bool = True


def repository(
    status: RepositoryStatus,
    settings: Sequence[InForce],
    at: Position,
    runs: Sequence[RunWithCommits],
    older: int | None,
) -> Page:
    """Return the page of one repository. `older` is the run number below which there are more runs."""
    name = escape(status.repository)
    never = f"<p>No run yet. The next push starts one, or <code>gitops-hook sync {name}</code>.</p>"
    more = f'<p><a href="{repository_path(status.repository)}?before={older}">Older runs</a></p>' if older else ""
    gone = "<p>This host has no checkout of this repository.</p>"
    return Page(
        f"{status.repository}: {status.state} · gitops-hook",
        f'<h1>{name}</h1><p class="lead">{label(status.state)} confirmed in sync {ago(status.confirmed)}</p>'
        + message_box(reason(status), status.state)
        + f"<p>Next: {next_command(status.state, status.run, status.repository, status.hold)}</p>"
        + facts(_repository_facts(status, settings, at))
        + history_chart(status.history)
        + section("runs", "Runs", run_table(runs) + more if runs else never)
        + section("settings", "Settings", _settings(settings) if settings else gone),
        severity_of(status.state),
    )


def _repository_facts(status: RepositoryStatus, settings: Sequence[InForce], at: Position) -> list[tuple[str, str]]:
    """Return what an operator decided about a checkout, and how it differs from its branch."""
    own = {setting.name: setting.value or "" for setting in settings if setting.is_set}
    environment = status.repository.partition("@")[2] or own.get("environment", "")
    rows = [
        ("Tag", escape(status.tag or "")),
        ("Checked out", commit_line(status.commit, status.origin) or "nothing yet"),
        ("Environment", escape(environment)),
        (status.hold.state.title(), _hold(status.hold, status.origin)) if status.hold else ("", ""),
        ("Approved", commit_id(own.get("approved", ""), status.origin) if own.get("approved") else ""),
        ("Drift", _drift(at, status.origin) if status.path else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _hold(hold: Hold, origin: str) -> str:
    """Return the operator's decision: what, who, since when, why, until when."""
    parts = (
        f"at {commit_id(hold.commit, origin)}" if hold.commit else "",
        f"by {escape(hold.by)}" if hold.by else "",
        ago(hold.since) if hold.since else "",
        f"“{escape(hold.reason)}”" if hold.reason else "",
        f"until {date_and_time(hold.until)} UTC" if hold.until else "",
        "until the next push" if hold.until_push else "",
    )
    return ", ".join(part for part in parts if part) or "without a reason"


def _drift(at: Position, origin: str) -> str:
    if not at.head or not at.upstream:
        return "unknown: no run has fetched the branch yet"
    found = [
        f"{text} {commit_id(commit, origin)}"
        for text, commit in (("the branch is at", at.upstream), ("the last successful deploy is", at.deployed))
        if commit and commit != at.head
    ]
    if not found:
        return f"none: the commit of the branch is checked out{' and deployed' if at.deployed else ''}"
    return f"{commit_id(at.head, origin)} is checked out, {' and '.join(found)}"


def run(shown: RunWithCommits, served: Served, output: Output) -> Page:
    """Return the page of one run. `served` are the deliveries that it claimed."""
    current = shown.run
    outcome = current.outcome or RUNNING
    announced = served.deliveries[-1].after if served.deliveries and not current.outcome else ""
    commit = commit_line(shown.tried, shown.origin)
    if announced and not commit:
        commit = f"Deploys {commit_id(announced, shown.origin)}"
    state = outcome_of(outcome).state if current.outcome else RUNNING
    command = next_command(state, current, current.repository) if severity_of(outcome) in (BAD, WAIT) else ""
    return Page(
        f"Run {current.id}: {outcome}, {current.repository} · gitops-hook",
        f"<h1>{repository_link(current.repository)} "
        f'<span class="quiet">run {current.id}</span></h1>'
        f'<p class="lead">{label(outcome)} {duration(current)}, trigger: {escape(current.trigger)}</p>'
        + (f'<p class="stands">{commit}</p>' if commit else "")
        + message_box(message(current), current.outcome)
        + (f"<p>Next: {command}</p>" if command else ""),
        severity_of(current.outcome),
        static=section("output", "Output", _output(current.id, output)),
        after=timeline(current, served.received)
        + (_delivery_section(served) if served.number else "")
        + _commit_section(shown),
    )


def delivery(guid: str, deliveries: Sequence[Delivery], runs: Mapping[int, RunWithCommits]) -> Page:
    """Return the page of one push: the result of each time that it was delivered."""
    body = "".join(_delivered(delivery, runs.get(delivery.run)) for delivery in deliveries)
    return Page(
        f"Delivery {guid} · gitops-hook", f'<h1>Delivery <code class="guid">{escape(guid)}</code></h1>{body}', "rest"
    )


def _commit_section(shown: RunWithCommits) -> str:
    run = shown.run
    rows = [
        ("Before", f"<code>{escape(run.before or 'none')}</code>"),
        ("After", f"<code>{escape(run.after or 'none')}</code>"),
    ]
    if run.exit is not None:
        rows.append(("Exit", f"<code>{run.exit}</code>"))
    rows.append(("Started", f"{date_and_time(run.started)} UTC"))
    name = "Commits deployed" if severity_of(run.outcome) == GOOD else "Commits of this run"
    heading = f'{name} <span class="quiet">{shown.deployed_count}</span>' if shown.deployed else "Details"
    return section("commits", heading, shown.listed(shown.deployed or shown.commits[:1]) + facts(rows))


def _delivery_section(served: Served) -> str:
    rows = (
        (
            delivery_link(delivery.guid),
            escape(delivery.event),
            escape(delivery.pusher),
            f"<code>{escape(delivery.ref)}</code>",
            ago(delivery.received),
        )
        for delivery in served.deliveries
    )
    rest = served.number - len(served.deliveries)
    more = f"<p>And {rest} more.</p>" if rest else ""
    heading = f'Deliveries <span class="quiet">{served.number}</span>'
    return section("served", heading, table("served", ("GUID", "Event", "Pusher", "Ref", "Received"), rows) + more)


def _output(number: int, output: Output) -> str:
    note = ' <span id="following">New output appears here.</span>' if output.follow else ""
    follow = f' data-next="{escape(output.follow)}"' if output.follow else ""
    text = "As plain text" if output.whole else "The end of the output. All of it as plain text"
    toggle = (
        ' <label class="toggle"><input id="follow" type="checkbox" checked> Scroll to new output</label>'
        if output.follow
        else ""
    )
    return (
        f'<p class="quiet"><a href="/runs/{number}/log">{text}</a>{note}{toggle}</p>'
        f'<pre id="log" tabindex="0" aria-labelledby="output"{follow}>{output.html}</pre>'
    )


def _settings(settings: Sequence[InForce]) -> str:
    """Return the settings of the checkout itself, and the defaults folded."""
    own = [setting for setting in settings if setting.is_set]
    rest = [setting for setting in settings if not setting.is_set]
    folded = (
        f'<details id="defaults"><summary>{count(len(rest), "setting")} with the default</summary>'
        f"{_settings_table('defaults-table', rest)}</details>"
        if rest
        else ""
    )
    return (_settings_table("settings", own) if own else "<p>Every setting has its default.</p>") + folded


def _settings_table(name: str, settings: Iterable[InForce]) -> str:
    rows = (
        (
            f"<code>{'' if setting.name == 'origin' else 'gitops.'}{escape(setting.name)}</code>",
            "none" if setting.value is None else f"<code>{escape(setting.value)}</code>",
            escape(setting.origin),
        )
        for setting in settings
    )
    return table(name, ("Setting", "Value", "Source"), rows, "Settings")


def _delivered(delivery: Delivery, served_by: RunWithCommits | None) -> str:
    """Return one delivery: a sentence, and its result."""
    name = repository_link(delivery.repository)
    commit = f"<code>{escape(delivery.after[:10])}</code>" if delivery.after else "an unnamed commit"
    pusher = f"{escape(delivery.pusher)} pushed" if delivery.pusher else "A push of"
    return (
        f'<section class="became"><h2>{name} <span class="quiet">{ago(delivery.received)}</span></h2>'
        f"<p>{pusher} {commit} to <code>{escape(delivery.ref)}</code>.</p>"
        f"{_delivery_result(delivery, served_by)}</section>"
    )


def _delivery_result(delivery: Delivery, served_by: RunWithCommits | None) -> str:
    if not served_by:
        waiting = delivery.pending and not delivery.run
        return f'<p class="lead">{label("queued") if waiting else "The run is no longer in the journal."}</p>'
    shown = served_by.run
    link = f'<a href="/runs/{shown.id}">run {shown.id}</a>'
    if not shown.outcome or not shown.ended:
        return f'<p class="lead">{label(RUNNING)} {link}, since {elapsed(shown.started)}.</p>'
    again = " It will be retried." if delivery.pending else ""
    return (
        f'<p class="lead">{label(shown.outcome)} {link} ended {span(shown.ended - delivery.received)} after the push.'
        f"{again}</p>"
        + (f"<p>{message(shown)}</p>" if shown.message else "")
        + (commit_list(served_by.commits[:1], served_by.origin) if served_by.commits else "")
    )
