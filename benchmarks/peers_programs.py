"""Programs that `peers.py` times: WeightWatcher as it is used, WeightWatcher in its fastest setting, and a plain script.

They run in the environment of WeightWatcher, so nothing of this project is imported. Each prints one line of JSON: the number of
matrices that it has results of, and the names of its columns.
"""

from __future__ import annotations

import json
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


def main() -> int:
    program, folder, *rest = sys.argv[1:]
    if program == "weightwatcher":
        found = weightwatcher(folder)
    elif program == "weightwatcher-all":
        found = weightwatcher(folder, mp_fit=True, randomize=True)
    elif program == "weightwatcher-fast":
        found = weightwatcher_fast(folder, int(rest[0]))
    else:
        found = plain(folder)
    print(json.dumps(found))
    return 0


def load(folder: str) -> Any:
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=torch.float32)


def watch(model: Any, **options: Any) -> Any:
    import weightwatcher

    return weightwatcher.WeightWatcher(model=model).analyze(plot=False, **options)


def weightwatcher(folder: str, **options: Any) -> dict[str, Any]:
    details = watch(load(folder), **options)
    return {"matrices": len(details), "columns": sorted(map(str, details.columns))}


def weightwatcher_fast(folder: str, processes: int) -> dict[str, Any]:
    """One process a core with one BLAS thread each, singular values only; the layers go to the processes in turn."""
    import weightwatcher

    ids = [int(one) for one in weightwatcher.WeightWatcher(model=load(folder)).describe()["layer_id"]]
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        counts = list(pool.map(some_layers, [folder] * processes, [ids[i::processes] for i in range(processes)]))
    return {"matrices": sum(count for count, _ in counts), "columns": counts[0][1]}


def some_layers(folder: str, ids: list[int]) -> tuple[int, list[str]]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        details = watch(load(folder), layers=ids)
    return len(details), sorted(map(str, details.columns))


def plain(folder: str) -> dict[str, Any]:
    """Read every matrix, its full SVD, and one Kolmogorov-Smirnov test per vector: what one writes in an afternoon."""
    import numpy as np
    from safetensors import safe_open
    from scipy import stats

    count = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if len(file.get_slice(key).get_shape()) != 2 or "embed" in key:
                    continue
                matrix = file.get_tensor(key).double().numpy()
                u, s, vh = np.linalg.svd(matrix, full_matrices=False)
                sigma = float(np.median(s)) / np.sqrt(max(matrix.shape))
                assert sigma >= 0.0
                for vectors in (u.T, vh):
                    for vector in vectors:
                        stats.kstest(vector * np.sqrt(len(vector)), "norm")
                count += 1
    return {"matrices": count, "columns": ["singular_value", "sigma", "u_p", "v_p"]}


if __name__ == "__main__":
    sys.exit(main())
