"""The JSON files beside the weights: limited in size, with an object at the top level."""

import json
from typing import Any

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.errors import CheckpointError


def read_json_object(files: Files, name: str, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the file `name`.

    Raises:
        CheckpointError: the file is larger than `max_bytes`, is not UTF-8 JSON, or does not contain an object.
    """
    shown = printable(name)
    size = files.size(name)
    if size > max_bytes:
        raise CheckpointError(f"{shown} has {size} bytes, over the limit of {max_bytes}: it is not what its name says")
    try:
        content = json.loads(files.read(name, 0, size).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown} holds no JSON object: download it again")
    return content
