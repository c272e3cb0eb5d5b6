"""A host under torture: a forge, checkouts, the daemon, and whatever tells from outside what is true.

Rules:

1. What was promised is what this side of the wire got: `acknowledged` holds the deliveries that were answered 202.
2. What happened is what the deploys noted (`DEPLOY`) and what git says, never what the daemon says.
3. What the daemon says is then compared with both (`Host.verify_outcomes`).

All repositories share one history at the forge, a chain of commits made beforehand, so a push is the writing of one
ref. A commit is known by its place in the chain: a later one is better news.
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

#: Notes that it begins, that another is on the way, and that it ends. Whether another is on the way the kernel says:
#: the lock is held by this shell alone and goes with it, however it dies.
DEPLOY = """\
notes=$GITOPS_ROOT/../notes/${PWD##*/}
exec 8>>"$notes.lock"
flock --nonblock --conflict-exit-code 99 8
[[ $? != 99 ]] || echo "overlap $GITOPS_AFTER" >>"$notes"
echo "begin $GITOPS_AFTER" >>"$notes"
sleep 0.03 8>&-
echo "end $GITOPS_AFTER" >>"$notes"
"""
#: Outcomes that say that the checkout is where upstream is.
_GOOD = ("updated", "unchanged", "cloned")
#: What is owed or in hand.
_UNDONE = "SELECT (SELECT count(*) FROM deliveries WHERE pending) + (SELECT count(*) FROM runs WHERE outcome IS NULL)"
_SWEPT = "SELECT DISTINCT repository FROM runs WHERE outcome IS NOT NULL"


class Host:
    """A daemon over real checkouts of `repositories`, each at the first of so many `commits` and noting its deploys.

    It has swept them once. `launcher` is what starts the daemon instead of this Python, and `owner` whose all files are.
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
        """The forge's names for its one history, and a checkout of each."""
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

    # -- what a forge does ----------------------------------------------------------------------------------------

    def push(self, number: int) -> None:
        """Put the forge's main at that commit of the chain."""
        self.number = number
        new = self._history / "main.new"
        new.write_text(self.commits[number] + "\n")
        new.replace(self._history / "refs/heads/main")

    def deliver(self, repository: str, *, patience: float = 30) -> int:
        """Tell the daemon of the last push to `repository`; the status, or 0 where there was no answer."""
        guid, number = str(uuid.uuid4()), self.number
        status = 0
        with suppress(OSError, HTTPException, ValueError):
            status, _ = self.daemon.deliver(push(repository, self.commits[number]), guid=guid, patience=patience)
        if status == 202:
            self.acknowledged[guid] = (repository, number)
        return status

    def deliver_all(self) -> set[int]:
        """Tell the daemon of the last push to every repository; which statuses there were."""
        return {self.deliver(repository) for repository in self.repositories}

    # -- what is true ---------------------------------------------------------------------------------------------

    def settle(self, timeout: float = 180) -> None:
        """After a last push to every repository, wait until nothing is owed and nothing is in hand."""
        self.push(self.number + 1)
        until(lambda: self.deliver_all() == {202}, "deliveries are not accepted again", timeout)
        until(self.is_idle, "what is owed is not done", timeout)

    def recovers(self) -> bool:
        """Whether, after a fault, a push to every repository is accepted, and every checkout comes to stand at it.

        A journal that is set aside late takes accepted deliveries with it; the sweep that follows within a minute sees
        to those.
        """
        try:
            self.settle()
            until(self.is_at_the_last_push, timeout=90)
        except AssertionError:
            return False
        return True

    def is_at_the_last_push(self) -> bool:
        """Whether every checkout stands at the last push, and says that this is deployed."""
        return all(self.stands(repository) == [self.commits[self.number]] * 2 for repository in self.repositories)

    def stands(self, repository: str) -> list[str]:
        """Where the checkout's branch is, and what counts as deployed there."""
        return [_ref(self.root / repository, ref) for ref in ("refs/heads/main", "refs/gitops/deployed")]

    def is_idle(self) -> bool:
        """Whether nothing is owed and nothing in hand."""
        return self.daemon.query(_UNDONE) == [(0,)]

    def is_idle_but_for_the_last(self) -> bool:
        """Whether nothing is owed to any repository but the last, which honest deliveries go to."""
        last = self.repositories[-1]
        undone = (
            "SELECT repository FROM deliveries WHERE pending UNION SELECT repository FROM runs WHERE outcome IS NULL"
        )
        return {name for (name,) in self.daemon.query(undone)} <= {last}

    def has_ended(self) -> bool:
        """Whether nothing is in hand; what is owed may wait for another try."""
        return self.daemon.query("SELECT count(*) FROM runs WHERE outcome IS NULL") == [(0,)]

    def verify_outcomes(self, *, clock_moved: bool = False) -> list[str]:
        """Hold the journal against what is true, for promises 1 to 3; returns the deliveries that were not served."""
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
        """What the deploys of `repository` noted: what happened, and at which commit."""
        notes = self.notes / repository.partition("/")[2]
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [(what, commit) for what, _, commit in (line.partition(" ") for line in lines)]

    def _judge_overlaps(self) -> None:
        for repository in self.repositories:
            happened = [what for what, _ in self.noted(repository)]
            overlaps = happened.count("overlap")
            line = self.account.promises[2]
            line.tried += happened.count("begin")
            line.held += happened.count("begin") - overlaps
            line.reasons += [f"{overlaps} times in the notes of {repository}"] if overlaps else []

    def _judge_outcomes(self) -> None:
        """A run that ended well left its checkout at a commit no older than any that it was told of, and deployed."""
        deployed = {
            repository: {self._place[commit] for what, commit in self.noted(repository) if what == "end"}
            for repository in self.repositories
        }
        told_of: dict[int, int] = {}
        for run, guid in self.daemon.query("SELECT run, guid FROM deliveries WHERE run IS NOT NULL"):
            _, number = self.acknowledged.get(guid, ("", 0))
            told_of[run] = max(number, told_of.get(run, 0))
        for run, repository, outcome, after in self.daemon.query(
            f"SELECT id, repository, outcome, after FROM runs WHERE outcome IN {_GOOD}"
        ):
            # Where the disk was too full to say which commit, the newest that was ever deployed must do.
            places = deployed[repository.lower()]
            place = self._place[after] if after else max(places, default=-1)
            self.account.promises[3].check(
                place in places and place >= told_of.get(run, 0),
                f"run {run} of {repository} said {outcome} at {after}, in {self.folder}",
            )

    def _judge_checkouts(self) -> None:
        """In the end every checkout stands at the last push, and says that this is deployed."""
        wanted = self.commits[self.number]
        for repository in self.repositories:
            stands = self.stands(repository)
            self.account.promises[3].check(stands == [wanted] * 2, f"{repository} stands at {stands}, not {wanted}")


def _make_chain(bare: Path, count: int) -> list[str]:
    """A bare repository with so many commits one upon the other, oldest first, reachable as ``chain``."""
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
    """A ref's commit; from its own file where it has one, which spares a process."""
    loose = checkout / ".git" / ref
    return loose.read_text().strip() if loose.exists() else git("rev-parse", ref, cwd=checkout, check=False)


def children_of(process: int) -> list[int]:
    """The living processes that `process` has started, and theirs."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *children_of(int(child))]
    except OSError:
        pass  # it has ended meanwhile
    return found
