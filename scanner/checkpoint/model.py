"""Descriptions of checkpoints, tensors and matrices. They are small and picklable and contain no weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.versions import FileVersion
from scanner.configuration import Checked, option
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

MEMORY = "in-memory:"
"""Start of the source of a model in memory. Local sources are absolute paths, so none of them begins like this."""

MAX_TENSORS = 500_000
"""Limit for the tensors of a checkpoint: the largest quantized mixtures of experts have some 300,000."""

MAX_NAME_BYTES = 4096
"""Limit for the name of a tensor, which is repeated in every row about it."""

MAX_DIMENSIONS = 64
"""Limit for the dimensions of a tensor, as PyTorch has it."""

MAX_MATRICES = 500_000
"""Limit for the matrices of a checkpoint, with every head and expert counted."""

PRODUCT_ROLES = ("qk", "ov")
"""Roles of products of two weights of an attention head, analyzed only on request: W_q^T W_k and W_o W_v."""

VOCABULARY_ROLES = frozenset({"embedding", "lm_head"})
"""Roles with one row per token (or position): large, and analyzed only on request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as its file stores it.

    Attributes:
        name: name of the tensor.
        dtype: name of the stored dtype, as safetensors or GGUF call it.
        shape: stored shape.
        file: name of the file, relative to the source.
        start: offset of the first byte in the file.
        size: number of bytes.
        column_major: whether the columns of the matrix are stored one after another instead of its rows (a transposed
            tensor saved by PyTorch).
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
    """A checkpoint whose headers were read and checked.

    Attributes:
        model: name of the model.
        revision: commit on the Hub, or the first digits of the identity.
        source: where the files are, for `open_files`.
        format: name of the file format.
        architecture: class or type of the model.
        base_model: Hub id of the model that it was made from.
        parameters: number of stored floating-point entries.
        dtype: the dtype that most of them have.
        identity: hash of the contents, independent of the place; empty if it is not known yet.
        config: the model's config.
        tensors: every stored tensor.
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
    left_out: "tuple[Skipped, ...]" = ()
    """What the files hold beside the model, such as optimizers, each with the reason."""
    base: "Checkpoint | None" = None
    """The checkpoint that is subtracted, for `delta:BASE..TUNED`."""
    beside: tuple[str, ...] = ()
    """References of other models in the same folder and in the folders inside it, which are not part of this one."""
    versions: tuple[FileVersion, ...] = ()
    """Versions of the files that `identity` is made of; whoever reads them checks that they are the same."""
    provisional: str = ""
    """Hash of names, headers, sizes and times of local files: the identity until their contents are hashed; else empty."""
    tuned: "Checkpoint | None" = None
    """The checkpoint from which `base` is subtracted."""

    @property
    def place(self) -> str:
        """Where it is, as results record it: its source; of a model in memory, only that and its name."""
        return f"{MEMORY}{self.model}" if self.source.startswith(MEMORY) else self.source


@dataclass(frozen=True, kw_only=True, slots=True)
class LogicalWeight:
    """One weight of a model: a tensor of numbers, decoded from one or more stored tensors.

    Attributes:
        name: name of the weight.
        shape: shape after decoding.
        dtype: how the numbers are stored (F32, F8_E4M3, Q4_1, MXFP4, ...).
        entry: the main stored tensor.
        codec: name of the decoder; empty if the numbers are stored in the dtype of `entry`.
        companions: (kind, tensor) of the other stored tensors that the decoder needs (scales, zero points).
        settings: parameters of the decoder.
        place: name of the weight in the model that it belongs to, if that is not `name`: two adapters change the same
            weight, and some tools write names without dots.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    entry: TensorEntry
    codec: str = ""
    companions: tuple[tuple[str, TensorEntry], ...] = ()
    settings: tuple[tuple[str, int | float | str], ...] = ()
    place: str = ""

    @property
    def name_in_model(self) -> str:
        """The name that says where in the model the weight is."""
        return self.place or self.name


@dataclass(frozen=True, kw_only=True)
class RowPattern:
    """The rows r of a fused matrix with offset <= r mod period < offset + width. Covers every packing of fused weights.

    Concatenated weights have one period, as long as the matrix. For weights interleaved by head, the period is the rows
    of all parts of one head (or of one key-value group). Alternating rows have period 2 and width 1.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRef:
    """One matrix to analyze, with `rows` = out_features and `cols` = in_features.

    It is made from stored bytes in these steps: `entry` and `companions` are read and decoded by `codec`; the result is
    transposed if `transposed` (the file holds (cols, rows)); the rows of `row_pattern` are selected from a fused matrix; a
    row order that was changed for rotary embeddings in `rope_heads` heads is restored; `head_slice` selects one attention
    head; for a difference, the matrix of `minus` (its source and its ref) is subtracted.

    `module` distinguishes matrices of the same role in one block: `cross_attention`, `shared_expert`, `context`, `mla_a` and
    `mla_b` (the low-rank factors of multi-head latent attention), `indexer`; None for the usual ones.

    A product (role `qk` or `ov`) has two matrices in `factors` instead: the first, transposed for `qk`, times the second.
    `tensor` and `entry` are those of the first.
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
    heads: int | None = None
    """Number of attention heads in the rows (of attention outputs: the columns) of a whole matrix, if it is known."""
    factors: "tuple[MatrixRef, MatrixRef] | None" = None
    between: str | None = None
    """What the model does between the factors of a product: `rotary`, `norm`, `rotary,norm`; None: nothing that is known."""

    @property
    def decomposed(self) -> tuple[int, int]:
        """Shape that the cost of the decomposition depends on: of a product, that of one of its thin factors."""
        if self.factors is None:
            return self.rows, self.cols
        return max(self.rows, self.cols), min(self.factors[0].rows, self.factors[0].cols)

    @property
    def kv_head(self) -> int | None:
        """Index of the key-value head of a product, which several heads may share."""
        return self.factors[1].head if self.factors is not None else None

    @property
    def weights(self) -> "tuple[MatrixRef, ...]":
        """The matrices that are read: the two factors of a product, otherwise the matrix itself."""
        return (self,) if self.factors is None else self.factors

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A tensor that is not analyzed, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Selection(Checked):
    """Which matrices to scan: roles and layers (empty: all of them), and whether to include embeddings and output heads.

    With `heads`, attention projections are split into one matrix per head, and nothing else is selected.

    Raises:
        ScannerError: a role that is not in the vocabulary, or a layer that is not a non-negative integer.
    """

    only: tuple[str, ...] = option(
        (),
        name="roles",
        aliases=("only",),
        metavar="ROLE,...",
        choices=(*ROLES, *PRODUCT_ROLES),
        identity="only",
        unordered=True,
    )
    """Only these roles: query, key, value, attn_out, mlp_up, mlp_gate, mlp_down, embedding, lm_head, router, other, and products
    qk, ov; empty: all."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0, identity="layers", unordered=True)
    """Only these blocks, counted from 0; empty: all."""
    embeddings: bool = option(False, identity="embeddings")
    """Also the embeddings and the output head."""
    heads: bool = option(False, identity="heads")
    """One matrix per attention head: rows of query, key and value, columns of attn_out."""
    products: bool = option(False, identity="products", since="0.2")
    """Also the products of each attention head, queries with keys (qk) and attention outputs with values (ov): what its factors
    mean, whatever the basis between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.products and self.only and not self.product_roles:
            raise ConfigError("products", f"adds the roles {' and '.join(PRODUCT_ROLES)}, which `roles` leaves out")

    @property
    def vocabulary(self) -> bool:
        """Whether embeddings and output heads are selected, by `embeddings` or by role."""
        return self.embeddings or not VOCABULARY_ROLES.isdisjoint(self.only)

    @property
    def product_roles(self) -> tuple[str, ...]:
        """Roles of the products that are selected, by `products` or by role."""
        named = tuple(role for role in PRODUCT_ROLES if role in self.only)
        return named if self.only else PRODUCT_ROLES if self.products else ()

    def without_products(self) -> "Selection":
        """Return the selection of weights alone; itself if it selects nothing else."""
        kept = tuple(role for role in self.only if role not in PRODUCT_ROLES)
        return self if self.only and not kept else replace(self, only=kept, products=False)


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
