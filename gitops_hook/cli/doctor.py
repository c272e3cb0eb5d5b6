"""Checks of a host: whether all is in place for a push to go live, and if not, the command that mends it.

Rules:

1. A check is one function in a table. It gives findings: a sentence each, and with a failure the command that mends it.
2. A failure keeps pushes from going live, or will. A warning does not, but somebody should know. What cannot be looked
   at on this host (no systemd, no NTP) is no fault of it.
3. Looking changes nothing but fetched objects, waits a bounded time for anything, and shows no secret.
4. What root alone may see is looked at with the rights of whoever asks (`BY_CALLER`), everything else as the service's
   user (`BY_SERVICE`, `OF_CHECKOUT`): what matters is what that user can do.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gitops_hook.cli import timers
from gitops_hook.config import ENVIRONMENT_FILE, UNIT_STATE, Settings
from gitops_hook.errors import ConfigError, GitopsError
from gitops_hook.github.client import ApiError, Client, read_token
from gitops_hook.names import name_in_url
from gitops_hook.secrets import read_secrets, signing_key
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.runner import inherited
from gitops_hook.text import redact

OK, WARNING, FAILURE = "ok", "warning", "failure"
#: Exit statuses by the worst level, as monitoring plugins have them, so that this can serve as one.
EXIT = {OK: 0, WARNING: 1, FAILURE: 2}
#: Twice what anybody could try out: GitHub advises random text, and 16 bytes of it are 128 bits.
_SECRET_BYTES = 16
#: Free space: below the first a run's log (1.25 MiB) and a fetch may not fit; below the second it is time to look.
_DISK_LEAST = 64 << 20
_DISK_LOW = 1 << 30
#: Seconds that clocks of file servers may be ahead of ours.
_AHEAD = 120
#: Seconds for a program of this host, for the daemon's answer, for a remote's; and how many checks wait at one time.
_PATIENCE = 10
_FETCH_PATIENCE = 30
_AT_ONCE = 8
_BASH = (4, 4)
_GIT = (2, 30)
_PYTHON = (3, 9)
#: Programs that runs are made with, and the Debian packages that bring them.
_PROGRAMS = {"setpriv": "util-linux", "flock": "util-linux", "timeout": "coreutils"}
#: How the script's sentences end that tell a fix.
_CURE = re.compile(r"; ((?:sudo |git |rm |mkdir |mv )[^;]+)$")


class Finding(NamedTuple):
    """What a check has found; `fix` is the command that mends it, and `repository` the one that it is about."""

    check: str
    level: str
    message: str
    fix: str = ""
    repository: str = ""


class _Said(NamedTuple):
    level: str
    message: str
    fix: str = ""


Said = Iterator[_Said]


def _ok(message: str) -> _Said:
    return _Said(OK, message)


def _warning(message: str, fix: str) -> _Said:
    return _Said(WARNING, message, fix)


def _failure(message: str, fix: str) -> _Said:
    return _Said(FAILURE, message, fix)


def examine_settings(error: ConfigError, environ: Mapping[str, str]) -> Finding:
    """What keeps the settings from being read, so that most else cannot be looked at."""
    if error.option == "GITOPS_ROOT":
        fix = f"sudo install -d -o {_unit_user()} {shlex.quote(error.value)}"
    elif error.option == "GITOPS_SYNC_SCRIPT" and Path(error.value).is_file():
        fix = f"sudo chmod +x {shlex.quote(error.value)}"
    elif error.option in environ:
        fix = f"unset {error.option}"
    else:
        fix = f"sudoedit {ENVIRONMENT_FILE}"
    return Finding("settings", FAILURE, redact(str(error)), fix)


def examine(checks: Mapping[str, Callable[[Settings], Said]], settings: Settings) -> list[Finding]:
    """What the checks of one table find, which wait side by side."""
    return _all(partial(_findings, name, partial(check, settings)) for name, check in checks.items())


def examine_checkouts(settings: Settings) -> list[Finding]:
    """What the checks of every checkout find."""
    checkouts = Checkouts(settings.root)
    found = filter(None, map(checkouts.find, checkouts))
    return _all(
        partial(_findings, name, partial(check, settings, checkout), checkout.repository)
        for checkout in found
        for name, check in OF_CHECKOUT.items()
    )


def worst(findings: Iterable[Finding]) -> str:
    """The worst level among them."""
    return max((finding.level for finding in findings), key=lambda level: EXIT[level], default=OK)


def _all(checks: Iterable[Callable[[], list[Finding]]]) -> list[Finding]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [finding for found in pool.map(lambda check: check(), checks) for finding in found]


def _findings(name: str, check: Callable[[], Said], repository: str = "") -> list[Finding]:
    try:
        return [Finding(name, *said, repository) for said in check()]
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding(name, FAILURE, f"this cannot be looked at: {error}", "sudo gitops-hook doctor", repository)]


def _secret(settings: Settings) -> Said:
    """Whether there is a secret that cannot be guessed, and that no other user can read."""
    path = settings.webhook_secret_file
    if settings.webhook_secret:
        yield from _judge_secrets([settings.webhook_secret.encode()], "GITHUB_WEBHOOK_SECRET", Path("webhook-secret"))
    if not path:
        if not settings.webhook_secret:
            yield _failure("there is no secret", _new_secret(ENVIRONMENT_FILE.with_name("webhook-secret")))
        return
    try:
        mode, secrets = path.stat().st_mode, list(read_secrets(path).values())
    except FileNotFoundError:
        yield _failure(f"there is no file {path}", _new_secret(path))
    except PermissionError:
        yield _warning(f"{path} is not yours to read, so it was not looked at", "sudo gitops-hook doctor")
    else:
        yield from _judge_secrets(secrets, str(path), path)
        if mode & 0o007:
            yield _failure(f"{path} is open to every user of this host", f"sudo chmod o= {_q(path)}")


def _judge_secrets(secrets: list[bytes], where: str, path: Path) -> Said:
    short = _lines(secrets, lambda secret: len(secret) < _SECRET_BYTES)
    garbled = _lines(secrets, lambda secret: secret.startswith(b"whsec_") and not signing_key(secret))
    if not secrets:
        yield _failure(f"{where} holds no secret", _new_secret(path))
    elif short:
        yield _failure(f"{where} holds a secret of less than {_SECRET_BYTES} bytes (line {short})", _new_secret(path))
    elif garbled:
        yield _warning(f"{where} holds a signing token that is not whole (line {garbled})", f"sudoedit {_q(path)}")
    else:
        yield _ok(f"{where} holds {len(secrets)}, long enough")


def _lines(secrets: list[bytes], is_such: Callable[[bytes], bool]) -> str:
    return ", ".join(str(number) for number, secret in enumerate(secrets, 1) if is_such(secret))


def _new_secret(path: Path) -> str:
    return f"sudo sh -c 'umask 077 && openssl rand -hex 20 > {_q(path)}' && sudo systemctl restart gitops-hook"


def _token(settings: Settings) -> Said:
    """Whether GitHub takes the token, where there is one, and no other user can read it."""
    path = settings.token_file
    fix = f"sudoedit {_q(path or ENVIRONMENT_FILE.with_name('github-token'))}"
    try:
        token = read_token(path)
        if not path or not token:
            if settings.report:
                yield _failure("GITOPS_REPORT is set, but there is no token for GitHub", fix)
            return
        if path.stat().st_mode & 0o007:
            yield _failure(f"{path} is open to every user of this host", f"sudo chmod o= {_q(path)}")
        rate = Client(settings.api_url, token, patience=0, tries=1).call("GET", "/rate_limit")  # it counts for nothing
    except ApiError as error:
        yield _failure(str(error), fix) if error.again is None else _warning(str(error), "gitops-hook doctor")
    except GitopsError as failure:
        is_closed = isinstance(failure.__context__, PermissionError)
        yield (
            _warning(f"{failure}, so it was not looked at", "sudo gitops-hook doctor")
            if is_closed
            else _failure(str(failure), fix)
        )
    else:
        left = rate.headers.get("x-ratelimit-remaining")
        yield _ok(f"{settings.api_url} takes the token" + (f"; {left} requests are left in this hour" if left else ""))


def _timers(settings: Settings) -> Said:
    """Whether a timer still polls what webhooks serve."""
    if not shutil.which("systemctl"):
        yield _ok("there is no systemd that could have any")
        return
    try:
        polling = [timer.unit for timer in timers.find(settings.root) if timer.polls]
    except timers.TimerError as error:
        yield _ok(f"systemd cannot be asked ({error})")
        return
    if polling:
        yield _warning(f"still polling: {', '.join(polling)}", "sudo gitops-hook migrate")
    else:
        yield _ok("none polls a checkout")


def _clock(settings: Settings) -> Said:
    """Whether the time is right: logs and git's own times depend on it."""
    for path in (settings.root, settings.state, settings.state / "journal.db"):
        if path.exists() and path.stat().st_mtime > time.time() + _AHEAD:
            yield _warning(
                f"{path} bears a time that is yet to come: the clock was wrong, or is", f"sudo touch {_q(path)}"
            )
    said = _output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if said == "no":
        yield _warning("the clock is not synchronised", "sudo timedatectl set-ntp true")
    else:
        yield _ok("the clock is synchronised" if said == "yes" else "nothing here knows whether the clock is right")


def _user(settings: Settings) -> Said:
    """Whether this is the user whose checkouts these are."""
    owner = settings.state if settings.state.exists() else settings.root
    if owner.stat().st_uid == os.geteuid():
        yield _ok(f"{_me()} owns {owner}")
    else:
        yield _warning(f"{owner} belongs to {owner.owner()}, but you look as {_me()}", "sudo gitops-hook doctor")


def _writable(folder: Callable[[Settings], Path], settings: Settings) -> Said:
    path = folder(settings)
    if not path.is_dir():
        user = _unit_user() if path == UNIT_STATE else _me()
        yield _failure(f"there is no folder {path}", f"sudo install -d -m 700 -o {user} {_q(path)}")
    elif os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield _ok(f"{_me()} can write to {path}")
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        yield _failure(f"{path} is on a disk that is mounted read-only", f"sudo mount -o remount,rw {_q(_mount(path))}")
    else:
        fix = f"sudo chown {_me()} {_q(path)} && sudo chmod u+rwx {_q(path)}"
        yield _failure(f"{path} cannot be written by {_me()}", fix)


def _space(folder: Callable[[Settings], Path], settings: Settings) -> Said:
    path = folder(settings)
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    files = os.statvfs(path)
    fix = f"sudo du -xh --max-depth=2 {_q(_mount(path))} | sort -h | tail"
    told = f"{free >> 20} MiB are free for {path}"
    yield _failure(told, fix) if free < _DISK_LEAST else _warning(told, fix) if free < _DISK_LOW else _ok(told)
    if files.f_files and not files.f_favail:
        yield _failure(
            f"no more files can be made at {path}", f"sudo du -x --inodes {_q(_mount(path))} | sort -n | tail"
        )


def _script(settings: Settings) -> Said:
    """Whether the script can be executed, and bash understands it."""
    path = settings.sync_script
    if not os.access(path, os.R_OK | os.X_OK):
        yield _failure(f"{path} cannot be executed by {_me()}", f"sudo chmod a+rx {_q(path)}")
    elif _output(str(path), "--help") is None:
        yield _failure(f"{path} does not run", f"bash -n {_q(path)}")
    else:
        yield _ok(f"{path} runs")


def _programs(settings: Settings) -> Said:
    """Whether the programs are here that runs are made with, and new enough."""
    for program, least in (("bash", _BASH), ("git", _GIT)):
        said = _output(program, "--version")
        version = re.search(r"(\d+)\.(\d+)", said or "")
        wanted = ".".join(map(str, least))
        if not version:
            yield _failure(f"{program} is not to be found", f"sudo apt-get install {program}")
        elif (int(version[1]), int(version[2])) < least:
            fix = f"sudo apt-get install --only-upgrade {program}"
            yield _failure(f"{program} is {version[0]}, and {wanted} is the least", fix)
        else:
            yield _ok(f"{program} {version[0]}")
    if sys.version_info[:2] < _PYTHON:
        yield _failure(f"Python is {sys.version.split()[0]}, and 3.9 is the least", "sudo apt-get install python3")
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    if missing:
        packages = " ".join(sorted({_PROGRAMS[program] for program in missing}))
        yield _failure(f"not to be found: {', '.join(missing)}", f"sudo apt-get install --reinstall {packages}")


def _socket(settings: Settings) -> Said:
    """Whether the daemon answers, and can keep what it accepts."""
    with closing(http.client.HTTPConnection(*settings.listen.connectable, timeout=_PATIENCE)) as connection:
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            reason = json.loads(response.read()).get("reason")
        except OSError as error:
            told = f"nothing answers at {settings.listen}: {error.strerror or error}"
            places = (_output("systemctl", "show", "--property=Listen", "--value", "gitops-hook.socket") or "").split()
            if places and str(settings.listen) not in places:
                yield _failure(f"{told}; gitops-hook.socket is at {' '.join(places)}", f"sudoedit {ENVIRONMENT_FILE}")
            else:
                yield _failure(told, "sudo systemctl start gitops-hook.socket gitops-hook.service")
            return
        except (http.client.HTTPException, ValueError, AttributeError):
            yield _failure(f"what answers at {settings.listen} is not gitops-hook", f"sudo ss -ltnp {_port(settings)}")
            return
    if response.status == http.client.OK:
        yield _ok(f"the daemon answers at {settings.listen}")
    else:
        yield _failure(f"the daemon answers that {reason}", "sudo systemctl restart gitops-hook")


def _port(settings: Settings) -> str:
    return f"'sport = :{settings.listen.port}'"


def _ownership(settings: Settings, checkout: Checkout) -> Said:
    """Whether all of the repository is the service's own; one fetch by root is enough to spoil that."""
    path = checkout.path
    foreign = _output("find", path, path / ".git", "-maxdepth", "0", "!", "-user", str(os.geteuid()), "-print", "-quit")
    foreign = foreign or _output("find", path / ".git", "!", "-user", str(os.geteuid()), "-print", "-quit")
    if foreign:
        yield _failure(f"{foreign} does not belong to {_me()}", f"sudo chown -R {_me()}: {_q(path)}")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield _failure(f"{path} cannot be written by {_me()}", f"sudo chmod u+rwx {_q(path)}")
    else:
        yield _ok(f"{path} belongs to {_me()}")


def _origin(settings: Settings, checkout: Checkout) -> Said:
    """Whether origin is the repository that the folder is called after."""
    url = settings.clone_url.replace("{repository}", checkout.repository)
    origin = checkout.settings.get("origin", "")
    if not origin:
        yield _failure("it has no remote called origin", f"{_git(checkout)} remote add origin {_q(url)}")
        return
    for candidate in (origin, _output("git", "-C", checkout.path, "ls-remote", "--get-url", "origin") or ""):
        name = (name_in_url(candidate) or "").lower()
        if checkout.repository.lower() in (name, name.rpartition("/")[2]):
            yield _ok("origin is called as its folder")
            return
    fix = f"{_git(checkout)} remote set-url origin {_q(url)}"
    yield _failure(f"origin is {name_in_url(origin) or 'no repository'}, not {checkout.repository}", fix)


def _branch(settings: Settings, checkout: Checkout) -> Said:
    """Whether it is known which branch to follow."""
    branch = checkout.settings.get("branch")
    if branch:
        yield _ok(f"it follows {branch}, as gitops.branch says")
        return
    default = _output("git", "-C", checkout.path, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
    if default:
        yield _ok(f"it follows {default.partition('/')[2]}, upstream's default")
    else:
        fix = f"{_git(checkout)} remote set-head origin --auto"
        yield _warning("neither gitops.branch nor upstream's default branch is known here; each run asks", fix)


def _fetch(settings: Settings, checkout: Checkout) -> Said:
    """What a run would do; it asks the remote, and changes nothing."""
    owner, _, name = checkout.repository.rpartition("/")
    environment = inherited(os.environ, settings.root)
    if owner:
        environment["GITOPS_REPOSITORY"] = checkout.repository
    done = subprocess.run(
        ["timeout", "--kill-after=2", str(_FETCH_PATIENCE), settings.sync_script, "--dry-run", name],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
    )
    message = (done.stdout.strip().splitlines() or [f"no end of it within {_FETCH_PATIENCE} s"])[-1]
    message = message.replace("; tried again later", "")  # a run would be, this is not
    fix = _CURE.search(message)
    if done.returncode == 0:
        yield _ok(message)
    elif "another run holds" in message:
        yield _ok("a run is in hand at this moment")
    elif fix:
        yield _failure(message[: fix.start()], f"sudo -u {_me()} {fix[1]}" if fix[1].startswith("git ") else fix[1])
    elif done.returncode in (75, 124):
        yield _failure(message, f"{_git(checkout)} fetch origin")
    elif done.returncode == 65:
        yield _failure(message, f"{_git(checkout)} status")
    else:
        yield _failure(message, f"gitops-hook sync {checkout.repository}")


def _deploy(settings: Settings, checkout: Checkout) -> Said:
    """Whether the deploy's program is there, as bash would find it."""
    command = checkout.settings.get("deploy", "")
    word = _program(command)
    if not command:
        yield _ok("nothing is deployed beyond the tree itself")
    elif not word:
        yield _ok("gitops.deploy is bash's to understand")
    elif _output("bash", "-c", 'cd -- "$1" && type -t -- "$2"', "bash", checkout.path, word):
        yield _ok(f"gitops.deploy begins with {word}, which is there")
    elif (checkout.path / word).is_file() and "/" in word:
        fix = f"{_git(checkout)} config gitops.deploy {_q(f'bash {command}')}"
        yield _failure(f"gitops.deploy begins with {word}, which is not executable", fix)
    else:
        fix = f"{_git(checkout)} config gitops.deploy COMMAND"
        yield _failure(f"gitops.deploy begins with {word}, which {_me()} does not find", fix)


def _program(command: str) -> str:
    """The first word of a command that names what is executed; "" where that is more than a plain word."""
    words = command.split()
    while words and re.match(r"[A-Za-z_]\w*=[\w./:-]*\Z", words[0]):
        words.pop(0)
    word = words[0].rstrip(";") if words else ""
    return word if re.fullmatch(r"[\w./+-]+", word) else ""


#: The checks, by the names that they are told by; in the order in which they are told.
BY_CALLER: Mapping[str, Callable[[Settings], Said]] = {
    "secret": _secret,
    "token": _token,
    "timers": _timers,
    "clock": _clock,
}
BY_SERVICE: Mapping[str, Callable[[Settings], Said]] = {
    "user": _user,
    "state": partial(_writable, lambda settings: settings.state),
    "root": partial(_writable, lambda settings: settings.root),
    "disk of the state": partial(_space, lambda settings: settings.state),
    "disk of the root": partial(_space, lambda settings: settings.root),
    "script": _script,
    "programs": _programs,
    "socket": _socket,
}
OF_CHECKOUT: Mapping[str, Callable[[Settings, Checkout], Said]] = {
    "ownership": _ownership,
    "origin": _origin,
    "branch": _branch,
    "fetch": _fetch,
    "deploy": _deploy,
}


def _output(*command: str | Path) -> str | None:
    """What a program prints, stripped; None where it fails, hangs, or is not there."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git(checkout: Checkout) -> str:
    return f"sudo -u {_me()} git -C {_q(checkout.path)}"


def _unit_user() -> str:
    """The user of the installed unit; who runs this from its source has none, and is it himself."""
    try:
        return pwd.getpwnam("gitops-hook").pw_name
    except KeyError:
        return _me()


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _mount(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.ismount(place))


def _q(text: str | Path) -> str:
    return shlex.quote(str(text))
