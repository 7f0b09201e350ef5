"""Exports of what was measured, in the formats of other tools: Spectrum, axolotl, PEFT, AlphaPruning, CSV, JSON and model cards.

Each function reads a model of a store and returns the text (or bytes) of a file; `scanner.export.writing` writes it. The choice of
parameters, ranks and sparsities is a pure function of the measured numbers.
"""

from scanner.export.alphapruning import alpha_values, alphapruning
from scanner.export.answers import answer_file
from scanner.export.card import model_card
from scanner.export.flat import flat_csv, flat_json
from scanner.export.lora import Lora, peft
from scanner.export.unfrozen import axolotl, snr_results, spectrum

__all__ = [
    "Lora",
    "alpha_values",
    "alphapruning",
    "answer_file",
    "axolotl",
    "flat_csv",
    "flat_json",
    "model_card",
    "peft",
    "snr_results",
    "spectrum",
]
