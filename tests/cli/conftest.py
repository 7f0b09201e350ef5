"""Running the command: in this process where that is enough, as a process of its own where signals and imports count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from scanner.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Ran:
    """Result of a command."""

    status: int
    out: bytes
    err: str

    @property
    def told(self) -> str:
        """Text on stderr without line breaks and without the box around a usage error."""
        return " ".join("".join(char for char in self.err if char not in "│╭╮╰╯─").split())

    @property
    def errors(self) -> list[str]:
        """Lines that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


Run = Callable[..., Ran]


@pytest.fixture
def rmtscan(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`rmtscan("query", "scans", ...)` in this process; fails on a traceback."""
    monkeypatch.delenv("RMTSCAN_STORE", raising=False)

    def run(*arguments: object) -> Ran:
        capsysbinary.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return Ran(status=status, out=out, err=err.decode())

    return run
