"""The options `-o` and `--force` of verbs that answer a question: the answer as a file instead of a table on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli.output import note

if TYPE_CHECKING:
    import pyarrow as pa

AnswerOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the answer to a file; the suffix selects the format: .parquet .csv .json .xlsx",
        show_default="stdout",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]


@contextmanager
def answer_to(output: str | None, *, force: bool) -> Iterator[Callable[[pa.Table], bool]]:
    """Return a function that writes an answer to the file, and returns whether there is one; the file is checked before.

    Raises:
        ConfigError: the file exists (without `force`), or its folder or the format does not.
    """
    if output is None:
        yield lambda answer: False
        return
    from scanner.export import answers, writing

    path = writing.check(output, force=force)
    suffix = answers.suffix_of(path)

    def keep(answer: pa.Table) -> bool:
        content = answers.answer_file(answer, suffix)
        writing.write(path, content)
        note(f"{path}: {answer.num_rows:,} rows, {len(content):,} bytes")
        return True

    yield keep
