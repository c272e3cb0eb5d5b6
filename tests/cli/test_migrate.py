"""The migration from timers and its reversal, with a small systemctl that enables units under a test directory.

tests/systemd repeats the migration with a real systemd.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scratch import Upstream, git

from gitops_hook.cli import migrate as migration
from gitops_hook.cli import timers
from gitops_hook.errors import GitopsError

pytestmark = pytest.mark.skipif(not shutil.which("systemctl"), reason="no systemctl on this machine")

#: A systemctl for units below a folder: what is active is a file there, and what a service is made of is another.
SYSTEMCTL = """#!/bin/bash
shift # --no-ask-password
real=(REAL --root=FOLDER)
unit=${!#}
case $1 in
    list-units) cd FOLDER/loaded && printf '%s loaded active waiting x\\n' $unit | grep -v '[*]' ;;
    show)
        if [[ $unit == *.timer ]]; then
            echo "ActiveState=$(test -e "FOLDER/active/$unit" && echo active || echo inactive)"
            echo "UnitFileState=$("${real[@]}" is-enabled "$unit" 2>&1)"
            echo "FragmentPath=FOLDER/etc/systemd/system/gitops-sync@.timer"
            echo "Unit=${unit%.timer}.service"
        else
            cat "FOLDER/services/$unit"
        fi ;;
    enable) "${real[@]}" --quiet enable "$unit" ;;
    start) touch "FOLDER/active/$unit" ;;
    disable) "${real[@]}" --quiet disable "$unit" && rm -f "FOLDER/active/$unit" ;;
    daemon-reload) ;;
    *) echo "what is $*?" >&2; exit 1 ;;
esac
"""


class Host:
    """A host with polling timers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "etc/systemd/system"
        for name in ("loaded", "active", "services", "bin", "etc/systemd/system"):
            (folder / name).mkdir(parents=True)
        program = folder / "bin/systemctl"
        real = str(shutil.which("systemctl"))
        program.write_text(SYSTEMCTL.replace("FOLDER", str(folder)).replace("REAL", real))
        program.chmod(0o755)
        (self.units / "gitops-sync@.timer").write_text(
            "[Timer]\nOnUnitActiveSec=60\n[Install]\nWantedBy=timers.target\n"
        )
        (self.units / "gitops-sync@.service").write_text("[Service]\nExecStart=/usr/bin/gitops_sync.sh %i\n")
        self.path = f"{folder}/bin:{os.environ['PATH']}"

    def add(self, instance: str, command: str = "", folder: str = "") -> str:
        """Create an enabled and active timer, and return the name of its unit."""
        unit = f"gitops-sync@{instance}.timer"
        command = command or f"/usr/bin/gitops_sync.sh {instance}"
        (self.folder / "loaded" / unit).touch()
        (self.folder / "services" / f"gitops-sync@{instance}.service").write_text(
            f"WorkingDirectory={folder}\nExecStart={{ path=/x ; argv[]={command} ; ignore_errors=no ; }}\n"
            f"FragmentPath={self.units}/gitops-sync@.service\n"
        )
        subprocess.run([self.folder / "bin/systemctl", "x", "enable", unit], check=True)
        subprocess.run([self.folder / "bin/systemctl", "x", "start", unit], check=True)
        return unit

    @property
    def enabled(self) -> set[str]:
        return {path.name for path in (self.units / "timers.target.wants").glob("*")}

    @property
    def active(self) -> set[str]:
        return {path.name for path in (self.folder / "active").iterdir()}


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    host = Host(tmp_path / "host")
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("PATH", host.path)
    return host


@pytest.fixture
def migrate(hook, host) -> Callable[..., str]:
    """Return a function that runs the command and returns its output."""
    return lambda *words, status=0: hook("migrate", *words, status=status, PATH=host.path).stdout


def checkout_of(host: Host, root: Path) -> dict[str, str | None]:
    """Return the repository of each timer."""
    return {timer.unit: timer.checkout and timer.checkout.repository for timer in timers.find_timers(root)}


# -- which checkout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", ["site", "SITE", "acme-site", r"acme-si\x74e"])
def test_the_instance_name_identifies_the_checkout(tmp_path, upstream, host, instance):
    upstream.checkout(tmp_path / "root")
    unit = host.add(instance, "/bin/true")
    assert checkout_of(host, tmp_path / "root") == {unit: "acme/site"}


def test_the_service_identifies_the_checkout(tmp_path, upstream, host):
    path = upstream.checkout(tmp_path / "elsewhere")
    folder = host.add("a", "/usr/bin/git pull", str(path))
    option = host.add("b", f"/usr/bin/git -C {path} pull")
    upstream.checkout(tmp_path / "root", nested=False)
    word = host.add("c", "/usr/local/bin/pull site")
    assert checkout_of(host, tmp_path / "root") == {folder: "acme/site", option: "acme/site", word: "acme/site"}


def test_an_escaped_path_identifies_the_checkout(tmp_path, upstream, host):
    path = upstream.checkout(tmp_path / "elsewhere")
    unit = host.add(subprocess.check_output(["systemd-escape", "--path", str(path)], text=True).strip(), "/bin/true")
    assert checkout_of(host, tmp_path / "root") == {unit: "acme/site"}


def test_an_ambiguous_name_identifies_no_checkout(tmp_path, upstream, host):
    upstream.checkout(tmp_path / "root")
    Upstream(tmp_path / "forge", "other/site").checkout(tmp_path / "root")
    unit = host.add("site")
    assert checkout_of(host, tmp_path / "root") == {unit: None}


def test_an_invalid_unit_name_is_rejected(tmp_path, migrate, host):
    for name in ("--root=/", "a b", ""):
        with pytest.raises(GitopsError, match="is not a unit's name"):
            timers.find_timers(tmp_path, name)


def test_the_message_of_systemctl_is_reported(tmp_path, host):
    (host.folder / "bin/systemctl").write_text("#!/bin/sh\necho Access denied >&2; exit 4\n")
    with pytest.raises(GitopsError, match="Access denied"):
        timers.find_timers(tmp_path)
    (host.folder / "bin/systemctl").unlink()
    os.environ["PATH"] = str(host.folder)  # the fixture's monkeypatch puts it back
    with pytest.raises(GitopsError, match=r"systemctl: .*No such file"):
        timers.find_timers(tmp_path)


# -- there and back ------------------------------------------------------------------------------------------------


def test_the_timer_of_a_checkout_under_the_root_is_disabled(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "root")
    unit = host.add("site")
    said = migrate("--dry-run")
    assert said == f"{unit} polls acme/site at {path}\n  disable the timer; from now on, pushes update the checkout\n"
    assert (host.enabled, host.active) == ({unit}, {unit})
    assert not (tmp_path / "state/migrated.json").exists()
    assert migrate() == said
    assert (host.enabled, host.active) == (set(), set())
    assert migrate() == "no timer gitops-sync@ polls a checkout\n"


def test_a_checkout_outside_of_the_root_is_linked(tmp_path, upstream, host, migrate, hook):
    path = upstream.checkout(tmp_path / "elsewhere")
    host.add("a", "/usr/bin/git pull --ff-only", str(path))
    said = migrate()
    link = tmp_path / "root/acme/site"
    assert f"  link {link} to the checkout\n" in said
    assert "everything that `/usr/bin/git pull --ff-only` did after the pull belongs in gitops.deploy" in said
    assert link.resolve() == path
    after = upstream.commit({"a": "b"})
    hook("sync", "acme/site")
    assert git("rev-parse", "HEAD", cwd=path) == after
    hook("doctor", status=2)  # no daemon answers, but git and the script like what they find
    assert "failure  acme/site" not in hook("doctor", status=2).stdout


def test_undo_restores_the_earlier_state(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "elsewhere")
    unit = host.add("a", "/usr/bin/git pull", str(path))
    stopped = host.add("b", "/usr/bin/git pull", str(path))
    (host.folder / "active" / stopped).unlink()
    migrate()
    assert (host.enabled, host.active) == (set(), set())
    assert (
        migrate("--undo", "--dry-run")
        == f"{unit}: restored to its earlier state\n{stopped}: restored to its earlier state\n"
    )
    assert host.active == set()
    migrate("--undo")
    assert (host.enabled, host.active) == ({unit, stopped}, {unit})
    assert not (tmp_path / "root/acme/site").exists()
    assert (path / ".git").is_dir()
    assert not (tmp_path / "state/migrated.json").exists()
    assert migrate("--undo") == ""


def test_an_interrupted_migration_can_be_repeated_and_undone(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "elsewhere")
    unit = host.add("a", "/usr/bin/git pull", str(path))
    program = host.folder / "bin/systemctl"
    whole = program.read_text()
    program.write_text(whole.replace("    disable)", "    disable) exit 1;;\n    never)"))
    assert (tmp_path / "root/acme/site").is_symlink() is False
    migrate(status=69)
    assert (tmp_path / "root/acme/site").is_symlink()
    program.write_text(whole)
    migrate()
    assert host.active == set()
    migrate("--undo")
    assert (host.enabled, host.active) == ({unit}, {unit})
    assert not (tmp_path / "root/acme/site").exists()


def test_unused_unit_files_are_deleted(tmp_path, upstream, host, migrate, monkeypatch):
    monkeypatch.setattr(migration, "OWN_UNITS", host.units)
    upstream.checkout(tmp_path / "root")
    unit, lost = host.add("site"), host.add("lost")
    migrate(status=65)
    record = migration.Record(tmp_path / "state")
    assert migration.removable_files(record, timers.find_timers(tmp_path / "root")) == []
    timers.disable(lost)
    files = migration.removable_files(record, timers.find_timers(tmp_path / "root"))
    assert files == [host.units / "gitops-sync@.service", host.units / "gitops-sync@.timer"]
    migration.remove(files, record)
    assert not any(path.exists() for path in files)
    assert migration.Record(tmp_path / "state").entries == {}
    assert unit not in host.enabled


def test_unit_files_of_a_package_stay(tmp_path, upstream, host, migrate):
    upstream.checkout(tmp_path / "root")
    host.add("site")
    migrate()
    assert migrate("--remove") == ""
    assert (host.units / "gitops-sync@.timer").exists()


# -- what it does not do -------------------------------------------------------------------------------------------


def test_a_timer_without_a_known_checkout_stays(tmp_path, upstream, host, migrate):
    upstream.checkout(tmp_path / "root")
    known, lost = host.add("site"), host.add("lost", "/opt/pull-all")
    said = migrate(status=65)
    assert f"{lost} runs `/opt/pull-all`\n  not migrated: neither its name nor its service identifies" in said
    assert (host.enabled, host.active) == ({lost}, {lost})
    assert known in json.loads((tmp_path / "state/migrated.json").read_text())


def test_a_timer_stays_if_another_checkout_has_the_name(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "elsewhere")
    there = upstream.checkout(tmp_path / "root")
    unit = host.add("a", "/usr/bin/git pull", str(path))
    assert f"not migrated: {there} exists under its name" in migrate(status=65)
    assert host.active == {unit}


@pytest.mark.parametrize("name", ["acme/site", "Acme/Site"])
def test_the_timer_of_a_second_checkout_stays(tmp_path, upstream, host, migrate, name):
    staging, production = upstream.checkout(tmp_path / "staging"), upstream.checkout(tmp_path / "production")
    git("remote", "set-url", "origin", f"https://forge.example/{name}.git", cwd=production)
    host.add("a", "/usr/bin/git pull", str(staging))
    unit = host.add("b", "/usr/bin/git pull", str(production))
    obstacle = (
        f"{unit} polls {name} at {production}\n  not migrated: {staging} is linked under its name; move that checkout"
    )
    assert obstacle in migrate("--dry-run", status=65)
    assert obstacle in migrate(status=65)
    assert (tmp_path / "root/acme/site").resolve() == staging
    assert (host.enabled, host.active) == ({unit}, {unit})


def test_a_checkout_in_a_home_directory_stays(tmp_path, upstream, host, monkeypatch):
    monkeypatch.setattr(migration, "HOMES", (str(tmp_path / "home"),))
    path = upstream.checkout(tmp_path / "home/ada")
    host.add("a", "/usr/bin/git pull", str(path))
    (step,) = migration.plan(timers.find_timers(tmp_path / "root"), tmp_path / "root", path.stat())
    assert "home directories are hidden from the service; mkdir -p" in step.obstacle


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a checkout away")
def test_a_checkout_of_another_user_stays(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "root")
    unit = host.add("site")
    os.chown(path, 65534, 65534)
    assert f"systemctl stop gitops-sync@site.timer, then chown -R root: {path}, and repeat" in migrate(status=65)
    assert host.active == {unit}
    os.chown(path, 0, 0)
    migrate()
    assert host.active == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root acts for another user")
def test_the_service_user_creates_the_link(tmp_path, upstream, host, migrate):
    path = upstream.checkout(tmp_path / "elsewhere")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    for given in (path, tmp_path / "root", tmp_path / "state"):
        os.chown(given, 65534, 65534)
    host.add("a", "/usr/bin/git pull", str(path))
    migrate()
    assert (tmp_path / "root/acme").stat().st_uid == 65534
    assert (tmp_path / "root/acme/site").lstat().st_uid == 65534
    assert (tmp_path / "state/migrated.json").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's record")
def test_a_record_of_another_user_is_rejected(tmp_path, upstream, host, hook):
    record = tmp_path / "state/migrated.json"
    record.write_text('{"evil.timer": {"enabled": true, "active": true, "link": null, "files": []}}')
    os.chown(record, 65534, 65534)
    assert "belongs to another user" in hook("migrate", "--undo", status=77, PATH=host.path).stderr
    record.unlink()
    record.symlink_to("/etc/hostname")
    assert "cannot be read" in hook("migrate", "--undo", status=77, PATH=host.path).stderr
    assert host.active == set()


def test_a_missing_state_directory_is_an_error(tmp_path, upstream, host, hook):
    (tmp_path / "state").rmdir()
    assert "there is no state directory" in hook("migrate", status=66, PATH=host.path).stderr
