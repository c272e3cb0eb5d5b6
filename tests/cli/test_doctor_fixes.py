"""Paste every fix of doctor into a shell, and check that it makes the repair, or prints the facts, that it promises.

`test_every_place_is_pasted` finds the places in the source. test_doctor.py and the tests of a fleet have some of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from disks import fill, small_disk
from findings import of, only
from fixes import declared, other_problems, places
from harness import SOURCE
from private_forge import Sshd, needs_sshd
from scratch import git

from gitops_hook.cli import doctor
from gitops_hook.cli.access import token_source
from gitops_hook.cli.doctor import FAILURE, OK, WARNING
from gitops_hook.cli.doctor import checkout as checkout_checks
from gitops_hook.cli.doctor import fleet as fleet_checks
from gitops_hook.cli.doctor import host as host_checks
from gitops_hook.cli.doctor.finding import Results
from gitops_hook.config import Settings, load
from gitops_hook.errors import ConfigError
from gitops_hook.sync.checkouts import Checkout, Checkouts

Paste = Callable[..., str]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_every_place_is_pasted() -> None:
    assert {place.name for place in places()} == declared()
    assert other_problems() == []


@contextmanager
def as_nobody(*trees: Path) -> Iterator[None]:
    """Become another user, who owns `trees`. The saved user stays root, so that root can continue."""
    for tree in trees:
        for path in (tree, *tree.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    for folder in trees[0].parents:
        if folder.stat().st_mode & 0o55 != 0o55 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o55)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def repair_for_nobody(check: str, tree: Path, settings: Settings, apply_fix: Paste) -> None:
    """Let a check fail for another user, who owns `tree`; paste its fix as root, and see the check succeed."""
    with as_nobody(tree):
        fix = only(check, settings, FAILURE).fix
    apply_fix(fix)
    with as_nobody(tree):
        only(check, settings, OK)


@contextmanager
def server(status: str, body: object, *headers: tuple[str, str]) -> Iterator[str]:
    """Answer requests on loopback with JSON, or with what the function `body` returns for a path; yield the address."""

    class Silent(WSGIRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    def answer(environ, start_response):
        start_response(status, [("Content-Type", "application/json"), *headers])
        return [json.dumps(body(environ["PATH_INFO"]) if callable(body) else body).encode()]

    with make_server("127.0.0.1", 0, answer, handler_class=Silent) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def site(settings: Settings) -> Checkout:
    found = Checkouts(settings.root).find("acme/site")
    assert found
    return found


def calls(tmp_path: Path) -> list[str]:
    """Return the programs that a fix started, with their arguments."""
    return (tmp_path / "calls").read_text().splitlines()


# -- settings and users --------------------------------------------------------------------------------------------


@pytest.mark.fixes("doctor.finding_of_setting 1")
def test_an_invalid_setting(tmp_path: Path, apply_fix: Paste, environ: dict[str, str]) -> None:
    def fix(**wrong: str) -> str:
        with pytest.raises(ConfigError) as raised:
            load({**environ, **wrong}, {})
        return doctor.finding_of_setting(raised.value, wrong).fix

    root, script = tmp_path / "root", tmp_path / "a script"
    apply_fix(fix(GITOPS_ROOT=str(root)))
    assert root.is_dir()
    script.write_text("#!/bin/sh\n")
    apply_fix(fix(GITOPS_SYNC_SCRIPT=str(script)))
    assert os.access(script, os.X_OK)
    apply_fix(fix(GITOPS_LISTEN="here"))
    apply_fix(doctor.finding_of_setting(ConfigError("no", "GITOPS_LISTEN", "here"), {}).fix)
    assert calls(tmp_path) == ["sudoedit /etc/gitops-hook/gitops-hook.env"]


@needs_root
@pytest.mark.fixes("doctor.finding_of_user 1", "host.user 1", "doctor._findings 1")
def test_another_user_than_the_owner_starts_doctor(tmp_path: Path, settings: Settings, apply_fix: Paste) -> None:
    with as_nobody(tmp_path / "bin"):
        found = doctor.finding_of_user(settings.state)
        user = only("user", settings, WARNING)
    assert found

    def broken(settings: Settings) -> Results:
        raise PermissionError(13, "Permission denied", "/x")
        yield

    (error,) = doctor.run({"broken": broken}, settings)
    for finding in (found, user, error):
        assert "can write to" in apply_fix(finding.fix, status=2)  # no daemon runs here


# -- the secret and the token --------------------------------------------------------------------------------------


@pytest.mark.fixes("credentials.secret 1")
def test_a_host_without_a_secret(tmp_path: Path, settings: Settings, apply_fix: Paste) -> None:
    apply_fix(only("secret", settings._replace(webhook_secret=""), FAILURE).fix)
    path = tmp_path / "etc/gitops-hook/webhook-secret"
    only("secret", settings._replace(webhook_secret="", webhook_secret_file=path), OK)
    assert calls(tmp_path) == ["systemctl restart gitops-hook"]


@needs_root
@pytest.mark.fixes("credentials.secret 3", "credentials.token 5")
def test_files_that_only_root_can_read(
    tmp_path: Path, settings: Settings, apply_fix: Paste, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("a-token-that-is-long-enough\n")
    path.chmod(0o600)
    with as_nobody(tmp_path / "bin"):
        secret = only("secret", settings._replace(webhook_secret="", webhook_secret_file=path), WARNING)
        token = only("token", settings._replace(token_file=path), WARNING)
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET", "")
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET_FILE", str(path))
    for finding in (secret, token):
        assert f"secret: {path}: 1 of sufficient length" in apply_fix(finding.fix, status=2)


@pytest.mark.fixes("credentials.secret 4", "credentials._check_secrets 3")
def test_a_secret_that_is_invalid(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    here = settings._replace(webhook_secret="", webhook_secret_file=path)
    path.write_bytes(b"not-utf-8-\xff-and-long-enough\n")
    apply_fix(only("secret", here, FAILURE).fix)
    only("secret", here, OK)
    path.write_text("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAA\n")
    tool("sudoedit", 'echo whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE= > "$1"')
    apply_fix(only("secret", here, WARNING).fix)
    only("secret", here, OK)


@pytest.mark.fixes("credentials.ping 1")
def test_a_daemon_with_an_older_secret(
    tmp_path: Path, settings: Settings, apply_fix: Paste, start_daemon: Callable
) -> None:
    path = tmp_path / "secret"
    daemon = start_daemon()
    listen = settings.listen._replace(port=daemon.port)
    here = settings._replace(listen=listen, webhook_secret="", webhook_secret_file=path)
    path.write_text("a-newer-secret-of-the-file\n")
    apply_fix(only("ping", here, FAILURE).fix)
    assert calls(tmp_path) == ["systemctl restart gitops-hook"]
    daemon.stop()
    daemon = start_daemon(GITHUB_WEBHOOK_SECRET="", GITHUB_WEBHOOK_SECRET_FILE=str(path))
    only("ping", here._replace(listen=listen._replace(port=daemon.port)), OK)


@pytest.mark.fixes("credentials.ping 2", "host.socket 2")
def test_a_daemon_that_cannot_store_deliveries(tmp_path: Path, settings: Settings, apply_fix: Paste) -> None:
    with server("503 Service Unavailable", {"reason": "the journal cannot be written"}) as address:
        here = load(dict(os.environ), {"listen": address})
        for check in ("ping", "socket"):
            apply_fix(only(check, here, FAILURE).fix)
    assert calls(tmp_path) == ["journalctl -u gitops-hook -n 50", "systemctl restart gitops-hook"]


@pytest.mark.fixes("credentials.token 1", "credentials.token 2", "credentials.token 3", "credentials.token 4")
@pytest.mark.fixes("credentials.token 6")
def test_a_token(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    tool("sudoedit", f'echo ghp_valid > "$1"; echo "sudoedit $1" >> {tmp_path}/calls')
    apply_fix(only("token", settings._replace(report=frozenset({"status"})), FAILURE).fix)
    path = tmp_path / "token"
    path.symlink_to("token")  # even root cannot read what leads to itself
    here = settings._replace(token_file=path)
    fix = only("token", here, FAILURE).fix
    path.unlink()
    apply_fix(fix)
    path.chmod(0o644)
    with server("200 OK", {}) as address:
        readable, _ = of("token", here._replace(api_url=f"http://{address}"))
        apply_fix(readable.fix)
        only("token", here._replace(api_url=f"http://{address}"), OK)
    with server("401 Unauthorized", {}) as address:
        apply_fix(only("token", here._replace(api_url=f"http://{address}"), FAILURE).fix)
    with server("502 Bad Gateway", {}) as address:
        fix = only("token", here._replace(api_url=f"http://{address}"), WARNING).fix
        assert "can write to" in apply_fix(fix, status=2)
    edited = [call for call in calls(tmp_path) if call.startswith("sudoedit")]
    assert edited == ["sudoedit /etc/gitops-hook/github-token", f"sudoedit {path}", f"sudoedit {path}"]


# -- access --------------------------------------------------------------------------------------------------------


def use_token(settings: Settings, file: Path) -> None:
    """Let the checkout read a token from `file`."""
    for entry in token_source("https://127.0.0.1/acme/site.git", file).config:
        name, _, value = entry.partition("=")
        git("config", "--add", name, value, cwd=settings.root / "acme/site")


@pytest.mark.fixes("access.access 1")
def test_the_token_of_a_checkout(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    path = tmp_path / "a token"
    path.write_text("token\n")
    path.chmod(0o600)
    use_token(settings, path)
    only("access", settings, OK)
    path.chmod(0o644)
    apply_fix(only("access", settings, FAILURE).fix)
    only("access", settings, OK)
    path.unlink()
    apply_fix(only("access", settings, FAILURE).fix, given="token\n")
    only("access", settings, OK)
    path.write_text("")
    tool("sudoedit", 'echo token > "$1"')
    apply_fix(only("access", settings, FAILURE).fix)
    only("access", settings, OK)


@needs_root
@pytest.mark.fixes("access.access 1")
def test_a_token_of_another_user(tmp_path: Path, settings: Settings, apply_fix: Paste) -> None:
    path = tmp_path / "token"
    path.write_text("token\n")
    path.chmod(0o600)
    use_token(settings, path)
    with as_nobody(settings.root):
        fix = only("access", settings, FAILURE).fix
    apply_fix(fix)
    with as_nobody(settings.root):
        only("access", settings, OK)


@needs_sshd
@pytest.mark.fixes("access._check_key 1", "access._check_key 2", "access._check_key 3", "access._check_key 4")
def test_the_key_of_a_checkout(tmp_path: Path, settings: Settings, apply_fix: Paste, upstream, hook: Callable) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    forge = Sshd(tmp_path / "sshd")
    try:
        words = ["add", "acme/site", "--ssh-key", "--url", forge.url(upstream)]
        key = tmp_path / "state/keys/acme/site/id_ed25519"
        hook(*words, status=75)
        forge.authorize(key.with_suffix(".pub").read_text().strip())
        hook(*words)
        key.with_name("known_hosts").unlink()
        apply_fix(only("access", settings, FAILURE).fix)
        key.chmod(0o644)
        apply_fix(only("access", settings, FAILURE).fix)
        os.chown(key, NOBODY, NOBODY)
        apply_fix(only("access", settings, FAILURE).fix)
        only("access", settings, OK)
        key.unlink()
        fix = only("access", settings, FAILURE).fix
        apply_fix(fix, status=75)  # the forge must accept the new key first
        forge.authorize(key.with_suffix(".pub").read_text().strip())
        apply_fix(fix)
        only("access", settings, OK)
    finally:
        forge.stop()


@pytest.mark.fixes("access.lfs 1", "checkout.polkit 1", "host.programs 1", "host.programs 4")
def test_missing_programs(
    tmp_path: Path, settings: Settings, apply_fix: Paste, upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.commit({".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    git("pull", "--quiet", cwd=settings.root / "acme/site")
    git("config", "gitops.deploy", "systemctl restart app", cwd=settings.root / "acme/site")
    few = tmp_path / "few"
    few.mkdir()
    (few / "git").symlink_to("/usr/bin/git")
    with monkeypatch.context() as alone:
        alone.setenv("PATH", str(few))
        alone.setattr(checkout_checks, "SYSTEMD_IS_INIT", tmp_path)
        lfs = only("lfs", settings, FAILURE).fix
        alone.setattr(os, "geteuid", lambda: NOBODY)  # root needs no polkit
        (polkit,) = [result.fix for result in doctor.OF_CHECKOUT["polkit"](settings, site(settings))]
        programs = [finding.fix for finding in of("programs", settings) if finding.level == FAILURE]
    for fix in (lfs, polkit, *programs):
        apply_fix(fix)
    packages = ["git-lfs", "polkitd", "bash", "--reinstall coreutils util-linux"]
    assert calls(tmp_path) == [f"apt-get install {package}" for package in packages]


# -- checkouts -----------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.fixes("checkout.ownership 1", "checkout.ownership 2", "checkout.ownership 3", "host.journal 1")
def test_the_owner_of_files(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    path = settings.root / "acme/site"
    find = tool("find", "exit 1")
    owner, journal = only("ownership", settings, FAILURE).fix, only("journal", settings, FAILURE).fix
    find.unlink()
    os.chown(path / ".git/HEAD", NOBODY, NOBODY)
    os.chown(settings.state, NOBODY, NOBODY)
    apply_fix(owner)
    apply_fix(journal)
    only("ownership", settings, OK)
    only("journal", settings, OK)
    os.chown(path / ".git/HEAD", NOBODY, NOBODY)
    apply_fix(only("ownership", settings, FAILURE).fix)
    only("ownership", settings, OK)
    path.chmod(0o555)
    repair_for_nobody("ownership", settings.root, settings, apply_fix)


@pytest.mark.fixes("checkout.fetch 2", "checkout.fetch 3", "checkout.fetch 4")
def test_a_remote_and_local_changes(settings: Settings, apply_fix: Paste, upstream, script: Callable[..., str]) -> None:
    away = upstream.bare.with_name("away")
    upstream.bare.rename(away)
    fix = only("fetch", settings, FAILURE).fix
    assert "does not appear to be a git repository" in apply_fix(fix, status=128)  # git's reason
    away.rename(upstream.bare)
    apply_fix(fix)
    only("fetch", settings, OK)
    (settings.root / "acme/site/README").write_text("mine")
    upstream.commit({"README": "theirs"})
    assert "modified:   README" in apply_fix(only("fetch", settings, FAILURE).fix)
    git("checkout", "--quiet", "README", cwd=settings.root / "acme/site")
    fix = only("fetch", settings._replace(sync_script=Path(script("exit 3"))), FAILURE).fix
    assert "updated" in apply_fix(fix)


@pytest.mark.fixes("checkout.deploy 2")
def test_a_deploy_program_that_does_not_exist(
    settings: Settings, apply_fix: Paste, tool: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("config", "gitops.deploy", "./no-such-script", cwd=settings.root / "acme/site")
    monkeypatch.setenv("GIT_EDITOR", str(tool("editor", 'sed -i s,./no-such-script,true, "$1"')))
    apply_fix(only("deploy", settings, FAILURE).fix)
    only("deploy", settings, OK)


# -- the host ------------------------------------------------------------------------------------------------------


@pytest.mark.fixes("host.timers 1", "host.timers 2")
def test_timers(
    tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "SYSTEMD_IS_INIT", tmp_path)
    tool("systemctl", "echo Failed to connect to bus >&2; exit 1")
    assert "Failed to connect" in apply_fix(only("timers", settings, WARNING).fix, status=1)
    unit = "gitops-sync@site.timer"
    tool(
        "systemctl",
        f"""echo "systemctl $*" >> {tmp_path}/calls
        case $* in *list-units*) [[ -e {tmp_path}/off ]] || echo "{unit} loaded active waiting x" ;;
        *disable*) touch {tmp_path}/off ;; *site.timer) echo ActiveState=active ;; esac""",
    )
    apply_fix(only("timers", settings, WARNING).fix)
    assert any("disable" in call and unit in call for call in calls(tmp_path))
    only("timers", settings, OK)


@pytest.mark.fixes("host.clock 2", "fleet.clocks 1")
def test_clocks(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    synchronized = tmp_path / "synchronized"
    answers = (
        f"set-ntp*) touch {synchronized} ;; *CanNTP*) echo yes ;; *) [[ -e {synchronized} ]] && echo yes || echo no"
    )
    tool("timedatectl", f"case $* in {answers} ;; esac")
    tool("systemd-detect-virt", "exit 1")
    apply_fix(only("clock", settings, WARNING).fix)
    only("clock", settings, OK)
    synchronized.unlink()
    tool("timedatectl", "echo no")
    apply_fix(only("clock", settings, WARNING).fix)
    assert calls(tmp_path) == ["apt-get install systemd-timesyncd"]
    tool("timedatectl", f"touch {synchronized}")
    with server("200 OK", {}, ("Date", formatdate(time.time() + 60, usegmt=True))) as address:
        (found,) = fleet_checks.clocks(in_fleet(tmp_path, GITOPS_ETCD=f"http://{address}"))
    apply_fix(found.fix)
    assert synchronized.exists()


@needs_root
@pytest.mark.fixes("host.writable 3")
def test_a_directory_that_cannot_be_written(settings: Settings, apply_fix: Paste) -> None:
    settings.state.chmod(0o500)
    repair_for_nobody("state", settings.state, settings, apply_fix)


@pytest.mark.fixes("host.free_space 1", "host.free_space 2", "host.free_space 3")
def test_disks(tmp_path: Path, settings: Settings, apply_fix: Paste) -> None:
    with small_disk(tmp_path / "disk", "100M") as disk:
        here = settings._replace(state=disk)
        (disk / "big").write_bytes(b"x" * (8 << 20))
        assert "8.0M" in apply_fix(only("disk of the state", here, WARNING).fix)
        fill(disk)
        assert "100M" in apply_fix(only("disk of the state", here, FAILURE).fix)
    with small_disk(tmp_path / "many files", "2G,nr_inodes=4") as disk:
        for name in range(3):
            (disk / str(name)).touch()
        _, full = of("disk of the root", settings._replace(root=disk))
        assert str(disk) in apply_fix(full.fix)


@pytest.mark.fixes("host.script 2")
def test_a_script_with_an_error(settings: Settings, apply_fix: Paste, script: Callable[..., str]) -> None:
    path = script("if true; then")
    fix = only("script", settings._replace(sync_script=Path(path)), FAILURE).fix
    assert "syntax error" in apply_fix(fix, status=2)


@pytest.mark.fixes("host.programs 2", "host.programs 3")
def test_old_programs(
    tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "_MIN_PYTHON", (99,))
    old = tool("git", "echo git version 2.20.1")
    git_fix, python_fix = [finding.fix for finding in of("programs", settings) if finding.level == FAILURE]
    old.unlink()
    apply_fix(git_fix)
    apply_fix(python_fix)
    assert calls(tmp_path) == ["apt-get install --only-upgrade git", "apt-get install python3"]


@pytest.mark.fixes("host.socket 1", "host._no_answer 1", "host._no_answer 2")
def test_the_socket(tmp_path: Path, settings: Settings, apply_fix: Paste, tool: Callable) -> None:
    with server("200 OK", []) as address:
        fix = only("socket", load(dict(os.environ), {"listen": address}), FAILURE).fix
        assert f"{address}" in apply_fix(fix)
    apply_fix(only("socket", settings, FAILURE).fix)
    tool("systemctl", "echo '127.0.0.1:9787 (Stream)'")
    apply_fix(only("socket", settings, FAILURE).fix)
    assert calls(tmp_path)[-2:] == [
        "systemctl start gitops-hook.socket gitops-hook.service",
        "sudoedit /etc/gitops-hook/gitops-hook.env",
    ]


# -- a fleet -------------------------------------------------------------------------------------------------------


def in_fleet(tmp_path: Path, **more: str) -> Settings:
    script = {"GITOPS_ROOT": str(tmp_path), "GITOPS_SYNC_SCRIPT": str(SOURCE / "scripts/gitops_sync.sh")}
    return load({**script, "GITOPS_FLEET": "test", "GITOPS_FLEET_HOST": "a", **more}, {})


@pytest.mark.fixes("fleet.etcd 1", "fleet.etcd 2", "fleet._check_cluster 1", "fleet._member 1")
def test_an_etcd_that_cannot_be_used(tmp_path: Path, apply_fix: Paste, tool: Callable) -> None:
    tool("etcdctl", f'echo "etcdctl $*" >> {tmp_path}/calls')
    (tmp_path / "empty").touch()
    (found,) = fleet_checks.etcd(
        in_fleet(tmp_path, GITOPS_ETCD="https://127.0.0.1:1", GITOPS_ETCD_CA_FILE=f"{tmp_path}/empty")
    )
    apply_fix(found.fix)
    for found in fleet_checks.etcd(in_fleet(tmp_path, GITOPS_ETCD="http://127.0.0.1:1")):
        apply_fix(found.fix)
    edit = "sudoedit /etc/gitops-hook/gitops-hook.env"
    health = "etcdctl --endpoints=http://127.0.0.1:1 endpoint health"
    assert calls(tmp_path) == [edit, health, "systemctl status etcd", edit]


@pytest.mark.fixes("fleet._member 2", "fleet._member 3", "fleet._member 4", "fleet._member 5")
@pytest.mark.fixes("fleet._check_cluster 2")
def test_members_with_problems(tmp_path: Path, apply_fix: Paste, tool: Callable) -> None:
    tool("etcdctl", f'echo "etcdctl ${{*:2}}" >> {tmp_path}/calls; [[ $2 != get ]] || echo \'{{"revision":7}}\'')
    healthy = {"version": "3.5.16", "dbSize": "1000000", "leader": "1"}
    space = ["get --write-out=json x", "compact 7", "defrag", "alarm disarm"]
    for status, alarms, expected in (
        (healthy, [{"alarm": "NOSPACE"}], [f"etcdctl {words}" for words in space]),
        ({**healthy, "dbSize": str(2 << 30)}, [], [f"etcdctl {words}" for words in space]),
        ({**healthy, "leader": "0"}, [], ["systemctl status etcd"]),
        ({**healthy, "version": "3.3.1"}, [], ["apt-get install etcd-server"]),
    ):
        answers = {"/v3/maintenance/status": status, "/v3/maintenance/alarm": {"alarms": alarms}}
        with server("200 OK", lambda path, answers=answers: answers.get(path, {})) as address:
            member, *_ = fleet_checks.etcd(in_fleet(tmp_path, GITOPS_ETCD=f"http://{address}"))
        (tmp_path / "calls").unlink(missing_ok=True)
        apply_fix(member.fix)
        assert calls(tmp_path) == expected
    with (
        server("200 OK", {**healthy, "version": "3.5.1"}) as one,
        server("200 OK", {**healthy, "version": "3.6.0"}) as two,
    ):
        *_, found = fleet_checks.etcd(in_fleet(tmp_path, GITOPS_ETCD=f"http://{one},http://{two}"))
    assert "finish the upgrade" in found.message
    apply_fix(found.fix)
    assert calls(tmp_path)[-1] == "apt-get install etcd-server"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({}, marks=pytest.mark.fixes("certificates.examine 1")),
        pytest.param({"days": "-1"}, marks=pytest.mark.fixes("certificates.examine 2")),
        pytest.param({"subject": "/CN=host"}, marks=pytest.mark.fixes("certificates.examine 3")),
        pytest.param({"usage": "serverAuth"}, marks=pytest.mark.fixes("certificates.examine 4")),
        pytest.param({"days": "9"}, marks=pytest.mark.fixes("certificates.examine 5")),
    ],
)
def test_a_certificate_with_a_problem_gets_a_request_for_another(
    tmp_path: Path, apply_fix: Paste, wrong: dict[str, str]
) -> None:
    certificate, key = tmp_path / "host.crt", tmp_path / "host.key"
    here = in_fleet(tmp_path, GITOPS_ETCD_CERT_FILE=str(certificate), GITOPS_ETCD_KEY_FILE=str(key))

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)

    def sign(days: str, usage: str) -> None:
        (tmp_path / "extensions").write_text(f"extendedKeyUsage={usage}\n")
        openssl(f"x509 -req -in a.csr -signkey host.key -days {days} -extfile extensions -out host.crt")

    openssl("ecparam -genkey -name prime256v1 -out host.key")
    openssl(f"req -new -key host.key -subj {wrong.get('subject', '/O=fleet')} -out a.csr")
    sign(wrong.get("days", "90"), wrong.get("usage", "clientAuth"))
    if not wrong:
        certificate.write_text("x")
    (found,) = fleet_checks.certificate(here)
    apply_fix(found.fix)
    sign("90", "clientAuth")
    (found,) = fleet_checks.certificate(here)
    assert found.level == OK
