"""The commands as real processes on real checkouts, with and without a daemon."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from harness import SECRET, processes_of, push, until
from scratch import Upstream, git

from gitops_hook.cli.main import GIT_VARIABLES
from gitops_hook.cli.parser import build_parser
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Delivery
from gitops_hook.text import rfc3339


def test_add_clones_configures_deploys_and_prints_the_webhook_settings(tmp_path, upstream, hook):
    said = hook("add", "acme/site", "--branch", "main", "--deploy", "echo live > ../live").stdout
    checkout = tmp_path / "root/acme/site"
    assert git("rev-parse", "HEAD", cwd=checkout) == upstream.head()
    assert git("config", "gitops.branch", cwd=checkout) == "main"
    assert (checkout.parent / "live").read_text() == "live\n"
    assert f"acme/site is at {checkout}" in said
    assert "/api/webhook/gitops" in said
    assert "application/json" in said


def test_add_adopts_an_existing_checkout(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root", nested=False, deploy="true")
    (checkout / "mine").write_text("kept")
    assert f"acme/site is at {checkout}" in hook("add", "acme/site").stdout
    assert (checkout / "mine").read_text() == "kept"
    assert git("config", "gitops.deploy", cwd=checkout) == "true"


def test_add_reports_what_it_cannot_clone(upstream, hook):
    assert "is not OWNER/NAME" in hook("add", "site", status=64).stderr
    assert "is not OWNER/NAME" in hook("add", "../site", status=64).stderr
    assert "cannot be read" in hook("add", "acme/none", status=75).stderr
    assert "does not end in acme/site" in hook("add", "acme/site", "--url=--upload-pack=touch x", status=64).stderr
    assert "cannot be read" in hook("add", "acme/site", "--url=--upload-pack=touch x;/acme/site", status=75).stderr


def test_add_closes_the_repository_to_other_users_and_leaves_nothing_of_a_failed_clone(
    tmp_path, upstream, hook, environ
):
    hook("add", "acme/site")
    checkout = tmp_path / "root/acme/site"
    assert stat.S_IMODE((checkout / ".git").stat().st_mode) == 0o700
    assert stat.S_IMODE(checkout.stat().st_mode) == 0o755, "a web server can read the tree"
    (tmp_path / "shared").write_text("[core]\n\tsharedRepository = group\n")
    (upstream.bare.parent / "shared.git").symlink_to(upstream.bare)
    hook("add", "acme/shared", GIT_CONFIG_GLOBAL=str(tmp_path / "shared"))
    assert stat.S_IMODE((checkout.parent / "shared/.git").stat().st_mode) == 0o2770
    hook("add", "owner/none", status=75)
    assert not (tmp_path / "root/owner").exists()


def test_no_error_contains_a_password_of_a_url(upstream, hook):
    bad = {"GITOPS_CLONE_URL": "https://ada:ghp_hunter2@forge.example/{repo}.git"}
    for done in (
        hook("serve", status=78, **bad),
        hook("doctor", status=2, **bad),
        hook("doctor", "--json", status=2, **bad),
        hook("add", "acme/none", "--url=http://ada:hunter2@127.0.0.1:9/{repository}", status=75),
    ):
        assert "://***@" in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr


def test_an_error_is_one_line(tmp_path, upstream, hook):
    """Control characters are escaped."""
    checkout = upstream.checkout(tmp_path / "root")
    (checkout / ".git/config.lock").write_text("")
    said = hook("pause", "acme/site", status=64).stderr.splitlines()
    assert len(said) == 2 and "no daemon is running" in said[0] and "could not lock config file" in said[1]
    (checkout / ".git/config.lock").unlink()
    hook("sync", "--all")
    assert hook("logs", "a\x1b[31m\nb", status=66).stderr == "gitops-hook: a\\x1b[31m\\nb never ran\n"


def test_sync_ends_with_the_status_of_the_worst_outcome(tmp_path, upstream, hook):
    good = upstream.checkout(tmp_path / "root")
    bad = Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root", deploy="exit 3")
    rows = [json.loads(line) for line in hook("sync", "--all", "--json", status=70).stdout.splitlines()]
    assert {(row["repository"], row["outcome"], row["trigger"]) for row in rows} == {
        ("acme/site", "updated", "sweep"),
        ("acme/blog", "deploy-failed", "sweep"),
    } or {row["outcome"] for row in rows} == {"unchanged", "deploy-failed"}
    assert "acme/blog" in hook("sync", "acme/blog", status=70).stdout
    assert {json.loads(line)["trigger"] for line in hook("runs", "--json").stdout.splitlines()} == {"sweep", "manual"}
    git("config", "gitops.deploy", "true", cwd=bad)
    after = upstream.commit({"a": "b"})
    hook("sync", "acme/site", "acme/blog")
    assert git("rev-parse", "HEAD", cwd=good) == after


def test_a_checkout_directly_under_the_root_has_one_canonical_name(upstream, hook, start_daemon):
    daemon = start_daemon()
    upstream.checkout(daemon.root, nested=False)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for_run()
    hook("sync", "site", "SITE")  # one sync
    hook("pause", "site")
    hook("resume", "Site")
    hook("send", "site", GITOPS_LISTEN=f"127.0.0.1:{daemon.port}")
    for listed in (hook("runs", "--json"), hook("runs", "site", "--json")):
        runs = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [run["repository"] for run in runs] == ["acme/site"] * 4
    assert hook("logs", "site").stdout == hook("logs", str(runs[0]["id"])).stdout != ""
    for listed in (hook("status", "--json"), hook("status", "site", "--json")):
        assert json.loads(listed.stdout)["repository"] == "acme/site"


def test_sync_rejects_unknown_repositories(upstream, hook):
    hook("sync", status=64)
    hook("sync", "--all", "acme/site", status=64)
    assert "is not a repository's name" in hook("sync", "../etc", status=64).stderr
    assert "there is no checkout of acme/none" in hook("sync", "acme/none", status=66).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_command_but_not_the_runs(tmp_path, upstream, environ, hook, number):
    """Without a daemon, a process of its own performs the runs, and completes them."""
    os.mkfifo(tmp_path / "gate")
    deploy = f"echo begun > {tmp_path}/gate; read -r _ < {tmp_path}/gate; echo done > {tmp_path}/done"
    upstream.checkout(tmp_path / "root", deploy=deploy)
    command = [sys.executable, "-m", "gitops_hook", "sync", "acme/site"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as typed:
        with (tmp_path / "gate").open() as gate:
            assert gate.read() == "begun\n"
        typed.send_signal(number)
        assert "Traceback" not in typed.communicate(timeout=60)[1]
    assert typed.returncode == (130 if number == signal.SIGINT else -number)
    (tmp_path / "gate").write_text("go on\n")
    until(lambda: json.loads(hook("runs", "--json").stdout)["outcome"] is not None)
    assert (tmp_path / "done").exists()
    until(lambda: processes_of(tmp_path / "root") == [])


def test_sync_next_to_the_daemon_does_not_overlap(tmp_path, upstream, hook, start_daemon, script):
    overlap = script(
        'mkdir "$GITOPS_ROOT/acme/site/in" || echo overlap >> "$GITOPS_ROOT/trace"; rmdir "$GITOPS_ROOT/acme/site/in"'
    )
    upstream.checkout(tmp_path / "root", deploy=f"GITOPS_ROOT={tmp_path / 'root'} {overlap}")
    daemon = start_daemon()
    typed = threading.Thread(target=hook, args=("sync", "acme/site"))
    typed.start()
    for number in range(5):
        daemon.deliver(push("acme/site", upstream.commit({"a": str(number)})))
    typed.join()
    # The run of the command may have served all of these pushes, but not this one.
    daemon.deliver(push("acme/site", upstream.commit({"a": "last"})))
    while daemon.query("SELECT count(*) FROM deliveries WHERE pending") != [(0,)]:
        daemon.wait_for_run()
    assert not (tmp_path / "root/trace").exists()
    assert git("rev-parse", "HEAD", cwd=tmp_path / "root/acme/site") == upstream.head()
    assert {"manual", "push"} <= {trigger for (trigger,) in daemon.query("SELECT trigger FROM runs")}


def test_pause_stops_updates_and_resume_syncs(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    hook("pause", "acme/site")
    before, after = upstream.head(), upstream.commit({"a": "b"})
    assert "paused" in hook("sync", "acme/site").stdout
    assert git("rev-parse", "HEAD", cwd=checkout) == before
    assert "acme/site   paused" in hook("status").stdout
    said = hook("pause", "acme/site", "--for", "2h", "--reason", "tuning").stdout
    for shown in (said, hook("status").stdout):
        assert re.search(
            r"acme/site is paused by \S+ .*until .*: tuning\. To resume: gitops-hook resume acme/site", shown
        )
    hold = json.loads(hook("status", "--json").stdout)["hold"]
    assert (hold["state"], hold["by"], hold["reason"]) == ("paused", getpass.getuser(), "tuning")
    (row,) = map(json.loads, hook("resume", "acme/site", "--json").stdout.splitlines())
    assert (row["outcome"], row["after"]) == ("updated", after)
    assert git("rev-parse", "HEAD", cwd=checkout) == after
    hook("resume", "acme/site")  # idempotent


def test_git_variables_of_the_caller_do_not_redirect_git(tmp_path, upstream, hook):
    """Git hooks, and shells that work on another repository, set them."""
    checkout = upstream.checkout(tmp_path / "root")
    other = Upstream(tmp_path / "forge", "acme/other").work
    before = (other / ".git/config").read_bytes()
    variables = {"GIT_DIR": f"{other}/.git", "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": str(other / ".git/index")}
    hook("pause", "acme/site", **variables)
    assert git("config", "gitops.paused", cwd=checkout) == "true"
    hook("resume", "acme/site", **variables)
    assert "paused" not in git("config", "--list", cwd=checkout)
    hook("add", "acme/site", "--branch", "main", **variables)
    assert git("config", "gitops.branch", cwd=checkout) == "main"
    hook("add", "acme/other", **variables)
    assert git("rev-parse", "HEAD", cwd=tmp_path / "root/acme/other") == git("rev-parse", "HEAD", cwd=other)
    assert (other / ".git/config").read_bytes() == before
    assert not git("status", "--porcelain", cwd=other)


def test_every_variable_that_redirects_git_is_removed():
    names = set(git("rev-parse", "--local-env-vars", cwd=Path("/")).split())
    assert names <= set(GIT_VARIABLES)


def test_status_lists_repositories_that_need_an_action_first(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    fine = Upstream(tmp_path / "forge", "acme/a-fine-one").checkout(tmp_path / "root")
    (checkout / "README").write_text("mine")
    upstream.commit({"README": "theirs"})
    hook("sync", "--all", status=65)
    lines = hook("status").stdout.splitlines()
    assert lines[1].startswith("acme/site        action needed")
    assert lines[2].startswith("acme/a-fine-one  in sync")
    assert "README" in "\n".join(lines[3:])
    assert lines[-1].endswith(f"git -C {checkout} config gitops.dirty stash")
    rows = [json.loads(line) for line in hook("status", "--json").stdout.splitlines()]
    assert [(row["repository"], row["state"], row["path"]) for row in rows] == [
        ("acme/site", "action needed", str(checkout)),
        ("acme/a-fine-one", "in sync", str(fine)),
    ]
    assert hook("status", "ACME/Site", "--json").stdout == json.dumps(rows[0]) + "\n"
    hook("status", "acme/none", status=66)


def test_runs_finds_the_run_of_a_delivery(upstream, tmp_path, hook, start_daemon):
    daemon = start_daemon()
    upstream.checkout(daemon.root)
    after = upstream.commit({"a": "b"})
    daemon.deliver(push("acme/site", after), guid="the-one")
    daemon.wait_for("run updated ")
    (row,) = [json.loads(line) for line in hook("runs", "--delivery", "the-one", "--json").stdout.splitlines()]
    assert (row["outcome"], row["after"]) == ("updated", after)
    assert "updated" in hook("runs", "acme/site", "-n", "1").stdout
    hook("runs", "--delivery", "another", status=66)


def test_runs_lists_an_unclaimed_delivery(tmp_path, upstream, hook):
    with closing(Journal(tmp_path / "state")) as journal:
        received = time.time()
        journal.record(Delivery("the-one", "push", received, "acme/site", "refs/heads/main"))
        said = hook("runs", "--delivery", "the-one").stdout
        assert said == "the-one was accepted for acme/site, and waits for a run.\n"
        (row,) = [json.loads(line) for line in hook("runs", "--delivery", "the-one", "--json").stdout.splitlines()]
        assert row == {"delivery": "the-one", "repository": "acme/site", "received": rfc3339(received), "run": None}


def test_runs_reports_unknown_repositories(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    Journal(tmp_path / "state").close()
    assert hook("runs").stdout == "No run yet.\n"
    assert hook("runs", "--json").stdout == ""
    hook("sync", "--all")
    assert hook("runs", "--failed", "--since", "2d").stdout == "No run matches.\n"
    assert hook("runs", "nosuch/x", status=66).stderr == "gitops-hook: nosuch/x never ran\n"
    assert "--delivery alone" in hook("runs", "acme/site", "--delivery", "the-one", status=64).stderr


def test_runs_are_filtered_by_failure_and_time(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root", deploy="false")
    hook("sync", "acme/site", status=70)
    git("config", "gitops.deploy", "true", cwd=checkout)
    hook("sync", "acme/site")

    def outcomes(*words: str) -> list[str]:
        return [json.loads(line)["outcome"] for line in hook("runs", "--json", *words).stdout.splitlines()]

    assert outcomes() == outcomes("--since", "2d") == outcomes("acme/site", "--since", "90min")
    assert outcomes("--failed") == outcomes("--failed", "--since", "1h") == ["deploy-failed"]
    assert len(outcomes("--since", "1h", "-n", "1")) == 1
    time.sleep(1.1)
    assert outcomes("--since", "1s") == []
    for words in (["--since", "soon"], ["--since", "2"], ["--delivery", "x", "--failed"]):
        hook("runs", *words, status=64)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("fleet plan --delete acme/site", {"repository": "acme/site", "delete": True}),
        ("fleet status --json acme/site", {"repository": "acme/site", "json": True}),
        (
            "fleet promote --commit 1dd2fe acme/site web",
            {"repository": "acme/site", "words": ["web"], "commit": "1dd2fe"},
        ),
        ("rollback acme/site --reason slow 1dd2fe", {"commit": "1dd2fe", "reason": "slow"}),
        ("config --unset acme/site deploy", {"repository": "acme/site", "name": "deploy", "unset": True}),
        ("config acme/site --unset deploy", {"repository": "acme/site", "name": "deploy", "unset": True}),
        ("config acme/site deploy -- --x", {"name": "deploy", "value": "--x", "unset": False}),
    ],
)
def test_an_option_may_stand_between_the_arguments(line, values):
    given = vars(build_parser().parse_args(line.split()))
    assert values.items() <= given.items()


def test_a_typing_error_gets_a_suggestion(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    hook("sync", "--all")
    assert "there is no command stauts; did you mean status?" in hook("stauts", status=64).stderr
    said = hook("deploy", "acme/site", "--comit", "x", status=64).stderr
    assert said.startswith("usage: gitops-hook deploy ")
    assert said.endswith("gitops-hook deploy: unrecognized arguments: --comit x; did you mean --commit?\n")
    assert hook("status", "a/b", "c/d", status=64).stderr.endswith(": unrecognized arguments: c/d\n")
    for words in (["sync", "acme/sit"], ["logs", "acme/sit"], ["runs", "acme/sit"], ["pause", "acme/sit"]):
        assert "; did you mean acme/site?" in hook(*words, status=66).stderr


def test_logs_prints_a_run_and_follows_one_until_it_ends(tmp_path, upstream, environ, hook, start_daemon):
    os.mkfifo(tmp_path / "go")
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy=f"echo first; read -r word < {tmp_path}/go; echo $word")
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    while not (daemon.state / "runs/1.log").exists():
        time.sleep(0.01)
    with subprocess.Popen(
        [sys.executable, "-m", "gitops_hook", "logs", "-f", "acme/site"], env=environ, stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout
        assert follower.stdout.readline() == "first\n"
        (tmp_path / "go").write_text("second\n")
        assert follower.stdout.readline() == "second\n"
        # For a repository, it continues with the next run.
        with ThreadPoolExecutor() as pool:
            pool.submit(hook, "sync", "acme/site")
            while follower.stdout.readline() != "==> run 2 of acme/site <==\n":
                pass
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
    assert hook("logs", "-f", "1").stdout == hook("logs", "1").stdout
    assert hook("logs", "1").stdout.startswith("first\nsecond\n")
    hook("logs", "77", status=66)
    hook("logs", "acme/none", status=66)


def test_send_delivers_and_waits_for_the_run(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    after = upstream.commit({"a": "b"})
    said = hook("send", "acme/site", GITOPS_LISTEN=f"127.0.0.1:{daemon.port}").stdout
    assert said.startswith('202 {"status": "queued", "repository": "acme/site"')
    assert "updated" in said
    assert git("rev-parse", "HEAD", cwd=checkout) == after
    refused = hook("send", "acme/site", GITOPS_LISTEN=f"127.0.0.1:{daemon.port}", GITHUB_WEBHOOK_SECRET="x", status=69)
    assert refused.stdout.startswith("401 ")


def test_send_signs_with_the_first_secret_of_the_file(tmp_path, upstream, hook, start_daemon):
    secrets = tmp_path / "secrets"
    secrets.write_text(f"\n  {SECRET} \nolder\n")
    file = {"GITHUB_WEBHOOK_SECRET": "", "GITHUB_WEBHOOK_SECRET_FILE": str(secrets)}
    daemon = start_daemon(**file)
    upstream.checkout(daemon.root)
    assert hook("send", "acme/site", GITOPS_LISTEN=f"127.0.0.1:{daemon.port}", **file).stdout.startswith("202 ")


def test_send_reports_a_missing_daemon(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    assert "no daemon answers at 127.0.0.1:9" in hook("send", "acme/site", status=69).stderr


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 yes\r\n\r\n", b""])
def test_send_reports_a_server_that_is_not_gitops_hook(upstream, tmp_path, hook, answer: bytes):
    upstream.checkout(tmp_path / "root")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = hook("send", "acme/site", GITOPS_LISTEN=address, status=69).stderr
    assert address in said and said.count("\n") == 1


def test_invalid_numbers_are_rejected(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    hook("sync", "--all")
    for number in ("99999999999999999999999", "9" * 5000, "9223372036854775808"):
        assert hook("logs", number, status=66).stderr == f"gitops-hook: there is no run {number}\n"
    for words in (
        ("runs", "-n", "99999999999999999999999"),
        ("runs", "-n", "0"),
        ("runs", "-n", "-1"),
        ("runs", "-n", "many"),
        ("send", "acme/site", "--timeout", "9" * 400),
        ("register", "acme/site", "--timeout", "1e3"),
    ):
        assert f"`{words[-1]}` is not a whole number from 1 to " in hook(*words, status=64).stderr


def test_output_that_cannot_be_written(tmp_path, upstream, environ, hook):
    upstream.checkout(tmp_path / "root", deploy="echo é€")
    hook("sync", "--all")

    def typed(command: str, **more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", command.replace("gitops-hook", f"{sys.executable} -m gitops_hook")],
            env={**environ, **more},
            capture_output=True,
            timeout=60,
        )
        return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode()

    assert typed("gitops-hook runs >/dev/full") == (74, "", "gitops-hook: No space left on device\n")
    assert typed("gitops-hook pause acme/site acme/none >/dev/full")[::2] == (
        66,
        f"gitops-hook: there is no checkout of acme/none under {tmp_path}/root; did you mean acme/site?\n",
    )
    assert typed("gitops-hook runs >&-") == (74, "", "gitops-hook: standard output is closed\n")
    assert typed("gitops-hook resume acme/site 2>&-")[0] == 0
    assert typed("gitops-hook logs acme/none 2>&-") == (66, "", "")
    status, said, trouble = typed("gitops-hook logs 1", PYTHONIOENCODING="latin-1")
    assert (status, trouble) == (0, "") and "é\\u20ac\n" in said
    assert typed("gitops-hook logs 1", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")[::2] == (0, "")


def test_commands_report_a_missing_journal(upstream, hook):
    for words in (["status"], ["runs"], ["logs", "1"]):
        assert "there is no journal in" in hook(*words, status=66).stderr


def test_a_reading_command_does_not_repair_a_damaged_journal(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root")
    hook("sync", "--all")
    (tmp_path / "state/journal.db").write_bytes(b"noise" * 1000)
    assert "file is not a database" in hook("status", status=74).stderr
    assert (tmp_path / "state/journal.db").read_bytes() == b"noise" * 1000


def on_a_terminal(environ: dict[str, str], *words: str) -> str:
    """Return the output of a command on a terminal."""
    terminal, slave = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "gitops_hook", *words], env=environ, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
    os.close(terminal)
    assert done.wait(30) == 0
    return shown.decode()


def test_colors_and_progress_are_for_terminals(tmp_path, upstream, environ, hook):
    upstream.checkout(tmp_path / "root")
    Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root")
    assert re.search(r"\x1b\[K[01] of 2  ", on_a_terminal(environ, "sync", "--all"))
    assert re.search(r"\x1b\[32min sync", on_a_terminal(environ, "status"))
    assert "\x1b" not in on_a_terminal({**environ, "NO_COLOR": "1"}, "status")
    assert "\x1b" not in hook("status").stdout + hook("sync", "--all").stderr


def test_a_log_does_not_control_the_terminal(tmp_path, upstream, environ, hook):
    """Colors pass and are reset after each part; every other control sequence is escaped."""
    printed = r"\033]0;title\007\033[31mred\033[0m\033[2K\tx\r\n\033[8mhidden\u202e\033[1mbold"
    upstream.checkout(tmp_path / "root", deploy=f"printf '{printed}'")
    hook("sync", "--all")
    shown = on_a_terminal(environ, "logs", "acme/site")
    assert r"\x1b]0;title\x07" + "\x1b[31mred\x1b[0m" + "\\x1b[2K\tx\r\n" + r"hidden\u202e" in shown
    assert "\x1b[1mbold" in shown and shown.rstrip().endswith("\x1b[0m")
    plain = on_a_terminal({**environ, "NO_COLOR": "1"}, "logs", "acme/site")
    assert r"\x1b]0;title\x07red\x1b[2K" + "\tx\r\n" in plain and "\x1b" not in plain
    assert "\x1b[31mred\x1b[0m\x1b[2K\tx\n" in hook("logs", "acme/site").stdout  # a file gets the output unchanged


def test_settings_come_from_the_units_environment_file(tmp_path):
    from gitops_hook.config import read_environment

    file = tmp_path / "gitops-hook.env"
    file.write_text("# where\nGITOPS_ROOT=/srv/web\n\n; no\nGITOPS_CLONE='acme/* other/*'\nno equals sign\n")
    assert read_environment(file) == {"GITOPS_ROOT": "/srv/web", "GITOPS_CLONE": "acme/* other/*"}
    assert read_environment(tmp_path / "none") == {}


def test_the_units_environment_need_not_be_utf_8(tmp_path: Path) -> None:
    from gitops_hook.config import read_environment

    file = tmp_path / "gitops-hook.env"
    file.write_bytes(b"# d\xe9j\xe0 vu\r\nGITOPS_ROOT=/srv/\xe9\x0bt\xe9\n")
    assert {name: os.fsencode(value) for name, value in read_environment(file).items()} == {
        "GITOPS_ROOT": b"/srv/\xe9\x0bt\xe9"
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="the other user needs the system's python3")
@pytest.mark.parametrize("user", [65534, 54321], ids=["nobody", "without a passwd entry"])
def test_root_continues_as_the_owner_of_the_state(tmp_path, upstream, hook, user):
    checkout = upstream.checkout(tmp_path / "root", deploy="id -u > ../who")
    (tmp_path / "state").mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    for path in (
        tmp_path / "state",
        tmp_path / "root",
        *(tmp_path / "root").rglob("*"),
        *(tmp_path / "forge").rglob("*"),
    ):
        os.chown(path, user, user, follow_symlinks=False)
    hook("sync", "--all", python="/usr/bin/python3", PYTHONDONTWRITEBYTECODE="1")
    assert (checkout.parent / "who").read_text() == f"{user}\n"
    hook("status", python="/usr/bin/python3", PYTHONDONTWRITEBYTECODE="1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="the other user needs the system's python3")
def test_add_works_in_a_directory_that_the_service_cannot_reach(tmp_path, upstream, environ):
    for name in ("state", "root"):
        (tmp_path / name).mkdir(exist_ok=True)
        os.chown(tmp_path / name, 65534, 65534)
    for path in (tmp_path / "forge").rglob("*"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    inside = tmp_path / "private/dist"
    inside.mkdir(parents=True)
    inside.parent.chmod(0o700)
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "gitops_hook", "add", "acme/site"],
        cwd=inside,
        env={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "root/acme/site/README").exists()


def test_status_shows_where_the_output_of_a_failed_deploy_is(tmp_path, upstream, hook):
    upstream.checkout(tmp_path / "root", deploy="false")
    hook("sync", "acme/site", status=70)
    assert hook("status").stdout.endswith("  All output: gitops-hook logs 1\n")


def test_status_shows_why_a_rollout_holds_a_checkout(tmp_path, upstream, hook):
    checkout = upstream.checkout(tmp_path / "root")
    git("config", "gitops.approved", "hold", cwd=checkout)
    upstream.commit({"a": "b"})
    hook("sync", "acme/site")
    assert "a roll-out holds the checkout" in hook("status").stdout


def test_a_reader_that_closes_the_pipe_causes_no_error(tmp_path, upstream, environ):
    upstream.checkout(tmp_path / "root")
    command = f"{sys.executable} -m gitops_hook sync --all >/dev/null; {sys.executable} -m gitops_hook status | true"
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "BrokenPipe" not in done.stderr and "Traceback" not in done.stderr


def test_every_command_has_help(hook):
    text = hook("--help").stdout
    for name in re.findall(r"^    (\w+) ", text, re.MULTILINE):
        assert hook(name, "--help").stdout.startswith(f"usage: gitops-hook {name}")
