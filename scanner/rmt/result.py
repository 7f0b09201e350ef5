"""Result of the analysis of one matrix; its fields declare the columns of the tables that hold them.

Apart from `analysis`, which computes the values, because reading the declarations must not load torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from scanner.rmt.columns import Scope, declared_columns, metrics, of_matrix, of_vector
from scanner.rmt.metric_set import MATRIX_COLUMNS, VECTOR_COLUMNS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scanner.rmt.decomposition import SvdMethod
    from scanner.rmt.marchenko_pastur import FloatArray
    from scanner.rmt.vocabulary import ScaleKind, SigmaKind


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Result of the analysis of one m x n matrix; the fields declare the columns of `matrices` and `vectors` that hold them.

    In a notebook it is shown as a small table.

    Arrays have length min(m, n) (for a product of thin factors: its width), with k = 0 the largest singular value. `u` is the
    left (output) side, `v` the right (input) side. p-values are NaN where a singular value is numerically zero (its vectors are
    arbitrary) and on a side of length 1. The fields of the scale null are None without one; `scale_failure` has the reason.
    """

    rows: int
    cols: int
    singular_values: FloatArray = field(
        metadata=of_vector("float64", "singular value s_k", name="singular_value", required=True)
    )
    region: NDArray[np.str_] = field(
        metadata=of_vector(
            "text", "`left` (below the bulk), `bulk`, `right` (above the bulk) or `null` (numerically zero)"
        )
    )
    u_ks: FloatArray = field(
        metadata=of_vector("float32", "Kolmogorov-Smirnov distance D of the entries of u_k to the Gaussian")
    )
    u_p: FloatArray = field(metadata=of_vector("float32", "p-value of `u_ks`"))
    u_p_local: FloatArray = field(metadata=of_vector("float32", "mean of `u_p` over k-7 ... k+7"))
    v_ks: FloatArray = field(
        metadata=of_vector("float32", "Kolmogorov-Smirnov distance D of the entries of v_k to the Gaussian")
    )
    v_p: FloatArray = field(metadata=of_vector("float32", "p-value of `v_ks`"))
    v_p_local: FloatArray = field(metadata=of_vector("float32", "mean of `v_p` over k-7 ... k+7"))
    u_ipr: FloatArray = field(metadata=of_vector("float32", "inverse participation ratio Σx⁴ of u_k"))
    v_ipr: FloatArray = field(metadata=of_vector("float32", "inverse participation ratio Σx⁴ of v_k"))
    u_peak: FloatArray = field(metadata=of_vector("float32", "largest |entry| of u_k"))
    v_peak: FloatArray = field(metadata=of_vector("float32", "largest |entry| of v_k"))
    sigma: float = field(metadata=of_matrix("float64", "estimate of σ that the edges of the bulk come from"))
    sigma_kind: SigmaKind = field(metadata=of_matrix("text", "which estimate `sigma` is: `median std init bulk`"))
    sigma_median: float = field(metadata=of_matrix("float64", "σ from the median singular value"))
    sigma_std: float = field(metadata=of_matrix("float64", "σ as the standard deviation of the entries"))
    sigma_init: float = field(metadata=of_matrix("float64", "σ of an initialization with variance 1/m"))
    sigma_bulk: float = field(
        metadata=of_matrix("float64", "σ from a fit to the bulk; means nothing where `bulk_failed`")
    )
    mp_lower: float = field(
        metadata=of_matrix(
            "float64", "lower edge of the Marchenko-Pastur bulk (of products: of their law), as a singular value"
        )
    )
    mp_upper: float = field(
        metadata=of_matrix(
            "float64", "upper edge of the Marchenko-Pastur bulk (of products: of their law), as a singular value"
        )
    )
    outliers_left: int = field(metadata=of_matrix("int32", "number of singular values below the bulk"))
    outliers_right: int = field(metadata=of_matrix("int32", "number of singular values above the bulk"))
    rank: int = field(metadata=of_matrix("int32", "number of singular values that are not numerically zero"))
    mp_ks: float = field(
        metadata=of_matrix(
            "float64", "largest distance between the spectrum and its Marchenko-Pastur law (of products: their law)"
        )
    )
    spectral_norm: float = field(metadata=of_matrix("float64", "largest singular value s₀"))
    frobenius_norm: float = field(metadata=of_matrix("float64", "square root of Σs²"))
    stable_rank: float = field(metadata=of_matrix("float64", "Σs²/s₀²"))
    effective_rank: float = field(metadata=of_matrix("float64", "exp of the entropy of s/Σs"))
    u_p_mean: float = field(metadata=of_matrix("float64", "mean of `u_p` over the triplets that have one"))
    v_p_mean: float = field(metadata=of_matrix("float64", "mean of `v_p` over the triplets that have one"))
    svd_method: SvdMethod = field(
        metadata=of_matrix(
            "text", "how it was decomposed: `gram`, `svd`, `low_rank` or `product` (exact, from thin factors)"
        )
    )
    svd_residual: float = field(
        metadata=of_matrix("float64", "estimate of the relative Frobenius error of the decomposition")
    )
    region_scale: NDArray[np.str_] | None = field(
        default=None,
        metadata=of_vector("text", "`region` by the support of the scale null: outside its edges or in a gap of it"),
    )
    scale_density: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float64", "density of the singular values by the law of the scale null, at s_k; its integral is 1"
        ),
    )
    u_p_scale: FloatArray | None = field(
        default=None,
        metadata=of_vector("float32", "p-value of u_k under the scale null (row and column variances of W)"),
    )
    v_p_scale: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "p-value of v_k under the scale null")
    )
    u_p_within: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float32",
            "p-value of u_k under the scale null, given which part of u_k each attention head holds; NULL without heads",
        ),
    )
    v_p_within: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "the same of v_k (of `attn_out`)")
    )
    scale_kind: ScaleKind | None = field(
        default=None,
        metadata=of_matrix("text", "which row and column variances the scale null has: `robust total`"),
    )
    scale_lower: float | None = field(
        default=None, metadata=of_matrix("float64", "lower edge of the scale null, as a singular value")
    )
    scale_upper: float | None = field(
        default=None, metadata=of_matrix("float64", "upper edge of the scale null, as a singular value")
    )
    scale_threshold: float | None = field(
        default=None,
        metadata=of_matrix(
            "float64", "strength from which a delocalized spike is above the upper edge of the scale null"
        ),
    )
    outliers_left_scale: int | None = field(
        default=None, metadata=of_matrix("int32", "number of singular values with `region_scale` = `left`")
    )
    outliers_right_scale: int | None = field(
        default=None, metadata=of_matrix("int32", "number of singular values with `region_scale` = `right`")
    )
    u_p_scale_mean: float | None = field(
        default=None, metadata=of_matrix("float64", "mean of `u_p_scale` over the triplets that have one")
    )
    v_p_scale_mean: float | None = field(
        default=None, metadata=of_matrix("float64", "mean of `v_p_scale` over the triplets that have one")
    )
    scale_row_inequality: float | None = field(
        default=None,
        metadata=of_matrix(
            "float64", "mean(a²)/mean(a)² of the row variances a of the scale null: 1 if all rows are equal"
        ),
    )
    scale_col_inequality: float | None = field(
        default=None,
        metadata=of_matrix(
            "float64", "mean(b²)/mean(b)² of the column variances b of the scale null: 1 if all columns are equal"
        ),
    )
    scale_lower_robust: float | None = field(
        default=None,
        metadata=of_matrix("float64", "lower edge with variances estimated without the values above the upper edge"),
    )
    scale_upper_robust: float | None = field(
        default=None, metadata=of_matrix("float64", "upper edge with variances estimated without the values above it")
    )
    scale_lower_total: float | None = field(
        default=None, metadata=of_matrix("float64", "lower edge with the variances of all of W")
    )
    scale_upper_total: float | None = field(
        default=None, metadata=of_matrix("float64", "upper edge with the variances of all of W")
    )
    scale_failure: str | None = field(
        default=None, metadata=of_matrix("text", "why there is no scale null although it was asked for")
    )
    heads_effective: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float32",
            "1/Σm² of the masses m of the attention heads in the vector of `heads_side`: 1 if one head has all",
        ),
    )
    heads_p: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float32", "p-value of `heads_effective`: small if the mass is in fewer heads than in random vectors"
        ),
    )
    heads_top: NDArray[np.int32] | None = field(
        default=None, metadata=of_vector("int32", "index of the head with the largest mass")
    )
    heads_p_scale: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float32", "the same under the scale null: heads with larger weights are expected to have more mass"
        ),
    )
    heads_side: Literal["u", "v"] | None = field(
        default=None, metadata=of_matrix("text", "side whose vectors are made of heads and were tested: `u` or `v`")
    )
    heads_p_mean: float | None = field(
        default=None, metadata=of_matrix("float64", "mean of `heads_p` over the triplets that have one")
    )
    heads_p_scale_mean: float | None = field(
        default=None, metadata=of_matrix("float64", "mean of `heads_p_scale` over the triplets that have one")
    )
    u_q: FloatArray | None = field(
        default=None,
        metadata=of_vector("float32", "Benjamini-Hochberg q-value of `u_p` among the left vectors of the matrix"),
    )
    v_q: FloatArray | None = field(
        default=None,
        metadata=of_vector("float32", "Benjamini-Hochberg q-value of `v_p` among the right vectors of the matrix"),
    )
    u_effect: FloatArray | None = field(
        default=None,
        metadata=of_vector(
            "float32", "size of the deviation of u_k: D(√n + 0.12 + 0.11/√n) minus its mean for random vectors"
        ),
    )
    v_effect: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "size of the deviation of v_k, as `u_effect`")
    )
    u_q_scale: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "q-value of `u_p_scale` among the left vectors of the matrix")
    )
    v_q_scale: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "q-value of `v_p_scale` among the right vectors of the matrix")
    )
    u_effect_scale: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "`u_effect` of the standardized vector, under the scale null")
    )
    v_effect_scale: FloatArray | None = field(
        default=None, metadata=of_vector("float32", "`v_effect` of the standardized vector, under the scale null")
    )
    u_p_omnibus: float | None = field(
        default=None,
        metadata=of_matrix(
            "float64", "p-value of the hypothesis that all left vectors are random (Fisher, from `u_p`)"
        ),
    )
    v_p_omnibus: float | None = field(
        default=None,
        metadata=of_matrix(
            "float64", "p-value of the hypothesis that all right vectors are random (Fisher, from `v_p`)"
        ),
    )
    u_p_scale_omnibus: float | None = field(
        default=None,
        metadata=of_matrix("float64", "the same from `u_p_scale`: all left vectors agree with the scale null"),
    )
    v_p_scale_omnibus: float | None = field(
        default=None,
        metadata=of_matrix("float64", "the same from `v_p_scale`: all right vectors agree with the scale null"),
    )
    bulk_failed: bool | None = field(
        default=None,
        metadata=of_matrix(
            "bool",
            "whether the fit of `sigma_bulk` ran away: it kept less than a quarter of the values, and means nothing",
        ),
    )
    bulk_lower: float | None = field(
        default=None,
        metadata=of_matrix("float64", "lower edge that belongs to `sigma_bulk`; null where its fit failed"),
    )
    bulk_upper: float | None = field(
        default=None,
        metadata=of_matrix("float64", "upper edge that belongs to `sigma_bulk`; null where its fit failed"),
    )
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Values of the chosen metrics of the spectrum (`scanner.rmt.metric_set`), by column; None where there is none."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values of registered metrics (`scanner.rmt.columns`), by column: one number per matrix, or one array per matrix."""

    def __repr__(self) -> str:
        """One line: the shape, where the singular values are, and how random the vectors look."""
        below, inside, above = (count for _, count in self._regions())
        words = f"{self.rows} × {self.cols}: {below} below | {inside} bulk | {above} above"
        return f"Analysis({words}, mean p {_short(self.u_p_mean)} (u) {_short(self.v_p_mean)} (v))"

    def _repr_html_(self) -> str:
        """Return a small table: the spectrum against its law, and p under both hypotheses."""
        counts = " | ".join(str(count) for _, count in self._regions())
        zero = len(self.region) - sum(count for _, count in self._regions())
        rows = [
            ("singular values below | in | above the bulk", counts + (f" ({zero} are zero)" if zero else "")),
            ("edges of the bulk", f"{_short(self.mp_lower)} … {_short(self.mp_upper)}"),
            (f"σ ({self.sigma_kind})", _short(self.sigma)),
            ("spectral norm, stable rank", f"{_short(self.spectral_norm)}, {_short(self.stable_rank)}"),
            ("mean p of the left | right vectors (random: 0.5)", f"{_short(self.u_p_mean)} | {_short(self.v_p_mean)}"),
        ]
        if self.u_p_scale_mean is not None or self.v_p_scale_mean is not None:
            both = f"{_short(self.u_p_scale_mean)} | {_short(self.v_p_scale_mean)}"
            rows.append(("the same under the scale null", both))
        cells = "".join(
            f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:right">{escape(value)}</td></tr>'
            for name, value in rows
        )
        return f"<div><b>{self.rows} × {self.cols}</b> matrix<table>{cells}</table></div>"

    def _regions(self) -> list[tuple[str, int]]:
        """Return the number of singular values below, in and above the bulk."""
        found = self.region.tolist()
        return [(name, found.count(name)) for name in ("left", "bulk", "right")]

    def matrix_columns(self) -> dict[str, object]:
        """Values for table `matrices`, by column."""
        return self._columns("matrix")

    def vector_columns(self) -> dict[str, object]:
        """Arrays for table `vectors`, by column; `k` included."""
        return {"k": range(len(self.singular_values))} | self._columns("vector")

    def _columns(self, scope: Scope) -> dict[str, object]:
        own = {column.name: getattr(self, name) for name, column in declared_columns(Analysis, scope).items()}
        chosen = MATRIX_COLUMNS if scope == "matrix" else VECTOR_COLUMNS
        own |= {column.name: self.metrics[column.name] for column in chosen if column.name in self.metrics}
        names = [metric.column.name for metric in metrics(scope)]
        return own | {name: self.extra[name] for name in names if name in self.extra}


def _short(value: float | None) -> str:
    """Return a number with three digits; `–` where there is none."""
    return "–" if value is None or value != value else f"{value:.3g}"
