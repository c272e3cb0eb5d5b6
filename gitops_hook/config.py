"""The daemon's settings: one table of options, and what is made of it.

Rules:

1. An option is declared once, as a row of `OPTIONS`. Flags, environment, defaults, ``--help`` and the table in the
   README all come from there.
2. A flag wins over the environment, the environment over the default.
3. A bad value ends the start with one line that names option, value, reason and source (`ConfigError`).
4. The secret itself is no flag, for arguments are open to every user of the host; and no error shows it.
"""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple, Union
from urllib.parse import urlsplit
from zipimport import zipimporter

from gitops_hook.errors import ConfigError

#: Where forges deliver to.
WEBHOOK = "/api/webhook/gitops"
Network = Union[IPv4Network, IPv6Network]
_PACKAGE = Path(__file__).resolve().parent
#: What the unit's daemon is set by, and so whoever asks about it; where there is such a file.
ENVIRONMENT_FILE = Path("/etc/gitops-hook/gitops-hook.env")
#: The unit's StateDirectory=, which a package or `make install` makes with the unit's user.
UNIT_STATE = Path("/var/lib/gitops-hook")


def unit_environment() -> dict[str, str]:
    """What the installed unit gives its daemon, for whoever asks about it: its folders, and its environment file.

    The credential is read where systemd takes it from, for the daemon's copy is nobody else's to read.
    """
    folders = {"CREDENTIALS_DIRECTORY": str(ENVIRONMENT_FILE.parent)}
    if UNIT_STATE.exists():
        folders["STATE_DIRECTORY"] = str(UNIT_STATE)
    return {**folders, **read_environment(ENVIRONMENT_FILE)}


def read_environment(path: Path) -> dict[str, str]:
    """The variables that a file for systemd's ``EnvironmentFile=`` sets; none where there is no such file."""
    try:
        lines = os.fsdecode(path.read_bytes()).split("\n")  # as systemd: bytes, and no other end of a line
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";")))
    return {name.strip(): _unquoted(value.strip()) for name, equals, value in pairs if equals}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


class Address(NamedTuple):
    """Where to listen: an IP address, never a name, so that no start waits for DNS."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connectable(self) -> Address:
        """Where to call who listens here: one can listen everywhere, but not call there."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - see above
        return self._replace(host=everywhere.get(self.host, self.host))


class Settings(NamedTuple):
    """The settings of one daemon, checked. A field is called as its option's flag; times are in seconds."""

    webhook_secret: str
    webhook_secret_file: Path | None
    root: Path
    state: Path
    sync_script: Path
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


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is not ADDRESS:PORT")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return Address(str(ip_address(host)), int(port))


def _optional_address(text: str) -> Address | None:
    return _address(text) if text else None


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


def _optional_path(text: str) -> Path | None:
    return _path(text) if text else None


def _program(text: str) -> Path:
    path = _path(text)
    if not path.is_file():
        raise ValueError("there is no such file")
    if not os.access(path, os.X_OK):
        raise ValueError("it is not executable")
    return path


def _folder(text: str) -> Path:
    path = _path(text)
    if not path.is_dir():
        raise ValueError("there is no such folder")
    return path


def _patterns(text: str) -> tuple[str, ...]:
    patterns = tuple(text.replace(",", " ").split())
    for pattern in patterns:
        if pattern.count("/") != 1:
            raise ValueError(f"`{pattern}` is not OWNER/NAME, where both may hold `*`")
    return patterns


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(word) for word in text.replace(",", " ").split())


def _clone_url(text: str) -> str:
    rest = text.replace("{repository}", "")
    if rest == text or "{" in rest or "}" in rest:
        raise ValueError("it must hold {repository}, and no other braces")
    return text


def _command(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if words and not shutil.which(words[0]):
        raise ValueError(f"there is no program `{words[0]}`")
    return words


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError("it is neither `text` nor `json`")
    return text


def _api_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")):
        raise ValueError("it must begin with https://, for the token goes there")
    return _base_url(text)


def _base_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise ValueError("it is not a plain http or https URL")
    return text.rstrip("/")


def _optional_base_url(text: str) -> str:
    return _base_url(text) if text else ""


def _report(text: str) -> str:
    if text not in ("", "status", "deployment"):
        raise ValueError("it is neither empty nor `status` nor `deployment`")
    return text


def _credential(name: str) -> Callable[[Mapping[str, str]], str]:
    def path_in(environ: Mapping[str, str]) -> str:
        path = os.path.join(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), name)  # noqa: PTH118
        return path if os.path.isfile(path) else ""  # noqa: PTH113 - that of a Path raises where a folder is closed

    return path_in


def _state(environ: Mapping[str, str]) -> str:
    # systemd gives a list where a unit has several state folders; the first is ours.
    return environ.get("STATE_DIRECTORY", "").partition(":")[0] or "~/.local/state/gitops-hook"


def shipped(environ: Mapping[str, str]) -> str:
    """The path of the sync script that came with the package: beside it in a source tree and where it is installed.

    A program in a single file unpacks it into the state folder, for out of an archive the kernel executes nothing.
    Raises ValueError where that cannot be done.
    """
    name = "gitops_sync.sh"
    loader = __spec__.loader
    if isinstance(loader, zipimporter):
        folder = _path(environ.get("GITOPS_STATE") or _state(environ))
        return str(_unpacked(loader.get_data(f"scripts/{name}"), folder / name))
    beside = _PACKAGE.parent / "scripts" / name
    return str(beside) if beside.is_file() else shutil.which(name) or str(beside)


def _unpacked(content: bytes, path: Path) -> Path:
    """`path`, once it is an executable file of `content`."""
    try:
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another process may be executing the old one, or be about to write the same.
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_bytes(content)
            new.chmod(0o755)
            new.replace(path)
    except OSError as error:
        raise ValueError(f"it cannot be unpacked to {path}: {error.strerror}") from error
    return path


class Option(NamedTuple):
    """One setting: where it comes from, how it is read, what the operator is told of it."""

    env: str
    #: From text to value; a ValueError says what is wrong with the text, and "it" in it is the value.
    parse: Callable[[str], Any]
    #: The text that stands where nothing is set, from the environment.
    default: Callable[[Mapping[str, str]], str]
    #: The default as documents show it.
    shown: str
    help: str

    @property
    def field(self) -> str:
        """The name in `Settings`; with dashes, the flag."""
        return self.env.partition("_")[2].lower()

    @property
    def metavar(self) -> str:
        """What stands for the value in ``--help``: the last word of the name."""
        return self.env.rpartition("_")[2]

    @property
    def flag(self) -> str | None:
        """The flag of ``serve``; none for the secret, which must not show in a list of processes."""
        return None if self.field == "webhook_secret" else "--" + self.field.replace("_", "-")


def _fixed(env: str, parse: Callable[[str], Any], text: str, help: str) -> Option:
    return Option(env, parse, lambda environ: text, f"`{text}`" if text else "none", help)


OPTIONS = (
    _fixed("GITHUB_WEBHOOK_SECRET", str, "", "the shared secret; the daemon does not start without any"),
    Option(
        "GITHUB_WEBHOOK_SECRET_FILE",
        _optional_path,
        _credential("webhook-secret"),
        "`$CREDENTIALS_DIRECTORY/webhook-secret` if there",
        "file of secrets, one a line, newest first, all valid; read again when it changes",
    ),
    _fixed(
        "GITOPS_ROOT", _folder, "/srv/gitops", "folder of the checkouts, `<root>/<owner>/<name>` or `<root>/<name>`"
    ),
    Option(
        "GITOPS_STATE",
        _path,
        _state,
        "`$STATE_DIRECTORY`, else `~/.local/state/gitops-hook`",
        "folder of the journal and the logs of runs",
    ),
    Option(
        "GITOPS_SYNC_SCRIPT",
        _program,
        shipped,
        "the shipped `gitops_sync.sh`",
        "what a run executes, with the repository's name as its argument",
    ),
    _fixed("GITOPS_LISTEN", _address, "127.0.0.1:8787", "address and port of the webhook; inherited sockets win"),
    _fixed(
        "GITOPS_DASHBOARD_LISTEN",
        _optional_address,
        "127.0.0.1:8788",
        "address and port of the page and its JSON, for reading alone; empty turns them off",
    ),
    _fixed(
        "GITOPS_TRUSTED_PROXIES",
        _networks,
        "",
        "addresses and networks, separated by commas, whose `X-Forwarded-For` is believed; loopback's always is",
    ),
    _fixed("GITOPS_MAX_SYNCS", _number(1, 1000), "4", "runs at one time, over all repositories"),
    _fixed(
        "GITOPS_SYNC_TIMEOUT",
        _number(1, 86400),
        "600",
        "seconds that one run may take; `gitops.timeout` in a checkout wins",
    ),
    _fixed(
        "GITOPS_CLONE", _patterns, "", "patterns such as `acme/*`: a push from a match that has no checkout clones it"
    ),
    _fixed("GITOPS_CLONE_URL", _clone_url, "https://github.com/{repository}.git", "where clones come from"),
    Option(
        "GITHUB_TOKEN_FILE",
        _optional_path,
        _credential("github-token"),
        "`$CREDENTIALS_DIRECTORY/github-token` if there",
        "file of the token for GitHub's API; read again for each use",
    ),
    _fixed(
        "GITHUB_API_URL",
        _api_url,
        "https://api.github.com",
        "GitHub's API; at an Enterprise server `https://HOST/api/v3`",
    ),
    _fixed(
        "GITOPS_REPORT",
        _report,
        "",
        "`status` or `deployment`: how GitHub is told, on the commit, what came of each run",
    ),
    _fixed("GITOPS_PUBLIC_URL", _optional_base_url, "", "where the page is reached, for links to its runs from GitHub"),
    _fixed(
        "GITOPS_NOTIFY",
        _command,
        "",
        "command that is told when a repository starts to fail, daily while it does, and when it is well again",
    ),
    _fixed("GITOPS_LOG_FORMAT", _log_format, "text", "`text` or `json`, on standard error"),
)
#: What the daemon itself puts into a script's environment, so it may stand in that of a daemon begun by a deploy.
CONTRACT = {
    "GITOPS_REPOSITORY", "GITOPS_REF", "GITOPS_BEFORE", "GITOPS_AFTER", "GITOPS_EVENT", "GITOPS_DELIVERY",
    "GITOPS_DELIVERIES", "GITOPS_RUN", "GITOPS_RESULT", "GITOPS_RUN_TOKEN", "GITOPS_TIMEOUT",
    # And into that of the command that is told.
    "GITOPS_NOTICE", "GITOPS_SUMMARY", "GITOPS_HOST", "GITOPS_OUTCOME", "GITOPS_PREVIOUS", "GITOPS_SINCE",
    "GITOPS_COMMIT", "GITOPS_MESSAGE", "GITOPS_OUTPUT",
}  # fmt: skip


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """The settings from `environ` and from `flags` (by field); raises `ConfigError` for the first bad one."""
    _refuse_unknown(environ)
    given = {**environ, **{option.env: flags[option.field] for option in OPTIONS if option.field in flags}}
    values = {}
    for option in OPTIONS:
        by_flag, by_environ = option.field in flags, option.env in environ
        source = f"the flag {option.flag}" if by_flag else "the environment" if by_environ else "the default"
        text = given.get(option.env, "")
        try:
            text = text if by_flag or by_environ else option.default(given)
            values[option.field] = option.parse(text)
        except (ValueError, OSError, RuntimeError) as error:  # the last from Path.expanduser()
            message = f"{option.env}={text!r} from {source} will not do: {reason_of(error)}"
            raise ConfigError(message, option.env, text) from None
    return Settings(**values)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {option.env for option in OPTIONS}
    for name in sorted(environ):
        if name.startswith("GITOPS_") and name not in known | CONTRACT:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            # Not its value: what is mistyped may well be the secret.
            raise ConfigError(f"{name} from the environment will not do: there is no such option{hint}", name)


def reason_of(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else str(error)
