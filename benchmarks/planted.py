"""Which edges of the bulk are right? Spikes planted in noise whose edges are known, and the vectors of trained matrices.

For each kind of noise and shape, spikes of known strength are added, and every estimate of the edges is asked which singular
values are outside: the Marchenko-Pastur edges of each sigma, those of the scale null with both estimates of its variances, and the
upper edges of BEMA, of WeightWatcher 0.7.7 (`num_spikes` of its `mp_fit`) and of Spectrum, which have no lower edges. The truth is
the law of the noise without spikes, so every value below the bulk is a false one. With `--model`, the vectors of a checkpoint tell
which edges separate those that fail their Kolmogorov-Smirnov test from those that pass it. The exit status is 1 if a bound on the
robust scale fit, ours, is exceeded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import measure

import numpy as np  # isort: skip
import torch
from numpy.typing import NDArray

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.marchenko_pastur import singular_value_edges
from scanner.rmt.scale_null import Profile, edges
from scanner.rmt.spectrum import MetricError
from scanner.rmt.theory import MinimalModel
from scanner.rmt.weightwatcher import bulk_edge

NAME = "planted"
Matrix = NDArray[np.float64]

SHAPES = ((384, 384), (768, 768), (1536, 384), (384, 1536), (128, 2048))
QUICK_SHAPES = ((256, 256), (512, 256))
SPIKES, WEAKEST, STRONGEST = 20, 1.05, 6.0
#: Strength from which spikes must be found, in units of the threshold.
CLEAR = 1.5
#: Factor between the largest and the smallest variance of rows or columns.
FACTOR = 30.0
KINDS = ("median", "std", "init", "bulk", "scale total", "scale robust", "BEMA", "WeightWatcher", "Spectrum")
OURS = "scale robust"
#: Bounds on ours: least recall and precision, and largest error of an edge, relative to the upper edge.
LEAST = 0.98
LARGEST = {"gaussian": 0.02, "uniform": 0.02, "rows": 0.07, "rows and columns": 0.07}
TIMES = (0.0, 0.1, 0.2)
#: q-value up to which a singular vector has failed its test.
LEVEL = 0.05


def _unequal(size: int, rng: np.random.Generator) -> Matrix:
    """Variances over the factor, of mean 1."""
    found: Matrix = FACTOR ** rng.uniform(-0.5, 0.5, size)
    found /= found.mean()
    return found


def _gaussian(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((rows, cols))


def _uniform(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    return rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), (rows, cols))


def _heavy(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    drawn: Matrix = rng.standard_t(3.0, (rows, cols))
    drawn /= np.sqrt(3.0)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Independent entries of mean variance 1 / rows, with or without equal row and column variances."""

    entries: Callable[[int, int, np.random.Generator], Matrix] = _gaussian
    rows: bool = False
    cols: bool = False


NOISES = {
    "gaussian": Noise(),
    "uniform": Noise(entries=_uniform),
    "rows": Noise(rows=True),
    "rows and columns": Noise(rows=True, cols=True),
    "t3": Noise(entries=_heavy),
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Noise with spikes, and what is true of it."""

    matrix: Matrix
    strengths: Matrix
    """Descending, in units of the threshold."""
    sigma: float
    lower: float
    upper: float


def _directions(size: int, count: int, rng: np.random.Generator) -> Matrix:
    found: Matrix = np.linalg.qr(rng.standard_normal((size, count)))[0]
    return found


def plant(noise: Noise, rows: int, cols: int, rng: np.random.Generator, spikes: int = SPIKES) -> Planted:
    """Draw noise and add spikes in random directions, `WEAKEST` to `STRONGEST` times as strong as the threshold."""
    sigma = 1.0 / np.sqrt(rows)
    a = _unequal(rows, rng) if noise.rows else np.ones(rows)
    b = _unequal(cols, rng) if noise.cols else np.ones(cols)
    law = edges(Profile(rows=torch.from_numpy(a * sigma), cols=torch.from_numpy(b * sigma)))
    strengths = np.linspace(STRONGEST, WEAKEST, spikes)
    u, v = _directions(rows, spikes, rng), _directions(cols, spikes, rng)
    w = sigma * np.sqrt(np.outer(a, b)) * noise.entries(rows, cols, rng) + (u * (strengths * law.threshold)) @ v.T
    return Planted(matrix=w, strengths=strengths, sigma=sigma, lower=law.lower, upper=law.upper)


def weightwatcher_edge(found: Analysis) -> float | None:
    """Return the singular value from which WeightWatcher 0.7.7 counts spikes; None if its fit failed."""
    eigenvalues = found.singular_values[::-1] ** 2
    try:
        scaled, _, limit = bulk_edge(eigenvalues, min(found.rows, found.cols), max(found.rows, found.cols))
    except MetricError:
        return None
    return float(np.sqrt(limit * eigenvalues[-1] / scaled[-1]))


def spectrum_edge(found: Analysis) -> float:
    """Return the threshold of Spectrum: sigma (1 + sqrt(lo/hi)), sigma = IQR(s)/1.349.

    Source: Hartford et al., arXiv 2406.06623.
    """
    lower, upper = np.percentile(found.singular_values, [25.0, 75.0])
    ratio = min(found.rows, found.cols) / max(found.rows, found.cols)
    return float((upper - lower) / 1.349 * (1.0 + np.sqrt(ratio)))


def edges_of(found: Analysis, kind: str) -> tuple[float, float] | None:
    """Return the edges by one of `KINDS`, -inf without a lower one; None if the fit failed."""
    if kind == "BEMA":
        return -np.inf, found.metrics["bema_upper"]
    if kind == "Spectrum":
        return -np.inf, spectrum_edge(found)
    if kind == "WeightWatcher":
        high = weightwatcher_edge(found)
        return None if high is None else (-np.inf, high)
    if kind.startswith("scale "):
        name = kind.removeprefix("scale ")
        low, high = getattr(found, f"scale_lower_{name}"), getattr(found, f"scale_upper_{name}")
    elif kind == "bulk":
        low, high = found.bulk_lower, found.bulk_upper
    else:
        return singular_value_edges(getattr(found, f"sigma_{kind}"), found.rows, found.cols)
    return None if low is None or high is None else (low, high)


@dataclass(kw_only=True)
class Score:
    """What a kind of edges says of one noise and shape, over all draws."""

    clear: int = 0
    clear_found: int = 0
    planted: int = 0
    planted_found: int = 0
    above: int = 0
    false_below: int = 0
    draws: int = 0
    sigma: list[float]
    lower: list[float]
    upper: list[float]
    failed: int = 0

    def add(self, planted: Planted, found: Analysis, kind: str) -> None:
        """Count one draw: the strongest spikes are the largest values."""
        limits = edges_of(found, kind)
        count, clear = len(planted.strengths), int((planted.strengths >= CLEAR).sum())
        self.draws += 1
        self.planted += count
        self.clear += clear
        if limits is None:
            self.failed += 1
            return
        s = found.singular_values
        above, below = int((s > limits[1]).sum()), int((s < limits[0]).sum())
        self.clear_found += min(above, clear)
        self.planted_found += min(above, count)
        self.above += above
        self.false_below += below
        if np.isfinite(limits[0]):
            self.lower.append((limits[0] - planted.lower) / planted.upper)
        self.upper.append(limits[1] / planted.upper - 1.0)
        if hasattr(found, f"sigma_{kind}"):
            self.sigma.append(getattr(found, f"sigma_{kind}") / planted.sigma - 1.0)

    @property
    def recall(self) -> float:
        """Share of the spikes of at least `CLEAR` thresholds that are outside."""
        return self.clear_found / self.clear

    @property
    def precision(self) -> float:
        """Share of the values above the bulk that are spikes of any strength; 1 without any."""
        return self.planted_found / self.above if self.above else 1.0

    def row(self) -> measure.Row:
        """Return the columns of the table; errors are means, and of the upper edge the largest as well."""

        def mean(values: list[float]) -> float | None:
            return float(np.mean(values)) if values else None

        return {
            "recall": self.recall,
            "recall_all": self.planted_found / self.planted,
            "precision": self.precision,
            "false_below": self.false_below / self.draws,
            "sigma_error": mean(self.sigma),
            "lower_error": mean(self.lower),
            "upper_error": mean(self.upper),
            "worst_upper_error": float(np.max(np.abs(self.upper))) if self.upper else None,
            "failed": self.failed,
        }


def spikes(shapes: tuple[tuple[int, int], ...], draws: int) -> Iterator[tuple[str, str, str, Score]]:
    """Measure every kind on every noise and shape: noise, shape, kind, score."""
    for noise, about in NOISES.items():
        for rows, cols in shapes:
            scores = {kind: Score(sigma=[], lower=[], upper=[]) for kind in KINDS}
            for draw in range(draws):
                planted = plant(about, rows, cols, np.random.default_rng([draw, rows, cols, len(noise)]))
                found = analyze(planted.matrix)
                for kind, score in scores.items():
                    score.add(planted, found, kind)
            for kind, score in scores.items():
                yield noise, f"{rows} x {cols}", kind, score


def below(draws: int, rows: int, cols: int) -> list[measure.Row]:
    """Measure how often each kind finds exactly the left outlier of the minimal model, and nothing above the bulk."""
    right = dict.fromkeys(KINDS, 0)
    total = 0
    for t in TIMES:
        model = MinimalModel.at(t, rows=rows, cols=cols)
        for draw in range(draws):
            found = analyze(model.sample(1000 * rows + draw).matrix)
            total += 1
            for kind in KINDS:
                limits = edges_of(found, kind)
                if limits is not None:
                    s = found.singular_values
                    right[kind] += int((s < limits[0]).sum() == 1 and (s > limits[1]).sum() <= 1)
    return [{"edges": kind, "matrices": total, "exactly one below": count} for kind, count in right.items()]


def exceeded(noise: str, shape: str, score: Score) -> list[str]:
    """Return what of ours is out of bounds."""
    if noise not in LARGEST:
        return []
    told = [
        f"{name} {value:.3f}"
        for name, value in (("recall", score.recall), ("precision", score.precision))
        if value < LEAST
    ]
    for edge, errors in (("above", score.upper), ("below", score.lower)):
        worst = max(map(abs, errors), default=0.0)
        told += [f"error of the edge {edge} {worst:.3f}"] if worst > LARGEST[noise] else []
    found = score.planted_found + score.false_below
    if score.false_below > (1.0 - LEAST) * found:
        told.append(f"{score.false_below} of {found} values outside are false ones below")
    return [f"{noise}, {shape}: {text}" for text in told]


# ---- trained matrices


def _auc(values: Matrix, positive: NDArray[np.bool_]) -> float | None:
    """Return the probability that a positive has the larger value (ties count half)."""
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def trained(reference: str, embeddings: bool = False) -> list[measure.Row]:
    """Compare kinds of edges by role and end: do values outside have vectors that fail their test?

    `auc` ranks the values of all matrices of a role by their distance from the edge, s / upper above the median and lower / s
    below it;
    `balanced` is the mean of the shares of failing vectors outside and of passing ones inside. A triplet fails if one of its
    vectors has q <= 0.05, by the i.i.d. null and (columns with `scale`) by the scale null.
    """
    opened = open_checkpoint(reference, identify=False)
    collected: dict[
        tuple[str, str, str], list[tuple[Matrix, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]]
    ] = {}
    for ref in list_matrices(opened, Selection(embeddings=embeddings)).matrices:
        found = analyze(read_matrix(opened.source, ref))
        if found.u_q is None or found.v_q is None or found.u_q_scale is None or found.v_q_scale is None:
            continue
        s = found.singular_values[: found.rank]
        fails = np.fmin(found.u_q, found.v_q)[: found.rank] <= LEVEL
        fails_scale = np.fmin(found.u_q_scale, found.v_q_scale)[: found.rank] <= LEVEL
        large = np.arange(len(s)) < len(s) // 2
        for kind in KINDS:
            limits = edges_of(found, kind)
            if limits is None:
                continue
            for end, chosen in (("above", large), ("below", ~large)):
                if end == "below" and (found.rows == found.cols or not np.isfinite(limits[0])):
                    continue  # no edge below
                far = s[chosen] / limits[1] if end == "above" else limits[0] / s[chosen]
                entry = far, far > 1.0, fails[chosen], fails_scale[chosen]
                collected.setdefault((str(ref.role), end, kind), []).append(entry)
    rows: list[measure.Row] = []
    for (role, end, kind), parts in collected.items():
        far, outside, fails, fails_scale = (np.concatenate(one) for one in zip(*parts, strict=True))
        row: measure.Row = {
            "role": role,
            "end": end,
            "edges": kind,
            "matrices": len(parts),
            "outside": int(outside.sum()),
        }
        for name, label in (("", fails), (" scale", fails_scale)):
            row |= {f"fail{name}": int(label.sum()), f"auc{name}": _auc(far, label)}
            row[f"balanced{name}"] = _auc(outside.astype(np.float64), label)
        rows.append(row)
    return sorted(rows, key=lambda row: (str(row["role"]), str(row["end"])))


def main() -> int:
    parser = measure.options(NAME, __doc__, repeats=5)
    parser.add_argument(
        "--model", action="append", default=[], metavar="REF", help="a checkpoint whose vectors are compared, too"
    )
    args = parser.parse_args()
    machine = measure.machine()
    draws = 2 if args.quick else args.repeats
    rows: list[measure.Row] = []
    told: list[str] = []
    for noise, shape, kind, score in spikes(QUICK_SHAPES if args.quick else SHAPES, draws):
        rows.append({"noise": noise, "shape": shape, "edges": kind} | score.row())
        if kind == OURS:
            told += exceeded(noise, shape, score)
    measure.table(
        f"{SPIKES} spikes of {WEAKEST} to {STRONGEST} thresholds, {draws} draws; recall from {CLEAR} on", rows
    )
    left = below(draws, *((256, 1024) if args.quick else (512, 2048)))
    measure.table("The minimal model's outlier below the bulk", left)
    models = {reference: trained(reference) for reference in args.model}
    for reference, found in models.items():
        measure.table(f"Which edges separate vectors that fail their test? {reference}", found)
    found_below = next(row for row in left if row["edges"] == OURS)
    if found_below["exactly one below"] != found_below["matrices"]:
        told.append(
            f"minimal model: {found_below['exactly one below']} of {found_below['matrices']} outliers below the bulk"
        )
    for line in told:
        print(f"out of bounds: {line}")
    measure.write_json(
        args.json,
        {
            "quick": args.quick,
            "machine": machine,
            "spikes": rows,
            "below": left,
            "models": models,
            "out_of_bounds": told,
        },
    )
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
