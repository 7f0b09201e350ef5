"""`rmtscan plot` turns names of figures and parameters into a file; mistakes end with one line."""

import re
from pathlib import Path

import pytest

from scanner.figures import FIGURES, PARAMETERS
from tests.cli.conftest import Run, rmtscan  # noqa: F401  (a fixture)

from .stores import BASE, TUNED


def test_the_list_names_every_figure_and_its_options(rmtscan: Run) -> None:  # noqa: F811
    told = rmtscan("plot", "--list", "--format", "csv")
    text = told.out.decode()
    assert told.status == 0
    assert all(f'"{name}"' in text for name in FIGURES)
    assert "--layer" in text


def test_one_figure_is_explained(rmtscan: Run) -> None:  # noqa: F811
    text = rmtscan("plot", "outliers", "--list").out.decode()
    assert text.startswith("outliers: Singular values outside")
    assert "--stack" in text


@pytest.mark.parametrize("suffix", ["html", "svg", "png", "pdf"])
def test_a_figure_becomes_a_file(rmtscan: Run, pair_url: str, tmp_path: Path, suffix: str) -> None:  # noqa: F811
    path = tmp_path / f"x.{suffix}"
    told = rmtscan("plot", "spectrum", "-m", BASE, "--layer", 2, "--role", "query", "-s", pair_url, "-o", path)
    assert (told.status, told.out) == (0, b"")
    assert str(path) in told.err
    assert path.stat().st_size > 5_000


def test_a_figure_has_the_size_and_the_theme_of_the_options(rmtscan: Run, pair_url: str, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "x.svg"
    asked = ("--width", "180mm", "--height", "90mm", "--font-size", 9, "--theme", "dark")
    told = rmtscan("plot", "depth", "-m", BASE, "-s", pair_url, "-o", path, *asked)
    assert told.status == 0
    svg = path.read_text("utf-8")
    found = re.search(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert found is not None
    assert [float(size) * 25.4 / 72 for size in found.groups()] == pytest.approx([180, 90], abs=0.4)
    assert 'font-size="9px"' in svg
    assert "#15171C" in svg
    page = tmp_path / "x.html"
    assert rmtscan("plot", "depth", "-m", BASE, "-s", pair_url, "-o", page, "--theme", "dark").status == 0
    assert "background: #15171C" in page.read_text("utf-8")


def test_a_pair_needs_no_names_where_there_is_one(rmtscan: Run, pair_url: str, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "x.svg"
    assert rmtscan("plot", "overlap", "--role", "query", "-s", pair_url, "-o", path).status == 0
    assert TUNED in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["spectrun", "-o", "x.png"], 1, "did you mean 'spectrum'"),
        (["depth", "-o", "x.gif"], 1, ".html .svg .png .pdf"),
        (["depth", "-o", "nowhere/x.png"], 1, "no folder 'nowhere'"),
        (["depth"], 2, "-o FILE"),
        ([], 2, "--list"),
        (["depth", "--k", "3", "-o", "x.png"], 1, "takes no parameter 'k'"),
        (["overlap", "--base", "x", "-o", "x.png"], 1, "no model 'x' is scanned: known: base/model, tuned/model"),
        (["overlap", "--base", TUNED, "-o", "x.png"], 1, f"compared pairs: {BASE} -> {TUNED}"),
        (["ablation", "--run", "x", "-o", "x.png"], 1, "rmtscan ablate"),
        (["depth", "-m", "bas/model", "-o", "x.png"], 1, "did you mean 'base/model'"),
        (["depth", "-m", BASE, "--width", "1mm", "-o", "x.png"], 1, "must be between 21mm and 3528mm, got '1mm'"),
        (["depth", "-m", BASE, "--height", "tall", "-o", "x.png"], 1, "must be a length such as 85mm"),
        (["depth", "-m", BASE, "--font-size", "400", "-o", "x.png"], 1, "from 4 to 40"),
        (["depth", "-m", BASE, "--theme", "neon", "-o", "x.png"], 2, "neon"),
        (["depth", "-m", BASE, "--scale", "0", "-o", "x.png"], 1, "must be a number from 0.1 to 10"),
    ],
)
def test_mistakes(
    rmtscan: Run,  # noqa: F811
    pair_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = rmtscan("plot", *arguments, "-s", pair_url)
    assert ran.status == status
    assert told in ran.told
    assert len(ran.errors) == (1 if status == 1 else 0)
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_of_a_figure_is_an_option(rmtscan: Run) -> None:  # noqa: F811
    text = rmtscan("plot", "--help").out.decode()
    flags = {name: "--centered" if name == "centred" else f"--{name}" for name in PARAMETERS}
    assert [name for name, flag in flags.items() if flag not in text] == []
