"""Print the code metrics that docs/design.md shows, measured on this tree. `make figures` runs it."""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
PACKAGE = SOURCE / "gitops_hook"
#: The parts that every daemon runs; all others are optional.
CORE = ("receiver", "sync", "journal", "httpd", "control", "")


class Lines:
    """The physical lines of a Python file, by kind. A line of a docstring is neither code nor comment."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        self.tree = ast.parse(text)
        self.physical = text.count("\n")
        docstrings = {
            number
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
            for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        }
        code: set[int] = set()
        self.comments = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                self.comments += 1
            elif token.type not in (
                tokenize.NL,
                tokenize.NEWLINE,
                tokenize.INDENT,
                tokenize.DEDENT,
                tokenize.ENDMARKER,
            ):
                code.update(range(token.start[0], token.end[0] + 1))
        self.code = len(code - docstrings)

    def functions(self) -> Iterator[int]:
        """Yield the length of each function in lines, without its docstring."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                yield (node.end_lineno or 0) - first.lineno + 1


def main() -> int:
    """Print the metrics as a Markdown table."""
    files = {path: Lines(path) for path in sorted(PACKAGE.rglob("*.py"))}
    parts: dict[str, int] = {}
    for path, lines in files.items():
        folder = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
        parts[folder] = parts.get(folder, 0) + lines.code
    core = sum(parts.get(folder, 0) for folder in CORE)
    lengths = sorted(length for lines in files.values() for length in lines.functions())
    largest = max(files, key=lambda path: files[path].physical)
    bash = {
        path: path.read_text().count("\n")
        for path in [SOURCE / "scripts/gitops_sync.sh", *SOURCE.glob("scripts/sync/*.sh")]
    }
    tests = sum(Lines(path).code for path in (SOURCE / "tests").rglob("*.py"))
    code = sum(lines.code for lines in files.values())
    rows = [
        ("lines of code, core / whole package", f"{core:,} / {code:,} in {len(files)} files"),
        ("lines of code by directory", ", ".join(f"{name or 'top'} {parts[name]:,}" for name in sorted(parts))),
        ("largest file, physical lines", f"{largest.relative_to(SOURCE)} {files[largest].physical}"),
        (
            "bash, physical lines",
            ", ".join(f"{path.relative_to(SOURCE / 'scripts')} {size}" for path, size in bash.items()),
        ),
        (
            "function length, median / p90 / max",
            f"{statistics.median(lengths):.0f} / {lengths[int(len(lengths) * 0.9)]} / {lengths[-1]}",
        ),
        ("comment lines per 100 lines of code", f"{100 * sum(lines.comments for lines in files.values()) / code:.0f}"),
        ("lines of test code per line of package code", f"{tests / code:.1f}"),
    ]
    print("| metric | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
