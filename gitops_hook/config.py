"""Read and check the daemon's settings.

Rules:

1. An option is one row of `OPTIONS`. Flags, environment variables, defaults and ``--help`` derive from it.
   Tests compare the tables in the README and the man page with it.
2. A flag has precedence over the environment, and the environment over the default.
3. An invalid value ends the start with one line that names option, value, reason and source (`ConfigError`).
4. The secret has no flag, because every user of the host can read the arguments of a process. No error shows it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple, Union

from gitops_hook import parsers
from gitops_hook.errors import ConfigError, reason_of
from gitops_hook.shipped import sync_script
from gitops_hook.text import suggest

#: The path that forges deliver to.
WEBHOOK = "/api/webhook/gitops"
#: The longest path of a Unix socket (unix(7)).
SOCKET_PATH_BYTES = 107
Network = Union[IPv4Network, IPv6Network]
#: The unit's EnvironmentFile=. Commands read it too, so that they use the daemon's settings.
ENVIRONMENT_FILE = Path("/etc/gitops-hook/gitops-hook.env")
#: The unit's StateDirectory=. The package creates it with the unit's user.
UNIT_STATE = Path("/var/lib/gitops-hook")


def unit_environment() -> dict[str, str]:
    """Return the environment of the installed unit's daemon, for a command that asks about it.

    The credential is in the place where systemd reads it: only the daemon can read its own copy.
    """
    directories = {"CREDENTIALS_DIRECTORY": str(ENVIRONMENT_FILE.parent)}
    if UNIT_STATE.exists():
        directories["STATE_DIRECTORY"] = str(UNIT_STATE)
    return {**directories, **read_environment(ENVIRONMENT_FILE)}


def read_environment(path: Path) -> dict[str, str]:
    """Return the variables that a file for systemd's ``EnvironmentFile=`` sets; none if it cannot be read."""
    try:
        lines = os.fsdecode(path.read_bytes()).split("\n")  # like systemd, which splits at LF only
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";")))
    return {name.strip(): _unquoted(value.strip()) for name, equals, value in pairs if equals}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


class Address(NamedTuple):
    """An IP address and a port. It is never a host name, so that no start waits for DNS."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connectable(self) -> Address:
        """Return a connectable address for a wildcard bind."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - keys, not a bind
        return self._replace(host=loopback.get(self.host, self.host))


class Settings(NamedTuple):
    """The checked settings of one daemon. A field has the name of its option's flag. Times are in seconds."""

    webhook_secret: str
    webhook_secret_file: Path | None
    root: Path
    state: Path
    sync_script: Path
    control: Path
    listen: Address
    dashboard_listen: Address | None
    trusted_proxies: tuple[Network, ...]
    max_syncs: int
    sync_timeout: int
    clone: tuple[str, ...]
    clone_url: str
    token_file: Path | None
    api_url: str
    report: str
    public_url: str
    notify: tuple[str, ...]
    log_format: str
    fleet: str
    etcd: tuple[str, ...]
    etcd_ca_file: Path | None
    etcd_cert_file: Path | None
    etcd_key_file: Path | None
    etcd_password_file: Path | None
    fleet_host: str
    fleet_labels: Mapping[str, str]


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not ADDRESS:PORT")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return Address(str(ip_address(host)), int(port))


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"it is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _path(text: str) -> Path:
    if not text:
        raise ValueError("it is empty")
    return Path(text).expanduser().absolute()


def _socket_path(text: str) -> Path:
    path = _path(text)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ValueError(f"it is longer than {SOCKET_PATH_BYTES} bytes, the limit of the kernel")
    return path


def _program(text: str) -> Path:
    path = _path(text)
    if not path.is_file():
        raise ValueError("the file does not exist")
    if not os.access(path, os.X_OK):
        raise ValueError("it is not executable")
    return path


def _directory(text: str) -> Path:
    path = _path(text)
    if not path.is_dir():
        raise ValueError("the directory does not exist")
    return path


def _patterns(text: str) -> tuple[str, ...]:
    patterns = tuple(text.replace(",", " ").split())
    for pattern in patterns:
        if pattern.count("/") != 1:
            raise ValueError(f"`{pattern}` is not OWNER/NAME (`*` is allowed in both)")
    return patterns


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(word) for word in text.replace(",", " ").split())


def _clone_url(text: str) -> str:
    rest = text.replace("{repository}", "")
    if rest == text or "{" in rest or "}" in rest:
        raise ValueError("it must contain {repository} and no other braces")
    return text


def _command(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if words and not shutil.which(words[0]):
        raise ValueError(f"the program `{words[0]}` does not exist")
    return words


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"it is neither {' nor '.join(f'`{word}`' if word else 'empty' for word in allowed)}")
        return text

    return parse


def _optional(parse: Callable[[str], Any], none: str | None = None) -> Callable[[str], Any]:
    """Return a parser that returns `none` for an empty text."""
    return lambda text: parse(text) if text else none


def _credential(name: str) -> Callable[[Mapping[str, str]], str]:
    def path_in(environ: Mapping[str, str]) -> str:
        path = os.path.join(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), name)  # noqa: PTH118
        return path if os.path.isfile(path) else ""  # noqa: PTH113 - Path.is_file raises without permission

    return path_in


def _state(environ: Mapping[str, str]) -> str:
    # With several state directories, systemd sets a list. The first is ours.
    return environ.get("STATE_DIRECTORY", "").partition(":")[0] or "~/.local/state/gitops-hook"


def _sync_script(environ: Mapping[str, str]) -> str:
    return str(sync_script(_path(environ.get("GITOPS_STATE") or _state(environ))))


def _control(environ: Mapping[str, str]) -> str:
    directory = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return str(_path(directory or environ.get("GITOPS_STATE") or _state(environ)) / "control.sock")


class Option(NamedTuple):
    """One setting: its name, its format, its default and its description."""

    env: str
    #: Convert the text to the value. A ValueError has the reason, in which "it" is the text.
    parse: Callable[[str], Any]
    #: Return the default text, given the environment.
    default: Callable[[Mapping[str, str]], str]
    #: The default as the documentation shows it.
    shown: str
    help: str

    @property
    def field(self) -> str:
        """Return the name of the field in `Settings`."""
        return self.env.partition("_")[2].lower()

    @property
    def metavar(self) -> str:
        """Return the placeholder for the value in ``--help``."""
        return self.env.rpartition("_")[2]

    @property
    def flag(self) -> str | None:
        """Return the flag of ``serve``, or None for the secret."""
        return None if self.field == "webhook_secret" else "--" + self.field.replace("_", "-")


def _fixed(env: str, parse: Callable[[str], Any], text: str, help: str) -> Option:
    return Option(env, parse, lambda environ: text, f"`{text}`" if text else "none", help)


def _file(env: str, credential: str, help: str) -> Option:
    return Option(
        env, _optional(_path), _credential(credential), f"`$CREDENTIALS_DIRECTORY/{credential}` if there", help
    )


OPTIONS = (
    _fixed(
        "GITHUB_WEBHOOK_SECRET", parsers.secret, "", "the shared secret; the daemon does not start without a secret"
    ),
    _file(
        "GITHUB_WEBHOOK_SECRET_FILE",
        "webhook-secret",
        "file of secrets, one per line, newest first, all valid; read again after a change",
    ),
    _fixed(
        "GITOPS_ROOT",
        _directory,
        "/srv/gitops",
        "directory of the checkouts, `<root>/<owner>/<name>` or `<root>/<name>`",
    ),
    Option(
        "GITOPS_STATE",
        _path,
        _state,
        "`$STATE_DIRECTORY`, else `~/.local/state/gitops-hook`",
        "directory of the journal and the logs of runs",
    ),
    Option(
        "GITOPS_SYNC_SCRIPT",
        _program,
        _sync_script,
        "the shipped `gitops_sync.sh`",
        "script that a run executes, with the repository's name as its argument",
    ),
    Option(
        "GITOPS_CONTROL",
        _socket_path,
        _control,
        "`$RUNTIME_DIRECTORY/control.sock`, else `control.sock` in the state directory",
        "path of the socket on which the daemon receives the requests of commands",
    ),
    _fixed(
        "GITOPS_LISTEN",
        _address,
        "127.0.0.1:8787",
        "address and port of the webhook; inherited sockets have precedence",
    ),
    _fixed(
        "GITOPS_DASHBOARD_LISTEN",
        _optional(_address),
        "127.0.0.1:8788",
        "address and port of the read-only status page and its JSON API; empty disables them",
    ),
    _fixed(
        "GITOPS_TRUSTED_PROXIES",
        _networks,
        "",
        "addresses and networks, separated by commas, whose `X-Forwarded-For` is trusted; loopback always is",
    ),
    _fixed("GITOPS_MAX_SYNCS", _number(1, 1000), "4", "maximum number of runs at the same time"),
    _fixed(
        "GITOPS_SYNC_TIMEOUT",
        _number(1, 86400),
        "600",
        "time limit of a run in seconds; `gitops.timeout` in a checkout has precedence",
    ),
    _fixed(
        "GITOPS_CLONE",
        _patterns,
        "",
        "patterns such as `acme/*`: a push to a matching repository without a checkout clones it",
    ),
    _fixed("GITOPS_CLONE_URL", _clone_url, "https://github.com/{repository}.git", "URL of a clone"),
    _file("GITHUB_TOKEN_FILE", "github-token", "file with the token for GitHub's API; read again for each use"),
    _fixed(
        "GITHUB_API_URL",
        parsers.api_url,
        "https://api.github.com",
        "URL of GitHub's API; on an Enterprise server `https://HOST/api/v3`",
    ),
    _fixed(
        "GITOPS_REPORT",
        _choice("", "status", "deployment"),
        "",
        "`status` or `deployment`: how to report the outcome of each run to GitHub, on the commit",
    ),
    _fixed(
        "GITOPS_PUBLIC_URL",
        _optional(parsers.base_url, ""),
        "",
        "URL of the status page, for links from GitHub to its runs",
    ),
    _fixed(
        "GITOPS_NOTIFY",
        _command,
        "",
        "command to run when a repository starts to fail, daily while it fails, and when it works again",
    ),
    _fixed(
        "GITOPS_LOG_FORMAT", _choice("text", "json"), "text", "format of the log on standard error: `text` or `json`"
    ),
    _fixed("GITOPS_FLEET", _optional(parsers.name, ""), "", "name of the host's fleet; empty for a host on its own"),
    _fixed("GITOPS_ETCD", parsers.endpoints, "http://127.0.0.1:2379", "URLs of the fleet's etcd, separated by commas"),
    _file("GITOPS_ETCD_CA_FILE", "etcd-ca", "file of the certificate authority that signed the members' certificates"),
    _file("GITOPS_ETCD_CERT_FILE", "etcd-cert", "file of this host's certificate for etcd"),
    _file("GITOPS_ETCD_KEY_FILE", "etcd-key", "file of the key of that certificate"),
    _file("GITOPS_ETCD_PASSWORD_FILE", "etcd-password", "file with NAME:PASSWORD of a user of etcd, if it has users"),
    Option("GITOPS_FLEET_HOST", parsers.name, parsers.default_host, "the host's name", "name in the fleet"),
    _fixed("GITOPS_FLEET_LABELS", parsers.labels, "", "labels of this host, such as `stage=canary,region=eu`"),
)
#: Variables that the daemon sets for the script. A daemon that a deploy starts inherits them, so they are no error.
CONTRACT = {
    "GITOPS_REPOSITORY", "GITOPS_REF", "GITOPS_BEFORE", "GITOPS_AFTER", "GITOPS_EVENT", "GITOPS_DELIVERY",
    "GITOPS_DELIVERIES", "GITOPS_RUN", "GITOPS_RESULT", "GITOPS_RUN_TOKEN", "GITOPS_TIMEOUT",
    # Variables for the command of GITOPS_NOTIFY.
    "GITOPS_NOTICE", "GITOPS_SUMMARY", "GITOPS_HOST", "GITOPS_OUTCOME", "GITOPS_PREVIOUS", "GITOPS_SINCE",
    "GITOPS_COMMIT", "GITOPS_MESSAGE", "GITOPS_OUTPUT",
}  # fmt: skip


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """Return the settings from the environment and from `flags`, by field name.

    Raises `ConfigError` for the first unknown or invalid one.
    """
    _reject_unknown(environ)
    given = {**environ, **{option.env: flags[option.field] for option in OPTIONS if option.field in flags}}
    values = {}
    for option in OPTIONS:
        by_flag, by_environ = option.field in flags, option.env in environ
        source = f"the flag {option.flag}" if by_flag else "the environment" if by_environ else "the default"
        text = given.get(option.env, "")
        try:
            text = text if by_flag or by_environ else option.default(given)
            values[option.field] = option.parse(text)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: Path.expanduser()
            shown = f"{option.env}={text!r}" if option.flag else option.env  # no message contains the secret
            raise ConfigError(f"{shown} from {source} is invalid: {reason_of(error)}", option.env, text) from None
    return Settings(**values)


def _reject_unknown(environ: Mapping[str, str]) -> None:
    known = {option.env for option in OPTIONS}
    for name in sorted(environ):
        if name.startswith("GITOPS_") and name not in known | CONTRACT:
            hint = suggest(name, known)
            # The message omits the value: the name of the secret may be misspelled.
            raise ConfigError(f"{name} from the environment is invalid: there is no such option{hint}", name)
