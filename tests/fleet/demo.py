"""A fleet in a minute: three etcd members, three hosts, one canary; a good push, then a bad one that the canary stops.

``make demo-fleet`` runs it. Everything is on loopback and in temporary directories, which are removed at the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from textwrap import shorten

from etcd_cluster import Cluster, binaries
from harness import push, until
from hosts import KEYS, Hosts
from scratch import Upstream, git

from gitops_hook.fleet.messages import put
from gitops_hook.fleet.rollout import Plan

SITE = "acme/site"
HOSTS = {"canary-1": "stage=canary", "web-1": "", "web-2": ""}
PLAN = "canary:1 rest:1"


def say(what: str, text: str) -> None:
    """Print one line of the report."""
    print(f"{what:<10} {text}", flush=True)


def order(hosts: Hosts, commit: str) -> str:
    """Return the hosts that deployed a commit, in the order of their runs."""
    ends = []
    for name, daemon in hosts.daemons.items():
        ends += [(ended, name) for (ended,) in daemon.query("SELECT max(ended) FROM runs WHERE after = ?", commit)]
    return ", ".join(name for ended, name in sorted(pair for pair in ends if pair[0]))


def main() -> int:
    """Run the demo; return the exit status."""
    programs = binaries()
    if not programs:
        print("SKIPPED: there is no etcd; `make test-fleet` unpacks Debian's package, or set ETCD")
        return 0
    version, program = sorted(programs.items())[-1]
    with tempfile.TemporaryDirectory(prefix="gitops-fleet-") as name, Cluster(program, 3) as cluster:
        folder = Path(name)
        forge = Upstream(folder / "forge", SITE)
        say("etcd", f"{version}, three members: {' '.join(cluster.endpoints)}")
        with Hosts(folder, cluster.endpoints) as hosts:
            hosts.client.transact([], [put(KEYS.plan(SITE), Plan.parse(PLAN.split()).dump())])
            say("plan", PLAN)
            for host, labels in HOSTS.items():
                checkout = hosts.checkout(host, forge, deploy="test ! -e broken")
                git("update-ref", "refs/gitops/deployed", "HEAD", cwd=checkout)
                hosts.start(host, labels)
                hosts.daemons[host].wait_for("checkout follows a plan")
            hosts.wait_until_live(*HOSTS)
            say("hosts", ", ".join(f"{host} ({labels or 'stage rest'})" for host, labels in HOSTS.items()))

            good = forge.commit({"page": "hello\n"}, "Say hello")
            began = time.monotonic()
            _, answer = hosts.daemons["web-2"].deliver(push(SITE, good))
            say("push", f"{good[:10]} to web-2: {answer['status']}, in etcd: {answer['fleet']}")
            hosts.wait_for_commit(good)
            until(lambda: (hosts.value(KEYS.passed(SITE, "rest")) or {}).get("commit") == good, "it does not end")
            say("rolled out", f"after {time.monotonic() - began:.1f} s, in this order: {order(hosts, good)}")

            bad = forge.commit({"broken": "x\n"}, "Break the page")
            _, answer = hosts.daemons["web-1"].deliver(push(SITE, bad))
            say("push", f"{bad[:10]}, whose deploy fails, to web-1: {answer['status']}, in etcd: {answer['fleet']}")
            until(lambda: hosts.value(KEYS.halt(SITE)), "nobody halts the commit")
            halt = hosts.value(KEYS.halt(SITE))
            say("halted", f"{halt['commit'][:10]} by {halt['by']}: {shorten(halt['reason'], 90, placeholder='...')}")
            for host in HOSTS:
                say(host, f"at {hosts.commit_of(host)[:10]}, deployed {hosts.status(host).commit[:10]}")
            safe = all(hosts.commit_of(host) == good for host in ("web-1", "web-2"))
            say("result", "the bad commit reached the canary alone" if safe else "THE BAD COMMIT PROCEEDED")
    return 0 if safe else 1


if __name__ == "__main__":
    sys.exit(main())
