"""The checks of doctor that concern a fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
from etcd_cluster import Cluster
from test_etcd import certificates, openssl  # noqa: F401 - a fixture

from gitops_hook.cli.doctor import fleet
from gitops_hook.cli.doctor.finding import FAILURE, OK, WARNING
from gitops_hook.config import load


def settings(tmp_path: Path, **more: str):
    environ = {"GITOPS_ROOT": str(tmp_path), "GITOPS_SYNC_SCRIPT": "/bin/true", "GITOPS_FLEET": "test", **more}
    return load(environ, {})


def levels(results) -> list[str]:
    return [result.level for result in results]


def test_a_host_without_a_fleet_has_no_findings(tmp_path: Path) -> None:
    alone = settings(tmp_path, GITOPS_FLEET="")
    assert levels(fleet.etcd(alone)) == levels(fleet.certificate(alone)) == []


def test_members_quorum_and_a_single_member(cluster: Cluster, tmp_path: Path) -> None:
    (endpoint,) = cluster.endpoints
    member, quorum, single = fleet.etcd(settings(tmp_path, GITOPS_ETCD=endpoint))
    assert (member.level, quorum.level, single.level) == (OK, OK, WARNING)
    assert "runs etcd 3." in member.message
    found = list(fleet.etcd(settings(tmp_path, GITOPS_ETCD=f"{endpoint},http://127.0.0.1:1")))
    assert [result.level for result in found] == [OK, FAILURE, OK]
    assert all(result.fix for result in found if result.level == FAILURE)


def test_no_member_answers(tmp_path: Path) -> None:
    assert levels(fleet.etcd(settings(tmp_path, GITOPS_ETCD="http://127.0.0.1:1"))) == [FAILURE, FAILURE, WARNING]


def test_certificates(certificates: Path, tmp_path: Path) -> None:  # noqa: F811
    openssl("req", "-x509", "-key", "host.key", "-subj", "/O=x", "-days", "90", "-out", "long.crt", folder=certificates)

    def check(name: str):
        (found,) = fleet.certificate(settings(tmp_path, GITOPS_ETCD_CERT_FILE=str(certificates / name)))
        return found

    assert check("long.crt").level == OK
    assert check("host.crt").level == WARNING  # it ends tomorrow
    assert check("named.crt").level == FAILURE
    assert "has a CN" in check("named.crt").message
    assert check("missing.crt").level == FAILURE


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
