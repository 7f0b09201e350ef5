"""One store of two real models for the session, since scanning them takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scanner.store import Store, open_store

from .stores import add_experiments, add_training, build


@pytest.fixture(scope="session")
def pair_url(tmp_path_factory: pytest.TempPathFactory, minilm: Path, minilm_tuned: Path) -> str:
    url = str(tmp_path_factory.mktemp("figures") / "store")
    build(url, minilm, minilm_tuned).close()
    return url


@pytest.fixture
def pair_store(pair_url: str) -> Store:
    return open_store(pair_url)


@pytest.fixture(scope="session")
def full_url(tmp_path_factory: pytest.TempPathFactory, pair_url: str) -> str:
    """The same store with a run of every experiment."""
    url = tmp_path_factory.mktemp("figures") / "full"
    shutil.copytree(pair_url, url)
    store = open_store(str(url))
    add_experiments(store)
    add_training(store)
    store.close()
    return str(url)


@pytest.fixture
def full_store(full_url: str) -> Store:
    return open_store(full_url)
