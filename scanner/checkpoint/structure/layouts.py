"""From stored weights to matrices: stacks of experts and fused projections are split, transposed matrices turned.

Only the type of the model and the shapes decide. A weight whose config and shape contradict each other, or whose packing
is unknown, stays whole, with the role `other` and the role source `fused`. The parts of a weight that was split have the
role source `split`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scanner.checkpoint.model import LogicalWeight, MatrixRef, TensorEntry
from scanner.checkpoint.quantization.weights import narrow
from scanner.checkpoint.structure.packings import Part, concatenated_or_thirds, gate_first, split_rows, up_first
from scanner.checkpoint.structure.roles import RoleOf, classify, stacks
from scanner.checkpoint.structure.sizes import Sizes, sizes_of
from scanner.errors import CheckpointError

MAX_EXPERTS = 2**14
"""More experts than any layer has: limits how many matrices one tensor can become."""

_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais", "clvp_decoder"})
_CONV1D_ARCHITECTURES = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer", "JAIS")
_CONV1D_TAILS = ("c_attn", "c_proj", "c_fc", "c_fc2", "q_attn")

_TRANSPOSED_STACK_TYPES = frozenset(
    "aria aria_text gpt_oss llama4 llama4_text openai_privacy_filter qwen3_vl_moe qwen3_vl_moe_text".split()
)
"""The model types whose stacks of experts are stored as (experts, in, out)."""

_TRANSPOSED_NAMES = ("mm_input_projection_weight",)
"""Ends of names outside of blocks that are (in, out) in every model: the projector of Gemma 3."""

_UNTRANSPOSED_CODECS = frozenset({"awq", "float4", "gptq", "lora", "packed_integers"})
"""Codecs whose matrices are (out, in) in every model, because their groups or factors distinguish inputs from outputs."""

EXPERT_ROLES = frozenset({"mlp_up", "mlp_gate", "mlp_down"})
"""The roles of the matrices of an expert."""

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_STACK_COMPONENTS = frozenset({"experts", "moe", "block_sparse_moe", "switch_mlp", "switch_glu"})
_STACK_ENDINGS = (".input_linear", ".output_linear")
_NET_UP = ".net.0.proj"
_ROW_STACKS = ("experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2")
"""DBRX stores the experts of a layer one after another in the rows of one matrix; w2 is (in, out)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the name of a weight says.

    Attributes:
        role: as in `MatrixRef`, as are `source` (its `role_source`), `layer`, `expert` and `module`.
        before: the name before the index of the block.
        tail: the name after the index of the block; None outside of blocks.
        stacked: whether the leading dimension of a three-dimensional weight counts matrices.
        counts_heads: whether these matrices are attention heads instead of experts.
        flattened: whether a three-dimensional weight is one matrix, whose rows are the first two dimensions.
        packed: roles that a fused weight has one after another in its rows, if the name alone says so.
    """

    role: str
    source: str
    layer: int | None
    expert: int | None
    module: str | None
    before: str
    tail: str | None
    stacked: bool
    counts_heads: bool = False
    flattened: bool = False
    packed: tuple[str, ...] = ()


class Layout:
    """How the weights of a checkpoint are named and stored: here the conventions of transformers.

    A file format with its own conventions has a subclass (see `Format.layout`).
    """

    def __init__(self, config: Mapping[str, Any], architecture: str | None, weights: Iterable[LogicalWeight]) -> None:
        self.config = config
        self.architecture = architecture
        weights = list(weights)
        self._conv1d = _stores_conv1d(config, architecture, weights)
        self._net_widths = {
            weight.name.removesuffix("net.2.weight"): weight.shape[1]
            for weight in weights
            if weight.name.endswith(".net.2.weight") and len(weight.shape) == 2
        }
        self._sizes: dict[tuple[str, int | None], Sizes] = {}

    def place(self, name: str) -> Place:
        """Return what the name of a weight says."""
        found = classify(name, self.architecture)
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

    def place_of(self, weight: LogicalWeight) -> Place:
        """Return the same for a weight, whose shape may say that it is a stack of experts although its name does not."""
        place = self.place(weight.name_in_model)
        if place.stacked or len(weight.shape) != 3 or place.role not in EXPERT_ROLES or place.expert is not None:
            return place
        counts = {self.sizes(place).section.get(key) for key in _EXPERT_COUNTS}
        return replace(place, stacked=weight.shape[0] > 1 and weight.shape[0] in counts)

    def stacks(self, names: Iterable[str]) -> dict[str, str]:
        """Return the stack of each name; empty unless the model has blocks in several stacks."""
        return stacks(names)

    def sizes(self, place: Place) -> Sizes:
        """Return what the config says about the block that a weight is in."""
        key = (place.before, place.layer)
        if key not in self._sizes:
            self._sizes[key] = sizes_of(self.config_of(place), *key)
        return self._sizes[key]

    def config_of(self, place: Place) -> Mapping[str, Any]:
        """Return the config that describes a weight."""
        return self.config

    def split(self, whole: MatrixRef, place: Place) -> tuple[Part, ...] | None:
        """Return the parts of a fused matrix; None if it is not fused, empty if its packing is unknown."""
        sizes = self.sizes(place)
        if place.packed == ("mlp_gate", "mlp_up"):
            return gate_first(sizes, whole.rows, whole.cols)
        if place.packed:
            return concatenated_or_thirds(sizes, whole.rows, whole.cols)
        if place.tail is None:
            return self.split_outside_blocks(whole, place)
        if place.role == "mlp_up" and place.tail.endswith(_NET_UP):
            return self._split_net(whole, sizes)
        parts = split_rows(place.before, place.tail, sizes, whole.rows, whole.cols)
        if parts and place.stacked and _contradicts(whole, sizes):
            return ()
        return parts

    def _split_net(self, whole: MatrixRef, sizes: Sizes) -> tuple[Part, ...] | None:
        """Split the first layer of a feed-forward of diffusers if it is gated, which only the width of the second one says."""
        width = self._net_widths.get(whole.tensor.removesuffix("net.0.proj.weight"))
        if width == whole.rows:
            return None
        return up_first(sizes, whole.rows, whole.cols) if width is not None and whole.rows == 2 * width else ()

    def split_outside_blocks(self, whole: MatrixRef, place: Place) -> tuple[Part, ...] | None:
        """Do the same for a matrix outside of blocks."""
        return split_rows("", place.before, self.sizes(place), whole.rows, whole.cols)

    def is_transposed(self, weight: LogicalWeight, place: Place) -> bool:
        """Tell whether a matrix is stored as (in, out)."""
        first, second = weight.shape
        sizes = self.sizes(place)
        if place.tail is None or weight.codec in _UNTRANSPOSED_CODECS:
            return weight.name.endswith(_TRANSPOSED_NAMES) and not weight.codec
        if place.stacked and place.tail.endswith(_ROW_STACKS):
            return place.tail.endswith("w2")
        if place.stacked:
            inside = second if place.role == "mlp_down" else first
            outside = first if place.role == "mlp_down" else second
            known = (inside in sizes.widths, outside in sizes.widths)
            # The stacks of these types are parameters; a module's `weight`, as MLX writes it, is (out, in) in every model.
            by_type = sizes.is_one_of(_TRANSPOSED_STACK_TYPES) and not weight.name.endswith(".weight")
            return known[0] if known[0] != known[1] else by_type
        if not self._conv1d or place.tail.rpartition(".")[2] not in _CONV1D_TAILS:
            return False
        return sizes.is_one_of(_CONV1D_TYPES) or not sizes.model_type

    def rope_heads(self, name: str, rows: int) -> int | None:
        """Return in how many heads the rows of a matrix were reordered for rotary embeddings, or None if they were not."""
        return None


def matrices_of(
    weight: LogicalWeight, place: Place, layout: Layout, stack: str | None, layer: int | None
) -> tuple[MatrixRef, ...]:
    """Return the matrices in a weight of two dimensions, or of three if it is stacked; none of them is empty.

    No two of them have the same role, head and expert. Their block is `stack` and `layer`, which may differ from the index in
    the name (see `scanner.checkpoint.structure.blocks`).

    Raises:
        CheckpointError: there are more matrices in a stack than any model has, or its bytes do not divide among them.
    """
    if len(weight.shape) == 2:
        row_stack = _experts_in_rows(weight, place, layout)
        if row_stack:
            return tuple(
                ref
                for expert in range(row_stack)
                for ref in _parts(_rows_of(weight, expert, row_stack), place, layout, (stack, layer), expert)
            )
        return _parts(weight, replace(place, stacked=False), layout, (stack, layer), place.expert)
    if place.flattened:
        entry = replace(weight.entry, shape=_flat(weight.entry.shape))
        return _parts(replace(weight, shape=_flat(weight.shape), entry=entry), place, layout, (stack, layer), None)
    if weight.shape[0] > MAX_EXPERTS:
        raise CheckpointError(f"{weight.shape[0]} matrices in one stack: more than any model has")
    refs = [
        ref
        for index in range(weight.shape[0])
        for ref in _parts(narrow(weight, index), place, layout, (stack, layer), index)
    ]
    if place.counts_heads:
        return tuple(replace(ref, head=ref.expert, expert=None) for ref in refs)
    return tuple(refs)


def _parts(
    weight: LogicalWeight, place: Place, layout: Layout, block: tuple[str | None, int | None], expert: int | None
) -> tuple[MatrixRef, ...]:
    """Return the matrices in a two-dimensional weight, each as (out, in)."""
    transposed = layout.is_transposed(weight, place)
    rows, cols = reversed(weight.shape) if transposed else weight.shape
    whole = MatrixRef(
        tensor=weight.name,
        stack=block[0],
        layer=block[1],
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
        rope_heads=layout.rope_heads(weight.name_in_model, rows),
        module=place.module,
    )
    parts = layout.split(whole, place)
    if parts is None:
        return (whole,)
    if not parts:
        return (replace(whole, role="other", role_source="fused"),)
    return tuple(
        replace(whole, role=part.role, role_source="split", rows=part.rows, row_pattern=part.pattern) for part in parts
    )


def _contradicts(whole: MatrixRef, sizes: Sizes) -> bool:
    """Tell whether neither side of a stacked matrix is as wide as the config says, so that its orientation is unknown."""
    return not sizes.widths or not {whole.rows, whole.cols} & set(sizes.widths)


def _stores_conv1d(config: Mapping[str, Any], architecture: str | None, weights: Iterable[LogicalWeight]) -> bool:
    """Tell whether a model stores its projections as (in, out), as GPT-2's Conv1D does."""
    # A model that was rewritten with ordinary linear layers may still be called gpt2; its fused weight is wider than high.
    linear = any(
        weight.name.endswith(".c_attn.weight") and len(weight.shape) == 2 and weight.shape[0] == 3 * weight.shape[1]
        for weight in weights
    )
    named = not config.get("model_type") and (architecture or "").startswith(_CONV1D_ARCHITECTURES)
    return not linear and (named or _names_conv1d(config))


def _names_conv1d(config: Mapping[str, Any]) -> bool:
    """Tell whether a config, or a section of it, has the type of a model that stores matrices as (in, out)."""
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return any(isinstance(kind := part.get("model_type"), str) and kind in _CONV1D_TYPES for part in sections)


def _is_stack(found: RoleOf) -> bool:
    if found.tail is None or found.expert is not None:
        return False
    return not _STACK_COMPONENTS.isdisjoint(found.tail.split(".")) or found.tail.endswith(_STACK_ENDINGS)


def _experts_in_rows(weight: LogicalWeight, place: Place, layout: Layout) -> int | None:
    """Return how many experts a matrix holds in its rows, or None if it belongs to one expert."""
    if not place.stacked or place.tail is None or not place.tail.endswith(_ROW_STACKS):
        return None
    section = layout.sizes(place).section
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


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] * shape[1], *shape[2:])
