"""Read the code blocks of the documents, so that tests can run the commands that operators paste."""

from __future__ import annotations

import re
from typing import NamedTuple

from harness import SOURCE

DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (SOURCE / "docs").glob("*.md")))

#: Stands on the line before a block that no test runs, with the reason.
NOT_TESTED = re.compile(r"<!-- not tested: (.+) -->\n\Z")


class Block(NamedTuple):
    """A fenced code block of a document."""

    heading: str
    language: str
    text: str
    #: Why no test runs this block, or None if a test must run it.
    not_tested: str | None


def blocks_of(document: str) -> list[Block]:
    """Return all fenced code blocks of a document (a path below the project) with the heading above each."""
    text = (SOURCE / document).read_text()
    blocks = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()]
        reason = NOT_TESTED.search(before)
        headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", before, flags=re.M | re.S), re.MULTILINE)
        blocks.append(Block(headings[-1], match[1], match[2], reason and reason[1]))
    return blocks


def code_blocks(document: str, heading: str, language: str) -> list[str]:
    """Return the text of the code blocks in `language` below a heading. tests/test_documents.py looks for these calls."""
    found = [block.text for block in blocks_of(document) if (block.heading, block.language) == (heading, language)]
    assert found, f"{document} has no block in {language!r} below {heading!r}"
    return found
