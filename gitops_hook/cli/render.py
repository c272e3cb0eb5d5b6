"""What the command line shows: repository_statuses, findings, runs, logs. Reads only, and works while the daemon is down.

Rules: tables for people, ``--json`` for programs, one object a line; colour on a terminal alone, and not where
NO_COLOR is set (no-color.org). Text from outside never reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from gitops_hook.cli.doctor import Finding
from gitops_hook.dashboard.ansi import Rendered, for_terminal, whole
from gitops_hook.github.webhooks import Listed, Missed, Registration
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Delivery, Run
from gitops_hook.outcomes import RUNNING, severity_of
from gitops_hook.sync.run_log import read_log
from gitops_hook.sync.status import RepositoryStatus
from gitops_hook.text import age, escape, local, span

_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[2m", "\033[0m"
_COLOURS = {
    "good": _GREEN,
    "wait": _YELLOW,
    "rest": _DIM,
    "bad": _RED,
    "ok": _GREEN,
    "warning": _YELLOW,
    "failure": _RED,
    "right": _GREEN,
    "unproven": _YELLOW,
    "foreign": _DIM,
    "repaired": _GREEN,
    "redelivered": _YELLOW,
}
#: Seconds between looks at a log that still grows.
_LOOK = 0.2
#: Bytes of a log in memory at once.
_PART = 1 << 20


def show_standings(repository_statuses: Sequence[RepositoryStatus], *, as_json: bool) -> None:
    """A row for each repository; below them, what needs a person, with its fix."""
    if as_json:
        for standing in repository_statuses:
            _print_json(
                {
                    "repository": standing.repository,
                    "state": standing.state,
                    "path": str(standing.path) if standing.path else None,
                    "confirmed": standing.confirmed,
                    "owed": standing.pending,
                    "run": standing.run._asdict() if standing.run else None,
                    "commit": standing.commit._asdict() if standing.commit else None,
                    "fix": standing.fix,
                }
            )
        return
    if not repository_statuses:
        print("No repository yet: gitops-hook add OWNER/NAME")
        return
    rows = []
    for standing in repository_statuses:
        run = standing.run
        commit = standing.commit.id[:10] if standing.commit else ""
        rows.append([standing.repository, standing.state, commit, age(standing.confirmed), _last(run)])
    _print_table(["repository", "state", "commit", "in sync", "last run"], rows, coloured=1)
    for standing in repository_statuses:
        if standing.fix:
            print(f"\n{standing.fix}")


def show_runs(runs: Sequence[Run], *, as_json: bool) -> None:
    """A row for each run, as they come."""
    if as_json:
        for run in runs:
            _print_json(run._asdict())
        return
    if not runs:
        print("No run yet.")
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
    _print_table(["run", "repository", "started", "outcome", "took", "trigger", "commits"], rows, coloured=3)


def show_waiting(deliveries: Iterable[Delivery], *, as_json: bool) -> None:
    """What was accepted, and no run has served yet."""
    for delivery in deliveries:
        guid, name = delivery.guid, delivery.repository
        if as_json:
            _print_json({"delivery": guid, "repository": name, "received": delivery.received, "run": None})
        else:
            print(escape(f"{guid} was accepted for {name}, and waits for its turn."))


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """A row for each thing that was looked at; below what is problems, the command that mends it."""
    if as_json:
        for finding in findings:
            _print_json(finding._asdict())
        return
    paint = _paints()
    for finding in findings:
        level = finding.level.ljust(len("warning"))
        level = _COLOURS[finding.level] + level + _PLAIN if paint else level
        print(f"{level}  {escape(': '.join(filter(None, (finding.repository, finding.check, finding.message))))}")
        if finding.fix:
            print(f"         {escape(finding.fix)}")


def show_registration(done: Registration, *, as_json: bool, dry_run: bool) -> None:
    """What was done at one repository or organisation, or would be."""
    if as_json:
        _print_json(done._asdict())
        return
    told = done.change if not dry_run or done.change == "unchanged" else f"would be {done.change}"
    told += f" ({', '.join(done.problems)})" if done.problems else f" (hook {done.hook})" if done.hook else ""
    told += f", and is called {done.moved} by now" if done.moved else ""
    told += f"; {done.trouble}" if done.trouble else ""
    print(escape(f"{done.target}: {told}"), flush=True)


def show_hooks(hooks: Sequence[Listed], *, as_json: bool) -> None:
    """A row for each webhook that the forge has."""
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
    _print_table(head, rows, coloured=2)


def show_missed(missed: Sequence[Missed], *, whole: bool, as_json: bool) -> None:
    """A row for each push that the forge could not deliver; below them, why. `whole`: all hooks were asked about."""
    if as_json:
        for push in missed:
            _print_json(push._asdict())
        return
    if not missed:
        if whole:
            print("No push of the last three days was missed.")
        return
    rows = [[push.repository, local(push.delivered), push.guid, push.then] for push in missed]
    _print_table(["repository", "delivered", "delivery", "then"], rows, coloured=3)
    for reason in dict.fromkeys(push.reason for push in missed):
        print(f"\n{escape(reason)}")


def show_messages(runs: Iterable[Run]) -> None:
    """What the runs have to say that did not end well."""
    for run in runs:
        if run.message and severity_of(run.outcome) != "good":
            print(f"\n{run.message}")


def show_log(journal: JournalReader, run: Run, *, follow: bool) -> None:
    """What a run has printed; with `follow`, what it goes on printing until it has ended."""
    path, offset, pen = journal.log_path(run.id), 0, ""
    while True:
        ended = not follow or _has_ended(journal, run.id)  # asked before the last look, so that nothing is missed
        offset, pen = _copy(path, offset, pen, ended=ended)
        if ended:
            return
        time.sleep(_LOOK)


def _has_ended(journal: JournalReader, run: int) -> bool:
    known = journal.run(run)
    return known is None or known.outcome is not None


def _copy(path: Path, offset: int, pen: str, *, ended: bool) -> tuple[int, str]:
    """Print what the log holds from `offset` on; returns the offset behind it, and the codes in force there.

    What may have only begun at its end, a character or a colour, is left for the next look unless it has `ended`.
    """
    while True:
        part = read_log(path, offset, _PART)
        text = _printable(part.content, pen, more=True)
        if not text.size and ended:
            text = _printable(part.content, pen, more=False)
        if not text.size:
            return offset, pen
        sys.stdout.write(text.shown)
        sys.stdout.flush()
        offset, pen = part.offset - len(part.content) + text.size, text.pen


def _printable(content: bytes, pen: str, *, more: bool) -> Rendered:
    """What is printed of a log: to a terminal nothing that could harm it, to a file all as it came."""
    if sys.stdout.isatty():
        return for_terminal(content, pen, more=more, colours=_paints())
    complete = whole(content) if more else content
    return Rendered(complete.decode("utf-8", "replace"), "", len(complete))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, coloured: int) -> None:
    cells = [head, *([escape(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    paint = _paints()
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        if paint:
            colour = _COLOURS["rest" if number == 0 else severity_of(row[coloured])]
            padded[coloured] = colour + padded[coloured] + _PLAIN
        print("  ".join(padded).rstrip())


def _paints() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_json(row: object) -> None:
    print(json.dumps(row))


def _last(run: Run | None) -> str:
    if not run:
        return ""
    return f"{run.id} {run.outcome}, {age(run.ended)} ago" if run.outcome else f"{run.id} since {age(run.started)}"
