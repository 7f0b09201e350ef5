"""Execute docs/tutorial.ipynb and keep its outputs in it, or with --check report what differs from them (exit status 1).

Outputs are what the code prints on any machine: numbers are compared to two percent, pictures by their kind.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent / "tutorial.ipynb"
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
#: Relative tolerance of numbers: processors differ in the last digits, and what is shown has three.
_TOLERANCE = 0.02
#: Kinds of output whose text is compared; of others only that they are there.
_TEXTS = ("text/plain", "text/html")


def read() -> Any:
    """Return the notebook with its outputs."""
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def executed(notebook: Any, folder: Path | str) -> Any:
    """Execute a copy of the notebook in a folder, which its files are written to.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    copy: Any = nbformat.from_dict(notebook)  # type: ignore[no-untyped-call]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(copy, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    for cell in copy.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # warnings of libraries depend on what is installed
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    copy.metadata = {"kernelspec": copy.metadata["kernelspec"], "language_info": {"name": "python"}}
    return copy


def differences(kept: Any, fresh: Any) -> Iterator[str]:
    """Yield one line for every cell whose outputs are not those of the other notebook."""
    for number, (old, new) in enumerate(zip(kept.cells, fresh.cells, strict=True)):
        if old.cell_type != "code":
            continue
        before, after = _outputs(old), _outputs(new)
        if [kind for kind, _ in before] != [kind for kind, _ in after]:
            yield f"cell {number}: outputs {[kind for kind, _ in before]}, now {[kind for kind, _ in after]}"
            continue
        for (kind, was), (_, now) in zip(before, after, strict=True):
            if not same(was, now):
                yield f"cell {number}: {kind} {was!r}, now {now!r}"


def same(one: str, other: str) -> bool:
    """Whether two texts are equal up to the last digits of their numbers."""
    if _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
        return False
    numbers = (map(_number, _NUMBER.findall(text)) for text in (one, other))
    return all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b), 1e-9) for a, b in zip(*numbers, strict=True))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _outputs(cell: Any) -> list[tuple[str, str]]:
    """Return kind and text of the outputs of a cell; the text of a picture is empty."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append((f"stream {output.name}", str(output.text)))
        else:
            found += [(kind, str(text) if kind in _TEXTS else "") for kind, text in sorted(output.data.items())]
    return found


def main(arguments: list[str]) -> int:
    """Execute the notebook, and write it or compare it."""
    kept = read()
    with tempfile.TemporaryDirectory() as folder:
        fresh = executed(kept, folder)
    if arguments == ["--check"]:
        found = list(differences(kept, fresh))
        for line in found:
            print(f"{NOTEBOOK.name}: {line}: run `make tutorial`", file=sys.stderr)
        return 1 if found else 0
    nbformat.write(fresh, NOTEBOOK)  # type: ignore[no-untyped-call]
    print(f"docs/{NOTEBOOK.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
