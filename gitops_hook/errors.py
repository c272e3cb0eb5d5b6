"""Errors, separated by whose fault they are.

==================  ============================  ===========================================
error               whose fault                   effect
==================  ============================  ===========================================
`HTTPError`         the peer's                    the HTTP status and reason of the response
`GitopsError`       the operator's or the host's  one line on stderr and an exit status
any other           ours                          a traceback in the log, and status 500
==================  ============================  ===========================================
"""

from __future__ import annotations

from http import HTTPStatus


class HTTPError(Exception):
    """A request that gets an error response: its HTTP status, and the reason in one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = HTTPStatus(status)
        self.reason = reason


class GitopsError(Exception):
    """An error that ends a command: its exit status from sysexits(3), and a one-line message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(GitopsError):
    """An invalid setting: exit 78 (EX_CONFIG). `option` and `value` identify the setting, if one is to blame."""

    def __init__(self, message: str, option: str = "", value: str = "") -> None:
        super().__init__(78, message)
        self.option = option
        self.value = value


class StartError(GitopsError):
    """A daemon that cannot start on this host now: exit 69 (EX_UNAVAILABLE)."""

    def __init__(self, message: str) -> None:
        super().__init__(69, message)


class JournalError(GitopsError):
    """A journal that cannot be read or written now: exit 74 (EX_IOERR)."""

    def __init__(self, message: str) -> None:
        super().__init__(74, message)


class JournalTooNew(JournalError):
    """A journal that a later version wrote. This version must not modify it."""


def reason_of(error: Exception) -> str:
    """Return the text of an error without the path and number that an OSError adds."""
    return error.strerror or "" if isinstance(error, OSError) else str(error)
