"""Access to private repositories: an SSH key for one repository, or a token over HTTPS.

Rules:

1. A key belongs to one repository. It is in the state directory, outside of the checkout, and only the service's user
   can read it.
2. Host keys are pinned at the first connection, in a file of their own next to the key. ssh accepts no other key then.
3. No URL contains a token. git reads it from its file through a one-line ``credential.helper``.
4. The configuration is in the checkout's git config, so a run needs nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gitops_hook.cli.clone import Source, list_branches
from gitops_hook.cli.forge_pages import CloneUrl, deploy_key_page, parse_clone_url
from gitops_hook.cli.messages import EX_NOPERM, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE, print_error
from gitops_hook.cli.migrate import HOMES
from gitops_hook.errors import GitopsError
from gitops_hook.names import repository_of
from gitops_hook.sync.deploy_keys import key_directory, key_of, words_of

#: The options of ssh. The last four prevent prompts and connections that hang, as scripts/sync/remote.sh does.
_SSH_OPTIONS = (
    "IdentitiesOnly=yes", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes",
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=2",
)  # fmt: skip
#: Seconds to wait for the host keys of a server.
_KEYSCAN_TIMEOUT = 10
#: Git's messages if the server does not know the key, or hides the repository from it.
_REFUSED = re.compile(
    r"permission denied|not found|could not be found|access denied|does not exist|no permission", re.IGNORECASE
)
#: The number of tests after a registration through the API, and the seconds between them.
_TESTS = 5
_INTERVAL = 2.0
#: A helper of git (gitcredentials(7)). A line with a colon is USER:TOKEN. The forges ignore the user of a plain token.
_HELPER = (
    '!f() { [ "$1" = get ] || exit 0; IFS= read -r t; case $t in *:*) ;; *) t=x-access-token:$t ;; esac;'
    ' printf "username=%s\\npassword=%s\\n" "${t%%:*}" "${t#*:}"; }; f <'
)

#: Enters a public key at the forge, and returns whether it did.
Register = Callable[[str, str], bool]


def ssh_source(state: Path, name: str, url: str) -> Source:
    """Return the source that uses the key of a repository. Create the key and pin the host keys if necessary.

    Raises `GitopsError`.
    """
    parts = parse_clone_url(url)
    if not parts or parts.scheme not in ("", "ssh", "http", "https"):
        raise GitopsError(EX_USAGE, f"--ssh-key needs the URL of a host, not {url}")
    if parts.scheme in ("http", "https"):
        url = f"ssh://git@{parts.host}/{parts.path}.git"
        parts = parts._replace(scheme="ssh", port=0)
    directory = key_directory(state, name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, known_hosts = directory / "id_ed25519", directory / "known_hosts"
    if not key.exists():
        comment = f"gitops-hook {repository_of(name)} on {socket.gethostname()}"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key))
    if not known_hosts.exists():
        _pin_host_keys(parts, known_hosts)
    words = ["ssh", "-i", str(key), "-o", f"UserKnownHostsFile={known_hosts}"]
    words += [word for option in _SSH_OPTIONS for word in ("-o", option)]
    return Source(url, [f"core.sshCommand={shlex.join(words)}"])


def token_source(url: str, file: Path) -> Source:
    """Return the source that uses the token in `file` over HTTPS. Raises `GitopsError` if that cannot work."""
    parts = parse_clone_url(url)
    if not parts or parts.scheme != "https" or "@" in url.partition("://")[2].partition("/")[0]:
        raise GitopsError(EX_USAGE, f"--token-file needs an https:// URL without a user, not {url}")
    file = file.absolute()
    if str(file).startswith(tuple(f"{home}/" for home in HOMES)):
        raise GitopsError(EX_USAGE, f"home directories are hidden from the service; move {file} to /etc/gitops-hook")
    problem = token_problem(file)
    if problem:
        raise GitopsError(EX_NOPERM, f"{problem[0]}: {problem[1]}")
    section = f"credential.https://{parts.host}{f':{parts.port}' if parts.port else ''}"
    # The empty value drops the helpers of the user and of the host, which could store the token.
    return Source(url, [f"{section}.helper=", f"{section}.helper={_HELPER}{shlex.quote(str(file))}"])


def token_problem(file: Path) -> tuple[str, str] | None:
    """Return why this user cannot use the token in `file`, and the command that fixes that; None if it can."""
    quoted, user = shlex.quote(str(file)), os.geteuid()
    try:
        with file.open() as opened:
            mode, owner, token = os.fstat(opened.fileno()).st_mode, os.fstat(opened.fileno()).st_uid, opened.readline()
    except FileNotFoundError:
        return f"there is no file {file}", f"sudo install -m 600 -o {user} /dev/stdin {quoted}"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})", f"sudo chown {user} {quoted}"
    if mode & 0o007 or (mode & 0o077 and owner == user):
        return f"other users of this host can read {file}", f"sudo chmod 600 {quoted}"
    return None if token.strip() else (f"{file} contains no token", f"sudoedit {quoted}")


def token_file_of(helper: str) -> Path | None:
    """Return the file that a ``credential.helper`` of ours reads."""
    words = words_of(helper[len(_HELPER) :]) if helper.startswith(_HELPER) else []
    return Path(words[0]) if words else None


def wait_for_access(name: str, source: Source, register: Register, *, ask: bool) -> list[str]:
    """Return the branches of a remote; while the forge rejects the key, show the key and where to enter it.

    `register` enters the key through the forge's API. With `ask`, a person may enter it and continue. Raises
    `GitopsError` with the status EX_TEMPFAIL if the forge still rejects the key.
    """
    with suppress(_Rejected):
        return _try_access(source)
    public = _public_key(source)
    if register(repository_of(name), public):
        for _ in range(_TESTS):
            with suppress(_Rejected):
                return _try_access(source)
            time.sleep(_INTERVAL)
    print(f"Public key of {repository_of(name)}:\n\n{public}\n\nEnter it, with read access, at:")
    print(f"  {deploy_key_page(source.url)}", flush=True)
    while ask and _person_continues():
        try:
            return _try_access(source)
        except _Rejected as error:
            print_error(str(error))
    command = shlex.join(["gitops-hook", *sys.argv[1:]])
    raise GitopsError(EX_TEMPFAIL, f"the forge does not accept the key yet; enter it and repeat: {command}")


class _Rejected(GitopsError):
    """The forge does not know the key, or hides the repository from it."""


def _try_access(source: Source) -> list[str]:
    """Return the branches of a remote. Raises `_Rejected`, or `GitopsError` for another problem."""
    try:
        return list_branches(source)
    except GitopsError as error:
        if _REFUSED.search(str(error)):
            raise _Rejected(error.status, str(error)) from None
        raise


def _person_continues() -> bool:
    try:
        input("Press Enter to test the access (^C ends the command). ")
    except EOFError:
        return False
    return True


def _public_key(source: Source) -> str:
    key = key_of(source.config[0].partition("=")[2])
    assert key
    return key.with_name(f"{key.name}.pub").read_text().strip()


def _pin_host_keys(parts: CloneUrl, file: Path) -> None:
    """Store the host keys of a server, and print their fingerprints."""
    host, port = parts.host.strip("[]"), parts.port or 22
    keys = _run("ssh-keyscan", "-T", str(_KEYSCAN_TIMEOUT), "-p", str(port), "--", host)
    if not keys.strip():
        raise GitopsError(EX_UNAVAILABLE, f"no SSH server answers at {host}, port {port}")
    new = file.with_name("known_hosts.new")
    new.write_text(keys)
    new.chmod(0o600)
    print(f"Host keys of {host}, now pinned in {file}. Compare them with those that the forge publishes:")
    for line in sorted(_run("ssh-keygen", "-l", "-f", str(new)).splitlines()):
        _, fingerprint, *_, kind = line.split()
        print(f"  {fingerprint} {kind}")
    new.replace(file)


def _run(*command: str) -> str:
    """Run a program of OpenSSH and return its output. Raises `GitopsError` if it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        fix = "sudo apt-get install openssh-client"
        raise GitopsError(EX_UNAVAILABLE, f"there is no program {command[0]}: {fix}") from None
    if done.returncode and command[0] != "ssh-keyscan":  # its status is 1 if one kind of key is missing
        raise GitopsError(EX_UNAVAILABLE, f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout
