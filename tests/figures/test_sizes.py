"""Figures have the size, fonts and colors that are asked for, and no mark lies outside its frame."""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from scanner.errors import ConfigError
from scanner.figures import FIGURES, save
from scanner.figures.depth import _DARK
from scanner.figures.sizing import measured, points
from scanner.figures.theme import ROLE_COLORS, text_width, wrapped
from scanner.store import Store

from .stores import BASE
from .test_catalogue import OF_ACTIVATIONS, OF_SCANS, _luminance
from .texts import boxes, cut, overlapping

MILLIMETER = 72 / 25.4
#: Figures with long tails, which a note in the figure counts.
WITH_A_NOTE = {"spectrum": "beyond", "scale": "beyond", "histograms_by_role": "→"}


#: Charts that several tests look at: a width is found by drawing a figure some ten times.
_DRAWN: dict[tuple[object, ...], Any] = {}


def drawn(store: Store, name: str, **asked: Any) -> Any:
    key = (store.url, name, *sorted(asked.items()))
    if key not in _DRAWN:
        given = {"model": BASE} if name in OF_SCANS else {"model": "org/model"} if name in OF_ACTIVATIONS else {}
        _DRAWN[key] = FIGURES[name].draw(store, **given, **asked)
    return _DRAWN[key]


@pytest.mark.parametrize("width", [85, 180])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_as_wide_as_asked_for(full_store: Store, name: str, width: int) -> None:
    wide, _ = measured(drawn(full_store, name, width=f"{width}mm"))
    assert wide == pytest.approx(width * MILLIMETER, abs=1.0)


@pytest.mark.parametrize("name", FIGURES)
def test_every_interactive_figure_compiles(full_store: Store, name: str) -> None:
    """Vega refuses two signals of one name, which a zoom that belongs to two views makes; altair does not."""
    assert measured(drawn(full_store, name, interactive=True)) > (400, 100)


@pytest.mark.parametrize("name", ["spectrum", "depth", "pair_spectra", "decompose", "ablation", "lazy"])
def test_a_height_is_that_of_the_whole_figure(full_store: Store, name: str) -> None:
    size = measured(drawn(full_store, name, width="120mm", height="140mm"))
    assert size == pytest.approx((120 * MILLIMETER, 140 * MILLIMETER), abs=1.0)


def test_the_files_have_that_size(full_store: Store, tmp_path: Path) -> None:
    chart = drawn(full_store, "spectrum", width="85mm")
    svg = save(chart, tmp_path / "a.svg").read_text("utf-8")
    found = re.search(r'<svg[^>]* width="([\d.]+)pt" height="[\d.]+pt"', svg)
    assert found is not None
    assert float(found[1]) == pytest.approx(85 * MILLIMETER, abs=1.0)
    for scale in (1.0, 2.0):
        png = save(chart, tmp_path / "a.png", scale=scale).read_bytes()
        (pixels,) = struct.unpack(">I", png[16:20])
        assert pixels == pytest.approx(85 / 25.4 * 300 * scale, abs=5)
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+)", save(chart, tmp_path / "a.pdf").read_bytes())
    assert box is not None
    assert float(box[1]) == pytest.approx(85 * MILLIMETER, abs=1.0)


def test_the_font_size_is_that_of_the_labels(full_store: Store) -> None:
    for name in ("spectrum", "depth"):
        config = drawn(full_store, name, font_size=9).to_dict()["config"]
        assert (config["axis"]["labelFontSize"], config["legend"]["labelFontSize"]) == (9, 9)


def test_the_dark_theme_has_no_dark_mark_on_its_dark_ground(full_store: Store) -> None:
    for name in FIGURES:
        chart = drawn(full_store, name, theme="dark").to_dict()
        data = chart.pop("datasets")
        text = json.dumps(chart)
        assert '"#000000"' not in text, name
        assert chart["background"] == "#15171C"
        assert data == drawn(full_store, name, theme="screen").to_dict()["datasets"]
    paper, screen = (drawn(full_store, "depth", theme=theme).to_dict() for theme in ("paper", "screen"))
    assert (paper["config"]["axis"]["labelFontSize"], screen["config"]["axis"]["labelFontSize"]) == (7, 13)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"width": "85 furlongs"}, "`width` must be a length such as 85mm"),
        ({"width": "wide"}, "`width` must be a length"),
        ({"width": True}, "`width` must be a length"),
        ({"width": "1mm"}, "`width` must be between 21mm and 3528mm, got '1mm'"),
        ({"height": -3}, "`height` must be between"),
        ({"height": float("nan")}, "`height` must be between"),
        ({"font_size": 0}, "`font_size` must be a number of points from 4 to 40, got 0"),
        ({"font_size": "9"}, "`font_size` must be"),
        ({"theme": "neon"}, "`theme` must be one of paper, screen, dark, got 'neon'"),
    ],
)
def test_a_size_that_is_none_is_one_line(full_store: Store, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        drawn(full_store, "depth", **asked)
    assert "\n" not in str(caught.value)


def test_a_scale_out_of_range_is_one_line(full_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`scale` must be a number from 0\.1 to 10, got 0"):
        save(drawn(full_store, "depth"), tmp_path / "a.png", scale=0)


def test_lengths_are_those_of_the_units() -> None:
    assert points("width", "85mm") == pytest.approx(240.945, abs=1e-3)
    assert points("width", "8.5 cm") == pytest.approx(points("width", "85mm"))
    assert points("width", "3.4in") == pytest.approx(244.8)
    assert points("width", "240pt") == points("width", 240) == points("width", "240") == 240.0


def test_long_captions_are_broken_and_keep_every_word() -> None:
    line = "organization/a-model-with-a-long-name @ 0123abcd, σ: median, and some more words than fit into a column"
    broken = wrapped([line, "short"], 200, 7)
    assert " ".join(broken) == f"{line} short"
    assert all(text_width(one, 7) <= 200 for one in broken)
    word = "x" * 200
    assert "".join(wrapped([word], 100, 7)) == word


# ---- no mark outside its frame


def _frames(node: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every view (a group with a size) with each of its marks, from the scene that the renderer draws."""
    for item in node.get("items", []):
        if node.get("marktype") == "group" and item.get("width") and node.get("role") not in ("legend", "axis"):
            for mark in item.get("items", []):
                if mark.get("marktype") != "group" and mark.get("role") == "mark":
                    yield item, mark
        yield from _frames(item)


def outside(chart: Any, slack: float = 1.0) -> list[str]:
    """Return the marks that lie partly outside their frame, or are cut there; symbols with their size."""
    scene = vl_convert.vegalite_to_scenegraph(json.dumps(chart.to_dict()))["scenegraph"]
    found = []
    for frame, mark in _frames(scene):
        if mark["marktype"] == "text":
            continue
        for item in mark.get("items", []):
            if item.get("opacity") == 0 or item.get("defined") is False:
                continue
            radius = 0.5 * item.get("size", 0.0) ** 0.5 if mark["marktype"] == "symbol" else 0.0
            for axis, size in (("x", frame["width"]), ("y", frame["height"])):
                ends = [item[key] for key in (axis, f"{axis}2") if isinstance(item.get(key), int | float)]
                if len(ends) == 1 and mark["marktype"] == "rect":
                    ends.append(ends[0] + item.get("width" if axis == "x" else "height", 0.0))
                for end in ends:
                    if not -slack <= end - radius or not end + radius <= size + slack:
                        found.append(f"{mark['marktype']} {mark.get('name')}: {axis} = {end:.1f} of {size}")
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_no_mark_lies_outside_its_frame(full_store: Store, name: str) -> None:
    chart = drawn(full_store, name, width="85mm")
    found = outside(chart)
    if name in WITH_A_NOTE:
        assert not found or WITH_A_NOTE[name] in json.dumps(chart.to_dict(), ensure_ascii=False)
    else:
        assert found == []


# ---- no text over another, and none that is cut


@pytest.mark.parametrize("asked", [{"width": "85mm"}, {"theme": "screen"}], ids=["paper", "screen"])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_over_another_or_beyond_the_border(full_store: Store, name: str, asked: dict[str, str]) -> None:
    chart = drawn(full_store, name, **asked)
    assert (overlapping(chart), cut(chart)) == ([], [])


@pytest.mark.parametrize("width", ["60mm", "180mm"])
@pytest.mark.parametrize("name", ["overlap", "overlap_map"])
def test_maps_are_square_at_any_width(full_store: Store, name: str, width: str) -> None:
    chart = drawn(full_store, name, width=width).to_dict()
    assert chart["width"] == chart["height"]


@pytest.mark.parametrize("name", ["spectra_by_role", "depth", "histograms_by_role", "activation_spectrum", "ablation"])
def test_headings_of_panels_in_a_row_stand_at_one_height(full_store: Store, name: str) -> None:
    found, _ = boxes(drawn(full_store, name, width="85mm"))
    tops = sorted(box.top for box in found if box.text in ROLE_COLORS)
    assert all(low - high < 0.5 or low - high > 20 for high, low in itertools.pairwise(tops)), tops


def test_what_stands_on_the_ground_of_a_heat_map_can_be_read_in_the_dark(full_store: Store) -> None:
    """Cells without a color hold a dash, which was black on the dark ground."""
    chart = drawn(full_store, "outliers", theme="dark")
    scene = vl_convert.vegalite_to_scenegraph(json.dumps(chart.to_dict()))["scenegraph"]
    fills = {item["text"]: item["fill"] for _, mark in _frames(scene) for item in mark["items"] if "text" in item}
    assert _luminance(fills["–"]) > 0.5


def test_numbers_on_a_heat_map_can_be_read_on_their_color() -> None:
    """The contrast of white and of black text on the colors that Vega draws, by the formula of WCAG."""
    shares = [i / 100 for i in range(101)]
    color = {"field": "x", "type": "quantitative", "scale": {"scheme": "blues", "domain": [0, 1]}, "legend": None}
    chart = {"data": {"values": [{"x": x} for x in shares]}, "mark": "rect"}
    chart["encoding"] = {"x": {"field": "x", "type": "ordinal"}, "color": color}
    svg = vl_convert.vegalite_to_svg(json.dumps(chart))
    found = re.findall(r'aria-label="x: ([\d.]+)[^"]*"[^>]*fill="rgb\((\d+), (\d+), (\d+)\)"', svg)
    assert len(found) == len(shares)
    for x, *channels in found:
        luminance = _luminance("#" + "".join(f"{int(channel):02x}" for channel in channels))
        contrast = 1.05 / (luminance + 0.05) if float(x) > _DARK else (luminance + 0.05) / 0.05
        assert contrast >= 4.5, x
