"""`inspect --format json` prints the rows that it printed before, for every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import inspection
from .checkpoints import MAKERS, SAMPLES, calls


@pytest.fixture(scope="module")
def frozen() -> dict[str, list[dict[str, object]]]:
    return inspection.read()


def check(name: str, reference: str, frozen: dict[str, list[dict[str, object]]]) -> None:
    for more in (more for other, more in calls() if other == name):
        assert inspection.inspected(reference, more) == frozen[inspection.key(name, more)], more


def test_every_call_is_frozen(frozen: dict[str, list[dict[str, object]]]) -> None:
    assert set(frozen) == {inspection.key(name, more) for name, more in calls()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_made_checkpoint(name: str, tmp_path: Path, frozen: dict[str, list[dict[str, object]]]) -> None:
    check(name, MAKERS[name](tmp_path / "model"), frozen)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample(
    name: str, minilm: Path, minilm_tuned: Path, smollm2: Path, frozen: dict[str, list[dict[str, object]]]
) -> None:
    references = {
        "minilm": str(minilm),
        "minilm_tuned": str(minilm_tuned),
        "smollm2": str(smollm2),
        "minilm difference": f"delta:{minilm}..{minilm_tuned}",
    }
    check(name, references[name], frozen)
