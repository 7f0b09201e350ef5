"""`rmtscan slicing`: which points there are, and the call that runs them.

In `ablations`, `set` is `slice:K` (K the decile of eigenvalues that is left out, 1 the smallest) and `roles` says where: `before
norm` or `after norm`; `removed` counts directions over all norms of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from scanner.checkpoint import Selection
from scanner.engine import PoolOptions, ScanObserver
from scanner.errors import ScannerError
from scanner.experiments.measures import MeasureRequest, measurement
from scanner.experiments.models import Precision, longest_input, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.point_run import PointReport, PointRun
from scanner.experiments.slicing import DECILES, ORDERS, Order, require_full_rank
from scanner.experiments.slicing_task import SlicingTask, SlicingWorker
from scanner.experiments.texts import TextSource, read_texts
from scanner.experiments.tokens import sequences
from scanner.store import open_store

DEFAULT_CALIBRATION = 4096
DEFAULT_LENGTH = 512


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
        calibration_tokens: how many tokens of it, of a table from rows drawn from all of it.
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
        given = ", ".join(map(str, [*orders, *deciles])) or "nothing"
        raise ScannerError(f"orders are {' and '.join(ORDERS)}, deciles 1 to 10; got {given}")
    observer.opening(reference)
    checkpoint = open_target(reference, Selection()).checkpoint
    place = model_place(checkpoint)
    measured = measurement(place, wanted)
    length = min(wanted.window or DEFAULT_LENGTH, longest_input(measured.config, measured.tokenizer))
    texts = read_texts(calibration or wanted.text, tokens=calibration_tokens, length=length)
    read = sequences(measured.tokenizer, texts, length=length, tokens=calibration_tokens)
    width = getattr(measured.config.get_text_config(), "hidden_size", None)
    if width is not None:
        require_full_rank(read.tokens, width)  # before every worker finds it out
    described = {"text": texts.digest, "ids": read.digest, "tokens": calibration_tokens, "length": length}
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
            calibration=read,
            order=order,
            decile=decile,
        )
        for order in dict.fromkeys(orders)
        for decile in dict.fromkeys(deciles)
    ]
    return run.carry_out(SlicingWorker, tasks, options)
