"""Keep the shared secrets, and match the signature of a request against them.

Rules:

1. Several secrets are valid at the same time, so that an operator can replace one without losing a delivery.
2. The secrets file is read again after a change. While it is invalid, the previous secrets stay valid.
3. The time that a comparison takes does not depend on the secret that matches. No message contains a secret.
4. A secret is UTF-8, because forges store it as text.
"""

from __future__ import annotations

import hmac
import os
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path

from gitops_hook.config import ENVIRONMENT_FILE
from gitops_hook.errors import ConfigError, reason_of
from gitops_hook.log import log

#: A function that returns True if a secret made the signature of a request.
Proof = Callable[[bytes], bool]
#: A shorter secret is reported: 16 random bytes are 128 bits. GitHub recommends random text of high entropy.
MIN_BYTES = 16


def signing_key(secret: bytes) -> bytes | None:
    """Return the key of a secret in the format of Standard Webhooks, ``whsec_`` and base64, or None."""
    return (decode_base64(secret[6:]) or None) if secret.startswith(b"whsec_") else None


class Secrets:
    """The valid secrets, by the name of their source: "environment" or "line 1"."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        if not secrets or not all(secrets.values()):
            raise ValueError("a secret is empty")
        self._secrets = dict(secrets)

    def match(self, proof: Proof | None) -> str | None:
        """Return the name of the first secret for which `proof` returns True, or None. It tries every secret."""
        matches = [name for name, secret in self._secrets.items() if proof and proof(secret)]
        return matches[0] if matches else None

    def fingerprint(self, name: str) -> str:
        """Return the `fingerprint` of the secret with a name."""
        return fingerprint(self._secrets[name])


def fingerprint(secret: bytes) -> str:
    """Return 64 bits of an HMAC that identify a secret without revealing it."""
    return hmac.digest(secret, b"gitops-hook: which secret is this?", "sha256")[:8].hex()


def decode_base64(text: bytes) -> bytes:
    """Decode base64. Return no bytes for invalid input."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def read_secrets(path: Path) -> dict[int, bytes]:
    """Return the secrets of a file, one per line, by line number. A secret may contain spaces.

    Empty lines and lines that start with ``#`` are no secrets. Raises OSError, or ValueError if a line is not UTF-8.
    """
    secrets = {}
    for number, line in enumerate(map(bytes.strip, path.read_bytes().splitlines()), 1):
        if line and not line.startswith(b"#"):
            secrets[number] = line
            try:
                line.decode()
            except UnicodeDecodeError:
                raise ValueError(f"line {number} is not UTF-8") from None
    return secrets


class SecretSource:
    """The currently valid secrets: the one from the environment, then those of the file."""

    def __init__(self, secret: str, path: Path | None) -> None:
        """Read `path`, if it is not None. Raises `ConfigError` if that fails, or if there is no secret."""
        self._fixed = {"environment": secret.encode()} if secret else {}
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        if not self._fixed and not path:
            raise ConfigError("there is no secret. Set GITHUB_WEBHOOK_SECRET_FILE or GITHUB_WEBHOOK_SECRET")
        try:
            self._secrets = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"GITHUB_WEBHOOK_SECRET_FILE={str(path)!r} is invalid: {reason_of(error)}") from None

    def current(self) -> Secrets:
        """Return the secrets, after reading the file again if it has changed."""
        # No lock: each assignment is atomic, and two threads that read the same change get the same result.
        if self._path:
            try:
                if self._stat_of(self._path) != self._stamp:
                    self._secrets = self._read()
                    log.info("secrets file read again", file=self._path)
            except (OSError, ValueError) as error:
                if self._stamp is not None:  # log it once, not at every request
                    self._stamp = None
                    log.error(
                        "the secrets file is invalid; the previous secrets stay valid",
                        file=self._path,
                        reason=reason_of(error),
                    )
        return self._secrets

    def places(self, environ: Mapping[str, str]) -> list[str]:
        """Return where an operator finds the secrets: a variable, and a file or the setting of a systemd credential.

        `environ` are the variables of the daemon. Only the daemon can read its copy of a credential, so the result has
        the file that the shipped unit loads, or else the name of the unit's setting.
        """
        found = ["GITHUB_WEBHOOK_SECRET"] if self._fixed else []
        if self._path and str(self._path.parent) == environ.get("CREDENTIALS_DIRECTORY"):
            original = ENVIRONMENT_FILE.with_name(self._path.name)
            is_there = os.path.exists(original)  # noqa: PTH110 - Path.exists raises without permission
            found.append(str(original) if is_there else f"LoadCredential={self._path.name}")
        elif self._path:
            found.append(str(self._path))
        return found

    def _read(self) -> Secrets:
        secrets = dict(self._fixed)
        if self._path:
            stamp = self._stat_of(self._path)  # before the read, so that a later change is noticed next time
            secrets.update({f"line {number}": secret for number, secret in read_secrets(self._path).items()})
            if len(secrets) == len(self._fixed):
                raise ValueError("it contains no secret")
            self._stamp = stamp
        for name, secret in secrets.items():
            if len(secret) < MIN_BYTES:
                log.warning(f"a secret has less than {MIN_BYTES} bytes, so it may be guessed", secret=name)
        return Secrets(secrets)

    @staticmethod
    def _stat_of(path: Path) -> tuple[int, int, int]:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
