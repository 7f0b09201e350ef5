"""A chart becomes a file: HTML that needs no network, SVG, PNG or PDF, without a browser."""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from scanner.errors import ScannerError

SUFFIXES = (".html", ".svg", ".png", ".pdf")
"""Forms in which a figure can be written."""
PNG_PPI = 300
"""One unit of a chart is a point, 1/72 inch: a column of a paper has about 1000 pixels at this density."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ margin: 2em; background: white; }}</style>
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
    """The path of a figure's file, checked before anything is computed.

    Raises:
        ScannerError: a suffix of no form that can be written, or a folder that is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ScannerError(f"{str(path)!r}: the suffix says the form, and it is one of {' '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ScannerError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into: make it first")
    if path.is_dir():
        raise ScannerError(f"{str(path)!r} is a folder: name a file")
    return path


def save(chart: Any, path: str | Path) -> Path:
    """Write a chart; the suffix says in which form.

    Raises:
        ScannerError: an unknown suffix, a folder that is not there, or a file that cannot be written.
    """
    path = check_path(path)
    specification = json.dumps(chart.to_dict())
    form = path.suffix.lower()
    if form == ".html":
        content = to_html(chart).encode()
    elif form == ".svg":
        content = vl_convert.vegalite_to_svg(specification).encode()
    elif form == ".png":
        content = vl_convert.vegalite_to_png(specification, ppi=PNG_PPI)
    else:
        content = vl_convert.vegalite_to_pdf(specification)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ScannerError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    return path


def to_html(chart: Any) -> str:
    """One page with the chart, its data and the library that draws it: nothing is loaded from elsewhere."""
    specification = chart.to_dict()
    title = specification.get("title")
    text = title.get("text") if isinstance(title, dict) else title
    shown = html.escape(str(text or "rmtscan"))
    return _PAGE.format(title=shown, library=_library(), specification=in_script(specification))


def in_script(value: object) -> str:
    """A value as JSON that can stand in a page's script: a name in it, whoever chose it, cannot end the script."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
