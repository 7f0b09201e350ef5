"""Which stored tensors make a weight, and what becomes of those that do not: headers and config only, also hostile ones."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.checkpoint.formats import decoder_of
from scanner.checkpoint.formats.gguf import Gguf
from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.quantization.stored import DTYPE_BITS, Stored
from scanner.checkpoint.quantization.weights import logical_weights, narrow
from scanner.errors import CheckpointError

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def entries(shapes: Shapes) -> list[TensorEntry]:
    found, start = [], 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * DTYPE_BITS.get(dtype, 8) // 8
        found.append(TensorEntry(name=name, dtype=dtype, shape=shape, file="model.safetensors", start=start, size=size))
        start += size
    return found


def grouped(shapes: Shapes, quantization: Any = None) -> tuple[dict[str, LogicalWeight], dict[str, str]]:
    """The weights by the name of their main tensor, and the reasons for the other tensors; every tensor once."""
    config = {} if quantization is None else {"quantization_config": quantization}
    found, skipped = logical_weights(entries(shapes), config, Gguf.codecs)
    names = [weight.entry.name for weight in found] + [entry.tensor for entry in skipped]
    assert sorted(names) == sorted(shapes)
    assert len({weight.name for weight in found}) == len(found)
    return {weight.entry.name: weight for weight in found}, {entry.tensor: entry.reason for entry in skipped}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}

GPTQ: Shapes = {
    "m.qweight": ("I32", (8, 32)),
    "m.qzeros": ("I32", (2, 4)),
    "m.scales": ("F16", (2, 32)),
    "m.g_idx": ("I32", (64,)),
}
AWQ: Shapes = {"m.qweight": ("I32", (64, 4)), "m.qzeros": ("I32", (2, 4)), "m.scales": ("F16", (2, 32))}


def test_plain_tensors_are_weights_as_they_stand() -> None:
    shapes: Shapes = {
        "model.embed_tokens.weight": ("BF16", (100, 8)),
        "model.norm.weight": ("F32", (8,)),
        "a.layer_scale": ("F16", (4, 4)),
        "logit_scale": ("F64", ()),
        "conv.weight": ("F32", (2, 3, 4, 4)),
    }
    found, skipped = grouped(shapes)
    assert not skipped
    for name, (dtype, shape) in shapes.items():
        weight = found[name]
        assert (weight.name, weight.dtype, weight.shape, weight.codec) == (name, dtype, shape, "")
        assert weight.companions == ()


def test_what_is_no_number_is_skipped() -> None:
    shapes: Shapes = {
        "codes": ("I8", (4, 4)),
        "ids": ("I64", (1, 4)),
        "bytes": ("U8", (4, 4)),
        "mask": ("BOOL", (4,)),
        "six": ("F6_E2M3", (4, 4)),
        "eighth": ("F8_E4M3FNUZ", (4, 4)),
        "blocks": ("IQ9_X\x1b[2J", (4, 4)),
        "weight": ("F32", (4, 4)),
    }
    found, skipped = grouped(shapes)
    assert list(found) == ["weight"]
    assert skipped == {
        "codes": "I8: integers without scales",
        "ids": "I64: not floating point",
        "bytes": "U8: not floating point",
        "mask": "BOOL: not floating point",
        "six": "F6_E2M3: not readable by this version",
        "eighth": "F8_E4M3FNUZ: not readable by this version",
        "blocks": "IQ9_X\\x1b[2J: not readable by this version",
    }


def test_tensors_of_gguf_are_weights_if_gguf_decodes_them() -> None:
    found, skipped = grouped({"blk.0.attn_q.weight": ("Q4_1", (64, 32)), "blk.0.attn_k.weight": ("Q8_K", (1, 256))})
    assert (found["blk.0.attn_q.weight"].codec, found["blk.0.attn_q.weight"].dtype) == ("gguf", "Q4_1")
    assert found["blk.0.attn_q.weight"].shape == (64, 32)
    assert skipped == {"blk.0.attn_k.weight": "Q8_K: not readable by this version"}


def test_companions_are_skipped_as_parts_of_their_weight() -> None:
    shapes: Shapes = {
        **GPTQ,
        "n.weight": ("F8_E4M3", (200, 300)),
        "n.weight_scale_inv": ("F32", (2, 3)),
        "n.input_scale": ("F32", ()),
        "e.down_proj_blocks": ("U8", (4, 6, 2, 16)),
        "e.down_proj_scales": ("U8", (4, 6, 2)),
    }
    found, skipped = grouped(shapes)
    assert {weight.name for weight in found.values()} == {"m.weight", "n.weight", "n.input_scale", "e.down_proj"}
    assert skipped == {
        "m.qzeros": "zero points of m.weight",
        "m.scales": "scales of m.weight",
        "m.g_idx": "group indices of m.weight",
        "n.weight_scale_inv": "scales of n.weight",
        "e.down_proj_scales": "scales of e.down_proj",
    }


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        ({"m.weight": ("F8_E4M3", (9, 9))}, FP8, "F8_E4M3: the checkpoint lacks its scales"),
        ({"m.weight": ("F8_E4M3", (256, 256)), "m.weight_scale_inv": ("F32", (2, 3))}, FP8, "do not fit a weight"),
        ({"m.weight": ("F8_E4M3", (256, 256)), "m.weight_scale_inv": ("F32", (3, 2))}, None, "do not fit a weight"),
        ({"m.weight": ("F8_E4M3", (256, 256)), "m.weight_scale_inv": ("F32", (0, 2))}, None, "do not fit a weight"),
        ({"m.weight": ("F8_E4M3", (256, 256)), "m.weight_scale_inv": ("F32", (2, 2, 1))}, None, "do not fit a weight"),
        ({"m.weight": ("F8_E4M3", (256, 256)), "m.weight_scale_inv": ("I64", (2, 2))}, None, "its scales are I64"),
        ({"m.weight": ("F8_E4M3", (8,)), "m.weight_scale": ("F32", (1,))}, None, "1-D: not a matrix"),
        ({"m.weight": ("F8_E4M3", (0, 8)), "m.weight_scale": ("F32", (1,))}, None, "0 x 8: no entries"),
        (
            {"m.weight": ("I8", (4, 4)), "m.weight_scale": ("F32", (4, 1)), "m.weight_zero_point": ("I8", (3, 1))},
            None,
            "zero points of shape (3, 1) do not fit scales of shape (4, 1)",
        ),
        (
            {"m.weight": ("F8_E4M3", (4, 4)), "m.weight_scale": ("F32", ()), "m.weight_scale_inv": ("F32", ())},
            None,
            "2 tensors hold its scales: m.weight_scale_inv and m.weight_scale",
        ),
        ({"m.weight": ("I8", (4, 4)), "m.SCB": ("F32", (5,))}, None, "do not fit a weight"),
        (
            {"m.weight": ("I8", (4, 4)), "m.SCB": ("F32", (4,)), "m.weight_format": ("U8", (999, 999))},
            None,
            "a layout U8 of shape (999, 999)",
        ),
        ({"w_blocks": ("U8", (4, 2, 16))}, None, "the checkpoint lacks its scales"),
        ({"w_blocks": ("U8", (4, 2, 16)), "w_scales": ("U8", (4, 3))}, None, "do not fit blocks"),
        ({"w_blocks": ("U8", (4, 2, 8)), "w_scales": ("U8", (4, 2))}, None, "do not fit blocks"),
        ({"m.weight_packed": ("U8", (4, 8)), "m.weight_scale": ("F8_E4M3", (4, 1))}, None, "lacks its outer scale"),
        ({"m.weight_packed": ("U8", (4, 8)), "m.weight_scale": ("F8_E4M3", (4, 2))}, None, "do not fit a weight"),
        ({"m.weight_packed": ("I32", (4, 8)), "m.weight_scale": ("F16", (4, 2))}, None, "no config_groups"),
        ({"m.weight_packed": ("I32", (4, 8))}, None, "the checkpoint lacks its scales"),
        ({"m.qweight": ("I32", (8, 32))}, None, "the checkpoint lacks its scales"),
        ({**GPTQ, "m.weight": ("F16", (32, 64))}, None, "there is another tensor called m.weight"),
        ({**GPTQ, "m.g_idx": ("I32", (63,))}, None, "group indices I32 of shape (63,) for 64 in_features"),
        ({**GPTQ, "m.qzeros": ("I32", (3, 4))}, None, "shapes that do not fit each other"),
        ({**GPTQ, "m.qzeros": ("I32", (2, 5))}, None, "shapes that do not fit each other"),
        ({**GPTQ, "m.scales": ("F16", (2, 0))}, None, "shapes that do not fit each other"),
        ({**GPTQ, "m.scales": ("F16", (2, 31))}, None, "shapes that do not fit each other"),
        ({**GPTQ, "m.scales": ("I32", (2, 32))}, None, "its scales are I32"),
        ({**GPTQ, "m.qweight": ("F16", (8, 32))}, None, "neither GPTQ nor AWQ"),
        (GPTQ, {"bits": 5}, "config.json declares 5 bits, and the shapes say 4"),
        (GPTQ, {"bits": "four"}, "bits is 'four', not a whole number"),
        (GPTQ, {"bits": True}, "bits is True, not a whole number"),
        (GPTQ, {"group_size": 0}, "config.json declares groups of 0"),
        (GPTQ, {"group_size": -32}, "config.json declares groups of -32"),
        (GPTQ, {"group_size": 16}, "config.json declares groups of 16"),
        (GPTQ, {"checkpoint_format": "marlin"}, "GPTQ format marlin is not read"),
        (GPTQ, {"checkpoint_format": ["gptq"]}, "checkpoint_format is ['gptq'], not text"),
        (GPTQ, {"quant_method": "awq"}, "config.json declares awq, and the shapes are those of gptq"),
        (GPTQ, {"quant_method": 7}, "quant_method is 7, not text"),
        (AWQ, {"quant_method": "gptq"}, "config.json declares gptq, and the shapes are those of awq"),
        (AWQ, {"version": "gemv"}, "AWQ version gemv is not read"),
        (AWQ, {"zero_point": False}, "AWQ without zero points is not read"),
        ({"m.weight": ("U8", (64, 1)), "m.weight.absmax": ("F32", (2,))}, None, "4 bits of bitsandbytes"),
        (
            {"m.weight": ("U32", (8, 4)), "m.scales": ("F16", (8, 1)), "m.biases": ("F16", (8, 1))},
            None,
            "quantized by MLX",
        ),
        ({"m.compressed": ("BF16", (8, 4)), "m.bitmask": ("U8", (8, 1))}, None, "sparse weights"),
    ],
)
def test_a_weight_whose_parts_do_not_fit_is_skipped_whole(shapes: Shapes, config: Any, said: str) -> None:
    plain = {"m.weight"} if shapes.get("m.weight", ("", ()))[0] == "F16" else set()
    found, skipped = grouped(shapes, config)
    assert set(found) == plain
    main = next(name for name in shapes if name not in plain)
    assert said in skipped[main]


@pytest.mark.parametrize("blocks", [[0, 128], [-128, 128], [128], "128x128", [1.5, 2], {"a": 1}, [True, True], 5])
def test_blocks_that_are_none_are_a_reason_to_skip(blocks: Any) -> None:
    shapes: Shapes = {"m.weight": ("F8_E4M3", (200, 300)), "m.weight_scale_inv": ("F32", (2, 3))}
    found, skipped = grouped(shapes, {"quant_method": "fp8", "weight_block_size": blocks})
    assert not found
    assert "blocks are" in skipped["m.weight"]


def test_a_setting_nested_deeper_than_can_be_shown_is_a_reason_to_skip() -> None:
    deep: Any = 4
    for _ in range(5000):
        deep = [deep]
    assert "bits is [[[" in grouped(GPTQ, {"bits": deep})[1]["m.qweight"]


@pytest.mark.parametrize("method", [[], {}, 5, None, "FP8"])
def test_a_method_of_the_wrong_type_is_no_method(method: Any) -> None:
    found, skipped = grouped({"m.weight": ("F8_E4M3", (4, 4))}, {"quant_method": method})
    assert set(found) == (set() if method == "FP8" else {"m.weight"})
    assert set(skipped) == (set() if method != "FP8" else {"m.weight"})


@pytest.mark.parametrize("quantization", [[], "fp8", 3, None, {}, {"quant_method": None}, {"config_groups": [1]}])
def test_a_config_of_the_wrong_type_says_nothing(quantization: Any) -> None:
    found, _ = grouped({**GPTQ, "n.weight": ("F32", (4, 4))}, quantization)
    assert {weight.name for weight in found.values()} == {"m.weight", "n.weight"}


def test_settings_are_found_where_models_that_see_keep_them() -> None:
    shapes: Shapes = {"m.weight": ("F8_E4M3", (64, 64)), "m.weight_scale_inv": ("F32", (2, 2))}
    config = {"text_config": {"quantization_config": {"weight_block_size": [32, 32]}}}
    (weight,), _ = logical_weights(entries(shapes), config)
    assert dict(weight.settings) == {"block_rows": 32, "block_cols": 32}


@pytest.mark.parametrize(
    "name",
    ["m.weight_scale", "m.weight_scale_inv", "m.weight_zero_point", "m.SCB", "m.weight_global_scale", "m.qweight"],
)
def test_a_part_without_its_weight_is_no_matrix(name: str) -> None:
    found, skipped = grouped({name: ("BF16", (8, 4)), "n.weight": ("F32", (4, 4))})
    assert list(found) == ["n.weight"]
    assert "quantized weight" in skipped[name] or "lacks" in skipped[name]


def test_scales_of_gptq_without_their_weight_are_no_matrix() -> None:
    found, skipped = grouped({"m.scales": ("F16", (8, 4)), "m.qzeros": ("I32", (8, 1))})
    assert not found
    assert len(skipped) == 2


def test_the_modules_of_an_unknown_method_are_skipped_and_no_others() -> None:
    shapes: Shapes = {
        "model.layers.0.q_proj.W_q": ("U8", (64, 1)),
        "model.layers.0.q_proj.scale": ("F16", (8, 8)),
        "model.layers.0.q_proj.centroids.weight": ("F16", (8, 8)),
        "model.layers.0.mlp.weight": ("F16", (8, 8)),
        "model.embeddings.position_ids": ("I64", (1, 8)),
        "model.embeddings.weight": ("F16", (8, 8)),
    }
    found, skipped = grouped(shapes, {"quant_method": "hqq\x1b"})
    assert list(found) == ["model.layers.0.mlp.weight", "model.embeddings.weight"]
    assert all("quantized by hqq\\x1b, which is not decoded" in skipped[name] for name in list(shapes)[:3])


@pytest.mark.timeout(60)  # hangs if the work for one tensor grows with their number
def test_a_hundred_thousand_tensors() -> None:
    shapes: Shapes = {}
    for index in range(33_000):
        shapes |= {f"l.{index}.{name.removeprefix('m.')}": what for name, what in AWQ.items()}
    found, _ = grouped(shapes, {"quant_method": "awq", "bits": 4})
    assert len(found) == 33_000


@pytest.mark.timeout(60)  # hangs if the work for a name grows with the square of its length
def test_names_without_end() -> None:
    names = ["." * 10**6, "a." * 10**6 + "weight", "_blocks" * 10**5, "x" * 10**6 + "\n_scale_inv"]
    shapes: Shapes = dict.fromkeys(names, ("U8", (2, 2, 16)))
    for method in ("hqq", "fp8"):
        assert not grouped(shapes, {"quant_method": method})[0]


STEMS = ["m.weight", "m.experts.up", "weight"]
NAMES = [
    *(f"{stem}{end}" for stem in STEMS for end in ("", "_scale", "_scale_inv", "_scale_2", "_zero_point", "_packed")),
    *(f"{stem}{end}" for stem in STEMS for end in ("_shape", "_g_idx", "_global_scale", "_blocks", "_scales")),
    *"m.qweight m.qzeros m.scales m.g_idx m.SCB m.weight_format m.biases m.scale m.compressed m.bitmask".split(),
    *(f"m.weight.{end}" for end in ("absmax", "quant_map", "blocks", "scales")),
]
DTYPES = st.sampled_from("F32 F16 F8_E4M3 F8_E5M2 F8_E8M0 I8 U8 I32 U32 I64".split())
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64, 130]), max_size=4).map(tuple)
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, -1, 0, 1, 2, 3, 4, 5, 8, 9, 16, 32, 128, True, "int", "float", "4", [], [1, 1], [0, 2], {}]
)
SETTINGS = st.dictionaries(
    st.sampled_from("bits group_size weight_block_size dynamic version zero_point checkpoint_format".split()), VALUES
)
WEIGHTS = st.dictionaries(
    st.sampled_from("num_bits group_size symmetric type strategy block_structure".split()), VALUES
)
METHODS: st.SearchStrategy[Any] = st.sampled_from([None, "fp8", "gptq", "awq", "compressed-tensors", "hqq", 5, [], {}])


@settings(max_examples=300, deadline=None)
@given(
    shapes=st.dictionaries(st.sampled_from(NAMES), st.tuples(DTYPES, SHAPES), max_size=8),
    quantization=SETTINGS,
    method=METHODS,
    groups=st.one_of(VALUES, st.dictionaries(st.sampled_from("ab"), st.fixed_dictionaries({"weights": WEIGHTS}))),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_names_shapes_and_settings_are_accounted_for_and_decode_or_are_refused(
    shapes: Shapes, quantization: dict[str, Any], method: Any, groups: Any, seed: int
) -> None:
    found, _ = grouped(shapes, {**quantization, "quant_method": method, "config_groups": groups})
    generator = np.random.default_rng(seed)
    for weight in found.values():
        decodes_or_is_refused(weight, generator)
        if len(weight.shape) > 2 and weight.shape[0]:
            decodes_or_is_refused(narrow(weight, weight.shape[0] - 1), generator)


def decodes_or_is_refused(weight: LogicalWeight, generator: np.random.Generator) -> None:
    def stored(entry: TensorEntry) -> Stored:
        return Stored(entry=entry, content=generator.integers(0, 256, entry.size, dtype=np.uint8))

    if sum(entry.size for entry in (weight.entry, *(entry for _, entry in weight.companions))) > 2**20:
        return
    companions = {kind: stored(entry) for kind, entry in weight.companions}
    try:
        found = decoder_of(weight.codec)(stored(weight.entry), companions, dict(weight.settings))
    except CheckpointError:
        return
    assert tuple(found.shape) == weight.shape
    assert found.is_floating_point()


CT_GROUP = {"num_bits": 4, "group_size": 32, "symmetric": False, "type": "int"}
SOUND: list[tuple[dict[str, Any], Shapes]] = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 32}, GPTQ),
    ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, AWQ),
    (FP8, {"m.weight": ("F8_E5M2", (130, 9)), "m.weight_scale_inv": ("F32", (2, 1))}),
    (FP8, {"e.up": ("F8_E4M3", (3, 130, 9)), "e.up_scale_inv": ("F8_E8M0", (3, 2, 1))}),
    ({"quant_method": "mxfp4"}, {"e.up_blocks": ("U8", (3, 4, 2, 16)), "e.up_scales": ("U8", (3, 4, 2))}),
    (
        {"quant_method": "modelopt"},
        {
            "e.up": ("U8", (3, 4, 16)),
            "e.up_scale": ("F8_E4M3", (3, 4, 2)),
            "e.up_scale_2": ("F32", (3,)),
        },
    ),
    (
        {"quant_method": "bitsandbytes"},
        {"m.weight": ("I8", (4, 8)), "m.SCB": ("F32", (4,)), "m.weight_format": ("U8", ())},
    ),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": CT_GROUP}}},
        {
            "m.weight_packed": ("I32", (8, 8)),
            "m.weight_scale": ("F16", (8, 2)),
            "m.weight_zero_point": ("I32", (1, 2)),
            "m.weight_g_idx": ("I32", (64,)),
            "m.weight_shape": ("I64", (2,)),
        },
    ),
]


@pytest.mark.parametrize(("config", "shapes"), SOUND)
def test_the_examples_that_the_next_test_damages_are_sound(config: Any, shapes: Shapes) -> None:
    (weight,) = grouped(shapes, config)[0].values()
    assert weight.codec
    assert len(weight.companions) == len(shapes) - 1


@pytest.mark.parametrize(("config", "shapes"), SOUND)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_one_wrong_shape_dtype_or_setting_never_crashes(config: Any, shapes: Shapes, data: st.DataObject) -> None:
    changed = json.loads(json.dumps(config))
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(shapes)))
        shapes = {**shapes, name: data.draw(st.tuples(DTYPES, SHAPES))}
    else:
        group = changed.get("config_groups", {}).get("a", {}).get("weights", changed)
        group[data.draw(st.sampled_from(sorted(group)))] = data.draw(VALUES)
    found, _ = grouped(shapes, changed)
    for weight in found.values():
        decodes_or_is_refused(weight, np.random.default_rng(0))
