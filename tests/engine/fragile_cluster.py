"""Scans on a cluster with a simulated GPU and a node that is lost; a test runs this module in a separate process.

    python -m tests.engine.fragile_cluster CHECKPOINT FOLDER

Writes FOLDER/told.json and the stores FOLDER/whole (one worker per GPU, the node is lost), FOLDER/half (two workers share it) and
FOLDER/mixed (a worker without a GPU beside it).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from scanner.engine import PoolOptions, ScanReport, pool
from scanner.engine.pool import Needs, Pool, PoolShape, Ready
from scanner.engine.scan import scan
from scanner.store import open_store
from tests.processes import alive, descendants, ray_workers, wait_until

from .mortal import Mortal, Work
from .observer import Recorder

MEMORY = 100 << 20
# As in cluster.yaml, the head has no CPU for actors. The health checks are faster than usual.
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY, "_system_config": QUICK}
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": MEMORY}


class Device(Mortal):
    """A worker that says that the GPU it holds is a real one, and how fast this is; tells where it ran its tasks."""

    def __init__(self, gpu_rate: float) -> None:
        self.gpu_rate = gpu_rate

    def rates(self) -> dict[str, float]:
        return {"cpu": 1.0} | ({"cuda": self.gpu_rate} if self.ready().device == "cuda" else {})

    def ready(self) -> Ready:  # type: ignore[override]
        context = ray.get_runtime_context()
        gpu = context.get_assigned_resources().get("GPU", 0)
        return Ready(device="cuda" if gpu else "cpu", node=context.get_node_id())

    def run(self, work: Work) -> str:
        super().run(work)
        return f"{self.ready().device} {self.ready().node}"


def mixed(
    folder: str,
    gpu_rate: float,
    tasks: int,
    *,
    asked: int | None = None,
    after: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Run tasks on whatever the cluster has: where each of them ran, what was noted, and the numbers of workers."""
    pool._rates.clear()
    done: list[str] = []
    lost: list[str] = []
    notes: list[str] = []
    counts: list[tuple[int, int]] = []

    def on_done(work: Work, where: str) -> None:
        done.append(where)
        after(len(done))

    here: Pool[Work] = Pool(
        Device,
        PoolShape(workers=asked or 99, gpus=1.0, mixed=True),
        on_done=on_done,
        on_lost=lambda work, reason: lost.append(reason),
        on_workers=lambda alive, wanted: counts.append((alive, wanted)),
        on_note=notes.append,
        needs=lambda work: Needs(memory=1.0, cost=work.cost),
        nodes=pool.nodes_of_cluster,
        asked=asked,
        arguments=(gpu_rate,),
    )
    here.run([Work(name=f"{number}", log=Path(folder, "log"), seconds=0.1) for number in range(tasks)])
    return {"where": done, "lost": lost, "notes": notes, "counts": counts, "wanted": here.wanted}


def told_by(report: ScanReport, told: Recorder) -> dict[str, Any]:
    store = open_store(report.store)
    [row] = store.sql("SELECT environment FROM scans").to_pylist()
    return {
        "analyzed": report.models[0].analyzed,
        "failed": report.failed,
        "alive": told.alive,
        "devices": store.sql("SELECT DISTINCT device FROM matrices")["device"].to_pylist(),
        "environment": json.loads(row["environment"]),
    }


def main(checkpoint: str, folder: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    nodes = [cluster.add_node(**NODE)]
    ray.init(address=cluster.address, log_to_driver=False)

    def lose_node(done: int) -> None:
        """Kill the node and its workers, as if the machine were switched off; otherwise its workers would finish some tasks."""
        if done == 2:
            workers = {process for process in descendants(os.getpid()) if process[0] in ray_workers()}
            assert workers, "the node has a worker"
            cluster.remove_node(nodes[0], allow_graceful=False)
            for pid, _ in alive(workers):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not alive(workers), "the end of the node's workers")

    class Fate(Recorder):
        def workers(self, alive: int, wanted: int) -> None:
            super().workers(alive, wanted)
            if alive == 0:
                nodes.append(cluster.add_node(**NODE))

    fate = Fate(lose_node)
    alone = PoolOptions(gpus_per_worker=1)
    whole = told_by(scan(checkpoint, store=f"{folder}/whole", observer=fate, pool=alone), fate)

    together: list[int] = []

    def living_actors() -> int:
        return sum(actor["State"] == "ALIVE" for actor in ray._private.state.actors().values())

    def wait_for_both(done: int) -> None:
        """Wait for the second worker, because the first could finish all tasks before it starts."""
        if done == 1:
            wait_until(lambda: living_actors() == 2, "a second worker")
            together.append(living_actors())

    quiet = Recorder(wait_for_both)
    shared = PoolOptions(gpus_per_worker=0.5)
    half = told_by(scan(checkpoint, store=f"{folder}/half", observer=quiet, pool=shared), quiet)
    told = {"whole": whole, "half": half, "nodes": len(nodes), "together": together}

    def start_both(done: int) -> None:
        if done == 1:
            wait_until(lambda: living_actors() == 2, "a second worker")

    notes: list[str] = []

    class Notes(Recorder):
        def note(self, text: str) -> None:
            notes.append(text)

    both = Notes()
    told["mixed"] = told_by(scan(checkpoint, store=f"{folder}/mixed", observer=both), both) | {"notes": notes}
    told["rates"] = list(pool._rates.values())
    told["devices"] = {
        "slow": mixed(folder, 0.5, 12),
        "equal": mixed(folder, 1.0, 30, after=start_both),
        "fast": mixed(folder, 100.0, 20, after=start_both),
        "one": mixed(folder, 1.0, 4, asked=1),
    }

    pool._LOOK_SECONDS = 0.2

    def join(done: int) -> None:
        if done == 4:
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))
        if done > 4 and living_actors() < 3:
            time.sleep(0.3)  # so that there are tasks left when the worker has started

    told["joined"] = mixed(folder, 1.0, 100, after=join)
    told["ids"] = [node.node_id for node in nodes]
    Path(folder, "told.json").write_text(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
