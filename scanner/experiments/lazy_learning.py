"""Lazy learning: one task trains one network of one regime and measures its accuracy without sets of singular values.

A point, one (regime, seed), is a run of its own: a hash of the images and of everything that decides the rows, so no point is
computed twice. In the table `ablations`, `model` is the network and its regime, `roles` is `hidden` (all hidden matrices
at once), `set` is `smallest:20%`, `mass:20%` or `random:20%`, `metric` is `accuracy`, and `stderr` is that of `delta`.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. A, Fig. 9.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from scanner.configuration import Checked, option
from scanner.engine.task import Context, Failure, Task, TaskError
from scanner.engine.work import Stored
from scanner.errors import ConfigError, ScannerError
from scanner.experiments.experiment import Call, Experiment, ExperimentWork, Report, register_experiment, write_run
from scanner.experiments.regimes import HIDDEN, ORDERINGS, Normalize, Regime, Training

if TYPE_CHECKING:
    from scanner.experiments.images import Images
    from scanner.experiments.mlp import Removal
    from scanner.store import Store

KIND = "lazy_learning"
#: Increased whenever the same parameters would give other rows.
VERSION = 1
MOST_WIDTH = 16384
"""Largest width of a hidden layer: a matrix of this size takes 1 GB."""
SHARES = tuple(i / 20 for i in range(1, 20))
"""Shares of the singular values that are removed."""


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Options of `rmtscan lazy-learning`."""

    data: str | None = option(None, metavar="PATH")
    """Folder cifar-10-batches-py (CIFAR-10), or an .npz with x_train, y_train, x_test, y_test; None: the digits of scikit-learn."""
    alpha: tuple[float, ...] = option((1.0, 15.0), metavar="A,...", shown="1,15")
    """Scales of the logits: 1 is rich, large is lazy."""
    frozen: tuple[int, ...] | None = option(None, metavar="LAYER,...")
    """Layers, from 0, that are not trained in one more network at alpha 1, the extreme of lazy; '' for no such network; None: all
    hidden layers."""
    widths: tuple[int, ...] = option(HIDDEN, name="hidden", metavar="WIDTH,...", min=1, max=MOST_WIDTH)
    """Widths of the hidden layers."""
    normalize: Normalize = option("pixels")
    """How the images are normalized: pixels (each pixel minus its mean over the training images, all divided by one standard
    deviation) or images (each image to mean 0 and variance 1)."""
    seeds: int = option(3, min=1, max=1000)
    """Networks of each kind."""
    epochs: int = option(60, min=1)
    """Passes over the training images."""
    lr: float = option(0.05, aliases=("--rate",))
    """Learning rate of stochastic gradient descent."""
    batch: int = option(64, min=1)
    """Images per step."""
    shares: tuple[float, ...] = option(SHARES, exposed=False)
    """Shares of the singular values that are removed, between 0 and 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ConfigError("widths", f"must be one or more numbers from 1 to {MOST_WIDTH}, got none")
        layers = len(self.widths) + 1
        for alpha in self.alpha:
            if not 0.0 < alpha < float("inf"):
                raise ScannerError(f"`alpha` must be positive, got {alpha:g}")
        if not set(self.frozen or ()) < set(range(layers)):
            raise ScannerError(
                f"`frozen` must be some of the {layers} layers 0 to {layers - 1}, not all, got {self.frozen}"
            )
        if not self.lr > 0.0:
            raise ConfigError("lr", f"must be positive, got {self.lr:g}")
        if not self.regimes:
            raise ScannerError("`alpha` or `frozen` must name at least one network")
        if not self.shares or not all(0.0 < share < 1.0 for share in self.shares):
            given = ", ".join(map(str, self.shares)) or "none"
            raise ScannerError(f"`shares` must be between 0 and 1, got {given}")

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """What is compared: one regime per alpha, and the frozen network."""
        layers = range(len(self.widths)) if self.frozen is None else sorted({*self.frozen})
        frozen = [Regime(frozen=tuple(layers))] if layers else []
        return tuple(dict.fromkeys([*(Regime(alpha=alpha) for alpha in self.alpha), *frozen]))


@dataclass(frozen=True, kw_only=True)
class Point(Task):
    """One network: its data, its training, and what is removed from it."""

    data: str | None
    """Where the images are, on every machine; None: the digits of scikit-learn."""
    normalize: Normalize = "pixels"
    digest: str
    """SHA-256 of the images, as they are normalized, and labels that the driver read."""
    dataset: str
    sizes: tuple[int, ...]
    regime: Regime
    training: Training
    shares: tuple[float, ...]
    seed: int

    @property
    def method(self) -> dict[str, object]:
        """Everything that decides the rows; the place of the images does not.

        `normalize` came later: earlier versions normalized `pixels`.
        """
        decides = {name: value for name, value in asdict(self).items() if name != "data"}
        if self.normalize == "pixels":
            del decides["normalize"]
        return {"experiment": KIND, "version": VERSION, **decides}

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits that identify the point."""
        from scanner.store.tables import to_json

        return hashlib.sha256(to_json(self.method).encode()).hexdigest()[:16]

    @property
    def model(self) -> str:
        """`mlp 64-512-512-512-10 alpha=15`."""
        return f"mlp {'-'.join(map(str, self.sizes))} {self.regime.name}"

    @property
    def name(self) -> str:
        """Unique within a run."""
        return f"{self.run_id} ({self.regime.name}, seed {self.seed})"

    @property
    def cost(self) -> float:
        """Passes over the images."""
        return float(self.training.epochs)

    def run(self, context: Context) -> Outcome:
        """Train and measure the network."""
        with context.computing():
            return compute(self, context.device)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a point: the accuracy of the intact network and of the network without each set."""

    baseline: float
    removals: tuple[Removal, ...]
    examples: int
    seconds: float


def compute(point: Point, device: str = "cpu") -> Outcome:
    """Train and measure one point.

    Raises:
        TaskError: the images differ from those of the driver, or the training diverged.
    """
    import torch

    from scanner.experiments.mlp import DivergedError, removals, train

    started = time.perf_counter()
    torch.set_num_threads(1)
    images = _images(point.data, point.normalize)
    if digest(images) != point.digest:
        raise TaskError("the images differ from those of the driver: the files must be the same on every machine")
    try:
        network = train(images, point.regime, point.training, point.seed, device, widths=point.sizes[1:-1])
        baseline, found = removals(network, images, point.shares, point.seed)
    except DivergedError as error:
        raise TaskError(str(error)) from error
    return Outcome(
        baseline=baseline,
        removals=tuple(found),
        examples=len(images.test_labels),
        seconds=time.perf_counter() - started,
    )


@lru_cache(maxsize=1)
def _images(data: str | None, normalize: Normalize) -> Images:
    from scanner.experiments.images import load_images

    return load_images(data, normalize)


def digest(images: Images) -> str:
    """16 hexadecimal digits of the SHA-256 of images and labels."""
    content = hashlib.sha256()
    for array in (images.train, images.train_labels, images.test, images.test_labels):
        content.update(repr((array.shape, array.dtype.str)).encode())
        content.update(array.tobytes())
    return content.hexdigest()[:16]


class LazyWork(ExperimentWork):
    """The points of one call."""

    kind = KIND
    unit = "networks"

    def __init__(self, store: Store, points: Sequence[Point], *, force: bool) -> None:
        super().__init__(store, force=force)
        self.points = points

    @staticmethod
    def start() -> None:
        """Nothing to prepare: the networks are small."""

    @property
    def names(self) -> list[str]:
        """The networks."""
        return list(dict.fromkeys(point.model for point in self.points))

    def tasks(self) -> list[Point]:
        """Points that are not in the store."""
        found = [point for point in self.points if not self.has("experiments", point.run_id)]
        self.kept = len(self.points) - len(found)
        return found

    def done(self, task: Task, value: Outcome) -> Stored:
        """Write a point."""
        assert isinstance(task, Point)
        write_point(self.store, task, value, self.environment)
        return Stored()

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Keep the reason."""
        assert isinstance(task, Point)
        self.failures[f"{task.regime.name}, seed {task.seed}"] = failure.message
        return Stored(failed=(task.name,))

    def report(self) -> Report:
        """Describe the networks."""
        failed = {f"{point.regime.name}, seed {point.seed}": point.run_id for point in self.points}
        missing = {failed[name] for name in self.failures}
        run_ids = tuple(point.run_id for point in self.points if point.run_id not in missing)
        return Report(
            store=self.store.url,
            run_ids=run_ids,
            unit=self.unit,
            total=len(self.points),
            kept=self.kept,
            failed=self.failures,
            parameters={"runs": ",".join(run_ids)},
        )


def set_name(ordering: str, share: float) -> str:
    """Value of the column `set`: `smallest:20%`."""
    return f"{ordering}:{100.0 * share:g}%"


def write_point(store: Store, point: Point, outcome: Outcome, environment: Mapping[str, object]) -> None:
    """Store a point: its rows, then the run that says they are complete.

    Raises:
        StoreError: the store is full or cannot be written.
    """
    from scanner.store.tables import rows

    hidden = len(point.sizes) - 2
    removals = sorted(outcome.removals, key=lambda one: (ORDERINGS.index(one.ordering), one.share))
    columns: dict[str, Any] = {
        "run_id": point.run_id,
        "model": point.model,
        "roles": "hidden",
        "layers": "0" if hidden == 1 else f"0-{hidden - 1}",
        "seed": point.seed,
        "metric": "accuracy",
        "dataset": point.dataset,
        "baseline": outcome.baseline,
        "examples": outcome.examples,
        "seconds": outcome.seconds / max(1, len(removals)),
        "finished_at": datetime.now(UTC),
        "set": [set_name(one.ordering, one.share) for one in removals],
        "removed": [one.removed for one in removals],
        "fraction": [one.fraction for one in removals],
        "value": [one.accuracy for one in removals],
        "delta": [one.delta for one in removals],
        "stderr": [one.stderr for one in removals],
    }
    store.write_rows("ablations", point.run_id, rows("ablations", columns, len(removals)), method=point.method)
    write_run(
        store,
        point.run_id,
        point.method,
        environment,
        kind=KIND,
        model=point.model,
        dataset=point.dataset,
        seconds=outcome.seconds,
    )


def plan(config: Config, call: Call) -> LazyWork:
    """Read the images, and list the networks.

    Raises:
        ScannerError: images that cannot be read.
    """
    store = call.open_store()
    images = _images(config.data, config.normalize)
    points = [
        Point(
            data=config.data,
            digest=digest(images),
            dataset=images.name,
            normalize=config.normalize,
            sizes=(images.pixels, *config.widths, images.classes),
            regime=regime,
            training=Training(epochs=config.epochs, batch=config.batch, rate=config.lr),
            shares=config.shares,
            seed=seed,
        )
        for seed in range(config.seeds)
        for regime in config.regimes
    ]
    return LazyWork(store, points, force=call.force)


EXPERIMENT = register_experiment(
    Experiment(
        name="lazy-learning",
        config=Config,
        plan=plan,
        query="lazy_learning",
        table_parameters={"percent": 20.0},
        help="""Train small networks in the rich and the lazy regime and remove singular values from them.

Source: arXiv 2410.17770v1, appendix A.

Removed are the smallest by number, the smallest by their share of the sum, and the same number at random. Each network is
stored when it is measured (table ablations); existing networks are reused. Prints the rows of query lazy_learning: accuracy by
regime and set; a table shows only those of a fifth removed.

Examples:

    rmtscan lazy-learning

    rmtscan lazy-learning --data cifar-10-batches-py --alpha 1,4,15 --seeds 5

    rmtscan lazy-learning --data cifar-10-batches-py --hidden 1024,512,512 --normalize images
""",
    )
)
