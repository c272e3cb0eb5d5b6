"""Create, repair, verify, list and delete the webhooks at GitHub.

Rules:

1. A hook is ours if it sends to the URL that the operator gave, or if `register` remembered its id. Others are never
   changed. No payload chooses the URL.
2. A correct hook stays unchanged, so an interrupted command can be repeated.
3. The journal, not the forge, shows that a hook works: its ping must be recorded there.

A `target` is the owner of a hook: ``owner/name`` for a repository, a plain name for an organization.

Sources: GitHub, REST API endpoints for repository webhooks, organization webhooks, and their deliveries.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gitops_hook.config import WEBHOOK
from gitops_hook.errors import GitopsError
from gitops_hook.github.client import ApiError, Client
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import HookPing
from gitops_hook.secrets import fingerprint
from gitops_hook.text import parse_rfc3339, printable

#: The events of a webhook: pushes, and new names of the repository.
EVENTS = ["push", "repository"]
#: Seconds between reads of the journal for a ping.
_POLL = 0.2
#: Seconds for which a recorded ping proves that a hook works. A repeated command does not ping a thousand hooks twice.
_FRESH = 3600.0
#: The problem and the check for a failed delivery: by words in the forge's message, then by the HTTP status.
_BY_WORDS = (
    (r"resolv|host ?name|\bdns\b", "DNS: the forge cannot resolve the URL's host. Check its public name: dig {host}"),
    (
        r"certificate|ssl|tls",
        "TLS: the forge does not trust the certificate. Check: openssl s_client -connect {host}:443",
    ),
    (
        r"timed? ?out",
        "no answer within 10 s: a firewall drops the packets, or the proxy gets no answer. Check: curl -i {url}",
    ),
    (r"connect", "no connection: a firewall rejects it, or the proxy is down. Check: curl -i {url}"),
)
_BY_STATUS = {
    401: "the secret differs from the daemon's. To read the file again: systemctl restart gitops-hook",
    403: "a proxy rejects the forge. Check its rules for {url}",
    404: "the URL's path does not reach the daemon: the proxy must forward " + WEBHOOK + ", see docs/proxies.md",
    405: "the URL's path does not reach the daemon: the proxy must forward " + WEBHOOK + ", see docs/proxies.md",
    413: "the proxy rejects bodies of this size: client_max_body_size 25m in nginx, see docs/proxies.md",
    502: "the proxy does not reach the daemon. Check: gitops-hook doctor",
    503: "the daemon cannot write its journal, or the proxy does not reach it. Check: gitops-hook doctor",
    504: "the proxy gets no answer from the daemon. Check: gitops-hook doctor",
}


class Registration(NamedTuple):
    """The result of `Hooks.register` or `Hooks.unregister` for one target. `trouble` is empty after success.

    `change` is created, updated, unchanged, deleted or failed. `problems` are the wrong properties of the hook that was
    found. `moved` is the new name of a renamed repository.
    """

    target: str
    change: str
    hook: int = 0
    problems: tuple[str, ...] = ()
    moved: str = ""
    trouble: str = ""


class Listed(NamedTuple):
    """A webhook as the forge shows it.

    `standing` is right, wrong, unproven or foreign, and `problems` are its wrong properties. `last` is the time of its
    last delivery in seconds since the epoch, and `status` the result.
    """

    target: str
    hook: int
    url: str
    events: tuple[str, ...]
    last: float | None
    status: str
    standing: str
    problems: tuple[str, ...]


def complete(url: str) -> str:
    """Return the URL with our path if it has none. Raises `GitopsError` for a URL that no forge can deliver to."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("https", "http") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # an unclosed bracket, or a port that is not a number
        fits = False
    if not fits:
        raise GitopsError(64, f"`{printable(url)}` is not a URL that a forge could deliver to")
    return url if parts.path.strip("/") else url.rstrip("/") + WEBHOOK


class Hooks:
    """The webhooks of many targets with one URL. One thread at a time may use it."""

    def __init__(
        self,
        client: Client,
        journal: JournalReader,
        secret: bytes,
        url: str = "",
        *,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Create the webhooks of one URL. Without a `url`, it is that of the last registration, or "" without one.

        `secret` is the newest one. `timeout` is the time to wait for a ping in seconds.
        """
        self.client = client
        self.journal = journal
        self._secret = secret
        self._registered = {ping.hook: ping for ping in journal.hook_pings()}
        newest = max(self._registered.values(), key=lambda ping: ping.received, default=None)
        self.url = complete(url) if url else newest.url if newest else ""
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep

    # -- create and repair --------------------------------------------------------------------------------------------

    def register(self, target: str, remember: Callable[[int], object], *, dry_run: bool = False) -> Registration:
        """Create or repair the hook of `target`, and wait for its ping. Raises `ApiError`.

        `remember` stores the id of the hook in the journal, which records the pings of remembered hooks only.
        """
        hook, moved = self._find(target)
        problems = _find_problems(hook, self.url) if hook else ()
        change = "unchanged" if hook and not problems else "updated" if hook else "created"
        number = hook["id"] if hook else 0
        if dry_run:
            return Registration(target, change, number, problems, moved)
        began = self._clock()
        if not hook:
            number = self._write("POST", hook_path(target), {"name": "web", **self._wanted()})["id"]
        elif problems:
            self._write("PATCH", hook_path(target, number), self._wanted())
        remember(number)
        if hook and not problems and self._is_fresh(number, began):
            return Registration(target, change, number, problems, moved)
        status, trouble = self._prove(target, number, began)
        if status == 401 and change == "unchanged":  # GitHub hides the secret, so only a ping reveals a wrong one
            change, problems = "updated", ("secret",)
            self._write("PATCH", hook_path(target, number), self._wanted())
            status, trouble = self._prove(target, number, self._clock())
        return Registration(target, change, number, problems, moved, trouble)

    def unregister(self, target: str, *, dry_run: bool = False) -> Registration:
        """Delete our hook of `target`. Raises `ApiError`."""
        hook, moved = self._find(target)
        if not hook:
            return Registration(target, "unchanged", moved=moved)
        if not dry_run:
            self.client.call("DELETE", hook_path(target, hook["id"]))
        return Registration(target, "deleted", hook["id"], moved=moved)

    def _find(self, target: str) -> tuple[dict[str, Any] | None, str]:
        """Return the hook of `target` with our URL, and the new name of the target if it was renamed."""
        hooks, moved = self.client.listing(hook_path(target) + "?per_page=100")
        ours = [hook for hook in hooks if _config(hook).get("url") == self.url and isinstance(hook.get("id"), int)]
        return (ours[0] if ours else None), self._name(target) if moved else ""

    def _name(self, target: str) -> str:
        value = self.client.call("GET", f"/repos/{target}").value
        return printable(str(value.get("full_name", ""))) if isinstance(value, dict) else ""

    def _wanted(self) -> dict[str, object]:
        config = {"url": self.url, "content_type": "json", "secret": self._secret.decode(), "insecure_ssl": "0"}
        return {"active": True, "events": EVENTS, "config": config}

    def _write(self, method: str, path: str, body: object) -> dict[str, Any]:
        value = self.client.call(method, path, body).value
        if not isinstance(value, dict) or not isinstance(value.get("id"), int):
            raise ApiError(f"the answer to {method} {path} is not a webhook")
        return value

    # -- verify -----------------------------------------------------------------------------------------------------

    def _prove(self, target: str, hook: int, since: float) -> tuple[int, str]:
        """Ping a hook; return 0 and "" if the ping arrives, else the HTTP status that the forge got and the reason."""
        self.client.call("POST", hook_path(target, hook) + "/pings")
        deadline = self._clock() + self._timeout
        while self._clock() < deadline:
            ping = self._ping(hook)
            if ping and ping.received >= since:
                return (0, "") if self._is_newest(ping) else (401, "its ping is signed with an older secret")
            self._sleep(_POLL)
        for delivery in self.client.pages(f"{hook_path(target, hook)}/deliveries?per_page=30"):
            if delivery.get("event") == "ping":
                return status_of(delivery), f"its ping did not arrive: {self.reason(delivery)}"
        return (
            -1,
            f"its ping did not arrive within {self._timeout:.0f} s: the forge has not tried to deliver it yet",
        )

    def _is_fresh(self, hook: int, now: float) -> bool:
        """Return True if the hook was pinged recently and signed with the newest secret."""
        ping = self._ping(hook)
        return ping is not None and ping.received >= now - _FRESH and self._is_newest(ping)

    def _is_newest(self, ping: HookPing) -> bool:
        return ping.signed == fingerprint(self._secret)

    def _ping(self, hook: int) -> HookPing | None:
        return next((ping for ping in self.journal.hook_pings() if ping.hook == hook), None)

    def reason(self, delivery: dict[str, Any]) -> str:
        """Return the reason of a failed delivery, from the forge's message, and the check to make."""
        status, said = status_of(delivery), printable(str(delivery.get("status", "")))
        host = urlsplit(self.url).hostname or ""
        fix = next((fix for words, fix in _BY_WORDS if re.search(words, said, re.IGNORECASE)), None)
        if 200 <= status < 300:
            fix = "it was accepted by a daemon with another journal, or before the webhook was registered"
        elif 300 <= status < 400:
            fix = "a redirect, which the forge does not follow. Register the URL of its target"
        elif not fix or (status in _BY_STATUS and status < 500):
            fix = _BY_STATUS.get(status, "the forge gives no details")
        return f"{status or ''} {said}: {fix.format(host=host, url=self.url)}".strip()

    # -- list -----------------------------------------------------------------------------------------------------

    def listed(self, target: str) -> Iterator[Listed]:
        """Yield each webhook of `target`, also those that are not ours. Raises `ApiError`."""
        for hook in self.client.pages(hook_path(target) + "?per_page=100"):
            number, url = _number(hook), str(_config(hook).get("url", ""))
            ping = self._registered.get(number)
            ours = bool(ping) or (bool(self.url) and url == self.url)
            problems = _find_problems(hook, url if ping and not self.url else self.url) if ours else ()
            arrived = bool(ping and ping.received)
            if ping and arrived and not self._is_newest(ping):
                problems += ("secret",)
            standing = "foreign" if not ours else "wrong" if problems else "right" if arrived else "unproven"
            last, status = self._last(target, hook) if ours else (None, _last_response(hook))
            events = tuple(printable(str(event)) for event in hook.get("events") or ())
            yield Listed(target, number, printable(url, 200), events, last, status, standing, problems)

    def _last(self, target: str, hook: dict[str, Any]) -> tuple[float | None, str]:
        """Return the time and the result of the last delivery."""
        for delivery in self.client.pages(f"{hook_path(target, _number(hook))}/deliveries?per_page=1"):
            return delivery_time(delivery), f"{status_of(delivery)} {printable(str(delivery.get('status', '')))}"
        return None, _last_response(hook)


def hook_path(target: str, hook: int = 0) -> str:
    """Return the API path of the webhooks of `target`, or of one webhook."""
    path = f"/repos/{target}/hooks" if "/" in target else f"/orgs/{target}/hooks"
    return f"{path}/{hook}" if hook else path


def _number(hook: dict[str, Any]) -> int:
    number = hook.get("id")
    return number if isinstance(number, int) else 0


def _config(hook: dict[str, Any]) -> dict[str, Any]:
    config = hook.get("config")
    return config if isinstance(config, dict) else {}


def _find_problems(hook: dict[str, Any], url: str) -> tuple[str, ...]:
    """Return the wrong properties of a hook. The forge does not show its secret."""
    config = _config(hook)
    checks = {
        "url": config.get("url") == url,
        "content_type": config.get("content_type") == "json",
        "insecure_ssl": str(config.get("insecure_ssl", "0")) == "0",
        "secret": bool(config.get("secret")),
        "events": isinstance(hook.get("events"), list) and sorted(map(str, hook["events"])) == EVENTS,
        "active": hook.get("active") is True,
    }
    return tuple(name for name, right in checks.items() if not right)


def status_of(delivery: dict[str, Any]) -> int:
    """Return the HTTP status of a delivery, or 0 without one."""
    status = delivery.get("status_code")
    return status if isinstance(status, int) else 0


def _last_response(hook: dict[str, Any]) -> str:
    response = hook.get("last_response")
    response = response if isinstance(response, dict) else {}
    return printable(" ".join(str(response[name]) for name in ("code", "message") if response.get(name)))


def delivery_time(delivery: dict[str, Any]) -> float | None:
    """Return the time of a delivery in seconds since the epoch, or None if it is malformed."""
    try:
        return parse_rfc3339(str(delivery.get("delivered_at")))
    except ValueError:
        return None
