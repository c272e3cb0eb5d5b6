"""Parsers of options that hold secrets or URLs, and of those of a fleet. Every daemon checks every option."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

#: Names in a fleet. They become parts of keys in etcd.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def secret(text: str) -> str:
    """Return a secret that forges can store. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not UTF-8") from None
    return text


def api_url(text: str) -> str:
    """Return the URL of an API that receives a token. Raises ValueError."""
    url = urlsplit(text)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")):
        raise ValueError("it must start with https://, because the token is sent there")
    return base_url(text)


def base_url(text: str) -> str:
    """Return a plain URL without a slash at its end. Raises ValueError."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("it is not a plain http or https URL")
    return text.rstrip("/")


def name(text: str) -> str:
    """Return a name in a fleet. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError("it is not 1 to 63 of a-z, 0-9, `.`, `_` and `-`")
    return text


def default_host(environ: Mapping[str, str]) -> str:
    """Return the host's own name. It must be valid on every host, because a host without a fleet reads it, too."""
    return re.sub("[^a-z0-9._-]", "-", socket.gethostname().lower()).lstrip("._-")[:63] or "host"


def endpoints(text: str) -> tuple[str, ...]:
    """Return the URLs of etcd's members. Raises ValueError."""
    found = tuple(text.replace(",", " ").split())
    if not found:
        raise ValueError("it is empty")
    for endpoint in found:
        url = urlsplit(endpoint)
        plain = url.path in ("", "/") and not url.query and not url.fragment and "@" not in url.netloc
        if url.scheme not in ("http", "https") or not url.hostname or not url.port or not plain:
            raise ValueError(f"`{endpoint}` is not http://HOST:PORT or https://HOST:PORT")
    return tuple(endpoint.rstrip("/") for endpoint in found)


def labels(text: str) -> Mapping[str, str]:
    """Return labels by name. Raises ValueError."""
    found = {}
    for word in text.replace(",", " ").split():
        label, _, value = word.partition("=")
        if not _NAME.fullmatch(label) or not _NAME.fullmatch(value):
            raise ValueError(f"`{word}` is not NAME=VALUE of a-z, 0-9, `.`, `_` and `-`")
        found[label] = value
    return found
