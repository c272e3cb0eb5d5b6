"""From real timers to webhooks and back, on a fresh Debian with a real systemd, as docs/migrating.md has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import machine as machines
import pytest
from documents import code_blocks
from harness import SOURCE

pytestmark = pytest.mark.systemd

UNITS = {
    "gitops-sync@.timer": "[Timer]\nOnActiveSec=1s\nOnUnitInactiveSec=1s\nAccuracySec=100ms\n[Install]\nWantedBy=timers.target\n",
    "gitops-sync@.service": "[Service]\nType=oneshot\nUser=gitops-hook\nExecStart=/usr/lib/gitops-hook/scripts/gitops_sync.sh %i\n",
    "gitops-sync@elsewhere.service.d/pull.conf": "[Service]\nWorkingDirectory=/opt/blog\nExecStart=\nExecStart=/usr/bin/git pull --ff-only\n",
}
TIMERS = ("gitops-sync@site.timer", "gitops-sync@elsewhere.timer")


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator:
    machine = machines.boot(tmp_path_factory.mktemp("machine"))
    subprocess.run(
        ["make", "--silent", "install", "PREFIX=/usr", f"DESTDIR={machine.root}", "PYTHON=/usr/bin/python3"],
        cwd=SOURCE,
        check=True,
    )
    machine.run("systemd-sysusers && systemd-tmpfiles --create gitops-hook.conf")
    for name, text in UNITS.items():
        machine.put(f"/etc/systemd/system/{name}", text)
    yield machine
    machine.close()


def heads(machine, path: str) -> str:
    return machine.run(f"su -s /bin/sh gitops-hook -c 'git -C {path} rev-parse HEAD'")


def enabled(machine) -> list[str]:
    return [machine.run(f"systemctl is-enabled {timer}", check=False) for timer in TIMERS]


def active(machine) -> list[str]:
    return [machine.run(f"systemctl is-active {timer}", check=False) for timer in TIMERS]


def test_migration_from_timers_and_back(machine):
    site, blog = machine.upstream("acme/site"), machine.upstream("acme/blog")
    places = {site: "/srv/gitops/site", blog: "/opt/blog"}
    for upstream, path in places.items():
        machine.run(
            f"install -d -o gitops-hook {path} && "
            f"su -s /bin/sh gitops-hook -c 'git clone -q https://github.com/{upstream.repository} {path}'"
        )
    machine.run("systemctl daemon-reload && systemctl enable --quiet --now " + " ".join(TIMERS))

    def polled() -> bool:
        return all(heads(machine, path) == upstream.head() for upstream, path in places.items())

    for upstream in places:
        upstream.commit({"a": "polled"})
    machines.wait_for(polled, "the timers of old do not work")
    assert "still polling: gitops-sync@elsewhere.timer, gitops-sync@site.timer" in machine.run(
        "gitops-hook doctor", check=False
    )

    # The line of each command in the document, without its comment.
    (lines,) = code_blocks("docs/migrating.md", "Migrate", "sh")
    dry_run, migrate, sync, doctor = (line.split("#")[0].strip() for line in lines.splitlines())
    shown = machine.run(dry_run)
    assert "gitops-sync@site.timer polls acme/site at /srv/gitops/site" in shown
    assert (
        "gitops-sync@elsewhere.timer polls acme/blog at /opt/blog\n  link /srv/gitops/acme/blog to the checkout"
        in shown
    )
    assert (enabled(machine), active(machine)) == (["enabled"] * 2, ["active"] * 2)
    assert machine.run(migrate) == shown
    assert (enabled(machine), active(machine)) == (["disabled"] * 2, ["inactive"] * 2)
    assert "no timer polls a checkout" in machine.run(doctor, check=False)

    for upstream in places:
        upstream.commit({"a": "synced"})
    machine.run(sync)
    assert polled()

    # A stopped timer that starts with the host also counts as polling.
    (undo,) = code_blocks("docs/migrating.md", "Undo", "sh")
    machine.run(undo)
    assert (enabled(machine), active(machine)) == (["enabled"] * 2, ["active"] * 2)
    for upstream in places:
        upstream.commit({"a": "polled again"})
    machines.wait_for(polled, "the timers do not work again")
    machine.run(f"systemctl stop {TIMERS[0]}")
    assert "gitops-sync@site.timer polls" in machine.run("gitops-hook migrate")
    assert enabled(machine) == ["disabled"] * 2

    (remove,) = code_blocks("docs/migrating.md", "Delete the units", "sh")
    assert machine.run(remove).splitlines() == [
        "remove /etc/systemd/system/gitops-sync@.service",
        "remove /etc/systemd/system/gitops-sync@.timer",
    ]
    assert machine.run("ls /etc/systemd/system | grep 'gitops-sync@[.]' || true") == ""
    assert machine.run("gitops-hook migrate") == "no timer gitops-sync@ polls a checkout"
    assert machine.run("gitops-hook migrate --undo") == ""
