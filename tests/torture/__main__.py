"""Run ``python -m torture``: run every test in order, print the table, and exit 1 if a line failed."""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import traceback
import unittest
from pathlib import Path
from typing import Callable

from torture.account import Account
from torture.clients import clients
from torture.commands import kill_commands, sweep_beside_pushes, upgrade
from torture.consumption import consumption
from torture.faults import disks, journals, limits
from torture.kills import kill_at_random_moments
from torture.power import cut_the_power, fail_writes, move_the_clock
from torture.pressure import pressure
from torture.storms import deliveries, everyone, misbehaving_deploys

Ordeal = Callable[[Path, Account], None]


def ordeals(short: bool, seed: int, kills: int) -> dict[str, Ordeal]:
    """Return the tests by name, in the order of the table; `short` reduces the number of rounds."""
    return {
        "kills": lambda folder, account: kill_at_random_moments(folder, account, kills, seed),
        "power cuts": lambda folder, account: cut_the_power(folder, account, 10 if short else 200, seed),
        "failing writes": lambda folder, account: fail_writes(folder, account, 3 if short else 12),
        "disks": lambda folder, account: disks(folder, account, 2 if short else 20, seed),
        "journals": lambda folder, account: journals(folder, account, 1 if short else 8),
        "limits": lambda folder, account: limits(folder, account, 2 if short else 10),
        "storms of deliveries": lambda folder, account: deliveries(folder, account, short),
        "misbehaving deploys": lambda folder, account: misbehaving_deploys(folder, account, 1 if short else 3),
        "everyone at once": lambda folder, account: everyone(folder, account, 5 if short else 30),
        "killed commands": lambda folder, account: kill_commands(folder, account, 5 if short else 200, seed),
        "sweeps": lambda folder, account: sweep_beside_pushes(folder, account, 3 if short else 50),
        "upgrades": lambda folder, account: upgrade(folder, account, 2 if short else 20),
        "clients": lambda folder, account: clients(folder, account, short),
        "pressure": lambda folder, account: pressure(folder, account, 4 if short else 10),
        "consumption": lambda folder, account: consumption(folder, account, short),
        "clock": lambda folder, account: move_the_clock(folder, account, 4 if short else 20),
    }


def main() -> int:
    """Run the selected tests, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--short", action="store_true", help="run fewer rounds, for two or three minutes")
    parser.add_argument("--only", default="", metavar="WORD", help="run only the tests whose names contain WORD")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="the seed of the random delays")
    parser.add_argument("--kills", type=int, metavar="N", help="the rounds of the first test: 500, or 50 with --short")
    options = parser.parse_args()
    kills = options.kills or (50 if options.short else 500)
    account = Account(sys.stdout)
    began = time.monotonic()
    account.print(f"{time.strftime('%-d %B %Y')}, {os.cpu_count()} cores, Linux {platform.release()}, "
                 f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, seed {options.seed}\n")  # fmt: skip
    account.print(f"{'fault':79} {'tried':>8} {'held':>7}")
    top = Path(tempfile.mkdtemp(prefix="gitops-hook-torture-"))
    top.chmod(0o755)  # one test runs as another user
    for name, ordeal in ordeals(options.short, options.seed, kills).items():
        if options.only in name:
            endure(name, ordeal, top, account)
    account.print(f"\n{'promise, over all tests above':79} {'tried':>8} {'held':>7}")
    for line in account.promises.values():
        if line.tried:
            account.print(line)
    failed = [line for line in account.failed if line.tried or line in account.faults]
    account.print(f"\n{len(failed)} lines failed, in {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        account.print(f"the directories of the tests are in {top}")
    else:
        shutil.rmtree(top)
    return 1 if failed else 0


def endure(name: str, ordeal: Ordeal, top: Path, account: Account) -> None:
    """Run one test in its own directory; an exception becomes a failed line, and `SkipTest` a skipped line."""
    folder = top / name.replace(" ", "-")
    folder.mkdir()
    try:
        ordeal(folder, account)
    except unittest.SkipTest as reason:
        account.fault(name).skipped = str(reason)
        account.print(account.faults[-1])
    except Exception:
        account.fault(name).check(False, traceback.format_exc()[-2000:])
        account.print(account.faults[-1])


if __name__ == "__main__":
    sys.exit(main())
