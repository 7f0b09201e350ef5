"""The Hub on loopback: one of its own for each test that only lists, and one with a Ray whose workers know it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from scanner.checkpoint.sources import retry
from scanner.checkpoint.sources.hub_files import hub_files
from scanner.fleet.config import read_config
from scanner.fleet.nightly import NightReport, run_night
from tests.checkpoint.sources.hub_fixtures import _NoWaiting
from tests.checkpoint.sources.hub_fixtures import hub as hub
from tests.checkpoint.sources.hub_server import Hub, serve
from tests.store.conftest import memory_url as memory_url
from tests.store.conftest import store as store

from .releases import config

Run = Callable[..., NightReport]


@pytest.fixture(scope="module")
def night_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub, and a Ray whose workers ask it; the Ray of the session, if there is one, makes way and returns."""
    import ray

    def start() -> None:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20
        )

    before = ray.is_initialized()
    if before:
        ray.shutdown()
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("hub-cache"))
        patch.setenv("HF_ENDPOINT", server.endpoint)  # of the workers
        patch.setenv("HF_HUB_CACHE", cache)
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", cache)
        patch.setattr(constants, "HF_TOKEN_PATH", os.path.join(cache, "no-token"))  # noqa: PTH118
        patch.setattr(retry, "time", _NoWaiting(server.waits))
        hub_files.cache_clear()
        close_session()
        start()
        try:
            yield server
        finally:
            ray.shutdown()
            hub_files.cache_clear()
            close_session()
    if before:
        start()


@pytest.fixture
def night(tmp_path: Path) -> Run:
    """`night("author", budget="models = 2")` runs a night of that author in a store of this test."""

    def run(author: str, *, dry_run: bool = False, **sections: Any) -> NightReport:
        file = tmp_path / f"{author}.toml"
        file.write_text(config(author, tmp_path, **sections))
        return run_night(read_config(file), dry_run=dry_run)

    return run
