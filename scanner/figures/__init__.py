"""Figures: functions that turn a store into an `altair` chart, and files made of charts without a browser.

    from scanner.figures import FIGURES, save
    chart = FIGURES["spectrum"].draw(store, model="org/model", layer=0, role="query")
    save(chart, "spectrum.pdf")

`FIGURES` maps a name to a `Figure` with a `title`, an `about` text, `parameters` (names and their help) and
`draw(store, interactive=False, **parameters)`, which returns a chart that contains its data (`chart.to_dict()` is the Vega-Lite
specification). Errors that a user can act on are `ScannerError`s of one line.

Every module of this package is imported here, so that its figures are registered. A new figure is a module with a function
`(store, *, interactive=False, ...)` under the decorator `figure`, either in this package or in an extension module.
"""

import importlib
import pkgutil

from scanner.figures.registry import FIGURES, PARAMETERS, Figure, all_figures, figure, find_figure
from scanner.figures.rendering import SUFFIXES, save, to_html

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FIGURES", "PARAMETERS", "SUFFIXES", "Figure", "all_figures", "figure", "find_figure", "save", "to_html"]
