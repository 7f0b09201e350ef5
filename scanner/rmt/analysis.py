"""The analysis of one matrix: from its entries to the values of its rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from scanner.rmt import head_mass, product_law
from scanner.rmt.columns import extra_values
from scanner.rmt.decomposition import (
    Decomposition,
    LowRank,
    Values,
    decompose,
    decompose_low_rank,
    singular_values,
    unit_of,
    values_low_rank,
)
from scanner.rmt.entries import entry_statistics
from scanner.rmt.inference import omnibus, q_values
from scanner.rmt.ks_null import KsNull, effects
from scanner.rmt.marchenko_pastur import FloatArray, singular_value_edges
from scanner.rmt.metric_set import DEFAULT
from scanner.rmt.metric_set import chosen as chosen_metrics
from scanner.rmt.metrics import (
    effective_rank,
    local_average,
    mp_distance,
    numerical_rank,
    regions,
    stable_rank,
)
from scanner.rmt.result import Analysis
from scanner.rmt.scale_null import (
    Profile,
    ScaleError,
    density_at,
    has_heads,
    in_support,
    shares,
    solve,
    standardized,
    vector_distances,
)
from scanner.rmt.scale_profile import ScaleFit, fit_scale, inequality
from scanner.rmt.sigma import SIGMA_KINDS, BulkFit, SigmaKind, fit_bulk, sigma_init, sigma_median, sigma_std
from scanner.rmt.spectrum import Spectrum, compute
from scanner.rmt.vocabulary import SCALE_KINDS, ScaleKind

__all__ = ["Analysis", "Heads", "NotFiniteError", "SigmaError", "analyze", "decomposed", "summarize"]

_KNOWN_FLOATS = ("float16", "float32", "float64")
# Types of the package ml_dtypes, whose kind is "no number" in numpy.
_SMALL_FLOATS = ("bfloat16", "float8", "float6", "float4")


class SigmaError(ArithmeticError):
    """The estimate of sigma that was asked for means nothing for this matrix."""


class NotFiniteError(ValueError):
    """A matrix has NaN or infinite entries, and so no singular values."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Attention heads in the entries of the vectors of one side: `count` blocks of neighboring entries of one width."""

    side: Literal["u", "v"]
    count: int


@dataclass(frozen=True, kw_only=True)
class _Side:
    ks: FloatArray
    p: FloatArray
    p_local: FloatArray
    q: FloatArray
    effect: FloatArray
    ipr: FloatArray
    peak: FloatArray


def _side(vectors: torch.Tensor, rank: int, null: KsNull) -> _Side:
    statistics = entry_statistics(vectors)
    ks = statistics.ks.cpu().numpy().astype(np.float64)
    p = null.p_values(ks, vectors.shape[1])
    effect = effects(ks, vectors.shape[1])
    p[rank:] = effect[rank:] = np.nan
    return _Side(
        ks=ks,
        p=p,
        p_local=local_average(p),
        q=q_values(p),
        effect=effect,
        ipr=statistics.ipr.cpu().numpy().astype(np.float64),
        peak=statistics.peak.cpu().numpy().astype(np.float64),
    )


def _strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose entries are all in memory, without its gradient."""
    if tensor.device.type == "meta":
        raise ValueError("a matrix with entries is required, got a tensor on the device `meta`, which has none")
    if tensor.is_nested:
        raise ValueError(
            "a matrix is required, got a nested tensor: call to_padded_tensor() first, or pass one of its parts"
        )
    if tensor.is_quantized:
        raise ValueError("a matrix of plain numbers is required, got a quantized tensor: call dequantize() first")
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return dense.resolve_conj().resolve_neg()


def _native(array: ArrayLike) -> np.ndarray:
    """Return a contiguous, writable array of a type that torch knows, with the same numbers."""
    if isinstance(array, torch.nn.Module | Mapping):
        raise ValueError(
            f"a matrix is required, got a {type(array).__name__}: pass a model or its state dict to `scanner.analyze_model`"
        )
    if np.ma.is_masked(array):
        raise ValueError("a matrix without masked entries is required: fill them first (`array.filled(...)`)")
    try:
        found = np.asarray(array)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise ValueError(
            f"a matrix is required, and numpy makes none of this {type(array).__name__}: {error}"
        ) from error
    kind = found.dtype.kind
    if kind == "c":
        raise ValueError("a real matrix is required, got complex entries")
    if found.ndim == 0 and kind == "O":
        raise ValueError(f"a matrix is required, got a {type(array).__name__}")
    plain = kind in "biufO" or found.dtype.name.startswith(_SMALL_FLOATS)
    if not plain:
        raise ValueError(f"a matrix of real numbers is required, got entries of the type {found.dtype}")
    kept = kind in "biu" or found.dtype.name in _KNOWN_FLOATS
    known = found.dtype.newbyteorder("=") if kept else np.dtype(np.float64)
    try:
        with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite, which is reported
            native = np.ascontiguousarray(found, dtype=known)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a matrix of real numbers is required: {error}") from error
    return native if native.flags.writeable else native.copy()


def _as_matrix(array: ArrayLike | torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
    """Convert the array to a floating-point (m, n) tensor on the device, and check that it has singular values."""
    tensor = _strided(array) if isinstance(array, torch.Tensor) else torch.from_numpy(_native(array))
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(
            f"a matrix with at least one row and one column is required, got an array of shape {tuple(tensor.shape)}"
        )
    if tensor.is_complex():
        raise ValueError("a real matrix is required, got complex entries")
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        tensor = tensor.to(torch.float64)
    tensor = tensor if device is None else tensor.to(device)
    # One sum instead of a mask: entries are counted only if the sum is not finite.
    if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or inf:
            raise NotFiniteError(f"{nan} NaN and {inf} infinite of {tensor.numel()} entries: it has no singular values")
    if tensor.itemsize == 8:
        largest = max(abs(float(extreme)) for extreme in torch.aminmax(tensor))  # abs() of the tensor would be a copy
        if largest > sys.float_info.max / tensor.numel():
            raise ValueError(
                f"an entry of {largest:.1e} is too large for a matrix of {tensor.numel()} entries, whose sum may overflow: "
                "divide the matrix by it"
            )
    return tensor


def _chosen_fit(kind: SigmaKind, estimates: dict[SigmaKind, float], bulk: BulkFit, rows: int, cols: int) -> BulkFit:
    if kind == "bulk":
        if bulk.failed:
            raise SigmaError(
                "the fit to the bulk failed: it kept less than a quarter of the singular values, with "
                f"{bulk.sigma / estimates['median']:.2f} times the sigma of the median: use another `sigma`, such as 'median'"
            )
        return bulk
    sigma = estimates[kind]
    lower, upper = singular_value_edges(sigma, rows, cols)
    return BulkFit(sigma=sigma, lower=lower, upper=upper)


def analyze(
    array: ArrayLike | torch.Tensor | LowRank,
    *,
    sigma: SigmaKind = "median",
    null: KsNull | str = "table",
    scale: ScaleKind = "robust",
    heads: Heads | None = None,
    head_mass: bool = False,
    metrics: Iterable[str] = DEFAULT,
    values_only: bool = False,
    device: str | torch.device | None = None,
) -> Analysis:
    """Compare one m x n matrix with random matrix theory.

    The spectrum is compared with the Marchenko-Pastur law, the entries of singular vectors with the Gaussian.

    Args:
        array: anything that numpy converts to a real matrix (any layout and byte order, integers, bool, float16 to longdouble,
            bfloat16; computed in float64), a torch tensor, or the factors of a product of thin matrices; rows = out_features,
            cols = in_features. It is not changed.
        sigma: the estimate that the edges come from: `median`, `std`, `init` or `bulk`. All four are in the result.
        null: source of the p-values: `table` (shipped, 10^6 draws per length) or `mc:N` (N simulated vectors of the exact length).
        scale: how the row and column variances of the scale null are estimated: `robust` (without the values above the bulk),
            `total`, or `none` for no scale null: then p-values end at 1e-6, as in versions that had none.
        heads: attention heads in the entries of the vectors of one side; None: none.
        head_mass: test whether the mass of these vectors is in few heads.
        metrics: names of metrics or groups of them (`default`, `rmt`, `weightwatcher`, `all`, `none`), see docs/method.md.
        values_only: compute what follows from the singular values; all fields about vectors and the scale null are NaN or None.
            About half the time.
        device: where to compute; None leaves a tensor where it is.

    Examples:
        A random matrix has no singular value outside the bulk, and one that a rank-1 spike was added to has one:

        >>> import numpy as np
        >>> import scanner
        >>> rng = np.random.default_rng(0)
        >>> noise = rng.normal(size=(300, 100)) / 10
        >>> result = scanner.analyze(noise)
        >>> result.outliers_left, result.outliers_right
        (0, 0)
        >>> u, v = (x / np.linalg.norm(x) for x in (rng.normal(size=300), rng.normal(size=100)))
        >>> spiked = scanner.analyze(noise + 6 * np.outer(u, v))
        >>> spiked.outliers_right, str(spiked.region[0]), round(float(spiked.singular_values[0]), 1)
        (1, 'right', 6.4)
        >>> spiked.singular_values.shape, spiked.v_p.shape
        ((100,), (100,))

    Raises:
        ValueError: not a real matrix, or one with masked entries, without memory or with entries so large that their sum may
            overflow; unknown `sigma`, `null`, `scale` or `metrics`.
        NotFiniteError: NaN or infinite entries (a ValueError; its message counts them).
        SigmaError: `sigma` is `bulk`, and its fit ran away.
        DecompositionError: no decomposition that reproduces the matrix was found.
    """
    if sigma not in SIGMA_KINDS:
        raise ValueError(f"unknown sigma {sigma!r}; known: {', '.join(SIGMA_KINDS)}")
    if scale not in SCALE_KINDS:
        raise ValueError(f"unknown scale {scale!r}; known: {', '.join(SCALE_KINDS)}")
    null = KsNull.parse(null) if isinstance(null, str) else null
    names = known_metrics(metrics)
    if values_only and (scale == "total" or head_mass):
        raise ValueError("`values_only` leaves out the vectors, which `scale` 'total' and `head_mass` need")
    if values_only:
        found, sum_of_entries = values_of(array, device)
        return summarize_values(found, sum_of_entries, sigma=sigma, metrics=names, entries=lambda: entries_of(array))
    parts, sum_of_entries = decomposed(array, device)
    return summarize(
        parts, sum_of_entries, sigma=sigma, null=null, scale=scale, heads=heads, head_mass=head_mass, metrics=names
    )


def known_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the chosen metrics.

    Raises:
        ValueError: an unknown name, or a text in the place of a list.
    """
    if not isinstance(metrics, Iterable):
        raise ValueError(f"`metrics` is a list of names, got {metrics!r}: `[]` for none")
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` is a list of names, got the text {metrics!r}: write [{metrics!r}]")
    try:
        return chosen_metrics(metrics)
    except ValueError as error:
        raise ValueError(f"`metrics` {error}") from None


def decomposed(
    array: ArrayLike | torch.Tensor | LowRank, device: str | torch.device | None = None
) -> tuple[Decomposition, float]:
    """Decompose one m x n matrix; also returns the sum of its entries, which `summarize` needs.

    Raises:
        ValueError: not a real matrix.
        NotFiniteError: NaN or infinite entries.
        DecompositionError: no decomposition that reproduces the matrix was found.
    """
    matrix, total = _checked(array, device)
    return decompose_low_rank(matrix) if isinstance(matrix, LowRank) else decompose(matrix), total


def values_of(
    array: ArrayLike | torch.Tensor | LowRank, device: str | torch.device | None = None
) -> tuple[Values, float]:
    """Compute the singular values of one m x n matrix without vectors; also returns the sum of its entries.

    The errors are those of `decomposed`.
    """
    matrix, total = _checked(array, device)
    return values_low_rank(matrix) if isinstance(matrix, LowRank) else singular_values(matrix), total


def _checked(array: ArrayLike | torch.Tensor | LowRank, device: str | torch.device | None) -> tuple[Any, float]:
    """Return the matrix, or the factors of a product, as tensors on the device, and the sum of the entries."""
    if isinstance(array, LowRank):
        factors = replace(array, left=_as_matrix(array.left, device), right=_as_matrix(array.right, device))
        total = float(factors.left.sum(dim=0, dtype=torch.float64) @ factors.right.sum(dim=1, dtype=torch.float64))
        return factors, total
    matrix = _as_matrix(array, device)
    return matrix, float(matrix.sum(dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """What follows from the singular values alone: fields of `Analysis`, and what metrics are computed from."""

    fields: dict[str, Any]
    rank: int
    unit: float
    scaled: FloatArray

    def measured(self, entries: Callable[[], FloatArray]) -> Spectrum:
        """Return the spectrum as metrics need it; `entries` makes the matrix, as multiples of the unit."""
        known = self.fields
        return Spectrum(
            singular_values=self.scaled,
            unit=self.unit,
            rows=known["rows"],
            cols=known["cols"],
            rank=self.rank,
            triplets=len(known["singular_values"]),
            sigma=known["sigma"] / self.unit,
            lower=known["mp_lower"] / self.unit,
            upper=known["mp_upper"] / self.unit,
            independent=known["svd_method"] != "product",
            entries=entries,
        )


def _spectrum(found: Values, sum_of_entries: float, sigma: SigmaKind) -> _Spectrum:
    """Compare singular values with the Marchenko-Pastur law.

    Raises:
        SigmaError: `sigma` is `bulk`, and its fit ran away.
    """
    rows, cols = found.rows, found.cols
    s = found.singular_values.cpu().numpy()
    # A product of thin factors has fewer triplets; its other singular values are zero, and count.
    spectrum = np.pad(s, (0, min(rows, cols) - len(s)))
    rank = numerical_rank(s, rows, cols)
    # In units of a power of two near the largest value, so that squares do not overflow or underflow; this does not round.
    unit = unit_of(float(s[0]))
    scaled = spectrum / unit
    bulk = fit_bulk(scaled, rows, cols)
    in_units: dict[SigmaKind, float] = {
        "median": sigma_median(scaled, rows, cols),
        "std": sigma_std(sum_of_entries / unit, s / unit, rows, cols),
        "init": sigma_init(rows) / unit,
        "bulk": bulk.sigma,
    }
    chosen = _chosen_fit(sigma, in_units, bulk, rows, cols)
    fit = BulkFit(sigma=chosen.sigma * unit, lower=chosen.lower * unit, upper=chosen.upper * unit)
    estimates = {kind: value * unit for kind, value in in_units.items()}
    distance = mp_distance(scaled, rows, cols, chosen.sigma)
    if found.method == "product":
        sigma = "std" if sigma == "std" else "median"
        fit, in_units, distance = _product_fit(scaled[: len(s)], sigma, in_units["std"], rows, cols)
        fit = BulkFit(sigma=fit.sigma * unit, lower=fit.lower * unit, upper=fit.upper * unit)
        estimates = {kind: value * unit for kind, value in in_units.items()}
    region = regions(s, fit.lower, fit.upper, rank)
    fields = {
        "rows": rows,
        "cols": cols,
        "singular_values": s,
        "region": region,
        "sigma": fit.sigma,
        "sigma_kind": sigma,
        "sigma_median": estimates["median"],
        "sigma_std": estimates["std"],
        "sigma_init": estimates["init"],
        "sigma_bulk": estimates["bulk"],
        "mp_lower": fit.lower,
        "mp_upper": fit.upper,
        "mp_ks": distance,
        "outliers_left": int(np.count_nonzero(region == "left")),
        "outliers_right": int(np.count_nonzero(region == "right")),
        "rank": rank,
        "spectral_norm": float(s[0]),
        "frobenius_norm": float(np.linalg.norm(s / unit)) * unit,
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s / unit),
        "bulk_failed": bulk.failed,
        "bulk_lower": None if bulk.failed else bulk.lower * unit,
        "bulk_upper": None if bulk.failed else bulk.upper * unit,
        "svd_method": found.method,
        "svd_residual": found.residual,
    }
    return _Spectrum(fields=fields, rank=rank, unit=unit, scaled=scaled)


def summarize(
    parts: Decomposition,
    sum_of_entries: float,
    *,
    sigma: SigmaKind,
    null: KsNull,
    scale: ScaleKind = "none",
    heads: Heads | None = None,
    head_mass: bool = False,
    metrics: tuple[str, ...] = (),
) -> Analysis:
    """Compute the analysis that follows from a decomposition and the sum of the entries of the matrix.

    With `head_mass`, the masses of the `heads` in the vectors of their side are tested, too. `metrics` are names of single metrics
    (`scanner.rmt.metric_set.chosen`).

    Raises:
        SigmaError: `sigma` is `bulk`, and its fit ran away. A scale null that cannot be computed is no error: `scale_failure`
            of the result says why.
    """
    values = Values(
        singular_values=parts.singular_values,
        rows=parts.left.shape[1],
        cols=parts.right.shape[1],
        method=parts.method,
        residual=parts.residual,
    )
    spectrum = _spectrum(values, sum_of_entries, sigma)
    rank, unit = spectrum.rank, spectrum.unit
    if scale == "none":
        # Its scans have the identity of those of earlier versions, whose p-values ended with the table: equal names, equal rows.
        null = replace(null, continued=False)
    u, v = _side(parts.left, rank, null), _side(parts.right, rank, null)
    analysis = Analysis(
        **spectrum.fields,
        u_ks=u.ks,
        u_p=u.p,
        u_p_local=u.p_local,
        u_ipr=u.ipr,
        u_peak=u.peak,
        v_ks=v.ks,
        v_p=v.p,
        v_p_local=v.p_local,
        v_ipr=v.ipr,
        v_peak=v.peak,
        u_p_mean=_mean(u.p),
        v_p_mean=_mean(v.p),
        u_q=u.q,
        v_q=v.q,
        u_effect=u.effect,
        v_effect=v.effect,
        u_p_omnibus=omnibus(u.p),
        v_p_omnibus=omnibus(v.p),
        **({} if scale == "none" else _scale_columns(parts, scale, rank, unit, null, heads, head_mass)),
        **({} if heads is None or not head_mass else _head_columns(parts, heads, rank)),
    )
    if metrics:
        measured = spectrum.measured(
            lambda: (parts.left.T.mul(parts.singular_values / unit) @ parts.right).cpu().numpy()
        )
        analysis = replace(analysis, metrics=compute(metrics, measured))
    extra = extra_values(parts, analysis)
    return replace(analysis, extra=extra) if extra else analysis


def summarize_values(
    found: Values,
    sum_of_entries: float,
    *,
    sigma: SigmaKind,
    metrics: tuple[str, ...] = (),
    entries: Callable[[], FloatArray],
) -> Analysis:
    """Compute what follows from the singular values and the sum of the entries; all fields about vectors are NaN or None.

    Args:
        found: the singular values.
        sum_of_entries: of the matrix.
        sigma: the estimate that the edges come from.
        metrics: names of single metrics.
        entries: makes the matrix, which few metrics need.

    Raises:
        SigmaError: `sigma` is `bulk`, and its fit ran away.
    """
    spectrum = _spectrum(found, sum_of_entries, sigma)
    unknown = np.full(len(found.singular_values), np.nan)
    names = [f"{side}_{what}" for side in "uv" for what in ("ks", "p", "p_local", "ipr", "peak")]
    per_vector: dict[str, Any] = dict.fromkeys(names, unknown)
    analysis = Analysis(**spectrum.fields, **per_vector, u_p_mean=float("nan"), v_p_mean=float("nan"))
    if not metrics:
        return analysis
    return replace(analysis, metrics=compute(metrics, spectrum.measured(lambda: entries() / spectrum.unit)))


def entries_of(array: ArrayLike | torch.Tensor | LowRank) -> FloatArray:
    """Return the entries of a matrix, or of a product of thin factors, in float64; shape (m, n)."""
    matrix, _ = _checked(array, None)
    whole = matrix.left @ matrix.right if isinstance(matrix, LowRank) else matrix
    entries: FloatArray = whole.double().cpu().numpy()
    return entries


def _product_fit(
    scaled: FloatArray, sigma: SigmaKind, std: float, rows: int, cols: int
) -> tuple[BulkFit, dict[SigmaKind, float], float]:
    """Return sigma and edges of a product of two random factors, all its estimates, and the distance to its law.

    The factors are defined up to an invertible map between them, so `init`, which is about each of them, is unknown.
    """
    nan = float("nan")
    width = len(scaled)
    estimates: dict[SigmaKind, float] = {
        "median": product_law.sigma_of_median(scaled, rows, cols),
        "std": std,
        "init": nan,
        "bulk": nan,
    }
    chosen = estimates[sigma]
    lower, upper = product_law.singular_value_edges(chosen, rows, cols, width)
    distance = product_law.distance(scaled, rows, cols, chosen)
    return BulkFit(sigma=chosen, lower=lower, upper=upper), estimates, distance


def _head_test(vectors: torch.Tensor, heads: int) -> tuple[FloatArray, NDArray[np.int32], FloatArray]:
    """Return the effective number of heads in each vector, the head with the largest mass, and the p-value."""
    masses = head_mass.head_masses(vectors, heads)
    concentration = masses.square().sum(dim=1).cpu().numpy()
    p = head_mass.p_values(concentration, heads, vectors.shape[1] // heads)
    return 1.0 / concentration, masses.argmax(dim=1).cpu().numpy().astype(np.int32), p


def _head_columns(parts: Decomposition, heads: Heads, rank: int) -> dict[str, Any]:
    """Return effective number of heads and p-value of the vectors of one side; nothing if they are not heads of one width."""
    vectors = parts.left if heads.side == "u" else parts.right
    if vectors.shape[1] % heads.count:
        return {}
    effective, top, p = _head_test(vectors, heads.count)
    p[rank:] = effective[rank:] = np.nan
    return {
        "heads_side": heads.side,
        "heads_effective": effective,
        "heads_p": p,
        "heads_top": top,
        "heads_p_mean": _mean(p),
    }


def _scale_columns(
    parts: Decomposition, kind: ScaleKind, rank: int, unit: float, null: KsNull, heads: Heads | None, mass: bool
) -> dict[str, Any]:
    """Return the fields of `Analysis` that the scale null of the kind gives; only the reason, if there is none."""
    found: dict[str, Any] = {"scale_kind": kind}
    if parts.method == "product":
        return found | {"scale_failure": "a product of two weights: its entries are not independent under any scale"}
    scaled = parts.singular_values / unit
    try:
        total, robust = fit_scale(scaled, parts.left, parts.right)
        fits = {"total": total, "robust": robust}
        for name, fit in fits.items():
            if isinstance(fit, ScaleFit):
                found |= {f"scale_lower_{name}": fit.edges.lower * unit, f"scale_upper_{name}": fit.edges.upper * unit}
        chosen = fits[kind]
        if isinstance(chosen, ScaleError):
            raise chosen
        return found | _with_scale(parts, chosen, rank, unit, null, heads, mass)
    except ScaleError as error:
        return found | {"scale_failure": str(error)}


def scale_profile(parts: Decomposition, kind: ScaleKind) -> Profile:
    """Return the row and column variances of the matrix that was decomposed, `robust` or `total`.

    Raises:
        ScaleError: it has none; the message is that of `scale_failure`.
    """
    largest = float(parts.singular_values.max())
    unit = unit_of(largest)
    total, robust = fit_scale(parts.singular_values / unit, parts.left, parts.right)
    fit = total if kind == "total" else robust
    if isinstance(fit, ScaleError):
        raise fit
    return Profile(rows=fit.profile.rows * unit, cols=fit.profile.cols * unit)


def _with_scale(
    parts: Decomposition, fit: ScaleFit, rank: int, unit: float, null: KsNull, heads: Heads | None, mass: bool
) -> dict[str, Any]:
    """Return regions, p-values and what follows from them.

    Raises:
        ScaleError: the equations were not solved.
    """
    s, profile = parts.singular_values, fit.profile
    lower, upper = fit.edges.lower * unit, fit.edges.upper * unit
    scaled = s[:rank] / unit
    scalars = solve(profile, scaled, fit.edges)
    region = regions(s.cpu().numpy(), lower, upper, rank)
    # A value in a gap of the support is an outlier, too: above the bulk if it is in the upper half of the spectrum.
    gap = np.flatnonzero((region[:rank] == "bulk") & ~in_support(scalars, scaled, fit.edges))
    region[gap] = np.where(gap < min(len(profile.rows), len(profile.cols)) // 2, "right", "left")
    p_values: dict[str, FloatArray] = {}
    of_heads: dict[str, Any] = {}
    effect: dict[str, FloatArray] = {}
    left, right = shares(profile, scaled)
    for side, vectors, variances, other, share in (
        ("u", parts.left, profile.rows, scalars.y, left),
        ("v", parts.right, profile.cols, scalars.x, right),
    ):
        length = int((variances > 0.0).sum())
        count = heads.count if heads is not None and heads.side == side else 1
        for name, groups in (("scale", 1), ("within", count)):
            if name == "within" and not has_heads(len(variances), groups):
                continue
            p = p_values[f"{side}_p_{name}"] = np.full(len(s), np.nan)
            distances = vector_distances(vectors[:rank], variances, scalars.w, other, share, groups).cpu().numpy()
            p[:rank] = null.p_values(distances, length)
            if name == "scale":
                size = effect[side] = np.full(len(s), np.nan)
                size[:rank] = effects(distances, length)
        if count > 1 and mass and len(variances) % count == 0 and bool((variances > 0.0).all()):
            equal = standardized(vectors[:rank], variances, scalars.w, other, share)
            tested = np.full(len(s), np.nan)
            tested[:rank] = _head_test(equal, count)[2]
            of_heads = {"heads_p_scale": tested, "heads_p_scale_mean": _mean(tested)}
    u_p, v_p = p_values["u_p_scale"], p_values["v_p_scale"]
    law = np.full(len(s), np.nan)
    with np.errstate(over="ignore"):  # the density of the smallest numbers is out of range
        law[:rank] = density_at(profile, scalars).cpu().numpy() / unit
    law[np.isinf(law)] = np.nan
    return {
        **p_values,
        **of_heads,
        "region_scale": region,
        "scale_density": law,
        "u_q_scale": q_values(u_p),
        "v_q_scale": q_values(v_p),
        "u_effect_scale": effect["u"],
        "v_effect_scale": effect["v"],
        "u_p_scale_omnibus": omnibus(u_p),
        "v_p_scale_omnibus": omnibus(v_p),
        "scale_lower": lower,
        "scale_upper": upper,
        "scale_threshold": fit.edges.threshold * unit,
        "outliers_left_scale": int(np.count_nonzero(region == "left")),
        "outliers_right_scale": int(np.count_nonzero(region == "right")),
        "u_p_scale_mean": _mean(u_p),
        "v_p_scale_mean": _mean(v_p),
        "scale_row_inequality": inequality(profile.rows),
        "scale_col_inequality": inequality(profile.cols),
    }


def _mean(p_values: FloatArray) -> float:
    known = p_values[~np.isnan(p_values)]
    return float(known.mean()) if known.size else float("nan")
