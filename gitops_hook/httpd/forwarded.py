"""Behind a proxy: who the client is, when the peer is the proxy.

Rules:

1. ``X-Forwarded-For`` is believed as far as those who wrote it are trusted, and no further: from its right end, where
   the proxy next to us has written, up to the first address that is no trusted proxy's. That is the client.
2. What is not an address ends the search: whoever passed that on is the last of whom something is known.
3. What comes out is an address as `ipaddress` writes it, whatever went in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from gitops_hook.config import Network
from gitops_hook.httpd.server import Application

#: More proxies than stand in a row anywhere; a head may hold thousands of addresses.
_MOST = 20


def forwarded_middleware(application: Application, trusted: Sequence[Network] = ()) -> Application:
    """A WSGI application that tells `application` the client's address as ``REMOTE_ADDR``."""

    def forwarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        claim = environ.get("HTTP_X_FORWARDED_FOR")
        if claim:
            environ["REMOTE_ADDR"] = client(environ["REMOTE_ADDR"], claim, trusted)
        return application(environ, start_response)

    return forwarded


def client(peer: str, forwarded_for: str, trusted: Sequence[Network] = ()) -> str:
    """The client's address, where `peer` has connected ("" through a Unix socket) and sent this header."""
    known = peer
    for hop in reversed(forwarded_for.split(",")[-_MOST:]):
        if not _is_trusted(known, trusted):
            break
        address = _address(hop.strip())
        if not address:
            break
        known = str(address)
    return known


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    """Whether this is a proxy's address. Whoever is on this host is one: through loopback or a Unix socket."""
    address = _address(text)
    return not text or (address is not None and (address.is_loopback or any(address in network for network in trusted)))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address, which some proxies write with a port; None where it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    if "%" in text:  # a zone, which could be any text
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
