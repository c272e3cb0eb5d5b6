"""A small GitHub: a real HTTP server that keeps repositories, their webhooks and the statuses of their commits.

It delivers for real: a hook that is made or pinged, and a delivery that is asked for again, become requests to the
hook's URL, signed with its secret. What it was asked, it remembers (`asked`); what goes wrong, a test says (`faults`).
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from harness import headers, push

TOKEN = "github_pat_" + "11ABCDEFG0" * 6


class Asked(NamedTuple):
    """A request, and when it came by the forge's clock."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]
    when: float


class Fault(NamedTuple):
    """Replace the response to requests that match ``METHOD path``, `times` times (-1: always)."""

    pattern: str
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: Any = MappingProxyType({"message": "as the test wants it"})
    times: int = 1
    #: "" to answer, "cut" to end in the middle of the answer, "hang" to say nothing until the forge is closed,
    #: "close" to hang up at once.
    manner: str = ""


class Forge:
    """The server, in threads of this process. `clock` is what its limits and its deliveries go by."""

    def __init__(self, clock: Callable[[], float] = time.time, prefix: str = "") -> None:
        self.clock = clock
        self.prefix = prefix
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        #: Names in lower case to names; and those by which a repository was known before.
        self.repositories: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.hooks: dict[str, list[dict[str, Any]]] = {}
        self.deliveries: dict[int, list[dict[str, Any]]] = {}
        self.statuses: list[tuple[str, str, dict[str, Any]]] = []
        self.deployments: list[dict[str, Any]] = []
        #: The deploy keys, and what happens when one is added.
        self.keys: list[dict[str, Any]] = []
        self.key_added: Callable[[str], object] = lambda key: None
        self.scopes: str | None = None
        #: Requests that are let through in an hour, and how many had to be turned away.
        self.limit = 0
        self.turned_away = 0
        self._window = (0.0, 0)
        self._ids = itertools.count(1000)
        self.lock = threading.RLock()
        self.closing = threading.Event()
        forge = self

        class Handler(_Handler):
            def forge(self) -> Forge:
                return forge

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, *names: str) -> None:
        for name in names:
            self.repositories[name.lower()] = name
            self.hooks.setdefault(name.lower(), [])

    def rename(self, old: str, new: str) -> None:
        self.add(new)
        self.hooks[new.lower()] = self.hooks.pop(old.lower())
        del self.repositories[old.lower()]
        self.moved[old.lower()] = new

    def hook(self, target: str, url: str, *, secret: str = "", **more: Any) -> dict[str, Any]:
        """A hook that somebody has typed in."""
        config = {"url": url, "content_type": "json", "insecure_ssl": "0", "secret": secret}
        made = {"type": "Repository", "id": next(self._ids), "name": "web", "active": True, "events": ["push", "repository"],
                "config": config, "last_response": {"code": None, "status": "unused", "message": None}, **more}  # fmt: skip
        self.hooks.setdefault(target.lower(), []).append(made)
        self.deliveries[made["id"]] = []
        return made

    def missed(self, target: str, hook: int, *, guid: str = "", status: int = 502, said: str = "failed to connect to host",
               ago: float = 600, payload: Any = None, event: str = "push", redelivery: bool = False) -> dict[str, Any]:  # fmt: skip
        """A delivery that was made some seconds ago."""
        delivery = {
            "id": next(self._ids), "guid": guid or str(uuid.uuid4()), "delivered_at": _iso(self.clock() - ago),
            "redelivery": redelivery, "duration": 0.1, "status": said, "status_code": status, "event": event,
            "action": None, "installation_id": None, "repository_id": None, "throttled_at": None,
            "payload": payload or push(target),
        }  # fmt: skip
        self.deliveries[hook].append(delivery)
        return delivery

    def writes(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method != "GET"]

    def deliver(
        self, target: str, hook: dict[str, Any], event: str, payload: Any, guid: str = "", again: bool = False
    ) -> None:
        """Send to the hook's URL, as GitHub does, and keep what came of it."""
        body, guid, began = json.dumps(payload).encode(), guid or str(uuid.uuid4()), time.monotonic()
        fields = headers(body, event, guid=guid, secret=hook["config"]["secret"])
        request = urllib.request.Request(hook["config"]["url"], body, fields, method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as response:
                status, said = response.status, "OK"
        except urllib.error.HTTPError as error:
            status, said = error.code, f"Invalid HTTP Response: {error.code}"
            error.close()
        except OSError as error:
            status, said = 502, "failed to connect to host" if "refused" in str(error) else str(error)
        with self.lock:
            made = self.missed(target, hook["id"], guid=guid, status=status, said=said, ago=0, payload=payload, event=event, redelivery=again)  # fmt: skip
            made["duration"] = round(time.monotonic() - began, 2)
            hook["last_response"] = {"code": status, "status": "active", "message": said}

    def ping(self, target: str, hook: dict[str, Any]) -> None:
        payload: dict[str, Any] = {"zen": "Keep it logically awesome.", "hook_id": hook["id"], "hook": self.shown(hook)}
        if "/" in target:
            payload["repository"] = push(self.repositories[target.lower()])["repository"]
        else:
            payload["organization"] = {"login": target}
        threading.Thread(target=self.deliver, args=(target, hook, "ping", payload), daemon=True).start()

    def shown(self, hook: dict[str, Any]) -> dict[str, Any]:
        config = {**hook["config"], **({"secret": "********"} if hook["config"]["secret"] else {})}
        times = dict.fromkeys(("updated_at", "created_at"), "2026-11-23T00:00:00Z")
        urls = dict.fromkeys(("url", "test_url", "ping_url"), f"{self.url}/hooks/{hook['id']}")
        return {**hook, "config": config, **times, **urls}

    def new_id(self) -> int:
        return next(self._ids)

    def let_through(self) -> tuple[bool, dict[str, str]]:
        """Return whether the rate limit allows another request, and the headers with the limits."""
        if not self.limit:
            return True, {}
        start, used = self._window
        if self.clock() >= start + 3600:
            start, used = self.clock(), 0
        fits = used < self.limit
        self.turned_away += not fits
        self._window = (start, used + fits)
        left = self.limit - self._window[1]
        return fits, {"x-ratelimit-remaining": str(left), "x-ratelimit-reset": str(int(start + 3600) + 1)}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(BaseHTTPRequestHandler):
    """One request, dispatched by the table below."""

    protocol_version = "HTTP/1.1"

    def forge(self) -> Forge:
        raise NotImplementedError

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        forge, length = self.forge(), int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        body = json.loads(text) if text else None
        with forge.lock:
            path = self.path[len(forge.prefix) :]
            forge.asked.append(Asked(self.command, path, body, dict(self.headers), forge.clock()))
            fault = next((f for f in forge.faults if f.times and re.search(f.pattern, f"{self.command} {path}")), None)
            if fault:
                forge.faults[forge.faults.index(fault)] = fault._replace(times=fault.times - 1)
                status, fields, value = fault.status, dict(fault.headers), fault.body
            else:
                fits, fields = forge.let_through()
                status, more, value = (
                    self._judge(path, body) if fits else (403, {}, {"message": "API rate limit exceeded"})
                )
                fields.update(more)
        self._send(status, fields, value, fault.manner if fault else "")

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def _send(self, status: int, fields: dict[str, str], value: Any, manner: str) -> None:
        if manner == "hang":
            self.forge().closing.wait(60)
        if manner in ("hang", "close"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return
        content = (
            value if isinstance(value, bytes) else b"" if value is None else json.dumps(value, default=dict).encode()
        )
        self.send_response(status)
        if self.forge().scopes is not None:
            self.send_header("X-OAuth-Scopes", self.forge().scopes)
        for name, text in fields.items():
            self.send_header(name, text)
        if content:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if manner == "cut" else content)
        self.close_connection = True

    def _judge(self, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON, after what GitHub's description says."""
        url, forge = urlsplit(path), self.forge()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"message": "Bad credentials"}
        if url.path == "/rate_limit":
            return 200, {"x-ratelimit-remaining": "4999"}, {"resources": {}, "rate": {}}
        match = re.match(r"/(repos/[^/]+/[^/]+|orgs/[^/]+|repositories/[^/]+~[^/]+)(?:/(.*))?$", url.path)
        if not match:
            return 404, {}, {"message": "Not Found"}
        target = match[1].partition("/")[2].replace("~", "/")
        rest = match[2] or ""
        if target.lower() in forge.moved:
            by_id = f"{forge.url}/repositories/{forge.moved[target.lower()].replace('/', '~')}/{rest}".rstrip("/")
            location = by_id + (f"?{url.query}" if url.query else "")
            return (301 if self.command == "GET" else 307), {"Location": location}, {"message": "Moved Permanently"}
        if match[1].startswith("repos") and target.lower() not in forge.repositories:
            return 404, {}, {"message": "Not Found"}
        if match[1].startswith("orgs") and target.lower() not in forge.hooks:
            return 404, {}, {"message": "Not Found"}
        for method, pattern, act in _ROUTES:
            found = re.fullmatch(pattern, rest)
            if found and method == self.command:
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                return act(forge, target, body, query, *found.groups())
        return 404, {}, {"message": "Not Found"}


Reply = tuple[int, dict[str, str], Any]


def _repository(forge: Forge, target: str, body: Any, query: dict[str, str]) -> Reply:
    return 200, {}, {"full_name": forge.repositories[target.lower()]}


def _page(forge: Forge, path: str, query: dict[str, str], items: list[Any]) -> Reply:
    size, page = int(query.get("per_page", 30)), int(query.get("page", query.get("cursor", 1)))
    shown = items[(page - 1) * size : page * size]
    more = {"Link": f'<{forge.url}{path}?per_page={size}&page={page + 1}>; rel="next", <{forge.url}>; rel="last"'}
    return 200, more if page * size < len(items) else {}, shown


def _base(target: str) -> str:
    return f"/repos/{target}" if "/" in target else f"/orgs/{target}"


def _list(forge: Forge, target: str, body: Any, query: dict[str, str]) -> Reply:
    return _page(forge, f"{_base(target)}/hooks", query, [forge.shown(hook) for hook in forge.hooks[target.lower()]])


def _create(forge: Forge, target: str, body: Any, query: dict[str, str]) -> Reply:
    if any(hook["config"]["url"] == body["config"]["url"] for hook in forge.hooks[target.lower()]):
        return (
            422,
            {},
            {"message": "Validation Failed", "errors": [{"message": "Hook already exists on this repository"}]},
        )
    made = forge.hook(target, **{"secret": "", **body["config"]}, events=body["events"], active=body["active"])
    made["config"] = {"secret": "", **body["config"]}
    forge.ping(target, made)
    return 201, {}, forge.shown(made)


def _with_hook(act: Callable[..., Reply]) -> Callable[..., Reply]:
    def found(forge: Forge, target: str, body: Any, query: dict[str, str], number: str, *more: str) -> Reply:
        hook = next((hook for hook in forge.hooks[target.lower()] if hook["id"] == int(number)), None)
        return act(forge, target, body, query, hook, *more) if hook else (404, {}, {"message": "Not Found"})

    return found


def _update(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any]) -> Reply:
    hook.update(body)
    hook["config"] = {"secret": "", **body["config"]}
    return 200, {}, forge.shown(hook)


def _delete(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any]) -> Reply:
    forge.hooks[target.lower()].remove(hook)
    return 204, {}, None


def _pinged(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any]) -> Reply:
    forge.ping(target, hook)
    return 204, {}, None


def _delivered(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any]) -> Reply:
    items = [
        {name: value for name, value in made.items() if name != "payload"} for made in forge.deliveries[hook["id"]]
    ]
    items.sort(key=lambda made: (made["delivered_at"], made["id"]), reverse=True)
    return _page(forge, f"{_base(target)}/hooks/{hook['id']}/deliveries", query, items)


def _delivery(forge: Forge, hook: dict[str, Any], number: str) -> dict[str, Any] | None:
    return next((made for made in forge.deliveries[hook["id"]] if made["id"] == int(number)), None)


def _detail(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any], number: str) -> Reply:
    made = _delivery(forge, hook, number)
    if not made:
        return 404, {}, {"message": "Not Found"}
    said = {"request": {"headers": {}, "payload": made["payload"]}, "response": {"headers": {}, "payload": ""}}
    return 200, {}, {**made, **said}


def _redeliver(forge: Forge, target: str, body: Any, query: dict[str, str], hook: dict[str, Any], number: str) -> Reply:
    made = _delivery(forge, hook, number)
    if not made:
        return 404, {}, {"message": "Not Found"}
    arguments = (target, hook, made["event"], made["payload"], made["guid"], True)
    threading.Thread(target=forge.deliver, args=arguments, daemon=True).start()
    return 202, {}, {}


def _status(forge: Forge, target: str, body: Any, query: dict[str, str], sha: str) -> Reply:
    forge.statuses.append((target, sha, body))
    return 201, {}, {"id": forge.new_id(), **body}


def _add_key(forge: Forge, target: str, body: Any, query: dict[str, str]) -> Reply:
    made = {"id": forge.new_id(), "target": target, **body}
    forge.keys.append(made)
    forge.key_added(body["key"])
    return 201, {}, made


def _deploy(forge: Forge, target: str, body: Any, query: dict[str, str]) -> Reply:
    made = {"id": forge.new_id(), "target": target, "statuses": [], **body}
    forge.deployments.append(made)
    return 201, {}, made


def _deployment_status(forge: Forge, target: str, body: Any, query: dict[str, str], number: str) -> Reply:
    made = next((made for made in forge.deployments if made["id"] == int(number)), None)
    if not made:
        return 404, {}, {"message": "Not Found"}
    made["statuses"].append(body)
    return 201, {}, body


_HOOK = r"hooks/(\d+)"
_ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", "", _repository),
    ("GET", "hooks", _list),
    ("POST", "hooks", _create),
    ("PATCH", _HOOK, _with_hook(_update)),
    ("DELETE", _HOOK, _with_hook(_delete)),
    ("POST", _HOOK + "/pings", _with_hook(_pinged)),
    ("GET", _HOOK + "/deliveries", _with_hook(_delivered)),
    ("GET", _HOOK + r"/deliveries/(\d+)", _with_hook(_detail)),
    ("POST", _HOOK + r"/deliveries/(\d+)/attempts", _with_hook(_redeliver)),
    ("POST", r"statuses/([0-9a-f]{40})", _status),
    ("POST", "keys", _add_key),
    ("POST", "deployments", _deploy),
    ("POST", r"deployments/(\d+)/statuses", _deployment_status),
)
