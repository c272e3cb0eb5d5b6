"""Fixtures of the fleet's tests: real etcd clusters, each started once and emptied between tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from etcd_cluster import Cluster, binaries
from hosts import Hosts
from scratch import Upstream

from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.messages import delete_prefix

#: The tests with a real etcd take minutes, so `make test` leaves them out. `make test-fleet` sets FLEET.
PROGRAMS = binaries() if os.environ.get("FLEET") else {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs etcd where there is none, and say how to get it."""
    if not PROGRAMS:
        missing = pytest.mark.skip(reason="needs etcd: run `make test-fleet`")
        for item in items:
            here = Path(item.fspath).parent == Path(__file__).parent
            if here and {"cluster", "trio", "program"} & set(getattr(item, "fixturenames", ())):
                item.add_marker(missing)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "program" in metafunc.fixturenames:
        metafunc.parametrize("program", list(PROGRAMS.values()), ids=list(PROGRAMS), scope="session", indirect=False)


@pytest.fixture(scope="session")
def shared_cluster(program) -> Iterator[Cluster]:
    with Cluster(program) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """A cluster of one member, empty; a test must leave it running."""
    client = Etcd(shared_cluster.endpoints)
    client.transact([], [delete_prefix("/")])
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
