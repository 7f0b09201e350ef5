"""Sparsities of the layers of a model for AlphaPruning: heavier-tailed layers are pruned less.

Source: Lu et al., arXiv 2410.10912, sec. 3, and its code (`lib/esd_utils.py`, `lib/prune.py`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.matrices import FloatArray, Matrix, choose
from scanner.store import Store

Alpha = Literal["alpha_peak", "alpha_mid"]
ALPHAS: tuple[Alpha, ...] = get_args(Alpha)
KNOWN = ("query", "key", "value", "attn_out", "mlp_gate", "mlp_up", "mlp_down")
_BINS = 100


def hill_alpha(eigenvalues: FloatArray, first: int) -> float:
    """Return the Hill estimate of the exponent of a power law of the eigenvalues from index `first` on.

    alpha = 1 + c / (sum_{j >= i} ln x_j - c ln x_i) with c = N - i. Source: arXiv 2410.10912, eq. 2.

    Args:
        eigenvalues: positive, ascending, (N,).
        first: index i of the smallest one of the tail.

    Returns:
        The exponent; infinite if all eigenvalues of the tail are equal.
    """
    tail = np.log(eigenvalues[first:])
    spread = float(tail.sum() - len(tail) * tail[0])
    return 1.0 + len(tail) / spread if spread > 0.0 else math.inf


def alpha_mid(s: FloatArray) -> float:
    """Return the Hill estimate from the larger half of the eigenvalues s^2 of a matrix with singular values s, largest first."""
    eigenvalues = _eigenvalues(s)
    return hill_alpha(eigenvalues, len(eigenvalues) // 2)


def alpha_peak(s: FloatArray) -> float:
    """Return the Hill estimate from the tail that fits best among those that begin below 1.5 times the peak of the spectrum.

    The peak is the left edge of the fullest of 100 logarithmic bins. A tail that begins at x_i has the distance
    D = max_j |1 - (x_j / x_i)^(1 - alpha) - (j - i) / c| from a power law, and the one with the smallest D is taken. The code of
    AlphaPruning has a lower bound as well, but compares an eigenvalue with the logarithm of another one; this is kept.

    Args:
        s: singular values, largest first.
    """
    x = _eigenvalues(s)
    if len(x) < 2:
        return math.nan
    logs = np.log10(x)
    counts, edges = np.histogram(logs, bins=_BINS)
    peak = 10.0 ** edges[int(np.argmax(counts))]
    least, most = math.log10(0.95 * peak), 1.5 * peak
    best, found = 1.0, 0.0  # as the code: D = 1 and alpha = 0 where nothing fits
    for first, lowest in enumerate(x[:-1]):
        if lowest < least:
            continue
        if lowest > most:
            break
        alpha = hill_alpha(x, first)
        if not 1.0 < alpha < math.inf:
            continue
        count = len(x) - first
        distance = float(np.abs(1.0 - (x[first:] / lowest) ** (1.0 - alpha) - np.arange(count) / count).max())
        if distance < best:
            best, found = distance, alpha
    return found if found else math.nan


def _eigenvalues(s: FloatArray) -> FloatArray:
    """Return s^2, ascending, without values that are numerically zero."""
    kept = s[s > s[0] * len(s) * np.finfo(np.float64).eps] if len(s) else s
    return np.sort(kept) ** 2


def sparsities(alphas: Sequence[float], parameters: Sequence[int], *, target: float, epsilon: float) -> FloatArray:
    """Map alpha linearly to sparsity, and keep the mean at the target.

    ratio = 1 - epsilon + 2 epsilon (alpha - min) / (max - min), times the factor that makes the mean over all parameters `target`.
    Source: arXiv 2410.10912, eq. 3; `ww_sparsity` in its code.

    Args:
        alphas: exponent of each block.
        parameters: number of parameters of each block.
        target: sparsity of the whole.
        epsilon: half of the range of the ratios.

    Raises:
        ConfigError: `target` or `epsilon` is out of range, or a block would lose all of its parameters.
    """
    if not 0.0 < target < 1.0:
        raise ConfigError("sparsity", f"must be between 0 and 1, got {target:g}")
    if not 0.0 <= epsilon < 1.0:
        raise ConfigError("epsilon", f"must be at least 0 and below 1, got {epsilon:g}")
    scores, sizes = np.asarray(alphas, dtype=np.float64), np.asarray(parameters, dtype=np.float64)
    width = float(scores.max() - scores.min())
    ratios = 1.0 - epsilon + 2.0 * epsilon * (scores - scores.min()) / width if width > 0.0 else np.ones_like(scores)
    found: FloatArray = ratios * (sizes.sum() * target / (sizes * ratios).sum())
    if found.max() >= 1.0:
        raise ConfigError(
            "epsilon",
            f"{epsilon:g} is too large for a sparsity of {target:g}: a block would have {found.max():.3f}; reduce it",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Measured:
    matrices: tuple[Matrix, ...]
    alphas: FloatArray
    left_out: tuple[str, ...]


def alphapruning(
    store: Store,
    model: str,
    *,
    sparsity: float = 0.7,
    epsilon: float = 0.3,
    ww_metric: Alpha = "alpha_peak",
    roles: Sequence[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """Return the sparsity of every block and module as JSON, and one line for what is left out.

    Alpha is averaged over the modules of a block, and all of them get its sparsity (the mapping `block_wise`).

    Args:
        store: where the model was scanned.
        model: its name, as in `rmtscan models`.
        sparsity: mean over all parameters of these modules.
        epsilon: half of the range of sparsities, relative to the mean.
        ww_metric: `alpha_peak` or `alpha_mid`, as AlphaPruning calls them.
        roles: use only these; empty: all linear layers of the blocks.

    Raises:
        ConfigError: an argument is not accepted.
        ScannerError: AlphaPruning knows none of the matrices, or a block has no alpha.
    """
    found = _measure(store, model, ww_metric, roles)
    blocks: dict[int, list[int]] = {}
    for index, one in enumerate(found.matrices):
        assert one.layer is not None, "only blocks are measured"
        blocks.setdefault(one.layer, []).append(index)
    layers = sorted(blocks)
    means = [float(np.mean(found.alphas[blocks[layer]])) for layer in layers]
    sizes = [sum(found.matrices[index].parameters for index in blocks[layer]) for layer in layers]
    mapped = sparsities(means, sizes, target=sparsity, epsilon=epsilon)
    content = {
        "model": model,
        "ww_metric": ww_metric,
        "sparsity": sparsity,
        "epsilon": epsilon,
        "mapping_type": "block_wise",
        "layers": [
            {"layer": layer, "alpha": alpha, "sparsity": float(value), "parameters": size}
            for layer, alpha, value, size in zip(layers, means, mapped, sizes, strict=True)
        ],
        "modules": {
            found.matrices[index].name: {"alpha": float(found.alphas[index]), "sparsity": float(value)}
            for layer, value in zip(layers, mapped, strict=True)
            for index in blocks[layer]
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n", found.left_out


def alpha_values(
    store: Store, model: str, *, ww_metric: Alpha = "alpha_peak", roles: Sequence[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Return alpha of every module as the bytes of the file that AlphaPruning reads: `METRIC.npy` in its `--ww_metric_cache`.

    A float64 array with one entry per module, block by block, in a block in the order of Llama's modules. AlphaPruning averages
    over as many entries as a block has modules, so every block must have the same number.

    Raises:
        ConfigError: an argument is not accepted.
        ScannerError: as `alphapruning`, or blocks have different numbers of modules.
    """
    found = _measure(store, model, ww_metric, roles)
    counts = dict.fromkeys(sorted({one.layer or 0 for one in found.matrices}), 0)
    for one in found.matrices:
        counts[one.layer or 0] += 1
    if len({*counts.values()}) != 1:
        raise ScannerError(
            f"the blocks of {printable(model)} have different numbers of modules, and AlphaPruning averages over equal ones: "
            "export the sparsities as JSON"
        )
    order = sorted(
        range(len(found.matrices)),
        key=lambda index: (found.matrices[index].layer or 0, KNOWN.index(found.matrices[index].role)),
    )
    stream = io.BytesIO()
    np.save(stream, found.alphas[order])
    return stream.getvalue(), found.left_out


def _measure(store: Store, model: str, metric: Alpha, roles: Sequence[str]) -> _Measured:
    if metric not in ALPHAS:
        raise ConfigError("ww_metric", f"must be one of {', '.join(ALPHAS)}, got {metric!r}")
    chosen = choose(store, model, tool="AlphaPruning", known=KNOWN, roles=roles, fused=False)
    matrices = tuple(one for one in chosen.matrices if one.layer is not None)
    if not matrices:
        raise ScannerError(f"{printable(model)} has no matrix in a block, and AlphaPruning prunes blocks only")
    compute = alpha_peak if metric == "alpha_peak" else alpha_mid
    alphas = np.array([compute(one.s) for one in matrices])
    if not np.isfinite(alphas).all():
        wrong = matrices[int(np.flatnonzero(~np.isfinite(alphas))[0])]
        raise ScannerError(f"{printable(wrong.name)} has no {metric}: its singular values fit no power law")
    return _Measured(matrices=matrices, alphas=alphas, left_out=chosen.left_out)
