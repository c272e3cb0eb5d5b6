"""Log lines: every input becomes one line without control characters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from gitops_hook.log import log, setup
from gitops_hook.text import redact

NASTY = 'a\n<3>b\r\0\x1b[2J\x7f\x9b\u2028\u202e\ud800 é "c" \\n'


@pytest.fixture(autouse=True)
def _plain_again() -> Iterator[None]:
    yield
    setup("text", under_systemd=False)


@pytest.mark.parametrize(("log_format", "under_systemd"), [("text", False), ("text", True), ("json", False)])
def test_control_characters_are_escaped(
    log_format: str, under_systemd: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    setup(log_format, under_systemd=under_systemd)
    log.warning(NASTY, reason=NASTY, repository=None)
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("failed", path=NASTY)
    lines = capfd.readouterr().err.split("\n")
    assert len(lines) == 3
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", "".join(lines))
    assert "repository" not in lines[0]


def test_a_line_of_text_has_its_time_or_for_systemd_its_priority(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("webhook queued", delivery="1-2", ms=0.5, reason='say "no"\\')
    setup("text", under_systemd=True)
    log.error("no")
    first, second = capfd.readouterr().err.splitlines()
    line = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info webhook queued delivery=1-2 ms=0\.5 reason="say \\"no\\"\\\\"'
    assert re.fullmatch(line, first)
    assert second == "<3>no"


def test_a_line_of_json_reads_back(capfd: pytest.CaptureFixture[str]) -> None:
    setup("json", under_systemd=True)
    log.info("webhook queued", http=202, reason=NASTY)
    output = json.loads(capfd.readouterr().err)
    assert (output["level"], output["message"], output["http"], output["reason"]) == (
        "info",
        "webhook queued",
        202,
        NASTY,
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fatal: https://ada:token@host/x.git", "fatal: https://***@host/x.git"),
        ("https://token@host and HTTP://u:p@h", "https://***@host and HTTP://***@h"),
        ("https://ada:p@ss?#@host/", "https://***@host/"),
        ("git+https://token@host", "git+https://***@host"),
        ("postgres://app:secret@db/app", "postgres://app:***@db/app"),
        ("ssh://git@host:22/x, https://host:8080/@x", "ssh://git@host:22/x, https://host:8080/@x"),
        ('{"url": "https://host", "mail": "ada@example.org"}', '{"url": "https://host", "mail": "ada@example.org"}'),
        ("git@host:acme/site.git", "git@host:acme/site.git"),
    ],
)
def test_credentials_in_urls_are_not_shown(text: str, shown: str):
    assert redact(text) == shown


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_shows_a_credential(log_format: str, capfd: pytest.CaptureFixture[str]):
    setup(log_format, under_systemd=False)
    url = "https://ada:hidden@host/"
    log.error(f"failed at {url}", reason=ValueError(url), file=[url])
    try:
        raise ValueError(url)
    except ValueError:
        log.exception("failed")
    output = capfd.readouterr().err
    assert "hidden" not in output
    assert output.count("https://***@host/") == 4


def test_a_huge_text_is_cut_before_it_is_processed():
    for text in ("://" + "a" * 10**6, "://a" * 250_000, "https://" * 125_000):
        assert redact(text) == text
