"""Checkpoints whose `inspect` output is frozen: a maker for each, and the arguments of the command.

Only names, shapes, types and configurations matter here, because `inspect` reads headers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.checkpoint.formats.gguf_writing import LLAMA, blocks, llama, write_gguf
from tests.checkpoint.tiny_models import CASES, build
from tests.checkpoint.writing import checkpoint, raw_checkpoint, sharded
from tests.engine.checkpoints import slow, small
from tests.engine.checkpoints import tensors as small_tensors
from tests.experiments.tiny import CONFIGS, save

Maker = Callable[[Path], str]
"""Writes a checkpoint into an empty folder and returns its reference."""

BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16}


def stored(folder: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any] | None = None) -> str:
    """A safetensors file of zeros with these types and shapes."""
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + math.prod(shape) * BITS.get(dtype, 8) // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw_checkpoint(folder, header, bytes(end))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _architecture(name: str) -> Maker:
    def make(folder: Path) -> str:
        build(name, folder)
        return str(folder)

    return make


def _tiny(kind: str) -> Maker:
    head = "features" if kind in {"albert", "deberta-v2", "longformer", "xlnet", "bert"} else "causal"
    head = "features" if kind in {"t5", "led", "nllb-moe", "bart"} else head
    return lambda folder: str(save(folder, kind, head))


LAYER = "model.layers.0"

#: Type and shape of every stored tensor of one layer, by the name of the quantization.
QUANTIZED: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, Any] | None]] = {
    "gptq": (
        {
            f"{LAYER}.mlp.down_proj.qweight": ("I32", (8, 32)),
            f"{LAYER}.mlp.down_proj.qzeros": ("I32", (2, 4)),
            f"{LAYER}.mlp.down_proj.scales": ("F16", (2, 32)),
            f"{LAYER}.mlp.down_proj.g_idx": ("I32", (64,)),
            f"{LAYER}.self_attn.q_proj.weight": ("F16", (32, 32)),
            f"{LAYER}.input_layernorm.weight": ("F16", (32,)),
        },
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}},
    ),
    "awq": (
        {
            f"{LAYER}.mlp.down_proj.qweight": ("I32", (64, 4)),
            f"{LAYER}.mlp.down_proj.qzeros": ("I32", (2, 4)),
            f"{LAYER}.mlp.down_proj.scales": ("F16", (2, 32)),
        },
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"}},
    ),
    "fp8": (
        {
            f"{LAYER}.self_attn.q_proj.weight": ("F8_E4M3", (200, 300)),
            f"{LAYER}.self_attn.q_proj.weight_scale_inv": ("F32", (2, 3)),
            f"{LAYER}.self_attn.k_proj.weight": ("F8_E4M3", (200, 300)),
            f"{LAYER}.self_attn.k_proj.input_scale": ("F32", ()),
        },
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    ),
    "mxfp4": (
        {
            f"{LAYER}.mlp.experts.down_proj_blocks": ("U8", (4, 6, 2, 16)),
            f"{LAYER}.mlp.experts.down_proj_scales": ("U8", (4, 6, 2)),
            f"{LAYER}.mlp.experts.gate_up_proj_blocks": ("U8", (4, 8, 2, 16)),
            f"{LAYER}.mlp.experts.gate_up_proj_scales": ("U8", (4, 8, 2)),
        },
        {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
    ),
    "int8": (
        {
            f"{LAYER}.self_attn.o_proj.weight": ("I8", (16, 24)),
            f"{LAYER}.self_attn.o_proj.weight_scale": ("F32", (16, 1)),
            f"{LAYER}.self_attn.v_proj.weight": ("I8", (8, 72)),
        },
        None,
    ),
    "bitsandbytes": (
        {
            f"{LAYER}.self_attn.q_proj.weight": ("U8", (64, 1)),
            f"{LAYER}.self_attn.q_proj.weight.absmax": ("F32", (2,)),
            f"{LAYER}.self_attn.q_proj.weight.quant_map": ("F32", (16,)),
            f"{LAYER}.self_attn.k_proj.weight": ("F16", (8, 16)),
        },
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ),
    "compressed": (
        {
            f"{LAYER}.self_attn.q_proj.weight_packed": ("I32", (40, 12)),
            f"{LAYER}.self_attn.q_proj.weight_scale": ("F32", (40, 3)),
            f"{LAYER}.self_attn.q_proj.weight_shape": ("I64", (2,)),
        },
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "format": "pack-quantized",
                        "weights": {
                            "num_bits": 4,
                            "symmetric": True,
                            "strategy": "group",
                            "group_size": 32,
                            "type": "int",
                        },
                    }
                },
            }
        },
    ),
    "unreadable": (
        {
            "codes": ("I8", (4, 4)),
            "ids": ("I64", (1, 4)),
            "bytes": ("U8", (4, 4)),
            "mask": ("BOOL", (4,)),
            "model.embed_tokens.weight": ("BF16", (100, 8)),
            "conv.weight": ("F32", (2, 3, 4, 4)),
            "logit_scale": ("F64", ()),
            "weight": ("F32", (4, 4)),
        },
        None,
    ),
}


def _quantized(name: str) -> Maker:
    return lambda folder: stored(folder, *QUANTIZED[name])


def _shards(folder: Path) -> str:
    named = small_tensors()
    return sharded(
        folder,
        {
            "model-00001-of-00002.safetensors": {name: one for name, one in named.items() if ".2." not in name},
            "model-00002-of-00002.safetensors": {name: one for name, one in named.items() if ".2." in name},
        },
    )


def _torch_file(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(small_tensors(layers=2), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return str(folder)


def _gguf(folder: Path) -> str:
    return str(write_gguf(folder / "model.gguf", llama(2), LLAMA | {"llama.block_count": 2}))


def _gguf_types(folder: Path) -> str:
    kinds = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL MXFP4".split()
    found: dict[str, Any] = {
        f"blk.{layer}.attn_q.weight": blocks((8, 256), kind, layer) for layer, kind in enumerate(kinds)
    }
    found["blk.0.ffn_up.weight"] = np.ones((8, 64), dtype=np.float16)
    return str(write_gguf(folder / "model.gguf", found))


def _adapter(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"self_attn.q_proj": (24, 16), "mlp.down_proj": (16, 40)}
    tensors: dict[str, torch.Tensor] = {}
    for module, (rows, cols) in shapes.items():
        name = f"base_model.model.model.layers.3.{module}"
        tensors |= {f"{name}.lora_A.weight": torch.ones(4, cols), f"{name}.lora_B.weight": torch.ones(rows, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base-model"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def _difference(folder: Path) -> str:
    tuned = small_tensors(seed=1) | {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 6)}
    base = small(folder / "base")
    return f"delta:{base}..{checkpoint(folder / 'tuned', tuned)}"


def _tied(folder: Path) -> str:
    embedding = torch.ones(12, 4)
    named = small_tensors(layers=1) | {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    return checkpoint(folder, named, {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True})


MAKERS: dict[str, Maker] = {
    **{f"architecture/{name}": _architecture(name) for name in CASES},
    **{f"tiny/{kind}": _tiny(kind) for kind in CONFIGS},
    **{f"quantized/{name}": _quantized(name) for name in QUANTIZED},
    "small": small,
    "slow": lambda folder: slow(folder, matrices=3, size=20),
    "shards": _shards,
    "torch": _torch_file,
    "gguf": _gguf,
    "gguf types": _gguf_types,
    "adapter": _adapter,
    "difference": _difference,
    "tied": _tied,
}

SAMPLES = ("minilm", "minilm_tuned", "smollm2", "minilm difference")
"""Real checkpoints, which a fixture or the makefile provides."""

OPTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "architecture/llama": (("--heads",), ("--embeddings",)),
    "architecture/gpt2": (("--heads",), ("--embeddings",)),
    "architecture/t5": (("--embeddings",), ("--heads",)),
    "architecture/mixtral": (("--layers", "1"),),
    "gguf": (("--heads", "--embeddings"),),
    "tied": (("--embeddings",),),
    "small": (("--layers", "0,2"),),
    "minilm": (("--embeddings",), ("--heads", "--layers", "0-1")),
    "minilm_tuned": ((),),
    "smollm2": (("--heads", "--layers", "3"),),
}
"""Arguments of further calls for some of the checkpoints, beside the call without any."""


def calls() -> list[tuple[str, tuple[str, ...]]]:
    """Every frozen call: name of the checkpoint and further arguments."""
    return [(name, more) for name in (*MAKERS, *SAMPLES) for more in dict.fromkeys(((), *OPTIONS.get(name, ())))]
