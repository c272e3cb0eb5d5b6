"""Documents say what the code does: tables and names in them are held to it here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from documents import DOCUMENTS, blocks_of
from harness import HERE, SOURCE
from test_layers import LAYER_OF, MODULES

from gitops_hook.config import CONTRACT, OPTIONS
from gitops_hook.model import Run
from gitops_hook.observers.metrics import METRICS
from gitops_hook.observers.notifier import Notice, facts_of
from gitops_hook.outcomes import BY_SCRIPT as OUTCOMES
from gitops_hook.receiver.forges import FORGES

README = (SOURCE / "README.md").read_text()


def test_the_readme_lists_every_option_as_the_code_has_it():
    rows = [
        f"| `{option.env}` | {f'`{option.flag}`' if option.flag else 'none'} | {option.shown} | {option.help} |"
        for option in OPTIONS
    ]
    table = re.search(r"\| environment \|.*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table
    assert table[1].splitlines() == rows


def test_help_lists_every_option_with_its_variable_and_default():
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
            documented = f"{option.flag} {option.metavar} {option.help} [{option.env}; default: {option.shown}]"
            assert documented.replace("`", "") in text


def test_the_readme_lists_every_outcome():
    table = re.search(r"\| outcome of a run \|.*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table
    documented = set(re.findall(r"`([a-z-]+)`", "\n".join(row.split("|")[1] for row in table[1].splitlines())))
    known = {outcome for outcomes in OUTCOMES.values() for outcome in outcomes}
    assert documented == known | {"failed", "timed-out", "interrupted"}


def test_every_link_between_documents_leads_somewhere():
    documents = [SOURCE / "README.md", *(SOURCE / "docs").glob("*.md")]
    assert len(documents) > 1
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_a_test_runs_every_command_of_the_documents():
    """Each block of shell commands is read by a test that runs it, or is marked with the reason why none does."""
    run = set()
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "code_blocks":
                run.add(tuple(argument.value for argument in node.args if isinstance(argument, ast.Constant)))
    assert len(run) > 5
    for document in DOCUMENTS:
        for block in blocks_of(document):
            if block.language in ("sh", "console") and not block.not_tested:
                assert (document, block.heading, block.language) in run, f"no test runs this block: {block.text}"


def test_the_design_shows_the_table_of_the_layers():
    rows = re.findall(r"^\| (\d) \| (`[a-z_`, ]+`) \|", (SOURCE / "docs/design.md").read_text(), re.MULTILINE)
    shown = {name: int(layer) for layer, names in rows for name in re.findall(r"\w+", names)}
    assert shown == LAYER_OF


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)$", README, re.MULTILINE))
    assert len(named) > 3
    assert named <= targets


MONITORING = (SOURCE / "docs/monitoring.md").read_text()


def rows_of(heading: str) -> list[str]:
    """The rows of the table in docs/monitoring.md whose first column is called so."""
    table = re.search(rf"\| {heading} \|.*\n\|---.*\n((?:\|.*\n)+)", MONITORING)
    assert table
    return table[1].splitlines()


def test_every_metric_is_documented(tmp_path):
    assert rows_of("metric") == [f"| `{metric.name}` | {metric.kind} | {metric.help} |" for metric in METRICS]


def test_every_field_of_a_notice_is_documented(tmp_path):
    run = Run(1, "acme/site", "push", 1.0, 2.0, "dirty")
    facts = facts_of(Notice("failing", "acme/site", "dirty", None, 2.0, run), "host", "")
    names = [f"GITOPS_{name.upper()}" for name in facts]
    assert [row.split("`")[1] for row in rows_of("variable")] == names
    assert (
        set(names) <= CONTRACT
    )  # so that a gitops-hook which the command runs does not take one for a mistyped option


def test_every_alert_is_documented():
    rules = (SOURCE / "contrib/prometheus/gitops-hook.rules.yml").read_text()
    assert [row.split("`")[1] for row in rows_of("alert")] == re.findall(r"- alert: (\w+)", rules)


def test_every_field_of_the_log_is_documented_and_no_other():
    calls = [
        node
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and re.fullmatch(r"write|log\.(info|warning|error|exception)", ast.unparse(node.func))
    ]
    assert len(calls) > 30
    used = {keyword.arg for call in calls for keyword in call.keywords} | {"traceback"}  # that of `log.exception`
    assert {name for row in rows_of("field") for name in re.findall(r"`(\w+)`", row.split("|")[1])} == used


def test_the_diagnostic_commands_are_documented():
    documented = {row.split("`")[1].split()[0] for row in rows_of("command")}
    assert documented == {path.name for path in (SOURCE / "contrib/notify").iterdir()}


def test_the_documented_forges_match_the_code():
    rows = re.findall(
        r"^\| ([\w ]+) \| `([\w-]+): (.*) \| `(.*)` \| (.*) \|$", (SOURCE / "docs/forges.md").read_text(), re.M
    )
    assert {name for name, *_ in rows} == {forge.name for forge in FORGES}
    for forge in FORGES:
        ((_, event, pushes, delivery, proof),) = [row for row in rows if row[0] == forge.name]
        assert (event, delivery) == (forge.event, forge.delivery)
        assert "`" + pushes == ", ".join(f"`{push}`" for push in forge.pushes)
        assert forge.signature.header in proof
        assert ("a form's field" in proof) == getattr(forge.signature, "signs_field", False)
