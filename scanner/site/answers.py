"""What a store says about many models at once: every statement and named query is asked once, and its rows are split by model.

A question about one model costs as much as one about fifty: most of its time opens files and plans, little of it reads rows. The
number of models that are asked about together is limited by the memory that their answers take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from scanner.figures.selection import rows_of
from scanner.report.page import MODEL_QUERIES
from scanner.report.statements import rows_of as report_rows
from scanner.site.models import Model, Pair
from scanner.store import Store

_SQL = Path(__file__).resolve().parent / "sql"

Row = Mapping[str, Any]

MODELS = 64
"""Most models that are asked about together."""
MATRICES = 20_000
"""Most matrices of these; a single model may have more."""
TRIPLETS = 2_000_000
"""Most singular triplets of these: some 100 MB of columns; a single model may have more."""
_MOST_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What a store says about one pair of models, that was compared last of those with these names."""

    comparison: Row
    """Row of statement `comparisons` of the report."""
    matrices: Sequence[Row]
    """Rows of statement `pairs` of the report."""
    deciles: Sequence[Row]
    """Rows of query `pair_by_decile`."""
    roles: Sequence[Row]
    """Rows of query `pair_summary`."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a store says about one model."""

    overview: Row | None
    """Row of query `fleet_overview`; None if the model left the store."""
    roles: Sequence[Row]
    """Rows of query `role_table`."""
    scans: Sequence[Row]
    """Rows of statement `scans` of the report, newest first."""
    failures: Sequence[Row]
    """Rows of statement `failures` of the report."""
    matrices: Sequence[Row]
    """Rows of statement `matrices` of the report: whole matrices in the order of the forward pass."""
    slices: Sequence[Row]
    """Rows of the same statement: slices and products of attention heads."""
    deciles: Sequence[Row]
    """Rows of statement `deciles`."""
    asked: Mapping[str, Sequence[Row]]
    """Rows of the queries in `scanner.report.page.MODEL_QUERIES`."""
    vectors: pa.Table
    """Rows of statement `vectors`."""
    changed: Sequence[Changed]
    """What fine-tuning changed, for each comparison in which it is the tuned model."""


def batches(models: Sequence[Model]) -> Iterator[list[Model]]:
    """Yield the models in groups that are asked about together, in their order.

    A difference is a group of its own, because named queries answer about one only if they are asked for it.
    """
    batch: list[Model] = []
    for model in models:
        full = batch and (
            model.difference
            or batch[-1].difference
            or len(batch) >= MODELS
            or sum(one.matrices for one in batch) + model.matrices > MATRICES
            or sum(one.triplets for one in batch) + model.triplets > TRIPLETS
        )
        if full:
            yield batch
            batch = []
        batch.append(model)
    if batch:
        yield batch


def answers(store: Store, models: Sequence[Model]) -> dict[str, Answers]:
    """Return what a store says about each of these models, by name.

    Raises:
        StoreError: the store cannot be read.
    """
    own = store.narrowed([scan for model in models for scan in model.scans])
    try:
        return _answers(own, models, _changed(store, models))
    finally:
        own.close()


def _answers(store: Store, models: Sequence[Model], changed: Mapping[Pair, Changed]) -> dict[str, Answers]:
    # A difference is left out unless it is named.
    one = models[0].name if len(models) == 1 else None
    names = {model.name for model in models}

    def split(rows: Sequence[Row]) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {name: [] for name in names}
        for row in rows:
            if row["model"] in names:
                found[row["model"]].append(row)
        return found

    def queried(query: str, **given: object) -> dict[str, list[Row]]:
        return split(store.query(query, model=one, **given).to_pylist())

    overview, roles = queried("fleet_overview"), queried("role_table")
    asked = {query: queried(query, **given) for query, given in MODEL_QUERIES.items()}
    scans = split(report_rows(store, "scans", model=one))
    failures = split(report_rows(store, "failures", model=one, most=_MOST_FAILURES))
    matrices, slices = (split(report_rows(store, "matrices", model=one, heads=heads)) for heads in (False, True))
    deciles = split(rows_of(store, _SQL / "deciles.sql", model=one))
    vectors = store.sql((_SQL / "vectors.sql").read_text("utf-8"), {"model": one})
    places = _places(vectors, names)
    return {
        model.name: Answers(
            overview=next(iter(overview[model.name]), None),
            roles=roles[model.name],
            scans=scans[model.name],
            failures=failures[model.name],
            matrices=matrices[model.name],
            slices=slices[model.name],
            deciles=deciles[model.name],
            asked={query: found[model.name] for query, found in asked.items()},
            vectors=vectors.slice(*places[model.name]),
            changed=[changed[pair] for pair in model.pairs if pair.tuned == model.name and pair in changed],
        )
        for model in models
    }


def _places(table: pa.Table, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the first row and the number of rows of each model; the rows are sorted by model."""
    found = dict.fromkeys(names, (0, 0))
    start = 0
    for name, rows in groupby(table["model"].to_pylist()):
        count = sum(1 for _ in rows)
        if name in found:
            found[name] = (start, count)
        start += count
    return found


def _changed(store: Store, models: Sequence[Model]) -> dict[Pair, Changed]:
    """Return what fine-tuning changed in each of these models, by pair."""
    pairs = list(dict.fromkeys(pair for model in models for pair in model.pairs if pair.tuned == model.name))
    found: dict[Pair, Changed] = {}
    begun, size = 0, 0
    for number, pair in enumerate(pairs):
        size += pair.matrices
        if number + 1 == len(pairs) or size + pairs[number + 1].matrices > MATRICES:
            found |= _changed_together(store, pairs[begun : number + 1])
            begun, size = number + 1, 0
    return found


def _changed_together(store: Store, pairs: Sequence[Pair]) -> dict[Pair, Changed]:
    # A comparison may belong to scans of other revisions than the newest.
    own = store.narrowed(
        {scan for pair in pairs for scan in pair.scans}, {comparison for pair in pairs for comparison in pair.ids}
    )
    try:
        compared: dict[tuple[str, str], Row] = {}
        for comparison in report_rows(own, "comparisons"):
            compared.setdefault((comparison["base_model"], comparison["tuned_model"]), comparison)
        matrices: dict[int, list[Row]] = {}
        for matrix in report_rows(own, "pairs", base=None, tuned=None, model_pair=None):
            matrices.setdefault(matrix["model_pair"], []).append(matrix)
        deciles, roles = (_by_pair(own.query(query).to_pylist()) for query in ("pair_by_decile", "pair_summary"))
    finally:
        own.close()
    return {
        pair: Changed(
            comparison=row,
            matrices=matrices.get(row["model_pair"], []),
            deciles=deciles.get(_pair_of(row), []),
            roles=roles.get(_pair_of(row), []),
        )
        for pair in pairs
        if (row := compared.get((pair.base, pair.tuned))) is not None
    }


def _pair_of(row: Row) -> tuple[str, ...]:
    return row["base_model"], row["tuned_model"], row["base_revision"], row["tuned_revision"]


def _by_pair(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(_pair_of(row), []).append(row)
    return found
