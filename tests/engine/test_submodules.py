"""Submodules with gitops.submodules: added, updated, removed, nested, with relative URLs."""

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
    """A checkout with a submodule `lib` (relative URL), which has its own submodule."""
    synced.environment.update(synced.home('[protocol "file"]\n\tallow = always\n'))
    synced.set("submodules", "true")
    synced.inner = Upstream(synced.folder / "forge", "acme/inner")
    synced.lib = Upstream(synced.folder / "forge", "acme/lib")
    add_submodule(synced.lib, synced.inner.bare, "inner")
    add_submodule(synced.upstream, "../lib.git", "lib")
    return synced


def test_submodules_are_updated_recursively(with_submodules: Site) -> None:
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


def test_a_removed_submodule_loses_its_files_and_keeps_its_repository(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    git("rm", "--quiet", "lib", cwd=site.upstream.work)
    site.upstream.commit()
    assert site.run().outcome == "updated"
    assert not (site.path / "lib").exists() and (site.path / ".git/modules/lib").exists() and not site.status()


def test_a_removed_submodule_with_local_work_stays(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    site.write("lib/mine", "mine\n")
    git("rm", "--quiet", "lib", cwd=site.upstream.work)
    site.upstream.commit()
    run = site.run()
    assert run.outcome == "dirty" and "lib" in run.message and (site.path / "lib/mine").exists()


def test_an_unreachable_submodule_leaves_the_deploy_pending(with_submodules: Site) -> None:
    site = with_submodules
    site.lib.bare.rename(site.lib.bare.with_suffix(".away"))
    assert site.run().outcome == "unreachable"
    assert site.ref("refs/gitops/deployed") != site.upstream.head()
    site.lib.bare.with_suffix(".away").rename(site.lib.bare)
    assert site.run().outcome == "updated" and site.is_at_upstream() and (site.path / "lib/inner/README").exists()


def test_submodules_are_ignored_by_default(with_submodules: Site) -> None:
    with_submodules.set("submodules", "false")
    assert with_submodules.run().outcome == "updated"
    assert not (with_submodules.path / "lib/README").exists()


def drop_lib(site: Site, files: dict[str, str] | None = None) -> None:
    git("rm", "--quiet", "-f", "lib", cwd=site.upstream.work)
    site.upstream.commit(files)


@pytest.mark.parametrize("why", ["status shows no untracked files", "status fails", "ignored", "in its own submodule"])
def test_work_in_a_removed_submodule_is_found_despite_settings(with_submodules: Site, why: str) -> None:
    site = with_submodules
    site.run()
    mine = site.write("lib/inner/mine" if why == "in its own submodule" else "lib/mine", "mine\n")
    home = (
        '[protocol "file"]\n\tallow = always\n[status]\n\tshowUntrackedFiles = no\n[diff]\n\tignoreSubmodules = all\n'
    )
    site.environment.update(site.home(home))
    if why == "status fails":
        (site.path / ".git/modules/lib/index").write_text("junk")
    elif why == "ignored":
        (site.path / ".git/modules/lib/info/exclude").write_text("mine\n")
    drop_lib(site)
    run = site.run()
    assert run.outcome == "dirty" and "lib" in run.message and mine.exists()


def test_a_removed_submodule_is_restored_after_a_refused_move(with_submodules: Site) -> None:
    site = with_submodules
    site.run()
    drop_lib(site, {"README": "theirs\n"})
    site.write("README", "mine\n")
    run = site.run()
    assert run.outcome == "dirty" and "README" in run.message
    assert (site.path / "lib/inner/README").exists() and site.status() == "M README"
    site.git("checkout", "README")
    assert site.run().outcome == "updated" and not (site.path / "lib").exists()


def test_an_ignored_submodule_is_removed(with_submodules: Site) -> None:
    site = with_submodules
    git("config", "--file", ".gitmodules", "submodule.lib.ignore", "all", cwd=site.upstream.work)
    site.upstream.commit()
    site.run()
    drop_lib(site)
    assert site.run().outcome == "updated" and not (site.path / "lib").exists() and not site.status()


def follow_lib(site: Site, files: dict[str, str]) -> None:
    """Push a newer commit of lib, and a commit of upstream that uses it."""
    tip = site.lib.commit(files)
    git("pull", "--quiet", "origin", "main", cwd=site.upstream.work / "lib")
    git("update-index", "--cacheinfo", f"160000,{tip},lib", cwd=site.upstream.work)
    git("commit", "--quiet", "--message", "lib", cwd=site.upstream.work)
    git("push", "--quiet", "origin", "HEAD", cwd=site.upstream.work)


@pytest.mark.parametrize("name", ["README", "page"], ids=["edited", "untracked"])
def test_local_work_prevents_a_submodule_update(with_submodules: Site, name: str) -> None:
    site = with_submodules
    site.run()
    mine = site.write(f"lib/{name}", "mine\n")
    follow_lib(site, {name: "theirs\n"})
    run = site.run()
    assert run.outcome == "dirty" and name in run.message and "lib" in run.message and mine.read_text() == "mine\n"
    assert site.run().outcome == "dirty"
    mine.unlink()
    git("checkout", "--quiet", "README", cwd=site.path / "lib")
    assert site.run().outcome == "updated" and site.is_at_upstream() and mine.read_text() == "theirs\n"


def test_a_change_of_an_ignored_submodule_is_deployed(with_submodules: Site) -> None:
    site = with_submodules
    site.set("deploy", 'echo "$GITOPS_AFTER" >>"$TRACE"')
    site.set("paths", "lib")
    git("config", "--file", ".gitmodules", "submodule.lib.ignore", "all", cwd=site.upstream.work)
    site.upstream.commit()
    site.run()
    follow_lib(site, {"page": "theirs\n"})
    assert site.run().outcome == "updated" and site.is_at_upstream()
    assert (site.folder / "trace").read_text().split()[-1] == site.upstream.head()
