"""Parse the query and the headers of a request for the page or the API."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import parse_qs

from gitops_hook.errors import HTTPError

#: Rows of one response of the API: the maximum and the default.
_MOST_ROWS, _SOME_ROWS = 1000, 100
#: The maximum number of fields in a query.
_MOST_FIELDS = 16


def is_address(host: str) -> bool:
    """Return whether a Host header is an address or localhost."""
    name = re.sub(r":[0-9]+$", "", host)
    if name == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(name[1:-1] if name.startswith("[") else name))
    except ValueError:
        return False


def query_fields(environ: dict[str, Any]) -> dict[str, str]:
    """Return the fields of the query, the last value of each."""
    try:
        given = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise HTTPError(400, "the query has too many fields") from None
    return {name: values[-1] for name, values in given.items()}


def number_field(given: dict[str, str], name: str, default: Any) -> Any:
    """Return a field as a number, or `default` if it is missing or empty."""
    text = given.get(name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise HTTPError(400, f"{name} is a number of at most 18 digits")
    return int(text)


def limit_field(given: dict[str, str]) -> int:
    """Return the number of rows that a request asks for."""
    limit: int = number_field(given, "limit", _SOME_ROWS)
    if not 1 <= limit <= _MOST_ROWS:
        raise HTTPError(400, f"limit is a number from 1 to {_MOST_ROWS}")
    return limit


def entity_tags(header: str) -> set[str]:
    """Return the entity tags of If-None-Match, for weak comparison (RFC 9110, section 13.1.2)."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
