"""The result of `analyze_model`: the tables of one scan in memory, and what can be done with them."""

from __future__ import annotations

import importlib
import math
import os
import weakref
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from scanner.errors import ConfigError, ScannerError, StoreError
from scanner.memory import notebook
from scanner.memory.private import drop
from scanner.store import Store, open_store
from scanner.store.merging import merge
from scanner.store.tables import SCHEMAS, lists_of_text

if TYPE_CHECKING:
    from scanner.report import Report

Table = Literal["matrices", "vectors", "failures"]
TABLES: tuple[Table, ...] = ("matrices", "vectors", "failures")
"""The tables of a result."""


class ModelAnalysis:
    """The analysis of one model in memory. In a notebook it is shown as a small table by role.

    It is a scan in a store in memory, which is freed with this object: what `save` writes, and what queries, figures and reports
    read, are the same rows.
    """

    def __init__(self, store: Store, scan_id: str) -> None:
        """Take over a store with one committed scan.

        Args:
            store: of `scanner.memory.private`; it is freed with this object.
            scan_id: the scan.
        """
        self._store = store
        self.scan_id: str = scan_id
        """Identity of the weights and of the method: the same for the same model, in every process."""
        row = store.scan_row(scan_id)
        assert row is not None, "a committed scan can be read"
        self._row: dict[str, Any] = row
        self._tables: dict[str, pa.Table] = {}
        weakref.finalize(self, drop, store)

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self._row["model"])

    @property
    def matrices(self) -> pa.Table:
        """One row per matrix (or head, expert): the columns of table `matrices` of a store (docs/tables.md)."""
        return self._table("matrices")

    @property
    def vectors(self) -> pa.Table:
        """One row per singular triplet, sorted as in a store: the columns of table `vectors` (docs/tables.md)."""
        return self._table("vectors")

    @property
    def failures(self) -> pa.Table:
        """One row per matrix that could not be analyzed, with the reason: the columns of table `failures`."""
        return self._table("failures")

    @property
    def skipped(self) -> dict[str, str]:
        """Why each other tensor was not analyzed, by its name."""
        reasons = lists_of_text(self._row["skipped_tensors"])
        return {tensor: reason for reason, tensors in reasons.items() for tensor in tensors}

    def to_pandas(self, table: Table = "matrices") -> Any:
        """Return a table as a `pandas.DataFrame`.

        Args:
            table: `matrices`, `vectors` or `failures`.

        Raises:
            ConfigError: there is no such table.
            ScannerError: pandas is not installed.
        """
        found = self._named(table)
        _library("pandas", "to_pandas")
        return found.to_pandas()

    def to_polars(self, table: Table = "matrices") -> Any:
        """Return a table as a `polars.DataFrame`.

        Args:
            table: `matrices`, `vectors` or `failures`.

        Raises:
            ConfigError: there is no such table.
            ScannerError: polars is not installed.
        """
        found = self._named(table)
        return _library("polars", "to_polars").from_arrow(found)

    def summary(self) -> dict[str, float | None]:
        """Return a few numbers about the model; means are over its matrices, and None if no matrix has the value.

        Keys: `matrices`, `failed`, `skipped` (numbers of matrices and tensors), `parameters` (entries of the analyzed matrices),
        `singular_values`, `outliers_left`, `outliers_right` (values below and above the bulk), `u_p_mean`, `v_p_mean` (mean
        p-values: 0.5 for random matrices), `u_p_scale_mean`, `v_p_scale_mean` (the same under the scale null),
        `stable_rank_mean`, `alpha_mean` (over the `alpha_fits` matrices in which `alpha` means something), the means of
        WeightWatcher's `ww_alpha_mean`, `ww_alpha_weighted_mean` and `ww_log_norm_mean`, and `seconds` (of computing).
        """
        table = self.matrices
        entries = pc.sum(pc.multiply(table["rows"].cast("int64"), table["cols"].cast("int64"))).as_py()
        smaller = pc.sum(pc.min_element_wise(table["rows"], table["cols"])).as_py()
        fits = table.filter(pc.and_(pc.is_valid(table["alpha"]), pc.is_null(table["alpha_failure"])))
        return {
            "matrices": table.num_rows,
            "failed": self.failures.num_rows,
            "skipped": len(self.skipped),
            "parameters": entries or 0,
            "singular_values": smaller or 0,
            "outliers_left": pc.sum(table["outliers_left"]).as_py() or 0,
            "outliers_right": pc.sum(table["outliers_right"]).as_py() or 0,
            "u_p_mean": mean(table["u_p_mean"]),
            "v_p_mean": mean(table["v_p_mean"]),
            "u_p_scale_mean": mean(table["u_p_scale_mean"]),
            "v_p_scale_mean": mean(table["v_p_scale_mean"]),
            "stable_rank_mean": mean(table["stable_rank"]),
            "alpha_mean": mean(fits["alpha"]),
            "alpha_fits": fits.num_rows,
            **{f"{name}_mean": mean(table[name]) for name in ("ww_alpha", "ww_alpha_weighted", "ww_log_norm")},
            "seconds": pc.sum(table["seconds"]).as_py() or 0.0,
        }

    def query(self, name: str, /, **params: object) -> pa.Table:
        """Run a named query on the result; see `Store.query`."""
        return self._store.query(name, **params)

    def sql(self, text: str, params: Any = None) -> pa.Table:
        """Run one SELECT statement on the views `matrices`, `vectors` and so on; see `Store.sql`."""
        return self._store.sql(text, params)

    def figure(self, name: str, /, *, interactive: bool = True, **parameters: Any) -> Any:
        """Return a figure as an altair chart, which a notebook shows.

        Args:
            name: of a figure, such as `spectrum` or `pvalues_by_role`; `rmtscan plot --list` lists them.
            interactive: for a screen, with tooltips and zoom; False: for print.
            parameters: of the figure, such as `layer=3, role="query"`, and its appearance: `width="85mm"`, `height`, `font_size`,
                `theme="paper"` (see `scanner.figures.Figure.draw`).

        Raises:
            ScannerError: no such figure, parameter, layer or role; the message lists what there is.
        """
        return self._store.figure(name, interactive=interactive, **parameters)

    def report(self, path: str | os.PathLike[str]) -> Report:
        """Write findings, interactive figures and tables to one HTML file, as `rmtscan report` does.

        Args:
            path: the file to write.

        Raises:
            ScannerError: the file cannot be written.
        """
        from scanner.report import write_report

        return write_report(self._store, [], path)

    def save(self, store: str | os.PathLike[str]) -> str:
        """Write the result into a store as a committed scan, whose format and source say that the model was in memory.

        What the store has already is kept: saving twice does nothing.

        Args:
            store: path or URL of the store; created if it does not exist.

        Returns:
            The id of the scan.

        Raises:
            StoreError: the store cannot be written, or other work keeps it busy.
        """
        target = open_store(os.fspath(store), create=True)
        for done in merge(self._store, target):
            if done.state in ("damaged", "busy"):
                raise StoreError(f"{done.table} {done.result!r} cannot be saved into {target.url!r}: {done.problem}")
        return self.scan_id

    def __repr__(self) -> str:
        return (
            f"ModelAnalysis({self.model!r}: {self.matrices.num_rows} matrices, {self.failures.num_rows} failed, "
            f"{len(self.skipped)} tensors skipped)"
        )

    def _repr_html_(self) -> str:
        return notebook.html(self.model, self.matrices, self.failures, self.skipped)

    def _named(self, table: str) -> pa.Table:
        if table not in TABLES:
            raise ConfigError("table", f"is {table!r}: choose from {', '.join(TABLES)}")
        return self._table(table)

    def _table(self, name: str) -> pa.Table:
        if name not in self._tables:
            if name == "vectors":
                columns = SCHEMAS[name].names
                found = self._store.vector_rows(self.scan_id, columns).replace_schema_metadata(None)
            else:
                found = pa.Table.from_pylist(self._store.file_rows(name, self.scan_id), schema=SCHEMAS[name])
            self._tables[name] = found.cast(SCHEMAS[name])
        return self._tables[name]


def mean(values: pa.ChunkedArray) -> float | None:
    """Return the mean of the values that are numbers; None if there are none."""
    numbers = [value for value in values.to_pylist() if value is not None and not math.isnan(value)]
    return math.fsum(numbers) / len(numbers) if numbers else None


def _library(name: str, method: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ScannerError(
            f"{method}() needs {name}, which is not installed: run `pip install {name}`, or use the Arrow table"
        ) from error
