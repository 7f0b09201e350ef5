"""`rmtscan plot`: draw a figure to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, named, printer
from scanner.cli.loading import loaded
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.tables import View

if TYPE_CHECKING:
    from scanner.figures import Figure


#: Options with another name than the parameter of the figure, which is called as its column is stored.
_FLAGS = {"centred": "--centered"}


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "plot", plot, aliases={"--centred": "--centered", "--uncentred": "--uncentered"})


def plot(
    *,
    figure: Annotated[
        str | None, typer.Argument(metavar="FIGURE", help="Name of the figure; see --list.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; the suffix selects the format: .html .svg .png .pdf",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", "-l", help="List the figures, or describe FIGURE and its options.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A scanned model: its name, or a unique part of it.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The newest revision that begins with this, instead of the newest.")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Index of the block.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="query, key, value, attn_out, mlp_up, ...")] = None,
    head: Annotated[int | None, typer.Option("--head", help="Index of an attention head.")] = None,
    expert: Annotated[int | None, typer.Option("--expert", help="Index of an expert.")] = None,
    stack: Annotated[
        str | None, typer.Option("--stack", help="encoder, decoder, ... if the model has several.")
    ] = None,
    tensor: Annotated[str | None, typer.Option("--tensor", help="Full name of the tensor.")] = None,
    side: Annotated[
        str | None, typer.Option("--side", help="v: right singular vectors (input side); u: left ones (output side).")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Rank of a singular triplet, 0 = largest.")] = None,
    ensemble: Annotated[
        str | None, typer.Option("--ensemble", help="Random control to draw: gaussian or kaiming_uniform.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Model of a pair before fine-tuning.")] = None,
    tuned: Annotated[str | None, typer.Option("--tuned", help="Model of a pair after fine-tuning.")] = None,
    centred: Annotated[
        bool | None,
        typer.Option(
            "--centered/--uncentered",
            help="Covariance of the activations, or their second moments.",
            show_default="centered",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Id of a run of an experiment (for lazy: a recipe), instead of the newest."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Any other parameter of the figure; can be repeated."),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            "--width",
            metavar="LENGTH",
            help="Width of the whole figure: 85mm, 3.4in, 240pt, 640px.",
            show_default="a column of a paper",
        ),
    ] = None,
    height: Annotated[
        str | None,
        typer.Option(
            "--height", metavar="LENGTH", help="Height of the whole figure.", show_default="what suits the width"
        ),
    ] = None,
    font_size: Annotated[
        float | None,
        typer.Option(
            "--font-size", metavar="POINTS", help="Size of the labels.", show_default="7 on paper, 13 on a screen"
        ),
    ] = None,
    theme: Annotated[
        Literal["paper", "screen", "dark"] | None,
        typer.Option(
            "--theme",
            help="Sizes for print or for a screen; dark: a screen with a dark background.",
            show_default="screen for .html, else paper",
        ),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Multiplies the 300 pixels per inch of a .png file.")] = 1.0,
    store: StoreOption = DEFAULT_STORE,
    table: TableOptions,
) -> None:
    """Draw a figure of scanned models: an interactive HTML page, or an image for a paper.

    Examples:

        rmtscan plot --list

        rmtscan plot spectrum --role query --layer 3 -o spectrum.pdf

        rmtscan plot depth --model my-model -o depth.html

        rmtscan plot depth --model my-model --width 180mm --font-size 8 -o depth.pdf
    """
    from scanner.cli.choosing import whole_name
    from scanner.cli.progress import steps
    from scanner.figures import all_figures, find_figure, save
    from scanner.figures.rendering import check_path
    from scanner.store import open_store

    if listed and figure is None:
        import pyarrow as pa

        known = list(all_figures().values())
        columns = {"figure": [one.name for one in known], "shows": [one.title for one in known]}
        listing = pa.table(columns | {"options": [" ".join(map(_option, one.parameters)) for one in known]})
        printer(table, View(shown=named([*columns]), caption=False), rows=None)(listing)
        return
    if figure is None:
        raise typer.BadParameter("give the name of a figure; --list shows all figures", param_hint="FIGURE")
    chosen = find_figure(figure)
    if listed:
        loaded()
        print(_description(chosen))
        return
    if output is None:
        raise typer.BadParameter("give the file as -o FILE.html, .svg, .png or .pdf", param_hint="--output")
    output = check_path(output)
    given: dict[str, object] = {
        "model": model,
        "revision": revision,
        "layer": layer,
        "role": role,
        "head": head,
        "expert": expert,
        "stack": stack,
        "tensor": tensor,
        "side": side,
        "k": k,
        "ensemble": ensemble,
        "base": base,
        "tuned": tuned,
        "run": run,
        "centred": centred,
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    for text in param or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
        parameters[name] = chosen.convert(name, value)
    looks = {"width": width, "height": height, "font_size": font_size, "theme": theme}
    appearance: dict[str, Any] = {name: value for name, value in looks.items() if value is not None}
    opened = None
    with steps(sys.stderr, "drawing") as progress:
        if chosen.needs_store:
            opened = open_store(store)
            models = [name for name in ("model", "base", "tuned") if isinstance(parameters.get(name), str)]
            parameters |= {name: whole_name(opened, str(parameters[name])) for name in models}
        chart = chosen.draw(
            opened,
            interactive=output.suffix.lower() == ".html",
            progress=progress,
            **appearance | parameters,
        )
        written = save(chart, output, scale=scale)
    note(f"{chosen.title}: {written}")


def _description(figure: Figure) -> str:
    lines = [f"{figure.name}: {figure.title}", "", figure.about, "", "Options:"]
    for name, help_text in figure.parameters.items():
        lines.append(f"  {_option(name)}   {help_text}")
    return "\n".join(lines)


def _option(parameter: str) -> str:
    """Return the option that sets a parameter of a figure."""
    from scanner.figures import PARAMETERS

    flag = _FLAGS.get(parameter, f"--{parameter}")
    return flag if parameter in PARAMETERS else f"--param {parameter}="
