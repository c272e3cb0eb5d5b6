"""Random histories of upstream, a person and kill -9: no work is lost, every outcome is true, and runs converge.

Each sequence is drawn from a seed, which a failure names. ``RANDOM_HISTORIES`` is the number of seeds, from 0 on, and
``HISTORY_SEED=<seed>`` or ``HISTORY_SEED=<first>-<last>`` selects others.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Callable

import pytest
from conftest import Site
from scratch import git

SEQUENCES = int(os.environ.get("RANDOM_HISTORIES", "5"))
FIRST, _, LAST = os.environ.get("HISTORY_SEED", f"0-{SEQUENCES - 1}").partition("-")
SEEDS = range(int(FIRST), int(LAST or FIRST) + 1)

FILES = ["README", "a", "b/c", "b/d", "e f"]


def blob(text: str) -> str:
    data = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class History:
    """One random history of a site, and the work of a person in it."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.upstream = site.upstream
        self.random = random.Random(seed)
        self.number = 0
        self.log: list[str] = []
        self.commits: set[str] = set()
        #: What a person wrote and has not thrown away, by place: a file in the tree, or in the index.
        self.texts: dict = {}

    def text(self, whose: str) -> str:
        self.number += 1
        return f"{whose} {self.number}\n" * self.random.choice([1, 1, 500])

    # Steps of the upstream repository.

    def upstream_commits(self) -> None:
        chosen = self.random.sample(FILES, self.random.randint(1, 3))
        self.upstream.commit({name: self.text("theirs") for name in chosen})

    def upstream_deletes(self) -> None:
        name = self.random.choice(FILES)
        if (self.upstream.work / name).exists():
            self.upstream.commit({name: None})

    def upstream_amends(self) -> None:
        git(
            "commit",
            "--quiet",
            "--amend",
            "--allow-empty",
            "-m",
            self.text("amended")[:20],
            cwd=self.upstream.work,
        )
        self.upstream.commit({self.random.choice(FILES): self.text("theirs")})

    def upstream_goes_back(self) -> None:
        if len(git("rev-list", "--max-count=3", "HEAD", cwd=self.upstream.work).split()) == 3:
            self.upstream.go_back("HEAD~2")

    def upstream_renames_its_branch(self) -> None:
        old, new = self.upstream.branch, "trunk" if self.upstream.branch == "main" else "main"
        for place in (self.upstream.bare, self.upstream.work):
            git("branch", "--move", "--force", old, new, cwd=place)
        git("symbolic-ref", "HEAD", f"refs/heads/{new}", cwd=self.upstream.bare)
        self.upstream.branch = new

    def upstream_changes_its_attributes(self) -> None:
        """From now on, files may appear modified that only a filter changed."""
        chosen = self.random.choice(["", "* text eol=crlf\n", "* text eol=lf\n", "* ident\n"])
        self.upstream.commit({".gitattributes": chosen})

    def upstream_commits_line_endings(self) -> None:
        """Store CRLF and $Id$ in blobs, which the attributes in effect would not do."""
        name = self.random.choice(FILES)
        path = self.upstream.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"theirs {self.number} $Id$\r\n".encode())
        git("-c", "core.attributesFile=/dev/null", "add", "--all", cwd=self.upstream.work)
        blob_id = git("hash-object", "-w", "--no-filters", name, cwd=self.upstream.work)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob_id},{name}", cwd=self.upstream.work)
        git("commit", "--quiet", "--allow-empty", "--message", "raw", cwd=self.upstream.work)
        git("push", "--quiet", "--force", "origin", "HEAD", cwd=self.upstream.work)

    # Steps of a person in the checkout.

    def person_edits(self) -> None:
        name = self.random.choice(FILES)
        if (self.site.path / name).parent.is_dir() and not (self.site.path / name).is_dir():
            self.texts[name] = self.text("mine")
            self.site.write(name, self.texts[name])

    def person_makes_a_file(self) -> None:
        name = self.random.choice(["notes", "b/mine", *FILES])
        if not (self.site.path / name).exists() and not (self.site.path / Path(name).parent).is_file():
            self.texts[name] = self.text("mine")
            self.site.write(name, self.texts[name])

    def person_stages(self) -> None:
        self.site.git("add", "--all", check=False)
        for name in [name for name in self.texts if not name.startswith(":")]:
            if f"\t{name}" in self.site.git("ls-files", "--stage", "--", name):
                self.texts[f":{name}"] = self.texts[name]

    def person_commits(self) -> None:
        before = self.site.git("rev-parse", "--verify", "--quiet", "HEAD", check=False)
        self.person_stages()
        self.site.git("commit", "--quiet", "--message", "local", check=False)
        after = self.site.git("rev-parse", "--verify", "--quiet", "HEAD", check=False)
        if after and after != before:
            self.commits.add(after)

    def person_branches(self) -> None:
        self.number += 1
        self.site.git("checkout", "--quiet", "-b", f"idea{self.number}", check=False)
        if self.random.random() < 0.5:
            self.person_commits()

    def person_detaches(self) -> None:
        self.site.git("checkout", "--quiet", "--detach", check=False)

    def person_goes_home(self) -> None:
        if not self.site.git("symbolic-ref", "--quiet", "HEAD", check=False):  # or it were the person who loses commits
            self.number += 1
            self.site.git("branch", f"kept{self.number}", check=False)
        self.site.git("checkout", "--quiet", "main", check=False)

    def person_changes_the_sparse_checkout(self) -> None:
        self.site.git(
            "sparse-checkout", *self.random.choice([["disable"], ["set", "b"], ["set", "elsewhere"]]), check=False
        )

    def person_changes_a_worktree_setting(self) -> None:
        self.site.git("config", "extensions.worktreeConfig", "true")
        self.site.git("config", "--worktree", "gitops.deploy", self.random.choice(["true", "false"]))

    def person_changes_a_setting(self) -> None:
        key, values = self.random.choice(
            [("diverged", ["refuse", "reset"]), ("dirty", ["refuse", "stash"]), ("deploy", ["true", "false"])]
        )
        self.site.set(key, self.random.choice(values))

    # The runs.

    def run(self) -> None:
        hint = self.random.choice(["none", "tip", "old", "early"])
        commits = {"tip": "HEAD", "old": "HEAD~1"}
        announced = git(
            "rev-parse", "--verify", "--quiet", commits.get(hint, "HEAD"), cwd=self.upstream.work, check=False
        )
        after = {"none": None, "early": f"{self.random.getrandbits(160):040x}"}.get(hint, announced)
        run = self.site.run(GITOPS_REF=f"refs/heads/{self.upstream.branch}", GITOPS_AFTER=after)
        self.log[-1] += f" ({hint}) {run.outcome}"
        in_sync = {"early"} if hint == "early" else {"updated", "unchanged"}
        assert run.outcome in {"diverged", "dirty", "deploy-failed", *in_sync}, run.output
        if run.outcome in in_sync:
            assert self.site.is_at_upstream(), f"the outcome is {run.outcome}"

    def run_killed(self) -> None:
        slow = self.random.random() < 0.5  # files are written slowly, so that it dies in the middle of them
        attributes = self.site.path / ".git/info/attributes"
        attributes.write_text("* filter=slow\n" if slow else "")
        self.site.git("config", "filter.slow.smudge", "sleep 0.01; cat")
        run = self.site.start()
        time.sleep(self.random.uniform(0.002, 0.1 if slow else 0.045))
        self.site.kill(run)
        attributes.unlink()

    def environment_runs(self) -> None:
        """Another checkout of the repository on this host follows the same branch, and shares nothing."""
        place = self.site.path.with_name("site@staging")
        if not place.exists():
            git("clone", "--quiet", "--no-hardlinks", self.upstream.bare, place, cwd=self.site.root)
        before = self.site.git("rev-parse", "--verify", "--quiet", "HEAD", check=False)
        run = self.site.run(name="site@staging")
        assert run.outcome in ("updated", "unchanged"), run.output
        assert git("rev-parse", "HEAD", cwd=place) == self.upstream.head()
        assert self.site.git("rev-parse", "--verify", "--quiet", "HEAD", check=False) == before

    # The invariants.

    def check_nothing_is_lost(self) -> None:
        site = self.site
        stashes = site.git("stash", "list", "--format=%H").split()  # of which --all knows the newest alone
        reachable = set(site.git("rev-list", "--objects", "--no-object-names", "--all", "HEAD", *stashes).split())
        missing = self.commits - reachable
        assert not missing, f"commits are unreachable: {missing}"
        kept = reachable | {line.split()[1] for line in site.git("ls-files", "--stage").splitlines()}
        for path in site.path.rglob("*"):
            if path.is_file() and not path.relative_to(site.path).parts[0].startswith(".git"):
                kept.add(blob(path.read_text(errors="replace")))
        for name, text in self.texts.items():
            assert blob(text) in kept, f"what a person wrote to {name} is gone: {text[:20]}"

    def play(self, length: int) -> None:
        upstream: list[Callable[[], None]] = [self.upstream_commits] * 4 + [
            self.upstream_deletes,
            self.upstream_amends,
            self.upstream_goes_back,
            self.upstream_renames_its_branch,
            self.upstream_changes_its_attributes,
            self.upstream_commits_line_endings,
        ]
        person: list[Callable[[], None]] = [
            self.person_edits,
            self.person_edits,
            self.person_makes_a_file,
            self.person_stages,
            self.person_commits,
            self.person_branches,
            self.person_detaches,
            self.person_goes_home,
            self.person_changes_a_setting,
            self.person_changes_a_worktree_setting,
            self.person_changes_the_sparse_checkout,
        ]
        for _ in range(length):
            for act in (
                self.random.choice(upstream),
                self.random.choice(person),
                self.random.choice([self.run, self.run, self.run_killed, self.run_killed, self.environment_runs]),
            ):
                if act.__name__.startswith("person") and list(self.site.path.glob(".git/*.lock")):
                    continue  # git would refuse a person too
                self.log.append(act.__name__)
                act()
                self.check_nothing_is_lost()

    def converge(self) -> None:
        """Allow the script to set all local work aside. The next run must reach the remote's commit."""
        for key, value in {"diverged": "reset", "dirty": "stash", "deploy": "true"}.items():
            self.site.set(key, value)
        self.site.git("config", "--worktree", "--unset-all", "gitops.deploy", check=False)
        self.site.set("deploy", "true")  # without extensions.worktreeConfig, --worktree means --local
        run = self.site.run()
        assert run.outcome in ("updated", "unchanged"), run.output
        assert self.site.is_at_upstream()
        self.check_nothing_is_lost()
        run = self.site.run()
        assert run.outcome == "unchanged", run.output


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_history(site: Site, seed: int) -> None:
    site.checkout()
    history = History(site, seed)
    try:
        history.play(6)
        history.converge()
    except BaseException:
        print(f"HISTORY_SEED={seed}: {', '.join(history.log)}")
        raise
