"""GitHub's OpenAPI description, cut to the paths that are asked here: the whole is 12 MB, more than a mock server bears.

python3 slice_openapi.py api.github.com.json slice.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HOOK = "/{hook_id}"
#: Every path that `gitops_hook` asks.
PATHS = (
    *(
        f"{owner}/hooks{rest}"
        for owner in ("/repos/{owner}/{repo}", "/orgs/{org}")
        for rest in (
            "",
            _HOOK,
            f"{_HOOK}/pings",
            f"{_HOOK}/deliveries",
            _HOOK + "/deliveries/{delivery_id}",
            _HOOK + "/deliveries/{delivery_id}/attempts",
        )
    ),
    "/repos/{owner}/{repo}",
    "/repos/{owner}/{repo}/statuses/{sha}",
    "/repos/{owner}/{repo}/deployments",
    "/repos/{owner}/{repo}/deployments/{deployment_id}/statuses",
    "/rate_limit",
)


def cut(whole: dict[str, Any]) -> dict[str, Any]:
    """The description with `PATHS` alone, and of its components those that they lead to."""
    part = {name: whole[name] for name in ("openapi", "info", "servers")}
    part["paths"] = {path: whole["paths"][path] for path in PATHS}
    waiting, kept = list(references(part["paths"])), {}
    while waiting:
        reference = waiting.pop()
        if reference not in kept:
            _, _, kind, name = reference.split("/", 3)
            kept[reference] = whole["components"][kind][name]
            waiting += references(kept[reference])
    for answer in answers(part["paths"]):
        answer.pop("headers", None)  # their examples lead to pages at GitHub itself
        content = answer.get("content", {})
        if "application/json" in content:
            content["application/vnd.github+json"] = content["application/json"]  # as GitHub's guides say to ask for it
    part["components"] = {}
    for reference, value in kept.items():
        _, _, kind, name = reference.split("/", 3)
        part["components"].setdefault(kind, {})[name] = value
    return part


def answers(paths: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every answer that is described."""
    for path in paths.values():
        for operation in path.values():
            if isinstance(operation, dict):
                yield from operation.get("responses", {}).values()


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` in a part of the description."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(cut(json.loads(source.read_text()))))
