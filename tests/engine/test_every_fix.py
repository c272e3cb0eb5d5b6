"""Every place of the script that produces a fix: the fix is pasted into a shell and works.

`test_every_producer_is_tested` finds the places in the source, so a new one needs a test here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import PARTS, SCRIPT, Run, Site, needs_root
from forge import served
from scratch import GIT_ENV, git

from gitops_hook.cli.access import token_source

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
#: The functions of fix.sh.
FUNCTIONS = "|".join(re.findall(r"^(\w+)\(\)", (SCRIPT.parent / "sync/fix.sh").read_text(), re.MULTILINE))
#: Those that print a part of a fix, not a fix.
PART = "user_name"
TESTED: Counter[str] = Counter()


def producers() -> Counter[str]:
    """Return the calls of the functions of fix.sh, by the function that contains them and the one that is called."""
    found: Counter[str] = Counter()
    for path in [SCRIPT, *PARTS]:
        function = ""
        for line in path.read_text().splitlines():
            begin = re.match(r"(\w+)\(\) \{", line)
            function = begin[1] if begin else function
            for called in re.findall(rf"(?:\$\(|\|\| )({FUNCTIONS})\b", line.partition(" # ")[0]):
                if path.name != "fix.sh" and PART not in called:
                    found[f"{function} {called}"] += 1
    return found


def produces(*places: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test of these producers."""
    TESTED.update(places)
    return lambda test: test


def test_every_producer_is_tested() -> None:
    assert producers() == TESTED


class Host:
    """A site whose user has the tools of a real host on PATH."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tools = site.folder / "bin"
        self.tools.mkdir()
        self.tool("sudo", 'if [ "$1" = -u ]; then shift 2; fi; exec "$@"')
        command = f'PYTHONPATH={SCRIPT.parents[1]} exec {sys.executable} -m gitops_hook "$@"'
        self.tool("gitops-hook", f"export GITOPS_ROOT={site.root} GITOPS_STATE={site.folder}/state; {command}")
        self.path = f"{self.tools}:{os.environ['PATH']}"
        for place in (site.folder, *list(site.folder.parents)[:-2]):
            place.chmod(place.stat().st_mode | 0o777)

    def tool(self, name: str, body: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.tools / name).chmod(0o755)

    def run(self, *options: str, **more: object) -> Run:
        return self.site.run(*options, **{"PATH": self.path, **more})  # type: ignore[arg-type]

    def paste(self, run: Run) -> str:
        """Run a fix in another directory, without the daemon's environment; return its output."""
        assert run.fix and "\n" not in run.fix, run.output
        done = subprocess.run(
            ["bash", "-c", run.fix], cwd="/", env={**GIT_ENV, "PATH": self.path}, capture_output=True, text=True
        )
        assert done.returncode == 0, (run.fix, done.stderr)
        return done.stdout


@pytest.fixture
def host(site: Site) -> Iterator[Host]:
    site.checkout()
    yield Host(site)


def fixes(
    host: Host, outcome: str, *options: str, then: tuple[str, ...] = ("updated", "unchanged"), **more: str
) -> Run:
    """Check that a run has this outcome, and that the next run after its fix ends well."""
    run = host.run(*options, **more)
    assert run.outcome == outcome, run.output
    host.paste(run)
    after = host.run(**more)
    assert after.outcome in then, after.output
    return run


# -- checkout.sh --------------------------------------------------------------------------------------------------------


@produces("read_arguments quote_command", "read_arguments quote_command")
@pytest.mark.parametrize("options", [["--nope"], ["site"]])
def test_wrong_arguments(host: Host, options: list[str]) -> None:
    run = host.run(*options)
    assert run.outcome == "usage"
    assert host.paste(run).startswith("usage: gitops_sync.sh")


@produces("enter_checkout as_root")
def test_a_missing_root(host: Host) -> None:
    root = host.site.folder / "other root"
    run = host.run(GITOPS_ROOT=str(root))
    assert run.outcome == "missing"
    host.paste(run)
    assert root.is_dir()
    assert "no checkout at" in host.run(GITOPS_ROOT=str(root)).message


@needs_root
@produces("check_enterable as_root", "check_enterable give_to_user", "take_lock give_to_user")
@produces("check_owner give_to_user", "check_owner give_to_user")
@pytest.mark.parametrize("place", ["parent", "checkout", "repository", "objects", "lock"])
def test_files_of_another_user(host: Host, place: str) -> None:
    path = host.site.path
    subprocess.run(["chown", "-R", "65534:65534", path], check=True)
    other = {
        "parent": path.parent,
        "checkout": path,
        "repository": path / ".git",
        "objects": path / ".git/objects",
        "lock": path / ".git/gitops.lock",
    }[place]
    os.chown(other, 0, 0)
    other.chmod(0o600 if place == "lock" else 0o700)
    safe = host.site.home("[safe]\n\tdirectory = *\n")
    run = host.run(prefix=NOBODY, **safe)
    assert run.outcome == "denied", run.output
    host.paste(run)
    assert host.run(prefix=NOBODY, **safe).outcome in ("updated", "unchanged")


@produces("prepare_clone as_owner")
def test_files_in_place_of_a_checkout(host: Host) -> None:
    place = host.site.path.with_name("new")
    place.mkdir()
    (place / "file").touch()
    run = host.run(name="new", GITOPS_REPOSITORY="acme/new")
    assert run.outcome == "missing"
    host.paste(run)
    assert (place.with_name("new.before-gitops") / "file").exists() and not place.exists()


@produces("prepare_clone as_owner")
def test_no_checkout(host: Host) -> None:
    host.site.path.rename(host.site.folder / "away")
    fixes(host, "missing", "--dry-run", GITOPS_CLONE_URL=str(host.site.upstream.bare))


@needs_root
@produces("prepare_clone as_root", "claim_building give_to_user")
@pytest.mark.parametrize("exists", [False, True])
def test_a_clone_in_a_directory_of_root(host: Host, exists: bool) -> None:
    place = host.site.path
    place.rename(host.site.folder / "away")
    place.parent.chmod(0o755)
    if exists:
        place.mkdir(mode=0o755)
    more = {"prefix": NOBODY, "GITOPS_CLONE_URL": str(host.site.upstream.bare)}
    more.update(host.site.home("[safe]\n\tdirectory = *\n"))
    run = host.run(**more)
    assert run.outcome == "denied", run.output
    host.paste(run)
    assert host.run(**more).outcome == "cloned"


@produces("check_origin git_fix")
def test_no_origin(host: Host) -> None:
    host.site.git("remote", "remove", "origin")
    fixes(host, "mismatch", GITOPS_CLONE_URL=str(host.site.upstream.bare))


@produces("check_origin url_fix")
def test_another_origin(host: Host) -> None:
    host.site.git("remote", "set-url", "origin", host.site.upstream.bare.with_name("other.git"))
    fixes(host, "mismatch")


# -- settings.sh, remote.sh, lock.sh ------------------------------------------------------------------------------------


@produces("reject_setting unset_fix")
@pytest.mark.parametrize("key", ["timeout", "paths", "branch", "paused"])
def test_an_invalid_setting(host: Host, key: str) -> None:
    host.site.set(key, ":(nope)x" if key == "paths" else "a b")
    fixes(host, "usage")


@produces("end_if_paused hook_fix", "end_if_paused unset_fix")
@pytest.mark.parametrize("is_installed", [True, False])
def test_a_pause(host: Host, is_installed: bool) -> None:
    if not is_installed:
        (host.tools / "gitops-hook").unlink()
    host.site.set("paused", "true")
    fixes(host, "paused")


@produces("default_branch_fix unset_fix")
def test_a_branch_that_the_remote_does_not_have(host: Host) -> None:
    host.site.set("branch", "gone")
    fixes(host, "missing")


@produces("locate_tag unset_fix")
def test_a_pattern_that_no_tag_matches(host: Host) -> None:
    host.site.set("tag", "v*")
    fixes(host, "missing")


@produces("conclude rename_fix")
def test_a_new_name(host: Host) -> None:
    bare = host.site.upstream.bare
    bare.rename(bare.with_name("renamed.git"))
    with served(bare.parents[1], {"acme/site": "acme/renamed"}) as url:
        host.site.git("remote", "set-url", "origin", f"{url}/acme/site.git")
        run = host.run()
        assert (run.outcome, run.cause) == ("unchanged", "renamed")
        host.paste(run)
        run = host.run(name="renamed", GITOPS_REPOSITORY="acme/renamed")
        assert (run.outcome, run.cause) == ("unchanged", "")


@produces("end_refused host_key_fix")
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_host_key(host: Host, is_changed: bool) -> None:
    warning = "REMOTE HOST IDENTIFICATION HAS CHANGED!\n" if is_changed else ""
    host.tool(
        "ssh", f'case "$*" in *-T*) echo "$@" >{host.site.folder}/ran;; *) printf "{warning}Host key verification failed.\\n" >&2; exit 255;; esac'
    )  # fmt: skip
    host.tool("ssh-keygen", f'echo "$@" >{host.site.folder}/ran')
    host.site.git("remote", "set-url", "origin", "ssh://git@forge.example:2222/acme/site.git")
    run = host.run()
    assert run.outcome == "no-access", run.output
    host.paste(run)
    ran = (host.site.folder / "ran").read_text().split()
    assert ran == (
        ["-R", "[forge.example]:2222"]
        if is_changed
        else ["-T", "-o", "StrictHostKeyChecking=ask", "-p", "2222", "git@forge.example"]
    )


@produces("end_refused deploy_key_fix")
def test_a_rejected_key_of_the_repository(host: Host) -> None:
    host.tool("ssh", 'echo "git@forge.example: Permission denied (publickey)." >&2; exit 255')
    host.tool("gitops-hook", f'echo "$@" >{host.site.folder}/ran')
    host.site.git("config", "core.sshCommand", f"ssh -o UserKnownHostsFile={host.site.folder}/known_hosts")
    host.site.git("remote", "set-url", "origin", "ssh://git@forge.example/acme/site.git")
    run = host.run(GITOPS_REPOSITORY="acme/site")
    assert run.outcome == "no-access", run.output
    host.paste(run)
    assert (host.site.folder / "ran").read_text() == "add --ssh-key acme/site\n"


@produces("end_refused token_fix")
def test_a_rejected_token_of_the_repository(host: Host) -> None:
    host.tool("ssh", 'echo "fatal: Authentication failed" >&2; exit 255')
    host.tool("sudoedit", f'echo "$@" >{host.site.folder}/ran')
    url, config = token_source("https://forge.example/acme/site.git", token_file(host))
    for entry in config:
        name, _, value = entry.partition("=")
        host.site.git("config", "--add", name, value)
    host.site.git("remote", "set-url", "origin", url.replace("https://", "ssh://"))
    run = host.run()
    assert run.outcome == "no-access", run.output
    host.paste(run)
    assert (host.site.folder / "ran").read_text() == f"{host.site.folder}/a token\n"


def token_file(host: Host) -> Path:
    path = host.site.folder / "a token"
    path.write_text("secret\n")
    path.chmod(0o600)
    return path


@needs_root
@produces("remove_stale_locks as_root")
def test_a_lock_file_of_another_user(host: Host) -> None:
    subprocess.run(["chown", "-R", "65534:65534", host.site.path], check=True)
    (host.site.path / ".git/index.lock").touch()
    safe = host.site.home("[safe]\n\tdirectory = *\n")
    run = host.run(prefix=NOBODY, **safe)
    assert run.outcome == "unreachable", run.output
    host.paste(run)
    assert host.run(prefix=NOBODY, **safe).outcome == "unchanged"


# -- local_work.sh, move.sh, deploy.sh, recover.sh ----------------------------------------------------------------------


@produces("keep_or_refuse git_fix")
def test_local_commits(host: Host) -> None:
    host.site.commit_here()
    fixes(host, "diverged")


@produces("move git_fix")
def test_local_changes(host: Host) -> None:
    host.site.write("README", "mine\n")
    host.site.upstream.commit({"README": "theirs\n"})
    fixes(host, "dirty")


@produces("check_lfs git_fix", "check_lfs as_root", "check_lfs as_root")
@pytest.mark.parametrize("present", ["git-lfs", "apt-get", "dnf"])
def test_files_in_git_lfs(host: Host, present: str) -> None:
    host.path = f"{host.tools}:{host.site.folder}/few"
    few = host.site.folder / "few"
    few.mkdir()
    for directory in reversed(os.environ["PATH"].split(":")):
        for tool in Path(directory).glob("*") if Path(directory).is_dir() else ():
            if tool.name not in ("git-lfs", "apt-get", "dnf") and not (few / tool.name).exists():
                (few / tool.name).symlink_to(tool)
    host.tool(present, f'echo "$@" >{host.site.folder}/ran')
    host.site.upstream.commit({".gitattributes": "*.bin filter=lfs -text\n"})
    run = host.run()
    assert run.outcome == "missing", run.output
    host.paste(run)
    expected = {"git-lfs": "install --local", "apt-get": "install git-lfs", "dnf": "install git-lfs"}[present]
    assert (host.site.folder / "ran").read_text().strip() == expected


@produces("restore_last_good deploy_fix", "keep_last_good deploy_fix")
@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_commit_that_was_rolled_back(host: Host, runs: int, is_installed: bool) -> None:
    if not is_installed:
        (host.tools / "gitops-hook").unlink()
    host.site.set("health", f"[[ ! -e sick || -e {host.site.folder}/well ]]")
    host.site.set("healthTimeout", "0")
    host.run("--force")
    host.site.upstream.commit({"sick": "1\n"})
    for _ in range(runs):
        run = host.run()
    assert run.outcome == "rolled-back"
    (host.site.folder / "well").touch()
    assert "updated" in host.paste(run)
    assert host.site.is_at_upstream()


@produces("unpin_fix unset_fix")
@pytest.mark.parametrize("is_installed", [True, False])
def test_a_pin_outside_the_branch(host: Host, is_installed: bool) -> None:
    if not is_installed:
        (host.tools / "gitops-hook").unlink()
    host.site.set("pin", git("commit-tree", "-m", "x", "HEAD^{tree}", cwd=host.site.path))
    fixes(host, "usage")


@produces("repair as_owner")
def test_damage_that_cannot_be_repaired(host: Host) -> None:
    mine = host.site.commit_here()
    for file in (f"objects/{mine[:2]}/{mine[2:]}", "logs/HEAD", "refs/gitops/deployed"):
        (host.site.path / ".git" / file).unlink()
    run = host.run()
    assert run.outcome == "missing", run.output
    host.paste(run)
    assert host.run(GITOPS_CLONE_URL=str(host.site.upstream.bare)).outcome == "cloned"


@produces("repair git_fix")
def test_damage_of_a_linked_worktree(host: Host) -> None:
    """The script does not rebuild the repository of a linked worktree. The fix shows the damage."""
    place = host.site.path.with_name("linked")
    host.site.git("config", "remote.origin.url", host.site.upstream.bare.with_name("linked.git"))
    git("worktree", "add", "--quiet", "--detach", place, cwd=host.site.path)
    mine = git("commit-tree", "-m", "x", "HEAD^{tree}", cwd=place)
    git("reset", "--quiet", mine, cwd=place)
    (host.site.path / f".git/objects/{mine[:2]}/{mine[2:]}").unlink()
    host.site.upstream.bare.rename(host.site.upstream.bare.with_name("linked.git"))
    run = host.run(name="linked", GITOPS_REPOSITORY="acme/linked")
    assert run.outcome == "missing", run.output
    done = subprocess.run(["bash", "-c", run.fix], cwd="/", env={**GIT_ENV, "PATH": host.path}, capture_output=True)
    assert mine in (done.stdout + done.stderr).decode()
