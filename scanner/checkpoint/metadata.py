"""Name, architecture and base model of a checkpoint, from its path, its config and its model card.

The model card is not read with `huggingface_hub.ModelCard`: that class loads the front matter with PyYAML, which expands
merge keys (`<<`) of nested aliases. A card of 560 bytes then takes 10 seconds, and twice as long with each further line.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scanner.checkpoint.formats.weights import weight_suffixes
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files

README_FILE = "README.md"

_MAX_README_BYTES = 64 * 2**10

# Names of folders and files that do not tell which model they contain.
_GENERIC = re.compile(
    r"(?:model|pytorch_model|adapter_model|consolidated|model_weights|weights|checkpoints?|ckpt|snapshots?|final|best"
    r"|last|latest|main|merged|outputs?|results?|export|safetensors|pytorch|transformer|hf|data|files|artifacts?|tmp"
    r"|\d+|v\d+|[0-9a-f]{7,64}|model-\d+-of-\d+|(?:checkpoint|ckpt|step|epoch|iter|global_?step)[-_]?\d+)",
    re.IGNORECASE,
)
_CACHE_FOLDER = re.compile(r"models--(?:(?P<owner>.+?)--)?(?P<name>.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def model_name(path: Path) -> str:
    """Return a name for the checkpoint at `path` (absolute): its own, after those of its parents if it is generic.

    A snapshot in a Hugging Face cache has the name of the model on the Hub.
    """
    parts = [part for part in path.parts if part != path.anchor]
    if path.suffix in weight_suffixes() and parts:
        parts[-1] = path.stem
    for position in range(len(parts) - 2):
        if parts[position + 1] == "snapshots" and (cached := _CACHE_FOLDER.fullmatch(parts[position])):
            return printable("/".join([*filter(None, cached.groups()), *parts[position + 3 :]]))
    kept: list[str] = []
    for part in reversed(parts):
        kept.insert(0, part)
        if not _GENERIC.fullmatch(part):
            break
    return printable("/".join(kept)) or "model"


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the first class that a config names, or else its model type."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return next((printable(name) for name in (first, config.get("model_type")) if isinstance(name, str) and name), None)


def initializer_range(config: Mapping[str, Any]) -> float | None:
    """Return the standard deviation with which the weights were initialized, by the config or its section about the text model.

    Some models divide it in some matrices by a function of depth, which no config says.
    """
    section = config.get("text_config")
    for part in (config, section if isinstance(section, Mapping) else {}):
        found = part.get("initializer_range")
        if isinstance(found, int | float) and not isinstance(found, bool) and 0.0 < found < math.inf:
            return float(found)
    return None


def base_model(model: str, config: Mapping[str, Any], files: Files) -> str | None:
    """Return the Hub id of the model that this one was made from, by its config or its model card.

    transformers writes to `_name_or_path` where a model was loaded from: its base, but also itself or a folder. The value
    counts if it looks like a Hub id and differs from the name `model`.
    """
    # Written by PEFT; it is always the base model of the adapter.
    loaded_from = config.get("base_model_name_or_path") or config.get("_name_or_path")
    if loaded_from is None and "lora_parameters" in config:
        loaded_from = config.get("model")  # written by mlx_lm
    candidates = [loaded_from] if isinstance(loaded_from, str) else []
    candidates += _readme_base_models(files)
    own_names = {model.lower()}
    if files.commit is None:
        # A local folder may be a copy of any owner's model of this name.
        own_names.add(model.rsplit("/", 1)[-1].lower())
    else:
        own_names.add("/".join(model.lower().split("/")[:2]))
    for candidate in candidates:
        owner, _, name = candidate.partition("/")
        if not _HUB_ID.fullmatch(candidate) or _GENERIC.fullmatch(owner) or _GENERIC.fullmatch(name):
            continue
        if own_names.isdisjoint({candidate.lower(), name.lower()}):
            return printable(candidate)
    return None


def _readme_base_models(files: Files) -> list[str]:
    """Return the value or values of `base_model` in the YAML front matter of the model card."""
    if not files.has(README_FILE):
        return []
    text = files.read(README_FILE, 0, _MAX_README_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
    front_matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = front_matter and re.search(r"^base_model:(.*(?:\n[ \t]*-[ \t].*)*)", front_matter[1], re.MULTILINE)
    if not found:
        return []
    values = re.split(r"[\n,]", found[1].strip().removeprefix("[").removesuffix("]"))
    return [value.strip().removeprefix("- ").strip(" \t'\"") for value in values]
