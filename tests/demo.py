"""``make demo``: push to a real repository, deliver the webhook to a real daemon, and print the result.

Everything is in a temporary directory, which is removed at the end. Standard library only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from harness import WEBHOOK, Daemon, push
from scratch import Upstream, git


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gitops-hook-demo-") as name:
        folder = Path(name)
        upstream = Upstream(folder / "forge", "acme/site")
        (folder / "root").mkdir()
        checkout = upstream.checkout(folder / "root", deploy='echo "deployed $(git log -1 --format=%s)" | tee ../live')
        with Daemon(folder) as daemon:
            print(f"upstream   {upstream.bare}")
            print(f"checkout   {checkout}, at {git('log', '-1', '--format=%h %s', cwd=checkout)}")
            print(f"daemon     http://127.0.0.1:{daemon.port}{WEBHOOK}, process {daemon.process.pid}")
            daemon.wait_for_run("trigger=sweep")  # the sweep at the start

            before = upstream.head()
            after = upstream.commit({"index.html": "<h1>Hello</h1>\n"}, message="Say hello")
            print(f"push       {before[:7]} -> {after[:7]} on main")
            began = time.perf_counter()
            status, answer = daemon.deliver(push("acme/site", after, before=before))
            answered = time.perf_counter()
            outcome = daemon.wait_for_run("trigger=push")
            done = time.perf_counter()

            log = daemon.state / "runs" / f"{outcome[2]}.log"
            print(f"answer     {status} {answer['status']}, {(answered - began) * 1e3:.0f} ms, on disk")
            print(f"run        {outcome[2]}: {outcome[1]}, {(done - began) * 1e3:.0f} ms after the push was delivered")
            print(f"checkout   at {git('log', '-1', '--format=%h %s', cwd=checkout)}; live: {checkout.parent / 'live'}")
            print(f"log        {log}")
            print("".join(f"           | {line}\n" for line in log.read_text().splitlines()), end="")
            live = (checkout.parent / "live").read_text()
            succeeded = git("rev-parse", "HEAD", cwd=checkout) == after and live == "deployed Say hello\n"
            if daemon.stop() or not succeeded:
                print(f"THE DEMO FAILED. Log of the daemon:\n{daemon.log}")
                return 1
        print("stopped; everything is removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
