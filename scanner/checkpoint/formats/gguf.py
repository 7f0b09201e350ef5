"""GGUF: its metadata as a transformers config, the roles of its tensors, and the reordered rows of queries and keys."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from scanner.checkpoint.formats.format import Format, Headers
from scanner.checkpoint.formats.gguf_blocks import CODEC, READABLE_GGUF_TYPES, decode_gguf
from scanner.checkpoint.formats.gguf_header import read_gguf_header
from scanner.checkpoint.model import LogicalWeight, MatrixRef, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.structure.layouts import Layout, Place
from scanner.checkpoint.structure.role_tables import GGUF_ROLES
from scanner.checkpoint.structure.roles import module_of
from scanner.errors import CheckpointError

METADATA_KEY = "gguf"
"""Key of a config under which the metadata of the file is kept unchanged, without those of the tokenizer."""

ROPE_PERMUTED = frozenset(
    "arcee arctic baichuan bailingmoe chameleon deci deepseek granite granitehybrid granitemoe internlm2 llada llama "
    "llama-embed minicpm mistral3 olmo smollm3 xverse".split()
)
"""The architectures whose query and key rows are reordered by the converter of llama.cpp.

These rotate adjacent rows of a head in llama.cpp and the two halves of a head in transformers.
Source: the classes of llama.cpp's conversion package whose modify_tensors calls permute (October 2026).
"""

# Model types of transformers that are not the ggml architecture with underscores for dashes.
_MODEL_TYPES = {
    "command-r": "cohere",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gptneox": "gpt_neox",
    "llama-embed": "llama",
    "llama4": "llama4_text",
    "modern-bert": "modernbert",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen2vl": "qwen2_vl",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "starcoder": "gpt_bigcode",
    "t5encoder": "t5",
}

_CONFIG_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "v_head_dim": "attention.value_length",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}
"""Key in a transformers config -> key in GGUF after the name of the architecture. Of counts that differ between layers, the
largest is used."""

_SPLIT_NAME = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
# The values of general.type of files that hold weights; a file without it is a model.
_TYPES = frozenset({"model", "adapter", "mmproj"})
_NO_MODELS = frozenset({"controlvector"})
_EXPERT = re.compile(r"(blk\.\d{1,9}\.ffn_(?:gate|up|down))\.(\d{1,9})", re.ASCII)


class Gguf(Format):
    """The format of llama.cpp: one file or numbered parts, with metadata and names of its own."""

    name = "gguf"
    title = "GGUF"
    suffixes = (".gguf",)
    codecs = dict.fromkeys(READABLE_GGUF_TYPES, CODEC)
    decoders = {CODEC: decode_gguf}  # noqa: RUF012

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of all parts of the model that a file is a part of."""
        return split_names(name)

    def read_headers(self, files: Files, names: Sequence[str]) -> Headers:
        """Read the headers of all parts of a model."""
        tensors, config = read_gguf(files, names)
        return Headers(tensors=tensors, config=config)

    def read_file(self, files: Files, name: str) -> tuple[TensorEntry, ...]:
        """Read the header of one file."""
        return read_gguf_header(files, name).tensors

    def layout(self, config: Mapping[str, Any], architecture: str | None, weights: Iterable[LogicalWeight]) -> Layout:
        """Return what GGUF's names mean."""
        return GgufLayout(config, architecture, weights)

    def transformers_options(self, files: Sequence[str]) -> dict[str, Any]:
        """Return the name of the first file, which transformers must be told."""
        return {"gguf_file": min(files)}


class GgufLayout(Layout):
    """The conventions of llama.cpp's converter: every matrix is (out, in), names are gguf's, rotary rows are reordered."""

    def place(self, name: str) -> Place:
        """Return what the name of a weight says."""
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
            counts_heads=tail == "attn_k_b",  # (heads, in, out)
            flattened=tail == "attn_v_b",  # (heads, out, in)
            packed=found.parts,
        )

    def stacks(self, names: Iterable[str]) -> dict[str, str]:
        """Return the stack of each name; empty unless the model has blocks in several stacks."""
        towers = {"v": "vision", "a": "audio"}
        found = {}
        for name in names:
            said = classify_gguf(name)
            tower = towers.get(name.partition(".")[0])
            found[name] = tower or said.stack or ("decoder" if said.layer is not None else None)
        several = len({stack for stack in found.values() if stack is not None}) > 1
        return {name: stack for name, stack in found.items() if stack is not None} if several else {}

    def config_of(self, place: Place) -> Mapping[str, Any]:
        """Return the config that describes a weight; empty for towers, whose metadata are not translated."""
        return {} if place.before.startswith(("v.", "a.")) else self.config

    def split_outside_blocks(self, whole: MatrixRef, place: Place) -> None:
        """Return None: no matrix outside of blocks is fused."""

    def is_transposed(self, weight: LogicalWeight, place: Place) -> bool:
        """Tell whether a matrix is stored as (in, out)."""
        return place.tail == "attn_k_b"

    def rope_heads(self, name: str, rows: int) -> int | None:
        """Return in how many heads the rows of a matrix were reordered, or None if they were not."""
        heads = rope_permuted(self.config, name)
        return heads if heads is not None and rows % (2 * heads) == 0 else None


@dataclass(frozen=True, kw_only=True)
class GgufName:
    """What the name of a tensor says.

    Attributes:
        role: as in `MatrixRef`, as is `layer`.
        source: `gguf`, or `none` for a name that the gguf package does not know.
        stack: `encoder` or `decoder` if the name says so.
        expert: index of the expert, in files that store experts separately.
        experts: whether the leading dimension counts experts.
        parts: roles of a fused tensor (whose own role is `other`): consecutive blocks of rows, whatever the order was in
            the model that was converted.
    """

    role: str
    layer: int | None
    source: str
    stack: str | None = None
    expert: int | None = None
    experts: bool = False
    parts: tuple[str, ...] = ()


def read_gguf(files: Files, names: Sequence[str]) -> tuple[tuple[TensorEntry, ...], dict[str, Any]]:
    """Read the headers of all files of a model, in order; return its tensors and its config.

    Raises:
        CheckpointError: a file is damaged, or the files are not all parts of one model.
    """
    headers = [read_gguf_header(files, name) for name in names]
    metadata = headers[0].metadata
    tensors = tuple(entry for header in headers for entry in header.tensors)
    kinds = (metadata.get("general.type", "model"), metadata.get("general.architecture"))
    if kinds[0] not in _TYPES or kinds[1] in _NO_MODELS:
        kind = kinds[1] if kinds[1] in _NO_MODELS else kinds[0]
        raise CheckpointError(
            f"{printable(names[0])} is of type '{printable(str(kind))}', which is not a model: name the GGUF file of the model"
        )
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        part, count = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0)
        if (part, max(count, 1) if type(count) is int else count) != (number, len(names)):
            raise CheckpointError(
                f"{printable(name)} says it is part {printable(str(part))} (from 0) of {printable(str(count))}, and it is "
                f"part {number} of {len(names)} by its name: download all parts of the model again"
            )
    promised = metadata.get("split.tensors.count", len(tensors))
    if len(names) > 1 and promised != len(tensors):
        raise CheckpointError(
            f"{printable(names[0])} and the files after it hold {len(tensors)} tensors of {printable(str(promised))}: "
            "download all parts of the model again"
        )
    return tensors, model_config(metadata, headers[0].lengths, [entry.name for entry in tensors])


def split_names(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the model that `name` is a part of, or `name` alone."""
    found = _SPLIT_NAME.fullmatch(name)
    if found is None:
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['model']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def model_config(metadata: Mapping[str, Any], lengths: Mapping[str, int], tensors: Iterable[str]) -> dict[str, Any]:
    """Return a config with the keys of transformers, and the metadata themselves under `METADATA_KEY`.

    Values of an unexpected type are left out.
    """
    kept = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    config: dict[str, Any] = {METADATA_KEY: kept}
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        return config
    for key, ggml_key in _CONFIG_KEYS.items():
        number = _largest(metadata.get(f"{architecture}.{ggml_key}"))
        if number is not None:
            config[key] = number
    config["model_type"] = _MODEL_TYPES.get(architecture, architecture.replace("-", "_"))
    if architecture == "llama" and config.get("num_experts"):
        config["model_type"] = "mixtral"
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if heads:
        config.setdefault("num_key_value_heads", heads)
        if width is not None and width % heads == 0:
            config.setdefault("head_dim", width // heads)
    if f"{architecture}.attention.key_length_mla" in metadata:
        config.update(_latent_attention(metadata, architecture))
    if "tokenizer.ggml.tokens" in lengths:
        config.setdefault("vocab_size", lengths["tokenizer.ggml.tokens"])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    base = metadata.get("general.base_model.0.repo_url")
    if isinstance(base, str):
        config["_name_or_path"] = _repository(base)
    return config


def _latent_attention(metadata: Mapping[str, Any], architecture: str) -> dict[str, int]:
    """Return the keys for multi-head latent attention, which llama.cpp describes as attention with one key head."""
    heads, queries, values, rotary = (
        _largest(metadata.get(f"{architecture}.{key}"))
        for key in (
            "attention.head_count",
            "attention.key_length_mla",
            "attention.value_length_mla",
            "rope.dimension_count",
        )
    )
    found = {"num_key_value_heads": heads, "head_dim": queries, "v_head_dim": values, "qk_rope_head_dim": rotary}
    if queries is not None and rotary is not None and rotary <= queries:
        found["qk_nope_head_dim"] = queries - rotary
    return {key: number for key, number in found.items() if number is not None}


def classify_gguf(name: str) -> GgufName:
    """Return what the name of a GGUF tensor says, by the table of names in the gguf package."""
    stem = name.removesuffix(".weight")
    expert = _EXPERT.fullmatch(stem)
    if expert:
        stem = f"{expert[1]}_exps"
    parts = stem.split(".")
    place = next((at for at, part in enumerate(parts) if part.isascii() and part.isdigit() and len(part) < 10), None)
    layer = None
    if place is not None:
        if place and parts[place - 1].endswith("blk"):
            layer = int(parts[place])
        parts[place] = "{bid}"
    pattern = ".".join(parts)
    roles = _roles_by_name()
    if pattern not in roles:
        return GgufName(role="other", layer=layer, source="none", stack=_stack(parts[0]))
    fused: tuple[str, ...] = ()
    if re.search(r"attn[_.]qkv\Z", pattern):
        fused = ("query", "key", "value")
    elif pattern.endswith("ffn_gate_up_exps"):
        fused = ("mlp_gate", "mlp_up")
    return GgufName(
        role="other" if fused else roles[pattern],
        layer=layer,
        source="gguf",
        stack=_stack(parts[0]),
        expert=int(expert[2]) if expert else None,
        experts=expert is None and pattern.endswith("exps"),
        parts=fused,
    )


def rope_permuted(config: Mapping[str, Any], name: str) -> int | None:
    """Return in how many heads the rows of a tensor were reordered, or None if they were not.

    Args:
        config: config of the checkpoint, from `model_config`.
        name: name of the tensor, a query or a key.
    """
    metadata = config.get(METADATA_KEY)
    found = re.fullmatch(r"blk\.(\d{1,9})\.attn_([qk])\.weight", name, re.ASCII)
    if found is None or not isinstance(metadata, Mapping):
        return None
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ROPE_PERMUTED:
        return None
    key = "attention.head_count" if found[2] == "q" else "attention.head_count_kv"
    heads = metadata.get(f"{architecture}.{key}", metadata.get(f"{architecture}.attention.head_count"))
    if isinstance(heads, list):
        layer = int(found[1])
        heads = heads[layer] if layer < len(heads) else None
    return heads if isinstance(heads, int) and heads > 0 else None


@cache
def _roles_by_name() -> dict[str, str]:
    """Return the role of every name in the table of the gguf package, with `{bid}` for the index of a block."""
    from gguf.constants import TENSOR_NAMES  # imported here: only listing matrices needs it

    role_of = {tensor: role for role, tensors in GGUF_ROLES.items() for tensor in tensors.split()}
    return {name: role_of.get(tensor.name, "other") for tensor, name in TENSOR_NAMES.items()}


def _stack(first: str) -> str | None:
    return {"enc": "encoder", "v": "encoder", "a": "encoder", "dec": "decoder"}.get(first)


def _largest(value: object) -> int | None:
    numbers = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n >= 0]
    return max(numbers, default=None)


def _repository(url: str) -> str:
    """Return `owner/name` from the URL of a model's page."""
    try:
        return urlsplit(url).path.strip("/")
    except ValueError:
        return ""
