"""Locate the sync script that comes with the package, and unpack it if the package is a single file.

Rules:

1. The scripts are beside the package in a source tree and after ``make install``. A wheel has them inside the package.
2. The kernel cannot execute a file in an archive, so the .pyz unpacks its scripts into the state directory, in a
   directory that is named by a hash of their content. A later version therefore never changes a script that runs.
3. Unpacking creates a new directory and renames it. It follows no link, and it accepts an existing directory only if
   this user or root owns it and every file has the right content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from zipimport import zipimporter

_NAME = "gitops_sync.sh"
_PACKAGE = Path(__file__).resolve().parent


def sync_script(state: Path) -> Path:
    """Return the path of the sync script; in a .pyz, unpack it below `state`.

    Raises ValueError if that is impossible.
    """
    loader = __spec__.loader
    if isinstance(loader, zipimporter):
        from zipfile import ZipFile  # noqa: PLC0415 - only a .pyz needs it

        with ZipFile(loader.archive) as archive:
            names = [name for name in archive.namelist() if name.startswith("scripts/") and name.endswith(".sh")]
            files = {name[len("scripts/") :]: archive.read(name) for name in names}
        return unpack(files, state) / _NAME
    for directory in (_PACKAGE / "scripts", _PACKAGE.parent / "scripts"):
        if (directory / _NAME).is_file():
            return directory / _NAME
    return Path(shutil.which(_NAME) or _PACKAGE.parent / "scripts" / _NAME)


def unpack(files: Mapping[str, bytes], state: Path) -> Path:
    """Return a directory below `state` that contains `files`, by their paths. Raises ValueError."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(content), content))
    target = state / f"scripts-{digest.hexdigest()[:16]}"
    try:
        if not _is_complete(target, files):
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(target, files)
    except OSError as error:
        raise ValueError(f"the scripts cannot be unpacked to {target}: {error.strerror}") from error
    return target


def _is_complete(target: Path, files: Mapping[str, bytes]) -> bool:
    """Return True if `target` is a directory that only this user or root can change, with exactly these contents."""
    with suppress(OSError):
        directories = {target, *((target / name).parent for name in files)}
        for path in (*directories, *(target / name for name in files)):
            found = path.lstat()
            kind = stat.S_ISDIR if path in directories else stat.S_ISREG
            if not kind(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                return False
        return all((target / name).read_bytes() == content for name, content in files.items())
    return False


def _replace(target: Path, files: Mapping[str, bytes]) -> None:
    """Create `target` with `files` in a directory that no other user can enter, and rename it."""
    import tempfile  # noqa: PLC0415 - only a .pyz needs it

    new = Path(tempfile.mkdtemp(prefix=".scripts-", dir=target.parent))
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(mode=0o755, exist_ok=True)
            (new / name).write_bytes(content)
            (new / name).chmod(0o755)
        new.chmod(0o755)
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(target.lstat().st_mode):
                target.unlink()
            elif not _is_complete(target, files):
                target.rename(new / "replaced")
        with suppress(OSError):
            new.rename(target)
        if not _is_complete(target, files):
            raise OSError(0, "another process changes it")
    finally:
        shutil.rmtree(target / "replaced", ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
