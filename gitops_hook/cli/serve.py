"""The command serve. It has a module of its own, so that the daemon's memory contains no other command."""

from __future__ import annotations

import os

from gitops_hook import daemon, init, log
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import given_flags
from gitops_hook.config import load


def serve(given: Arguments) -> int:
    """Run the daemon until a signal ends it."""
    settings = load(os.environ, given_flags(given))
    log.setup(settings.log_format, under_systemd="JOURNAL_STREAM" in os.environ)
    status = init.run_child(os.environ) if init.is_first_process() else None
    return daemon.serve(settings, os.environ) if status is None else status
