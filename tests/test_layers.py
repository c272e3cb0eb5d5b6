"""The architecture as a test: which part of the package may import which.

`LAYERS` is the rule, and docs/design.md shows the same table. An import leads to a lower layer or stays within its
part. Parts of one layer never import each other, with two exceptions: the values of layer 0, and the composition
roots of layer 4, of which each may import those after it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gitops_hook"
#: Layer -> its parts: modules and packages directly below gitops_hook/.
LAYERS = {
    4: ["__main__", "cli", "local", "daemon", "main_loop", "reporting"],
    3: ["receiver", "control", "observers", "github", "dashboard", "fleet"],
    2: ["sync"],
    1: ["journal", "httpd"],
    0: [
        "model",
        "outcomes",
        "init",
        "config",
        "parsers",
        "shipped",
        "secrets",
        "names",
        "lock",
        "log",
        "systemd",
        "text",
        "users",
        "errors",
    ],
}
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}
LINES = 400
#: The modules of the command line that the daemon's process needs.
ENTRY = {"serve", "parser", "messages", "session"}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
#: `service_actions` is socketserver's name.
GENERIC_WORDS = re.compile(
    r"(manager|utils?|helpers?|(?<!_)services?(?!_actions|_user)|processors?)(?![a-z])", re.IGNORECASE
)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that a module imports, wherever it does, in full: ``package.module`` or ``package.module.name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for imported in imports(MODULES[name]):
        module = imported if imported in MODULES else imported.rpartition(".")[0]
        if module in MODULES and module != PACKAGE.name and not is_package(module):
            found.add(module)
    return found - {name}


def is_package(module: str) -> bool:
    return PACKAGE.parent.joinpath(*module.split("."), "__init__.py").exists()


def part_of(module: str) -> str:
    """The module or package directly below gitops_hook/ that a module belongs to."""
    return "__init__" if module.endswith(".__init__") and module.count(".") == 1 else module.split(".")[1]


def is_allowed(importer: str, imported: str) -> bool:
    if importer == imported or LAYER_OF[imported] < LAYER_OF[importer]:
        return True
    if LAYER_OF[imported] != LAYER_OF[importer]:
        return False
    roots = LAYERS[4]
    return LAYER_OF[importer] == 0 or (importer in roots and roots.index(importer) < roots.index(imported))


def public_definitions(tree: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes, functions and methods of a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def test_imports_lead_to_a_lower_layer():
    wrong = [
        f"{name} imports {imported}"
        for name in MODULES
        if part_of(name) != "__init__"
        for imported in imported_modules(name)
        if not is_allowed(part_of(name), part_of(imported))
    ]
    assert wrong == []


def test_the_daemon_loads_no_optional_part_and_no_other_command():
    """Each of them would occupy memory in a process that runs for months."""
    program = "import sys, gitops_hook.cli.serve; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith(f"{PACKAGE.name}.")}
    optional = {name for name in loaded if re.search(r"\.(fleet|github)\.|\.dashboard\.app", name)}
    commands = {name for name in loaded if ".cli." in name} - {f"{PACKAGE.name}.cli.{name}" for name in ENTRY}
    assert (optional, commands) == (set(), set())


def test_imports_have_no_cycles():
    TopologicalSorter({name: imported_modules(name) for name in MODULES}).prepare()


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="Python 3.9 has no list of its modules")
def test_only_the_standard_library_is_imported():
    roots = {imported.split(".")[0] for tree in MODULES.values() for imported in imports(tree)}
    assert roots - sys.stdlib_module_names - {PACKAGE.name} == set()


def test_only_the_journal_contains_sql():
    users = {part_of(name) for name, tree in MODULES.items() if any("sqlite3" in found for found in imports(tree))}
    assert users == {"journal"}


def test_no_file_is_long():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").rglob("*.sh")]
    lengths = {str(path.relative_to(PACKAGE.parent)): path.read_text().count("\n") for path in files}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_everything_public_has_a_docstring():
    missing = [name for name, tree in MODULES.items() if ast.get_docstring(tree) in (None, "TODO.")]
    missing += [
        f"{name}.{node.name}"
        for name, tree in MODULES.items()
        for node in public_definitions(tree)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_no_name_is_generic():
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, named)}
    assert [name for name in names | set(MODULES) if GENERIC_WORDS.search(name)] == []
