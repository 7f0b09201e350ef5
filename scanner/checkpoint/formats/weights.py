"""Which files of a checkpoint hold its weights, in which format, and the tensors in them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scanner.checkpoint.formats import Format, WeightFiles, format_of, formats
from scanner.checkpoint.formats.commands import commands, several_models
from scanner.checkpoint.formats.folders import check_slices_below, folders_with, models_below, models_beside
from scanner.checkpoint.formats.format import INDEX_SUFFIX, check_name, is_training_state
from scanner.checkpoint.formats.parts import MAX_PARTS, check_ranks, first_parts, is_rank, numbered_parts
from scanner.checkpoint.model import Skipped, TensorEntry
from scanner.checkpoint.names import is_optimizer_state, is_plain_name, printable
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.sources.json_object import read_json_object
from scanner.errors import CheckpointError

_MAX_INDEX_BYTES = 100_000_000
_MAX_SHOWN_NAMES = 20

_OTHER_FORMATS = {
    ".onnx": "ONNX",
    ".h5": "Keras",
    ".msgpack": "Flax",
    ".npz": "NumPy",
    ".tflite": "TensorFlow Lite",
}
"""Formats that are not read, by suffix."""

_WHAT_TO_DO = (
    "scan the model that it was made from: its .safetensors, .gguf or PyTorch files, or what save_pretrained() of "
    "transformers writes after loading it"
)

# model.safetensors.index.json, and diffusion_pytorch_model.safetensors.index.fp16.json of diffusers.
_INDEX = re.compile(r"(?P<stem>.+)\.index(?P<variant>\.[\w-]+)?\.json", re.ASCII | re.DOTALL)
_DISTRIBUTED = ".distcp"
_CONVERT_DISTRIBUTED = (
    "convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, 'model.pt') and scan that"
)

_FROM_ZERO = "DeepSpeed's zero_to_fp32.py makes one from all parts"

_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files that hold the weights of a checkpoint and the tensors in them.

    Attributes:
        files: names of the weights files.
        index: name of the index over them, if there is one under the usual name of the format.
        tensors: the stored tensors, file by file, in the order of their bytes.
        format: name of the format.
        config: what the weights files themselves say about the model, under the keys of a transformers config.
        beside: references of other models in the same folder and in the folders inside it; empty for a named file.
        left_out: what the files hold beside the model, such as optimizers, each with the reason.
    """

    files: tuple[str, ...]
    index: str | None
    tensors: tuple[TensorEntry, ...]
    format: str
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    left_out: tuple[Skipped, ...] = ()


def weight_suffixes() -> tuple[str, ...]:
    """Return the endings of the names of weights files, in formats that are read and in others.

    A remote reference with such an ending names a file, any other a folder: asking would cost a request.
    """
    return tuple(suffix for known in formats() for suffix in known.suffixes) + tuple(_OTHER_FORMATS)


def find_weights(files: Files) -> Weights:
    """Find the weights files of a checkpoint and read their headers.

    A named file is read alone, or together with the other parts of its model. In a folder the first format that finds
    files under its usual names wins (see `Format.find`), then the first that finds any others. Every index beside the
    weights that names one of them, and every name like `...-00001-of-00003...`, says which files the model consists of.

    Raises:
        CheckpointError: no weights, several models, an unknown format, a missing part, parts that are slices of every
            matrix, an index that contradicts the shards, or a damaged file.
    """
    listed = _listed(files)
    form, found = _choose(files, listed)
    names = found.names
    index, weight_map = _index(files, form, found, listed)
    if index is not None:
        names = tuple(sorted(set(weight_map.values())))
    names = _all_parts(files, form, names)
    check_ranks(names, {*listed, *names}, indexed=index is not None)
    _check_folder(files)
    _check_parts(files, names, index)
    if index is None and files.named is None and len(names) > len(first := first_parts(names)) > 1:
        raise CheckpointError(several_models(files, first))
    form = next((other for other in formats() if other.claims(files, names)), form)
    files.expect(names)
    _check_pointers(files, names)
    headers = form.read_headers(files, names)
    if not headers.tensors:
        raise CheckpointError(f"{printable(', '.join(names))} holds no tensors: there is nothing to scan")
    _check_places(headers.tensors, weight_map, index)
    _check_content(headers.tensors, names)
    return Weights(
        files=names,
        # Other indexes are only checked against: the identity of a checkpoint has never contained them.
        index=index if index == found.index else None,
        tensors=headers.tensors,
        format=form.name,
        config=headers.config,
        left_out=headers.left_out,
        beside=models_beside(files, names) if files.named is None else (),
    )


def _listed(files: Files) -> tuple[str, ...]:
    """Return the names of the files in the folder; empty if a file was named in a store that cannot list its folder."""
    try:
        return files.names()
    except CheckpointError:
        if files.named is None:
            raise
        return ()


def _choose(files: Files, listed: Sequence[str]) -> tuple[Format, WeightFiles]:
    """Return the format of a checkpoint and its weights files."""
    if files.named is not None:
        form = format_of(files.named)
        if form is None:
            raise CheckpointError(_unknown_format(files.named))
        return form, WeightFiles(names=(files.named,))
    for form in formats():
        if found := form.find(files):
            return form, found
    for form in formats():
        if found := form.find_other(files):
            return form, found
    for form in formats():  # an index whose files are all missing
        if name := next((name for name in listed if _is_index(form, name)), None):
            return form, WeightFiles(index=name)
    raise CheckpointError(_no_weights(files))


def _index(files: Files, form: Format, found: WeightFiles, listed: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the index over the weights files and its map from tensors to files; (None, {}) if there is none."""
    if found.index is not None:
        return found.index, _weight_map(found.index, _read_index(files, found.index))
    maps = {name: _weight_map(name, _read_index(files, name)) for name in listed if _is_index(form, name)}
    maps |= {name: one for name in listed if (one := _weight_map_of_unknown(files, name))}
    fitting = {name: one for name, one in maps.items() if not set(found.names).isdisjoint(one.values())}
    # An index of the same weights in another precision belongs to other files.
    main = [name for name in fitting if not _INDEX.fullmatch(name)["variant"]] or [*fitting]  # type: ignore[index]
    if len({frozenset(fitting[name].values()) for name in main}) > 1:
        raise CheckpointError(several_models(files, [min(fitting[name].values()) for name in main]))
    return (main[0], fitting[main[0]]) if main else (None, {})


def _is_index(form: Format, name: str) -> bool:
    found = _INDEX.fullmatch(name)
    return found is not None and form.recognizes(found["stem"])


def _weight_map_of_unknown(files: Files, name: str) -> dict[str, str] | None:
    """Return the map of an index whose name does not say of which weights; None for what only has the name of an index."""
    found = _INDEX.fullmatch(name)
    if found is None or format_of(found["stem"]) is not None:
        return None
    try:
        content = _read_index(files, name)
    except CheckpointError:
        return None
    return _weight_map(name, content) if "weight_map" in content else None


def _read_index(files: Files, name: str) -> dict[str, Any]:
    return read_json_object(files, name, max_bytes=_MAX_INDEX_BYTES)


def _all_parts(files: Files, form: Format, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with those of all other parts of the same models."""
    found: dict[str, None] = {}
    for name in names:
        if name not in found:
            parts = form.parts(name)
            found |= dict.fromkeys(parts if len(parts) > 1 else numbered_parts(name, files.has))
        if len(found) > MAX_PARTS + 1:
            raise CheckpointError(
                f"{files.place} has more than {MAX_PARTS} weights files by their names: more than any model"
            )
    return tuple(found)


def _check_folder(files: Files) -> None:
    """Refuse a folder that is one of several slices of a model."""
    own = re.split(r"[/\\]", files.source[: -len(files.named)] if files.named else files.source)
    name = next((part for part in reversed(own) if part), "")
    if is_rank(name):
        check_ranks([name], files.neighbors())


def _weight_map(index: str, content: dict[str, Any]) -> dict[str, str]:
    shown = printable(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{shown} has no weight_map from tensors to files: download it again")
    found = _INDEX.fullmatch(index)
    stem = found["stem"] if found else index
    known, suffix = format_of(stem) is not None, stem.rpartition(".")[2]
    for tensor, file in weight_map.items():
        place = f"'{printable(file)}'" if isinstance(file, str) else "something"
        where = f"{shown} puts tensor '{printable(tensor)}' into {place}, which is not the name of a"
        if not isinstance(file, str) or not is_plain_name(file):
            raise CheckpointError(f"{where} file in its folder: not read")
        if not file.endswith(f".{suffix}") and (known or format_of(file) is None):
            raise CheckpointError(f"{where} .{suffix} file: not read" if known else f"{where} weights file: not read")
    return weight_map


def _check_parts(files: Files, names: Sequence[str], index: str | None) -> None:
    missing = [name for name in names if not files.has(name)]
    if missing and (index is not None or len(names) > 1):
        shown = ", ".join(map(printable, missing[:_MAX_SHOWN_NAMES])) + (
            ", ..." if len(missing) > _MAX_SHOWN_NAMES else ""
        )
        named = f"the {len(names)} files that {printable(index)} names" if index is not None else ""
        what = named or f"the model's {len(names)} files"
        raise CheckpointError(f"{len(missing)} of {what} are missing: download {shown}")


def _check_pointers(files: Files, names: Sequence[str]) -> None:
    for name in names:
        if files.read(name, 0, len(_GIT_LFS)) == _GIT_LFS:
            raise CheckpointError(
                f"{printable(name)} is a Git LFS pointer instead of the weights: run `git lfs pull` in its folder"
            )


def _check_places(tensors: Sequence[TensorEntry], weight_map: Mapping[str, str], index: str | None) -> None:
    places: dict[str, str] = {}
    for entry in tensors:
        check_name(entry.name, entry.file)
        other = places.setdefault(entry.name, entry.file)
        if other != entry.file:
            raise CheckpointError(
                f"tensor '{printable(entry.name)}' is both in {printable(other)} and in {printable(entry.file)}: "
                f"{_what_to_do_about_two(other, entry.file)}"
            )
    for tensor, file in weight_map.items():
        if places.get(tensor) != file:
            raise CheckpointError(
                f"{index} puts tensor '{printable(tensor)}' into {printable(file)}, where it is not: download both again"
            )


def _what_to_do_about_two(one: str, other: str) -> str:
    if other in numbered_parts(one, {one, other}.__contains__):
        return "parts that hold slices of the same tensors are not joined: convert the model with the program that wrote it"
    return "name the file to scan instead of the folder"


def _check_content(tensors: Sequence[TensorEntry], names: Sequence[str]) -> None:
    """Refuse files of which every matrix is the state of an optimizer."""
    shown = printable(", ".join(names[:_MAX_SHOWN_NAMES]))
    if all(is_optimizer_state(entry.name) for entry in tensors if len(entry.shape) > 1) and any(
        is_optimizer_state(entry.name) for entry in tensors
    ):
        raise CheckpointError(f"{shown} holds the state of an optimizer, not a model: name the file of the weights")


def _unknown_format(name: str) -> str:
    shown = printable(name)
    if name.endswith(INDEX_SUFFIX) and format_of(name.removesuffix(INDEX_SUFFIX)) is not None:
        return f"{shown} is an index, not weights: name its folder instead"
    if is_training_state(name):
        zero = f"; {_FROM_ZERO}" if "_optim_states" in name else ""
        return f"{shown} holds the state of a training, not a model: name the file of the weights{zero}"
    if name.endswith(_DISTRIBUTED):
        return f"{shown} is a part of a distributed checkpoint (DCP): {_CONVERT_DISTRIBUTED}"
    found = _other_format(name)
    if found:
        return f"{shown} is a {found} file; {_WHAT_TO_DO}"
    return f"{shown} is not a {_known()} file: name a checkpoint's folder or its weights file"


def _no_weights(files: Files) -> str:
    names, folders = files.names(), files.folders()
    if not names and not folders:
        return f"{files.place} is an empty folder: it holds no checkpoint"
    if any(name.endswith(_DISTRIBUTED) for name in names):
        return f"{files.place} is a distributed checkpoint (DCP): {_CONVERT_DISTRIBUTED}"
    for name in names:
        found = _other_format(name)
        if found:
            return f"{files.place} holds {found} weights ({printable(name)}); {_WHAT_TO_DO}"
    below = models_below(files)
    if len(below) == 1:
        folder = printable(below[0][len(files.source.rstrip("/")) + 1 :])
        return f"{files.place} holds no weights, but its folder '{folder}' does: name that one: {commands(below)}"
    if below:
        return f"{files.place} holds no weights, but its folders hold {len(below)} models: name one: {commands(below)}"
    check_slices_below(files)
    distributed = folders_with(files, _DISTRIBUTED)
    if distributed:
        name = next((one for one in distributed if not one.rpartition("/")[2].startswith("optim")), distributed[0])
        return (
            f"{files.place} holds no weights, and '{printable(name)}' in it is a distributed checkpoint (DCP): "
            f"{_CONVERT_DISTRIBUTED}"
        )
    if any(map(is_training_state, names)):
        zero = f"; {_FROM_ZERO}" if any("_optim_states" in name for name in names) else ""
        return f"{files.place} holds no weights but the state of a training: name the folder of the model{zero}"
    return f"{files.place} holds no weights: no {_known()} file is in it"


def _known() -> str:
    *first, last = [known.title for known in formats() if known.suffixes]
    return f"{', '.join(first)} or {last}"


def _other_format(name: str) -> str | None:
    return next((label for suffix, label in _OTHER_FORMATS.items() if name.endswith(suffix)), None)
