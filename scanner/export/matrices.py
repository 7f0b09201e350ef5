"""The matrices of a scanned model as exports use them: module names of transformers, spectra and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanner.checkpoint.model import PRODUCT_ROLES, ROLES
from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.store import Store

FloatArray = NDArray[np.float64]

SQL = Path(__file__).resolve().parent / "sql"
_WEIGHT = ".weight"
#: Formats whose tensors have other names than the modules of transformers.
_OTHER_NAMES = ("gguf",)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One whole matrix (rows, cols) of a model.

    `s` (r,) are the singular values, largest first, and `p` (r,) the mean p-value of u_k and v_k: under the scale null where there
    is one (`has_scale`), else under i.i.d. entries; NaN where there is none. `outliers` counts the singular values outside the
    support of the scale null, and `mean_p` and `mean_p_scale` average over all vectors; None where a scan has none.
    """

    name: str
    """Name of the module in transformers: that of the tensor without `.weight`."""
    layer: int | None
    role: str
    expert: int | None
    rows: int
    cols: int
    outliers: int | None
    mean_p: float | None
    mean_p_scale: float | None
    has_scale: bool
    s: FloatArray
    p: FloatArray
    parts: int = 1
    """Number of matrices that the tensor was split into (query, key and value of a fused weight)."""

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return self.rows * self.cols


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The matrices that an export uses, and one line for each kind that it leaves out."""

    matrices: tuple[Matrix, ...]
    left_out: tuple[str, ...]


def choose(
    store: Store, model: str, *, tool: str, known: Sequence[str], roles: Sequence[str] = (), fused: bool = True
) -> Chosen:
    """Read the matrices of a model that a tool knows by name.

    Args:
        store: where the model was scanned.
        model: its name, as in `rmtscan models`.
        tool: name of the tool, for messages.
        known: the roles that the tool knows.
        roles: use only these; empty: all that the tool knows, and the others are left out.
        fused: whether the tool can use matrices that are parts of a fused weight.

    Raises:
        ConfigError: a role does not exist, or the tool does not know it.
        ScannerError: there is nothing to export, or the tensors have other names than the modules of transformers.
    """
    for role in roles:
        if role not in (*ROLES, *PRODUCT_ROLES):
            raise ConfigError("roles", f"has an unknown role {printable(role)!r}: choose from {', '.join(ROLES)}")
        if role not in known:
            raise ConfigError("roles", f"has {role!r}, which {tool} does not know: it knows {', '.join(known)}")
    formats = store.sql((SQL / "formats.sql").read_text("utf-8"), {"model": model})["format"].to_pylist()
    if not formats:
        raise ScannerError(f"no model {printable(model)!r} is scanned in {store.url} (rmtscan models lists them)")
    if any(one in _OTHER_NAMES for one in formats):
        raise ScannerError(
            f"{printable(model)} is a GGUF file, whose tensors have other names than the modules that {tool} looks for: scan the "
            "safetensors checkpoint that it was made from"
        )
    found = read(store, model)
    if not found:
        raise ScannerError(f"{printable(model)} has no whole matrices in {store.url}: scan it without `heads`")
    left: dict[str, int] = {}
    kept = []
    for one in found:
        why = _unusable(one, tool, known, roles, fused)
        if why is None:
            kept.append(one)
        elif why:
            left[why] = left.get(why, 0) + 1
    if not kept:
        reason = next(iter(left), f"none has the roles {', '.join(roles)}")
        raise ScannerError(f"{printable(model)} has no matrix that {tool} can use: {reason}")
    return Chosen(matrices=tuple(kept), left_out=tuple(f"{count} left out: {why}" for why, count in left.items()))


def _unusable(one: Matrix, tool: str, known: Sequence[str], roles: Sequence[str], fused: bool) -> str | None:
    """Return why a matrix is not used: empty if it was not asked for, None if it is used."""
    if roles and one.role not in roles:
        return ""
    if one.role in PRODUCT_ROLES:
        return "" if not roles else f"{tool} does not know products of weights"
    if one.role not in known:
        return f"{tool} does not know the role {one.role!r}"
    if one.expert is not None:
        return f"{tool} does not know single experts, which transformers stacks into one parameter"
    if one.parts > 1 and not fused:
        return f"parts of fused weights, for which {tool} has no single number"
    if not one.name:
        return f"its tensor does not end with {_WEIGHT!r}, so the module has no name"
    return None


def read(store: Store, model: str) -> list[Matrix]:
    """Return the whole matrices of the newest revision of a model, in the order of the forward pass."""
    rows = store.sql((SQL / "matrices.sql").read_text("utf-8"), {"model": model}).to_pylist()
    times: dict[str, int] = {}
    for row in rows:
        times[row["tensor"]] = times.get(row["tensor"], 0) + (row["expert"] is None)
    return [
        Matrix(
            name=row["tensor"].removesuffix(_WEIGHT) if row["tensor"].endswith(_WEIGHT) else "",
            layer=row["layer"],
            role=row["role"],
            expert=row["expert"],
            rows=row["rows"],
            cols=row["cols"],
            outliers=row["outliers"],
            mean_p=_finite(row["p"]),
            mean_p_scale=_finite(row["p_scale"]),
            has_scale=bool(row["has_scale"]),
            s=np.array(row["singular_values"], dtype=np.float64),
            p=np.array([np.nan if p is None else p for p in row["p_values"]], dtype=np.float64),
            parts=max(1, times[row["tensor"]]),
        )
        for row in rows
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
