"""The commands about webhooks at GitHub: register, unregister, hooks, audit.

The secret and the token are read before the process gives up root's permissions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from gitops_hook.cli import render
from gitops_hook.cli.deliver import newest_secret
from gitops_hook.cli.messages import (
    EX_CONFIG,
    EX_NOINPUT,
    EX_UNAVAILABLE,
    EX_USAGE,
    clear_progress,
    print_error,
    show_progress,
)
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import become_owner, load_settings, open_reader
from gitops_hook.cli.writer import requests_to_daemon
from gitops_hook.config import ENVIRONMENT_FILE, UNIT_STATE, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.github.audit import Audit, Missed
from gitops_hook.github.client import ApiError, Client, is_at, read_token, web_url
from gitops_hook.github.webhooks import Hooks, Listed, Registration
from gitops_hook.names import is_valid, may_clone, name_in_url
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.users import requesting_user

#: Seconds of a wait for the rate limit that is long enough to announce.
_LONG_WAIT = 10
#: The statuses with which every other call would fail, too: no connection, and an invalid token.
_FATAL = (0, 401)


def register(given: Arguments) -> int:
    """Create or repair the webhook of each target, and wait for its ping."""
    user = requesting_user()
    settings, hooks = open_hooks(given)

    def create(target: str) -> Registration:
        def remember(hook: int) -> None:
            post("/remember-hook", {"hook": hook, "target": target, "url": hooks.url, "by": user})

        return hooks.register(target, remember, dry_run=given.dry_run)

    with requests_to_daemon(settings, "gitops-hook register") as post:
        return _for_each_target(given, settings, create)


def unregister(given: Arguments) -> int:
    """Delete our webhook of each target, and forget its ping."""
    user = requesting_user()
    settings, hooks = open_hooks(given)

    def delete(target: str) -> Registration:
        done = hooks.unregister(target, dry_run=given.dry_run)
        if not given.dry_run:  # also if the hook was gone already, so that audit no longer asks about it
            post("/forget-ping", {"target": target, "url": hooks.url, "by": user})
        return done

    with requests_to_daemon(settings, "gitops-hook unregister") as post:
        return _for_each_target(given, settings, delete)


def _for_each_target(given: Arguments, settings: Settings, act: Callable[[str], Registration]) -> int:
    """Apply `act` to each target and print the result; stop at an error that would repeat for the next target.

    Such an error is: the forge cannot be asked, or its pings do not arrive.
    """
    targets = _targets(given, settings)
    status = 0
    for number, target in enumerate(targets, 1):
        is_fatal = False
        try:
            done = act(target)
        except ApiError as error:
            done = Registration(target, "failed", trouble=str(error))
            is_fatal = error.http in _FATAL or error.again is not None
        clear_progress()
        render.print_registration(done, as_json=given.json, dry_run=given.dry_run)
        show_progress(number, len(targets), done.target)
        if not done.trouble:
            continue
        status = EX_UNAVAILABLE
        if is_fatal or done.change != "failed":
            if number < len(targets):
                print_error(f"{len(targets) - number} more were not tried; fix the problem and repeat the command")
            break
    return status


def hooks(given: Arguments) -> int:
    """Print the webhooks that GitHub has for each target."""
    settings, at_forge = open_hooks(given, needs_url=False)
    targets, status = _targets(given, settings, all_by_default=True), 0
    found: list[Listed] = []
    for number, target in enumerate(targets, 1):
        show_progress(number, len(targets), target)
        try:
            found += at_forge.listed(target)
        except ApiError as error:
            print_error(f"{target}: {error}")
            status = EX_UNAVAILABLE
            if error.http in _FATAL:
                break
    render.print_hooks(found, as_json=given.json)
    return status


def audit(given: Arguments) -> int:
    """Print the pushes that GitHub could not deliver. Return 1 if one was neither repaired nor redelivered."""
    settings, at_forge = open_hooks(given, needs_url=False)
    for name in given.repository:
        if "/" not in name:  # the deliveries of an organization's webhook contain full names only
            raise GitopsError(EX_USAGE, f"`{name}` is not OWNER/NAME")
    return _audit(Audit(at_forge), settings, given.repository, redeliver=given.redeliver, as_json=given.json)


def audit_after_sweep(settings: Settings, client: Client, *, as_json: bool) -> None:
    """Request redelivery of what a sweep could not repair. An unreachable forge does not fail the sweep."""
    try:
        _audit(Audit(Hooks(client, open_reader(settings), b"")), settings, (), redeliver=True, as_json=as_json)
    except GitopsError as error:
        print_error(str(error))


def _audit(at_forge: Audit, settings: Settings, only: Sequence[str], *, redeliver: bool, as_json: bool) -> int:
    missed, problems = _find_missed(at_forge, settings, only, redeliver=redeliver)
    render.print_missed(missed, complete=not problems, as_json=as_json)
    for problem in problems:
        print_error(problem)
    return EX_UNAVAILABLE if problems else int(any(push.then == "missed" for push in missed))


def _find_missed(
    at_forge: Audit, settings: Settings, only: Sequence[str], *, redeliver: bool
) -> tuple[list[Missed], list[str]]:
    """Return the missed pushes of all webhooks, or of `only` some repositories, and the problems with some webhooks.

    Raises `GitopsError` if there is no webhook to ask about.
    """
    checkouts, wanted = Checkouts(settings.root), {name.lower() for name in only}
    known = {hook.target.lower() for hook in at_forge.known()}
    unknown = [name for name in only if not known & {name.lower(), name.lower().rpartition("/")[0]}]
    if unknown or not known:
        owner = f" of {', '.join(unknown)}" if unknown else ""
        raise GitopsError(
            EX_NOINPUT, f"no webhook{owner} has reached this host yet. To create it: gitops-hook register"
        )
    missed: list[Missed] = []
    problems: list[str] = []

    def checkouts_of(name: str) -> list[str]:
        if wanted and name.lower() not in wanted:
            return []
        found = [checkout.repository for checkout in checkouts.find_all(name)]
        return found or [name] * may_clone(name, settings.clone)

    for hook in at_forge.known():
        if wanted and "/" in hook.target and hook.target.lower() not in wanted:
            continue
        try:
            missed += at_forge.missed(hook, checkouts_of, redeliver=redeliver)
        except ApiError as error:
            problems.append(f"hook {hook.hook} of {hook.target} cannot be asked about: {error}")
            if error.http == 404:
                problems.append(f"if the hook was deleted: gitops-hook unregister {hook.target}")
            if error.http in _FATAL:
                break
    return missed, problems


def open_client(settings: Settings) -> Client:
    """Return a client with the configured token. Raises `GitopsError` if there is none."""
    token = read_token(settings.token_file)
    if not token:
        own = ENVIRONMENT_FILE.with_name("github-token") if UNIT_STATE.exists() else "the file of GITHUB_TOKEN_FILE"
        place = settings.token_file or own
        raise GitopsError(EX_CONFIG, f"there is no token for GitHub's API: write one to {place} (see docs/github.md)")
    return Client(settings.api_url, token, sleep=announced_sleep)


def optional_client(settings: Settings) -> Client | None:
    """Return a client if there is a token; print an error if the token cannot be read."""
    try:
        return open_client(settings) if read_token(settings.token_file) else None
    except GitopsError as error:
        print_error(str(error))
        return None


def announced_sleep(seconds: float) -> None:
    """Sleep until GitHub's rate limit allows the next request, and announce a long wait on standard error."""
    if seconds > _LONG_WAIT:
        print(f"GitHub's rate limit: waiting for {seconds:.0f} s", file=sys.stderr)
    time.sleep(seconds)


def open_hooks(given: Arguments, *, needs_url: bool = True) -> tuple[Settings, Hooks]:
    """Return the settings, and the webhooks with the secret and the token."""
    settings = load_settings(given)
    client, secret = open_client(settings), newest_secret(settings)
    become_owner(settings)
    at_forge = Hooks(
        client, open_reader(settings), secret, getattr(given, "url", ""), timeout=getattr(given, "timeout", 0)
    )
    if needs_url and not at_forge.url:
        raise GitopsError(EX_USAGE, "give --url, the URL at which GitHub reaches this host: https://hooks.example.org")
    return settings, at_forge


def _targets(given: Arguments, settings: Settings, *, all_by_default: bool = False) -> list[str]:
    """Return the repositories, or the organization, that the arguments name."""
    names: list[str] = given.repository + ([given.org] if given.org else [])
    if (bool(given.repository) + bool(given.org) + given.all) > 1 or not (names or given.all or all_by_default):
        raise GitopsError(EX_USAGE, "give repositories, or --org, or --all")
    for name in names:
        if not is_valid(name) or ("/" in name) == bool(given.org):
            raise GitopsError(EX_USAGE, f"`{name}` is not {'an organization' if given.org else 'OWNER/NAME'}")
    if names:
        return names
    found, others = _checkouts_at_forge(settings)
    if others:
        print_error(f"not at {web_url(settings.api_url)}, so left out: {', '.join(others)}")
    return found


def _checkouts_at_forge(settings: Settings) -> tuple[list[str], list[str]]:
    """Return the forge's names of the checkouts whose origin is there, and the names of the other checkouts."""
    checkouts = Checkouts(settings.root)
    found: list[str] = []
    others: list[str] = []
    for name in checkouts:
        checkout = checkouts.find(name)
        origin = checkout.settings.get("origin", "") if checkout else ""
        forge_name = (name_in_url(origin) or "") if is_at(settings.api_url, origin) else ""
        if "/" in forge_name:
            if forge_name not in found:  # its environments have the same webhook
                found.append(forge_name)
        else:
            others.append(name)
    return found, others
