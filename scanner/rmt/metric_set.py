"""The metrics of a spectrum that a scan can compute: their names, groups and columns, for modules that do not compute.

A new metric is one entry of `SPECTRAL_METRICS` and the function that it names, which receives a `scanner.rmt.spectrum.Spectrum` and
returns its columns. The columns of the tables, the option `metrics` and the documentation follow from the entry.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from scanner.rmt.columns import Column

DEFAULT = ("default",)
"""What is computed unless something else is asked for."""
FAILURE = "metrics_failure"
"""Name of the column of `matrices` that says which metrics are missing, and why."""


@dataclass(frozen=True, kw_only=True)
class SpectralMetric:
    """A metric, or several that share a computation."""

    name: str
    """Its name in the option `metrics`, and in the identity of a scan."""
    function: str
    """The function that computes it: `module.function`, within `scanner.rmt`."""
    groups: tuple[str, ...]
    """Names that stand for it and others. What needs decompositions of its own is in no group but `all`."""
    matrix: tuple[Column, ...] = ()
    """Columns of `matrices`."""
    vector: tuple[Column, ...] = ()
    """Columns of `vectors`."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of both tables."""
        return self.matrix + self.vector


def _number(name: str, description: str) -> Column:
    return Column(name, "float64", "", description)


def _count(name: str, description: str) -> Column:
    return Column(name, "int32", "", description)


_OURS, _THEIRS = ("default", "rmt"), ("default", "weightwatcher")

SPECTRAL_METRICS: tuple[SpectralMetric, ...] = (
    SpectralMetric(
        name="alpha",
        function="spectral_metrics.power_law",
        groups=_OURS,
        matrix=(
            _number("alpha", "exponent of a power law λ^−α fitted to the largest λ = s²; read `alpha_failure` with it"),
            _number("alpha_error", "standard error of `alpha`, if the tail is a power law from `alpha_xmin` on"),
            _number("alpha_xmin", "singular value at which the fitted tail begins"),
            _count("alpha_tail", "number of singular values in the fitted tail"),
            _number("alpha_ks", "Kolmogorov-Smirnov distance between the tail and the fitted power law"),
            _number("alpha_p", "upper bound of the p-value of `alpha_ks`: small if the tail is no power law"),
            Column("alpha_failure", "text", "", "why `alpha` means nothing: no fit, a fit that is rejected, or noise"),
        ),
    ),
    SpectralMetric(
        name="alpha_hill",
        function="spectral_metrics.hill_exponent",
        groups=_OURS,
        matrix=(_number("alpha_hill", "exponent α from the larger half of the nonzero λ = s² (Hill estimator)"),),
    ),
    SpectralMetric(
        name="tw",
        function="spectral_metrics.tracy_widom_tests",
        groups=_OURS,
        matrix=(
            _number("tw_p", "p-value of the largest singular value: a random matrix has one as large (Tracy-Widom)"),
            _count("tw_outliers", "number of largest singular values that Tracy-Widom tests at 1 % reject in turn"),
        ),
    ),
    SpectralMetric(
        name="bema",
        function="spectral_metrics.bulk_matching",
        groups=_OURS,
        matrix=(
            _number("bema_upper", "upper edge of the bulk by bulk eigenvalue matching (BEMA), as a singular value"),
            _count("bema_outliers", "number of singular values above `bema_upper`"),
        ),
    ),
    SpectralMetric(
        name="spacing_ratio",
        function="spectral_metrics.level_spacings",
        groups=_OURS,
        matrix=(
            _number(
                "spacing_ratio", "mean ratio of neighboring gaps in the bulk: 0.5307 if random, 0.3863 if independent"
            ),
        ),
    ),
    SpectralMetric(
        name="gd_rank",
        function="spectral_metrics.optimal_rank",
        groups=_OURS,
        matrix=(_count("gd_rank", "number of singular values above the optimal hard threshold (Gavish and Donoho)"),),
    ),
    SpectralMetric(
        name="strength",
        function="spectral_metrics.strengths",
        groups=_OURS,
        vector=(
            _number(
                "strength",
                "strength of the spike behind an outlier, freed from noise; NULL where s_k is not above the bulk",
            ),
        ),
    ),
    SpectralMetric(
        name="alpha_farms",
        function="spectral_metrics.farms_exponent",
        groups=(),
        matrix=(_number("alpha_farms", "`alpha_hill` of submatrices of one aspect ratio (FARMS)"),),
    ),
    SpectralMetric(
        name="ww_alpha",
        function="weightwatcher.power_law",
        groups=_THEIRS,
        matrix=(
            _number("ww_alpha", "WeightWatcher's `alpha`: exponent of a power law fitted to λ = s² above 1e-5"),
            _number("ww_xmin", "WeightWatcher's `xmin`: eigenvalue λ at which the fitted tail begins"),
            _number("ww_D", "WeightWatcher's `D`: distance between the tail and the fitted power law"),
            _number("ww_sigma", "WeightWatcher's `sigma`: standard error of `ww_alpha`"),
            _count("ww_num_pl_spikes", "WeightWatcher's `num_pl_spikes`: number of eigenvalues in the fitted tail"),
            _number("ww_alpha_weighted", "WeightWatcher's `alpha_weighted`: `ww_alpha` log₁₀ λ_max"),
            _number("ww_log_alpha_norm", "WeightWatcher's `log_alpha_norm`: log₁₀ Σλ^α with α = `ww_alpha`"),
        ),
    ),
    SpectralMetric(
        name="ww_norms",
        function="weightwatcher.norms",
        groups=_THEIRS,
        matrix=(
            _number("ww_log_norm", "WeightWatcher's `log_norm`: log₁₀ Σλ"),
            _number("ww_log_spectral_norm", "WeightWatcher's `log_spectral_norm`: log₁₀ λ_max"),
            _number("ww_stable_rank", "WeightWatcher's `stable_rank`: Σλ/λ_max"),
        ),
    ),
    SpectralMetric(
        name="ww_entropy",
        function="weightwatcher.ranks",
        groups=_THEIRS,
        matrix=(
            _count("ww_matrix_rank", "WeightWatcher's `matrix_rank`: number of singular values above rounding error"),
            _number("ww_entropy", "WeightWatcher's `entropy`: entropy of λ/Σλ over the logarithm of `ww_matrix_rank`"),
        ),
    ),
    SpectralMetric(
        name="ww_num_spikes",
        function="weightwatcher.spikes",
        groups=_THEIRS,
        matrix=(
            _count("ww_num_spikes", "WeightWatcher's `num_spikes` (`mp_fit`): eigenvalues above its fitted bulk"),
            _number("ww_mp_softrank", "WeightWatcher's `mp_softrank` (`mp_fit`): edge of its fitted bulk over λ_max"),
        ),
    ),
    SpectralMetric(
        name="ww_rand_distance",
        function="weightwatcher.random_distance",
        groups=(),
        matrix=(
            _number(
                "ww_rand_distance",
                "WeightWatcher's `rand_distance` (`randomize`): distance to the eigenvalues of the same entries in random order",
            ),
        ),
    ),
)

_BY_NAME = {metric.name: metric for metric in SPECTRAL_METRICS}
_BY_COLUMN = {column.name: metric.name for metric in SPECTRAL_METRICS for column in metric.columns}

MATRIX_COLUMNS: tuple[Column, ...] = (
    *(column for metric in SPECTRAL_METRICS for column in metric.matrix),
    Column(FAILURE, "text", "", "metrics that were asked for and are NULL, each with the reason"),
)
VECTOR_COLUMNS: tuple[Column, ...] = tuple(column for metric in SPECTRAL_METRICS for column in metric.vector)


def groups() -> dict[str, tuple[str, ...]]:
    """Return the names of the metrics in each group."""
    named = dict.fromkeys(group for metric in SPECTRAL_METRICS for group in metric.groups)
    found = {group: tuple(one.name for one in SPECTRAL_METRICS if group in one.groups) for group in named}
    return found | {"all": tuple(_BY_NAME), "none": ()}


def metric_named(name: str) -> SpectralMetric:
    """Return the metric of this name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the metrics that metrics, columns and groups stand for, sorted and each once.

    Metrics that share a computation come together: the name of a column stands for its whole metric.

    Raises:
        ValueError: an unknown name, or `none` together with others.
    """
    asked, known = list(names), groups()
    if "none" in asked and set(asked) != {"none"}:
        raise ValueError("names `none` and others: leave one of them out")
    found: set[str] = set()
    for name in asked:
        if name in known:
            found.update(known[name])
        elif name in _BY_NAME:
            found.add(name)
        elif name in _BY_COLUMN:
            found.add(_BY_COLUMN[name])
        else:
            everything = (*known, *_BY_NAME, *_BY_COLUMN)
            near = difflib.get_close_matches(str(name), everything, n=1)
            guess = f" (do you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"has an unknown metric {name!r}{guess}: choose from {', '.join((*known, *_BY_NAME))}")
    return tuple(sorted(found))
