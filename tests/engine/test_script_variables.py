"""bash has dynamic scope: a local variable hides the global one of its name from every function that is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
DECLARED = re.compile(r"(?:^|\s)([a-z_]+)(?==|\s|$)")


def declared_globals() -> set[str]:
    """Return the variables that the script declares at its top."""
    top = (SCRIPTS / "gitops_sync.sh").read_text().partition("- parts")[0]
    code = "\n".join(line.partition(" # ")[0] for line in top.splitlines())
    return set(re.findall(r"(?m)(?:^|\s)([a-z_]+)=", code))


def locals_of(script: Path) -> Iterator[str]:
    """Yield the names that the functions of a script declare as local."""
    for line in script.read_text().splitlines():
        declaration = re.match(r"\s*local (?:-\w+ )*(.*)", line)
        if declaration:
            yield from DECLARED.findall(re.sub(r"\"[^\"]*\"", "", declaration[1]))


def test_no_local_variable_hides_a_global_one():
    known = declared_globals()
    assert {"name", "branch", "config", "remote_seconds", "bad"} <= known
    for script in (SCRIPTS / "gitops_sync.sh", *(SCRIPTS / "sync").glob("*.sh")):
        assert not known & set(locals_of(script)), script.name
