"""A matrix that kills every worker that reads it, or at which every read hangs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from scanner.engine.task import Context
from scanner.engine.tasks import MatrixResult, MatrixTask

LETHAL = "model.layers.7."
"""Beginning of the names of its tensors."""
HANGING = "model.layers.9."


@dataclass(frozen=True, kw_only=True)
class PoisonedTask(MatrixTask):
    """The task of `MatrixTask`, unless one of its matrices is poisoned."""

    poison: str

    def run(self, context: Context) -> tuple[MatrixResult, ...]:
        if any(ref.tensor.startswith(self.poison) for ref in self.refs):
            if self.poison == LETHAL:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600.0)
        return super().run(context)
