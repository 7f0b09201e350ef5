"""Whatever is given to `analyze` gives the values of its numbers, or one line that says what is required; never a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scanner
from scanner.errors import ScannerError

A = np.random.default_rng(0).standard_normal((12, 20))
SINGLE = A.astype(np.float32).astype(np.float64)
HALF = A.astype(np.float16).astype(np.float64)
BRAIN = torch.tensor(A).bfloat16().double().numpy()


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


SAME: dict[str, tuple[Any, np.ndarray[Any, Any]]] = {
    "big-endian float64": (A.astype(">f8"), A),
    "big-endian float32": (A.astype(">f4"), SINGLE),
    "big-endian float16": (A.astype(">f2"), HALF),
    "big-endian integers": (np.round(A * 100).astype(">i4"), np.round(A * 100)),
    "longdouble": (A.astype(np.longdouble), A),
    "read-only": (read_only(A), A),
    "read-only and transposed": (read_only(A).T, A.T),
    "flipped": (A[::-1, ::-2], A[::-1, ::-2]),
    "fortran": (np.asfortranarray(A), A),
    "broadcast": (np.broadcast_to(A[0], (12, 20)), np.tile(A[0], (12, 1))),
    "object": (A.astype(object), A),
    "fractions": ([[Fraction(1, 2), Fraction(1, 4)], [Decimal(2), 3]], np.array([[0.5, 0.25], [2.0, 3.0]])),
    "float16": (A.astype(np.float16), HALF),
    "bool": (A > 0, (A > 0).astype(float)),
    "unsigned": (np.arange(6, dtype=np.uint64).reshape(2, 3), np.arange(6.0).reshape(2, 3)),
    "not masked": (np.ma.masked_array(A, A > 9), A),
    "bfloat16 tensor": (torch.tensor(A).bfloat16(), BRAIN),
    "float8 tensor": (torch.ones(3, 4).to(torch.float8_e4m3fn), np.ones((3, 4))),
    "sparse tensor": (torch.tensor(A).to_sparse(), A),
    "negative view": (torch.tensor(A - 1j * A).conj().imag, A),
    "large": (A * 1e280, A * 1e280),
    "as large as sums allow": (A * 1e305, A * 1e305),
    "subnormal": (A * 1e-310, A * 1e-310),
    "nearly the smallest": (np.sign(A) * 5e-323, np.sign(A) * 5e-323),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_give_the_same_values(name: str) -> None:
    given, numbers = SAME[name]
    largest = np.abs(numbers).max()
    unit = 2.0 ** np.floor(np.log2(largest))  # exact, and LAPACK does not see subnormal numbers
    truth = np.linalg.svd(numbers / unit, compute_uv=False)
    found = scanner.analyze(given)
    np.testing.assert_allclose(found.singular_values / unit, truth, atol=1e-12 * truth[0] + 5e-324 / unit)
    assert np.isfinite([found.sigma, found.sigma_std, found.sigma_init, found.mp_upper]).all()


def test_bfloat16_of_ml_dtypes_is_a_number() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    found = scanner.analyze(A.astype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(BRAIN, compute_uv=False))


def test_the_array_is_not_changed() -> None:
    given = A.copy()
    scanner.analyze(given)
    assert np.array_equal(given, A)


REFUSED: dict[str, tuple[Any, str]] = {
    "masked": (np.ma.masked_array(A, A > 1), "masked"),
    "complex": (A + 0j, "complex"),
    "complex objects": ((A + 1j).astype(object), "real numbers"),
    "text": ([["1", "2"], ["3", "4"]], "real numbers"),
    "words among numbers": (np.array([[1.0, "x"]], dtype=object), "real numbers"),
    "dates": (np.zeros((2, 2), dtype="datetime64[s]"), "real numbers"),
    "records": (np.zeros((2, 2), dtype=[("a", "f8")]), "real numbers"),
    "rows of different lengths": ([[1.0, 2.0], [3.0]], "a matrix is required"),
    "a mapping": ({"w": A}, "got a dict"),
    "a module": (torch.nn.Linear(2, 2), "got a Linear"),
    "nothing": (None, "got a NoneType"),
    "meta": (torch.empty(4, 4, device="meta"), "meta"),
    "beyond float64": (np.full((2, 2), np.finfo(np.longdouble).max), "infinite"),
    "too large": (np.sign(A) * 1.7e308, "is too large"),
    "nested": (torch.nested.nested_tensor([torch.ones(2, 3)] * 2, layout=torch.jagged), "nested tensor"),
    "a gap": (np.array([[1.0, None]], dtype=object), "NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_is_refused_in_one_line(name: str) -> None:
    given, what = REFUSED[name]
    with pytest.raises(ValueError, match=what) as caught:
        scanner.analyze(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [{"w": torch.ones(2, 2)}, torch.nn.Linear(2, 2), [torch.ones(2, 2)], torch.ones(2, 2), 3, b"model", ["a", None]],
)
def test_a_scan_of_what_is_in_memory_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match=r"`references` has a .*: name checkpoints by path") as caught:
        scanner.scan(given, store=str(tmp_path / "store"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()
