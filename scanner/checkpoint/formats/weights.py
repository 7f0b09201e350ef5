"""Which files of a checkpoint hold its weights, in which format, and the tensors in them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scanner.checkpoint.formats.gguf import read_gguf, split_names
from scanner.checkpoint.formats.pytorch import SUFFIXES as TORCH_SUFFIXES
from scanner.checkpoint.formats.pytorch import read_torch_file
from scanner.checkpoint.formats.safetensors import read_header
from scanner.checkpoint.model import MAX_TENSORS, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files, is_plain_name
from scanner.checkpoint.sources.json_object import read_json_object
from scanner.errors import CheckpointError

SUFFIX = ".safetensors"
GGUF_SUFFIX = ".gguf"
INDEX_SUFFIX = ".index.json"
SINGLE_FILE = "model.safetensors"
TORCH_SINGLE_FILE = "pytorch_model.bin"

_MAX_INDEX_BYTES = 100_000_000

# A trainer's state and not weights, whatever the suffix says.
_NOT_WEIGHTS = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state\w*|random_states\w*)\.(?:bin|pt|pth|ckpt)"
)
_TORCH_SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")

_OTHER_FORMATS = {
    ".onnx": "ONNX",
    ".h5": "Keras",
    ".msgpack": "Flax",
    ".npz": "NumPy",
    ".tflite": "TensorFlow Lite",
}
_WHAT_TO_DO = (
    "scan the model that it was made from: its .safetensors, .gguf or PyTorch files, or what save_pretrained() of "
    "transformers writes after loading it"
)

_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files that hold the weights, the index over them if there is one, and their tensors in order of place.

    `format` is `safetensors`, `pytorch` or `gguf`; `config` is what the weights files themselves say of the model, under
    the keys of a transformers config (only GGUF does).
    """

    files: tuple[str, ...]
    index: str | None
    tensors: tuple[TensorEntry, ...]
    format: str
    config: Mapping[str, Any] = field(default_factory=dict)


def find_weights(files: Files) -> Weights:
    """Find and read the headers of a checkpoint's weights files.

    A named file is read alone, or with the other parts of a GGUF model. In a folder safetensors goes before PyTorch and
    that before GGUF, and, like in transformers, a single file before an index; without both, every .safetensors file of
    the folder belongs to the checkpoint.

    Raises:
        CheckpointError: no weights, several models, another format, a missing shard, an index and shards that
            contradict each other, or a file that is not sound.
    """
    names, index = _choose(files)
    weight_map: dict[str, str] = {}
    if index is not None:
        weight_map = _weight_map(index, read_json_object(files, index, max_bytes=_MAX_INDEX_BYTES))
        names = tuple(sorted(set(weight_map.values())))
    _check_parts(files, names, index)
    files.expect(names)
    form = _format(names[0]) or "pytorch"  # an index may call a shard what it likes
    config: Mapping[str, Any] = {}
    if form == "gguf":
        _check_pointers(files, names)
        tensors, config = read_gguf(files, names)
    elif form == "pytorch":
        _check_pointers(files, names)
        tensors = _of_all(names, lambda name: read_torch_file(files, name))
    else:
        tensors = _of_all(names, lambda name: read_header(files, name))
    if not tensors:
        raise CheckpointError(f"{printable(', '.join(names))} holds no tensors: there is nothing to scan")
    _check_places(tensors, weight_map, index)
    return Weights(files=names, index=index, tensors=tensors, format=form, config=config)


def _of_all(names: Sequence[str], read: Callable[[str], list[TensorEntry]]) -> tuple[TensorEntry, ...]:
    tensors: list[TensorEntry] = []
    for name in names:
        tensors += read(name)
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(
                f"the checkpoint has more than {MAX_TENSORS} tensors up to {printable(name)}, more than any model"
            )
    return tuple(tensors)


def _choose(files: Files) -> tuple[tuple[str, ...], str | None]:
    """Return the weights files of a checkpoint, or the index that names them."""
    if files.named is not None:
        _check_format(files.named)
        return split_names(files.named), None
    ways: list[Callable[[], tuple[str, ...]]] = [
        lambda: (SINGLE_FILE,) if files.has(SINGLE_FILE) else (),
        lambda: (SINGLE_FILE + INDEX_SUFFIX,) if files.has(SINGLE_FILE + INDEX_SUFFIX) else (),
        lambda: tuple(name for name in files.names() if name.endswith(SUFFIX)),
        lambda: (TORCH_SINGLE_FILE,) if files.has(TORCH_SINGLE_FILE) else (),
        lambda: (TORCH_SINGLE_FILE + INDEX_SUFFIX,) if files.has(TORCH_SINGLE_FILE + INDEX_SUFFIX) else (),
        lambda: _one_model(files, [name for name in files.names() if name.endswith(GGUF_SUFFIX)]),
        lambda: _one_model(files, [name for name in files.names() if _format(name) == "pytorch"]),
    ]
    found = next((names for way in ways if (names := way())), ())
    if not found:
        raise CheckpointError(_no_weights(files))
    return ((), found[0]) if found[0].endswith(INDEX_SUFFIX) else (found, None)


def _one_model(files: Files, names: Sequence[str]) -> tuple[str, ...]:
    """Return the files of the one model that all of them are parts of."""
    if not names or all(_TORCH_SHARD.fullmatch(name) for name in names):
        return tuple(names)
    parts = split_names(names[0])
    if set(names) - set(parts):
        shown = ", ".join(map(printable, names[:20])) + (", ..." if len(names) > 20 else "")
        raise CheckpointError(f"{files.place} holds several models ({shown}): name the file to scan")
    return parts


def _format(name: str) -> str | None:
    if name.endswith(SUFFIX):
        return "safetensors"
    if name.endswith(GGUF_SUFFIX):
        return "gguf"
    return "pytorch" if name.endswith(TORCH_SUFFIXES) and not _NOT_WEIGHTS.fullmatch(name) else None


def _weight_map(index: str, content: dict[str, Any]) -> dict[str, str]:
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensors to files: download it again")
    suffix = index.removesuffix(INDEX_SUFFIX).rpartition(".")[2]
    for tensor, file in weight_map.items():
        place = f"'{printable(file)}'" if isinstance(file, str) else "something"
        where = f"{index} puts tensor '{printable(tensor)}' into {place}, which is not the name of a"
        if not isinstance(file, str) or not is_plain_name(file):
            raise CheckpointError(f"{where} file in its folder: not read")
        if not file.endswith(f".{suffix}"):
            raise CheckpointError(f"{where} .{suffix} file: not read")
    return weight_map


def _check_parts(files: Files, names: Sequence[str], index: str | None) -> None:
    missing = [name for name in names if not files.has(name)]
    if missing and (index is not None or len(names) > 1):
        shown = ", ".join(printable(name) for name in missing[:20]) + (", ..." if len(missing) > 20 else "")
        what = f"the {len(names)} files that {index} names" if index is not None else f"the model's {len(names)} files"
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
        other = places.setdefault(entry.name, entry.file)
        if other != entry.file:
            raise CheckpointError(
                f"tensor '{printable(entry.name)}' is both in {printable(other)} and in {printable(entry.file)}: "
                "name the file to scan instead of the folder"
            )
    for tensor, file in weight_map.items():
        if places.get(tensor) != file:
            raise CheckpointError(
                f"{index} puts tensor '{printable(tensor)}' into {printable(file)}, where it is not: download both again"
            )


def _check_format(name: str) -> None:
    if _format(name) is not None:
        return
    shown = printable(name)
    if name.endswith((SUFFIX + INDEX_SUFFIX, ".bin" + INDEX_SUFFIX)):
        raise CheckpointError(f"{shown} is an index, not weights: name its folder instead")
    found = _other_format(name)
    if found:
        raise CheckpointError(f"{shown} is a {found} file; {_WHAT_TO_DO}")
    raise CheckpointError(
        f"{shown} is not a {SUFFIX} file, nor a {GGUF_SUFFIX} or PyTorch one: name a checkpoint's folder or its weights file"
    )


def _no_weights(files: Files) -> str:
    names, folders = files.names(), files.folders()
    if not names and not folders:
        return f"{files.place} is an empty folder: it holds no checkpoint"
    for name in names:
        found = _other_format(name)
        if found:
            return f"{files.place} holds {found} weights ({printable(name)}); {_WHAT_TO_DO}"
    for name in folders:
        if any(_format(inside) for inside in files.folder(name).names()):
            return f"{files.place} holds no weights, but its folder '{printable(name)}' does: name that one"
    return f"{files.place} holds no weights: no {SUFFIX}, {GGUF_SUFFIX} or PyTorch file is in it"


def _other_format(name: str) -> str | None:
    return next((label for suffix, label in _OTHER_FORMATS.items() if name.endswith(suffix)), None)
