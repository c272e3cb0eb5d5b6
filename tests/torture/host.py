"""A host under test: a forge, checkouts, the daemon, and the checks of the daemon's state from outside.

Rules:

1. A delivery counts as promised if the client received a 202 response; `acknowledged` holds these deliveries.
2. The notes of the deploys (`DEPLOY`) and git are the evidence of each run, never the daemon.
3. `Host.verify_outcomes` compares the daemon's journal with both.

All repositories share one history at the forge, a chain of commits that exists from the start, so a push only writes
one ref. The position in the chain identifies a commit: a higher position is newer.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from harness import Daemon, push, until
from scratch import GIT_ENV, git

from torture.account import Account

#: A deploy that notes its begin, an overlap with another deploy, and its end. It detects an overlap with a kernel lock:
#: only this shell holds the lock, and the kernel releases it even if the shell is killed.
DEPLOY = """\
notes=$GITOPS_ROOT/../notes/${PWD##*/}
exec 8>>"$notes.lock"
flock --nonblock --conflict-exit-code 99 8
[[ $? != 99 ]] || echo "overlap $GITOPS_AFTER" >>"$notes"
echo "begin $GITOPS_AFTER" >>"$notes"
sleep 0.03 8>&-
echo "end $GITOPS_AFTER" >>"$notes"
"""
#: The outcomes that mean that the checkout is at the upstream commit.
_GOOD = ("updated", "unchanged", "cloned")
#: The number of pending deliveries and running runs.
_UNDONE = "SELECT (SELECT count(*) FROM deliveries WHERE pending) + (SELECT count(*) FROM runs WHERE outcome IS NULL)"
_SWEPT = "SELECT DISTINCT repository FROM runs WHERE outcome IS NOT NULL"


class Host:
    """A daemon with real checkouts of `repositories`; each starts at the first of `commits` and notes its deploys.

    The first sweep is finished. `launcher` starts the daemon instead of this Python. `owner` is the user ID that owns
    all files.
    """

    def __init__(
        self,
        folder: Path,
        account: Account,
        repositories: int | Iterable[str] = 4,
        *,
        commits: int = 400,
        deploy: str = DEPLOY,
        settings: Mapping[str, str] | None = None,
        launcher: list[str] | None = None,
        owner: int = 0,
    ) -> None:
        names = [f"site{number}" for number in range(repositories)] if isinstance(repositories, int) else repositories
        self.folder = folder
        self.account = account
        self.root = folder / "root"
        self.state = folder / "state"
        self.notes = folder / "notes"
        self.repositories = [f"acme/{name}" for name in names]
        self.number = 0
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self._history = folder / "history.git"
        self.commits = _make_chain(self._history, commits)
        self._place = {commit: place for place, commit in enumerate(self.commits)}
        self.push(0)
        self._lay_out(deploy)
        if owner:
            subprocess.run(["chown", "-R", f"{owner}:{owner}", folder], check=True)
        self.daemon = Daemon(folder, launcher=launcher, **(settings or {}))
        until(lambda: len(self.daemon.query(_SWEPT)) == len(self.repositories), "the first sweep does not end", 600)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.daemon.__exit__()

    def _lay_out(self, deploy: str) -> None:
        """Create the forge's repositories, which share one history, and a checkout of each."""
        template = self.folder / "template"
        git("clone", "--quiet", "--no-hardlinks", "--template=", self._history, template, cwd=self.folder)
        git("config", "gitops.deploy", deploy, cwd=template)
        config = (template / ".git/config").read_text()
        (self.folder / "forge/acme").mkdir(parents=True)
        (self.root / "acme").mkdir(parents=True, exist_ok=True)
        self.notes.mkdir()
        for repository in self.repositories:
            upstream = self.folder / f"forge/{repository}.git"
            upstream.symlink_to(self._history)
            shutil.copytree(template, self.root / repository, symlinks=True)
            (self.root / repository / ".git/config").write_text(config.replace(str(self._history), str(upstream)))

    # -- the forge -----------------------------------------------------------------------------------------------

    def push(self, number: int) -> None:
        """Set the branch main of the forge to commit `number` of the chain."""
        self.number = number
        new = self._history / "main.new"
        new.write_text(self.commits[number] + "\n")
        new.replace(self._history / "refs/heads/main")

    def deliver(self, repository: str, *, patience: float = 30) -> int:
        """Deliver the last push to `repository`; return the status, or 0 without a response."""
        guid, number = str(uuid.uuid4()), self.number
        status = 0
        with suppress(OSError, HTTPException, ValueError):
            status, _ = self.daemon.deliver(push(repository, self.commits[number]), guid=guid, patience=patience)
        if status == 202:
            self.acknowledged[guid] = (repository, number)
        return status

    def deliver_all(self) -> set[int]:
        """Deliver the last push to every repository and return the set of statuses."""
        return {self.deliver(repository) for repository in self.repositories}

    # -- the checks ----------------------------------------------------------------------------------------------

    def settle(self, timeout: float = 180) -> None:
        """Push to every repository once more, then wait until no delivery is pending and no run is running."""
        self.push(self.number + 1)
        until(lambda: self.deliver_all() == {202}, "deliveries are not accepted again", timeout)
        until(self.is_idle, "pending deliveries do not end", timeout)

    def recovers(self) -> bool:
        """Return True if the daemon accepts a push to every repository after a fault, and every checkout reaches it.

        If the daemon renames a damaged journal late, the journal takes accepted deliveries with it. The sweep, which
        follows within a minute, deploys those.
        """
        try:
            self.settle()
            until(self.is_at_the_last_push, timeout=90)
        except AssertionError:
            return False
        return True

    def is_at_the_last_push(self) -> bool:
        """Return True if the branch and the deployed ref of every checkout are at the last push."""
        return all(
            self.checkout_refs(repository) == [self.commits[self.number]] * 2 for repository in self.repositories
        )

    def checkout_refs(self, repository: str) -> list[str]:
        """Return the commits of the checkout's branch and of its deployed ref."""
        return [_ref(self.root / repository, ref) for ref in ("refs/heads/main", "refs/gitops/deployed")]

    def is_idle(self) -> bool:
        """Return True if no delivery is pending and no run is running."""
        return self.daemon.query(_UNDONE) == [(0,)]

    def is_idle_but_for_the_last(self) -> bool:
        """Return True if only the last repository, the target of `Honest`, has pending deliveries or runs."""
        last = self.repositories[-1]
        undone = (
            "SELECT repository FROM deliveries WHERE pending UNION SELECT repository FROM runs WHERE outcome IS NULL"
        )
        return {name for (name,) in self.daemon.query(undone)} <= {last}

    def has_ended(self) -> bool:
        """Return True if no run is running; pending deliveries may wait for a retry."""
        return self.daemon.query("SELECT count(*) FROM runs WHERE outcome IS NULL") == [(0,)]

    def verify_outcomes(self, *, clock_moved: bool = False) -> list[str]:
        """Check promises 1 to 3 with the journal, the notes and git; return the deliveries that were not served."""
        unserved = self._judge_service(clock_moved)
        self._judge_overlaps()
        self._judge_outcomes()
        self._judge_checkouts()
        return unserved

    def _judge_service(self, clock_moved: bool) -> list[str]:
        rows = self.daemon.query(
            "SELECT guid, max(outcome NOT IN ('interrupted', 'unreachable') AND NOT pending AND (started >= received OR ?))"
            " FROM deliveries JOIN runs ON runs.id = run GROUP BY guid",
            clock_moved,
        )
        served = {guid for guid, is_served in rows if is_served}
        for guid, (repository, number) in self.acknowledged.items():
            self.account.promises[1].check(guid in served, f"{guid} of {repository}, commit {number}, in {self.folder}")
        return [guid for guid in self.acknowledged if guid not in served]

    def noted(self, repository: str) -> list[tuple[str, str]]:
        """Return the notes of the deploys of `repository` as pairs of event and commit."""
        notes = self.notes / repository.partition("/")[2]
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [(event, commit) for event, _, commit in (line.partition(" ") for line in lines)]

    def _judge_overlaps(self) -> None:
        for repository in self.repositories:
            events = [event for event, _ in self.noted(repository)]
            overlaps = events.count("overlap")
            line = self.account.promises[2]
            line.tried += events.count("begin")
            line.held += events.count("begin") - overlaps
            line.reasons += [f"{overlaps} times in the notes of {repository}"] if overlaps else []

    def _judge_outcomes(self) -> None:
        """Check that each successful run deployed a commit that is at least as new as those of its deliveries."""
        deployed = {
            repository: {self._place[commit] for event, commit in self.noted(repository) if event == "end"}
            for repository in self.repositories
        }
        requested: dict[int, int] = {}
        for run, guid in self.daemon.query("SELECT run, guid FROM deliveries WHERE run IS NOT NULL"):
            _, number = self.acknowledged.get(guid, ("", 0))
            requested[run] = max(number, requested.get(run, 0))
        for run, repository, outcome, after in self.daemon.query(
            f"SELECT id, repository, outcome, after FROM runs WHERE outcome IN {_GOOD}"
        ):
            # If the disk was too full to record the commit, use the newest deployed commit.
            places = deployed[repository.lower()]
            place = self._place[after] if after else max(places, default=-1)
            self.account.promises[3].check(
                place in places and place >= requested.get(run, 0),
                f"run {run} of {repository} reported {outcome} at {after}, in {self.folder}",
            )

    def _judge_checkouts(self) -> None:
        """Check that the branch and the deployed ref of every checkout are at the last push."""
        wanted = self.commits[self.number]
        for repository in self.repositories:
            refs = self.checkout_refs(repository)
            self.account.promises[3].check(refs == [wanted] * 2, f"{repository} is at {refs}, not {wanted}")


def _make_chain(bare: Path, count: int) -> list[str]:
    """Create a bare repository with a branch ``chain`` of `count` commits; return the commits, oldest first."""
    git("init", "--quiet", "--bare", "--initial-branch=main", bare, cwd=bare.parent)
    stream = []
    for number in range(count):
        text = f"{number}\n"
        stream.append(
            f"commit refs/heads/chain\ncommitter Ada <ada@example.org> {1_700_000_000 + number} +0000\ndata 5\nwork\n"
            f"M 100644 inline number\ndata {len(text)}\n{text}"
            f"M 100644 inline folder/{number % 20}\ndata {len(text) * 100}\n{text * 100}\n"
        )
    subprocess.run(["git", "fast-import", "--quiet"], cwd=bare, env=GIT_ENV, input="".join(stream).encode(), check=True)
    return git("rev-list", "--reverse", "chain", cwd=bare).split()


def _ref(checkout: Path, ref: str) -> str:
    """Return the commit of a ref; reading a loose ref from its file avoids a process."""
    loose = checkout / ".git" / ref
    return loose.read_text().strip() if loose.exists() else git("rev-parse", ref, cwd=checkout, check=False)


def children_of(process: int) -> list[int]:
    """Return the running descendants of `process`."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *children_of(int(child))]
    except OSError:
        pass  # the process has ended
    return found
