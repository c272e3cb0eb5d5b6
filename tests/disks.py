"""Mount a small disk for a test, and fill it."""

from __future__ import annotations

import os
import subprocess
import unittest
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of `size` at `folder`; skip the test if mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        raise unittest.SkipTest(f"NOT TESTED, a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk that contains `folder`, and return the file to delete."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * os.statvfs(folder).f_bsize):
            pass
    return path
