"""Receive the requests of commands: a WSGI application on the control socket.

Rules:

1. Only root and the user of this process may send requests. The kernel identifies the peer (SO_PEERCRED).
2. A request for runs is in the journal before it is acknowledged, like a push, so it survives a kill. The response
   names the delivery of each checkout. The command follows by reading the journal.
3. Every request is a JSON object, and every response too. An error response has a ``reason``, and ``stopping`` is true
   if the process is ending: nothing was stored, and the next process accepts the request.

=================  ===============================================================  ============================
path               request                                                          response
=================  ===============================================================  ============================
``/runs``          ``checkouts`` or ``all``, ``trigger``, ``force``, ``commit``     202 ``requests``
``/deploy``        ``checkout``, ``force``, ``commit``, ``reason``, ``until_push``  202 ``requests``, ``pinned``
``/rollback``      ``checkout``, ``commit``, ``reason``, ``until_push``             202 ``requests``, ``pinned``
``/resume``        ``checkouts``                                                    202 ``requests``
``/cancel``        ``checkouts``                                                    200 ``runs`` that were ended
``/pause``         ``checkouts``, ``reason``, ``until`` (a time, or null)           200
``/config``        ``checkout``, ``name``, ``value`` (null removes it)              200
``/remove``        ``checkout``, ``keep_files``, ``force``                          200 ``leftover``, ``kept``
``/rename``        ``checkout``, ``name``                                           200 ``path``
``/remember-hook`` ``hook``, ``target``, ``url``                                    200
``/forget-ping``   ``target``, ``url``                                              200
=================  ===============================================================  ============================

Every request also has ``by``, the name of the user. ``/deploy`` with a commit, and ``/rollback``, hold the checkout at
that commit, ``pinned``; ``/deploy`` without one releases it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from gitops_hook.errors import HTTPError, JournalError
from gitops_hook.httpd.connection import PEER, Peer
from gitops_hook.journal.names import forget_checkout, rename_checkout
from gitops_hook.journal.writer import Journal
from gitops_hook.log import log
from gitops_hook.model import Delivery
from gitops_hook.names import is_valid_checkout, may_clone
from gitops_hook.sync import holds, moves
from gitops_hook.sync.checkouts import Checkout, Checkouts, position
from gitops_hook.sync.deploy_keys import follow_rename
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.sync.releases import find_commit, last_good_commit
from gitops_hook.sync.settings import write_setting
from gitops_hook.text import printable

#: The reasons for a run that a command can give.
TRIGGERS = ("manual", "sweep", "add", "resume", "deploy", "rollback")
#: The longest request, in bytes: the names of some ten thousand checkouts.
_MAX_LENGTH = 1 << 20
_COMMIT = re.compile("|[0-9a-f]{40}|[0-9a-f]{64}")

_Body = Mapping[str, Any]
_Answer = tuple[int, dict[str, Any]]


class ControlApp:
    """The WSGI application. Any thread may call it."""

    def __init__(
        self,
        journal: Journal,
        checkouts: Checkouts,
        dispatcher: Dispatcher,
        state: Path,
        clone: Sequence[str] = (),
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create the application.

        `state` is the state directory. `clone` holds the patterns of repositories that a run may clone. `now` returns
        seconds since the epoch.
        """
        self._journal = journal
        self._checkouts = checkouts
        self._dispatcher = dispatcher
        self._state = state
        self._clone = clone
        self._now = now
        self._routes: dict[str, Callable[[_Body], _Answer]] = {
            "/runs": self._start_runs,
            "/deploy": self._deploy,
            "/rollback": self._roll_back,
            "/resume": self._resume,
            "/cancel": self._cancel,
            "/pause": self._pause,
            "/config": self._configure,
            "/remove": self._remove,
            "/rename": self._rename,
            "/remember-hook": self._remember_hook,
            "/forget-ping": self._forget_ping,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Respond to a request."""
        try:
            status, answer = self._handle(environ)
        except HTTPError as error:
            status, answer = error.status, {"reason": error.reason, "stopping": self._dispatcher.stopping}
        except JournalError as error:
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, {"reason": str(error)}
        body = json.dumps(answer).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{int(status)} {HTTPStatus(status).phrase}", headers)
        return [body]

    def _handle(self, environ: Mapping[str, Any]) -> _Answer:
        peer = environ.get(PEER)
        if not isinstance(peer, Peer) or peer.uid not in (0, os.geteuid()):
            raise HTTPError(403, "only root and the user of the daemon may send requests")
        path = environ.get("PATH_INFO", "")
        route = self._routes.get(path)
        if not route:
            raise HTTPError(404, f"there is no request {printable(path)}")
        if environ["REQUEST_METHOD"] != "POST":
            raise HTTPError(405, "a request is a POST")
        body = _read(environ)
        if self._dispatcher.stopping:
            raise HTTPError(503, "the daemon is stopping")
        status, answer = route(body)
        log.info("request accepted", path=path, by=_text(body, "by") or None)
        return status, answer

    # -- requests ---------------------------------------------------------------------------------------------------

    def _start_runs(self, body: _Body) -> _Answer:
        trigger, commit = _text(body, "trigger", "manual"), _text(body, "commit")
        if trigger not in TRIGGERS:
            raise HTTPError(400, f"`trigger` is none of {', '.join(TRIGGERS)}")
        if not _COMMIT.fullmatch(commit):
            raise HTTPError(400, "`commit` is not a full commit id")
        names = list(self._checkouts) if body.get("all") is True else self._names(body)
        return self._accept(names, trigger, body, commit=commit, force=body.get("force") is True)

    def _deploy(self, body: _Body) -> _Answer:
        checkout = self._one(body)
        commit = _text(body, "commit")
        if commit:
            return self._pin(checkout, "deploy", body, lambda: find_commit(checkout, commit))
        _apply(holds.unpin, checkout.path)
        return self._accept([checkout.repository], "deploy", body, force=body.get("force") is True)

    def _roll_back(self, body: _Body) -> _Answer:
        checkout = self._one(body)
        commit = _text(body, "commit")
        return self._pin(
            checkout,
            "rollback",
            body,
            lambda: find_commit(checkout, commit) if commit else last_good_commit(self._journal, checkout),
        )

    def _pin(self, checkout: Checkout, trigger: str, body: _Body, find: Callable[[], str]) -> _Answer:
        """Hold a checkout at the commit that `find` returns, and request the run that deploys it."""
        description = self._description(body)
        tip = position(checkout).upstream if body.get("until_push") is True else None
        try:
            commit = find()
        except ValueError as error:
            raise HTTPError(404, str(error)) from None
        except (OSError, subprocess.SubprocessError) as error:
            raise HTTPError(503, f"git failed in {checkout.path}: {error}") from None
        _apply(holds.pin, checkout.path, description, commit, tip)
        self._log("checkout pinned", checkout, body, commit=commit)
        status, answer = self._accept(
            [checkout.repository], trigger, body, commit=commit, force=body.get("force") is True
        )
        return status, {**answer, "pinned": commit}

    def _resume(self, body: _Body) -> _Answer:
        checkouts = self._existing(body)
        for checkout in checkouts:
            _apply(holds.resume, checkout.path)
        return self._accept([checkout.repository for checkout in checkouts], "resume", body)

    def _cancel(self, body: _Body) -> _Answer:
        return 200, {"runs": [run for name in self._names(body) for run in self._dispatcher.cancel(name)]}

    def _pause(self, body: _Body) -> _Answer:
        description, until = self._description(body), body.get("until")
        if until is not None and not (isinstance(until, (int, float)) and until > self._now()):
            raise HTTPError(400, "`until` is not a time in the future, in seconds since the epoch")
        for checkout in self._existing(body):
            _apply(holds.pause, checkout.path, description, until)
            self._log("checkout paused", checkout, body)
        return 200, {}

    def _configure(self, body: _Body) -> _Answer:
        value = body.get("value")
        if value is not None and not isinstance(value, str):
            raise HTTPError(400, "`value` is neither a text nor null")
        checkout = self._one(body)
        name = _text(body, "name")
        _apply(write_setting, checkout.path, name, value)
        if name.lower() in holds.DESCRIPTIONS:
            own = None if value is None else self._description(body)
            _apply(write_setting, checkout.path, holds.DESCRIPTIONS[name.lower()], own)
        return 200, {}

    def _remove(self, body: _Body) -> _Answer:
        """Remove a checkout, and the rows of its name. The client deletes the directory ``leftover``."""
        keep_files, force = body.get("keep_files") is True, body.get("force") is True
        name = self._recorded_name(_text(body, "checkout"))
        with self._moving(name) as checkout:
            removed = moves.remove(checkout, keep_files=keep_files, force=force) if checkout else moves.Removed()
            forget_checkout(self._journal, name)
        log.info("checkout removed", repository=name, by=_text(body, "by") or None)
        return 200, {field: str(path) if path else None for field, path in removed._asdict().items()}

    def _rename(self, body: _Body) -> _Answer:
        """Move a checkout and the rows of its name. A directory that a person moved already stays where it is."""
        name, new = self._recorded_name(_text(body, "checkout")), _text(body, "name")
        if not is_valid_checkout(new) or ("/" in name) != ("/" in new):
            raise HTTPError(400, f"`{printable(new)}` is not the name of a checkout")
        with self._moving(name) as checkout:
            if checkout:
                path = moves.new_place(self._checkouts, checkout, new)
                moves.rename(checkout, path, new)
            else:
                (moved,) = self._existing({"checkouts": [new]})
                path = moved.path
                moves.set_origin(moved._replace(repository=name), new)
            follow_rename(self._state, self._checkouts, path, name, new)
            rename_checkout(self._journal, name, new)
        self._dispatcher.notify(new)
        log.info("checkout renamed", repository=new, name=name, by=_text(body, "by") or None)
        return 200, {"path": str(path)}

    @contextmanager
    def _moving(self, name: str) -> Iterator[Checkout | None]:
        """Yield the checkout, locked and without a run; None if it was deleted."""
        checkout = self._checkouts.find(name)
        with self._dispatcher.excluded(name), ExitStack() as stack:
            try:
                if checkout:
                    stack.enter_context(moves.checkout_lock(checkout.path))
                yield checkout
            except (moves.MoveError, OSError, subprocess.SubprocessError) as error:
                raise HTTPError(409, str(error)) from None

    def _recorded_name(self, name: str) -> str:
        """Return the canonical name of a checkout that exists, or that a row of the journal names."""
        if not is_valid_checkout(name):
            raise HTTPError(400, f"`{printable(name)}` is not the name of a checkout")
        name = self._checkouts.canonical_name(name)
        if not self._checkouts.find(name) and not self._journal.runs(name, 1) and name not in self._journal.pending():
            raise HTTPError(404, f"there is no checkout of {name}")
        return name

    def _remember_hook(self, body: _Body) -> _Answer:
        hook = body.get("hook")
        if not isinstance(hook, int) or not 0 < hook < 2**63:
            raise HTTPError(400, "`hook` is not the id of a webhook")
        self._journal.remember_hook(hook, _text(body, "target"), _text(body, "url"))
        return 200, {}

    def _forget_ping(self, body: _Body) -> _Answer:
        self._journal.forget_pings(_text(body, "target"), _text(body, "url"))
        return 200, {}

    # -- parts of requests ------------------------------------------------------------------------------------------

    def _accept(
        self, names: Sequence[str], trigger: str, body: _Body, *, commit: str = "", force: bool = False
    ) -> _Answer:
        """Store a delivery for each checkout, in one commit, and ask for their runs."""
        by, received = _text(body, "by"), self._now()
        deliveries = [
            Delivery(secrets.token_hex(16), trigger, received, name, "", after=commit, pusher=by, force=force)
            for name in names
        ]
        if deliveries:
            self._journal.record(*deliveries)
        self._dispatcher.request(names, trigger)
        return 202, {
            "requests": [{"checkout": delivery.repository, "delivery": delivery.guid} for delivery in deliveries]
        }

    def _log(self, message: str, checkout: Checkout, body: _Body, commit: str | None = None) -> None:
        by, reason = _text(body, "by") or None, printable(_text(body, "reason")) or None
        log.info(message, repository=checkout.repository, by=by, reason=reason, commit=commit)

    def _description(self, body: _Body) -> str:
        return holds.description(_text(body, "by"), _text(body, "reason"), self._now())

    def _names(self, body: _Body) -> list[str]:
        """Return the canonical names in ``checkouts``: each has a checkout, or may be cloned."""
        given = body.get("checkouts")
        if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
            raise HTTPError(400, "`checkouts` is not a list of names")
        names: dict[str, None] = {}
        for name in given:
            if not is_valid_checkout(name):
                raise HTTPError(400, f"`{printable(name)}` is not a repository's name")
            try:
                if not self._checkouts.find(name) and not may_clone(name, self._clone):
                    raise HTTPError(404, f"there is no checkout of {name}")
                names[self._checkouts.canonical_name(name)] = None
            except OSError as error:
                raise HTTPError(503, f"git cannot be started: {error.strerror}") from None
        return list(names)

    def _one(self, body: _Body) -> Checkout:
        return self._existing({"checkouts": [_text(body, "checkout")]})[0]

    def _existing(self, body: _Body) -> list[Checkout]:
        found = [(name, self._checkouts.find(name)) for name in self._names(body)]
        missing = [name for name, checkout in found if not checkout]
        if missing:
            raise HTTPError(404, f"there is no checkout of {missing[0]}")
        return [checkout for _, checkout in found if checkout]


def _read(environ: Mapping[str, Any]) -> _Body:
    """Return the JSON object of a request."""
    length = str(environ.get("CONTENT_LENGTH") or "")
    if not length.isdecimal():
        raise HTTPError(411, "a request needs a Content-Length")
    if int(length) > _MAX_LENGTH:
        raise HTTPError(413, "the request is too long")
    try:
        body = json.loads(environ["wsgi.input"].read(int(length)))
    except ValueError:
        raise HTTPError(400, "the request is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPError(400, "the request is not a JSON object")
    return body


def _text(body: _Body, name: str, default: str = "") -> str:
    value = body.get(name, default)
    if not isinstance(value, str):
        raise HTTPError(400, f"`{name}` is not a text")
    return value


def _apply(change: Callable[..., None], *arguments: object) -> None:
    """Change the settings of a checkout."""
    try:
        change(*arguments)
    except (ValueError, OSError) as error:
        raise HTTPError(400, str(error)) from None
