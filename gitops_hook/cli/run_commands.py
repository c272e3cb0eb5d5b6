"""The commands that request runs and follow them: sync, deploy, rollback, resume, send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gitops_hook.cli import deliver, forge_commands, render
from gitops_hook.cli.follow import follow
from gitops_hook.cli.messages import EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import (
    become_owner,
    canonical_name,
    check_access,
    find_checkout,
    load_settings,
    open_reader,
)
from gitops_hook.cli.writer import requests_to_daemon
from gitops_hook.config import Settings
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid_checkout, may_clone
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.checkouts import Checkouts, default_branch, position
from gitops_hook.sync.holds import Hold
from gitops_hook.text import escape
from gitops_hook.users import requesting_user


def sync(given: Arguments) -> int:
    """Sync repositories, or all, and return the exit status of the worst outcome. With --cancel, end their runs."""
    if bool(given.repository) == given.all:
        raise GitopsError(EX_USAGE, "give repositories, or --all")
    settings, user = load_settings(given), requesting_user()
    client = forge_commands.optional_client(settings) if given.audit else None
    names = _known_names(settings, given.repository)
    if given.cancel:
        return _cancel(settings, names or list(Checkouts(settings.root)), user)
    body = {"all": True, "trigger": "sweep"} if given.all else {"checkouts": names, "trigger": "manual"}
    status = _run(settings, "gitops-hook sync", "/runs", {**body, "by": user}, as_json=given.json)
    if client:
        forge_commands.audit_after_sweep(settings, client, as_json=given.json)
    return status


def _known_names(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return the canonical names without duplicates. Raises `GitopsError` for one that has and may get no checkout."""
    for name in names:
        if not is_valid_checkout(name):
            raise GitopsError(EX_USAGE, f"`{name}` is not a repository's name")
        if not may_clone(name, settings.clone):
            find_checkout(settings, name)
    return list(dict.fromkeys(canonical_name(settings, name) for name in names))


def _run(settings: Settings, what: str, path: str, body: Mapping[str, Any], *, as_json: bool) -> int:
    """Request runs, follow them to their ends, and return the exit status of the worst outcome."""
    with requests_to_daemon(settings, what) as post:
        return follow(settings, post, post(path, body), as_json=as_json)


def _cancel(settings: Settings, names: Sequence[str], user: str) -> int:
    """End the runs of `names`, and settle their pending deliveries."""
    with requests_to_daemon(settings, "gitops-hook sync --cancel") as post:
        ended = post("/cancel", {"checkouts": names, "by": user})["runs"]
    for run in ended:
        print(f"run {run} was cancelled")
    if not ended:
        print("no run was in progress; pending deliveries were settled")
    return 0


def deploy(given: Arguments) -> int:
    """Deploy again, and release the pin; with --commit, deploy that commit and hold the checkout there."""
    if not given.commit and (given.reason or given.until_push):
        raise GitopsError(EX_USAGE, "--reason and --until-push belong to --commit")
    return _deploy(given, "/deploy", force=given.force)


def rollback(given: Arguments) -> int:
    """Deploy the last good commit, or a named one, and hold the checkout there."""
    return _deploy(given, "/rollback", force=False)


def _deploy(given: Arguments, path: str, *, force: bool) -> int:
    settings, user = load_settings(given), requesting_user()
    find_checkout(settings, given.repository)
    body = {
        "checkout": given.repository,
        "commit": given.commit,
        "force": force,
        "reason": given.reason,
        "until_push": given.until_push,
        "by": user,
    }
    with requests_to_daemon(settings, f"gitops-hook {given.command}") as post:
        answer = post(path, body)
        status = follow(settings, post, answer, as_json=given.json)
    if "pinned" in answer and not given.json:
        hold = Hold("pinned", user, reason=given.reason, commit=answer["pinned"], until_push=given.until_push)
        print(f"\n{render.describe_hold(given.repository, hold)}")
    return status


def resume(given: Arguments) -> int:
    """End the pause of checkouts, and sync them."""
    settings, user = load_settings(given), requesting_user()
    for name in given.repository:
        find_checkout(settings, name)
    body = {"checkouts": given.repository, "by": user}
    return _run(settings, "gitops-hook resume", "/resume", body, as_json=given.json)


def send(given: Arguments) -> int:
    """Deliver a signed test push to the local daemon, wait for its run, and return the status of its outcome."""
    settings = load_settings(given)
    check_access(settings)
    secret = deliver.newest_secret(settings)
    become_owner(settings)
    checkout = find_checkout(settings, given.repository)
    default = default_branch(checkout)
    branch = given.branch or checkout.settings.get("branch") or default or "main"
    ref = f"refs/heads/{branch}"
    if "tag" in checkout.settings and not given.branch:
        ref = f"refs/tags/{position(checkout).tag or 'v0'}"  # the run asks the remote for all tags
    name = canonical_name(settings, given.repository)
    guid, status, answer = deliver.send_push(settings.listen, secret, name, ref, default or branch)
    print(escape(f"{status} {answer}"))
    if status != 202:
        return EX_UNAVAILABLE
    run = deliver.wait_for_run(open_reader(settings), guid, name, given.timeout)
    if not run:
        problem = f"no run of it has ended within {given.timeout} s; gitops-hook runs --delivery {guid}"
        raise GitopsError(EX_TEMPFAIL, problem)
    render.print_runs([run], as_json=given.json)
    return outcome_of(run.outcome).exit
