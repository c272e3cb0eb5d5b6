"""The scripts of a single-file program: unpacked completely, and never through a file that another user prepared."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gitops_hook.shipped import unpack

FILES = {"gitops_sync.sh": b"#!/bin/bash\n. sync/git.sh\n", "sync/git.sh": b"echo\n"}


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_unpacked_files_are_complete_and_executable(tmp_path: Path):
    state = tmp_path / "new/state"
    directory = unpack(FILES, state)
    assert content(directory) == FILES
    assert os.access(directory / "gitops_sync.sh", os.X_OK)
    assert list(state.iterdir()) == [directory]
    before = directory.stat()
    assert unpack(FILES, state) == directory
    assert directory.stat() == before


def test_other_content_has_another_directory(tmp_path: Path):
    old = unpack(FILES, tmp_path)
    new = unpack({**FILES, "sync/git.sh": b"exit\n"}, tmp_path)
    assert old != new
    assert content(old) == FILES


@pytest.mark.parametrize("name", [*FILES, "sync"])
def test_a_changed_or_missing_part_is_replaced(tmp_path: Path, name: str):
    part = unpack(FILES, tmp_path) / name
    part.rename(tmp_path / "elsewhere")
    assert content(unpack(FILES, tmp_path)) == FILES
    part.chmod(0o777)
    assert content(unpack(FILES, tmp_path)) == FILES
    assert part.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("name", ["", *FILES, "sync"])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, name: str):
    directory = unpack(FILES, tmp_path / "state")
    (directory / name).rename(tmp_path / "target")
    (directory / name).symlink_to(tmp_path / "target")
    before = sorted(tmp_path.joinpath("target").rglob("*")), (tmp_path / "target").stat()
    assert content(unpack(FILES, tmp_path / "state")) == FILES
    assert not (directory / name).is_symlink()
    assert (sorted(tmp_path.joinpath("target").rglob("*")), (tmp_path / "target").stat()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create files of another user")
def test_a_directory_of_another_user_is_replaced(tmp_path: Path):
    directory = unpack(FILES, tmp_path)
    os.chown(directory / "gitops_sync.sh", 65534, 65534)
    assert unpack(FILES, tmp_path) == directory
    assert (directory / "gitops_sync.sh").stat().st_uid == 0


def test_processes_that_unpack_at_the_same_time_all_succeed(tmp_path: Path):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(unpack(FILES, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert content(found[0]) == FILES
    assert list(tmp_path.iterdir()) == [found[0]]


def test_a_state_directory_that_is_a_file_is_reported(tmp_path: Path):
    (tmp_path / "state").touch()
    with pytest.raises(ValueError, match="the scripts cannot be unpacked to"):
        unpack(FILES, tmp_path / "state")
