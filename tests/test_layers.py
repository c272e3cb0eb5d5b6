"""The shape of the package: imports point down, names are the field's own, everything public says what it is."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gitops_hook"
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}

#: The floors that are not the ground floor; `__init__` holds the version alone, `__main__` calls `cli`.
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "daemon": 5,
    "dashboard": 4, "actions": 4, "reports": 4,
    "app": 3, "pages": 3, "doctor": 3, "instruments": 3, "migration": 3, "notices": 3, "hooks": 3, "answers": 3,
    "commits": 2, "dispatcher": 2, "overview": 2,
    "journal": 1,
}  # fmt: skip
#: `service_actions` is socketserver's word.
EMPTY_WORDS = re.compile(r"(manager|utils?|helpers?|services?(?!_actions)|processors?)(?![a-z])", re.IGNORECASE)


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that `tree` imports, wherever it does: names of ours as ``gitops_hook.name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            inside = node.module == PACKAGE.name
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if inside else (str(node.module),)


def ours(name: str) -> set[str]:
    """The modules of ours that the module `name` imports; the package itself gives its version to anyone."""
    found = {imported.split(".")[1] for imported in imports(MODULES[name]) if imported.startswith(PACKAGE.name + ".")}
    return found & set(MODULES)


def definitions(tree: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions of a module, and their methods; not what functions define inside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str):
    floor = FLOORS.get(name, 0)
    for imported in ours(name):
        below = FLOORS.get(imported, 0)
        assert below < floor or floor == 0 == below, f"{name} (floor {floor}) imports {imported} (floor {below})"


def test_no_imports_go_in_circles():
    TopologicalSorter({name: ours(name) for name in MODULES}).prepare()


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="Python 3.9 has no list of its modules")
@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_needed_but_the_standard_library(name: str):
    roots = {imported.split(".")[0] for imported in imports(MODULES[name])}
    assert roots <= sys.stdlib_module_names | {PACKAGE.name}


def test_only_the_journal_knows_sql():
    assert [name for name in MODULES if "sqlite3" in set(imports(MODULES[name]))] == ["journal"]


@pytest.mark.parametrize("name", MODULES)
def test_no_name_is_an_empty_word(name: str):
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {name, *(node.name for node in ast.walk(MODULES[name]) if isinstance(node, named))}
    assert [found for found in names if EMPTY_WORDS.search(found)] == []


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_says_what_it_is(name: str):
    tree = MODULES[name]
    assert ast.get_docstring(tree)
    assert [node.name for node in definitions(tree) if not ast.get_docstring(node)] == []
