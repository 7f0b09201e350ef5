"""Selection of the models and matrices that a figure draws, their rows in the store, and their singular vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from typing import Any, Protocol, TypeVar

from scanner.checkpoint import ROLES, MatrixRef, Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.model import PRODUCT_ROLES, MatrixKey
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures.registry import nearest
from scanner.rmt.decomposition import Decomposition, LowRank, decompose, decompose_low_rank
from scanner.store import Store
from scanner.store.references import reference_of

_SQL = Path(__file__).resolve().parent / "sql"

SIDES = {"v": "right", "u": "left"}
"""Names of the sides of singular vectors."""


class Placed(Protocol):
    """A matrix, or anything else with a position in a model."""

    @property
    def stack(self) -> str | None:
        """Encoder, decoder, ..."""

    @property
    def layer(self) -> int | None:
        """Index of the block."""

    @property
    def role(self) -> str:
        """Role of the matrix in the block."""

    @property
    def head(self) -> int | None:
        """Index of the head."""

    @property
    def expert(self) -> int | None:
        """Index of the expert."""

    @property
    def module(self) -> str | None:
        """Cross-attention, ..."""

    @property
    def tensor(self) -> str:
        """Name of the tensor."""


PlacedType = TypeVar("PlacedType", bound=Placed)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A row of table `matrices`, with the columns that figures need."""

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
    scale_lower: float | None
    scale_upper: float | None
    outliers_left_scale: int | None
    outliers_right_scale: int | None
    scale_failure: str | None
    u_p_mean: float | None
    v_p_mean: float | None

    @property
    def count(self) -> int:
        """Number of singular values of a matrix of this shape."""
        return min(self.rows, self.cols)

    @property
    def gamma(self) -> float:
        """Aspect ratio, min / max."""
        return self.count / max(self.rows, self.cols)

    @property
    def scale(self) -> float:
        """Unit of the Marchenko-Pastur law of the matrix, sigma sqrt(max(rows, cols)).

        Raises:
            ScannerError: sigma is zero or unknown.
        """
        if not self.sigma or not self.sigma > 0.0:
            raise ScannerError(
                f"{printable(self.tensor)}: half of the singular values are zero, so the matrix has no bulk to draw"
            )
        return self.sigma * sqrt(max(self.rows, self.cols))


def rows_of(store: Store, statement: str | Path, /, **values: object) -> list[dict[str, Any]]:
    """Return the rows of a statement.

    Args:
        store: the store to read.
        statement: name of a file in `sql/`, or the path of another .sql file.
        values: parameters of the statement.
    """
    path = statement if isinstance(statement, Path) else _SQL / f"{statement}.sql"
    found: list[dict[str, Any]] = store.sql(path.read_text("utf-8"), values).to_pylist()
    return found


def check_side(side: str) -> str:
    """Return the side.

    Raises:
        ScannerError: it is neither `u` nor `v`.
    """
    if side not in SIDES:
        raise ScannerError(
            f"`side` must be u (left vectors, output side) or v (right vectors, input side), got {printable(side)!r}"
        )
    return side


def place(matrix: Placed) -> str:
    """Return the position of a matrix as text: `query, layer 3, head 2`."""
    words = [matrix.role]
    words += [f"({printable(matrix.module).replace('_', ' ')})"] if matrix.module else []
    text = " ".join(words)
    for name in ("stack", "layer", "head", "expert"):
        value = getattr(matrix, name)
        if value is not None:
            text += f", {printable(value)}" if name == "stack" else f", {name} {value}"
    return text if matrix.layer is not None else f"{text}, {printable(matrix.tensor)}"


def titled(model: str, revision: str | None, *words: str) -> str:
    """Return the caption of a model: its name, the beginning of its revision, and other words."""
    named = printable(model)
    named += f" @ {printable(revision)[:8]}" if revision else ""
    return ", ".join([named, *words])


def caption(found: Sequence[Matrix], *words: str) -> str:
    """Return the caption of matrices of one model: name, revision, other words, and which estimate σ is."""
    kinds = ", ".join(dict.fromkeys(printable(matrix.sigma_kind) for matrix in found))
    return titled(found[0].model, found[0].revision, *words, f"σ: {kinds}")


def choose_model(store: Store, model: str | None) -> str:
    """Return the name of the given model, or of the only model in the store.

    Raises:
        ScannerError: the model is not scanned, the store is empty, or it holds several models and none was given.
    """
    known = sorted({row["model"] for row in store.query("scans").to_pylist()})
    if model in known:
        return str(model)
    shown = [printable(name) for name in known]
    unfinished = [scan for scan in store.unfinished() if model is None or scan.model == model]
    if unfinished and (model is not None or not known):
        one = unfinished[0]
        finished = f"; finished models: {', '.join(shown)}" if shown else ""
        raise ScannerError(
            f"the scan of {printable(one.model or one.scan_id)!r} is not finished ({one.parts} matrices so far): "
            f"repeat the scan to resume it{finished}"
        )
    if not known:
        raise ScannerError(f"{store.url} holds no scan: run 'rmtscan scan REF --store {store.url}'")
    if model is None:
        # A difference counts as a model only if it is named.
        whole = [name for name in known if not name.startswith("delta:")] or known
        if len(whole) > 1:
            raise ScannerError(f"several models are scanned; give `model`, one of: {', '.join(shown)}")
        return str(whole[0])
    raise ScannerError(f"no model {printable(model)!r} is scanned: {nearest(printable(model), shown)}")


def matrices(store: Store, model: str | None, revision: str | None = None) -> list[Matrix]:
    """Return all matrices and slices of a model, in the order of its blocks.

    Raises:
        ScannerError: see `choose_model`; or the revision is not scanned, or the scan holds no matrix.
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
            f"the scan of {printable(model)!r} holds no matrix: see 'rmtscan query failures_by_reason' or 'rmtscan status'"
        )
    return found


def whole(found: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices that are not slices of heads.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.head is None]
    if not kept:
        raise ScannerError(f"{printable(found[0].model)!r} holds slices of heads only: scan the whole matrices too")
    return kept


def no_p_values(found: Sequence[Matrix]) -> ScannerError:
    """Return the error of matrices of which no vector has a p-value."""
    return ScannerError(
        f"the store has no p-values of {printable(found[0].model)!r}: scan it again without `--values-only`, which leaves out "
        "the vectors"
    )


def no_scale_null(found: Sequence[Matrix], what: str) -> ScannerError:
    """Return the error of matrices without a scale null, which `what` names."""
    told = next((matrix.scale_failure for matrix in found if matrix.scale_failure), None)
    vectors = any(matrix.u_p_mean is not None or matrix.v_p_mean is not None for matrix in found)
    again = (
        "`--scale none`, with this version of rmtscan" if vectors else "`--values-only`, which leaves out the vectors"
    )
    return ScannerError(f"{what} no scale null: {told or f'scan again without {again}'}")


def slices(found: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices that are slices of heads.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.head is not None]
    if not kept:
        raise ScannerError(
            f"the heads of {printable(found[0].model)!r} are not scanned: run 'rmtscan scan REF --heads' or --products"
        )
    return kept


def in_blocks(found: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices that belong to a block.

    Raises:
        ScannerError: there are none.
    """
    kept = [matrix for matrix in found if matrix.layer is not None]
    if not kept:
        raise ScannerError(
            f"no scanned matrix of {printable(found[0].model)!r} belongs to a block, so the figure has no layers to draw"
        )
    return kept


def narrow(found: Sequence[PlacedType], model: str, **wanted: object) -> list[PlacedType]:
    """Return the matrices with the given role, layer, ...; None matches every value.

    Raises:
        ScannerError: no matrix matches; the message lists the values that do.
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
    """Return the distinct values of an attribute in order of appearance, without None."""
    values = dict.fromkeys(getattr(one, name) for one in found)
    return [value for value in values if value is not None]


def one_stack(found: Sequence[Matrix], stack: str | None) -> tuple[list[Matrix], str | None]:
    """Return the matrices of the given stack, or of the first, and a caption that names it and the other stacks.

    Raises:
        ScannerError: the model has no such stack.
    """
    stacks = distinct(found, "stack")
    kept = narrow(found, found[0].model, stack=stack if stack is not None else (stacks[0] if stacks else None))
    others = [name for name in stacks if name != kept[0].stack]
    if not stacks:
        return kept, None
    return kept, f"{kept[0].stack}" + (f" (other stacks: {', '.join(others)})" if others else "")


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
    """Return the first matrix, in the order of the blocks, that matches.

    Raises:
        ScannerError: no matrix matches; the message lists the values that do.
    """
    found = matrices(store, model, revision)
    found = whole(found) if head is None else slices(found)
    wanted = {"tensor": tensor, "stack": stack, "role": role, "layer": layer, "head": head, "expert": expert}
    return narrow(found, found[0].model, **wanted)[0]


def vectors(store: Store, matrix: Matrix) -> dict[str, list[Any]]:
    """Return the columns of table `vectors` for one matrix, by name.

    Raises:
        ScannerError: the store has no singular values of the matrix.
    """
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
        raise ScannerError(f"the store has no singular values of {printable(matrix.tensor)!r}")
    return columns(found)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Transpose rows to columns."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def control(store: Store, matrix: Matrix, ensemble: str | None) -> tuple[str, dict[str, list[Any]]] | None:
    """Return the ensemble and the columns of the random control of a matrix's shape; None if the store has none.

    Without an ensemble, `gaussian` is preferred.

    Raises:
        ScannerError: the store has no control of the given ensemble.
    """
    found = rows_of(store, "controls", rows=matrix.rows, cols=matrix.cols)
    names = list(dict.fromkeys(row["ensemble"] for row in found))
    if ensemble is not None and ensemble not in names:
        raise ScannerError(
            f"no {printable(ensemble)!r} control of shape {matrix.rows} x {matrix.cols} in the store: {nearest(ensemble, names)}"
        )
    if not names:
        return None
    chosen = ensemble or ("gaussian" if "gaussian" in names else names[0])
    return chosen, columns([row for row in found if row["ensemble"] == chosen])


def scan_of(store: Store, matrix: Matrix) -> dict[str, Any]:
    """Return the row of table `scans` that a matrix belongs to.

    Raises:
        ScannerError: the scan was removed in the meantime.
    """
    row = store.scan_row(matrix.scan_id)
    if row is None:
        raise ScannerError(f"scan {matrix.scan_id!r} is no longer in {store.url}")
    return row


def decomposed(store: Store, matrix: Matrix) -> Decomposition:
    """Read a scanned matrix from its checkpoint and return the singular value decomposition.

    Raises:
        ScannerError: the checkpoint cannot be opened, or its content differs from what was scanned.
    """
    scan = scan_of(store, matrix)
    name, reference = printable(matrix.model), reference_of(store, scan)
    source = printable(reference)
    try:
        checkpoint = open_checkpoint(reference)
    except ScannerError as error:
        raise ScannerError(f"the figure needs the weights of {name!r} from {source}: {error}") from error
    if scan["identity"] and checkpoint.identity != scan["identity"]:
        raise ScannerError(f"the content of {source} has changed since {name!r} was scanned: scan it again")
    read = read_matrix(checkpoint.source, _find(list_matrices(checkpoint, _selection(matrix)).matrices, matrix))
    return decompose_low_rank(read) if isinstance(read, LowRank) else decompose(read)


def _selection(matrix: Matrix) -> Selection:
    layers = () if matrix.layer is None else (matrix.layer,)
    only = (matrix.role,) if matrix.role in (*ROLES, *PRODUCT_ROLES) else ()
    return Selection(only=only, layers=layers, heads=matrix.head is not None)


def _find(refs: tuple[MatrixRef, ...], matrix: Matrix) -> MatrixRef:
    wanted = MatrixKey(matrix.tensor, matrix.role, matrix.head, matrix.expert)
    for ref in refs:
        if ref.identity == wanted:
            return ref
    raise ScannerError(f"{printable(matrix.model)!r} no longer has the tensor {printable(matrix.tensor)!r}")
