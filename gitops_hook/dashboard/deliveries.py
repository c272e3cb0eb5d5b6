"""The deliveries of the last day that were rejected, waited, or never arrived. Values in, HTML out, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gitops_hook.dashboard.html import ago, command, commit_line, count, escape, repository_link, section, table
from gitops_hook.dashboard.links import is_github
from gitops_hook.dashboard.rejections import Rejected
from gitops_hook.dashboard.runs import RunWithCommits
from gitops_hook.model import Waited
from gitops_hook.text import span

#: The question that a class of rejections raises. `{}` stands for the places of the secrets.
_REJECTION_HINTS = {
    "signature": "Wrong or missing signature. Does the forge use the secret in {}?",
    "malformed": "The body is not the JSON of a push.",
    "path": "Wrong path. Webhooks go to /api/webhook/gitops.",
    "method": "Wrong method. Webhooks use POST.",
    "late": "The request was too slow.",
    "length": "The request has no length.",
    "size": "The body is larger than 25 MiB.",
    "media": "Wrong media type. Set the webhook's content type to application/json.",
}


class Day(NamedTuple):
    """The deliveries of the last day that had a problem."""

    rejected: Sequence[Rejected] = ()
    waited: Sequence[Waited] = ()
    #: The runs of a sweep that found a push for which no webhook arrived.
    found: Sequence[RunWithCommits] = ()
    #: Where an operator finds the shared secrets: paths and names, never a secret.
    secret_places: Sequence[str] = ()


def day_sections(day: Day) -> str:
    """Return one section for each kind of problem that occurred."""
    return _rejected_section(day) + _waited_section(day.waited) + _found_section(day.found)


def _rejected_section(day: Day) -> str:
    places = " or ".join(f"<code>{escape(place)}</code>" for place in day.secret_places) or "this host"
    rows = [
        (
            escape(rejected.reason),
            str(rejected.requests),
            f"<code>{escape(rejected.peer)}</code>",
            ago(rejected.since),
            ago(rejected.last),
            _REJECTION_HINTS.get(rejected.reason, "").format(places),
        )
        for rejected in day.rejected
    ]
    head = ("Reason", "Requests", "Peer", "First", "Last", "Meaning")
    return section("rejected", "Rejected webhooks in the last day", table("rejected", head, rows)) if rows else ""


def _waited_section(found: Sequence[Waited]) -> str:
    rows = [
        (
            repository_link(waited.repository),
            count(waited.pushes, "push", "pushes"),
            span(waited.longest),
            ago(waited.last),
        )
        for waited in found
    ]
    head = ("Repository", "Waited", "Longest", "Last received")
    return section("waited", "Pushes that waited for their run", table("waited", head, rows)) if rows else ""


def _found_section(found: Sequence[RunWithCommits]) -> str:
    rows = [
        (
            repository_link(shown.run.repository),
            commit_line(shown.tried, shown.origin) or f"<code>{escape((shown.run.after or '')[:10])}</code>",
            f'<a href="/runs/{shown.run.id}">run {shown.run.id}</a>, {ago(shown.run.started)}',
            command(f"gitops-hook audit {shown.run.repository}")
            if is_github(shown.origin)
            else "Look at the webhook's deliveries at the forge.",
        )
        for shown in found
    ]
    head = ("Repository", "Commit", "Found by", "Next")
    return section("found", "Pushes that a sweep found without a webhook", table("found", head, rows)) if rows else ""
