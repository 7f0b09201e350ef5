"""The size of a figure: lengths with units, and charts whose views are scaled until the whole has the size that was asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import altair as alt
import vl_convert

from scanner.errors import ConfigError

POINTS = {"pt": 1.0, "px": 1.0, "mm": 72.0 / 25.4, "cm": 72.0 / 2.54, "in": 72.0}
"""Units of lengths, in points. A unit of a chart is a point on paper and a pixel on a screen."""
SMALLEST, LARGEST = 60.0, 10_000.0
"""Range of widths and heights, in points."""

_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_SIZE = re.compile(r'<svg[^>]*?\swidth="([\d.]+)"[^>]*?\sheight="([\d.]+)"')
_PARTS = ("layer", "concat", "hconcat", "vconcat")
#: Views are scaled until the figure is smaller than it should be by at most this many points, or for this many times.
_CLOSE, _MOST = 3.0, 12
_LEAST = 12.0


def points(name: str, value: object) -> float:
    """Return a length in points.

    Args:
        name: of the option, for the error.
        value: a number of points, or a text with a unit: `85mm`, `8.5cm`, `3.4in`, `240pt`, `640px`.

    Raises:
        ConfigError: it is no such length, or is smaller than `SMALLEST` or larger than `LARGEST`.
    """
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        length = float(value)
    elif found is not None and (found[2] or "pt") in POINTS:
        length = float(found[1]) * POINTS[found[2] or "pt"]
    else:
        raise ConfigError(name, f"must be a length such as 85mm, 8.5cm, 3.4in or 240pt, got {value!r}")
    if not SMALLEST <= length <= LARGEST:
        least, most = (f"{limit / POINTS['mm']:.0f}mm" for limit in (SMALLEST, LARGEST))
        raise ConfigError(name, f"must be between {least} and {most}, got {value!r}")
    return length


def measured(chart: Any) -> tuple[float, float]:
    """Return width and height of a chart with its axes, legends and titles, in points, as it is rendered."""
    return _rendered(chart.to_dict())


def fitted(chart: Any, width: float | None, height: float | None) -> Any:
    """Scale the views of a chart until the whole has this width and height (None: as it is), in points; returns the chart."""
    if width is None and height is None:
        return chart
    specification = chart.to_dict()
    padding = float(specification.get("padding") or 0.0)
    sides = dict.fromkeys(("left", "top", "right", "bottom"), padding)
    for position, (name, wanted, side) in enumerate((("width", width, "right"), ("height", height, "bottom"))):
        if wanted is None:
            continue
        factor, size = _fit(specification, name, position, wanted)
        for view in _views(chart, _of_chart):
            own = _of_chart(view, name)
            if isinstance(own, int | float):
                if height is None and _of_chart(view, "height") == own:
                    view.height = round(own * factor, 2)  # a map that is square stays so
                setattr(view, name, round(own * factor, 2))
        # Sizes change in steps of whole points for each view of a row, so a last point or two is white.
        sides[side] += max(0.0, wanted - size)
    chart.padding = sides
    return chart


def _fit(specification: dict[str, Any], name: str, position: int, wanted: float) -> tuple[float, float]:
    """Scale the views of a specification, which is faster than those of a chart, and return the factor and the size."""
    views = [view for view in _views(specification, dict.get) if isinstance(view.get(name), int | float)]
    factor, size = 1.0, _rendered(specification)[position]
    if not views:
        return factor, size
    sizes = [float(view[name]) for view in views]
    # Below some width, a legend or a title is wider than the views, so the size is not proportional to the factor.
    too_small, too_large = _LEAST / min(sizes), math.inf
    slope = max(sizes)
    for _ in range(_MOST):
        if 0.0 <= wanted - size <= _CLOSE:
            break
        if size < wanted:
            too_small = max(too_small, factor)
        else:
            too_large = min(too_large, factor)
        guess = factor + (wanted - size) / slope
        if not too_small < guess < too_large:
            guess = 0.5 * (too_small + too_large) if math.isfinite(too_large) else 1.5 * factor
        for view, own in zip(views, sizes, strict=True):
            view[name] = round(own * guess, 2)
        found = _rendered(specification)[position]
        slope = max((found - size) / (guess - factor), 0.5 * max(sizes)) if guess != factor else slope
        factor, size = guess, found
    return factor, size


def _rendered(specification: dict[str, Any]) -> tuple[float, float]:
    found = _SIZE.search(vl_convert.vegalite_to_svg(json.dumps(specification)))
    assert found is not None, "a chart is rendered as an svg element with a size"
    return float(found[1]), float(found[2])


def _views(chart: Any, get: Callable[[Any, str], Any]) -> Iterator[Any]:
    """Yield a chart (or its specification) and every view in it."""
    yield chart
    for part in _PARTS:
        children = get(chart, part)
        for child in children if isinstance(children, list) else ():
            yield from _views(child, get)
    inner = get(chart, "spec")  # of a facet
    if inner is not None:
        yield from _views(inner, get)


def _of_chart(chart: Any, name: str) -> Any:
    value = getattr(chart, name, None)
    return None if value is alt.Undefined else value
