"""Fixtures of the fleet's tests: real etcd clusters, each started once and emptied between tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from etcd_cluster import Cluster, binaries
from hosts import Hosts
from scratch import Upstream

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.messages import delete_prefix


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the tests that need etcd with each version of it. They take minutes, so only `make test-fleet` runs them."""
    if "program" in metafunc.fixturenames:
        programs = [
            pytest.param(program, id=version, marks=pytest.mark.etcd) for version, program in binaries().items()
        ]
        skip = pytest.mark.skip(reason="no etcd on this machine")
        missing = pytest.param(None, id="none", marks=[pytest.mark.etcd, skip])
        metafunc.parametrize("program", programs or [missing], scope="session")


@pytest.fixture(scope="session")
def shared_cluster(program) -> Iterator[Cluster]:
    with Cluster(program) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """A cluster of one member, empty; a test must leave it running."""
    client = Etcd(shared_cluster.endpoints)
    client.transact([], [delete_prefix("/")], within=30)
    client.close()
    return shared_cluster


@pytest.fixture
def trio(program) -> Iterator[Cluster]:
    """A cluster of three members for one test, which may damage it."""
    with Cluster(program, 3) as cluster:
        yield cluster


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def etcd(cluster: Cluster, clients: ExitStack) -> Etcd:
    client = Etcd(cluster.endpoints)
    clients.callback(client.close)
    return client


@pytest.fixture
def forge(tmp_path: Path) -> Upstream:
    """The repository acme/site as the forge keeps it."""
    return Upstream(tmp_path / "forge")


@pytest.fixture
def hosts(cluster: Cluster, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts of a fleet with one member."""
    with Hosts(tmp_path, cluster.endpoints) as hosts:
        yield hosts
