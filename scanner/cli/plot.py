"""`rmtscan plot`: one figure as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "plot", plot, aliases={"--centered": "--centred", "--uncentered": "--uncentred"})


def plot(
    figure: Annotated[str | None, typer.Argument(help="The figure; see --list.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file; its suffix says the form: .html .svg .png .pdf", show_default=False
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", "-l", help="List the figures, or with FIGURE describe one.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name of a scanned model.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The newest revision that begins with this.")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Index of the block.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="query, key, value, attn_out, mlp_up ...")] = None,
    head: Annotated[int | None, typer.Option("--head", help="Index of an attention head.")] = None,
    expert: Annotated[int | None, typer.Option("--expert", help="Index of an expert.")] = None,
    stack: Annotated[
        str | None, typer.Option("--stack", help="encoder, decoder ... where a model has several.")
    ] = None,
    tensor: Annotated[str | None, typer.Option("--tensor", help="Full name of the tensor.")] = None,
    side: Annotated[
        str | None, typer.Option("--side", help="v: right vectors (input); u: left vectors (output).")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Rank of a singular triplet, 0 = largest.")] = None,
    ensemble: Annotated[
        str | None, typer.Option("--ensemble", help="The control that is drawn: gaussian or kaiming_uniform.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Of a pair: the model before fine-tuning.")] = None,
    tuned: Annotated[str | None, typer.Option("--tuned", help="Of a pair: the model after it.")] = None,
    centred: Annotated[
        bool | None,
        typer.Option(
            "--centred/--uncentred",
            help="Covariance of the activations, or their second moments.",
            show_default="centred",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Id of a run of an experiment (lazy: of a recipe), instead of the model's newest."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    form: FormatOption = "table",
) -> None:
    """Draw a figure of scanned models: a page with tooltips and zoom, or a picture for a paper.

    Examples:

        rmtscan plot --list

        rmtscan plot spectrum --role query --layer 3 -o spectrum.pdf

        rmtscan plot depth --model my-model -o depth.html
    """
    from scanner.figures import FIGURES, find_figure, save
    from scanner.figures.rendering import check_path
    from scanner.store import open_store

    if listed and figure is None:
        import pyarrow as pa

        known = list(FIGURES.values())
        columns = {"figure": [one.name for one in known], "shows": [one.title for one in known]}
        write(
            pa.table(columns | {"options": [" ".join(f"--{name}" for name in one.parameters) for one in known]}), form
        )
        return
    if figure is None:
        raise typer.BadParameter("name a figure, or use --list to see them", param_hint="FIGURE")
    chosen = find_figure(figure)
    if listed:
        _describe(figure)
        return
    if output is None:
        raise typer.BadParameter("name the file with -o FILE.html, .svg, .png or .pdf", param_hint="--output")
    output = check_path(output)
    given = {
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
    opened = open_store(store) if chosen.needs_store else None
    chart = chosen.draw(opened, interactive=output.suffix.lower() == ".html", **parameters)
    note(f"{chosen.title}: {save(chart, output)}")


def _describe(name: str) -> None:
    from scanner.figures import PARAMETERS, find_figure

    found = find_figure(name)
    print(f"{found.name}: {found.title}\n\n{found.about}\n\nOptions:")
    for parameter in found.parameters:
        print(f"  --{parameter}   {PARAMETERS[parameter]}")
