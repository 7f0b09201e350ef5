"""Decoded weights against truth from elsewhere: element-by-element loops, or the package that defines the format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scanner.checkpoint import list_matrices, open_checkpoint
from scanner.checkpoint.model import LogicalWeight, MatrixRef
from scanner.checkpoint.quantization.weights import logical_weights, narrow
from scanner.checkpoint.reading import read_matrix
from scanner.errors import CheckpointError

from ..writing import checkpoint, raw_checkpoint, reasons

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def weights(folder: Path, tensors: dict[str, torch.Tensor], quantization: Any = None) -> dict[str, LogicalWeight]:
    config = {} if quantization is None else {"quantization_config": quantization}
    opened = open_checkpoint(checkpoint(folder, {k: v.contiguous() for k, v in tensors.items()}, config))
    found, skipped = logical_weights(opened.tensors, opened.config)
    assert sorted([w.entry.name for w in found] + [s.tensor for s in skipped]) == sorted(tensors)
    return {weight.name: weight for weight in found}


def decoded(folder: Path, weight: LogicalWeight) -> torch.Tensor:
    rows, cols = weight.shape
    ref = MatrixRef(
        tensor=weight.name, stack=None, layer=None, role="other", role_source="none", head=None, expert=None,
        rows=rows, cols=cols, dtype=weight.dtype, entry=weight.entry, transposed=False, codec=weight.codec,
        companions=weight.companions, settings=weight.settings,
    )  # fmt: skip
    return read_matrix(str(folder), ref)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def float8(byte: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The numbers of arXiv 2209.05433, table 1: E4M3 has no infinities and one NaN, E5M2 follows IEEE 754."""
    sign = -1.0 if byte >> 7 else 1.0
    exponent, mantissa = (byte & 127) >> mantissa_bits, byte & ((1 << mantissa_bits) - 1)
    bias, top = 2 ** (exponent_bits - 1) - 1, 2**exponent_bits - 1
    if exponent_bits == 4 and byte & 127 == 127:
        return float("nan")
    if exponent_bits == 5 and exponent == top:
        return sign * float("inf") if mantissa == 0 else float("nan")
    fraction = mantissa / 2**mantissa_bits
    return sign * (fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias))


@pytest.mark.parametrize(("dtype", "bits"), [("F8_E4M3", (4, 3)), ("F8_E5M2", (5, 2))])
def test_float8_without_scales_is_decoded_as_it_stands(tmp_path: Path, dtype: str, bits: tuple[int, int]) -> None:
    header = {"w": {"dtype": dtype, "shape": [16, 16], "data_offsets": [0, 256]}}
    opened = open_checkpoint(raw_checkpoint(tmp_path, header, bytes(range(256))))
    (weight,), _ = logical_weights(opened.tensors, opened.config)
    found = decoded(tmp_path, weight)
    assert (weight.dtype, found.dtype) == (dtype, torch.float32)
    expected = [float8(byte, *bits) for byte in range(256)]
    assert np.array_equal(found.flatten().numpy(), np.float32(expected), equal_nan=True)


def quantized_by_blocks(matrix: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales, and what they stand for, block by block."""
    rows, cols = matrix.shape
    codes, truth = torch.empty(rows, cols, dtype=torch.float8_e4m3fn), torch.empty(rows, cols)
    scales = torch.empty(-(-rows // block), -(-cols // block))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * block, i * block + block), slice(j * block, j * block + block))
            scales[i, j] = matrix[at].abs().max() / 448
            codes[at] = (matrix[at] / scales[i, j]).to(torch.float8_e4m3fn)
            truth[at] = codes[at].float() * scales[i, j]
    return codes, scales, truth


@pytest.mark.parametrize("shape", [(256, 128), (200, 300), (127, 129), (1, 1), (40, 3)])
def test_float8_with_block_scales(tmp_path: Path, shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    codes, scales, truth = quantized_by_blocks(matrix, 128)
    tensors = {"m.weight": codes, "m.weight_scale_inv": scales, "m.bias": torch.ones(shape[0])}
    found = weights(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert sorted(found) == ["m.bias", "m.weight"]
    assert (found["m.weight"].dtype, found["m.weight"].shape) == ("F8_E4M3", shape)
    assert torch.equal(decoded(tmp_path, found["m.weight"]), truth)
    assert torch.allclose(truth, matrix, rtol=0.07, atol=0.002)


def test_blocks_of_another_size_are_those_of_the_config(tmp_path: Path) -> None:
    codes, scales, truth = quantized_by_blocks(random(100, 70), 32)
    tensors = {"m.weight": codes, "m.weight_scale_inv": scales}
    found = weights(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [32, 32]})
    assert torch.equal(decoded(tmp_path, found["m.weight"]), truth)


def test_blocks_are_found_without_a_config(tmp_path: Path) -> None:
    for shape, block in [((200, 300), 128), ((64, 96), 32)]:
        codes, scales, truth = quantized_by_blocks(random(*shape), block)
        folder = tmp_path / str(block)
        found = weights(folder, {"m.weight": codes, "m.weight_scale_inv": scales})
        assert torch.equal(decoded(folder, found["m.weight"]), truth)


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1), (6,), (6, 1), (1, 10)])
@pytest.mark.parametrize("name", ["m.weight_scale", "m.scale", "m.qscale_weight", "m.weight_scale_inv"])
def test_float8_with_a_scale_a_tensor_row_or_column(tmp_path: Path, scale_shape: tuple[int, ...], name: str) -> None:
    codes, scale = random(6, 10).to(torch.float8_e5m2), random(*scale_shape, seed=1).abs().to(torch.bfloat16)
    found = weights(tmp_path, {"m.weight": codes, name: scale})
    by_row = scale.reshape(-1, 1) if scale_shape == (6,) else scale
    assert torch.equal(decoded(tmp_path, found["m.weight"]), codes.float() * by_row.float())


def test_float8_with_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    codes = random(4, 64).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[127, 120], [0, 1], [130, 127], [100, 200]], dtype=torch.uint8)
    found = weights(tmp_path, {"m.weight": codes, "m.weight_scale": exponents})
    truth = torch.tensor(
        [[float(codes[i, j]) * 2.0 ** (int(exponents[i, j // 32]) - 127) for j in range(64)] for i in range(4)]
    )
    assert torch.equal(decoded(tmp_path, found["m.weight"]), truth)


def test_a_stack_of_float8_experts_is_narrowed_with_its_scales(tmp_path: Path) -> None:
    experts = [quantized_by_blocks(random(200, 130, seed=seed), 128) for seed in range(3)]
    tensors = {
        "e.gate_up_proj": torch.stack([codes for codes, _, _ in experts]),
        "e.gate_up_proj_scale_inv": torch.stack([scales for _, scales, _ in experts]),
        "e.down_proj": random(3, 4, 6).to(torch.float8_e4m3fn),
        "e.down_proj_scale": torch.full((), 0.5),
        "e.up_proj": random(3, 4, 6, seed=5).to(torch.float8_e4m3fn),
        "e.up_proj_scale": torch.tensor([1.0, 2.0, 4.0]),
    }
    found = weights(tmp_path, tensors)
    assert found["e.gate_up_proj"].shape == (3, 200, 130)
    for index, (_, _, truth) in enumerate(experts):
        one = narrow(found["e.gate_up_proj"], index)
        assert (one.shape, one.entry.size) == ((200, 130), 200 * 130)
        assert torch.equal(decoded(tmp_path, one), truth)
        down, up = narrow(found["e.down_proj"], index), narrow(found["e.up_proj"], index)
        assert torch.equal(decoded(tmp_path, down), tensors["e.down_proj"][index].float() / 2)
        assert torch.equal(decoded(tmp_path, up), tensors["e.up_proj"][index].float() * 2**index)


def test_a_plain_stack_is_narrowed(tmp_path: Path) -> None:
    stack = random(3, 4, 5).to(torch.bfloat16)
    found = weights(tmp_path, {"e.up_proj": stack})["e.up_proj"]
    for index in range(3):
        assert torch.equal(decoded(tmp_path, narrow(found, index)), stack[index])


@pytest.mark.parametrize("index", [-1, 3])
def test_a_stack_has_no_matrix_beyond_its_ends(tmp_path: Path, index: int) -> None:
    found = weights(tmp_path, {"e.up_proj": random(3, 4, 5), "m.weight": random(4, 5)})
    with pytest.raises(ValueError, match="no matrix"):
        narrow(found["e.up_proj"], index)
    with pytest.raises(ValueError, match="no matrix"):
        narrow(found["m.weight"], 0)


def test_llm_int8_is_the_row_maximum_over_127(tmp_path: Path) -> None:
    matrix = random(5, 8)
    largest = matrix.abs().amax(dim=1)
    codes = (matrix / largest[:, None] * 127).round().to(torch.int8)
    layout = torch.tensor(0, dtype=torch.uint8)
    found = weights(tmp_path, {"m.weight": codes, "m.SCB": largest, "m.weight_format": layout})
    assert found["m.weight"].dtype == "I8"
    assert torch.allclose(decoded(tmp_path, found["m.weight"]), matrix, rtol=0, atol=float(largest.max()) / 254 * 1.01)


def test_llm_int8_that_a_kernel_rearranged_is_refused(tmp_path: Path) -> None:
    layout = torch.tensor(2, dtype=torch.uint8)
    tensors = {"m.weight": torch.ones(4, 4, dtype=torch.int8), "m.SCB": torch.ones(4), "m.weight_format": layout}
    found = weights(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="rearranged"):
        decoded(tmp_path, found["m.weight"])


def test_mxfp4_experts_are_those_of_transformers(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = random_bytes(3, 6, 2, 16), random_bytes(3, 6, 2, seed=1) // 4 + 96
    tensors = {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales, "e.gate_up_proj_bias": random(3, 6)}
    found = weights(tmp_path, tensors, {"quant_method": "mxfp4"})["e.gate_up_proj"]
    assert (found.dtype, found.shape) == ("MXFP4", (3, 6, 64))
    # transformers turns the experts for its own forward pass.
    truth = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    for expert in range(3):
        assert torch.equal(decoded(tmp_path, narrow(found, expert)), truth[expert])


def test_a_single_mxfp4_matrix(tmp_path: Path) -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    blocks, scales = random_bytes(2, 3, 16), torch.tensor([[127, 128, 126], [1, 254, 127]], dtype=torch.uint8)
    found = weights(tmp_path, {"m.w.blocks": blocks, "m.w.scales": scales})["m.w"]
    truth = np.zeros((2, 96))
    for i in range(2):
        for j in range(96):
            byte = int(blocks[i, j // 32, j % 32 // 2])
            truth[i, j] = values[byte >> 4 if j % 2 else byte & 15] * 2.0 ** (int(scales[i, j // 32]) - 127)
    with np.errstate(over="ignore"):
        assert np.array_equal(decoded(tmp_path, found).numpy(), truth.astype(np.float32))


def bit_stream(values: NDArray[np.int64], bits: int) -> torch.Tensor:
    """One column of words from one column of values, bit by bit, lowest first."""
    words = [0] * (len(values) * bits // 32)
    for position, value in enumerate(values):
        for bit in range(bits):
            if int(value) >> bit & 1:
                place = position * bits + bit
                words[place // 32] |= 1 << (place % 32)
    return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))


def gptq(
    codes: NDArray[np.int64], zeros: NDArray[np.int64], scales: torch.Tensor, bits: int, offset: int
) -> dict[str, torch.Tensor]:
    """`codes` (in, out), `zeros` and `scales` (groups, out)."""
    return {
        "m.qweight": torch.stack([bit_stream(column, bits) for column in codes.T], dim=1),
        "m.qzeros": torch.stack([bit_stream((row - offset) % 2**bits, bits) for row in zeros], dim=0),
        "m.scales": scales,
    }


def affine(
    codes: NDArray[np.int64], zeros: NDArray[np.int64], scales: torch.Tensor, group: NDArray[np.int64]
) -> torch.Tensor:
    """W[out, in], one element after the other."""
    matrix = torch.empty(codes.shape[1], codes.shape[0])
    for i in range(codes.shape[0]):
        for o in range(codes.shape[1]):
            matrix[o, i] = float(codes[i, o] - zeros[group[i], o]) * scales[group[i], o].float()
    return matrix


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("reordered", [False, True])
def test_gptq(tmp_path: Path, bits: int, form: str, reordered: bool) -> None:
    generator = np.random.default_rng(bits)
    codes, zeros = generator.integers(0, 2**bits, (96, 64)), generator.integers(0, 2**bits, (3, 64))
    zeros[0, 0], codes[0, 0], codes[1, 0] = 0, 2**bits - 1, 0
    scales = random(3, 64).to(torch.float16)
    group = generator.permutation(np.repeat(np.arange(3), 32)) if reordered else np.arange(96) // 32
    tensors = gptq(codes, zeros, scales, bits, offset=int(form == "gptq"))
    tensors["m.g_idx"] = torch.from_numpy(group.astype(np.int32))
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 32,
        "desc_act": reordered,
        "checkpoint_format": form,
    }
    found = weights(tmp_path, tensors, settings)["m.weight"]
    assert (found.dtype, found.shape) == (f"GPTQ-int{bits}", (64, 96))
    assert torch.equal(decoded(tmp_path, found), affine(codes, zeros, scales, group))


def test_gptq_needs_no_config_and_no_group_index(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codes, zeros, scales = generator.integers(0, 16, (64, 8)), generator.integers(0, 16, (2, 8)), random(2, 8)
    found = weights(tmp_path, gptq(codes, zeros, scales, 4, offset=1))["m.weight"]
    assert torch.equal(decoded(tmp_path, found), affine(codes, zeros, scales, np.arange(64) // 32))


def test_gptq_with_one_group_or_a_last_one_cut_short(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for size, groups in [(-1, 1), (64, 2)]:
        codes, zeros = generator.integers(0, 16, (80, 8)), generator.integers(0, 16, (groups, 8))
        folder, scales = tmp_path / str(groups), random(groups, 8)
        settings = {"quant_method": "gptq", "bits": 4, "group_size": size}
        found = weights(folder, gptq(codes, zeros, scales, 4, offset=1), settings)["m.weight"]
        group = np.arange(80) // (80 if size == -1 else size)
        assert torch.equal(decoded(folder, found), affine(codes, zeros, scales, group))


@pytest.mark.parametrize("wrong", [-1, 2, 2**31 - 1])
def test_a_group_that_there_is_not_is_refused(tmp_path: Path, wrong: int) -> None:
    codes, zeros = np.zeros((64, 8), dtype=np.int64), np.ones((2, 8), dtype=np.int64)
    tensors = gptq(codes, zeros, torch.ones(2, 8), 4, offset=1)
    tensors["m.g_idx"] = torch.tensor([0] * 63 + [wrong], dtype=torch.int32)
    found = weights(tmp_path, tensors)["m.weight"]
    with pytest.raises(CheckpointError, match=r"names groups from .* and there are 2"):
        decoded(tmp_path, found)


def awq_words(values: NDArray[np.int64]) -> torch.Tensor:
    words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
    for row in range(values.shape[0]):
        for word in range(words.shape[1]):
            for nibble in range(8):
                words[row, word] |= np.uint32(int(values[row, word * 8 + AWQ_ORDER[nibble]]) << (4 * nibble))
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("settings", [None, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"}])
def test_awq(tmp_path: Path, settings: Any) -> None:
    generator = np.random.default_rng(3)
    codes, zeros = generator.integers(0, 16, (48, 24)), generator.integers(0, 16, (3, 24))
    scales = random(3, 24).to(torch.float16)
    tensors = {"m.qweight": awq_words(codes), "m.qzeros": awq_words(zeros), "m.scales": scales}
    found = weights(tmp_path, tensors, settings)["m.weight"]
    assert (found.dtype, found.shape) == ("AWQ-int4", (24, 48))
    assert torch.equal(decoded(tmp_path, found), affine(codes, zeros, scales, np.arange(48) // 16))


LAYER = "model.layers.0"


def quantized_model(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """A checkpoint of one layer with a weight of every kind, and what each of them is."""
    generator = np.random.default_rng(4)
    fp8, fp8_scales, query = quantized_by_blocks(random(40, 72), 32)
    codes, zeros, scales = generator.integers(0, 16, (64, 32)), generator.integers(0, 16, (2, 32)), random(2, 32)
    int8 = torch.from_numpy(generator.integers(-127, 128, (16, 24), dtype=np.int8))
    int8_scales = random(16, 1).abs()
    tensors = {
        f"{LAYER}.self_attn.q_proj.weight": fp8,
        f"{LAYER}.self_attn.q_proj.weight_scale_inv": fp8_scales,
        **{
            name.replace("m.", f"{LAYER}.mlp.down_proj."): tensor
            for name, tensor in gptq(codes, zeros, scales, 4, offset=1).items()
        },
        f"{LAYER}.self_attn.o_proj.weight": int8,
        f"{LAYER}.self_attn.o_proj.weight_scale": int8_scales,
        f"{LAYER}.self_attn.k_proj.weight": random(8, 72).to(torch.bfloat16),
        f"{LAYER}.self_attn.v_proj.weight": torch.ones(8, 72, dtype=torch.int8),
        f"{LAYER}.input_layernorm.weight": torch.ones(72),
    }
    truth = {
        "query": query,
        "mlp_down": affine(codes, zeros, scales, np.arange(64) // 32),
        "attn_out": int8.float() * int8_scales,
        "key": tensors[f"{LAYER}.self_attn.k_proj.weight"],
    }
    config = {"quantization_config": {"weight_block_size": [32, 32], "bits": 4, "group_size": 32}}
    return checkpoint(folder, tensors, config), truth


def test_a_quantized_checkpoint_is_listed_and_read_like_any_other(tmp_path: Path) -> None:
    path, truth = quantized_model(tmp_path / "model")
    opened = open_checkpoint(path)
    inventory = list_matrices(opened)
    refs = {ref.role: ref for ref in inventory.matrices}
    assert {role: ref.dtype for role, ref in refs.items()} == {
        "query": "F8_E4M3",
        "mlp_down": "GPTQ-int4",
        "attn_out": "I8",
        "key": "BF16",
    }
    for role, ref in refs.items():
        assert torch.equal(read_matrix(opened.source, ref), truth[role])
    assert reasons(inventory) == {
        f"{LAYER}.self_attn.q_proj.weight_scale_inv": f"scales of {LAYER}.self_attn.q_proj.weight",
        f"{LAYER}.mlp.down_proj.qzeros": f"zero points of {LAYER}.mlp.down_proj.weight",
        f"{LAYER}.mlp.down_proj.scales": f"scales of {LAYER}.mlp.down_proj.weight",
        f"{LAYER}.self_attn.o_proj.weight_scale": f"scales of {LAYER}.self_attn.o_proj.weight",
        f"{LAYER}.self_attn.v_proj.weight": "I8: integers without scales",
        f"{LAYER}.input_layernorm.weight": "1-D: not a matrix",
    }


def test_the_experts_of_gpt_oss_are_listed_one_by_one_and_read_from_their_own_bytes(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    experts = f"{LAYER}.mlp.experts"
    up_blocks, up_scales = random_bytes(4, 64, 2, 16), random_bytes(4, 64, 2, seed=1) // 8 + 110
    down_blocks, down_scales = random_bytes(4, 64, 1, 16, seed=2), random_bytes(4, 64, 1, seed=3) // 8 + 110
    tensors = {
        f"{experts}.gate_up_proj_blocks": up_blocks,
        f"{experts}.gate_up_proj_scales": up_scales,
        f"{experts}.gate_up_proj_bias": torch.zeros(4, 64),
        f"{experts}.down_proj_blocks": down_blocks,
        f"{experts}.down_proj_scales": down_scales,
    }
    config = {
        "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    opened = open_checkpoint(checkpoint(tmp_path / "model", tensors, config))
    refs = {(ref.role, ref.expert): ref for ref in list_matrices(opened).matrices}
    assert set(refs) == {(role, expert) for role in ("mlp_gate", "mlp_up", "mlp_down") for expert in range(4)}
    gate_up = mxfp4.convert_moe_packed_tensors(up_blocks, up_scales, dtype=torch.float32)
    down = mxfp4.convert_moe_packed_tensors(down_blocks, down_scales, dtype=torch.float32)
    for (role, expert), ref in refs.items():
        # As in the forward pass of GptOssExperts: x @ gate_up_proj[expert], whose even columns are the gate's.
        truth = {"mlp_gate": gate_up[expert][:, ::2], "mlp_up": gate_up[expert][:, 1::2], "mlp_down": down[expert]}
        assert torch.equal(read_matrix(opened.source, ref), truth[role].T)
        assert ref.dtype == "MXFP4"
        assert ref.entry.size * 4 == tensors[ref.entry.name].numel()
