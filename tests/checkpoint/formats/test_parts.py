"""A model in several files is read whole or not at all, whatever its files are called."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.formats.parts import MAX_PARTS, first_parts, numbered_parts, without_variants
from scanner.errors import CheckpointError

from .gguf_writing import write_gguf


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".gguf":
        write_gguf(path, {name: np.asarray(tensor) for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path)


def refused(reference: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(reference), identify=False)
    assert str(caught.value).isprintable()
    return str(caught.value)


def files_of(reference: Path) -> list[str]:
    return sorted({entry.file for entry in open_checkpoint(str(reference), identify=False).tensors})


NUMBERED = [
    "model-{}-of-00003.safetensors",
    "diffusion_pytorch_model-{}-of-00003.safetensors",
    "model-{}-of-00003.fp16.safetensors",
    "consolidated-{}-of-00003.safetensors",
    "{}-of-00003.safetensors",
    "pytorch_model-{}-of-00003.bin",
    "pytorch_model_{}-of-00003.bin",
    "my.weights-{}-of-00003.pt",
    "model-{}-of-000003.pth",
    "tiny-{}-of-000003.gguf",
    "model_{}_of_00003.pt",
    "model-{}of00003.bin",
    "model.part{}of3.safetensors",
]


@pytest.mark.parametrize("pattern", NUMBERED)
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_part_is_an_error_without_an_index(tmp_path: Path, pattern: str, missing: int) -> None:
    names = [pattern.format(f"{at:05d}") for at in (1, 2, 3)]
    for at, name in enumerate(names):
        if at + 1 != missing:
            write(tmp_path / name, {f"layers.{at}.weight": torch.ones(32, 32)})
    for reference in (tmp_path, tmp_path / names[missing % 3]):
        assert f"1 of the model's 3 files are missing: download {names[missing - 1]}" in refused(reference)


@pytest.mark.parametrize("pattern", [name for name in NUMBERED if not name.endswith(".gguf")])
def test_all_parts_are_one_model_also_when_one_is_named(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format(f"{at:05d}") for at in (1, 2, 3)]
    weights = {f"layers.{at}.weight": torch.randn(4, 3) for at in range(3)}
    for name, weight in zip(names, weights, strict=True):
        write(tmp_path / name, {weight: weights[weight]})
    for reference in (tmp_path, tmp_path / names[1]):
        opened = open_checkpoint(str(reference))
        for ref in list_matrices(opened).matrices:
            assert torch.equal(read_matrix(opened.source, ref), weights[ref.tensor])
        assert {entry.name for entry in opened.tensors} == set(weights)


def test_parts_count_from_zero_or_one_with_or_without_zeros() -> None:
    def parts(name: str, *there: str) -> tuple[str, ...]:
        return numbered_parts(name, {name, *there}.__contains__)

    assert parts("m-00001-of-00002.bin", "m-00000-of-00002.bin") == ("m-00000-of-00002.bin", "m-00001-of-00002.bin")
    assert len(parts("m-00002-of-00002.bin", "m-00000-of-00002.bin")) == 3
    assert parts("m-00000-of-00001.bin") == ("m-00000-of-00001.bin",)
    assert parts("m-2-of-3.bin") == ("m-1-of-3.bin", "m-2-of-3.bin", "m-3-of-3.bin")
    assert parts("m-10-of-12.bin", "m-1-of-12.bin")[0] == "m-1-of-12.bin"
    assert parts("m-10-of-12.bin", "m-01-of-12.bin")[0] == "m-01-of-12.bin"
    assert parts("m-00001-of-000163.safetensors")[-1] == "m-00163-of-000163.safetensors"
    for whole in (
        "fold_1_of_5.pt",
        "m-epoch-2-of-3.bin",
        "proof2.bin",
        "m.bin",
        "m-00003-of-00002.bin",
        "m-1-of-0.bin",
        "one-of-us.bin",
        "m-1-of-2",
    ):
        assert parts(whole) == (whole,)
    with pytest.raises(CheckpointError, match="more than any model"):
        parts(f"m-1-of-{MAX_PARTS + 1}.bin")


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "consolidated.safetensors.index.json",
        "weights.index.json",
    ],
)
def test_every_index_beside_the_weights_counts(tmp_path: Path, index: str) -> None:
    weight_map = {}
    for at in range(3):
        write(tmp_path / f"w{at}.safetensors", {f"layers.{at}.weight": torch.ones(4, 3)})
        weight_map[f"layers.{at}.weight"] = f"w{at}.safetensors"
    (tmp_path / index).write_text(json.dumps({"weight_map": weight_map}))
    assert len(files_of(tmp_path)) == len(files_of(tmp_path / "w1.safetensors")) == 3
    (tmp_path / "w1.safetensors").unlink()
    for reference in (tmp_path, tmp_path / "w0.safetensors"):
        assert f"1 of the 3 files that {index} names are missing: download w1.safetensors" in refused(reference)
    for at in (0, 2):
        (tmp_path / f"w{at}.safetensors").unlink()
    if ".safetensors." in index:
        assert "3 of the 3 files" in refused(tmp_path)


def test_a_single_file_that_an_index_names_among_others_is_not_the_model(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"layers.0.weight": torch.ones(4, 3)})
    weight_map = {"layers.0.weight": "model.safetensors", "layers.1.weight": "more.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "download more.safetensors" in refused(tmp_path)
    write(tmp_path / "more.safetensors", {"layers.1.weight": torch.ones(4, 3)})
    assert files_of(tmp_path) == ["model.safetensors", "more.safetensors"]


def test_an_index_of_another_format_or_of_no_weights_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"layers.0.weight": torch.ones(4, 3)})
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    (tmp_path / "documents.index.json").write_text("[1, 2]")
    assert files_of(tmp_path) == ["model.safetensors"]


def test_an_index_that_leaves_out_numbered_parts_does_not_make_a_model_of_the_others(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00002.safetensors", {"a.weight": torch.ones(4, 3)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}')
    assert "download model-00002-of-00002.safetensors" in refused(tmp_path)


SLICES = [
    ("consolidated.00.pth", "consolidated.01.pth"),
    ("consolidated.00.safetensors", "consolidated.01.safetensors"),
    ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
    ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"),
    ("mp_rank_00_000/model.pt", "mp_rank_01_000/model.pt"),
    ("model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"),
    ("rank0.safetensors", "rank1.safetensors"),
    ("model0-mp2.safetensors", "model1-mp2.safetensors"),
    ("mp_rank_00_000/model_optim_rng.pt", "mp_rank_00_001/model_optim_rng.pt"),
    ("tp_rank_00_pp_rank_000/model.pt", "tp_rank_00_pp_rank_001/model.pt"),
    ("layer_02-model_00-model_states.pt", "layer_02-model_01-model_states.pt"),
    ("layer_02-model_states.pt", "layer_03-model_states.pt"),
    ("reshard-model_part-0.pt", "reshard-model_part-1.pt"),
    ("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"),
    ("pytorch_model_rank0.bin", "pytorch_model_rank1.bin"),
]
# Their names alone could mean something else: only together do they say that they are slices.
SLICES_TOGETHER = [
    ("model.tp0.safetensors", "model.tp1.safetensors"),
    ("llama_rank_0.pt", "llama_rank_1.pt"),
    ("checkpoint_last-shard0.pt", "checkpoint_last-shard1.pt"),
]


@pytest.mark.parametrize(("first", "second"), SLICES)
def test_slices_of_every_matrix_are_never_models(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "run" / "original"
    for name in (first, second):
        write(folder / name, {"layers.0.attention.wq.weight": torch.ones(4, 8)})
    for reference in (tmp_path / "run", folder, folder / first, folder / second, (folder / first).parent):
        assert "holds a slice of every matrix" in refused(reference)
    (folder / first).unlink()
    if (folder / first).parent != folder:
        (folder / first).parent.rmdir()
    for reference in (folder, folder / second):
        assert "holds a slice of every matrix" in refused(reference)


@pytest.mark.parametrize(("first", "second"), SLICES_TOGETHER)
def test_a_name_that_may_mean_a_setting_is_a_slice_beside_all_others(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second):
        write(tmp_path / name, {"layers.0.attention.wq.weight": torch.ones(4, 8)})
    for reference in (tmp_path, tmp_path / first, tmp_path / second):
        assert "holds a slice of every matrix" in refused(reference)
    (tmp_path / first).unlink()
    assert files_of(tmp_path / second) == [second]


def test_an_index_says_that_files_with_such_names_are_one_model(tmp_path: Path) -> None:
    names = ("model.tp0.safetensors", "model.tp1.safetensors")
    for at, name in enumerate(names):
        write(tmp_path / name, {f"layers.{at}.weight": torch.ones(4, 3)})
    assert "holds a slice" in refused(tmp_path)
    weight_map = {f"layers.{at}.weight": name for at, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert files_of(tmp_path) == list(names)


@pytest.mark.parametrize("other", ["consolidated-{}-of-00002.safetensors", "extra.safetensors"])
def test_numbered_parts_and_other_files_are_not_mixed_into_one_model(tmp_path: Path, other: str) -> None:
    for at in (1, 2):
        write(tmp_path / f"model-{at:05d}-of-00002.safetensors", {f"model.layers.{at}.weight": torch.ones(4, 3)})
        write(tmp_path / other.format(f"{at:05d}"), {f"layers.{at}.weight": torch.ones(4, 3)})
    assert "holds several models" in refused(tmp_path)
    assert len(files_of(tmp_path / "model-00001-of-00002.safetensors")) == 2


@pytest.mark.parametrize(
    "name", ["consolidated.00.pth", "mp_rank_00/model.pt", "model0-mp1.safetensors", "lora_rank_16.pt"]
)
def test_the_only_process_wrote_the_whole_model(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, {"layers.0.attention.wq.weight": torch.ones(8, 8)})
    for reference in (tmp_path / name, (tmp_path / name).parent):
        assert files_of(reference) == [Path(name).name]


def test_numbered_parts_with_the_same_tensors_are_not_to_be_named_one_by_one(tmp_path: Path) -> None:
    for at in (1, 2):
        write(tmp_path / f"model-{at:05d}-of-00002.safetensors", {"wq.weight": torch.ones(4, 8)})
    message = refused(tmp_path)
    assert "not joined" in message
    assert "name the file" not in message


def test_copies_in_another_precision_are_not_the_model() -> None:
    names = ("model.fp16.bin", "model.bin", "model.ema.bin", "other.fp16.bin", "model.v2.bin")
    assert without_variants(names) == ("model.bin", "other.fp16.bin", "model.v2.bin")


def test_of_numbered_parts_one_name_stands_for_the_model() -> None:
    assert first_parts(("a-1-of-2.bin", "a-2-of-2.bin", "b.bin")) == ("a-1-of-2.bin", "b.bin")
