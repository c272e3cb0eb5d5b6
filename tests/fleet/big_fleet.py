"""The keys of a large fleet, without etcd: hosts in stages, offline hosts, failures, roll-outs in every state."""

from __future__ import annotations

import time

from gitops_hook.fleet.keys import Decision, Have, Host, Keys, Want, dump
from gitops_hook.fleet.messages import KeyValue
from gitops_hook.fleet.overview import Collection
from gitops_hook.fleet.rollout import Plan

KEYS = Keys("big")
OLD, NEW = "a" * 40, "b" * 40
PLAN = "canary:1 web:25%,wait=120s rest"


def host_name(number: int) -> str:
    return f"host-{number:03}"


def stage(number: int) -> str:
    return "canary" if number < 2 else "web" if number < 40 else ""


def big_fleet(hosts: int = 100, checkouts: int = 1000) -> Collection:
    """Return a fleet whose host 7 is offline, and whose first repositories have a problem each.

    r0 failed at its canary, which halted the roll-out; r1 is at its second stage; r2 failed without a plan on host 50;
    r3 is halted by an operator. Host 60 has an old commit of r4.
    """
    collection = Collection(KEYS)
    revision = 0

    def put(key: str, value: bytes) -> None:
        nonlocal revision
        revision += 1
        collection.apply(KeyValue(key, value, revision, revision, 1, 0))

    now = time.time()
    for number in range(hosts):
        host = Host({"stage": stage(number)} if stage(number) else {}, "1.0", now - 1e6, now - 3 * 3600)
        put(KEYS.last_seen(host_name(number)), dump(host))
        if number != 7:
            put(KEYS.host(host_name(number)), dump(host))
    for number in range(checkouts):
        name = f"acme/r{number}"
        put(KEYS.want(name), dump(Want(name, "refs/heads/main", OLD, NEW, f"guid-{number}", now - 60)))
        for host in range(hosts):
            put(KEYS.have(host_name(host), name), dump(_have(number, host, now)))
    for number in (0, 1, 3):
        put(KEYS.plan(f"acme/r{number}"), Plan.parse(PLAN.split()).dump())
    for number, label, commit in ((0, "canary", OLD), (0, "web", OLD), (0, "rest", OLD), (1, "canary", NEW)):
        put(KEYS.passed(f"acme/r{number}", label), dump(Decision(commit, "host-000", now - 50)))
    put(KEYS.halt("acme/r0"), dump(Decision(NEW, "host-000", now - 50, "deploy-failed: <b>exit 3</b>")))
    put(KEYS.halt("acme/r3"), dump(Decision("*", "ada", now - 50, "maintenance")))
    return collection


def _have(number: int, host: int, now: float) -> Have:
    good = Have(NEW, "updated", 7, f"earlier-{number}", 1, now - 50)
    failed = Have(OLD, "deploy-failed", 8, f"guid-{number}", 1, now - 50, "<b>exit 3</b>")
    if number == 0:
        return failed if host == 0 else good._replace(commit=OLD)
    if number == 1 and host >= 20:
        return good._replace(commit=OLD)
    if (number, host) == (2, 50):
        return failed
    return good._replace(commit=OLD) if (number, host) == (4, 60) else good
