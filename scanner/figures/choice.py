"""Which model and which matrix a figure is about: found among what is scanned, or an error that says what there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from typing import Any, Protocol, TypeVar

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures.registry import nearest
from scanner.store import Store

_SQL = Path(__file__).resolve().parent / "sql"


class Placed(Protocol):
    """Anything that has a place in a model."""

    @property
    def stack(self) -> str | None:
        """Encoder, decoder ..."""

    @property
    def layer(self) -> int | None:
        """Index of the block."""

    @property
    def role(self) -> str:
        """What it does there."""

    @property
    def head(self) -> int | None:
        """Index of the head."""

    @property
    def expert(self) -> int | None:
        """Index of the expert."""

    @property
    def module(self) -> str | None:
        """Cross-attention ..."""

    @property
    def tensor(self) -> str:
        """Name of the tensor."""


PlacedType = TypeVar("PlacedType", bound=Placed)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A row of table `matrices`: those of its columns that figures need."""

    scan_id: str
    model: str
    revision: str | None
    tensor: str
    stack: str | None
    layer: int | None
    role: str
    head: int | None
    expert: int | None
    module: str | None
    rows: int
    cols: int
    sigma: float
    sigma_kind: str
    mp_lower: float
    mp_upper: float
    outliers_left: int
    outliers_right: int
    u_p_mean: float | None
    v_p_mean: float | None

    @property
    def count(self) -> int:
        """Number of singular values of a matrix of this shape."""
        return min(self.rows, self.cols)

    @property
    def gamma(self) -> float:
        """Its aspect ratio, min / max."""
        return self.count / max(self.rows, self.cols)

    @property
    def scale(self) -> float:
        """Sigma sqrt(hi): the unit of its Marchenko-Pastur law.

        Raises:
            ScannerError: it is zero, or unknown.
        """
        if not self.sigma or not self.sigma > 0.0:
            raise ScannerError(
                f"{printable(self.tensor)}: half of its singular values are zero, so it has no bulk to draw"
            )
        return self.sigma * sqrt(max(self.rows, self.cols))


def rows_of(store: Store, name: str, **values: object) -> list[dict[str, Any]]:
    """The answer to one of the statements in `sql/`."""
    found: list[dict[str, Any]] = store.sql((_SQL / f"{name}.sql").read_text("utf-8"), values).to_pylist()
    return found


def place(matrix: Placed) -> str:
    """Where a matrix is, in words: `query, layer 3, head 2`."""
    words = [matrix.role]
    words += [f"({printable(matrix.module).replace('_', ' ')})"] if matrix.module else []
    text = " ".join(words)
    for name in ("stack", "layer", "head", "expert"):
        value = getattr(matrix, name)
        if value is not None:
            text += f", {printable(value)}" if name == "stack" else f", {name} {value}"
    return text if matrix.layer is not None else f"{text}, {printable(matrix.tensor)}"


def choose_model(store: Store, model: str | None) -> str:
    """The model that is meant: the one that was named, or the only one there is.

    Raises:
        ScannerError: it is not scanned, or nothing is, or there are several and none was named.
    """
    known = sorted({row["model"] for row in store.query("scans").to_pylist()})
    if model in known:
        return str(model)
    shown = [printable(name) for name in known]
    unfinished = [scan for scan in store.unfinished() if model is None or scan.model == model]
    if unfinished and (model is not None or not known):
        one = unfinished[0]
        finished = f"; finished are: {', '.join(shown)}" if shown else ""
        raise ScannerError(
            f"the scan of {printable(one.model or one.scan_id)!r} is not finished ({one.parts} matrices so far): "
            f"scan it again, which resumes it{finished}"
        )
    if not known:
        raise ScannerError(f"nothing is scanned in {store.url}: begin with 'rmtscan scan REF --store {store.url}'")
    if model is None:
        whole = [
            name for name in known if not name.startswith("delta:")
        ] or known  # a difference is no model unless named
        if len(whole) > 1:
            raise ScannerError(f"several models are scanned, name one with --model: {', '.join(shown)}")
        return str(whole[0])
    raise ScannerError(f"no model {printable(model)!r} is scanned: {nearest(printable(model), shown)}")


def matrices(store: Store, model: str | None, revision: str | None = None) -> list[Matrix]:
    """All matrices and slices of a model, in order.

    Raises:
        ScannerError: as `choose_model`, or there is no such revision.
    """
    model = choose_model(store, model)
    names = {field.name for field in fields(Matrix)}
    found = [
        Matrix(**{name: value for name, value in row.items() if name in names})
        for row in rows_of(store, "matrices", model=model, revision=revision)
    ]
    if not found:
        scans = [row["revision"] for row in store.query("scans", model=model).to_pylist()]
        if revision is not None and not any(str(one).startswith(revision) for one in scans):
            raise ScannerError(f"{printable(model)!r} has no scan of revision {revision!r}: {nearest(revision, scans)}")
        raise ScannerError(
            f"the scan of {printable(model)!r} holds no matrix: 'rmtscan query failures_by_reason' or 'rmtscan status'"
        )
    return found


def whole(found: Sequence[Matrix]) -> list[Matrix]:
    """Those that are no slices of heads.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.head is None]
    if not kept:
        raise ScannerError(f"{printable(found[0].model)!r} was scanned with --heads only: scan whole matrices, too")
    return kept


def slices(found: Sequence[Matrix]) -> list[Matrix]:
    """Those that are slices of heads.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.head is not None]
    if not kept:
        raise ScannerError(
            f"the heads of {printable(found[0].model)!r} are not scanned: 'rmtscan scan REF --heads' does that"
        )
    return kept


def in_blocks(found: Sequence[Matrix]) -> list[Matrix]:
    """Those that stand in a block.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.layer is not None]
    if not kept:
        raise ScannerError(
            f"no scanned matrix of {printable(found[0].model)!r} stands in a block, so there is no depth to draw"
        )
    return kept


def narrow(found: Sequence[PlacedType], model: str, **wanted: object) -> list[PlacedType]:
    """Those with the wanted role, layer, ...; what is None is not asked for.

    Raises:
        ScannerError: there is none; says which one is missing and what there is.
    """
    kept = list(found)
    given: list[str] = []
    for name, value in wanted.items():
        if value is None:
            continue
        there = [one for one in kept if getattr(one, name) == value]
        if not there:
            among = f" with {', '.join(given)}" if given else ""
            raise ScannerError(
                f"{printable(model)!r} has no {name} {printable(str(value))!r}{among}: {nearest(value, distinct(kept, name))}"
            )
        kept = there
        given.append(f"{name} {printable(str(value))!r}")
    return kept


def distinct(found: Iterable[object], name: str) -> list[Any]:
    """The different values of an attribute, in the order in which they come, without None."""
    values = dict.fromkeys(getattr(one, name) for one in found)
    return [value for value in values if value is not None]


def one_stack(found: Sequence[Matrix], stack: str | None) -> tuple[list[Matrix], str | None]:
    """The matrices of one stack, the first if none is named, and a word about the others.

    Raises:
        ScannerError: there is no such stack.
    """
    stacks = distinct(found, "stack")
    kept = narrow(found, found[0].model, stack=stack if stack is not None else (stacks[0] if stacks else None))
    others = [name for name in stacks if name != kept[0].stack]
    if not stacks:
        return kept, None
    return kept, f"{kept[0].stack}" + (f" (there is also: {', '.join(others)})" if others else "")


def choose_matrix(
    store: Store,
    *,
    model: str | None,
    revision: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    expert: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
) -> Matrix:
    """The matrix that is meant: the first, in the order of the data's way, of those that fit.

    Raises:
        ScannerError: none fits; says what there is.
    """
    found = matrices(store, model, revision)
    found = whole(found) if head is None else slices(found)
    wanted = {"tensor": tensor, "stack": stack, "role": role, "layer": layer, "head": head, "expert": expert}
    return narrow(found, found[0].model, **wanted)[0]


def vectors(store: Store, matrix: Matrix) -> dict[str, list[Any]]:
    """The columns of table `vectors` for one matrix, by name."""
    found = rows_of(
        store,
        "vectors",
        scan_id=matrix.scan_id,
        tensor=matrix.tensor,
        role=matrix.role,
        head=matrix.head,
        expert=matrix.expert,
    )
    if not found:
        raise ScannerError(f"no singular values of {printable(matrix.tensor)!r} are in the store")
    return columns(found)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows turned into columns."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def control(store: Store, matrix: Matrix, ensemble: str | None) -> tuple[str, dict[str, list[Any]]] | None:
    """The random control of a matrix's shape: the wanted ensemble, else `gaussian` if it is there; None if none is.

    Raises:
        ScannerError: the wanted ensemble is not there.
    """
    found = rows_of(store, "controls", rows=matrix.rows, cols=matrix.cols)
    names = list(dict.fromkeys(row["ensemble"] for row in found))
    if ensemble is not None and ensemble not in names:
        raise ScannerError(
            f"there is no {printable(ensemble)!r} control of shape {matrix.rows} x {matrix.cols}: {nearest(ensemble, names)}"
        )
    if not names:
        return None
    chosen = ensemble or ("gaussian" if "gaussian" in names else names[0])
    return chosen, columns([row for row in found if row["ensemble"] == chosen])
