"""What several tests look at: models that are built once, and a Hub on loopback."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from .sources.hub_fixtures import hub as hub
from .sources.hub_fixtures import single as single
from .tiny_models import Built, build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A function from the name of a tiny transformers model to the model, built once and saved once."""
    return cache(lambda name: build(name, tmp_path_factory.mktemp(name)))
