"""Draw every figure that some stores can answer, in light and dark, and write the page of the documentation site that shows them.

    python docs/gallery.py FOLDER STORE...

For each figure the first store that has what it needs is used. Figures that none can draw are listed with the reason.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scanner.errors import ScannerError
from scanner.figures import all_figures, save
from scanner.figures.registry import Figure
from scanner.store import Store, open_store

#: Themes by what a reader has chosen, in the names of mkdocs-material.
THEMES = {"light": "screen", "dark": "dark"}
HEAD = """# Gallery

Every figure of `rmtscan plot`, drawn from a small model and its fine-tune with the defaults. `rmtscan plot FIGURE --list` lists the
parameters of a figure; `--width 85mm --theme paper -o figure.pdf` makes it fit a column of a paper.
"""
EXPERIMENTS = """## Figures of experiments

They need results that the stores here do not have.

| figure | shows | |
|---|---|---|"""


def drawn(figure: Figure, stores: list[Store], folder: Path) -> str:
    """Draw a figure in every theme and return the part of the page.

    Raises:
        ScannerError: no store has what it needs.
    """
    error: ScannerError | None = None
    for store, chosen in _choices(figure, stores):
        try:
            for name, theme in THEMES.items():
                chart = figure.draw(store, interactive=False, theme=theme, **chosen)
                save(chart, folder / f"{figure.name}-{name}.svg")
            break
        except ScannerError as found:
            error = error or found
    else:
        assert error is not None
        raise error
    images = "\n".join(
        f"![{html.escape(figure.title)}]({figure.name}-{name}.svg#only-{name}){{ loading=lazy }}" for name in THEMES
    )
    return f"## {figure.title}\n\n{figure.about}\n\n    rmtscan plot {figure.name} -o {figure.name}.svg\n\n{images}\n"


def _choices(figure: Figure, stores: list[Store]) -> Iterator[tuple[Store | None, dict[str, Any]]]:
    """Return each store, with the defaults and, for figures of one model, with a model."""
    if not figure.needs_store:
        yield None, {}
        return
    for store in stores:
        yield store, {}
        if "model" in figure.parameters:
            yield from ((store, {"model": model}) for model in store.models() if not model.startswith("delta:"))


def main(folder: str, *stores: str) -> int:
    """Draw the figures and write `index.md`."""
    target, opened = Path(folder), [open_store(store) for store in stores]
    target.mkdir(parents=True, exist_ok=True)
    parts, missing = [HEAD], []
    for figure in all_figures().values():
        try:
            parts.append(drawn(figure, opened, target))
        except ScannerError as error:
            missing.append(f"| `{figure.name}` | {figure.title} | {error} |")
    if missing:
        parts.append("\n".join([EXPERIMENTS, *missing, ""]))
    (target / "index.md").write_text("\n".join(parts), "utf-8")
    print(f"{len(parts) - 1} parts, {len(missing)} figures without results, in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
