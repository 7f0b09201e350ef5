"""Run by a test, in a process of its own: a scan and an ablation on a Ray that believes in a GPU.

    python -m tests.golden.fake_gpu FOLDER

FOLDER holds the unpacked fixture; the results go to FOLDER/gpu and, computed without the GPU, to FOLDER/cpu.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from .command import run


def main(folder: Path) -> None:
    """Run both commands on a share of the GPU, and on the CPU."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    text = ["--text", folder / "texts" / "text.txt", "--tokens", "128", "--window", "32"]
    commands: list[list[object]] = [
        ["scan", folder / "models" / "tuned", "--only", "query"],
        ["ablate", folder / "models" / "llama", *text, "--roles", "query", "--sets", "0:2,4:8"],
    ]
    for name, share in (("gpu", "0.5"), ("cpu", "0")):
        for command in commands:
            more = ["--store", folder / name, "--workers", "2", "--gpus-per-worker", share]
            printed = run(*command, *more, "--format", "json")
            assert printed.status == 0, printed.err
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
