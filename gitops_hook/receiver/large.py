"""Large payloads are parsed in a process of their own.

The JSON decoder of the standard library holds the interpreter from the first byte of a payload to its last, for seconds
if 25 MiB are dense. Meanwhile no other thread could respond to a webhook. It also builds objects of many
times that size. The child process has limits on memory and processor time, and returns only the event.

The daemon runs the child with the body on standard input. The child writes the event as JSON: the name of its class and
its fields.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from http import HTTPStatus

import gitops_hook
from gitops_hook.errors import HTTPError
from gitops_hook.receiver.events import Event, Ignored, Ping, Push, parse_event
from gitops_hook.receiver.forges import FORGES, Forge
from gitops_hook.receiver.payload import RefChange
from gitops_hook.receiver.signatures import Headers, header_key, header_value, media_type

#: The limit on the child's address space in bytes. A real push of 25 MiB needs a fifth.
_MEMORY = 768 << 20
#: The limit on the child's processor time, and on its total time, in seconds.
_CPU, _TIMEOUT = 10, 20
#: Imports this module from the place of the running package, which may be a zip archive. -I and -S keep the rest of the
#: environment out.
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from gitops_hook.receiver.large import main; main(*sys.argv[2:])"
_EVENTS = {event.__name__: event for event in (Push, Ping, Ignored)}


def parse_in_child(forge: Forge, headers: Headers, body: bytes) -> Event:
    """Return the event of a verified request, as `parse_event` does.

    Raise `HTTPError` as it does, and also 503 if the child exceeds a limit. Raise OSError if no process can be started.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(gitops_hook.__file__)))  # noqa: PTH100, PTH120 - bytes of a zip
    arguments = (package, forge.name, media_type(headers), header_value(headers, forge.event))
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, *arguments],
            input=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            timeout=_TIMEOUT,
            check=True,
        )
    except subprocess.SubprocessError:
        raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "the payload takes too much memory or time to parse") from None
    name, *fields = json.loads(child.stdout)
    if name == HTTPError.__name__:
        raise HTTPError(*fields)
    if name == Push.__name__:
        fields[1] = [RefChange(*change) for change in fields[1]]
    event: Event = _EVENTS[name](*fields)
    return event


def main(forge: str, kind: str, event: str) -> None:
    """Parse the body on standard input. Write the event to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU, _CPU))
    os.nice(10)
    gc.disable()  # the process ends before garbage matters, and a collection visits every object of a dense payload
    row = next(row for row in FORGES if row.name == forge)
    headers = {"CONTENT_TYPE": kind, header_key(row.event): event}
    result: Sequence[object]
    try:
        parsed = parse_event(row, headers, sys.stdin.buffer.read())
        result = [type(parsed).__name__, *parsed]
    except HTTPError as error:
        result = [HTTPError.__name__, error.status.value, error.reason]
    json.dump(result, sys.stdout)
