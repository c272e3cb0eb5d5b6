"""A status page over generated repositories: the real server, journal and checkouts, without a daemon and its runs.

Used by the tests in a browser and by the benchmark. A journal of 100,000 runs takes seconds.
"""

from __future__ import annotations

import random
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.dashboard.rejections import Rejections
from gitops_hook.httpd.limits import PAGE_LIMITS
from gitops_hook.httpd.server import Server
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery
from gitops_hook.sync.checkouts import Checkouts

#: The newest outcome of the first repositories, by state: four failures. "" is a run that has not ended, "queued" a
#: delivery without a run, "never" neither, "deleted" a checkout that is gone. Every other repository is up to date.
NEWEST = (
    ("action needed", "deploy-failed"),
    ("paused", "paused"),
    ("in sync", "updated"),
    ("rolled back", "rolled-back"),
    ("action needed", "dirty"),
    ("missing", "deleted"),
    ("waiting to retry", "unreachable"),
    ("running", ""),
    ("queued", "queued"),
    ("held", "held"),
    ("never synced", "never"),
)
#: The file of secrets that the page names.
SECRET_FILE = "/etc/gitops-hook/webhook-secret"
NAMES = (
    "acme/billing", "acme/intranet", "acme/shop", "acme/search", "acme/docs", "infra/backup", "infra/dns", "acme/website",
    "acme/shop@staging", "acme/payments", "acme/newsletter", "infra/monitoring",
    "infrastructure/kubernetes-cluster-production-eu-west-1", "acme/accounts", "acme/api", "acme/blog", "acme/careers",
    "acme/chat", "acme/crm", "acme/events", "acme/feeds", "acme/forum", "acme/images", "acme/jobs", "acme/mail", "acme/maps",
    "acme/orders", "acme/press", "acme/reports", "acme/reviews", "acme/stock", "acme/support", "acme/tickets", "acme/wiki",
    "infra/ansible", "infra/certificates", "infra/firewall", "infra/logs", "infra/proxy", "infra/registry",
)  # fmt: skip
PEOPLE = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Margaret Hamilton")
SUBJECTS = (
    "Say hello on the front page",
    "Cache the list of products for a minute",
    "Fix the total if a voucher is used twice",
    "Find words with an umlaut",
    "Show prices with tax",
    "Send one mail for each order",
    "Add the new logo",
)
_MESSAGES = {
    "deploy-failed": "gitops.deploy failed with exit 3 at {}, which stays checked out; the next run deploys it again",
    "rolled-back": "gitops.health did not succeed within 30 s at {}, so the last good commit was restored and deployed",
    "dirty": "local changes prevent the move to main {}: config.php; commit or stash them, or let runs stash them",
    "unreachable": "the remote cannot be reached: connection timed out",
}
_RUN = "INSERT INTO runs VALUES (" + ", ".join(["?"] * 16) + ")"


class Host(NamedTuple):
    """A page, its journal, and the names of its repositories."""

    url: str
    journal: Journal
    names: tuple[str, ...]

    def change(self, number: int) -> None:
        """Record a new run of the last `number` repositories."""
        for name in self.names[-number:]:
            claim = self.journal.start(name, "push")
            assert claim
            run = claim.run._replace(ended=time.time(), outcome="updated", before="c" * 40, after="d" * 40)
            self.journal.finish(run, settled=True)


@contextmanager
def serve(folder: Path, repositories: int, runs: int = 30) -> Iterator[Host]:
    """Serve a page over `repositories` with at most `runs` runs each."""
    names = (*NAMES, *(f"acme/service-{number}" for number in range(len(NAMES), repositories)))[:repositories]
    outcomes = (*(outcome for _, outcome in NEWEST), *["updated"] * repositories)[:repositories]
    for name, outcome in zip(names, outcomes):
        if outcome != "deleted":
            _make_checkout(folder / "root" / name, paused=outcome == "paused")
    with closing(Journal(folder / "state")) as journal:
        _fill(journal, folder / "state/journal.db", dict(zip(names, outcomes)), runs)
        rejections = Rejections()
        for _ in range(17):
            rejections.add("signature", "192.0.2.7")
        dashboard = Dashboard(
            journal, Checkouts(folder / "root"), rejections=rejections.last_day, secret_places=[SECRET_FILE]
        )
        server = Server(socket.create_server(("127.0.0.1", 0)), dashboard, PAGE_LIMITS)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Host(f"http://127.0.0.1:{server.server_address[1]}", journal, names)
        finally:
            server.shutdown()
            thread.join()
            server.drain(5)
            server.server_close()


def _make_checkout(path: Path, *, paused: bool) -> None:
    """Create a directory that is a checkout for the daemon, although it has no commit."""
    settings = {"branch": "main", "deploy": "make deploy", **({"paused": "true"} if paused else {})}
    lines = "".join(f"\t{name} = {value}\n" for name, value in settings.items())
    origin = f"https://github.com/{path.parent.name}/{path.name.partition('@')[0]}.git"
    (path / ".git").mkdir(parents=True)
    (path / ".git/config").write_text(f'[remote "origin"]\n\turl = {origin}\n[gitops]\n{lines}')


def _fill(journal: Journal, path: Path, outcomes: dict[str, str], most: int) -> None:
    """Write runs of the last weeks with their commits, in the order of their times."""
    chance = random.Random(1)
    now = time.time()
    started = sorted(
        (now - chance.random() * 3e6, name) for name in outcomes for _ in range(most) if outcomes[name] != "never"
    )
    newest = {name: number for number, (_, name) in enumerate(started, 1)}
    with closing(sqlite3.connect(path)) as connection:
        for number, (moment, name) in enumerate(started, 1):
            outcome: str | None = chance.choices(("updated", "unchanged", "deploy-failed"), (20, 5, 1))[0]
            if newest[name] == number:
                outcome = {"": None, "queued": "updated", "deleted": "updated"}.get(outcomes[name], outcomes[name])
            before, after = (f"{chance.getrandbits(160):040x}" for _ in "ab")
            took = chance.choice((0.3, 0.4, 0.6, 1.2, 4.0))
            message = _MESSAGES.get(outcome or "", "").format(after[:10])
            moved = outcome in ("updated", "deploy-failed", None)
            connection.execute(
                _RUN,
                (number, name, "push", moment, outcome and moment + took, outcome, outcome and 0, before,
                 after if moved else before, f"{name}: {message}" if message else "", moment + 0.2,
                 moment + took if outcome == "updated" else None, None, int(moved), None, None),
            )  # fmt: skip
            commits = [after] if moved else [before, after]
            connection.executemany(
                "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?)",
                [(number, position, commit, chance.choice(PEOPLE), chance.choice(SUBJECTS), moment - 30)
                 for position, commit in enumerate(commits)],
            )  # fmt: skip
            if message:
                journal.log_path(number).write_text(
                    f"$ make deploy\nmigration 42 failed: no such column\n{outcome}: {message}\n"
                )
        connection.commit()
    for name, outcome in outcomes.items():
        if outcome in ("queued", "unreachable"):
            journal.record(Delivery(f"guid-{name}", "push", now - 300, name, "refs/heads/main", "", "e" * 40, "ada"))
