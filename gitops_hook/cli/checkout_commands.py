"""The commands that add, rename and remove checkouts."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gitops_hook.cli import access, clone, forge_commands, render
from gitops_hook.cli.doctor.finding import quote
from gitops_hook.cli.follow import follow
from gitops_hook.cli.forge_pages import webhook_page
from gitops_hook.cli.messages import EX_NOINPUT, EX_NOPERM, EX_UNAVAILABLE, EX_USAGE, print_error
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import find_checkout, load_settings, open_reader
from gitops_hook.cli.writer import requests_to_daemon
from gitops_hook.config import WEBHOOK, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.github.client import ApiError, Client, is_at
from gitops_hook.model import History
from gitops_hook.names import is_valid_checkout, repository_of
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.deploy_keys import key_of_checkout
from gitops_hook.text import redact, suggest
from gitops_hook.users import requesting_user


def add(given: Arguments) -> int:
    """Clone repositories or adopt their checkouts, sync them, and print the next step at the forge."""
    settings, user = load_settings(given), requesting_user()
    own = {name: value for name, value in (("branch", given.branch), ("deploy", given.deploy)) if value is not None}
    clone.check(given.repository, own)
    if given.ssh_key and given.token:
        raise GitopsError(EX_USAGE, "give --ssh-key or --token-file, not both")
    client = forge_commands.optional_client(settings) if given.ssh_key else None
    with requests_to_daemon(settings, "gitops-hook add") as post:
        sources = {name: _checked_source(given, settings, name, client) for name in given.repository}
        for name, source in sources.items():
            path = clone.create(settings.root, name, source, own)
            if not path:
                path = find_checkout(settings, name).path
                if source.config:
                    clone.configure(path, source)
                for setting, value in own.items():
                    post("/config", {"checkout": name, "name": setting, "value": value, "by": user})
            print(f"{name} is at {path}")
        answer = post("/runs", {"checkouts": given.repository, "trigger": "add", "by": user})
        status = follow(settings, post, answer, as_json=False)
    _print_next_step(settings, given.repository)
    return status


def _checked_source(given: Arguments, settings: Settings, name: str, client: Client | None) -> clone.Source:
    """Return where to clone from, after the checks that need no clone. Raises `GitopsError` if one fails.

    The remote is asked at most once. With --ssh-key, wait until the forge accepts the key.
    """
    known = Checkouts(settings.root).find(name)
    url = given.url or (known.settings.get("origin", "") if known else "") or settings.clone_url
    url = url.replace("{repository}", repository_of(name))
    if not known:
        clone.check_place(settings.root, name)
        clone.check_url(name, url)
    if given.ssh_key:
        source = access.ssh_source(settings.state, name, url)
        branches = _wait_for_access(given, settings, name, source, client)
    else:
        source = access.token_source(url, Path(given.token)) if given.token else clone.Source(url)
        branches = [] if known else clone.list_branches(source)
    if not known:
        clone.check_branch(source, branches, given.branch)
    return source


def _wait_for_access(
    given: Arguments, settings: Settings, name: str, source: clone.Source, client: Client | None
) -> list[str]:
    """Wait until the forge accepts the key, and return the branches of the remote."""

    def register(repository: str, public_key: str) -> bool:
        if not client or not is_at(settings.api_url, source.url):
            return False
        try:
            title = f"gitops-hook on {socket.gethostname()}"
            client.call("POST", f"/repos/{repository}/keys", {"title": title, "key": public_key, "read_only": True})
        except ApiError as error:
            print_error(f"the key cannot be entered through the API: {error}")
            return False
        print(f"The key of {repository} was entered as a deploy key with read access")
        return True

    return access.wait_for_access(name, source, register, ask=sys.stdin.isatty() and not given.yes)


def _print_next_step(settings: Settings, names: Sequence[str]) -> None:
    """Print how to create the webhook of each repository, and how to test it."""
    checkouts = Checkouts(settings.root)
    pages = {repository_of(name): _webhook_page(checkouts.find(name)) for name in names}
    secret = settings.webhook_secret_file
    print(
        "\nNext, create the webhook, once per repository or organization:",
        *(f"  Page          {page}" for page in pages.values()),
        f"  Payload URL   https://<this host>{WEBHOOK}, which a proxy forwards to {settings.listen}",
        "  Content type  application/json",
        f"  Secret        {f'the first line of {secret}' if secret else 'the value of GITHUB_WEBHOOK_SECRET'}",
        "  Events        pushes, and repositories (to notice a new name)",
        f"Or, at GitHub and with a token: gitops-hook register {' '.join(pages)} --url https://<this host>",
        f"To test this host without the forge: gitops-hook send {names[0]}",
        sep="\n",
    )


def _webhook_page(checkout: Checkout | None) -> str:
    return webhook_page(redact(checkout.settings.get("origin", "")) if checkout else "")


def rename(given: Arguments) -> int:
    """Rename a checkout, or all checkouts of a repository, and sync them."""
    settings, user = load_settings(given), requesting_user()
    old = _recorded_name(settings, given.repository)
    new = given.name if "/" in given.name or "/" not in old else f"{old.rpartition('/')[0]}/{given.name}"
    if not is_valid_checkout(new):
        raise GitopsError(EX_USAGE, f"`{new}` is not the name of a checkout")
    names = {old: new}
    if "@" not in new:
        for checkout in Checkouts(settings.root).find_all(old):
            names[checkout.repository] = checkout.repository.replace(old, new, 1)
    with requests_to_daemon(settings, "gitops-hook rename") as post:
        for name, target in names.items():
            path = post("/rename", {"checkout": name, "name": target, "by": user})["path"]
            if not given.json:
                print(f"{name} is now {target} at {path}")
        body = {"checkouts": list(names.values()), "trigger": "manual", "by": user}
        return follow(settings, post, post("/runs", body), as_json=given.json)


def remove(given: Arguments) -> int:
    """Remove a checkout with its history, and with --webhook the repository's webhook at GitHub."""
    settings, user = load_settings(given), requesting_user()
    name = _recorded_name(settings, given.repository)
    hooks = None
    if given.webhook:
        _check_webhook_is_unused(settings, name)
        hooks = forge_commands.open_hooks(given, needs_url=False)[1]
    with requests_to_daemon(settings, "gitops-hook remove") as post:
        body = {"checkout": name, "keep_files": given.keep_files, "force": given.force, "by": user}
        found = Checkouts(settings.root).find(name)
        key = key_of_checkout(settings.state, found.path) if found else None
        answer = post("/remove", body)
        print(f"{name} was removed" + (f"; its files stay in {answer['kept']}" if answer["kept"] else ""))
        if answer["leftover"]:
            _delete(settings.root, Path(answer["leftover"]))
        if key and not given.keep_files and not Checkouts(settings.root).find_all(repository_of(name)):
            shutil.rmtree(key.parent, ignore_errors=True)
        if hooks:
            target = repository_of(name)
            try:
                render.print_registration(hooks.unregister(target), as_json=False, dry_run=False)
            except ApiError as error:
                raise GitopsError(EX_UNAVAILABLE, f"{error}; then: gitops-hook unregister {target}") from None
            post("/forget-ping", {"target": target, "url": hooks.url, "by": user})
    return 0


def _recorded_name(settings: Settings, name: str) -> str:
    """Return the canonical name of a checkout that exists or has run.

    Raises `GitopsError`, with a similar name as suggestion.
    """
    if not is_valid_checkout(name):
        raise GitopsError(EX_USAGE, f"`{name}` is not the name of a checkout")
    checkouts = Checkouts(settings.root)
    if checkouts.find(name):
        return checkouts.canonical_name(name)
    recorded = {history.newest.repository.lower(): history.newest.repository for history in _histories(settings)}
    if name.lower() not in recorded:
        known = [*checkouts, *recorded.values()]
        raise GitopsError(EX_NOINPUT, f"there is no checkout of {name} under {settings.root}{suggest(name, known)}")
    return recorded[name.lower()]


def _histories(settings: Settings) -> Sequence[History]:
    return open_reader(settings).histories() if (settings.state / "journal.db").exists() else ()


def _check_webhook_is_unused(settings: Settings, name: str) -> None:
    """Raise `GitopsError` if another checkout on this host needs the webhook of the repository of `name`."""
    found = Checkouts(settings.root).find_all(repository_of(name))
    others = [checkout.repository for checkout in found if checkout.repository.lower() != name.lower()]
    if others:
        raise GitopsError(EX_USAGE, f"{', '.join(others)} needs the webhook; repeat without --webhook")


def _delete(root: Path, leftover: Path) -> None:
    """Delete the directory of a removed checkout, and the directory of its owner if that is empty."""
    try:
        shutil.rmtree(leftover)
    except OSError as error:
        message = f"{error.filename} cannot be deleted ({error.strerror}): sudo rm -r {quote(leftover)}"
        raise GitopsError(EX_NOPERM, message) from None
    if leftover.parent != root:
        with suppress(OSError):
            leftover.parent.rmdir()
