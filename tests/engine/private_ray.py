"""Run by a test, in a process of its own: a local Ray that stays until stdin ends, and everything about it that a test needs.

    python -m tests.engine.private_ray

Prints one line of JSON: its token, its address, its folder, and its processes with their listening sockets.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import ray

from scanner.engine import PoolOptions, session


def main() -> None:
    before = {name: os.environ.get(name) for name in session._VARIABLES}
    with session.ray_session(PoolOptions()):
        ray.get(ray.remote(lambda: None).remote())  # a worker has started
        me = psutil.Process()
        processes: list[dict[str, Any]] = []
        for process in [me, *me.children(recursive=True)]:
            listening = [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            scripts = [word for word in process.cmdline() if word.endswith(".py")]
            about = {"pid": process.pid, "name": process.name(), "scripts": scripts}
            processes.append(about | {"listening": sorted(set(listening))})
        context = ray.get_runtime_context()
        told = {
            "token": os.environ["RAY_AUTH_TOKEN"],
            "mode": os.environ["RAY_AUTH_MODE"],
            "address": context.gcs_address,
            "folder": str(Path(ray._private.worker._global_node.get_session_dir_path()).resolve()),
            "processes": processes,
        }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    assert {name: os.environ.get(name) for name in session._VARIABLES} == before


if __name__ == "__main__":
    main()
