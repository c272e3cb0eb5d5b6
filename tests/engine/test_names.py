"""Names from outside: only a valid name may become part of a path."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import SCRIPT, Site
from scratch import git

BAD = [
    "..",
    ".",
    ".git",
    ".GIT",
    "a/b/c",
    "site@",
    "site@a@b",
    "@staging",
    "../site",
    "/etc",
    "-x",
    "--",
    "a b",
    "a\nb",
    "",
    "x" * 101,
    "x" * 300,
    "é",
    "a$b",
    "*",
    "[s]ite",
    "~",
]


def tree(folder: Path) -> list:
    return sorted(
        (str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.name not in ("result", "HEAD")
    )


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_touches_nothing(synced: Site, name: str) -> None:
    before = tree(synced.folder)
    for repository in (None, f"acme/{name}"):
        run = synced.run(name=name, GITOPS_REPOSITORY=repository, GITOPS_CLONE_URL=str(synced.upstream.bare))
        assert run.outcome == "usage" and "\n" not in run.message
    (synced.folder / "result").unlink()
    assert [entry for entry in tree(synced.folder) if entry[0] != str(synced.folder)] == before


@pytest.mark.parametrize(
    "repository",
    [
        "../site",
        "a/b/site",
        "/site",
        "acme/",
        "acme/other",
        "acme/site@",
        "acme/site@staging",
        "acme\n/site",
        "-a/site",
        ".../../site",
        "other",
        "x" * 101 + "/site",
    ],
)
def test_a_bad_owner_touches_nothing(synced: Site, repository: str) -> None:
    (synced.root.parent / "site").mkdir()
    assert synced.run(GITOPS_REPOSITORY=repository).outcome == "usage"


def test_an_argument_cannot_contain_nul() -> None:
    with pytest.raises(ValueError, match="null byte"):
        subprocess.run([SCRIPT, "si\0te"], check=False)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--frobnicate", "a"], ["--dry-run"]])
def test_wrong_arguments(arguments: list) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 64 and "usage: " in done.stdout and "unbound" not in done.stderr


def test_names_differ_in_case(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    assert synced.run(name="Site", GITOPS_REPOSITORY="Acme/SITE").outcome == "updated"
    assert synced.run(name="SITE", GITOPS_REPOSITORY=None).outcome == "unchanged"


def test_the_exact_name_wins_over_one_that_differs_in_case(synced: Site) -> None:
    other = synced.root / "acme" / "SITE"
    other.mkdir()
    (other / ".git").mkdir()
    assert synced.run().outcome == "unchanged"
    run = synced.run(name="sITE", GITOPS_REPOSITORY="acme/sITE")
    assert run.outcome == "usage" and "acme/SITE" in run.message and "acme/site" in run.message


@pytest.mark.parametrize(
    "hint", ["--upload-pack=touch x", "0" * 40, "f" * 40, "x" * 40, "$(touch x)", "HEAD", "f" * 64, "\n"]
)
def test_hints_are_verified_with_the_remote(synced: Site, hint: str) -> None:
    synced.upstream.commit({"page": "1\n"})
    run = synced.run(GITOPS_AFTER=hint, GITOPS_REF=hint, GITOPS_DELIVERY=hint, GITOPS_EVENT=hint)
    assert run.outcome == "updated" and synced.is_at_upstream()
    run = synced.run(GITOPS_AFTER=synced.head(), GITOPS_REF=f"refs/heads/../../{hint}")
    assert run.outcome == "unchanged"
    assert not list(synced.folder.rglob("x"))


def test_the_environments_of_a_repository(site: Site) -> None:
    for name in ("acme/site", "acme/site@staging"):
        git("clone", "--quiet", site.upstream.bare, site.root / name, cwd=site.root)
        git(
            "config",
            "gitops.deploy",
            f'echo "$GITOPS_REPOSITORY" >{site.folder}/{name.partition("@")[2]}.log',
            cwd=site.root / name,
        )
    for repository in ("acme/site", "acme/site@staging", None):
        site.upstream.commit()
        run = site.run(name="site@staging", GITOPS_REPOSITORY=repository)
        assert run.outcome == "updated" and "site@staging: " in run.message
        assert (site.folder / "staging.log").read_text() == ("acme/site\n" if repository else "site\n")
    assert not (site.folder / ".log").exists(), "the other checkout is not touched"
    assert site.run().outcome == "updated"


def test_a_name_with_its_owner(synced: Site) -> None:
    for repository in (None, "acme/site"):
        assert synced.run(name="acme/site", GITOPS_REPOSITORY=repository).outcome == "unchanged"
    assert synced.run(name="other/site").outcome == "usage"
    run = synced.run(name="acme/site@new", GITOPS_REPOSITORY=None, GITOPS_CLONE_URL=str(synced.upstream.bare))
    assert run.outcome == "cloned" and (synced.root / "acme/site@new/.git").is_dir()
