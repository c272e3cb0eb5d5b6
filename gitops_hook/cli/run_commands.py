"""The commands that perform runs or change what runs do: sync, pause, resume, add, send."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from gitops_hook.cli import deliver, forge_commands, render
from gitops_hook.cli.local_runs import sync_now
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import (
    EX_NOPERM,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
    become_owner,
    canonical_name,
    find_checkout,
    load_settings,
    open_reader,
)
from gitops_hook.config import WEBHOOK, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.names import is_valid
from gitops_hook.outcomes import outcome_of
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.text import escape

#: The exit status of ``git config --unset-all`` for a setting that is not set.
_NOT_SET = 5


def sync(given: Arguments) -> int:
    """Sync repositories, or all; returns the exit status of the worst outcome."""
    if bool(given.repository) == given.all:
        raise GitopsError(EX_USAGE, "give repositories, or --all")
    settings = load_settings(given)
    client = forge_commands.optional_client(settings) if given.audit else None
    become_owner(settings)
    names = list(Checkouts(settings.root)) if given.all else given.repository
    status = sync_now(settings, names, as_json=given.json, trigger="sweep" if given.all else "manual")
    if client:
        forge_commands.audit_after_sweep(settings, client, as_json=given.json)
    return status


def pause(given: Arguments) -> int:
    """Pause checkouts: their runs change nothing until `resume`."""
    settings = load_settings(given)
    become_owner(settings)
    for name in given.repository:
        _git(find_checkout(settings, name).path, "config", "gitops.paused", "true")
        print(f"{name} is paused. To resume: gitops-hook resume {name}")
    return 0


def resume(given: Arguments) -> int:
    """End the pause of checkouts, and sync them."""
    settings = load_settings(given)
    become_owner(settings)
    for name in given.repository:
        _git(find_checkout(settings, name).path, "config", "--unset-all", "gitops.paused", accept=(0, _NOT_SET))
    return sync_now(settings, given.repository, as_json=False)


def add(given: Arguments) -> int:
    """Clone repositories or adopt their checkouts, sync them, and print the settings of the webhook."""
    settings = load_settings(given)
    become_owner(settings)
    for name in given.repository:
        path = _ensure_checkout(settings, name, given.url or settings.clone_url, given.branch)
        for key, value in (("branch", given.branch), ("deploy", given.deploy)):
            if value is not None:
                _git(path, "config", f"gitops.{key}", value)
        print(f"{name} is at {path}")
    status = sync_now(settings, given.repository, as_json=False)
    _print_webhook(settings, given.repository)
    return status


def _ensure_checkout(settings: Settings, repository: str, url: str, branch: str | None) -> Path:
    """Return the path of the checkout; clone it from `url`, which may hold ``{repository}``, if there is none."""
    if not is_valid(repository) or "/" not in repository:
        raise GitopsError(EX_USAGE, f"`{repository}` is not OWNER/NAME")
    known = Checkouts(settings.root).find(repository)
    if known:
        return known.path
    path = settings.root / repository
    url = url.replace("{repository}", repository)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["git", "clone", "--quiet", *(["--branch", branch] if branch else []), "--", url, path],
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise GitopsError(EX_TEMPFAIL, f"{url} cannot be cloned to {path}")
    return path


def _print_webhook(settings: Settings, repositories: Sequence[str]) -> None:
    print(
        "\nAt GitHub, once per repository or organisation: Settings, Webhooks, Add webhook\n"
        f"  Payload URL   https://<this host>{WEBHOOK}, which a proxy forwards to {settings.listen}\n"
        "  Content type  application/json\n"
        "  Secret        the first line of the secrets file\n"
        "  Events        just the push event\n"
        f"Or, with a token: gitops-hook register {' '.join(repositories)} --url https://<this host>"
    )


def send(given: Arguments) -> int:
    """Deliver a signed test push to the local daemon, wait for its run, and return the status of its outcome."""
    settings = load_settings(given)
    secret = deliver.newest_secret(settings)
    become_owner(settings)
    branch = given.branch or find_checkout(settings, given.repository).settings.get("branch") or "main"
    guid, status, answer = deliver.send_push(
        settings.listen, secret, canonical_name(settings, given.repository), branch
    )
    print(escape(f"{status} {answer}"))
    if status != 202:
        return EX_UNAVAILABLE
    run = deliver.wait_for_run(open_reader(settings), guid, given.timeout)
    if not run:
        problem = f"no run of it has ended within {given.timeout} s; gitops-hook runs --delivery {guid}"
        raise GitopsError(EX_TEMPFAIL, problem)
    render.print_runs([run], as_json=given.json)
    return outcome_of(run.outcome).exit


def _git(path: Path, *arguments: str, accept: Sequence[int] = (0,)) -> None:
    """Run git in a checkout. Raises `GitopsError` with git's message if it exits with an unexpected status."""
    done = subprocess.run(
        ["git", "-C", path, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in accept:
        raise GitopsError(EX_NOPERM, f"git {arguments[0]} in {path}: {done.stderr.strip()}")
