"""A real limit on the memory of a process and its children, so that the kernel kills one of them; standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness import until

#: A Python program that starts processes, each smaller than the daemon, until the kernel kills one; then it ends all.
MANY_PROCESSES = """\
import os, signal, time
children = []
while not children or os.waitpid(-1, os.WNOHANG)[0] == 0:
    children.append(os.fork())
    if not children[-1]:
        block = b"x" * (8 << 20)
        time.sleep(20)
    time.sleep(0.02)
for child in children:
    os.kill(child, signal.SIGKILL)
raise SystemExit("a process was killed")
"""


def own_group() -> Path | None:
    """Return the control group of version 1 that limits this process's memory, or None if the host has none."""
    found = re.search(r"^[0-9]+:memory:(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = Path("/sys/fs/cgroup/memory") / found[1].lstrip("/") if found else None
    return group if group and os.access(group, os.W_OK) else None


@contextmanager
def memory_limit(process: int, size: int) -> Iterator[Callable[[], int]]:
    """Limit the memory of `process` and its further children to `size` bytes, together, during the block.

    Yields a function that returns how many processes the kernel has killed.
    """
    parent = own_group()
    assert parent
    group = parent / f"gitops-hook-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        (group / "cgroup.procs").write_text(str(process))
        yield lambda: int((group / "memory.oom_control").read_text().rpartition("oom_kill ")[2])
    finally:
        until(lambda: _is_removed(group, parent), f"{group} does not become empty")


def _is_removed(group: Path, parent: Path) -> bool:
    """Move the members of a control group to its parent, and remove it. Return False if it has got a new member."""
    for member in (group / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(member)
    with suppress(OSError):
        group.rmdir()
    return not group.exists()
