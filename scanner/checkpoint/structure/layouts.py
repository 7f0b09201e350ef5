"""From a weight as it is stored to its matrices: stacks of experts, fused projections and turned matrices taken apart.

Only a model's type and the shapes decide. Where they contradict each other, or where nothing says how a fused weight is
packed, it stays whole, with the role `other` and the role source `fused`; the parts of one that was taken apart have the
role source `split`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scanner.checkpoint.formats.gguf import classify_gguf, rope_permuted
from scanner.checkpoint.model import LogicalWeight, MatrixRef, TensorEntry
from scanner.checkpoint.quantization.weights import narrow
from scanner.checkpoint.structure.packings import Part, concatenated_or_thirds, gate_first, split_rows
from scanner.checkpoint.structure.roles import RoleOf, classify, module_of
from scanner.checkpoint.structure.sizes import Sizes, sizes_of
from scanner.errors import CheckpointError

MAX_EXPERTS = 2**14
"""More than any layer has: a bound on how many matrices one tensor can become."""

_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais", "clvp_decoder"})
_CONV1D_ARCHITECTURES = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer", "JAIS")
_CONV1D_TAILS = ("c_attn", "c_proj", "c_fc", "c_fc2", "q_attn")

_TURNED_STACK_TYPES = frozenset(
    "aria aria_text gpt_oss llama4 llama4_text openai_privacy_filter qwen3_vl_moe qwen3_vl_moe_text".split()
)
"""The model types whose stacks of experts are stored as (experts, in, out)."""

_TURNED_NAMES = ("mm_input_projection_weight",)
"""Ends of names outside of blocks that are (in, out) in every model: Gemma 3's projector."""

_UNTURNED_CODECS = frozenset({"awq", "float4", "gptq", "lora", "packed_integers"})
"""Codecs whose matrices are (out, in) in every model: their groups, or their low-rank factors, know inputs from outputs."""

_STACK_COMPONENTS = frozenset({"experts", "moe", "block_sparse_moe"})
_STACK_ENDINGS = (".input_linear", ".output_linear")
_ROW_STACKS = ("experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2")
"""DBRX keeps the experts of a layer one after the other in the rows of one matrix; w2 is (in, out)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the name of a weight says: `role`, `layer`, ... as in `MatrixRef`.

    `before` and `tail` are the name around its block's index. A `stack` counts something (experts, or heads) in its
    leading dimension. `packed` are the roles that a GGUF tensor has one after the other in its rows.
    """

    role: str
    source: str
    layer: int | None
    expert: int | None
    module: str | None
    before: str
    tail: str | None
    stacked: bool
    packed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """What all weights of a checkpoint share: its config, its way of naming tensors, and whether it stores matrices turned."""

    config: Mapping[str, Any]
    architecture: str | None
    is_gguf: bool
    conv1d: bool
    _sizes: dict[tuple[str, int | None], Sizes] = field(default_factory=dict, compare=False, repr=False)

    def sizes(self, place: Place) -> Sizes:
        """Return what the config says of the block that a weight is in."""
        key = (place.before, place.layer)
        if key not in self._sizes:
            # The towers in a GGUF file have a file of their own, whose metadata nobody translates.
            foreign = self.is_gguf and place.before.startswith(("v.", "a."))
            self._sizes[key] = sizes_of({} if foreign else self.config, *key)
        return self._sizes[key]


def model_of(
    config: Mapping[str, Any], architecture: str | None, is_gguf: bool, weights: Iterable[LogicalWeight]
) -> Model:
    """Return what the weights of a checkpoint have in common."""
    # A model that was rewritten with ordinary linear layers may still call itself gpt2; its widest fused weight tells.
    linear = any(
        weight.name.endswith(".c_attn.weight") and len(weight.shape) == 2 and weight.shape[0] == 3 * weight.shape[1]
        for weight in weights
    )
    named = not config.get("model_type") and (architecture or "").startswith(_CONV1D_ARCHITECTURES)
    conv1d = not is_gguf and not linear and (named or _names_conv1d(config))
    return Model(config=config, architecture=architecture, is_gguf=is_gguf, conv1d=conv1d)


def place_of(name: str, model: Model) -> Place:
    """Return what the name of a weight says."""
    if model.is_gguf:
        return _gguf_place(name)
    found = classify(name, model.architecture)
    return Place(
        role=found.role,
        source=found.source,
        layer=found.layer,
        expert=found.expert,
        module=found.module,
        before=found.before,
        tail=found.tail,
        stacked=_is_stack(found),
    )


def matrices_of(weight: LogicalWeight, place: Place, model: Model, stack: str | None) -> tuple[MatrixRef, ...]:
    """Return the matrices in a weight of two dimensions, or of three if it is stacked, none of which is empty.

    No two of them have the same role, head and expert.

    Raises:
        CheckpointError: there are more matrices in a stack than any model has, or its bytes do not divide among them.
    """
    if len(weight.shape) == 2:
        row_stack = _experts_in_rows(weight, place, model)
        if row_stack:
            return tuple(
                ref
                for expert in range(row_stack)
                for ref in _parts(_rows_of(weight, expert, row_stack), place, model, stack, expert)
            )
        return _parts(weight, replace(place, stacked=False), model, stack, place.expert)
    if place.tail == "attn_v_b":  # GGUF: (heads, out, in), which is a whole matrix but for its name
        entry = replace(weight.entry, shape=_flat(weight.entry.shape))
        return _parts(replace(weight, shape=_flat(weight.shape), entry=entry), place, model, stack, None)
    if weight.shape[0] > MAX_EXPERTS:
        raise CheckpointError(f"{weight.shape[0]} matrices in one stack: more than any model has")
    refs = [
        ref for index in range(weight.shape[0]) for ref in _parts(narrow(weight, index), place, model, stack, index)
    ]
    if place.tail == "attn_k_b":  # GGUF: (heads, in, out)
        return tuple(replace(ref, head=ref.expert, expert=None) for ref in refs)
    return tuple(refs)


def _parts(
    weight: LogicalWeight, place: Place, model: Model, stack: str | None, expert: int | None
) -> tuple[MatrixRef, ...]:
    """Turn a matrix the right way round and take its parts."""
    sizes = model.sizes(place)
    transposed = _is_turned(weight, place, model, sizes)
    rows, cols = reversed(weight.shape) if transposed else weight.shape
    whole = MatrixRef(
        tensor=weight.name,
        stack=stack,
        layer=place.layer,
        role=place.role,
        role_source=place.source,
        head=None,
        expert=expert,
        rows=rows,
        cols=cols,
        dtype=weight.dtype,
        entry=weight.entry,
        transposed=transposed,
        codec=weight.codec,
        companions=weight.companions,
        settings=weight.settings,
        rope_heads=_rope_heads(weight.name, model, rows),
        module=place.module,
    )
    parts = _split(place, model, sizes, whole)
    if parts is None:
        return (whole,)
    if not parts:
        return (replace(whole, role="other", role_source="fused"),)
    return tuple(
        replace(whole, role=part.role, role_source="split", rows=part.rows, row_pattern=part.pattern) for part in parts
    )


def _split(place: Place, model: Model, sizes: Sizes, whole: MatrixRef) -> tuple[Part, ...] | None:
    if place.packed == ("mlp_gate", "mlp_up"):
        return gate_first(sizes, whole.rows, whole.cols)
    if place.packed:
        return concatenated_or_thirds(sizes, whole.rows, whole.cols)
    if place.tail is None:
        return None if model.is_gguf else split_rows("", place.before, sizes, whole.rows, whole.cols)
    parts = split_rows(place.before, place.tail, sizes, whole.rows, whole.cols)
    if parts and place.stacked and _contradicts(whole, sizes):
        return ()
    return parts


def _contradicts(whole: MatrixRef, sizes: Sizes) -> bool:
    """Tell whether neither side of a stacked matrix is as wide as the config says: then nobody knows which way it lies."""
    return not sizes.widths or not {whole.rows, whole.cols} & set(sizes.widths)


def _is_turned(weight: LogicalWeight, place: Place, model: Model, sizes: Sizes) -> bool:
    """Tell whether a matrix is stored as (in, out)."""
    first, second = weight.shape
    if model.is_gguf:
        return place.tail == "attn_k_b"
    if place.tail is None or weight.codec in _UNTURNED_CODECS:
        return weight.name.endswith(_TURNED_NAMES) and not weight.codec
    if place.stacked and place.tail.endswith(_ROW_STACKS):
        return place.tail.endswith("w2")
    if place.stacked:
        inside = second if place.role == "mlp_down" else first
        outside = first if place.role == "mlp_down" else second
        known = (inside in sizes.widths, outside in sizes.widths)
        return known[0] if known[0] != known[1] else sizes.is_one_of(_TURNED_STACK_TYPES)
    if not model.conv1d or place.tail.rpartition(".")[2] not in _CONV1D_TAILS:
        return False
    return sizes.is_one_of(_CONV1D_TYPES) or not sizes.model_type


def _names_conv1d(config: Mapping[str, Any]) -> bool:
    """Tell whether a config, or a section of it, is of a model that stores matrices as (in, out)."""
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return any(isinstance(kind := part.get("model_type"), str) and kind in _CONV1D_TYPES for part in sections)


def _is_stack(found: RoleOf) -> bool:
    if found.tail is None or found.expert is not None:
        return False
    return not _STACK_COMPONENTS.isdisjoint(found.tail.split(".")) or found.tail.endswith(_STACK_ENDINGS)


def _experts_in_rows(weight: LogicalWeight, place: Place, model: Model) -> int | None:
    """Return how many experts a matrix holds in its rows, or None if it is of one expert."""
    if not place.stacked or place.tail is None or not place.tail.endswith(_ROW_STACKS):
        return None
    section = model.sizes(place).section
    settings = section.get("ffn_config", section)
    experts = settings.get("moe_num_experts") if isinstance(settings, Mapping) else None
    if type(experts) is not int or not 0 < experts <= MAX_EXPERTS or weight.shape[0] % experts:
        return None
    return None if weight.codec or weight.companions or weight.entry.column_major else experts


def _rows_of(weight: LogicalWeight, expert: int, experts: int) -> LogicalWeight:
    rows, cols = weight.shape[0] // experts, weight.shape[1]
    size = weight.entry.size // experts
    entry: TensorEntry = replace(weight.entry, shape=(rows, cols), start=weight.entry.start + expert * size, size=size)
    return replace(weight, shape=(rows, cols), entry=entry)


def _rope_heads(name: str, model: Model, rows: int) -> int | None:
    heads = rope_permuted(model.config, name) if model.is_gguf else None
    return heads if heads is not None and rows % (2 * heads) == 0 else None


def _gguf_place(name: str) -> Place:
    found = classify_gguf(name)
    before, _, tail = name.removesuffix(".weight").rpartition(f".{found.layer}.")
    return Place(
        role=found.role,
        source=found.source,
        layer=found.layer,
        expert=found.expert,
        module=module_of(tail),
        before=before,
        tail=None if found.layer is None else tail,
        stacked=found.experts or tail in ("attn_k_b", "attn_v_b"),
        packed=found.parts,
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] * shape[1], *shape[2:])
