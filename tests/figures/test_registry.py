"""A figure is one decorated function: in the lists, descriptions and options of `rmtscan plot` without another change."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scanner.errors import ScannerError
from scanner.extensions import VARIABLE
from scanner.figures import FIGURES, all_figures, figure, find_figure
from tests.cli.conftest import Run, rmtscan  # noqa: F401  (a fixture)

MODULE = '''
"""An extension with one figure."""

import altair as alt

from scanner.figures import figure


@figure(
    title="Toy figure",
    about="A bar of a given height.",
    parameters={"height": "height of the bar", "wide": "whether it is wide"},
)
def toy(store=None, *, interactive: bool = False, model: str | None = None, height: float = 1.0, wide: bool = False):
    return alt.Chart(alt.InlineData(values=[{"height": height}])).mark_bar().encode(y="height:Q").properties(title="Toy")
'''


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An extension module of its own for each test, since a module is imported once."""
    name = f"toy_figures_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, name)
    yield
    FIGURES.pop("toy", None)


def test_a_figure_of_an_extension_is_found(extension: None) -> None:
    found = find_figure("toy")
    assert (found.title, found.needs_store) == ("Toy figure", False)
    assert [*found.parameters] == ["model", "height", "wide"]
    assert found.parameters["height"] == "height of the bar"
    assert [*all_figures()] == sorted(FIGURES)
    assert found.convert("height", "2.5") == 2.5
    assert found.convert("wide", "true") is True
    assert found.convert("model", "org/model") == "org/model"
    for name, value, told in (
        ("height", "high", "'height' of figure 'toy' is of type float, got 'high'"),
        ("wide", "2", "bool"),
        ("k", "1", "takes no parameter 'k'"),
    ):
        with pytest.raises(ScannerError, match=told):
            found.convert(name, value)


def test_the_command_lists_describes_and_draws_it(rmtscan: Run, extension: None, tmp_path: Path) -> None:  # noqa: F811
    find_figure("toy")
    assert (
        '"toy","Toy figure","\'--model --param height= --param wide="'
        in rmtscan("plot", "--list", "--format", "csv").out.decode()
    )
    text = rmtscan("plot", "toy", "--list").out.decode()
    assert text.startswith("toy: Toy figure\n\nA bar of a given height.")
    assert "--param height=   height of the bar" in text
    told = rmtscan("plot", "toy", "-p", "height=3", "-o", tmp_path / "toy.svg")
    assert told.status == 0
    assert f"Toy figure: {tmp_path / 'toy.svg'}" in told.err
    assert (tmp_path / "toy.svg").read_text("utf-8").startswith("<svg")
    assert rmtscan("plot", "toy", "-p", "height", "-o", tmp_path / "toy.svg").status == 2


def test_a_parameter_without_help_and_a_second_figure_of_a_name_are_bugs() -> None:
    def odd(store: object, *, interactive: bool = False, oddness: int = 0) -> object: ...

    def depth(store: object, *, interactive: bool = False) -> object: ...

    with pytest.raises(ValueError, match=r"parameters without help: \['oddness'\]"):
        figure(title="Odd", about="Odd.")(odd)
    with pytest.raises(ValueError, match="'depth' is already registered"):
        figure(title="Depth", about="Depth.")(depth)
    assert "odd" not in FIGURES
