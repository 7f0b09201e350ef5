"""The scale of the product B A of an adapter: what PEFT, MLX, llama.cpp and diffusers write about it.

Every reading is a case of scale = alpha / r, or alpha / sqrt(r) for rank-stabilized adapters (Kalajdzievski, arXiv
2312.03732), except MLX's, which stores the scale itself. Adapters of kohya-ss hold alpha as a tensor, and diffusers and
kohya-ss take alpha = r if nothing is said.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from scanner.checkpoint.names import printable
from scanner.checkpoint.structure.module_patterns import by_pattern
from scanner.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

WRAPPER = "base_model.model."
"""Prefix that PEFT adds to the names of modules."""

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Key in the metadata of a safetensors file under which diffusers describes an adapter; kept in the config."""

LARGEST_ALPHA = 1e30
"""An alpha of this size or more is a fault of the file."""

_USUAL_ALPHA = 8
_DIFFUSERS_FILE = "pytorch_lora_weights."
# Other models have a `transformer` too, but none of these.
_DIFFUSERS_NAMES = re.compile(
    r"(?:diffusion_model|unet|text_encoder(?:_\d)?|controlnet|transformer(?:_\d)?\.(?:single_)?transformer_blocks)\."
)
_KOHYA_PREFIXES = ("lora_unet_", "lora_te", "lora_transformer_", "lora_prior_", "lycoris_")


Scales = Callable[[str, int], float]
"""(module, rank) -> scale of the product of the factors. Raises CheckpointError if the scale is unknown."""


def adapter_scales(
    config: Mapping[str, Any], modules: Sequence[str], *, ranks: Collection[int], files: Collection[str]
) -> Scales:
    """Return the scales of an adapter, by the first that there is: PEFT's config, MLX's, metadata of GGUF, of diffusers.

    Args:
        config: the config of the checkpoint: adapter_config.json, metadata of GGUF under `gguf`, metadata of diffusers.
        modules: the modules whose weights the adapter changes.
        ranks: the ranks of their factors.
        files: the files that hold its tensors.

    Raises:
        CheckpointError: a pattern for names of modules cannot be matched.
    """
    if "peft_type" in config:
        return _peft(config, modules)
    if isinstance(config.get("lora_parameters"), Mapping):
        return _mlx(config["lora_parameters"])
    metadata = config.get("gguf")
    if isinstance(metadata, Mapping):
        return _gguf(metadata)
    described = config.get(DIFFUSERS_METADATA)
    plain = any(file.startswith(_DIFFUSERS_FILE) for file in files)
    return _diffusers(described if isinstance(described, Mapping) else {}, ranks, plain=plain)


def _peft(config: Mapping[str, Any], modules: Sequence[str]) -> Scales:
    names = {module: module.removeprefix(WRAPPER) for module in modules}
    alphas = by_pattern(config.get("alpha_pattern"), list(dict.fromkeys(names.values())), "alpha_pattern")
    usual = config.get("lora_alpha", _USUAL_ALPHA)
    root = bool(config.get("use_rslora"))
    promised = config.get("r")

    def ratio(module: str, rank: int) -> float:
        return _ratio(alphas.get(names[module], usual), rank, f"{ADAPTER_CONFIG} gives lora_alpha as", root=root)

    def scale(module: str, rank: int) -> float:
        # PEFT could not load such factors, as it could not if they were packed for several experts.
        if type(promised) is int and promised != rank and not config.get("rank_pattern"):
            raise CheckpointError(
                f"LoRA factors of rank {rank}, where {ADAPTER_CONFIG} says r = {promised}, so that their scale is unknown: "
                "download the adapter again"
            )
        return ratio(module, rank)

    # A wrong number is an error of the adapter, not a reason to leave out one module.
    for module in modules:
        ratio(module, 1)
    return scale


def _mlx(parameters: Mapping[str, Any]) -> Scales:
    value = parameters.get("scale")
    if value is None:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} has no scale in its lora_parameters: save the adapter again with mlx_lm"
        )
    scale = _number(value, f"{ADAPTER_CONFIG} gives the scale as")
    return lambda module, rank: scale


def _gguf(metadata: Mapping[str, Any]) -> Scales:
    if metadata.get("adapter.type", "lora") != "lora":
        raise CheckpointError(
            f"the adapter is of type '{printable(str(metadata['adapter.type']))}', but only lora is supported: merge it "
            "into its model and scan that"
        )
    alpha = metadata.get("adapter.lora.alpha")

    def scale(module: str, rank: int) -> float:
        if alpha is None:
            raise CheckpointError(
                "a LoRA adapter without adapter.lora.alpha, so that its scale is unknown: convert it again"
            )
        # llama.cpp takes an alpha of zero for none, and the scale for 1.
        return _ratio(alpha, rank, "adapter.lora.alpha is") or 1.0

    return scale


def _diffusers(described: Mapping[str, Any], ranks: Collection[int], *, plain: bool) -> Scales:
    """Read keys such as `transformer.lora_alpha`, the fields of a PEFT config after the name of the part of the pipeline."""
    parts = {str(key).rpartition(".")[0] for key in described if str(key).endswith(".lora_alpha")}

    def scale(module: str, rank: int) -> float:
        part, _, inside = module.partition(".")
        if part in parts:
            fields = {
                key.partition(".")[2]: value for key, value in described.items() if str(key).startswith(f"{part}.")
            }
            return _peft(fields, [inside])(inside, rank)
        if module.startswith(_KOHYA_PREFIXES):
            return 1.0
        # With several ranks, diffusers' alpha depends on the order of the tensors.
        if (plain or _DIFFUSERS_NAMES.match(module)) and len(ranks) == 1:
            return 1.0
        raise CheckpointError(
            f"a LoRA factor without the alpha of its adapter, so that its scale is unknown: put {ADAPTER_CONFIG} beside it"
        )

    return scale


def _ratio(alpha: object, rank: int, what: str, *, root: bool = False) -> float:
    """Return alpha / r of a module, with r the rank of its factors."""
    return _number(alpha, what) / (math.sqrt(rank) if root else rank)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_ALPHA:
        raise CheckpointError(f"{what} {printable(repr(value))}: it must be a number")
    return float(value)
