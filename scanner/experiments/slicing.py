"""Slicing: how much a model degrades when its norms leave out a tenth of the directions of their signal.

In the table `ablations`, `set` is `slice:K` (K is the decile of the eigenvalues that is left out, 1 the smallest) and `roles`
says where: `before norm` or `after norm`; `removed` counts directions over all norms of the model.

Source of the construction: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. F. Its claim is about the order of slicing and
fine-tuning, which `finetune` has an option for; here nothing is fine-tuned.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scanner.checkpoint import Selection
from scanner.configuration import option
from scanner.engine.task import Context
from scanner.errors import ConfigError, ScannerError
from scanner.experiments.damage import DamageWork, PointTask
from scanner.experiments.experiment import Call, Experiment, register_experiment
from scanner.experiments.nlp.options import DEFAULT_WINDOW, HARNESS, MeasureOptions, ModelOptions, Precision

if TYPE_CHECKING:
    import torch

    from scanner.experiments.nlp.removal import Counts
    from scanner.experiments.nlp.tokens import Batches, Sequences

Order = Literal["before", "after"]
ORDERS: tuple[Order, ...] = ("before", "after")
DECILES = tuple(range(1, 11))


@dataclass(frozen=True, kw_only=True)
class Config(MeasureOptions, ModelOptions):
    """Options of `rmtscan slicing`."""

    stride: int | None = option(None, exposed=False)
    """Tokens from one window to the next; None: the length of the window."""
    order: Literal["before", "after", "both"] = option("both")
    """Project the input of the norms, their output before the learned scale, or each in turn."""
    deciles: tuple[int, ...] = option(DECILES, metavar="A-B,...", min=1, max=10, shown="1-10")
    """Tenths that are left out, one at a time; 1 has the smallest eigenvalues."""
    calibration: str | None = option(None, metavar="FILE|DATASET")
    """Text for the covariances; None: the measured text."""
    calibration_tokens: int = option(4096, min=2)
    """Number of tokens for the covariances; from a table, rows drawn from all of it."""
    dtype: Precision = option("float32")
    """Precision of the weights and activations of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.deciles:
            raise ConfigError("deciles", "must be one or more numbers from 1 to 10, got none")


@dataclass(frozen=True, kw_only=True)
class SlicingTask(PointTask):
    """Measure the model without one tenth of the directions at its norms."""

    calibration: Sequences
    order: Order
    decile: int

    @property
    def intact(self) -> bool:
        """Always false: a tenth is left out."""
        return False

    @property
    def columns(self) -> dict[str, object]:
        """The order and the tenth, for messages."""
        return {"roles": f"{self.order} norm", "set": f"slice:{self.decile}"}

    def prepare(self, context: Context, model: Any, batches: Batches) -> None:
        """Compute the bases of this order."""
        self._bases(context, model, batches)

    def without(self, context: Context, model: Any) -> AbstractContextManager[Counts]:
        """The model without the tenth; yields how many directions of how many."""
        from scanner.experiments.nlp.projections import without_decile

        return without_decile(model, self._bases(context, model, None), self.decile, self.order)

    def _bases(self, context: Context, model: Any, batches: Batches | None) -> dict[str, torch.Tensor]:
        from scanner.experiments.nlp.projections import bases

        def compute() -> dict[str, torch.Tensor]:
            assert batches is not None, "prepared before"
            return bases(model, self.calibration, batches, self.order)

        return context.resident("bases", (self.run_id, self.order), compute)


def plan(config: Config, call: Call) -> DamageWork:
    """Read both texts, and list the points: one for each order and decile.

    Raises:
        ScannerError: a text, model or decile that is not suitable; the message says why.
    """
    from scanner.experiments.nlp.measures import measurement
    from scanner.experiments.nlp.models import longest_input, model_place
    from scanner.experiments.nlp.placing import open_target
    from scanner.experiments.nlp.projections import require_full_rank
    from scanner.experiments.nlp.texts import TextSource, read_texts
    from scanner.experiments.nlp.tokens import sequences

    call.observer.opening(config.model)
    checkpoint = open_target(config.model, Selection()).checkpoint
    place = model_place(checkpoint)
    measured = measurement(place, config)
    length = min(config.window or DEFAULT_WINDOW, longest_input(measured.config, measured.tokenizer))
    if config.metric.startswith(HARNESS) and config.calibration is None:
        raise ScannerError(
            "`calibration` is missing: a task of the harness is not a text that activations are computed from"
        )
    source = config.source() if config.calibration is None else TextSource(reference=config.calibration)
    texts = read_texts(source, tokens=config.calibration_tokens, length=length)
    read = sequences(measured.tokenizer, texts, length=length, tokens=config.calibration_tokens)
    width = getattr(measured.config.get_text_config(), "hidden_size", None)
    if width is not None:
        require_full_rank(read.tokens, width)  # here, and not later in every worker
    described = {"text": texts.digest, "ids": read.digest, "tokens": config.calibration_tokens, "length": length}
    work = DamageWork(
        call.open_store(),
        kind="slicing",
        checkpoint=checkpoint,
        place=place,
        measurement=measured,
        parameters=measured.parameters | {"dtype": config.dtype, "calibration": described},
        dtype=config.dtype,
        force=call.force,
    )
    work.points = [
        SlicingTask(**work.base, point=f"{work.run_id}-{order}-{decile}", calibration=read, order=order, decile=decile)
        for order in (ORDERS if config.order == "both" else (config.order,))
        for decile in dict.fromkeys(config.deciles)
    ]
    return work


EXPERIMENT = register_experiment(
    Experiment(
        name="slicing",
        config=Config,
        plan=plan,
        query="slicing",
        help="""Leave out a tenth of the activation directions at every norm, and measure how much the model degrades.

The directions are eigenvectors of the covariance of the activations at each norm, as in SliceGPT (the construction of v1,
App. F). Nothing is fine-tuned here: rmtscan finetune --remove before-norm (or after-norm) removes them before and after
fine-tuning. Each point is one file in the table ablations, written when it is measured; existing points are reused. Prints query
slicing.

Examples:

    rmtscan slicing model.gguf --text novel.txt

    rmtscan slicing ./encoder --task reviews.csv --metric accuracy --order after --deciles 1,10
""",
    )
)
