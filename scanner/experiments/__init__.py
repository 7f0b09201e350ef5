"""Experiments: one module each, with a configuration, a plan and a measurement.

`nlp` contains the code shared by experiments on language models; only it imports `transformers`.
"""

from scanner.experiments.experiment import Experiment, Report, experiments, register_experiment, run_experiment

__all__ = ["Experiment", "Report", "experiments", "register_experiment", "run_experiment"]
