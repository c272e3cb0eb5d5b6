"""Find the commit for a deploy or a roll-back that a person requests.

Rules:

1. The commit is in the tracked branch, as far as this host knows it. The run checks that again at the remote.
2. Every text from outside is checked before it becomes an argument of git.
"""

from __future__ import annotations

import re
import subprocess

from gitops_hook.journal.reader import JournalReader
from gitops_hook.sync.checkouts import Checkout, position
from gitops_hook.sync.git import git_output, is_ancestor

#: A commit id, which may be abbreviated, or the name of a tag or branch.
_NAME = re.compile(r"(?![-/.])[A-Za-z0-9._/+-]{1,200}")


def find_commit(checkout: Checkout, name: str) -> str:
    """Return the id of the commit that `name` names. Raises ValueError if it is not in the tracked branch."""
    commit = _resolve(checkout, name) if _NAME.fullmatch(name) and ".." not in name else None
    if not commit:
        raise ValueError(f"the checkout of {checkout.repository} has no commit {name}; give its id, or sync it first")
    if not is_in_upstream(checkout, commit):
        raise ValueError(f"{commit[:10]} is not in the branch that {checkout.repository} follows")
    return commit


def last_good_commit(journal: JournalReader, checkout: Checkout) -> str:
    """Return the commit that was deployed with success before the one that is checked out.

    Raises ValueError if the journal has none that is in the tracked branch, and JournalError.
    """
    live = _resolve(checkout, "HEAD") or ""
    for commit in journal.good_commits(checkout.repository, live):
        if is_in_upstream(checkout, commit):
            return commit
    raise ValueError(f"the journal has no earlier deploy of {checkout.repository}; name a commit")


def is_in_upstream(checkout: Checkout, commit: str) -> bool:
    """Return True if the last known commit of the tracked branch, or a tag that was followed, reaches `commit`."""
    if is_ancestor(checkout.path, commit, position(checkout).upstream or ""):
        return True
    return "tag" in checkout.settings and bool(
        git_output(checkout.path, "for-each-ref", "--count=1", "--contains", commit, "refs/gitops/tags")
    )


def _resolve(checkout: Checkout, name: str) -> str | None:
    try:
        return git_output(checkout.path, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except subprocess.CalledProcessError:
        return None
