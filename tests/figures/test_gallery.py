"""The gallery of the documentation: what it shows of a figure, and what it says about figures that it cannot draw."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from scanner.figures import FIGURES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a few figures: all of them are drawn by other tests."""
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    few = {name: FIGURES[name] for name in ("activation_spectrum", "heads", "slicing", "lazy")}
    monkeypatch.setattr(module, "all_figures", lambda: few)
    return module


def test_every_figure_is_shown_in_both_themes_with_what_it_says_about_its_data(
    gallery: ModuleType, full_url: str, tmp_path: Path
) -> None:
    assert gallery.main(str(tmp_path), full_url) == 0
    page = (tmp_path / "index.md").read_text("utf-8")
    assert "Figures without results" not in page
    for name in ("activation_spectrum", "heads", "slicing", "lazy"):
        assert f"## {FIGURES[name].title}\n" in page
        for theme in ("light", "dark"):
            assert f"({name}-{theme}.svg#only-{theme})" in page
            assert "<svg" in (tmp_path / f"{name}-{theme}.svg").read_text("utf-8")[:200]
    # The activations are of several models: one was chosen, and the command says which.
    assert re.search(r"    rmtscan plot activation_spectrum --model org/model -o", page)
    assert r"\*" not in page.replace(r"\_", "")
    assert re.search(r"^\*Spectrum of the activations: org/model @ r1; .*\*$", page, re.M)


def test_figures_without_results_are_listed_with_the_reason(gallery: ModuleType, pair_url: str, tmp_path: Path) -> None:
    assert gallery.main(str(tmp_path), pair_url) == 0
    page = (tmp_path / "index.md").read_text("utf-8")
    shown, _, missing = page.partition("## Figures without results")
    assert FIGURES["heads"].title in shown
    assert "make gallery-experiments" in missing
    assert "| `slicing` |" in missing
    assert "the store holds no slicing: run 'rmtscan slicing REF --text FILE'" in missing
    assert "the store holds no overlaps" in missing
    assert pair_url not in page
