"""What a config says about the part of a model that a tensor belongs to: widths and numbers of heads.

Configs are untrusted and use many names for the same size. A size counts only if it matches the shape of the tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Larger than any size in a model.
_MAX_SIZE = 2**28

_TEXT = ("text_config", "llm_config", "language_config", "language_model_config")
_VISION = ("vision_config", "vit_config", "vision_encoder_config", "vision_tower_config")
_AUDIO = ("audio_config", "audio_encoder_config", "speech_encoder_config", "sound_config", "encoder_config")

# The sections that a component of a name may refer to, besides its own name with and without `_config`.
_SECTIONS = {
    **dict.fromkeys(("text_model", "language_model", "text_encoder", "text_decoder", "llm"), _TEXT),
    **dict.fromkeys(
        ("vision_model", "vision_tower", "vision_encoder", "image_encoder", "visual", "vpm", "vit", "visual_encoder"),
        _VISION,
    ),
    **dict.fromkeys(("audio_tower", "audio_model", "audio_encoder", "speech_encoder", "sound_encoder"), _AUDIO),
}
_TOWERS = frozenset(word for word, keys in _SECTIONS.items() if keys is not _TEXT) | {"qformer"}

_MAX_DEPTH = 8

_WIDTHS = (
    "hidden_size",
    "d_model",
    "n_embd",
    "embed_dim",
    "dim",
    "width",
    "hidden_dim",
    "embed_width",
    "encoder_embed_dim",
)
_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "attention_heads",
    "num_query_heads",
    "heads",
    "nhead",
)
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "kv_n_heads")
_HEAD_DIM = ("head_dim", "d_kv", "kv_channels", "head_size", "attention_head_size")

_DEFAULTS: dict[str, dict[str, int]] = {
    "clip_text_model": {"num_attention_heads": 8, "hidden_size": 512},
    "clip_vision_model": {"num_attention_heads": 12, "hidden_size": 768},
    "gemma": {"num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 3072, "head_dim": 256},
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 2304, "head_dim": 256},
    "llama": {"num_attention_heads": 32, "hidden_size": 4096},
    "mistral": {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096},
    "qwen2": {"num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096},
    "siglip_text_model": {"num_attention_heads": 12, "hidden_size": 768},
    "siglip_vision_model": {"num_attention_heads": 12, "hidden_size": 768},
}
"""Defaults of transformers for sections of a config: older versions did not write default values."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a config says about one part of a model; None, zero or empty where it says nothing.

    `head_dims` are the possible numbers of rows per head of a query or key, `value_dim` is that of a value if it differs.
    `key_value_heads` is None unless the config has it. `nope_dim`, `rope_dim` and `value_dim` together describe multi-head
    latent attention. `section` is the part of the config with these sizes.
    """

    model_type: str
    widths: tuple[int, ...]
    heads: int | None
    key_value_heads: int | None
    head_dims: tuple[int, ...]
    value_dim: int | None
    nope_dim: int | None
    rope_dim: int | None
    intermediate: int | None
    section: Mapping[str, Any]

    @property
    def is_latent(self) -> bool:
        """Whether the attention stores low-rank latents instead of keys and values."""
        return self.nope_dim is not None and self.rope_dim is not None and self.value_dim is not None

    def is_one_of(self, model_types: Iterable[str]) -> bool:
        """Tell whether the model is of one of these types."""
        return self.model_type in model_types


def sizes_of(config: Mapping[str, Any], before: str, layer: int | None = None) -> Sizes:
    """Return what `config` says about the blocks whose names begin with `before`.

    Args:
        config: the content of config.json.
        before: the part of a tensor's name before the index of the block (`model.layers`).
        layer: the index, for configs that list one number per layer.
    """
    components = before.split(".", _MAX_DEPTH)[:_MAX_DEPTH]
    section, model_type = _section(config, components)
    if section is not config:
        section = {
            **_DEFAULTS.get(model_type, {}),
            **{key: value for key, value in section.items() if value is not None},
        }
    widths = tuple(dict.fromkeys(size for key in _WIDTHS if (size := _size(section, (key,), layer))))
    side = next((side for side in ("decoder", "encoder") if side in components), None)
    own_heads = (f"{side}_attention_heads", f"{side}_num_attention_heads")
    heads = _size(section, (*own_heads, *_HEADS, "encoder_attention_heads", "decoder_attention_heads"), layer)
    head_dim = _size(section, _HEAD_DIM, layer)
    return Sizes(
        model_type=model_type,
        widths=widths,
        heads=heads,
        key_value_heads=_size(section, (f"{side}_num_key_value_heads",), layer) or _key_value_heads(section, layer),
        head_dims=(head_dim,)
        if head_dim
        else tuple(width // heads for width in widths if heads and width % heads == 0),
        value_dim=_size(section, ("v_head_dim",), layer),
        nope_dim=_size(section, ("qk_nope_head_dim",), layer),
        rope_dim=_size(section, ("qk_rope_head_dim",), layer),
        intermediate=_size(section, ("intermediate_size", "ffn_hidden_size"), layer),
        section=section,
    )


def _section(config: Mapping[str, Any], components: Iterable[str]) -> tuple[Mapping[str, Any], str]:
    """Follow a name into the sections of a config that describe the parts of a composite model."""
    section, model_type = config, _text(config.get("model_type"))
    in_tower = False
    for component in components:
        in_tower = in_tower or component in _TOWERS
        found = _first_section(section, (f"{component}_config", *_SECTIONS.get(component, ()), component))
        if found is not None:
            section, model_type = found, _text(found.get("model_type")) or model_type
    for _ in range(_MAX_DEPTH):
        found = None if in_tower else _first_section(section, _TEXT)
        if found is None:
            break
        section, model_type = found, _text(found.get("model_type")) or model_type
    return section, model_type


def _first_section(section: Mapping[str, Any], keys: Iterable[str]) -> Mapping[str, Any] | None:
    return next((found for key in keys if isinstance(found := section.get(key), Mapping)), None)


def _key_value_heads(section: Mapping[str, Any], layer: int | None) -> int | None:
    # The new decoder architecture of Falcon has the flag of the old one, but ignores it.
    if section.get("multi_query") is True and section.get("new_decoder_architecture") is not True:
        return 1
    if section.get("multi_query_attention") is True:  # ChatGLM
        return _size(section, ("multi_query_group_num",), layer)
    found = _size(section, _KEY_VALUE_HEADS, layer)
    attention = section.get("attn_config")  # MPT, DBRX
    return found or (_size(attention, _KEY_VALUE_HEADS, layer) if isinstance(attention, Mapping) else None)


def _size(section: Mapping[str, Any], keys: Iterable[str], layer: int | None) -> int | None:
    for key in keys:
        value = section.get(key)
        if isinstance(value, list) and layer is not None and layer < len(value):
            value = value[layer]
        if type(value) is int and 0 < value <= _MAX_SIZE:
            return value
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
