"""TODO."""

from __future__ import annotations

import hmac
import os
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path

from gitops_hook.errors import ConfigError, reason_of
from gitops_hook.log import log

#: Whether a secret has made what a request shows for itself.
Proof = Callable[[bytes], bool]


def signing_key(secret: bytes) -> bytes | None:
    """The key in a secret of Standard Webhooks, ``whsec_`` and base64; None for another secret, or an empty key."""
    marked = secret.startswith(b"whsec_")
    return (decode_base64(secret[6:]) or None) if marked else None


class Secrets:
    """The shared secrets, any of which proves a request, each called by where it stands ("line 1")."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        if not secrets or not all(secrets.values()):
            raise ValueError("an empty secret proves nothing")
        self._secrets = dict(secrets)

    def match(self, proof: Proof | None) -> str | None:
        """What the secret is called that `proof` holds for; None if there is none.

        Every secret is tried whichever matches, so the time taken tells nothing.
        """
        matches = [name for name, secret in self._secrets.items() if proof and proof(secret)]
        return matches[0] if matches else None

    def fingerprint(self, name: str) -> str:
        """The `fingerprint` of the secret that is called so."""
        return fingerprint(self._secrets[name])


def fingerprint(secret: bytes) -> str:
    """What tells a secret from another one, and nothing about it: 64 bits of an HMAC."""
    return hmac.digest(secret, b"gitops-hook: which secret is this?", "sha256")[:8].hex()


def decode_base64(text: bytes) -> bytes:
    """What base64 stands for; nothing where it is not base64."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def read_secrets(path: Path) -> dict[int, bytes]:
    """The secrets in a file, one a line, by the numbers of their lines; a secret may hold blanks within."""
    lines = enumerate(path.read_bytes().splitlines(), 1)
    return {number: line.strip() for number, line in lines if line.strip()}


class SecretSource:
    """The secrets in force: the environment's, then those of the file as it stands now."""

    def __init__(self, secret: str, path: Path | None) -> None:
        """Read `path`, if any; raises `ConfigError` where it cannot be read or there is no secret at all."""
        self._fixed = {"environment": os.fsencode(secret)} if secret else {}
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        if not self._fixed and not path:
            raise ConfigError("there is no secret: set GITHUB_WEBHOOK_SECRET_FILE or GITHUB_WEBHOOK_SECRET")
        try:
            self._secrets = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"GITHUB_WEBHOOK_SECRET_FILE={str(path)!r} will not do: {reason_of(error)}") from None

    def current(self) -> Secrets:
        """The secrets, read again if the file has changed. While it cannot be read, the last ones stay in force."""
        # Threads may read the same change twice; each assignment is whole, so no lock is needed.
        if self._path:
            try:
                if self._look(self._path) != self._stamp:
                    self._secrets = self._read()
                    log.info("the secrets were read again", file=self._path)
            except (OSError, ValueError) as error:
                if self._stamp is not None:  # said once, not at every request
                    self._stamp = None
                    log.error("the last secrets stay in force", file=self._path, reason=reason_of(error))
        return self._secrets

    def _read(self) -> Secrets:
        secrets = dict(self._fixed)
        if self._path:
            stamp = self._look(self._path)  # before the file is read: a change in between is seen at the next look
            secrets.update({f"line {number}": secret for number, secret in read_secrets(self._path).items()})
            if len(secrets) == len(self._fixed):
                raise ValueError("it holds no secret")
            self._stamp = stamp
        return Secrets(secrets)

    @staticmethod
    def _look(path: Path) -> tuple[int, int, int]:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
