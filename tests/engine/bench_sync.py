"""Compare the time of the sync script with the same steps typed by hand, in one run.

Run it with ``python3 tests/engine/bench_sync.py [rounds] [checkouts]``. The bare steps are those that an operator would
type, ``git fetch origin main && git reset --keep FETCH_HEAD``. Both sides work on checkouts of one upstream. It is
reached over HTTP, as a forge is, and as a path on the same disk, where only the cost of the processes remains. The last
part runs the script in many unchanged checkouts, four at a time, beside ``git fetch`` in each of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from forge import served
from scratch import GIT_ENV, Upstream, git

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gitops_sync.sh"
BARE = ["sh", "-c", "git fetch --quiet origin main && git reset --quiet --keep FETCH_HEAD"]

#: The highest ratio of the script's seconds to the bare ones. The first two apply over HTTP.
TARGETS = {"updated": 1.25, "unchanged": 1.5, "sweep": 2.0}


def measure(rounds: int = 30, *, over_http: bool) -> list[tuple[str, float]]:
    """Return (name, median seconds) for each case, the bare steps before the engine's."""
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
            timed("engine unchanged", synced)
    return [(name, statistics.median(times)) for name, times in seconds.items()]


def sweep(checkouts: int) -> tuple[float, float]:
    """Return the seconds of `git fetch` and of the script in as many unchanged checkouts, four at a time."""
    with tempfile.TemporaryDirectory() as folder:
        upstream = Upstream(Path(folder) / "forge")
        root = Path(folder) / "root"
        for number in range(checkouts):
            (root / f"acme{number}").mkdir(parents=True)
            bare = upstream.bare.parents[1] / f"acme{number}" / "site.git"
            bare.parent.mkdir()
            bare.symlink_to(upstream.bare)
            git("clone", "--quiet", bare, root / f"acme{number}" / "site", cwd=root)
        environment = {**GIT_ENV, "GITOPS_ROOT": str(root)}

        def fetched(number: int) -> None:
            checkout = root / f"acme{number}" / "site"
            subprocess.run(["git", "fetch", "--quiet"], cwd=checkout, env=GIT_ENV, check=True)

        def synced(number: int) -> None:
            of_its_own = {**environment, "GITOPS_REPOSITORY": f"acme{number}/site"}
            subprocess.run([SCRIPT, "site"], env=of_its_own, stdout=subprocess.DEVNULL, check=True)

        def seconds(run: Callable[[int], None]) -> float:
            start = time.perf_counter()
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(run, range(checkouts)))
            return time.perf_counter() - start

        seconds(synced)  # the first run of a checkout records its deploy
        return seconds(fetched), seconds(synced)


def report(rounds: int, checkouts: int = 1000) -> None:
    """Print the medians, and each ratio beside its target."""
    for over_http, where in ((True, "over HTTP, on loopback"), (False, "from a path on the same disk")):
        medians = dict(measure(rounds, over_http=over_http))
        print(where)
        for name, median in medians.items():
            print(f"  {name:42}{median * 1000:8.1f} ms")
        for case in ("updated", "unchanged"):
            ratio = medians[f"engine {case}"] / medians[f"bare {case}"]
            print(f"  {case:42}{ratio:8.2f} times bare" + (f", target {TARGETS[case]}" if over_http else ""))
    bare, engine = sweep(checkouts)
    print(f"sweep of {checkouts} unchanged checkouts, four at a time")
    print(f"  {'git fetch':42}{bare:8.2f} s")
    print(f"  {'engine':42}{engine:8.2f} s")
    print(f"  {'sweep':42}{engine / bare:8.2f} times bare, target {TARGETS['sweep']}")


if __name__ == "__main__":
    report(*map(int, sys.argv[1:]), *(30, 1000)[len(sys.argv) - 1 :])
