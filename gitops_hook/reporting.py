"""Connect the parts that report: this host's side of its fleet, notices, commit statuses, and the status page.

In a fleet, one host sends the notices and the commit statuses of all hosts.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

from gitops_hook.config import Settings
from gitops_hook.dashboard.rejections import Rejections
from gitops_hook.httpd.call import Application
from gitops_hook.journal.writer import Journal
from gitops_hook.observers.metrics import Metrics
from gitops_hook.observers.notifier import Notifier
from gitops_hook.observers.prometheus import CONTENT_TYPE
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.dispatcher import RunObserver
from gitops_hook.sync.runner import inherited

if TYPE_CHECKING:
    from gitops_hook.fleet.node import FleetNode
    from gitops_hook.github.status_sender import CommitStatusSender


def make_notifier(
    settings: Settings,
    environ: MutableMapping[str, str],
    journal: Journal,
    checkouts: Checkouts,
    fleet: FleetNode | None,
) -> Notifier:
    """Return the notifier, about this host or about its whole fleet."""
    environment = inherited(environ, settings.root)
    records = fleet.notices if fleet else journal
    notifier = Notifier(records, checkouts, settings.notify, environment, host=settings.fleet)
    if fleet:
        fleet.send_notices(notifier.examine)
    return notifier


def make_sender(
    settings: Settings,
    journal: Journal,
    checkouts: Checkouts,
    observers: list[RunObserver],
    fleet: FleetNode | None,
) -> CommitStatusSender:
    """Return the sender of commit statuses, which come from an observer of this host's runs or from the fleet.

    The package is optional: import it only here.
    """
    from gitops_hook.github import commit_status, status_sender  # noqa: PLC0415

    sender = status_sender.CommitStatusSender(settings, journal, checkouts)
    if fleet:
        fleet.send_statuses(lambda status: journal.save_statuses(status, then=sender.notify))
    else:
        reporter = commit_status.CommitStatusReporter(journal, checkouts, sender.notify)
        reporter.catch_up()
        observers.append(reporter)
    return sender


def make_fleet(settings: Settings, journal: Journal, checkouts: Checkouts) -> FleetNode:
    """Return this host's side of its fleet, an observer of runs. The package is optional: import it only here."""
    from gitops_hook.fleet.access import open_etcd  # noqa: PLC0415
    from gitops_hook.fleet.node import FleetNode  # noqa: PLC0415

    fleet = FleetNode(settings, journal, checkouts, open_etcd(settings))
    fleet.prepare()
    return fleet


def make_dashboard(
    settings: Settings,
    journal: Journal,
    checkouts: Checkouts,
    metrics: Metrics,
    rejections: Rejections,
    *,
    secret_places: Sequence[str],
    fleet: FleetNode | None,
) -> Application:
    """Return the status page, with the pages of the fleet. Both are optional: import them only here."""
    from gitops_hook.dashboard.app import Dashboard  # noqa: PLC0415

    pages = {}
    if fleet:
        from gitops_hook.dashboard.fleet import fleet_pages  # noqa: PLC0415

        pages = fleet_pages(fleet.grid)
    return Dashboard(
        journal,
        checkouts,
        settings.sync_timeout,
        lambda: (CONTENT_TYPE, metrics.exposition()),
        rejections.last_day,
        secret_places=secret_places,
        more=pages,
    )
