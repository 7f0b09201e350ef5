"""How architectures pack several projections into the rows of one weight.

Every packing is a repeating pattern of rows: it occurs once in concatenated weights, once per head (or per group of heads
that share a key and a value) in interleaved weights, and once per pair of rows in alternating weights. The packing of each
architecture follows the forward pass of its model code; whether the sizes match the tensor is checked here.

In a gated MLP, `mlp_gate` is the half that goes through the activation and `mlp_up` the half it is multiplied with, as in
Llama, whatever the model code calls them (ModernBERT: `input` and `gate`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from scanner.checkpoint.model import RowPattern
from scanner.checkpoint.structure.role_tables import FUSED
from scanner.checkpoint.structure.sizes import Sizes

MAX_HEADS = 4096
"""More heads than any layer has: limits how many matrices one tensor can become."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the matrices in a fused weight: its role, its rows, and their number."""

    role: str
    pattern: RowPattern
    rows: int


Packing = Callable[[Sizes, int, int], tuple[Part, ...]]
"""(sizes, rows, cols) -> the parts of a matrix of that shape; empty if the sizes do not match."""


def split_rows(before: str, tail: str, sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...] | None:
    """Return the parts of a fused weight; empty if its sizes are unknown or do not match; None if the weight is not fused.

    Args:
        before: the name before the index of the block.
        tail: the name after it, without `.weight`.
        sizes: what the config says about the block.
        rows: out_features.
        cols: in_features.
    """
    optional, usual, fused = _packings(before, tail, sizes.model_type)
    for packing in optional:
        if parts := packing(sizes, rows, cols):
            return parts
    if usual is not None:
        return usual(sizes, rows, cols)
    return () if fused else None


def repeated(rows: int, *widths: tuple[str, int]) -> tuple[Part, ...]:
    """Return parts of the given widths that repeat in this order; empty if they do not fill the rows."""
    period = sum(width for _, width in widths)
    if period == 0 or rows % period:
        return ()
    offsets = [sum(width for _, width in widths[:at]) for at in range(len(widths))]
    return tuple(
        Part(
            role=role,
            pattern=RowPattern(period=period, offset=offset, width=width),
            rows=rows // period * width,
        )
        for (role, width), offset in zip(widths, offsets, strict=True)
    )


def concatenated(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """All queries, then all keys, then all values, by the sizes in the config."""
    if sizes.heads is None:
        return ()
    key_value_heads = sizes.key_value_heads or sizes.heads
    for head_dim in sizes.head_dims:
        values = key_value_heads * (sizes.value_dim or head_dim)
        widths = (("query", sizes.heads * head_dim), ("key", key_value_heads * head_dim), ("value", values))
        if sum(width for _, width in widths) == rows:
            return repeated(rows, *widths)
    return ()


def thirds(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Queries, keys and values with as many rows as columns (or twice as many, where a stage doubles the width)."""
    third = rows // 3
    return repeated(rows, ("query", third), ("key", third), ("value", third)) if rows in (3 * cols, 6 * cols) else ()


def concatenated_or_thirds(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Concatenated, or thirds if the config does not say that there are fewer keys and values than queries."""
    grouped = sizes.key_value_heads is not None and sizes.key_value_heads != sizes.heads
    return concatenated(sizes, rows, cols) or (() if grouped else thirds(sizes, rows, cols))


def _key_value_halves(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    return repeated(rows, ("key", rows // 2), ("value", rows // 2)) if rows % 2 == 0 else ()


def _cross_or_thirds(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    # Cross-attention has its queries in a separate weight, `q_attn`.
    return _key_value_halves(sizes, rows, cols) if rows == 2 * cols else thirds(sizes, rows, cols)


def _by_head(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Query, key and value of the first head, then of the second head, and so on."""
    for head_dim in sizes.head_dims:
        if sizes.heads is not None and rows == 3 * sizes.heads * head_dim:
            return repeated(rows, ("query", head_dim), ("key", head_dim), ("value", head_dim))
    return ()


def _by_group(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """The queries of the heads that share a key and a value, their key, their value, then the next group."""
    heads, groups = sizes.heads, sizes.key_value_heads or sizes.heads
    for head_dim in sizes.head_dims:
        if heads is not None and groups is not None and heads % groups == 0 and rows == (heads + 2 * groups) * head_dim:
            widths = (("query", heads // groups * head_dim), ("key", head_dim), ("value", head_dim))
            return repeated(rows, *widths)
    return ()


def _falcon(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    flag = sizes.section.get("new_decoder_architecture")
    if flag is True or (flag is None and "n_head_kv" in sizes.section):
        return _by_group(sizes, rows, cols)
    if sizes.section.get("multi_query", True) is False:
        return _by_head(sizes, rows, cols)
    for head_dim in sizes.head_dims:
        if sizes.heads is not None and rows == (sizes.heads + 2) * head_dim:
            return repeated(rows, ("query", rows - 2 * head_dim), ("key", head_dim), ("value", head_dim))
    return ()


def _bigcode(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    if sizes.section.get("multi_query", True) is False:
        return _key_value_halves(sizes, rows, cols) if rows == 2 * cols else _by_head(sizes, rows, cols)
    for head_dim in sizes.head_dims:
        if rows == cols + 2 * head_dim:
            return repeated(rows, ("query", cols), ("key", head_dim), ("value", head_dim))
    return ()


def _codegen(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Four parts, one per TPU core in training, each with queries, values and keys (in this order) of a quarter of the heads."""
    width = rows // 12
    if rows != 3 * cols or rows % 12:
        return ()
    return repeated(rows, ("query", width), ("value", width), ("key", width))


def _latent(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """The expansion of the latent in multi-head latent attention: key (without its rotary part) and value of each head."""
    key, value, heads = sizes.nope_dim, sizes.value_dim, sizes.heads
    if key is None or value is None or heads is None or rows != heads * (key + value):
        return ()
    return repeated(rows, ("key", key), ("value", value))


def _gated_query(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """For each head the query, then as many rows that gate the output of the attention."""
    for head_dim in sizes.head_dims:
        if sizes.heads is not None and rows == 2 * sizes.heads * head_dim:
            return repeated(rows, ("query", head_dim), ("other", head_dim))
    return ()


def gate_first(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Two halves; the first one goes through the activation."""
    return repeated(rows, ("mlp_gate", rows // 2), ("mlp_up", rows // 2)) if rows % 2 == 0 else ()


def up_first(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """Two halves; the second one goes through the activation."""
    return repeated(rows, ("mlp_up", rows // 2), ("mlp_gate", rows // 2)) if rows % 2 == 0 else ()


def _alternating(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    return repeated(rows, ("mlp_gate", 1), ("mlp_up", 1))


def _gate_first_if_double(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    """For names that are a single matrix in other models: only if the size in the config says that there are two."""
    return gate_first(sizes, rows, cols) if sizes.intermediate and rows == 2 * sizes.intermediate else ()


def _up_first_if_double(sizes: Sizes, rows: int, cols: int) -> tuple[Part, ...]:
    return up_first(sizes, rows, cols) if sizes.intermediate and rows == 2 * sizes.intermediate else ()


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Weights with the same packing: those whose names match, of some model types (empty: of all)."""

    name: re.Pattern[str]
    model_types: frozenset[str]
    packing: Packing

    def fits(self, before: str, tail: str, model_type: str) -> bool:
        known = not self.model_types or model_type in self.model_types
        return known and self.name.search(f"{before}.*.{tail}") is not None


def _rule(name: str, packing: Packing, model_types: str = "") -> _Rule:
    return _Rule(name=re.compile(rf"(?:^|\.)(?:{name})\Z"), model_types=frozenset(model_types.split()), packing=packing)


_OPTIONAL_RULES = (
    _rule(
        r"self_attn\.q_proj|blk\.\*\.attn_q",
        _gated_query,
        "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen4_exp qwen4_exp_text",
    ),
    _rule(r"decoder\.layers\.\*\.mlp\.fc1", _up_first_if_double, "moonshine moonshine_streaming"),
    _rule(r"blk\.\*\.ffn_up", _gate_first_if_double, "phi3 chatglm glm4 modernbert"),
)
"""Rules for names that are a single matrix in most models."""

_RULES = (
    _rule(r"(?:kv_b_proj|wkv_b|attn_kv_b)", _latent),
    _rule(
        r"query_key_value|qkv_proj",
        _by_head,
        "gpt_neox gpt_neox_japanese bloom persimmon fuyu minimax",
    ),
    _rule(r"query_key_value", _falcon, "falcon RefinedWeb RefinedWebModel"),
    _rule(r"self_attention\.query_key_value", concatenated, "chatglm"),
    _rule(r"attention\.query_key_value", _by_head, "chatglm"),
    _rule(r"(?:language|vision)_expert_query_key_value", concatenated_or_thirds, "cogvlm"),
    _rule(r"c_attn", _bigcode, "gpt_bigcode"),
    _rule(r"c_attn", _cross_or_thirds, "gpt2 openai-gpt imagegpt decision_transformer jais qwen"),
    _rule(r"visual\..*\.attn\.in_proj", _by_head, "qwen"),
    _rule(r"attention\.self\.in_proj", _by_head, "deberta"),
    _rule(r"attention\.wqkv", _by_group, "internlm2"),
    _rule(r"(?:vision_tower|vision_model|visual)\..*\.wqkv", thirds),
    _rule(r"qkv_proj", _codegen, "codegen"),
    _rule(
        r"Wqkv|W_pack|qkv_linear|att_proj",
        concatenated_or_thirds,
        "mpt modernbert modernbert-decoder baichuan bark hf_olmo layoutlmv2 nomic_bert olmo",
    ),
    _rule(r"qkv_proj|Wqkv|W_pack|qkv_linear|att_proj", concatenated),
    _rule(r"qkv|attn_qkv", concatenated_or_thirds),
    _rule(r"in_proj_weight", thirds),
    _rule(r"to_kv|kv", _key_value_halves),
    _rule(r"kv_proj", _key_value_halves, "jetmoe"),
    _rule(
        r"experts\.(?:gate_up_proj|w13_weight)", _alternating, "gpt_oss inkling inkling_mm_model inkling2 inkling2_text"
    ),
    _rule(r"w13_dn|shared_w13_weight", _alternating, "inkling inkling_mm_model inkling2 inkling2_text"),
    _rule(r"feed_forward_(?:in|out)\.gate_up_proj", up_first, "phi4_multimodal phi4_multimodal_audio"),
    _rule(r"experts\.fc1", gate_first, "aria aria_text"),
    _rule(r"mlp\.dense_h_to_4h", gate_first, "chatglm"),
    _rule(r"up_gated_layer|ff_proj", up_first),
    _rule(
        r"gate_up_proj|gated_layers|w12|w13|weights_in|(?:mlp|moe|block_sparse_moe|shared_mlp)\.input_linear|mlp\.Wi|ffn_gate_up_exps",
        gate_first,
    ),
)
"""The first matching rule counts: rules for particular model types precede the general ones."""


@lru_cache(4096)
def _packings(before: str, tail: str, model_type: str) -> tuple[tuple[Packing, ...], Packing | None, bool]:
    """Return the optional packings of a name, the usual packing, and whether the name is that of a fused weight.

    Cached, because a model has as many weights of a name as it has experts and layers.
    """
    optional = tuple(rule.packing for rule in _OPTIONAL_RULES if rule.fits(before, tail, model_type))
    usual = next((rule.packing for rule in _RULES if rule.fits(before, tail, model_type)), None)
    return optional, usual, FUSED.search(f"{before}.{{bid}}.{tail}") is not None
