"""The two charts of the page as inline SVG: the history of a repository, and the timeline of a run."""

from __future__ import annotations

import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence

from gitops_hook.dashboard.html import ago, count, date_and_time, escape, section
from gitops_hook.model import Run
from gitops_hook.outcomes import RUNNING, severity_of
from gitops_hook.text import rfc3339, span, utc

#: The width of a bar with its gap, the number of bars, and the y coordinate of their base. Failures have a mark below.
_BAR, _BARS, _BASE = 4, 30, 24
#: The start of each bar's path, the newest on the right, and the path of its mark.
_PLACES = tuple((f"M{left} {_BASE}v-", f"M{left} {_BASE + 2}v3") for left in range(_BAR * _BARS - 2, 0, -_BAR))
#: The durations in seconds at which a bar becomes one step higher. Ten times the duration is five steps, so 10 ms and
#: 10 minutes both fit. These are tables, because a page of 1,000 repositories has 30,000 bars.
_STEPS = tuple((10 ** (step / 5) - 1) / 100 for step in range(1, _BASE - 1))
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
#: The label of the health check by the outcome of a run, if the check failed.
_FAILED_CHECKS = {"rolled-back": "Check failed", "deploy-failed": "Check failed"}
#: The empty slots of the chart.
_SLOT = "v-2"


def history_chart(history: Sequence[tuple[str | None, float, float | None]]) -> str:
    """Return the last runs as bars: the height is the duration, the colour the outcome."""
    now = time.time()
    bars: dict[str | None, str] = {}
    for (outcome, started, ended), (place, mark) in zip(history, _PLACES):
        height = bisect(_STEPS, (now if ended is None else ended) - started) + 1
        bars[outcome] = f"{bars.get(outcome, '')}{place}{height}{mark if severity_of(outcome) == 'bad' else ''}"
    outcomes = Counter(outcome or RUNNING for outcome, _, _ in history)
    empty = "".join(f"{place[:-2]}{_SLOT}" for place, _ in _PLACES[len(history) :])
    summary = ", ".join(f"{number} {word}" for word, number in outcomes.most_common())
    paths = "".join(f'<path class="{severity_of(outcome)}" d="{path}"/>' for outcome, path in bars.items())
    return (
        f'<svg class="history" viewBox="0 0 {_BAR * _BARS} {_BASE + 6}" role="img">'
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
    for step, text in _RUN_STEPS:
        moment = getattr(run, step)
        if moment is None or (step == "started" and received is None):
            continue
        items.append(_step(step, _step_label(run, step, text), moment, f"after {span(moment - last)}"))
        parts.append((step, last - begin, moment - last))
        last = moment
    if not run.outcome:
        items.append(f'<li class="ended"><b>Running</b> <span class="quiet">{ago(last)}</span></li>')
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
    return _FAILED_CHECKS.get(outcome, text) if step == "healthy" else text


def _step(step: str, text: str, moment: float, note: str) -> str:
    clock = utc(moment).strftime("%H:%M:%S.%f")[:-3]
    when = f'<time datetime="{rfc3339(moment)}" title="{date_and_time(moment)} UTC">{clock}</time>'
    return f'<li class="{step}"><b>{text}</b> {when} <span class="quiet">{note}</span></li>'
