"""Documents say what the code does: tables and names in them are held to it here."""

from __future__ import annotations

import re
import subprocess
import sys

from harness import SOURCE
from test_layers import FLOORS

from gitops_hook.config import OPTIONS
from gitops_hook.runner import OUTCOMES
from gitops_hook.webhook import FORGES

README = (SOURCE / "README.md").read_text()


def test_the_readme_lists_every_option_as_the_code_has_it():
    rows = [
        f"| `{option.env}` | {f'`{option.flag}`' if option.flag else 'none'} | {option.shown} | {option.help} |"
        for option in OPTIONS
    ]
    table = re.search(r"\| environment \|.*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table
    assert table[1].splitlines() == rows


def test_help_tells_every_option_with_its_environment_and_default():
    text = subprocess.run(
        [sys.executable, "-m", "gitops_hook", "serve", "--help"],
        cwd=SOURCE,
        env={"COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = " ".join(text.split())
    for option in OPTIONS:
        if option.flag:
            told = f"{option.flag} {option.metavar} {option.help} [{option.env}; default: {option.shown}]"
            assert told.replace("`", "") in text


def test_the_readme_tells_every_outcome():
    table = re.search(r"\| outcome of a run \|.*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table
    told = set(re.findall(r"`([a-z-]+)`", "\n".join(row.split("|")[1] for row in table[1].splitlines())))
    known = {outcome for outcomes in OUTCOMES.values() for outcome in outcomes}
    assert told == known | {"failed", "timed-out", "interrupted"}


def test_every_link_between_documents_leads_somewhere():
    documents = [SOURCE / "README.md", *(SOURCE / "docs").glob("*.md")]
    assert len(documents) > 1
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_design_lists_every_module_on_its_floor():
    rows = re.findall(r"^\| (\d) \| (`[a-z`, ]+`) \|", (SOURCE / "docs/design.md").read_text(), re.MULTILINE)
    told = {name: int(floor) for floor, names in rows for name in re.findall(r"\w+", names)}
    modules = {path.stem for path in (SOURCE / "gitops_hook").glob("[a-z]*.py")}
    assert told == {name: FLOORS.get(name, 0) for name in modules}


def test_every_make_target_that_the_readme_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)$", README, re.MULTILINE))
    assert len(named) > 3
    assert named <= targets


def test_the_table_of_forges_is_the_codes():
    rows = re.findall(
        r"^\| (\w+) \| `([\w-]+): (.*) \| `(.*)` \| (.*) \|$", (SOURCE / "docs/forges.md").read_text(), re.M
    )
    assert {name for name, *_ in rows} == {forge.name for forge in FORGES}
    for forge in FORGES:
        ((_, event, pushes, delivery, proof),) = [row for row in rows if row[0] == forge.name]
        assert (event, delivery) == (forge.event, forge.delivery)
        assert "`" + pushes == ", ".join(f"`{push}`" for push in forge.pushes)
        assert forge.signature.header in proof
        assert ("a form's field" in proof) == getattr(forge.signature, "of_field", False)
