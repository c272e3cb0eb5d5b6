"""The client's address behind a proxy.

Rules:

1. Trust ``X-Forwarded-For`` only as far as its writers are trusted. Read it from the right end, where the nearest proxy
   wrote, to the first address that is not a trusted proxy. That address is the client.
2. Text that is not an address ends the search. The address to its right is then the client.
3. The result is an address as `ipaddress` formats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from gitops_hook.config import Network
from gitops_hook.httpd.call import Application

#: The limit on addresses to read. A head may contain thousands; no installation has so many proxies in a row.
_MAX_HOPS = 20


def forwarded_middleware(application: Application, trusted: Sequence[Network] = ()) -> Application:
    """Return an application that calls `application` with the client's address as ``REMOTE_ADDR``."""

    def forwarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR")
        if forwarded_for:
            environ["REMOTE_ADDR"] = client_address(environ["REMOTE_ADDR"], forwarded_for, trusted)
        return application(environ, start_response)

    return forwarded


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Network] = ()) -> str:
    """Return the client's address. `peer` is the address that connected, "" for a Unix socket."""
    known = peer
    for hop in reversed(forwarded_for.split(",")[-_MAX_HOPS:]):
        if not _is_trusted(known, trusted):
            break
        address = _address(hop.strip())
        if not address:
            break
        known = str(address)
    return known


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    """Return True for the address of a proxy: a configured one, loopback, or "" for a Unix socket."""
    address = _address(text)
    return not text or (address is not None and (address.is_loopback or any(address in network for network in trusted)))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in `text`, or None. Some proxies add a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    if "%" in text:  # a zone may contain any text
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
