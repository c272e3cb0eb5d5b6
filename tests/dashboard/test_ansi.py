"""The output of a run as HTML: colors are kept, everything else is escaped."""

from __future__ import annotations

import random
import re
from html import unescape

import pytest

from gitops_hook.dashboard.ansi import for_terminal, render


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"plain", "plain"),
        (b"<script>&\"'", "&lt;script&gt;&amp;\"'"),
        (b"\x1b[31mred\x1b[0m", '<span class="s31">red</span>'),
        (b"\x1b[1;31;44mall\x1b[22mless\x1b[mnone",
         '<span class="s1 s31 s44">all</span><span class="s31 s44">less</span>none'),
        (b"\x1b[31m\x1b[32mgreen", '<span class="s32">green</span>'),
        (b"\x1b[31;38;5;196mx", '<span class="s31">x</span>'),
        (b"\x1b[38;5;196;4mx", '<span class="s4">x</span>'),
        (b"\x1b[48;2;0;0;255;1mx", '<span class="s1">x</span>'),
        (b"\x1b[38;2;0mx\x1b[38my\x1b[48;5mz", "xyz"),
        (b"\x1b[999;;;77777777777mx", "x"),
        (b"\x1b[2K\x1b[1A\x1b[?25lx\x1b(B\x1b7y", "xy"),
        (b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        (b"\x1bP+q\x1b\\x\x1b]0;no end\ny", "x0;no end\ny"),
        (b"a\r\nb\rc\x07\x08\x00\x7fd\te", "a\nb\ncd\te"),
        (b"\xff\xe2\x82", "\ufffd\ufffd"),
        ("\u202eevil\u2066".encode(), r"\u202eevil\u2066"),
        ("\x9b31mC1".encode(), "31mC1"),
    ],
)  # fmt: skip
def test_colors_pass_and_other_control_sequences_are_escaped(printed: bytes, shown: str):
    assert render(printed).shown == shown


@pytest.mark.parametrize("end", [b"\x1b", b"\x1b[", b"\x1b[31", b"\x1b]0;tit", b"\x1b]0;t\x1b", b"\x1b(", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\r"])  # fmt: skip
def test_a_partial_head_needs_more_bytes(end: bytes):
    assert render(b"text" + end, more=True) == ("text", "", 4)
    assert render(b"text" + end).size == 4 + len(end)


@pytest.mark.parametrize("end", [b"\x1b[31m", b"\xff", b"\x1bM", "\u20ac".encode(), b"\x1b[" + b"1" * 300])
def test_a_complete_head_needs_no_more_bytes(end: bytes):
    assert render(b"text" + end, more=True).size == 4 + len(end)


PIECES = (
    b"\x1b[", b"\x1b]", b"31", b";", b"m", b"\x07", b"\x1b\\", b"<b>", b"\r", b"\n", "\u20ac".encode(), b"\xff", b"K", b"x",
)  # fmt: skip


def test_a_log_in_parts_equals_the_whole_log():
    for seed in range(300):
        chance = random.Random(seed)
        printed = b"".join(chance.choices(PIECES, k=chance.randrange(40)))
        size, pen, shown, rest = chance.randrange(1, 8), "", "", b""
        for start in range(0, len(printed), size):
            rest += printed[start : start + size]
            got = render(rest, pen, more=True)
            shown, pen, rest = shown + got.shown, got.pen, rest[got.size :]
        got, whole = render(rest, pen), render(printed)
        assert re.sub("<[^>]*>", "", shown + got.shown) == re.sub("<[^>]*>", "", whole.shown), f"seed {seed}"
        assert got.pen == whole.pen, f"seed {seed}"


def test_no_bytes_make_an_element_or_leave_a_control():
    for seed in range(100):
        chance = random.Random(seed)
        shown = render(b"".join(chance.choices((*PIECES, chance.randbytes(3)), k=100))).shown
        for tag in re.findall("<[^>]*>", shown):
            assert re.fullmatch(r'</span>|<span class="s\d+( s\d+)*">', tag), f"seed {seed}"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", unescape(shown)), f"seed {seed}"


def test_a_log_in_parts_is_escaped_like_a_whole_log():
    for seed in range(100):
        chance = random.Random(seed)
        printed = b"".join(chance.choices((*PIECES, b"\t", chance.randbytes(3)), k=40))
        size, pen, shown, rest = chance.randrange(1, 8), "", "", b""
        for start in range(0, len(printed), size):
            rest += printed[start : start + size]
            got = for_terminal(rest, pen, more=True)
            shown, pen, rest = shown + got.shown, got.pen, rest[got.size :]
        shown += for_terminal(rest, pen).shown
        plain = for_terminal(printed, colors=False).shown
        assert re.sub("\x1b\\[[0-9;]*m", "", shown) == plain, f"seed {seed}"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain), f"seed {seed}"


def test_colors_are_limited():
    shown = render(b"\x1b[31mx\x1b[32my" * 200_000).shown
    assert shown.count("<span") < 20_001
    assert shown.endswith("xyxy")
