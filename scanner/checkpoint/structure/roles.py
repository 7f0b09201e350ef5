"""From the name of a tensor to its role, its block, and the stack that the block belongs to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scanner.checkpoint.structure.role_tables import (
    BLOCK_RULES,
    BLOCK_WORDS,
    COMMON_WORDS,
    FUSED,
    OUTER_RULES,
    WHOLE_NAMES,
    gguf_roles,
)

# The longest prefix in use has five components ("base_model.model.model.language_model.model").
_MAX_PREFIX = 8
# Longer than any name in a model. Some rules take time quadratic in the length.
_MAX_LENGTH = 512
# Size of the caches: experts and layers share few names once the indices are removed.
_KEPT = 4096

_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
_PLAIN_PREFIXES = ("model.", "transformer.")
_SUFFIXES = (".weight", ".base_layer")
_EXPERT = re.compile(r"(^|\.)experts\.(?:expert_)?(\d{1,9})(?=\.)")

_SIDES = {
    "encoder": "encoder",
    "text_encoder": "encoder",
    "conformer": "encoder",
    "decoder": "decoder",
    "text_decoder": "decoder",
}
# These decide even if the blocks inside them are called an encoder.
_TOWERS = {
    **dict.fromkeys(
        (
            "image_encoder",
            "sam_model",
            "vision_encoder",
            "vision_model",
            "vision_tower",
            "visual",
            "visual_encoder",
            "vpm",
        ),
        "vision",
    ),
    **dict.fromkeys(("audio_encoder", "audio_model", "audio_tower", "sound_encoder", "speech_encoder"), "audio"),
    "qformer": "qformer",
}

# The part of its block that a projection belongs to, if it is not the usual one.
_MODULES = tuple(
    (re.compile(pattern), module)
    for module, pattern in (
        ("indexer", r"(?:^|\.)indexer\."),
        (
            "cross_attention",
            r"(?i:(?:^|\.)(?:\w*cross_?att(?:n|ention)?\w*|enc(?:oder|_?dec(?:oder)?)_?att(?:n|ention)|multihead_attn)[._])"
            r"|(?:^|\.)attn2\.to_(?:q|k|v|out)\b",  # diffusers
        ),
        ("shared_expert", r"(?:^|\.)(?:shared?_(?:experts?|mlp)(?:_gate)?)(?:\.|\Z)|_shexp\Z"),
        ("context", r"(?:^|\.)(?:ff_context|txt_mlp)\."),
        ("mla_a", r"(?:^|[._])(?:q_a_proj|kv_a_proj(?:_with_mqa)?|wq_a|wkv_a|attn_q_a|attn_kv_a_mqa)\Z"),
        ("mla_b", r"(?:^|[._])(?:(?:q|k|v|kv)_b_proj|wq_b|wkv_b|attn_(?:q|k|v|kv)_b)\Z"),
    )
)


@dataclass(frozen=True, kw_only=True)
class NameParts:
    """A name split at its first transformer block; without one, `layer` and `tail` are None."""

    before: str
    layer: int | None
    tail: str | None


@dataclass(frozen=True, kw_only=True)
class RoleOf:
    """What a name says.

    Attributes:
        role: as in `MatrixRef`, as are `layer`, `expert` and `module`.
        source: the table that has the name, `gguf` or `supplement`; `none` if no table has it.
        before: the name before the index of the block.
        tail: the name after it, without `.weight` and without the index of an expert; None outside of blocks.
    """

    role: str
    layer: int | None
    expert: int | None
    source: str
    module: str | None = None
    before: str = ""
    tail: str | None = None


def classify(name: str, architecture: str | None = None) -> RoleOf:
    """Return the role, block and expert of a tensor by its name; names that no table has get the role `other`.

    Fused tensors (query-key-value, gate-up) are `other` too, because they have no single role.

    Args:
        name: as in the checkpoint.
        architecture: of the checkpoint, for the one ambiguous name, `head`.
    """
    parts = split_name(_without_suffixes(name))
    before = parts.before[-_MAX_LENGTH:]
    if parts.tail is None:
        role, source = _outer_role(before, architecture or "")
        return RoleOf(role=role, layer=None, expert=None, source=source, before=before)
    expert = _EXPERT.search(parts.tail)
    tail = _EXPERT.sub(r"\1experts", parts.tail, count=1)[-_MAX_LENGTH:]
    role, source = _block_role(before, tail)
    return RoleOf(
        role=role,
        layer=parts.layer,
        expert=int(expert[2]) if expert else None,
        source=source,
        module=module_of(tail),
        before=before,
        tail=tail,
    )


@lru_cache(_KEPT)
def module_of(tail: str) -> str | None:
    """Return which part of its block a projection belongs to (see `MatrixRef.module`), or None for the usual one.

    In multi-head latent attention, the factors that produce the latents are `mla_a` (`q_a_proj`, a query;
    `kv_a_proj_with_mqa`, a key, although values come from the same latent and its last rows are the rotary key that all
    heads share). The factors that produce queries, keys and values from the latents are `mla_b`.

    Args:
        tail: the name after the index of the block, without `.weight`.
    """
    return next((module for pattern, module in _MODULES if pattern.search(tail)), None)


def split_name(name: str) -> NameParts:
    """Split a name at the first index that follows one of `BLOCK_WORDS`."""
    components = name.split(".")
    for position in range(1, len(components)):
        component = components[position]
        if (
            components[position - 1] in BLOCK_WORDS
            and component.isascii()
            and component.isdigit()
            and len(component) < 10
        ):
            before, tail = ".".join(components[:position]), ".".join(components[position + 1 :])
            return NameParts(before=before, layer=int(component), tail=tail)
    return NameParts(before=name, layer=None, tail=None)


def stacks(names: Iterable[str]) -> dict[str, str]:
    """Return the stack of each name; empty unless the model has blocks in several stacks.

    A stack is `encoder`, `decoder`, or a tower of a multimodal model: `vision`, `audio`, `qformer`. Blocks whose names
    contain no word for a stack belong to the decoder if there is another stack, as multimodal models name their language
    model. Outside of blocks only the words count.
    """
    parts = {name: split_name(name) for name in names}
    side_of = {before: _side(before) for before in {split.before for split in parts.values()}}
    sides = {name: side_of[split.before] for name, split in parts.items()}
    in_blocks = {name: sides[name] or "decoder" for name, split in parts.items() if split.layer is not None}
    if len(set(in_blocks.values())) < 2:
        return {}
    return {name: side for name, side in (sides | in_blocks).items() if side is not None}


def _side(before: str) -> str | None:
    components = before.split(".", _MAX_PREFIX)
    for words in (_TOWERS, _SIDES):
        found = next((words[component] for component in components if component in words), None)
        if found:
            return found
    return None


def _without_suffixes(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


@lru_cache(_KEPT)
def _block_role(before: str, tail: str) -> tuple[str, str]:
    pattern = f"{before}.{{bid}}.{tail}"
    if FUSED.search(pattern):
        return "other", "supplement"
    known = gguf_roles()
    for candidate in _endings(pattern, before.count(".")):
        if candidate in known.whole:
            return known.whole[candidate], "gguf"
    if tail in known.tail:
        return known.tail[tail], "gguf"
    for rule, role in BLOCK_RULES:
        if rule.search(tail):
            return role, "supplement"
    return "other", "none"


def _outer_role(name: str, architecture: str) -> tuple[str, str]:
    plain = name
    for prefix in _PLAIN_PREFIXES:
        plain = plain.removeprefix(prefix)
    if plain in WHOLE_NAMES:
        return WHOLE_NAMES[plain], "supplement"
    if plain == "head" and "rwkv" not in architecture.lower():
        return "other", "none"  # the output head of RWKV; a classifier in all other models
    known = gguf_roles()
    for candidate in _endings(name, name.count(".")):
        if candidate in known.whole and (candidate not in COMMON_WORDS or candidate == plain):
            return known.whole[candidate], "gguf"
    for rule, role in OUTER_RULES:
        if rule.search(name):
            return role, "supplement"
    return "other", "none"


def _endings(name: str, prefixes: int) -> Iterable[str]:
    """Yield the name, then the name without its first component, and so on."""
    yield name
    for _ in range(min(prefixes, _MAX_PREFIX)):
        name = name.partition(".")[2]
        yield name
