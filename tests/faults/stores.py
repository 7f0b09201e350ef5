"""Small committed stores, and damage that happens to their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scanner.checkpoint import open_checkpoint
from scanner.engine.compare import ComparisonWork
from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.work import Observer
from scanner.store import Store, open_store
from tests.engine.checkpoints import small

from .here import run_here

Damage = Callable[[Path], None]


def removed(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def a_row_less(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


DAMAGES = (removed, cut_short, emptied, one_bit, a_row_less)


def compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the scans of two models and of their difference, and their comparison."""
    base, tuned = (
        open_checkpoint(small(folder / name, seed=seed, layers=2)) for seed, name in enumerate(("base", "tuned"))
    )
    store = open_store(str(folder / "store"), create=True)
    scans = ScanWork(store, Method(), Observer(), strict=True)
    comparison = ComparisonWork(store, Method(), base, tuned, force=False)
    for one in (base, tuned, comparison.delta):
        scans.add_opened(one.model, one, force=False)
    run_here(monkeypatch, scans, comparison)
    return store
