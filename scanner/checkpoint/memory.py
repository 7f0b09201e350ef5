"""Opens models in memory: a torch module, or a mapping from names to arrays, becomes a `Checkpoint` like one of files.

Its tensors lie one after another in a source that reads from memory (`scanner.checkpoint.sources.memory_files`), so that
inventory, roles, decoding and reading are those of saved models.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scanner.checkpoint.arrays import Array, described
from scanner.checkpoint.formats import get_format
from scanner.checkpoint.formats.format import check_name, check_tensor_count
from scanner.checkpoint.metadata import architecture, base_model, model_name
from scanner.checkpoint.model import Checkpoint, Skipped, TensorEntry
from scanner.checkpoint.modules import Contents, as_config, contents
from scanner.checkpoint.names import printable
from scanner.checkpoint.opening import entries_by_dtype, most_common_dtype
from scanner.checkpoint.sources import memory_files
from scanner.checkpoint.sources.files import ByteRange, open_files
from scanner.checkpoint.sources.memory_files import FILE, Extent
from scanner.errors import CheckpointError, ConfigError

FORMAT = "memory"
"""`Checkpoint.format` of models in memory."""

_VERSION = 1  # of `identity_of`


@contextmanager
def opened_model(
    model: object, *, name: str | None = None, config: object = None, serve: bool = False
) -> Iterator[Checkpoint]:
    """Open a model in memory; its weights can be read until the context ends.

    No number is read, copied or hashed: the identity is empty (see `identity_of`).

    Args:
        model: a `torch.nn.Module`, or a mapping from names to tensors or arrays, such as a state dict.
        name: name of the model; None: the name in its config, or that of its class.
        config: what a config.json would say about the architecture, or a config of transformers; None: the config of the module, if
            it has one.
        serve: let other processes of this machine read the weights.

    Raises:
        ConfigError: `model` is neither, a name in it is not text, or `config` is no config.
        CheckpointError: there are no tensors, or none can be read.
    """
    held = _contents(model)
    own = dict(held.config) if config is None else as_config(config)
    if own is None:
        raise ConfigError(
            "config", f"is a {type(config).__name__}: pass what config.json says, as a dict (`model.config.to_dict()`)"
        )
    arrays, left_out = _readable(held)
    shown = name or _name_in(own) or held.name
    if not arrays:
        raise CheckpointError(f"{printable(shown)}: {_nothing(left_out)}")
    form = get_format(FORMAT)
    entries = _entries(arrays)
    arrays = _as_stored(entries, arrays, held, own)
    entries = _entries(arrays)
    form.check(own, entries)
    extents = {
        entry.start: Extent(start=entry.start, size=entry.size, read=arrays[entry.name].read) for entry in entries
    }
    source = memory_files.hold(extents.values(), serve=serve)
    try:
        yield Checkpoint(
            model=printable(shown),
            revision="",
            source=source,
            format=form.name,
            architecture=architecture(own),
            base_model=base_model(shown, own, open_files(source)),
            parameters=sum(entries_by_dtype(entries, form, floating=True).values()),
            dtype=most_common_dtype(entries, form),
            identity="",
            config=own,
            tensors=entries,
            left_out=left_out,
        )
    finally:
        memory_files.release(source)


def identity_of(checkpoint: Checkpoint, entries: Iterable[TensorEntry], *, label: str = "") -> Checkpoint:
    """Return a checkpoint in memory with its identity: a hash of names, shapes and config, and of the bytes of some tensors.

    Args:
        checkpoint: as `opened_model` yields it.
        entries: the tensors whose bytes count; `checkpoint.tensors` for all of them.
        label: what else tells one model from another, such as the step of a training run.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    digest = hashlib.sha256()
    told = {
        "version": _VERSION,
        "label": label,
        "config": dict(checkpoint.config),
        "tensors": [[entry.name, entry.dtype, [*entry.shape]] for entry in checkpoint.tensors],
        "left_out": [[one.tensor, one.reason] for one in checkpoint.left_out],
    }
    digest.update(json.dumps(told, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    files = open_files(checkpoint.source)
    for entry in dict.fromkeys(entries):
        [content] = files.read_ranges([ByteRange(name=entry.file, start=entry.start, size=entry.size)])
        digest.update(content.data)
    identity = digest.hexdigest()
    return dataclasses.replace(checkpoint, identity=identity, revision=checkpoint.revision or identity[:12])


def _contents(model: object) -> Contents:
    import torch

    if isinstance(model, torch.nn.Module):
        return contents(model)
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise ConfigError("model", f"is the class {model.__name__}: pass an instance of it")
    if isinstance(model, str | os.PathLike):
        raise ConfigError("model", f"is {os.fspath(model)!r}, a place: name checkpoints in `scanner.scan`")
    if isinstance(model, torch.Tensor) or (hasattr(model, "__array__") and not isinstance(model, Mapping)):
        raise ConfigError("model", f"is one {type(model).__name__}: pass a matrix to `scanner.analyze`")
    if not isinstance(model, Mapping):
        raise ConfigError(
            "model",
            f"is a {type(model).__name__}: pass a torch.nn.Module, a state dict, or a mapping from names to arrays",
        )
    for key, value in model.items():
        if not isinstance(key, str):
            raise ConfigError("model", f"has the key {key!r:.80}, which is not a name: keys are the names of tensors")
        if isinstance(value, Mapping | torch.nn.Module):
            raise ConfigError(
                "model", f"has a {type(value).__name__} under {printable(key)!r} instead of an array: pass that instead"
            )
    return Contents(values=dict(model), name="model")


def _readable(held: Contents) -> tuple[dict[str, Array], tuple[Skipped, ...]]:
    """Return the arrays that can be read, each once, and why the other values are left out."""
    check_tensor_count(len(held.values), held.name)
    arrays: dict[str, Array] = {}
    reasons: dict[str, str] = {}
    places: dict[tuple[object, ...], str] = {}
    # Names that are copies come last, so that the weight keeps the name under which it would be saved.
    for name in sorted(held.values, key=lambda name: name in held.later):
        check_name(name, FILE)
        value = held.values[name]
        found = held.reasons.get(name) or (value if isinstance(value, Array) else described(value))
        if isinstance(found, str):
            reasons[name] = found
        elif found.place is not None and found.place in places:
            reasons[name] = f"tied with {printable(places[found.place])}"
        else:
            arrays[name] = found
            if found.place is not None:
                places[found.place] = name
    ordered = {name: arrays[name] for name in held.values if name in arrays}
    return ordered, tuple(Skipped(tensor=name, reason=reasons[name]) for name in held.values if name in reasons)


def _entries(arrays: Mapping[str, Array]) -> tuple[TensorEntry, ...]:
    """Return the tensors one after another, as in a file."""
    found, start = [], 0
    for name, array in arrays.items():
        found.append(
            TensorEntry(name=name, dtype=array.dtype, shape=array.shape, file=FILE, start=start, size=array.size)
        )
        start += array.size
    return tuple(found)


def _as_stored(
    entries: Iterable[TensorEntry], arrays: dict[str, Array], held: Contents, config: Mapping[str, Any]
) -> dict[str, Array]:
    """Return the arrays with those linear layers transposed of which the class of the module says that the rules are wrong.

    The rules for files know from the config, the architecture and the name whether a matrix is stored as (in, out).
    """
    if not held.transposed:
        return arrays
    form = get_format(FORMAT)
    weights, _ = form.weights(tuple(entries), config)
    layout = form.layout(config, architecture(config), weights)
    turned = {
        weight.entry.name
        for weight in weights
        if weight.entry.name in held.transposed
        and len(weight.shape) == 2
        and 0 not in weight.shape
        and not weight.codec
        and layout.is_transposed(weight, layout.place_of(weight)) != held.transposed[weight.entry.name]
    }
    return {name: array.transposed() if name in turned else array for name, array in arrays.items()}


def _name_in(config: Mapping[str, Any]) -> str:
    """Return the name of the model that a transformers config was loaded from; empty if there is none."""
    named = config.get("_name_or_path")
    if not isinstance(named, str) or not named.strip():
        return ""
    return model_name(Path(named).resolve()) if Path(named).exists() else named


def _nothing(left_out: Iterable[Skipped]) -> str:
    """Say why nothing can be read."""
    reasons: dict[str, int] = {}
    for one in left_out:
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
    if not reasons:
        return "it holds no tensors: there is nothing to analyze"
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"none of its {sum(reasons.values())} tensors can be read ({told})"
