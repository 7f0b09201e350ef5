import errno
import importlib.util
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from gguf import GGUFReader
from safetensors.torch import save

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.reading import read_matrices
from scanner.checkpoint.sources import retry
from scanner.checkpoint.sources.files import open_files
from scanner.errors import CheckpointError, MissingError

from ..formats.gguf_writing import write_gguf
from ..writing import INDEX
from .hub_server import Fault, Hub

TENSORS = {
    f"model.layers.{layer}.self_attn.{module}.weight": torch.randn(
        128, 128, generator=torch.Generator().manual_seed(layer)
    )
    for layer in range(8)
    for module in ("q_proj", "k_proj")
}
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
FILES = {"model.safetensors": save(TENSORS), "config.json": CONFIG}


class Tagged(MemoryFileSystem):  # type: ignore[misc]
    """A store that tells a checksum of what it holds, as S3 does."""

    protocol = "tagged"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("tagged://")))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = dict(super().info(path, **kwargs))
        return found | {"ETag": str(hash(self.cat_file(path)))} if found["type"] == "file" else found


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    yield MemoryFileSystem()
    for store in (MemoryFileSystem, Tagged):
        store.store.clear()
        store.pseudo_dirs[:] = [""]


def put(url: str, files: dict[str, bytes]) -> str:
    for name, body in files.items():
        with fsspec.open(f"{url}/{name}", "wb") as file:
            file.write(body)
    return url


def check_tensors(reference: str) -> None:
    opened = open_checkpoint(reference)
    found = list_matrices(opened).matrices
    assert {ref.tensor for ref in found} == set(TENSORS)
    for ref in found:
        assert torch.equal(read_matrix(opened.source, ref), TENSORS[ref.tensor])


@pytest.fixture
def asked(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the reads that the store has answered."""
    sizes: list[int] = []

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        content = original(self, path, start=start, end=end, **kwargs)
        sizes.append(len(content))
        return bytes(content)

    original = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return sizes


@pytest.mark.parametrize("end", ["", "/", "/model.safetensors"])
def test_a_store_is_read_like_a_folder(memory: MemoryFileSystem, tmp_path: Path, end: str) -> None:
    url = put("memory://models/bert", FILES | {"README.md": b"---\nbase_model: org/base\n---\n"})
    opened = open_checkpoint(url + end)
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    local = open_checkpoint(str(tmp_path))
    assert (opened.tensors, opened.config, opened.architecture) == (local.tensors, local.config, local.architecture)
    assert opened.base_model == "org/base"
    assert opened.revision == opened.identity[:12]
    check_tensors(url + end)


def test_shards_in_a_store_are_one_checkpoint(memory: MemoryFileSystem) -> None:
    names = {name: f"a-{index % 3}.safetensors" for index, name in enumerate(TENSORS)}
    shards = {
        shard: save({name: TENSORS[name] for name in TENSORS if names[name] == shard}) for shard in set(names.values())
    }
    check_tensors(put("memory://big", shards | {INDEX: json.dumps({"weight_map": names}).encode()}))


@pytest.mark.parametrize("layers", [(), (2,)])
def test_only_headers_and_the_selection_are_read(asked: list[int], layers: tuple[int, ...]) -> None:
    opened = open_checkpoint(put("memory://models/bert", FILES))
    chosen = list_matrices(opened, Selection(only=("query",), layers=layers)).matrices
    read_matrices(opened.source, chosen)
    header = 8 + int.from_bytes(FILES["model.safetensors"][:8], "little")
    wanted = header + len(CONFIG) + sum(ref.entry.size for ref in chosen)
    assert wanted <= sum(asked) <= 1.05 * wanted


def header_bytes(path: Path) -> int:
    """How much of a file describes its tensors."""
    if path.suffix == ".gguf":
        return int(min(tensor.data_offset for tensor in GGUFReader(path).tensors))
    with zipfile.ZipFile(path) as archive:
        pickle = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
        return pickle.file_size + path.stat().st_size - archive.start_dir


@pytest.mark.parametrize("layers", [(), (2,), (0, 1, 2)])
@pytest.mark.parametrize("count", [8, 100])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "llama.gguf"])
def test_of_other_formats_too_only_descriptions_and_the_selection_are_read(
    asked: list[int], tmp_path: Path, name: str, count: int, layers: tuple[int, ...]
) -> None:
    if name == "pytorch_model.bin":
        tensors = {f"model.layers.{at}.{one}_proj.weight": torch.randn(256, 256) for at in range(count) for one in "qk"}
        torch.save(tensors, tmp_path / name)
    else:
        weights = {
            f"blk.{at}.attn_{one}.weight": np.ones((256, 256), np.float32) for at in range(count) for one in "qk"
        }
        words = {
            "tokenizer.ggml.tokens": ["x" * (at % 13) for at in range(count * 100)],
            "tokenizer.ggml.scores": [0.5] * 9000,
        }
        write_gguf(tmp_path / name, weights, words)
    body = (tmp_path / name).read_bytes()
    opened = open_checkpoint(put("memory://models/bert", {name: body, "config.json": CONFIG}))
    chosen = list_matrices(opened, Selection(only=("query",), layers=layers)).matrices
    assert len(chosen) == (len(layers) or count)
    read_matrices(opened.source, chosen)
    selected = len(CONFIG) + sum(ref.entry.size for ref in chosen)
    assert selected <= sum(asked) <= 1.05 * (selected + header_bytes(tmp_path / name))
    assert len(asked) < 40 + len(chosen)


def test_large_ranges_are_read_in_blocks(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.checkpoint.sources.fsspec_files._BLOCK_BYTES", 10_000)
    check_tensors(put("memory://models/bert", FILES))
    assert max(asked) <= 10_000


def test_the_identity_changes_with_the_files_and_the_place_where_there_are_no_checksums(
    memory: MemoryFileSystem,
) -> None:
    one = open_checkpoint(put("memory://models/one", FILES)).identity
    assert open_checkpoint("memory://models/one/").identity == one
    copied = open_checkpoint(put("memory://models/two", FILES)).identity
    rewritten = open_checkpoint(put("memory://models/one", FILES)).identity
    assert len({one, copied, rewritten}) == 3


def test_two_places_are_two_checkpoints_where_a_store_tells_only_sizes(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MemoryFileSystem.info

    def info(self: Any, path: str, **kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in original(self, path, **kwargs).items() if key in ("name", "size", "type")}

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    other = FILES | {"model.safetensors": save({name: tensor + 1 for name, tensor in TENSORS.items()})}
    one = open_checkpoint(put("memory://models/one", FILES)).identity
    assert open_checkpoint(put("memory://models/two", other)).identity != one


def test_the_identity_is_that_of_the_contents_where_there_are_checksums(memory: MemoryFileSystem) -> None:
    one = open_checkpoint(put("tagged://models/one", FILES)).identity
    assert open_checkpoint(put("tagged://models/two", FILES)).identity == one
    other = save({name: tensor + 1 for name, tensor in TENSORS.items()})
    assert open_checkpoint(put("tagged://models/one", {"model.safetensors": other})).identity != one


def test_only_the_named_folder_is_seen(memory: MemoryFileSystem) -> None:
    put("memory://top", {"sub/model.safetensors": b"12345678", "sub/deep/x.bin": b"1", "y.bin": b"2"})
    sub = open_files("memory://top/").folder("sub")
    assert (sub.names(), sub.folders()) == (("model.safetensors",), ("deep",))
    assert sub.read("model.safetensors", 6, 100) == b"78"
    for name in ("../y.bin", "deep/x.bin", "/top/y.bin", "", ".."):
        assert not sub.has(name)
        with pytest.raises(CheckpointError, match="not the name of a file"):
            sub.read(name, 0, 1)


def test_what_is_not_there_is_missing(memory: MemoryFileSystem) -> None:
    with pytest.raises(MissingError, match=r"memory://nothing/ is not there"):
        open_checkpoint("memory://nothing")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint("memory://nothing/model.safetensors")


def test_a_store_that_gives_less_than_it_promised_is_an_error(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(put("memory://models/bert", FILES))
    ref = list_matrices(opened).matrices[0]
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, **kwargs: b"123")
    with pytest.raises(CheckpointError, match=r"returned 3 bytes instead of 65536"):
        read_matrix(opened.source, ref)


def test_an_error_of_a_store_is_one_line(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    class StrangeError(Exception):
        pass

    def fail(self: Any, path: str, **kwargs: Any) -> Any:
        raise StrangeError("no \x1b[31maccess\nsecond line")

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("memory://models/bert/model.safetensors")
    assert str(caught.value).isprintable()
    assert "StrangeError: no \\x1b[31maccess" in str(caught.value)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_package_that_is_missing_is_named(scheme: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(CheckpointError, match=f"pip install {package}"):
        open_checkpoint(f"{scheme}://bucket/model")


def test_an_unknown_kind_of_store_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="nonsense"):
        open_checkpoint("nonsense://bucket/model")


def test_whole_files_are_not_downloaded_from_other_stores(memory: MemoryFileSystem) -> None:
    with pytest.raises(CheckpointError, match=r"can be downloaded \(download\)"):
        open_checkpoint(put("memory://models/bert", FILES), download=True)


def test_a_file_on_a_web_server_is_read_in_part(hub: Hub) -> None:
    pytest.importorskip("aiohttp")
    hub.commit("org/name", FILES)
    check_tensors(f"{hub.endpoint}/org/name/resolve/main/model.safetensors")
    assert all("range" in request.headers for request in hub.seen("storage", "GET"))


class BusyError(Exception):
    """What a client of a store raises when the server answers with a status."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.status, self.headers = status, headers or {}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


def fail_first(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception, times: int) -> list[str]:
    """Let the first calls of a method of the store fail; return the list of all its calls."""
    original = getattr(MemoryFileSystem, method)
    calls: list[str] = []

    def failing(self: Any, path: str, *arguments: Any, **kwargs: Any) -> Any:
        calls.append(path)
        if len(calls) <= times:
            raise error
        return original(self, path, *arguments, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, method, failing)
    return calls


PASSING = [BusyError(503), TimeoutError("late"), ConnectionResetError("gone"), OSError(errno.EBUSY, "slow down")]


@pytest.mark.parametrize("method", ["ls", "info", "cat_file"])
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_store_that_fails_twice_is_asked_again(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, waits: list[float], method: str, error: Exception
) -> None:
    url = put("memory://models/bert", {"m-1.safetensors": FILES["model.safetensors"], "config.json": CONFIG})
    fail_first(monkeypatch, method, error, times=2)
    check_tensors(url)
    assert len(waits) == 2
    assert waits[0] < waits[1]


def test_a_store_is_left_alone_as_long_as_it_asks(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    url = put("memory://models/bert", FILES)
    fail_first(monkeypatch, "cat_file", BusyError(429, {"retry-after": "37"}), times=1)
    check_tensors(url)
    assert len(waits) == 1
    assert 37 <= waits[0] < 40


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (BusyError(503), retry.MAX_TRIES),
        (ConnectionRefusedError("no"), retry.MAX_CONNECTION_TRIES),
        (BusyError(403), 1),
        (PermissionError("no"), 1),
        (ValueError("no"), 1),
    ],
    ids=["busy", "nobody there", "forbidden", "not permitted", "not understood"],
)
def test_a_store_is_not_asked_for_ever(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, waits: list[float], error: Exception, tries: int
) -> None:
    url = put("memory://models/bert", FILES)
    calls = fail_first(monkeypatch, "cat_file", error, times=10**9)
    with pytest.raises(CheckpointError, match=type(error).__name__):
        open_checkpoint(url)
    assert len(calls) == tries


def test_a_web_server_that_fails_twice_is_asked_again(hub: Hub) -> None:
    pytest.importorskip("aiohttp")
    hub.commit("org/name", FILES)
    url = f"{hub.endpoint}/org/name/resolve/main/model.safetensors"
    hub.faults = [Fault("storage", times=4, status=503)]  # each try is a HEAD and a GET
    check_tensors(url)
    assert len(hub.waits) == 2


def test_a_web_server_that_goes_on_failing_is_not_a_missing_file(hub: Hub) -> None:
    pytest.importorskip("aiohttp")
    hub.commit("org/name", FILES)
    hub.faults = [Fault("storage", times=99, status=503)]
    with pytest.raises(CheckpointError, match="cannot be read: ClientResponseError: 503"):
        open_checkpoint(f"{hub.endpoint}/org/name/resolve/main/model.safetensors")
    assert len(hub.waits) == retry.MAX_TRIES - 1
    with pytest.raises(MissingError, match="is not there"):
        open_checkpoint(f"{hub.endpoint}/org/name/resolve/main/other.safetensors")
