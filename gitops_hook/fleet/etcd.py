"""A client of etcd's JSON gateway, with no knowledge of what is stored.

Rules:

1. An attempt is short (`attempt` seconds), because a member without quorum answers a write only after 7 s. What did not
   succeed is repeated on the other members until `within` seconds are over.
2. The result of an attempt without an answer is unknown: the request may have been applied. So a request that is
   repeated must be harmless if it is applied twice; comparisons in a transaction provide that. `repeat=False` raises
   `Unknown` instead.
3. Every request carries ``Grpc-Metadata-hasleader``. A member without a leader then refuses at once, and ends its
   watches; without it, such a watch stays open and silent.
4. One member is preferred until an attempt on it fails. `preferred` lets the owner of a watch notice that its member
   stopped answering: a paused process keeps its connections open.
5. A token lives in the member's memory. If it is rejected, the client authenticates again, once per attempt. It also
   does so after a round without an answer: a cluster that was wiped holds each request with an old token until it
   reaches the raft index in that token (observed with etcd 3.4.23). A cluster without users needs no token.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gitops_hook.fleet.connection import connect, is_closed
from gitops_hook.fleet.messages import (
    Answer,
    Batch,
    Compacted,
    Comparison,
    KeyValue,
    Operation,
    Rejected,
    Unavailable,
    Unknown,
    answer,
    encode,
    error_of,
    integer,
    key_range,
    pairs,
    revision_of,
    transaction,
    watch_batch,
)

#: Pairs in one page of a range. With values of 300 bytes a page is about 300 kB.
PAGE = 500
#: Attempts to read a range in one revision, if compaction removes that revision between two pages.
_RANGE_ATTEMPTS = 3
#: Stands for the token of a cluster without users, which rejects every token.
_NO_USERS = "none"
#: Seconds between two rounds over all members, before jitter.
_ROUND = 0.2
#: Idle connections that are kept for each member.
_IDLE = 4
#: The largest answer that is read, in bytes. etcd sends at most 1.5 MB per request in one direction; a page is less.
_MAX_ANSWER = 64 << 20
#: Seconds without any message after which a watch is given up. etcd sends a progress message each minute if it runs
#: with ``--experimental-watch-progress-notify-interval=1m``, else each 10 minutes: then the watch is renewed early.
_SILENCE = 90.0


class Snapshot(NamedTuple):
    """The pairs of a range, all of one revision of the store."""

    revision: int
    pairs: Sequence[KeyValue]


class Credentials(NamedTuple):
    """A user of etcd."""

    name: str
    password: str


class Etcd:
    """A cluster, by the URLs of its members. Any thread may call any method."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        credentials: Callable[[], Credentials] | None = None,
        attempt: float = 1.0,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a client. An attempt takes `attempt` seconds; each authentication calls `credentials` again."""
        self.endpoints = list(endpoints)
        self.attempt = attempt
        self._tls = tls
        self._credentials = credentials
        self._jitter = jitter
        self._clock = clock
        self._closed = threading.Event()
        # Each of these is read and replaced in one step, so no lock is needed. Threads may authenticate twice.
        self._preferred = int(jitter() * len(self.endpoints)) % len(self.endpoints)
        self._token = ""
        self._idle: dict[str, list[http.client.HTTPConnection]] = {endpoint: [] for endpoint in self.endpoints}

    @property
    def preferred(self) -> str:
        """Return the member that is asked first."""
        return self.endpoints[self._preferred]

    def avoid(self, endpoint: str) -> None:
        """Prefer another member from now on."""
        if self.preferred == endpoint:
            self._preferred = (self._preferred + 1) % len(self.endpoints)

    def close(self) -> None:
        """Close idle connections and end the waits between attempts."""
        self._closed.set()
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    # -- keys ---------------------------------------------------------------------------------------------------------

    def transact(
        self,
        compare: Sequence[Comparison],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        within: float = 3.0,
        repeat: bool = True,
    ) -> Answer:
        """Apply `then` if every comparison holds, else `otherwise`; all of it or nothing."""
        body = transaction(compare, then, otherwise)
        return answer(self.call("/v3/kv/txn", body, within=within, repeat=repeat))

    def get(self, key: str, *, revision: int = 0, within: float = 3.0) -> KeyValue | None:
        """Return the pair of one key, or None; at `revision`, if it is not 0. Raises Compacted if that is gone."""
        body = {"key": encode(key), "revision": str(revision)}
        return next(iter(pairs(self.call("/v3/kv/range", body, within=within))), None)

    def read(
        self, prefix: str, *, min_mod_revision: int = 0, revision: int = 0, page: int = PAGE, within: float = 3.0
    ) -> Snapshot:
        """Return every pair below `prefix` that was written at `min_mod_revision` or later, all of one revision.

        That is `revision`, or the newest one if it is 0. `within` applies to each page. Raises Compacted if compaction
        removed that revision, for the newest one only if that happened several times in a row.
        """
        for _ in range(0 if revision else _RANGE_ATTEMPTS - 1):
            with suppress(Compacted):
                return self._read(prefix, min_mod_revision, revision, page, within)
        return self._read(prefix, min_mod_revision, revision, page, within)

    def _read(self, prefix: str, min_mod_revision: int, revision: int, page: int, within: float) -> Snapshot:
        body = {**key_range(prefix), "min_mod_revision": str(min_mod_revision), "limit": str(page)}
        message = self.call("/v3/kv/range", {**body, "revision": str(revision)}, within=within)
        revision = revision or revision_of(message)
        found = pairs(message)
        while message.get("more"):
            more = {**body, "key": encode(found[-1].key + "\0"), "revision": str(revision)}
            message = self.call("/v3/kv/range", more, within=within)
            found += pairs(message)
        return Snapshot(revision, found)

    def watch(self, prefix: str, start_revision: int, *, silence: float = _SILENCE) -> Watch:
        """Watch every key below `prefix` from `start_revision` on, at the preferred member.

        Raises Unavailable if that member does not answer, and prefers another one for the next call.
        `silence` is the number of seconds without a message after which the watch raises Unavailable.
        """
        endpoint = self.preferred
        create = {**key_range(prefix), "start_revision": str(start_revision), "progress_notify": True}
        try:
            connection = connect(endpoint, self.attempt, self._tls)
            channel = connection.sock
            response = self._send(connection, "/v3/watch", {"create_request": create}, self._authorization(endpoint))
            if response.status != http.client.OK:
                self.forget_token()
                raise error_of(response.status, response.read(_MAX_ANSWER))
        except (OSError, http.client.HTTPException) as error:
            self.avoid(endpoint)
            raise Unavailable(f"{endpoint}: {_reason(error)}") from error
        return Watch(self, endpoint, connection=connection, channel=channel, response=response, silence=silence)

    # -- leases -------------------------------------------------------------------------------------------------------

    def grant(self, ttl: int, *, within: float = 3.0) -> int:
        """Return the id of a new lease of `ttl` seconds."""
        return integer(self.call("/v3/lease/grant", {"TTL": str(ttl)}, within=within), "ID")

    def keep_alive(self, lease: int, *, within: float = 3.0) -> int:
        """Renew a lease; return the seconds that it lasts from now, 0 if it has ended already."""
        return integer(self.call("/v3/lease/keepalive", {"ID": str(lease)}, within=within).get("result", {}), "TTL")

    def revoke(self, lease: int, *, within: float = 3.0) -> None:
        """End a lease and delete its keys. A lease that has ended already is no error."""
        with suppress(Rejected):
            self.call("/v3/lease/revoke", {"ID": str(lease)}, within=within)

    # -- requests -----------------------------------------------------------------------------------------------------

    def call(self, path: str, body: Mapping[str, Any], *, within: float = 3.0, repeat: bool = True) -> dict[str, Any]:
        """Send a request to one member after the other until one answers, for `within` seconds at most.

        Raises Rejected or Compacted if a member refuses it, Unknown if an attempt may have been applied, and
        Unavailable if surely none was. With `repeat` False an unknown result is raised at once.
        """
        deadline = self._clock() + within
        unknown = ""
        tried = 0
        while True:
            endpoint = self.preferred
            tried += 1
            try:
                return self.ask(endpoint, path, body, timeout=self.attempt)
            except Unavailable as error:
                reason = str(error)
                self.avoid(endpoint)
                if isinstance(error, Unknown):
                    unknown = reason
                    if not repeat:
                        raise
            # Between rounds all clients wait for different times, so that a new leader is not asked by all at once.
            if tried % len(self.endpoints) == 0:
                self.forget_token()
                self._closed.wait(_ROUND * (0.5 + self._jitter()))
            if self._clock() >= deadline or self._closed.is_set():
                raise Unknown(unknown) if unknown else Unavailable(reason)

    def ask(self, endpoint: str, path: str, body: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Send a request once, to one member. Raises the same errors as `call`."""
        try:
            return self._exchange(endpoint, path, body, self._authorization(endpoint), timeout)
        except Rejected as error:
            if not self._credentials or not error.is_token_fault:
                raise
        self.forget_token()
        return self._exchange(endpoint, path, body, self._authorization(endpoint), timeout)

    def _authorization(self, endpoint: str) -> dict[str, str]:
        if not self._credentials:
            return {}
        token = self._token = self._token or self._authenticate(endpoint, self._credentials())
        return {} if token == _NO_USERS else {"Authorization": token}

    def _authenticate(self, endpoint: str, user: Credentials) -> str:
        try:
            return str(self._exchange(endpoint, "/v3/auth/authenticate", user._asdict(), {}, self.attempt)["token"])
        except Rejected as error:
            if error.is_without_users:
                return _NO_USERS
            raise

    def forget_token(self) -> None:
        """Authenticate again before the next request."""
        self._token = ""

    def _exchange(
        self, endpoint: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float
    ) -> dict[str, Any]:
        try:
            connection = self._take(endpoint, timeout)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{endpoint}: {_reason(error)}") from error
        try:
            response = self._send(connection, path, body, headers)
            content = response.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unknown(f"{endpoint}: {_reason(error)}") from error
        self._give_back(endpoint, connection)
        if response.status != http.client.OK:
            raise error_of(response.status, content)
        try:
            message = json.loads(content)
        except ValueError:
            raise Unknown(f"{endpoint}: the answer is not JSON") from None
        if "error" in message:  # an answer of a stream, such as a keepalive
            raise error_of(response.status, content)
        return dict(message)

    @staticmethod
    def _send(
        connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        fields = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true", **headers}
        connection.request("POST", path, json.dumps(body).encode(), fields)
        return connection.getresponse()

    # -- connections --------------------------------------------------------------------------------------------------

    def _take(self, endpoint: str, timeout: float) -> http.client.HTTPConnection:
        with suppress(IndexError):
            connection = self._idle[endpoint].pop()
            connection.sock.settimeout(timeout)
            if not is_closed(connection.sock):
                return connection
            connection.close()
        return connect(endpoint, timeout, self._tls)

    def _give_back(self, endpoint: str, connection: http.client.HTTPConnection) -> None:
        idle = self._idle[endpoint]
        if connection.sock and len(idle) < _IDLE and not self._closed.is_set():
            idle.append(connection)
        else:
            connection.close()


class Watch:
    """One stream of events from one member: iterate over it, in one thread. Any thread may `close` it."""

    def __init__(
        self,
        client: Etcd,
        endpoint: str,
        *,
        connection: http.client.HTTPConnection,
        channel: socket.socket,
        response: http.client.HTTPResponse,
        silence: float,
    ) -> None:
        self.endpoint = endpoint
        self._client = client
        self._connection = connection
        self._channel = channel
        self._response = response
        self._closed = False
        channel.settimeout(silence)

    def __iter__(self) -> Iterator[Batch]:
        """Yield each message. Ends after `close`; raises the errors of `watch_batch`, or Unavailable."""
        while True:
            try:
                line = self._response.readline()
            except (OSError, ValueError, http.client.HTTPException) as error:
                line, reason = b"", _reason(error)
            else:
                reason = "the member ended the watch"
            if self._closed:
                return
            if not line:
                self._client.avoid(self.endpoint)
                raise Unavailable(f"{self.endpoint}: {reason}")
            try:
                batch = watch_batch(line)
            except Unavailable:
                self._client.avoid(self.endpoint)
                raise
            except Rejected:  # perhaps because of an old token
                self._client.forget_token()
                raise
            if batch:
                yield batch

    def close(self) -> None:
        """End the stream. The thread that iterates over it returns."""
        self._closed = True
        with suppress(OSError):
            # Not the method of an SSLSocket, which would take the session away from the thread that reads.
            socket.socket.shutdown(self._channel, socket.SHUT_RDWR)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._response.close()
        self._connection.close()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
