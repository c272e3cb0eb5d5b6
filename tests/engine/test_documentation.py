"""Compare docs/sync.md with the tests and the script."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import EXIT, SCRIPT

HERE = Path(__file__).resolve().parent
DOCUMENT = (HERE.parents[1] / "docs" / "sync.md").read_text()

#: | state | what happens | outcome | exit | `test` |
ROWS = re.findall(r"^\| (.+?) \| (.*?) \| (.*?) \| (.*?) \| `(test_\w+)` \|$", DOCUMENT, re.MULTILINE)


def test_every_row_names_a_test_and_an_exit_code() -> None:
    tests = {
        name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(ROWS) > 100
    for state, _, outcome, code, test in ROWS:
        assert test in tests, f"{state}: {test}"
        codes = [str(EXIT[word]) for word in outcome.split(" or ") if word]
        assert set(code.split(", ")) - {""} == set(codes), f"{state}: {outcome} {code}"


def test_every_setting_is_explained() -> None:
    script = SCRIPT.read_text()
    [declared] = re.findall(r"setting=\(\n(.*?)\n\)", script, re.DOTALL)
    explained = {name.lower() for name in re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)}
    assert set(re.findall(r"\[(\w+)\]=", declared)) == explained
