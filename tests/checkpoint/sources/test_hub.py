import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.reading import read_matrices
from scanner.checkpoint.sources.files import ByteRange, open_files
from scanner.checkpoint.sources.hub_files import _redirected, hub_files
from scanner.errors import CheckpointError, GatedError

from .hub_fixtures import CONFIG, LAYERS, TENSORS, WHOLE, check_tensors, part, sharded
from .hub_server import TOKEN, Fault, Hub


def header_bytes(file: bytes) -> int:
    return 8 + int.from_bytes(file[:8], "little")


# ---- reading


def test_a_model_on_the_hub_is_described_and_read_like_a_local_one(hub: Hub, tmp_path: Path) -> None:
    card = b"---\nbase_model: other/name\n---\n"
    files = {"model.safetensors": WHOLE, "config.json": CONFIG, "README.md": card, "tokenizer.json": b"{}" * 10**6}
    commit = hub.commit("org/name", files)
    opened = open_checkpoint("org/name")
    (tmp_path / "local").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "local" / name).write_bytes(files[name])
    local = open_checkpoint(str(tmp_path / "local"))
    assert (opened.model, opened.revision, opened.base_model) == ("org/name", commit, "other/name")
    assert (opened.tensors, opened.config, opened.architecture) == (local.tensors, local.config, local.architecture)
    assert (opened.format, opened.parameters, opened.dtype) == (local.format, local.parameters, local.dtype)
    check_tensors(opened)
    assert not any("tokenizer" in request.path for request in hub.requests)


def test_a_base_model_of_the_same_name_is_another_model(hub: Hub) -> None:
    card = b"---\nbase_model: [org/name, other/name]\n---\n"
    hub.commit("org/name", {"model.safetensors": WHOLE, "README.md": card})
    assert open_checkpoint("org/name").base_model == "other/name"
    assert open_checkpoint("org/name/model.safetensors").base_model == "other/name"


@pytest.mark.parametrize("layers", [(), (3,), tuple(range(LAYERS))])
@pytest.mark.parametrize("only", [(), ("query", "key", "value"), ("mlp_up",)])
@pytest.mark.parametrize("shards", [False, True])
def test_the_bytes_on_the_wire_are_those_of_the_selection_and_the_headers(
    hub: Hub, only: tuple[str, ...], layers: tuple[int, ...], shards: bool
) -> None:
    files = sharded() if shards else {"model.safetensors": WHOLE, "config.json": CONFIG}
    hub.commit("org/name", files)
    opened = open_checkpoint("org/name")
    chosen = list_matrices(opened, Selection(only=only, layers=layers)).matrices
    for matrix, ref in zip(read_matrices(opened.source, chosen), chosen, strict=True):
        assert torch.equal(matrix, TENSORS[ref.tensor])
    headers = sum(header_bytes(body) if name.endswith("s") else len(body) for name, body in files.items())
    selected = sum(ref.entry.size for ref in chosen)
    sent = sum(request.sent for request in hub.seen() if request.kind != "api")
    assert selected + headers <= sent <= 1.05 * (selected + headers)


def test_neighbouring_tensors_come_in_one_request(hub: Hub, single: str) -> None:
    opened = open_checkpoint("org/name")
    attention = ("query", "key", "value", "attn_out")  # with the biases between them
    for layers, requests in (((2,), 1), ((2, 5), 2)):
        before = len(hub.seen("storage"))
        read_matrices(opened.source, list_matrices(opened, Selection(only=attention, layers=layers)).matrices)
        assert len(hub.seen("storage")) == before + requests


def test_opening_costs_a_question_and_few_requests_a_file(hub: Hub, single: str) -> None:
    opened = open_checkpoint("org/name")
    assert [request.method for request in hub.seen("api")] == ["GET"]
    assert len(hub.seen("storage")) <= 2
    assert len(hub.seen("resolve")) <= 3  # the weights, the config, the model card
    for ref in list_matrices(opened).matrices:
        read_matrix(opened.source, ref)
    assert len(hub.seen("api")) == 1
    assert len(hub.seen("resolve")) <= 3


def test_a_worker_asks_once_for_size_and_address_of_a_file(hub: Hub, single: str) -> None:
    opened = open_checkpoint("org/name")
    refs = list_matrices(opened).matrices
    hub_files.cache_clear()
    hub.requests.clear()
    for ref in refs:
        assert torch.equal(read_matrix(opened.source, ref), TENSORS[ref.tensor])
    assert {request.headers["accept-encoding"] for request in hub.requests} == {"identity"}
    assert [(request.kind, request.method) for request in hub.requests[:2]] == [("resolve", "HEAD"), ("storage", "GET")]
    assert len(hub.seen("storage")) == len(hub.requests) - 1 == len(refs)


def test_many_small_reads_of_a_long_header_cost_few_requests(hub: Hub) -> None:
    body = bytes(range(256)) * 40_000
    commit = hub.commit("org/name", {"model.gguf": body})
    files = open_files(f"hf://org/name@{commit}")
    header = 2_000_000
    found = b"".join(files.read("model.gguf", start, 100) for start in range(0, header, 100))
    assert found == body[:header]
    assert len(hub.seen("storage")) < 40
    assert sum(request.sent for request in hub.seen("storage")) < 1.3 * header


def test_reads_end_where_the_file_ends(hub: Hub, single: str) -> None:
    files = open_files(f"hf://org/name@{single}")
    assert files.read("model.safetensors", len(WHOLE) - 3, 10) == WHOLE[-3:]
    assert files.read("model.safetensors", len(WHOLE) + 3, 10) == b""
    assert files.read("config.json", 0, 10**6) == CONFIG
    with pytest.raises(CheckpointError, match="ends 1 bytes before"):
        files.read_ranges([ByteRange(name="config.json", start=1, size=len(CONFIG))])


def test_threads_share_the_files_of_a_commit(hub: Hub) -> None:
    commit = hub.commit("org/name", sharded())
    files = open_files(f"hf://org/name@{commit}")
    files.expect(files.names())
    asked = len(hub.requests)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: files.read(name, 0, 8), files.names() * 4))
    assert len(hub.requests) == asked
    assert found == [sharded()[name][:8] for name in files.names()] * 4


# ---- names


def test_only_the_named_folder_is_seen(hub: Hub) -> None:
    files = {"sub/model.safetensors": WHOLE, "sub/deep/x.bin": b"1", "top.bin": b"2", "a\\b.safetensors": b"3"}
    commit = hub.commit("org/name", files | {"../up.safetensors": b"4", "/abs.safetensors": b"5"})
    top = open_files(f"hf://org/name@{commit}")
    assert (top.names(), top.folders()) == (("top.bin",), ("sub",))
    sub = top.folder("sub")
    assert (sub.names(), sub.folders(), sub.has("top.bin")) == (("model.safetensors",), ("deep",), False)
    assert sub.read("model.safetensors", 0, 8) == WHOLE[:8]
    for name in ("../top.bin", "deep/x.bin", "/top.bin", "", ".."):
        assert not sub.has(name)
        with pytest.raises(CheckpointError, match="not the name of a file"):
            sub.read(name, 0, 1)


@pytest.mark.parametrize("source", ["hf://org/name", "hf://org/name@main", "hf://org/name@" + "0" * 40 + "/../x"])
def test_a_source_is_one_commit(source: str) -> None:
    with pytest.raises(CheckpointError, match="not a commit"):
        open_files(source)


# ---- redirects and secrets


def test_the_token_goes_to_the_hub_and_never_to_its_storage(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["org/name"].private = True
    opened = open_checkpoint("org/name")
    check_tensors(opened)
    open_checkpoint("org/name", download=True)
    assert all(
        request.headers["authorization"] == f"Bearer {TOKEN}" for request in hub.seen("api") + hub.seen("resolve")
    )
    assert hub.seen("storage")
    for request in hub.seen("storage"):
        assert "authorization" not in request.headers
        assert TOKEN not in str(request)


def test_an_expired_address_is_renewed(hub: Hub, single: str) -> None:
    opened = open_checkpoint("org/name")
    hub.signature = "2"
    check_tensors(opened)
    assert [request.status for request in hub.seen("storage")].count(403) == 1
    assert hub.waits == []


def test_a_storage_that_refuses_fresh_addresses_too_is_an_error(hub: Hub, single: str) -> None:
    hub.faults = [Fault("storage", times=99, status=403)]
    with pytest.raises(GatedError, match=r"localhost.* refuses access to model\.safetensors of org/name"):
        part(single)
    assert len(hub.seen("storage")) <= 3


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://localhost/x", "//", "http://[", "http://a:b/"])
def test_a_redirect_to_something_else_than_the_web_is_refused(hub: Hub, single: str, location: str) -> None:
    files = open_files(f"hf://org/name@{single}")
    hub.faults = [Fault("resolve", times=99, status=302, headers={"Location": location})]
    with pytest.raises(CheckpointError):
        files.size("model.safetensors")
    files.names()
    with pytest.raises(CheckpointError):
        files.read("model.safetensors", 0, 8)


def test_a_redirect_does_not_give_up_encryption() -> None:
    assert _redirected("https://hub/x", "https://storage/y") == "https://storage/y"
    assert _redirected("https://hub/x", "/y") == "https://hub/y"
    with pytest.raises(CheckpointError, match="hub redirects from https to http"):
        _redirected("https://hub/x", "http://storage/y")


def test_redirects_in_a_circle_end(hub: Hub, single: str) -> None:
    files = open_files(f"hf://org/name@{single}")
    files.names()
    hub.faults = [Fault("resolve", times=99, status=302, headers={"Location": "/org/name/resolve/x/y"})]
    with pytest.raises(CheckpointError, match="redirects"):
        files.read("model.safetensors", 0, 8)
    assert len(hub.seen("resolve")) < 10


# ---- end to end, configured by the environment alone


PROGRAM = """
import sys
from scanner.checkpoint import list_matrices, open_checkpoint, read_matrix
for download in sys.argv[1:]:
    opened = open_checkpoint("org/name", download=download == "yes")
    total = sum(read_matrix(opened.source, ref).double().sum().item() for ref in list_matrices(opened).matrices)
    print(opened.revision, repr(total))
"""


def test_the_environment_of_huggingface_hub_counts(hub: Hub, single: str, tmp_path: Path) -> None:
    hub.repositories["org/name"].private = True
    total = sum(tensor.double().sum().item() for tensor in TENSORS.values() if tensor.ndim == 2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}

    def run(*arguments: str, **more: str) -> str:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    expected = f"{single} {total!r}\n"
    assert run("no", "yes") == expected * 2
    assert hub.seen("storage")
    hub.requests.clear()
    assert run("no", HF_HUB_OFFLINE="1") == expected
    assert hub.requests == []
