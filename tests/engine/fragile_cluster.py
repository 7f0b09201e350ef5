"""Scans on a cluster with a simulated GPU and a node that is lost; a test runs this module in a separate process.

    python -m tests.engine.fragile_cluster CHECKPOINT FOLDER

Writes FOLDER/told.json and the stores FOLDER/whole (one worker per GPU, the node is lost) and FOLDER/half (two workers share it).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from scanner.engine import PoolOptions, ScanReport
from scanner.engine.scan import scan
from scanner.store import open_store
from tests.processes import alive, descendants, ray_workers, wait_until

from .observer import Recorder

MEMORY = 100 << 20
# As in cluster.yaml, the head has no CPU for actors. The health checks are faster than usual.
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY, "_system_config": QUICK}
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": MEMORY}


def told_by(report: ScanReport, told: Recorder) -> dict[str, Any]:
    store = open_store(report.store)
    [row] = store.sql("SELECT environment FROM scans").to_pylist()
    return {
        "analysed": report.models[0].analysed,
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
    whole = told_by(scan(checkpoint, store=f"{folder}/whole", observer=fate), fate)

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
    Path(folder, "told.json").write_text(
        json.dumps({"whole": whole, "half": half, "nodes": len(nodes), "together": together})
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
