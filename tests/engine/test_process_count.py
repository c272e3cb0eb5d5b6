"""How many git processes a run starts: counted by a wrapper that is first on PATH."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import Site


@pytest.fixture()
def counted(synced: Site) -> Site:
    """A synced checkout whose runs write each git that they start to a file."""
    tools = synced.folder / "tools"
    tools.mkdir()
    wrapper = tools / "git"
    wrapper.write_text(
        "#!/bin/bash\n"
        'parent=$(ps -o comm= -p "$PPID")\n'  # git's own children do not count
        '[[ $parent == git* && $parent != gitops* ]] || echo "$*" >>"$COUNT"\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    wrapper.chmod(0o755)
    synced.environment.update(PATH=f"{tools}:{os.environ['PATH']}", COUNT=str(synced.folder / "count"))
    return synced


def started(site: Site) -> list[str]:
    """The git processes since the last look."""
    count = site.folder / "count"
    lines = count.read_text().splitlines() if count.exists() else []
    count.unlink(missing_ok=True)
    return lines


def test_an_update_starts_at_most_six(counted: Site) -> None:
    hint = {"GITOPS_REF": "refs/heads/main", "GITOPS_AFTER": counted.upstream.commit({"page": "1\n"})}
    assert counted.run(**hint).outcome == "updated"
    assert 3 <= len(started(counted)) <= 4
    counted.set("deploy", "true")
    counted.set("health", "true")
    counted.git("pack-refs", "--all")
    hint["GITOPS_AFTER"] = counted.upstream.commit({"page": "2\n"})
    assert counted.run(**hint).outcome == "updated"
    assert len(started(counted)) <= 6


def test_an_update_by_hand_and_with_paths_starts_at_most_six(counted: Site) -> None:
    counted.set("deploy", "true")
    counted.set("paths", "web")
    counted.upstream.commit({"page": "1\n"})
    assert counted.run(GITOPS_REPOSITORY=None).outcome == "updated"
    assert len(started(counted)) <= 6


@pytest.mark.parametrize("packed", [False, True])
def test_old_news_touch_no_network(counted: Site, packed: bool) -> None:
    if packed:
        counted.git("pack-refs", "--all")
    bare = counted.upstream.bare
    bare.rename(bare.with_suffix(".away"))
    assert counted.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER=counted.head()).outcome == "unchanged"
    assert len(started(counted)) == 1
    assert counted.run(GITOPS_REF="refs/heads/other", GITOPS_AFTER=counted.head()).outcome == "unreachable"
    assert counted.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER="f" * 40).outcome == "unreachable"


def test_of_several_webhooks_the_last_to_arrive_hides_no_newer_push(counted: Site) -> None:
    old, new = counted.head(), counted.upstream.commit()
    hints = {"GITOPS_REF": "refs/heads/main", "GITOPS_AFTER": old}
    assert counted.run(**hints, GITOPS_DELIVERIES="2").outcome == "updated"
    assert counted.head() == new


def test_git_gc_is_asked_when_the_repository_has_grown(counted: Site) -> None:
    counted.upstream.commit()
    counted.run()
    assert not any("gc" in line.split() for line in started(counted))
    crowd = counted.path / ".git/objects/17"
    crowd.mkdir(exist_ok=True)
    for number in range(28):
        (crowd / f"{number:038x}").touch()
    counted.upstream.commit()
    counted.run()
    assert any("gc --auto" in line for line in started(counted))
