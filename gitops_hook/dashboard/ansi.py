r"""What a run has printed, for the page and for a terminal: its colours kept, and everything else made harmless.

Rules:

1. No I/O, no state. Bytes go in, and what must be known to go on from there comes out with the text.
2. Of what a terminal obeys, only colours and the like (SGR, ECMA-48 8.3.117) are: in HTML as spans with a class for
   each code, ``s1`` to ``s107``, for the page allows no style of its own to an element; on a terminal as themselves,
   where each piece of text puts back what it has set. A page drops the other sequences, a terminal shows them escaped.
3. All other text is escaped. A carriage return counts as a line's end, and switches of writing direction, which make
   text look like other text, show as ``\u202e``. A page drops control characters, a terminal shows them escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import NamedTuple

from gitops_hook.text import escape

#: Codes that are kept, by what they set: each replaces another of its kind. 38 and 48 become the nearest of these.
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
#: What a terminal would act on, the first of them captured: its parameters. None of them can hold an escape character,
#: so looking for the end of one is never done twice over the same text.
_SEQUENCE = re.compile(
    r"\x1b\[([0-9;:]{0,64})m"  # colours
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # any other CSI: the cursor, erasing
    r"|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # strings: a title, a link
    r"|\x1b[ -/]*[0-~]?"  # all that is shorter, and what is left of one that is not well formed
)
_LINE_END = re.compile("\r\n?")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_WITHIN_LINE = re.compile("[^\n\t]+")
#: What at the end may be the beginning of a sequence, of a character or of a line's end, and is left for the next time.
_BEGUN = re.compile(
    rb"(?:\x1b(?:\[[0-?]{0,64}[ -/]{0,9}|[]PX^_][^\x07\x1b\n]{0,200}\x1b?|[ -/]{0,9})?"
    rb"|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}|\r)\Z"
)
_LONGEST_BEGUN = 256
#: Codes in force, by their kinds; and what makes text of them.
_Codes = dict[str, int]
_Paint = Callable[[str, _Codes], str]
#: So many spans have colours; what comes behind stays plain. A megabyte that paints each letter would be ten of HTML.
_MOST_SPANS = 20_000


class Rendered(NamedTuple):
    """What to show, the codes in force behind it (to go on with), and how many bytes it was made of."""

    shown: str
    pen: str
    size: int


def render(content: bytes, pen: str = "", *, more: bool = False) -> Rendered:
    """`content` as HTML, with the codes of `pen` in force at its beginning.

    Where there may be `more`, what may have only begun at the end is left out, and does not count in the size.
    """
    return _rendered(content, pen, _span, lambda sequence: "", more=more)


def for_terminal(content: bytes, pen: str = "", *, more: bool = False, colours: bool = True) -> Rendered:
    """`content` as a terminal may be given it, with colours or without; `pen` and `more` as above."""
    return _rendered(content, pen, _coloured if colours else _uncoloured, escape, more=more)


def whole(content: bytes) -> bytes:
    """`content` without what at its end may have only begun."""
    begun = _BEGUN.search(content[-_LONGEST_BEGUN:])
    return content[: len(content) - len(begun[0])] if begun else content


def _rendered(content: bytes, pen: str, paint: _Paint, other: Callable[[str], str], *, more: bool) -> Rendered:
    """What `paint` makes of each piece of text and its codes, and `other` of each sequence that is no colour."""
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


def _coloured(text: str, codes: _Codes) -> str:
    plain = _uncoloured(text, codes)
    return f"\033[{';'.join(map(str, codes.values()))}m{plain}\033[0m" if codes else plain


def _uncoloured(text: str, codes: _Codes) -> str:
    return _WITHIN_LINE.sub(lambda match: escape(match[0]), text)


def _painted(codes: _Codes, parameters: str) -> _Codes:
    """`codes` by their kinds, after a sequence with these parameters."""
    codes = dict(codes)
    rest = [int(word or 0) for word in re.split("[;:]", parameters) if len(word) < 4 and (word or "0").isdecimal()]
    while rest:
        code = rest.pop(0)
        if code in (38, 48):
            code = _nearest(rest) + code - 8
        if code == 0:
            codes.clear()
        elif code in _KINDS:
            codes[_KINDS[code]] = code
        else:
            codes.pop(_ENDS.get(code, ""), None)
    return codes


def _nearest(rest: list[int]) -> int:
    """The basic colour nearest to one of 256 or of 16 million, whose parameters are taken from `rest`; 0 to 67."""
    form = rest.pop(0) if rest else 0
    taken = {5: 1, 2: 3}.get(form, 0)
    values, rest[:] = rest[:taken], rest[taken:]
    if form == 5 and values and values[0] < 16:
        return values[0] if values[0] < 8 else values[0] + 52
    if form == 5 and values:
        number = values[0]
        grey, cube = [8 + 10 * (number - 232)] * 3, [(number - 16) // step % 6 * 51 for step in (36, 6, 1)]
        values = grey if number >= 232 else cube
    bits = sum(1 << place for place, value in enumerate(values) if value > 127)
    return bits + 60 if max(values, default=0) > 200 else bits
