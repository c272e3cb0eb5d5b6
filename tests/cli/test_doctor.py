"""Each check of doctor, passing and failing. If the fix can run here, the test runs it and repeats the check."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from disks import fill, small_disk
from findings import of, only
from harness import SECRET
from scratch import Upstream, git

from gitops_hook.cli import doctor
from gitops_hook.cli.doctor import FAILURE, OK, SKIPPED, WARNING, Finding
from gitops_hook.cli.doctor import checkout as checkout_checks
from gitops_hook.cli.doctor import host as host_checks
from gitops_hook.cli.doctor.finding import Results
from gitops_hook.config import Settings, load
from gitops_hook.errors import ConfigError
from gitops_hook.sync.checkouts import Checkouts

#: The owner of a missing directory that a fix creates.
SERVICE_USER = "gitops-hook" if "gitops-hook" in {user.pw_name for user in pwd.getpwall()} else getpass.getuser()


class Silent(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *arguments: object) -> None:
        pass


# -- the whole -----------------------------------------------------------------------------------------------------


def test_exit_status_0_if_all_checks_pass(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    upstream.checkout(daemon.root, deploy="true")
    listen = {"GITOPS_LISTEN": f"127.0.0.1:{daemon.port}"}
    rows = [json.loads(line) for line in hook("doctor", "--json", **listen).stdout.splitlines()]
    assert {row["level"] for row in rows} <= {"ok", "skipped"}
    # Only the checks of the host are skipped.
    assert {row["check"] for row in rows if row["level"] == "skipped"} <= {"timers", "clock"}
    # Without a token or a fleet, there are no findings about them.
    without = {"token", "etcd", "certificates of etcd", "clocks of etcd", "access", "lfs", "polkit"}
    assert {row["check"] for row in rows} == {*doctor.AS_CALLER, *doctor.AS_SERVICE, *doctor.OF_CHECKOUT} - without
    assert {row["repository"] for row in rows} == {"", "acme/site"}
    lines = hook("doctor", **listen).stdout.splitlines()
    assert len(lines) == len(rows)
    assert f"ok       socket: the daemon answers at 127.0.0.1:{daemon.port}" in lines


def test_exit_status_2_for_a_failure_and_1_for_a_warning(tmp_path, upstream, hook, start_daemon):
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    listen = {"GITOPS_LISTEN": f"127.0.0.1:{daemon.port}"}
    git("remote", "set-head", "origin", "--delete", cwd=checkout)
    hook("doctor", status=1, **listen)
    lines = hook("doctor", status=2).stdout
    assert "failure  socket: no daemon answers at 127.0.0.1:9" in lines
    assert "\n         sudo systemctl start gitops-hook.socket gitops-hook.service\n" in lines


def test_checks_change_nothing_and_run_concurrently(settings, upstream):
    checkout = settings.root / "acme/site"
    before = git("rev-parse", "HEAD", cwd=checkout)
    upstream.commit({"a": "b"})
    began = time.monotonic()
    assert "would move" in only("fetch", settings, OK).message
    assert git("rev-parse", "HEAD", cwd=checkout) == before
    assert time.monotonic() - began < 10


def test_the_worst_level_wins():
    findings = [Finding("a", level, "") for level in (OK, WARNING, OK)]
    assert doctor.worst_level(findings) == WARNING
    assert doctor.worst_level([*findings, Finding("b", FAILURE, "")]) == FAILURE
    assert doctor.worst_level([]) == OK


# -- settings ------------------------------------------------------------------------------------------------------


def test_an_invalid_setting_is_a_finding(tmp_path, hook):
    (tmp_path / "script").write_text("")
    for bad, fix in (
        ({"GITOPS_ROOT": "/no/such folder"}, f"sudo install -d -o {SERVICE_USER} '/no/such folder'"),
        ({"GITOPS_SYNC_SCRIPT": f"{tmp_path}/script"}, f"sudo chmod +x {tmp_path}/script"),
        ({"GITOPS_LISTEN": "here"}, "unset GITOPS_LISTEN"),
        ({"GITOPS_LISTN": "127.0.0.1:1"}, "unset GITOPS_LISTN"),
    ):
        (tmp_path / "root").mkdir(exist_ok=True)
        (row,) = [json.loads(line) for line in hook("doctor", "--json", status=2, **bad).stdout.splitlines()]
        assert (row["check"], row["level"], row["fix"]) == ("settings", "failure", fix)


def test_the_fix_for_a_missing_root_works_without_the_package(tmp_path, hook, apply_fix):
    root = tmp_path / "new root"
    (row,) = [
        json.loads(line) for line in hook("doctor", "--json", status=2, GITOPS_ROOT=str(root)).stdout.splitlines()
    ]
    apply_fix(row["fix"])
    assert root.is_dir()


def test_the_fix_for_a_setting_of_the_unit_edits_its_file():
    error = ConfigError("no", "GITOPS_LISTEN", "here")
    assert doctor.finding_of_setting(error, {}).fix == "sudoedit /etc/gitops-hook/gitops-hook.env"


# -- the secret ----------------------------------------------------------------------------------------------------


def test_a_secret_in_a_private_file_passes(tmp_path, settings):
    path = tmp_path / "secret"
    path.write_text(f"{SECRET.replace(' ', '-')}\nanother-that-is-long\n")
    path.chmod(0o600)
    assert (
        "2 of sufficient length"
        in only("secret", settings._replace(webhook_secret="", webhook_secret_file=path), OK).message
    )


def test_an_incomplete_signing_token_is_a_warning(tmp_path, settings):
    path = tmp_path / "secret"
    path.touch(0o600)
    settings = settings._replace(webhook_secret="", webhook_secret_file=path)
    for token, level in (("A" * 43 + "=", OK), ("A" * 43, WARNING), ("A" * 42 + "-=", WARNING)):
        path.write_text(f"another-that-is-long\nwhsec_{token}\n")
        finding = only("secret", settings, level)
        assert ("line 2" in finding.message) == (level == WARNING)


def test_a_long_secret_in_the_environment_passes(settings):
    only("secret", settings, OK)
    assert "less than 16 bytes" in only("secret", settings._replace(webhook_secret="x" * 15), FAILURE).message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, marks=pytest.mark.fixes("credentials.secret 2")),
        pytest.param("\n\n", marks=pytest.mark.fixes("credentials._check_secrets 1")),
        pytest.param("short\n", marks=pytest.mark.fixes("credentials._check_secrets 2")),
        "",
        "a-secret-that-is-long-enough\nshort\n",
    ],
)
def test_the_fix_for_a_missing_or_short_secret_creates_one(tmp_path, settings, apply_fix, content):
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    here = settings._replace(webhook_secret="", webhook_secret_file=path)
    finding = only("secret", here, FAILURE)
    assert "short\n" not in finding.message
    apply_fix(finding.fix)
    only("secret", here, OK)


def test_a_secret_that_is_not_utf_8_is_a_failure(tmp_path, settings, hook):
    path = tmp_path / "secret"
    path.write_bytes(b"a-secret-that-is-not-utf-8-\xff\n")
    path.chmod(0o600)
    here = settings._replace(webhook_secret="", webhook_secret_file=path)
    assert only("secret", here, FAILURE).message == f"{path} is invalid: line 1 is not UTF-8"
    given = {"GITHUB_WEBHOOK_SECRET": "", "GITHUB_WEBHOOK_SECRET_FILE": str(path)}
    said = hook("send", "acme/site", status=78, **given).stderr
    assert said == f"gitops-hook: GITHUB_WEBHOOK_SECRET_FILE='{path}' is invalid: line 1 is not UTF-8\n"


def test_no_secret_at_all_is_a_failure(settings):
    assert "/etc/gitops-hook/webhook-secret" in only("secret", settings._replace(webhook_secret=""), FAILURE).fix


@pytest.mark.fixes("credentials.secret 5")
def test_the_fix_for_a_world_readable_secret(tmp_path, settings, apply_fix):
    path = tmp_path / "secret"
    path.write_text("a-secret-that-is-long-enough\n")
    path.chmod(0o644)
    here = settings._replace(webhook_secret="", webhook_secret_file=path)
    well, open_to_all = of("secret", here)
    assert (well.level, open_to_all.level) == (OK, FAILURE)
    apply_fix(open_to_all.fix)
    only("secret", here, OK)


def test_a_ping_detects_a_daemon_with_an_older_secret(tmp_path, hook, start_daemon, settings):
    assert "no daemon answers" in only("ping", settings, SKIPPED).message
    daemon = start_daemon()
    here = settings._replace(listen=settings.listen._replace(port=daemon.port))
    only("ping", here, OK)
    path = tmp_path / "secret"
    path.write_text("a-newer-secret-of-the-file\n")
    finding = only("ping", here._replace(webhook_secret="", webhook_secret_file=path), FAILURE)
    assert "older secrets" in finding.message
    assert finding.fix == "sudo systemctl restart gitops-hook"
    assert daemon.query("SELECT * FROM pings") == []  # it is no proof that a forge reaches this host


def test_a_check_of_owners_that_could_not_run_is_a_failure(settings, tool):
    tool("find", "exit 1")
    assert "could not be checked" in only("ownership", settings, FAILURE).message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="the other user needs the system's python3")
def test_an_ordinary_user_gets_one_finding_and_one_line(tmp_path, environ, hook, upstream):
    upstream.checkout(tmp_path / "root")
    hook("sync", "--all")
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    tmp_path.chmod(0o755)

    def run_as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-m",
            "gitops_hook",
        ]
        environment = {**environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=60)

    done = run_as_nobody("doctor", "--json")
    (row,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, row["check"], row["fix"]) == (2, "user", "sudo gitops-hook doctor")
    done = run_as_nobody("status")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77, "", 1)
    assert "use sudo" in done.stderr
    (tmp_path / "root/acme/site/.git").chmod(0o700)
    (tmp_path / "state").chmod(0o700)
    for words in (["config", "acme/site"], ["sync", "acme/site"], ["send", "acme/site"]):
        done = run_as_nobody(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77, "", 1)
        assert done.stderr.endswith("use sudo\n")


@pytest.mark.fixes("checkout.fetch 1")
def test_the_fix_of_a_run_is_the_fix_of_the_check(settings, upstream, apply_fix):
    checkout = settings.root / "acme/site"
    git("config", "gitops.dirty", "ignore", cwd=checkout)
    finding = only("fetch", settings, FAILURE)
    assert finding.fix.endswith("--unset-all gitops.dirty")
    apply_fix(finding.fix)
    only("fetch", settings, OK)


def test_a_check_runs_for_one_repository_only(upstream, hook, tmp_path):
    upstream.checkout(tmp_path / "root")
    Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root", deploy="no-such-program")
    rows = [json.loads(line) for line in hook("doctor", "--json", "acme/site").stdout.splitlines()]
    assert {row["repository"] for row in rows} == {"acme/site"}
    assert "no-such-program" in hook("doctor", "acme/blog", status=2).stdout


def test_the_record_of_migrate_may_belong_to_root(settings, monkeypatch):
    (settings.state / "migrated.json").touch()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(settings.state / "migrated.json", 65534, 65534)
    only("journal", settings, OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.fixes("host.journal 2")
def test_the_fix_for_a_restored_journal_of_another_user(settings, apply_fix):
    (settings.state / "journal.db").touch()
    only("journal", settings, OK)
    os.chown(settings.state / "journal.db", 65534, 65534)
    finding = only("journal", settings, FAILURE)
    assert "journal.db does not belong to" in finding.message
    apply_fix(finding.fix)
    only("journal", settings, OK)


def test_a_check_of_the_journal_s_owner_that_could_not_run_is_a_failure(settings, tool):
    tool("find", "exit 1")
    assert "could not be checked" in only("journal", settings, FAILURE).message


def test_files_in_git_lfs_need_git_lfs(settings, upstream, monkeypatch, tmp_path):
    assert of("lfs", settings) == []
    upstream.commit({".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    git("pull", "--quiet", cwd=settings.root / "acme/site")
    (tmp_path / "only git").mkdir()
    (tmp_path / "only git/git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path / "only git"))
    assert only("lfs", settings, FAILURE).fix == "sudo apt-get install git-lfs"
    (tmp_path / "only git/git-lfs").symlink_to(shutil.which("true", path="/bin:/usr/bin"))
    only("lfs", settings, OK)


def test_a_deploy_that_manages_a_unit_needs_polkit(settings, monkeypatch, tmp_path):
    checkout = settings.root / "acme/site"
    (tmp_path / "only git").mkdir()
    (tmp_path / "only git/git").symlink_to(shutil.which("git"))
    monkeypatch.setattr(checkout_checks, "SYSTEMD_IS_INIT", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)  # root needs no polkit
    monkeypatch.setenv("PATH", str(tmp_path / "only git"))
    found = doctor.OF_CHECKOUT["polkit"]

    def levels(command: str) -> list[str]:
        git("config", "gitops.deploy", command, cwd=checkout)
        known = Checkouts(settings.root).find("acme/site")
        assert known
        return [result.level for result in found(settings, known)]

    assert levels("make") == []
    assert levels("systemctl --user restart app") == []
    assert levels("make && systemctl --no-block restart app") == [FAILURE]
    (tmp_path / "only git/pkcheck").symlink_to(shutil.which("true", path="/bin:/usr/bin"))
    assert levels("systemctl reload app") == [OK]


# -- folders and disks ---------------------------------------------------------------------------------------------


@pytest.mark.fixes("host.writable 1")
def test_the_fix_for_a_missing_state_directory(settings, apply_fix):
    settings.state.rmdir()
    apply_fix(only("state", settings, FAILURE).fix)
    only("state", settings, OK)
    only("root", settings, OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="the other user needs the system's python3")
def test_the_fix_for_files_of_another_user(tmp_path, upstream, hook, apply_fix):
    checkout = upstream.checkout(tmp_path / "root")
    (tmp_path / "state").mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    for path in (tmp_path / "state", *(tmp_path / "forge").rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)

    def problems() -> dict[str, str]:
        said = hook("doctor", "--json", python="/usr/bin/python3", status=2, PYTHONDONTWRITEBYTECODE="1").stdout
        rows = [json.loads(line) for line in said.splitlines()]
        return {row["check"]: row["fix"] for row in rows if row["level"] == "failure"}

    assert set(problems()) == {"root", "ownership", "fetch", "socket"}
    assert f"sudo chown -R nobody: {checkout}" == problems()["ownership"]
    apply_fix(problems()["root"])
    apply_fix(problems()["ownership"])
    assert set(problems()) == {"socket"}
    # One fetch by root spoils it again.
    (checkout / ".git/FETCH_HEAD").write_text("")
    os.chown(checkout / ".git/FETCH_HEAD", 0, 0)
    apply_fix(problems()["ownership"])
    assert set(problems()) == {"socket"}


def test_a_user_who_does_not_own_the_state_is_a_warning(settings, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(settings.state, 65534, 65534)
    assert only("user", settings, WARNING).fix == "sudo gitops-hook doctor"
    os.chown(settings.state, 0, 0)
    only("user", settings, OK)


def test_a_full_disk_is_a_failure_and_a_nearly_full_one_a_warning(tmp_path, settings):
    with small_disk(tmp_path / "disk", "100M") as disk:
        here = settings._replace(state=disk)
        assert str(disk) in only("disk of the state", here, WARNING).fix
        fill(disk)
        only("disk of the state", here, FAILURE)
    only("disk of the root", settings, OK)


def test_a_disk_without_inodes_is_a_failure(tmp_path, settings):
    with small_disk(tmp_path / "disk", "2G,nr_inodes=4") as disk:
        for name in range(3):
            (disk / str(name)).touch()
        well, full = of("disk of the root", settings._replace(root=disk))
        assert (well.level, full.level) == (OK, FAILURE)
        assert "--inodes" in full.fix


@pytest.mark.fixes("host.writable 2")
def test_the_fix_for_a_read_only_disk_remounts_it(tmp_path, settings, apply_fix):
    with small_disk(tmp_path / "disk", "2G,ro") as disk:
        here = settings._replace(root=disk)
        if os.access(disk, os.W_OK):
            pytest.skip("NOT TESTED: this disk can be written all the same")
        apply_fix(only("root", here, FAILURE).fix)
        only("root", here, OK)


# -- the host ------------------------------------------------------------------------------------------------------


def test_a_script_that_does_not_run_is_a_failure(tmp_path, settings, script):
    only("script", settings, OK)
    only("script", settings._replace(sync_script=Path(script("exit 3"))), FAILURE)


@pytest.mark.fixes("host.script 1")
def test_the_fix_for_a_script_that_is_not_executable(settings, script, apply_fix):
    path = Path(script("true"))
    path.chmod(0o600)
    apply_fix(only("script", settings._replace(sync_script=path), FAILURE).fix)
    only("script", settings._replace(sync_script=path), OK)


def test_programs_that_are_too_old_are_failures(settings, tool):
    assert {finding.level for finding in of("programs", settings)} == {OK}
    tool("bash", "echo GNU bash, version 4.3.30")
    tool("git", "echo git version 2.20.1")
    old = [finding for finding in of("programs", settings) if finding.level == FAILURE]
    assert [finding.message for finding in old] == [
        "bash is 4.3, but must be at least 4.4",
        "git is 2.20, but must be at least 2.30",
    ]
    assert old[1].fix == "sudo apt-get install --only-upgrade git"


def test_programs_that_are_missing_are_failures(tmp_path, settings, monkeypatch):
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("bash", "timeout"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    failures = [finding for finding in of("programs", settings) if finding.level == FAILURE]
    assert [finding.message for finding in failures] == ["there is no program git", "not installed: setpriv, flock"]
    assert failures[1].fix == "sudo apt-get install --reinstall util-linux"


def test_a_socket_at_another_address_is_named(settings, tool):
    tool("systemctl", "echo '127.0.0.1:9787 (Stream)'")
    finding = only("socket", settings, FAILURE)
    assert finding.message.startswith("no daemon answers at 127.0.0.1:9: ")
    assert finding.message.endswith("; gitops-hook.socket is at 127.0.0.1:9787 (Stream)")
    assert finding.fix == "sudoedit /etc/gitops-hook/gitops-hook.env"
    tool("systemctl", "echo '127.0.0.1:9 (Stream)'")
    assert "systemctl start" in only("socket", settings, FAILURE).fix
    tool("systemctl", "echo")
    assert "systemctl start" in only("socket", settings, FAILURE).fix


def test_an_unhealthy_daemon_is_a_failure(settings):
    def unavailable(environ, start_response):
        start_response("503 Service Unavailable", [("Content-Type", "application/json")])
        return [b'{"status": "unavailable", "reason": "the journal cannot be written"}']

    with make_server("127.0.0.1", 0, unavailable, handler_class=Silent) as server:
        threading.Thread(target=server.handle_request).start()
        here = load(dict(os.environ), {"listen": f"127.0.0.1:{server.server_port}"})
        assert only("socket", here, FAILURE).message == "the daemon is unhealthy: the journal cannot be written"


def test_another_server_at_the_port_is_a_failure(settings, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:  # fmt: skip
        assert other.stdout
        port = other.stdout.readline().split("port ")[1].split()[0]
        finding = only("socket", load(dict(os.environ), {"listen": f"127.0.0.1:{port}"}), FAILURE)
        other.terminate()
    assert "is not gitops-hook" in finding.message
    assert finding.fix == f"sudo ss -ltnp 'sport = :{port}'"


def test_a_timer_that_polls_is_a_warning(settings, tool, tmp_path, monkeypatch):
    tool("systemctl", "exit 1")
    monkeypatch.setattr(host_checks, "SYSTEMD_IS_INIT", tmp_path / "none")
    assert "not the init system" in only("timers", settings, SKIPPED).message
    monkeypatch.setattr(host_checks, "SYSTEMD_IS_INIT", tmp_path)
    assert "does not answer" in only("timers", settings, WARNING).message
    tool("systemctl", "true")
    assert only("timers", settings, OK).message == "no timer polls a checkout"
    tool(
        "systemctl",
        'case $* in *list-units*) echo "gitops-sync@site.timer loaded active waiting x" ;;'
        " *site.timer) echo ActiveState=active ;; esac",
    )
    assert only("timers", settings, WARNING) == Finding(
        "timers", WARNING, "still polling: gitops-sync@site.timer", "sudo gitops-hook migrate"
    )


def test_a_host_without_systemd_has_no_timers(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no systemd" in only("timers", settings, SKIPPED).message


def test_a_clock_that_is_not_synchronized_is_a_warning(settings, tool):
    tool("timedatectl", "echo yes")
    assert only("clock", settings, OK).message == "the clock is synchronized"
    tool("timedatectl", "exit 1")
    only("clock", settings, SKIPPED)
    tool("systemd-detect-virt", "exit 1")
    tool("timedatectl", 'case "$*" in *CanNTP*) echo yes;; *) echo no;; esac')
    assert only("clock", settings, WARNING).fix == "sudo timedatectl set-ntp true"
    tool("timedatectl", "echo no")
    assert only("clock", settings, WARNING).fix == "sudo apt-get install systemd-timesyncd"
    tool("systemd-detect-virt", "echo docker")
    assert "container" in only("clock", settings, SKIPPED).message


@pytest.mark.fixes("host.clock 1")
def test_a_time_in_the_future_is_a_warning(settings, apply_fix, tool):
    tool("timedatectl", "echo yes")
    tomorrow = time.time() + 86400
    os.utime(settings.root, (tomorrow, tomorrow))
    odd, _ = of("clock", settings)
    assert odd.level == WARNING
    apply_fix(odd.fix)
    only("clock", settings, OK)


# -- checkouts -----------------------------------------------------------------------------------------------------


@pytest.mark.fixes("checkout.origin 1")
def test_the_fix_for_a_missing_origin(settings, apply_fix):
    git("remote", "remove", "origin", cwd=settings.root / "acme/site")
    apply_fix(only("origin", settings, FAILURE).fix)
    only("origin", settings, OK)


@pytest.mark.fixes("checkout.origin 3")
def test_the_fix_for_a_wrong_origin(settings, apply_fix):
    git("remote", "set-url", "origin", "https://example.org/acme/blog.git", cwd=settings.root / "acme/site")
    finding = only("origin", settings, FAILURE)
    assert finding.message == "origin is acme/blog, not acme/site"
    apply_fix(finding.fix)
    only("origin", settings, OK)


def test_an_origin_that_git_rewrites_is_checked_after_rewriting(settings, tmp_path):
    checkout = settings.root / "acme/site"
    git("remote", "set-url", "origin", "forge:", cwd=checkout)
    git("config", f"url.{tmp_path}/forge/acme/site.git.insteadOf", "forge:", cwd=checkout)
    only("origin", settings, OK)


@pytest.mark.fixes("checkout.origin 2")
def test_the_fix_for_a_password_that_others_can_read(settings, apply_fix):
    checkout = settings.root / "acme/site"
    git("remote", "set-url", "origin", "https://ada:hunter2@forge.example/acme/site.git", cwd=checkout)
    well = [finding for finding in of("origin", settings) if finding.level == FAILURE]
    assert len(well) == 1 and "every user of this host can read the password" in well[0].message
    assert "hunter2" not in str(well)
    apply_fix(well[0].fix)
    only("origin", settings, OK)


@pytest.mark.fixes("checkout.branch 1")
def test_the_fix_for_an_unknown_branch(settings, apply_fix):
    checkout = settings.root / "acme/site"
    assert "main, the remote's default" in only("branch", settings, OK).message
    git("remote", "set-head", "origin", "--delete", cwd=checkout)
    apply_fix(only("branch", settings, WARNING).fix)
    only("branch", settings, OK)
    git("config", "gitops.branch", "production", cwd=checkout)
    assert "production" in only("branch", settings, OK).message


def test_an_unreachable_remote_is_a_failure(settings, upstream):
    shutil.rmtree(upstream.bare)
    finding = only("fetch", settings, FAILURE)
    assert finding.message.startswith("unreachable: ")
    assert finding.message.endswith(
        f"cannot be fetched: fatal: '{upstream.bare}' does not appear to be a git repository"
    )
    assert finding.fix.endswith(f"git -C {settings.root}/acme/site fetch origin")


def test_local_changes_are_a_failure(settings, upstream):
    checkout = settings.root / "acme/site"
    (checkout / "README").write_text("mine")
    upstream.commit({"README": "theirs"})
    finding = only("fetch", settings, FAILURE)
    assert finding.message.startswith("dirty: ")
    assert finding.fix == f"sudo -u {pwd.getpwuid(os.geteuid()).pw_name} git -C {checkout} status"


def test_a_message_of_the_remote_is_not_a_fix(settings, script):
    message = "unreachable: site: origin cannot be fetched: ERR no; sudo sh -c 'touch ran'; tried again later"
    finding = only("fetch", settings._replace(sync_script=Path(script(f'echo "{message}"; exit 75'))), FAILURE)
    assert "touch ran" in finding.message
    assert finding.fix.endswith(f"git -C {settings.root}/acme/site fetch origin")


def test_a_current_run_passes(settings):
    with subprocess.Popen(
        ["flock", settings.root / "acme/site/.git/gitops.lock", "bash", "-c", "echo; read -r"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:  # fmt: skip
        assert holder.stdout
        holder.stdout.readline()
        assert only("fetch", settings, SKIPPED).message == "a run is in progress"
        holder.communicate(b"\n")


def test_a_remote_that_does_not_answer_exceeds_the_timeout(settings, script, monkeypatch):
    monkeypatch.setattr(checkout_checks, "FETCH_TIMEOUT", 1)
    finding = only("fetch", settings._replace(sync_script=Path(script("sleep 60"))), FAILURE)
    assert "no answer within 1 s" in finding.message


@pytest.mark.parametrize(
    "command",
    ["", "true", "make -s install", "./deploy.sh", "A=1 B=x/y ./deploy.sh now", "cd .. && true", "{ true; }", "(true)", '"$HOME"/x'],
)  # fmt: skip
def test_a_deploy_program_that_exists_passes(settings, upstream, command):
    checkout = settings.root / "acme/site"
    (checkout / "deploy.sh").write_text("#!/bin/sh\n")
    (checkout / "deploy.sh").chmod(0o755)
    git("config", "gitops.deploy", command, cwd=checkout)
    only("deploy", settings, SKIPPED if command[:1] in ("{", "(", '"') else OK)


@pytest.mark.parametrize("command", ["no-such-program now", "./no-such-script", "X=1 no-such-program"])
def test_a_deploy_program_that_does_not_exist_is_a_failure(settings, command):
    git("config", "gitops.deploy", command, cwd=settings.root / "acme/site")
    assert only("deploy", settings, FAILURE).fix.endswith("config --edit")


@pytest.mark.fixes("checkout.deploy 1")
def test_the_fix_for_a_deploy_program_that_is_not_executable(settings, apply_fix):
    checkout = settings.root / "acme/site"
    (checkout / "deploy.sh").write_text("true\n")
    git("config", "gitops.deploy", "./deploy.sh 'a b'", cwd=checkout)
    apply_fix(only("deploy", settings, FAILURE).fix)
    assert git("config", "gitops.deploy", cwd=checkout) == "bash ./deploy.sh 'a b'"
    only("deploy", settings, OK)


def test_the_names_of_checks_are_unique():
    names = [*doctor.AS_CALLER, *doctor.AS_SERVICE, *doctor.OF_CHECKOUT]
    assert len(names) == len(set(names))


def test_a_check_that_raises_an_error_is_a_failure(settings):
    def broken(settings: Settings) -> Results:
        raise PermissionError(13, "Permission denied", "/x")
        yield

    (finding,) = doctor.run({"broken": broken}, settings)
    assert finding.level == FAILURE
    assert "Permission denied" in finding.message


def test_every_checkout_is_checked(settings, tmp_path):
    Upstream(tmp_path / "forge", "acme/blog").checkout(settings.root, nested=False)
    assert {finding.repository for finding in of("origin", settings)} == {"acme/site", "acme/blog"}
    assert {finding.level for finding in of("origin", settings)} == {OK}
