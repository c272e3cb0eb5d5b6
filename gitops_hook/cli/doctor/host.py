"""Checks of the host: directories, disks, programs, timers, the clock, and the daemon."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from gitops_hook.cli import timers as systemd_timers
from gitops_hook.cli.doctor.finding import (
    TIMEOUT,
    Result,
    Results,
    current_user,
    failure,
    output_of,
    passed,
    quote,
    service_user,
    skipped,
    warning,
)
from gitops_hook.config import ENVIRONMENT_FILE, UNIT_STATE, Settings
from gitops_hook.users import owner_of

#: Exists if systemd is the init system (sd_booted(3)).
SYSTEMD_IS_INIT = Path("/run/systemd/system")
#: Bytes of free space. The log of a run (1.25 MiB) and a fetch may not fit below the first.
_MIN_FREE = 64 << 20
_LOW_FREE = 1 << 30
#: Seconds by which the clock of a file server may be ahead.
_CLOCK_SKEW = 120
#: The oldest versions that work.
_MIN_VERSIONS = {"bash": (4, 4), "git": (2, 30)}
_MIN_PYTHON = (3, 9)
#: Programs that runs need, with their Debian packages.
_PROGRAMS = {"setpriv": "util-linux", "flock": "util-linux", "timeout": "coreutils"}


def timers(settings: Settings) -> Results:
    """Check that no timer polls a checkout."""
    if not shutil.which("systemctl"):
        yield skipped("there is no systemd, so there are no timers")
        return
    try:
        polling = [timer.unit for timer in systemd_timers.find_timers(settings.root) if timer.polls]
    except systemd_timers.TimerError as error:
        if SYSTEMD_IS_INIT.exists():
            yield warning(f"systemd does not answer: {error}", "systemctl list-timers --all")
        else:
            yield skipped("systemd is not the init system here, so there are no timers")
        return
    if polling:
        yield warning(f"still polling: {', '.join(polling)}", "sudo gitops-hook migrate")
    else:
        yield passed("no timer polls a checkout")


def clock(settings: Settings) -> Results:
    """Check that the time is right, because logs and commits depend on it."""
    for path in (settings.root, settings.state, settings.state / "journal.db"):
        if path.exists() and path.stat().st_mtime > time.time() + _CLOCK_SKEW:
            message = f"{path} has a time in the future, so the clock is or was wrong"
            yield warning(message, f"sudo touch {quote(path)}")
    answer = output_of("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if answer == "no" and output_of("systemd-detect-virt", "--container"):
        yield skipped("this is a container, whose host sets the clock")
    elif answer == "no":
        can = output_of("timedatectl", "show", "--property=CanNTP", "--value") != "no"
        fix = "sudo timedatectl set-ntp true" if can else "sudo apt-get install systemd-timesyncd"
        yield warning("the clock is not synchronized", fix)
    else:
        yield passed("the clock is synchronized") if answer == "yes" else skipped("timedatectl does not answer here")


def user(settings: Settings) -> Results:
    """Check that the current user owns the checkouts."""
    path = settings.state if settings.state.exists() else settings.root
    if path.stat().st_uid == os.geteuid():
        yield passed(f"{current_user()} owns {path}")
    else:
        message = f"{path} belongs to {owner_of(path).name}, but this check runs as {current_user()}"
        yield warning(message, "sudo gitops-hook doctor")


def journal(settings: Settings) -> Results:
    """Check that the current user owns every file of the state. A restored backup often belongs to root."""
    if not settings.state.is_dir():
        return  # another check reports that
    # `migrate` keeps its record as root.
    others = ("!", "-user", str(os.geteuid()), "!", "-name", "migrated.json", "-print", "-quit")
    foreign = output_of("find", settings.state, *others)
    fix = f"sudo chown -R {current_user()}: {quote(settings.state)}"
    if foreign is None:
        yield failure(f"the owners of the files in {settings.state} could not be checked", fix)
    elif foreign:
        yield failure(f"{foreign} does not belong to {current_user()}", fix)
    else:
        yield passed(f"the files in {settings.state} belong to {current_user()}")


def writable(directory: Callable[[Settings], Path], settings: Settings) -> Results:
    """Check that a directory exists and can be written."""
    path, name = directory(settings), current_user()
    if not path.is_dir():
        owner = service_user() if path == UNIT_STATE else name
        yield failure(f"there is no directory {path}", f"sudo install -d -m 700 -o {owner} {quote(path)}")
    elif os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield passed(f"{name} can write to {path}")
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        fix = f"sudo mount -o remount,rw {quote(_mount_point(path))}"
        yield failure(f"{path} is on a disk that is mounted read-only", fix)
    else:
        fix = f"sudo chown {name} {quote(path)} && sudo chmod u+rwx {quote(path)}"
        yield failure(f"{name} cannot write to {path}", fix)


def free_space(directory: Callable[[Settings], Path], settings: Settings) -> Results:
    """Check that the disk of a directory has free space and free inodes."""
    path = directory(settings)
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    files = os.statvfs(path)
    fix = f"sudo du -xh --max-depth=2 {quote(_mount_point(path))} | sort -h | tail"
    message = f"{free >> 20} MiB are free for {path}"
    if free < _MIN_FREE:
        yield failure(message, fix)
    elif free < _LOW_FREE:
        yield warning(message, fix)
    else:
        yield passed(message)
    if files.f_files and not files.f_favail:
        fix = f"sudo du -x --inodes {quote(_mount_point(path))} | sort -n | tail"
        yield failure(f"there are no free inodes at {path}", fix)


def script(settings: Settings) -> Results:
    """Check that the script can be executed, and that bash can parse it."""
    path = settings.sync_script
    if not os.access(path, os.R_OK | os.X_OK):
        yield failure(f"{current_user()} cannot execute {path}", f"sudo chmod a+rx {quote(path)}")
    elif output_of(path, "--help") is None:
        yield failure(f"{path} does not run", f"bash -n {quote(path)}")
    else:
        yield passed(f"{path} runs")


def programs(settings: Settings) -> Results:
    """Check that the programs that runs need exist and are recent enough."""
    for program, minimum in _MIN_VERSIONS.items():
        version = re.search(r"(\d+)\.(\d+)", output_of(program, "--version") or "")
        if not version:
            yield failure(f"there is no program {program}", f"sudo apt-get install {program}")
        elif (int(version[1]), int(version[2])) < minimum:
            message = f"{program} is {version[0]}, but must be at least {'.'.join(map(str, minimum))}"
            yield failure(message, f"sudo apt-get install --only-upgrade {program}")
        else:
            yield passed(f"{program} {version[0]}")
    if sys.version_info[:2] < _MIN_PYTHON:
        message = f"Python is {sys.version.split()[0]}, but must be at least 3.9"
        yield failure(message, "sudo apt-get install python3")
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    if missing:
        packages = " ".join(sorted({_PROGRAMS[program] for program in missing}))
        yield failure(f"not installed: {', '.join(missing)}", f"sudo apt-get install --reinstall {packages}")


def socket(settings: Settings) -> Results:
    """Check that the daemon answers, and that it can store deliveries."""
    listen = settings.listen
    with closing(http.client.HTTPConnection(*listen.connectable, timeout=TIMEOUT)) as connection:
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            reason = json.loads(response.read()).get("reason")
        except OSError as error:
            yield _no_answer(settings, error)
            return
        except (http.client.HTTPException, ValueError, AttributeError):
            yield failure(f"the server at {listen} is not gitops-hook", f"sudo ss -ltnp 'sport = :{listen.port}'")
            return
    if response.status == http.client.OK:
        yield passed(f"the daemon answers at {listen}")
    else:
        yield failure(f"the daemon is unhealthy: {reason}", "sudo systemctl restart gitops-hook")


def _no_answer(settings: Settings, error: OSError) -> Result:
    message = f"no daemon answers at {settings.listen}: {error.strerror or error}"
    addresses = (output_of("systemctl", "show", "--property=Listen", "--value", "gitops-hook.socket") or "").split()
    if addresses and str(settings.listen) not in addresses:
        return failure(f"{message}; gitops-hook.socket is at {' '.join(addresses)}", f"sudoedit {ENVIRONMENT_FILE}")
    return failure(message, "sudo systemctl start gitops-hook.socket gitops-hook.service")


def _mount_point(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.ismount(place))
