"""The callback for Lightning, under either of its names: the packages `lightning` and `pytorch_lightning`."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from scanner.callbacks.monitor import Monitor

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    def _package() -> Any:
        """Return the package that the program uses: the one that it has imported, or else the one that is installed."""
        names = ("lightning.pytorch", "pytorch_lightning")
        used = [name for name in names if name in sys.modules]
        for name in used or names:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                missing = error
        raise missing

    Callback = _package().Callback


class LightningCallback(Callback):
    """Measures the weights every so many steps, logs the values through the loggers of the trainer, and keeps the rows in a store.

        monitor = LightningCallback(store="results", name="my-run", every=200, roles=("query", "value"))
        trainer = Trainer(callbacks=[monitor])

    Every logger of the trainer gets the values, and so do `trainer.callback_metrics`, which ModelCheckpoint and EarlyStopping read.
    """

    def __init__(self, **options: Any) -> None:
        """Prepare.

        Args:
            options: those of `scanner.callbacks.Monitor`.

        Raises:
            ConfigError: an option has a value that is not accepted.
        """
        super().__init__()
        self.monitor = Monitor(**options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the model can be measured.

        Raises:
            CheckpointError: it has no matrix that can be measured.
            StoreError: the store cannot be written.
        """
        self.monitor.check(pl_module)
        if trainer.is_global_zero:
            self.monitor.begin(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure the model if it is its turn, and log the values."""
        if not trainer.is_global_zero:
            return
        values = self.monitor.step(pl_module, trainer.global_step)
        if not values:
            return
        # `log_dict` reaches loggers only at the trainer's own steps (log_every_n_steps), and `callback_metrics` always.
        pl_module.log_dict(values, logger=False, on_step=True, on_epoch=False, rank_zero_only=True)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
