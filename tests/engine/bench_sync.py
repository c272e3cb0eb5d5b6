"""How long the sync engine takes beside the same steps typed bare, side by side in one run.

Run it with ``python3 tests/engine/bench_sync.py [rounds]``. The bare steps are those an operator would type,
``git fetch origin main && git reset --keep FETCH_HEAD``. Both work on checkouts of their own of one upstream, which
is reached over HTTP, as a forge is, and once more as a path on the same disk, where nothing is left but processes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from forge import served
from scratch import GIT_ENV, Upstream, git

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gitops_sync.sh"
BARE = ["sh", "-c", "git fetch --quiet origin main && git reset --quiet --keep FETCH_HEAD"]

#: What the engine may cost, its seconds over the bare ones, where the upstream is reached as a forge is.
TARGETS = {"updated": 1.4, "unchanged by hint": 0.5}


def measure(rounds: int = 30, *, over_http: bool) -> list[tuple[str, float]]:
    """The median seconds of each case over `rounds`: (name, seconds), the bare steps before the engine's."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "forge") as url:
        upstream = Upstream(Path(folder) / "forge")
        bare = upstream.checkout(Path(folder) / "bare")
        engine = upstream.checkout(Path(folder) / "engine")
        if over_http:
            for checkout in (bare, engine):
                git("remote", "set-url", "origin", f"{url}/{upstream.repository}.git", cwd=checkout)
        environment = {
            **GIT_ENV,
            "GITOPS_ROOT": str(engine.parents[1]),
            "GITOPS_REPOSITORY": upstream.repository,
            "GITOPS_REF": "refs/heads/main",
        }

        def timed(name: str, run: Callable[[], object]) -> None:
            start = time.perf_counter()
            run()
            seconds.setdefault(name, []).append(time.perf_counter() - start)

        def typed() -> None:
            subprocess.run(BARE, cwd=bare, env=GIT_ENV, stdout=subprocess.DEVNULL, check=True)

        def synced() -> None:
            command = [SCRIPT, upstream.repository.split("/")[1]]
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

        for number in range(rounds):
            environment["GITOPS_AFTER"] = upstream.commit({"README": f"{number}\n"})
            timed("bare updated", typed)
            timed("engine updated", synced)
            timed("bare unchanged", typed)
            timed("engine unchanged by hint", synced)
    return [(name, statistics.median(times)) for name, times in seconds.items()]


def report(rounds: int) -> None:
    """Print the medians, and each ratio beside its target."""
    for over_http, where in ((True, "over HTTP, on loopback"), (False, "from a path on the same disk")):
        medians = dict(measure(rounds, over_http=over_http))
        print(where)
        for name, median in medians.items():
            print(f"  {name:42}{median * 1000:8.1f} ms")
        for case, target in TARGETS.items():
            ratio = medians[f"engine {case}"] / medians[f"bare {case.split()[0]}"]
            print(f"  {case:42}{ratio:8.2f} times bare" + (f", {target} aimed at" if over_http else ""))


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
