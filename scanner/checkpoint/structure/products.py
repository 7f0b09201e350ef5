"""Products of the projections of an attention head: W_q^T W_k (`qk`) and W_o W_v (`ov`).

Queries and keys of a head are defined up to an invertible map between them, and so are attention outputs and values: only the
products mean something. Under grouped queries, several heads share a key-value head. What the model does between queries and keys
is recorded: with rotary embeddings the product is the part of the scores that does not depend on positions, and a norm of queries
and keys acts on each of them before they meet.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.model import MatrixRef
from scanner.checkpoint.structure.heads import head_refs, is_split, misfit
from scanner.checkpoint.structure.sizes import Sizes

_FACTORS = {"qk": ("query", "key"), "ov": ("attn_out", "value")}
"""Role of a product -> roles of its factors; the first has one matrix for each head."""

# Model types with rotary embeddings whose configs may have no parameter of them.
_ROTARY_TYPES = frozenset(
    {"llama", "mistral", "gptj", "codegen", "roformer", "chatglm", "baichuan", "falcon", "RefinedWeb"}
)
_ROTARY_KEY = re.compile(r"(?:.*[._])?(?:rope|rotary)(?:[._].*)?\Z")
# Keys about latent attention, and settings that say where there are none.
_NOT_ROTARY = frozenset({"qk_rope_head_dim", "no_rope_layers", "no_rope_layer_interval"})
_HEAD_NORM = re.compile(
    r"(?:^|[._])(?:q|k|qk|query|key|attn_q|attn_k)_?(?:layer_?)?(?:norm|ln)(?:orm)?(?:\.weight|\.norms\.\d+\.weight)?\Z"
)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A whole attention projection and what the config says about its block."""

    ref: MatrixRef
    sizes: Sizes


def is_head_norm(name: str) -> bool:
    """Tell whether a tensor is the scale of a norm of queries or keys, by its name."""
    return _HEAD_NORM.search(name) is not None


def is_rotary(config: Mapping[str, Any], sizes: Sizes, layer: int | None) -> bool:
    """Tell whether a block rotates queries and keys, by parameters of rotary embeddings in its config or its model type.

    Args:
        config: the whole config, in which GGUF files have their metadata.
        sizes: what the config says about the block.
        layer: index of the block; some models list those without rotation.
    """
    section = sizes.section
    layers = section.get("no_rope_layers")  # 1: with rotary embeddings, 0: without
    if isinstance(layers, list) and layer is not None and layer < len(layers) and layers[layer] == 0:
        return False
    if section.get("alibi") is True:
        return False
    if section.get("position_embedding_type") is not None:
        return section["position_embedding_type"] in ("rope", "rotary")
    found = [value for key, value in section.items() if _ROTARY_KEY.match(key) and key not in _NOT_ROTARY]
    for metadata in config.values():  # of a GGUF file
        if isinstance(metadata, Mapping) and "general.architecture" in metadata:
            found += [value for key, value in metadata.items() if ".rope." in key]
    if any(value == 0 and type(value) is not bool for value in found):  # a dimension or share of zero
        return False
    return any(bool(value) for value in found) or (not found and sizes.is_one_of(_ROTARY_TYPES))


def products_of(
    projections: Sequence[Projection], roles: Iterable[str], config: Mapping[str, Any], normed: frozenset[object]
) -> tuple[list[MatrixRef], dict[str, str]]:
    """Return the products of all heads, and the tensors that are in none although they consist of heads, each with the reason.

    Args:
        projections: whole attention projections.
        roles: `qk`, `ov`.
        config: the config of the model.
        normed: (stack, layer) of blocks with a norm of queries or keys.
    """
    blocks: dict[object, dict[str, list[Projection]]] = {}
    for one in projections:
        if is_split(one.ref):
            place = (one.ref.stack, one.ref.layer, one.ref.module)
            blocks.setdefault(place, {}).setdefault(one.ref.role, []).append(one)
    found: list[MatrixRef] = []
    reasons: dict[str, str] = {}
    for by_role in blocks.values():
        for role in roles:
            first, second = (by_role.get(name, []) for name in _FACTORS[role])
            if len(first) != 1 or len(second) != 1:
                why = f"{role}: the block has {len(first)} {_FACTORS[role][0]} and {len(second)} {_FACTORS[role][1]}"
                reasons |= {one.ref.entry.name: why for one in (*first, *second)}
                continue
            made, why = _products(role, first[0], second[0], config, normed)
            found += made
            if why:
                reasons |= {one.ref.entry.name: why for one in (first[0], second[0])}
    return found, reasons


def _products(
    role: str, first: Projection, second: Projection, config: Mapping[str, Any], normed: frozenset[object]
) -> tuple[list[MatrixRef], str]:
    for one in (first, second):
        if one.sizes.is_latent:
            return [], f"{role}: multi-head latent attention has no keys and values of its own"
        if not head_refs(one.ref, one.sizes):
            return [], misfit(one.ref, one.sizes)
    heads, shared = head_refs(first.ref, first.sizes), head_refs(second.ref, second.sizes)
    if len(heads) % len(shared):
        return [], f"{role}: {len(heads)} heads are not a multiple of {len(shared)} key-value heads"
    width = heads[0].cols if role == "ov" else heads[0].rows
    if width != shared[0].rows:
        return [], f"{role}: heads of {width} and of {shared[0].rows} entries"
    rows = heads[0].rows if role == "ov" else heads[0].cols
    if width > min(rows, shared[0].cols):
        return [], f"{role}: heads of {width} entries are wider than the states, so there are no thin factors"
    between = None
    if role == "qk":
        ref = first.ref
        acts = ["rotary"] if is_rotary(config, first.sizes, ref.layer) and ref.module != "cross_attention" else []
        acts += ["norm"] if (ref.stack, ref.layer) in normed else []
        between = ",".join(acts) or None
    group = len(heads) // len(shared)
    return [_product(role, head, shared[index // group], rows, between) for index, head in enumerate(heads)], ""


def _product(role: str, head: MatrixRef, shared: MatrixRef, rows: int, between: str | None) -> MatrixRef:
    return MatrixRef(
        tensor=head.tensor,
        stack=head.stack,
        layer=head.layer,
        role=role,
        role_source="product",
        head=head.head,
        expert=None,
        rows=rows,
        cols=shared.cols,
        dtype=head.dtype,
        entry=head.entry,
        transposed=head.transposed,
        module=head.module,
        factors=(head, shared),
        between=between,
    )
