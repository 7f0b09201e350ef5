"""What the callbacks share: when a model in training is measured, within a budget of time, and which numbers are logged."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from scanner.checkpoint import Checkpoint, Inventory, list_matrices
from scanner.checkpoint.memory import identity_of, opened_model
from scanner.checkpoint.modules import check_whole, unwrapped
from scanner.engine import Method
from scanner.engine.ahead import nothing_to_scan
from scanner.engine.plan import expected_seconds
from scanner.engine.work import Observer
from scanner.errors import CheckpointError, ConfigError, ScannerError
from scanner.memory.analyzing import scan_opened
from scanner.memory.options import method_of
from scanner.memory.private import drop, private_store
from scanner.store import Store, open_store
from scanner.store.tables import SCHEMAS, metric_columns

METRICS = ("u_p_mean", "v_p_mean", "outliers_left", "outliers_right", "stable_rank", "spectral_norm")
"""Columns of table `matrices` that are logged unless others are named."""

#: Units of cost per second that one core is trusted to do before the first measurement; those of nodes in docs/cluster.md do 2e10.
_CAUTIOUS_RATE = 5e9


class Monitor:
    """Measures a model every so many steps: logs means by role, and keeps the rows in a store.

    The rows of step 500 are those of the scan `NAME@step-500`, so that `rmtscan query family_trend --param model=NAME` shows the
    training. Within the budget, a measurement is made if it will not take more than its share of the time since training began, as
    long as the previous one took. Otherwise it is left out, and the steps thin out by themselves.
    """

    def __init__(
        self,
        *,
        store: str | os.PathLike[str] | None = None,
        name: str | None = None,
        every: int = 500,
        metrics: Sequence[str] = METRICS,
        by_layer: bool = False,
        budget: float | None = 0.05,
        prefix: str = "rmt",
        method: Method | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        """Check the options; nothing is measured yet.

        Args:
            store: path or URL of the store that keeps the rows; None: values are only logged.
            name: name of the model in the store; None: that in its config, or of its class.
            every: number of optimizer steps between two measurements.
            metrics: columns of table `matrices` (docs/tables.md) that are logged, as means over the matrices of a role.
            by_layer: log each layer by itself.
            budget: largest share of the time since the beginning of training, between 0 and 1; None: no limit.
            prefix: first part of the names of logged values: `rmt/query/v_p_mean`.
            method: what is computed; None: the defaults, with `options`.
            clock: returns the time in seconds.
            options: fields of `Method` and `Selection` instead of `method`, such as `roles=("query", "value")`, `layers=(0, 11)`.

        Raises:
            ConfigError: an option has a value that is not accepted.
        """
        if type(every) is not int or every < 1:
            raise ConfigError("every", f"must be a number of steps of at least 1, got {every!r}")
        number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if budget is not None and not (number and 0 < budget <= 1):
            raise ConfigError("budget", f"must be a share of the time of training above 0 and up to 1, got {budget!r}")
        self.metrics = tuple([metrics] if isinstance(metrics, str) else metrics)
        known = [field.name for field in SCHEMAS["matrices"] if _is_number(field.type)]
        wrong = [metric for metric in self.metrics if metric not in known]
        if wrong or not self.metrics:
            told = f"has {wrong[0]!r}, which is no number" if wrong else "is empty: name one or more"
            raise ConfigError("metrics", f"{told} of table `matrices`: choose from {', '.join(known)}")
        spectral = [metric for metric in self.metrics if metric in metric_columns("matrix")]
        self.method = method_of(method, options if method is not None else {"metrics": tuple(spectral), **options})
        without = _without(self.method)
        if self.metrics == METRICS:
            self.metrics = tuple(metric for metric in METRICS if metric not in without)
        missing = [metric for metric in self.metrics if metric in without]
        if missing:
            raise ConfigError(
                "metrics", f"has {missing[0]!r}, which this method does not compute: {without[missing[0]]}"
            )
        self._url = None if store is None else os.fspath(store)
        self._name, self._prefix, self._by_layer = name, prefix, by_layer
        self._every, self._budget, self._clock = every, budget, clock
        self._store: Store | None = None
        self._began: float | None = None
        self._last: int | None = None
        self.spent = 0.0
        """Seconds that measurements have taken."""
        self.expected = 0.0
        """Seconds that the next one is expected to take."""
        self.skipped = 0
        """Number of measurements that were left out to stay within the budget."""

    def check(self, model: object) -> None:
        """Check that this process has whole weights. Each process has to call it: one that stops alone leaves the others waiting.

        Raises:
            CheckpointError: the model is sharded.
        """
        if isinstance(model, torch.nn.Module):
            check_whole(unwrapped(model))

    def begin(self, model: object) -> None:
        """Check that there is something to measure, and start the clock; called again, it does nothing.

        Raises:
            CheckpointError: the model has no matrix that can be measured; the message says why.
            StoreError: the store cannot be written.
        """
        if self._began is not None:
            return
        with opened_model(model, name=self._name) as checkpoint:
            inventory = self._inventory(checkpoint)
            shapes = [(ref.rows, ref.cols) for ref in inventory.matrices]
        self.expected = sum(expected_seconds(rows, cols, _CAUTIOUS_RATE) for rows, cols in shapes)
        if self._url is not None:
            self._store = open_store(self._url, create=True)
        self._began = self._clock()

    def step(self, model: object, step: int) -> dict[str, float]:
        """Measure the model after an optimizer step, if it is its turn and the budget allows it.

        A measurement that fails, for example because the store is full, is reported as a warning: training goes on.

        Args:
            model: the model that was given to `begin`.
            step: number of optimizer steps so far.

        Returns:
            The values to log, by name; empty if nothing was measured.
        """
        if self._began is None:
            self.begin(model)
        if step < 1 or step % self._every or step == self._last:
            return {}
        self._last = step
        started = self._clock()
        if not self._affordable(started):
            self.skipped += 1
            return {}
        try:
            values = self._measure(model, step)
        except ScannerError as error:
            warnings.warn(f"step {step} was not measured: {error}", UserWarning, stacklevel=2)
            values = {}
        self.expected = self._clock() - started
        self.spent += self.expected
        return values

    def _affordable(self, now: float) -> bool:
        if self._budget is None:
            return True
        assert self._began is not None
        return self.spent + self.expected <= self._budget * (now - self._began + self.expected)

    def _inventory(self, checkpoint: Checkpoint) -> Inventory:
        found = list_matrices(checkpoint, self.method.selection, compare_bytes=False)
        if not found.matrices:
            raise CheckpointError(nothing_to_scan(checkpoint, found))
        return found

    def _measure(self, model: object, step: int) -> dict[str, float]:
        revision = f"step-{step}"
        with opened_model(model, name=self._name) as checkpoint:
            inventory = self._inventory(checkpoint)
            # Only what is measured is hashed; the label tells apart steps between which nothing of it changed.
            weights = [weight for ref in inventory.matrices for weight in ref.weights]
            entries = [
                entry for one in weights for entry in (one.entry, *(companion for _, companion in one.companions))
            ]
            labeled = identity_of(checkpoint, entries, label=f"{checkpoint.model}@{revision}")
            store = self._store or private_store()
            try:
                scan_id = scan_opened(replace(labeled, revision=revision), store, self.method, observer=Observer())
                rows = store.file_rows("matrices", scan_id)
                failed = len(store.file_rows("failures", scan_id, ["tensor"]))
            finally:
                if store is not self._store:
                    drop(store)
        return self._values(rows) | ({f"{self._prefix}/failed": float(failed)} if failed else {})

    def _values(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Return the means over the matrices of each role, or of each role and layer."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            place = [row["stack"] or "", f"layer{row['layer']}"] if self._by_layer and row["layer"] is not None else []
            groups.setdefault("/".join(filter(None, [*place, row["role"]])), []).append(row)
        found: dict[str, float] = {}
        for group, own in groups.items():
            for metric in self.metrics:
                # A fit that is rejected counts in no mean.
                fitted = [row for row in own if not (metric.startswith("alpha") and row.get(f"{metric}_failure"))]
                numbers = [
                    float(row[metric]) for row in fitted if row[metric] is not None and not math.isnan(row[metric])
                ]
                if numbers:
                    found[f"{self._prefix}/{group}/{metric}"] = math.fsum(numbers) / len(numbers)
        return found


def _without(method: Method) -> dict[str, str]:
    """Return the columns of `matrices` that a method leaves empty, each with the reason."""
    found: dict[str, str] = {}
    for field in SCHEMAS["matrices"]:
        name = field.name
        if name.startswith(("u_p_", "v_p_")) and method.values_only:
            found[name] = "`values_only` leaves out the vectors"
        elif "scale" in name and method.scale == "none":
            found[name] = "there is no scale null"
        elif name.startswith("heads_p") and not method.head_mass:
            found[name] = "set `head_mass`"
    columns = metric_columns("matrix")
    return found | {
        column: "it is not in `metrics` of it" for column in columns if columns[column] not in method.metrics
    }


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
