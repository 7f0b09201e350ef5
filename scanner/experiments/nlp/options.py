"""Options shared by the configurations of several experiments: the model, its text, and the measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from scanner.configuration import Checked, option
from scanner.errors import ScannerError

if TYPE_CHECKING:
    from scanner.experiments.nlp.texts import TextSource

Metric = Literal["perplexity", "accuracy", "kl"]
METRICS: tuple[Metric, ...] = get_args(Metric)
HARNESS = "lm-eval:"
"""Before the name of a task of lm-evaluation-harness, it is a metric, too."""
Precision = Literal["float32", "bfloat16", "float16", "float64"]

DEFAULT_TOKENS = 4096
DEFAULT_EXAMPLES = 1000
DEFAULT_WINDOW = 512
SHORTEST = 8
"""Fewest tokens that a sequence of a labeled example must have room for."""
DEFAULT_PROMPT = "{text}\nLabel:"


def _unescaped(text: str) -> str:
    """Replace backslash-n by a line break in text from a command line."""
    return text.replace("\\n", "\n")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Checked):
    """The model of an experiment."""

    model: str = option(positional=True, metavar="REF")
    """A model: a folder, a GGUF file, org/name[@revision]."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(Checked):
    """The text of an experiment."""

    text: str = option(flags=("--task",), metavar="FILE|DATASET")
    """A text file, a .jsonl .csv .tsv .parquet table, or owner/name[:config[:split]] on the Hub."""
    column: str | None = option(None, metavar="NAME")
    """The column of the table with the text; None: found by its name."""
    second: str | None = option(None, metavar="NAME")
    """A column with a second text, for pairs of texts; None: no second text."""
    where: str | None = option(None, metavar="COLUMN=VALUE")
    """Read only the rows with this value; None: all rows."""

    def source(self) -> TextSource:
        """Describe what to read.

        Raises:
            ScannerError: `where` is not COLUMN=VALUE.
        """
        from scanner.experiments.nlp.texts import TextSource

        kept = None
        if self.where is not None:
            name, equals, value = self.where.partition("=")
            if not equals or not name:
                raise ScannerError(f"`where` must be COLUMN=VALUE, got {self.where!r}")
            kept = (name, value)
        label = getattr(self, "label", None)
        return TextSource(reference=self.text, column=self.column, second=self.second, label=label, where=kept)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(TextOptions):
    """What is measured on a text."""

    label: str | None = option(None, metavar="NAME")
    """The column with the labels (accuracy); None: found by its name."""
    text: str = option("", flags=("--task",), metavar="FILE|DATASET")
    """A text file, a .jsonl .csv .tsv .parquet table, or owner/name[:config[:split]] on the Hub; for lm-eval:TASK a folder with the
    definition of the task, or nothing if it comes with the harness."""
    metric: str = option("perplexity", metavar="|".join((*METRICS, "lm-eval:TASK")))
    """What is measured: perplexity, kl, accuracy, or the accuracy on a task of lm-evaluation-harness."""
    tokens: int | None = option(DEFAULT_TOKENS, min=2)
    """Tokens of the text (perplexity, kl)."""
    examples: int | None = option(DEFAULT_EXAMPLES, min=2)
    """Examples (accuracy), the same number of each class; documents of lm-eval:TASK."""
    window: int | None = option(None, min=2)
    """Tokens in a window; None: 512, or what the model takes."""
    stride: int | None = option(None, min=1)
    """Tokens from one window to the next; None: the length of the window."""
    prompt: str = option(DEFAULT_PROMPT, parse=_unescaped)
    """Prompt of a language model (accuracy): {text}, {second}."""
    answers: tuple[str, ...] = option((), metavar="WORD,...")
    """Answers of a language model, in the order of the labels (integers by value, others alphabetically); none: the labels."""
