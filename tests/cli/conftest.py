"""Fixtures for the tests of commands."""

from __future__ import annotations

import pytest

from gitops_hook.config import Settings, load


@pytest.fixture
def settings(tmp_path, upstream, environ, monkeypatch) -> Settings:
    """Return the settings of a host without problems, on which no daemon runs."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "state").mkdir()
    upstream.checkout(tmp_path / "root")
    return load(environ, {})
