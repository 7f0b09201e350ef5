"""Scripts and styles of a site: its own, and those of third parties, which come out of installed packages with their licenses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path

from scanner.errors import ScannerError
from scanner.figures.rendering import library
from scanner.report.page import CHARTS, STYLE, THEME

_STATIC = Path(__file__).resolve().parent / "static"
_NOTICE = """The scripts of this site that are not part of rmtscan (Apache-2.0) are copied from Python packages, unchanged.

dt_bundle.js, dt_bundle.css: from itables (MIT). They contain jQuery (MIT, OpenJS Foundation and contributors) and DataTables
with its extensions (MIT, SpryMedia Ltd). The notices of all parts are at the end of dt_bundle.js.

vega.js: from vl-convert (BSD-3-Clause). It contains Vega, Vega-Lite and Vega-Embed (BSD-3-Clause, University of Washington
Interactive Data Lab) and D3 (ISC, Mike Bostock). The terms of BSD-3-Clause are in the license of vl-convert below."""
_BUNDLE = ("dt_bundle.js", "dt_bundle.css")


@cache
def assets() -> dict[str, bytes]:
    """Return the files of the folder `assets` of a site by name.

    Raises:
        ScannerError: the package with the tables is not installed.
    """
    found = {path.name: path.read_bytes() for path in sorted(_STATIC.iterdir()) if path.suffix in (".js", ".css")}
    found |= {"charts.js": CHARTS.read_bytes(), "theme.js": THEME.read_bytes(), "base.css": STYLE.read_bytes()}
    found["vega.js"] = library().encode()
    folder = _itables()
    for name in _BUNDLE:
        found[name] = (folder / name).read_bytes()
    return found | {"LICENSES.txt": _licenses()}


def _itables() -> Path:
    """Return the folder with the bundle of DataTables; the package itself is not imported."""
    spec = importlib.util.find_spec("itables")
    places = [Path(place) / "html" for place in (spec.submodule_search_locations or ())] if spec is not None else []
    folder = next((place for place in places if all((place / name).is_file() for name in _BUNDLE)), None)
    if folder is None:
        raise ScannerError("a site needs the package itables, which has its tables: pip install 'rmtscan[site]'")
    return folder


def _licenses() -> bytes:
    """Return the licenses of what is copied, as one text."""
    parts = [_NOTICE]
    for package in ("itables", "vl-convert-python"):
        for path in importlib.metadata.files(package) or ():
            if path.name.upper().startswith(("LICENSE", "NOTICE")):
                parts.append(
                    f"---- {package} {importlib.metadata.version(package)}: {path.name}\n\n{path.read_text('utf-8')}"
                )
    return "\n\n".join(parts).encode()
