"""Files of charts: self-contained HTML, SVG, PNG or PDF, written without a browser."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from scanner.errors import ConfigError, ScannerError

SCHEMA_URL = alt.SCHEMA_URL
"""Schema of the Vega-Lite specifications."""
SUFFIXES = (".html", ".svg", ".png", ".pdf")
"""Suffixes of the file formats of a figure."""
PNG_PPI = 300
"""Resolution of PNG files. A unit of a chart is a point, 1/72 inch, so a column of a paper has about 1000 pixels."""

_SVG_SIZE = re.compile(r'(<svg[^>]*?\s)width="([\d.]+)" height="([\d.]+)"')
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ margin: 2em; background: {background}; }}</style>
<script>{library}</script>
</head>
<body>
<div id="chart"></div>
<script>
vegaEmbed("#chart", {specification}, {{"renderer": "svg", "actions": {{"export": true, "source": false, "compiled": false,
  "editor": false}}}}).catch(console.error);
</script>
</body>
</html>
"""


def check_path(path: str | Path) -> Path:
    """Return the path of a figure's file, checked before anything is computed.

    Raises:
        ScannerError: the suffix is not one of `SUFFIXES`, the folder does not exist, or the path is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ScannerError(f"{str(path)!r}: the suffix selects the format and must be one of {' '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ScannerError(f"no folder {str(path.parent)!r}: create it before writing {path.name!r}")
    if path.is_dir():
        raise ScannerError(f"{str(path)!r} is a folder: give the path of a file")
    return path


def save(chart: Any, path: str | Path, *, scale: float = 1.0) -> Path:
    """Write a chart in the format of the suffix.

    In `.svg` and `.pdf` files, a unit of the chart is a point; a `.png` file has 300 pixels per inch, times `scale`.

    Args:
        chart: what `Figure.draw` returns.
        path: the file.
        scale: multiplies the pixels of a `.png` file, from 0.1 to 10.

    Raises:
        ConfigError: a scale out of range.
        ScannerError: see `check_path`, or the file cannot be written.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.1 <= scale <= 10:
        raise ConfigError("scale", f"must be a number from 0.1 to 10, got {scale!r}")
    path = check_path(path)
    specification = json.dumps(chart.to_dict())
    suffix = path.suffix.lower()
    if suffix == ".html":
        content = to_html(chart).encode()
    elif suffix == ".svg":
        content = in_points(vl_convert.vegalite_to_svg(specification)).encode()
    elif suffix == ".png":
        content = vl_convert.vegalite_to_png(specification, ppi=PNG_PPI * scale)
    else:
        content = vl_convert.vegalite_to_pdf(specification)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ScannerError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    return path


def in_points(svg: str) -> str:
    """Return an SVG file whose units are points, so that it has its size on paper; Vega writes pixels of 1/96 inch."""
    return _SVG_SIZE.sub(r'\1width="\2pt" height="\3pt"', svg, count=1)


def to_html(chart: Any) -> str:
    """Return a page that contains the chart, its data and the library that draws it, and loads nothing."""
    specification = chart.to_dict()
    title = specification.get("title")
    text = title.get("text") if isinstance(title, dict) else title
    words = " ".join(text) if isinstance(text, list) else text
    shown = html.escape(str(words or "rmtscan"))
    background = html.escape(str(specification.get("background", "white")))
    return _PAGE.format(title=shown, library=library(), background=background, specification=in_script(specification))


def in_script(value: object) -> str:
    """Return a value as JSON for a script element; no text in it, such as the name of a tensor, can end the element."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


@cache
def library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as the text of one script element."""
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
