"""Checks of a fleet: its etcd, as this host reaches it, and this host's certificate.

A host without a fleet has no findings. The fleet's package is imported inside the checks, so not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gitops_hook.cli.doctor.finding import Results, failure, output_of, passed, quote, warning
from gitops_hook.config import Settings
from gitops_hook.errors import ConfigError

if TYPE_CHECKING:
    from gitops_hook.fleet.etcd import Etcd

#: The oldest version of etcd that is tested.
_OLDEST = (3, 4)
#: etcd's default limit of its database in bytes, and the share of it that deserves a warning.
_QUOTA = 2 << 30
_FULL = 0.8
#: Seconds for each request.
_TIMEOUT = 3.0
#: Days before the end of a certificate from which on it deserves a warning.
_DAYS = 30


def etcd(settings: Settings) -> Results:
    """Check that every member answers, that there is a quorum, and that there is space."""
    if not settings.fleet:
        return
    from gitops_hook.fleet.access import open_etcd  # noqa: PLC0415
    from gitops_hook.fleet.keys import Keys  # noqa: PLC0415
    from gitops_hook.fleet.messages import EtcdError  # noqa: PLC0415

    try:
        client = open_etcd(settings)
    except ConfigError as error:
        yield failure(str(error), "sudoedit /etc/gitops-hook/gitops-hook.env")
        return
    for endpoint in settings.etcd:
        yield from _member(client, endpoint)
    try:
        client.get(Keys(settings.fleet).life, within=_TIMEOUT)
    except EtcdError as error:
        yield failure(f"etcd has no quorum, or refuses this host: {error}", "systemctl status etcd")
    else:
        yield passed(f"the fleet {settings.fleet} can be read, so there is a quorum")
    if len(settings.etcd) == 1:
        yield warning(
            "one member of etcd is configured: a single point of failure", "sudoedit /etc/gitops-hook/gitops-hook.env"
        )
    client.close()


def _member(client: Etcd, endpoint: str) -> Results:
    from gitops_hook.fleet.messages import EtcdError, integer  # noqa: PLC0415

    try:
        status = client.ask(endpoint, "/v3/maintenance/status", {}, timeout=_TIMEOUT)
        alarms = client.ask(endpoint, "/v3/maintenance/alarm", {}, timeout=_TIMEOUT).get("alarms", [])
    except EtcdError as error:
        yield failure(f"the member does not answer: {error}", f"curl -sS {quote(endpoint + '/health')}")
        return
    version = str(status.get("version", ""))
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    size = integer(status, "dbSize")
    if alarms:
        names = ", ".join(str(alarm.get("alarm", "?")) for alarm in alarms)
        yield failure(f"{endpoint} has the alarm {names}: it takes no writes", _defragment(endpoint))
    elif size > _FULL * _QUOTA:
        yield warning(f"{endpoint} has {size >> 20} MiB, near its limit: is compaction enabled?", _defragment(endpoint))
    elif not integer(status, "leader"):
        yield failure(f"{endpoint} has no leader", "systemctl status etcd")
    elif number < _OLDEST:
        yield failure(f"{endpoint} runs etcd {version}; 3.4 or later is needed", "sudo apt-get install etcd-server")
    else:
        yield passed(f"{endpoint} runs etcd {version} with {max(1, size >> 20)} MiB")


def _defragment(endpoint: str) -> str:
    return f"etcdctl --endpoints={quote(endpoint)} defrag && etcdctl --endpoints={quote(endpoint)} alarm disarm"


def certificate(settings: Settings) -> Results:
    """Check that this host's certificate for etcd has an empty CN, allows clients, and does not end soon."""
    path = settings.etcd_cert_file
    if not settings.fleet or not path:
        return
    text = output_of("openssl", "x509", "-in", path, "-noout", "-subject", "-ext", "extendedKeyUsage")
    if text is None:
        yield failure(f"{path} cannot be read as a certificate", f"openssl x509 -in {quote(path)} -noout -text")
        return
    renew = f"openssl x509 -in {quote(path)} -noout -text"
    if re.search(r"CN ?=", text):
        yield failure(f"{path} has a CN: with authentication, etcd refuses every request of this host", renew)
    elif "Extended Key Usage" in text and "Client Authentication" not in text:
        yield failure(f"{path} does not allow clients (extendedKeyUsage=clientAuth)", renew)
    elif output_of("openssl", "x509", "-in", path, "-noout", "-checkend", str(_DAYS * 86400)) is None:
        yield warning(f"{path} ends within {_DAYS} days", renew)
    else:
        yield passed(f"{path} has no CN, and is valid for more than {_DAYS} days")
