"""Content of a report, and its errors, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.report import write_report
from scanner.report.explorer import MOST_POINTS, POINTS, budget
from scanner.report.models import choose_models
from scanner.store import Store, open_store
from tests.store.rows import Matrix, Pair, add_comparison, add_scan, scan_values
from tests.store.test_staging_comparisons import METHOD

from .pair_rows import add_pair


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def layers(count: int = 2) -> list[Matrix]:
    return [Matrix(tensor=f"block.{layer}.query", layer=layer) for layer in range(count)]


def page(store: Store, tmp_path: Path, *references: str) -> str:
    write_report(store, references, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text("utf-8")


def test_a_report_accounts_for_every_tensor_and_says_how_it_was_made(store: Store, tmp_path: Path) -> None:
    writer = store.writer("a", method={"sigma": "bulk", "null": "mc:100", "layers": [0, 1]}, model="org/one")
    for matrix in layers():
        writer.stage(matrix.key, *matrix.tables("a", "org/one", "r1"))
    skipped = {"1-D: not a matrix": ["norm<1>"], "embedding: ask with --embeddings": ["wte"]}
    writer.commit(
        scan_values(skipped=2, skipped_tensors=skipped, environment={"torch": "9.9"}, source="hf://org/one@abc")
    )
    text = page(store, tmp_path)
    assert "2 analyzed, 2 skipped, none failed" in text
    assert "norm&lt;1&gt;" in text
    assert "torch 9.9" in text
    assert "rmtscan scan hf://org/one@abc --layers 0,1 --sigma bulk --null mc:100 --store results" in text
    assert "2026-11-01 12:00 UTC" in text
    assert 'id="pairs"' not in text


def test_the_same_store_makes_the_same_report(store: Store, tmp_path: Path) -> None:
    add_scan(store, "a", layers())
    assert page(store, tmp_path) == page(store, tmp_path)


def test_a_page_reaches_for_nothing_outside(store: Store, tmp_path: Path) -> None:
    add_scan(store, "a", layers())
    text = page(store, tmp_path).partition('id="charts"')[0]  # before the scripts, which hold markup as text
    assert "default-src 'none'" in text
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:)""", text)
    assert str(tmp_path) not in text


def test_a_pair_is_told_of_when_both_of_its_models_are_in_the_report(store: Store, tmp_path: Path) -> None:
    for number, model in enumerate(["base", "tuned"]):
        add_scan(store, f"scan{number}", layers(), model=model)
    add_pair(store, "base", "tuned", [("query", layer, 4, 4) for layer in range(3)], method=METHOD, identical=0)
    text = page(store, tmp_path)
    assert "Fine-tuning moved the weights by 2 %" in text
    assert "3 matrices compared, 1 exactly unchanged, 1 without a counterpart" in text
    assert "extra.weight" in text
    assert "rmtscan compare base tuned" in text
    assert 'id="pairs"' not in page(store, tmp_path, "base")


def test_names_cannot_end_a_script_or_begin_one(store: Store, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\x1b[2J\u202e"
    add_scan(store, "a", [Matrix(tensor=evil, layer=0), Matrix(tensor="t", layer=1)], model=evil)
    text = page(store, tmp_path)
    assert "<script>alert" not in text
    assert not {"\x1b", "\u202e"} & set(text)
    data = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data[1])["models"][0]["matrices"][0]["tensor"].startswith("</script>")


def test_a_model_is_named_by_name_by_place_or_by_revision(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    for scan_id, model, source in (("a", "models/mine", str(folder)), ("b", "org/hub", "hf://org/hub@0123abc")):
        writer = store.writer(scan_id, method={}, model=model)
        writer.stage("m", *Matrix().tables(scan_id, model, "0123abc"))
        writer.commit(scan_values(revision="0123abc", source=source))
    assert choose_models(store, []) == ["models/mine", "org/hub"]
    assert choose_models(store, ["org/hub", "models/mine", "org/hub"]) == ["org/hub", "models/mine"]
    assert choose_models(store, [str(folder), f"{folder}/"]) == ["models/mine"]
    for reference in ("hf://org/hub", "org/hub@0123", "hf://org/hub@0123abc"):
        assert choose_models(store, [reference]) == ["org/hub"]
    with pytest.raises(ScannerError, match=r"newest scan of 'org/hub' is of revision '0123abc', not 'ffff'"):
        choose_models(store, ["org/hub@ffff"])
    with pytest.raises(ScannerError, match=r"'org/hob' is not scanned .*org/hub"):
        choose_models(store, ["org/hob"])


def test_an_unfinished_scan_is_said_to_be_one(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match="holds no scan"):
        choose_models(store, [])
    store.writer("u", method={}, model="org/late").stage("m", *Matrix().tables("u", "org/late", "r"))
    for references in ([], ["org/late"]):
        with pytest.raises(ScannerError, match=r"'org/late' is not finished \(1 matrices so far\).*to resume it"):
            choose_models(store, references)
    add_scan(store, "a", layers(), model="org/late")
    assert "Another scan of this model is not finished (1 matrices so far)" in page(store, tmp_path)


@pytest.mark.parametrize(
    ("path", "told"),
    [("gone/report.html", "no folder"), ("folder", "is a folder"), ("report.pdf", "a report is an HTML file")],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    store: Store, tmp_path: Path, path: str, told: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ScannerError, match=told):
        write_report(store, ["nobody"], tmp_path / path)


def test_a_scan_in_which_everything_failed_is_reported(store: Store, tmp_path: Path) -> None:
    add_scan(store, "a", [], failed=["lost"])
    text = page(store, tmp_path)
    assert "1 tensor could not be analyzed" in text
    assert "OSError" in text


def test_many_matrices_are_thinned_to_what_a_page_can_hold() -> None:
    assert budget({"m": 210}) == (POINTS, {"m": 1})
    for count in (1_000, 20_000):
        points, every = budget({"m": count})
        assert points * count / every["m"] <= MOST_POINTS


def thirty_layers() -> list[Matrix]:
    """The matrices of a Llama of 30 blocks, small ones."""
    shapes = dict.fromkeys("query key value attn_out".split(), (256, 256))
    shapes |= {"mlp_up": (512, 256), "mlp_gate": (512, 256), "mlp_down": (256, 512)}
    random = np.random.default_rng(0)
    return [
        Matrix(
            tensor=f"model.layers.{layer}.self_attn.{role}.weight",
            layer=layer,
            role=role,
            rows=rows,
            cols=cols,
            singular_values=np.sort(random.uniform(0.1, 4, 256))[::-1].tolist(),
            u_p=random.uniform(size=256).tolist(),
            v_p=random.uniform(size=256).tolist(),
        )
        for layer in range(30)
        for role, (rows, cols) in shapes.items()
    ]


def test_a_report_of_two_models_of_thirty_layers_is_no_larger_than_three_megabytes(
    store: Store, tmp_path: Path
) -> None:
    many = thirty_layers()
    for number, model in enumerate(("base", "tuned")):
        add_scan(store, f"scan{number}", many, model=model)
    add_pair(store, "base", "tuned", [(one.role, one.layer or 0, 8, 8) for one in many], method=METHOD)
    report = write_report(store, [], tmp_path / "report.html")
    assert report.bytes <= 3_000_000
    assert report.path.stat().st_size == report.bytes


def test_a_finding_about_several_models_is_one_card(store: Store, tmp_path: Path) -> None:
    for number, model in enumerate(("one", "two", "three")):
        add_scan(store, f"scan{number}", layers(), model=model, failed=["lost"] if number else [])
    text = page(store, tmp_path)
    assert text.count('id="finding-failed-tensors"') == 1
    assert text.count("1 tensor could not be analyzed") == 1, "what is said of two models is said once"
    assert text.count('<summary class="model">two</summary>') >= 1
    assert '<details open><summary class="model">' not in text
    alone = page(store, tmp_path, "two")
    assert '<summary class="model">' not in alone
    assert "1 tensor could not be analyzed" in alone


def test_a_pair_that_was_compared_in_parts_has_one_section(store: Store, tmp_path: Path) -> None:
    for number, model in enumerate(["base", "tuned"]):
        add_scan(store, f"scan{number}", layers(), model=model)
    add_pair(store, "base", "tuned", [("query", layer, 4, 4) for layer in range(3)], method=METHOD, identical=0)
    same = [Pair(tensor="block.1.query", layer=1, more={"identical": True, "relative_change": 0.0})]
    add_comparison(store, "part", same, base="base", tuned="tuned", scans=("scan0", "scan1"), hours=9)
    text = page(store, tmp_path)
    assert "3 matrices compared, 2 exactly unchanged, 1 without a counterpart" in text
    assert text.count("matrices compared,") == 1
