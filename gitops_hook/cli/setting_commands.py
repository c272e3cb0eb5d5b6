"""The commands about the settings of a checkout: config, pause."""

from __future__ import annotations

import os
import time

from gitops_hook.cli import render
from gitops_hook.cli.messages import EX_DATAERR, EX_NOPERM, EX_USAGE
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import find_checkout, load_settings
from gitops_hook.cli.writer import requests_to_daemon
from gitops_hook.errors import GitopsError
from gitops_hook.sync.holds import Hold
from gitops_hook.sync.settings import SETTINGS, check_setting
from gitops_hook.sync.status import settings_in_force
from gitops_hook.text import suggest
from gitops_hook.users import requesting_user


def config(given: Arguments) -> int:
    """Print the effective settings of a checkout, or one; set or unset one.

    Exits with 1 if the setting to print has no value, like git config.
    """
    settings, user = load_settings(given), requesting_user()
    if given.unset and given.value is not None:
        raise GitopsError(EX_USAGE, "give a value or --unset, not both")
    if given.unset and not given.name:
        raise GitopsError(EX_USAGE, "give the name of the setting to unset")
    name = _setting_name(given.name) if given.name else ""
    if given.value is not None:
        try:
            check_setting(name, given.value)
        except ValueError as error:
            raise GitopsError(EX_DATAERR, str(error)) from None
    checkout = find_checkout(settings, given.repository)
    if given.unset or given.value is not None:
        with requests_to_daemon(settings, "gitops-hook config") as post:
            post("/config", {"checkout": given.repository, "name": name, "value": given.value, "by": user})
        return 0
    if not os.access(checkout.path / ".git", os.R_OK):
        raise GitopsError(EX_NOPERM, f"{requesting_user()} cannot read the settings of {checkout.path}: use sudo")
    effective = settings_in_force(checkout, settings.sync_timeout)
    if not name:
        render.print_settings(effective, as_json=given.json)
        return 0
    (setting,) = [setting for setting in effective if setting.name == name]
    if given.json:
        render.print_settings([setting], as_json=True)
    elif setting.value is not None:
        print(setting.value)
    return 0 if setting.value is not None else 1


def _setting_name(text: str) -> str:
    """Return the name of a setting as the table has it; the prefix ``gitops.`` and the case do not matter."""
    known = {name.lower(): name for name in SETTINGS}
    plain = text.lower().removeprefix("gitops.")
    if plain not in known:
        raise GitopsError(EX_USAGE, f"there is no setting {text}{suggest(text, SETTINGS)}")
    return known[plain]


def pause(given: Arguments) -> int:
    """Pause checkouts: their runs change nothing, and pushes wait, until `resume` or for a time."""
    settings, user = load_settings(given), requesting_user()
    for name in given.repository:
        find_checkout(settings, name)
    with requests_to_daemon(settings, "gitops-hook pause") as post:
        until = time.time() + given.span if given.span else None
        post("/pause", {"checkouts": given.repository, "reason": given.reason, "until": until, "by": user})
    for name in given.repository:
        print(render.describe_hold(name, Hold("paused", by=user, reason=given.reason, until=until)))
    return 0
