"""LoRA adapters saved by PEFT. The change of each weight is kept as two factors of rank r.

Delta W = scale B A, with B (out x r) and A (r x in); scale = alpha / r, or alpha / sqrt(r) for rank-stabilized adapters.
Source: Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732 (rsLoRA); the file format is PEFT's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.formats.format import Format, format_of
from scanner.checkpoint.model import LogicalWeight, Skipped, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.structure.module_patterns import by_pattern
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    from scanner.checkpoint.quantization.stored import Stored
    from scanner.rmt.decomposition import LowRank

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CODEC = "lora"

# Prefix that PEFT adds to the names of modules.
_WRAPPER = "base_model.model."
_USUAL_ALPHA = 8
_LARGEST_ALPHA = 1e30
# Initializations that move a part of the base weights into the factors, so that B A is not what was learned.
_MOVED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")

# `.default` is the name of the adapter. PEFT removes it when it saves; some tools do not.
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.[\w-]+)??(?:\.weight)?", re.DOTALL
)


def decode_lora(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "LowRank":
    """Return scale B (out x r) and A (r x in) in float64: the factors of Delta W."""
    from scanner.rmt.decomposition import LowRank

    return LowRank(left=weight.tensor().double() * settings["scale"], right=companions["A"].tensor().double())


class PeftAdapter(Format):
    """A folder that PEFT saved: the factors of an adapter in a safetensors or PyTorch file, and their config."""

    name = "peft"
    title = "PEFT adapter"
    config_file = ADAPTER_CONFIG
    holds_changes = True
    decoders = {CODEC: decode_lora}  # noqa: RUF012

    def claims(self, files: Files, names: Sequence[str]) -> bool:
        """Tell whether the weights files are those of an adapter."""
        return names[0] in ADAPTER_WEIGHTS and files.has(ADAPTER_CONFIG)

    def read_file(self, files: Files, name: str) -> Sequence[TensorEntry]:
        """Read the header of one file in the format that its name says."""
        container = format_of(name)
        if container is None:
            raise CheckpointError(f"{printable(name)} is in no known format: download the adapter again")
        return container.read_file(files, name)

    def check(self, config: Mapping[str, Any], tensors: Sequence[TensorEntry]) -> None:
        """Refuse adapters whose change of the weights is not scale B A."""
        check_adapter(config, tensors)

    def weights(
        self, tensors: Sequence[TensorEntry], config: Mapping[str, Any]
    ) -> tuple[tuple[LogicalWeight, ...], tuple[Skipped, ...]]:
        """Pair the factors; see `adapter_weights`."""
        return adapter_weights(tensors, config)


def check_adapter(config: Mapping[str, Any], tensors: Sequence[TensorEntry]) -> None:
    """Refuse adapters whose change of the weights is not scale B A.

    Raises:
        CheckpointError: the method is not LoRA, or a variant of LoRA with a different change of the weights.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{ADAPTER_CONFIG} describes an adapter of type '{printable(str(kind))}', but only LORA is supported: "
            "merge it into its model (PEFT's merge_and_unload) and scan that"
        )
    merge = "merge it into its model (PEFT's merge_and_unload) and scan delta:BASE..MERGED"
    if config.get("use_dora") or any(".lora_magnitude_vector" in entry.name for entry in tensors):
        raise CheckpointError(f"this is a DoRA adapter: its change depends on the base model's weights; {merge}")
    if config.get("target_parameters"):
        raise CheckpointError(
            f"this adapter changes parameters instead of modules (target_parameters), such as stacks of experts, and their "
            f"factors are packed differently: {merge}"
        )
    if config.get("use_qalora"):
        raise CheckpointError(f"this adapter pools its inputs in groups (QA-LoRA): {merge}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED_WEIGHTS):
        raise CheckpointError(
            f"this adapter was initialized by {printable(start)} with a part of the base model's weights, so its factors "
            f"are not what was learned: {merge}"
        )


def adapter_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any]
) -> tuple[tuple[LogicalWeight, ...], tuple[Skipped, ...]]:
    """Pair the factors of an adapter; other tensors (modules saved whole) are ordinary weights.

    Returns:
        The weights, and the other stored tensors: the second factors, and factors without a partner or with shapes that
        do not match.
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
    names = {module: module.removeprefix(_WRAPPER) for module in factors}
    alphas = by_pattern(config.get("alpha_pattern"), list(names.values()), "alpha_pattern")
    for module, parts in factors.items():
        a, b = parts.get("A"), parts.get("B")
        reason = _misfit(a, b)
        if a is None or b is None or reason:
            skipped += [Skipped(tensor=entry.name, reason=reason) for entry in parts.values()]
            continue
        # Embeddings: PEFT stores A as (r x tokens) and B as (width x r); the weight itself is (tokens x width).
        alpha = alphas.get(names[module], config.get("lora_alpha", _USUAL_ALPHA))
        settings = (("scale", _scale(config, alpha, a.shape[0])),)
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


def _misfit(a: TensorEntry | None, b: TensorEntry | None) -> str:
    if a is None or b is None:
        return "a LoRA factor without its partner"
    if len(a.shape) != 2 or len(b.shape) != 2:
        return f"LoRA factors of shapes {a.shape} and {b.shape}: not matrices"
    if a.shape[0] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        return f"LoRA factors of shapes {a.shape} and {b.shape} cannot be multiplied"
    return ""


def _scale(config: Mapping[str, Any], alpha: object, rank: int) -> float:
    """Return alpha / r of a module. The rank is that of the factors; the ranks in the config are not needed."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise CheckpointError(f"{ADAPTER_CONFIG} gives lora_alpha as {printable(repr(alpha))}: it must be a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
