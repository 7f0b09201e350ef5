"""How many workers of which size fit the nodes of a cluster, and how many cores each has: arithmetic without Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
