"""The index over the shards of a model: whatever it says, it is read as a list of files of its own folder or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scanner.checkpoint import open_checkpoint
from scanner.errors import CheckpointError

from ..writing import INDEX, checkpoint, sharded

SHARDS = {
    "model-1.safetensors": {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(3)},
    "model-2.safetensors": {"c.weight": torch.ones(4, 1)},
}
WEIGHT_MAP = {tensor: file for file, tensors in SHARDS.items() for tensor in tensors}

ESCAPES = [
    "../secret.safetensors", "..\\secret.safetensors", "../model/model-1.safetensors", "./model-1.safetensors", "..", ".", "",
    "sub/model-1.safetensors", "C:model-1.safetensors", "C:\\x.safetensors", "\\\\host\\x.safetensors", "file:///x.safetensors",
    "s3://bucket/x.safetensors", "model-1.safetensors\0", "model-1.safetensors\0.safetensors", "link.safetensors",
    "\ud800.safetensors", "\x1b[31m.safetensors", "x" * 5000 + ".safetensors", "config.json", INDEX, "*.safetensors",
    "nul.safetensors",
]  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.just(10**400)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from([*ESCAPES, *SHARDS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TENSORS = st.sampled_from([*WEIGHT_MAP, "d.weight", "\x1b[31m", "\ud800", ""]) | st.text(max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two shards, beside a file that is none of its own."""
    top = tmp_path_factory.mktemp("index")
    checkpoint(top / "outside", {"secret.weight": torch.ones(2, 2)})
    (top / "outside" / "model.safetensors").rename(top / "secret.safetensors")
    sharded(top / "model", SHARDS)
    (top / "model" / "link.safetensors").symlink_to(top / "secret.safetensors")
    return top / "model"


def outcome(folder: Path, content: bytes) -> str | None:
    """Return the message of the refusal, or None if the model was read: then as it is."""
    (folder / INDEX).write_bytes(content)
    try:
        opened = open_checkpoint(str(folder), identify=False)
    except CheckpointError as error:
        message = str(error)
        if not message.isprintable() or len(message) > 5000:
            pytest.fail(f"message {message[:500]!r} of {len(message)} characters")
        return message
    files = {entry.file for entry in opened.tensors}
    assert files <= set(SHARDS)
    assert {entry.name for entry in opened.tensors} == {tensor for file in files for tensor in SHARDS[file]}
    return None


def test_a_sound_index_is_read(folder: Path) -> None:
    assert outcome(folder, json.dumps({"weight_map": WEIGHT_MAP}).encode()) is None


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(content=b'{"weight_map":' * 10**6)
@example(content=b'{"weight_map":' + b"[" * 10**6)
@example(content=b"[" * 10**6 + b"]" * 10**6)
@example(content=b'{"weight_map": {"a.weight": ' + b"9" * 5000 + b"}}")
@example(content=b'{"weight_map": {"a.weight": NaN}}')
@example(content=b'\xef\xbb\xbf{"weight_map": {}}')
def test_arbitrary_bytes_are_refused(folder: Path, content: bytes) -> None:
    assert outcome(folder, content) is not None


@settings(max_examples=300, deadline=None)
@given(content=VALUES | st.fixed_dictionaries({"weight_map": VALUES}, optional={"metadata": VALUES}))
def test_arbitrary_json_is_refused(folder: Path, content: Any) -> None:
    assert outcome(folder, json.dumps(content).encode()) is not None


@settings(max_examples=500, deadline=None)
@given(
    changes=st.dictionaries(TENSORS, st.sampled_from([*ESCAPES, *SHARDS]) | VALUES, max_size=3),
    removed=st.sets(st.sampled_from([*WEIGHT_MAP])),
)
def test_a_changed_weight_map_is_refused_or_names_the_same_model(
    folder: Path, changes: dict[str, Any], removed: set[str]
) -> None:
    weight_map = {tensor: file for tensor, file in WEIGHT_MAP.items() if tensor not in removed} | changes
    message = outcome(folder, json.dumps({"weight_map": weight_map}).encode())
    assert (message is None) == bool(weight_map and weight_map.items() <= WEIGHT_MAP.items())


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(list(b'-019"{}[],:./\\ \x00\xffu'))),
        min_size=1,
        max_size=3,
    )
)
def test_a_damaged_index_is_refused_or_names_the_same_model(folder: Path, edits: list[tuple[int, int, int]]) -> None:
    text = bytearray(json.dumps({"metadata": {"total_size": 52}, "weight_map": WEIGHT_MAP}).encode())
    for place, length, byte in edits:
        place %= len(text)
        text[place : place + length] = bytes([byte])
    outcome(folder, bytes(text))


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    for weight_map in ({"secret.weight": name}, WEIGHT_MAP | {"secret.weight": name}):
        assert outcome(folder, json.dumps({"weight_map": weight_map}).encode()) is not None


def test_a_million_tensors_that_are_not_there_are_refused(folder: Path) -> None:
    weight_map = {f"model.layers.{at}.weight": "model-1.safetensors" for at in range(10**6)}
    assert outcome(folder, json.dumps({"weight_map": weight_map}).encode()) is not None


def test_a_hundred_thousand_files_that_are_not_there_are_refused(folder: Path) -> None:
    weight_map = {str(at): f"model-{at}.safetensors" for at in range(10**5)}
    message = outcome(folder, json.dumps({"weight_map": weight_map}).encode())
    assert "99998 of the 100000 files" in str(message)
