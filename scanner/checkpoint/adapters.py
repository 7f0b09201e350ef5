"""PEFT's LoRA adapters: what an adapter adds to its model, as weights of rank r that are never multiplied out.

Delta W = scale B A, with B (out x r) and A (r x in); scale = alpha / r, or alpha / sqrt(r) for rank-stabilised adapters.
Source: Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732 (rsLoRA); the file format is PEFT's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.descriptors import LogicalWeight, Skipped, TensorEntry
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    from scanner.checkpoint.decoding import Stored
    from scanner.rmt.decomposition import LowRank

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CODEC = "lora"

# `.default` is the adapter's name, which PEFT leaves out when it saves, but not every tool does.
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.[\w-]+)??(?:\.weight)?", re.DOTALL
)


def check_adapter(config: Mapping[str, Any], tensors: Sequence[TensorEntry]) -> None:
    """Refuse adapters whose change of the weights is not scale B A.

    Raises:
        CheckpointError: another method than LoRA, or DoRA.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{ADAPTER_CONFIG} describes an adapter of type '{printable(str(kind))}': only LORA is read; "
            "merge it into its model (PEFT's merge_and_unload) and scan that"
        )
    if config.get("use_dora") or any(".lora_magnitude_vector" in entry.name for entry in tensors):
        raise CheckpointError(
            "this is a DoRA adapter: its change depends on the base model's weights; merge it into its model "
            "(PEFT's merge_and_unload) and scan delta:BASE..MERGED"
        )


def adapter_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any]
) -> tuple[tuple[LogicalWeight, ...], tuple[Skipped, ...]]:
    """Pair the factors of an adapter; other tensors (modules saved whole) are weights as they stand.

    Returns:
        The weights, and the stored tensors that are no weight of their own: the second factors, and factors without a
        partner or with shapes that do not fit.
    """
    factors: dict[str, dict[str, TensorEntry]] = {}
    weights: list[LogicalWeight] = []
    skipped: list[Skipped] = []
    for entry in tensors:
        found = _FACTOR.fullmatch(entry.name)
        if found is None:
            weights.append(LogicalWeight(name=entry.name, shape=entry.shape, dtype=entry.dtype, entry=entry))
        else:
            factors.setdefault(found["module"], {})[found["factor"]] = entry
    for module, parts in factors.items():
        a, b = parts.get("A"), parts.get("B")
        reason = _misfit(a, b)
        if a is None or b is None or reason:
            skipped += [Skipped(tensor=entry.name, reason=reason) for entry in parts.values()]
            continue
        # Embeddings: PEFT stores A as (r x tokens) and B as (width x r); the weight itself is (tokens x width).
        settings = (("scale", _scale(config, module, a.shape[0])),)
        weights.append(
            LogicalWeight(
                name=f"{module}.weight",
                shape=(b.shape[0], a.shape[1]),
                dtype=b.dtype,
                entry=b,
                codec=CODEC,
                companions=(("A", a),),
                settings=settings,
            )
        )
        skipped.append(Skipped(tensor=a.name, reason=f"factor A of {printable(module)}"))
    return tuple(weights), tuple(skipped)


def decode_lora(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "LowRank":
    """Return scale B and A, in float64, as the factors of Delta W."""
    from scanner.rmt.decomposition import LowRank

    return LowRank(left=weight.tensor().double() * settings["scale"], right=companions["A"].tensor().double())


def _misfit(a: TensorEntry | None, b: TensorEntry | None) -> str:
    if a is None or b is None:
        return "a LoRA factor without its partner"
    if len(a.shape) != 2 or len(b.shape) != 2:
        return f"LoRA factors of shapes {a.shape} and {b.shape}: not matrices"
    if a.shape[0] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        return f"LoRA factors of shapes {a.shape} and {b.shape} cannot be multiplied"
    return ""


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r of a module, with the alpha of the first pattern in the adapter's config that fits."""
    alpha = _by_pattern(config.get("alpha_pattern"), module)
    if alpha is None:
        alpha = config.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{ADAPTER_CONFIG} gives lora_alpha as {printable(repr(alpha))}: it must be a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: object, module: str) -> Any:
    """The value of the first pattern that names the module or one of its endings.

    PEFT's patterns may be regular expressions. Those are not run here, because a stranger's expression can take for ever: only
    literal ones count.
    """
    if not isinstance(patterns, Mapping):
        return None
    for pattern, value in patterns.items():
        literal = str(pattern).lstrip("^").replace("\\.", ".")
        if module == literal or module.endswith(f".{literal}"):
            return value
    return None
