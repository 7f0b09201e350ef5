"""Figure of the spectrum of one matrix with the Marchenko-Pastur law and a random control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import Matrix, caption, choose_matrix, control, place, vectors
from scanner.rmt import marchenko_pastur, product_law
from scanner.store import Store

FloatArray = NDArray[np.float64]

BULK_BINS = 24
"""Number of bins between the edges of the bulk."""
MOST_BINS = 400
MEASURED, LAW, PRODUCT_LAW = "singular values", "Marchenko–Pastur law", "law of random products"
PRODUCTS = ("qk", "ov")
LOWER = "ν min"
SHOWN = 2.5
"""End of the axis in units of the upper edge; a note counts the values beyond it."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of singular values; bin i extends from `borders[i]` to `borders[i + 1]`."""

    borders: FloatArray
    counts: NDArray[np.int64]

    @property
    def density(self) -> FloatArray:
        """Counts per unit of singular value, normalized to integral 1."""
        return np.asarray(self.counts / (self.counts.sum() * np.diff(self.borders)))


def bins(lower: float, upper: float, smallest: float, largest: float) -> FloatArray:
    """Return the borders of equal bins that are aligned with both edges of the bulk and cover all singular values.

    Where this needs more than `MOST_BINS` bins, the last bin is wide.
    """
    width = (upper - lower) / BULK_BINS
    below = int(np.ceil(max(lower - smallest, 0.0) / width))
    above = int(np.ceil(max(largest - upper, 0.0) / width)) + 1
    if below + above + BULK_BINS <= MOST_BINS:
        return np.asarray(lower + width * np.arange(-below, BULK_BINS + above + 1))
    near = lower + width * np.arange(-below, MOST_BINS - below)
    return np.append(near[near < largest], np.nextafter(largest, np.inf))


def histogram(values: FloatArray, borders: FloatArray) -> Histogram:
    """Count values in bins; the borders must cover all values."""
    counts, _ = np.histogram(values, borders)
    return Histogram(borders=borders, counts=counts)


def law(matrix: Matrix, points: int = 160) -> tuple[FloatArray, FloatArray]:
    """Return the density of singular values of the Marchenko-Pastur law over the bulk: (nu, p(nu)), two arrays of `points`.

    p(nu) = hi / (lo pi s^2 nu) sqrt((nu_max^2 - nu^2)(nu^2 - nu_min^2)), s^2 = sigma^2 hi (arXiv 2410.17770, Eq. 1). The
    points are dense at both edges, where the density goes to zero like a square root.
    """
    scale = matrix.scale
    low, high = (np.sqrt(edge) for edge in marchenko_pastur.edges(matrix.gamma))
    at = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(np.linspace(0.0, np.pi, points))
    density = marchenko_pastur.singular_value_pdf(at, matrix.gamma)
    if low < 1e-12:  # a square matrix, whose density does not vanish at zero
        density[0] = density[1]
    return at * scale, density / scale


def law_of_products(matrix: Matrix, count: int, points: int = 160) -> tuple[FloatArray, FloatArray]:
    """Return the density of the `count` nonzero singular values of a product of two random factors: two arrays of `points`.

    See `scanner.rmt.product_law`; the inner dimension is `count`.
    """
    c, d = count / matrix.rows, count / matrix.cols
    low, high = np.sqrt(product_law.edges(c, d))
    unit = product_law.unit(matrix.sigma, matrix.rows, matrix.cols, count)
    at = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(np.linspace(0.0, np.pi, points))
    return at * unit, 2.0 * at * product_law.pdf(at**2, c, d) / unit


@figure(
    title="Spectrum of a matrix, with the Marchenko-Pastur law and a random control",
    about="Histogram of the singular values. Those of a random matrix lie between the edges ν_min and ν_max; values outside come "
    "from training.",
)
def spectrum(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    head: int | None = None,
    expert: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
    ensemble: str | None = None,
) -> Any:
    """Draw the histogram of the singular values of one matrix, the Marchenko-Pastur law with its edges, and the random control.

    The entries of the control have variance 1 / hi, hi = max(rows, cols), so its singular values are multiplied by sigma sqrt(hi).

    Source: arXiv 2410.17770, v1 Fig. 1 (BERT), v3 Fig. 1 (below and above the bulk); with the Kaiming-uniform control the
    figures of "Analyzing Llama-3 weights via RMT".

    Raises:
        ScannerError: the matrix or control is not in the store, or the matrix has no bulk.
    """
    matrix = choose_matrix(
        store,
        model=model,
        revision=revision,
        layer=layer,
        role=role,
        head=head,
        expert=expert,
        stack=stack,
        tensor=tensor,
    )
    scale = matrix.scale
    values = np.array(vectors(store, matrix)["singular_value"], dtype=np.float64)
    # A control of the shape of a product is one random matrix, not a product of two.
    beside = None if _is_product(matrix) else control(store, matrix, ensemble)
    scaled = None if beside is None else np.array(beside[1]["singular_value"], dtype=np.float64) * scale
    return draw(matrix, values, None if beside is None else beside[0], scaled, interactive=interactive)


def draw(
    matrix: Matrix, values: FloatArray, ensemble: str | None, control_values: FloatArray | None, *, interactive: bool
) -> Any:
    """Return the chart of one spectrum; all values are in the units of the singular values."""
    look = theme.style(interactive)
    lower, upper = matrix.mp_lower, matrix.mp_upper
    both = values if control_values is None else np.concatenate([values, control_values])
    borders = bins(lower, upper, float(both.min()), float(both.max()))
    counted = histogram(values, borders)
    at, density = law_of_products(matrix, len(values)) if _is_product(matrix) else law(matrix)
    law_name = PRODUCT_LAW if _is_product(matrix) else LAW
    shown = min(float(borders[-1]), SHOWN * upper)
    shown = max(shown, upper / (1.0 - _share(look, _above(matrix))))
    # The label of the lower edge is outside the bulk if there is space above zero, and otherwise inside, above the bars.
    begin, beside_lower = axis_start(matrix, look, min(float(borders[0]), lower - 0.35 * (upper - lower)), shown)
    x_scale = alt.Scale(domain=[begin, shown], nice=False)
    top = (1.22 if beside_lower else 1.4) * float(max(counted.density[borders[:-1] < shown].max(), density.max()))

    control_name = f"control ({str(ensemble).replace('_', ' ')})"
    names = {MEASURED: theme.SKY, law_name: theme.BLACK}
    if control_values is not None:
        names[control_name] = theme.VERMILION
    rows = [
        {"from": float(borders[i]), "to": float(borders[i + 1]), "density": float(height), "count": int(count)}
        for i, (height, count) in enumerate(zip(counted.density, counted.counts, strict=True))
        if count
    ]
    x = alt.X("from:Q", title="singular value ν", scale=x_scale, axis=alt.Axis(grid=False))
    y = alt.Y(
        "density:Q", title="density p(ν)", scale=alt.Scale(domain=[0, top], nice=False), axis=alt.Axis(tickCount=5)
    )
    hover = [
        alt.Tooltip("count:Q", title="singular values"),
        alt.Tooltip("from:Q", title="from ν", format=".4g"),
        alt.Tooltip("to:Q", title="to ν", format=".4g"),
        alt.Tooltip("density:Q", title="p(ν)", format=".4g"),
    ]
    bars = alt.Chart(theme.inline(rows), name="matrix").mark_bar(clip=True, stroke="white", strokeWidth=0.2)
    bars = bars.encode(x=x, x2="to:Q", y=y, y2=alt.datum(0), tooltip=hover if interactive else alt.Undefined)
    if interactive:
        bars = theme.zoomable(bars, "spectrum")
    layers: list[Any] = [theme.named(bars, MEASURED, names, look)]
    if control_values is not None:
        random = alt.Chart(theme.inline(steps(histogram(control_values, borders))), name="control")
        random = random.mark_line(clip=True, strokeWidth=look.line, strokeJoin="miter")
        random = random.encode(x="nu:Q", y="density:Q", order="order:Q")
        layers.append(theme.named(random, control_name, names, look))
    points = [
        {"nu": float(a), "density": float(d), "order": i} for i, (a, d) in enumerate(zip(at, density, strict=True))
    ]
    curve = alt.Chart(theme.inline(points), name="law").mark_line(clip=True, strokeWidth=1.3 * look.line)
    curve = curve.encode(x="nu:Q", y="density:Q", order="order:Q")
    layers.append(theme.named(curve, law_name, names, look))
    layers += _edges(matrix, look, top, shown, beside_lower, int(np.count_nonzero(values > shown)), float(values.max()))
    chart = alt.layer(*layers).properties(width=look.width, height=look.height)
    details = f"{matrix.rows} × {matrix.cols}, σ = {matrix.sigma:.4g}"
    return theme.finish(chart, look, place(matrix), [caption([matrix]), details])


def _is_product(matrix: Matrix) -> bool:
    return matrix.head is not None and matrix.role in PRODUCTS


def steps(counted: Histogram) -> list[dict[str, object]]:
    """Return the outline of a histogram, from its first to its last nonempty bin."""
    filled = np.flatnonzero(counted.counts)
    first, last = int(filled[0]), int(filled[-1])
    density = counted.density
    corners = [(counted.borders[first], 0.0)]
    for i in range(first, last + 1):
        corners += [(counted.borders[i], density[i]), (counted.borders[i + 1], density[i])]
    corners.append((counted.borders[last + 1], 0.0))
    return [{"nu": float(nu), "density": float(height), "order": i} for i, (nu, height) in enumerate(corners)]


def axis_start(matrix: Matrix, look: theme.Style, begin: float, shown: float) -> tuple[float, bool]:
    """Return where the axis starts, at most at `begin`, and whether the label of the lower edge then fits outside the bulk."""
    if matrix.mp_lower <= 0.0:
        return max(0.0, begin), True
    share = _share(look, _below(matrix))
    needed = (matrix.mp_lower - share * shown) / (1.0 - share)
    return max(0.0, min(begin, needed)), needed >= 0.0


def _share(look: theme.Style, words: str) -> float:
    """Return the share of the axis that a label beside a rule occupies."""
    return (0.43 * look.font * len(words) + 6) / look.width


def _below(matrix: Matrix) -> str:
    return f"{matrix.outliers_left} below"


def _above(matrix: Matrix) -> str:
    return f"{matrix.outliers_right} above"


def _edges(
    matrix: Matrix, look: theme.Style, top: float, shown: float, beside_lower: bool, beyond: int, largest: float
) -> list[Any]:
    """Return the edges of the bulk as rules with their names and the numbers of singular values outside."""
    rules = [{"nu": matrix.mp_upper, "edge": "ν max", "count": _above(matrix), "density": top}]
    if matrix.mp_lower > 0.0:
        rules.append({"nu": matrix.mp_lower, "edge": LOWER, "count": _below(matrix), "density": top})
    data = theme.inline(rules)
    layers: list[Any] = [
        alt.Chart(data, name="edges")
        .mark_rule(strokeDash=[3, 2], strokeWidth=0.8 * look.line, color=theme.BLACK)
        .encode(x="nu:Q")
    ]
    for rule in rules:
        right = rule["edge"] != LOWER or not beside_lower
        side: dict[str, Any] = {"align": "left" if right else "right", "dx": 3 if right else -3, "fontSize": look.font}
        text = alt.Chart(theme.inline([rule])).encode(x="nu:Q", y="density:Q")
        layers.append(text.mark_text(baseline="top", dy=2, **side).encode(text="edge:N"))
        layers.append(text.mark_text(baseline="top", dy=look.font + 4, **side).encode(text="count:N"))
    if beyond:
        note = {"nu": shown, "density": 0.3 * top, "note": f"{beyond} beyond, up to {largest:.3g} →"}
        layers.append(
            alt.Chart(theme.inline([note]))
            .mark_text(align="right", baseline="middle", dx=-3, fontSize=look.font)
            .encode(x="nu:Q", y="density:Q", text="note:N")
        )
    return layers
