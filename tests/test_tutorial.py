"""The tutorial notebook runs, and its outputs are those that it contains."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("execute", ROOT / "docs" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tutorial_prints_what_it_says(
    execute: ModuleType, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMTSCAN_SAMPLES", str(minilm.parents[1].resolve()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = execute.read()
    assert list(execute.differences(kept, execute.executed(kept, tmp_path))) == []
    assert (tmp_path / "results" / "scans").is_dir()


def test_the_outputs_are_small_and_name_no_folder_of_a_machine(execute: ModuleType) -> None:
    text = execute.NOTEBOOK.read_text("utf-8")
    assert len(text) < 400_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    code = [cell for cell in execute.read().cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code), "every cell shows something"


def test_another_number_and_another_word_are_differences(execute: ModuleType) -> None:
    kept = execute.read()
    cell = next(i for i, one in enumerate(kept.cells) if one.cell_type == "code")
    assert list(execute.differences(kept, kept)) == []
    for change in ("9", " else"):
        other = copy.deepcopy(kept)
        other.cells[cell].outputs[0].data["text/plain"] += change
        assert len(list(execute.differences(kept, other))) == 1
    assert execute.same("p = 0.4321, 1,024 values", "p = 0.4322, 1,024 values")
    assert not execute.same("p = 0.43", "p = 0.53")
    assert not execute.same("p = 0.43", "q = 0.43")
