"""``python -m torture``: every ordeal in its order, the table on standard output, exit 1 if a line did not hold."""

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
from torture.faults import disks, journals, limits
from torture.kills import kill_at_random_moments
from torture.power import cut_the_power, fail_writes, move_the_clock
from torture.storms import deliveries, everyone, misbehaving_deploys

Ordeal = Callable[[Path, Account], None]


def ordeals(short: bool, seed: int) -> dict[str, Ordeal]:
    """What is done, by name; the short form does less of the same."""
    return {
        "kills": lambda folder, account: kill_at_random_moments(folder, account, 50 if short else 500, seed),
        "power cuts": lambda folder, account: cut_the_power(folder, account, 10 if short else 200, seed),
        "failing writes": lambda folder, account: fail_writes(folder, account, 3 if short else 12),
        "disks": lambda folder, account: disks(folder, account, 2 if short else 20, seed),
        "journals": lambda folder, account: journals(folder, account, 1 if short else 8),
        "limits": lambda folder, account: limits(folder, account, 2 if short else 10),
        "storms of deliveries": lambda folder, account: deliveries(folder, account, short),
        "misbehaving deploys": lambda folder, account: misbehaving_deploys(folder, account, 1 if short else 3),
        "everyone at once": lambda folder, account: everyone(folder, account, 5 if short else 30),
        "clients": lambda folder, account: clients(folder, account, short),
        "clock": lambda folder, account: move_the_clock(folder, account, 4 if short else 20),
    }


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--short", action="store_true", help="less of the same, in two or three minutes")
    parser.add_argument("--only", default="", metavar="WORD", help="the ordeals whose names hold this word")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the random moments")
    options = parser.parse_args()
    account = Account(sys.stdout)
    began = time.monotonic()
    account.print(f"{time.strftime('%-d %B %Y')}, {os.cpu_count()} cores, Linux {platform.release()}, "
                 f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, seed {options.seed}\n")  # fmt: skip
    account.print(f"{'fault':79} {'tried':>8} {'held':>7}")
    top = Path(tempfile.mkdtemp(prefix="gitops-hook-torture-"))
    top.chmod(0o755)  # one ordeal is another user's
    for name, ordeal in ordeals(options.short, options.seed).items():
        if options.only in name:
            endure(name, ordeal, top, account)
    account.print(f"\n{'promise, over all of the above':79} {'tried':>8} {'held':>7}")
    for line in account.promises.values():
        if line.tried:
            account.print(line)
    failed = [line for line in account.failed if line.tried or line in account.faults]
    account.print(f"\n{len(failed)} lines did not hold, in {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        account.print(f"what was left behind is in {top}")
    else:
        shutil.rmtree(top)
    return 1 if failed else 0


def endure(name: str, ordeal: Ordeal, top: Path, account: Account) -> None:
    """Do one ordeal in a folder of its own; what it raises is a line that did not hold, or one that was skipped."""
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
