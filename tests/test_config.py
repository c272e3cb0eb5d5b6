"""Settings: where each comes from, and what is said of one that is invalid."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gitops_hook import config as module
from gitops_hook.config import OPTIONS, Address, Settings, load
from gitops_hook.errors import ConfigError
from gitops_hook.secrets import SecretSource

SECRET = "hunter2, and longer than that"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The least that a daemon needs."""
    return {"GITOPS_ROOT": str(tmp_path), "GITOPS_SYNC_SCRIPT": str(program(tmp_path))}


def program(folder: Path) -> Path:
    path = folder / "program"
    path.touch(0o755)
    return path


#: For each option a text and what becomes of it; ``{tmp}`` is a folder that holds ``program``.
GOOD: Mapping[str, tuple[str, Any]] = {
    "GITHUB_WEBHOOK_SECRET": (SECRET, SECRET),
    "GITHUB_WEBHOOK_SECRET_FILE": ("{tmp}/secrets", "{tmp}/secrets"),
    "GITOPS_ROOT": ("{tmp}", "{tmp}"),
    "GITOPS_STATE": ("{tmp}/new", "{tmp}/new"),
    "GITOPS_SYNC_SCRIPT": ("{tmp}/program", "{tmp}/program"),
    "GITOPS_CONTROL": ("/run/hook/control.sock", "/run/hook/control.sock"),
    "GITOPS_LISTEN": ("[::1]:9000", Address("::1", 9000)),
    "GITOPS_DASHBOARD_LISTEN": ("", None),
    "GITOPS_TRUSTED_PROXIES": ("10.0.0.0/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
    "GITOPS_MAX_SYNCS": ("7", 7),
    "GITOPS_SYNC_TIMEOUT": ("86400", 86400),
    "GITOPS_CLONE": ("acme/*, other/site", ("acme/*", "other/site")),
    "GITOPS_CLONE_URL": ("git@x:{repository}", "git@x:{repository}"),
    "GITHUB_TOKEN_FILE": ("{tmp}/token", "{tmp}/token"),
    "GITHUB_API_URL": ("https://ghe.example.org/api/v3/", "https://ghe.example.org/api/v3"),
    "GITOPS_REPORT": ("deployment", "deployment"),
    "GITOPS_PUBLIC_URL": ("https://page.example.org/", "https://page.example.org"),
    "GITOPS_NOTIFY": ("sh -c 'two words'", ("sh", "-c", "two words")),
    "GITOPS_LOG_FORMAT": ("json", "json"),
    "GITOPS_FLEET": ("prod-1", "prod-1"),
    "GITOPS_ETCD": ("https://a:2379/, http://[::1]:2379", ("https://a:2379", "http://[::1]:2379")),
    "GITOPS_ETCD_CA_FILE": ("{tmp}/ca.crt", "{tmp}/ca.crt"),
    "GITOPS_ETCD_CERT_FILE": ("{tmp}/host.crt", "{tmp}/host.crt"),
    "GITOPS_ETCD_KEY_FILE": ("{tmp}/host.key", "{tmp}/host.key"),
    "GITOPS_ETCD_PASSWORD_FILE": ("{tmp}/password", "{tmp}/password"),
    "GITOPS_FLEET_HOST": ("web-1.example", "web-1.example"),
    "GITOPS_FLEET_LABELS": ("stage=canary, region=eu", {"stage": "canary", "region": "eu"}),
}


def in_place(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and "{tmp}" in value:
        return value.replace("{tmp}", str(folder))
    return value


class TestSources:
    def test_every_setting_has_its_option_and_every_option_its_test(self):
        assert [option.field for option in OPTIONS] == list(Settings._fields)
        assert set(GOOD) == {option.env for option in OPTIONS}
        assert all(option.help and option.shown and option.metavar for option in OPTIONS)

    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.env)
    def test_a_flag_has_precedence_over_the_environment(self, option, environ, tmp_path: Path):
        text, value = (in_place(given, tmp_path) for given in GOOD[option.env])
        value = Path(value) if isinstance(value, str) and value.startswith("/") else value
        assert getattr(load({**environ, option.env: text}, {}), option.field) == value
        if option.flag:
            assert getattr(load({**environ, option.env: "\0"}, {option.field: text}), option.field) == value

    def test_the_secret_has_no_flag(self):
        assert [option.env for option in OPTIONS if option.flag is None] == ["GITHUB_WEBHOOK_SECRET"]

    def test_the_defaults(self, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        del environ["GITOPS_SYNC_SCRIPT"]
        script = Path(__file__).resolve().parent.parent / "scripts/gitops_sync.sh"
        assert load(environ, {})._asdict() == {
            "webhook_secret": "",
            "webhook_secret_file": None,
            "root": Path(environ["GITOPS_ROOT"]),
            "state": Path("~/.local/state/gitops-hook").expanduser(),
            "sync_script": script,
            "control": Path("~/.local/state/gitops-hook/control.sock").expanduser(),
            "listen": Address("127.0.0.1", 8787),
            "dashboard_listen": Address("127.0.0.1", 8788),
            "trusted_proxies": (),
            "max_syncs": 4,
            "sync_timeout": 600,
            "clone": (),
            "clone_url": "https://github.com/{repository}.git",
            "token_file": None,
            "api_url": "https://api.github.com",
            "report": "",
            "public_url": "",
            "notify": (),
            "log_format": "text",
            "fleet": "",
            "etcd": ("http://127.0.0.1:2379",),
            "etcd_ca_file": None,
            "etcd_cert_file": None,
            "etcd_key_file": None,
            "etcd_password_file": None,
            "fleet_host": socket.gethostname().lower(),
            "fleet_labels": {},
        }

    def test_the_directories_of_systemd_are_defaults(self, environ: dict[str, str], tmp_path: Path):
        (tmp_path / "webhook-secret").touch()
        (tmp_path / "github-token").touch()
        environ.update(CREDENTIALS_DIRECTORY=str(tmp_path), STATE_DIRECTORY="/var/lib/gitops-hook:/var/lib/other")
        settings = load(environ, {})
        assert settings.webhook_secret_file == tmp_path / "webhook-secret"
        assert settings.token_file == tmp_path / "github-token"
        assert settings.state == Path("/var/lib/gitops-hook")

    def test_a_credentials_directory_without_the_secret_is_ignored(self, environ: dict[str, str], tmp_path: Path):
        for folder in (str(tmp_path / "nowhere"), str(tmp_path), "/" + "x" * 300):
            assert load({**environ, "CREDENTIALS_DIRECTORY": folder}, {}).webhook_secret_file is None

    def test_a_daemon_starts_in_the_environment_of_a_deploy(self, environ: dict[str, str]):
        load({**environ, **dict.fromkeys(module.CONTRACT, "x")}, {})

    def test_paths_are_made_absolute(self, environ: dict[str, str], tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/ada")
        assert load({**environ, "GITOPS_STATE": "here"}, {}).state == tmp_path / "here"
        assert load({**environ, "GITOPS_STATE": "~/there"}, {}).state == Path("/home/ada/there")

    def test_an_address_is_shown_as_it_is_written(self):
        assert [str(Address("::1", 1)), str(Address("127.0.0.1", 2))] == ["[::1]:1", "127.0.0.1:2"]


class TestBadValues:
    @pytest.mark.parametrize(
        ("name", "text", "reason"),
        [
            ("GITOPS_ROOT", "/nowhere", "the directory does not exist"),
            ("GITOPS_ROOT", "", "empty"),
            ("GITOPS_ROOT", "/" + "x" * 300, "too long"),
            ("GITOPS_ROOT", "~nobody-of-that-name", "home"),
            ("GITOPS_STATE", "", "empty"),
            ("GITOPS_STATE", "~nobody-of-that-name/x", "home"),
            ("GITOPS_SYNC_SCRIPT", "/nowhere", "the file does not exist"),
            ("GITOPS_SYNC_SCRIPT", "/etc", "the file does not exist"),
            ("GITOPS_SYNC_SCRIPT", "/etc/passwd", "not executable"),
            ("GITOPS_LISTEN", "8787", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1:", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1:65536", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1:-1", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1:\u0661", "ADDRESS:PORT"),
            ("GITOPS_LISTEN", "127.0.0.1:" + "9" * 5000, ""),
            ("GITOPS_LISTEN", "localhost:80", "does not appear to be"),
            ("GITOPS_LISTEN", ":80", "does not appear to be"),
            ("GITOPS_LISTEN", "::1", "does not appear to be"),
            ("GITOPS_TRUSTED_PROXIES", "proxy.example.org", "does not appear to be"),
            ("GITOPS_TRUSTED_PROXIES", "10.0.0.1/8", "has host bits set"),
            ("GITOPS_MAX_SYNCS", "0", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", "1001", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", "+3", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", "1_0", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", " 4", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", "", "from 1 to 1000"),
            ("GITOPS_MAX_SYNCS", "9" * 5000, ""),
            ("GITOPS_SYNC_TIMEOUT", "0", "from 1 to 86400"),
            ("GITOPS_SYNC_TIMEOUT", "10m", "from 1 to 86400"),
            ("GITOPS_CLONE", "acme", "`acme` is not OWNER/NAME"),
            ("GITOPS_CLONE", "acme/* *", "`*` is not OWNER/NAME"),
            ("GITOPS_CLONE", "a/b/c", "OWNER/NAME"),
            ("GITOPS_CLONE_URL", "https://x/", "{repository}"),
            ("GITOPS_CLONE_URL", "{owner}/{repository}", "no other braces"),
            ("GITOPS_CLONE_URL", "{repository}}", "no other braces"),
            ("GITOPS_CLONE_URL", "{{repository}}", "no other braces"),
            ("GITHUB_API_URL", "", "must start with https://"),
            ("GITHUB_API_URL", "http://ghe.example.org/api/v3", "must start with https://"),
            ("GITHUB_API_URL", "https://", "not a plain"),
            ("GITHUB_API_URL", "https://[", "Invalid IPv6"),
            ("GITHUB_API_URL", "https://ada:password@ghe.example.org", "not a plain"),
            ("GITHUB_API_URL", "https://ghe.example.org/?x=1", "not a plain"),
            ("GITOPS_REPORT", "checks", "neither"),
            ("GITOPS_PUBLIC_URL", "page.example.org", "not a plain"),
            ("GITOPS_NOTIFY", "no-such-program x", "the program `no-such-program` does not exist"),
            ("GITOPS_NOTIFY", "sh 'x", "No closing quotation"),
            ("GITOPS_LOG_FORMAT", "JSON", "neither"),
            ("GITOPS_FLEET", "Prod", "a-z"),
            ("GITOPS_FLEET_HOST", "web/1", "a-z"),
            ("GITOPS_FLEET_HOST", "", "a-z"),
            ("GITOPS_FLEET_LABELS", "stage", "NAME=VALUE"),
            ("GITOPS_FLEET_LABELS", "stage=Canary", "NAME=VALUE"),
            ("GITOPS_ETCD", "", "empty"),
            ("GITOPS_ETCD", "https://a", "HOST:PORT"),
            ("GITOPS_ETCD", "https://a:1/v3", "HOST:PORT"),
            ("GITOPS_ETCD", "a:2379", "http"),
        ],
    )
    def test_one_line_names_option_value_reason_and_source(self, name: str, text: str, reason: str, environ):
        field = next(option.field for option in OPTIONS if option.env == name)
        for flags, source in (({}, "the environment"), ({field: text}, f"the flag --{field.replace('_', '-')}")):
            with pytest.raises(ConfigError) as caught:
                load({**environ, name: text}, flags)
            message = str(caught.value)
            assert message.startswith(f"{name}={text!r} from {source} is invalid: ")
            assert reason in message
            assert "\n" not in message

    def test_an_invalid_default_is_reported_as_a_default(self):
        with pytest.raises(ConfigError, match=r"^GITOPS_ROOT='/srv/gitops' from the default is invalid: "):
            load({}, {})

    def test_an_unknown_option_is_refused_without_its_value(self, environ: dict[str, str]):
        with pytest.raises(ConfigError) as caught:
            load({**environ, "GITOPS_MAX_SYNC": SECRET}, {})
        assert str(caught.value) == (
            "GITOPS_MAX_SYNC from the environment is invalid: there is no such option; did you mean GITOPS_MAX_SYNCS?"
        )
        with pytest.raises(ConfigError, match=r"^GITOPS_\S+ from the environment is invalid: there is no such option$"):
            load({**environ, "GITOPS_ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ": SECRET}, {})

    def test_no_error_shows_the_secret(self, environ: dict[str, str]):
        environ["GITHUB_WEBHOOK_SECRET"] = SECRET
        for option in OPTIONS:
            if option.field != "webhook_secret":
                try:
                    load({**environ, option.env: "\0bad"}, {})
                except ConfigError as error:
                    assert SECRET not in str(error)


def match(source: SecretSource, secret: bytes) -> str | None:
    return source.current().match(lambda known: known == secret)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


class TestSecrets:
    def test_a_start_without_a_secret_is_rejected(self):
        with pytest.raises(ConfigError, match=r"there is no secret\. Set GITHUB_WEBHOOK_SECRET_FILE or"):
            SecretSource("", None)

    def test_a_secret_from_the_environment(self):
        source = SecretSource(SECRET, None)
        assert match(source, SECRET.encode()) == "environment"
        assert match(source, b"other") is None

    def test_the_places_of_the_secrets_are_those_that_an_operator_can_read(self, file: Path, monkeypatch):
        file.write_text(SECRET)
        unit = {"CREDENTIALS_DIRECTORY": str(file.parent)}
        assert SecretSource(SECRET, None).places(unit) == ["GITHUB_WEBHOOK_SECRET"]
        assert SecretSource(SECRET, file).places({}) == ["GITHUB_WEBHOOK_SECRET", str(file)]
        assert SecretSource("", file).places(unit) == ["LoadCredential=secrets"]
        etc = file.parent / "etc"
        etc.mkdir()
        monkeypatch.setattr("gitops_hook.secrets.ENVIRONMENT_FILE", etc / "gitops-hook.env")
        (etc / "secrets").touch()
        assert SecretSource("", file).places(unit) == [str(etc / "secrets")]

    def test_a_secret_that_is_not_utf_8_is_refused(self, environ: dict[str, str], file: Path):
        with pytest.raises(ConfigError) as caught:
            load({**environ, "GITHUB_WEBHOOK_SECRET": os.fsdecode(b"caf\xe9")}, {})
        assert str(caught.value) == "GITHUB_WEBHOOK_SECRET from the environment is invalid: it is not UTF-8"
        file.write_bytes(b"good\ncaf\xe9\n")
        with pytest.raises(ConfigError, match=r"is invalid: line 2 is not UTF-8$"):
            SecretSource("", file)

    def test_a_short_secret_is_reported_at_the_start_and_after_a_change(self, file: Path, capfd):
        file.write_text(f"{SECRET}\nshort\n")
        source = SecretSource("brief", file)
        file.write_text("x")
        source.current()
        lines = capfd.readouterr().err.splitlines()
        names = [line.rpartition("secret=")[2] for line in lines if "less than 16 bytes" in line]
        assert names == ["environment", '"line 2"', "environment", '"line 1"']

    def test_secrets_of_a_file_are_named_by_line(self, file: Path):
        file.write_bytes(b"\n one \r\n\n\ttwo\n  # comment\nthree")
        source = SecretSource(SECRET, file)
        names = {secret: match(source, secret) for secret in (b"one", b"two", b"three", SECRET.encode(), b"")}
        assert names == {
            b"one": "line 2", b"two": "line 4", b"three": "line 6", SECRET.encode(): "environment", b"": None,
        }  # fmt: skip

    @pytest.mark.parametrize("text", [None, "", "\n \r\n", "# comment\n"])
    @pytest.mark.parametrize("secret", ["", SECRET])
    def test_an_unreadable_secret_file_ends_the_start(self, file: Path, text: str | None, secret: str):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            SecretSource(secret, file)
        reason = "No such file or directory" if text is None else "it contains no secret"
        assert str(caught.value) == f"GITHUB_WEBHOOK_SECRET_FILE={str(file)!r} is invalid: {reason}"

    def test_a_changed_secret_file_takes_effect_at_once(self, file: Path, capfd):
        file.write_text("one")
        source = SecretSource("", file)
        file.write_text("two and more")
        assert [match(source, secret) for secret in (b"one", b"two and more")] == [None, "line 1"]
        new = file.with_name("new")
        new.write_text("six and more")
        new.replace(file)
        assert [match(source, secret) for secret in (b"two and more", b"six and more")] == [None, "line 1"]
        assert capfd.readouterr().err.count("secrets file read again") == 2

    @pytest.mark.parametrize("damage", [Path.unlink, Path.touch, lambda path: path.write_text(" \n"), "folder"])
    def test_an_unreadable_secret_file_keeps_the_old_secrets_and_is_logged_once(self, file: Path, damage: Any, capfd):
        file.write_text("an-old-secret-of-a-file")
        source = SecretSource("", file)
        if damage is Path.touch or damage == "folder":
            file.unlink()
            damage = Path.mkdir if damage == "folder" else damage
        damage(file)
        assert [match(source, b"an-old-secret-of-a-file") for _ in range(5)] == ["line 1"] * 5
        if file.is_dir():
            file.rmdir()
        file.write_text("a-new-secret-of-a-file")
        assert [match(source, secret) for secret in (b"an-old-secret-of-a-file", b"a-new-secret-of-a-file")] == [
            None,
            "line 1",
        ]
        lines = capfd.readouterr().err.splitlines()
        assert [re.sub(r"^\S+ \w+ | file=.*", "", line) for line in lines] == [
            "the secrets file is invalid; the previous secrets stay valid", "secrets file read again",
        ]  # fmt: skip
        assert "-secret" not in " ".join(lines)


def test_commands_find_the_secret_and_state_of_the_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENVIRONMENT_FILE", tmp_path / "gitops-hook.env")
    monkeypatch.setattr(module, "UNIT_STATE", tmp_path / "state")
    (tmp_path / "gitops-hook.env").write_text(f"GITOPS_ROOT={tmp_path}\n")
    (tmp_path / "webhook-secret").write_text(SECRET)
    environ = {**module.unit_environment(), "HOME": "/nonexistent"}
    settings = load(environ, {})
    assert (settings.root, settings.webhook_secret_file) == (tmp_path, tmp_path / "webhook-secret")
    assert settings.state != tmp_path / "state"  # not there: somebody runs a daemon of his own
    (tmp_path / "state").mkdir()
    assert load({**environ, **module.unit_environment()}, {}).state == tmp_path / "state"


def test_the_control_socket_is_in_the_runtime_directory_or_else_in_the_state_directory(environ: dict[str, str]):
    assert load({**environ, "GITOPS_STATE": "/state"}, {}).control == Path("/state/control.sock")
    assert load({**environ, "RUNTIME_DIRECTORY": "/run/a:/run/b"}, {}).control == Path("/run/a/control.sock")
    with pytest.raises(ConfigError, match=r"GITOPS_CONTROL=.*107 bytes"):
        load({**environ, "GITOPS_STATE": "/" + "x" * 100}, {})
