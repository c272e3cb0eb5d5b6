"""Building blocks of the page: values in, HTML out, without I/O.

Rules:

1. All text from outside (names, messages, commits, logs) passes `escape` or `ansi.render`.
2. Colour is never the only sign of a state: a word or a mark with a text alternative stands next to it.
3. The page loads nothing, and runs only the script and the style sheet that it contains (`POLICY`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import pkgutil
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from gitops_hook.model import Commit, Run
from gitops_hook.outcomes import severity_of
from gitops_hook.text import age, span, utc

escape = html.escape


def _package_text(name: str) -> str:
    return (pkgutil.get_data(__package__, name) or b"").decode()


def _csp_hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_STYLE, _SCRIPT = _package_text("page.css"), _package_text("page.js")
#: The Content-Security-Policy of every response. The only image is the icon of the tab, which the page contains.
POLICY = (
    f"default-src 'none'; style-src {_csp_hash(_STYLE)}; script-src {_csp_hash(_SCRIPT)}; connect-src 'self';"
    " img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Ccircle cx='4' cy='4' r='4' fill='%23{}'/%3E%3C/svg%3E"
)
_ICON_COLOURS = {"good": "2da44e", "wait": "d4a72c", "rest": "8c959f", "bad": "cf222e"}
#: A command within a message. It ends with its part of the sentence.
_COMMAND = re.compile(r"\b(?:git -C|git clone|sudo|mkdir -p|mv|rm|gitops_sync\.sh|gitops-hook|systemctl) [^;,]+")


def document(title: str, live: str, severity: str, words: str = "", static: str = "") -> str:
    """Return a complete page.

    `live` is replaced at each refresh, `static` is not. `severity` colours the icon of the tab. `words` are the
    content of the search field.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="icon" href="{_ICON.format(_ICON_COLOURS[severity])}">'
        f"<style>{_STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        '<header><a class="home" href="/">gitops-hook</a><form role="search" action="/" method="get">'
        '<label for="q">Search</label>'
        f'<input id="q" name="q" type="search" value="{escape(words)}" autocomplete="off" spellcheck="false"'
        ' placeholder="repository, commit, author, GUID"><button>Search</button></form></header>'
        f'<p id="notice" role="status"></p><main id="main" tabindex="-1"><div id="live">{live}</div>{static}</main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def section(name: str, heading: str, body: str) -> str:
    """Return a section. Its class and the id of its heading are `name`."""
    return f'<section class="{name}" aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{body}</section>'


def table(name: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of HTML cells. The first cell of a row is its heading. It scrolls within a narrow screen."""
    heading = "".join(f'<th scope="col">{word}</th>' for word in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="group" aria-labelledby="{name}"><table>'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def label(word: str) -> str:
    """Return a state or an outcome with the colour of its severity."""
    return f'<span class="word {severity_of(word)}">{escape(word)}</span>'


def message(run: Run) -> str:
    """Return the message of a run with its commands marked, without the repository's name."""
    text, parts, begin = (run.message or "").removeprefix(f"{run.repository}: "), [], 0
    for command in _COMMAND.finditer(text):
        parts.append(f"{escape(text[begin : command.start()])}<code>{escape(command[0])}</code>")
        begin = command.end()
    return "".join(parts) + escape(text[begin:])


def message_box(run: Run) -> str:
    """Return the message of a run as a paragraph, or nothing."""
    return f'<p class="fix {severity_of(run.outcome)}">{message(run)}</p>' if run.message else ""


def commit_line(commit: Commit | None) -> str:
    """Return the short id, subject, author and age of a commit."""
    if not commit:
        return ""
    subject = f' <span class="subject">{escape(commit.subject)}</span>' if commit.subject else ""
    by = f' <span class="quiet">{escape(commit.author)}, {ago(commit.time)}</span>' if commit.author else ""
    return f"<code>{escape(commit.id[:10])}</code>{subject}{by}"


def commit_list(commits: Iterable[Commit]) -> str:
    """Return a list of commits."""
    return '<ul class="commits">' + "".join(f"<li>{commit_line(commit)}</li>" for commit in commits) + "</ul>"


def breakable_name(repository: str) -> str:
    """Return a repository's name that a narrow column may break after the owner."""
    return escape(repository).replace("/", "/<wbr>")


def delivery_link(guid: str) -> str:
    """Return a link to the page of a delivery."""
    return f'<a href="/deliveries/{quote(guid, safe="")}"><code>{escape(guid)}</code></a>' if guid else "none"


def repository_path(repository: str) -> str:
    """Return the path of a repository's page."""
    return "/repositories/" + quote(repository)


def duration(run: Run) -> str:
    """Return how long a run took and when it ended, or since when it runs."""
    return f"{unbroken_span(run.ended - run.started)}, {ago(run.ended)}" if run.ended else f"since {age(run.started)}"


def unbroken_span(seconds: float) -> str:
    """Return a time span that is never broken at the end of a line."""
    return span(seconds).replace(" ", "\u00a0")


def ago(moment: float | None) -> str:
    """Return the age of a time in seconds since the epoch, with the exact time as a tooltip."""
    if moment is None:
        return "never"
    when = date_and_time(moment)
    return f'<time datetime="{when}Z" title="{when} UTC">{age(moment)} ago</time>'


def date_and_time(moment: float) -> str:
    """Return a time in seconds since the epoch as date and time in UTC, to the second."""
    return utc(moment).isoformat(" ")[:19]


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"
