"""Access to the fleet's etcd, as the settings say: members, certificates, and a user.

Mutual TLS is the security boundary. The user of etcd's own access control is a fence inside it, since the released
versions have holes there. The certificate's subject needs an empty CN: with authentication enabled, the gateway rejects
every request of a client that has one.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from gitops_hook.config import Settings
from gitops_hook.errors import ConfigError, reason_of
from gitops_hook.fleet.connection import connect
from gitops_hook.fleet.etcd import Credentials, Etcd
from gitops_hook.fleet.messages import Unavailable


def open_etcd(settings: Settings) -> Etcd:
    """Return a client of the cluster that the settings name. Raises ConfigError if a file cannot be used."""
    tls = _tls(settings)
    credentials = None
    if settings.etcd_password_file:
        credentials = _credentials(settings.etcd_password_file)
        try:
            credentials()
        except Unavailable as error:
            raise ConfigError(str(error)) from None
    return Etcd(settings.etcd, tls=tls, credentials=credentials)


class Probe(NamedTuple):
    """A member's clock, in seconds ahead of this host's, and its certificate as PEM, empty without TLS."""

    ahead: float
    certificate: str


def probe(settings: Settings, endpoint: str, timeout: float) -> Probe:
    """Ask a member for its health. Raises OSError, HTTPException if it does not answer, and ConfigError."""
    with closing(connect(endpoint, timeout, _tls(settings))) as connection:
        certificate = b""
        if isinstance(connection.sock, ssl.SSLSocket):
            certificate = connection.sock.getpeercert(binary_form=True) or b""
        connection.request("GET", "/health")
        date = connection.getresponse().getheader("Date", "")
    try:
        ahead = parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):
        raise http.client.HTTPException(f"{endpoint} sends no date") from None
    return Probe(ahead, ssl.DER_cert_to_PEM_cert(certificate) if certificate else "")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.etcd_ca_file:
        return None
    return _context(settings.etcd_ca_file, settings.etcd_cert_file, settings.etcd_key_file)


def _context(ca: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        return client_context(str(ca), str(certificate or ""), str(key or ""))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(str(path) for path in (ca, certificate, key) if path)
        raise ConfigError(
            f"the certificate files of etcd are unusable ({files}): {reason_of(error) or error}"
        ) from None


def client_context(ca: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Return the TLS settings of a client that trusts only `ca` and presents `certificate`, if there is one."""
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate, key or None)
    return context


def _credentials(path: Path) -> Callable[[], Credentials]:
    """Return a function that reads NAME:PASSWORD from a file, each time anew. It raises Unavailable."""

    def read() -> Credentials:
        try:
            name, colon, password = path.read_text("utf-8").strip().partition(":")
        except (OSError, ValueError) as error:
            raise Unavailable(f"GITOPS_ETCD_PASSWORD_FILE={str(path)!r} is unusable: {reason_of(error)}") from None
        if not name or not colon or not password:
            raise Unavailable(f"GITOPS_ETCD_PASSWORD_FILE={str(path)!r} is unusable: it is not NAME:PASSWORD")
        return Credentials(name, password)

    return read
