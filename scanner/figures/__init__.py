"""Figures: one function each, from a store to an `altair` chart, and files of every form made of them without a browser.

    from scanner.figures import FIGURES, save
    chart = FIGURES["spectrum"].draw(store, model="org/model", layer=0, role="query")
    save(chart, "spectrum.pdf")

`FIGURES` maps a name to a `Figure`: its `name`, `title`, `about`, `parameters` (names; `PARAMETERS` explains them) and
`draw(store, interactive=False, **parameters)`, which returns a chart with its data in it (`chart.to_dict()` is the Vega-Lite
specification). Everything that a user can get wrong is a `ScannerError` with one line that says what is there instead.
"""

from scanner.figures.catalogue import FIGURES, find_figure
from scanner.figures.registry import PARAMETERS, Figure
from scanner.figures.rendering import SUFFIXES, save, to_html

__all__ = ["FIGURES", "PARAMETERS", "SUFFIXES", "Figure", "find_figure", "save", "to_html"]
