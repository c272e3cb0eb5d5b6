"""Checks of a certificate file, with openssl(1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gitops_hook.cli.doctor.finding import Results, failure, output_of, passed, warning

#: Days before the end of a certificate from which on it deserves a warning.
_DAYS = 30


def examine(path: Path, name: str, usages: Sequence[str], renew: str) -> Results:
    """Check that a certificate permits `usages` (``Client``, ``Server``) and does not end soon.

    The certificate of a client has no CN, because etcd's gateway rejects it with authentication. `renew` is the command
    of the fix.
    """
    text = output_of("openssl", "x509", "-in", path, "-noout", "-subject", "-enddate", "-ext", "extendedKeyUsage")
    if text is None:
        yield failure(f"{name} cannot be read as a certificate", renew)
        return
    missing = [usage for usage in usages if f"TLS Web {usage} Authentication" not in text]
    ends = (re.search(r"notAfter=(.*)", text) or ["", "an unknown time"])[1]
    if output_of("openssl", "x509", "-in", path, "-noout", "-checkend", "0") is None:
        yield failure(f"{name} ended on {ends}", renew)
    elif usages == ("Client",) and re.search(r"subject.*CN ?=", text):
        yield failure(f"{name} has a CN: with authentication, etcd refuses every request of this host", renew)
    elif missing and "Extended Key Usage" in text:
        words = " and ".join(f"{usage.lower()}Auth" for usage in missing)
        yield failure(f"{name} does not permit {words} (extendedKeyUsage)", renew)
    elif output_of("openssl", "x509", "-in", path, "-noout", "-checkend", str(_DAYS * 86400)) is None:
        yield warning(f"{name} ends within {_DAYS} days, on {ends}", renew)
    else:
        yield passed(f"{name} is valid for more than {_DAYS} days")
