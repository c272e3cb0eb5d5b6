"""Building blocks of the page: values in, HTML out, without I/O.

Rules:

1. All text from outside (names, messages, commits, logs) passes `escape` or `ansi.render`.
2. Color is never the only sign of a state: a word or a mark with a text alternative stands next to it.
3. The page loads nothing, and runs only the script and the style sheet that it contains (`POLICY`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from gitops_hook.dashboard.links import commit_url
from gitops_hook.model import Commit, Run
from gitops_hook.outcomes import severity_of
from gitops_hook.text import age, span, utc

escape = html.escape


def _package_text(name: str) -> str:
    # Before Python 3.10, a module in a zip file has no __package__.
    return (pkgutil.get_data(__name__.rpartition(".")[0], name) or b"").decode()


def _csp_hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_STYLE, _SCRIPT = _package_text("page.css"), _package_text("page.js")
#: The Content-Security-Policy of every response. The only image is the icon of the tab, which the page contains.
POLICY = (
    f"default-src 'none'; style-src {_csp_hash(_STYLE)}; script-src {_csp_hash(_SCRIPT)}; connect-src 'self';"
    " img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='8' fill='%23{}'/%3E%3Ctext x='8' y='12' font-family='sans-serif' font-size='{}'"
    " font-weight='bold' text-anchor='middle' fill='white'%3E{}%3C/text%3E%3C/svg%3E"
)
_ICON_COLORS = {"good": "1a7f37", "wait": "9a6700", "rest": "6e7781", "bad": "cf222e"}
#: The text of an age, which changes without any change of the value.
_AGE_TEXT = re.compile(r"(<time d[^>]*>)[^<]*")


class Page(NamedTuple):
    """The variable parts of a page."""

    title: str
    #: The part that a refresh replaces, as HTML.
    live: str
    #: The severity and the number on the icon of the tab; 0 is no number.
    severity: str
    number: int = 0
    #: The content of the search field.
    words: str = ""
    #: The part after `live` that a refresh does not replace, and the part after it, which a refresh replaces too.
    static: str = ""
    after: str = ""

    @property
    def icon(self) -> str:
        """Return the icon of the tab as a URL."""
        text = f"{self.number}" if self.number < 100 else "99"
        return _ICON.format(_ICON_COLORS[self.severity], 12 - 2 * len(text), text if self.number else "")


#: A function of the fields of a query and of the names in a path. Its result renders a page without the rows whose keys
#: the browser has.
MakePage = Callable[..., Callable[[Collection[str]], Page]]


def document(page: Page, host: str, links: Iterable[tuple[str, str]] = ()) -> str:
    """Return a complete page. `host` is the name of this host; `links` are paths and texts beside it."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(page.title)}</title><link rel="icon" href="{page.icon}">'
        f"<style>{_STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<header><a class="home" href="/">{escape(host) or "gitops-hook"}</a>'
        + "".join(f'<a href="{path}">{text}</a>' for path, text in links)
        + '<form role="search" action="/" method="get">'
        '<label for="q">Search</label>'
        f'<input id="q" name="q" type="search" value="{escape(page.words)}" autocomplete="off" spellcheck="false"'
        ' placeholder="Repository, commit, author, GUID"><button>Search</button></form></header>'
        f'<p id="notice" role="status"></p><main id="main" tabindex="-1"><div id="live">{page.live}</div>{page.static}'
        f'<div id="after">{page.after}</div></main><script>{_SCRIPT}</script></body></html>\n'
    )


def keyed(tag: str, content: str, known: Iterable[str]) -> str:
    """Return a row or list item with a key of its content. It is empty if its key is `known` to the browser.

    The text of an age is not part of the key. The script updates it.
    """
    key = hashlib.sha256(_AGE_TEXT.sub(r"\1", content).encode("utf-8", "replace")).hexdigest()[:8]
    # HTML lets the end tags of rows and list items be omitted. A refresh has up to 200 empty ones.
    return f"<{tag} data-key={key}>{'' if key in known else content}"


def section(name: str, heading: str, body: str) -> str:
    """Return a section. Its class and the id of its heading are `name`."""
    return f'<section class="{name}" aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{body}</section>'


def table(name: str, head: Iterable[str], rows: Iterable[Sequence[str]], text: str = "") -> str:
    """Return a table of HTML cells. The first cell of a row is its heading. A narrow screen shows each row as a block.

    The heading with the id `name` describes it, or `text`.
    """
    names = tuple(head)
    heading = "".join(f'<th scope="col">{word}</th>' for word in names)
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f'<td data-label="{word}">{cell}</td>' for word, cell in zip(names[1:], rest))
        + "</tr>"
        for first, *rest in rows
    )
    described = f'aria-label="{text}"' if text else f'aria-labelledby="{name}"'
    return (
        f'<div class="wide {name}" tabindex="0" role="group" {described}><table>'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names with their values as HTML."""
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in rows)}</dl>"


def label(word: str) -> str:
    """Return a state or an outcome with the color of its severity."""
    return f'<span class="word {severity_of(word)}">{escape(word)}</span>'


def message(run: Run) -> str:
    """Return the message of a run without the repository's name."""
    return escape((run.message or "").removeprefix(f"{run.repository}: "))


def message_box(text: str, word: str | None) -> str:
    """Return a text in HTML as a paragraph with the severity of a state or an outcome, or nothing."""
    return f'<p class="fix {severity_of(word)}">{text}</p>' if text else ""


def commit_line(commit: Commit | None, origin: str = "") -> str:
    """Return the short id, subject, author and age of a commit, with a link to the forge at the URL `origin`."""
    if not commit:
        return ""
    subject = f' <span class="subject">{escape(commit.subject)}</span>' if commit.subject else ""
    by = f' <span class="quiet">{escape(commit.author)}, {ago(commit.time)}</span>' if commit.author else ""
    return commit_id(commit.id, origin) + subject + by


def commit_id(commit: str, origin: str = "", length: int = 10) -> str:
    """Return the first characters of a commit's id, as a link if the forge at the URL `origin` is known."""
    shown = f"<code>{escape(commit[:length])}</code>"
    url = commit_url(origin, commit)
    return f'<a href="{escape(url)}">{shown}</a>' if url else shown


def command(text: str) -> str:
    """Return a command to copy."""
    return f'<code class="command">{escape(text)}</code>'


def commit_list(commits: Iterable[Commit], origin: str = "") -> str:
    """Return a list of commits."""
    return '<ul class="commits">' + "".join(f"<li>{commit_line(commit, origin)}</li>" for commit in commits) + "</ul>"


def delivery_link(guid: str) -> str:
    """Return a link to the page of a delivery."""
    return f'<a href="/deliveries/{quote(guid, safe="")}"><code>{escape(guid)}</code></a>' if guid else "none"


def repository_path(repository: str) -> str:
    """Return the path of a repository's page."""
    return "/repositories/" + quote(repository)


def repository_link(repository: str) -> str:
    """Return a link to the page of a repository."""
    return f'<a href="{repository_path(repository)}">{escape(repository)}</a>'


def duration(run: Run) -> str:
    """Return how long a run took and when it ended, or since when it runs."""
    return f"{unbroken_span(run.ended - run.started)}, {ago(run.ended)}" if run.ended else f"started {ago(run.started)}"


def unbroken_span(seconds: float) -> str:
    """Return a time span that is never broken at the end of a line."""
    return span(seconds).replace(" ", "\u00a0")


def ago(moment: float | None) -> str:
    """Return the age of a time in seconds since the epoch, with the exact time as a tooltip."""
    if moment is None:
        return "never"
    return _time(moment, f">{age(moment)} ago")


def elapsed(moment: float) -> str:
    """Return the time since a time in seconds since the epoch, like `ago`."""
    return _time(moment, f' class="elapsed">{age(moment)}')


def _time(moment: float, rest: str) -> str:
    when = date_and_time(moment)
    return f'<time datetime="{when.replace(" ", "T")}Z" title="{when} UTC"{rest}</time>'


def date_and_time(moment: float) -> str:
    """Return a time in seconds since the epoch as date and time in UTC, to the second."""
    return utc(moment).isoformat(" ")[:19]


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"
