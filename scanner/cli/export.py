"""`rmtscan export`: what was measured in the formats of other tools, one command for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scanner.checkpoint import ROLES
from scanner.checkpoint.model import PRODUCT_ROLES
from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting
from scanner.configuration import option

if TYPE_CHECKING:
    from scanner.store import Store

Model = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="A scanned model: its name or a unique part of it, or the place from which it was scanned."
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="File to write.", show_default="stdout"),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
By = Annotated[
    Literal["snr", "outliers", "p", "p_scale"],
    typer.Option(
        "--by",
        help="What modules are ranked by: Spectrum's signal-to-noise ratio, the share of singular values outside the scale null, "
        "or how far the mean p-value of the vectors is below 0.5 (p_scale: under the scale null).",
    ),
]
#: Defaults of options that some files have no use for.
_TOP, _SPARSITY, _EPSILON = 50.0, 0.7, 0.3
Top = Annotated[float, typer.Option("--top", metavar="PERCENT", help="Percent of the modules of each type.")]


@dataclass(frozen=True, kw_only=True)
class Only:
    """The roles of an export."""

    roles: tuple[str, ...] = option((), metavar="ROLE,...", choices=(*ROLES, *PRODUCT_ROLES))
    """Only these roles; none: all that the tool knows."""


def register(app: typer.Typer) -> None:
    """Add the verb and its commands."""
    group = typer.Typer(cls=options.Group, no_args_is_help=True, rich_markup_mode="rich")
    for name, command in (
        ("spectrum", spectrum),
        ("axolotl", axolotl),
        ("peft", peft),
        ("alphapruning", alphapruning),
        ("csv", csv),
        ("json", json),
        ("card", card),
        ("duckdb", duckdb),
        ("wandb", wandb),
        ("mlflow", mlflow),
    ):
        options.register(group, name, command)
    app.add_typer(
        group, name="export", help="Write what was measured in the formats of other tools; see docs/exports.md."
    )


def spectrum(
    model: Model,
    *,
    output: Output = None,
    by: By = "snr",
    top: Top = _TOP,
    only: Only,
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the parameters to train as Spectrum does: a YAML file with `unfrozen_parameters`.

    With a file FILE.json, the signal-to-noise ratio of every module is written instead, as Spectrum and axolotl's plugin read it.

    Examples:

        rmtscan export spectrum my-model --top 25 -o unfrozen.yaml

        rmtscan export spectrum my-model -o snr_results_my-model.json
    """
    from scanner.export import snr_results
    from scanner.export import spectrum as exported

    opened, name = _opened(store, model)
    if output is not None and output.lower().endswith(".json"):
        if by != "snr":
            raise typer.BadParameter("Spectrum's JSON file has the snr only: write YAML", param_hint="--by")
        if top != _TOP:
            raise typer.BadParameter("Spectrum's JSON file has every module: write YAML", param_hint="--top")
        _write(output, force, lambda: snr_results(opened, name, roles=only.roles))
    else:
        _write(output, force, lambda: exported(opened, name, by=by, top=top, roles=only.roles))


def axolotl(
    model: Model,
    *,
    output: Output = None,
    by: By = "snr",
    top: Top = _TOP,
    only: Only,
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the parameters to train for a configuration of axolotl: `unfrozen_parameters` with patterns of whole names.

    Examples:

        rmtscan export axolotl my-model --by p_scale --top 25 >> config.yaml
    """
    from scanner.export import axolotl as exported

    opened, name = _opened(store, model)
    _write(output, force, lambda: exported(opened, name, by=by, top=top, roles=only.roles))


def peft(
    model: Model,
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder to write.", show_default="the configuration to stdout"
        ),
    ] = None,
    least: Annotated[int, typer.Option("--least", min=1, help="Smallest rank.")] = 1,
    most: Annotated[int, typer.Option("--most", min=1, help="Largest rank.")] = 64,
    alpha: Annotated[float, typer.Option("--alpha", help="Scaling of the adapters: lora_alpha divided by r.")] = 1.0,
    init: Annotated[
        Literal["advised", "default"],
        typer.Option("--init", help="Set init_lora_weights by what was measured, or leave PEFT's default."),
    ] = "advised",
    only: Only,
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write a LoRA configuration for PEFT: the rank of each matrix is its number of singular values outside the scale null.

    The folder has adapter_config.json, which LoraConfig.from_pretrained reads, and advice.json, which says for each matrix whether
    an adapter should begin at its largest, smallest or middle components, and why.

    Examples:

        rmtscan export peft my-model --most 32 -o lora
    """
    from scanner.export import peft as exported
    from scanner.export import writing

    opened, name = _opened(store, model)
    path = None if output is None else writing.check(output, folder=True, force=force)
    with waiting(sys.stderr, "reading the store"):
        found = exported(opened, name, roles=only.roles, least=least, most=most, alpha=alpha, init=init)
    files = found.files()
    if path is None:
        print(files["adapter_config.json"], end="")
    else:
        writing.write_folder(path, files)
        note(f"{path}: {', '.join(files)}")
    for line in found.left_out:
        note(line)
    advice = found.advice["model"]
    note(f"init_lora_weights {advice['init_lora_weights']!r} ({advice['components']} components): {advice['reason']}")


def alphapruning(
    model: Model,
    *,
    output: Output = None,
    sparsity: Annotated[float, typer.Option("--sparsity", help="Mean sparsity over all parameters.")] = _SPARSITY,
    epsilon: Annotated[
        float, typer.Option("--epsilon", help="Half of the range of sparsities, relative to the mean.")
    ] = _EPSILON,
    ww_metric: Annotated[
        Literal["alpha_peak", "alpha_mid"],
        typer.Option(
            "--ww-metric", help="Where the power law begins: by the best fit, or at the middle of the spectrum."
        ),
    ] = "alpha_peak",
    only: Only,
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the sparsity of every block as AlphaPruning assigns it: blocks with a heavier tail are pruned less.

    With a file FILE.npy, the alpha of every module is written instead, as AlphaPruning reads it from its --ww_metric_cache.

    Examples:

        rmtscan export alphapruning my-model --sparsity 0.7 -o sparsities.json

        rmtscan export alphapruning my-model -o cache/alpha_peak.npy
    """
    from scanner.export import alpha_values
    from scanner.export import alphapruning as exported

    opened, name = _opened(store, model)
    if output is not None and output.lower().endswith(".npy"):
        if (sparsity, epsilon) != (_SPARSITY, _EPSILON):
            raise typer.BadParameter(
                "a file .npy has the alphas, without sparsities: write JSON", param_hint="--sparsity"
            )
        _write(output, force, lambda: alpha_values(opened, name, ww_metric=ww_metric, roles=only.roles))
    else:
        _write(
            output,
            force,
            lambda: exported(opened, name, sparsity=sparsity, epsilon=epsilon, ww_metric=ww_metric, roles=only.roles),
        )


Rows = Annotated[
    Literal["matrices", "vectors"], typer.Option("--table", help="One row per matrix, or per singular triplet.")
]


def csv(
    model: Model,
    *,
    output: Output = None,
    table: Rows = "matrices",
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the rows of a model as CSV without infinity and NaN: such values are empty.

    Examples:

        rmtscan export csv my-model --table vectors -o vectors.csv
    """
    from scanner.export import flat_csv

    opened, name = _opened(store, model)
    _write(output, force, lambda: (flat_csv(opened, name, table=table), ()))


def json(
    model: Model,
    *,
    output: Output = None,
    table: Rows = "matrices",
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the rows of a model as JSON without infinity and NaN: such values are null.

    Examples:

        rmtscan export json my-model -o matrices.json
    """
    from scanner.export import flat_json

    opened, name = _opened(store, model)
    _write(output, force, lambda: (flat_json(opened, name, table=table), ()))


def card(
    model: Model,
    *,
    output: Output = None,
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write a section for the card of a model on the Hub: Markdown with a badge and a table by role.

    Examples:

        rmtscan export card org/model >> README.md
    """
    from scanner.export import model_card

    opened, name = _opened(store, model)
    _write(output, force, lambda: (model_card(opened, name), ()))


def duckdb(
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="File to write.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    force: Force = False,
) -> None:
    """Write the views of a store into one DuckDB file with tables, which any DuckDB client opens.

    Examples:

        rmtscan export duckdb -o results.duckdb

        duckdb results.duckdb "from matrices select role, count(*) group by all"
    """
    from scanner.cli.progress import steps
    from scanner.export import writing
    from scanner.store import open_store
    from scanner.store.duckdb_file import write_duckdb
    from scanner.store.tables import views

    path = writing.check(output, force=force)
    begun: list[str] = []
    with open_store(store) as opened, steps(sys.stderr, "writing") as progress:

        def begin(name: str) -> None:
            begun.append(name)
            progress(len(begun), len(views()) + 1)

        written = write_duckdb(opened, path, progress=begin)
    filled = ", ".join(f"{one.name} {one.rows:,}" for one in written if one.rows and not one.name.startswith("all_"))
    note(f"{path}: {path.stat().st_size:,} bytes; rows: {filled or 'none'}")


def wandb(
    model: Model,
    *,
    project: Annotated[str, typer.Option("--project", help="Project of the run.")] = "rmtscan",
    entity: Annotated[
        str | None, typer.Option("--entity", help="User or team.", show_default="that of the account")
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(
            "--offline",
            metavar="DIR",
            help="Write the run into this folder, from which `wandb sync` uploads it.",
            show_default="log to the server that is configured",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Log a scan as a run of Weights & Biases: report, tables and card as an artifact, p-values and outliers by role as summary.

    Needs the extra `wandb`. WANDB_API_KEY, WANDB_BASE_URL and WANDB_MODE have their usual meaning.

    Examples:

        rmtscan export wandb my-model --project checkpoints

        rmtscan export wandb my-model --offline runs
    """
    from scanner.export import tracking

    tracking.client("wandb")  # before any work
    _track(
        store, model, lambda *logged: tracking.log_to_wandb(*logged, project=project, entity=entity, offline=offline)
    )


def mlflow(
    model: Model,
    *,
    experiment: Annotated[str, typer.Option("--experiment", help="Experiment of the run.")] = "rmtscan",
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            help="Tracking server, database (sqlite:///runs.db) or folder (file:./mlruns).",
            show_default="MLFLOW_TRACKING_URI, or what MLflow does without it",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Log a scan as a run of MLflow: report, tables and card as artifacts, p-values and outliers by role as metrics.

    Needs the extra `mlflow`.

    Examples:

        rmtscan export mlflow my-model --uri http://localhost:5000

        rmtscan export mlflow my-model --uri file:./mlruns
    """
    from scanner.export import tracking

    tracking.client("mlflow")  # before any work
    _track(store, model, lambda *logged: tracking.log_to_mlflow(*logged, experiment=experiment, uri=uri))


def _track(store: str, model: str, log: Callable[[Path, dict[str, float], str], str]) -> None:
    """Write report, tables and card of a scan into a temporary folder, and log it."""
    import tempfile

    from scanner.export import tracking
    from scanner.report import write_report

    opened, name = _opened(store, model)
    with tempfile.TemporaryDirectory(prefix="rmtscan-") as folder:
        with waiting(sys.stderr, "writing report and tables"):
            tracking.write_tables(opened, name, Path(folder))
            write_report(opened, [name], Path(folder) / "report.html")
            files, metrics = sorted(Path(folder).iterdir()), tracking.summary(opened, name)
        with waiting(sys.stderr, "logging the run"):
            where = log(Path(folder), metrics, name)
    note(f"{where}: {len(files)} files, {len(metrics)} metrics")


def _opened(store: str, model: str) -> tuple[Store, str]:
    from scanner.cli.choosing import whole_name
    from scanner.report.models import choose_models
    from scanner.store import open_store

    with waiting(sys.stderr, "reading the store"):
        opened = open_store(store)
        return opened, choose_models(opened, [whole_name(opened, model)])[0]


def _write(output: str | None, force: bool, make: Callable[[], tuple[str | bytes, Sequence[str]]]) -> None:
    """Write to a file, which is checked before anything is computed, or to stdout; then say what was left out."""
    from scanner.export import writing

    path = None if output is None else writing.check(output, force=force)
    with waiting(sys.stderr, "reading the store"):
        content, left_out = make()
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content if isinstance(content, bytes) else content.encode())
    else:
        writing.write(path, content)
        note(f"{path}: {len(content):,} bytes")
    for line in left_out:
        note(line)
