"""The checks of doctor that concern a fleet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etcd_cluster import Cluster
from harness import SECRET, until
from hosts import KEYS
from test_etcd import certificates, openssl  # noqa: F401 - a fixture

from gitops_hook.cli.doctor import fleet
from gitops_hook.cli.doctor.finding import FAILURE, OK, SKIPPED, WARNING, Result
from gitops_hook.config import load as load_settings
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import Host, dump, load
from gitops_hook.fleet.messages import Unavailable, put


def settings(tmp_path: Path, **more: str):
    environ = {"GITOPS_ROOT": str(tmp_path), "GITOPS_SYNC_SCRIPT": "/bin/true", "GITOPS_FLEET": "test", **more}
    return load_settings(environ, {})


def levels(results) -> list[str]:
    return [result.level for result in results]


def test_a_host_without_a_fleet_has_no_findings(tmp_path: Path) -> None:
    alone = settings(tmp_path, GITOPS_FLEET="")
    assert levels(fleet.etcd(alone)) == levels(fleet.certificate(alone)) == levels(fleet.clocks(alone)) == []


def test_members_quorum_and_a_single_member(cluster: Cluster, tmp_path: Path) -> None:
    (endpoint,) = cluster.endpoints
    member, quorum, history, single = fleet.etcd(settings(tmp_path, GITOPS_ETCD=endpoint))
    assert (member.level, quorum.level, history.level, single.level) == (OK, OK, SKIPPED, WARNING)
    assert "runs etcd 3." in member.message
    found = list(fleet.etcd(settings(tmp_path, GITOPS_ETCD=f"{endpoint},http://127.0.0.1:1")))
    assert [result.level for result in found] == [OK, FAILURE, OK, SKIPPED]
    assert all(result.fix for result in found if result.level == FAILURE)


def sign(etcd: Etcd, hours_ago: float) -> None:
    seen = Host(version="1.0", seen=time.time() - hours_ago * 3600)
    etcd.transact([], [put(KEYS.last_seen("a"), dump(seen))])


@pytest.mark.fixes("fleet._compaction 1")
def test_a_history_of_days_shows_that_etcd_is_not_compacted(
    cluster: Cluster, etcd: Etcd, tmp_path: Path, apply_fix: Callable[..., str]
) -> None:
    given = settings(tmp_path, GITOPS_ETCD=cluster.endpoints[0], GITOPS_FLEET_HOST="a")
    for hours in range(90, 0, -1):
        sign(etcd, hours)
        etcd.transact([], [put("/other", b"x")])
    found = next(result for result in list(fleet.etcd(given)) if "compacted" in result.message)
    assert (found.level, found.message) == (WARNING, "etcd stores revisions of 90 hours: it is not compacted")
    apply_fix(found.fix)
    assert (tmp_path / "etc/default/etcd").read_text() == "ETCD_AUTO_COMPACTION_RETENTION=1h\n"
    recent = next(
        revision
        for revision in range(etcd.read("/").revision, 0, -1)
        if load(Host, etcd.get(KEYS.last_seen("a"), revision=revision).value).seen < time.time() - 5 * 3600
    )
    etcd.call("/v3/kv/compaction", {"revision": str(recent)})
    assert next(result for result in list(fleet.etcd(given)) if "compacted" in result.message).level == OK


@pytest.mark.fixes("fleet._hosts 1")
def test_hosts_with_different_versions(
    cluster: Cluster, etcd: Etcd, tmp_path: Path, apply_fix: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(tmp_path, GITOPS_ETCD=cluster.endpoints[0])
    etcd.transact([], [put(KEYS.host("a"), dump(Host(version="1.0")))])
    assert [result.level for result in fleet.etcd(given) if "run gitops-hook" in result.message] == [OK]
    etcd.transact([], [put(KEYS.host("b"), dump(Host(version="1.1")))])
    (found,) = (result for result in fleet.etcd(given) if "run gitops-hook" in result.message)
    assert (found.level, found.message) == (WARNING, "the hosts run gitops-hook 1.0 and 1.1")
    for name, value in (("ROOT", str(tmp_path)), ("FLEET", "test"), ("ETCD", cluster.endpoints[0])):
        monkeypatch.setenv(f"GITOPS_{name}", value)
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET", SECRET)
    shown = apply_fix(found.fix)
    assert "1.0" in shown and "1.1" in shown


def test_a_full_database_has_an_alarm_with_a_fix(program: Path, tmp_path: Path) -> None:
    with Cluster(program, options=("--quota-backend-bytes=131072",)) as cluster:
        client = Etcd(cluster.endpoints)
        with pytest.raises(Unavailable):
            for number in range(200):
                client.transact([], [put(f"/{number}", b"x" * 10_000)], within=0.5)
        client.close()
        member, *_ = fleet.etcd(settings(tmp_path, GITOPS_ETCD=cluster.endpoints[0]))
        assert member.level == FAILURE
        assert "has the alarm NOSPACE" in member.message
        assert "alarm disarm" in member.fix


def test_clocks(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path, GITOPS_ETCD=f"{cluster.endpoints[0]},http://127.0.0.1:1")
    assert levels(fleet.clocks(given)) == [OK, SKIPPED]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    found, _ = fleet.clocks(given)
    assert found.level == WARNING
    assert "s ahead of this host's" in found.message
    assert found.fix == "sudo timedatectl set-ntp true"


def test_the_certificate_of_a_member(program: Path, certificates: Path, tmp_path: Path) -> None:  # noqa: F811
    flags = (
        f"--cert-file={certificates}/member.crt",
        f"--key-file={certificates}/member.key",
        f"--trusted-ca-file={certificates}/ca.crt",
        "--client-cert-auth",
    )
    with Cluster(program, tls=flags) as cluster:
        given = settings(
            tmp_path,
            GITOPS_ETCD=cluster.endpoints[0],
            GITOPS_ETCD_CA_FILE=str(certificates / "ca.crt"),
            GITOPS_ETCD_CERT_FILE=str(certificates / "host.crt"),
            GITOPS_ETCD_KEY_FILE=str(certificates / "host.key"),
        )

        def findings() -> list[Result]:
            return [result for result in fleet.certificate(given) if "https://" in result.message]

        until(findings, "the member does not answer")
        (found,) = findings()
        assert found.level == WARNING  # it ends tomorrow
        assert "the certificate of https://127.0.0.1" in found.message
        assert levels(fleet.clocks(given)) == [OK]


def test_no_member_answers(tmp_path: Path) -> None:
    assert levels(fleet.etcd(settings(tmp_path, GITOPS_ETCD="http://127.0.0.1:1"))) == [FAILURE, FAILURE, WARNING]


def test_certificates(certificates: Path, tmp_path: Path) -> None:  # noqa: F811
    create = ("req", "-x509", "-key", "host.key", "-subj", "/O=x", "-days", "90", "-addext")
    openssl(*create, "extendedKeyUsage=clientAuth", "-out", "long.crt", folder=certificates)
    openssl(*create, "extendedKeyUsage=serverAuth", "-out", "server.crt", folder=certificates)

    def check(name: str):
        (found,) = fleet.certificate(settings(tmp_path, GITOPS_ETCD_CERT_FILE=str(certificates / name)))
        return found

    assert check("long.crt").level == OK
    assert check("host.crt").level == WARNING  # it ends tomorrow
    assert check("named.crt").level == FAILURE
    assert "has a CN" in check("named.crt").message
    assert check("missing.crt").level == FAILURE
    assert "does not permit clientAuth" in check("server.crt").message


@pytest.mark.parametrize("name", ["ca.crt", "host.key"])
def test_unusable_files(certificates: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    broken = settings(
        tmp_path,
        GITOPS_ETCD_CA_FILE=str(certificates / name),
        GITOPS_ETCD_CERT_FILE=str(certificates / "member.crt"),
        GITOPS_ETCD_KEY_FILE=str(certificates / "host.key"),
    )
    (found,) = fleet.etcd(broken)
    assert found.level == FAILURE
    assert "unusable" in found.message
