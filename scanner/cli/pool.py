"""Options that say where and on how many workers a verb runs, and how an interruption ends it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

AddressOption = Annotated[
    str | None, typer.Option(help="Join a running Ray cluster: auto or HOST:PORT.", show_default="a local Ray")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Number of actors.", show_default="one a GPU, else one a core")
]
GpusOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Share of a GPU for each actor.", show_default="1 where there are GPUs"),
]


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler's or container's stop) ends a run the way Ctrl-C does: results kept, workers gone."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
