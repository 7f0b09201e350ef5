"""Runs without Ray: the same tasks one after the other in this process."""

from __future__ import annotations

from typing import Any

import pytest

from .calls import without_ray


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the pool by one worker in this process; the list collects the tasks that were run."""
    return without_ray(monkeypatch)
