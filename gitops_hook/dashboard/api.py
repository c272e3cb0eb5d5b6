"""The JSON objects of the API, as docs/openapi.json describes them. Times are RFC 3339; unknown values are null."""

from __future__ import annotations

from typing import Any

from gitops_hook.model import Commit, Delivery, Run
from gitops_hook.sync.status import RepositoryStatus
from gitops_hook.text import rfc3339


def repository_object(status: RepositoryStatus) -> dict[str, Any]:
    """Return the status of a repository."""
    return {
        "repository": status.repository,
        "state": status.state,
        "fix": status.fix,
        "path": str(status.path) if status.path else None,
        "commit": commit_object(status.commit) if status.commit else None,
        "confirmed": time_text(status.confirmed),
        "pending": status.pending,
        "run": run_object(status.run) if status.run else None,
    }


def run_object(run: Run) -> dict[str, Any]:
    """Return a run."""
    times = {step: time_text(getattr(run, step)) for step in ("started", "fetched", "deployed", "healthy", "ended")}
    return {**{name: None if value == "" else value for name, value in run._asdict().items()}, **times}


def commit_object(commit: Commit) -> dict[str, Any]:
    """Return a commit."""
    return {
        "id": commit.id,
        "author": commit.author or None,
        "subject": commit.subject or None,
        "time": time_text(commit.time or None),
    }


def delivery_object(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery."""
    optional = ("guid", "event", "repository", "ref", "before", "after", "pusher", "id", "run")
    values = {name: getattr(delivery, name) or None for name in optional}
    return {**values, "received": rfc3339(delivery.received), "pending": delivery.pending}


def time_text(moment: float | None) -> str | None:
    """Return a time in seconds since the epoch as RFC 3339, or None."""
    return None if moment is None else rfc3339(moment)
