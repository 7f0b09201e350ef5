"""One store of two real models for the whole session: scanning them takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanner.store import Store, open_store

from .stores import build


@pytest.fixture(scope="session")
def pair_url(tmp_path_factory: pytest.TempPathFactory, minilm: Path, minilm_tuned: Path) -> str:
    url = str(tmp_path_factory.mktemp("figures") / "store")
    build(url, minilm, minilm_tuned).close()
    return url


@pytest.fixture
def pair_store(pair_url: str) -> Store:
    return open_store(pair_url)
