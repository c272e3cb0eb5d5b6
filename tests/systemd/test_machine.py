"""The promises of the documents to operators, on a fresh Debian with a real systemd.

One machine lives through the tests in their order: installed by the README's own words, used, hurt, upgraded, purged.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from documents import code_blocks
from machine import Machine, boot, package, wait_for
from memory import MANY_PROCESSES
from scratch import Upstream

pytestmark = pytest.mark.systemd

CHECKOUT = "/srv/gitops/acme/site"
#: As an upgrade's version: above any that is released.
LATER = "999.0"


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    machine = boot(tmp_path_factory.mktemp("machine"))
    yield machine
    print(machine.log())
    machine.close()


@pytest.fixture(scope="module")
def upstream(machine: Machine) -> Upstream:
    upstream = machine.upstream("acme/site")
    upstream.commit({"deploy.sh": "git log -1 --format=%s > /srv/gitops/live\n"})
    return upstream


@pytest.fixture(scope="module")
def secret(machine: Machine) -> str:
    return (machine.root / "etc/gitops-hook/webhook-secret").read_text().strip()


def head(machine: Machine, checkout: str = CHECKOUT) -> str:
    return (machine.root / checkout.lstrip("/") / ".git/refs/heads/main").read_text().strip()


def config(machine: Machine, settings: str, checkout: str = CHECKOUT) -> None:
    machine.run(f"su -s /bin/sh gitops-hook -c 'git -C {checkout} config {settings}'")


def push(machine: Machine, upstream: Upstream, secret: str, message: str = "work") -> str:
    """Push a commit to the forge, and deliver its webhook."""
    after = upstream.commit({"news": message}, message)
    assert machine.deliver(upstream.repository, after, secret=secret) == {"202": 1}
    return after


def restarts(machine: Machine) -> int:
    return int(machine.show("NRestarts"))


def outcomes(machine: Machine, delivered: str) -> list[str]:
    """Return the outcomes of the runs that served the delivery of a commit."""
    sql = "SELECT outcome FROM runs WHERE id IN (SELECT run FROM deliveries WHERE after = ?) AND outcome IS NOT NULL"
    return [outcome for (outcome,) in machine.query(sql, delivered)]


def serves(machine: Machine, delivered: str) -> bool:
    """Return whether a commit was deployed and its delivery settled, by its own run or by the daemon's first sweep."""
    return head(machine) == delivered and outcomes(machine, delivered) in (["updated"], ["unchanged"])


def has_looked(machine: Machine) -> bool:
    """Return whether the daemon has finished its first sweep."""
    began = time.time() - time.monotonic() + int(machine.show("ExecMainStartTimestampMonotonic")) / 1e6
    sql = "SELECT 1 FROM runs WHERE trigger = 'sweep' AND started > ? AND outcome IS NOT NULL"
    return bool(machine.query(sql, began))


@contextmanager
def drop_in(machine: Machine, text: str, unit: str = "gitops-hook.service") -> Iterator[None]:
    """Add a drop-in to a unit during the block. The caller restarts the unit."""
    folder = f"/etc/systemd/system/{unit}.d"
    machine.put(f"{folder}/test.conf", text)
    machine.run("systemctl daemon-reload")
    try:
        yield
    finally:
        machine.run(f"rm -r {folder}; systemctl daemon-reload")


# -- installed ----------------------------------------------------------------------------------------------------------


def test_the_install_section_of_the_readme_word_for_word_brings_up_a_daemon(machine, upstream, tmp_path):
    shutil.copy(package(tmp_path), machine.root / "root")
    (commands,) = code_blocks("README.md", "Install", "sh")
    shown = machine.run("set -e\n" + commands)
    assert machine.show("ActiveState") == "active"
    assert shown.splitlines()[-1] == (machine.root / "etc/gitops-hook/webhook-secret").read_text().strip()


def test_units_that_must_survive_a_reboot_are_enabled(machine):
    for unit in (
        "gitops-hook.service",
        "gitops-hook.socket",
        "gitops-hook-dashboard.socket",
        "gitops-hook-sweep.timer",
    ):
        assert machine.run(f"systemctl is-enabled {unit}") == "enabled"
    assert machine.show("Triggers", "gitops-hook-sweep.timer") == "gitops-hook-sweep.service"


def test_a_signed_push_updates_the_checkout_deploys_and_is_recorded(machine, upstream, secret):
    after = push(machine, upstream, secret, "Say hello")
    wait_for(lambda: outcomes(machine, after) == ["updated"], "the run did not end as it should")
    assert head(machine) == after
    assert (machine.root / "srv/gitops/live").read_text() == "Say hello\n"
    assert re.search(rf"run updated repository=acme/site .*trigger=push .*commit={after}", machine.log())


def test_root_s_shell_uses_the_daemon_s_journal_and_settings(machine, upstream):
    assert re.search(r"^acme/site +in sync ", machine.run("gitops-hook status"), re.MULTILINE)
    assert machine.run("gitops-hook send acme/site").startswith('202 {"status": "queued"')
    assert "unchanged" in machine.run("gitops-hook sync acme/site")


def test_the_documented_call_of_the_api_prints_the_repositories(machine, upstream):
    (call,) = code_blocks("docs/api.md", "The JSON API", "sh")
    assert [repository["repository"] for repository in json.loads(machine.run(call))["repositories"]] == ["acme/site"]


def test_a_push_signed_with_another_secret_is_refused(machine, upstream):
    assert machine.deliver("acme/site", upstream.head(), secret="another") == {"401": 1}


def test_a_reload_updates_the_status_line(machine):
    machine.run("systemctl reload gitops-hook")
    wait_for(lambda: machine.show("StatusText").startswith("checkouts: 1, running: 0"), "it does not")


def test_the_private_page_is_served_from_a_socket_of_its_own_unless_that_is_masked(machine):
    look = "curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:8788/"
    assert machine.run(look) == "200"
    with drop_in(machine, "[Service]\nEnvironment=GITOPS_DASHBOARD_LISTEN=\n"):
        machine.run("systemctl mask --now gitops-hook-dashboard.socket; systemctl restart gitops-hook")
        assert "Failed to connect" in machine.run(look, check=False)
        machine.run("systemctl unmask gitops-hook-dashboard.socket")
    machine.run("systemctl restart gitops-hook")
    assert machine.run(look) == "200"


def test_the_secret_is_root_s_and_in_no_environment_argument_or_log(machine, secret):
    assert machine.run("stat -c '%U %a' /etc/gitops-hook/webhook-secret") == "root 600"
    pid = machine.show("MainPID")
    assert secret not in machine.run(f"tr '\\0' '\\n' < /proc/{pid}/environ; tr '\\0' '\\n' < /proc/{pid}/cmdline")
    assert secret not in machine.log()
    assert secret not in machine.run("systemctl show gitops-hook; systemctl status gitops-hook")


def test_the_token_is_optional_and_private(machine):
    credential = "/run/credentials/gitops-hook.service/github-token"
    assert machine.run(f"cat {credential}") == ""  # the daemon runs without, so the file is not needed
    machine.run("umask 077; echo a-token-for-the-forge > /etc/gitops-hook/github-token; systemctl restart gitops-hook")
    assert machine.run(f"cat {credential}") == "a-token-for-the-forge"
    assert "does not answer" in machine.run("gitops-hook hooks acme/site", check=False)  # root reads it where it lies
    closed = machine.run(f"su -s /bin/sh nobody -c 'cat {credential} /etc/gitops-hook/github-token'", check=False)
    assert closed.count("Permission denied") == 2
    sweep = machine.run("systemctl start gitops-hook-sweep; systemctl show --value --property Result gitops-hook-sweep")
    assert sweep == "success"  # the sweep has it too; that the forge is out of reach is no fault of it
    machine.run("rm /etc/gitops-hook/github-token; systemctl restart gitops-hook")
    assert machine.show("ActiveState") == "active"
    assert "a-token-for-the-forge" not in machine.log() + machine.log("gitops-hook-sweep")


def test_lines_in_the_log_bear_their_priorities(machine):
    assert "run updated" in machine.run("journalctl -u gitops-hook --priority=info..info")
    assert "run updated" not in machine.run("journalctl -u gitops-hook --priority=warning")


@pytest.mark.parametrize("unit", ["gitops-hook.service", "gitops-hook-sweep.service"])
def test_systemd_rates_the_exposure_below_2(machine, unit):
    exposure = re.search(r"exposure level for .*: ([\d.]+)", machine.run(f"systemd-analyze security --no-pager {unit}"))
    assert exposure
    assert float(exposure[1]) < 2.0


def test_no_unit_has_a_line_that_systemd_does_not_understand(machine):
    assert machine.run("systemd-analyze verify --man=no /usr/lib/systemd/system/gitops-hook*") == ""


# -- hurt ---------------------------------------------------------------------------------------------------------------


def test_a_killed_daemon_is_restarted(machine, upstream, secret):
    before = restarts(machine)
    machine.run("systemctl kill --kill-who=main --signal=KILL gitops-hook")
    after = push(machine, upstream, secret, "after a kill")  # at once: the socket's line holds it
    wait_for(lambda: serves(machine, after), "it does not serve")
    assert restarts(machine) == before + 1


def test_a_hung_daemon_is_killed_by_the_watchdog_and_restarted(machine, upstream, secret):
    # Hangs for the first connection of its life, and once only.
    machine.put(
        "/usr/local/lib/hangs.py",
        "import pathlib, sys, threading\n"
        "sys.path.insert(0, '/usr/lib/gitops-hook')\n"
        "from gitops_hook import main_loop\n"
        "from gitops_hook.cli.main import main\n"
        "from gitops_hook.httpd import server\n"
        "main_loop._ACCEPT_LIMIT = 1.0\n"
        "serve = server.Server.process_request\n"
        "def hang_once(self, *arguments):\n"
        "    mark = pathlib.Path('/var/lib/gitops-hook/hung')\n"
        "    if self.name != 'webhook' or mark.exists():\n"
        "        return serve(self, *arguments)\n"
        "    mark.touch()\n"
        "    threading.Event().wait()\n"
        "server.Server.process_request = hang_once\n"
        "sys.exit(main(['serve']))\n",
    )
    hangs = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/hangs.py\nWatchdogSec=3\n"
    with drop_in(machine, hangs):
        machine.run("systemctl restart gitops-hook")
        before = restarts(machine)
        after = upstream.commit({"news": "after a hang"})
        machine.deliver("acme/site", after, secret=secret)  # it meets the hang; a forge would show it as failed
        wait_for(lambda: restarts(machine) == before + 1, "the watchdog did not bite")
        log = machine.log()
        assert "Watchdog timeout" in log
        assert "a server accepts no connections; the watchdog is not notified" in log
        assert "in hang_once" in log
        assert machine.deliver("acme/site", after, secret=secret) == {"202": 1}
        wait_for(lambda: serves(machine, after), "it does not serve")


@pytest.mark.parametrize("deploy", ["tail /dev/zero", "exec python3 exhaust.py"], ids=["one process", "many"])
def test_a_deploy_that_exhausts_the_memory_dies_before_the_daemon(machine, upstream, secret, deploy):
    """The kernel alone chooses the process. Without the scores of runs, it would choose the daemon before small ones."""
    config(machine, f'gitops.deploy "{deploy}"')
    machine.run("systemctl restart gitops-hook")
    wait_for(lambda: has_looked(machine), "it does not look")
    before = machine.show("MainPID"), restarts(machine)
    with machine.memory_limit(128 << 20) as count_kills:
        after = upstream.commit({"exhaust.py": MANY_PROCESSES, "news": deploy})
        assert machine.deliver(upstream.repository, after, secret=secret) == {"202": 1}
        wait_for(lambda: outcomes(machine, after), "the run does not end")
        assert count_kills() > 0
        assert (machine.show("MainPID"), restarts(machine)) == before
        assert outcomes(machine, after) == ["deploy-failed"]
    config(machine, 'gitops.deploy "sh deploy.sh"')
    machine.run("systemctl restart gitops-hook")
    wait_for(lambda: has_looked(machine), "it does not look")


def test_a_drain_longer_than_the_watchdog_interval_is_not_killed(machine, upstream, secret):
    with drop_in(machine, "[Service]\nWatchdogSec=3\n"):
        config(machine, 'gitops.deploy "sleep 7"')
        machine.run("systemctl restart gitops-hook")
        after = push(machine, upstream, secret)
        wait_for(lambda: machine.query("SELECT 1 FROM runs WHERE outcome IS NULL"), "no run begins")
        machine.run("systemctl stop 'gitops-hook*.socket' gitops-hook")
        assert machine.show("Result") == "success"
        assert "updated" in [outcome for (outcome,) in machine.query("SELECT outcome FROM runs WHERE after = ?", after)]
    config(machine, 'gitops.deploy "sh deploy.sh"')
    machine.run("systemctl start gitops-hook")


def test_ten_restarts_during_2000_deliveries_lose_none(machine, upstream, secret):
    after = upstream.commit({"news": "under load"})
    with machine.delivering("acme/site", after, secret, 2000, 100) as answers:
        for _ in range(10):
            machine.run("sleep 0.7; systemctl restart gitops-hook")
        assert answers() == {"202": 2000}
    assert machine.query("SELECT count(*) FROM deliveries WHERE after = ?", after) == [(2000,)]
    wait_for(lambda: machine.query("SELECT count(*) FROM deliveries WHERE pending") == [(0,)], "something is owed")
    assert head(machine) == after


def test_the_secret_is_rotated_as_the_documents_say_and_no_delivery_missed(machine, upstream, secret):
    after = upstream.head()
    first, last = code_blocks("docs/operations.md", "Rotating the secret", "sh")
    with machine.delivering("acme/site", after, secret, 300, 100) as answers:
        new = machine.run("set -e\n" + first).splitlines()[-1]
        assert answers() == {"202": 300}
    assert new != secret
    with machine.delivering("acme/site", after, new, 300, 100) as answers:
        machine.run("set -e\n" + last)
        assert answers() == {"202": 300}
    assert machine.deliver("acme/site", after, secret=secret) == {"401": 1}
    machine.put("/etc/gitops-hook/webhook-secret", f"{secret}\n", 0o600)
    machine.run("systemctl restart gitops-hook")
    wait_for(lambda: has_looked(machine), "it does not look")


# -- deploys that reach for the system ----------------------------------------------------------------------------------


def test_a_deploy_may_not_restart_a_unit_unless_it_was_granted(machine, upstream, secret):
    config(machine, 'gitops.deploy "systemctl --no-block restart gitops-hook"')
    started = machine.show("ExecMainStartTimestampMonotonic")
    after = push(machine, upstream, secret)
    wait_for(lambda: outcomes(machine, after) == ["deploy-failed"], "it was not refused")
    assert machine.show("ExecMainStartTimestampMonotonic") == started
    wait_for(lambda: "acme/site, deploy-failed" in machine.show("StatusText"), "the status does not name the failure")


def test_a_deploy_that_restarts_the_daemon_ends_recorded_and_does_not_loop(machine, upstream, secret):
    (rule,) = code_blocks("docs/operations.md", "Deploys that restart a unit", "js")
    machine.put("/etc/polkit-1/rules.d/50-gitops-hook.rules", rule)
    machine.run("systemctl restart polkit")  # it would see the new rule by itself, soon
    started = machine.show("ExecMainStartTimestampMonotonic")
    after = push(machine, upstream, secret)
    wait_for(lambda: outcomes(machine, after) == ["updated"], "it was not recorded as done")
    wait_for(lambda: machine.show("ExecMainStartTimestampMonotonic") != started, "it was not restarted")
    once = machine.show("ExecMainStartTimestampMonotonic")
    wait_for(lambda: "listening" in machine.run("journalctl -o cat -u gitops-hook _PID=$(systemctl show --value -p MainPID gitops-hook)"), "it does not listen")  # fmt: skip
    wait_for(lambda: machine.query("SELECT outcome FROM runs ORDER BY id DESC LIMIT 1") == [("unchanged",)], "no sweep")
    assert machine.show("ExecMainStartTimestampMonotonic") == once


def test_a_deploy_that_waits_for_the_daemon_s_restart_is_delayed_from_the_second_try(machine, upstream, secret):
    config(machine, 'gitops.deploy "systemctl restart gitops-hook"')
    after = upstream.commit({"news": "restarts"})
    stops = machine.log().count("stopping signal")
    machine.deliver("acme/site", after, secret=secret)
    for times in (1, 2):
        wait_for(lambda times=times: machine.log().count("stopping signal") == stops + times, f"no stop {times}")
        # A second SIGTERM spares this test the minute that the drain gives a run.
        machine.run("sleep 0.5; systemctl kill --kill-who=main --signal=TERM gitops-hook")
    wait_for(lambda: "the daemon's shutdown ended the last runs, so the next is delayed" in machine.log(), "no delay")
    last_two = machine.query("SELECT outcome, cause FROM runs ORDER BY id DESC LIMIT 2")
    assert last_two == [("interrupted", "shutdown")] * 2
    assert machine.query("SELECT count(*) FROM deliveries WHERE pending") == [(1,)]
    config(machine, 'gitops.deploy "sh deploy.sh"')
    after = push(machine, upstream, secret, "heeds the advice")
    wait_for(lambda: outcomes(machine, after) == ["updated"], "the next push is not served")
    assert machine.query("SELECT count(*) FROM deliveries WHERE pending") == [(0,)]


#: Needs docker's group, must have no terminal, and records what started it.
NEEDS_GROUP = """\
set -e
cat /srv/for-docker
if (: </dev/tty) 2>/dev/null; then echo 'there is a terminal'; exit 1; fi
echo "$GITOPS_EVENT" >>/srv/gitops/seen
"""


def on_a_terminal(machine: Machine, command: str) -> None:
    """Run a command as an operator does, on a terminal. Fails with its output unless it exits 0."""
    machine.run(f"script --quiet --return --command '{command}' /dev/null </dev/null")


def test_a_deploy_that_needs_a_group_of_the_unit_works_however_it_is_started(machine, upstream, secret):
    (text,) = code_blocks("docs/operations.md", "Deploys that need docker", "ini")
    path = re.search(r"/etc/systemd/system/\S+\.conf", text)
    assert path
    machine.run("groupadd --system docker && install -m 640 -g docker /dev/null /srv/for-docker")
    upstream.commit({"needs-group.sh": NEEDS_GROUP})
    config(machine, 'gitops.deploy "sh needs-group.sh"')
    after = push(machine, upstream, secret)
    wait_for(lambda: outcomes(machine, after) == ["deploy-failed"], "the group is not needed")
    machine.put(path[0], text)
    machine.run("systemctl daemon-reload && systemctl restart gitops-hook")
    assert machine.show("SupplementaryGroups") == machine.show("SupplementaryGroups", "gitops-hook-sweep") == "docker"
    wait_for(lambda: has_looked(machine), "it does not look")
    machine.run("rm -f /srv/gitops/seen")

    after = push(machine, upstream, secret, "by push")
    wait_for(lambda: serves(machine, after), "it does not serve")
    other = machine.upstream("acme/other")
    other.commit({"needs-group.sh": NEEDS_GROUP})
    on_a_terminal(machine, 'gitops-hook add acme/other --deploy "sh needs-group.sh"')
    upstream.commit({"news": "by sync"})
    on_a_terminal(machine, "gitops-hook sync acme/site")
    on_a_terminal(machine, "gitops-hook pause acme/site")
    upstream.commit({"news": "by resume"})
    on_a_terminal(machine, "gitops-hook resume acme/site")
    upstream.commit({"news": "by sweep"})
    machine.run("systemctl start gitops-hook-sweep")

    machine.run("systemctl stop 'gitops-hook*.socket' gitops-hook")
    upstream.commit({"news": "by sync without a daemon"})
    on_a_terminal(machine, "gitops-hook sync acme/site")
    upstream.commit({"news": "by sweep without a daemon"})
    machine.run("systemctl start gitops-hook-sweep")
    machine.run("rm -r /srv/gitops/acme/other")
    seen = (machine.root / "srv/gitops/seen").read_text().split()
    assert seen == ["push", "add", "manual", "resume", "sweep", "manual", "sweep"]
    assert head(machine) == upstream.head()
    config(machine, 'gitops.deploy "sh deploy.sh"')
    machine.run(f"rm -r {Path(path[0]).parent}; systemctl daemon-reload; systemctl start gitops-hook")


def test_the_socket_may_be_elsewhere(machine):
    (text,) = code_blocks("docs/operations.md", "The socket", "ini")
    (then,) = code_blocks("docs/operations.md", "The socket", "sh")
    settings = "/etc/gitops-hook/gitops-hook.env"
    machine.run(f"cp {settings} /root/before.env")
    with drop_in(machine, text, "gitops-hook.socket"):
        machine.run(then)
        assert machine.run("curl -sS http://127.0.0.1:9787/healthz") == '{"status": "ok"}'
        assert "socket: the daemon answers at 127.0.0.1:9787" in machine.run("gitops-hook doctor || true")
        machine.run("gitops-hook send acme/site")
    machine.run(f"cp /root/before.env {settings}")
    machine.run(then.splitlines()[-1])


# -- over time ----------------------------------------------------------------------------------------------------------


def test_the_timer_finds_a_push_without_a_webhook(machine, upstream):
    if "sync" not in machine.run("gitops-hook --help"):
        pytest.skip("this gitops-hook has no `sync` yet")
    after = upstream.commit({"news": "untold"})
    # Simulate a host that was off for two days, without the random delay of the timer.
    with drop_in(machine, "[Timer]\nRandomizedDelaySec=0\n", "gitops-hook-sweep.timer"):
        machine.run("systemctl stop gitops-hook-sweep.timer")
        machine.run("touch -d '2 days ago' /var/lib/systemd/timers/stamp-gitops-hook-sweep.timer")
        machine.run("systemctl start gitops-hook-sweep.timer")
        wait_for(lambda: head(machine) == after, "it was not found")
        wait_for(lambda: machine.show("ActiveState", "gitops-hook-sweep") == "inactive", "the sweep does not end")
        assert machine.show("Result", "gitops-hook-sweep") == "success"


def test_an_upgrade_under_load_loses_nothing_and_keeps_settings_and_journal(machine, upstream, secret, tmp_path):
    machine.run("echo GITOPS_MAX_SYNCS=3 >> /etc/gitops-hook/gitops-hook.env")
    machine.run("chmod 0750 /srv/gitops")
    settings = (machine.root / "etc/gitops-hook/gitops-hook.env").read_text()
    shutil.copy(package(tmp_path, LATER), machine.root / "root")
    (runs,) = machine.query("SELECT count(*) FROM runs")[0]
    after = upstream.commit({"news": "upgraded"})
    with machine.delivering("acme/site", after, secret, 500, 100) as answers:
        machine.run(f"apt-get install --yes ./gitops-hook_{LATER}_all.deb")
        assert answers() == {"202": 500}
    assert machine.query("SELECT count(*) FROM deliveries WHERE after = ?", after) == [(500,)]
    assert f"version={LATER}" in machine.log()
    assert machine.query("SELECT count(*) FROM runs")[0][0] > runs
    assert (machine.root / "etc/gitops-hook/gitops-hook.env").read_text() == settings
    assert (machine.root / "etc/gitops-hook/webhook-secret").read_text().strip() == secret
    wait_for(lambda: head(machine) == after, "it does not serve")
    assert machine.run("stat -c '%a %U' /srv/gitops") == "750 gitops-hook"


def test_removed_it_keeps_settings_secret_and_journal_and_installed_again_it_goes_on(machine, upstream, secret):
    machine.run("apt-get remove --yes gitops-hook")
    assert not (machine.root / "usr/lib/gitops-hook").exists()
    runs = machine.query("SELECT count(*) FROM runs")
    machine.run(f"apt-get install --yes ./gitops-hook_{LATER}_all.deb")
    after = push(machine, upstream, secret, "installed again")
    wait_for(lambda: serves(machine, after), "it does not serve")
    assert "GITOPS_MAX_SYNCS=3" in (machine.root / "etc/gitops-hook/gitops-hook.env").read_text()
    assert machine.query("SELECT count(*) FROM runs") > runs


def test_purged_it_leaves_the_checkouts_and_their_owner_alone(machine):
    machine.run("apt-get purge --yes gitops-hook")
    left = machine.run(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /srv/gitops -o -path /var/log \\) -prune"
        " -o -iname '*gitops*' -print"
    )
    # This test added this file by hand, as an operator would.
    assert left.splitlines() == ["/etc/polkit-1/rules.d/50-gitops-hook.rules"]
    assert (machine.root / CHECKOUT.lstrip("/") / ".git").is_dir()
    assert machine.run("stat -c %U /srv/gitops/acme/site") == "gitops-hook"
    # Not --all: systemd may keep the name of a stopped unit whose file is gone ("not-found inactive dead") for a while.
    assert machine.run("systemctl list-units --plain --no-legend 'gitops*'") == ""
    assert machine.run("systemctl list-unit-files --no-legend 'gitops*'", check=False) == ""


def test_the_documented_commands_install_and_uninstall_the_tarball(machine, upstream, tmp_path):
    tree = package(tmp_path).parent.parent
    shutil.copytree(tree, machine.root / "root/source", ignore=shutil.ignore_patterns("build", "dist"))
    (commands,) = code_blocks("docs/operations.md", "Installing", "sh")
    machine.run("set -e\n" + commands, cwd="/root/source")
    secret = (machine.root / "etc/gitops-hook/webhook-secret").read_text().strip()
    after = push(machine, upstream, secret, "from the tarball")
    wait_for(lambda: serves(machine, after), "it does not serve")
    commands, delete_the_rest = code_blocks("docs/operations.md", "Uninstalling", "sh")
    machine.run("set -e\n" + commands, cwd="/root/source")
    assert machine.run("find /usr/local -iname '*gitops*'") == ""
    assert (machine.root / CHECKOUT.lstrip("/") / ".git").is_dir()
    machine.run("set -e\n" + delete_the_rest)
    assert not (machine.root / CHECKOUT.lstrip("/")).exists()
    assert "no such user" in machine.run("id gitops-hook", check=False)
