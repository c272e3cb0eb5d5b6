"""Users by their ids. A container often runs as a user without an entry in the passwd database."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple


class Account(NamedTuple):
    """A user. Without an entry in the passwd database, the name is the number, and the home is ``/``."""

    name: str
    uid: int
    gid: int
    home: str = "/"
    shell: str = "/bin/sh"


def owner_of(path: Path) -> Account:
    """Return the owner of a file. Raises OSError if it cannot be examined."""
    status = path.stat()
    try:
        entry = pwd.getpwuid(status.st_uid)
    except KeyError:
        return Account(str(status.st_uid), status.st_uid, status.st_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def requesting_user() -> str:
    """Return the name of the user who runs this command, also through sudo."""
    return os.environ.get("SUDO_USER") or user_name(os.getuid())


def sudo_user(uid: int) -> str:
    """Return a user as an argument of ``sudo -u``, quoted for a shell."""
    name = user_name(uid)
    return f"'#{name}'" if name.isdecimal() else name
