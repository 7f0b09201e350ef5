import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import _tree_cache, constants
from safetensors.torch import save

from scanner.checkpoint import open_checkpoint
from scanner.checkpoint.sources import hub_cache
from scanner.checkpoint.sources.hub_files import hub_files
from scanner.errors import CheckpointError

from ..writing import INDEX
from .hub_fixtures import WHOLE, check_tensors, sharded
from .hub_server import Fault, Hub


def test_files_in_the_cache_are_not_asked_for(hub: Hub, single: str) -> None:
    remote = open_checkpoint("org/name")
    opened = open_checkpoint("org/name", download=True)
    assert opened == remote
    hub.requests.clear()
    again = open_checkpoint(f"org/name@{single}")
    check_tensors(again)
    assert again == opened
    assert hub.requests == []


def test_downloading_takes_only_what_is_read(hub: Hub) -> None:
    files = sharded() | {"README.md": b"x", "pytorch_model.bin": b"y", "onnx/model.onnx": b"z", "[a]*.txt": b""}
    hub.commit("org/name", files)
    check_tensors(open_checkpoint("org/name", download=True))
    snapshot = next(Path(constants.HF_HUB_CACHE).glob("models--org--name/snapshots/*"))
    assert {path.name for path in snapshot.rglob("*")} == {*sharded(), "README.md"}


def test_downloading_needs_no_ranges(hub: Hub, single: str) -> None:
    hub.faults = [Fault("storage", times=99, whole=True)]
    check_tensors(open_checkpoint("org/name", download=True))


def test_a_file_with_a_strange_name_is_read_and_downloaded(hub: Hub) -> None:
    name = "m[1] #?*%2F.safetensors"
    hub.commit("org/name", {name: WHOLE, "m1 #?*%2F.safetensors": WHOLE})
    check_tensors(open_checkpoint(f"hf://org/name/{name}"))
    check_tensors(open_checkpoint(f"hf://org/name/{name}", download=True))
    assert [path.name for path in Path(constants.HF_HUB_CACHE).glob("**/*.safetensors")] == [name]


def test_downloading_costs_few_questions(hub: Hub) -> None:
    hub.commit("org/name", sharded())
    open_checkpoint("org/name", download=True)
    assert len(hub.seen("api")) <= 3
    assert len(hub.seen("storage", "GET")) == 4


def test_downloading_a_branch_that_moves_on_takes_the_commit_that_was_found(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*args: Any, **kwargs: Any) -> str:
        if kwargs["revision"] == "main":
            hub.commit("org/name", {"model.safetensors": save({"other": torch.ones(1, 1)})})
        return str(original(*args, **kwargs))

    original = hub_cache.snapshot_download
    monkeypatch.setattr(hub_cache, "snapshot_download", moved)
    opened = open_checkpoint("org/name", download=True)
    assert opened.revision == single
    hub.requests.clear()
    check_tensors(opened)
    assert hub.requests == []


def test_offline_only_the_cache_counts(hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint("org/name", download=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for reference in ("org/name", f"org/name@{single}", "org/name@main"):
        again = open_checkpoint(reference)
        assert again == opened
        check_tensors(again)
    for reference in ("org/other", "org/name@v2", "org/name@" + "0" * 40, "org/name/other.gguf"):
        with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
            open_checkpoint(reference)
    assert hub.requests == []


@pytest.fixture
def old_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot as it is in caches that know no listings: the files, and nothing that says which belong to the commit."""
    hub.commit("org/name", sharded() | {"README.md": b"x"})
    open_checkpoint("org/name", download=True)
    folder = Path(constants.HF_HUB_CACHE) / "models--org--name"
    shutil.rmtree(folder / "trees")
    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    hub_files.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return next((folder / "snapshots").iterdir())


def test_offline_a_snapshot_without_a_listing_is_read(old_cache: Path) -> None:
    check_tensors(open_checkpoint("org/name"))


def test_offline_a_part_of_the_shards_is_not_taken_for_the_model(old_cache: Path) -> None:
    (old_cache / INDEX).unlink()
    (old_cache / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match="3 of the 4 files"):
        open_checkpoint("org/name")


def test_offline_a_config_that_was_not_downloaded_is_an_error(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint("org/name", download=True)
    next(Path(constants.HF_HUB_CACHE).glob("**/config.json")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"config\.json of org/name is not in the local cache"):
        open_checkpoint(f"org/name@{opened.revision}")


def test_offline_a_model_card_that_was_not_downloaded_is_none(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint("org/name", download=True)
    next(Path(constants.HF_HUB_CACHE).glob("**/README.md")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("org/name") == opened


def test_blobs_that_models_share_are_followed_from_the_cache_only(hub: Hub, single: str) -> None:
    open_checkpoint("org/name", download=True)
    cache = Path(constants.HF_HUB_CACHE)
    blob = next(cache.glob("**/model.safetensors")).resolve()
    shared = cache / "blobs" / "ab" / "cd"
    shared.parent.mkdir(parents=True)
    shutil.move(blob, shared)
    blob.symlink_to(Path("../../blobs/ab/cd"))
    with pytest.raises(CheckpointError, match="symbolic link"):
        open_checkpoint(f"org/name@{single}")
    (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    check_tensors(open_checkpoint(f"org/name@{single}"))


def test_a_download_that_does_not_fit_is_refused_before_it_begins(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"org/name does not fit .* GB are needed"):
        open_checkpoint("org/name", download=True)
    assert not list(Path(constants.HF_HUB_CACHE).glob("**/*.safetensors"))


def test_a_disk_that_fills_up_is_an_error_that_says_so(hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_cache, "snapshot_download", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        open_checkpoint("org/name", download=True)
