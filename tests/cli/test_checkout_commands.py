"""Add environments, rename and remove checkouts, with and without a daemon."""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness import push, until
from scratch import Upstream, git

from gitops_hook.cli.forge_pages import deploy_key_page, webhook_page
from gitops_hook.journal.reader import JournalReader
from gitops_hook.journal.writer import Journal
from gitops_hook.model import NoticeState


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def statuses(hook) -> dict[str, str]:
    return {row["repository"]: row["state"] for row in map(json.loads, hook("status", "--json").stdout.splitlines())}


# -- add -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def branches(upstream: Upstream) -> Upstream:
    """An upstream with the branches main and staging, which is the current one."""
    git("checkout", "--quiet", "-b", "staging", cwd=upstream.work)
    upstream.commit({"stage": "1"})
    return upstream


def test_a_push_updates_each_checkout_whose_branch_moved(branches, hook, start_daemon):
    daemon = start_daemon()
    hook("add", "acme/site", "--branch", "main")
    hook("add", "acme/site@staging", "--branch", "staging", "--deploy", "touch .git/deployed")
    main, staging = daemon.root / "acme/site", daemon.root / "acme/site@staging"
    assert (staging / "stage").read_text() == "1"
    assert not (main / "stage").exists()
    daemon.deliver(push("acme/site", branches.commit({"stage": "2"}), ref="refs/heads/staging"), guid="to-staging")
    until(lambda: daemon.query("SELECT 1 FROM runs WHERE trigger = 'push' AND outcome = 'updated'"))
    assert daemon.query("SELECT repository, pending FROM deliveries WHERE guid = 'to-staging'") == [
        ("acme/site@staging", 0)
    ]
    assert (staging / "stage").read_text() == "2"
    git("config", "gitops.branch", "staging", cwd=main)
    daemon.deliver(push("acme/site", branches.commit({"stage": "3"}), ref="refs/heads/staging"), guid="to-both")
    until(lambda: (main / "stage").exists() and (staging / "stage").read_text() == "3")
    names = daemon.query("SELECT repository FROM deliveries WHERE guid = 'to-both' ORDER BY repository")
    assert names == [("acme/site",), ("acme/site@staging",)]
    assert (staging / ".git/deployed").exists()
    assert not (main / ".git/deployed").exists()


def test_an_environment_has_its_own_runs_page_and_commands(tmp_path, branches, hook, start_daemon):
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    port = daemon.wait_for(r"listening for the dashboard.*address=\S*:(\d+)")
    hook("add", "acme/site")
    hook("add", "acme/site@staging", "--branch", "staging")
    listen = {"GITOPS_LISTEN": f"127.0.0.1:{daemon.port}"}
    (row,) = map(json.loads, hook("send", "acme/site@staging", "--json", **listen).stdout.splitlines()[1:])
    assert (row["repository"], row["outcome"]) == ("acme/site@staging", "unchanged")
    hook("sync", "acme/site@staging")
    hook("pause", "acme/site@staging")
    assert statuses(hook) == {"acme/site": "in sync", "acme/site@staging": "paused"}
    hook("resume", "acme/site@staging")
    hook("rename", "acme/site@staging", "acme/site@test")
    assert {row["repository"] for row in map(json.loads, hook("runs", "--json").stdout.splitlines())} == {
        "acme/site",
        "acme/site@test",
    }
    with urlopen(f"http://127.0.0.1:{port[1]}/repositories/acme/site%40test") as page:
        assert "site@test</h1>" in re.sub("<wbr>", "", page.read().decode())
    hook("remove", "acme/site@test")
    assert statuses(hook) == {"acme/site": "in sync"}


def test_a_sent_push_runs_the_checkouts_that_follow_its_branch(branches, hook, start_daemon):
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=branches.bare)
    daemon = start_daemon()
    hook("add", "acme/site")
    hook("add", "acme/site@staging", "--branch", "staging")
    listen = {"GITOPS_LISTEN": f"127.0.0.1:{daemon.port}"}
    pushed = "SELECT repository FROM runs WHERE trigger = 'push' ORDER BY id"
    hook("send", "acme/site@staging", **listen)
    hook("send", "acme/site", **listen)
    assert daemon.query(pushed) == [("acme/site@staging",), ("acme/site",)]


def test_rename_of_a_repository_renames_its_environments(tmp_path, branches, hook):
    hook("add", "acme/site")
    hook("add", "acme/site@staging", "--branch", "staging")
    branches.rename("acme/shop")
    hook("rename", "acme/site", "acme/shop")
    assert names_in(tmp_path / "root/acme") == ["shop", "shop@staging"]
    assert statuses(hook) == {"acme/shop": "in sync", "acme/shop@staging": "in sync"}


def test_add_rejects_an_impossible_request_before_it_clones(tmp_path, branches, hook):
    message = hook("add", "acme/site@staging", "--branch", "stagin", status=66).stderr
    assert "the branch stagin does not exist at" in message
    assert "did you mean staging?" in message
    assert "does not end in acme/site" in hook("add", "acme/site", "--url", "/srv/acme/blog.git", status=64).stderr
    assert "OWNER/NAME@ENVIRONMENT" in hook("add", "acme/site@", status=64).stderr
    assert names_in(tmp_path / "root") == []
    (tmp_path / "root/acme/site").mkdir(parents=True)
    (tmp_path / "root/acme/site/mine").touch()
    assert "exists and is no checkout; move it away" in hook("add", "acme/site", status=65).stderr
    (tmp_path / "root/acme/site/mine").unlink()
    hook("add", "acme/site")
    hook("remove", "--keep-files", "acme/site")
    assert "to adopt it again: mv " in hook("add", "acme/site", status=65).stderr


def test_add_of_several_repositories_clones_none_if_one_is_impossible(tmp_path, upstream, hook):
    hook("add", "acme/site", "acme/none", status=75)
    assert names_in(tmp_path / "root") == []


def test_add_names_the_page_of_the_forge_the_secret_and_the_next_step(tmp_path, upstream, hook):
    (tmp_path / "secret").write_text("a-secret-of-sufficient-length\n")
    said = hook("add", "acme/site", GITHUB_WEBHOOK_SECRET="", GITHUB_WEBHOOK_SECRET_FILE=f"{tmp_path}/secret").stdout
    assert f"Secret        the first line of {tmp_path}/secret\n" in said
    assert "gitops-hook send acme/site\n" in said


def test_add_shows_the_last_lines_of_a_failed_deploy_and_the_command_for_all_of_them(upstream, hook):
    said = hook("add", "acme/site", "--deploy", "echo broken; exit 1", status=70).stdout
    assert "    broken\n" in said
    assert "All output: gitops-hook logs 1\n" in said


@pytest.mark.parametrize(
    ("url", "webhooks", "deploy_keys"),
    [
        ("https://github.com/acme/site.git", "https://github.com/acme/site/settings/hooks/new", "keys/new"),
        ("git@github.com:acme/site.git", "https://github.com/acme/site/settings/hooks/new", "keys/new"),
        ("ssh://git@ssh.github.com:443/acme/site", "https://github.com/acme/site/settings/hooks/new", "keys/new"),
        ("https://gitlab.com/acme/web/site.git", "https://gitlab.com/acme/web/site/-/hooks", "-/settings/repository"),
        ("https://gitea.example:3000/acme/site", "https://gitea.example:3000/acme/site/settings/hooks", "keys"),
        ("ssh://git@codeberg.org/acme/site.git", "https://codeberg.org/acme/site/settings/hooks", "keys"),
        ("https://git.example/acme/site", "https://git.example/acme/site: Settings, Webhooks", "Settings, Deploy keys"),
        ("/srv/acme/site", "/srv/acme/site: Settings, Webhooks", "Deploy keys"),
    ],
)
def test_the_pages_of_a_forge(url, webhooks, deploy_keys):
    assert webhook_page(url) == webhooks
    assert deploy_key_page(url).endswith(deploy_keys)


# -- a checkout that was deleted manually --------------------------------------------------------------------------


def test_a_checkout_that_was_deleted_manually_is_missing_until_it_is_removed(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    hook("sync", "acme/site")
    assert statuses(hook) == {"acme/site": "in sync"}
    checkout.rename(tmp_path / "elsewhere")
    (row,) = map(json.loads, hook("status", "--json").stdout.splitlines())
    assert (row["state"], row["path"], row["fix"]) == ("missing", None, "sudo gitops-hook remove acme/site")
    assert "To clone it again: gitops-hook add acme/site" in hook("status").stdout
    hook("remove", "acme/site")
    assert statuses(hook) == {}
    assert list((tmp_path / "state/runs").iterdir()) == []
    assert "there is no checkout of acme/site" in hook("remove", "acme/site", status=66).stderr


def test_a_deleted_checkout_is_in_sync_again_after_add(tmp_path, upstream, hook):
    hook("add", "acme/site")
    (tmp_path / "root/acme/site").rename(tmp_path / "elsewhere")
    hook("add", "acme/site")
    assert statuses(hook) == {"acme/site": "in sync"}


# -- remove --------------------------------------------------------------------------------------------------------


def test_remove_deletes_the_checkout_and_its_history(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    upstream.checkout(daemon.root)
    Upstream(tmp_path / "forge", "acme/blog").checkout(daemon.root)
    hook("sync", "--all")
    assert hook("remove", "ACME/Site").stdout == "ACME/Site was removed\n"
    daemon.wait_for("checkout removed .*by=")
    assert names_in(daemon.root / "acme") == ["blog"]
    assert statuses(hook) == {"acme/blog": "in sync"}
    assert daemon.deliver(push("acme/site"))[1]["reason"] == "this host has no checkout of the repository"
    for table in ("runs", "deliveries"):
        assert daemon.query(f"SELECT DISTINCT repository FROM {table}") == [("acme/blog",)]
    hook("remove", "acme/blog")
    assert names_in(daemon.root) == []


@pytest.mark.parametrize("work", ["edit", "untracked", "commit", "stash"])
def test_remove_keeps_local_work_unless_it_is_forced(tmp_path, upstream, hook, work):
    checkout = upstream.checkout(tmp_path / "root")
    hook("sync", "acme/site")
    (checkout / ("mine" if work == "untracked" else "README")).write_text("mine")
    if work == "commit":
        git("commit", "--all", "--message", "mine", cwd=checkout)
    elif work == "stash":
        git("stash", cwd=checkout)
    found = {"commit": "commits that are not at the remote", "stash": "stashes"}.get(work, "local changes")
    assert f"{checkout} has {found}; --keep-files keeps" in hook("remove", "acme/site", status=65).stderr
    assert statuses(hook) == {"acme/site": "in sync"}
    hook("remove", "--force", "acme/site")
    assert not checkout.exists()


def test_remove_can_keep_the_files(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    (checkout / "mine").write_text("mine")
    assert f"its files stay in {checkout}" in hook("remove", "--keep-files", "acme/site").stdout
    assert names_in(checkout) == [".git.removed", "README", "mine"]
    assert statuses(hook) == {}
    (checkout / ".git.removed").rename(checkout / ".git")
    hook("sync", "acme/site")
    assert statuses(hook) == {"acme/site": "in sync"}


def test_remove_deletes_a_link_and_not_the_directory_behind_it(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "elsewhere")
    (tmp_path / "root/acme").mkdir()
    (tmp_path / "root/acme/site").symlink_to(checkout)
    hook("remove", "acme/site")
    assert (checkout / ".git").is_dir()
    assert not (tmp_path / "root/acme/site").is_symlink()


def test_remove_waits_for_no_run(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    os.mkfifo(tmp_path / "gate")
    upstream.checkout(daemon.root, deploy=f"read -r _ < {tmp_path}/gate")
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    until(lambda: daemon.query("SELECT 1 FROM runs"))
    problem = "a run is in progress; to end it: gitops-hook sync --cancel acme/site"
    assert problem in hook("remove", "acme/site", status=65).stderr
    (tmp_path / "gate").write_text("\n")
    daemon.wait_for_run()
    hook("remove", "acme/site")


def test_remove_and_rename_respect_the_lock_of_a_person_s_run(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    with (checkout / ".git/gitops.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["remove", "acme/site"], ["rename", "acme/site", "acme/shop"]):
            assert f"a run or a command uses {checkout}" in hook(*words, status=65).stderr
    assert (checkout / ".git").is_dir()


def test_remove_suggests_a_similar_name(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    assert "did you mean acme/site?" in hook("remove", "acme/stie", status=66).stderr
    assert "is not the name of a checkout" in hook("remove", "../site", status=64).stderr


def test_remove_keeps_a_repository_that_other_worktrees_use(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    git("worktree", "add", "--quiet", "--detach", tmp_path / "other", cwd=checkout)
    assert f"other worktrees use the repository in {checkout}" in hook("remove", "acme/site", status=65).stderr


# -- rename --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
def test_rename_moves_the_directory_the_origin_and_the_history(tmp_path, upstream, hook, start_daemon, nested):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root, nested=nested, deploy="true")
    hook("sync", "acme/site")
    upstream.rename("acme/shop")
    new = daemon.root / ("acme/shop" if nested else "shop")
    assert f"acme/site is now acme/shop at {new}" in hook("rename", "acme/site", "acme/shop").stdout
    daemon.wait_for(r"checkout renamed .*repository=acme/shop name=acme/site by=")
    assert not checkout.exists()
    assert git("remote", "get-url", "origin", cwd=new) == str(upstream.bare)
    assert git("config", "gitops.deploy", cwd=new) == "true"
    assert statuses(hook) == {"acme/shop": "in sync"}
    assert daemon.query("SELECT repository, outcome FROM runs") == [
        ("acme/shop", "updated"),
        ("acme/shop", "unchanged"),
    ]
    assert daemon.deliver(push("acme/shop", upstream.commit({"a": "b"})))[0] == 202
    daemon.wait_for_run("updated")
    assert (new / "a").read_text() == "b"


def test_rename_completes_a_move_by_hand(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    hook("sync", "acme/site")
    upstream.rename("acme/shop")
    checkout.rename(checkout.with_name("shop"))
    hook("rename", "acme/site", "acme/shop")
    assert statuses(hook) == {"acme/shop": "in sync"}


def test_rename_keeps_pending_deliveries_and_notices(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    (checkout / "README").write_text("mine")
    daemon.deliver(push("acme/site", upstream.commit({"README": "theirs"})))
    daemon.wait_for_run("dirty")
    daemon.stop()
    with closing(Journal(daemon.state)) as journal:
        journal.record_notice(NoticeState("acme/site", "dirty", 1.0, 2.0))
        journal.remember_hook(7, "acme/site", "https://hooks.example/")
    upstream.rename("acme/shop")
    git("checkout", "README", cwd=checkout)
    hook("rename", "acme/site", "acme/shop")
    reader = JournalReader(daemon.state)
    assert set(reader.notices()) == {"acme/shop"}
    assert [ping.target for ping in reader.hook_pings()] == ["acme/shop"]
    assert git("log", "-1", "--format=%H", cwd=daemon.root / "acme/shop") == upstream.head()


def test_rename_moves_a_checkout_to_another_owner_and_removes_the_empty_directory(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    upstream.rename("corp/site")
    hook("rename", "acme/site", "corp/site")
    assert names_in(tmp_path / "root") == ["corp"]


def test_rename_to_a_name_in_use_changes_nothing(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    blog = Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root")
    (tmp_path / "root/acme/files").mkdir()
    assert f"there is a checkout of acme/Blog at {blog}" in hook("rename", "acme/site", "acme/Blog", status=65).stderr
    assert "files exists; move it away" in hook("rename", "acme/site", "acme/files", status=65).stderr
    assert "is not the name of a checkout" in hook("rename", "acme/site", "acme/../x", status=64).stderr
    assert "did you mean acme/site?" in hook("rename", "acme/stie", "acme/x", status=66).stderr
    assert git("remote", "get-url", "origin", cwd=tmp_path / "root/acme/site") == str(upstream.bare)


def test_rename_changes_the_case_of_a_name(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    upstream.rename("acme/Site")
    hook("rename", "acme/site", "acme/Site")
    assert names_in(tmp_path / "root/acme") == ["Site"]


def test_rename_repairs_the_links_of_worktrees(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    git("worktree", "add", "--quiet", "--detach", tmp_path / "other", cwd=checkout)
    upstream.rename("acme/shop")
    hook("rename", "acme/site", "acme/shop")
    assert git("rev-parse", "HEAD", cwd=Path(tmp_path / "other")) == upstream.head()
