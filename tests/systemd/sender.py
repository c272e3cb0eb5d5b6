"""Delivers signed pushes to port 8787 of the network that it runs in, and prints the number of responses by status.

sender.py REPOSITORY AFTER SECRET COUNT [PER_SECOND [REF]]: one connection each, up to 16 at a time; no delivery is tried
twice. A connection that is refused or broken counts by the name of its error.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from harness import WEBHOOK, headers, push

repository, after, secret, count = *sys.argv[1:4], int(sys.argv[4])
interval = 1 / float(sys.argv[5]) if len(sys.argv) > 5 else 0.0
ref = sys.argv[6] if len(sys.argv) > 6 else "refs/heads/main"
began = time.monotonic()


def deliver(number: int) -> str:
    time.sleep(max(0.0, began + number * interval - time.monotonic()))
    body = json.dumps(push(repository, after, ref=ref)).encode()
    connection = http.client.HTTPConnection("127.0.0.1", 8787, timeout=30)
    try:
        connection.request("POST", WEBHOOK, body, headers(body, secret=secret))
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


with ThreadPoolExecutor(16) as connections:
    print(json.dumps(Counter(connections.map(deliver, range(count)))))
