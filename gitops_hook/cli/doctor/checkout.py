"""Checks of one checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from gitops_hook.cli.doctor.finding import Results, current_user, failure, output_of, passed, quote, skipped, warning
from gitops_hook.cli.doctor.host import SYSTEMD_IS_INIT
from gitops_hook.config import Settings
from gitops_hook.names import name_in_url, repository_of
from gitops_hook.sync.checkouts import Checkout
from gitops_hook.sync.runner import classify_exit, inherited, read_result
from gitops_hook.text import redact
from gitops_hook.users import sudo_user

#: Seconds to wait for a remote.
FETCH_TIMEOUT = 30
#: A deploy command that asks systemd, which asks polkit.
_MANAGES_UNITS = re.compile(r"\bsystemctl\s+(?!--user)(?:-\S+\s+)*(?:re)?(?:start|stop|load|enable|daemon-reload)")


def ownership(settings: Settings, checkout: Checkout) -> Results:
    """Check that the service's user owns the repository. A single ``git fetch`` by root breaks that."""
    path, user = checkout.path, current_user()
    not_owned = ("!", "-user", str(os.geteuid()), "-print", "-quit")
    foreign = [output_of("find", path, "-maxdepth", "0", *not_owned), output_of("find", path / ".git", *not_owned)]
    fix = f"sudo chown -R {user}: {quote(path)}"
    if any(foreign):
        yield failure(f"{foreign[0] or foreign[1]} does not belong to {user}", fix)
    elif None in foreign:
        yield failure(f"the owners of the files in {path} could not be checked", fix)
    elif not os.access(path, os.W_OK | os.X_OK):
        yield failure(f"{user} cannot write to {path}", f"sudo chmod u+rwx {quote(path)}")
    else:
        yield passed(f"{path} belongs to {user}")


def origin(settings: Settings, checkout: Checkout) -> Results:
    """Check that ``origin`` is the repository that the directory is named after, and that its password is private."""
    repository = repository_of(checkout.repository)
    url = settings.clone_url.replace("{repository}", repository)
    remote = checkout.settings.get("origin", "")
    if not remote:
        yield failure("there is no remote origin", f"{_git(checkout)} remote add origin {quote(url)}")
        return
    config = checkout.path / ".git/config"
    if redact(remote) != remote and _others_can_read(config):
        message = f"every user of this host can read the password of origin's URL in {config}"
        yield failure(message, f"sudo chmod o= {quote(config.parent)}")
    rewritten = output_of("git", "-C", checkout.path, "ls-remote", "--get-url", "origin") or ""
    for candidate in (remote, rewritten):
        name = (name_in_url(candidate) or "").lower()
        if repository.lower() in (name, name.rpartition("/")[2]):
            yield passed("origin has the name of the directory")
            return
    fix = f"{_git(checkout)} remote set-url origin {quote(url)}"
    yield failure(f"origin is {name_in_url(remote) or 'no repository'}, not {repository}", fix)


def _others_can_read(config: Path) -> bool:
    try:
        return bool(config.parent.stat().st_mode & 0o001 and config.stat().st_mode & 0o004)
    except OSError:
        return False  # a linked worktree, or this user cannot see it either


def branch(settings: Settings, checkout: Checkout) -> Results:
    """Check that the branch to track is known."""
    if checkout.settings.get("tag"):
        yield passed(f"the highest version tag of {checkout.settings['tag']} is followed, from gitops.tag")
        return
    tracked = checkout.settings.get("branch")
    if tracked:
        yield passed(f"the tracked branch is {tracked}, from gitops.branch")
        return
    default = output_of("git", "-C", checkout.path, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
    if default:
        yield passed(f"the tracked branch is {default.partition('/')[2]}, the remote's default")
    else:
        fix = f"{_git(checkout)} remote set-head origin --auto"
        yield warning("neither gitops.branch nor the remote's default branch is known, so each run asks for it", fix)


def fetch(settings: Settings, checkout: Checkout) -> Results:
    """Check the remote with a dry run of the script, which changes nothing."""
    owner, _, name = checkout.repository.rpartition("/")
    environment = inherited(os.environ, settings.root)
    if owner:
        environment["GITOPS_REPOSITORY"] = checkout.repository
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result"
        done = subprocess.run(
            ["timeout", "--kill-after=2", str(FETCH_TIMEOUT), settings.sync_script, "--dry-run", name],
            env={**environment, "GITOPS_RESULT": str(result)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
        fix = classify_exit(done.returncode, read_result(result)).fix
    message = (done.stdout.strip().splitlines() or [f"no answer within {FETCH_TIMEOUT} s"])[-1]
    message = message.replace("; tried again later", "")  # true of a run, not of this check
    if done.returncode == 0:
        yield passed(message)
    elif "another run holds" in message:
        yield skipped("a run is in progress")
    elif fix:
        yield failure(message, fix)
    elif done.returncode in (75, 124):
        yield failure(message, f"{_git(checkout)} fetch origin")
    elif done.returncode == 65:
        yield failure(message, f"{_git(checkout)} status")
    else:
        yield failure(message, f"gitops-hook sync {checkout.repository}")


def deploy(settings: Settings, checkout: Checkout) -> Results:
    """Check that bash finds the program of the deploy command."""
    command = checkout.settings.get("deploy", "")
    word = _program(command)
    if not command:
        yield passed("there is no deploy command")
    elif not word:
        yield skipped("gitops.deploy is a shell command that cannot be checked")
    elif output_of("bash", "-c", 'cd -- "$1" && type -t -- "$2"', "bash", checkout.path, word):
        yield passed(f"gitops.deploy starts {word}, which exists")
    elif (checkout.path / word).is_file() and "/" in word:
        fix = f"{_git(checkout)} config gitops.deploy {quote(f'bash {command}')}"
        yield failure(f"gitops.deploy starts {word}, which is not executable", fix)
    else:
        fix = f"{_git(checkout)} config --edit"
        yield failure(f"gitops.deploy starts {word}, which {current_user()} does not find", fix)


def polkit(settings: Settings, checkout: Checkout) -> Results:
    """Check that polkit exists if the deploy command manages units: sudo does not work in the service."""
    command = checkout.settings.get("deploy", "")
    if os.geteuid() == 0 or not SYSTEMD_IS_INIT.exists() or not _MANAGES_UNITS.search(command):
        return
    if shutil.which("pkcheck"):
        yield passed("polkit exists; a rule in /etc/polkit-1/rules.d must permit the unit")
    else:
        yield failure("gitops.deploy manages units, and polkit is not installed", "sudo apt-get install polkitd")


def _program(command: str) -> str:
    """Return the program that a command starts with, after assignments; "" if that is more than a plain word."""
    words = command.split()
    while words and re.match(r"[A-Za-z_]\w*=[\w./:-]*\Z", words[0]):
        words.pop(0)
    word = words[0].rstrip(";") if words else ""
    return word if re.fullmatch(r"[\w./+-]+", word) else ""


def _git(checkout: Checkout) -> str:
    return f"sudo -u {sudo_user(os.geteuid())} git -C {quote(checkout.path)}"
