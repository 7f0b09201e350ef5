"""Releases on the Hub of the tests: tiny models with what a listing says of them."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save

from tests.checkpoint.sources.hub_server import Hub
from tests.engine.checkpoints import tensors

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


def add(hub: Hub, name: str, seed: int = 0, *, weights: dict[str, torch.Tensor] | None = None, **listed: Any) -> str:
    """Commit a tiny model, and list it like a text-generation model; `listed` replaces parts of the entry."""
    made = tensors(layers=1, hidden=16, seed=seed) if weights is None else weights
    # The name makes the commits of two repositories differ, as the time does on the Hub.
    commit = hub.commit(
        name, {"model.safetensors": save(made), "config.json": CONFIG, "README.md": f"# {name}\n".encode()}
    )
    count = sum(tensor.numel() for tensor in made.values())
    entry: dict[str, Any] = {
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["transformers", "safetensors", "license:apache-2.0"],
        "safetensors": {"parameters": {"F32": count}, "total": count},
        "downloads": 1,
    }
    hub.repositories[name].listed = entry | listed
    return commit


def config(author: str, folder: Any, **more: str) -> str:
    """A configuration that watches one author; `more` are the lines of other sections."""
    sections = {"output": f'store = "{folder}/store"', "watch": ""} | more
    sections["watch"] = f'authors = ["{author}"]\n{sections["watch"]}'
    return "\n".join(f"[{name}]\n{lines}" for name, lines in sections.items()) + "\n"
