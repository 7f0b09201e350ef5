"""Folders that hold a LoRA adapter and its config, as PEFT and mlx_lm save them; the factors are paired elsewhere.

See `scanner.checkpoint.quantization.low_rank`, which also finds factors in files of other formats.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scanner.checkpoint.formats.format import Format, format_of, get_format
from scanner.checkpoint.model import Checkpoint, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.adapter_scales import ADAPTER_CONFIG
from scanner.checkpoint.quantization.low_rank import CODEC, decode_low_rank, holds_factors
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.sources.json_object import MAX_CONFIG_BYTES, read_json_object
from scanner.errors import CheckpointError

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MLX_NAMES = re.compile(r"(?:\d+_)?adapters\.safetensors")

# Initializations that move a part of the base weights into the factors, so that B A is not what was learned.
_MOVED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftAdapter(Format):
    """A folder that PEFT saved: the factors of an adapter in a safetensors or PyTorch file, and their config."""

    name = "peft"
    title = "PEFT adapter"
    config_file = ADAPTER_CONFIG
    holds_changes = True
    decoders = {CODEC: decode_low_rank}  # noqa: RUF012

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


class MlxAdapter(PeftAdapter):
    """A folder that mlx_lm saved: the factors of an adapter in a safetensors file, and their scale in the config."""

    name = "mlx_adapter"
    title = "MLX adapter"
    decoders = {}  # noqa: RUF012

    def claims(self, files: Files, names: Sequence[str]) -> bool:
        """Tell whether the weights files are those of an adapter: mlx_lm saves whole weights under the same name."""
        if not _MLX_NAMES.fullmatch(names[0]) or not files.has(ADAPTER_CONFIG):
            return False
        config = read_json_object(files, ADAPTER_CONFIG, max_bytes=MAX_CONFIG_BYTES)
        return "peft_type" not in config and config.get("fine_tune_type") != "full"

    def check(self, config: Mapping[str, Any], tensors: Sequence[TensorEntry]) -> None:
        """Refuse adapters whose change of the weights is not scale B A."""
        kind = config.get("fine_tune_type", "lora")
        if kind != "lora":
            raise CheckpointError(
                f"{ADAPTER_CONFIG} describes an adapter of type '{printable(str(kind))}', but only lora is supported: run "
                "`mlx_lm.fuse` and scan delta:BASE..FUSED"
            )


def is_change(checkpoint: Checkpoint) -> bool:
    """Tell whether the tensors of a checkpoint are changes to the weights of another model, as those of an adapter are."""
    return get_format(checkpoint.format).holds_changes or holds_factors(checkpoint.tensors)


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
