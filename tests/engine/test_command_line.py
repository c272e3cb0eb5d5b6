"""The command line: --help, --dry-run, a terminal, messages."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest
from conftest import EXIT, PARTS, SCRIPT, Site
from scratch import git


def test_help() -> None:
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: gitops_sync.sh") and not done.stderr
    for word in (*EXIT, "--dry-run", "--force", "healthTimeout"):
        assert word in done.stdout


def state(site: Site) -> dict[str, object]:
    """Return all files of the checkout except fetched objects, with their modification times."""
    found = {}
    for path in site.path.rglob("*"):
        if ".git/objects" not in str(path):
            found[str(path)] = path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None
    return found


def test_dry_run_of_a_move(synced: Site) -> None:
    synced.set("deploy", "touch ran")
    synced.run("--force")
    before = state(synced)
    tip = synced.upstream.commit({"page": "1\n"})
    run = synced.run("--dry-run")
    assert (
        run.outcome == "unchanged"
        and "would move" in run.message
        and tip[:10] in run.message
        and "deploy" in run.message
    )
    assert state(synced) == before
    assert synced.run().outcome == "updated"
    assert synced.run("--dry-run").message.endswith("the remote's commit")


@pytest.mark.parametrize("kind", ["edited", "staged", "untracked"])
def test_dry_run_of_a_refusal(synced: Site, kind: str) -> None:
    name = "page" if kind == "untracked" else "README"
    synced.write(name, "mine\n")
    if kind == "staged":
        synced.git("add", name)
    before = state(synced)
    synced.upstream.commit({name: "theirs\n"})
    run = synced.run("--dry-run")
    assert run.outcome == "dirty" and name in run.message
    assert state(synced) == before


def test_dry_run_of_local_commits(synced: Site) -> None:
    synced.commit_here()
    before = state(synced)
    assert synced.run("--dry-run").outcome == "diverged"
    synced.set("diverged", "reset")
    assert synced.run("--dry-run").outcome == "unchanged"
    assert not synced.ref("refs/gitops/backup") and len(state(synced)) == len(before)


def test_dry_run_of_an_owed_deploy(synced: Site) -> None:
    synced.set("deploy", "false")
    synced.upstream.commit()
    assert synced.run().outcome == "deploy-failed"
    before = state(synced)
    run = synced.run("--dry-run")
    assert run.outcome == "unchanged" and "would deploy" in run.message and state(synced) == before


def test_dry_run_of_a_clone_and_a_repair(site: Site) -> None:
    run = site.run("--dry-run", GITOPS_CLONE_URL=str(site.upstream.bare))
    assert run.outcome == "missing" and not list(site.root.iterdir())
    site.checkout()
    (site.path / ".git/HEAD").unlink()
    before = state(site)
    run = site.run("--dry-run")
    assert run.outcome == "missing" and "would rebuild" in run.message and state(site) == before


def test_dry_run_of_a_default_branch_that_changed(synced: Site) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/trunk", cwd=synced.upstream.work)
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=synced.upstream.bare)
    before = state(synced)
    run = synced.run("--dry-run")
    assert "would move" in run.message and "trunk" in run.message and state(synced) == before


def test_only_a_name_as_argument(synced: Site) -> None:
    """A timer of an older installation calls the script like this."""
    synced.upstream.commit({"page": "1\n"})
    environment = {key: value for key, value in synced.environment.items() if key != "GITOPS_REPOSITORY"}
    done = subprocess.run([SCRIPT, "site"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("updated: site: main is at ") and not done.stderr
    assert synced.is_at_upstream()


def test_the_script_finds_its_parts_through_symlinks(synced: Site) -> None:
    first, second = synced.folder / "first", synced.folder / "bin" / "second"
    second.parent.mkdir()
    first.symlink_to(SCRIPT)
    second.symlink_to("../first")
    for command in ([second, "site"], ["bash", "second", "site"]):
        done = subprocess.run(
            command, cwd=second.parent, env=synced.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stdout.startswith("unchanged: ") and not done.stderr


def test_two_owners_have_one_name(synced: Site) -> None:
    other = synced.root / "other" / "site"
    git("clone", "--quiet", synced.upstream.bare, other, cwd=synced.root)
    run = synced.run(GITOPS_REPOSITORY=None)
    assert run.outcome == "usage" and "acme/site" in run.message and "other/site" in run.message


def test_a_terminal_sees_progress(synced: Site) -> None:
    git("config", "pack.threads", "1", cwd=synced.upstream.bare)
    synced.git("remote", "set-url", "origin", f"file://{synced.upstream.bare}")
    synced.upstream.commit({f"page{number}": f"{number}\n" for number in range(20)})
    ours, theirs = pty.openpty()
    done = subprocess.run(
        synced.command(), env=synced.environment, stdout=subprocess.DEVNULL, stderr=theirs, check=False
    )
    os.close(theirs)
    assert done.returncode == 0 and b"objects: 100%" in os.read(ours, 65536)
    os.close(ours)


def test_a_log_sees_no_progress(synced: Site) -> None:
    synced.git("remote", "set-url", "origin", f"file://{synced.upstream.bare}")
    synced.upstream.commit({"page": "1\n"})
    assert "objects" not in synced.run().output


def test_every_message_is_one_line(synced: Site) -> None:
    name = "new\nline\x1b[31m"
    synced.write(name, "mine\n")
    synced.upstream.commit({name: "theirs\n"})
    run = synced.run()
    assert run.outcome == "dirty" and "\x1b" not in run.message and "new" in run.message


def test_every_outcome_has_its_exit_code() -> None:
    [declared] = re.findall(r"EXIT=\(\n(.*?)\n\)", SCRIPT.read_text(), re.DOTALL)
    assert {name: int(status) for name, status in re.findall(r"\[([a-z-]+)\]=(\d+)", declared)} == EXIT


def test_the_script_and_its_parts_are_short_and_disable_no_check() -> None:
    for path in [SCRIPT, *PARTS]:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert "shellcheck disable" not in text.partition("\n\n")[0], f"{path} disables a check for the whole file"
