"""Scans on a cluster of several raylets that loses and gains nodes, and at last its head; a test runs this in a process of its own.

    python -m tests.engine.faulty_cluster CHECKPOINT FOLDER

Writes FOLDER/told.json and one store for each scenario: FOLDER/quiet, raylet, moved, head.
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

from scanner.engine import PoolOptions, session
from scanner.engine.scan import scan
from scanner.errors import ScannerError
from tests.processes import alive, command, descendants, wait_until

from .observer import Recorder

MEMORY = 100 << 20
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
# As in cluster.yaml, the head has no CPU for actors.
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY, "_system_config": QUICK}
#: When a scenario interferes: after so many tasks.
AT = 20


class Scenario:
    """One cluster, and scans on it."""

    def __init__(self, checkpoint: str, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.told: dict[str, Any] = {}
        self.cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        self.nodes: list[Any] = []
        ray.init(address=self.cluster.address, log_to_driver=False)

    def add(self, **resources: float) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **resources))

    def scan(self, name: str, workers: int, *disturb: Callable[[], None], pause: float = 0.0) -> None:
        """Scan into a store of its own; each of `disturb` is called once, in the middle, and then each result takes a while."""
        calls = {AT * (number + 1): call for number, call in enumerate(disturb)}

        def after(done: int) -> None:
            calls.get(done, lambda: None)()
            if done > max(calls, default=done):
                time.sleep(pause)

        recorder = Recorder(after)
        options = PoolOptions(workers=workers, gpus_per_worker=0)
        report = scan(self.checkpoint, store=str(self.folder / name), pool=options, observer=recorder, ensembles=())
        self.told[name] = {
            "analyzed": report.models[0].analyzed,
            "failed": report.failed,
            "alive": recorder.alive,
        }

    def living_workers(self) -> int:
        return sum(actor["State"] == "ALIVE" for actor in ray._private.state.actors().values())

    def kill_raylet(self) -> None:
        """As if a machine were switched off: its raylet, and what it has started."""
        wait_until(lambda: self.living_workers() == 2, "a worker on either node")
        node = self.nodes.pop(0)
        [raylet] = [info.process.pid for info in node.all_processes["raylet"]]
        gone = descendants(raylet)
        self.told["killed"] = [command(pid) for pid, _ in gone]
        os.kill(raylet, signal.SIGKILL)
        for pid, _ in alive(gone):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(gone), "the end of the node's processes")

    def remove(self) -> None:
        """As an autoscaler removes a node that is in use."""
        wait_until(lambda: self.living_workers() == 2, "a worker on either node")
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=True)

    def kill_head(self) -> None:
        """The table of the cluster, which cannot be replaced."""
        [gcs] = [info.process.pid for info in self.cluster.head_node.all_processes["gcs_server"]]
        os.kill(gcs, signal.SIGKILL)

    def end(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def main(checkpoint: str, folder: str) -> None:
    session._HEAD_LOOK, session._HEAD_PATIENCE = 1.0, 3.0
    here = Scenario(checkpoint, Path(folder))
    here.add()
    here.add(num_gpus=1)
    here.scan("quiet", 2)
    here.scan("raylet", 2, here.kill_raylet)
    here.add()
    here.scan("moved", 2, here.remove, here.add)
    try:
        here.scan("head", 2, here.kill_head, pause=0.2)  # else it may be complete before that is noticed
    except ScannerError as error:
        here.told["head"] = {"error": str(error)}
    Path(folder, "told.json").write_text(json.dumps(here.told))
    # The next cluster: the same command computes what is missing.
    here.end()
    told, here = here.told, Scenario(checkpoint, Path(folder))
    here.add()
    here.scan("head", 1)
    told["head"] |= here.told["head"]
    here.end()
    Path(folder, "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
