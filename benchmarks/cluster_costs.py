"""Time and cost per model on a cluster: the rate of one core measured here, everything else arithmetic with stated assumptions.

python benchmarks/cluster_costs.py              measure one core, then print the tables of docs/cluster.md
python benchmarks/cluster_costs.py --rate 5e10  without a measurement: this many units of cost per second and core
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import measure

import numpy as np  # isort: skip
import torch

from scanner.engine.plan import expected_seconds, matrix_memory
from scanner.rmt.analysis import analyze

#: Shapes that are measured; cost grows from the first to the last by a factor of 1000.
MEASURED = ((512, 512), (1024, 1024), (512, 2048), (2048, 2048), (1024, 4096), (4096, 4096))
#: Share of the memory of a node that is left for workers.
USABLE = 0.95


@dataclass(frozen=True, kw_only=True)
class Model:
    """The weight matrices of a model: shape and number, without and with embedding and output head."""

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    embeddings: tuple[int, int, int]
    bytes_per_weight: float = 2.0

    @property
    def parameters(self) -> float:
        """Number of weights in the file."""
        return float(sum(rows * cols * count for rows, cols, count in (*self.shapes, self.embeddings)))

    @property
    def matrices(self) -> int:
        """Number of matrices."""
        return sum(count for _, _, count in self.shapes)

    def core_hours(self, rate: float) -> float:
        """Hours of one core of this rate for the matrices of the blocks, which are what a scan takes by default."""
        return sum(count * expected_seconds(rows, cols, rate) for rows, cols, count in self.shapes) / 3600

    def more(self, rate: float) -> float:
        """What `--embeddings` adds, as a part of `core_hours`."""
        rows, cols, count = self.embeddings
        return count * expected_seconds(rows, cols, rate) / 3600 / self.core_hours(rate)

    @property
    def triplets(self) -> int:
        """Rows of the table `vectors`."""
        return sum(count * min(rows, cols) for rows, cols, count in self.shapes)

    def memory(self, *, embeddings: bool) -> float:
        """Bytes of the worker that has the largest matrix, or the largest of a block."""
        shapes = (self.embeddings,) if embeddings else self.shapes
        return max(matrix_memory(rows, cols) for rows, cols, _ in shapes)


def llama(
    name: str, layers: int, hidden: int, key_value: int, inner: int, vocabulary: int, *, tied: bool = False
) -> Model:
    """A Llama: attention, gated MLP, embedding and output head."""
    block = ((hidden, hidden, 2 * layers), (key_value, hidden, 2 * layers), (inner, hidden, 3 * layers))
    return Model(name=name, shapes=block, embeddings=(vocabulary, hidden, 1 if tied else 2))


#: The shapes of Llama 3.2 1B, 3.1 8B and 70B, and of Llama 4 Maverick: 24 of 48 blocks have 128 experts and a shared one.
MODELS = (
    llama("1B", 16, 2048, 512, 8192, 128_256, tied=True),
    llama("8B", 32, 4096, 1024, 14_336, 128_256),
    llama("70B", 80, 8192, 1024, 28_672, 128_256),
    Model(
        name="400B MoE",
        shapes=(
            (5120, 5120, 96),
            (1024, 5120, 96),
            (8192, 5120, 24 * 3 * 129),
            (16_384, 5120, 24 * 3),
            (128, 5120, 24),
        ),
        embeddings=(202_048, 5120, 2),
    ),
)


#: Models in the table of many nodes, and the assumed releases of a day.
FLEETS = (("8B", 100), ("8B", 1000), ("70B", 10), ("400B MoE", 1))
RELEASES = {"1B": 1000, "8B": 420, "70B": 70, "400B MoE": 10}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node type: approximate list prices in dollars per hour, and its rate."""

    name: str
    hourly: float
    spot: float
    gibibytes: int
    cores: int = 0
    gpus: int = 0
    gpu_rate: float = 0.0
    """Units of cost per second and GPU. Assumed, not measured: see docs/cluster.md."""

    def workers(self, model: Model) -> int:
        """Workers for the matrices of the blocks: one per GPU, or one per core as long as the memory lasts."""
        return self.gpus or min(self.cores, int(self.gibibytes * 2**30 * USABLE / model.memory(embeddings=False)))

    def rate(self, model: Model, core: float) -> float:
        """Units of cost per second, given those of one of many busy cores."""
        return self.workers(model) * (self.gpu_rate if self.gpus else core)


#: us-east-1, late 2026, rounded. Spot prices change by the hour.
NODES = (
    Node(name="m7a.16xlarge, 64 cores", hourly=3.71, spot=1.6, gibibytes=256, cores=64),
    Node(name="r7a.16xlarge, 64 cores", hourly=4.87, spot=2.1, gibibytes=512, cores=64),
    Node(name="p4d.24xlarge, 8 A100", hourly=22.0, spot=12.0, gibibytes=1152, gpus=8, gpu_rate=1.0e12),
    Node(name="p5.4xlarge, 1 H100", hourly=6.9, spot=3.0, gibibytes=256, gpus=1, gpu_rate=1.5e12),
)


def analyzed(shape: tuple[int, int]) -> float:
    """Seconds of the analysis of one matrix of noise."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return measure.seconds(lambda: analyze(w))


def warm_up() -> None:
    """Load what the first analysis would otherwise wait for."""
    analyzed((64, 64))


def measured(shapes: Iterable[tuple[int, int]]) -> Iterator[measure.Row]:
    """Seconds of one matrix on one core, alone and while every other core has one like it, and units of cost per second."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores, initializer=warm_up) as pool:
        pool.map(analyzed, [(512, 512)] * cores, chunksize=1)
        for shape in shapes:
            [alone] = pool.map(analyzed, [shape])
            busy = statistics.mean(pool.map(analyzed, [shape] * cores, chunksize=1))
            cost = expected_seconds(*shape, 1.0)
            yield {
                "shape": f"{shape[0]}x{shape[1]}",
                "cost": cost,
                "alone_s": alone,
                "busy_s": busy,
                "ratio": busy / alone,
                "busy_units_per_s": cost / busy,
            }


def estimates(core: float) -> Iterator[measure.Row]:
    """Hours and dollars per model on one node of each type."""
    for model in MODELS:
        for node in NODES:
            hours = model.core_hours(node.rate(model, core))
            yield {
                "model": model.name,
                "node": node.name,
                "workers": node.workers(model),
                "minutes": hours * 60,
                "on_demand_usd": hours * node.hourly,
                "spot_usd": hours * node.spot,
            }


def many(core: float) -> Iterator[measure.Row]:
    """Hours and dollars of many models on 512 cores and on 64 GPUs."""
    models = {model.name: model for model in MODELS}
    for name, count in FLEETS:
        for node, nodes in ((NODES[0], 8), (NODES[2], 8)):
            hours = count * models[name].core_hours(node.rate(models[name], core)) / nodes
            yield {
                "models": f"{count} of {name}",
                "nodes": f"{nodes} of {node.name}",
                "hours": hours,
                "spot_usd": hours * nodes * node.spot,
            }


def day(core: float) -> Iterator[measure.Row]:
    """Core hours and terabytes of the assumed releases of a day."""
    for model in MODELS:
        count = RELEASES[model.name]
        yield {
            "size": model.name,
            "repositories": count,
            "core_hours": count * model.core_hours(core),
            "TB": count * model.parameters * model.bytes_per_weight / 1e12,
            "million_rows": count * model.triplets / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="units of cost per second of one core, instead of a measurement")
    rate = parser.parse_args().rate
    if rate is None:
        measure.machine()
        rows = list(measured(MEASURED))
        measure.table("One matrix on one core, the others idle or busy", rows)
        rates = [float(str(row["busy_units_per_s"])) for row in rows]
        rate = statistics.median(rates)
        errors = [abs(one / rate - 1) for one in rates]
        print(f"\n{rate:.2e} units per second and core; median error of the cost model {statistics.median(errors):.0%}")
    measure.table(
        "Models",
        [
            {
                "model": model.name,
                "matrices": model.matrices,
                "billion": model.parameters / 1e9,
                "GB": model.parameters * model.bytes_per_weight / 1e9,
                "million_rows": model.triplets / 1e6,
                "core_hours": model.core_hours(rate),
                "with_embeddings": 1.0 + model.more(rate),
                "GB_block": model.memory(embeddings=False) / 1e9,
                "GB_embedding": model.memory(embeddings=True) / 1e9,
            }
            for model in MODELS
        ],
    )
    measure.table("One node", list(estimates(rate)))
    measure.table("Many nodes, spot", list(many(rate)))
    measure.table("All new models of a day", list(day(rate)))
    per_dollar = [
        (model.name, node.name, node.rate(model, rate) / node.spot / (NODES[0].rate(model, rate) / NODES[0].spot))
        for model in MODELS
        for node in NODES
    ]
    measure.table(
        f"Work per dollar on spot nodes, relative to {NODES[0].name}",
        [{"model": model, "node": node, "ratio": ratio} for model, node, ratio in per_dollar],
    )


if __name__ == "__main__":
    main()
