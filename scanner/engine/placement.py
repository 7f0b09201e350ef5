"""How many workers of which size fit the nodes of a cluster, and how many cores each has: arithmetic without Ray."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

#: Smallest size of a worker, in bytes: an interpreter with its libraries, and a small matrix.
SMALLEST_BYTES = 640e6
#: Sizes grow in steps of 2^(1/4): at most 19 % more than a task needs, and so few of them that workers are rarely replaced.
_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Node:
    """The resources of one machine, in use or not."""

    id: str
    cpus: float
    gpus: float
    memory: float
    """Bytes that Ray gives to workers; infinite if Ray does not count them."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Numbers of workers with a GPU (or a share of one) and without."""

    gpu: int = 0
    cpu: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.gpu + self.cpu

    def at_most(self, limit: int) -> Count:
        """Return at most so many workers, those with a GPU first."""
        gpu = min(self.gpu, limit)
        return Count(gpu=gpu, cpu=min(self.cpu, limit - gpu))


def size_of(memory: float) -> float:
    """Return the size (bytes) of a worker for a task that needs so much memory (bytes): the next larger step."""
    if memory <= SMALLEST_BYTES:
        return SMALLEST_BYTES if memory > 0 else 0.0
    steps = math.ceil(_STEPS * math.log2(memory / SMALLEST_BYTES) - 1e-6)
    return float(math.ceil(SMALLEST_BYTES * 2 ** (steps / _STEPS) * (1 + 1e-6)))  # rounding never makes it too small


def largest_node(nodes: Sequence[Node]) -> float:
    """Return the memory of the node with the most, among those that have a core for a worker; infinite if there is none yet."""
    return max((node.memory for node in nodes if node.cpus >= 1), default=math.inf)


def workers_on(node: Node, memory: float, gpus: float) -> int:
    """Return how many workers fit a node that each take one core, so much memory (bytes) and this share of a GPU."""
    slots = int(node.cpus)
    if gpus > 1:
        slots = min(slots, int(node.gpus // gpus))
    elif gpus > 0:
        slots = min(slots, int(node.gpus) * int(1 / gpus + 1e-9))  # no worker gets its share from two GPUs
    if memory > 0 and math.isfinite(node.memory):
        slots = min(slots, int(node.memory // memory))
    return max(0, slots)


def workers_of(nodes: Sequence[Node], memory: float, gpus: float) -> int:
    """Return how many such workers fit all nodes together."""
    return sum(workers_on(node, memory, gpus) for node in nodes)


def cores_of(nodes: Sequence[Node], memory: float) -> int:
    """Return how many cores each worker can take if as many workers as fit are on every node: memory may leave cores idle."""
    counts = [(int(node.cpus), workers_on(node, memory, 0.0)) for node in nodes]
    return max(1, min((cpus // workers for cpus, workers in counts if workers), default=1))


def beside_gpus(
    nodes: Sequence[Node], memory: float, gpus: float, slow: Collection[str] = ()
) -> tuple[int, list[Node]]:
    """Return how many workers take GPUs, and the nodes with what is left of them for workers that take none.

    Args:
        nodes: the machines.
        memory: bytes of each worker.
        gpus: share of a GPU of each worker that takes one.
        slow: ids of the nodes whose GPUs are not used.
    """
    count, left = 0, []
    for node in nodes:
        taken = workers_on(node, memory, gpus) if node.gpus and node.id not in slow else 0
        count += taken
        left.append(replace(node, cpus=node.cpus - taken, gpus=0.0, memory=node.memory - taken * memory))
    return count, left


def largest_cost(rate: float, rest: float, faster: Sequence[float]) -> float:
    """Return the cost from which on a task is better left to faster workers; infinite if there are none.

    Such a task would still run on the slow worker when the faster ones, or the fastest few of them, have finished it, even if they
    take it last. When that is, is bounded as in list scheduling: all the work at their rate together, and then this task on the
    slowest of them.

    Args:
        rate: of the slow worker, cost per second.
        rest: cost of all tasks that are not finished.
        faster: rates of faster workers.
    """
    found, together = math.inf, 0.0
    for other in sorted((one for one in faster if one > rate), reverse=True):
        together += other
        found = min(found, rest / together / (1 / rate - 1 / other)) if rate > 0 else 0.0
    return found
