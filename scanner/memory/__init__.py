"""Analysis of models in memory: what a scan does with files, without files and, unless asked for, without Ray."""

from scanner.memory.analyzing import analyze_model
from scanner.memory.result import ModelAnalysis

__all__ = ["ModelAnalysis", "analyze_model"]
