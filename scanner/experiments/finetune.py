"""Fine-tuning and removal in both orders: one task is one training with one seed, and the measurements on its result.

A run has one model, one data set and one recipe, so its points are comparable. A point is (order, roles, decile, seed):
`none` is the tuned model itself, `tune-first` the same without a decile of its singular values, `remove-first` a model that was
trained after the decile was removed from the base. The first two share a training. A point is one file of the table
`finetunes`, written when it is measured; existing points are reused.

Instead of singular values, a decile of the directions of the activations can be projected out at every norm (`nlp/projections.py`).
Then `roles` is `before norm` or `after norm`. The directions are eigenvectors of the covariance of the activations on the training
texts: of the base for `remove-first`, where the projection stays in place during the training, and of the tuned model for
`tune-first`.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770, v1 sec. 5 (Fig. 8) and App. F (the projection), v3 sec. 5 (Fig. 6).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from scanner.checkpoint import ROLES, Checkpoint, MatrixRef, Selection, list_matrices
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import SCHEME
from scanner.configuration import option
from scanner.engine.task import Context, Failure, Task, TaskError, fatal_errors, one_line
from scanner.engine.work import Stored
from scanner.errors import ScannerError
from scanner.experiments.experiment import Call, Experiment, ExperimentWork, Report, register_experiment, run_hash
from scanner.experiments.nlp.options import ModelOptions, TextOptions

if TYPE_CHECKING:
    from scanner.experiments.nlp.labels import Dataset
    from scanner.experiments.nlp.models import ModelPlace
    from scanner.experiments.nlp.placing import Placed
    from scanner.experiments.nlp.removal import Counts, FactorCache
    from scanner.experiments.nlp.tokens import Batches, Sequences
    from scanner.experiments.nlp.training import Recipe, Trained
    from scanner.store import Store

KIND = "finetune"
Order = Literal["none", "remove-first", "tune-first"]
ORDERS: tuple[Order, ...] = get_args(Order)
Remove = Literal["singular-values", "before-norm", "after-norm"]
REMOVES: tuple[Remove, ...] = get_args(Remove)
#: Tokens of the training texts, for each dimension of the states, from which the directions of a projection are computed.
TOKENS_PER_DIMENSION = 32
#: Bytes of decompositions that a worker keeps of its base, for the next decile.
_FACTORS = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Config(TextOptions, ModelOptions):
    """Options of `rmtscan finetune`."""

    label: str | None = option(None, metavar="NAME")
    """The column with the labels; None: found by its name."""
    order: tuple[Order, ...] = option(("remove-first", "tune-first"), metavar="ORDER,...", choices=ORDERS)
    """remove-first, tune-first, none; the untouched runs (none) are always included."""
    remove: Remove = option("singular-values")
    """What a decile consists of: singular values of the matrices, or directions of the activations (eigenvectors of their
    covariance on the training texts), which are projected out before or after every norm."""
    deciles: tuple[int, ...] = option((1, 5, 10), metavar="A-B,...", min=1, max=10)
    """Deciles that are removed, one at a time: 1 has the smallest singular values (or eigenvalues), 10 the largest."""
    seeds: int = option(3, min=1, max=1000)
    """Number of seeds (of the head, dropout, and the order of the examples)."""
    roles: tuple[str, ...] = option((), metavar="ROLE,...", choices=ROLES)
    """Remove only from matrices with these roles; none: all in blocks."""
    examples: int | None = option(None, min=2)
    """Train on at most this number of examples; None: all but the test part."""
    test_share: float = option(0.2)
    """Share of the texts that accuracy is measured on."""
    window: int = option(128, min=8, aliases=("--length",))
    """Longest sequence, in tokens."""
    epochs: int = option(2, min=1)
    """Passes over the examples."""
    batch: int = option(32, min=1)
    """Examples per step."""
    lr: float = option(5e-5)
    """Highest learning rate of AdamW."""
    keep: str | None = option(None, metavar="FOLDER")
    """Keep the tuned models in this folder, as RUN-none-seed0 and so on, to be scanned and compared; None: not kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(order != "none" for order in self.order) and not self.deciles:
            raise ScannerError("`deciles` is empty: choose from 1 (the smallest singular values) to 10")
        if self.remove != "singular-values" and self.roles:
            raise ScannerError(
                f"`roles` choose matrices, but `remove` {self.remove} changes none: it acts at every norm"
            )
        if self.remove != "singular-values" and self.keep is not None:
            raise ScannerError(
                f"`keep` cannot be given with `remove` {self.remove}: the projection is not part of the weights of a checkpoint"
            )
        if not 0.0 < self.test_share < 1.0:
            raise ScannerError(f"`test_share` must be between 0 and 1, got {self.test_share:g}")


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
    """Name of the file of a point, and of the folder of its model: the run, the point, and the roles unless they are all."""
    of_roles = "" if point.decile is None or roles == "all" else f"-{roles.replace(',', '.').replace(' ', '-')}"
    return f"{run_id}-{point.label}{of_roles}"


@dataclass(frozen=True, kw_only=True)
class FineTuneTask(Task):
    """One training, from a base without the decile `first` (None: the base itself), and the points measured on its result."""

    run_id: str
    place: ModelPlace
    config: Any
    """Configuration of the model as transformers reads it, which is slow for some formats."""
    pooler: bool
    """Whether the checkpoint has the pooler of its body."""
    remove: Remove = "singular-values"
    refs: tuple[MatrixRef, ...]
    """The matrices that deciles of singular values are removed from; none for a projection."""
    data: Dataset
    recipe: Recipe
    seed: int
    first: int | None
    points: tuple[Point, ...]
    roles: str
    """Roles of the matrices, as in the column `roles`."""
    folder: str | None
    """Where the models of its points are kept, each in a folder with the name of the file of the point."""

    @property
    def name(self) -> str:
        """The run and the first of its points."""
        return f"{self.run_id}/{self.points[0].label}"

    def file(self, point: Point) -> str:
        """As `point_file`."""
        return point_file(self.run_id, point, self.roles)

    @property
    def calibration(self) -> Sequences:
        """The training texts from which the directions of a projection are computed; their order is random."""
        return self.data.train.beginning(TOKENS_PER_DIMENSION * _width(self.config))

    @property
    def cost(self) -> float:
        """Passes through the model: a step of training counts as three."""
        return 3.0 * self.recipe.epochs * len(self.data.train) + len(self.points) * len(self.data.test)

    def run(self, context: Context) -> Tuned:
        """Train and measure; points that were measured before an error are returned with it."""
        from scanner.experiments.nlp.models import resident_model
        from scanner.experiments.nlp.removal import FactorCache
        from scanner.experiments.nlp.training import NoClassifier

        with context.computing():
            with fatal_errors():
                body = resident_model(context, self.place, "features", "float32", self.config)
            of_base = context.resident("factors", self.place, lambda: FactorCache(_FACTORS))
            measured: list[Measured] = []
            try:
                trained = fine_tune(body, self, of_base, measured)
            except NoClassifier as error:  # no other training can succeed
                raise TaskError(one_line(error), fatal=True) from error
            except Exception as error:  # an error of one training must not stop the others
                return Tuned(measured=tuple(measured), device=context.device, error=one_line(error))
            return Tuned(measured=tuple(measured), trained=trained, device=context.device)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The accuracy at a point; `seconds` include its training unless a point before it required the same training."""

    point: Point
    accuracy: float
    seconds: float
    removed: int
    """Singular values, or directions over all norms."""
    batch_tokens: int | None
    """Tokens that batches were reduced to for measuring; None if all fitted into memory."""
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Result of a task: the points that were measured, and why the others were not."""

    measured: tuple[Measured, ...] = ()
    trained: Trained | None = None
    device: str = ""
    error: str | None = None


def fine_tune(body: Any, task: FineTuneTask, of_base: FactorCache, measured: list[Measured]) -> Trained:
    """Train a classifier on a copy of `body` and measure it at every point of a task; results are appended to `measured`.

    Raises:
        ScannerError: the model is not a classifier of texts, lacks a matrix, diverges, does not fit into memory, or cannot be kept.
    """
    from scanner.experiments.nlp.models import load_tokenizer
    from scanner.experiments.nlp.removal import NO_COUNTS, FactorCache
    from scanner.experiments.nlp.tokens import BATCH_TOKENS, Batches
    from scanner.experiments.nlp.training import correct, keep, new_classifier, train

    clock = time.perf_counter()
    data = task.data
    model = new_classifier(body, data.classes, data.padding, task.seed, pooler=task.pooler)
    batches = Batches(data.padding, BATCH_TOKENS[model.device.type])
    placed = _placed(model, task) if any(point.decile is not None for point in task.points) else []
    before = (
        nullcontext(NO_COUNTS) if task.first is None else _removal(model, task, placed, batches, of_base)(task.first)
    )
    # What is removed first stays removed during training: leaving the context would restore the weights of the base, or end the
    # projection.
    with before as gone:
        trained = train(model, data.train, data.padding, task.recipe, task.seed)
        afterward = any(point.order == "tune-first" for point in task.points)
        without = _removal(model, task, placed, batches, FactorCache(_FACTORS)) if afterward else None
        for point in task.points:
            after = nullcontext(gone) if without is None or point.decile is None else without(point.decile)
            with after as taken:
                one = Measured(
                    point=point,
                    accuracy=float(correct(model, data.test, batches).mean()),
                    seconds=time.perf_counter() - clock,
                    removed=taken.removed,
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


def _removal(
    model: Any, task: FineTuneTask, placed: Sequence[Placed], batches: Batches, factors: FactorCache
) -> Callable[[int], AbstractContextManager[Counts]]:
    """Return what removes a decile from the model as it is now, inside a context; `factors` keeps its decompositions."""
    from scanner.experiments.nlp.projections import bases, without_decile
    from scanner.experiments.nlp.removal import RemovalSet, removed

    if task.remove == "singular-values":
        return lambda decile: removed(model, placed, RemovalSet(name=f"decile:{decile}"), factors)
    order: Literal["before", "after"] = "before" if task.remove == "before-norm" else "after"
    found = bases(model.eval(), task.calibration, batches, order)
    return lambda decile: without_decile(model, found, decile, order)


def _width(config: Any) -> int:
    """Return the number of dimensions of the states of a model; 0 if its configuration does not say."""
    return int(getattr(config.get_text_config(), "hidden_size", 0))


def _placed(model: Any, task: FineTuneTask) -> list[Placed]:
    from scanner.experiments.nlp.placing import place_matrices

    placed, lacking = place_matrices(model, task.refs)
    if lacking:
        tensor, reason = next(iter(lacking.items()))
        raise ScannerError(
            f"no decile can be removed from {len(lacking)} matrices: {printable(tensor)}, {reason}; choose other `roles`"
        )
    return placed


class FineTuneWork(ExperimentWork):
    """The points of one run."""

    kind = KIND
    unit = "trainings"

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        checkpoint: Checkpoint,
        data: Dataset,
        method: dict[str, Any],
        base: dict[str, Any],
        points: Sequence[Point],
        keeping: Path | None,
        force: bool,
    ) -> None:
        """`keeping` is the folder of the tuned models."""
        super().__init__(store, force=force)
        self.run_id, self.checkpoint, self.data, self.method = run_id, checkpoint, data, method
        self.versions = checkpoint.versions
        self.points, self.keeping = points, keeping
        self.roles: str = base["roles"]
        folder = None if keeping is None else str(keeping)
        self.base = FineTuneTask(run_id=run_id, data=data, seed=0, first=None, points=(), folder=folder, **base)
        self.smaller: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The model."""
        return [self.checkpoint.model]

    def tasks(self) -> list[FineTuneTask]:
        """One task per training, seed by seed: an interrupted run has whole seeds."""
        todo = [point for point in self.points if not self._has(point)]
        self.kept = len(self.points) - len(todo)
        return _tasks(self.base, todo)

    def done(self, task: Task, value: Tuned) -> Stored:
        """Write the points of a task, and keep why the others are missing."""
        assert isinstance(task, FineTuneTask)
        for measured in value.measured:
            self._write(measured, task, value)
        finished = {one.point for one in value.measured if self.keeping is None or one.checkpoint is not None}
        return self._missing(
            task, [point for point in task.points if point not in finished], value.error or "no result"
        )

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Keep the reason for every point of the task."""
        assert isinstance(task, FineTuneTask)
        self.refuse_changed(failure)
        return self._missing(task, task.points, failure.message)

    def report(self) -> Report:
        """Describe the points."""
        data = self.data
        notes = [
            f"{point}: batches did not fit into memory at once; {count} examples at a time did"
            for point, count in sorted(self.smaller.items())
        ]
        notes.append(
            f"trained on {len(data.train)} texts, tested on {len(data.test)}; {len(data.classes)} classes, the most frequent is "
            f"{data.majority:.1%} of the test"
        )
        return Report(
            store=self.store.url,
            run_ids=(self.run_id,),
            unit="points",
            total=len(self.points),
            kept=self.kept,
            failed=self.failures,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            facts={
                "classes": data.classes,
                "train": len(data.train),
                "test": len(data.test),
                "majority": data.majority,
                "smaller": self.smaller,
            },
            notes=tuple(notes),
            parameters={"run": self.run_id},
        )

    def _missing(self, task: FineTuneTask, points: Sequence[Point], reason: str) -> Stored:
        self.failures |= {point.label: reason for point in points}
        return Stored(failed=tuple(point.label for point in points))

    def _name(self, point: Point) -> str:
        return point_file(self.run_id, point, self.roles)

    def _has(self, point: Point) -> bool:
        """Whether a point is in the store, and its model in the folder if models are kept."""
        name = self._name(point)
        if not self.has("finetunes", name):
            return False
        if self.keeping is None:
            return True
        wanted = self.keeping / name
        rows = self.store.file_rows("finetunes", name)
        return wanted.is_dir() and any(row["checkpoint"] == str(wanted) for row in rows)

    def _write(self, measured: Measured, task: FineTuneTask, tuned: Tuned) -> None:
        """Write the row of the run, which counts the seconds of its points, then the point."""
        from scanner.store.tables import rows

        point, trained = measured.point, tuned.trained
        smaller = trained is not None and trained.at_a_time < task.recipe.batch
        if smaller and trained is not None:
            self.smaller[point.label] = trained.at_a_time
        found = self.store.file_rows("experiments", self.run_id)
        before: dict[str, Any] = found[0] if found else {"started_at": self.started_at, "seconds": 0.0}
        self.write_run(
            self.run_id,
            self.method,
            kind=KIND,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            source=self.checkpoint.source,
            dataset=self.data.name,
            started_at=before["started_at"],
            seconds=before["seconds"] + measured.seconds,
            tokens=self.data.train.tokens,
        )
        row: dict[str, object] = {
            "run_id": self.run_id,
            "base_model": self.checkpoint.model,
            "dataset": self.data.name,
            "order": point.order,
            "decile": point.decile,
            "seed": point.seed,
            "roles": None if point.decile is None else self.roles,
            "accuracy": measured.accuracy,
            "examples": len(self.data.train),
            "epochs": task.recipe.epochs,
            "seconds": measured.seconds,
            "checkpoint": measured.checkpoint,
            "finished_at": datetime.now(UTC),
            "device": tuned.device,
            "removed": measured.removed,
            "loss": None if trained is None else trained.loss,
            "examples_at_a_time": self.smaller.get(point.label),
            "batch_tokens": measured.batch_tokens,
        }
        method = self.method | asdict(point)
        if task.remove != "singular-values" and point.decile is not None:
            method |= {"remove": task.remove, "calibration_tokens": task.calibration.tokens}
        self.store.write_rows("finetunes", self._name(point), rows("finetunes", row, 1), method=method)


def plan(config: Config, call: Call) -> FineTuneWork:
    """Read the texts, and list the points. The untouched runs (`none`), the reference of all others, are always among them.

    Raises:
        ScannerError: a model, text, role or parameter that is not suitable; the message says why.
    """
    from scanner.experiments.nlp.labels import prepare
    from scanner.experiments.nlp.models import load_config, load_tokenizer, longest_input, model_place
    from scanner.experiments.nlp.placing import open_target
    from scanner.experiments.nlp.projections import require_full_rank
    from scanner.experiments.nlp.texts import read_texts
    from scanner.experiments.nlp.training import Recipe, require_classifier

    recipe = Recipe(epochs=config.epochs, batch=config.batch, rate=config.lr)
    keeping = None if config.keep is None else _folder(config.keep)
    call.observer.opening(config.model)
    texts = read_texts(config.source(), labeled=True)
    target = open_target(config.model, Selection(only=config.roles))
    checkpoint, refs = target.checkpoint, _within_blocks(target.inventory.matrices)
    place = model_place(checkpoint)
    model_config = load_config(place)
    require_classifier(model_config)
    tokenizer = load_tokenizer(place)
    length = min(config.window, longest_input(model_config, tokenizer))
    data = prepare(texts, tokenizer, length=length, test_share=config.test_share, examples=config.examples)
    if config.remove != "singular-values":
        require_full_rank(data.train.tokens, _width(model_config))  # here, and not later in every worker
    method = asdict(recipe) | {"data": data.digest, "length": length}
    base = {
        "place": place,
        "config": model_config,
        "pooler": any("pooler" in entry.name for entry in checkpoint.tensors),
        "remove": config.remove,
        "refs": refs if config.remove == "singular-values" else (),
        "recipe": recipe,
        "roles": _roles(refs, checkpoint) if config.remove == "singular-values" else config.remove.replace("-", " "),
    }
    return FineTuneWork(
        call.open_store(),
        force=call.force,
        run_id=run_hash(KIND, checkpoint.identity, method),
        checkpoint=checkpoint,
        data=data,
        method=method
        | {"texts": texts.digest, "train": len(data.train), "test": len(data.test), "test_share": config.test_share}
        | {"majority": data.majority, "dropped": data.dropped},
        base=base,
        points=_points(config.order, config.deciles, config.seeds),
        keeping=keeping,
    )


def _points(orders: Sequence[Order], deciles: Sequence[int], seeds: int) -> list[Point]:
    found = [Point(order="none", decile=None, seed=seed) for seed in range(seeds)]
    for order in ORDERS:
        if order in orders and order != "none":
            found += [
                Point(order=order, decile=decile, seed=seed) for seed in range(seeds) for decile in sorted({*deciles})
            ]
    return found


def _tasks(base: FineTuneTask, points: Sequence[Point]) -> list[FineTuneTask]:
    """One task per training, seed by seed."""
    groups: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        first = point.decile if point.order == "remove-first" and point.decile is not None else 0
        groups.setdefault((point.seed, first), []).append(point)
    return [
        replace(base, seed=seed, first=first or None, points=tuple(groups[seed, first]))
        for seed, first in sorted(groups)
    ]


def _roles(refs: Sequence[MatrixRef], checkpoint: Checkpoint) -> str:
    """Value of the column `roles`: `all`, or the roles in a fixed order."""
    everything = {ref.role for ref in _within_blocks(list_matrices(checkpoint, Selection()).matrices)}
    mine = {ref.role for ref in refs}
    return "all" if mine == everything else ",".join(role for role in ROLES if role in mine)


def _within_blocks(refs: Sequence[MatrixRef]) -> tuple[MatrixRef, ...]:
    return tuple(ref for ref in refs if ref.layer is not None) or tuple(refs)


def _folder(folder: str) -> Path:
    if SCHEME.match(folder):
        raise ScannerError(f"`keep` must be a folder of this machine, not a URL: {printable(folder)}")
    path = Path(folder).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ScannerError(
            f"the tuned models cannot be kept in {printable(str(path))}: {error.strerror or error}"
        ) from error
    return path


EXPERIMENT = register_experiment(
    Experiment(
        name="finetune",
        config=Config,
        plan=plan,
        query="finetune_by_decile",
        help="""Fine-tune a model on labeled texts with a decile of its singular values removed before or after the training.

With --remove before-norm or after-norm, a decile of the directions of the activations is projected out at every norm instead (v1,
App. F): during training and measurement (remove-first), or for the measurement of the tuned model (tune-first).

Each point (order, decile, seed) is stored when it is measured (table finetunes); existing points are reused. Prints query
finetune_by_decile: mean accuracy, and its distance from the untouched runs in units of their spread.

Examples:

    rmtscan finetune ./encoder --task reviews.csv --where source=rotten_tomatoes --deciles 1,5,10 --seeds 3

    rmtscan finetune org/model --task boolq.jsonl --column question --second passage --label answer --order remove-first

    rmtscan finetune ./encoder --task reviews.csv --remove after-norm --deciles 1,10

    rmtscan finetune ./encoder --task sst2.tsv --order none --keep tuned && rmtscan compare ./encoder tuned/*-none-seed0
""",
    )
)
