"""Fused, stacked and turned weights, where the layout is known from the model's code and the numbers are made up here."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scanner.checkpoint import Checkpoint, MatrixRef, Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.structure.layouts import MAX_EXPERTS

from ..writing import checkpoint, info, raw_checkpoint, reasons

Config = dict[str, Any]

BLOCK = "model.layers.0."
GROUPED = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}


def numbers(*shape: int) -> torch.Tensor:
    """Distinct numbers, so that no two rows or columns can be taken for one another."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def stored(folder: Path, name: str, weight: torch.Tensor, config: Config | None = None) -> Checkpoint:
    return open_checkpoint(checkpoint(folder, {name: weight}, config))


def parts(opened: Checkpoint, heads: bool = False) -> dict[tuple[str, int | None], torch.Tensor]:
    refs = list_matrices(opened, Selection(heads=heads)).matrices
    found = {(ref.role, ref.head if heads else ref.expert): read_matrix(opened.source, ref) for ref in refs}
    assert len(found) == len(refs)
    return found


def sources(opened: Checkpoint) -> Counter[tuple[str, str]]:
    return Counter((ref.role, ref.role_source) for ref in list_matrices(opened).matrices)


WHOLE = Counter({("other", "fused"): 1})

# name, config, rows, cols, and which of the rows belong to query, key and value: by view(), as the model code does it.
PACKED = {
    "internlm 2": (
        "model.layers.0.attention.wqkv.weight",
        GROUPED | {"model_type": "internlm2"},
        lambda w: [part.reshape(-1, 24) for part in w.view(2, 5, 4, 24).split([3, 1, 1], dim=1)],
        40,
    ),
    "chatglm 2": (
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
        {"model_type": "chatglm", "hidden_size": 24, "num_attention_heads": 6, "kv_channels": 5}
        | {"multi_query_attention": True, "multi_query_group_num": 2},
        lambda w: w.split([30, 10, 10]),
        50,
    ),
    "chatglm 1": (
        "transformer.layers.0.attention.query_key_value.weight",
        {"model_type": "chatglm", "hidden_size": 24, "num_attention_heads": 6},
        lambda w: [part.reshape(24, 24) for part in w.view(6, 12, 24).split(4, dim=1)],
        72,
    ),
    "baichuan": (
        f"{BLOCK}self_attn.W_pack.weight",
        {"model_type": "baichuan", "hidden_size": 24, "num_attention_heads": 6},
        lambda w: w.view(3, 24, 24),
        72,
    ),
    "qwen 1": (
        "transformer.h.0.attn.c_attn.weight",
        {"model_type": "qwen", "hidden_size": 24, "num_attention_heads": 6, "kv_channels": 4},
        lambda w: w.view(3, 24, 24),
        72,
    ),
    "qwen 1 sees": (
        "transformer.visual.transformer.resblocks.0.attn.in_proj.weight",
        {"model_type": "qwen", "hidden_size": 48, "num_attention_heads": 4, "visual": {"width": 24, "heads": 6}},
        lambda w: [part.reshape(24, 24) for part in w.view(6, 12, 24).split(4, dim=1)],
        72,
    ),
    "qwen 2 sees": (
        "visual.blocks.0.attn.qkv.weight",
        {"model_type": "qwen2_vl", "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
        | {"vision_config": {"model_type": "qwen2_vl", "embed_dim": 24, "num_heads": 4, "hidden_size": 48}},
        lambda w: w.view(3, 24, 24),
        72,
    ),
    "timm, without a config": ("blocks.0.attn.qkv.weight", None, lambda w: w.view(3, 24, 24), 72),
    "a stage of hiera": ("blocks.0.attn.qkv.weight", {"model_type": "hiera"}, lambda w: w.view(3, 48, 24), 144),
    "exaone 4.5 sees": (
        "model.visual.blocks.0.attn.qkv.weight",
        {"model_type": "exaone4_5", "vision_config": GROUPED},
        lambda w: w.split([24, 8, 8]),
        40,
    ),
    "an unknown model whose config is clear": (
        f"{BLOCK}self_attn.qkv_proj.weight",
        GROUPED | {"model_type": "brandnew"},
        lambda w: w.split([24, 8, 8]),
        40,
    ),
    "openelm, whose layers differ": (
        "transformer.layers.1.attn.qkv_proj.weight",
        {"model_type": "openelm", "model_dim": 24, "head_dim": 5, "num_query_heads": [6, 4], "num_kv_heads": [3, 2]},
        lambda w: w.split([20, 10, 10]),
        40,
    ),
    "mpt with grouped queries": (
        "transformer.blocks.0.attn.Wqkv.weight",
        {"model_type": "mpt", "d_model": 24, "n_heads": 6, "attn_config": {"kv_n_heads": 2}},
        lambda w: w.split([24, 8, 8]),
        40,
    ),
    "falcon before it was called falcon": (
        "transformer.h.0.self_attention.query_key_value.weight",
        {"model_type": "RefinedWeb", "hidden_size": 24, "n_head": 6, "n_head_kv": 2},
        lambda w: [part.reshape(-1, 24) for part in w.view(2, 5, 4, 24).split([3, 1, 1], dim=1)],
        40,
    ),
    "the smaller falcon before": (
        "transformer.h.0.self_attention.query_key_value.weight",
        {"model_type": "RefinedWebModel", "hidden_size": 24, "n_head": 6, "multi_query": True},
        lambda w: w.split([24, 4, 4]),
        32,
    ),
    "deberta": (
        "deberta.encoder.layer.0.attention.self.in_proj.weight",
        {"model_type": "deberta", "hidden_size": 24, "num_attention_heads": 6},
        lambda w: [part.reshape(24, 24) for part in w.view(6, 12, 24).split(4, dim=1)],
        72,
    ),
    "in gguf, whatever it was before": (
        "blk.0.attn_qkv.weight",
        GROUPED | {"model_type": "phi3"},
        lambda w: w.split([24, 8, 8]),
        40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", PACKED)
def test_query_key_and_value_are_taken_out_of_one_weight(tmp_path: Path, model: str) -> None:
    name, config, split, row_count = PACKED[model]
    weight = numbers(row_count, 24)
    opened = stored(tmp_path, name, weight, config)
    if name.startswith("blk."):
        opened = dataclasses.replace(opened, format="gguf")
    assert sources(opened) == Counter([("query", "split"), ("key", "split"), ("value", "split")])
    for role, expected in zip(("query", "key", "value"), split(weight), strict=True):
        assert torch.equal(parts(opened)[role, None], expected), role


def test_in_proj_weight_is_packed_as_torch_packs_it(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(24, 6, bias=False)
    opened = stored(
        tmp_path, "visual.transformer.resblocks.0.attn.in_proj_weight", attention.in_proj_weight.detach().clone()
    )
    found = parts(opened)
    hidden, other, third = torch.randn(3, 5, 24)
    separate = nn.MultiheadAttention(24, 6, bias=False, kdim=24, vdim=24)
    separate._qkv_same_embed_dim = False
    separate.in_proj_weight = None  # type: ignore[assignment]
    for role in ("query", "key", "value"):
        setattr(separate, f"{role[0]}_proj_weight", nn.Parameter(found[role, None]))
    separate.out_proj = attention.out_proj
    torch.testing.assert_close(separate(hidden, other, third), attention(hidden, other, third))


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        (f"{BLOCK}self_attn.qkv_proj.weight", None, (72, 24)),
        (f"{BLOCK}self_attn.qkv_proj.weight", {"model_type": "phi3"}, (72, 24)),
        (f"{BLOCK}self_attn.query_key_value.weight", GROUPED | {"model_type": "brandnew"}, (40, 24)),
        ("transformer.h.0.attn.c_attn.weight", GROUPED | {"model_type": "brandnew"}, (72, 24)),
        ("transformer.h.0.attn.c_attn.weight", None, (24, 72)),
        (f"{BLOCK}attention.wqkv.weight", GROUPED | {"model_type": "brandnew"}, (40, 24)),
        (f"{BLOCK}self_attn.kv_b_proj.weight", GROUPED | {"model_type": "deepseek_v3"}, (40, 24)),
        ("transformer.h.0.attn.qkv_proj.weight", {"model_type": "codegen"}, (78, 26)),
        (f"{BLOCK}linear_attn.in_proj_qkvz.weight", GROUPED | {"model_type": "qwen3_next"}, (40, 24)),
        (f"{BLOCK}mlp.gate_up_proj.weight", None, (41, 24)),
    ],
)
def test_what_nobody_can_take_apart_stays_whole(
    tmp_path: Path, name: str, config: Config | None, shape: tuple[int, int]
) -> None:
    opened = stored(tmp_path, name, numbers(*shape), config)
    assert sources(opened) == WHOLE
    assert torch.equal(parts(opened)["other", None], numbers(*shape))


LIES = [
    ("phi3", f"{BLOCK}self_attn.qkv_proj.weight", (40, 24), GROUPED),
    ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", (72, 24), GROUPED),
    ("bloom", "h.0.self_attention.query_key_value.weight", (72, 24), {"hidden_size": 24, "n_head": 6}),
    (
        "falcon",
        "h.0.self_attention.query_key_value.weight",
        (40, 24),
        {"hidden_size": 24, "num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    ("falcon", "h.0.self_attention.query_key_value.weight", (32, 24), {"hidden_size": 24, "num_attention_heads": 6}),
    ("internlm2", f"{BLOCK}attention.wqkv.weight", (40, 24), GROUPED),
    ("gpt_bigcode", "h.0.attn.c_attn.weight", (32, 24), {"n_embd": 24, "n_head": 6}),
    (
        "deepseek_v3",
        f"{BLOCK}self_attn.kv_b_proj.weight",
        (60, 24),
        {"hidden_size": 24, "num_attention_heads": 6, "qk_nope_head_dim": 6, "qk_rope_head_dim": 2, "v_head_dim": 4},
    ),
    ("mpt", "blocks.0.attn.Wqkv.weight", (40, 24), {"d_model": 24, "n_heads": 6, "attn_config": {"kv_n_heads": 2}}),
]


@pytest.mark.parametrize(("model_type", "name", "shape", "config"), LIES)
def test_a_config_that_lies_about_heads_takes_nothing_apart(
    tmp_path: Path, model_type: str, name: str, shape: tuple[int, int], config: Config
) -> None:
    honest = config | {"model_type": model_type}
    assert sources(stored(tmp_path / "honest", name, numbers(*shape), honest)) != WHOLE
    heads = next(key for key in ("num_attention_heads", "n_head", "n_heads") if key in config)
    for number, lie in enumerate((5, 7, 10**9, 0, -6, "6", None, [[6]], {"6": 6}, True, 6.0, 2**70)):
        opened = stored(tmp_path / str(number), name, numbers(*shape), honest | {heads: lie})
        assert sources(opened) == WHOLE, lie
        assert list_matrices(opened, Selection(heads=True)).matrices == ()


def test_a_config_that_lies_about_layers_changes_nothing(tmp_path: Path) -> None:
    name = "model.layers.7.self_attn.qkv_proj.weight"
    for number, lie in enumerate((8, 1, 0, -1, 10**12, "many", None, [1, 2])):
        config = GROUPED | {"model_type": "phi3", "num_hidden_layers": lie, "layer_types": lie}
        refs = list_matrices(stored(tmp_path / str(number), name, numbers(40, 24), config)).matrices
        assert [(ref.layer, ref.role, ref.rows) for ref in refs] == [(7, "query", 24), (7, "key", 8), (7, "value", 8)]


NAMES = (
    "h.0.attn.c_attn.weight",
    "h.0.attn.c_proj.weight",
    "h.0.self_attention.query_key_value.weight",
    f"{BLOCK}self_attn.qkv_proj.weight",
    f"{BLOCK}self_attn.q_proj.weight",
    f"{BLOCK}self_attn.kv_b_proj.weight",
    f"{BLOCK}attention.wqkv.weight",
    f"{BLOCK}attn.Wqkv.weight",
    f"{BLOCK}mlp.gate_up_proj.weight",
    f"{BLOCK}mlp.experts.gate_up_proj",
    f"{BLOCK}mlp.experts.down_proj",
    "transformer.blocks.0.ffn.experts.mlp.w2",
    "vision_tower.blocks.0.attn.in_proj_weight",
    "blk.0.attn_qkv.weight",
    "blk.0.attn_k_b.weight",
    "blk.0.attn_v_b.weight",
    "blk.0.attn_q.weight",
    "blk.0.ffn_gate_up_exps.weight",
)
TYPES = (
    "gpt2 gpt_neox falcon phi3 internlm2 gpt_bigcode codegen mpt deepseek_v3 gpt_oss llama4_text dbrx llama qwen3_next x"
).split()
VALUES = st.one_of(
    st.integers(-1, 8), st.sampled_from([None, True, "3", 2**70, [1, 2], {"num_heads": 2}, 0.5, {"model_type": "gpt2"}])
)
KEYS = st.sampled_from(
    "hidden_size num_attention_heads num_key_value_heads head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim multi_query "
    "new_decoder_architecture intermediate_size moe_num_experts ffn_config attn_config text_config vision_config gguf "
    "model_type architectures quantization_config".split()
)


@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    model_type=st.sampled_from(TYPES),
    claims=st.dictionaries(KEYS, VALUES, max_size=6),
    heads=st.booleans(),
)
def test_whatever_a_config_claims_every_row_is_in_one_matrix(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    shape: list[int],
    model_type: str,
    claims: Config,
    heads: bool,
) -> None:
    weight = numbers(*shape)
    folder = tmp_path_factory.getbasetemp() / "claims"
    opened = stored(folder, name, weight, {"model_type": model_type} | claims)
    opened = dataclasses.replace(opened, format="gguf" if name.startswith("blk.") else "safetensors")
    whole = list_matrices(opened)
    inventory = list_matrices(opened, Selection(heads=heads))
    for listed in (whole, inventory):
        assert {ref.tensor for ref in listed.matrices} | set(reasons(listed)) == {name}
        assert not (listed.matrices and listed.skipped)
        assert len({ref.key for ref in listed.matrices}) == len(listed.matrices)
    found = [read_matrix(opened.source, ref) for ref in inventory.matrices]
    assert [tuple(matrix.shape) for matrix in found] == [(ref.rows, ref.cols) for ref in inventory.matrices]
    entries = [entry for ref in whole.matrices for entry in read_matrix(opened.source, ref).flatten().tolist()]
    assert sorted(entries) == (sorted(weight.flatten().tolist()) if whole.matrices else [])


def test_a_gpt2_that_was_saved_with_linear_layers_is_not_turned(tmp_path: Path) -> None:
    weights = {
        "h.0.attn.c_attn.weight": numbers(72, 24),
        "h.0.attn.c_proj.weight": numbers(24, 24),
        "h.0.mlp.c_fc.weight": numbers(40, 24),
    }
    config = {"model_type": "gpt2", "n_embd": 24, "n_head": 3}
    opened = open_checkpoint(checkpoint(tmp_path, weights, config))
    assert not any(ref.transposed for ref in list_matrices(opened).matrices)
    assert torch.equal(parts(opened)["key", None], numbers(72, 24)[24:48])


def test_a_decoder_inside_another_model_is_turned_by_its_own_type(tmp_path: Path) -> None:
    config = {
        "model_type": "vision-encoder-decoder",
        "encoder": {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3},
        "decoder": {"model_type": "gpt2", "n_embd": 24, "n_head": 3},
    }
    weights = {
        "decoder.transformer.h.0.mlp.c_fc.weight": numbers(24, 24),
        "encoder.encoder.layer.0.intermediate.dense.weight": numbers(24, 24),
    }
    refs = list_matrices(open_checkpoint(checkpoint(tmp_path, weights, config))).matrices
    assert {(ref.stack, ref.role, ref.transposed) for ref in refs} == {
        ("decoder", "mlp_up", True),
        ("encoder", "mlp_up", False),
    }


def test_square_matrices_are_turned_for_a_known_model_type_only(tmp_path: Path) -> None:
    name = "h.0.attn.c_proj.weight"
    for model_type, turned in (("gpt2", True), ("gpt_bigcode", False), ("brandnew", False)):
        opened = stored(tmp_path / model_type, name, numbers(24, 24), {"model_type": model_type})
        assert torch.equal(parts(opened)["attn_out", None], numbers(24, 24).T) is turned


STACKS = [
    # name, model type, stored shape, turned
    ("mlp.experts.gate_up_proj", "qwen3_vl_moe_text", (3, 24, 20), True),
    ("mlp.experts.gate_up_proj", "qwen3_vl_moe_text", (3, 20, 24), False),
    ("mlp.experts.gate_up_proj", "qwen3_vl_moe_text", (3, 24, 24), True),
    ("mlp.experts.gate_up_proj", "brandnew", (3, 24, 24), False),
    ("mlp.experts.gate_up_proj", "brandnew", (3, 24, 20), True),
    ("mlp.experts.down_proj", "llama4_text", (3, 10, 24), True),
    ("mlp.experts.down_proj", "llama4_text", (3, 24, 10), False),
    ("mlp.experts.down_proj", "llama4_text", (3, 24, 24), True),
    ("mlp.experts.down_proj", "mixtral", (3, 24, 24), False),
    ("moe.up_proj.weight", "step3p5", (3, 10, 24), False),
    ("block_sparse_moe.output_linear.weight", "granitemoe", (3, 24, 10), False),
]


@pytest.mark.parametrize(("tail", "model_type", "shape", "turned"), STACKS)
def test_experts_lie_as_their_width_says_and_as_their_model_type_says_where_both_sides_are_as_wide(
    tmp_path: Path, tail: str, model_type: str, shape: tuple[int, int, int], turned: bool
) -> None:
    weight = numbers(*shape)
    opened = stored(tmp_path, f"{BLOCK}{tail}", weight, {"model_type": model_type, "hidden_size": 24})
    for (role, expert), matrix in parts(opened).items():
        assert expert is not None
        whole = weight[expert].T if turned else weight[expert]
        halves = dict(zip(("mlp_gate", "mlp_up"), whole.chunk(2), strict=True))
        assert torch.equal(matrix, halves[role] if "gate_up" in tail else whole)


def test_experts_of_a_model_whose_width_is_not_the_configs_stay_whole(tmp_path: Path) -> None:
    name = f"{BLOCK}mlp.experts.gate_up_proj"
    for number, config in enumerate(({"model_type": "gpt_oss", "hidden_size": 99}, None)):
        opened = stored(tmp_path / str(number), name, numbers(3, 24, 20), config)
        assert sources(opened) == {("other", "fused"): 3}


def test_experts_in_four_bits_lie_as_they_are_packed(tmp_path: Path) -> None:
    """gpt-oss as published: a down projection is square, and stored the other way round than in 16 bits."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{BLOCK}mlp.experts.{part}_{kind}": torch.randint(100, 140, shape, generator=generator, dtype=torch.uint8)
        for part, row_count in (("gate_up_proj", 128), ("down_proj", 64))
        for kind, shape in (("blocks", (3, row_count, 2, 16)), ("scales", (3, row_count, 2)))
    }
    config = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 64}
    opened = open_checkpoint(checkpoint(tmp_path, weights, config))
    found = parts(opened)
    assert Counter(role for role, _ in found) == {"mlp_gate": 3, "mlp_up": 3, "mlp_down": 3}
    prefix = f"{BLOCK}mlp.experts."
    gate_up, down = (
        convert_moe_packed_tensors(weights[f"{prefix}{part}_blocks"], weights[f"{prefix}{part}_scales"]).float()
        for part in ("gate_up_proj", "down_proj")
    )
    for expert in range(3):  # transformers' experts are (in, out)
        assert torch.equal(found["mlp_gate", expert], gate_up[expert].T[::2])
        assert torch.equal(found["mlp_up", expert], gate_up[expert].T[1::2])
        assert torch.equal(found["mlp_down", expert], down[expert].T)
    ref = next(ref for ref in list_matrices(opened).matrices if ref.role == "mlp_down" and ref.expert == 2)
    assert ref.entry.size == 64 * 32
    assert [entry.size for _, entry in ref.companions] == [64 * 2]


def test_biases_of_experts_are_not_matrices(tmp_path: Path) -> None:
    opened = stored(tmp_path, f"{BLOCK}mlp.experts.gate_up_proj_bias", numbers(3, 20), {"model_type": "gpt_oss"})
    assert reasons(list_matrices(opened)) == {f"{BLOCK}mlp.experts.gate_up_proj_bias": "biases: not a matrix"}


def test_a_stack_of_absurdly_many_experts_is_skipped(tmp_path: Path) -> None:
    count = MAX_EXPERTS + 1
    name = f"{BLOCK}mlp.experts.down_proj"
    opened = open_checkpoint(
        raw_checkpoint(tmp_path, {name: info("F32", (count, 1, 1), 0, 4 * count)}, bytes(4 * count))
    )
    assert reasons(list_matrices(opened))[name] == f"{count} matrices in one stack: more than any model has"


def gguf(folder: Path, weights: dict[str, torch.Tensor], config: Config) -> Checkpoint:
    # Names decide, not the container: the header of a GGUF file is tested elsewhere.
    return dataclasses.replace(open_checkpoint(checkpoint(folder, weights, config)), format="gguf")


def only(opened: Checkpoint, role: str, **place: object) -> MatrixRef:
    (found,) = [
        ref
        for ref in list_matrices(opened).matrices
        if ref.role == role and all(getattr(ref, key) == value for key, value in place.items())
    ]
    return found


def test_gguf_names_have_roles_experts_modules_and_stacks(tmp_path: Path) -> None:
    weights = {
        "blk.3.attn_q.weight": numbers(24, 24),
        "blk.3.ffn_down_exps.weight": numbers(3, 24, 10),
        "blk.3.ffn_up_shexp.weight": numbers(10, 24),
        "blk.3.ffn_gate_inp.weight": numbers(3, 24),
        "blk.3.attn_kv_a_mqa.weight": numbers(9, 24),
        "v.blk.1.attn_q.weight": numbers(12, 12),
    }
    refs = list_matrices(gguf(tmp_path, weights, GROUPED | {"model_type": "deepseek2"})).matrices
    assert Counter((ref.stack, ref.layer, ref.role, ref.expert, ref.module) for ref in refs) == Counter(
        [
            ("decoder", 3, "query", None, None),
            *(("decoder", 3, "mlp_down", expert, None) for expert in range(3)),
            ("decoder", 3, "mlp_up", None, "shared_expert"),
            ("decoder", 3, "router", None, None),
            ("decoder", 3, "key", None, "mla_a"),
            ("vision", 1, "query", None, None),
        ]
    )


def test_the_rows_of_queries_and_keys_in_gguf_are_put_back_in_order(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", "llama.attention.head_count": 6, "llama.attention.head_count_kv": 2}
    query, key = numbers(24, 24), numbers(8, 24)

    def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:  # as llama.cpp's converter does
        return weight.reshape(heads, 2, -1, 24).transpose(1, 2).reshape(weight.shape).contiguous()

    weights = {"blk.0.attn_q.weight": permuted(query, 6), "blk.0.attn_k.weight": permuted(key, 2)}
    opened = gguf(tmp_path, weights, GROUPED | {"model_type": "llama", "gguf": metadata})
    assert torch.equal(parts(opened)["query", None], query)
    assert torch.equal(parts(opened)["key", None], key)
    by_head = parts(opened, heads=True)
    assert torch.equal(torch.cat([by_head["query", head] for head in range(6)]), query)
    assert torch.equal(torch.cat([by_head["key", head] for head in range(2)]), key)


def test_fused_feed_forward_weights_in_gguf_are_taken_apart(tmp_path: Path) -> None:
    config = {"model_type": "phi3", "hidden_size": 24, "intermediate_size": 10}
    opened = gguf(tmp_path / "phi3", {"blk.0.ffn_up.weight": numbers(20, 24)}, config)
    assert torch.equal(parts(opened)["mlp_gate", None], numbers(20, 24)[:10])
    opened = gguf(tmp_path / "llama", {"blk.0.ffn_up.weight": numbers(20, 24)}, config | {"model_type": "llama"})
    assert torch.equal(parts(opened)["mlp_up", None], numbers(20, 24))


def test_the_expanded_latents_in_gguf_are_one_matrix_a_head_or_one_in_all(tmp_path: Path) -> None:
    weights = {"blk.0.attn_k_b.weight": numbers(6, 11, 7), "blk.0.attn_v_b.weight": numbers(6, 5, 11)}
    opened = gguf(tmp_path, weights, {"model_type": "deepseek2"})
    for head in range(6):
        found = read_matrix(opened.source, only(opened, "key", head=head, module="mla_b"))
        assert torch.equal(found, weights["blk.0.attn_k_b.weight"][head].T)
    found = read_matrix(opened.source, only(opened, "value", head=None, module="mla_b"))
    assert torch.equal(found, weights["blk.0.attn_v_b.weight"].reshape(30, 11))
