"""Runs the command in this process and returns what it printed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scanner.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Exit status, standard output and standard error of a command."""

    status: int
    out: bytes
    err: str


@contextmanager
def _captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Replace standard output and standard error while the block runs."""
    before = sys.stdout, sys.stderr
    buffers = io.BytesIO(), io.BytesIO()
    sys.stdout, sys.stderr = (io.TextIOWrapper(buffer, "utf-8", write_through=True) for buffer in buffers)
    try:
        yield buffers
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.detach()  # a wrapper that is closed closes its buffer
        sys.stdout, sys.stderr = before


def run(*arguments: object) -> Printed:
    """Run `rmtscan ARGUMENTS`."""
    status = 0
    with _captured() as (out, err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return Printed(status=status, out=out.getvalue(), err=err.getvalue().decode())
