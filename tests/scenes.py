"""A host with real pushes, a real daemon and real checkouts, for tests and images of the dashboard."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from harness import Daemon, push
from scratch import Upstream, git

PEOPLE = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Margaret Hamilton")
SUBJECTS = (
    "Say hello on the front page",
    "Cache the list of products for a minute",
    "Fix the total where a voucher is used twice",
    "Let search find words with an umlaut",
    "Show prices with their tax",
    "Send one mail for an order, not two",
    "Bring the new logo",
)
#: A deploy command with colored output.
BUILD = r"""printf '\033[1mBuilding\033[0m %s\n' "${GITOPS_AFTER:0:10}"
sleep "0.$((RANDOM % 4))"
printf '\033[32m✓\033[0m 214 modules, \033[33m1 warning\033[0m\n'
"""


class Scene:
    """A forge and a host in `folder`, with methods for the events between them."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.upstreams: dict[str, Upstream] = {}
        self._pushes = 0
        #: The newest delivery, and selected runs by their result.
        self.guid = ""
        self.runs: dict[str, int] = {}
        port = daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1]
        self.url = f"http://127.0.0.1:{port}"

    def repository(self, name: str, **settings: str) -> Path:
        """Create a repository and its checkout."""
        self.upstreams[name] = Upstream(self.folder / "forge", name)
        return self.upstreams[name].checkout(self.daemon.root, **settings)

    def push(
        self, name: str, files: dict[str, str | None] | None = None, *, commits: int = 1, wait: bool = True
    ) -> int:
        """Push commits; wait for the end of the run and return its number, or return 0 without `wait`."""
        upstream = self.upstreams[name]
        before = after = upstream.head()
        person = PEOPLE[self._pushes % len(PEOPLE)]
        for _ in range(commits):
            self._pushes += 1
            subject = SUBJECTS[self._pushes % len(SUBJECTS)]
            author = f"--author={person} <{person.split()[0].lower()}@example.org>"
            after = upstream.commit(files or {"page": f"{self._pushes}\n"}, subject, author)
        guid = self.guid = f"72d3162e-cc78-11e3-81ab-{self._pushes:012x}"
        self.daemon.deliver(push(name, after, before=before, pusher={"name": person.split()[0].lower()}), guid=guid)
        if not wait:
            return 0
        run = int(self.daemon.wait_for(rf"run (?!started)\S+ .*run=(\d+) .*delivery={guid}")[1])
        while self.daemon.query("SELECT 1 FROM runs WHERE id = ? AND before <> after AND brought IS NULL", run):
            time.sleep(0.005)  # its commits are recorded after its end
        return run

    def lose(self, name: str) -> None:
        """Remove a repository from the forge after a push, so that its run is unreachable and the daemon retries it."""
        upstream = self.upstreams[name]
        after = upstream.commit({"page": "lost"})
        upstream.bare.rename(upstream.bare.with_suffix(".away"))
        self.daemon.deliver(push(name, after))
        self.daemon.wait_for("run unreachable")

    def age(self, seconds: float) -> None:
        """Make the journal older: move all its times `seconds` into the past."""
        with closing(sqlite3.connect(self.daemon.state / "journal.db", timeout=30)) as journal:
            for table, columns in (
                ("runs", ("started", "ended", "fetched", "deployed", "healthy")),
                ("deliveries", ("received",)),
                ("commits", ("time",)),
            ):
                shifted = ", ".join(f"{column} = {column} - {seconds}" for column in columns)
                journal.execute(f"UPDATE {table} SET {shifted}")
            journal.commit()


def a_busy_week(scene: Scene) -> None:
    """Create repositories in every state that the dashboard can show."""
    broken = "{ ! grep -q broken page || { echo 'migration 42 failed: no such column' >&2; exit 3; }; }"
    intranet = scene.repository("acme/intranet")
    docs = scene.repository("acme/docs")
    scene.repository("acme/shop", deploy=BUILD, health="sleep 0.1")
    scene.repository("acme/website", deploy=f"{BUILD} sleep 0.5")
    scene.repository("acme/billing", deploy=f"{BUILD} {broken}")
    scene.repository("acme/search", deploy="sleep 0.1", health="! grep -q sick page", healthTimeout="0")
    scene.repository("infra/dns")
    scene.repository("infra/monitoring", deploy=BUILD)
    for name in scene.upstreams:
        scene.push(name)
    for day in range(2):
        scene.age(90000)
        for number, name in enumerate(("acme/shop", "acme/website", "acme/docs", "infra/monitoring", "acme/search")):
            for _ in range((day * number) % 4 + 1):
                scene.push(name, commits=1 + (day + number) % 3)
                scene.age(3000 + 900 * number)
        if day == 1:
            scene.push("acme/billing", {"page": "broken\n"})
            scene.age(900)
            scene.push("acme/billing", {"page": "fixed\n"})
    scene.runs["updated"] = scene.push("acme/shop", commits=3)
    (docs / "page").write_text("edited on the host\n")
    scene.push("acme/docs")
    git("config", "gitops.paused", "true", cwd=intranet)
    scene.runs["paused"] = scene.push("acme/intranet")
    scene.age(2400)
    scene.runs["rolled back"] = scene.push("acme/search", {"page": "sick\n"})
    scene.age(1300)
    scene.lose("infra/dns")
    scene.runs["failed"] = scene.push("acme/billing", {"page": "broken again\n"})
    scene.age(200)
