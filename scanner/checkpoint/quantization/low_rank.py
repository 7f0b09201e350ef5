"""Factors of low-rank adapters, paired by name: the product scale B A is the change of one weight.

Delta W = scale B A, with B (out x r) and A (r x in). Source: Hu et al., arXiv 2106.09685. Names in use, X being the module:

* PEFT and diffusers: `X.lora_A.weight`, `X.lora_B.weight`, with the name of the adapter before `.weight` if there are several;
* llama.cpp: `X.weight.lora_a`, `X.weight.lora_b`, of the same shapes;
* MLX: `X.lora_a` (in x r) and `X.lora_b` (r x out), the transposes;
* kohya-ss: `X.lora_down.weight`, `X.lora_up.weight` and `X.alpha`, where the dots in X are written as underscores;
* diffusers before PEFT: `X.lora.down.weight`, `X.lora_linear_layer.down.weight`, `X_lora.down.weight`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import module_of, printable
from scanner.checkpoint.quantization.adapter_scales import LARGEST_ALPHA, Scales, adapter_scales
from scanner.checkpoint.quantization.parts import FLOATS
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    from scanner.checkpoint.quantization.stored import Stored
    from scanner.rmt.decomposition import LowRank

CODEC = "lora"

# Longer than any name in a model: limits the work for an untrusted name.
_MAX_LENGTH = 1024
_MAX_DEPTH = 32
_FACTOR = re.compile(
    r"(?P<module>.+)(?:\.lora_(?:embedding_)?(?P<factor>[ABab]|down|up)|[._]lora\d?(?:_(?:linear_)?layer)?\.(?P<older>down|up))"
    r"(?:\.(?P<adapter>.+?))??(?P<kind>\.weight|\.bias)?",
    re.DOTALL,
)
# Parameters of other methods, and of variants of LoRA whose change is more than a product.
_PARAMETER = re.compile(r"(?:lora|dora|hada|lokr|boft|oft|ia3|vera)_\w+", re.IGNORECASE)
# Names that spell LoRA in a way that no known program does: what they mean is not known, but they are no weights.
_SPELLED = re.compile(r"(?:[a-z0-9]+_)*(?:lora|loras|lora[A-Z]\w*|lora\d+)")
_OUTERMOST = re.compile(r"vera_[AB]|(?:lora_(?:unet|te\d?|transformer|prior_te|prior_unet)|lycoris)_\w+")
_WHOLE_CHANGES = frozenset({"diff", "diff_b", "alpha"})
# Low-rank layers that RWKV-7 has as weights of its own: `w_lora.lora.0.weight`.
_OWN_LAYER = "_lora.lora."
# NeMo and Megatron Bridge (`linear_qkv.adapter.linear_in.weight`), and lora of cloneofsimo (`unet:3:up`).
_OTHER_FACTORS = re.compile(
    r".*(?:\.\w*adapter\w*\.(?P<nemo>linear_in|linear_out)\.\w+|\A\w+:\d+:(?P<flat>up|down))", re.DOTALL
)
_SIDES = {"A": "A", "a": "A", "down": "A", "B": "B", "b": "B", "up": "B"}
_BASE_LAYER = ".base_layer"
_ALPHAS = FLOATS | {"I32", "I64"}

MERGE = "merge the adapter into its model and scan delta:BASE..MERGED"

_FLAT_PREFIX = re.compile(r"(?:lora|lycoris)_(?:unet|te\d?|transformer|prior_te|prior_unet)_")
_FLAT_INDEX = re.compile(r"_(\d{1,9})(?=_|\Z)")
_FLAT_OUTER = re.compile(r"_(layers\.\d)")
_FLAT_INNER = re.compile(r"(?<=\.)((?:self_|cross_)?attn\d?|encoder_attn|attention|mlp|ff)_")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The factors of one weight by one adapter, whose name is empty if the file does not give one."""

    module: str
    adapter: str
    transposed: bool

    @property
    def shown(self) -> str:
        adapter = f" (adapter '{printable(self.adapter)}')" if self.adapter else ""
        return f"{printable(self.module)}{adapter}"


def low_rank_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any], checkpoint: Sequence[TensorEntry]
) -> tuple[list[LogicalWeight], dict[str, str]]:
    """Return the changes that adapters make to weights, and why the other tensors of adapters are skipped, by name.

    A tensor in neither belongs to no adapter. A product has the name of the weight that it changes; if the file holds
    several adapters, the name of the adapter stands before `.weight`.

    Factors beside the weight that they change are skipped: what they add is not part of any stored weight, and a scan of the
    model describes its stored weights.

    Args:
        tensors: the tensors that may be factors.
        config: what is known about the checkpoint; see `adapter_scales`.
        checkpoint: all tensors of the checkpoint, with distinct names.

    Raises:
        CheckpointError: the config contradicts itself.
    """
    groups, skipped = _grouped(tensors, from_gguf="gguf" in config)
    if not groups and not skipped:
        return [], {}
    by_name = {entry.name: entry for entry in tensors}
    based = _with_base({group.module for group in groups}, checkpoint)
    more = {entry.name.partition(f".{word}")[0]: word for entry in tensors if (word := _parameter(entry.name))}
    several = len({group.adapter for group in groups}) > 1
    scales = adapter_scales(
        config,
        list(dict.fromkeys(group.module for group in groups)),
        ranks={min(a.shape, default=0) for factors in groups.values() for a in factors["A"]},
        files={entry.file for entry in tensors},
    )
    weights: list[LogicalWeight] = []
    taken = {entry.name for entry in checkpoint}
    for group, factors in groups.items():
        alpha = by_name.get(f"{group.module}.alpha")
        parts = [entry for side in factors.values() for entry in side] + ([alpha] if alpha is not None else [])
        reason = ""
        if group.module in based:
            reason = f"low-rank change of {group.shown}, not merged into it: merge it, or save the adapter alone, and scan that"
        elif group.module in more:
            what = printable(more[group.module])
            reason = f"the change of {group.shown} is more than the product of two factors ({what}): {MERGE}"
        else:
            try:
                weight = _product(group, factors, alpha, scales, several=several)
                if weight.name in taken:
                    raise CheckpointError(f"there is another tensor called {printable(weight.name)}")
            except CheckpointError as error:
                reason = str(error)
            else:
                weights.append(weight)
                taken.add(weight.name)
                for entry in parts:
                    if entry is not weight.entry:
                        what = "alpha" if entry is alpha else "factor A"
                        skipped[entry.name] = f"{what} of {group.shown}"
        if reason:
            skipped |= {entry.name: reason for entry in parts}
    return weights, skipped


def holds_factors(tensors: Sequence[TensorEntry]) -> bool:
    """Tell whether most matrices of a checkpoint are factors of adapters, without the weights that they change."""
    matrices = [entry for entry in tensors if len(entry.shape) == 2]
    found = [match for entry in matrices if (match := _matched(entry.name)) is not None]
    if 2 * len(found) <= len(matrices):
        return False
    based = _with_base({match["module"] for match in found}, tensors)
    alone = sum(match["module"] not in based for match in found)
    return 2 * alone > len(matrices)


def without_base_layer(weight: LogicalWeight, taken: set[str]) -> str:
    """Return the name of a weight in its model: PEFT moves `X.weight` to `X.base_layer.weight` beside the factors of X."""
    module, moved, last = weight.name.rpartition(f"{_BASE_LAYER}.")
    name = f"{module}.{last}"
    return name if moved and name not in taken else weight.name


def decode_low_rank(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "LowRank":
    """Return scale B (out x r) and A (r x in) in float64: the factors of Delta W.

    Args:
        weight: B, or its transpose if the settings say so.
        companions: `A` likewise; perhaps `alpha`, one number that multiplies the scale.
        settings: `scale`; perhaps `transposed`.

    Raises:
        CheckpointError: alpha is not a finite number.
    """
    from scanner.rmt.decomposition import LowRank

    scale = settings["scale"]
    if "alpha" in companions:
        alpha = float(companions["alpha"].tensor().reshape(()))
        if not abs(alpha) < LARGEST_ALPHA:
            raise CheckpointError(
                f"{printable(companions['alpha'].entry.name)} is {alpha}, which is not an alpha: save the adapter again"
            )
        scale *= alpha
    left, right = weight.tensor().double(), companions["A"].tensor().double()
    if settings.get("transposed"):
        left, right = left.T, right.T
    return LowRank(left=left * scale, right=right)


def _grouped(
    tensors: Sequence[TensorEntry], *, from_gguf: bool
) -> tuple[dict[_Group, dict[str, list[TensorEntry]]], dict[str, str]]:
    groups: dict[_Group, dict[str, list[TensorEntry]]] = defaultdict(lambda: {"A": [], "B": []})
    skipped: dict[str, str] = {}
    for entry in tensors:
        found = _matched(entry.name)
        if found is None:
            if word := _parameter(entry.name):
                skipped[entry.name] = (
                    f"parameter of an adapter ({printable(word)}) that is not a product of two factors: {MERGE}"
                )
            continue
        name = found["factor"] or found["older"]
        group = _Group(
            module=found["module"],
            adapter=found["adapter"] or "",
            transposed=name in ("a", "b") and found["kind"] is None and not from_gguf,
        )
        if found["kind"] == ".bias":
            skipped[entry.name] = f"bias of factor {_SIDES[name]} of {group.shown}: not a matrix"
        else:
            groups[group][_SIDES[name]].append(entry)
    return groups, skipped


def _with_base(modules: Set[str], tensors: Sequence[TensorEntry]) -> set[str]:
    """Return the modules in which there is a matrix that is no factor."""
    found: set[str] = set()
    for entry in tensors:
        if len(entry.shape) < 2 or len(entry.name) > _MAX_LENGTH or _of_adapter(entry.name):
            continue
        name = entry.name
        for _ in range(_MAX_DEPTH):
            if name in modules:
                found.add(name)
            name = module_of(name)
    return found


def _of_adapter(name: str) -> bool:
    return _matched(name) is not None or _parameter(name) is not None


def _parameter(name: str) -> str | None:
    """Return the component of a name that is a parameter of an adapter other than two factors, or None."""
    if _matched(name) is not None:
        return None
    first, *parts = name[:_MAX_LENGTH].split(".")
    if found := next((part for part in parts[-3:] if _PARAMETER.fullmatch(part)), None):
        return found
    if _OWN_LAYER not in name and (found := next((part for part in parts[-4:] if _SPELLED.fullmatch(part)), None)):
        return found
    if parts and _OUTERMOST.fullmatch(first) and parts[0] not in _WHOLE_CHANGES:
        return first if first.startswith("vera") else parts[0]
    other = _OTHER_FACTORS.fullmatch(name[:_MAX_LENGTH])
    return (other["nemo"] or other["flat"]) if other else None


def _matched(name: str) -> re.Match[str] | None:
    return _FACTOR.fullmatch(name) if len(name) <= _MAX_LENGTH and "lora" in name else None


def _product(
    group: _Group,
    factors: Mapping[str, Sequence[TensorEntry]],
    alpha: TensorEntry | None,
    scales: Scales,
    *,
    several: bool,
) -> LogicalWeight:
    """Describe scale B A; raise CheckpointError, with the reason to skip the factors, if there is no such product."""
    if len(factors["A"]) != 1 or len(factors["B"]) != 1:
        if not factors["A"] or not factors["B"]:
            raise CheckpointError("a LoRA factor without its partner")
        raise CheckpointError(f"several tensors are the same LoRA factor of {group.shown}")
    a, b = factors["A"][0], factors["B"][0]
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise CheckpointError(f"LoRA factors of shapes {a.shape} and {b.shape}: not matrices")
    right, left = (a.shape[::-1], b.shape[::-1]) if group.transposed else (a.shape, b.shape)
    if right[0] != left[1] or 0 in a.shape or 0 in b.shape:
        raise CheckpointError(f"LoRA factors of shapes {a.shape} and {b.shape} cannot be multiplied")
    odd = next((entry for entry in (a, b) if entry.dtype not in FLOATS), None)
    if odd is not None:
        raise CheckpointError(f"LoRA factors of dtype {printable(odd.dtype)}: {MERGE}")
    rank = right[0]
    companions = [("A", a)]
    if alpha is not None:
        if prod(alpha.shape) != 1 or alpha.dtype not in _ALPHAS:
            raise CheckpointError(f"an alpha {printable(alpha.dtype)} of shape {alpha.shape}: save the adapter again")
        companions.append(("alpha", alpha))
        settings: dict[str, int | float | str] = {"scale": 1 / rank}
    else:
        settings = {"scale": scales(group.module, rank)}
    if group.transposed:
        settings["transposed"] = 1
    stem = group.module.removesuffix(".weight")
    plain = _unflattened(stem)
    name = f"{stem}.{group.adapter}.weight" if several and group.adapter else f"{stem}.weight"
    place = f"{plain}.weight"
    return LogicalWeight(
        name=name,
        shape=(left[0], right[1]),
        dtype=b.dtype,
        entry=b,
        codec=CODEC,
        companions=tuple(companions),
        settings=tuple(settings.items()),
        place=place if place != name else "",
    )


def _unflattened(module: str) -> str:
    """Return the name of a module of which kohya-ss replaced the dots by underscores, as far as roles need it."""
    found = _FLAT_PREFIX.match(module)
    if found is None or "." in module:
        return module
    name = _FLAT_INDEX.sub(r".\1", module[found.end() :])
    name = re.sub(r"(\.\d+)_", r"\1.", name)
    return _FLAT_INNER.sub(r"\1.", _FLAT_OUTER.sub(r".\1", name))
