"""The callback for the `Trainer` of transformers."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback

from scanner.callbacks.monitor import Monitor


class TransformersCallback(TrainerCallback):
    """Measures the weights every so many steps, logs the values through the trainer, and keeps the rows in a store.

        monitor = TransformersCallback(store="results", name="my-run", every=200, roles=("query", "value"))
        monitor.attach(trainer)
        trainer.train()

    A callback does not know its trainer. Attached, it logs with `trainer.log`, which every other callback sees (TensorBoard, W&B,
    MLflow, ...). Given in `Trainer(callbacks=[...])` alone, it can only add its values to the next log: callbacks that come after
    it and `state.log_history` have them, but the reporters of `report_to`, which come before it, do not; a warning says so.
    """

    def __init__(self, **options: Any) -> None:
        """Prepare.

        Args:
            options: those of `scanner.callbacks.Monitor`.

        Raises:
            ConfigError: an option has a value that is not accepted.
        """
        self.monitor = Monitor(**options)
        self._trainer: Any = None
        self._pending: dict[str, float] = {}

    def attach(self, trainer: Any) -> None:
        """Log through a trainer, and add this callback to it unless it has it.

        Args:
            trainer: a `transformers.Trainer`.
        """
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the model can be measured.

        Raises:
            CheckpointError: it has no matrix that can be measured.
            StoreError: the store cannot be written.
        """
        self.monitor.check(kwargs["model"])
        if not state.is_world_process_zero:
            return
        self.monitor.begin(kwargs["model"])
        if self._trainer is None:
            warnings.warn(
                "call attach(trainer) on this TransformersCallback: callbacks before it, such as those of `report_to`, do not get "
                "its values otherwise",
                UserWarning,
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model if it is its turn, and log the values."""
        if not state.is_world_process_zero:
            return
        values = self.monitor.step(kwargs["model"], state.global_step)
        if not values:
            return
        if self._trainer is not None:
            logs = control.should_log  # `log` ends the turn of the trainer's own values, which come at the same step
            self._trainer.log(values)
            control.should_log = logs
        else:
            self._pending = values
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add values to a log if there is no trainer to log them."""
        if self._pending and logs is not None:
            logs.update(self._pending)
            if state.log_history:
                state.log_history[-1].update(self._pending)
            self._pending = {}
