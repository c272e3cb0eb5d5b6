"""Signed test deliveries to the local daemon, as a forge would send them.

A test push names no commit, so the script asks the remote for the current one.
"""

from __future__ import annotations

import http.client
import json
import time
import uuid
from contextlib import closing
from hashlib import sha256
from hmac import new as hmac

from gitops_hook.cli.messages import EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE
from gitops_hook.config import WEBHOOK, Address, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Run
from gitops_hook.names import repository_of
from gitops_hook.secrets import read_secrets

#: Seconds between two queries of the journal.
_POLL = 0.1
#: Seconds to wait for the daemon's answer.
_TIMEOUT = 30


def newest_secret(settings: Settings) -> bytes:
    """Return the secret that the daemon tries first. Raises `GitopsError` if there is none, or if it is invalid."""
    if settings.webhook_secret:
        return settings.webhook_secret.encode()
    try:
        secrets = read_secrets(settings.webhook_secret_file) if settings.webhook_secret_file else {}
    except OSError as error:
        raise GitopsError(EX_NOPERM, f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        problem = f"GITHUB_WEBHOOK_SECRET_FILE={str(settings.webhook_secret_file)!r} is invalid: {error}"
        raise GitopsError(EX_CONFIG, problem) from None
    if not secrets:
        raise GitopsError(EX_CONFIG, "there is no secret: set GITHUB_WEBHOOK_SECRET_FILE or GITHUB_WEBHOOK_SECRET")
    return next(iter(secrets.values()))


def send_push(
    listen: Address, secret: bytes, checkout: str, ref: str, default_branch: str | None
) -> tuple[str, int, str]:
    """Deliver a push of the full name `ref` to the daemon at `listen`; return GUID, HTTP status and answer."""
    repository = repository_of(checkout)
    payload = {
        "ref": ref,
        "repository": {
            "name": repository.rpartition("/")[2],
            "full_name": repository,
            "default_branch": default_branch,
        },
        "pusher": {"name": "gitops-hook send"},
    }
    return send_event(listen, secret, "push", payload)


def send_event(listen: Address, secret: bytes, event: str, payload: object) -> tuple[str, int, str]:
    """Deliver an event to the daemon at `listen`; return the GUID, the HTTP status and the answer.

    Raises `GitopsError` if no daemon answers there.
    """
    body = json.dumps(payload).encode()
    guid = str(uuid.uuid4())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "gitops-hook send",
        "X-GitHub-Delivery": guid,
        "X-GitHub-Event": event,
        "X-Hub-Signature-256": "sha256=" + hmac(secret, body, sha256).hexdigest(),
    }
    with closing(http.client.HTTPConnection(*listen.connectable, timeout=_TIMEOUT)) as connection:
        try:
            connection.request("POST", WEBHOOK, body, headers)
            response = connection.getresponse()
            return guid, response.status, response.read().decode("utf-8", "replace").strip()
        except OSError as error:
            raise GitopsError(EX_UNAVAILABLE, f"no daemon answers at {listen}: {error.strerror or error}") from None
        except http.client.HTTPException:
            raise GitopsError(EX_UNAVAILABLE, f"the server at {listen} is not gitops-hook") from None


def wait_for_run(journal: JournalReader, guid: str, checkout: str, timeout: float) -> Run | None:
    """Return the run of a checkout that served a delivery after it has ended; None after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for delivery in journal.deliveries(guid):
            run = journal.run(delivery.run) if delivery.run else None
            if run and run.outcome and run.repository.lower() == checkout.lower():
                return run
        time.sleep(_POLL)
    return None
