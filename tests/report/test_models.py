"""A place refers to the model that was scanned from it, and the name of a difference to the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scanner.checkpoint import open_checkpoint
from scanner.errors import ScannerError
from scanner.figures.selection import choose_matrix, decomposed
from scanner.report.models import choose_models
from scanner.store import Store, open_store
from tests.checkpoint.writing import checkpoint
from tests.store.rows import Matrix, scan_values

NAME = "layers.0.self_attn.q_proj.weight"
DELTA = "delta:base..tuned"


def scanned(store: Store, reference: str, hours: float, rename: str | None = None) -> None:
    """The row that a scan of this reference leaves behind, with one made-up matrix."""
    opened = open_checkpoint(reference)
    model = rename or opened.model
    writer = store.writer(f"scan{hours}", method={}, model=model)
    matrix = Matrix(tensor=NAME, rows=6, cols=5)
    writer.stage(matrix.key, *matrix.tables(f"scan{hours}", model, opened.revision))
    values = {"source": opened.source, "identity": opened.identity, "base_model": opened.base_model}
    writer.commit(scan_values(revision=opened.revision, hours=hours, **values))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    weights = [torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    base, tuned = (
        checkpoint(tmp_path / name, {NAME: weight}) for name, weight in zip(("base", "tuned"), weights, strict=True)
    )
    return base, tuned


@pytest.fixture
def store(tmp_path: Path, folders: tuple[str, str]) -> Store:
    """Both models, and their difference, which was finished last and lies where the tuned model does."""
    store = open_store(str(tmp_path / "store"), create=True)
    for hours, reference in enumerate([*folders, f"delta:{folders[0]}..{folders[1]}"]):
        scanned(store, reference, hours)
    return store


def test_a_place_is_the_model_and_not_a_later_difference_from_it(store: Store, folders: tuple[str, str]) -> None:
    base, tuned = folders
    assert choose_models(store, [base, tuned]) == ["base", "tuned"]
    assert choose_models(store, [f"{tuned}/"]) == ["tuned"]


def test_a_difference_that_is_named_is_meant(store: Store, folders: tuple[str, str]) -> None:
    base, tuned = folders
    for reference in (DELTA, f"delta:{base}..{tuned}", f"delta:base..{tuned}"):
        assert choose_models(store, [reference]) == [DELTA]
    with pytest.raises(ScannerError, match=r"'delta:tuned\.\.base' is not scanned"):
        choose_models(store, ["delta:tuned..base"])


def test_a_matrix_of_a_difference_is_read_again_from_both_sides(store: Store, folders: tuple[str, str]) -> None:
    one, other = (_weight(folder) for folder in folders)
    found = decomposed(store, choose_matrix(store, model=DELTA, tensor=NAME))
    expected = np.linalg.svd(other - one, compute_uv=False)
    np.testing.assert_allclose(found.singular_values.numpy(), expected, rtol=1e-9)


def test_of_several_bases_of_one_name_the_one_that_was_subtracted_is_read(
    store: Store, folders: tuple[str, str], tmp_path: Path
) -> None:
    newer = checkpoint(tmp_path / "newer", {NAME: torch.ones(6, 5)})
    scanned(store, newer, 9, rename="base")
    found = decomposed(store, choose_matrix(store, model=DELTA, tensor=NAME))
    expected = np.linalg.svd(_weight(folders[1]) - _weight(folders[0]), compute_uv=False)
    np.testing.assert_allclose(found.singular_values.numpy(), expected, rtol=1e-9)


def test_a_difference_whose_base_is_nowhere_says_so(tmp_path: Path, folders: tuple[str, str]) -> None:
    store = open_store(str(tmp_path / "alone"), create=True)
    scanned(store, f"delta:{folders[0]}..{folders[1]}", 0)
    with pytest.raises(ScannerError, match=r"does not say where 'base' is, .*scan it too"):
        decomposed(store, choose_matrix(store, model=DELTA, tensor=NAME))


def _weight(folder: str) -> np.ndarray:
    return load_file(Path(folder) / "model.safetensors")[NAME].double().numpy()
