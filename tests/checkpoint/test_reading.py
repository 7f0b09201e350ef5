import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scanner.checkpoint import MatrixRef, list_matrices, open_checkpoint, read_matrix
from scanner.errors import CheckpointError

from .writing import WEIGHTS, checkpoint, file_bytes, info, matrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_matrix_is_read_bit_for_bit_in_its_stored_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"w{i}.weight": torch.randn(3 + i, 5, generator=generator).to(dtype) for i in range(4)}
    opened = open_checkpoint(checkpoint(tmp_path / "one", tensors))
    expected = load_file(tmp_path / "one" / WEIGHTS)
    for ref in list_matrices(opened).matrices:
        found = read_matrix(opened.source, ref)
        assert (found.dtype, found.device.type, tuple(found.shape)) == (dtype, "cpu", (ref.rows, ref.cols))
        assert torch.equal(found, expected[ref.tensor])
        assert found.is_contiguous()
    assert len(expected) == len(list_matrices(opened).matrices)


def test_special_values_survive(tmp_path: Path) -> None:
    values = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-45]])
    opened = open_checkpoint(checkpoint(tmp_path / "one", {"w": values}))
    found = read_matrix(opened.source, list_matrices(opened).matrices[0])
    assert np.array_equal(found.numpy().view(np.uint32), values.numpy().view(np.uint32))


def test_a_matrix_that_is_stored_transposed_is_turned(tmp_path: Path) -> None:
    stored = torch.arange(6.0).reshape(2, 3)
    opened = open_checkpoint(checkpoint(tmp_path / "one", {"w": stored}))
    ref = dataclasses.replace(list_matrices(opened).matrices[0], rows=3, cols=2, transposed=True)
    assert torch.equal(read_matrix(opened.source, ref), stored.T)


def test_two_reads_do_not_share_memory(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "one", {"w": torch.ones(2, 2)}))
    ref = list_matrices(opened).matrices[0]
    read_matrix(opened.source, ref).zero_()
    assert torch.equal(read_matrix(opened.source, ref), torch.ones(2, 2))


def opened_file(folder: Path) -> tuple[str, MatrixRef]:
    opened = open_checkpoint(checkpoint(folder, {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}))
    return opened.source, matrix(list_matrices(opened), "b.weight")


def test_a_file_that_was_cut_short_meanwhile_is_reported(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    with (tmp_path / "one" / WEIGHTS).open("r+b") as file:
        file.truncate(ref.entry.start + 10)
    with pytest.raises(CheckpointError, match="cut short"):
        read_matrix(source, ref)


def test_a_file_that_went_away_is_reported(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    (tmp_path / "one" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        read_matrix(source, ref)


def test_a_folder_that_went_away_is_not_mistaken_for_its_parent(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    (tmp_path / "one" / WEIGHTS).rename(tmp_path / WEIGHTS)
    (tmp_path / "one").rmdir()
    with pytest.raises(CheckpointError, match="does not exist on this machine"):
        read_matrix(source, ref)


def test_a_description_that_does_not_fit_its_bytes_is_refused(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    wrong = dataclasses.replace(ref, entry=dataclasses.replace(ref.entry, shape=(5, 5)))
    with pytest.raises(CheckpointError, match="do not make"):
        read_matrix(source, wrong)


def test_a_short_file_is_found_out_before_memory_is_taken(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    huge = dataclasses.replace(ref.entry, shape=(2**20, 2**10), size=2**32)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="cut short"):
            read_matrix(source, dataclasses.replace(ref, entry=huge))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_description_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    source, ref = opened_file(tmp_path / "one")
    checkpoint(tmp_path / "two", {"b.weight": torch.ones(4, 4)})
    wrong = dataclasses.replace(ref, entry=dataclasses.replace(ref.entry, file=f"../two/{WEIGHTS}"))
    with pytest.raises(CheckpointError, match="not the name of a file"):
        read_matrix(source, wrong)


def test_a_small_matrix_of_a_big_file_costs_little_memory(tmp_path: Path) -> None:
    big, small = 256 * 2**20, 64 * 64 * 4
    header = {
        "big.weight": info("F32", (2**13, 2**13), 0, big),
        "small.weight": info("F32", (64, 64), big, big + small),
    }
    values = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(file_bytes(header))
        file.seek(big, 1)  # a hole: the file system stores nothing here
        file.write(values.tobytes())
    tracemalloc.start()
    try:
        opened = open_checkpoint(str(tmp_path))
        peak_opening = tracemalloc.get_traced_memory()[1]
        ref = matrix(list_matrices(opened), "small.weight")
        read_matrix(opened.source, ref)  # imports what it needs
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = read_matrix(opened.source, ref)
        peak_reading = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert np.array_equal(found.numpy(), values)
    assert peak_opening < 24 * 2**20
    assert small <= peak_reading < 8 * small
