"""A driver in a process of its own, which a test can kill, or one of two that scan a model into a store at the same time.

    python -m tests.engine.driver CHECKPOINT STORE ADDRESS [MINE OTHER]

One of two creates the file MINE after its first result, and goes on when the file OTHER is there. Environment variables:
HASHED_AT_ONCE stands for the size in bytes up to which files are hashed before their scan. A driver goes no further after
WAITS_AFTER results, so that the test that kills it finds it at work, however fast the machine is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scanner.engine import PoolOptions, ahead
from scanner.engine.scan import scan
from tests.processes import wait_until

from .observer import Recorder


def main(checkpoint: str, store: str, address: str, mine: str = "", other: str = "") -> None:
    def meet(done: int) -> None:
        if done == 1 and mine:
            Path(mine).touch()
            wait_until(Path(other).exists, "the first result of the other driver")
        if done == waits_after:
            wait_until(lambda: False, "the end of this process")

    ahead.HASHED_AT_ONCE = int(os.environ.get("HASHED_AT_ONCE", ahead.HASHED_AT_ONCE))
    waits_after = int(os.environ.get("WAITS_AFTER", 0))
    recorder = Recorder(meet)
    report = scan(
        checkpoint,
        store=store,
        pool=PoolOptions(address=address, workers=1),
        observer=recorder,
        ensembles=(),
    )
    [model] = report.models
    told = {"analyzed": model.analyzed, "failed": model.failed, "error": str(model.error or ""), "kept": recorder.kept}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
