"""The forms of delivery: an installed tree, a single file, a source tarball, a Debian package."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from harness import SOURCE, Daemon, push
from scratch import Upstream, git

from gitops_hook import __version__


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The tree as it is tracked, apart from where others work on it."""
    if not (SOURCE / ".git").exists():
        pytest.skip("this is no git checkout, and what is packed is what git tracks")
    tree = tmp_path_factory.mktemp("source")
    names = git("ls-files", "-z", cwd=SOURCE).rstrip("\0").split("\0")
    for name in names:
        if (SOURCE / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, tree / name)
    git("init", "--quiet", cwd=tree)
    git("add", "--all", cwd=tree)
    git("commit", "--quiet", "--message", "as it is", cwd=tree)
    return tree


def make(source: Path, *arguments: object, umask: int = 0o022) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *map(str, arguments), f"PYTHON={sys.executable}"],
        cwd=source,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=umask,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def serves_a_push(tmp_path: Path, start_daemon, **options) -> Daemon:
    """A daemon that was started so moves a checkout with the script that came with it, and shows its page."""
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(PYTHONPATH="", GITOPS_DASHBOARD_LISTEN="127.0.0.1:0", **options)
    port = daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1]
    checkout = upstream.checkout(daemon.root)
    after = upstream.commit({"a": "b"})
    daemon.deliver(push("acme/site", after))
    daemon.wait_for("run updated")
    assert git("rev-parse", "HEAD", cwd=checkout) == after
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        page = answer.read()
    assert b"acme/site" in page
    for name in ("page.css", "page.js"):
        assert (SOURCE / "gitops_hook/dashboard" / name).read_bytes() in page
    return daemon


def test_an_installed_tree_runs_without_the_source_and_uninstalls(tmp_path, source, start_daemon):
    staging = tmp_path / "staging"
    make(source, "install", f"DESTDIR={staging}", "PREFIX=/opt/hook", "sysconfdir=/opt/etc")
    program = staging / "opt/hook/bin/gitops-hook"
    assert program.readlink() == Path("../lib/gitops-hook/scripts/gitops-hook")
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd="/")
    assert printed.stdout == f"gitops-hook {__version__}\n"
    unit = (staging / "opt/hook/lib/systemd/system/gitops-hook.service").read_text()
    assert "ExecStart=/opt/hook/bin/gitops-hook serve\n" in unit
    assert "LoadCredential=webhook-secret:/opt/etc/gitops-hook/webhook-secret\n" in unit
    daemon = serves_a_push(tmp_path, start_daemon, program=[str(program)])
    assert daemon.stop() == 0
    contrib = files_below(SOURCE / "contrib")
    assert len(contrib) >= 5
    assert contrib <= files_below(staging / "opt/hook/share/gitops-hook")
    assert os.access(staging / "opt/hook/share/gitops-hook/notify/mail", os.X_OK)
    (staging / "opt/hook/bin/neighbor").touch()
    make(source, "uninstall", f"DESTDIR={staging}", "PREFIX=/opt/hook")
    assert files_below(staging) == {"opt/hook/bin/neighbor"}


def test_the_single_file_contains_its_script(tmp_path, source, start_daemon):
    make(source, "dist")
    program = shutil.copy(source / "dist/gitops-hook.pyz", tmp_path / "gitops-hook")
    daemon = serves_a_push(tmp_path, start_daemon, program=[str(program)])
    (scripts,) = daemon.state.glob("*scripts-*")
    shipped = {str(path.relative_to(SOURCE / "scripts")) for path in (SOURCE / "scripts").rglob("*.sh")}
    assert files_below(scripts) == shipped
    assert daemon.stop() == 0
    (scripts / "gitops_sync.sh").write_text("changed")
    daemon.start()
    assert (scripts / "gitops_sync.sh").read_text() == (SOURCE / "scripts/gitops_sync.sh").read_text()
    assert list(daemon.state.glob("*scripts-*")) == [scripts]


@pytest.mark.slow
def test_a_wheel_in_a_virtual_environment_deploys_a_push(tmp_path, source, start_daemon):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    built = subprocess.run([*pip, "wheel", *options, "--wheel-dir", tmp_path, source], capture_output=True, text=True)
    if built.returncode and re.search("BackendUnavailable|No module named|invalid command 'bdist_wheel'", built.stderr):
        pytest.skip("this Python has no pip, or no setuptools that builds wheels")
    assert built.returncode == 0, built.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    python = tmp_path / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", *options, wheel], check=True, capture_output=True)
    serves_a_push(tmp_path, start_daemon, launcher=[str(python)], program=[str(tmp_path / "venv/bin/gitops-hook")])


def test_a_single_file_that_cannot_unpack_its_script_reports_it(tmp_path, source):
    make(source, "dist")
    (tmp_path / "state").write_text("no folder")
    done = subprocess.run(
        [sys.executable, source / "dist/gitops-hook.pyz", "serve", "--root", tmp_path, "--state", tmp_path / "state"],
        env={"GITHUB_WEBHOOK_SECRET": "x", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert f"from the default is invalid: the scripts cannot be unpacked to {tmp_path}/state/scripts-" in done.stderr


def test_the_single_file_returns_the_exit_statuses(source):
    make(source, "dist")
    assert subprocess.run([source / "dist/gitops-hook.pyz", "nonsense"], capture_output=True).returncode == 64


@pytest.mark.slow
def test_builds_are_reproducible(source):
    targets = ["dist", "deb"] if shutil.which("dpkg-deb") else ["dist"]

    def build(umask: int) -> dict[str, bytes]:
        shutil.rmtree(source / "dist", ignore_errors=True)
        for path in source.rglob("*"):
            os.utime(path, follow_symlinks=False)
        make(source, *targets, umask=umask)
        return {path.name: path.read_bytes() for path in (source / "dist").iterdir()}

    first, second = build(0o022), build(0o077)
    assert first.keys() == second.keys() and len(first) == len(targets) + 1
    assert [name for name in first if first[name] != second[name]] == []


def test_the_tarball_is_the_source_and_builds_itself(tmp_path, source):
    make(source, "dist")
    subprocess.run(["tar", "-xzf", source / f"dist/gitops-hook-{__version__}.tar.gz"], cwd=tmp_path, check=True)
    tree = tmp_path / f"gitops-hook-{__version__}"
    assert files_below(tree) == set(git("ls-files", cwd=source).splitlines())
    make(tree, "install", f"DESTDIR={tmp_path}/staging")
    subprocess.run([tmp_path / "staging/usr/local/bin/gitops-hook", "--version"], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb on this machine")
def test_the_package_has_every_unit_and_keeps_changed_settings(tmp_path, source):
    make(source, "deb")
    package = source / f"dist/gitops-hook_{__version__}_all.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path / "package"], check=True)
    held = files_below(tmp_path / "package")
    for unit in SOURCE.glob("gitops-hook*.*"):
        assert f"usr/lib/systemd/system/{unit.name}" in held
    assert (tmp_path / "package/DEBIAN/conffiles").read_text() == "/etc/gitops-hook/gitops-hook.env\n"
    assert "etc/gitops-hook/webhook-secret" not in held
    assert not [name for name in held if name.endswith(".pyc")]
    launcher = (tmp_path / "package/usr/lib/gitops-hook/scripts/gitops-hook").read_text()
    assert launcher.startswith("#!/usr/bin/python3\n")


@pytest.mark.parametrize("found", [None, "", "chosen\n"], ids=["missing", "empty", "present"])
def test_the_installation_generates_a_secret_unless_there_is_one(tmp_path, found):
    secret = tmp_path / "etc/webhook-secret"
    secret.parent.mkdir()
    if found is not None:
        secret.write_text(found)
    script = (SOURCE / "packaging/deb/postinst").read_text().replace("/etc/gitops-hook", str(secret.parent))
    tools = tmp_path / "tools"  # without effect on this host
    tools.mkdir()
    for name in re.findall(r"systemd-\w+|systemctl|deb-systemd-\w+|py3compile", script):
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to("/bin/true")
    environ = {"PATH": f"{tools}:{os.environ['PATH']}"}
    for _ in range(2):  # the second time is an upgrade
        subprocess.run(["sh", "-c", script, "postinst", "configure"], env=environ, check=True, timeout=60)
        found = found or secret.read_text()
        assert secret.read_text() == found
    assert found == "chosen\n" or (
        re.fullmatch("[0-9a-f]{40}\n", found) and stat.S_IMODE(secret.stat().st_mode) == 0o600
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("lintian"), reason="no lintian on this machine")
def test_lintian_finds_no_error_in_the_package(source):
    make(source, "deb")
    package = source / f"dist/gitops-hook_{__version__}_all.deb"
    done = subprocess.run(["lintian", "--fail-on", "error", package], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("name", ["gitops-hook.service", "gitops-hook-sweep.service"])
def test_the_exposure_is_below_2_and_the_rest_is_explained(name):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=19", SOURCE / name],
        capture_output=True,
        text=True,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250")
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    rest = re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)
    document = (SOURCE / "docs/security.md").read_text().replace(r"\|", "|")
    assert len(rest) > 10
    assert [line for line in rest if f"`{line}`" not in document] == []


def test_the_sweep_ends_before_the_next_one_starts():
    limit = re.search(r"^TimeoutStartSec=(\d+)h$", (SOURCE / "gitops-hook-sweep.service").read_text(), re.MULTILINE)
    timer = (SOURCE / "gitops-hook-sweep.timer").read_text()
    spread = re.search(r"^RandomizedDelaySec=(\d+)h$", timer, re.MULTILINE)
    assert limit and spread and "OnCalendar=daily\n" in timer
    assert int(limit[1]) < 24 - int(spread[1])


def test_the_stop_timeout_is_longer_than_the_drain():
    from gitops_hook.daemon import NOTICE_DEADLINE, REQUESTS_DEADLINE, RUNS_DEADLINE
    from gitops_hook.sync.runner import GRACE

    stop = re.search(r"^TimeoutStopSec=(\d+)$", (SOURCE / "gitops-hook.service").read_text(), re.MULTILINE)
    assert stop
    assert int(stop[1]) > REQUESTS_DEADLINE + RUNS_DEADLINE + GRACE + 2 + NOTICE_DEADLINE


def test_the_sweep_has_the_sandbox_of_the_daemon():
    def confinement(name: str) -> set[str]:
        lines = (SOURCE / name).read_text().splitlines()
        return {line for line in lines if re.match("Protect|Private|Restrict[ARN]|Remove|System|Lock|NoNew|Cap|Mem|Tasks|OOM|Limit", line)}  # fmt: skip

    daemon = {line for line in confinement("gitops-hook.service") if not line.startswith("RestartP")}
    assert len(daemon) > 20
    assert confinement("gitops-hook-sweep.service") == daemon
