"""The output of the commands: tables for people, JSON for programs.

Rules:

1. JSON is one object per line, with timestamps in RFC 3339.
2. Colors appear only on a terminal, and not if NO_COLOR is set (no-color.org).
3. Text from outside never reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gitops_hook.cli.doctor.finding import Finding
from gitops_hook.dashboard.ansi import Rendered, for_terminal, whole
from gitops_hook.github.audit import Missed
from gitops_hook.github.webhooks import Listed, Registration
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Delivery, Run
from gitops_hook.outcomes import RUNNING, severity_of
from gitops_hook.sync.holds import Hold
from gitops_hook.sync.run_log import read_log
from gitops_hook.sync.status import InForce, RepositoryStatus
from gitops_hook.text import age, escape, local, rfc3339, span

_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[2m", "\033[0m"
_COLORS = {
    "good": _GREEN,
    "wait": _YELLOW,
    "rest": _DIM,
    "bad": _RED,
    "ok": _GREEN,
    "skipped": _DIM,
    "warning": _YELLOW,
    "failure": _RED,
    "right": _GREEN,
    "unproven": _YELLOW,
    "foreign": _DIM,
    "repaired": _GREEN,
    "redelivered": _YELLOW,
}
#: Seconds between two reads of a growing log.
_POLL = 0.2
#: Bytes of a log to read at once.
_CHUNK = 1 << 20
#: The fields that hold seconds since the epoch.
_TIMES = {
    "started", "ended", "fetched", "deployed", "healthy", "received", "confirmed", "time", "last", "delivered",
    "since", "until",
}  # fmt: skip


def print_statuses(statuses: Sequence[RepositoryStatus], *, as_json: bool) -> None:
    """Print a row per repository, and below them the fixes of those that need an action."""
    if as_json:
        for status in statuses:
            _print_json(
                {
                    "repository": status.repository,
                    "state": status.state,
                    "path": str(status.path) if status.path else None,
                    "confirmed": status.confirmed,
                    "pending": status.pending,
                    "run": _timestamped(status.run._asdict()) if status.run else None,
                    "commit": _timestamped(status.commit._asdict()) if status.commit else None,
                    "tag": status.tag,
                    "fix": status.fix,
                    "hold": _timestamped(status.hold._asdict()) if status.hold else None,
                }
            )
        return
    if not statuses:
        print("No repository yet: gitops-hook add OWNER/NAME")
        return
    rows = []
    for status in statuses:
        commit = status.tag or (status.commit.id[:10] if status.commit else "")
        rows.append([status.repository, status.state, commit, _ago(status.confirmed), _last_run(status.run)])
    _print_table(["repository", "state", "commit", "last in sync", "last run"], rows, colored=1)
    for status in statuses:
        if status.hold:
            print(f"\n{describe_hold(status.repository, status.hold, status.pending)}")
        elif status.state == "held" and status.run and status.run.message:
            print(f"\n{status.run.message}")
        if status.problem:
            print(f"\n{status.problem}")
        if status.fix:
            print(f"  {status.fix}")
        elif status.problem and status.run:
            print(f"  All output: gitops-hook logs {status.run.id}")


def describe_hold(repository: str, hold: Hold, waiting: int = 0) -> str:
    """Describe in one line who holds a checkout, since when, until when and why, and how to end that."""
    text = f"{repository} is {hold.state}" + (f" at {hold.commit[:10]}" if hold.commit else "")
    text += f" by {hold.by}" if hold.by else ""
    text += f" since {local(hold.since)}" if hold.since else ""
    text += f" until {local(hold.until)}" if hold.until else " until the next push" if hold.until_push else ""
    text += f": {hold.reason}" if hold.reason else ""
    text += f"; waiting pushes: {waiting}" if waiting else ""
    command = "To release: gitops-hook deploy" if hold.commit else "To resume: gitops-hook resume"
    return escape(f"{text}. {command} {repository}")


def print_runs(runs: Sequence[Run], *, as_json: bool, if_none: str = "No run yet.") -> None:
    """Print a row per run, in the given order, or the text `if_none` if there is none."""
    if as_json:
        for run in runs:
            _print_json(run._asdict())
        return
    if not runs:
        print(if_none)
        return
    rows = [
        [
            str(run.id),
            run.repository,
            local(run.started),
            run.outcome or RUNNING,
            "" if run.ended is None else span(run.ended - run.started),
            run.trigger,
            f"{(run.before or '')[:7]}..{(run.after or '')[:7]}" if run.before != run.after else (run.after or "")[:7],
        ]
        for run in runs
    ]
    _print_table(["run", "repository", "started", "outcome", "took", "trigger", "commits"], rows, colored=3)


def print_unclaimed(deliveries: Iterable[Delivery], *, as_json: bool) -> None:
    """Print the deliveries that no run has claimed yet."""
    for delivery in deliveries:
        guid, name = delivery.guid, delivery.repository
        if as_json:
            _print_json({"delivery": guid, "repository": name, "received": delivery.received, "run": None})
        else:
            print(escape(f"{guid} was accepted for {name}, and waits for a run."))


def print_settings(settings: Sequence[InForce], *, as_json: bool) -> None:
    """Print a row per setting, with its value and its source."""
    if as_json:
        for setting in settings:
            _print_json({"name": setting.name, "value": setting.value, "source": setting.origin})
        return
    rows = [[setting.name, "" if setting.value is None else setting.value, setting.origin] for setting in settings]
    _print_table(["setting", "value", "source"], rows, colored=None)


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print a row per finding, and below each problem the command that fixes it."""
    if as_json:
        for finding in findings:
            _print_json(finding._asdict())
        return
    colors = _has_colors()
    for finding in findings:
        level = finding.level.ljust(len("warning"))
        level = _COLORS[finding.level] + level + _PLAIN if colors else level
        print(f"{level}  {escape(': '.join(filter(None, (finding.repository, finding.check, finding.message))))}")
        if finding.fix:
            print(f"         {escape(finding.fix)}")


def print_registration(done: Registration, *, as_json: bool, dry_run: bool) -> None:
    """Print the changes to the webhook of one repository or organization; for a dry run, the changes that it plans."""
    if as_json:
        _print_json(done._asdict())
        return
    text = done.change if not dry_run or done.change == "unchanged" else f"would be {done.change}"
    text += f" ({', '.join(done.problems)})" if done.problems else f" (hook {done.hook})" if done.hook else ""
    text += f", renamed to {done.moved}" if done.moved else ""
    text += f"; {done.trouble}" if done.trouble else ""
    print(escape(f"{done.target}: {text}"), flush=True)


def print_hooks(hooks: Sequence[Listed], *, as_json: bool) -> None:
    """Print a row per webhook of the forge."""
    if as_json:
        for hook in hooks:
            _print_json(hook._asdict())
        return
    rows = [
        [
            hook.target,
            str(hook.hook),
            hook.standing,
            ", ".join(hook.problems),
            ", ".join(hook.events),
            "" if hook.last is None else local(hook.last),
            hook.status,
            hook.url,
        ]
        for hook in hooks
    ]
    head = ["repository", "hook", "standing", "wrong", "events", "last delivery", "status", "url"]
    _print_table(head, rows, colored=2)


def print_missed(missed: Sequence[Missed], *, complete: bool, as_json: bool) -> None:
    """Print a row per push that the forge could not deliver, and below them the reasons.

    `complete`: whether all hooks were audited.
    """
    if as_json:
        for push in missed:
            _print_json(push._asdict())
        return
    if not missed:
        if complete:
            print("No push of the last three days was missed.")
        return
    rows = [[push.repository, local(push.delivered), push.guid, push.then] for push in missed]
    _print_table(["repository", "delivered", "delivery", "then"], rows, colored=3)
    for reason in dict.fromkeys(push.reason for push in missed):
        print(f"\n{escape(reason)}")


def print_log(journal: JournalReader, run: Run, *, follow: bool) -> None:
    """Print the output of a run; with `follow`, continue until the run has ended."""
    path, offset, pen = journal.log_path(run.id), 0, ""
    while True:
        ended = not follow or _has_ended(journal, run.id)  # before the last read, so that no output is missed
        offset, pen = _copy(path, offset, pen, ended=ended)
        if ended:
            return
        time.sleep(_POLL)


def _has_ended(journal: JournalReader, run: int) -> bool:
    known = journal.run(run)
    return known is None or known.outcome is not None


def _copy(path: Path, offset: int, pen: str, *, ended: bool) -> tuple[int, str]:
    """Print the log from `offset`; return the next offset and the color codes in force there.

    An incomplete character or color code at the end is left for the next call, unless the run has `ended`.
    """
    while True:
        part = read_log(path, offset, _CHUNK)
        text = _printable(part.content, pen, more=True)
        if not text.size and ended:
            text = _printable(part.content, pen, more=False)
        if not text.size:
            return offset, pen
        sys.stdout.write(text.shown)
        sys.stdout.flush()
        offset, pen = part.offset - len(part.content) + text.size, text.pen


def _printable(content: bytes, pen: str, *, more: bool) -> Rendered:
    """Return the text to print: escaped for a terminal, unchanged for a file."""
    if sys.stdout.isatty():
        return for_terminal(content, pen, more=more, colors=_has_colors())
    content = whole(content) if more else content
    return Rendered(content.decode("utf-8", "replace"), "", len(content))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, colored: int | None) -> None:
    cells = [head, *([escape(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    colors = _has_colors()
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        if colors and colored is not None:
            word = row[colored] if number else "rest"
            padded[colored] = (_COLORS.get(word) or _COLORS[severity_of(word)]) + padded[colored] + _PLAIN
        print("  ".join(padded).rstrip())


def _has_colors() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_json(row: Mapping[str, object]) -> None:
    print(json.dumps(_timestamped(row)))


def _timestamped(row: Mapping[str, object]) -> dict[str, object]:
    """Return the row with its times in RFC 3339."""
    return {
        name: rfc3339(value) if name in _TIMES and isinstance(value, (int, float)) else value
        for name, value in row.items()
    }


def _ago(moment: float | None) -> str:
    return f"{age(moment)} ago" if moment else age(moment)


def _last_run(run: Run | None) -> str:
    if not run:
        return ""
    return f"{run.id} {run.outcome}, {_ago(run.ended)}" if run.outcome else f"{run.id} since {age(run.started)}"
