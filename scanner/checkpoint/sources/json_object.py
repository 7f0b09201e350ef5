"""The JSON that checkpoints contain: its size, nesting and number of values are limited before it is parsed."""

import json
from itertools import accumulate
from typing import Any

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.errors import CheckpointError

MAX_CONFIG_BYTES = 16 * 2**20
"""Largest size of a config, of a model or an adapter."""

MAX_DEPTH = 64
MAX_VALUES = 4_000_000
"""A parsed value takes about a hundred bytes, a hundred times as many as its text."""

_BLOCK_BYTES = 2**18
_STRUCTURE = b"[]{},:"
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def read_json_object(files: Files, name: str, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the file `name`.

    Raises:
        CheckpointError: the file is larger than `max_bytes`, has more values or is nested deeper than any file of its kind,
            is not UTF-8 JSON, or does not contain an object.
    """
    shown = printable(name)
    size = files.size(name)
    if size > max_bytes:
        raise CheckpointError(f"{shown} has {size} bytes, over the limit of {max_bytes}: it is not what its name says")
    text = files.read(name, 0, size)
    check_json_size(text, shown)
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown} holds no JSON object: download it again")
    return content


def check_json_size(text: bytes, what: str, *, max_values: int = MAX_VALUES, max_lists: int = MAX_VALUES) -> None:
    """Refuse JSON that would take far more memory than its text, by its brackets and commas, without parsing it.

    Args:
        text: the JSON, which need not be valid.
        what: what contains it, for the message.
        max_values: limit for the number of values, keys included.
        max_lists: limit for the number of lists among them; an empty one takes twenty times as many bytes as its text.

    Raises:
        CheckpointError: it has more values, or is nested more than `MAX_DEPTH` deep.
    """
    structure = _structure(text)
    values = sum(structure.count(sign) for sign in (b"[", b"{", b",", b":"))
    if values > max_values:
        raise CheckpointError(
            f"{what} holds about {values} JSON values, over the limit of {max_values}: no model needs so many"
        )
    if (lists := structure.count(b"[")) > max_lists:
        raise CheckpointError(f"{what} holds {lists} lists, over the limit of {max_lists}: download it again")
    depth = max(accumulate(_STEPS[byte] for byte in structure.translate(None, b",:")), default=0)
    if depth > MAX_DEPTH:
        raise CheckpointError(
            f"{what} holds JSON nested more than {MAX_DEPTH} deep, which no model needs: download it again"
        )


def _structure(text: bytes) -> bytes:
    """Return the brackets, commas and colons of JSON that are not inside strings."""
    # Without escaped backslashes and quotation marks, every other quotation mark ends a string.
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    found = []
    inside = 0
    # In blocks, because a piece takes many times its bytes.
    for start in range(0, len(text), _BLOCK_BYTES):
        pieces = text[start : start + _BLOCK_BYTES].split(b'"')
        found.append(b"".join(pieces[inside::2]).translate(None, _NOT_STRUCTURE))
        inside = (inside + len(pieces) - 1) % 2
    return b"".join(found)
