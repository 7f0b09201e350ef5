import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from scanner.checkpoint import TensorEntry
from scanner.checkpoint.formats.safetensors import DTYPE_BITS, read_header
from scanner.checkpoint.sources.files import LocalFiles
from scanner.errors import CheckpointError

from ..writing import WEIGHTS, file_bytes, info


def parse(folder: Path, content: bytes) -> list[TensorEntry]:
    (folder / WEIGHTS).write_bytes(content)
    return read_header(LocalFiles(str(folder)), WEIGHTS)


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(folder, content)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def test_entries_say_where_their_bytes_are(tmp_path: Path) -> None:
    header = {"b": info("F32", (1, 2), 2, 10), "a": info("BF16", (), 0, 2), "__metadata__": {"format": "pt"}}
    content = file_bytes(header, b"0123456789")
    first, second = parse(tmp_path, content)
    assert (first.name, first.dtype, first.shape, first.file, first.size) == ("a", "BF16", (), WEIGHTS, 2)
    assert content[first.start : first.start + first.size] == b"01"
    assert (second.name, second.shape) == ("b", (1, 2))
    assert content[second.start : second.start + second.size] == b"23456789"


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_has_the_size_that_safetensors_gives_it(tmp_path: Path, dtype: str) -> None:
    size = 8 * DTYPE_BITS[dtype] // 8
    content = file_bytes({"t": info(dtype, (2, 4), 0, size)}, bytes(size))
    assert deserialize(content)[0][1]["shape"] == [2, 4]
    assert [entry.size for entry in parse(tmp_path, content)] == [size]


@pytest.mark.parametrize("size", range(8))
def test_a_file_too_small_for_a_length_is_refused(tmp_path: Path, size: int) -> None:
    assert f"{size} bytes" in refused(tmp_path, bytes(size))


def test_a_truncated_file_tells_both_sizes_and_what_to_do(tmp_path: Path) -> None:
    content = file_bytes({"t": info("F32", (2, 2), 0, 16)}, bytes(16))
    message = refused(tmp_path, content[:-5])
    assert f"has {len(content) - 5} bytes" in message
    assert f"promises {len(content)}" in message
    assert "download it again" in message
    assert "promises" in refused(tmp_path, content[:20])


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    assert "promises" in refused(tmp_path, file_bytes({"t": info()}, bytes(5)))


def test_a_huge_header_length_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    assert "not a safetensors file" in refused(tmp_path, file_bytes({}, length=2**64 - 1))
    assert "not a safetensors file" in refused(tmp_path, b"PK\x03\x04 a zip file, or a pickle in one")


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 9\n"
    )
    assert "git lfs pull" in refused(tmp_path, pointer)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_million_brackets_are_refused(tmp_path: Path, opening: str) -> None:
    nested = ('{"a":' + opening * 10**6).encode()
    assert "header" in refused(tmp_path, file_bytes(nested))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b' {"t": {}}',
        b"{\xff}",
        b'{"t": ',
        b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [NaN, 4]}}',
        b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": NaN}}',
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_not_a_json_object_is_refused(tmp_path: Path, header: bytes) -> None:
    assert WEIGHTS in refused(tmp_path, file_bytes(header, bytes(4)))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (None, "JSON object"),
        ([], "JSON object"),
        ({}, "dtype that is not a string"),
        (info() | {"dtype": "F33"}, "unknown dtype 'F33'"),
        (info() | {"dtype": ["F32"]}, "not a string"),
        (info() | {"shape": 1}, "shape"),
        (info() | {"shape": [1, True]}, "shape"),
        (info() | {"shape": [1.0]}, "shape"),
        (info() | {"shape": ["1"]}, "shape"),
        (info() | {"shape": [-1, -1]}, "not a size"),
        (info() | {"shape": [2**63, 2**63, 0], "data_offsets": [0, 0]}, "larger than any file"),
        (info() | {"shape": [3] * 10**5}, "larger than any file"),
        (info() | {"data_offsets": [0]}, "data_offsets"),
        (info() | {"data_offsets": [0, 4, 4]}, "data_offsets"),
        (info() | {"data_offsets": [False, 4]}, "data_offsets"),
        (info() | {"data_offsets": [0, 4.0]}, "data_offsets"),
        (info() | {"data_offsets": [4, 0]}, "has -4 bytes"),
        (info() | {"data_offsets": [0, 3]}, "has 3 bytes"),
        (info() | {"data_offsets": [-4, 0]}, "not a size"),
        (info() | {"data_offsets": [0, 10**30]}, "not a size"),
        (info("F4", (3,), 0, 2), "has 2 bytes"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(tmp_path: Path, entry: Any, complaint: str) -> None:
    assert complaint in refused(tmp_path, file_bytes({"t": entry}, bytes(4)))


def test_an_unknown_dtype_names_the_tensor(tmp_path: Path) -> None:
    message = refused(tmp_path, file_bytes({"a\x1b[2Jb": info() | {"dtype": "Q4\x07"}}, bytes(4)))
    assert "'a\\x1b[2Jb'" in message
    assert "'Q4\\x07'" in message


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    header = {"a": info("F32", (2,), 0, 8), "b": info("F32", (2,), 4, 12)}
    message = refused(tmp_path, file_bytes(header, bytes(12)))
    assert "overlap" in message
    assert "'a'" in message
    assert "'b'" in message


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path: Path) -> None:
    header = {"a": info("F32", (1,), 0, 4), "b": info("F32", (1,), 8, 12)}
    assert "no tensor" in refused(tmp_path, file_bytes(header, bytes(12)))


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    one = json.dumps(info())
    assert "'t' occurs twice" in refused(tmp_path, file_bytes(f'{{"t":{one},"t":{one}}}'.encode(), bytes(4)))
    twice = b'{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert "'dtype' occurs twice" in refused(tmp_path, file_bytes(twice, bytes(4)))


def test_metadata_that_is_not_text_is_refused(tmp_path: Path) -> None:
    assert "__metadata__" in refused(tmp_path, file_bytes({"__metadata__": {"a": 1}, "t": info()}, bytes(4)))


def test_a_hundred_thousand_tensors_are_read(tmp_path: Path) -> None:
    count = 10**5
    header = {f"model.layers.{i}.mlp.up_proj.weight": info("F16", (1, 2), 4 * i, 4 * i + 4) for i in range(count)}
    entries = parse(tmp_path, file_bytes(header, bytes(4 * count)))
    assert len(entries) == count
    assert entries[-1].name == f"model.layers.{count - 1}.mlp.up_proj.weight"


def agrees_with_safetensors(folder: Path, content: bytes) -> bool:
    """Whatever is accepted here, the reference implementation accepts too, and reads as the same bytes."""
    try:
        entries = parse(folder, content)
    except CheckpointError as error:
        message = str(error)
        if not message.isprintable():
            pytest.fail(f"unprintable message {message!r}")
        return False
    expected = {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in deserialize(content)
    }
    found = {e.name: (e.dtype, e.shape, content[e.start : e.start + e.size]) for e in entries}
    assert found == expected
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_cleanly(folder: Path, content: bytes) -> None:
    agrees_with_safetensors(folder, content)


@given(header=st.binary(max_size=100), data=st.binary(max_size=16))
def test_arbitrary_headers_are_refused_cleanly(folder: Path, header: bytes, data: bytes) -> None:
    agrees_with_safetensors(folder, file_bytes(b"{" + header, data))


DTYPES = st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "F4"])


@st.composite
def valid_files(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=4))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        dtype = draw(DTYPES)
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        entries = 1
        for extent in shape:
            entries *= extent
        if dtype == "F4" and entries % 2:
            dtype = "I8"
        start, end = end, end + entries * DTYPE_BITS[dtype] // 8
        header[name] = info(dtype, tuple(shape), start, end)
    header = {name: header[name] for name in draw(st.permutations(list(header)))}
    return header, draw(st.binary(min_size=end, max_size=end))


@given(file=valid_files())
def test_valid_files_are_read_like_safetensors_reads_them(folder: Path, file: tuple[dict[str, Any], bytes]) -> None:
    header, data = file
    assert agrees_with_safetensors(folder, file_bytes(header, data))


@settings(max_examples=300)
@given(
    file=valid_files(),
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 2), st.sampled_from(list(b'-0123456789"{}[],:.eE\\ \x00\xff'))),
        min_size=1,
        max_size=3,
    ),
)
def test_mutated_files_are_refused_or_still_valid(
    folder: Path, file: tuple[dict[str, Any], bytes], edits: list[tuple[int, int, int]]
) -> None:
    header, data = file
    text = bytearray(json.dumps(header, ensure_ascii=False).encode())
    for place, removed, byte in edits:
        place %= len(text)
        text[place : place + removed] = bytes([byte])
    agrees_with_safetensors(folder, file_bytes(bytes(text), data))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 20), st.just(2**64), st.floats(), st.text(max_size=3), DTYPES,
    st.lists(st.integers(-1, 9), max_size=3),
)  # fmt: skip


@settings(max_examples=300)
@given(file=valid_files(), field=st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]), value=VALUES)
def test_fields_of_wrong_types_are_refused_or_still_valid(
    folder: Path, file: tuple[dict[str, Any], bytes], field: str, value: Any
) -> None:
    header, data = file
    if field == "__metadata__" or not header:
        header["__metadata__"] = value
    else:
        header[next(iter(header))][field] = value
    agrees_with_safetensors(folder, file_bytes(header, data))


def test_a_valid_file_cut_anywhere_is_refused(folder: Path) -> None:
    content = file_bytes(
        {"a": info("F32", (2, 2), 0, 16), "b": info("F16", (2,), 16, 20)}, random.Random(0).randbytes(20)
    )
    for size in range(len(content)):
        assert not agrees_with_safetensors(folder, content[:size])
        with pytest.raises(SafetensorError):
            deserialize(content[:size])
