"""docs/security.md is held to the tests: each attack names a test that is there, and each such test is named."""

from __future__ import annotations

import re
from pathlib import Path

from harness import SOURCE

TESTS = SOURCE / "tests"
DOCUMENT = (SOURCE / "docs/security.md").read_text()
#: | attack | what becomes of it | `test` |
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| `(test_\w+)` \|$", DOCUMENT, re.MULTILINE)


def named_in(path: Path) -> set[str]:
    return set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))


def test_every_documented_attack_names_an_existing_test() -> None:
    there = {name for path in TESTS.rglob("test_*.py") for name in named_in(path)}
    assert len(ROWS) > 50
    assert {test for _, _, test in ROWS} <= there


def test_every_attack_test_is_documented() -> None:
    tried = named_in(TESTS / "test_attacks.py") | named_in(TESTS / "engine/test_hostile.py")
    assert tried <= {test for _, _, test in ROWS}
