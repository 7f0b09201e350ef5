"""One of two drivers that scan a model into a store at the same time; a test runs this module in two processes.

    python -m tests.engine.driver CHECKPOINT STORE ADDRESS MINE OTHER

It creates the file MINE after its first result, and goes on when the file OTHER is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scanner.engine import PoolOptions
from scanner.engine.scan import scan
from tests.processes import wait_until

from .observer import Recorder


def main(checkpoint: str, store: str, address: str, mine: str, other: str) -> None:
    def meet(done: int) -> None:
        if done == 1:
            Path(mine).touch()
            wait_until(Path(other).exists, "the first result of the other driver")

    report = scan(
        checkpoint,
        store=store,
        pool=PoolOptions(address=address, workers=1),
        observer=Recorder(meet),
        ensembles=(),
    )
    [model] = report.models
    print(json.dumps({"analyzed": model.analyzed, "failed": model.failed, "error": str(model.error or "")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
