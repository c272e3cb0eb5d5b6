"""The server on real sockets, with a tiny application; peers that behave, and peers that do not."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.validate import validator

import pytest
from harness import SOURCE, until

from gitops_hook.httpd.limits import Limits
from gitops_hook.httpd.server import Server

#: So that a test that would hang fails instead.
PATIENCE = 10.0


class Desk:
    """An application that does what its path says."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)  # released for each request to /wait
        self.go = threading.Event()  # lets those go on

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        return getattr(self, environ["PATH_INFO"][1:])(environ, start_response)

    def _say(self, start_response: Any, body: bytes, status: str = "200 OK") -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    def echo(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self._say(start_response, environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))

    def all(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["wsgi.input_terminated"]
        return self._say(start_response, environ["wsgi.input"].read())

    def taste(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self._say(start_response, environ["wsgi.input"].read(1))

    def sip(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        while environ["wsgi.input"].read(50_000):
            pass
        return self._say(start_response, b"drunk")

    def halves(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        half = int(environ["CONTENT_LENGTH"]) // 2
        first = environ["wsgi.input"].read(half)
        self.arrived.release()
        assert self.go.wait(PATIENCE)
        second = environ["wsgi.input"].read(half)
        return self._say(start_response, str(len(first + second)).encode())

    def refuse(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self._say(start_response, b"too large", "413 Too Large")

    def wait(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.arrived.release()
        assert self.go.wait(PATIENCE)
        return self._say(start_response, b"waited")

    def environ(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self._say(start_response, json.dumps(environ, default=str).encode())

    def unchanged(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("304 Not Modified", [("ETag", '"x"')])
        return []

    def unmeasured(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield from (b"one ", b"two")

    def large(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self._say(start_response, b"x" * (4 << 20))

    def fail(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise RuntimeError("the password is hunter2")

    def fail_late(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "8")])
        yield b"half"
        raise RuntimeError("the password is hunter2")

    def break_pipe(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise BrokenPipeError("the password is hunter2")


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes


class Peer:
    """One end of a connection; also what a test reads answers with."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.settimeout(PATIENCE)
        self._file = channel.makefile("rb")

    def send(self, raw: bytes) -> Peer:
        self.channel.sendall(raw)
        return self

    def line(self) -> bytes:
        return self._file.readline()

    def answer(self, *, of_head: bool = False) -> Answer:
        """The next answer, read as a client would, up to its length or the end."""
        status = self.line()
        headers = http.client.parse_headers(self._file)
        length = 0 if of_head else int(headers.get("Content-Length", -1))
        return Answer(int(status.split()[1]), headers, self._file.read(length))

    def get(self, path: str) -> Answer:
        return self.send(request(path)).answer()

    def is_closed(self) -> bool:
        """Wait for more; whether there is none."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def has_news(self, within: float = 0) -> bool:
        return bool(select.select([self.channel], [], [], within)[0])

    def reset(self) -> None:
        """Close as a process that died does: with a reset."""
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._file.close()
        self.channel.close()


def request(path: str, body: bytes | None = None, *lines: str, method: str = "", length: int | None = None) -> bytes:
    """A request as bytes; `length` announces another than that of `body`."""
    method = method or ("GET" if body is None else "POST")
    lengths = [] if body is None else [f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", *lengths, *lines, "\r\n"]).encode() + (body or b"")


class Serving(ExitStack):
    """A server that accepts, and its clients; both end with the block."""

    def __init__(self, application: Any = None, listening: socket.socket | None = None, **limits: Any) -> None:
        super().__init__()
        self.desk = Desk()
        self._threads = set(threading.enumerate())
        self.server = Server(listening or bind(), application or self.desk, Limits(**limits))
        self._acceptor = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._acceptor.start()
        self.callback(self.stop)

    def connect(self) -> Peer:
        peer = Peer(socket.socket(self.server.address_family))
        self.callback(peer.close)
        peer.channel.connect(self.server.server_address)
        return peer

    def stop(self) -> None:
        """End the server, and wait until no thread of it is left."""
        self.desk.go.set()
        self.server.shutdown()
        assert self.server.drain(PATIENCE, quiet=0)
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    @contextmanager
    def draining(self, quiet: float = PATIENCE) -> Iterator[list[bool]]:
        """A drain under way; what it returned is in the list once the block has ended."""
        returned: list[bool] = []
        self.server.shutdown()
        thread = threading.Thread(target=lambda: returned.append(self.server.drain(PATIENCE, quiet)))
        thread.start()
        with suppress(ConnectionError):
            while True:  # until nobody listens
                probe = self.connect()
                probe.has_news(within=0.01)
                probe.close()
        yield returned
        thread.join()


def bind(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    listening = socket.socket(family)
    listening.bind(address)
    return listening


def reason(answer: Answer) -> str:
    said = json.loads(answer.body)
    assert said["status"] == "refused"
    return said["reason"]


# -- requests and answers ---------------------------------------------------------------------------------------------


def test_a_connection_is_kept_from_request_to_request() -> None:
    with Serving() as serving:
        peer = serving.connect()
        for body in (b"one", b"", b"x" * 200_000):
            answer = peer.send(request("/echo", body)).answer()
            assert (answer.status, answer.body) == (200, body)
            assert answer.headers["Connection"] is None


def test_requests_that_come_several_at_once_are_answered_in_turn() -> None:
    with Serving() as serving:
        peer = serving.connect()
        peer.send(request("/echo", b"one") + request("/echo", b"two") + request("/echo") + request("/echo", b"th"))
        assert [peer.answer().body for _ in range(3)] == [b"one", b"two", b""]
        assert peer.answer().body == b"th"


def test_a_request_may_come_byte_by_byte() -> None:
    with Serving() as serving:
        peer = serving.connect()
        for byte in request("/echo", b"slow") * 2:
            peer.send(bytes([byte]))
        assert [peer.answer().body, peer.answer().body] == [b"slow", b"slow"]


def test_head_has_the_length_and_no_body() -> None:
    with Serving() as serving:
        peer = serving.connect()
        peer.send(request("/refuse", method="HEAD") + request("/echo"))
        answer = peer.answer(of_head=True)
        assert (answer.status, answer.headers["Content-Length"]) == (413, "9")
        assert peer.answer().status == 200


def test_a_304_has_no_length_and_keeps_the_connection() -> None:
    with Serving() as serving:
        peer = serving.connect()
        peer.send(request("/unchanged") + request("/echo", b"next"))
        answer = peer.answer(of_head=True)
        assert (answer.status, answer.headers["ETag"]) == (304, '"x"')
        assert "Content-Length" not in answer.headers
        assert peer.answer().body == b"next"


def test_an_empty_line_after_a_body_is_skipped() -> None:
    with Serving(idle=0.2) as serving:
        peer = serving.connect()
        assert peer.send(request("/echo", b"one") + b"\r\n" + request("/echo", b"two")).answer().body == b"one"
        assert peer.answer().body == b"two"
        assert peer.send(b"\r\n").is_closed()  # as an idle connection is, not with a 408


def test_connection_close_is_respected_and_sent() -> None:
    with Serving() as serving:
        peer = serving.connect()
        answer = peer.send(request("/echo", b"last", "Connection: close")).answer()
        assert (answer.body, answer.headers["Connection"]) == (b"last", "close")
        assert peer.is_closed()


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    with Serving() as serving:
        answer = serving.connect().get("/unmeasured")
        assert (answer.body, answer.headers["Connection"]) == (b"one two", "close")


def test_the_application_conforms_to_wsgi() -> None:
    @validator
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        read = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(read)))])
        return [read]

    with Serving(application) as serving:
        assert serving.connect().send(request("/a%20b?c=d", b"body")).answer()[::2] == (200, b"body")


def test_the_environ_contains_the_request_and_no_process_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET", "hunter2")
    with Serving() as serving:
        environ = json.loads(serving.connect().get("/environ?a=b").body)
        host, port = serving.server.server_address
    assert {name: environ[name] for name in environ if not name.startswith("wsgi.")} == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ",
        "QUERY_STRING": "a=b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "here",
    }
    assert (environ["wsgi.multithread"], environ["wsgi.multiprocess"]) == (True, False)


# -- Expect: 100-continue ---------------------------------------------------------------------------------------------

EXPECT = "Expect: 100-continue"


def test_a_peer_receives_100_continue_when_the_application_reads() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/echo", b"", EXPECT, length=4))
        assert (peer.line(), peer.line()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        assert peer.send(b"body" + request("/echo", b"next")).answer().body == b"body"
        assert peer.answer().body == b"next"


def test_a_peer_that_expects_100_continue_is_rejected_before_it_sends() -> None:
    with Serving() as serving:
        answer = serving.connect().send(request("/refuse", b"", EXPECT, length=4)).answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")


def test_a_peer_that_does_not_wait_receives_no_100_continue() -> None:
    with Serving() as serving:
        assert serving.connect().send(request("/echo", b"body", EXPECT)).answer().status == 200


# -- bodies that are not read, not sent, too many ---------------------------------------------------------------------


def test_a_peer_that_still_sends_receives_the_response() -> None:
    with Serving() as serving:
        peer = serving.connect()
        answer = peer.send(request("/refuse", bytes(26 << 20))).answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
        assert peer.is_closed()


def test_an_unread_body_is_discarded_up_to_a_limit() -> None:
    with Serving(discarded=1000) as serving, pytest.raises(ConnectionError):
        serving.connect().send(request("/refuse", bytes(26 << 20)))


def test_bytes_after_an_unread_body_are_not_a_request() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/refuse", request("/echo")) + request("/echo"))
        assert peer.answer().status == 413
        assert peer.is_closed()


def test_bytes_after_a_chunked_head_are_not_a_request() -> None:
    with Serving() as serving:
        chunked = request("/echo", None, "Transfer-Encoding: chunked", method="POST")
        peer = serving.connect().send(chunked + b"0\r\n\r\n" + request("/echo"))
        assert peer.answer().headers["Connection"] == "close"
        assert peer.is_closed()


def test_a_body_that_was_read_ahead_is_not_parsed_as_a_request() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/taste", request("/echo")) + request("/echo", b"next"))
        assert peer.answer().body == b"G"
        assert peer.answer().body == b"next"


def test_the_memory_for_bodies_is_limited_and_released() -> None:
    with Serving(memory=1000, uncounted=0) as serving:
        first, second = serving.connect(), serving.connect()
        first.send(request("/halves", bytes(800), length=1000))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)  # 500 bytes at least are in, and it is our turn
        answer = second.send(request("/sip", bytes(700))).answer()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        assert second.is_closed()
        serving.desk.go.set()
        assert first.send(bytes(200)).answer().status == 200
        assert serving.connect().send(request("/sip", bytes(1000))).answer().status == 200


def test_a_slow_body_is_closed_first_when_memory_is_short() -> None:
    with Serving(memory=1000, uncounted=0) as serving:
        slow = serving.connect().send(request("/sip", bytes(800), length=1000))
        until(lambda: [(peer.held, peer.waiting) for peer in serving.server.resources._streams] == [(800, True)])
        assert serving.connect().send(request("/sip", bytes(900))).answer().status == 200
        assert slow.is_closed()


def test_a_body_of_usual_size_is_admitted_when_large_bodies_hold_the_memory() -> None:
    with Serving(memory=1000, uncounted=200) as serving:
        holder = serving.connect().send(request("/halves", bytes(1200), length=1200))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        assert serving.connect().send(request("/sip", bytes(100))).answer().status == 200
        serving.desk.go.set()
        assert holder.answer().status == 200


def test_announced_bodies_reserve_no_memory_from_others() -> None:
    with Serving(memory=1000, uncounted=0) as serving:
        for _ in range(4):
            peer = serving.connect().send(request("/sip", b"", EXPECT, length=1000))
            assert peer.line() == b"HTTP/1.1 100 Continue\r\n"
        assert serving.connect().send(request("/sip", bytes(1000))).answer().status == 200


def test_the_memory_of_a_disconnected_peer_is_released() -> None:
    with Serving(memory=1000, uncounted=0) as serving:
        for _ in range(3):
            peer = serving.connect().send(request("/echo", bytes(900), length=1000))
            peer.channel.shutdown(socket.SHUT_WR)
            assert peer.answer().status == 400


def test_an_unread_response_counts_against_the_limit_and_is_closed_first() -> None:
    with Serving(memory=10 << 20, uncounted=0) as serving:
        unread = []
        for _ in range(2):
            unread.append(serving.connect().send(request("/large")))
            assert unread[-1].has_news(within=PATIENCE)  # so the server has waited for the first of them for longest
        until(lambda: sum(stream.held for stream in serving.server.resources._streams) > 8 << 20)
        assert serving.connect().get("/large").status == 200
        assert serving.connect().get("/echo").status == 200
        with suppress(ConnectionError, ValueError):  # the response ends in the middle, or was never begun
            assert len(unread[0].answer().body) < 4 << 20
        assert unread[1].answer().status == 200


def test_a_response_beyond_the_memory_is_503() -> None:
    with Serving(memory=1 << 20, uncounted=1000) as serving:
        assert serving.connect().get("/large").status == 503
        assert serving.connect().get("/echo").status == 200


def test_calls_of_the_application_are_limited_and_wait_for_each_other() -> None:
    with Serving(calls=1, request=0.5) as serving:
        busy = serving.connect().send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        assert serving.connect().get("/echo").status == 503
        waiting = serving.connect().send(request("/echo"))
        assert not waiting.has_news(within=0.1)
        serving.desk.go.set()
        assert (busy.answer().status, waiting.answer().status) == (200, 200)


# -- chunked bodies ---------------------------------------------------------------------------------------------------


def chunked(path: str, *parts: bytes) -> bytes:
    head = request(path, None, "Transfer-Encoding: chunked", method="POST")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def test_a_chunked_body_is_read_to_its_end_and_the_connection_is_kept() -> None:
    with Serving() as serving:
        parts = [b"one", b"x" * 100_000, b"two"]
        raw = chunked("/all", *parts) + b"0;last\r\nX-Trailer: dropped\r\n\r\n" + request("/echo", b"next")
        peer = serving.connect()
        for start in range(0, len(raw), 7777):
            peer.send(raw[start : start + 7777])
        answer = peer.answer()
        assert (answer.status, answer.body, answer.headers["Connection"]) == (200, b"".join(parts), None)
        assert peer.answer().body == b"next"


def test_a_peer_that_expects_100_continue_may_send_chunks() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/all", None, "Transfer-Encoding: chunked", EXPECT, method="POST"))
        assert (peer.line(), peer.line()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        assert peer.send(b"4\r\nbody\r\n0\r\n\r\n").answer().body == b"body"


MALFORMED_CHUNKS = {
    "no size": b"\r\n",
    "a size in another base": b"0x1\r\na\r\n0\r\n\r\n",
    "a sign": b"+1\r\na\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "nine digits": b"000000001\r\na\r\n0\r\n\r\n",
    "a bare line feed": b"1\na\n0\n\n",
    "a bare line feed in an extension": b"1;a\nb\r\na\r\n0\r\n\r\n",
    "more data than announced": b"1\r\nab\r\n0\r\n\r\n",
    "less data than announced": b"3\r\na\r\n0\r\n\r\n",
    "an endless extension": b"1;" + b"a" * 5000,
    "endless trailers": b"0\r\n" + b"a: b\r\n" * 200,
    "a trailer with a bare line feed": b"0\r\na: b\nc: d\r\n\r\n",
    "a body in tiny chunks": b"1\r\na\r\n" * 2000,
}


@pytest.mark.parametrize("chunks", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS)
def test_a_malformed_chunked_body_is_400_and_the_last_request(chunks: bytes) -> None:
    with Serving() as serving:
        peer = serving.connect().send(chunked("/all") + chunks + request("/echo"))
        answer = peer.answer()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert peer.is_closed()


def test_a_chunked_body_that_ends_early_is_400() -> None:
    with Serving() as serving:
        peer = serving.connect().send(chunked("/all", b"half"))
        peer.channel.shutdown(socket.SHUT_WR)
        assert peer.answer().status == 400


def test_a_chunked_body_has_the_limits_of_any_other() -> None:
    with Serving(memory=1000, uncounted=0, request=0.3) as serving:
        assert serving.connect().send(chunked("/all", bytes(2000))).answer().status == 503
        assert serving.connect().send(chunked("/all", bytes(500))).answer().status == 408


# -- peers that say nothing, too much, or nonsense --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\nHost: here\n\n", 400, id="line feeds alone"),
        pytest.param(b"\n", 400, id="one line feed"),
        pytest.param(b"\x16\x03\x01", 400, id="the start of a TLS handshake"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 40_000, 431, id="a head without end"),
    ],
)
def test_an_invalid_head_is_rejected_before_its_end(raw: bytes, status: int) -> None:
    with Serving() as serving:
        peer = serving.connect().send(raw)
        answer = peer.answer()
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        assert reason(answer)
        assert peer.is_closed()


def test_a_peer_that_closes_its_half_is_answered() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/echo", b"last words"))
        peer.channel.shutdown(socket.SHUT_WR)
        assert peer.answer().body == b"last words"
        assert peer.is_closed()


def test_a_head_that_ends_early_is_refused() -> None:
    with Serving() as serving:
        peer = serving.connect().send(b"GET / HTTP/1.1\r\nHo")
        peer.channel.shutdown(socket.SHUT_WR)
        assert peer.answer().status == 400


def test_a_silent_peer_receives_no_response() -> None:
    with Serving(request=0.1) as serving:
        assert serving.connect().is_closed()


def test_an_idle_connection_is_closed() -> None:
    with Serving(idle=0.1) as serving:
        peer = serving.connect()
        assert peer.get("/echo").status == 200
        assert peer.is_closed()


@pytest.mark.parametrize(
    "begin", [b"GET /echo HTTP/1.1\r\nX: ", request("/echo", b"", length=10**6)], ids=["head", "body"]
)
def test_a_slow_request_has_one_deadline(begin: bytes) -> None:
    with Serving(request=0.3) as serving:
        peer = serving.connect().send(begin)
        began = time.monotonic()
        while not peer.has_news(within=0.02) and time.monotonic() < began + 5:
            peer.send(b"x")
        answer = peer.answer()
        assert (answer.status, reason(answer)) == (408, "the request took too long")
        assert 0.2 < time.monotonic() - began < 3


def test_a_peer_that_never_stops_sending_has_the_same_deadline() -> None:
    with Serving(request=0.3, memory=10**15) as serving:
        peer = serving.connect().send(request("/sip", b"", length=10**15))
        began = time.monotonic()
        while not peer.has_news() and time.monotonic() < began + 3:
            peer.send(bytes(60_000))
        assert time.monotonic() - began < 3
        assert peer.answer().status == 408


def test_a_peer_that_reads_no_responses_is_disconnected() -> None:
    with Serving(request=0.2) as serving:
        serving.connect().send(request("/large") * 10)
        serving.stop()  # it waits for that connection's thread


def test_a_reset_connection_is_not_logged_as_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with Serving() as serving:
        for raw in (b"", b"GET / HT", request("/echo", b"", EXPECT, length=1000), request("/large") * 3):
            peer = serving.connect().send(raw)
            assert not raw.endswith(b"\r\n\r\n") or peer.has_news(within=PATIENCE)
            peer.reset()
        assert serving.connect().get("/echo").status == 200
    assert "failed" not in capfd.readouterr().err


# -- faults of the application ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fail", "/fail_late", "/break_pipe", "/no_such_method"])
def test_an_application_that_raises_is_a_500_without_details(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Serving() as serving:
        peer = serving.connect()
        answer = peer.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (500, "application/json")
        assert "hunter2" not in reason(answer)
        assert peer.is_closed()
        assert serving.connect().get("/echo").status == 200
    assert f"the application failed path={path} traceback=" in capfd.readouterr().err


def test_a_rejected_request_is_logged_with_its_peer(capfd: pytest.CaptureFixture[str]) -> None:
    with Serving() as serving:
        serving.connect().send(b"GET /\x1b[2J\r\n\r\n").answer()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith('request refused http=400 reason="the request line is malformed" peer=127.0.0.1')


# -- more connections than there is room for --------------------------------------------------------------------------


def test_at_the_limit_the_longest_idle_connection_is_closed() -> None:
    with Serving(connections=3) as serving:
        busy, oldest, newer = (serving.connect() for _ in range(3))
        busy.send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        assert oldest.get("/echo").status == 200
        assert newer.get("/echo").status == 200
        assert serving.connect().get("/echo").status == 200
        assert oldest.is_closed()
        assert newer.get("/echo").status == 200
        serving.desk.go.set()
        assert busy.answer().body == b"waited"


def test_silent_connections_do_not_block_others() -> None:
    with Serving(connections=4) as serving:
        silent = [serving.connect() for _ in range(20)]
        assert serving.connect().get("/echo").status == 200
        assert sum(peer.is_closed() for peer in silent[:16]) == 16


def test_a_busy_connection_never_gives_way_and_the_new_one_gets_503() -> None:
    with Serving(connections=1) as serving:
        busy = serving.connect().send(request("/echo", b"one") + request("/wait"))  # at once: no waiting between them
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        for _ in range(3):
            peer = serving.connect()
            answer = peer.get("/echo")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
            assert peer.is_closed()
        assert len(serving.server.resources._streams) == 1
        serving.desk.go.set()
        assert [busy.answer().body, busy.answer().body] == [b"one", b"waited"]


def test_a_flood_of_connections_has_no_more_threads_than_the_limit() -> None:
    with Serving(connections=20, reserve=2) as serving:
        assert serving.connect().get("/echo").status == 200
        before = threading.active_count()
        for _ in range(10):
            peers = [serving.connect().send(b"GET / HTTP/1.1\r\n") for _ in range(50)]
            assert threading.active_count() <= before + 20
            assert serving.connect().get("/echo").status == 200
            for peer in peers:
                peer.close()


def test_the_accepting_thread_never_blocks() -> None:
    with Serving(connections=1) as serving:
        serving.connect().send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        began = time.monotonic()
        peers = [serving.connect() for _ in range(200)]
        assert {peer.answer().status for peer in peers} == {503}
        assert serving.server.turned > began
        assert time.monotonic() - began < 5
        serving.desk.go.set()


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Make every start of a thread in this process fail, by a stack that exceeds the address space."""
    usual = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(usual)


def test_the_reserve_serves_while_the_system_refuses_threads() -> None:
    with Serving(reserve=2) as serving, no_more_threads():
        for _ in range(20):
            assert serving.connect().get("/echo").status == 200  # and stays open: an idle one gives way


def test_without_any_thread_the_response_is_503_and_the_next_connection_is_served() -> None:
    with Serving(reserve=1) as serving:
        busy = serving.connect().send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        with no_more_threads():
            answer = serving.connect().answer()
            assert (answer.status, json.loads(answer.body)["reason"]) == (503, "no thread is available")
        assert serving.connect().get("/echo").status == 200
        serving.desk.go.set()
        assert busy.answer().body == b"waited"


SCARCE = """
import resource, sys
from gitops_hook.httpd.server import Server
from test_server import Desk, bind

listening = bind()
server = Server(listening, Desk())
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
print(listening.getsockname()[1], flush=True)
server.serve_forever()
"""


@contextmanager
def child(program: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process that finds the package and these tests; ended with the block."""
    path = os.pathsep.join(map(str, (SOURCE, Path(__file__).parent, *filter(None, sys.path))))
    process = subprocess.Popen(
        [*arguments, sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_without_descriptors_idle_connections_are_closed_without_a_busy_loop() -> None:
    with child(SCARCE) as process:
        assert process.stdout
        assert process.stderr
        address = ("127.0.0.1", int(process.stdout.readline()))
        with ExitStack() as stack:
            for _ in range(14):
                peer = Peer(stack.enter_context(socket.create_connection(address)))
                assert peer.get("/echo").status == 200
        process.kill()
        complaints = process.stderr.read().count("no connection can be accepted")
        assert 1 <= complaints <= 14


# -- sockets of every kind --------------------------------------------------------------------------------------------


def test_ipv6() -> None:
    with Serving(listening=bind(socket.AF_INET6, ("::1", 0))) as serving:
        environ = json.loads(serving.connect().get("/environ").body)
        assert (environ["SERVER_NAME"], environ["REMOTE_ADDR"]) == ("::1", "::1")


def test_a_unix_socket(tmp_path: Path) -> None:
    with Serving(listening=bind(socket.AF_UNIX, str(tmp_path / "socket"))) as serving:
        environ = json.loads(serving.connect().get("/environ").body)
        assert environ["REMOTE_ADDR"] == ""
        assert serving.connect().send(b"nonsense\r\n\r\n").answer().status == 400


INHERITED = """
import os
from gitops_hook.httpd.server import Server
from gitops_hook.systemd import inherited_sockets
from test_server import Desk

sockets = inherited_sockets(os.environ)
names = {name: len(group) for name, group in sockets.items()}
print(names, [name for name in os.environ if name.startswith("LISTEN_")], os.get_inheritable(3), flush=True)
Server(sockets["webhook"][0], Desk()).serve_forever()
"""


def test_sockets_are_inherited_as_systemd_hands_them_over() -> None:
    with bind() as listening:
        listening.listen()
        peer = Peer(socket.create_connection(listening.getsockname()))
        peer.send(request("/echo", b"early"))  # before anyone runs who could answer
        number = listening.fileno()
        shell = (
            f'exec 3<&{number} 4<&{number} 5<&{number}; export LISTEN_PID=$$ LISTEN_FDS=3; exec "$@"',
            "LISTEN_FDNAMES=webhook:webhook",
        )
        program = ("bash", "-c", shell[0], "bash", "env", shell[1])
        with child(INHERITED, *program, pass_fds=[number]) as process:
            assert process.stdout
            assert process.stdout.readline() == "{'webhook': 2, '': 1} [] False\n"
            assert peer.answer().body == b"early"
        peer.close()


@pytest.mark.parametrize("pid", ["1", ""], ids=["another process's", "nobody's"])
def test_inherited_sockets_of_another_process_are_ignored(pid: str) -> None:
    program = "import os; from gitops_hook.systemd import inherited_sockets; print(inherited_sockets(os.environ))"
    with child(program, "env", f"LISTEN_PID={pid}", "LISTEN_FDS=1") as process:
        assert process.communicate()[0] == "{}\n"


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_drain_answers_the_current_request_and_closes_the_connection() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        with serving.draining() as drained:
            serving.desk.go.set()
            answer = peer.answer()
            assert (answer.body, answer.headers["Connection"]) == (b"waited", "close")
            peer.close()
        assert drained == [True]


def test_a_drain_answers_a_partial_request_on_a_persistent_connection() -> None:
    with Serving() as serving:
        peer = serving.connect()
        assert peer.get("/echo").headers["Connection"] is None
        with serving.draining() as drained:
            answer = peer.get("/echo")
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
            peer.close()
        assert drained == [True]


def test_a_drain_closes_idle_connections() -> None:
    with Serving() as serving:
        kept, fresh = serving.connect(), serving.connect()
        assert kept.get("/echo").status == 200
        with serving.draining(quiet=0.05) as drained:
            assert kept.is_closed()
            assert fresh.is_closed()
        assert drained == [True]


def test_a_drain_waits_for_a_partial_body() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/echo", b"", EXPECT, length=4))
        assert (peer.line(), peer.line()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        with serving.draining(quiet=0) as drained:
            assert peer.send(b"body").answer().body == b"body"
            peer.close()
        assert drained == [True]


def test_a_drain_answers_connections_in_the_backlog() -> None:
    server = Server(bind(), Desk())
    peers = [Peer(socket.create_connection(server.server_address)) for _ in range(5)]
    answers: list[Answer] = []

    def ask() -> None:
        for peer in peers:
            peer.send(request("/echo", b"late"))
        for peer in peers:
            answers.append(peer.answer())
            peer.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert server.drain(PATIENCE)
    asking.join()
    assert [(answer.body, answer.headers["Connection"]) for answer in answers] == [(b"late", "close")] * 5


def test_a_drain_ends_at_its_deadline() -> None:
    with Serving() as serving:
        peer = serving.connect().send(request("/wait"))
        assert serving.desk.arrived.acquire(timeout=PATIENCE)
        serving.server.shutdown()
        assert serving.server.drain(0.05, quiet=0) is False
        assert peer.is_closed()


def test_many_connections_leave_no_thread_and_no_descriptor() -> None:
    def descriptors() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before = descriptors()
    raws = (b"", b"nonsense\r\n\r\n", request("/echo", b"x" * 1000), request("/fail"), request("/echo", b"x", length=9))
    with Serving(connections=20, request=0.2) as serving:
        for number in range(100):
            with suppress(ConnectionError):
                peer = serving.connect().send(raws[number % 5] * 2)
            if number % 3 == 0:
                peer.reset()
            elif number % 3 == 1:
                peer.close()
        assert serving.connect().get("/echo").status == 200
    assert descriptors() == before
