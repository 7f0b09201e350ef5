"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "scanner").rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    told: list[str] = []
    module = importlib.import_module(name)
    found = [test for test in finder.find(module, name) if test.examples]
    assert found, f"{name} has examples outside of docstrings"
    for number, test in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)  # examples write the files that they name
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)


@pytest.mark.parametrize("name", ["analyze", "analyze_model", "open_store"])
def test_the_functions_of_the_package_have_examples(name: str) -> None:
    import scanner

    assert ">>> " in (getattr(scanner, name).__doc__ or ""), name
