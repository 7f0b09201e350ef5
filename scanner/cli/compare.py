"""`rmtscan compare`: compare a base model and its fine-tune, matrix by matrix and vector by vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import Print, TableOptions, printer
from scanner.cli.choosing import stored_reference
from scanner.cli.logs import LogFormatOption
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.run import run_verb
from scanner.cli.tables import view_of
from scanner.engine.method import Method
from scanner.engine.options import PoolOptions, ReadOptions

if TYPE_CHECKING:
    from scanner.engine import ComparisonReport, Observer

#: Number of tensors that the summary names; the tables have all of them.
_NAMED = 8


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "compare", compare, without=("values_only",))


def compare(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The pretrained model: a reference as for scan, or a scanned model.")
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned model.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    method: Method | None,
    how: ReadOptions,
    pool: PoolOptions,
    table: TableOptions,
    log_format: LogFormatOption = None,
) -> None:
    """Compare a pretrained model with its fine-tune: what changed, how much, and in which singular vectors.

    Both models and their difference are scanned if the store does not have them. Matrices are matched by stack, layer, role, head
    and expert; matrices without a counterpart are listed. Prints one line per role; the tables pairs, pair_vectors and
    pair_subspaces have the rest (queries pair_changes, pair_shift, pair_by_decile, pair_ranks, pair_intruders).

    Models that are named as in the store, or by a part of the name that no other model has, are compared as they were scanned,
    unless an option selects matrices or a method.

    Examples:

        rmtscan compare ./base ./tuned

        rmtscan compare org/base org/tuned --roles query,value --store s3://bucket/results
    """
    from scanner.store.queries import find_query

    query = find_query("pair_summary")
    show = printer(table, view_of(query), columns=[column.name for column in query.columns], rows=None)

    def call(observer: Observer) -> ComparisonReport:
        from scanner.engine.compare import compare as run_comparison

        return run_comparison(
            stored_reference(store, base),
            stored_reference(store, tuned),
            store=store,
            method=method,
            pool=pool,
            force=how.force,
            download=how.download,
            observer=observer,
        )

    run_verb(call, lambda report: _show(report, show), store=store, log_format=log_format)


def _show(report: ComparisonReport, show: Print) -> None:
    from scanner.checkpoint.names import printable
    from scanner.store import open_store

    answer = open_store(report.store).query("pair_summary", pair_id=report.pair_id, heads=report.heads)
    show(answer)
    state = "" if report.new else " (already in the store)"
    note(f"{report.matrices} pairs of matrices compared{state}; {len(report.identical)} exactly unchanged")
    if report.change_median is not None:
        note(
            f"  relative change: median {report.change_median:.3g}, largest {report.change_largest:.3g} "
            f"({printable(report.largest_in)})"
        )
    groups = {"exactly unchanged": list(report.identical), **report.unmatched, "FAILED": list(report.failed)}
    for reason, tensors in groups.items():
        if tensors:
            more = f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
            note(f"  {printable(reason)}: {', '.join(printable(name) for name in tensors[:_NAMED])}{more}")
