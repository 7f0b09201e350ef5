"""What can be done with the result of `analyze_model`: tables, numbers, figures, reports, stores, and notebooks."""

from __future__ import annotations

import gc
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import scanner
from scanner import ModelAnalysis, ScannerError, StoreError, open_store
from scanner.errors import ConfigError
from scanner.store.tables import SCHEMAS

from .models import comparable, tiny


@pytest.fixture(scope="module")
def result() -> ModelAnalysis:
    return scanner.analyze_model(tiny("llama"), name="tiny", embeddings=True, ensembles=("gaussian",))


def test_tables_as_data_frames(result: ModelAnalysis) -> None:
    frame = result.to_pandas()
    assert list(frame.columns) == SCHEMAS["matrices"].names
    assert len(frame) == result.matrices.num_rows == 16
    assert frame["spectral_norm"].tolist() == result.matrices["spectral_norm"].to_pylist()
    vectors = result.to_polars("vectors")
    assert vectors.shape == (result.vectors.num_rows, len(SCHEMAS["vectors"]))
    assert vectors["singular_value"].to_list() == result.vectors["singular_value"].to_pylist()
    with pytest.raises(ConfigError, match="`table` is 'pairs': choose from matrices, vectors, failures"):
        result.to_pandas("pairs")  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_without_its_library_is_one_line(
    library: str, result: ModelAnalysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ScannerError, match=rf"to_{library}\(\) needs {library}, which is not installed: run `pip install"
    ):
        getattr(result, f"to_{library}")()


def test_the_summary_is_what_numpy_makes_of_the_weights(result: ModelAnalysis) -> None:
    model = tiny("llama")
    weights = [tensor.double().numpy() for tensor in model.state_dict().values() if tensor.dim() == 2]
    spectra = [np.linalg.svd(weight, compute_uv=False) for weight in weights]
    summary = result.summary()
    assert summary["matrices"] == len(weights) == 16
    assert summary["parameters"] == sum(weight.size for weight in weights)
    assert summary["singular_values"] == result.vectors.num_rows == sum(len(values) for values in spectra)
    assert summary["skipped"] == len(model.state_dict()) - 16 == len(result.skipped)
    assert summary["failed"] == 0
    ranks = [(values**2).sum() / values[0] ** 2 for values in spectra]
    assert summary["stable_rank_mean"] == pytest.approx(np.mean(ranks), rel=1e-9)
    outliers = result.vectors["region"].to_pylist()
    assert (summary["outliers_left"], summary["outliers_right"]) == (outliers.count("left"), outliers.count("right"))
    assert 0.4 < (summary["v_p_mean"] or 0) < 0.6
    norms = [np.log10((values**2).sum()) for values in spectra]
    assert summary["ww_log_norm_mean"] == pytest.approx(np.mean(norms), rel=1e-9)
    rows = result.matrices.to_pylist()
    fits = [row["alpha"] for row in rows if row["alpha"] is not None and row["alpha_failure"] is None]
    assert summary["alpha_fits"] == len(fits)
    assert summary["alpha_mean"] == (pytest.approx(np.mean(fits)) if fits else None)
    assert all(value is None or isinstance(value, int | float) for value in summary.values())


def test_figures_queries_and_reports_read_the_result(result: ModelAnalysis, tmp_path: Path) -> None:
    chart = result.figure("spectrum", layer=1, role="mlp_up")
    assert "mlp_up" in str(chart.to_dict())
    with pytest.raises(ScannerError, match="unknown figure 'spectra'"):
        result.figure("spectra")
    with pytest.raises(ScannerError, match="takes no parameter 'color'"):
        result.figure("spectrum", color="red")
    assert len(result.query("layer_trend", role="query")) == 2
    assert result.sql("SELECT count(*) AS n FROM controls")["n"].to_pylist()[0] > 0
    assert result.report(tmp_path / "report.html").models == ("tiny",)
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")[:200]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_saving_commits_a_scan_that_reads_like_any_other(result: ModelAnalysis, tmp_path: Path) -> None:
    for _ in range(2):
        assert result.save(tmp_path / "store") == result.scan_id
    store = open_store(str(tmp_path / "store"))
    assert store.committed() == [result.scan_id]
    for name in ("matrices", "vectors"):
        stored = store.sql(f"FROM all_{name}").select(SCHEMAS[name].names)
        order = [(column, "ascending") for column in ("tensor", "role", *(["k"] if name == "vectors" else []))]
        assert comparable(stored.sort_by(order)) == comparable(getattr(result, name).sort_by(order))
    row = store.scan_row(result.scan_id)
    assert row is not None
    assert (row["format"], row["source"], row["model"]) == ("memory", "in-memory:tiny", "tiny")
    assert {found.state for found in store.verify()} == {"whole"}
    assert not store.begun()
    with pytest.raises(StoreError, match="is a file"):
        result.save(__file__)


def test_a_damaged_result_is_not_saved(tmp_path: Path) -> None:
    result = scanner.analyze_model(torch.nn.Linear(4, 4))
    files = result._store.files
    files.remove(f"vectors/{result.scan_id}.parquet")
    with pytest.raises(StoreError, match="cannot be saved into"):
        result.save(tmp_path / "store")


class Text(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Text:
    found = Text()
    found.feed(html)
    return found


def test_a_notebook_shows_one_row_per_role_and_names_as_text() -> None:
    evil = "<script>alert(1)</script>\u202e&"
    state = {
        f"layers.{layer}.{role}.weight": torch.randn(8, 8) for layer in range(40) for role in ("q_proj", "up_proj")
    }
    state[f"{evil}.weight"] = torch.full((4, 4), torch.nan)
    state[f"{evil}.sparse"] = torch.eye(3).to_sparse()
    result = scanner.analyze_model(state, name=evil)
    page = result._repr_html_()
    found = parsed(page)
    assert set(found.tags) <= {"div", "b", "table", "tr", "th", "td", "small", "br"}
    assert found.tags.count("tr") == 1 + 2
    assert "<script" not in page
    assert "\u202e" not in page
    text = "".join(found.text)
    assert text.startswith("<script>alert(1)</script>\\u202e&: 80 matrices, 1 tensors skipped, 1 failed")
    assert "16 NaN and 0 infinite of 16 entries" in text
    assert len(page) < 3000
    assert "<script>" in repr(result)


def test_the_memory_of_a_result_is_freed_with_it(tmp_path: Path) -> None:
    stored = fsspec.filesystem("memory").store

    def kept() -> int:
        return sum("rmtscan-" in path for path in stored)

    gc.collect()
    before = kept()
    result = scanner.analyze_model(torch.nn.Linear(4, 4))
    result.query("layer_trend")
    assert kept() > before
    del result
    gc.collect()
    assert kept() == before
    with pytest.raises(ScannerError):
        scanner.analyze_model(torch.nn.LayerNorm(3))
    assert kept() == before


def test_nothing_is_written_to_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that this process opens for writing is noticed, and so is every new entry of the folders it may use."""
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(str(arguments[0]))
        if watching and event in ("os.mkdir", "os.rename", "tempfile.mkstemp", "tempfile.mkdtemp"):
            written.append(event)

    watching = False
    sys.addaudithook(watch)
    monkeypatch.chdir(tmp_path)
    scanner.analyze_model(torch.nn.Linear(4, 4))  # libraries are loaded, and their caches written
    watching = True
    try:
        result = scanner.analyze_model(tiny("gpt2"))
        result.summary()
        result._repr_html_()
        result.figure("spectrum", layer=0, role="query")
        result.query("layer_trend")
    finally:
        watching = False
    assert written == []
    assert list(tmp_path.iterdir()) == []
