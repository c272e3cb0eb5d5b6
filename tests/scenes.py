"""A host as an operator meets it, for tests that look at the page: real pushes, a real daemon, real checkouts."""

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
#: What a deploy prints, colours and all.
BUILD = r"""printf '\033[1mBuilding\033[0m %s\n' "${GITOPS_AFTER:0:10}"
sleep "0.$((RANDOM % 4))"
printf '\033[32m✓\033[0m 214 modules, \033[33m1 warning\033[0m\n'
"""


class Scene:
    """A forge and a host in `folder`, and what happens between them."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.upstreams: dict[str, Upstream] = {}
        self._pushes = 0
        #: The newest delivery, and runs that are worth a look, by what happened in them.
        self.guid = ""
        self.runs: dict[str, int] = {}
        port = daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1]
        self.url = f"http://127.0.0.1:{port}"

    def repository(self, name: str, **settings: str) -> Path:
        """One more repository, with its checkout, synced once."""
        self.upstreams[name] = Upstream(self.folder / "forge", name)
        return self.upstreams[name].checkout(self.daemon.root, **settings)

    def push(
        self, name: str, files: dict[str, str | None] | None = None, *, commits: int = 1, wait: bool = True
    ) -> int:
        """Somebody pushes commits; returns the number of its run, once that has ended, or else 0."""
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
            time.sleep(0.005)  # what it brought is noted after its end
        return run

    def lose(self, name: str) -> None:
        """The forge does not know a repository any more, and a push that it announced is tried again and again."""
        upstream = self.upstreams[name]
        after = upstream.commit({"page": "lost"})
        upstream.bare.rename(upstream.bare.with_suffix(".away"))
        self.daemon.deliver(push(name, after))
        self.daemon.wait_for("run unreachable")

    def age(self, seconds: float) -> None:
        """Let so much time pass: what is remembered is so much older."""
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
    """Repositories in every state that a page can show."""
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
    for day in range(4):
        scene.age(90000)
        for number, name in enumerate(("acme/shop", "acme/website", "acme/docs", "infra/monitoring", "acme/search")):
            for _ in range((day * number) % 4 + 1):
                scene.push(name, commits=1 + (day + number) % 3)
                scene.age(3000 + 900 * number)
        if day == 2:
            scene.push("acme/billing", {"page": "broken\n"})
            scene.age(900)
            scene.push("acme/billing", {"page": "mended\n"})
    scene.runs["updated"] = scene.push("acme/shop", commits=3)
    (docs / "page").write_text("what somebody wrote on the host\n")
    scene.push("acme/docs")
    git("config", "gitops.paused", "true", cwd=intranet)
    scene.push("acme/intranet")
    scene.age(2400)
    scene.runs["rolled back"] = scene.push("acme/search", {"page": "sick\n"})
    scene.age(1300)
    scene.lose("infra/dns")
    scene.runs["failed"] = scene.push("acme/billing", {"page": "broken again\n"})
    scene.age(200)
