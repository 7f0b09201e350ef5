"""Options of `rmtscan compress`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scanner.checkpoint import ROLES
from scanner.configuration import option
from scanner.errors import ConfigError
from scanner.experiments.nlp.options import DEFAULT_TOKENS, MeasureOptions, ModelOptions

TripletRule = Literal["energy", "p", "p_scale", "importance"]
"""Rules that choose singular triplets."""
By = Literal["energy", "p", "p_scale", "importance", "svd-llm"]
RULES: tuple[By, ...] = get_args(By)
ON_TEXT: tuple[By, ...] = ("importance", "svd-llm")
"""Rules that need the activations of the model on a text."""
Written = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """Options of `rmtscan compress`."""

    output: str = option(flags=("-o",), metavar="DIR")
    """Folder of the new checkpoint: it must not exist, or be empty."""
    budget: float = option(0.9)
    """Share of the parameters of the compressed matrices that is kept, between 0 and 1. A matrix of m x n keeps
    budget m n / (m + n) singular triplets, of which each has m + n parameters."""
    by: By = option("p_scale")
    """Which triplets are kept: those with the largest singular values (energy), with the least random vectors (p; or p_scale, under
    the scale null), or those that add most to the output of the matrix on a text (importance).
    svd-llm truncates after whitening with the activations instead."""
    factored: bool = option(False)
    """Write both factors of each matrix instead of their product: fewer parameters, and scanner.compress.load opens it."""
    roles: tuple[str, ...] = option((), metavar="ROLE,...", choices=ROLES)
    """Compress only matrices with these roles; none: all roles."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0)
    """Compress only matrices in these blocks; none: all blocks."""
    text: str = option("", metavar="FILE|DATASET")
    """A text file, a .jsonl .csv .tsv .parquet table, or owner/name[:config[:split]] on the Hub, on which perplexity is measured;
    without it nothing is measured."""
    column: str | None = option(None, metavar="NAME")
    """The column of the table with the text; None: found by its name."""
    where: str | None = option(None, metavar="COLUMN=VALUE")
    """Read only the rows with this value; None: all rows."""
    tokens: int = option(DEFAULT_TOKENS, min=2)
    """Tokens on which perplexity is measured."""
    window: int | None = option(None, min=2)
    """Tokens in a window; None: 512, or what the model takes."""
    calibration_tokens: int = option(DEFAULT_TOKENS, min=2)
    """Tokens for the second moments of the activations (importance and svd-llm): the beginning of the text.
    Perplexity is measured on what follows."""
    saved_dtype: Written | None = option(None)
    """Type of the weights that are written; None: that of the checkpoint, or float32 for dequantized weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.budget < 1.0:
            raise ConfigError(
                "budget", f"must be between 0 and 1 (0.9 keeps 90 % of the parameters), got {self.budget:g}"
            )
        if self.by in ON_TEXT and not self.text:
            raise ConfigError("text", f"is missing: {self.by} needs the activations of the model on a text")
        unused = [name for name in ("column", "where", "window") if getattr(self, name) is not None and not self.text]
        if unused:
            raise ConfigError(unused[0], "has no effect without `text`: give a text, or leave it out")

    def measure(self) -> MeasureOptions:
        """Return the options of the measurement: the tokens of the calibration and those that follow."""
        return MeasureOptions(
            text=self.text,
            column=self.column,
            where=self.where,
            tokens=self.calibration_tokens + self.tokens,
            window=self.window,
        )
