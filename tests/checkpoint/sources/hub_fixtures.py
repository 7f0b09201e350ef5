"""The Hub on loopback in place of the real one, and a model on it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import save

from scanner.checkpoint import Checkpoint, list_matrices, read_matrix
from scanner.checkpoint.sources import retry
from scanner.checkpoint.sources.files import ByteRange, open_files
from scanner.checkpoint.sources.hub_files import hub_files

from ..writing import INDEX
from .hub_server import Hub, serve

LAYERS = 8
WIDTH = 128
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub with an empty cache, nobody logged in, and no waiting: `waits` of the Hub lists what it would be."""
    with serve() as server:
        # The client reads its environment when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it has requests of its own
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(retry, "time", _NoWaiting(server.waits))
        hub_files.cache_clear()
        close_session()
        yield server
        hub_files.cache_clear()
        close_session()


class _NoWaiting:
    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def sleep(self, seconds: float) -> None:
        self._waits.append(seconds)


@pytest.fixture
def single(hub: Hub) -> str:
    """The commit of org/name, a model in one file."""
    return hub.commit("org/name", {"model.safetensors": WHOLE, "config.json": CONFIG, "README.md": b"# A model"})


def _model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def weight(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator)

    tensors = {}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{start}.self_attn.{module}.weight"] = weight(WIDTH, WIDTH)
            tensors[f"{start}.self_attn.{module}.bias"] = weight(1, WIDTH)[0]
        tensors[f"{start}.mlp.up_proj.weight"] = weight(4 * WIDTH, WIDTH)
        tensors[f"{start}.mlp.down_proj.weight"] = weight(WIDTH, 4 * WIDTH)
    return tensors


TENSORS = _model()
WHOLE = save(TENSORS)


def sharded() -> dict[str, bytes]:
    """The files of the model in four shards."""
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for shard in range(4):
        name = f"model-{shard + 1:05}-of-00004.safetensors"
        tensors = {key: tensor for key, tensor in TENSORS.items() if int(key.split(".")[2]) % 4 == shard}
        files[name] = save(tensors)
        weight_map |= dict.fromkeys(tensors, name)
    return files | {INDEX: json.dumps({"weight_map": weight_map}).encode(), "config.json": CONFIG}


def check_tensors(opened: Checkpoint) -> None:
    """Read every matrix and compare it with what was saved."""
    found = list_matrices(opened).matrices
    assert {ref.tensor for ref in found} == {name for name, tensor in TENSORS.items() if tensor.ndim == 2}
    for ref in found:
        assert torch.equal(read_matrix(opened.source, ref), TENSORS[ref.tensor])


def part(commit: str, start: int = 5_000, size: int = 300_000) -> bytes:
    """Read a range of the model's file."""
    files = open_files(f"hf://org/name@{commit}")
    return files.read_ranges([ByteRange(name="model.safetensors", start=start, size=size)])[0].tobytes()
