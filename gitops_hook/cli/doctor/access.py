"""Checks of the access to a private repository: the key, the pinned host keys, the token, Git LFS."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gitops_hook.cli.access import token_file_of, token_problem
from gitops_hook.cli.doctor.finding import Results, current_user, failure, output_of, passed, quote
from gitops_hook.config import Settings
from gitops_hook.sync.checkouts import Checkout
from gitops_hook.sync.deploy_keys import key_of


def access(settings: Settings, checkout: Checkout) -> Results:
    """Check the files that `gitops-hook add --ssh-key` and `--token-file` configured. `fetch` tests the access."""
    command = output_of("git", "-C", checkout.path, "config", "core.sshCommand") or ""
    key = key_of(command)
    if key:
        yield from _check_key(checkout.repository, key)
    helpers = output_of("git", "-C", checkout.path, "config", "--get-regexp", r"^credential\..*\.helper$") or ""
    for line in helpers.splitlines():
        file = token_file_of(line.partition(" ")[2])
        if file:
            problem = token_problem(file)
            yield failure(*problem) if problem else passed(f"the token in {file} is private and readable")


def _check_key(repository: str, key: Path) -> Results:
    create = f"sudo gitops-hook add {repository} --ssh-key"
    known_hosts = key.with_name("known_hosts")
    if not key.exists():
        yield failure(f"there is no key {key}", create)
    elif key.stat().st_uid != os.geteuid():
        yield failure(f"{key} does not belong to {current_user()}", f"sudo chown {current_user()}: {quote(key)}")
    elif key.stat().st_mode & 0o077:
        yield failure(f"other users can read {key}, so ssh rejects it", f"sudo chmod 600 {quote(key)}")
    elif not known_hosts.is_file() or not known_hosts.stat().st_size:
        yield failure(f"{known_hosts} contains no host key", create)
    else:
        yield passed(f"the key {key} is private, and its host keys are pinned")


def lfs(settings: Settings, checkout: Checkout) -> Results:
    """Check that git-lfs exists if files of the current commit need it."""
    attributes = output_of("git", "-C", checkout.path, "grep", "-l", "filter=lfs", "HEAD", "--", "*.gitattributes")
    if not attributes:
        return
    if shutil.which("git-lfs"):
        yield passed("git-lfs exists, for files in Git LFS")
    else:
        yield failure("files are in Git LFS, and there is no program git-lfs", "sudo apt-get install git-lfs")
