"""The two charts of the page as inline SVG: the history of a repository, and the timeline of a run."""

from __future__ import annotations

import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence

from gitops_hook.dashboard.html import ago, count, date_and_time, escape, section
from gitops_hook.model import Run, RunSpan
from gitops_hook.outcomes import BAD, RUNNING, severity_of
from gitops_hook.text import rfc3339, span, utc

#: The number of bars, and their greatest height.
_BARS, _HEIGHT = 30, 22
#: The start of each bar's path, the newest on the right, and the path of the mark below a failure. The style sheet
#: scales the paths, so that their coordinates are short: a page has up to 3,000 bars.
_PLACES = tuple((f"M{left} 0v-", f"M{left} 2v3") for left in range(_BARS - 1, -1, -1))
#: The durations in seconds at which a bar becomes one step higher. Ten times the duration is five steps, so 10 ms and
#: 10 minutes both fit.
_STEPS = tuple((10 ** (step / 5) - 1) / 100 for step in range(1, _HEIGHT))
#: The steps of a run, by the field with the time of their end.
_RUN_STEPS = (
    ("started", "Queued"),
    ("fetched", "Fetched"),
    ("deployed", "Deployed"),
    ("healthy", "Healthy"),
    ("ended", ""),
)
#: The label of a run's end by its outcome, or else by the severity of its outcome.
_ENDS = {"rolled-back": "Rolled back", "good": "Done", "bad": "Failed"}
#: The label of the health check of a run with one of these outcomes, in which the check failed.
_CHECK_FAILED = {"rolled-back": "Check failed", "deploy-failed": "Check failed"}
#: The current step of a run by the last step that ended.
_CURRENT_STEPS = {
    "started": "Fetching",
    "fetched": "Deploying",
    "deployed": "Checking the health",
    "healthy": "Finishing",
}


def history_chart(history: Sequence[RunSpan]) -> str:
    """Return the last runs as bars: the height is the duration, the color the outcome."""
    now = time.time()
    bars: dict[str, str] = {}
    for (outcome, started, ended), (place, mark) in zip(history, _PLACES):
        height = bisect(_STEPS, (now if ended is None else ended) - started) + 1
        severity = severity_of(outcome)
        bars[severity] = f"{bars.get(severity, '')}{place}{height}{mark if severity == BAD else ''}"
    outcomes = Counter(outcome or RUNNING for outcome, _, _ in history)
    empty = "".join(f"{place}2" for place, _ in _PLACES[len(history) :])
    summary = ", ".join(f"{number} {word}" for word, number in outcomes.most_common())
    paths = "".join(f'<path class="{severity}" d="{path}"/>' for severity, path in bars.items())
    return (
        '<svg class="history" role="img">'
        f"<title>Last {count(len(history), 'run')}{': ' if summary else ''}{escape(summary)}</title>"
        + (f'<path class="empty" d="{empty}"/>' if empty else "")
        + f"{paths}</svg>"
    )


def timeline(run: Run, received: float | None) -> str:
    """Return the steps of a run as a list and as a bar.

    `received` is when its first delivery arrived, in seconds since the epoch, or None if it has none.
    """
    begin = last = run.started if received is None else min(received, run.started)
    items = [_step("received" if received else "started", "Received" if received else "Started", begin, "")]
    parts = []
    done = "started"
    for step, text in _RUN_STEPS:
        moment = getattr(run, step)
        if moment is None or (step == "started" and received is None):
            continue
        look = _look(run, step)
        items.append(_step(look, _step_label(run, step, text), moment, f"after {span(moment - last)}"))
        parts.append((look, last - begin, moment - last))
        last, done = moment, step
    if not run.outcome:
        items.append(f'<li class="ended"><b>{_CURRENT_STEPS[done]}</b> <span class="quiet">{ago(last)}</span></li>')
    whole = (last - begin) or 1.0
    rects = "".join(
        f'<rect class="{step}" x="{1000 * before / whole:.1f}" width="{1000 * taken / whole:.1f}" height="10"/>'
        for step, before, taken in parts
    )
    bar = f'<svg class="line" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'
    total = f"{span(last - begin)} in total" if run.outcome else "so far"
    heading = f'Timeline <span class="quiet">{total}</span>'
    return section("line", heading, f'{bar if parts else ""}<ol class="line">{"".join(items)}</ol>')


def _step_label(run: Run, step: str, text: str) -> str:
    outcome = run.outcome or ""
    if step == "ended":
        return _ENDS.get(outcome) or _ENDS.get(severity_of(outcome), "Ended")
    return _CHECK_FAILED.get(outcome, text) if step == "healthy" else text


def _look(run: Run, step: str) -> str:
    """Return the CSS class of a step, in red if it failed."""
    failed = step == "ended" if severity_of(run.outcome) == BAD else False
    return "failed" if failed or (step == "healthy" and run.outcome in _CHECK_FAILED) else step


def _step(step: str, text: str, moment: float, note: str) -> str:
    clock = utc(moment).strftime("%H:%M:%S.%f")[:-3]
    when = f'<time class="clock" datetime="{rfc3339(moment)}" title="{date_and_time(moment)} UTC">{clock}</time>'
    return f'<li class="{step}"><b>{text}</b> {when} <span class="quiet">{note}</span></li>'
