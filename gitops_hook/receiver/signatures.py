"""Signatures of webhooks: which secret signed a request.

Rules:

1. Verify first, parse later. A signature covers the raw bytes of the body, so nothing is parsed before it is verified.
   Gitea, Forgejo and Gogs sign the decoded field of a form, so a form of theirs is decoded first.
2. A wrong signature is a result (None), never an exception.
3. Compare bytes with `hmac.compare_digest`: for non-ASCII `str` it raises, and headers arrive as latin-1.

Sources: GitHub, "Validating webhook deliveries". Gitea (services/webhook/deliver.go) and Gogs
(internal/database/webhook.go) for the bytes that they sign. GitLab, "Webhooks"; Standard Webhooks, "Signature scheme".
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.secrets import Proof, decode_base64, signing_key

#: The headers of a request: a WSGI environment.
Headers = Mapping[str, Any]
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
#: The largest difference between a signed time and this host's clock, in seconds; the libraries of Standard Webhooks
#: use the same.
TOLERANCE = 300
#: A time in seconds since the epoch. The limit on digits keeps int() cheap.
_SECONDS = re.compile("[0-9]{1,12}")
#: The size in bytes above which hashing must not delay other threads.
_LARGE_MESSAGE = 64 << 10
#: The bytes that a form's single value may contain, and an incomplete escape.
_FORM_BYTES = bytes(code for code in range(0x21, 0x7F) if code not in b"=&")
_INCOMPLETE_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: The escapes of a form differ from those of quoted-printable only in these characters.
_TO_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")


class Digest(NamedTuple):
    """A signature scheme: the HMAC-SHA256 of the body in hexadecimal."""

    header: str
    #: The text before the digits.
    prefix: str = ""
    #: Whether a form is signed over its decoded field instead of its raw bytes.
    signs_field: bool = False

    def proof(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        """Return a function that checks a secret against the signature, or None if there is no well-formed signature.

        A repeated header arrives as one value joined by a comma. It is not well-formed, so neither copy counts.
        """
        claim = re.fullmatch(self.prefix + "([0-9a-f]{64})", header_value(headers, self.header))
        if not claim:
            return None
        signed: bytes | None = body
        if self.signs_field and media_type(headers) == FORM:
            signed = form_field(body)
        return None if signed is None else _hmac_proof(signed, [bytes.fromhex(claim[1])])


class Token(NamedTuple):
    """GitLab's two schemes: the secret itself in a header, or a signature with a time as in Standard Webhooks.

    If a signature is present, only the signature counts. A hook may be configured to send both.
    """

    header: str = "X-Gitlab-Token"
    signature: str = "webhook-signature"
    signs_field: bool = False

    def proof(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        """Return a function that checks a secret, or None if the request has no token and no signature.

        `now` is in seconds since the epoch. Raise `HTTPError` (401) if the signed time differs too much from it: the
        request is a replay, or a clock is wrong.
        """
        if header_key(self.signature) in headers:
            return self._signature_proof(headers, body, now)
        token = _latin1(header_value(headers, self.header))
        digest = sha256(token).digest()  # digests have one length, so the comparison reveals no length
        return (lambda secret: hmac.compare_digest(sha256(secret).digest(), digest)) if token else None

    def _signature_proof(self, headers: Headers, body: bytes, now: float) -> Proof | None:
        name, time = header_value(headers, "webhook-id"), header_value(headers, "webhook-timestamp")
        if not name or not _SECONDS.fullmatch(time):
            return None
        if abs(int(time) - now) > TOLERANCE:
            raise HTTPError(401, f"the webhook-timestamp is more than {TOLERANCE} s from this host's clock")
        words = header_value(headers, self.signature).split()
        claims = [decode_base64(_latin1(word[3:])) for word in words if word.startswith("v1,")]
        check = _hmac_proof(_latin1(f"{name}.{time}.") + body, [claim for claim in claims if claim])

        def proof(secret: bytes) -> bool:
            key = signing_key(secret)
            return key is not None and check(key)

        return proof


def header_value(headers: Headers, name: str) -> str:
    """Return the value of the header `name` from a WSGI environment, or "" if it is absent."""
    return str(headers.get(header_key(name), ""))


@lru_cache(maxsize=64)  # the headers of the table of forges, and a few more
def header_key(name: str) -> str:
    """Return the key of a header in a WSGI environment."""
    return "HTTP_" + name.upper().replace("-", "_")


def media_type(headers: Headers) -> str:
    """Return the media type of the body in lower case, without its parameters."""
    return str(headers.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()


def form_field(body: bytes) -> bytes | None:
    """Return the decoded value of a form whose only field is ``payload``, or None for any other form.

    The standard library decodes quoted-printable in C, which is ten times faster than `urllib.parse`. Speed matters
    because the sender may not be verified yet.
    """
    name, _, value = body.partition(b"=")
    if name != b"payload" or value.translate(None, _FORM_BYTES) or _INCOMPLETE_ESCAPE.search(value):
        return None
    return binascii.a2b_qp(value.translate(_TO_QUOTED_PRINTABLE))


def _hmac_proof(message: bytes, claims: Collection[bytes]) -> Proof:
    """Return a function that checks whether any of `claims` is the HMAC-SHA256 of `message` with a given key."""

    def proof(key: bytes) -> bool:
        # hmac.new() lets other threads run while it hashes a large message. hmac.digest() is faster for a small one.
        large = len(message) > _LARGE_MESSAGE
        digest = hmac.new(key, message, "sha256").digest() if large else hmac.digest(key, message, "sha256")
        return True in [hmac.compare_digest(digest, claim) for claim in claims]  # compare all, in constant time

    return proof


def _latin1(text: str) -> bytes:
    """Return the bytes of a header's text as WSGI decodes it. No header contains a character outside latin-1."""
    return text.encode("latin-1", "replace")
