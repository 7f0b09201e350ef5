"""The task of a worker: one training with one seed, and the points that are measured on its result."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from scanner.checkpoint import MatrixRef
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.finetune_training import NoClassifier, Recipe, Trained, correct, keep, new_classifier, train
from scanner.experiments.labels import Dataset
from scanner.experiments.models import ModelPlace, load_tokenizer
from scanner.experiments.placing import Placed, place_matrices
from scanner.experiments.removal import FactorCache, RemovalSet, removed
from scanner.experiments.running import Failure, Resident, one_line
from scanner.experiments.tokens import BATCH_TOKENS, Batches

Order = Literal["none", "remove-first", "tune-first"]
ORDERS: tuple[Order, ...] = get_args(Order)
#: Bytes of decompositions that a worker keeps of its base, for the next decile.
_FACTORS = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured accuracy: which order, which decile (None for `none`), and the seed."""

    order: Order
    decile: int | None
    seed: int

    @property
    def label(self) -> str:
        """`remove-first-decile10-seed0`."""
        middle = "" if self.decile is None else f"-decile{self.decile}"
        return f"{self.order}{middle}-seed{self.seed}"


def point_file(run_id: str, point: Point, roles: str) -> str:
    """Name of a point's file, and of the folder of its model: the series, the point, and the roles if they are not all."""
    of_roles = "" if point.decile is None or roles == "all" else f"-{roles.replace(',', '.')}"
    return f"{run_id}-{point.label}{of_roles}"


@dataclass(frozen=True, kw_only=True)
class FineTuneTask:
    """One training, from a base without the decile `first` (None: as it is), and the points that are measured on its result."""

    run_id: str
    place: ModelPlace
    config: Any
    """The model's configuration as transformers has it: of some formats it takes long to be read."""
    pooler: bool
    """Whether the checkpoint holds the pooler of its body."""
    refs: tuple[MatrixRef, ...]
    """The matrices that deciles are taken from."""
    data: Dataset
    recipe: Recipe
    seed: int
    first: int | None
    points: tuple[Point, ...]
    roles: str
    """Of the matrices, as in column `roles`."""
    folder: str | None
    """Where the models of its points are kept, each in a folder with the name of the point's file."""

    @property
    def name(self) -> str:
        """The series and the first of its points."""
        return f"{self.run_id}/{self.points[0].label}"

    def file(self, point: Point) -> str:
        """As `point_file`."""
        return point_file(self.run_id, point, self.roles)

    @property
    def cost(self) -> float:
        """Passes through the model: a step of training is worth three."""
        return 3.0 * self.recipe.epochs * len(self.data.train) + len(self.points) * len(self.data.test)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The accuracy at a point; `seconds` include its training where no point before it had it done."""

    point: Point
    accuracy: float
    seconds: float
    removed: int
    """Singular values."""
    batch_tokens: int | None
    """Tokens that batches were cut down to for measuring, None while all fitted."""
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class FineTuneOutcome:
    """What came of a task: points that were measured, and why the others were not."""

    measured: tuple[Measured, ...] = ()
    trained: Trained | None = None
    device: str = ""
    failure: Failure | None = None


class FineTuneWorker(Resident):
    """An actor that keeps the base and its decompositions, and trains one copy at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._factors: tuple[object, FactorCache] | None = None

    def run(self, task: FineTuneTask) -> FineTuneOutcome:
        """Carry out a task; errors are outcomes."""
        with self.computing():
            measured: list[Measured] = []
            try:
                body = self.model(task.place, "features", "float32", task.config)
            except Exception as error:  # no other training would fare better
                return self._failed(measured, Failure(message=one_line(error), hopeless=True))
            try:
                trained = fine_tune(body, task, self._cache(task), measured)
            except Exception as error:  # whatever it is, the other points go on, and a line says what it was
                hopeless = isinstance(error, NoClassifier)
                return self._failed(measured, Failure(message=one_line(error), hopeless=hopeless))
            return FineTuneOutcome(measured=tuple(measured), trained=trained, device=self._device)

    def _failed(self, measured: list[Measured], failure: Failure) -> FineTuneOutcome:
        return FineTuneOutcome(measured=tuple(measured), device=self._device, failure=failure)

    def _cache(self, task: FineTuneTask) -> FactorCache:
        if self._factors is None or self._factors[0] != task.place:
            self._factors = (task.place, FactorCache(_FACTORS))
        return self._factors[1]


def fine_tune(body: Any, task: FineTuneTask, of_base: FactorCache, measured: list[Measured]) -> Trained:
    """Train a classifier on a copy of `body` and measure it at every point of a task; `measured` grows as it goes on.

    Raises:
        ScannerError: the model is no classifier of texts, lacks a matrix, diverges, does not fit, or cannot be kept.
    """
    clock = time.perf_counter()
    data = task.data
    model = new_classifier(body, data.classes, data.padding, task.seed, pooler=task.pooler)
    placed = _placed(model, task) if any(point.decile is not None for point in task.points) else []
    before = nullcontext((0, 0)) if task.first is None else removed(model, placed, _decile(task.first), of_base)
    # What is removed before stays removed for training: leaving the context would bring the base's weights back.
    with before as (gone, _):
        trained = train(model, data.train, data.padding, task.recipe, task.seed)
        of_tuned = FactorCache(_FACTORS)
        batches = Batches(data.padding, BATCH_TOKENS[model.device.type])
        for point in task.points:
            after = (
                removed(model, placed, _decile(point.decile), of_tuned)
                if point.order == "tune-first" and point.decile is not None
                else nullcontext((gone, 0))
            )
            with after as (taken, _):
                one = Measured(
                    point=point,
                    accuracy=float(correct(model, data.test, batches).mean()),
                    seconds=time.perf_counter() - clock,
                    removed=taken,
                    batch_tokens=batches.smallest,
                    checkpoint=None,
                )
                measured.append(one)
                if task.folder is not None:
                    folder = Path(task.folder) / task.file(point)
                    keep(model, load_tokenizer(task.place), folder)
                    measured[-1] = replace(one, checkpoint=str(folder))
            clock = time.perf_counter()
    return trained


def _placed(model: Any, task: FineTuneTask) -> list[Placed]:
    placed, lacking = place_matrices(model, task.refs)
    if lacking:
        tensor, reason = next(iter(lacking.items()))
        raise ScannerError(
            f"no decile can be removed from {len(lacking)} matrices: {printable(tensor)}, {reason}; name other --roles"
        )
    return placed


def _decile(decile: int) -> RemovalSet:
    return RemovalSet(name=f"decile:{decile}")
