"""The reference for a whole scan: a loop over the matrices of a checkpoint in plain processes, with numpy and scipy only.

For every matrix: read its bytes, decompose it in float64 through the Gram matrix, and KS-test the entries of all left and right
singular vectors. No store, no retries, no residual check, no Marchenko-Pastur law. The loop uses LAPACK's fastest
eigensolver, and float32 where that is accurate enough for D, so that the comparison is fair.

    python benchmarks/bare_loop.py CHECKPOINT --processes 2 --output results.npz
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure  # noqa: F401  (one BLAS thread)

import numpy as np  # isort: skip
import scipy.linalg
import scipy.special
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Position of the float32 entries of a matrix in the file."""

    tensor: str
    file: str
    start: int
    shape: tuple[int, int]

    @property
    def cost(self) -> int:
        lo, hi = sorted(self.shape)
        return lo * lo * (hi + 3 * lo)


@dataclass(frozen=True, kw_only=True)
class Result:
    tensor: str
    singular_values: NDArray[np.float64]
    u_ks: NDArray[np.float32]
    v_ks: NDArray[np.float32]
    u_p: NDArray[np.float64]
    v_p: NDArray[np.float64]


def matrices(checkpoint: Path) -> list[Matrix]:
    """Return every 2-D tensor except the embedding, in order of decreasing work."""
    file = checkpoint / "model.safetensors"
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    found = [
        Matrix(tensor=name, file=str(file), start=8 + length + info["data_offsets"][0], shape=tuple(info["shape"]))
        for name, info in header.items()
        if name != "__metadata__" and len(info["shape"]) == 2 and "embed" not in name
    ]
    return sorted(found, key=lambda matrix: -matrix.cost)


def decompose(w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return singular values and left and right vectors (as rows), largest first."""
    tall = w.shape[0] >= w.shape[1]
    gram = w.T @ w if tall else w @ w.T
    vectors = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)[1]
    near = vectors.T[::-1]
    far = near @ (w.T if tall else w)
    s = np.linalg.norm(far, axis=1)
    far /= s[:, None]
    return (s, far, near) if tall else (s, near, far)


def ks_test(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return D of every row against the Gaussian of variance 1/n, and its asymptotic p."""
    length = vectors.shape[1]
    x = (vectors * np.sqrt(length)).astype(np.float32)
    x.sort(axis=1)
    c = scipy.special.ndtr(x)
    i = np.arange(1, length + 1, dtype=np.float32) / np.float32(length)
    d = np.maximum((i - c).max(axis=1), (c - i).max(axis=1) + np.float32(1.0 / length))
    return d, scipy.special.kolmogorov(np.sqrt(length) * d.astype(np.float64))


def analyse(matrix: Matrix) -> Result:
    w = np.memmap(matrix.file, dtype="<f4", mode="r", offset=matrix.start, shape=matrix.shape).astype(np.float64)
    s, left, right = decompose(w)
    (u_ks, u_p), (v_ks, v_p) = ks_test(left), ks_test(right)
    return Result(tensor=matrix.tensor, singular_values=s, u_ks=u_ks, v_ks=v_ks, u_p=u_p, v_p=v_p)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="an .npz of singular values and D by tensor")
    args = parser.parse_args()
    all_up = multiprocessing.Barrier(args.processes + 1)
    with multiprocessing.Pool(args.processes, initializer=all_up.wait) as pool:
        all_up.wait()
        ready_at, started = time.time(), time.perf_counter()
        results = list(pool.imap_unordered(analyse, matrices(args.checkpoint)))
        elapsed = time.perf_counter() - started
    if args.output:
        arrays = {
            f"{column}/{result.tensor}": getattr(result, column)
            for result in results
            for column in ("singular_values", "u_ks", "v_ks")
        }
        np.savez(args.output, **arrays)
    print(json.dumps({"ready_at": ready_at, "seconds": elapsed, "matrices": len(results)}))


if __name__ == "__main__":
    main()
