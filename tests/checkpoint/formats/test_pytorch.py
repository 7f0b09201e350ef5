import collections
import io
import json
import os
import pickle
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.checkpoint import Selection, TensorEntry, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.formats.pytorch import read_torch_file
from scanner.checkpoint.formats.weights import find_weights
from scanner.checkpoint.quantization.stored import Stored
from scanner.checkpoint.sources.files import ByteRange, LocalFiles
from scanner.errors import CheckpointError

BIN = "pytorch_model.bin"
NEW = {"_use_new_zipfile_serialization": True}
OLD = {"_use_new_zipfile_serialization": False}


def parse(folder: Path, content: bytes | None = None) -> list[TensorEntry]:
    if content is not None:
        (folder / BIN).write_bytes(content)
    return read_torch_file(LocalFiles(str(folder)), BIN)


def refused(folder: Path, content: bytes | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(folder, content)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert BIN in message
    return message


def loaded(folder: Path, entry: TensorEntry) -> torch.Tensor:
    (content,) = LocalFiles(str(folder)).read_ranges([ByteRange(name=entry.file, start=entry.start, size=entry.size)])
    return Stored(entry=entry, content=content).tensor()


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found.double(), expected.detach().double())


# ---- what torch.save writes

WEIGHT = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("form", [NEW, OLD])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8],
)
def test_tensors_of_every_dtype_are_what_torch_loads(tmp_path: Path, form: dict[str, bool], dtype: torch.dtype) -> None:
    if form is OLD and dtype.is_floating_point and dtype.itemsize == 1:
        pytest.skip("torch itself cannot load these")
    torch.save({"a.weight": WEIGHT.to(dtype), "b": torch.ones(3), "c": torch.tensor(7.0)}, tmp_path / BIN, **form)
    expected = torch.load(tmp_path / BIN, weights_only=True)
    entries = parse(tmp_path)
    assert {entry.name for entry in entries} == set(expected)
    for entry in entries:
        assert entry.shape == tuple(expected[entry.name].shape)
        assert same(loaded(tmp_path, entry), expected[entry.name])
    assert [entry.start for entry in entries] == sorted(entry.start for entry in entries)


@pytest.mark.parametrize("form", [NEW, OLD])
def test_the_state_of_a_module_is_read(tmp_path: Path, form: dict[str, bool]) -> None:
    module = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 5, bias=False)
    ).bfloat16()
    torch.save(module.state_dict(), tmp_path / BIN, **form)
    entries = {entry.name: entry for entry in parse(tmp_path)}
    assert set(entries) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert same(loaded(tmp_path, entries[name]), tensor)


@pytest.mark.parametrize("form", [NEW, OLD])
def test_parts_transposes_and_parameters_are_found_in_their_storages(tmp_path: Path, form: dict[str, bool]) -> None:
    tensors = {
        "rows": WEIGHT[1:3],
        "turned": WEIGHT.t(),
        "turned part": WEIGHT[1:3].t(),
        "one row": WEIGHT[2:3, 1:],
        "one column": WEIGHT[:, 1:2],
        "parameter": torch.nn.Parameter(WEIGHT),
        "reshaped": WEIGHT.view(2, 2, 3),
    }
    torch.save(tensors, tmp_path / BIN, **form)
    entries = {entry.name: entry for entry in parse(tmp_path)}
    readable = {"rows", "turned", "turned part", "one row", "parameter", "reshaped"}
    assert {name for name, entry in entries.items() if entry.dtype == "F32"} == readable
    for name in readable:
        assert same(loaded(tmp_path, entries[name]), tensors[name])
    assert entries["turned"].column_major
    assert not entries["rows"].column_major


def test_what_cannot_be_read_is_listed_and_says_why(tmp_path: Path) -> None:
    tensors = {
        "columns": WEIGHT[:, :2],
        "permuted": torch.zeros(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.zeros(1, 4).expand(3, 4),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, 5, device="meta"),
        "fine": WEIGHT,
    }
    torch.save(tensors, tmp_path / BIN)
    found = {entry.name: (entry.dtype, entry.shape) for entry in parse(tmp_path)}
    assert found == {
        "columns": ("F32 (not contiguous)", (4, 2)),
        "permuted": ("F32 (not contiguous)", (4, 2, 3)),
        "expanded": ("F32 (not contiguous)", (3, 4)),
        "sparse": ("F32 (sparse)", (3, 3)),
        "meta": ("F32 (meta)", (3, 5)),
        "fine": ("F32", (4, 3)),
    }


def test_tied_weights_are_the_same_bytes(tmp_path: Path) -> None:
    torch.save({"embedding": WEIGHT, "head": WEIGHT, "copy": WEIGHT.clone()}, tmp_path / BIN)
    places = {entry.name: (entry.file, entry.start, entry.size) for entry in parse(tmp_path)}
    assert places["embedding"] == places["head"] != places["copy"]


TRAINER = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": WEIGHT}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
}


@pytest.mark.parametrize("form", [NEW, OLD])
@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"w": WEIGHT}, {"w"}),
        ({"state_dict": {"w": WEIGHT}} | TRAINER, {"w"}),
        ({"model": {"w": WEIGHT}, "args": None} | TRAINER, {"w"}),
        ({"model_state_dict": collections.OrderedDict(w=WEIGHT), "dims": {"n": 3}} | TRAINER, {"w"}),
        ({"model": {"state_dict": {"w": WEIGHT}}}, {"w"}),
        ({"encoder": {"w": WEIGHT}, "decoder": {"w": WEIGHT + 1}} | TRAINER, {"encoder.w", "decoder.w"}),
        ({"blocks": [{"w": WEIGHT}, {"w": WEIGHT}]}, {"blocks.0.w", "blocks.1.w"}),
        ({0: WEIGHT, "x": "text", "size": torch.Size([3])}, {"0"}),
        ([WEIGHT, (WEIGHT, 3)], {"0", "1.0"}),
        (WEIGHT, {"tensor"}),
    ],
)
def test_the_weights_of_a_training_checkpoint_are_found(
    tmp_path: Path, form: dict[str, bool], content: Any, names: set[str]
) -> None:
    torch.save(content, tmp_path / BIN, **form)
    entries = parse(tmp_path)
    assert {entry.name for entry in entries} == names
    for entry in entries:
        if entry.name != "decoder.w":
            assert same(loaded(tmp_path, entry), WEIGHT)


def test_views_of_the_old_format_are_found(tmp_path: Path) -> None:
    # Old versions of torch named parts of a storage: (key, offset, size) of the part.
    torch.save({"w": WEIGHT}, tmp_path / BIN, **OLD)
    content = (tmp_path / BIN).read_bytes()
    whole = b"K\x0cN"  # twelve entries, and no view
    assert content.count(whole) == 1
    view = b"K\x0cX\x01\x00\x00\x00vK\x06K\x06\x87"
    size = b"K\x04K\x03\x86"
    assert content.count(size) == 1
    (entry,) = parse(tmp_path, content.replace(whole, view).replace(size, b"K\x02K\x03\x86"))
    assert torch.equal(loaded(tmp_path, entry), WEIGHT[2:])


def test_archives_that_were_packed_again_are_read(tmp_path: Path) -> None:
    tensors = {f"layer.{at}": torch.full((at + 1, 3), float(at)) for at in range(20)}
    torch.save(tensors, tmp_path / "saved.bin")
    with zipfile.ZipFile(tmp_path / "saved.bin") as saved, zipfile.ZipFile(tmp_path / BIN, "w") as packed:
        for name in reversed(saved.namelist()):
            packed.writestr(name, saved.read(name))
    for entry in parse(tmp_path):
        assert torch.equal(loaded(tmp_path, entry), tensors[entry.name])


class Pipe(io.RawIOBase):
    """A stream that cannot go back, into which zipfile writes sizes after contents."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        self.content += bytes(chunk)
        return len(chunk)


@pytest.mark.parametrize("zip64", [False, True])
def test_archives_that_were_written_as_a_stream_are_read(tmp_path: Path, zip64: bool) -> None:
    tensors = {f"layer.{at}": torch.full((at + 1, 3), float(at)) for at in range(20)}
    torch.save(tensors, tmp_path / "saved.bin")
    pipe = Pipe()
    with zipfile.ZipFile(tmp_path / "saved.bin") as saved, zipfile.ZipFile(pipe, "w") as packed:
        for name in saved.namelist():
            with packed.open(name, "w", force_zip64=zip64) as member:
                member.write(saved.read(name))
    (tmp_path / BIN).write_bytes(pipe.content)
    for entry in parse(tmp_path):
        assert torch.equal(loaded(tmp_path, entry), tensors[entry.name])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5),
    turned=st.booleans(),
    form=st.sampled_from([NEW, OLD]),
)
def test_any_shapes_are_read_as_torch_loads_them(
    tmp_path: Path, shapes: list[list[int]], turned: bool, form: dict[str, bool]
) -> None:
    tensors = {str(at): torch.rand(shape) for at, shape in enumerate(shapes)}
    if turned:
        tensors = {name: tensor.t() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / BIN, **form)
    entries = parse(tmp_path)
    assert {entry.name: entry.shape for entry in entries} == {name: tuple(t.shape) for name, t in tensors.items()}
    for entry in entries:
        assert entry.size == 4 * tensors[entry.name].numel()
        if entry.size:
            assert torch.equal(loaded(tmp_path, entry), tensors[entry.name])


class CountingFiles(LocalFiles):
    """Remembers how much was read, and in how many pieces."""

    total, reads = 0, 0

    def read(self, name: str, start: int, size: int) -> bytes:
        content = super().read(name, start, size)
        self.total, self.reads = self.total + len(content), self.reads + 1
        return content

    def read_ranges(self, ranges: Any) -> Any:
        self.total, self.reads = self.total + sum(wanted.size for wanted in ranges), self.reads + len(ranges)
        return super().read_ranges(ranges)


def test_descriptions_are_read_and_weights_are_not(tmp_path: Path) -> None:
    tensors = {f"layer.{at}.weight": torch.zeros(256, 256) for at in range(200)}
    torch.save(tensors, tmp_path / BIN)
    files = CountingFiles(str(tmp_path))
    tracemalloc.start()
    entries = read_torch_file(files, BIN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(entries) == 200
    assert files.total < 300_000
    assert files.reads < 10  # and not one for the header of each tensor
    assert peak < 4 * 2**20


# ---- hostile pickles


class Command:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "save",
    [
        lambda content, path: torch.save(content, path),
        lambda content, path: torch.save(content, path, **OLD),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=4)),
    ],
    ids=["archive", "old format", "pickle", "pickle of protocol 4"],
)
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(
    tmp_path: Path, save: Callable[[Any, Path], None]
) -> None:
    save({"w": 1, "x": Command(tmp_path / "ran")}, tmp_path / BIN)
    message = refused(tmp_path)
    assert "system" in message
    assert "nothing in it was run" in message
    assert "safetensors" in message
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Command(tmp_path / "ran")))  # the command is one: it works where it is not refused
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [torch.nn.Linear(2, 2), {"w": WEIGHT, "f": len}, {"w": WEIGHT, "p": Path("x")}, {"run": subprocess.Popen}],
)
def test_objects_that_weights_do_not_need_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / BIN)
    assert "needs the Python object" in refused(tmp_path)


def archive(pickled: bytes, members: dict[str, bytes] | None = None, **changes: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", changes.pop("compression", zipfile.ZIP_STORED)) as packed:
        for name, content in {
            "data.pkl": pickled,
            "byteorder": b"little",
            "data/0": bytes(48),
            **(members or {}),
        }.items():
            packed.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def number(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(encoded)) + encoded


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", entries: int = 12) -> bytes:
    return b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word(key) + word("cpu") + number(entries) + b"tQ"


def pickled_tensor(
    stored: bytes = b"", offset: int = 0, shape: tuple[int, ...] = (4, 3), strides: tuple[int, ...] = (3, 1)
) -> bytes:
    arguments = (stored or storage()) + number(offset) + numbers(shape) + numbers(strides) + b"\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(value: bytes, key: bytes = b"") -> bytes:
    return b"\x80\x02}" + (key or word("w")) + value + b"s."


def test_the_pickles_of_these_tests_are_sound(tmp_path: Path) -> None:
    content = archive(state(pickled_tensor()), {"data/0": struct.pack("<12f", *range(12)), "version": b"3\n"})
    (entry,) = parse(tmp_path, content)
    assert torch.equal(loaded(tmp_path, entry), WEIGHT)
    assert torch.equal(torch.load(tmp_path / BIN, weights_only=True)["w"], WEIGHT)


@pytest.mark.parametrize(
    ("pickled", "what"),
    [
        (b"", "damaged pickle"),
        (b".", "damaged pickle"),
        (b"\x80\x02}", "damaged pickle"),
        (b"\x80\x02}\xff.", "damaged pickle"),
        (b"0.", "instruction POP"),
        (b"t.", "damaged pickle"),
        (b"\x85.", "damaged pickle"),
        (b"Nh\x05.", "damaged pickle"),
        (b"NNs.", "damaged pickle"),
        (b"}N(NNs.", "damaged pickle"),
        (b"NNR.", "damaged pickle"),
        (b"X\xff\xff\xff\xff.", "damaged pickle"),
        (b"\x8e" + b"\xff" * 8 + b".", "damaged pickle"),
        (b"\x8b\xff\xff\xff\x7f.", "damaged pickle"),
        (b"cos\nsystem\n.", "needs the Python object os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "needs the Python object os.system"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"c\x1b[31m\nx\n.", "x1b"),
        (b"(S'x'\nios\nsystem\n.", "instruction"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"Pid\n.", "instruction PERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (state(b"(" + word("storage") + b"tQ"), "damaged pickle"),
        (state(storage(entries=-1)), "damaged pickle"),
        (state(storage(kind="Size")), "damaged pickle"),
        (state(storage(entries=2**63)), "damaged pickle"),
        (state(pickled_tensor(shape=(4, 3), strides=(3,))), "damaged pickle"),
        (state(pickled_tensor(shape=(-4, -3))), "damaged pickle"),
        (state(pickled_tensor(shape=(2**70, 1))), "damaged pickle"),
        (state(pickled_tensor(shape=(1,) * 1000, strides=(1,) * 1000)), "damaged pickle"),
        (state(pickled_tensor(offset=-1)), "damaged pickle"),
        (state(pickled_tensor(offset=1)), "ends 4 bytes after the storage"),
        (state(pickled_tensor(shape=(2**40, 2**15), strides=(2**15, 1))), "after the storage"),
        (state(pickled_tensor(shape=(2**60, 2**60), strides=(2**60, 1))), "larger than any file"),
        (state(pickled_tensor(storage(entries=10**6), shape=(1000, 1000), strides=(1000, 1))), "after the storage"),
        (state(pickled_tensor(storage(key="7"))), "lacks data/7"),
        (state(pickled_tensor(storage(key="../../../etc/passwd"))), "lacks data/"),
        (state(pickled_tensor(storage(key="\x1b[31m"))), "lacks data/"),
        (state(pickled_tensor(), b"X\x03\x00\x00\x00\xed\xa0\x80"), "not Unicode text"),
        (
            b"\x80\x02}"
            + word("a.b")
            + pickled_tensor()
            + b"s"
            + word("a")
            + b"}"
            + word("b")
            + pickled_tensor()
            + b"ss.",
            "same name",
        ),
    ],
)
def test_a_damaged_or_hostile_pickle_is_refused(tmp_path: Path, pickled: bytes, what: str) -> None:
    assert what in refused(tmp_path, archive(pickled))


@pytest.mark.parametrize(
    "value",
    [
        b"cbuiltins\nbytearray\n" + number(10**14) + b"\x85R",
        b"ctorch.storage\nUntypedStorage\n" + number(10**14) + b"\x85R",
        b"ctorch\nTensor\n" + number(10**14) + b"\x85\x81",
        b"ctorch\nSize\n" + number(10**14) + b"\x85R",
        b"ctorch\nFloatStorage\n" + number(10**14) + b"\x85R",
        b"]r\xff\xff\xff\x7f",
        b"N" + b"\x85" * 50_000,
        b"]q\x05h\x05a",
    ],
    ids=["bytearray", "storage", "tensor", "size", "typed storage", "memo", "deep tuple", "list in itself"],
)
def test_what_would_take_memory_or_stack_when_called_does_not_when_described(tmp_path: Path, value: bytes) -> None:
    content = archive(b"\x80\x02}" + word("x") + value + b"s" + word("w") + pickled_tensor() + b"s.")
    tracemalloc.start()
    entries = parse(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.name for entry in entries] == ["w"]
    assert peak < 2**20 + 100 * len(content)


def test_a_deep_tuple_as_a_key_does_not_end_the_process(tmp_path: Path) -> None:
    deep = b"N" + b"\x85" * 300_000
    (entry,) = parse(tmp_path, archive(b"\x80\x02}" + deep + b"Ns" + word("w") + pickled_tensor() + b"s."))
    assert entry.name == "w"


def test_containers_that_hold_each_other_many_times_are_walked_once(tmp_path: Path) -> None:
    # Twelve lists, each of which holds the one before it ten times: 10^12 paths to one tensor.
    lists = b"]q\x00" + pickled_tensor() + b"a"
    for level in range(1, 13):
        lists += b"]q" + bytes([level]) + b"(" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"e"
    pickled = b"\x80\x02" + lists + b"."
    assert len(parse(tmp_path, archive(pickled))) == 1


ORDERED = b"ccollections\nOrderedDict\n"


def used_often(made: bytes, use: bytes, count: int) -> bytes:
    """A pickle that remembers something large and uses it many times, and holds a weight as well."""
    return (
        b"\x80\x02"
        + made
        + b"q\x00"
        + ORDERED
        + b"q\x01"
        + b"}"
        + word("w")
        + pickled_tensor()
        + b"s"
        + use * count
        + b"."
    )


PAIRS = b"](" + b"".join(number(key) + b"N\x86" for key in range(20_000)) + b"e"
BAD_PAIRS = PAIRS[:-1] + b"Ne"
LONG_TUPLE = numbers(tuple(range(20_000)))
STORAGE_AND_MORE = storage()[:-2] + b"N" * 20_000 + b"t"
TENSOR_AND_MORE = pickled_tensor()[len(b"ctorch._utils\n_rebuild_tensor_v2\n") : -2] + b"N" * 20_000 + b"t"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("made", "use"),
    [
        (PAIRS, b"h\x01h\x00\x85R"),
        (BAD_PAIRS, b"h\x01h\x00\x85R"),
        (LONG_TUPLE, b"h\x01h\x00R"),
        (STORAGE_AND_MORE, b"h\x00Q"),
        (TENSOR_AND_MORE, REBUILD + b"h\x00R"),
        (TENSOR_AND_MORE, b"ctorch._tensor\n_rebuild_from_type_v2\n(" + REBUILD + b"Nh\x00tR"),
    ],
    ids=["pairs", "pairs and more", "tuple", "storage", "tensor", "subclass"],
)
def test_large_arguments_are_not_taken_apart_again_and_again(tmp_path: Path, made: bytes, use: bytes) -> None:
    content = archive(used_often(made, use, 20_000))
    tracemalloc.start()
    message = refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "damaged pickle" in message or "again and again" in message
    assert peak < 2**20 + 100 * len(content)


def test_a_list_of_pairs_makes_a_dictionary_as_old_versions_of_python_wrote_it(tmp_path: Path) -> None:
    pairs = b"](" + word("w") + pickled_tensor() + b"\x86e"
    (entry,) = parse(tmp_path, archive(b"\x80\x02" + ORDERED + pairs + b"\x85R."))
    assert entry.name == "w"


@pytest.mark.parametrize("where", [b"", word("state_dict") + b"}", word("a") + b"}"])
def test_a_huge_number_as_a_key_names_nothing(tmp_path: Path, where: bytes) -> None:
    huge = b"\x8b" + struct.pack("<I", 2600) + b"\x7f" * 2600
    close = b"s" if where else b""
    inside = huge + b"}s" + word("w") + pickled_tensor() + b"s"
    (entry,) = parse(tmp_path, archive(b"\x80\x02}" + where + inside + close + b"."))
    assert entry.name.endswith("w")
    for key in (huge, b"B\x01\x00\x00\x00w"):
        assert "neither text nor a number" in refused(
            tmp_path, archive(b"\x80\x02}" + where + key + pickled_tensor() + b"s" + close + b".")
        )


def test_a_long_key_around_many_tensors_does_not_become_as_many_long_names(tmp_path: Path) -> None:
    inside = pickled_tensor() + b"q\x00s" + b"".join(word(str(at)) + b"h\x00s" for at in range(1000))
    content = archive(b"\x80\x02}" + word("k" * 10**6) + b"}" + word("w") + inside + b"s.")
    tracemalloc.start()
    assert "longer names" in refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27 + 100 * len(content)


@pytest.mark.timeout(60)
def test_a_million_tensors_are_refused(tmp_path: Path) -> None:
    content = archive(b"\x80\x02](" + pickled_tensor() + b"q\x00" + b"h\x00" * 10**6 + b"e.")
    assert "more tensors" in refused(tmp_path, content)


def test_a_number_of_a_million_digits_takes_no_time(tmp_path: Path) -> None:
    huge = b"\x8b" + struct.pack("<I", 2_000_000) + b"\x7f" * 2_000_000
    shape = b"(" + huge + huge + b"t"
    pickled = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + number(0) + shape + numbers((1, 1)) + b"\x89NtR"
    assert "damaged" in refused(tmp_path, archive(state(pickled)))


# ---- hostile archives


def edited(content: bytes, at: int, replacement: bytes) -> bytes:
    return content[:at] + replacement + content[at + len(replacement) :]


def directory_place(content: bytes, member: str) -> int:
    """Where the entry of a member begins in the directory at the end of an archive."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(member.encode()))


SOUND = archive(state(pickled_tensor()))


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
@pytest.mark.parametrize(
    ("field", "width", "value", "what"),
    [
        (10, 2, 8, "compressed"),
        (8, 2, 1, "encrypted"),
        (24, 4, 2**31, "compressed"),
        (42, 4, 2**31, "lies outside"),
        (42, 4, 3, "is not where its directory says"),
    ],
)
def test_a_directory_that_lies_is_refused(
    tmp_path: Path, member: str, field: int, width: int, value: int, what: str
) -> None:
    place = directory_place(SOUND, member) + field
    assert what in refused(tmp_path, edited(SOUND, place, value.to_bytes(width, "little")))


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
def test_a_member_with_a_huge_declared_size_costs_nothing(tmp_path: Path, member: str) -> None:
    place = directory_place(SOUND, member)
    content = edited(SOUND, place + 20, struct.pack("<2I", 2**32 - 2, 2**32 - 2))
    tracemalloc.start()
    message = refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is not where its directory says" in message
    assert peak < 2**20


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    content = archive(bytes(50 * 2**20), compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 2**20
    tracemalloc.start()
    message = refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "compressed" in message
    assert peak < 2**20


def test_a_pickle_too_long_for_weights_is_refused_before_it_is_read(tmp_path: Path) -> None:
    content = archive(bytes(20 * 2**20))
    tracemalloc.start()
    message = refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "too many to describe weights" in message
    assert peak < 2**20


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / BIN
    with path.open("wb") as file:
        file.write(SOUND)
        file.truncate(2**40)  # a hole, that takes no room on the disk
        file.seek(2**40)
        size = 2**31
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, size, 2**31, 0))
    tracemalloc.start()
    refused(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "neither an archive"),
        (b"hello world", "neither an archive"),
        (pickle.dumps([1, 2]), "neither an archive"),
        (SOUND[:-1], "download it again"),
        (SOUND[:100], "download it again"),
        (b"PK\x03\x04", "download it again"),
        (archive(state(pickled_tensor()), {"byteorder": b"big"}), "big-endian"),
        (archive(state(pickled_tensor()), {"data/0": bytes(47)}), "ends 1 bytes after"),
        (archive(state(pickled_tensor()), {"constants.pkl": b""}), "TorchScript"),
        (SOUND.replace(b"data.pkl", b"text.txt"), "TorchScript"),
    ],
    ids=range(10),  # an archive's bytes hold the time, and names must be the same in every process
)
def test_what_is_no_archive_of_weights_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    assert what in refused(tmp_path, content)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / BIN))
    assert "TorchScript" in refused(tmp_path)


def test_members_with_the_same_name_are_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    buffer = io.BytesIO(SOUND)
    with zipfile.ZipFile(buffer, "a") as packed:
        packed.writestr("archive/data/0", bytes(48))
    assert "same name" in refused(tmp_path, buffer.getvalue())


def test_every_truncation_of_the_old_format_is_refused(tmp_path: Path) -> None:
    torch.save({"a": WEIGHT, "b": WEIGHT[:2] * 2}, tmp_path / "whole", **OLD)
    content = (tmp_path / "whole").read_bytes()
    assert len(parse(tmp_path, content)) == 2
    for length in range(len(content)):
        refused(tmp_path, content[:length])


def test_an_old_file_with_a_wrong_count_is_refused(tmp_path: Path) -> None:
    torch.save({"a": WEIGHT}, tmp_path / "whole", **OLD)
    content = (tmp_path / "whole").read_bytes()
    assert "size" in refused(tmp_path, edited(content, len(content) - 56, struct.pack("<Q", 2**60)))
    assert "big-endian" in refused(tmp_path, content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))


@pytest.mark.parametrize("form", [NEW, OLD])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
def test_mutated_files_cost_no_crash_and_no_memory(
    tmp_path: Path, form: dict[str, bool], edits: list[tuple[float, bytes]]
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        torch.save({"state_dict": collections.OrderedDict(a=WEIGHT, b=WEIGHT.half().t()), "n": 3}, whole, **form)
    content = bytearray(whole.read_bytes())
    for place, replacement in edits:
        at = int(place * len(content))
        content[at : at + len(replacement)] = replacement
    tracemalloc.start()
    try:
        entries = parse(tmp_path, bytes(content))
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(0 <= entry.start <= entry.start + entry.size <= len(content) for entry in entries)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20 + 100 * len(content)


# ---- files and folders


def save(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(tensors, folder / name)
    return folder / name


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    for name, tensors in shards.items():
        save(folder, name, tensors)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


SHARDS = {
    "pytorch_model-00001-of-00002.bin": {"a": WEIGHT},
    "pytorch_model-00002-of-00002.bin": {"b": WEIGHT + 1},
}


def test_shards_of_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    sharded(tmp_path, SHARDS)
    (tmp_path / "training_args.bin").write_bytes(b"not weights")
    weights = find_weights(LocalFiles(str(tmp_path)))
    assert (weights.format, weights.index, weights.files) == ("pytorch", "pytorch_model.bin.index.json", tuple(SHARDS))
    assert {entry.name: entry.file for entry in weights.tensors} == dict(zip("ab", SHARDS, strict=True))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path, SHARDS) / [*SHARDS][1]).unlink()
    with pytest.raises(
        CheckpointError, match=r"1 of the 2 files .* are missing: download pytorch_model-00002-of-00002"
    ):
        find_weights(LocalFiles(str(tmp_path)))


def test_shards_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    (sharded(tmp_path, SHARDS) / "pytorch_model.bin.index.json").unlink()
    assert {entry.name for entry in find_weights(LocalFiles(str(tmp_path))).tensors} == {"a", "b"}


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd.bin", "sub/x.bin", "weights.safetensors", "notes.txt"])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path, "outside.bin", {"a": WEIGHT})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not the name of a"):
        find_weights(LocalFiles(str(tmp_path / "model")))


@pytest.mark.parametrize("name", ["weights.pt", "model.pth", "adapter_model.bin", "last.ckpt"])
def test_the_one_pytorch_file_of_a_folder_is_its_checkpoint(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name, {"w": WEIGHT})
    for state_file in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"):
        (tmp_path / state_file).write_bytes(b"not weights")
    for reference in (tmp_path, path):
        weights = find_weights(LocalFiles(str(reference)))
        assert (weights.files, weights.format) == ((name,), "pytorch")


def test_several_pytorch_files_have_to_be_named(tmp_path: Path) -> None:
    save(tmp_path, "best.pt", {"w": WEIGHT})
    save(tmp_path, "last.pt", {"w": WEIGHT})
    with pytest.raises(CheckpointError, match=r"several models \(best\.pt, last\.pt\): name the file"):
        find_weights(LocalFiles(str(tmp_path)))


def test_safetensors_go_before_pytorch_and_pytorch_before_gguf(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.torch import save_file

    from .gguf_writing import write_gguf

    def form() -> str:
        return find_weights(LocalFiles(str(tmp_path))).format

    write_gguf(tmp_path / "model.gguf", {"w": np.ones((2, 2), dtype=np.float32)})
    assert form() == "gguf"
    save(tmp_path, BIN, {"w": WEIGHT})
    assert form() == "pytorch"
    save_file({"w": WEIGHT}, tmp_path / "model.safetensors")
    assert form() == "safetensors"


@pytest.mark.parametrize("form", [NEW, OLD])
def test_a_model_is_opened_listed_and_read(tmp_path: Path, form: dict[str, bool]) -> None:
    embedding = torch.rand(20, 6)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.layers.0.self_attn.q_proj.weight": torch.rand(6, 6).t(),
        "model.layers.0.mlp.down_proj.weight": torch.rand(6, 8, dtype=torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": torch.rand(8, 12)[:, ::2],
        "lm_head.weight": embedding,
    }
    torch.save(tensors, tmp_path / BIN, **form)
    opened = open_checkpoint(str(tmp_path))
    assert (opened.format, opened.parameters) == ("pytorch", 2 * 120 + 36 + 48 + 48)
    inventory = list_matrices(opened, Selection(embeddings=True))
    for ref in inventory.matrices:
        assert same(read_matrix(opened.source, ref), tensors[ref.tensor])
    assert {ref.role for ref in inventory.matrices} == {"embedding", "query", "mlp_down"}
    assert {skipped.tensor: skipped.reason for skipped in inventory.skipped} == {
        "lm_head.weight": "tied with model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight": "F32 (not contiguous): not readable by this version",
    }
