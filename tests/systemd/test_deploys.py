"""The recipes of docs/deploys.md on a fresh Debian, with the commands of the document only."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from documents import code_blocks
from machine import Machine, boot, package, wait_for
from scratch import Upstream

pytestmark = pytest.mark.systemd

APP = """\
import os, signal, socket, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = open("/srv/gitops/acme/app/page").read().encode() + os.environ.get("VERSION", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
# `shutdown` waits for the current request, in a thread because the main thread serves it.
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""
MIGRATE = '[[ $(cat page) != bad ]] && echo "$(cat page)" >> "$DATABASE"\n'


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    machine = boot(folder)
    (folder / "package").mkdir()
    shutil.copy(package(folder / "package"), machine.root / "root")
    machine.run("apt-get install --yes ./gitops-hook_*_all.deb")
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def upstream(machine: Machine) -> Upstream:
    upstream = machine.upstream("acme/app")
    (publish,) = code_blocks("docs/deploys.md", "A static site", "bash")
    upstream.commit({"app.py": APP, "publish.sh": publish, "migrate.sh": MIGRATE, "page": "first"})
    machine.run("gitops-hook add acme/app")
    for unit in code_blocks("docs/deploys.md", "Zero downtime with a socket unit", "ini"):
        machine.put(unit.split()[1], unit)
    (commands,) = code_blocks("docs/deploys.md", "Zero downtime with a socket unit", "sh")
    machine.run("set -e\n" + commands)
    (rule,) = code_blocks("docs/deploys.md", "Restart or reload a unit", "js")
    machine.put(rule.split()[1], rule)
    machine.run("systemctl restart polkit")
    return upstream


def deploy(machine: Machine, upstream: Upstream, page: str) -> str:
    """Push a page, deliver its webhook, and return the outcome of its run."""
    after = upstream.commit({"page": page}, page)
    secret = (machine.root / "etc/gitops-hook/webhook-secret").read_text().split()[0]
    assert machine.deliver(upstream.repository, after, secret=secret) == {"202": 1}
    sql = "SELECT outcome FROM runs JOIN deliveries ON run = runs.id WHERE deliveries.after = ? AND outcome NOTNULL"
    wait_for(lambda: machine.query(sql, after), "the run does not end")
    return str(machine.query(sql, after)[0][0])


def served(machine: Machine) -> str:
    return machine.run("curl -sS http://127.0.0.1:9000/")


def test_a_deploy_sees_the_documented_environment(machine: Machine, upstream: Upstream) -> None:
    command = """\
        exec > /srv/gitops/seen; id -un; pwd; echo "$HOME"; umask; readlink /proc/self/fd/0; echo "$PATH"
        (: < /dev/tty) 2>/dev/null || echo no terminal; touch /etc/x 2>/dev/null || echo read-only
        env | grep -o "^GITOPS_[A-Z]*" | sort | tr "\\n" " " """
    machine.run(f"gitops-hook config acme/app deploy '{textwrap.dedent(command)}'")
    assert deploy(machine, upstream, "second") == "updated"
    *lines, variables = (machine.root / "srv/gitops/seen").read_text().splitlines()
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert lines == [
        "gitops-hook", "/srv/gitops/acme/app", "/var/lib/gitops-hook", "0022", "/dev/null", path, "no terminal", "read-only",
    ]  # fmt: skip
    assert {"GITOPS_REPOSITORY", "GITOPS_REF", "GITOPS_BEFORE", "GITOPS_AFTER"} <= set(variables.split())


def test_a_deploy_restarts_its_unit_and_no_other(machine: Machine, upstream: Upstream) -> None:
    plain, dropin = code_blocks("docs/deploys.md", "Restart or reload a unit", "sh")
    machine.run(plain)
    assert served(machine) == "second"
    started = machine.show("ExecMainStartTimestampMonotonic", "app")
    assert deploy(machine, upstream, "third") == "updated"
    assert machine.show("ExecMainStartTimestampMonotonic", "app") != started
    machine.run("gitops-hook config acme/app deploy 'systemctl restart gitops-hook-sweep.timer'")
    assert deploy(machine, upstream, "fourth") == "deploy-failed"
    machine.run("set -e\n" + dropin)
    assert deploy(machine, upstream, "fifth") == "updated"
    assert served(machine) == f"fifth{upstream.head()}"


def test_a_restart_of_a_unit_with_a_socket_refuses_no_connection(machine: Machine, upstream: Upstream) -> None:
    (plain, _) = code_blocks("docs/deploys.md", "Restart or reload a unit", "sh")
    machine.run(plain)
    loop = "for i in $(seq 200); do curl -sS -o /dev/null http://127.0.0.1:9000/ || exit 1; sleep 0.02; done"
    with ThreadPoolExecutor(1) as clients:
        requests = clients.submit(machine.run, loop)
        for page in ("a", "b", "c"):
            assert deploy(machine, upstream, page) == "updated"
        requests.result()


def test_a_static_site_is_replaced_at_once(machine: Machine, upstream: Upstream) -> None:
    (commands,) = code_blocks("docs/deploys.md", "A static site", "sh")
    machine.run("set -e\n" + commands)
    for page in ("1", "2", "3", "4", "5", "6"):
        assert deploy(machine, upstream, page) == "updated"
        assert machine.run("cat /srv/www/current/page") == page
    assert len(list((machine.root / "srv/www/releases").iterdir())) == 5
    assert machine.run("su -s /bin/sh nobody -c 'cat /srv/www/current/page'") == "6"


def test_a_migration_uses_the_environment_file_and_prevents_a_restart_if_it_fails(
    machine: Machine, upstream: Upstream
) -> None:
    (commands,) = code_blocks("docs/deploys.md", "An environment file", "sh")
    machine.run("set -e\n" + commands)
    assert deploy(machine, upstream, "one") == "updated"
    assert machine.run("tail -n 1 /var/lib/gitops-hook/app.db") == "one"
    (commands,) = code_blocks("docs/deploys.md", "Migrations", "sh")
    machine.run(commands)
    started = machine.show("ExecMainStartTimestampMonotonic", "app")
    assert deploy(machine, upstream, "bad") == "deploy-failed"
    assert machine.show("ExecMainStartTimestampMonotonic", "app") == started
    assert deploy(machine, upstream, "two") == "updated"
    assert machine.show("ExecMainStartTimestampMonotonic", "app") != started
    assert machine.run("tail -n 1 /var/lib/gitops-hook/app.db") == "two"
