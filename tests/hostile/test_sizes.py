"""Small files that would take much memory: sizes are checked before memory is spent, whatever holds them.

The limit is ten times the file and 500 MB for the whole process; here only what Python allocates is counted, so the
limit is ten times the file and 100 MB, for files of a few megabytes.
"""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import list_matrices, open_checkpoint
from scanner.checkpoint.formats.adapters import ADAPTER_CONFIG
from scanner.checkpoint.model import MAX_DIMENSIONS, MAX_NAME_BYTES
from scanner.checkpoint.sources.json_object import MAX_DEPTH, check_json_size
from scanner.errors import CheckpointError

from ..checkpoint.writing import INDEX, WEIGHTS, file_bytes, info

MB = 2**20
SOUND = {"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}


def header(content: bytes) -> bytes:
    return b'{"w":{"dtype":"F32","shape":' + content + b',"data_offsets":[0,4]}}'


def gguf(*, key: bytes = b"", tensor: bytes = b"w", arrays: int = 0) -> bytes:
    text = struct.pack("<Q", len(tensor)) + tensor + struct.pack("<IQQIQ", 2, 1, 1, 0, 0)
    pairs = [struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 1)] if key else []
    for at in range(arrays):
        name = f"k{at}".encode()
        pairs.append(struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, 9, 2**20) + bytes(12 * 2**17))
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + text
    return content + bytes(-len(content) % 32) + bytes(32)


def pickled(path: Path, names: object) -> None:
    torch.save(names, path)


def beside(name: str, content: bytes) -> Callable[[Path], None]:
    """A writer of a sound model with `content` beside it."""

    def write(folder: Path) -> None:
        save_file(SOUND, folder / ("adapter_model.safetensors" if name == ADAPTER_CONFIG else WEIGHTS))
        (folder / name).write_bytes(content)

    return write


def weights(content: bytes, name: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: folder.joinpath(name).write_bytes(content) and None


LISTS = b"[" + b"[]," * MB + b"[]]"
OBJECTS = b"[" + b"{}," * MB + b"{}]"
DEEP = b'{"a":' * 900 + b"1" + b"}" * 900
MANY = b"[" + b"1," * (4 * MB) + b"1]"

HOSTILE: dict[str, Callable[[Path], None]] = {
    "lists in a header": weights(file_bytes(header(LISTS), bytes(4))),
    "objects in a header": weights(file_bytes(header(OBJECTS), bytes(4))),
    "a deep header": weights(file_bytes(header(DEEP), bytes(4))),
    "a name of 4 MB in a header": weights(file_bytes({"w" * 4 * MB: info()}, bytes(4))),
    "a shape of a hundred thousand": weights(file_bytes(header(json.dumps([1] * (MB // 8)).encode()), bytes(4))),
    "lists in a config": beside("config.json", b'{"a":' + LISTS * 2 + b"}"),
    "lists in a quantization config": beside("config.json", b'{"quantization_config":{"ignore":' + LISTS + b"}}"),
    "a deep config": beside("config.json", DEEP),
    "values in a config": beside("config.json", b'{"a":' + MANY + b"}"),
    "a deep adapter config": beside(ADAPTER_CONFIG, DEEP),
    "values in an adapter config": beside(ADAPTER_CONFIG, b'{"peft_type":"LORA","a":' + MANY + b"}"),
    "lists in an index": beside("a.index.json", b'{"weight_map":{"w":"a"},"metadata":' + LISTS + b"}"),
    "a deep index": weights(b'{"weight_map":' + DEEP + b"}", INDEX),
    "values in an index": weights(b'{"metadata":' + MANY + b"}", INDEX),
    "a name of 60 kB in GGUF": weights(gguf(tensor=b"w" * 60_000), "m.gguf"),
    "a key of 60 kB in GGUF": weights(gguf(key=b"k" * 60_000), "m.gguf"),
    "arrays of arrays in GGUF": weights(gguf(arrays=4), "m.gguf"),
    "a name of 4 MB in a pickle": lambda folder: pickled(folder / "m.pt", {"w" * 4 * MB: torch.ones(2, 2)}),
    "a name of 5 kB in a pickle": lambda folder: pickled(folder / "m.pt", {"é" * 2500: torch.ones(2, 2)}),
    "many tensors in a long key": lambda folder: pickled(
        folder / "m.pt", {"w" * 20_000: {str(at): torch.ones(1, 1) for at in range(500)}}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_stays_within_the_limit(tmp_path: Path, name: str) -> None:
    HOSTILE[name](tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    tracemalloc.start()
    message = ""
    try:
        list_matrices(open_checkpoint(str(tmp_path), identify=False), compare_bytes=False)
    except CheckpointError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * size + 100 * MB
    assert message.isprintable()
    assert len(message) < 1000
    if name not in ("lists in a config", "lists in a quantization config", "lists in an index"):  # within the limits
        assert message


@pytest.mark.parametrize("name", ["w" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2)])
def test_names_up_to_four_kilobytes_are_read(tmp_path: Path, name: str) -> None:
    for file in (WEIGHTS, "pytorch_model.bin"):
        folder = tmp_path / file
        folder.mkdir()
        save_file({name: torch.ones(2, 2)}, folder / file) if file == WEIGHTS else torch.save(
            {name: torch.ones(2, 2)}, folder / file
        )
        assert [entry.name for entry in open_checkpoint(str(folder)).tensors] == [name]


@pytest.mark.parametrize("name", ["w" * (MAX_NAME_BYTES + 1), "é" * (MAX_NAME_BYTES // 2 + 1)])
def test_longer_names_are_refused(tmp_path: Path, name: str) -> None:
    for file in (WEIGHTS, "pytorch_model.bin"):
        folder = tmp_path / file
        folder.mkdir()
        save_file({name: torch.ones(2, 2)}, folder / file) if file == WEIGHTS else torch.save(
            {name: torch.ones(2, 2)}, folder / file
        )
        with pytest.raises(CheckpointError, match=f"longer than {MAX_NAME_BYTES} bytes"):
            open_checkpoint(str(folder))


@pytest.mark.parametrize("dimensions", [MAX_DIMENSIONS, MAX_DIMENSIONS + 1])
def test_dimensions_are_limited(tmp_path: Path, dimensions: int) -> None:
    (tmp_path / WEIGHTS).write_bytes(file_bytes({"w": info("F32", (1,) * dimensions)}, bytes(4)))
    if dimensions <= MAX_DIMENSIONS:
        assert open_checkpoint(str(tmp_path)).tensors
    else:
        with pytest.raises(CheckpointError, match="65 dimensions"):
            open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "values", "depth"),
    [
        (b"[]", 1, 1),
        (b'"[[[{{{,,,:::"', 0, 0),
        (rb'{"a\"[[[": ["\\", {}, 1]}', 6, 3),
        (b'"never closed [[[[', 0, 0),
        (b'"ends with a backslash \\', 0, 0),
        (b"[" * 64 + b"]" * 64, 64, 64),
        (b"]]]][[[[", 4, 0),
    ],
)
def test_values_and_depth_are_counted_outside_of_strings(text: bytes, values: int, depth: int) -> None:
    check_json_size(text, "it", max_values=values)
    if values:
        with pytest.raises(CheckpointError, match=f"about {values} JSON values, over the limit of {values - 1}"):
            check_json_size(text, "it", max_values=values - 1)
    assert depth <= MAX_DEPTH


@pytest.mark.parametrize("text", [b"[" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b'[[],"]]]",' + b"[" * 64])
def test_deep_nesting_is_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError, match="nested more than 64 deep"):
        check_json_size(text, "it")


def test_counting_takes_time_proportional_to_the_text() -> None:
    # Strings that end in another block than they begin, and escapes at the ends of blocks.
    for length in range(2**18 - 3, 2**18 + 3):
        check_json_size(b'["' + b"x" * length + rb'[[\"[[", []]', "it", max_values=3)
    for text in (b'"' + b'\\"' * MB, b'"' * MB, b"\\" * MB, b'"\\' * MB):
        check_json_size(text, "it")
