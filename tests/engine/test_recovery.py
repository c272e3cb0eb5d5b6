"""Recovery from killed runs, full disks and damaged repositories."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import SCRIPT, Run, Site, meanwhile, needs_root, tool
from scratch import git


def killed_in(site: Site, moment: str) -> None:
    """Kill a run and its children before or after a git command, or in the deploy."""
    marker = site.folder / "moment"
    os.mkfifo(marker)
    tools = site.folder / "tools"
    tools.mkdir(exist_ok=True)
    wrapper = tools / "git"
    real = shutil.which("git")
    wrapper.write_text(
        "#!/bin/bash\n"
        f'for word; do [[ $word == "$STOP_BEFORE" ]] && {{ echo >{marker}; sleep 60; }}; done\n'
        f'[[ $STOP_AFTER && " $* " == *" $STOP_AFTER "* ]] && {{ {real} "$@"; echo >{marker}; sleep 60; }}\n'
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    when, _, what = moment.partition(" ")
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STOP_BEFORE": "",
        "STOP_AFTER": "",
        "MARKER": str(marker),
    }
    if when != "deploy":
        environment[f"STOP_{when.upper()}"] = what
    run = site.start(**environment)
    marker.read_text()  # waits until the moment has come
    site.kill(run)
    marker.unlink()


@pytest.mark.parametrize(
    "moment",
    [
        "before fetch",
        "after fetch",
        "before switch",
        "after switch",
        "before update-ref",
        "after update-ref",
        "deploy",
    ],
)
def test_killed_between_any_two_steps(synced: Site, moment: str) -> None:
    stop = '[[ -p ${MARKER:-} && -z $STOP_BEFORE$STOP_AFTER ]] && { echo >"$MARKER"; sleep 60; }'
    synced.set("deploy", f'echo "$GITOPS_AFTER" >>"$TRACE"; {stop}; true')
    synced.run("--force")
    tip = synced.upstream.commit({"page": "1\n", "README": "2\n"})
    killed_in(synced, moment)
    run = synced.run()
    assert run.outcome == "updated"
    assert synced.is_at_upstream() and not synced.status()
    assert (synced.folder / "trace").read_text().splitlines()[-1] == tip, "the pending deploy runs"
    assert synced.run().outcome == "unchanged"


def killed_half_way(site: Site) -> None:
    """Kill a run while git writes the tree: a filter blocks at the file `stop`."""
    marker = site.folder / "moment"
    os.mkfifo(marker)
    (site.path / ".git/info/attributes").write_text("stop filter=stop\n")
    site.git("config", "filter.stop.smudge", f'[ -p "{marker}" ] && {{ echo >"{marker}"; sleep 60; }}; cat')
    run = site.start()
    marker.read_text()
    site.kill(run)
    marker.unlink()
    assert (site.path / ".git/index.lock").exists(), "git was at work"
    (site.path / ".git/info/attributes").unlink()


def tree_for_a_move(site: Site) -> None:
    """Prepare a synced tree and a different one at the remote. git writes files in the order of their names."""
    site.upstream.commit(
        {
            "a-edited": "old\n",
            "b-removed": "old\n",
            "c/file": "old\n",
            "d": "old\n",
            "stop": "old\n",
            "z-late": "old\n",
        }
    )
    assert site.run().outcome == "updated"
    site.write("README", "a person's edit\n")
    site.write("staged", "a person's\n")
    site.git("add", "staged")
    (site.upstream.work / "d").unlink()
    site.upstream.commit(
        {
            "a-edited": "new\n",
            "b-removed": None,
            "b/added": "new\n",
            "d/file": "new\n",
            "stop": "new\n",
            "z-late": "new\n",
        }
    )


def test_killed_while_git_writes_the_tree(synced: Site) -> None:
    tree_for_a_move(synced)
    killed_half_way(synced)
    assert (synced.path / "a-edited").read_text() == "new\n" and (synced.path / "z-late").read_text() == "old\n"
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream()
    assert synced.status().splitlines() == ["M README", "A  staged"], "what a person did is as it was"


def test_killed_while_git_writes_the_tree_and_upstream_moved_on(synced: Site) -> None:
    tree_for_a_move(synced)
    killed_half_way(synced)
    (synced.path / "a-edited").write_text("ne")  # half-written
    synced.upstream.commit({"a-edited": "newer\n", "b/added": None, "c/file": "new\n"})
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream() and synced.status().splitlines() == ["M README", "A  staged"]
    assert not (synced.path / "b").exists()


def test_edits_after_a_killed_move_are_kept(synced: Site) -> None:
    tree_for_a_move(synced)
    killed_half_way(synced)
    (synced.path / "a-edited").write_text("a person came first\n")
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    [kept] = synced.path.glob("a-edited.kept-*")
    assert kept.read_text() == "a person came first\n" and kept.name in run.message
    assert (synced.path / "a-edited").read_text() == "new\n"


def test_links_after_a_killed_move(synced: Site) -> None:
    for name in ("theirs", "mine"):
        (synced.upstream.work / name).symlink_to("old")
    synced.upstream.commit()
    synced.run()
    for name in ("theirs", "mine"):
        (synced.upstream.work / name).unlink()
        (synced.upstream.work / name).symlink_to("new")
    old, tip = synced.head(), synced.upstream.commit()
    synced.git("fetch", "--quiet")
    for name, target in (("theirs", "new"), ("mine", "my own")):
        (synced.path / name).unlink()
        (synced.path / name).symlink_to(target)
    (synced.path / ".git/gitops-unfinished").write_text(f"{old} {tip} \n")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    [kept] = synced.path.glob("mine.kept-*")
    assert str(kept.readlink()) == "my own" and str((synced.path / "theirs").readlink()) == "new"


def test_killed_between_the_index_and_head(synced: Site) -> None:
    tree_for_a_move(synced)
    old, tip = synced.head(), synced.upstream.head()
    synced.git("fetch", "--quiet")
    synced.git("read-tree", "-m", "-u", old, tip)
    (synced.path / ".git/gitops-unfinished").write_text(f"{old} {tip} \n")
    synced.upstream.commit({"a-edited": "newer\n"})
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream() and synced.status().splitlines() == ["M README", "A  staged"]


def test_a_failing_smudge_filter_restores_the_tree(synced: Site) -> None:
    tree_for_a_move(synced)
    before = synced.status()
    (synced.path / ".git/info/attributes").write_text("stop filter=stop\n")
    synced.git("config", "filter.stop.smudge", "sed /new/q1")
    synced.git("config", "filter.stop.required", "true")
    synced.git("config", "filter.stop.clean", "cat")
    run = synced.run()
    assert run.outcome == "failed" and "put back" in run.message
    assert (synced.path / "a-edited").read_text() == "old\n" and (synced.path / "b-removed").exists()
    synced.git("config", "filter.stop.smudge", "cat")
    assert synced.status() == before
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_filter_output_is_not_parsed_as_file_names(synced: Site) -> None:
    synced.set("dirty", "stash")
    (synced.path / ".git/info/attributes").write_text("page filter=loud\n")
    synced.git("config", "filter.loud.smudge", "printf 'oh\\n\\tREADME\\n' >&2; false")
    synced.git("config", "filter.loud.required", "true")
    synced.write("README", "mine\n")
    head = synced.head()
    synced.upstream.commit({"a": "1\n", "page": "1\n", "z": "1\n"})
    run = synced.run()
    assert run.outcome == "failed" and "smudge filter" in run.message
    assert synced.head() == head and synced.status() == "M README"


LOCKS = [
    "index.lock",
    "HEAD.lock",
    "config.lock",
    "shallow.lock",
    "packed-refs.lock",
    "refs/heads/main.lock",
    "refs/remotes/origin/main.lock",
    "refs/gitops/deployed.lock",
    "refs/gitops/upstream/deep.lock",
    "objects/maintenance.lock",
]


@pytest.mark.parametrize("lock", LOCKS)
def test_stale_git_locks_are_removed(synced: Site, lock: str) -> None:
    path = synced.path / ".git" / lock
    path.parent.mkdir(exist_ok=True)
    path.touch()
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert not path.exists()


def test_a_branch_named_like_a_lock_file(synced: Site) -> None:
    synced.git("branch", "Yarn.LOCK")
    synced.git("tag", "v1.Lock")
    refs = synced.git("show-ref")
    assert synced.run().outcome == "unchanged" and synced.git("show-ref") == refs


@pytest.mark.parametrize("lock", ["index.lock", "refs/heads/main.lock"])
def test_a_lock_of_a_living_process_is_respected(synced: Site, lock: str) -> None:
    path = synced.path / ".git" / lock
    synced.upstream.commit({"page": "1\n"})
    with path.open("w"):
        run = synced.run()
        assert run.outcome == "unreachable" and str(path) in run.message
        assert path.exists()
    assert synced.run().outcome == "updated"


@contextlib.contextmanager
def commit_with_its_editor_open(site: Site, cwd: Path) -> Iterator[None]:
    """Keep a `git commit` waiting for its editor."""
    up, down = site.folder / "up", site.folder / "down"
    os.mkfifo(up)
    os.mkfifo(down)
    editor = f"core.editor=echo >{up}; read x <{down}; echo message >"
    commit = subprocess.Popen(["git", "-c", editor, "commit", "--allow-empty"], cwd=cwd, env=site.environment)
    up.read_text()
    try:
        yield
    finally:
        down.write_text("\n")
        assert commit.wait() == 0


def test_a_commit_with_an_open_editor_is_respected(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    lock = synced.path / ".git/index.lock"
    with commit_with_its_editor_open(synced, synced.path):
        lock.touch()  # newer gits give it back while the editor is up
        assert synced.run().outcome == "unreachable" and lock.exists()
        lock.unlink(missing_ok=True)


def test_git_in_another_worktree_is_respected(synced: Site) -> None:
    other = synced.folder / "other"
    synced.git("worktree", "add", "--quiet", "-b", "other", other)
    lock = synced.path / ".git/packed-refs.lock"
    with commit_with_its_editor_open(synced, other):
        lock.touch()
        assert synced.run().outcome == "unreachable" and lock.exists()
    assert synced.run().outcome == "unchanged" and not lock.exists()


def test_git_in_a_submodule_is_respected(synced: Site) -> None:
    inner = synced.path / ".git/modules/lib"
    inner.parent.mkdir()
    git("init", "--quiet", "--separate-git-dir", inner, "lib", cwd=synced.path)
    lock = inner / "index.lock"
    with commit_with_its_editor_open(synced, synced.path / "lib"):
        lock.touch()
        assert synced.run().outcome == "unreachable" and lock.exists()
        lock.unlink()
    lock.touch()
    assert synced.run().outcome == "unchanged" and not lock.exists()


def test_git_started_before_the_move_is_respected(synced: Site) -> None:
    synced.upstream.commit({"page": "theirs\n", "README": "theirs\n", "long": "one\ntwo\n"})
    synced.run()
    synced.upstream.commit({"page": "new\n", "README": "new\n", "long": "one\ntwo\nthree\n", "fresh": "new\n"})
    mine = {"page": "mine\n", "long": "one\n", "fresh": "ne"}  # the latter as a half-made move would leave them
    for name, text in mine.items():
        synced.write(name, text)
    lock = synced.path / ".git/index.lock"
    run = synced.run(**meanwhile(synced, "fetch", f"touch {lock}"))
    assert run.outcome == "unreachable" and str(lock) in run.message and lock.exists()
    assert not list(synced.path.glob("*.kept-*"))
    assert synced.run().outcome == "dirty", "nothing is taken for a move that was begun"
    for name, text in {**mine, "README": "theirs\n"}.items():
        assert (synced.path / name).read_text() == text


def test_a_second_run_ends_as_unreachable(synced: Site) -> None:
    marker = synced.folder / "deploying"
    os.mkfifo(marker)
    synced.set("deploy", f"echo >{marker}; read x <{marker}")
    synced.upstream.commit({"page": "1\n"})
    first = synced.start()
    marker.read_text()
    # The lock is the run's, though the deploy does not hold it.
    run = synced.run()
    assert run.outcome == "unreachable" and "another run" in run.message
    marker.write_text("\n")
    assert first.wait() == 0


def broken_repository_is_kept(site: Site, run: Run) -> None:
    kept = list((site.path / ".git").glob("broken-*"))
    assert len(kept) == 1 and str(kept[0]) in run.message, "the old repository is kept, and named"
    assert [path.name for path in site.path.glob(".git?*")] == []


def loose_objects(site: Site) -> list[Path]:
    site.git("unpack-objects", "-q", check=False)
    return [path for path in (site.path / ".git/objects").glob("??/*") if path.is_file()]


def unpack(site: Site) -> None:
    """Convert every object of the checkout to a loose object."""
    packs = list((site.path / ".git/objects/pack").glob("*.pack"))
    for pack in packs:
        aside = site.folder / pack.name
        pack.rename(aside)
        pack.with_suffix(".idx").unlink()
        with aside.open("rb") as data:
            subprocess.run(["git", "unpack-objects", "-q"], cwd=site.path, stdin=data, check=True)


def corrupt_head(site: Site) -> None:
    (site.path / ".git/HEAD").write_bytes(b"\0garbage\n")


def empty_head(site: Site) -> None:
    (site.path / ".git/HEAD").write_text("")


def no_head(site: Site) -> None:
    (site.path / ".git/HEAD").unlink()


def branch_ref_gone(site: Site) -> None:
    (site.path / ".git/refs/heads/main").unlink()


def branch_ref_empty(site: Site) -> None:
    (site.path / ".git/refs/heads/main").write_text("")


def branch_ref_to_nowhere(site: Site) -> None:
    (site.path / ".git/refs/heads/main").write_text("1" * 40 + "\n")


def refs_gone(site: Site) -> None:
    shutil.rmtree(site.path / ".git/refs")


def malformed_packed_refs(site: Site) -> None:
    site.git("pack-refs", "--all")
    packed = site.path / ".git/packed-refs"
    packed.write_text(packed.read_text() + "this is no ref\n")


def objects_gone(site: Site) -> None:
    for path in loose_objects(site):
        path.unlink()


def objects_empty(site: Site) -> None:
    for path in loose_objects(site):
        path.chmod(0o644)
        path.write_bytes(b"")


def objects_truncated(site: Site) -> None:
    for path in loose_objects(site):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:7])


def head_commit_gone(site: Site) -> None:
    tip = site.head()
    (site.path / f".git/objects/{tip[:2]}/{tip[2:]}").unlink()


def head_tree_gone(site: Site) -> None:
    tip = site.git("rev-parse", "HEAD^{tree}")
    (site.path / f".git/objects/{tip[:2]}/{tip[2:]}").unlink()


def a_blob_gone(site: Site) -> None:
    tip = site.git("rev-parse", "HEAD:README")
    (site.path / f".git/objects/{tip[:2]}/{tip[2:]}").unlink()


def truncated_index(site: Site) -> None:
    index = site.path / ".git/index"
    index.write_bytes(index.read_bytes()[:20])


WRECKS = [
    corrupt_head,
    empty_head,
    no_head,
    branch_ref_gone,
    branch_ref_empty,
    branch_ref_to_nowhere,
    refs_gone,
    malformed_packed_refs,
    objects_gone,
    objects_empty,
    objects_truncated,
    head_commit_gone,
    head_tree_gone,
    truncated_index,
]


@pytest.mark.parametrize("moved", [True, False], ids=["upstream moved", "upstream still"])
@pytest.mark.parametrize("wreck", [*WRECKS, a_blob_gone])
def test_a_damaged_repository_is_rebuilt(synced: Site, wreck: Callable[[Site], None], moved: bool) -> None:
    unpack(synced)
    synced.set("deploy", "true")
    synced.write("README", "a person's edit\n")
    synced.write("untracked", "a person's\n")
    wreck(synced)
    if moved:
        synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    if not moved and wreck is truncated_index:
        assert run.outcome == "unchanged"  # nothing had to read it
        return
    if moved and wreck is a_blob_gone:
        assert run.outcome == "updated"  # nobody needs it: README is edited, and not upstream
        return
    assert run.outcome in ("updated", "unchanged"), run.output
    if "damaged" in run.message or wreck not in (
        objects_gone,
        head_commit_gone,
    ):  # git fetches anew what is all gone
        broken_repository_is_kept(synced, run)
    assert synced.is_at_upstream() and synced.git("config", "gitops.deploy") == "true"
    synced.git("fsck")
    assert synced.status().splitlines() == ["M README", "?? untracked"]
    assert (synced.path / "README").read_text() == "a person's edit\n"
    synced.upstream.commit({"page": "2\n"})
    run = synced.run()
    assert run.outcome == "updated" and "damaged" not in run.message


def test_local_commits_survive_a_repair(synced: Site) -> None:
    unpack(synced)
    synced.git("checkout", "--quiet", "-b", "idea")
    mine = synced.commit_here()
    synced.git("checkout", "--quiet", "main")
    synced.write("README", "stashed\n")
    synced.git("stash", "--quiet")
    stash = synced.ref("refs/stash")
    synced.write("new", "staged\n")
    synced.git("add", "new")
    head_tree_gone(synced)
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    broken_repository_is_kept(synced, run)
    assert synced.ref("refs/heads/idea") == mine and synced.git("show", f"{mine}:local") == "local"
    assert synced.ref("refs/stash") == stash and synced.git("stash", "list")
    assert synced.git("show", ":new") == "staged"


def test_worktree_settings_survive_a_repair(synced: Site) -> None:
    synced.git("config", "extensions.worktreeConfig", "true")
    synced.git("config", "--worktree", "gitops.deploy", f"touch {synced.folder}/ran")
    corrupt_head(synced)
    synced.upstream.commit()
    assert synced.run().outcome == "updated" and (synced.folder / "ran").exists()
    assert synced.git("config", "--worktree", "gitops.deploy")


def test_a_damaged_local_commit_prevents_a_repair(synced: Site) -> None:
    mine = synced.commit_here()
    (synced.path / f".git/objects/{mine[:2]}/{mine[2:]}").unlink()
    (synced.path / ".git/logs/HEAD").unlink()
    (synced.path / ".git/refs/gitops/deployed").unlink()
    run = synced.run()
    assert run.outcome == "missing" and "clone" in run.message and str(synced.path) in run.message
    assert (synced.path / "local").exists() and (synced.path / ".git/refs/heads/main").read_text().strip() == mine
    assert not list(synced.path.glob(".git?*"))


def test_a_repair_from_relative_paths(synced: Site) -> None:
    corrupt_head(synced)
    environment = {**synced.environment, "GITOPS_ROOT": "root"}
    script = os.path.relpath(SCRIPT, synced.folder)
    done = subprocess.run(
        ["bash", script, "site"],
        cwd=synced.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "rebuilt" in done.stdout


def test_a_repair_needs_the_remote(synced: Site) -> None:
    corrupt_head(synced)
    bare = synced.upstream.bare
    bare.rename(bare.with_suffix(".away"))
    run = synced.run()
    assert run.outcome == "unreachable" and "damaged" in run.message
    assert (synced.path / ".git/HEAD").read_bytes() == b"\0garbage\n" and not list(synced.path.glob(".git?*"))
    bare.with_suffix(".away").rename(bare)
    assert synced.run().outcome == "unchanged" and synced.is_at_upstream()


@pytest.mark.parametrize("moment", ["before the first rename", "after the first", "after the second"])
def test_a_repair_killed_between_its_renames(synced: Site, moment: str) -> None:
    ready, old, live = (synced.path / name for name in (".git:gitops-ready", ".git:gitops-old", ".git"))
    shutil.copytree(live, ready, symlinks=True)
    corrupt_head(synced)
    if moment != "before the first rename":
        live.rename(old)
    if moment == "after the second":
        ready.rename(live)
    synced.upstream.commit({"page": "1\n"})
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert len(list(live.glob("broken-*"))) == 1 and not list(synced.path.glob(".git?*"))


@needs_root
@pytest.mark.parametrize(
    ("room", "outcome"), [(0, "unreachable"), (40, "unreachable"), (125, "failed"), (140, "failed")]
)
def test_a_full_disk(site: Site, small_disk: Callable[[int], Path], room: int, outcome: str) -> None:
    """The disk is full after `room` KiB: during the fetch, or during the checkout."""
    disk = small_disk(2048)
    site.root = disk
    site.path = disk / "acme" / "site"
    site.environment["GITOPS_ROOT"] = str(disk)
    site.upstream.commit({f"file{number}": os.urandom(5000).hex() for number in range(8)})
    site.checkout()
    site.write("untracked", "mine\n")
    old = {path.name: path.read_text() for path in site.path.iterdir() if path.is_file()}
    head = site.head()
    site.upstream.commit({f"file{number}": os.urandom(10000).hex() for number in range(8)})
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize // 1024
    ballast.write_bytes(b"x" * (free - room) * 1024)
    run = site.run()
    assert run.outcome == outcome, run.output
    assert site.head() == head
    assert {path.name: path.read_text() for path in site.path.iterdir() if path.is_file()} == old
    ballast.unlink()
    assert site.run().outcome == "updated" and site.is_at_upstream() and site.status() == "?? untracked"


def test_a_partial_clone_directory_is_not_a_checkout(site: Site) -> None:
    cloning = {"GITOPS_CLONE_URL": str(site.upstream.bare)}
    building = site.path / ".git:gitops-building"
    building.mkdir(parents=True)
    (building / "HEAD").write_text("ref: refs/heads/main\n")
    assert site.run().outcome == "missing", "it is not taken for one"
    assert site.run(**cloning).outcome == "cloned"
    assert site.is_at_upstream() and not site.status() and not building.exists()


def test_a_clone_killed_before_its_checkout(site: Site) -> None:
    git("init", "--quiet", "--bare", site.upstream.bare.with_name("empty"), cwd=site.folder)
    site.path.mkdir(parents=True)
    site.git("init", "--quiet")
    site.git("remote", "add", "origin", site.upstream.bare)
    assert site.run().outcome == "updated" and site.is_at_upstream() and not site.status()


def test_a_clone_killed_between_the_index_and_head(site: Site) -> None:
    path = tool(site, 'for it; do [[ $it != switch ]] || { "$real" read-tree -m -u origin/main; kill -KILL 0; }; done')
    site.start(PATH=path, GITOPS_CLONE_URL=str(site.upstream.bare)).wait()
    assert site.status() == "A  README"
    site.upstream.commit({"README": "2\n", "page": "1\n"})
    run = site.run()
    assert run.outcome == "updated" and "damaged" not in run.message and site.is_at_upstream() and not site.status()


def test_git_killed_after_a_complete_move(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n", "README": "2\n"})
    path = tool(synced, 'for word; do [[ $word == switch ]] && { "$real" "$@"; kill -KILL $$; }; done')
    assert synced.run(PATH=path).outcome == "updated"
    assert synced.is_at_upstream() and not synced.status()


def fifo_of(site: Site) -> Path:
    """Create a FIFO. Reading from it returns when the process that opened it has ended."""
    os.mkfifo(site.folder / "alive")
    return site.folder / "alive"


def test_killing_the_script_ends_its_git_switch(synced: Site) -> None:
    alive = fifo_of(synced)
    synced.upstream.commit({"page": "1\n"})
    path = tool(
        synced,
        f"for word; do [[ $word == switch ]] && {{ exec 7>{alive}; echo >&7; sleep 3; echo late >&7; exit; }}; done",
    )
    run = synced.start(PATH=path)
    with alive.open("rb") as life:
        assert life.readline() == b"\n"
        run.kill()
        assert life.read() == b""
    run.wait()
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


def test_killing_the_script_ends_its_deploy(synced: Site) -> None:
    alive = fifo_of(synced)
    os.mkfifo(f"{alive}.never")
    synced.set("deploy", f"exec 7>{alive}; echo >&7; read -r -t 3 <>{alive}.never; echo late >&7")
    tip = synced.upstream.commit()
    run = synced.start()
    with alive.open("rb") as life:
        assert life.readline() == b"\n"
        run.kill()
        assert life.read() == b""
    run.wait()
    synced.set("deploy", 'echo "$GITOPS_AFTER" >>"$TRACE"')
    assert synced.run().outcome == "updated"
    assert (synced.folder / "trace").read_text().splitlines() == [tip]


@pytest.mark.parametrize("deploy", ["trap '' TERM; {}", "(trap '' TERM; {}) & wait", "(trap '' TERM; {}); true"])
def test_a_deploy_that_ignores_sigterm_keeps_the_lock(synced: Site, deploy: str) -> None:
    alive, hear, go = fifo_of(synced), synced.folder / "hear", synced.folder / "go"
    os.mkfifo(hear)
    os.mkfifo(go)
    synced.set("deploy", deploy.format(f"exec 7>{alive}; echo >&7; read -r _ <{hear}; read -r _ <{go}"))
    synced.upstream.commit()
    run = synced.start()
    with alive.open("rb") as life:
        assert life.readline() == b"\n"
        os.killpg(run.pid, signal.SIGTERM)
        hear.write_text("it has had its TERM\n")
        assert synced.run().outcome == "unreachable", "the lock is held"
        assert run.poll() is None
        go.write_text("go\n")
        assert life.read() == b""
    assert run.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("victim", "fate"),
    [("read-tree", "kill -KILL $$"), ("diff", "kill -KILL $$"), ("checkout-index", "kill -KILL $$"),
     ("checkout-index", "exit 1")],
)  # fmt: skip
def test_an_interrupted_undo_is_repeated(synced: Site, victim: str, fate: str) -> None:
    synced.upstream.commit({"a": "1\n", "README": "2\n"})
    path = tool(
        synced,
        "for word; do\n"
        '  [[ $VICTIM || $word != switch ]] || { "$real" read-tree -m -u HEAD origin/main; kill -KILL 0; }\n'
        f'  [[ $word != "$VICTIM" ]] || {fate}\n'
        "done",
    )
    synced.start(PATH=path, VICTIM="").wait()
    assert synced.status(), "the tree and the index have moved, and HEAD has not"
    synced.upstream.commit({"b": "1\n", "README": "3\n"})
    assert synced.run(PATH=path, VICTIM=victim).outcome == "failed"
    assert synced.run().outcome == "updated"
    assert synced.is_at_upstream() and not synced.status()
