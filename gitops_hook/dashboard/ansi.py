r"""Render the output of a run for the page and for a terminal: keep its colors, and escape or drop the rest.

Rules:

1. No I/O, no state. The result contains the state for the call with the next part.
2. Of the control sequences, only basic colors and styles (SGR, ECMA-48 section 8.3.117) have an effect: in HTML as
   spans with one class per code, ``s1`` to ``s107``, because the page allows no inline style; on a terminal as
   themselves, where each piece of text resets its codes. The page drops other sequences, a terminal shows them escaped.
3. All other text is escaped. A carriage return is a line end. Characters that change the writing direction can
   disguise text, so they appear as ``\u202e``. The page drops control characters, a terminal shows them escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import NamedTuple

from gitops_hook.text import escape

#: The codes that have an effect, with the property that they set. A code replaces another code of its property.
_KINDS = {
    **dict.fromkeys((1, 2), "weight"),
    3: "slant",
    4: "line",
    7: "inverse",
    9: "strike",
    **dict.fromkeys((*range(30, 38), *range(90, 98)), "text"),
    **dict.fromkeys((*range(40, 48), *range(100, 108)), "ground"),
}
_ENDS = {22: "weight", 23: "slant", 24: "line", 27: "inverse", 29: "strike", 39: "text", 49: "ground"}
#: The control sequences; the group captures the parameters of SGR. No sequence contains an escape character, so the
#: search never scans the same text twice.
_SEQUENCE = re.compile(
    r"\x1b\[([0-9;:]{0,64})m"  # colors
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # any other CSI: cursor movement, erasing
    r"|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # strings: a title, a link
    r"|\x1b[ -/]*[0-~]?"  # shorter sequences, and the start of a malformed one
)
#: Bytes of the end of an output that the page of a run shows.
_END = 64 << 10
_LINE_END = re.compile("\r\n?")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_WITHIN_LINE = re.compile("[^\n\t]+")
#: The start of a sequence, a character or a line end at the end of a part. The next part completes it.
_BEGUN = re.compile(
    rb"(?:\x1b(?:\[[0-?]{0,64}[ -/]{0,9}|[]PX^_][^\x07\x1b\n]{0,200}\x1b?|[ -/]{0,9})?"
    rb"|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}|\r)\Z"
)
_LONGEST_BEGUN = 256
#: The current codes by property, and a function that applies them to text.
_Codes = dict[str, int]
_Paint = Callable[[str, _Codes], str]
#: The maximum number of colored spans. A megabyte that colors each letter would become ten megabytes of HTML.
_MOST_SPANS = 20_000


class Rendered(NamedTuple):
    """The rendered text, the codes in force at its end, and the number of bytes that it represents."""

    shown: str
    pen: str
    size: int


def render(content: bytes, pen: str = "", *, more: bool = False) -> Rendered:
    """Return `content` as HTML, with the codes of `pen` in force at its start.

    If `more` may follow, the text and the size omit an incomplete sequence, character or line end at the end.
    """
    return _rendered(content, pen, _span, lambda sequence: "", more=more)


def for_terminal(content: bytes, pen: str = "", *, more: bool = False, colors: bool = True) -> Rendered:
    """Return `content` in a form that is safe on a terminal. `pen` and `more` have the same meaning as for `render`."""
    return _rendered(content, pen, _colored if colors else _uncolored, escape, more=more)


def whole(content: bytes) -> bytes:
    """Return `content` without an incomplete sequence, character or line end at its end."""
    begun = _BEGUN.search(content[-_LONGEST_BEGUN:])
    return content[: len(content) - len(begun[0])] if begun else content


def _rendered(content: bytes, pen: str, paint: _Paint, other: Callable[[str], str], *, more: bool) -> Rendered:
    """Render `content` with `paint` for each text and its codes, and `other` for each sequence that is not a color."""
    complete = whole(content) if more else content
    text = _LINE_END.sub("\n", complete.decode("utf-8", "replace"))
    codes = _painted({}, pen)
    parts = []
    begin = spans = 0
    for sequence in _SEQUENCE.finditer(text):
        if begin < sequence.start():
            parts.append(paint(text[begin : sequence.start()], codes if spans < _MOST_SPANS else {}))
        begin = sequence.end()
        if sequence[1] is None:
            parts.append(other(sequence[0]))
        else:
            codes = _painted(codes, sequence[1])
            spans += 1
    if begin < len(text):
        parts.append(paint(text[begin:], codes if spans < _MOST_SPANS else {}))
    return Rendered("".join(parts), ";".join(map(str, codes.values())), len(complete))


def _span(text: str, codes: _Codes) -> str:
    plain = html.escape(_DIRECTIONS.sub(lambda match: escape(match[0]), _CONTROLS.sub("", text)), quote=False)
    return f'<span class="{" ".join(f"s{code}" for code in codes.values())}">{plain}</span>' if codes else plain


def _colored(text: str, codes: _Codes) -> str:
    plain = _uncolored(text, codes)
    return f"\033[{';'.join(map(str, codes.values()))}m{plain}\033[0m" if codes else plain


def _uncolored(text: str, codes: _Codes) -> str:
    return _WITHIN_LINE.sub(lambda match: escape(match[0]), text)


def _painted(codes: _Codes, parameters: str) -> _Codes:
    """Return the codes after a sequence with these parameters."""
    codes = dict(codes)
    rest = [int(word or 0) for word in re.split("[;:]", parameters) if len(word) < 4 and (word or "0").isdecimal()]
    while rest:
        code = rest.pop(0)
        if code in (38, 48):  # one of 256 or of 16 million colors: the page has no class for it
            rest = rest[{5: 2, 2: 4}.get(rest[0] if rest else 0, 1) :]
            continue
        if code == 0:
            codes.clear()
        elif code in _KINDS:
            codes[_KINDS[code]] = code
        else:
            codes.pop(_ENDS.get(code, ""), None)
    return codes


def end_of(printed: bytes) -> tuple[bytes, bool]:
    """Return the end of an output from the start of a line on, and whether that is all of it."""
    if len(printed) <= _END:
        return printed, True
    end = printed[-_END:]
    return end[end.find(b"\n") + 1 :], False
