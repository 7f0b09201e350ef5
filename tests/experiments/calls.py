"""Short calls of experiments: arguments become a configuration, and facts of the report become attributes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from scanner.checkpoint import Selection
from scanner.experiments import Report, run_experiment
from scanner.experiments import ablate as ablating
from scanner.experiments import activations as measuring
from scanner.experiments import finetune as tuning
from scanner.experiments import lazy_learning as learning
from scanner.experiments import slicing as cutting
from scanner.experiments.nlp.options import MeasureOptions
from scanner.experiments.nlp.texts import TextSource


class Found:
    """A report whose facts are also attributes."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @property
    def points(self) -> int:
        """Results that are in the store."""
        return self.report.total - len(self.report.failed)

    def __getattr__(self, name: str) -> Any:
        return self.report.facts[name] if name in self.report.facts else getattr(self.report, name)


def words(text: TextSource) -> dict[str, Any]:
    where = None if text.where is None else "=".join(text.where)
    return {"text": text.reference, "column": text.column, "second": text.second, "where": where}


def request(*, text: TextSource, **more: Any) -> MeasureOptions:
    return MeasureOptions(**words(text), label=text.label, **more)


def call(name: str, config: Any, more: dict[str, Any]) -> Found:
    options = {key: more[key] for key in ("store", "pool", "force", "observer") if key in more}
    return Found(run_experiment(name, config, **options))


def split(more: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in more.items() if key not in ("store", "pool", "force", "observer")}


def ablate(reference: str, wanted: MeasureOptions, **more: Any) -> Found:
    return call("ablate", ablating.Config(model=reference, **vars(wanted), **split(more)), more)


def slicing(
    reference: str, wanted: MeasureOptions, *, orders: Sequence[str] = ("before", "after"), **more: Any
) -> Found:
    order: Any = "both" if len(orders) == 2 else orders[0] if orders else "none"
    calibration = more.pop("calibration", None)
    if calibration is not None:
        more["calibration"] = calibration.reference
    return call("slicing", cutting.Config(model=reference, order=order, **vars(wanted), **split(more)), more)


def measure_activations(reference: str, text: TextSource, *, selection: Selection | None = None, **more: Any) -> Found:
    chosen = selection or Selection()
    config = measuring.Config(model=reference, **words(text), roles=chosen.only, layers=chosen.layers, **split(more))
    return call("activations", config, more)


def finetune(
    base: str, text: TextSource, *, orders: Sequence[Any] | None = None, recipe: Any = None, **more: Any
) -> Found:
    given = split(more)
    if recipe is not None:
        given |= {"epochs": recipe.epochs, "batch": recipe.batch, "lr": recipe.rate}
    if orders is not None:
        given["order"] = tuple(orders)
    for old, new in (("length", "window"), ("folder", "keep")):
        if old in given:
            given[new] = given.pop(old)
    return call("finetune", tuning.Config(model=base, **words(text), label=text.label, **given), more)


def lazy_learning(*, regimes: Sequence[Any] | None = None, training: Any = None, **more: Any) -> Found:
    given = split(more)
    if training is not None:
        given |= {"epochs": training.epochs, "batch": training.batch, "lr": training.rate}
    if regimes is not None:
        given["alpha"] = tuple(one.alpha for one in regimes if not one.frozen)
        given["frozen"] = next((one.frozen for one in regimes if one.frozen), ())
    return call("lazy-learning", learning.Config(**given), more)


def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run tasks one after the other in this process; the list collects the tasks that were run."""
    ran: list[Any] = []

    def run_tasks(
        worker_class: type,
        tasks: Sequence[Any],
        options: object,
        *,
        arguments: tuple[Any, ...],
        on_start: Callable[[dict[str, Any]], None],
        on_done: Callable[[Any, Any], Any],
        **_: object,
    ) -> None:
        on_start({"workers": 1})
        worker = worker_class(*arguments)
        queue = [*tasks]
        while queue:
            task = queue.pop(0)
            ran.append(task)
            queue[:0] = on_done(task, worker.run(task)) or []

    monkeypatch.setattr("scanner.engine.worker.granted_device", lambda: "cpu")
    monkeypatch.setattr("scanner.engine.run.ray_session", lambda options: nullcontext())
    monkeypatch.setattr("scanner.engine.run.run_tasks", run_tasks)
    return ran


def environment(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(row["environment"]))
    return found
