"""One point of lazy learning: train one network of one regime, and measure what it is worth without sets of singular values.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. A, Fig. 9.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch

from scanner.engine.pool import granted_device
from scanner.experiments.mlp import DivergedError, Regime, Removal, Training, removals, train
from scanner.experiments.pictures import Pictures, load_pictures
from scanner.experiments.running import one_line
from scanner.store.tables import to_json

KIND = "lazy_learning"
#: Raised whenever the same parameters would give other rows.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network: what it is trained on, how, and what is taken from it. Small and picklable: a task."""

    data: str | None
    """Where the pictures are, on every machine; None: scikit-learn's digits."""
    digest: str
    """SHA-256 of the pictures and labels that the driver saw."""
    dataset: str
    sizes: tuple[int, ...]
    regime: Regime
    training: Training
    shares: tuple[float, ...]
    seed: int

    @property
    def method(self) -> dict[str, object]:
        """Everything that decides the rows; the place of the pictures does not."""
        decides = {name: value for name, value in asdict(self).items() if name != "data"}
        return {"experiment": KIND, "version": VERSION, **decides}

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits that name the point."""
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
        """Passes over the pictures."""
        return float(self.training.epochs)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a point: the accuracy of the intact network and of it without each set, or why there is none."""

    baseline: float = 0.0
    removals: tuple[Removal, ...] = ()
    examples: int = 0
    seconds: float = 0.0
    error: str | None = None


class Worker:
    """One core or GPU that trains one network at a time; errors of a training come back as data."""

    def __init__(self) -> None:
        self._device = granted_device()
        self._computing = threading.Lock()

    def ready(self) -> str:
        """The device, once the worker is there."""
        return self._device

    def run(self, point: Point) -> Outcome:
        """Train and measure one point."""
        with self._computing:
            return compute(point, self._device)


def compute(point: Point, device: str = "cpu") -> Outcome:
    """Train and measure one point; what goes wrong is in the outcome."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    try:
        pictures = _pictures(point.data)
        if digest(pictures) != point.digest:
            return Outcome(
                error="the pictures are others than the driver's: the files must be the same on every machine"
            )
        network = train(pictures, point.regime, point.training, point.seed, device)
        baseline, found = removals(network, pictures, point.shares, point.seed)
    except DivergedError as error:
        return Outcome(error=str(error))
    except Exception as error:  # whatever it is, the other networks go on, and a line says what it was
        return Outcome(error=one_line(error))
    return Outcome(
        baseline=baseline,
        removals=tuple(found),
        examples=len(pictures.test_labels),
        seconds=time.perf_counter() - started,
    )


@lru_cache(maxsize=1)
def _pictures(data: str | None) -> Pictures:
    return load_pictures(data)


def digest(pictures: Pictures) -> str:
    """16 hexadecimal digits of the SHA-256 of pictures and labels."""
    content = hashlib.sha256()
    for array in (pictures.train, pictures.train_labels, pictures.test, pictures.test_labels):
        content.update(repr((array.shape, array.dtype.str)).encode())
        content.update(array.tobytes())
    return content.hexdigest()[:16]
