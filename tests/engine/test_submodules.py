"""Submodules, where gitops.submodules asks for them: added, updated, removed, nested, by relative URLs."""

from __future__ import annotations

import pytest
from conftest import Site
from scratch import Upstream, git


def add_submodule(upstream: Upstream, url: object, path: str) -> None:
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, path, cwd=upstream.work)
    git(
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "update",
        "--init",
        "--recursive",
        cwd=upstream.work,
    )
    upstream.commit()


@pytest.fixture()
def with_submodules(synced: Site) -> Site:
    """A submodule `lib` by a relative URL, which has one of its own; git may use file URLs."""
    synced.environment.update(synced.home('[protocol "file"]\n\tallow = always\n'))
    synced.set("submodules", "true")
    synced.inner = Upstream(synced.folder / "forge", "acme/inner")
    synced.lib = Upstream(synced.folder / "forge", "acme/lib")
    add_submodule(synced.lib, synced.inner.bare, "inner")
    add_submodule(synced.upstream, "../lib.git", "lib")
    return synced


def test_submodules_are_brought_with_theirs(with_submodules: Site) -> None:
    site = with_submodules
    assert site.run().outcome == "updated"
    assert (site.path / "lib/README").exists() and (site.path / "lib/inner/README").exists() and not site.status()


def test_submodules_follow(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    site.lib.commit({"page": "lib\n"})
    git("pull", "--quiet", "origin", "main", cwd=site.upstream.work / "lib")
    site.upstream.commit()
    assert site.run().outcome == "updated"
    assert (site.path / "lib/page").read_text() == "lib\n" and not site.status()


def test_a_submodule_dropped_upstream_goes_and_its_repository_stays(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    git("rm", "--quiet", "lib", cwd=site.upstream.work)
    site.upstream.commit()
    assert site.run().outcome == "updated"
    assert not (site.path / "lib").exists() and (site.path / ".git/modules/lib").exists() and not site.status()


def test_a_dropped_submodule_with_work_in_it_stays(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    site.write("lib/mine", "mine\n")
    git("rm", "--quiet", "lib", cwd=site.upstream.work)
    site.upstream.commit()
    run = site.run()
    assert run.outcome == "dirty" and "lib" in run.message and (site.path / "lib/mine").exists()


def test_a_submodule_that_cannot_be_fetched_is_owed(with_submodules: Site) -> None:
    site = with_submodules
    site.lib.bare.rename(site.lib.bare.with_suffix(".away"))
    assert site.run().outcome == "unreachable"
    assert site.ref("refs/gitops/deployed") != site.upstream.head()
    site.lib.bare.with_suffix(".away").rename(site.lib.bare)
    assert site.run().outcome == "updated" and site.is_at_upstream() and (site.path / "lib/inner/README").exists()


def test_submodules_are_left_alone_unless_asked_for(with_submodules: Site) -> None:
    with_submodules.set("submodules", "false")
    assert with_submodules.run().outcome == "updated"
    assert not (with_submodules.path / "lib/README").exists()
