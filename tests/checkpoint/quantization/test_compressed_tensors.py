"""Weights that compressed-tensors compressed, against what the package itself makes of them again."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanner.checkpoint import open_checkpoint
from scanner.checkpoint.quantization.weights import logical_weights
from scanner.errors import CheckpointError

from ..writing import checkpoint
from .test_codecs import decoded, random, weights

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

ROWS, COLS = 40, 96


def quantization(args: dict[str, Any], form: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": args, "format": form}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def compressed(
    args: dict[str, Any], form: str, scale_dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the package stores of a random matrix, and what it decompresses that to."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    scale_shape = {"tensor": (1,), "channel": (ROWS, 1), "block": (5, 3)}.get(
        args["strategy"], (ROWS, COLS // (args.get("group_size") or COLS))
    )
    matrix, scale = random(ROWS, COLS), (random(*scale_shape, seed=1).abs() / 4 + 0.1).to(scale_dtype)
    state = {"weight": matrix, "weight_scale": scale}
    if form.startswith("mx"):
        state["weight_scale"] = torch.exp2(torch.floor(torch.log2(scale)))
    if form == "nvfp4-pack-quantized":
        state["weight_global_scale"] = torch.tensor([3.0])
    if not args.get("symmetric", True):
        low, high = -(2 ** (args["num_bits"] - 1)), 2 ** (args["num_bits"] - 1)
        generator = torch.Generator().manual_seed(2)
        state["weight_zero_point"] = torch.randint(low, high, scale_shape, generator=generator, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(dict(stored), scheme)["weight"]


def read(folder: Path, stored: dict[str, torch.Tensor], settings: Any) -> tuple[str, torch.Tensor]:
    found = weights(folder, {f"m.{name}": tensor for name, tensor in stored.items()}, settings)["m.weight"]
    assert found.shape == (ROWS, COLS)
    return found.dtype, decoded(folder, found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "group_size"), [("group", 32), ("channel", None)])
def test_packed_integers(tmp_path: Path, bits: int, symmetric: bool, strategy: str, group_size: int | None) -> None:
    args = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy, "group_size": group_size, "type": "int"}
    stored, truth = compressed(args, "pack-quantized", torch.float32)
    dtype, found = read(tmp_path, stored, quantization(args, "pack-quantized"))
    assert dtype == f"CT-int{bits}"
    assert torch.equal(found, truth)


def test_scales_of_16_bits_do_not_cost_precision(tmp_path: Path) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    stored, truth = compressed(args, "pack-quantized", torch.bfloat16)
    _, found = read(tmp_path, stored, quantization(args, "pack-quantized"))
    assert torch.equal(found.to(torch.bfloat16), truth)
    assert not torch.equal(found, truth.float())


def test_packed_integers_in_groups_of_reordered_columns(tmp_path: Path) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    stored, truth = compressed(args, "pack-quantized", torch.float32)
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 32))
    stored["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
    _, found = read(tmp_path, stored, quantization({**args, "actorder": "group"}, "pack-quantized"))
    scale = stored["weight_scale"]
    codes = torch.round(truth / scale.repeat_interleave(32, dim=1))
    for i in range(ROWS):
        for j in range(COLS):
            assert found[i, j] == codes[i, j] * scale[i, group[j]]


def test_the_one_group_of_the_config_that_fits_the_shapes_is_taken(tmp_path: Path) -> None:
    args = {"num_bits": 8, "symmetric": True, "strategy": "channel", "type": "int"}
    stored, truth = compressed(args, "pack-quantized", torch.float32)
    settings = quantization(args, "pack-quantized")
    other = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    settings["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": other}
    assert torch.equal(read(tmp_path, stored, settings)[1], truth)


def test_groups_of_the_config_that_both_fit_leave_it_open(tmp_path: Path) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "channel", "type": "int"}
    stored, _ = compressed(args, "pack-quantized", torch.float32)
    settings = quantization(args, "pack-quantized")
    settings["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": {**args, "num_bits": 6}}
    assert reason(tmp_path, stored, settings) == (
        "compressed-tensors: more than one of the config_groups fits (40, 12), scales (40, 1)"
    )


def reason(folder: Path, stored: dict[str, torch.Tensor], settings: Any) -> str:
    tensors = {f"m.{name}": tensor for name, tensor in stored.items()}
    opened = open_checkpoint(checkpoint(folder, tensors, {"quantization_config": settings}))
    found, skipped = logical_weights(opened.tensors, opened.config)
    assert found == ()
    return {entry.tensor: entry.reason for entry in skipped}["m.weight_packed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_bits": 9}, "9 bits a weight cannot be unpacked"),
        ({"num_bits": "four"}, "num_bits is 'four', not a whole number"),
        ({"num_bits": 5}, "none of the config_groups fits"),
        ({"group_size": 0}, "groups of 0 columns cannot be"),
        ({"group_size": -7}, "groups of -7 columns cannot be"),
        ({"group_size": 48}, "none of the config_groups fits"),
        ({"symmetric": False}, "none of the config_groups fits"),
        ({"type": "float"}, "no config_groups that say how many bits"),
        ({"type": 3}, "type is 3, not text"),
    ],
)
def test_a_config_that_does_not_fit_is_a_reason_to_skip(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    stored, _ = compressed(args, "pack-quantized", torch.float32)
    assert said in reason(tmp_path, stored, quantization({**args, **change}, "pack-quantized"))


def test_a_shape_that_contradicts_the_packing_is_an_error_of_that_weight(tmp_path: Path) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    stored, _ = compressed(args, "pack-quantized", torch.float32)
    stored["weight_shape"] = torch.tensor([ROWS, COLS - 1])
    with pytest.raises(CheckpointError, match=r"says \[40, 95\] of a weight that is packed as \[40, 96\]"):
        read(tmp_path, stored, quantization(args, "pack-quantized"))


def test_without_the_package_the_reason_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32, "type": "int"}
    stored, _ = compressed(args, "pack-quantized", torch.float32)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "compressed_tensors" else find_spec(name, *rest),
    )
    said = reason(tmp_path, stored, quantization(args, "pack-quantized"))
    assert said == "compressed-tensors: needs the extra: pip install 'rmtscan[quant]'"


INTEGERS = {"num_bits": 8, "type": "int"}
FLOATS = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize(
    ("args", "form", "dtype"),
    [
        ({**INTEGERS, "strategy": "channel"}, "int-quantized", "I8"),
        ({**INTEGERS, "strategy": "tensor"}, "int-quantized", "I8"),
        ({**INTEGERS, "strategy": "channel", "symmetric": False}, "int-quantized", "I8"),
        ({**INTEGERS, "strategy": "group", "group_size": 32}, "naive-quantized", "I8"),
        ({**FLOATS, "strategy": "channel"}, "float-quantized", "F8_E4M3"),
        ({**FLOATS, "strategy": "tensor"}, "float-quantized", "F8_E4M3"),
        ({**FLOATS, "strategy": "block", "block_structure": [8, 32]}, "float-quantized", "F8_E4M3"),
        ({**FLOATS, "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}, "mxfp8-quantized", "F8_E4M3"),
        ({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, "mxfp4-pack-quantized", "MXFP4"),
    ],
)
def test_formats_that_need_no_package(tmp_path: Path, args: dict[str, Any], form: str, dtype: str) -> None:
    stored, truth = compressed(args, form, torch.float32)
    settings = quantization({**args, "scale_dtype": None}, form)
    found_dtype, found = read(tmp_path, stored, settings)
    assert found_dtype == dtype
    # The package computes MX formats in bfloat16, where their numbers times powers of two are exact.
    assert torch.equal(found, truth.float())


def test_nvfp4(tmp_path: Path) -> None:
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    stored, truth = compressed(args, "nvfp4-pack-quantized", torch.float32)
    dtype, found = read(tmp_path, stored, quantization(args, "nvfp4-pack-quantized"))
    assert dtype == "NVFP4"
    # The package rounds to bfloat16.
    assert torch.equal(found.to(torch.bfloat16), truth)


def test_the_outer_scale_of_modelopt_multiplies(tmp_path: Path) -> None:
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    stored, _ = compressed(args, "nvfp4-pack-quantized", torch.float32)
    _, divided = read(tmp_path / "a", stored, quantization(args, "nvfp4-pack-quantized"))
    names = {"weight": stored["weight_packed"], "weight_scale": stored["weight_scale"]}
    names["weight_scale_2"] = torch.tensor(1 / 4.0)
    _, multiplied = read(tmp_path / "b", names, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    assert torch.allclose(multiplied, divided * 3 / 4)
