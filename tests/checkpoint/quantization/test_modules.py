"""Modules that hold codes in a way nobody told the scanner about: no matrix, one reason; and integers that are no codes."""

from pathlib import Path

import pytest
import torch

from scanner.checkpoint import list_matrices, open_checkpoint

from ..writing import checkpoint, reasons
from .test_weights import Shapes, grouped

Q = "model.layers.0.self_attn.q_proj"
OTHERS: Shapes = {
    "model.layers.0.mlp.up_proj.weight": ("BF16", (256, 128)),
    "model.layers.0.norm.weight": ("BF16", (128,)),
}

CODED: dict[str, Shapes] = {
    "HQQ": {"W_q": ("U8", (64, 128)), "scale": ("F16", (256, 1)), "zero": ("F16", (256, 1)), "bias": ("F16", (128,))},
    "HQQ, 3 bits": {"W_q": ("I32", (13, 128)), "scale": ("F16", (1, 256)), "zero": ("F16", (1, 256))},
    "SVDQuant": {
        "qweight": ("I8", (128, 64)),
        "wscales": ("BF16", (2, 128)),
        "lora_down": ("BF16", (128, 32)),
        "lora_up": ("BF16", (128, 32)),
        "smooth_factor": ("BF16", (128,)),
    },
    "AQLM": {"codes": ("I16", (16, 16, 1)), "codebooks": ("F16", (256, 8)), "scales": ("F16", (16, 1))},
    "VPTQ": {"indices": ("I32", (1, 16, 64)), "centroids.weight": ("F16", (4, 2048)), "weight_scale": ("F16", (128,))},
    "quanto": {"weight._data": ("I8", (128, 128)), "weight._scale": ("F16", (128, 2))},
    "torchao": {"_weight_qdata": ("I8", (128, 128)), "_weight_scale": ("F32", (128, 4))},
    "HIGGS": {"weight": ("I16", (16, 128)), "scales": ("F16", (2, 128)), "tables2": ("F16", (256, 256))},
    "FP-Quant": {
        "qweight": ("U8", (128, 64)),
        "scales": ("U8", (128, 4)),
        "forward_hadamard_matrix": ("BF16", (32, 32)),
    },
    "FP8 with unknown scales": {"weight": ("F8_E4M3", (128, 128)), "wsc": ("F32", (128, 2))},
    "FP8 with one unknown scale": {"weight": ("F8_E5M2", (128, 128)), "s": ("F32", ())},
    "FP4": {"weight": ("F4", (128, 128)), "blocks": ("BF16", (128, 4))},
    "long codes": {"abc": ("I64", (128, 128)), "d": ("F32", (128, 4)), "e": ("F32", (128, 4))},
    "a known method and more": {
        "qweight": ("I32", (16, 128)),
        "qzeros": ("I32", (2, 16)),
        "scales": ("F16", (2, 128)),
        "rotation": ("F16", (32, 16)),
    },
    "a known method and a rotation": {
        "qweight": ("I32", (16, 128)),
        "qzeros": ("I32", (2, 16)),
        "scales": ("F16", (2, 128)),
        "R": ("F16", (128, 128)),
    },
    "scales outside": {"inner.data": ("U8", (128, 64)), "absmax": ("F32", (128, 2))},
}


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("config", [None, {"quant_method": "bitsandbytes"}])
def test_nothing_in_a_module_of_codes_is_a_matrix(kind: str, config: dict[str, str] | None) -> None:
    shapes = {f"{Q}.{name}": what for name, what in CODED[kind].items()}
    found, skipped = grouped(shapes | OTHERS, config)
    assert set(found) == set(OTHERS)
    assert set(skipped) == set(shapes)
    assert len(set(skipped.values())) == 1, "one reason for the module"
    assert "quantized in a way that is not decoded" in skipped[next(iter(shapes))]


def test_scales_may_be_named_after_the_module() -> None:
    shapes: Shapes = {f"{Q}.weight": ("I8", (128, 128)), f"{Q}_scale": ("F32", (128, 4))}
    norm: Shapes = {f"{Q}_norm.weight": ("F32", (64, 64))}
    found, skipped = grouped(shapes | norm | OTHERS)
    assert set(found) == set(OTHERS | norm)
    assert "I8 codes weight with scale" in skipped[f"{Q}_scale"]


@pytest.mark.parametrize(
    "scale",
    [
        "model.layers.0.self_attn.q_proj_scales.weight",
        "model.layers.0.self_attn.scale_q_proj.weight",
        "scales.model_layers_0_self_attn_q_proj",
    ],
)
def test_scales_in_a_module_named_after_the_module_are_no_matrices(scale: str) -> None:
    found, skipped = grouped({f"{Q}.weight": ("I8", (128, 128)), scale: ("F32", (128, 4))} | OTHERS)
    assert set(found) == set(OTHERS)
    assert skipped[scale] == skipped[f"{Q}.weight"]


def test_scales_outside_of_all_modules_are_no_matrices() -> None:
    one: Shapes = {"weight": ("U8", (64, 32)), "scale": ("F32", (64, 4))}
    flat: Shapes = {"l0_q_weight": ("U8", (64, 32)), "l0_q_scale": ("F32", (64, 4))}
    assert grouped(one)[0] == {}
    found, _ = grouped(flat | {"l0_k_weight": ("F32", (64, 64)), "position_ids": ("I64", (1, 64))})
    assert set(found) == {"l0_k_weight"}


def test_an_adapter_does_not_make_a_known_method_unknown() -> None:
    coded: Shapes = {"m.qweight": ("I32", (16, 128)), "m.qzeros": ("I32", (2, 16)), "m.scales": ("F16", (2, 128))}
    found, skipped = grouped(coded | {"m.lora_A": ("F16", (4, 128)), "m.lora_B": ("F16", (128, 4))})
    assert set(found) == {"m.qweight"}
    assert "not merged" in skipped["m.lora_A"]


INTEGERS: dict[str, Shapes] = {
    "counts of a codebook": {"vq.embed": ("F32", (512, 32)), "vq.usage": ("I64", (512,))},
    "index of positions": {
        "a.relative_position_index": ("I64", (49, 49)),
        "a.relative_position_bias_table": ("F32", (169, 3)),
        "a.qkv.weight": ("F32", (288, 96)),
    },
    "mask of GPT-2": {
        "h.0.attn.bias": ("U8", (1, 1, 64, 64)),
        "h.0.attn.masked_bias": ("F32", ()),
        "h.0.attn.c_attn.weight": ("F32", (32, 96)),
    },
    "table of tokens": {"mlp.gate.weight": ("BF16", (16, 128)), "mlp.gate.tid2eid": ("I32", (1000, 2))},
    "positions": {"e.position_ids": ("I64", (1, 512)), "e.position_embedding": ("F32", (512, 64))},
    "eight bits without scales": {f"{Q}.weight": ("F8_E4M3", (128, 128)), f"{Q}.bias": ("F32", (128,))},
    "a boolean mask": {"a.in_proj_weight": ("F32", (96, 32)), "a.causal": ("BOOL", (64, 64))},
    "an order of columns": {f"{Q}.weight": ("F32", (128, 128)), f"{Q}.order": ("I32", (128,))},
    "experts of two kinds": {
        "mlp.experts.gate_up_proj_blocks": ("U8", (4, 64, 2, 16)),
        "mlp.experts.gate_up_proj_scales": ("U8", (4, 64, 2)),
        "mlp.experts.gate_up_proj_bias": ("BF16", (4, 64)),
        "mlp.experts.down_proj": ("BF16", (4, 32, 64)),
    },
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_that_are_no_codes_leave_their_module_alone(kind: str) -> None:
    found, _ = grouped(INTEGERS[kind])
    plain = {name for name, (dtype, _) in INTEGERS[kind].items() if dtype[0] in "BF" and dtype != "BOOL"}
    assert plain <= set(found)


def test_a_checkpoint_of_codes_has_no_matrix_but_the_plain_ones(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {"model.layers.0.self_attn.o_proj.weight": torch.randn(32, 32)}
    for name in ("q_proj", "k_proj"):
        module = f"model.layers.0.self_attn.{name}"
        tensors |= {f"{module}.kodes": torch.randint(0, 15, (32, 16), dtype=torch.uint8)}
        tensors |= {f"{module}.{part}": torch.randn(32, 4) for part in ("mu", "nu")}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, tensors, {"model_type": "llama"})))
    assert [ref.tensor for ref in inventory.matrices] == ["model.layers.0.self_attn.o_proj.weight"]
    assert set(reasons(inventory)) == set(tensors) - {"model.layers.0.self_attn.o_proj.weight"}
