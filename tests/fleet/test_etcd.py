"""The client against real clusters of each version of etcd that is available."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from documents import code_blocks
from etcd_cluster import Cluster, enable_authentication

from gitops_hook.fleet.access import client_context
from gitops_hook.fleet.etcd import Credentials, Etcd
from gitops_hook.fleet.messages import (
    Batch,
    Compacted,
    Rejected,
    Unavailable,
    Unknown,
    absent,
    delete,
    encode,
    equal,
    get,
    nested,
    present,
    put,
    unchanged,
)


def open_client(cluster: Cluster, clients: ExitStack, **options) -> Etcd:
    client = Etcd(cluster.endpoints, **options)
    clients.callback(client.close)
    return client


def write(client: Etcd, key: str, value: bytes = b"", **options) -> int:
    return client.transact([], [put(key, value)], **options).revision


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_transaction_applies_all_of_one_branch(etcd: Etcd) -> None:
    create = ([absent("/a"), absent("/b")], [put("/a", b"1"), put("/b", b"2")], [get("/a"), get("/b")])
    assert etcd.transact(*create).succeeded
    second = etcd.transact(*create)
    assert not second.succeeded
    assert [pair.value for (pair,) in second.results] == [b"1", b"2"]


def test_comparisons(etcd: Etcd) -> None:
    revision = write(etcd, "/a", b"1")
    for holds, comparison in [
        (True, unchanged("/a", revision)),
        (False, unchanged("/a", revision - 1)),
        (True, unchanged("/b", 0)),
        (True, equal("/a", b"1")),
        (False, equal("/a", b"2")),
        (False, equal("/b", b"1")),
        (True, present("/a")),
        (False, present("/b")),
        (False, absent("/a")),
    ]:
        assert etcd.transact([comparison], []).succeeded is holds, comparison


def test_nested_transactions_decide_separately(etcd: Etcd) -> None:
    write(etcd, "/seen/1")
    outer = etcd.transact(
        [], [nested([absent(f"/seen/{n}")], [put(f"/seen/{n}", b""), put(f"/want/{n}", b"x")]) for n in (1, 2)]
    )
    assert [result.succeeded for result in outer.results] == [False, True]
    assert [pair.key for pair in etcd.read("/want/").pairs] == ["/want/2"]


def test_a_range_is_read_in_pages_of_one_revision(etcd: Etcd) -> None:
    for number in range(7):
        write(etcd, f"/a/{number}", b"x")
    last = write(etcd, "/a", b"beside the prefix")
    snapshot = etcd.read("/a/", page=2)
    assert [pair.key for pair in snapshot.pairs] == [f"/a/{number}" for number in range(7)]
    assert snapshot.revision == last
    newer = etcd.read("/a/", min_mod_revision=last - 3, page=2)
    assert [pair.key for pair in newer.pairs] == ["/a/4", "/a/5", "/a/6"]


def test_a_request_that_etcd_refuses_is_not_repeated(etcd: Etcd) -> None:
    before = time.monotonic()
    with pytest.raises(Rejected, match="duplicate key"):
        etcd.transact([], [put("/a", b"1"), put("/a", b"2")], within=30)
    assert time.monotonic() - before < 5
    assert etcd.get("/a") is None


def test_names_that_are_not_ascii_survive(etcd: Etcd) -> None:
    write(etcd, "/ä/€", "ü".encode())
    assert [(pair.key, pair.value.decode()) for pair in etcd.read("/ä/").pairs] == [("/ä/€", "ü")]


# -- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_keeps_its_keys_until_it_ends(etcd: Etcd) -> None:
    lease = etcd.grant(60)
    etcd.transact([], [put("/host", b"", lease)])
    assert etcd.keep_alive(lease) == 60
    assert etcd.get("/host").lease == lease
    etcd.revoke(lease)
    assert etcd.get("/host") is None
    assert etcd.keep_alive(lease) == 0
    etcd.revoke(lease)  # no error
    with pytest.raises(Rejected, match="lease not found"):
        etcd.transact([], [put("/host", b"", lease)])


# -- watches ----------------------------------------------------------------------------------------------------------


def collect(watch, number: int) -> list:
    """Return the first `number` events."""
    events = []
    for batch in watch:
        events += batch.events
        if len(events) >= number:
            return events
    return events


def test_a_watch_starts_at_a_revision_and_continues(etcd: Etcd) -> None:
    first = write(etcd, "/a/1", b"old")
    with etcd.watch("/a/", first) as watch:
        write(etcd, "/b", b"outside the prefix")
        etcd.transact([], [delete("/a/1"), put("/a/2", b"new")])
        events = collect(watch, 3)
    assert [(event.key, event.value, event.is_deleted) for event in events] == [
        ("/a/1", b"old", False),
        ("/a/1", b"", True),
        ("/a/2", b"new", False),
    ]


def test_a_watch_that_is_closed_by_another_thread_ends(etcd: Etcd) -> None:
    with etcd.watch("/a/", 0) as watch:
        batches: list[Batch] = []
        reading = threading.Thread(target=lambda: batches.extend(watch))
        reading.start()
        watch.close()
        reading.join(10)
        assert not reading.is_alive()
    assert batches == []


def test_a_watch_of_a_compacted_revision(etcd: Etcd) -> None:
    first = write(etcd, "/a/1")
    last = write(etcd, "/a/1")
    etcd.call("/v3/kv/compaction", {"revision": str(last)})
    with etcd.watch("/a/", first) as watch, pytest.raises(Compacted):
        next(iter(watch))
    with pytest.raises(Compacted):
        etcd.call("/v3/kv/range", {"key": encode("/a/1"), "revision": str(first)})


def test_silence_ends_a_watch(etcd: Etcd) -> None:
    with etcd.watch("/a/", 0, silence=0.2) as watch, pytest.raises(Unavailable):
        next(iter(watch))


def test_progress_messages_carry_a_revision(program: Path, clients: ExitStack) -> None:
    with Cluster(program, options=("--experimental-watch-progress-notify-interval=200ms",)) as cluster:
        client = open_client(cluster, clients)
        revision = write(client, "/elsewhere")
        with client.watch("/a/", revision + 1) as watch:
            assert next(iter(watch)) == Batch(revision, [])


# -- members ----------------------------------------------------------------------------------------------------------


def test_a_dead_member_is_passed_over(trio: Cluster, clients: ExitStack) -> None:
    client = open_client(trio, clients, jitter=lambda: 0.0)
    follower = next(member for member in trio.members if member is not trio.leader())
    while client.preferred != follower.endpoint:
        client.avoid(client.preferred)
    write(client, "/a", b"1")
    follower.kill()
    write(client, "/a", b"2")
    assert client.preferred != follower.endpoint
    assert client.get("/a").value == b"2"


def test_writes_resume_after_the_death_of_the_leader_and_keep_what_was_acknowledged(
    trio: Cluster, clients: ExitStack
) -> None:
    client = open_client(trio, clients)
    write(client, "/a", b"before")
    trio.leader().kill()
    before = time.monotonic()
    write(client, "/b", b"after", within=20)
    assert time.monotonic() - before < 15
    assert {pair.key: pair.value for pair in client.read("/").pairs} == {"/a": b"before", "/b": b"after"}


def test_without_a_quorum_a_watch_ends_and_a_write_is_not_acknowledged(trio: Cluster, clients: ExitStack) -> None:
    client = open_client(trio, clients, jitter=lambda: 0.0)
    revision = write(client, "/a")
    survivor = trio.members[0]
    assert client.preferred == survivor.endpoint
    with client.watch("/a", revision + 1) as watch:
        for member in trio.members[1:]:
            member.kill()
        with pytest.raises(Unavailable):
            list(watch)
    with pytest.raises(Unavailable):
        write(client, "/a", within=1)
    trio.start()
    assert write(client, "/a", within=20) > revision


def test_an_attempt_at_a_paused_member_is_short_and_its_result_unknown(cluster: Cluster, clients: ExitStack) -> None:
    client = open_client(cluster, clients, attempt=0.3)
    write(client, "/a", b"1")
    member = cluster.members[0]
    member.pause()
    try:
        before = time.monotonic()
        with pytest.raises(Unknown):
            write(client, "/a", b"2", repeat=False)
        with pytest.raises(Unknown):
            write(client, "/a", b"2", within=0.5)
        assert time.monotonic() - before < 6
    finally:
        member.resume()
    write(client, "/b", within=10)
    assert client.get("/a").value in (b"1", b"2")  # what was sent may have been applied


def test_an_unreachable_member_wrote_nothing(clients: ExitStack) -> None:
    client = Etcd(["http://127.0.0.1:1"])
    with pytest.raises(Unavailable) as caught:
        write(client, "/a", within=0.1)
    assert not isinstance(caught.value, Unknown)


def test_a_restarted_member_finds_new_connections(cluster: Cluster, etcd: Etcd) -> None:
    write(etcd, "/a", b"1")
    cluster.members[0].kill(signal.SIGTERM)
    cluster.start()
    assert etcd.get("/a").value == b"1"


# -- authentication and TLS -------------------------------------------------------------------------------------------


def test_authentication(program: Path, clients: ExitStack) -> None:
    with Cluster(program, options=("--auth-token-ttl=1",)) as cluster:
        admin = open_client(cluster, clients)
        enable_authentication(admin)
        with pytest.raises(Rejected, match="user name is empty"):
            write(admin, "/a/1")
        passwords = ["wrong"]
        client = open_client(cluster, clients, credentials=lambda: Credentials("host", passwords[-1]))
        with pytest.raises(Rejected, match="authentication failed"):
            write(client, "/a/1")
        passwords.append("secret")
        write(client, "/a/1", b"1")
        time.sleep(2.5)  # until the token has ended, which nobody announces
        write(client, "/a/1", b"2")
        cluster.members[0].kill(signal.SIGTERM)
        cluster.members[0].start()  # it forgets every token
        assert client.read("/a/", within=20).pairs[0].value == b"2"
        with client.watch("/a/", 0) as watch:
            write(client, "/a/1", b"3")
            assert [event.value for event in collect(watch, 1)] == [b"3"]
        with client.watch("/b/", 0) as watch, pytest.raises(Rejected, match="denied"):
            next(iter(watch))
        with pytest.raises(Rejected, match="denied"):
            client.read("/b/")


def test_a_token_of_a_cluster_that_was_wiped_is_replaced(program: Path, clients: ExitStack) -> None:
    with Cluster(program, options=("--bcrypt-cost=4",)) as cluster:
        admin = open_client(cluster, clients)
        for number in range(50):  # the new cluster waits for the raft index that the old token names
            write(admin, f"/a/{number}")
        enable_authentication(admin)
        client = open_client(cluster, clients, credentials=lambda: Credentials("host", "secret"))
        write(client, "/a/1")
        cluster.wipe()
        enable_authentication(admin)
        write(client, "/a/1", b"again", within=10)


def test_credentials_do_no_harm_before_the_access_control_is_enabled(program: Path, clients: ExitStack) -> None:
    with Cluster(program, options=("--bcrypt-cost=4",)) as cluster:
        client = open_client(cluster, clients, credentials=lambda: Credentials("host", "secret"))
        revision = write(client, "/a/1", b"1")
        with client.watch("/a/", revision) as watch:
            assert [event.value for event in collect(watch, 1)] == [b"1"]
        enable_authentication(open_client(cluster, clients))
        write(client, "/a/1", b"2")
        with pytest.raises(Rejected, match="denied"):
            client.read("/b/")


def openssl(*words: str, folder: Path) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the certificates of a member and of a host with the documented commands, for two days; and one with a CN."""
    folder = tmp_path_factory.mktemp("certificates")
    commands, member = code_blocks("docs/fleet.md", "Set up three members", "sh")[1:]
    (host,) = code_blocks("docs/fleet.md", "Join a host", "sh")
    installed = re.sub(r" -o [\w-]+|(?<= )/(?=etc/)", "", f"install -d /etc/gitops-hook\n{member}\n{host}")
    commands = commands.replace("-days 825", "-days 2")
    create_host = "\n".join(commands.split("\nfor host in ")[1].splitlines()[1:-1])
    named = f"host=named\n{create_host.replace('/O=fleet', '/CN=host')}"
    names = "mv etc/gitops-hook/etcd-cert host.crt; mv etc/gitops-hook/etcd-key host.key\n"
    names += "for kind in crt key; do mv etc/etcd/10.0.0.1.$kind member.$kind; done"
    script = "\n".join((commands, named, installed, names))
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


def test_mutual_tls(program: Path, certificates: Path, clients: ExitStack) -> None:
    flags = (
        f"--cert-file={certificates}/member.crt",
        f"--key-file={certificates}/member.key",
        f"--trusted-ca-file={certificates}/ca.crt",
        "--client-cert-auth",
    )

    def tls(name: str):
        ca = str(certificates / "ca.crt")
        return client_context(ca, *(str(certificates / f"{name}.{kind}") for kind in ("crt", "key")) if name else ())

    with Cluster(program, tls=flags) as cluster:
        client = open_client(cluster, clients, tls=tls("host"))
        revision = write(client, "/a", b"1", within=20)
        write(client, "/a", b"2")  # over the connection that exists
        with client.watch("/a", revision) as watch:
            assert [event.value for event in collect(watch, 2)] == [b"1", b"2"]
            reading = threading.Thread(target=list, args=(watch,))
            reading.start()
            watch.close()
            reading.join(10)
            assert not reading.is_alive()
        with pytest.raises(Unavailable):
            write(open_client(cluster, clients, tls=tls("")), "/a", within=1)
        with pytest.raises(Unavailable, match="certificate verify failed"):
            write(open_client(cluster, clients), "/a", within=1)
        # With authentication, the gateway refuses a client whose certificate has a CN.
        named = open_client(cluster, clients, tls=tls("named"), credentials=lambda: Credentials("root", "secret"))
        write(open_client(cluster, clients, tls=tls("named")), "/a", b"3")
        enable_authentication(client)
        with pytest.raises(Rejected, match="CommonName"):
            write(named, "/a", within=1)
        credentials = lambda: Credentials("root", "secret")  # noqa: E731
        write(open_client(cluster, clients, tls=tls("host"), credentials=credentials), "/a", b"4")
