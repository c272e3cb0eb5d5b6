"""One call of the WSGI application. Its response is collected in memory."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.headers import Headers

from gitops_hook.errors import HTTPError
from gitops_hook.httpd.body import RequestBody
from gitops_hook.httpd.limits import Resources
from gitops_hook.httpd.request import Request
from gitops_hook.httpd.stream import CHUNK
from gitops_hook.log import log

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Call(SimpleHandler):
    """A call of the application for one request.

    Because the response leaves only when it is complete, an application that raises after its first byte still becomes
    a well-formed response with status 500.
    """

    environ: dict[str, Any]
    headers: Headers | None
    status: str | None
    http_version = "1.1"
    server_software = ""
    os_environ = {}  # the process's environment contains secrets  # noqa: RUF012

    def __init__(self, environ: dict[str, Any], request: Request, body: RequestBody, resources: Resources) -> None:
        """Prepare a call. `environ` describes the connection."""
        self._response = io.BytesIO()
        stdin = io.BytesIO() if body.complete else io.BufferedReader(body, CHUNK)
        if request.chunked:  # the convention of WSGI servers for a body without a length: read up to the end
            environ = {**environ, "wsgi.input_terminated": True}
        super().__init__(stdin, self._response, sys.stderr, {**environ, **request.environ}, multithread=True)
        self._request = request
        self._body = body
        self._resources = resources
        #: Whether another request may follow on this connection.
        self.keep_alive = request.keep_alive

    def run(self, application: Any) -> None:
        """Call the application.

        The method of `wsgiref` ignores a broken pipe because it writes to the peer. Here nothing is written to the
        peer, so a broken pipe is a fault of the application.
        """
        try:
            self.setup_environ()
            self.result = application(self.environ, self.start_response)
            self.finish_response()
        except Exception:
            self.handle_error()

    def output(self) -> bytes:
        """Return the bytes for the peer: the head, and the body unless the method is HEAD."""
        response = self._response.getvalue()
        if self._request.environ["REQUEST_METHOD"] == "HEAD":
            return response[: response.index(b"\r\n\r\n") + 4]
        return response

    def cleanup_headers(self) -> None:
        """Add the length to the headers, and whether this is the last response. `wsgiref` calls this."""
        super().cleanup_headers()
        assert self.headers is not None
        self.keep_alive = (
            self.keep_alive
            and not self._resources.draining
            and self._body.complete
            and "Content-Length" in self.headers
        )
        if not self.keep_alive:
            self.headers["Connection"] = "close"
        if (self.status or "").startswith("304"):  # a length would be that of the full response (RFC 9110, 8.6)
            del self.headers["Content-Length"]

    def handle_error(self) -> None:
        """Replace the response after the application raised an exception. `wsgiref` calls this."""
        self._response.seek(0)
        self._response.truncate()
        self.headers_sent = False
        super().handle_error()

    def log_exception(self, exc_info: Any) -> None:
        """Log a rejection, or a fault of the application with its traceback."""
        error = exc_info[1]
        if isinstance(error, HTTPError):
            peer = self.environ["REMOTE_ADDR"] or None  # a middleware may have replaced it with the client's address
            log.warning("request refused", http=error.status.value, reason=error.reason, peer=peer)
        else:
            log.exception("the application failed", path=self._request.environ.get("PATH_INFO"))

    def error_output(self, environ: Any, start_response: Any) -> list[bytes]:
        """Return the response to a rejected request or for a failed application, without details of the failure."""
        error = sys.exc_info()[1]
        self.keep_alive = False
        if isinstance(error, HTTPError):
            status, reason = error.status, error.reason
        else:
            status, reason = HTTPStatus.INTERNAL_SERVER_ERROR, "the application failed; the log contains the traceback"
        body = json.dumps({"status": "refused", "reason": reason}).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", "10"))
        start_response(f"{status.value} {status.phrase}", headers, sys.exc_info())
        return [body]


def rejecting(error: HTTPError) -> Application:
    """Return an application that raises `error` for every request."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise error

    return application
