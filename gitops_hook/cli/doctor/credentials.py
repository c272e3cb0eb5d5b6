"""Checks of the webhook's secret and of the token for GitHub's API."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path

from gitops_hook.cli.deliver import newest_secret, send_event
from gitops_hook.cli.doctor.finding import Results, failure, passed, quote, skipped, warning
from gitops_hook.config import ENVIRONMENT_FILE, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.github.client import ApiError, Client, read_token
from gitops_hook.secrets import MIN_BYTES, read_secrets, signing_key


def secret(settings: Settings) -> Results:
    """Check that there is a secret, that it cannot be guessed, and that no other user can read it."""
    path = settings.webhook_secret_file
    if settings.webhook_secret:
        yield from _check_secrets([settings.webhook_secret.encode()], "GITHUB_WEBHOOK_SECRET", Path("webhook-secret"))
    if not path:
        if not settings.webhook_secret:
            yield failure("there is no secret", _create_secret(ENVIRONMENT_FILE.with_name("webhook-secret")))
        return
    try:
        mode, secrets = path.stat().st_mode, list(read_secrets(path).values())
    except FileNotFoundError:
        yield failure(f"there is no file {path}", _create_secret(path))
    except PermissionError:
        yield warning(f"this user cannot read {path}, so it was not checked", "sudo gitops-hook doctor")
    except ValueError as error:
        yield failure(f"{path} is invalid: {error}", _create_secret(path))
    else:
        yield from _check_secrets(secrets, str(path), path)
        if mode & 0o007:
            yield failure(f"every user of this host can read or write {path}", f"sudo chmod o= {quote(path)}")


def _check_secrets(secrets: list[bytes], place: str, path: Path) -> Results:
    short = _lines(secrets, lambda secret: len(secret) < MIN_BYTES)
    invalid = _lines(secrets, lambda secret: secret.startswith(b"whsec_") and not signing_key(secret))
    if not secrets:
        yield failure(f"{place} contains no secret", _create_secret(path))
    elif short:
        message = f"{place} contains a secret of less than {MIN_BYTES} bytes (line {short})"
        yield failure(message, _create_secret(path))
    elif invalid:
        yield warning(f"{place} contains an incomplete signing token (line {invalid})", f"sudoedit {quote(path)}")
    else:
        yield passed(f"{place}: {len(secrets)} of sufficient length")


def _lines(secrets: list[bytes], matches: Callable[[bytes], bool]) -> str:
    return ", ".join(str(number) for number, secret in enumerate(secrets, 1) if matches(secret))


def _create_secret(path: Path) -> str:
    return f"sudo sh -c 'umask 077 && openssl rand -hex 20 > {quote(path)}' && sudo systemctl restart gitops-hook"


def ping(settings: Settings) -> Results:
    """Check that the daemon accepts a ping that is signed with the newest secret.

    A daemon that still uses older secrets answers every delivery of the forge with 401.
    """
    try:
        secret = newest_secret(settings)
    except GitopsError as error:
        yield skipped(f"no ping was sent: {error}")
        return
    try:
        _, status, _ = send_event(settings.listen, secret, "ping", {"zen": "gitops-hook doctor"})
    except GitopsError as error:
        yield skipped(f"no ping was sent: {error}")
        return
    if status == http.client.OK:
        yield passed("the daemon accepts a ping that is signed with the newest secret")
    elif status == http.client.UNAUTHORIZED:
        message = "the daemon rejects a ping that is signed with the newest secret, so it uses older secrets"
        yield failure(message, "sudo systemctl restart gitops-hook")
    else:
        yield failure(f"the daemon answers a ping with status {status}", "sudo journalctl -u gitops-hook -n 50")


def token(settings: Settings) -> Results:
    """Check that GitHub accepts the token, if there is one, and that no other user can read it."""
    path = settings.token_file
    fix = f"sudoedit {quote(path or ENVIRONMENT_FILE.with_name('github-token'))}"
    try:
        value = read_token(path)
        if not path or not value:
            if settings.report:
                yield failure("GITOPS_REPORT is set, but there is no token for GitHub", fix)
            return
        if path.stat().st_mode & 0o007:
            yield failure(f"every user of this host can read or write {path}", f"sudo chmod o= {quote(path)}")
        # This request does not count against the rate limit.
        rate = Client(settings.api_url, value, patience=0, tries=1).call("GET", "/rate_limit")
    except ApiError as error:
        yield failure(str(error), fix) if error.again is None else warning(str(error), "gitops-hook doctor")
    except GitopsError as error:
        if isinstance(error.__context__, PermissionError):
            yield warning(f"{error}, so it was not checked", "sudo gitops-hook doctor")
        else:
            yield failure(str(error), fix)
    else:
        remaining = rate.headers.get("x-ratelimit-remaining")
        limit = f"; {remaining} requests remain in this hour" if remaining else ""
        yield passed(f"{settings.api_url} accepts the token{limit}")
