"""What a checkpoint says about itself beside its weights: its name, its architecture, its base model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scanner.checkpoint.formats.weights import weight_suffixes
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files

CONFIG_FILE = "config.json"
README_FILE = "README.md"
MAX_CONFIG_BYTES = 16 * 2**20

_MAX_README_BYTES = 64 * 2**10

# A folder or file called one of these says nothing about which model it holds.
_GENERIC = re.compile(
    r"(?:model|pytorch_model|adapter_model|consolidated|model_weights|weights|checkpoints?|ckpt|snapshots?|final|best"
    r"|last|latest|main|merged|outputs?|results?|export|safetensors|pytorch|transformer|hf|data|files|artifacts?|tmp"
    r"|\d+|v\d+|[0-9a-f]{7,64}|model-\d+-of-\d+|(?:checkpoint|ckpt|step|epoch|iter|global_?step)[-_]?\d+)",
    re.IGNORECASE,
)
_CACHE_FOLDER = re.compile(r"models--(?:(?P<owner>.+?)--)?(?P<name>.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def model_name(path: Path) -> str:
    """Return a name for the checkpoint at `path` (absolute): its own, with its parents' where that says nothing.

    A snapshot in a Hugging Face cache is named like the model on the Hub.
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
    """Return the class that a config names first, or else its model type."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return next((printable(name) for name in (first, config.get("model_type")) if isinstance(name, str) and name), None)


def base_model(model: str, config: Mapping[str, Any], files: Files) -> str | None:
    """Return the Hub id of the model that this one was made from, as its config or its README tells.

    transformers writes into `_name_or_path` what a model was loaded from: often its base, as often itself or a
    folder. It counts if it looks like a Hub id and is not called like `model`.
    """
    # An adapter says of which model it is one, and it is never that model itself.
    loaded_from = config.get("base_model_name_or_path") or config.get("_name_or_path")
    candidates = [loaded_from] if isinstance(loaded_from, str) else []
    candidates += _readme_base_models(files)
    own_names = {model.lower()}
    if files.commit is None:
        # A local copy may have been made of anybody's model of that name.
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
    """Return what the key base_model in the front matter of the README holds: one value or a list."""
    if not files.has(README_FILE):
        return []
    text = files.read(README_FILE, 0, _MAX_README_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
    front_matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = front_matter and re.search(r"^base_model:(.*(?:\n[ \t]*-[ \t].*)*)", front_matter[1], re.MULTILINE)
    if not found:
        return []
    values = re.split(r"[\n,]", found[1].strip().removeprefix("[").removesuffix("]"))
    return [value.strip().removeprefix("- ").strip(" \t'\"") for value in values]
