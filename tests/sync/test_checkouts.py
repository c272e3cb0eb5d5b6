"""Names, checkouts and their settings: real folders, real git."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scratch import Upstream, git

from gitops_hook.names import is_in_url, is_valid, may_clone, name_in_url, replace_in_url
from gitops_hook.sync import checkouts as repository
from gitops_hook.sync.checkouts import Checkouts, Position, position


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("acme/site", True),
        ("site", True),
        ("Acme/Site_1.x-y", True),
        ("_acme/.github", True),
        ("acme/...", True),
        ("a" * 100 + "/" + "b" * 100, True),
        ("", False),
        (".", False),
        ("..", False),
        ("acme/..", False),
        ("../site", False),
        ("./site", False),
        ("acme/.git", False),
        (".GIT/site", False),
        ("/site", False),
        ("acme/", False),
        ("/", False),
        ("acme//site", False),
        ("a/b/c", False),
        ("-rf", False),
        ("acme/-site", False),
        ("acme/site\n", False),
        ("acme\n/site", False),
        ("acme/si te", False),
        ("acme/site\0", False),
        ("acme\\site", False),
        ("acme/$HOME", False),
        ("acme/s*", False),
        ("acme/sité", False),
        ("acme/site\u2028", False),
        ("acme/\u0661", False),
        ("a" * 101, False),
        ("a" * 300, False),
    ],
)
def test_is_valid_name(name: str, valid: bool):
    assert is_valid(name) is valid


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/acme/site.git", "acme/site"),
        ("https://github.com/acme/site", "acme/site"),
        ("https://github.com/acme/site/", "acme/site"),
        ("https://github.com/acme/site.git//", "acme/site"),
        ("https://user:token@github.com:8443/acme/site.git", "acme/site"),
        ("https://git.example.org/site.git", "site"),
        ("https://git.example.org:8443/site", "site"),
        ("https://git.example.org", None),
        ("https://forge.example.org/deep/group/acme/site", "acme/site"),
        ("git@github.com:acme/site.git", "acme/site"),
        ("git@github.com:site.git", "site"),
        ("host:site", "site"),
        ("ssh://git@github.com:22/acme/site.git", "acme/site"),
        ("ssh://git@github.com/site", "site"),
        ("SSH://host/site", "site"),
        ("/srv/git/acme/site.git", "acme/site"),
        ("file:///srv/acme/site.git", "acme/site"),
        ("../site", "site"),
        ("site", "site"),
        ("https://github.com/acme/my.site.git", "acme/my.site"),
        ("https://github.com/ac me/site", "site"),
        ("https://github.com/acme/-site", None),
        ("https://github.com/acme/..", None),
        ("https://github.com/acme/site\n", None),
        ("", None),
        ("/", None),
    ],
)
def test_the_repository_name_of_a_url(url: str, name: str | None):
    assert name_in_url(url) == name


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("https://github.com/acme/site.git", "https://github.com/corp/shop.git"),
        ("https://github.com/ACME/Site/", "https://github.com/corp/shop/"),
        ("git@github.com:acme/site.git", "git@github.com:corp/shop.git"),
        ("/srv/acme/site", "/srv/corp/shop"),
        ("https://git.example/acme/site/wiki.git", "https://git.example/acme/site/wiki.git"),
        ("https://git.example/the-acme/site.git", "https://git.example/the-acme/site.git"),
        ("", ""),
    ],
)
def test_a_repository_is_replaced_at_the_end_of_a_url(url: str, changed: str):
    assert replace_in_url(url, "acme/site", "corp/shop") == changed


@pytest.mark.parametrize(
    ("repository", "patterns", "allowed"),
    [
        ("acme/site", ["acme/*"], True),
        ("ACME/Site", ["acme/*"], True),
        ("acme/site", ["Acme/Site"], True),
        ("acme/site", ["other/*", "*/site"], True),
        ("evil/site", ["acme/*"], False),
        ("acme-evil/site", ["acme/*"], False),
        ("site", ["acme/*", "*/*"], False),
        ("acme/site", [], False),
        ("acme/site@staging", ["acme/*", "*/*"], False),
    ],
)
def test_clone_patterns(repository: str, patterns: list[str], allowed: bool):
    assert may_clone(repository, patterns) is allowed


def make(path: Path, **settings: str) -> Path:
    """A repository at `path`, its config old enough to be trusted."""
    path.mkdir(parents=True)
    git("init", "--quiet", cwd=path)
    for key, value in settings.items():
        git("config", "remote.origin.url" if key == "origin" else f"gitops.{key}", value, cwd=path)
    return settle(path / ".git" / "config").parent.parent


def settle(file: Path) -> Path:
    """Let so much time pass that `file` has not changed just now: until then a look at it is not relied on."""
    time.sleep(max(0.0, file.stat().st_ctime + 0.011 - time.time()))
    return file


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    root = tmp_path / "root"
    root.mkdir()
    return Checkouts(root)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return the number of git processes since the last call."""
    wrapper, count, git_itself = tmp_path / "bin" / "git", tmp_path / "count", shutil.which("git")
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho >>"{count}"\nexec {git_itself} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")

    def since() -> int:
        lines = count.read_bytes().count(b"\n") if count.exists() else 0
        count.unlink(missing_ok=True)
        return lines

    return since


class TestFinding:
    def path(self, checkouts: Checkouts, repository: str) -> str | None:
        found = checkouts.find(repository)
        return str(found.path.relative_to(checkouts.root)) if found else None

    def test_it_lies_in_its_owners_folder_or_right_below_the_root(self, checkouts: Checkouts):
        make(checkouts.root / "acme" / "nested")
        make(checkouts.root / "flat")
        assert self.path(checkouts, "acme/nested") == "acme/nested"
        assert self.path(checkouts, "acme/flat") == "flat"
        assert self.path(checkouts, "flat") == "flat"
        assert self.path(checkouts, "nested") is None
        assert self.path(checkouts, "acme/none") is None

    def test_nested_wins_over_flat_when_it_comes_and_until_it_goes(self, checkouts: Checkouts):
        make(checkouts.root / "site")
        assert self.path(checkouts, "acme/site") == "site"
        nested = make(checkouts.root / "acme" / "site")
        assert self.path(checkouts, "acme/site") == "acme/site"
        shutil.rmtree(nested)
        assert self.path(checkouts, "acme/site") == "site"
        shutil.rmtree(checkouts.root / "site")
        assert self.path(checkouts, "acme/site") is None

    def test_names_ignore_case_and_an_exact_match_wins(self, checkouts: Checkouts):
        make(checkouts.root / "Acme" / "SITE")
        assert self.path(checkouts, "acme/site") == "Acme/SITE"
        make(checkouts.root / "acme" / "site")
        assert self.path(checkouts, "acme/site") == "acme/site"

    def test_a_directory_without_git_is_not_a_checkout(self, checkouts: Checkouts):
        (checkouts.root / "acme" / "site").mkdir(parents=True)
        assert self.path(checkouts, "acme/site") is None
        make(checkouts.root / "Acme" / "Site")
        assert self.path(checkouts, "acme/site") == "Acme/Site"

    def test_root_owner_and_checkout_may_be_symbolic_links(self, tmp_path: Path):
        make(tmp_path / "real" / "acme" / "site", branch="b")
        (tmp_path / "root").symlink_to("real")
        (tmp_path / "real" / "owner").symlink_to("acme")
        (tmp_path / "real" / "linked").symlink_to("acme/site")
        checkouts = Checkouts(tmp_path / "root")
        for name in ("acme/site", "owner/site", "linked"):
            found = checkouts.find(name)
            assert found
            assert found.settings["branch"] == "b"

    def test_a_repository_inside_the_tree_is_not_a_checkout(self, tmp_path: Path) -> None:
        """A submodule, or what a link that was pushed leads to."""
        (tmp_path / "root/site/lib/.git").mkdir(parents=True)
        (tmp_path / "root/site/.git").mkdir()
        (tmp_path / "elsewhere/.git").mkdir(parents=True)
        (tmp_path / "root/site/link").symlink_to(tmp_path / "elsewhere")
        checkouts = Checkouts(tmp_path / "root")
        assert [checkouts.find(name) for name in ("site/lib", "site/LIB", "site/link")] == [None] * 3
        assert checkouts.find("acme/site")

    def test_a_missing_root_holds_nothing(self, tmp_path: Path):
        checkouts = Checkouts(tmp_path / "nowhere")
        assert checkouts.find("acme/site") is None
        assert list(checkouts) == []

    def test_the_longest_name_is_looked_for_without_an_error(self, checkouts: Checkouts):
        assert checkouts.find("a" * 100 + "/" + "b" * 100) is None

    def test_a_linked_worktree_has_the_settings_of_its_repository(self, tmp_path: Path, checkouts: Checkouts):
        clone = Upstream(tmp_path / "forge").checkout(tmp_path / "elsewhere", branch="production")
        git("worktree", "add", "--quiet", "-b", "production", checkouts.root / "site", cwd=clone)
        found = checkouts.find("acme/site")
        assert found
        assert found.settings["branch"] == "production"

    @pytest.mark.parametrize("linked", [False, True])
    def test_the_position_of_a_checkout_that_follows_tags(self, tmp_path: Path, checkouts: Checkouts, linked: bool):
        path = checkouts.root / "site"
        clone = Upstream(tmp_path / "forge").checkout(tmp_path / "elsewhere", tag="v*")
        if linked:
            git("worktree", "add", "--quiet", "--detach", path, cwd=clone)
        else:
            clone.rename(path)
        commit, state = git("rev-parse", "HEAD", cwd=path), "refs/worktree/gitops" if linked else "refs/gitops"
        git("update-ref", "refs/gitops/tags/v1", commit, cwd=path)
        git("symbolic-ref", f"{state}/tag", "refs/gitops/tags/v1", cwd=path)
        found = checkouts.find("acme/site")
        assert found
        assert position(found) == Position(None, commit, head=commit)
        git("update-ref", f"{state}/deployed", commit, cwd=path)
        git("pack-refs", "--all", cwd=path)
        assert position(found) == Position(commit, commit, "v1", commit)

    def test_an_unreadable_checkout_has_no_settings(self, checkouts: Checkouts):
        # The tests may run as root, whom no mode keeps out; what lies behind too long a name is out of reach for all.
        (checkouts.root / "site").mkdir()
        (checkouts.root / "site" / ".git").symlink_to("x" * 300)
        found = checkouts.find("acme/site")
        assert found
        assert found.settings == {}
        assert list(checkouts) == ["site"]
        assert position(found) == Position(None, None)

    def test_a_git_file_with_a_nul_is_not_followed(self, checkouts: Checkouts):
        (checkouts.root / "site").mkdir()
        (checkouts.root / "site" / ".git").write_bytes(b"gitdir: a\0b\n")
        assert list(checkouts) == ["site"]

    def test_invented_names_use_bounded_memory(self, checkouts: Checkouts, monkeypatch):
        make(checkouts.root / "site")
        monkeypatch.setattr(repository, "MAX_CACHED", 3)
        assert {self.path(checkouts, f"owner{number}/site") for number in range(10)} == {"site"}
        assert len(checkouts._cache) <= 3

    def test_a_git_file_as_in_a_submodule_leads_to_the_settings(self, tmp_path: Path, checkouts: Checkouts):
        for number in (1, 2):
            git("init", "--quiet", "--bare", tmp_path / f"{number}", cwd=tmp_path)
            git("config", "gitops.branch", f"b{number}", cwd=tmp_path / f"{number}")
            settle(tmp_path / f"{number}" / "config")
        (checkouts.root / "site").mkdir()
        for number in (1, 2):
            pointer = checkouts.root / "site" / ".git"
            pointer.write_text(f"gitdir: ../../{number}\n")
            settle(pointer)
            found = checkouts.find("site")
            assert found
            assert found.settings["branch"] == f"b{number}"


class TestOwnership:
    """Owners of checkouts, and checkouts of a repository."""

    def paths(self, checkouts: Checkouts, *words: str) -> list[str]:
        return [str(found.path.relative_to(checkouts.root)) for found in checkouts.find_all(*words)]

    def test_a_flat_checkout_belongs_to_the_repository_that_its_origin_names(self, checkouts: Checkouts):
        make(checkouts.root / "site", origin="git@github.com:Acme/Site.git")
        assert self.paths(checkouts, "acme/site") == ["site"]
        assert checkouts.find("acme/site")
        assert checkouts.find("site")
        assert self.paths(checkouts, "fork/site") == []
        assert checkouts.find("fork/site") is None

    def test_a_flat_checkout_changes_its_owner_with_its_origin(self, checkouts: Checkouts):
        path = make(checkouts.root / "site", origin="https://github.com/acme/site")
        assert checkouts.find("acme/site")
        git("config", "remote.origin.url", "https://github.com/other/site", cwd=path)
        settle(path / ".git" / "config")
        assert checkouts.find("acme/site") is None
        assert checkouts.find("other/site")

    @pytest.mark.parametrize("origin", ["", "https://git.example.org/site.git", "../site"])
    def test_an_origin_without_an_owner_excludes_nobody(self, checkouts: Checkouts, origin: str):
        make(checkouts.root / "site", **({"origin": origin} if origin else {}))
        assert self.paths(checkouts, "acme/site") == ["site"]

    def test_each_environment_is_a_checkout(self, checkouts: Checkouts):
        for name in ("acme/site", "acme/site@staging", "acme/site@preview-1", "acme/site2@x", "beta/site@y"):
            make(checkouts.root / name)
        make(checkouts.root / "Site@flat", origin="https://github.com/acme/site")
        make(checkouts.root / "site@other", origin="https://github.com/fork/site")
        names = [found.repository for found in checkouts.find_all("acme/site")]
        assert names == ["acme/site", "acme/site@flat", "acme/site@preview-1", "acme/site@staging"]
        assert list(checkouts) == [
            "acme/site@flat", "acme/site", "acme/site2@x", "acme/site@preview-1", "acme/site@staging", "beta/site@y",
            "fork/site@other",
        ]  # fmt: skip

    def test_an_environment_that_comes_or_goes_is_noticed(self, checkouts: Checkouts):
        make(checkouts.root / "acme" / "site")
        settle(checkouts.root / "acme")
        for present in (False, True, False):
            if present:
                make(checkouts.root / "acme" / "site@staging")
            elif (checkouts.root / "acme" / "site@staging").exists():
                shutil.rmtree(checkouts.root / "acme" / "site@staging")
            for _ in range(2):
                settle(checkouts.root / "acme")
                expected = ["acme/site", *["acme/site@staging"] * present]
                assert self.paths(checkouts, "acme/site") == expected

    def test_nested_groups_share_no_checkout(self, checkouts: Checkouts):
        make(checkouts.root / "web" / "site", origin="https://gitlab.example/x/web/site.git")
        assert self.paths(checkouts, "web/site", "x/web/site") == ["web/site"]
        assert self.paths(checkouts, "web/site", "X/Web/site") == ["web/site"]
        assert self.paths(checkouts, "web/site", "y/web/site") == []
        assert self.paths(checkouts, "web/site") == ["web/site"]

    @pytest.mark.parametrize("name", ["acme/site@", "acme/site@.x", "acme/site@a/b", "acme/site@a@b", "a@b/site", "@x"])
    def test_an_invalid_environment_identifies_no_checkout(self, checkouts: Checkouts, name: str):
        (checkouts.root / name / ".git").mkdir(parents=True)
        assert checkouts.find(name) is None
        assert checkouts.find_all(name) == []
        assert name not in list(checkouts)

    def test_a_lookup_of_a_foreign_checkout_starts_one_process(self, checkouts: Checkouts, processes):
        make(checkouts.root / "site", origin="https://github.com/acme/site")
        processes()
        assert [checkouts.find("fork/site") for _ in range(5)] == [None] * 5
        assert processes() == 1


@pytest.mark.parametrize(
    ("url", "path", "expected"),
    [
        ("https://github.com/acme/site.git", "acme/site", True),
        ("https://github.com/acme/site", "ACME/Site", True),
        ("git@github.com:acme/site.git", "acme/site", True),
        ("ssh://git@host:22/acme/site", "acme/site", True),
        ("https://host/gitlab/x/web/site.git/", "x/web/site", True),
        ("/srv/git/acme/site.git", "acme/site", True),
        ("https://gitlab.example/y/web/site", "x/web/site", False),
        ("https://gitlab.example/web/site", "x/web/site", True),  # an alias in ssh_config may stand for the group
        ("https://github.com/fork/site", "acme/site", False),
        ("https://github.com/acme/site2", "acme/site", False),
        ("https://github.com/acme/mysite", "acme/site", False),
        ("host:site", "acme/site", True),
        ("host:other", "acme/site", False),
    ],
)
def test_is_repository_url(url: str, path: str, expected: bool):
    assert is_in_url(path, url) is expected


class TestSettings:
    def settings(self, checkouts: Checkouts) -> dict[str, str]:
        found = checkouts.find("acme/site")
        assert found
        return dict(found.settings)

    def test_they_are_the_checkouts_own_and_its_origin(self, checkouts: Checkouts):
        path = make(checkouts.root / "acme" / "site", origin="https://x/acme/site", healthTimeout="5")
        git("config", "gitops.deploy", "make\nmake install", cwd=path)
        git("config", "user.name", "not ours", cwd=path)
        assert self.settings(checkouts) == {
            "origin": "https://x/acme/site", "healthtimeout": "5", "deploy": "make\nmake install",
        }  # fmt: skip

    def test_the_last_value_wins(self, checkouts: Checkouts):
        path = make(checkouts.root / "acme" / "site", branch="a")
        git("config", "--add", "gitops.branch", "b", cwd=path)
        assert self.settings(checkouts) == {"branch": "b"}

    def test_while_nothing_changes_no_process_is_started(self, checkouts: Checkouts, processes: Callable[[], int]):
        path = make(checkouts.root / "acme" / "site", branch="a")
        git("config", "include.path", "more", cwd=path)
        settle(path / ".git" / "config")
        (path / ".git" / "more").write_text("[gitops]\npaused = true\n")
        settle(path / ".git" / "more")
        processes()
        for _ in range(20):
            assert self.settings(checkouts) == {"branch": "a", "paused": "true"}
        assert processes() == 1

    def test_every_change_is_noticed(self, checkouts: Checkouts, tmp_path: Path):
        config = make(checkouts.root / "acme" / "site", branch="a") / ".git" / "config"
        assert self.settings(checkouts) == {"branch": "a"}
        with config.open("r+") as file:  # in place, of the same length
            text = file.read()
            file.seek(0)
            file.write(text.replace("branch = a", "branch = b"))
        assert self.settings(checkouts) == {"branch": "b"}
        before = settle(config).stat()
        assert self.settings(checkouts) == {"branch": "b"}
        config.write_text(text)  # of the same length, and what cp --preserve does
        os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))
        settle(config)
        assert self.settings(checkouts) == {"branch": "a"}
        replacement = tmp_path / "replacement"
        replacement.write_text(text.replace("branch = a", "branch = c"))
        settle(replacement).replace(config)  # as git config does it
        assert self.settings(checkouts) == {"branch": "c"}
        config.unlink()
        assert self.settings(checkouts) == {}

    @pytest.mark.parametrize("how", ["more", "absolute", "includeIf"])
    def test_included_files_count_even_those_that_come_later(self, checkouts: Checkouts, tmp_path: Path, how: str):
        path = make(checkouts.root / "acme" / "site")
        more = tmp_path / "more" if how == "absolute" else path / ".git" / "more"
        key = f"includeIf.gitdir:{tmp_path}/.path" if how == "includeIf" else "include.path"
        git("config", key, more if how == "absolute" else "more", cwd=path)
        settle(path / ".git" / "config")
        assert self.settings(checkouts) == {}
        for branch in ("", "a", "b", ""):
            more.write_text(f"[gitops]\nbranch = {branch}\n" if branch else "# nothing\n")
            settle(more)
            assert self.settings(checkouts) == ({"branch": branch} if branch else {})

    def test_a_setting_of_the_worktree_counts_and_wins(self, checkouts: Checkouts):
        path = make(checkouts.root / "acme" / "site", branch="a")
        git("config", "extensions.worktreeConfig", "true", cwd=path)
        settle(path / ".git" / "config")
        assert self.settings(checkouts) == {"branch": "a"}
        for branch in ("b", "c"):
            git("config", "--worktree", "gitops.branch", branch, cwd=path)
            settle(path / ".git" / "config.worktree")
            assert self.settings(checkouts) == {"branch": branch}

    def test_an_include_for_a_branch_counts_while_that_branch_is_checked_out(self, checkouts: Checkouts):
        path = make(checkouts.root / "acme" / "site")
        git("config", "includeIf.onbranch:production.path", "more", cwd=path)
        (path / ".git" / "more").write_text("[gitops]\npaused = true\n")
        for branch, expected in (("main", {}), ("production", {"paused": "true"}), ("main", {})):
            git("symbolic-ref", "HEAD", f"refs/heads/{branch}", cwd=path)
            for file in ("config", "more", "HEAD"):
                settle(path / ".git" / file)
            assert self.settings(checkouts) == expected

    def test_settings_of_the_user_or_the_host_do_not_count(self, checkouts: Checkouts, tmp_path: Path, monkeypatch):
        make(checkouts.root / "acme" / "site", branch="a")
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".gitconfig").write_text("[gitops]\npaused = true\nbranch = z\n")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "home" / ".gitconfig"))
        assert self.settings(checkouts) == {"branch": "a"}

    def test_the_checkout_of_another_user_has_its_settings(self, checkouts: Checkouts):
        if os.geteuid():
            pytest.skip("only root can give a file to another user")
        path = make(checkouts.root / "acme" / "site", branch="a")
        for file in (path, *path.rglob("*")):
            os.chown(file, 12345, 12345)
        settle(path / ".git" / "config")
        assert self.settings(checkouts) == {"branch": "a"}

    def test_an_include_of_an_unknown_home_is_ignored(self, checkouts: Checkouts):
        path = make(checkouts.root / "acme" / "site", branch="a")
        git("config", "include.path", "~no-such-user/x", cwd=path)
        assert self.settings(checkouts) in ({"branch": "a"}, {})

    def test_unreadable_settings_are_empty_and_recover(self, checkouts: Checkouts, processes: Callable[[], int]):
        config = make(checkouts.root / "acme" / "site", branch="a") / ".git" / "config"
        good = config.read_text()
        config.write_text("[broken")
        settle(config)
        assert self.settings(checkouts) == {}
        config.write_text(good)
        settle(config)
        assert self.settings(checkouts) == {"branch": "a"}

    def test_a_git_that_failed_once_is_asked_again(self, checkouts: Checkouts, tmp_path: Path, monkeypatch):
        make(checkouts.root / "acme" / "site", branch="a")
        killed = tmp_path / "bin" / "git"
        killed.parent.mkdir()
        killed.write_text("#!/bin/sh\nkill -9 $$\n")
        killed.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{killed.parent}:{os.environ['PATH']}")
            assert self.settings(checkouts) == {}
        assert self.settings(checkouts) == {"branch": "a"}

    def test_a_git_that_cannot_be_started_is_an_error(self, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch):
        make(checkouts.root / "acme" / "site")
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(FileNotFoundError):
            checkouts.find("acme/site")


class TestListing:
    def test_it_is_sorted_and_flat_ones_are_called_as_their_origin_is(self, checkouts: Checkouts):
        make(checkouts.root / "beta" / "b")
        make(checkouts.root / "beta" / "a")
        make(checkouts.root / "site", origin="git@github.com:acme/Site.git")
        make(checkouts.root / "renamed", origin="https://github.com/acme/other")
        make(checkouts.root / "local")
        make(checkouts.root / "alpha" / "x", origin="https://github.com/elsewhere/x")
        for stray in ("empty", "beta/plain", "-dash", "deep/er/still"):
            (checkouts.root / stray).mkdir(parents=True)
        (checkouts.root / "file").touch()
        assert list(checkouts) == ["alpha/x", "beta/a", "beta/b", "local", "renamed", "acme/Site"]

    def test_a_missing_git_does_not_end_the_thread(self, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch):
        make(checkouts.root / "a", origin="https://github.com/acme/a")
        make(checkouts.root / "b" / "c")
        monkeypatch.setenv("PATH", "/nonexistent")
        assert list(checkouts) == ["a", "b/c"]

    def test_a_flat_checkout_is_found_by_every_form_of_its_name(self, checkouts: Checkouts):
        path = make(checkouts.root / "site", origin="git@github.com:acme/site.git")
        assert [*checkouts, checkouts.canonical_name("site"), checkouts.canonical_name("SITE")] == ["acme/site"] * 3
        assert checkouts.canonical_name("other/site") == "other/site", "the script reports the mismatch"
        assert [checkouts.canonical_name(name) for name in ("none", "..", "a/b/c")] == ["none", "..", "a/b/c"]
        make(checkouts.root / "acme/site")
        assert checkouts.canonical_name("site") == "site", "the owner's folder wins the other name"
        shutil.rmtree(checkouts.root / "acme")
        git("config", "remote.origin.url", "https://github.com/acme/renamed", cwd=path)
        assert checkouts.canonical_name("site") == "site"
