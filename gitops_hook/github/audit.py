"""Find the pushes that GitHub could not deliver, and request their redelivery.

Rules:

1. Only registered webhooks whose ping arrived are examined, so the number of calls depends on no payload.
2. A delivery is missed if the forge failed to deliver it and the journal does not know it.
3. A missed delivery is redelivered unless a later run of every checkout of its repository succeeded. The forge's
   list does not name the branch of a push, so any checkout may need it.

Sources: GitHub, REST API endpoints for webhook deliveries; "Handling failed webhook deliveries" for the
limit of three days.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from gitops_hook.github.webhooks import Hooks, delivery_time, hook_path, status_of
from gitops_hook.model import HookPing
from gitops_hook.names import is_valid

#: The time in seconds for which GitHub can redeliver.
REDELIVERABLE = 3 * 86400
#: The tolerated difference in seconds between the clocks of the forge and this host.
_SKEW = 60.0


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


class Audit:
    """The missed deliveries of the registered webhooks. One thread at a time may use it."""

    def __init__(self, hooks: Hooks, clock: Callable[[], float] = time.time) -> None:
        """Create an audit of the webhooks in `hooks`. `clock` returns seconds since the epoch."""
        self._hooks = hooks
        self._client = hooks.client
        self._journal = hooks.journal
        self._clock = clock

    def known(self) -> list[HookPing]:
        """Return the registered hooks whose ping arrived, in the order of their targets."""
        arrived = [ping for ping in self._journal.hook_pings() if ping.received]
        return sorted(arrived, key=lambda ping: (ping.target.lower(), ping.hook))

    def missed(
        self, hook: HookPing, checkouts_of: Callable[[str], Collection[str]], *, redeliver: bool = False
    ) -> Iterator[Missed]:
        """Yield the undelivered pushes of `hook` from the last three days.

        `checkouts_of` returns the names of the checkouts of a repository. A push of a repository without one is left
        out. `redeliver` requests the redelivery of the pushes that no later run replaced. Raises `ApiError`.
        """
        path = f"{hook_path(hook.target, hook.hook)}/deliveries"
        for delivery, first in self._failed(f"{path}?per_page=100"):
            repository = self._repository(hook, path, delivery)
            checkouts = checkouts_of(repository)
            if not checkouts:
                continue
            reason, number = self._hooks.reason(delivery), delivery["id"]
            then = "missed"
            if all(self._journal.is_confirmed_since(name, first + _SKEW) for name in checkouts):
                then = "repaired"
            elif redeliver:
                self._client.call("POST", f"{path}/{number}/attempts")
                then = "redelivered"
            yield Missed(hook.target, repository, hook.hook, number, str(delivery["guid"]), first, reason, then)

    def _failed(self, path: str) -> list[tuple[dict[str, Any], float]]:
        """Return the newest attempt of each undelivered push, and the time of its first attempt; oldest first."""
        horizon = self._clock() - REDELIVERABLE
        attempts: dict[str, tuple[dict[str, Any], float]] = {}
        for delivery in self._client.pages(path):  # newest first
            when = delivery_time(delivery)
            if when is None or when < horizon:
                break
            if delivery.get("event") == "push" and isinstance(delivery.get("id"), int):
                guid = str(delivery.get("guid"))
                attempts[guid] = (attempts[guid][0] if guid in attempts else delivery, when)
        return [attempt for guid, attempt in reversed(attempts.items()) if self._is_missing(guid, attempt[0])]

    def _is_missing(self, guid: str, delivery: dict[str, Any]) -> bool:
        """Return True if the journal lacks a delivery. A 2xx status other than 202 concerned no checkout."""
        status = status_of(delivery)
        return (status == 202 or not 200 <= status < 300) and not self._journal.deliveries(guid)

    def _repository(self, hook: HookPing, path: str, delivery: dict[str, Any]) -> str:
        """Return the repository of a push. If an organization has the hook, only the payload names it."""
        if "/" in hook.target:
            return hook.target
        value: Any = self._client.call("GET", f"{path}/{int(delivery['id'])}").value
        for name in ("request", "payload", "repository", "full_name"):
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) and is_valid(value) else ""
