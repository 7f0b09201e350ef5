"""Experiments show what the deviations mean: one module each, with a configuration, a plan and a measurement.

`nlp` holds what those on language models share; `transformers` is imported there alone.
"""

from scanner.experiments.experiment import Experiment, Report, experiments, register_experiment, run_experiment

__all__ = ["Experiment", "Report", "experiments", "register_experiment", "run_experiment"]
