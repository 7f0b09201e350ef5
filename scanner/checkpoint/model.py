"""What travels between the parts of the scanner: descriptions of checkpoints, tensors and matrices, never weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scanner.checkpoint.names import printable
from scanner.configuration import option
from scanner.errors import ConfigError

ROLES = (
    "query",
    "key",
    "value",
    "attn_out",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "embedding",
    "lm_head",
    "router",
    "other",
)

MAX_TENSORS = 500_000
"""More tensors than any checkpoint has: the largest mixtures of experts, quantised, have some 300,000."""

MAX_MATRICES = 500_000
"""More matrices than a scan of any of them lists, heads and experts one by one included."""

VOCABULARY_ROLES = frozenset({"embedding", "lm_head"})
"""Roles with one row per token (or position): large, and analysed only when asked for."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as its file stores it: `size` bytes that begin `start` bytes into `file`, relative to the source.

    `column_major`: the file holds the columns of a matrix one after the other instead of its rows (a transposed tensor
    that PyTorch saved as it was).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    size: int
    column_major: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose headers were read and checked; its weights are still where they were.

    `identity` is a hash of the contents (not of the place), `parameters` counts stored floating-point entries, and
    `dtype` is the floating-point format that most of them have.
    """

    model: str
    revision: str
    source: str
    format: str
    architecture: str | None
    base_model: str | None
    parameters: int
    dtype: str
    identity: str
    config: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]
    base: "Checkpoint | None" = None
    """Of `delta:BASE..TUNED`: the checkpoint that is subtracted."""


@dataclass(frozen=True, kw_only=True)
class LogicalWeight:
    """One weight as the model sees it: a tensor of numbers, whichever stored tensors those are decoded from.

    `codec` names the decoding (empty: the numbers are stored as they are, in the entry's dtype), `companions` are the
    stored tensors it needs beside `entry` (scales, zero points), by what they are, and `settings` its parameters.
    `shape` is the shape after decoding, `dtype` says what the numbers were stored as (F32, F8_E4M3, Q4_1, MXFP4, ...).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    entry: TensorEntry
    codec: str = ""
    companions: tuple[tuple[str, TensorEntry], ...] = ()
    settings: tuple[tuple[str, int | float | str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RowPattern:
    """The rows r of a fused matrix with offset <= r mod period < offset + width: every way in which fused weights are packed.

    Concatenated: one period, as long as the matrix. Interleaved by head: the period is the rows of all parts of one head
    (or of one key-value group). Alternating: period 2, width 1.
    """

    period: int
    offset: int
    width: int


@dataclass(frozen=True, kw_only=True)
class HeadSlice:
    """The rows (axis 0) or columns (axis 1) from `start` up to `stop` that belong to one attention head."""

    axis: int
    start: int
    stop: int


class MatrixKey(NamedTuple):
    """What tells the matrices of one checkpoint apart: two matrices differ in at least one of these."""

    tensor: str
    role: str
    head: int | None
    expert: int | None


@dataclass(frozen=True, kw_only=True)
class MatrixRef:
    """One matrix to analyse: `rows` = out_features, `cols` = in_features once it is turned the right way round.

    How it is made of stored bytes, in this order: `entry` and `companions` are read and decoded by `codec`; if
    `transposed`, turned (the file holds (cols, rows)); of a fused matrix the rows of `row_pattern` are taken; a row order
    that was changed for rotary embeddings in `rope_heads` heads (GGUF) is undone; of one head, `head_slice` is cut out;
    for a difference, the matrix of `minus` (its source, its ref) is subtracted.

    `module` tells matrices of one role in one block apart: `cross_attention`, `shared_expert`, `mla_a` and `mla_b` (the
    low-rank factors of multi-head latent attention), `indexer`; None for the ordinary ones.
    """

    tensor: str
    stack: str | None
    layer: int | None
    role: str
    role_source: str
    head: int | None
    expert: int | None
    rows: int
    cols: int
    dtype: str
    entry: TensorEntry
    transposed: bool
    codec: str = ""
    companions: tuple[tuple[str, TensorEntry], ...] = ()
    settings: tuple[tuple[str, int | float | str], ...] = ()
    row_pattern: RowPattern | None = None
    rope_heads: int | None = None
    head_slice: HeadSlice | None = None
    minus: "tuple[str, MatrixRef] | None" = None
    module: str | None = None

    @property
    def identity(self) -> MatrixKey:
        """The key of the matrix, unique within a checkpoint."""
        return MatrixKey(self.tensor, self.role, self.head, self.expert)

    @property
    def key(self) -> str:
        """A short file name (without extension) made from `identity`, the same on every run."""
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.tensor[-48:]).strip("._-")
        digest = hashlib.sha256("\0".join(map(str, self.identity)).encode()).hexdigest()[:16]
        return f"{readable}-{digest}" if readable else digest


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A tensor that is not analysed, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which matrices a scan wants: roles and layers (empty: all of them), and whether embeddings and output heads too.

    With `heads`, attention projections are cut into one matrix per head, and nothing else is wanted.

    Raises:
        ScannerError: a role that is not in the vocabulary, or a layer that is not a non-negative integer.
    """

    only: tuple[str, ...] = option(
        (), name="roles", aliases=("only",), metavar="ROLE,...", choices=ROLES, identity="only", unordered=True
    )
    """Only these roles: query, key, value, attn_out, mlp_up, mlp_gate, mlp_down, embedding, lm_head, router, other; empty: all."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0, identity="layers", unordered=True)
    """Only these blocks, counted from 0; empty: all."""
    embeddings: bool = option(False, identity="embeddings")
    """Also the embeddings and the output head."""
    heads: bool = option(False, identity="heads")
    """One matrix per attention head: rows of query, key and value, columns of attn_out."""

    def __post_init__(self) -> None:
        unknown = [role for role in self.only if role not in ROLES]
        if unknown:
            raise ConfigError("only", f"has an unknown role {unknown[0]!r}: choose from {', '.join(ROLES)}")
        wrong = [layer for layer in self.layers if type(layer) is not int or layer < 0]
        if wrong:
            raise ConfigError("layers", f"has {wrong[0]!r}, which is not a layer index: layers count from 0")

    @property
    def vocabulary(self) -> bool:
        """Whether embeddings and output heads are wanted: asking for one of the two roles by name is asking."""
        return self.embeddings or not VOCABULARY_ROLES.isdisjoint(self.only)


@dataclass(frozen=True, kw_only=True)
class TieCheck:
    """The embeddings and output heads of a checkpoint, some of which may hold the same bytes.

    Small and picklable: `resolve_ties` compares the bytes, on any machine that can read `source`.

    Attributes:
        source: `Checkpoint.source`.
        candidates: the matrices, in the order of the headers.
        declared: whether the config says that the output head is the embedding.
    """

    source: str
    candidates: tuple[MatrixRef, ...]
    declared: bool


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The matrices to analyze and the tensors that are skipped: together every tensor of a checkpoint, once.

    Attributes:
        matrices: the matrices to analyze.
        skipped: the other tensors, each with the reason.
        perhaps_tied: (copy, original) for tensors among the matrices that may hold the same bytes.
        tie_checks: what has to be compared to decide that; empty if the inventory is final.
    """

    matrices: tuple[MatrixRef, ...]
    skipped: tuple[Skipped, ...]
    perhaps_tied: tuple[tuple[str, str], ...] = ()
    tie_checks: tuple[TieCheck, ...] = ()

    def without(self, copies: Mapping[str, Mapping[str, str]]) -> "Inventory":
        """Return the final inventory, in which the copies of tied weights are skipped.

        Args:
            copies: what `resolve_ties` returned for `tie_checks`.
        """
        found = {copy: name for check in self.tie_checks for copy, name in copies[check.source].items()}
        return replace(
            self,
            matrices=tuple(ref for ref in self.matrices if ref.entry.name not in found),
            skipped=(*(skip for skip in self.skipped if skip.tensor not in found), *tied(found)),
            perhaps_tied=(),
            tie_checks=(),
        )


def tied(copies: Mapping[str, str]) -> tuple[Skipped, ...]:
    """Return why copies of weights (stored tensor -> name of the original) are skipped."""
    return tuple(Skipped(tensor=copy, reason=f"tied with {printable(original)}") for copy, original in copies.items())
