"""Charts are written in four formats without a browser; a page loads nothing and runs no foreign code."""

import re
import struct
from pathlib import Path

import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES, save, to_html
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

from .stores import BASE


@pytest.fixture(scope="module")
def chart(pair_url: str) -> object:
    return FIGURES["depth"].draw(open_store(pair_url), model=BASE)


def test_a_picture_is_a_column_wide_at_300_dots_per_inch(chart: object, tmp_path: Path) -> None:
    content = save(chart, tmp_path / "x.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 2.8 < width / 300 < 3.8, "inches: a column of a paper"
    assert height > 300


def test_vectors_hold_text_and_lines(chart: object, tmp_path: Path) -> None:
    svg = save(chart, tmp_path / "x.svg").read_text("utf-8")
    assert svg.startswith("<svg")
    assert "Randomness by depth" in svg
    assert "mean p" in svg
    assert save(chart, tmp_path / "X.PDF").read_bytes().startswith(b"%PDF")


def test_a_page_is_whole(chart: object, tmp_path: Path) -> None:
    page = save(chart, tmp_path / "x.html").read_text("utf-8")
    assert re.findall(r"<script[^>]*>", page) == ["<script>", "<script>"]
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"src=|href=|url\(|import", outside)
    assert "vegaEmbed(" in page
    assert "<title>Randomness by depth</title>" in page


def test_a_name_from_a_checkpoint_cannot_end_the_script(tmp_path: Path) -> None:
    store: Store = open_store(str(tmp_path / "store"), create=True)
    name = "</script><script>alert(1)</script>"
    add_scan(store, "odd", [Matrix()], model=name)
    page = to_html(FIGURES["depth"].draw(store, model=name))
    assert "<script>alert" not in page
    assert "\\u003c/script>" in page


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("x.jpg", r"one of \.html \.svg \.png \.pdf"),
        ("x", "the suffix selects the format"),
        ("nowhere/x.png", "no folder .*nowhere"),
        ("folder.png", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_clear_line(chart: object, tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ScannerError, match=told):
        save(chart, tmp_path / path)
