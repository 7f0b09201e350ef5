import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from scanner.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def memory_url() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield f"memory://{name}"
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)
