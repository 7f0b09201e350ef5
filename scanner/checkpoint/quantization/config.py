"""The quantization settings in config.json. They are untrusted: every value is checked where it is read."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class IntegerScheme:
    """How compressed-tensors quantized weights to integers; `group_size` None: one scale per row or tensor."""

    bits: int
    group_size: int | None
    symmetric: bool


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the quantization settings of a config, or an empty mapping; multimodal models have them in a section."""
    text_config = config.get("text_config")
    places = [config, text_config] if isinstance(text_config, Mapping) else [config]
    found = (place.get(key) for place in places for key in ("quantization_config", "compression_config"))
    return next((settings for settings in found if isinstance(settings, Mapping)), {})


def declared_int(settings: Mapping[str, Any], *keys: str) -> int | None:
    """Return the integer under the first of the keys that exists, or None.

    Raises:
        CheckpointError: the value is not an integer.
    """
    for key in keys:
        value = settings.get(key)
        if value is not None:
            return _int(value, key)
    return None


def declared_text(settings: Mapping[str, Any], *keys: str) -> str | None:
    """Return the text under the first of the keys that exists, in lower case, or None.

    Raises:
        CheckpointError: the value is not text.
    """
    for key in keys:
        value = settings.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise CheckpointError(f"config.json: the quantization's {key} is {_shown(value)}, not text")
            return value.lower()
    return None


def declared_blocks(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the rows and columns of a block that share a scale, or None.

    Raises:
        CheckpointError: the value is not a pair of positive integers.
    """
    value = settings.get("weight_block_size")
    if value is None:
        weights = [scheme["weights"] for scheme in _groups(settings)]
        value = next((scheme["block_structure"] for scheme in weights if scheme.get("block_structure")), None)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
        raise CheckpointError(f"config.json: the quantization's blocks are {_shown(value)}, not two positive sizes")
    return value[0], value[1]


def integer_schemes(settings: Mapping[str, Any]) -> frozenset[IntegerScheme]:
    """Return the schemes in which compressed-tensors quantized weights to integers.

    Raises:
        CheckpointError: a number of bits or a group size is invalid.
    """
    schemes = set()
    for scheme in _groups(settings):
        weights = scheme["weights"]
        if declared_text(weights, "type") not in (None, "int"):
            continue
        bits = _int(weights.get("num_bits", 8), "num_bits")
        group_size = declared_int(weights, "group_size")
        if group_size == -1:
            group_size = None
        if not 1 <= bits <= 8:
            raise CheckpointError(f"config.json: {bits} bits a weight cannot be unpacked")
        if group_size is not None and group_size < 1:
            raise CheckpointError(f"config.json: groups of {group_size} columns cannot be")
        schemes.add(IntegerScheme(bits=bits, group_size=group_size, symmetric=weights.get("symmetric", True) is True))
    return frozenset(schemes)


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemes of compressed-tensors that describe weights."""
    groups = settings.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    return [scheme for scheme in schemes if isinstance(scheme, Mapping) and isinstance(scheme.get("weights"), Mapping)]


def _int(value: object, key: str) -> int:
    if type(value) is not int:
        raise CheckpointError(f"config.json: the quantization's {key} is {_shown(value)}, not a whole number")
    return value


def _shown(value: object) -> str:
    # Not repr, which fails for deeply nested values.
    return printable(reprlib.repr(value))
