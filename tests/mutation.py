"""Mutation testing: check that the tests detect small faults in a module.

Mutmut creates one faulty version of a module ("mutant") at a time. This program runs the module's tests on each, in
copies of the tree, and prints how many mutants the tests detected ("killed") and the diff of each one that survived.
`make mutation` runs it; docs/reliability.md explains the survivors.

Pytest is imported once and forked for each mutant. A mutant that makes the tests take many times as long counts as
killed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import mutmut
import pytest

SOURCE = Path(__file__).resolve().parent.parent
_RECEIVER = ["tests/receiver", "-k", "not largest_form"]
#: The tests of each module, without those that take long by design.
TESTS = {
    **{f"receiver/{module}": _RECEIVER for module in ("app", "events", "forges", "payload", "signatures")},
    "journal/writer": ["tests/journal", "-k", "not power_cut"],
    "sync/dispatcher": ["tests/sync/test_dispatcher.py", "-k", "not thousand and not as_a_worker_goes"],
}
#: The time limit of the tests on a mutant: a multiple of their usual time, and at least so many seconds. A loaded
#: machine needs the margin.
TIME_FACTOR, MIN_TIME = 4, 12
#: The share of mutants that must be killed.
GATE = 0.9


class _WithoutAnnotations(ast.NodeTransformer):
    """Remove annotations: no module reads its own at run time."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def meaning(source: str) -> str:
    return ast.dump(_WithoutAnnotations().visit(ast.parse(source)))


def mutants(path: Path) -> Iterator[str]:
    """The module's source with one fault each."""
    source = path.read_text()
    original = meaning(source)
    for mutation in mutmut.list_mutations(mutmut.Context(source=source, filename=str(path))):
        mutated, _ = mutmut.mutate(mutmut.Context(source=source, filename=str(path), mutation_id=mutation))
        try:
            if meaning(mutated) != original:
                yield mutated
        except SyntaxError:
            pass  # not a possible fault


def tests_pass(tests: Sequence[str], limit: int = 0) -> bool:
    """Run tests in a process group of their own, at most `limit` seconds (0: no limit). Return True if they pass."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            signal.alarm(limit)  # which ends the process; pytest-timeout would replace it
            status = int(
                pytest.main(
                    ["-qx", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0", "--no-header", *tests]
                )
            )
        finally:
            os._exit(status)  # the code below belongs to the parent
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the processes that the tests started
    return status == 0


def move_into(tree: Path) -> None:
    """Copy `tree`, and make this process work in the copy and import from it."""
    copy = Path(tempfile.mkdtemp(dir=tree.parent)) / "tree"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(".*", "var", "dist", "build"))
    os.chdir(copy)
    sys.path[:] = [str(copy), str(copy / "tests"), *(path for path in sys.path if "tests" not in path)]


def survives(module: str, mutated: str, limit: int) -> bool:
    """Return True if the tests of `module` pass with `mutated` as its source."""
    path = Path("gitops_hook") / f"{module}.py"
    original = path.read_text()
    path.write_text(mutated)
    try:
        return tests_pass(TESTS[module], limit)
    finally:
        path.write_text(original)


def fault(original: str, mutated: str) -> str:
    """Return the lines that differ."""
    lines = difflib.unified_diff(original.splitlines(), mutated.splitlines(), n=0, lineterm="")
    return "\n".join("    " + line for line in list(lines)[2:])


def prepare(tree: Path, modules: Sequence[str]) -> dict[str, int]:
    """Run the tests without a mutant: they must pass. Return the time limit in seconds for each module."""
    shutil.copytree(SOURCE, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "var", "dist", "build"))
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    limits = {}
    for module in modules:
        began = time.monotonic()
        if not tests_pass(TESTS[module]):
            raise SystemExit(f"the tests of {module} fail without any mutant: {TESTS[module]}")
        limits[module] = max(MIN_TIME, round(TIME_FACTOR * (time.monotonic() - began)))
    for module in modules:  # Python would confuse two mutants of equal size within one second
        path = Path("gitops_hook") / module
        for compiled in (path.parent / "__pycache__").glob(f"{path.name}.*"):
            compiled.unlink()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return limits


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments.add_argument("modules", nargs="*", default=list(TESTS))
    options = arguments.parse_args()
    failed = False
    table = [f"{'module':20} {'mutants':>8} {'killed':>8} {'share':>8} {'minutes':>8}"]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder) / "tree"
        limits = prepare(tree, options.modules)
        with ProcessPoolExecutor(options.jobs, get_context("fork"), move_into, (tree,)) as pool:
            for module in options.modules:
                began = time.monotonic()
                path = tree / f"gitops_hook/{module}.py"
                made = list(mutants(path))
                count = len(made)
                survivors = 0
                for mutated, survived in zip(
                    made, pool.map(survives, [module] * count, made, [limits[module]] * count)
                ):
                    if survived:
                        survivors += 1
                        print(f"survived in {module}\n{fault(path.read_text(), mutated)}", flush=True)
                share = 1 - survivors / count
                minutes = (time.monotonic() - began) / 60
                table.append(f"{module:20} {count:8} {count - survivors:8} {share:8.1%} {minutes:8.1f}")
                failed |= share < GATE
    print("\n".join(table))
    return failed


if __name__ == "__main__":
    sys.exit(main())
