"""`rmtscan slicing`: which points there are, the actor that projects around the norms, and the call that runs them.

In `ablations`, `set` is `slice:K` (K the decile of eigenvalues that is left out, 1 the smallest) and `roles` says where: `before
norm` or `after norm`; `removed` counts directions over all norms of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scanner.checkpoint import Selection
from scanner.engine import PoolOptions, ScanObserver
from scanner.errors import ScannerError
from scanner.experiments.measures import MeasureRequest, measurement
from scanner.experiments.models import Precision, load_tokenizer, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.points import PointReport, PointRun, PointTask, PointWorker
from scanner.experiments.slicing import DECILES, ORDERS, Order, bases, decile_slice, sliced
from scanner.experiments.texts import TextSource, read_texts
from scanner.experiments.tokens import Batches, Ids, sequences
from scanner.store import open_store

DEFAULT_CALIBRATION = 4096
DEFAULT_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class SlicingTask(PointTask):
    """Measure the model without one tenth of the directions at its norms."""

    calibration: tuple[Ids, ...]
    order: Order
    decile: int

    @property
    def intact(self) -> bool:
        """Never: a tenth is left out."""
        return False

    @property
    def columns(self) -> dict[str, object]:
        """Where, and which tenth."""
        return {"roles": f"{self.order} norm", "set": f"slice:{self.decile}"}


class SlicingWorker(PointWorker):
    """An actor that keeps the bases of one order."""

    def __init__(self) -> None:
        super().__init__()
        self._bases: tuple[tuple[str, Order], dict[str, torch.Tensor]] | None = None

    def get_ready(self, model: Any, task: SlicingTask, batches: Batches) -> None:
        """The bases of the task's order."""
        if self._bases is None or self._bases[0] != (task.run_id, task.order):
            self._bases = None  # two do not fit
            self._bases = ((task.run_id, task.order), bases(model, task.calibration, batches, task.order))

    @contextmanager
    def without(self, model: Any, task: SlicingTask) -> Iterator[tuple[int, int]]:
        """The model without the tenth; yields how many directions of how many."""
        assert self._bases is not None, "made ready"
        found = self._bases[1]
        dropped = {name: basis[:, decile_slice(basis.shape[0], task.decile)] for name, basis in found.items()}
        with sliced(model, dropped, task.order) as removed:
            yield removed, sum(basis.shape[0] for basis in found.values())


def slicing(
    reference: str,
    wanted: MeasureRequest,
    *,
    orders: Sequence[Order] = ORDERS,
    deciles: Sequence[int] = DECILES,
    calibration: TextSource | None = None,
    calibration_tokens: int = DEFAULT_CALIBRATION,
    store: str = "results",
    dtype: Precision = "float32",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> PointReport:
    """Measure what a model loses when its norms leave out a tenth of the directions of their signal.

    Args:
        reference: the model: a folder, a GGUF file, org/name.
        wanted: what is measured, and on which text.
        orders: project before the norms, after them, or each in turn.
        deciles: which tenths, each a point of its own; 1 has the smallest eigenvalues.
        calibration: the text that the covariances are of; None: the measured one.
        calibration_tokens: how many tokens of it.
        store: where the results go; made if it is not there.
        dtype: precision of the model.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a text, model or decile that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished points are in the store, and the same call goes on from there.
    """
    observer, options = observer or ScanObserver(), pool or PoolOptions()
    if not set(orders) <= set(ORDERS) or not set(deciles) <= set(DECILES) or not orders or not deciles:
        raise ScannerError(f"orders are {' and '.join(ORDERS)}, deciles 1 to 10; got {[*orders]} and {[*deciles]}")
    observer.opening(reference)
    checkpoint = open_target(reference, Selection()).checkpoint
    place = model_place(checkpoint)
    measured = measurement(place, wanted)
    texts = read_texts(calibration or wanted.text)
    length = wanted.window or DEFAULT_LENGTH
    ids = sequences(load_tokenizer(place), texts, length=length, tokens=calibration_tokens)
    described = {"text": texts.digest, "tokens": calibration_tokens, "length": length}
    run = PointRun(
        kind="slicing",
        store=open_store(store, create=True),
        observer=observer,
        checkpoint=checkpoint,
        place=place,
        measurement=measured,
        parameters=measured.parameters | {"dtype": dtype, "calibration": described},
        dtype=dtype,
    )
    tasks = [
        SlicingTask(
            **run.base,
            point=f"{run.run_id}-{order}-{decile}",
            calibration=tuple(ids),
            order=order,
            decile=decile,
        )
        for order in dict.fromkeys(orders)
        for decile in dict.fromkeys(deciles)
    ]
    return run.carry_out(SlicingWorker, tasks, options)
