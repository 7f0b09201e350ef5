"""Synthetic checkpoints of a given shape: noise with planted spikes, a config, norms; written with the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from spectra import spiked


@dataclass(frozen=True, kw_only=True)
class Llama:
    """The shape of a Llama: seven matrices per block."""

    blocks: int
    hidden: int
    key_value: int
    feed_forward: int
    vocabulary: int = 256

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Names and shapes (out, in) of the matrices of one block."""
        hidden, narrow, wide = self.hidden, self.key_value, self.feed_forward
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }


#: 210 matrices.
LLAMA = Llama(blocks=30, hidden=576, key_value=192, feed_forward=1536)
QUICK_LLAMA = Llama(blocks=2, hidden=96, key_value=32, feed_forward=256)


def write_llama(folder: Path, shape: Llama, seed: int = 0) -> Path:
    """Write the checkpoint in float32, with an embedding and norms, and return its folder."""
    rng = np.random.default_rng(seed)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((shape.vocabulary, shape.hidden)).astype(np.float32),
        "model.norm.weight": np.ones(shape.hidden, dtype=np.float32),
    }
    for block in range(shape.blocks):
        for name, (rows, cols) in shape.shapes().items():
            tensors[f"model.layers.{block}.{name}.weight"] = spiked(rows, cols, rng).astype(np.float32)
        tensors[f"model.layers.{block}.input_layernorm.weight"] = np.ones(shape.hidden, dtype=np.float32)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.blocks,
        "vocab_size": shape.vocabulary,
    }
    return _write(folder, tensors, config)


def write_matrices(folder: Path, shapes: Sequence[tuple[int, int]], seed: int = 0) -> Path:
    """Write a checkpoint with one float32 matrix per block, of the given shapes, and return its folder."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"model.layers.{block}.mlp.up_proj.weight": rng.standard_normal(shape, dtype=np.float32)
        for block, shape in enumerate(shapes)
    }
    return _write(folder, tensors, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})


def _write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
