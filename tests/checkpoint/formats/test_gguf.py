import struct
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, MODEL_TENSOR, TENSOR_NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scanner.checkpoint import MatrixRef, Selection, TensorEntry, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.formats.gguf import (
    METADATA_KEY,
    ROPE_PERMUTED,
    classify_gguf,
    model_config,
    read_gguf,
    rope_permuted,
    split_names,
)
from scanner.checkpoint.formats.gguf_blocks import READABLE_GGUF_TYPES, decode_gguf
from scanner.checkpoint.formats.gguf_header import MAX_KEPT_NUMBERS, MAX_KEPT_TEXT, GgufHeader, read_gguf_header
from scanner.checkpoint.formats.weights import find_weights
from scanner.checkpoint.quantization.stored import TORCH_DTYPES, Stored
from scanner.checkpoint.sources.files import LocalFiles
from scanner.checkpoint.structure.role_tables import GGUF_ROLES
from scanner.errors import CheckpointError

from .gguf_writing import (
    ARRAY,
    GGUF,
    LLAMA,
    STRING,
    U32,
    array,
    blocks,
    decoded,
    gguf_bytes,
    item,
    llama,
    tensor,
    text,
    write_gguf,
)


def parse(folder: Path, content: bytes) -> GgufHeader:
    (folder / GGUF).write_bytes(content)
    return read_gguf_header(LocalFiles(str(folder)), GGUF)


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(folder, content)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert GGUF in message
    return message


def stored_bytes(path: Path, entry: TensorEntry) -> bytes:
    return path.read_bytes()[entry.start : entry.start + entry.size]


# ---- the header


def test_entries_are_what_ggufs_own_reader_finds(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {kind: blocks((3, 512), kind) for kind in sorted(READABLE_GGUF_TYPES | {"Q8_K", "BF16"})}
    tensors |= {"f64": np.ones((2, 3)), "f16": np.ones((2, 3, 4), np.float16), "i32": np.arange(5, dtype=np.int32)}
    path = write_gguf(tmp_path / GGUF, tensors, {"general.name": "x", "tokens": ["a", "b"], "floats": [0.5, 2.0]})
    header = read_gguf_header(LocalFiles(str(path)), GGUF)
    found = {entry.name: entry for entry in header.tensors}
    assert len(found) == len(tensors)
    for expected in GGUFReader(path).tensors:
        entry = found[expected.name]
        assert entry.dtype == expected.tensor_type.name
        assert entry.shape == tuple(reversed(expected.shape.tolist()))
        assert (entry.file, entry.start, entry.size) == (GGUF, expected.data_offset, expected.n_bytes)
        assert stored_bytes(path, entry) == expected.data.tobytes()
    assert [entry.start for entry in header.tensors] == sorted(entry.start for entry in header.tensors)


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_data_begins_at_a_multiple_of_the_alignment(tmp_path: Path, alignment: int) -> None:
    weights = {f"w{at}": np.full((at, 3), at, dtype=np.float32) for at in range(1, 5)}
    path = write_gguf(tmp_path / GGUF, weights, alignment=alignment)
    for entry in read_gguf_header(LocalFiles(str(path)), GGUF).tensors:
        assert entry.start % alignment == 0
        assert stored_bytes(path, entry) == weights[entry.name].tobytes()


def test_metadata_of_every_type_is_kept_if_it_is_short(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / GGUF, "llama")
    numbers = {
        "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True, "string": "naïve ☃",
    }  # fmt: skip
    for kind, number in numbers.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", number)
    writer.add_array("k.numbers", [1, -2, 3])
    writer.add_array("k.words", ["a", "bc"])
    writer.add_array("k.nested", [[1, 2], [3]])
    writer.add_array("k.long", list(range(MAX_KEPT_NUMBERS + 1)))
    writer.add_string("k.template", "x" * (MAX_KEPT_TEXT + 1))
    writer.add_uint32("k.last", 7)
    writer.add_tensor("w", np.ones((2, 2), dtype=np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    header = read_gguf_header(LocalFiles(str(tmp_path)), GGUF)
    expected = {f"k.{kind}": number for kind, number in numbers.items()} | {"k.numbers": [1, -2, 3], "k.last": 7}
    assert header.metadata == expected | {"general.architecture": "llama"}
    assert header.lengths == {"k.words": 2, "k.nested": 2, "k.long": MAX_KEPT_NUMBERS + 1}


def test_version_2_is_read_like_version_3(tmp_path: Path) -> None:
    assert parse(tmp_path, gguf_bytes(version=2)) == parse(tmp_path, gguf_bytes())


def test_a_big_endian_file_is_named_as_one(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / GGUF, "llama", endianess=GGUFEndian.BIG)
    writer.add_tensor("w", np.ones((2, 2), dtype=np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    assert "big-endian" in refused(tmp_path, (tmp_path / GGUF).read_bytes())


class CountingFiles(LocalFiles):
    """Remembers how much was read."""

    total = 0

    def read(self, name: str, start: int, size: int) -> bytes:
        content = super().read(name, start, size)
        self.total += len(content)
        return content


def test_only_the_header_is_read(tmp_path: Path) -> None:
    vocabulary = [f"token {number}" for number in range(100_000)]
    path = write_gguf(
        tmp_path / GGUF, {"w": np.ones((2048, 2048), dtype=np.float32)}, {"tokenizer.ggml.tokens": vocabulary}
    )
    files = CountingFiles(str(path))
    tracemalloc.start()
    header = read_gguf_header(files, GGUF)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.lengths["tokenizer.ggml.tokens"] == 100_000
    length = header.tensors[0].start
    assert length > 1_500_000
    assert files.total <= 1.2 * length
    assert peak < 2**20  # blocks of the header, and nothing of the vocabulary


def test_a_large_vocabulary_is_passed_in_seconds(tmp_path: Path) -> None:
    words = array(STRING, 300_000, text(b"word") * 300_000)
    (tmp_path / GGUF).write_bytes(gguf_bytes(items=[item(b"tokenizer.ggml.tokens", ARRAY, words)]))
    started = time.process_time()
    assert read_gguf_header(LocalFiles(str(tmp_path)), GGUF).lengths == {"tokenizer.ggml.tokens": 300_000}
    assert time.process_time() - started < 5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nested", [False, True])
def test_millions_of_empty_texts_are_refused(tmp_path: Path, nested: bool) -> None:
    many = array(ARRAY, 5000, array(STRING, 1000, bytes(8000)) * 5000) if nested else array(STRING, 30_000_000)
    with (tmp_path / GGUF).open("wb") as file:
        file.write(gguf_bytes(items=[item(b"key", ARRAY, many)], data=b""))
        file.truncate(250_000_000)
    with pytest.raises(CheckpointError, match="more than 4000000 texts"):
        read_gguf_header(LocalFiles(str(tmp_path)), GGUF)


# ---- hostile headers

HUGE = 2**63

ENTRY = tensor()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "does not begin"),
        (b"GGUF", "does not begin"),
        (b"GGML" + bytes(100), "does not begin"),
        (gguf_bytes(magic=b"gguf"), "does not begin"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=4), "version 4"),
        (gguf_bytes(version=0), "version 0"),
        (gguf_bytes(version=3 << 24), "big-endian"),
        (gguf_bytes(item_count=HUGE), "metadata keys"),
        (gguf_bytes(item_count=10**6), "metadata keys"),
        (gguf_bytes(tensor_count=HUGE), "promises 9223372036854775808 tensors"),
        (gguf_bytes(tensor_count=40), "promises 40 tensors"),
        (gguf_bytes(item_count=0), "damaged|type|bytes|dimensions"),
        (gguf_bytes(items=[text(b"key", length=HUGE)]), "name of a metadata key has"),
        (gguf_bytes(items=[text(b"key", length=2**16)]), "name of a metadata key has"),
        (gguf_bytes(items=[item(b"", U32, bytes(4))]), "name of a metadata key has 0 bytes"),
        (gguf_bytes(items=[item(b"\xff\xfe", U32, bytes(4))]), "not UTF-8"),
        (gguf_bytes(items=[item(b"k", 13, bytes(8))]), "unknown type 13"),
        (gguf_bytes(items=[item(b"k", 2**32 - 1, bytes(8))]), "unknown type"),
        (gguf_bytes(items=[item(b"k", U32, bytes(4))] * 2), "'k' occurs twice"),
        (gguf_bytes(items=[item(b"k", STRING, text(b"x", length=HUGE))]), "after the end of the file"),
        (gguf_bytes(items=[item(b"k", STRING, text(b"x", length=2**64 - 1))]), "after the end of the file"),
        (gguf_bytes(items=[item(b"k", ARRAY, array(U32, HUGE))]), "array of"),
        (gguf_bytes(items=[item(b"k", ARRAY, array(STRING, 2**40))]), "array of"),
        (gguf_bytes(items=[item(b"k", ARRAY, array(14, 1, bytes(8)))]), "array of the unknown type 14"),
        (
            gguf_bytes(items=[item(b"k", ARRAY, array(STRING, 2, text(b"a") + text(b"b", length=HUGE)))]),
            "after the end",
        ),
        (gguf_bytes(items=[item(b"k", ARRAY, b"".join([array(ARRAY, 1)] * 9) + array(U32, 0))]), "nested"),
        (gguf_bytes(items=[item(b"general.alignment", U32, struct.pack("<I", 0))]), "alignment"),
        (gguf_bytes(items=[item(b"general.alignment", U32, struct.pack("<I", 48))]), "alignment"),
        (gguf_bytes(items=[item(b"general.alignment", STRING, text(b"32"))]), "alignment"),
        (gguf_bytes(items=[item(b"general.alignment", U32, struct.pack("<I", 2**30))]), "ends at byte"),
        (gguf_bytes(tensors=[tensor(name=b"")]), "name of a tensor has 0 bytes"),
        (gguf_bytes(tensors=[tensor(name=b"\xc3\x28")]), "not UTF-8"),
        (gguf_bytes(tensors=[text(b"w", length=HUGE) + bytes(100)]), "name of a tensor"),
        (gguf_bytes(tensors=[ENTRY, tensor(offset=32)]), "'w' occurs twice"),
        (gguf_bytes(tensors=[tensor(dimensions=(1,) * 5)]), "5 dimensions"),
        (gguf_bytes(tensors=[tensor(count=2**32 - 1)]), "4294967295 dimensions"),
        (gguf_bytes(tensors=[tensor(dimensions=(4, 0))]), "dimensions 0x4"),
        (gguf_bytes(tensors=[tensor(dimensions=(2**63, 2**63, 2**63, 2**63))]), "dimensions"),
        (gguf_bytes(tensors=[tensor(dimensions=(2**32, 2**32))]), "dimensions"),
        (gguf_bytes(tensors=[tensor(dimensions=(2**20, 2**20))]), "ends at byte"),
        (gguf_bytes(tensors=[tensor(kind=4)]), "ggml type 4"),
        (gguf_bytes(tensors=[tensor(kind=2**31)]), "ggml type"),
        (gguf_bytes(tensors=[tensor(kind=12, dimensions=(128, 2))]), "whole number of Q4_K blocks"),
        (gguf_bytes(tensors=[tensor(kind=2, dimensions=())]), "whole number of Q4_0 blocks"),
        (gguf_bytes(tensors=[tensor(offset=16)]), "multiple of 32"),
        (gguf_bytes(tensors=[tensor(offset=64)]), "ends at byte"),
        (gguf_bytes(tensors=[tensor(offset=2**64 - 32)]), "ends at byte"),
        (gguf_bytes(tensors=[ENTRY, tensor(name=b"v")]), "'v' and 'w' overlap"),
        (gguf_bytes(tensors=[tensor(dimensions=(16,)), tensor(name=b"v", offset=32)]), "overlap"),
        (gguf_bytes()[:-40], "ends at byte"),
    ],
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    message = refused(tmp_path, content)
    assert any(part in message for part in what.split("|"))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "whole" / GGUF, {"a": blocks((2, 64), "Q4_0"), "b": np.ones(3, np.float32)}, LLAMA)
    content = path.read_bytes()
    end = max(entry.start + entry.size for entry in parse(tmp_path, content).tensors)
    for length in range(end):
        refused(tmp_path, content[:length])


def test_terminal_escapes_in_names_are_never_shown_raw(tmp_path: Path) -> None:
    assert "\\x1b[31m" in refused(tmp_path, gguf_bytes(tensors=[tensor(name=b"\x1b[31mred", kind=4)]))
    assert "\\x1b" in refused(tmp_path, gguf_bytes(items=[item(b"\x1b]0;x\x07", U32, bytes(4))] * 2))


def test_an_unknown_type_says_what_to_update(tmp_path: Path) -> None:
    message = refused(tmp_path, gguf_bytes(tensors=[tensor(kind=2000)]))
    assert "2000" in message
    assert "pip install --upgrade gguf" in message


SOUND = gguf_bytes(
    items=[
        item(b"general.architecture", STRING, text(b"llama")),
        item(b"general.alignment", U32, struct.pack("<I", 32)),
        item(b"tokens", ARRAY, array(STRING, 3, text(b"a") + text(b"") + text(b"ccc"))),
        item(b"heads", ARRAY, array(U32, 2, struct.pack("<2I", 8, 8))),
    ],
    tensors=[tensor(b"q", (32, 2), 2), tensor(b"f", (4, 2), 0, 64), tensor(b"s", (), 0, 96)],
    data=bytes(128),
)


def check_bounded(folder: Path, content: bytes) -> None:
    """Read it, or refuse it; either way with little memory, and with tensors that lie inside the file."""
    tracemalloc.start()
    try:
        header = parse(folder, content)
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(0 <= entry.start <= entry.start + entry.size <= len(content) for entry in header.tensors)
        model_config(header.metadata, header.lengths, [entry.name for entry in header.tensors])
        for entry in header.tensors:
            classify_gguf(entry.name)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20 + 16 * len(content)


FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(content=st.binary(max_size=400), begin=st.sampled_from([b"", SOUND[:4], SOUND[:8], SOUND[:24], SOUND[:60]]))
def test_random_bytes_cost_no_crash_and_no_memory(tmp_path: Path, content: bytes, begin: bytes) -> None:
    check_bounded(tmp_path, begin + content)


HOSTILE_NUMBERS = [0, 1, 2, 3, 4, 8, 9, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@FUZZ
@given(
    edits=st.lists(
        st.tuples(st.integers(4, len(SOUND) - 1), st.sampled_from(HOSTILE_NUMBERS), st.sampled_from([1, 4, 8])),
        min_size=1,
        max_size=4,
    ),
    cut=st.none() | st.integers(0, len(SOUND)),
)
def test_mutated_files_cost_no_crash_and_no_memory(
    tmp_path: Path, edits: list[tuple[int, int, int]], cut: int | None
) -> None:
    content = bytearray(SOUND)
    for at, number, width in edits:
        content[at : at + width] = (number % 256**width).to_bytes(width, "little")
    check_bounded(tmp_path, bytes(content[:cut]))


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_sound_files_are_read_like_gguf_reads_them(tmp_path: Path, data: st.DataObject) -> None:
    kinds = st.sampled_from(["F32", "F16", "Q4_0", "Q8_0", "Q4_K", "IQ4_XS"])
    extents = st.lists(st.integers(1, 3), min_size=0, max_size=3)
    names = st.text(min_size=1, max_size=12).filter(lambda name: len(name.encode("utf-8", "ignore")) > 0)
    tensors: dict[str, Any] = {}
    for name in data.draw(st.lists(st.text("abc.é☃", min_size=1, max_size=12), min_size=1, max_size=4, unique=True)):
        kind = data.draw(kinds)
        shape = (*data.draw(extents), GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] * data.draw(st.integers(1, 2)))
        as_numbers = {"F32": np.float32, "F16": np.float16}
        tensors[name] = np.ones(shape, as_numbers[kind]) if kind in as_numbers else blocks(shape, kind)
    values: st.SearchStrategy[Any] = (
        st.integers(0, 2**32 - 1) | st.text("xyz☃", min_size=1, max_size=20) | st.booleans()
    )
    values |= st.lists(st.integers(0, 9), min_size=1, max_size=5) | st.lists(st.text("ab"), min_size=1, max_size=5)
    metadata = data.draw(
        st.dictionaries(names.map(lambda name: f"k.{name.encode('unicode_escape').decode()}"), values, max_size=4)
    )
    path = write_gguf(tmp_path / GGUF, tensors, metadata, alignment=data.draw(st.sampled_from([None, 8, 64])))
    header = read_gguf_header(LocalFiles(str(path)), GGUF)
    reader = GGUFReader(path)
    assert {entry.name: (entry.shape, entry.dtype, entry.start, entry.size) for entry in header.tensors} == {
        t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in reader.tensors
    }
    for key, value in metadata.items():
        if isinstance(value, list) and isinstance(value[0], str):
            assert header.lengths[key] == len(value)
        else:
            assert header.metadata[key] == value == reader.fields[key].contents()


# ---- decoding


def entry_of(tensor_: tuple[NDArray[np.uint8], str], shape: tuple[int, ...]) -> Stored:
    content = tensor_[0].reshape(-1).copy()
    entry = TensorEntry(name="w", dtype=tensor_[1], shape=shape, file=GGUF, start=0, size=content.size)
    return Stored(entry=entry, content=content)


def test_the_readable_types_are_those_that_gguf_decodes() -> None:
    decodable = set()
    for kind in GGMLQuantizationType:
        if kind in GGML_QUANT_SIZES:
            block_entries, block_bytes = GGML_QUANT_SIZES[kind]
            try:
                found = quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
            except NotImplementedError:
                continue
            assert found.shape == (1, block_entries)
            decodable.add(kind.name)
    assert decodable - set(TORCH_DTYPES) == READABLE_GGUF_TYPES


@pytest.mark.parametrize("kind", sorted(READABLE_GGUF_TYPES))
def test_every_readable_type_decodes_as_in_gguf(kind: str) -> None:
    stored = blocks((7, 3, 512), kind)
    found = decode_gguf(entry_of(stored, (7, 3, 512)), {}, {})
    assert found.dtype == torch.float32
    expected = decoded(stored)
    assert np.isfinite(expected).all()
    assert expected.std() > 0
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "IQ2_XS"])
def test_large_tensors_are_decoded_in_pieces_with_the_same_result(kind: str) -> None:
    stored = blocks((3001, 1024), kind)
    entry = entry_of(stored, (3001, 1024))
    decode_gguf(entry_of(blocks((1, 1024), kind), (1, 1024)), {}, {})  # imports and lookup tables
    tracemalloc.start()
    found = decode_gguf(entry, {}, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < found.numel() * 4 + 30 * 2**20
    assert np.array_equal(found.numpy(), decoded(stored))


def test_one_expert_is_decoded_from_its_own_bytes() -> None:
    stored = blocks((5, 4, 256), "Q5_K")
    whole = entry_of(stored, (5, 4, 256))
    size = whole.entry.size // 5
    for expert in range(5):
        narrowed = replace(whole.entry, shape=(4, 256), start=expert * size, size=size)
        one = Stored(entry=narrowed, content=whole.content[expert * size : (expert + 1) * size])
        assert np.array_equal(decode_gguf(one, {}, {}).numpy(), decoded(stored)[expert])


@pytest.mark.parametrize(
    ("kind", "shape", "size"), [("Q8_K", (1, 256), 292), ("Q4_0", (1, 32), 19), ("Q4_0", (1, 33), 18), ("?", (1, 1), 1)]
)
def test_bytes_that_cannot_be_decoded_are_refused(kind: str, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(CheckpointError, match="w:"):
        decode_gguf(entry_of((np.zeros(size, dtype=np.uint8), kind), shape), {}, {})


def test_a_damaged_scale_decodes_to_what_it_says_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    stored = (np.full((1, 34), 0x7C, dtype=np.uint8), "Q8_0")  # 0x7C7C is not a number
    assert decode_gguf(entry_of(stored, (1, 32)), {}, {}).isnan().all()
    assert not recwarn.list


# ---- config


def config_of(metadata: dict[str, Any], tensors: Sequence[str] = ("token_embd.weight",)) -> dict[str, Any]:
    return model_config(metadata, {}, tensors)


def test_the_config_has_the_keys_of_transformers() -> None:
    metadata = {"general.architecture": "llama", "tokenizer.chat_template": "{{ x }}"} | LLAMA
    config = model_config(metadata, {"tokenizer.ggml.tokens": 50}, ["token_embd.weight"])
    assert {key: value for key, value in config.items() if key != METADATA_KEY} == {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    }
    assert config[METADATA_KEY] == {"general.architecture": "llama"} | LLAMA


@pytest.mark.parametrize(
    ("architecture", "metadata", "model_type"),
    [
        ("llama", {}, "llama"),
        ("llama", {"llama.expert_count": 8}, "mixtral"),
        ("qwen3moe", {}, "qwen3_moe"),
        ("gpt-oss", {}, "gpt_oss"),
        ("gptneox", {}, "gpt_neox"),
        ("something-new", {}, "something_new"),
    ],
)
def test_model_types_are_called_as_in_transformers(
    architecture: str, metadata: dict[str, Any], model_type: str
) -> None:
    assert config_of({"general.architecture": architecture} | metadata)["model_type"] == model_type


def test_counts_that_differ_between_layers_are_given_by_their_largest() -> None:
    metadata = {"general.architecture": "deci", "deci.attention.head_count": [32, 0, 32]}
    config = config_of(metadata | {"deci.attention.head_count_kv": [8, 0, 4], "deci.embedding_length": 4096})
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (32, 8, 128)


def test_heads_without_key_value_heads_share_nothing() -> None:
    config = config_of({"general.architecture": "gpt2", "gpt2.attention.head_count": 12, "gpt2.embedding_length": 768})
    assert (config["num_key_value_heads"], config["head_dim"]) == (12, 64)


def test_latent_attention_is_described_as_in_transformers() -> None:
    metadata = {
        "general.architecture": "deepseek2",
        "deepseek2.attention.head_count": 16,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.key_length": 576,
        "deepseek2.attention.value_length": 512,
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.attention.value_length_mla": 128,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
    }
    config = config_of(metadata)
    assert (config["head_dim"], config["v_head_dim"], config["num_key_value_heads"]) == (192, 128, 16)
    assert (config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]) == (128, 64, 512)


def test_a_separate_output_head_is_not_tied() -> None:
    assert config_of({"general.architecture": "llama"}, ["output.weight"])["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    "lie",
    [
        {"general.architecture": 7},
        {"general.architecture": ""},
        {},
        {"general.architecture": "llama", "llama.block_count": "many", "llama.attention.head_count": -3},
        {"general.architecture": "llama", "llama.attention.head_count": [], "llama.embedding_length": [0.5]},
        {"general.architecture": "llama", "llama.attention.head_count": True, "llama.embedding_length": 0},
        {"general.architecture": "llama", "general.base_model.0.repo_url": "http://[x"},
    ],
)
def test_values_of_wrong_types_are_left_out(lie: dict[str, Any]) -> None:
    config = config_of(lie)
    assert not {"num_hidden_layers", "num_attention_heads", "head_dim"} & set(config)
    assert all(isinstance(config[key], str) for key in ("model_type", "_name_or_path") if key in config)


def test_the_base_model_is_the_repository_it_names() -> None:
    metadata = {"general.architecture": "llama", "general.base_model.0.repo_url": "https://example.org/org/base"}
    assert config_of(metadata)["_name_or_path"] == "org/base"


# ---- roles and row orders


def test_every_name_of_gguf_has_the_role_of_its_tensor() -> None:
    roles = {tensor_: role for role, tensors in GGUF_ROLES.items() for tensor_ in tensors.split()}
    fused = {
        MODEL_TENSOR.ATTN_QKV,
        MODEL_TENSOR.V_ENC_ATTN_QKV,
        MODEL_TENSOR.VISEXP_ATTN_QKV,
        MODEL_TENSOR.V_SAM_ATTN_QKV,
    }
    for kind, name in TENSOR_NAMES.items():
        found = classify_gguf(name.format(bid=12) + ".weight")
        assert found.source == "gguf"
        assert found.layer == (12 if "blk.{bid}" in name else None)
        assert found.experts == name.endswith("exps")
        assert (found.parts == ("query", "key", "value")) == (kind in fused)
        if kind is MODEL_TENSOR.FFN_GATE_UP_EXP:
            assert found.parts == ("mlp_gate", "mlp_up")
        assert found.role == roles.get(kind.name, "other")


@pytest.mark.parametrize(
    ("name", "role", "layer", "stack", "expert"),
    [
        ("blk.7.attn_q.weight", "query", 7, None, None),
        ("blk.0.ffn_gate_inp.weight", "router", 0, None, None),
        ("blk.3.ffn_down.5.weight", "mlp_down", 3, None, 5),
        ("enc.blk.2.attn_o.weight", "attn_out", 2, "encoder", None),
        ("dec.blk.2.cross_attn_k.weight", "key", 2, "decoder", None),
        ("v.blk.11.ffn_up.weight", "mlp_up", 11, "encoder", None),
        ("token_embd.weight", "embedding", None, None, None),
        ("output.weight", "lm_head", None, None, None),
        ("output_norm.weight", "other", None, None, None),
    ],
)
def test_names_say_role_block_stack_and_expert(
    name: str, role: str, layer: int | None, stack: str | None, expert: int | None
) -> None:
    found = classify_gguf(name)
    assert (found.role, found.layer, found.stack, found.expert, found.source) == (role, layer, stack, expert, "gguf")


@pytest.mark.parametrize(
    "name",
    ["", ".", "blk", "blk.1", "model.layers.0.self_attn.q_proj.weight", "blk.x.attn_q.weight", "blk.²3.attn_q.weight"],
)
def test_names_that_gguf_does_not_have_are_other(name: str) -> None:
    found = classify_gguf(name)
    assert (found.role, found.source) == ("other", "none")


def converted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The row order of llama.cpp's files: row i and row i + width/2 of a head become neighbours."""
    width = len(weight) // heads
    order = [
        head * width + half * width // 2 + row for head in range(heads) for row in range(width // 2) for half in (0, 1)
    ]
    return weight[order]


@pytest.mark.parametrize(("name", "rows", "heads"), [("attn_q", 64, 4), ("attn_k", 32, 2)])
def test_the_row_order_of_queries_and_keys_is_undone(tmp_path: Path, name: str, rows: int, heads: int) -> None:
    original = np.random.default_rng(0).standard_normal((rows, 24), dtype=np.float32)
    path = write_gguf(tmp_path / GGUF, {f"blk.0.{name}.weight": converted(original, heads)}, LLAMA)
    weights = find_weights(LocalFiles(str(path)))
    (entry,) = weights.tensors
    ref = MatrixRef(
        tensor=entry.name, stack=None, layer=0, role="other", role_source="gguf", head=None, expert=None, rows=rows,
        cols=24, dtype="F32", entry=entry, transposed=False, rope_heads=rope_permuted(weights.config, entry.name),
    )  # fmt: skip
    assert ref.rope_heads == heads
    assert np.array_equal(read_matrix(str(path), ref).numpy(), original)


@pytest.mark.parametrize(
    ("architecture", "name", "heads"),
    [
        ("llama", "blk.0.attn_q.weight", 4),
        ("llama", "blk.0.attn_k.weight", 2),
        ("llama", "blk.0.attn_v.weight", None),
        ("llama", "blk.0.attn_output.weight", None),
        ("llama", "blk.0.attn_q_norm.weight", None),
        ("llama", "v.blk.0.attn_q.weight", None),
        ("llama4", "blk.0.attn_q.weight", None),
        ("qwen2", "blk.0.attn_q.weight", None),
        ("granite", "blk.0.attn_q.weight", 4),
    ],
)
def test_rows_were_moved_in_llamas_family_only(architecture: str, name: str, heads: int | None) -> None:
    metadata = {"general.architecture": architecture} | {
        key.replace("llama", architecture): value for key, value in LLAMA.items()
    }
    assert rope_permuted(config_of(metadata), name) == heads


def test_heads_are_those_of_the_layer() -> None:
    config = config_of(
        {"general.architecture": "deci", "deci.attention.head_count": 32, "deci.attention.head_count_kv": [8, 0, 4]}
    )
    found = [rope_permuted(config, f"blk.{layer}.attn_k.weight") for layer in range(4)]
    assert found == [8, None, 4, None]


@pytest.mark.parametrize("config", [{}, {"gguf": None}, {"gguf": {}}, {"gguf": {"general.architecture": ["llama"]}}])
def test_no_metadata_no_row_order(config: dict[str, Any]) -> None:
    assert rope_permuted(config, "blk.0.attn_q.weight") is None


def test_the_architectures_with_moved_rows_exist() -> None:
    assert set(gguf.MODEL_ARCH_NAMES.values()) >= ROPE_PERMUTED


# ---- files and folders


def parts_of(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    tensors = llama(count)
    names = list(tensors)
    paths = [folder / name for name in split_names(f"tiny-00001-of-{count:05d}.gguf")]
    for number, path in enumerate(paths):
        metadata = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)} | changes
        share = {name: tensors[name] for name in names[number::count]}
        write_gguf(path, share, metadata | (LLAMA if number == 0 else {}))
    return paths


def test_the_parts_of_a_model_are_one_checkpoint(tmp_path: Path) -> None:
    paths = parts_of(tmp_path)
    for reference in (tmp_path, paths[0], paths[2]):
        weights = find_weights(LocalFiles(str(reference)))
        assert weights.files == tuple(path.name for path in paths)
        assert weights.format == "gguf"
        assert {entry.name for entry in weights.tensors} == set(llama(3))
        assert weights.config["num_attention_heads"] == 4


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts_of(tmp_path)[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"1 of the model's 3 files are missing: download tiny-00002-of-00003\.gguf"
    ):
        find_weights(LocalFiles(str(tmp_path)))


@pytest.mark.parametrize(
    "lie",
    [{"split.no": 1}, {"split.count": 2}, {"split.no": "x"}, {"split.tensors.count": 7}, {"split.count": "\x1b[1m"}],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, lie: dict[str, Any]) -> None:
    parts_of(tmp_path, **lie)
    with pytest.raises(CheckpointError) as caught:
        find_weights(LocalFiles(str(tmp_path)))
    assert str(caught.value).isprintable()
    assert "download all parts" in str(caught.value)


def test_a_single_file_that_says_it_is_a_part_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / GGUF, {"w": np.ones((2, 2), np.float32)}, {"split.no": 0, "split.count": 4})
    with pytest.raises(CheckpointError, match="part 0"):
        find_weights(LocalFiles(str(path)))


def test_several_models_in_a_folder_have_to_be_named(tmp_path: Path) -> None:
    one = write_gguf(tmp_path / "q4.gguf", {"w": np.ones((2, 2), np.float32)})
    write_gguf(tmp_path / "q8.gguf", {"w": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"several models \(q4\.gguf, q8\.gguf\): name the file"):
        find_weights(LocalFiles(str(tmp_path)))
    assert find_weights(LocalFiles(str(one))).files == ("q4.gguf",)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / GGUF).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        find_weights(LocalFiles(str(tmp_path)))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / GGUF).write_bytes(gguf_bytes(tensors=[]))
    with pytest.raises(CheckpointError, match="no tensors"):
        find_weights(LocalFiles(str(tmp_path)))


def test_a_model_is_opened_listed_and_read(tmp_path: Path) -> None:
    tensors = llama(2)
    path = write_gguf(tmp_path / "tiny.gguf", tensors, LLAMA | {"llama.block_count": 2})
    opened = open_checkpoint(str(path))
    assert (opened.model, opened.format, opened.architecture, opened.dtype) == ("tiny", "gguf", "llama", "Q8_0")
    assert opened.parameters == sum(found.n_elements for found in GGUFReader(path).tensors)
    inventory = list_matrices(opened)
    assert {(ref.layer, ref.role, ref.role_source) for ref in inventory.matrices} == {
        (layer, role, "gguf") for layer in (0, 1) for role in MODULES
    }
    for ref in inventory.matrices:
        stored = decoded(tensors[ref.tensor])
        found = read_matrix(opened.source, ref).numpy()
        heads = {"query": 4, "key": 2}.get(ref.role)
        assert np.array_equal(stored, found if heads is None else converted(found, heads))


# ---- a real model


@pytest.fixture(scope="module")
def as_transformers_loads_it(smollm2: Path) -> dict[str, torch.Tensor]:
    """The dequantized weights of `smollm2` under transformers' names: the checkpoint that transformers makes of it."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, quantization_config=GgufConfig(dequantize=True)
    )
    return dict(model.state_dict())


MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "mlp_gate": "mlp.gate_proj",
    "mlp_up": "mlp.up_proj",
    "mlp_down": "mlp.down_proj",
}


def test_all_matrices_of_smollm2_are_those_that_transformers_makes_of_it(
    smollm2: Path, as_transformers_loads_it: dict[str, torch.Tensor]
) -> None:
    opened = open_checkpoint(str(smollm2), identify=False)
    inventory = list_matrices(opened)
    assert {(ref.layer, ref.role) for ref in inventory.matrices} == {(at, role) for at in range(30) for role in MODULES}
    assert len(inventory.matrices) == 210
    for ref in inventory.matrices:
        matrix = read_matrix(opened.source, ref)
        assert isinstance(matrix, torch.Tensor)
        # The same bits, so the same singular values.
        assert torch.equal(matrix, as_transformers_loads_it[f"model.layers.{ref.layer}.{MODULES[ref.role]}.weight"])
    assert opened.config["num_key_value_heads"] == 3
    assert opened.config["head_dim"] == 64


def test_smollm2_reads_as_gguf_reads_it(smollm2: Path) -> None:
    opened = open_checkpoint(str(smollm2), identify=False)
    by_gguf = {found.name: found for found in GGUFReader(smollm2).tensors}
    assert {entry.name for entry in opened.tensors} == set(by_gguf)
    for ref in list_matrices(opened, Selection(layers=(29,))).matrices:
        assert ref.rope_heads == {"query": 9, "key": 3}.get(ref.role)
        stored = read_matrix(opened.source, replace(ref, rope_heads=None)).numpy()
        source = by_gguf[ref.tensor]
        assert np.array_equal(stored, quants.dequantize(source.data, source.tensor_type))


def test_smollm2s_header_is_read_without_its_weights(smollm2: Path) -> None:
    files = CountingFiles(str(smollm2))
    tensors, config = read_gguf(files, [smollm2.name])
    assert files.total < 1.2 * min(entry.start for entry in tensors)
    assert config["vocab_size"] == 49152


@pytest.mark.parametrize(
    ("metadata", "architecture"), [({"general.type": "imatrix"}, "llama"), ({"general.type": "model"}, "controlvector")]
)
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, metadata: dict[str, str], architecture: str) -> None:
    tensors = {"blk.0.attn_q.weight.in_sum2": np.ones((4, 64), np.float32)}
    path = write_gguf(tmp_path / "w.gguf", tensors, metadata, architecture)
    with pytest.raises(CheckpointError, match="which is not a model"):
        open_checkpoint(str(path))
