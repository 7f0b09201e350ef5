"""Remove or replace sets of singular values of the weights of a loaded model, and restore the weights.

W~ = U S~ V^T = W - sum over the removed k of s_k u_k v_k^T. Source: Staats, Thamm, Rosenow, arXiv 2410.17770, v1 sec. 5, v3 sec. 5.

Four controls say which property of a set its damage comes from: `random` removes as many other values, `energy` other values with
the same sum of squares, `directions` keeps the values of the set but gives them random vectors, and `scale` puts a random matrix
with the row and column variances of the removed part in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.errors import ScannerError
from scanner.experiments.nlp.placing import Placed
from scanner.rmt import metrics
from scanner.rmt.decomposition import decompose
from scanner.rmt.ensembles import control_of
from scanner.rmt.entries import entry_statistics
from scanner.rmt.ks_null import KsNull
from scanner.rmt.marchenko_pastur import singular_value_edges
from scanner.rmt.scale_null import Profile
from scanner.rmt.sigma import sigma_median

Indices = NDArray[np.intp]

REGIONS = ("left", "bulk", "right")
#: Shares of the spectrum that pruning removes, in percent.
PRUNED = (10, 20, 30, 50)

#: Those that put something in the place of the set.
REPLACING = ("directions", "scale")

_SET = re.compile(
    r"(?P<kind>decile|region|range|smallest|most-random):(?P<value>\d+:\d+|\d+|left|bulk|right)"
    r"|(?:random|energy|directions|scale):(?P<seed>\d+)"
)


@dataclass(frozen=True, kw_only=True)
class RemovalSet:
    """A rule that selects singular values of any matrix.

    `name` is one of `decile:D` (D = 1: the smallest tenth), `region:left|bulk|right` (of the Marchenko-Pastur law with the median
    sigma), `range:A:B` (A <= k < B; k = 0 is the largest), `smallest:P` and `most-random:P` (P percent of the values: the smallest,
    or those whose vectors have the largest local p-values), or a control of the set `beside`, drawn independently for each matrix:
    `random:SEED` (as many values as the set has in the same matrix), `energy:SEED` (values with nearly the same sum of squares),
    `directions:SEED` and `scale:SEED` (the values of the set, which are replaced instead of removed).
    """

    name: str
    beside: str | None = None

    def __post_init__(self) -> None:
        found = _SET.fullmatch(self.name)
        if found is None or (found["seed"] is not None) != (self.beside is not None):
            raise ScannerError(f"unknown set of singular values {self.name!r}")

    @property
    def kind(self) -> str:
        """The first part of the name."""
        return self.name.partition(":")[0]

    @property
    def seed(self) -> int | None:
        """Seed of a control; None for other sets."""
        return int(self.name.partition(":")[2]) if self.beside is not None else None


def parse_sets(
    text: str, random_sets: int = 1, controls: Sequence[str] = (), control_draws: int = 3
) -> list[RemovalSet]:
    """Parse a comma-separated list of `deciles`, `regions`, `pruning`, `random`, `A:B` and names of sets.

    Each set is followed by `random_sets` random sets of the same size and `control_draws` draws of each of the other controls;
    `random` alone is a random tenth.

    Raises:
        ScannerError: a set is unknown, a range is empty, or there is no set.
    """
    named: list[str] = []
    for word in filter(None, (piece.strip() for piece in text.split(","))):
        if word == "deciles":
            named += [f"decile:{decile}" for decile in range(1, 11)]
        elif word == "regions":
            named += [f"region:{region}" for region in REGIONS]
        elif word == "pruning":
            named += [f"{kind}:{share}" for kind in ("smallest", "most-random") for share in PRUNED]
        elif word == "random":
            named.append(word)
        else:
            named.append(_named(word))
    if not named:
        raise ScannerError("`sets` has no set of singular values: choose from deciles, regions, pruning, random or A:B")
    found: list[RemovalSet] = []
    for name in dict.fromkeys(named):
        if name != "random":
            found.append(RemovalSet(name=name))
        beside = "decile:1" if name == "random" else name
        found += [RemovalSet(name=f"random:{seed}", beside=beside) for seed in range(1, random_sets + 1)]
        if name != "random":
            draws = range(1, control_draws + 1)
            found += [RemovalSet(name=f"{control}:{seed}", beside=name) for control in controls for seed in draws]
    if not found:
        raise ScannerError("`sets` random needs `random_sets` of at least 1")
    return list(dict.fromkeys(found))


def _named(word: str) -> str:
    found = re.fullmatch(r"(\d+):(\d+)", word)
    name = f"range:{word}" if found else word
    parts = _SET.fullmatch(name)
    ends = [int(end) for end in re.findall(r"\d+", name)]
    wrong = (
        parts is None
        or parts["seed"] is not None
        or (parts["kind"] == "range" and (len(ends) != 2 or ends[0] >= ends[1]))
        or (parts["kind"] == "region") != (parts["value"] in REGIONS)
        or (parts["kind"] == "decile" and (len(ends) != 1 or not 1 <= ends[0] <= 10))
        or (parts["kind"] in {"smallest", "most-random"} and (len(ends) != 1 or not 1 <= ends[0] <= 100))
    )
    if wrong:
        raise ScannerError(
            f"unknown set of singular values {word!r}: choose from deciles, decile:1..10, regions, "
            "region:left|bulk|right, random, pruning, smallest:1..100, most-random:1..100, or A:B with A < B"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Factors:
    """SVD of a matrix: s (r,) in float64, `left` (r, m) and `right` (r, n) in float32 on the device of the model.

    `region` (r,) and `p` (r,), the mean of the local p-values of both sides (NaN where there is none), determine some of the sets.
    """

    key: str
    s: NDArray[np.float64]
    left: torch.Tensor
    right: torch.Tensor
    region: NDArray[np.str_]
    p: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Size of the vectors in bytes."""
        return self.left.nbytes + self.right.nbytes

    def indices(self, wanted: RemovalSet) -> Indices:
        """Return the ranks k in a set, ascending; for a control that replaces values, those of the set itself."""
        if wanted.beside is not None:
            among = self.indices(RemovalSet(name=wanted.beside))
            if wanted.kind in REPLACING:
                return among
            order = np.random.default_rng(self._digest(wanted)).permutation(len(self.s))
            if wanted.kind == "energy":
                return np.sort(with_energy(self.s, order, float((self.s[among] ** 2).sum())))
            return np.sort(order[: len(among)]).astype(np.intp)
        kind, _, value = wanted.name.partition(":")
        if kind == "region":
            return np.flatnonzero(self.region == value)
        if kind == "most-random":
            # Values whose vectors have no p-value are zero: removing them changes nothing, so they come last.
            likely = np.argsort(np.where(np.isnan(self.p), np.inf, -self.p), kind="stable")
            return np.sort(likely[: len(self.s) * int(value) // 100])
        return indices_by_rank(wanted.name, len(self.s))

    def change(self, wanted: RemovalSet, k: Indices) -> torch.Tensor:
        """Return what is added to the matrix (m, n) to remove or replace the values of ranks k, in float32."""
        chosen = torch.from_numpy(k).to(self.left.device)
        s = torch.from_numpy(self.s[k]).to(self.left)
        left, right = self.left[chosen], self.right[chosen]
        change = (left * -s[:, None]).T @ right
        if wanted.kind == "directions":
            rng = np.random.default_rng(self._digest(wanted))
            kept = torch.from_numpy(np.setdiff1d(np.arange(len(self.s)), k)).to(self.left.device)
            first, second = (random_frame(vectors[kept], len(k), rng) for vectors in (self.left, self.right))
            change += (first * s[:, None]).T @ second
        elif wanted.kind == "scale":
            energies = s[:, None].double() ** 2
            rows, cols = ((vectors.double() ** 2 * energies).sum(dim=0) for vectors in (left, right))
            drawn = control_of("scale", np.empty(change.shape), self._digest(wanted), Profile(rows=rows, cols=cols))
            drawn *= float(energies.sum().sqrt()) / (np.linalg.norm(drawn) or 1.0)
            change += torch.from_numpy(drawn).to(change)
        return change

    def _digest(self, wanted: RemovalSet) -> int:
        """Return a seed that depends on the matrix and on the draw; for sets of the same size it does not depend on the kind."""
        kind = "" if wanted.kind == "random" else f"{wanted.kind}\0"
        return int.from_bytes(hashlib.sha256(f"{kind}{wanted.seed}\0{self.key}".encode()).digest()[:8])


def with_energy(s: NDArray[np.float64], order: Indices, energy: float) -> Indices:
    """Return ranks, taken in this order, whose squared singular values add up to nearly `energy`, and not to more.

    Every value that still fits is taken, so that what is missing is less than the smallest square that is left out.
    """
    found = []
    left = energy * (1.0 + 1e-12)
    for k in order:
        if s[k] ** 2 <= left:
            found.append(k)
            left -= s[k] ** 2
    return np.array(found, dtype=np.intp)


def random_frame(kept: torch.Tensor, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Return `count` random orthonormal vectors that are orthogonal to the orthonormal vectors `kept`, (count, length).

    There must be so many: count + len(kept) <= length. They are uniform: Gaussian vectors are projected and orthonormalized.
    """
    basis = kept.double()
    drawn = torch.from_numpy(rng.standard_normal((count, kept.shape[1]))).to(basis)
    for _ in range(2):  # where little is left of a vector, the first projection leaves rounding errors
        drawn = drawn - (drawn @ basis.T) @ basis
        drawn = torch.linalg.qr(drawn.T).Q.T
    return drawn.to(kept.dtype)


def indices_by_rank(name: str, count: int) -> Indices:
    """Return the ranks k in a set that depends only on the number of singular values: a decile, a range, or the smallest."""
    kind, _, value = name.partition(":")
    k = np.arange(count)
    if kind == "decile":
        return np.flatnonzero(10 * k // count == 10 - int(value))
    if kind == "smallest":
        return k[count - count * int(value) // 100 :]
    first, last = (int(end) for end in value.split(":"))
    return k[first:last]


def size_by_rank(name: str, count: int) -> int | None:
    """Return how many of `count` values are in a set; None if that depends on the matrix."""
    kind = name.partition(":")[0]
    if kind == "region":
        return None
    return count * int(name.partition(":")[2]) // 100 if kind == "most-random" else len(indices_by_rank(name, count))


def factors_of(key: str, matrix: torch.Tensor) -> Factors:
    """Compute the SVD of a matrix (m, n) in float64, with regions and p-values; vectors are kept in float32.

    The regions are those of a scan with the default estimate of sigma, the median.
    """
    rows, cols = matrix.shape
    parts = decompose(matrix.detach())
    s = parts.singular_values.cpu().numpy()
    lower, upper = singular_value_edges(sigma_median(s, rows, cols), rows, cols)
    rank = metrics.numerical_rank(s, rows, cols)
    null = KsNull(continued=False)  # as runs of earlier versions, whose identities are the same
    local = []
    for vectors in (parts.left, parts.right):
        p = null.p_values(entry_statistics(vectors).ks.cpu().numpy().astype(np.float64), vectors.shape[1])
        p[rank:] = np.nan
        local.append(metrics.local_average(p))
    return Factors(
        key=key,
        s=s,
        left=parts.left.float(),
        right=parts.right.float(),
        region=metrics.regions(s, lower, upper, rank),
        p=(local[0] + local[1]) / 2,
    )


class FactorCache:
    """Cache of the factors of matrices; each is computed once if the matrices of a point fit into `limit` bytes.

    Factors of earlier points are evicted, least recently used first. Factors that do not fit beside the others of the same point
    are not cached: every point uses its matrices in the same order, so evicting the first for the last would leave no hits for the
    next point.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, Factors] = OrderedDict()
        self._size = 0

    def get(self, model: torch.nn.Module, placed: Placed, among: Collection[str] = ()) -> Factors:
        """Return the factors of an intact matrix; `among` holds the keys of all matrices of the current point."""
        key = placed.ref.key
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = factors_of(key, placed.matrix(model))
        for old in [name for name in self._kept if name not in among]:
            if self._size + found.size <= self.limit:
                break
            self._size -= self._kept.pop(old).size
        if self._size + found.size <= self.limit:
            self._kept[key] = found
            self._size += found.size
        return found


class Counts(NamedTuple):
    """How many singular values were removed or replaced, of how many, and their share of the sum of all squares."""

    removed: int
    total: int
    energy: float


NO_COUNTS = Counts(0, 0, 0.0)


@contextlib.contextmanager
def removed(
    model: torch.nn.Module, placed: Sequence[Placed], wanted: RemovalSet, cache: FactorCache
) -> Iterator[Counts]:
    """Remove or replace a set of singular values inside the context; afterward the weights are restored bit for bit.

    Each matrix costs one product of thin factors, m x |set| x n, in float32. The original weights are copied, which takes the
    memory of these matrices once more.
    """
    originals: list[tuple[Placed, torch.Tensor]] = []
    among = {one.ref.key for one in placed}
    gone, total = 0, 0
    energy, every = 0.0, 0.0
    try:
        for one in placed:
            factors = cache.get(model, one, among)
            k = factors.indices(wanted)
            gone, total = gone + len(k), total + len(factors.s)
            energy, every = energy + float((factors.s[k] ** 2).sum()), every + float((factors.s**2).sum())
            if not len(k):
                continue
            view = one.view(model)
            originals.append((one, view.clone()))
            view.copy_((view.float() + factors.change(wanted, k).view(view.shape)).to(view.dtype))
        yield Counts(gone, total, energy / every if every else 0.0)
    finally:
        for one, original in originals:
            one.view(model).copy_(original)
