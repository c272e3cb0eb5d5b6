"""Checks of a fleet: the members of its etcd, the certificates, the clocks, and the versions.

A host without a fleet has no findings. The fleet's package is imported inside the checks, so not there.
"""

from __future__ import annotations

import http.client
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from gitops_hook.cli.doctor.certificates import examine
from gitops_hook.cli.doctor.finding import Results, failure, passed, quote, skipped, warning
from gitops_hook.config import ENVIRONMENT_FILE, Settings
from gitops_hook.errors import ConfigError

if TYPE_CHECKING:
    from gitops_hook.fleet.access import Probe
    from gitops_hook.fleet.etcd import Etcd
    from gitops_hook.fleet.keys import Keys

#: The oldest version of etcd that is tested.
_OLDEST = (3, 4)
#: etcd's default limit of its database in bytes, and the share of it that deserves a warning.
_QUOTA = 2 << 30
_FULL = 0.8
#: Seconds for each request.
_TIMEOUT = 3.0
#: Seconds by which the clocks of a member and of this host may differ. An HTTP date has a resolution of one second.
_SKEW = 5.0
#: Seconds of history that a daily compaction would leave. The documented setting leaves one to two hours.
_HISTORY = 26 * 3600.0
_EDIT = f"sudoedit {ENVIRONMENT_FILE}"


def etcd(settings: Settings) -> Results:
    """Check that every member answers, that there is a quorum, and that there is space."""
    if not settings.fleet:
        return
    client = _open(settings)
    if isinstance(client, ConfigError):
        yield failure(str(client), _EDIT)
        return
    with closing(client):
        yield from _check_cluster(client, settings)
    if len(settings.etcd) == 1:
        yield warning("one member of etcd is configured: a single point of failure", _EDIT)


def _check_cluster(client: Etcd, settings: Settings) -> Results:
    from gitops_hook.fleet.keys import Keys  # noqa: PLC0415
    from gitops_hook.fleet.messages import EtcdError  # noqa: PLC0415

    minors: set[tuple[int, ...]] = set()
    for endpoint in settings.etcd:
        yield from _member(client, endpoint, settings, minors)
    try:
        client.get(Keys(settings.fleet).life, within=_TIMEOUT)
    except EtcdError as error:
        yield failure(f"etcd has no quorum, or refuses this host: {error}", "systemctl status etcd")
    else:
        yield passed(f"the fleet {settings.fleet} can be read, so there is a quorum")
        yield from _compaction(client, Keys(settings.fleet), settings)
        yield from _hosts(client, Keys(settings.fleet))
    if len(minors) > 1:
        found = " and ".join(f"{major}.{minor}" for major, minor in sorted(minors))
        yield warning(f"the members run etcd {found}: finish the upgrade", "sudo apt-get install etcd-server")


def _open(settings: Settings) -> Etcd | ConfigError:
    from gitops_hook.fleet.access import open_etcd  # noqa: PLC0415

    try:
        return open_etcd(settings)
    except ConfigError as error:
        return error


def _member(client: Etcd, endpoint: str, settings: Settings, minors: set[tuple[int, ...]]) -> Results:
    """Check one member, and add its version to `minors`."""
    from gitops_hook.fleet.messages import EtcdError, integer  # noqa: PLC0415

    try:
        status = client.ask(endpoint, "/v3/maintenance/status", {}, timeout=_TIMEOUT)
        alarms = client.ask(endpoint, "/v3/maintenance/alarm", {}, timeout=_TIMEOUT).get("alarms", [])
    except EtcdError as error:
        yield failure(f"the member does not answer: {error}", f"{_etcdctl(settings, endpoint)} endpoint health")
        return
    version = str(status.get("version", ""))
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    minors.add(number)
    size = integer(status, "dbSize")
    if alarms:
        names = ", ".join(str(alarm.get("alarm", "?")) for alarm in alarms)
        yield failure(f"{endpoint} has the alarm {names}: it takes no writes", _make_space(settings, endpoint))
    elif size > _FULL * _QUOTA:
        yield warning(f"{endpoint} has {size >> 20} MiB, near its limit", _make_space(settings, endpoint))
    elif not integer(status, "leader"):
        yield failure(f"{endpoint} has no leader", "systemctl status etcd")
    elif number < _OLDEST:
        yield failure(f"{endpoint} runs etcd {version}; 3.4 or later is needed", "sudo apt-get install etcd-server")
    else:
        yield passed(f"{endpoint} runs etcd {version} with {max(1, size >> 20)} MiB")


def _etcdctl(settings: Settings, endpoint: str) -> str:
    """Return the start of a command for one member, with the certificates of this host."""
    files = (("cacert", settings.etcd_ca_file), ("cert", settings.etcd_cert_file), ("key", settings.etcd_key_file))
    options = "".join(f" --{name}={quote(path)}" for name, path in files if path)
    user = f' --user="$(cat {quote(settings.etcd_password_file)})"' if settings.etcd_password_file else ""
    return f"etcdctl --endpoints={quote(endpoint)}{options}{user}"


def _make_space(settings: Settings, endpoint: str) -> str:
    command = _etcdctl(settings, endpoint)
    revision = f"$({command} get --write-out=json x | grep -o '\"revision\":[0-9]*' | cut -d: -f2)"
    return f"{command} compact {revision}; {command} defrag && {command} alarm disarm"


def _compaction(client: Etcd, keys: Keys, settings: Settings) -> Results:
    """Check that old revisions are removed, by the age of the oldest stored sign of life of this host.

    etcd does not show the setting. Without compaction the database grows until it is full.
    """
    age = _history(client, keys.last_seen(settings.fleet_host))
    if age is None:
        yield skipped("this host has not been in the fleet yet, so the compaction of etcd cannot be checked")
    elif age > _HISTORY:
        yield warning(
            f"etcd stores revisions of {age / 3600:.0f} hours: it is not compacted",
            "echo ETCD_AUTO_COMPACTION_RETENTION=1h | sudo tee -a /etc/default/etcd && sudo systemctl restart etcd",
        )
    else:
        yield passed("etcd is compacted, or has less than a day of history")


def _history(client: Etcd, key: str) -> float | None:
    """Return the age in seconds of the oldest value of a `keys.Host` that etcd still stores; None without any."""
    from gitops_hook.fleet.keys import Host, load  # noqa: PLC0415
    from gitops_hook.fleet.messages import Compacted  # noqa: PLC0415

    newest = client.get(key, within=_TIMEOUT)
    if not newest:
        return None
    oldest = newest
    first, last = newest.create_revision, newest.mod_revision
    while first < last:  # compaction removes every revision before one, which a binary search finds
        middle = (first + last) // 2
        try:
            oldest = client.get(key, revision=middle, within=_TIMEOUT) or oldest
            last = min(middle, max(first, oldest.mod_revision))
        except Compacted:
            first = middle + 1
    host = load(Host, oldest.value)
    return time.time() - host.seen if host else None


def _hosts(client: Etcd, keys: Keys) -> Results:
    """Check that the live hosts run one version of this program."""
    from gitops_hook.fleet.keys import Host, load  # noqa: PLC0415

    hosts = [load(Host, pair.value) for pair in client.read(keys.hosts, within=_TIMEOUT).pairs]
    versions = sorted({host.version for host in hosts if host})
    if len(versions) > 1:
        yield warning(f"the hosts run gitops-hook {' and '.join(versions)}", "gitops-hook fleet hosts")
    elif versions:
        yield passed(f"{len(hosts)} live hosts run gitops-hook {versions[0]}")


def clocks(settings: Settings) -> Results:
    """Check that the clocks of the members agree with this host's: ages and the waits of roll-outs compare them."""
    for endpoint, found in _probes(settings):
        if not found:
            yield skipped(f"{endpoint} does not answer, so its clock cannot be checked")
        elif abs(found.ahead) > _SKEW:
            direction = "ahead of" if found.ahead > 0 else "behind"
            message = f"the clock of {endpoint} is {abs(found.ahead):.0f} s {direction} this host's"
            yield warning(message, "sudo timedatectl set-ntp true")
        else:
            yield passed(f"the clock of {endpoint} agrees with this host's")


def certificate(settings: Settings) -> Results:
    """Check the certificates of this host, of the authority and of the members."""
    if not settings.fleet:
        return
    path = settings.etcd_cert_file
    if path:
        key = settings.etcd_key_file or path
        renew = f"openssl req -new -key {quote(key)} -subj /O=fleet -out {quote(settings.fleet_host + '.csr')}"
        yield from examine(path, str(path), ("Client",), renew)
    if settings.etcd_ca_file:
        show = f"openssl x509 -in {quote(settings.etcd_ca_file)} -noout -text"
        yield from examine(settings.etcd_ca_file, str(settings.etcd_ca_file), (), show)
    for endpoint, found in _probes(settings):
        if found and found.certificate:
            with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
                file.write(found.certificate)
                file.flush()
                show = "openssl x509 -in /etc/etcd/member.crt -noout -text"
                name = f"the certificate of {endpoint}"
                yield from examine(Path(file.name), name, ("Server", "Client"), show)


def _probes(settings: Settings) -> Iterator[tuple[str, Probe | None]]:
    """Yield each member with its probe, or None if it does not answer."""
    if not settings.fleet:
        return
    from gitops_hook.fleet.access import probe  # noqa: PLC0415

    for endpoint in settings.etcd:
        try:
            yield endpoint, probe(settings, endpoint, _TIMEOUT)
        except (OSError, http.client.HTTPException, ConfigError):
            yield endpoint, None
