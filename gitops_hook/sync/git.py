"""Read from a checkout with git, after a run.

Rules:

1. git reads the checkout only. It does not ask the network, start an fsmonitor, or examine a repository around it.
2. A caller passes commit ids and fixed options, never other text from outside.
3. Each command has a time limit, so that a disk that hangs does not stop the caller for ever.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

#: The time limit of one command in seconds. It takes some milliseconds.
TIME_LIMIT = 10
_COMMIT_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def is_commit_id(text: str) -> bool:
    """Return True if `text` is a full commit id, SHA-1 or SHA-256."""
    return _COMMIT_ID.fullmatch(text) is not None


def git_output(checkout: Path, *arguments: str) -> str:
    """Return the output of a git command in the directory `checkout`.

    Raises `OSError` if git cannot be started, and `subprocess.SubprocessError` if it fails or exceeds the time limit.
    """
    return subprocess.run(
        ["git", "-C", checkout, "-c", "core.fsmonitor=false", *arguments],
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent), "GIT_NO_LAZY_FETCH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=TIME_LIMIT,
        check=True,
    ).stdout.decode("utf-8", "replace")


def is_ancestor(checkout: Path, commit: str, other: str) -> bool:
    """Return True if `commit` equals `other` or is an ancestor of it. False also if the checkout lacks one of them.

    Raises `OSError` if git cannot be started, and `subprocess.TimeoutExpired` at the time limit.
    """
    if not (is_commit_id(commit) and is_commit_id(other)):
        return False
    try:
        git_output(checkout, "merge-base", "--is-ancestor", commit, other)
    except subprocess.CalledProcessError:
        return False
    return True
