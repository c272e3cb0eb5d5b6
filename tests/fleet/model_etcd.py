"""A model of the part of etcd that roll-outs need, in memory and with a history that watchers read at their own pace."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from gitops_hook.fleet.messages import KeyValue
from gitops_hook.fleet.rollout import Transaction


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


class ModelEtcd:
    """Keys with their revisions. `history` has every event in order."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[str, KeyValue] = {}
        self.history: list[KeyValue] = []

    def apply(self, transaction: Transaction) -> bool:
        """Apply a transaction; return whether its comparisons held."""
        if not all(self._holds(comparison) for comparison in transaction.compare):
            return False
        self.revision += 1
        for operation in transaction.then:
            ((kind, content),) = operation.items()
            {"request_put": self._put, "request_delete_range": self._delete}[kind](content)
        return True

    def expire(self, lease: int) -> None:
        """End a lease: its keys disappear."""
        gone = [pair for pair in self.keys.values() if pair.lease == lease]
        self.revision += bool(gone)
        for pair in gone:
            self._record(pair.key, None)

    def _holds(self, comparison: Any) -> bool:
        pair = self.keys.get(_text(comparison["key"]))
        field, of_absent = {"CREATE": ("create_revision", 0), "MOD": ("mod_revision", 0)}[comparison["target"]]
        actual = getattr(pair, field) if pair else of_absent
        checks: dict[str, Callable[[int], bool]] = {
            "EQUAL": lambda value: actual == value,
            "GREATER": lambda value: actual > value,
        }
        return checks[comparison.get("result", "EQUAL")](int(comparison[field]))

    def _put(self, content: Any) -> None:
        key = _text(content["key"])
        old = self.keys.get(key)
        self._record(
            key,
            KeyValue(
                key,
                base64.b64decode(content["value"]),
                old.create_revision if old else self.revision,
                self.revision,
                old.version + 1 if old else 1,
                int(content["lease"]),
            ),
        )

    def _delete(self, content: Any) -> None:
        if _text(content["key"]) in self.keys:
            self._record(_text(content["key"]), None)

    def _record(self, key: str, pair: KeyValue | None) -> None:
        if pair:
            self.keys[key] = pair
        else:
            del self.keys[key]
        self.history.append(pair or KeyValue(key, b"", 0, self.revision, 0, 0))

    def below(self, prefix: str) -> Sequence[KeyValue]:
        """Return the pairs below a prefix."""
        return [pair for key, pair in sorted(self.keys.items()) if key.startswith(prefix)]
