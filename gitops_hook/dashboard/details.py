"""The pages of one repository, one run and one delivery. Values in, HTML out, without I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gitops_hook.dashboard.charts import history_chart, timeline
from gitops_hook.dashboard.html import (
    Page,
    ago,
    commit_line,
    commit_list,
    count,
    date_and_time,
    delivery_link,
    duration,
    escape,
    label,
    message,
    message_box,
    repository_path,
    section,
    table,
    unbroken_span,
)
from gitops_hook.dashboard.pages import next_command
from gitops_hook.model import COUNTED, Commit, Delivery, Run, Served
from gitops_hook.outcomes import BAD, GOOD, RUNNING, outcome_of, severity_of
from gitops_hook.sync.status import InForce, RepositoryStatus
from gitops_hook.text import age, span

#: The outcome after which the rejected commit is not the one that is checked out.
ROLLED_BACK = "rolled-back"
#: The outcomes of a run that did not try to deploy.
_NOT_TRIED = ("paused", "unchanged", "unreachable", "early", "no-access")


class Output(NamedTuple):
    """The output of a run as HTML, and the path of the next part while the run continues."""

    html: str
    follow: str | None
    #: False if `html` is only the end of the output.
    whole: bool = True


class RunWithCommits(NamedTuple):
    """A run and the commits that it deployed, newest first."""

    run: Run
    commits: Sequence[Commit]


def repository(
    status: RepositoryStatus, settings: Sequence[InForce], runs: Sequence[RunWithCommits], older: int | None
) -> Page:
    """Return the page of one repository. `older` is the run number below which there are more runs."""
    name = escape(status.repository)
    never = f"<p>No run yet. The next push starts one, or <code>gitops-hook sync {name}</code>.</p>"
    more = f'<p><a href="{repository_path(status.repository)}?before={older}">Older runs</a></p>' if older else ""
    gone = "<p>This host has no checkout of this repository.</p>"
    return Page(
        f"{status.repository}: {status.state} · gitops-hook",
        f'<h1>{name}</h1><p class="lead">{label(status.state)} confirmed in sync {ago(status.confirmed)}</p>'
        + (message_box(status.run) if status.run and status.problem else "")
        + f"<p>Next: {next_command(status.state, status.run, status.repository)}</p>"
        + f'<p class="stands">Deployed: {commit_line(status.commit) or "nothing yet"}</p>'
        + history_chart(status.history)
        + section("runs", "Runs", _run_table(runs) + more if runs else never)
        + section("settings", "Settings", _settings(settings) if settings else gone),
        severity_of(status.state),
    )


def run(shown: RunWithCommits, served: Served, output: Output) -> Page:
    """Return the page of one run. `served` are the deliveries that it claimed."""
    current = shown.run
    outcome = current.outcome or RUNNING
    tried = tried_commit(current, shown.commits) if outcome not in _NOT_TRIED else None
    announced = served.deliveries[-1].after if served.deliveries and not current.outcome else ""
    commit = commit_line(tried) or (f"deploys <code>{escape(announced[:10])}</code>" if announced else "")
    state = outcome_of(outcome).state
    retry = next_command(state, current, current.repository) if severity_of(current.outcome) == BAD else ""
    return Page(
        f"Run {current.id}: {outcome}, {current.repository} · gitops-hook",
        f'<h1><a href="{repository_path(current.repository)}">{escape(current.repository)}</a> '
        f'<span class="quiet">run {current.id}</span></h1>'
        f'<p class="lead">{label(outcome)} {duration(current)}, trigger: {escape(current.trigger)}</p>'
        + (f'<p class="stands">{commit}</p>' if commit else "")
        + message_box(current)
        + (f"<p>Next: {retry}</p>" if retry else ""),
        severity_of(current.outcome),
        static=section("output", "Output", _output(current.id, output)),
        after=timeline(current, served.received)
        + (_delivery_section(served) if served.number else "")
        + _commit_section(current, shown.commits),
    )


def tried_commit(run: Run, commits: Sequence[Commit]) -> Commit | None:
    """Return the commit that a run tried to deploy, or None if it is unknown.

    `commits` are the known commits of the run. The first is the one that it left checked out. After a roll-back, the
    rejected commit follows.
    """
    others = (commit for commit in commits if commit.id != run.after)
    left = commits[0] if commits else None
    return next(others, left) if run.outcome == ROLLED_BACK else left


def delivery(guid: str, deliveries: Sequence[Delivery], runs: Mapping[int, RunWithCommits]) -> Page:
    """Return the page of one push: the result of each time that it was delivered."""
    body = "".join(_delivered(delivery, runs.get(delivery.run)) for delivery in deliveries)
    return Page(
        f"Delivery {guid} · gitops-hook", f'<h1>Delivery <code class="guid">{escape(guid)}</code></h1>{body}', "rest"
    )


def _commit_section(shown: Run, commits: Sequence[Commit]) -> str:
    rows = [
        ("Before", f"<code>{escape(shown.before or 'none')}</code>"),
        ("After", f"<code>{escape(shown.after or 'none')}</code>"),
    ]
    if shown.exit is not None:
        rows.append(("Exit", f"<code>{shown.exit}</code>"))
    rows.append(("Started", f"{date_and_time(shown.started)} UTC"))
    details = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    deployed = _deployed_commits(shown, commits)
    name = "Commits deployed" if severity_of(shown.outcome) == GOOD else "Commits of this run"
    heading = f'{name} <span class="quiet">{_commit_count(shown)}</span>' if deployed else "Details"
    listed = deployed or commits[:1]
    return section("commits", heading, f"{commit_list(listed)}{_more_commits(shown, listed)}<dl>{details}</dl>")


def _deployed_commits(shown: Run, commits: Sequence[Commit]) -> Sequence[Commit]:
    """Return the commits that a run deployed, without the one that was checked out before."""
    return commits[: shown.brought or 0] if shown.outcome not in _NOT_TRIED else ()


def _commit_count(shown: Run) -> str:
    return f"{shown.brought} or more" if shown.brought == COUNTED else str(shown.brought)


def _more_commits(shown: Run, listed: Sequence[Commit]) -> str:
    rest = (shown.brought or 0) - len(listed)
    return f"<p>And {rest} {'or ' if shown.brought == COUNTED else ''}more before these.</p>" if rest > 0 else ""


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


def _run_table(runs: Iterable[RunWithCommits]) -> str:
    rows = (
        (
            f'<a href="/runs/{shown.id}">{shown.id}</a>',
            _run_commits(shown, commits),
            label(shown.outcome or RUNNING),
            ago(shown.started),
            unbroken_span((shown.ended or time.time()) - shown.started),
            escape(shown.trigger),
        )
        for shown, commits in runs
    )
    return table("runs", ("Run", "Commit", "Outcome", "Started", "Took", "Trigger"), rows)


def _run_commits(shown: Run, commits: Sequence[Commit]) -> str:
    """Return the commit that a run tried to deploy, and the others that came with it."""
    deployed = _deployed_commits(shown, commits)
    if len(deployed) < 2:
        tried = tried_commit(shown, commits) if shown.outcome not in _NOT_TRIED else None
        return commit_line(tried)
    return (
        f'<details id="r{shown.id}"><summary>{commit_line(deployed[0])}'
        f' <span class="quiet">{_commit_count(shown)} commits</span></summary>'
        f"{commit_list(deployed)}{_more_commits(shown, deployed)}</details>"
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
    name = f'<a href="{repository_path(delivery.repository)}">{escape(delivery.repository)}</a>'
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
        return f'<p class="lead">{label(RUNNING)} {link}, since {age(shown.started)}.</p>'
    again = " It will be retried." if delivery.pending else ""
    return (
        f'<p class="lead">{label(shown.outcome)} {link} ended {span(shown.ended - delivery.received)} after the push.'
        f"{again}</p>"
        + (f"<p>{message(shown)}</p>" if shown.message else "")
        + (commit_list(served_by.commits[:1]) if served_by.commits else "")
    )
