"""A store with a scan of a tiny Llama that was saved with save_pretrained, and of a few others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from scanner import scan
from scanner.store import Store, open_store
from tests.experiments.tiny import save


def with_directions(folder: Path) -> None:
    """Add l + 1 strong directions to every matrix of block l."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            for weight in (parameter for parameter in block.parameters() if parameter.ndim == 2):
                left, right = (torch.linalg.qr(torch.randn(size, layer + 1)).Q for size in weight.shape)
                weight += 9.0 * left @ right.T
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints `llama`, `gpt2` and `mixtral`."""
    path = tmp_path_factory.mktemp("exports")
    save(path / "llama", "llama", num_hidden_layers=4, hidden_size=32, intermediate_size=56)
    with_directions(path / "llama")
    save(path / "gpt2", "gpt2")
    save(path / "mixtral", "mixtral")
    return path


@pytest.fixture(scope="session")
def store(folder: Path) -> Store:
    """Their scans."""
    place = str(folder / "store")
    scan([str(folder / name) for name in ("llama", "gpt2", "mixtral")], store=place)
    return open_store(place)
