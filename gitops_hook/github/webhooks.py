"""The webhooks at GitHub: made, mended, proven, listed and taken away; and the deliveries that never came.

Rules:

1. A hook is ours if it sends to our URL, or if a ping of it has reached the journal. Others are never touched.
2. What is right already is left alone, so any call can be interrupted, and made again.
3. Whether the way is whole is not for the forge to say but for the journal: a ping has to arrive there.
4. A delivery is missed if the forge failed with it and the journal does not know it, and no run of its repository has
   gone well since. Only such are asked for again.

A `target` is whose a hook is: ``owner/name`` for a repository, a plain name for an organisation.

Sources: GitHub, REST API endpoints for repository webhooks, organization webhooks, and their deliveries; "Handling
failed webhook deliveries" for the three days.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gitops_hook.config import WEBHOOK
from gitops_hook.errors import GitopsError
from gitops_hook.github.client import ApiError, Client
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import HookPing
from gitops_hook.names import is_valid
from gitops_hook.secrets import fingerprint
from gitops_hook.text import printable

#: Seconds between looks for a ping, and for which one that has come is proof enough: so a call that was interrupted and
#: is made again does not ping a thousand hooks twice.
_LOOK = 0.2
_FRESH = 3600.0
#: How far back, in seconds, GitHub can deliver again.
REDELIVERABLE = 3 * 86400
#: Seconds by which the forge's clock and ours may differ, where it is asked which of two things came first.
_SKEW = 60.0
#: Where a delivery broke, by what the forge says of it: words first, then the status of the answer.
_BY_WORDS = (
    (r"resolv|host ?name|\bdns\b", "DNS: the forge does not find the URL's host. Check its public name: dig {host}"),
    (r"certificate|ssl|tls", "TLS: the forge does not trust what answers. Check: openssl s_client -connect {host}:443"),
    (r"timed? ?out", "no answer within 10 s: a firewall drops it, or the proxy waits in vain. Check: curl -i {url}"),
    (r"connect", "nobody takes the connection: a firewall refuses it, or the proxy is down. Check: curl -i {url}"),
)
_BY_STATUS = {
    401: "the secret is another one than the daemon's. Have it read its file again: systemctl restart gitops-hook",
    403: "a proxy lets nobody through, or not the forge. Check its rules for {url}",
    404: "the URL's path does not lead to the daemon: the proxy hands over " + WEBHOOK + ", see docs/proxies.md",
    405: "the URL's path does not lead to the daemon: the proxy hands over " + WEBHOOK + ", see docs/proxies.md",
    413: "the proxy lets no body of that size through: client_max_body_size 25m in nginx, see docs/proxies.md",
    502: "the proxy does not reach the daemon. Check: gitops-hook doctor",
    503: "the daemon cannot keep what it accepts, or the proxy does not reach it. Check: gitops-hook doctor",
    504: "the proxy waits in vain for the daemon. Check: gitops-hook doctor",
}


class Registration(NamedTuple):
    """What `Hooks.register` or `unregister` did with one target, or would; `trouble` is empty if all is well.

    `change` is created, updated, unchanged, deleted or failed; `problems` what was not right about the hook, and `moved`
    what its repository is called by now.
    """

    target: str
    change: str
    hook: int = 0
    problems: tuple[str, ...] = ()
    moved: str = ""
    trouble: str = ""


class Listed(NamedTuple):
    """A webhook as the forge has it. `standing` is right, wrong, unproven or foreign; `problems` names what is wrong.

    `last` is when it last delivered, in seconds since the epoch, and `status` what the forge was answered.
    """

    target: str
    hook: int
    url: str
    events: tuple[str, ...]
    last: float | None
    status: str
    standing: str
    problems: tuple[str, ...]


class Missed(NamedTuple):
    """A push that the forge could not deliver. `then` is repaired, redelivered or missed."""

    target: str
    repository: str
    hook: int
    delivery: int
    guid: str
    delivered: float
    reason: str
    then: str


def complete(url: str) -> str:
    """The URL of our webhook: with our own path where it has none. Raises `GitopsError`."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("https", "http") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:  # a bracket that does not close, a port that is no number
        fits = False
    if not fits:
        raise GitopsError(64, f"`{printable(url)}` is not a URL that a forge could deliver to")
    return url if parts.path.strip("/") else url.rstrip("/") + WEBHOOK


class Hooks:
    """The webhooks of many targets that send, or shall send, to one URL. For one thread."""

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
        """`secret` is the newest one. Without a `url` it is that of the newest ping that came; there may be none."""
        self._client = client
        self._journal = journal
        self._secret = secret
        self._proofs = {proof.hook: proof for proof in journal.hook_pings()}
        newest = max(self._proofs.values(), key=lambda proof: proof.received, default=None)
        self.url = complete(url) if url else newest.url if newest else ""
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep

    # -- made and mended --------------------------------------------------------------------------------------------

    def register(self, target: str, *, dry_run: bool = False) -> Registration:
        """Have exactly one right hook at `target`, and see that it reaches us. Raises `ApiError`."""
        hook, moved = self._find(target)
        problems = _find_problems(hook, self.url) if hook else ()
        change = "unchanged" if hook and not problems else "updated" if hook else "created"
        number = hook["id"] if hook else 0
        if dry_run:
            return Registration(target, change, number, problems, moved)
        began = self._clock()
        if not hook:
            number = self._write("POST", _path(target), {"name": "web", **self._wanted()})["id"]
        elif problems:
            self._write("PATCH", _path(target, number), self._wanted())
        elif self._is_fresh(number, began):
            return Registration(target, change, number, problems, moved)
        status, trouble = self._prove(target, number, began)
        if status == 401 and change == "unchanged":  # the forge shows no secret, so only this tells that it is another
            change, problems = "updated", ("secret",)
            self._write("PATCH", _path(target, number), self._wanted())
            status, trouble = self._prove(target, number, self._clock())
        return Registration(target, change, number, problems, moved, trouble)

    def unregister(self, target: str, *, dry_run: bool = False) -> Registration:
        """Take our hook away from `target`. Raises `ApiError`."""
        hook, moved = self._find(target)
        if not hook:
            return Registration(target, "unchanged", moved=moved)
        if not dry_run:
            self._client.call("DELETE", _path(target, hook["id"]))
        return Registration(target, "deleted", hook["id"], moved=moved)

    def _find(self, target: str) -> tuple[dict[str, Any] | None, str]:
        """The hook at `target` that sends to our URL, and the name that the target has by now if it is another."""
        hooks, moved = self._client.listing(_path(target) + "?per_page=100")
        ours = [hook for hook in hooks if _config(hook).get("url") == self.url and isinstance(hook.get("id"), int)]
        return (ours[0] if ours else None), self._name(target) if moved else ""

    def _name(self, target: str) -> str:
        value = self._client.call("GET", f"/repos/{target}").value
        return printable(str(value.get("full_name", ""))) if isinstance(value, dict) else ""

    def _wanted(self) -> dict[str, object]:
        config = {"url": self.url, "content_type": "json", "secret": self._secret.decode(), "insecure_ssl": "0"}
        return {"active": True, "events": ["push"], "config": config}

    def _write(self, method: str, path: str, body: object) -> dict[str, Any]:
        value = self._client.call(method, path, body).value
        if not isinstance(value, dict) or not isinstance(value.get("id"), int):
            raise ApiError(f"the answer to {method} {path} is no webhook")
        return value

    # -- proven -----------------------------------------------------------------------------------------------------

    def _prove(self, target: str, hook: int, since: float) -> tuple[int, str]:
        """Ping, and wait until that has arrived; the status 0 if it has, else what the forge was answered, and why."""
        self._client.call("POST", _path(target, hook) + "/pings")
        deadline = self._clock() + self._timeout
        while self._clock() < deadline:
            proof = self._proof(hook)
            if proof and proof.received >= since:
                return (0, "") if self._is_newest(proof) else (401, "it is signed with an older secret")
            self._sleep(_LOOK)
        for delivery in self._client.pages(f"{_path(target, hook)}/deliveries?per_page=30"):
            if delivery.get("event") == "ping":
                return _status(delivery), f"its ping did not arrive: {self.reason(delivery)}"
        return (
            -1,
            f"its ping did not arrive within {self._timeout:.0f} s: the forge has not tried to deliver it yet",
        )

    def _is_fresh(self, hook: int, now: float) -> bool:
        """Whether a ping of the hook has come of late, signed with the newest secret."""
        proof = self._proof(hook)
        return proof is not None and proof.received >= now - _FRESH and self._is_newest(proof)

    def _is_newest(self, proof: HookPing) -> bool:
        return proof.signed == fingerprint(self._secret)

    def _proof(self, hook: int) -> HookPing | None:
        return next((proof for proof in self._journal.hook_pings() if proof.hook == hook), None)

    def reason(self, delivery: dict[str, Any]) -> str:
        """Why a delivery did not arrive, by what the forge says of it, and what to look at."""
        status, said = _status(delivery), printable(str(delivery.get("status", "")))
        host = urlsplit(self.url).hostname or ""
        fix = next((fix for words, fix in _BY_WORDS if re.search(words, said, re.IGNORECASE)), None)
        if 200 <= status < 300:
            fix = "it was accepted, but by a daemon with another journal than this"
        elif 300 <= status < 400:
            fix = "a redirect, which the forge does not follow. Register the URL that it leads to"
        elif not fix or (status in _BY_STATUS and status < 500):
            fix = _BY_STATUS.get(status, "the forge says no more")
        return f"{status or ''} {said}: {fix.format(host=host, url=self.url)}".strip()

    # -- listed -----------------------------------------------------------------------------------------------------

    def listed(self, target: str) -> Iterator[Listed]:
        """Each webhook of `target`, foreign ones too. Raises `ApiError`."""
        for hook in self._client.pages(_path(target) + "?per_page=100"):
            number, url = int(hook.get("id", 0)), str(_config(hook).get("url", ""))
            proof = self._proofs.get(number)
            ours = bool(proof) or (bool(self.url) and url == self.url)
            problems = _find_problems(hook, url if proof and not self.url else self.url) if ours else ()
            if proof and not self._is_newest(proof):
                problems += ("secret",)
            standing = "foreign" if not ours else "wrong" if problems else "right" if proof else "unproven"
            last, status = self._last(target, hook) if ours else (None, _last_response(hook))
            events = tuple(printable(str(event)) for event in hook.get("events") or ())
            yield Listed(target, number, printable(url, 200), events, last, status, standing, problems)

    def _last(self, target: str, hook: dict[str, Any]) -> tuple[float | None, str]:
        """When the forge last delivered, and what came of it."""
        for delivery in self._client.pages(f"{_path(target, hook['id'])}/deliveries?per_page=1"):
            return _delivered(delivery), f"{_status(delivery)} {printable(str(delivery.get('status', '')))}"
        return None, _last_response(hook)

    # -- audited ----------------------------------------------------------------------------------------------------

    def known(self) -> list[HookPing]:
        """The hooks that have reached us, which are those that can be audited."""
        return sorted(self._proofs.values(), key=lambda proof: (proof.target.lower(), proof.hook))

    def missed(self, hook: HookPing, is_kept: Callable[[str], bool], *, redeliver: bool = False) -> Iterator[Missed]:
        """The pushes of the last three days that `hook` could not deliver, of repositories that this host keeps.

        With `redeliver` the forge is asked to try those again that nothing has made up for. Raises `ApiError`.
        """
        path = f"{_path(hook.target, hook.hook)}/deliveries"
        for delivery, first in self._failed(f"{path}?per_page=100"):
            repository = self._repository(hook, path, delivery)
            if not is_kept(repository):
                continue
            reason, number = self.reason(delivery), delivery["id"]
            then = "missed"
            if self._journal.is_confirmed_since(repository, first + _SKEW):
                then = "repaired"
            elif redeliver:
                self._client.call("POST", f"{path}/{number}/attempts")
                then = "redelivered"
            yield Missed(hook.target, repository, hook.hook, number, str(delivery["guid"]), first, reason, then)

    def _failed(self, path: str) -> list[tuple[dict[str, Any], float]]:
        """The newest try of each push that did not come to us, and when the first was made; oldest first."""
        horizon = self._clock() - REDELIVERABLE
        tries: dict[str, tuple[dict[str, Any], float]] = {}
        for delivery in self._client.pages(path):  # newest first
            when = _delivered(delivery)
            if when is None or when < horizon:
                break
            if delivery.get("event") == "push" and isinstance(delivery.get("id"), int):
                guid = str(delivery.get("guid"))
                tries[guid] = (tries[guid][0] if guid in tries else delivery, when)
        return [tried for guid, tried in reversed(tries.items()) if self._is_missing(guid, tried[0])]

    def _is_missing(self, guid: str, delivery: dict[str, Any]) -> bool:
        """Whether the journal should know a delivery, and does not: any 2xx but 202 says that it moves nothing here."""
        status = _status(delivery)
        return (status == 202 or not 200 <= status < 300) and not self._journal.deliveries(guid)

    def _repository(self, hook: HookPing, path: str, delivery: dict[str, Any]) -> str:
        """Whose push it is; of an organisation's hook only the payload tells."""
        if "/" in hook.target:
            return hook.target
        value: Any = self._client.call("GET", f"{path}/{int(delivery['id'])}").value
        for name in ("request", "payload", "repository", "full_name"):
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) and is_valid(value) else ""


def _path(target: str, hook: int = 0) -> str:
    path = f"/repos/{target}/hooks" if "/" in target else f"/orgs/{target}/hooks"
    return f"{path}/{hook}" if hook else path


def _config(hook: dict[str, Any]) -> dict[str, Any]:
    config = hook.get("config")
    return config if isinstance(config, dict) else {}


def _find_problems(hook: dict[str, Any], url: str) -> tuple[str, ...]:
    """What is not as it should be about a hook. Which secret it has, the forge does not show."""
    config = _config(hook)
    checks = {
        "url": config.get("url") == url,
        "content_type": config.get("content_type") == "json",
        "insecure_ssl": str(config.get("insecure_ssl", "0")) == "0",
        "secret": bool(config.get("secret")),
        "events": hook.get("events") == ["push"],
        "active": hook.get("active") is True,
    }
    return tuple(name for name, right in checks.items() if not right)


def _status(delivery: dict[str, Any]) -> int:
    status = delivery.get("status_code")
    return status if isinstance(status, int) else 0


def _last_response(hook: dict[str, Any]) -> str:
    response = hook.get("last_response")
    response = response if isinstance(response, dict) else {}
    return printable(" ".join(str(response[name]) for name in ("code", "message") if response.get(name)))


def _delivered(delivery: dict[str, Any]) -> float | None:
    """When a delivery was made, in seconds since the epoch."""
    try:
        return datetime.fromisoformat(str(delivery.get("delivered_at")).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
