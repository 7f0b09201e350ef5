"""Definitions of the tables: columns with type, unit and description, kind, meaning of a row, and sort order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import pyarrow as pa

from scanner.rmt.columns import Column, ColumnType, Scope, declared_columns, metrics
from scanner.rmt.metric_set import MATRIX_COLUMNS, SPECTRAL_METRICS, VECTOR_COLUMNS
from scanner.rmt.result import Analysis

Kind = Literal["scan", "comparison", "run", "point", "shared", "night"]
"""Which files a table has: one per scan, comparison, run, measured point of a run, or night, or files that all scans share."""

MATRIX_KEY = ("tensor", "role", "head", "expert")
"""Columns that identify a matrix within one checkpoint; `head` and `expert` may be null."""

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "text": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "float64[]": pa.list_(pa.float64()),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Definition of one table; everything else that knows tables derives from it."""

    name: str
    kind: Kind
    row: str
    """Meaning of a row, as in `one row per matrix`."""
    description: str
    """What the table tells, for the documentation and the card of a published dataset."""
    declared: tuple[Column, ...]
    """Columns without those of registered metrics."""
    order: tuple[str, ...] = ()
    """Columns by which the rows of a file are sorted; nulls come last."""
    file: str
    """Name of a file, without suffix, for the documentation."""
    listed_by: str = ""
    """The table whose rows say which files count (`scans`, `comparisons`); empty: every file in the folder counts."""
    counted_by: str = ""
    """Column of `scans` with the number of rows."""
    metrics_of: Scope | None = None
    """Which registered metrics are columns, too."""
    paths: tuple[str, ...] = ()
    """Text columns that may hold paths of the machine; `publish` shortens them."""
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """JSON columns of which `publish` keeps these keys only: others say where things are, which is nobody else's business."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, in the order of the files.

        Raises:
            ValueError: a registered metric has the name of another column.
        """
        if self.metrics_of is None:
            return self.declared
        extra = tuple(metric.column for metric in metrics(self.metrics_of))
        taken = {column.name for column in self.declared}
        for column in extra:
            if column.name in taken:
                raise ValueError(f"metric {column.name!r} has the name of a column of table {self.name!r}: rename it")
        return self.declared + extra

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema: names, types, and which columns may be null."""
        return _schema(self.columns, described=False)

    @property
    def described(self) -> pa.Schema:
        """The schema with description and unit in the metadata of every field, as committed files have it."""
        return _schema(self.columns, described=True)


@lru_cache(maxsize=256)
def _schema(columns: tuple[Column, ...], *, described: bool) -> pa.Schema:
    def field(column: Column) -> pa.Field:
        about = {"description": column.description} | ({"unit": column.unit} if column.unit else {})
        return pa.field(
            column.name,
            ARROW_TYPES[column.type],
            nullable=not column.required,
            metadata=about if described else None,
        )

    return pa.schema([field(column) for column in columns])


# ---- columns that several tables share


def _text(name: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "text", "", description, required)


def _int(name: str, description: str, *, required: bool = False) -> Column:
    return Column(name, "int32", "", description, required)


def _bigint(name: str, description: str, *, unit: str = "", required: bool = False) -> Column:
    return Column(name, "int64", unit, description, required)


def _float(name: str, description: str, *, unit: str = "", required: bool = False) -> Column:
    return Column(name, "float64", unit, description, required)


def _single(name: str, description: str) -> Column:
    return Column(name, "float32", "", description)


def _time(name: str, description: str) -> Column:
    return Column(name, "timestamp", "UTC", description)


_SCAN_ID = _text("scan_id", "scan: hash of content and method", required=True)
_PAIR_ID = _text("pair_id", "comparison: hash of both scans", required=True)
_NIGHT_ID = _text("night_id", "night: the time of its start, and random digits", required=True)
_RUN_ID = _text("run_id", "run: hash of content, data and parameters", required=True)
_MODEL = _text("model", "name of the model", required=True)
_REVISION = _text("revision", "commit on the Hub; of local files a hash of their content")
_TENSOR = _text("tensor", "name of the tensor", required=True)
_STACK = _text(
    "stack",
    "`encoder decoder vision audio qformer` or a part of the name (`up_blocks`, `teacher`), where a model has several",
)
_LAYER = _int("layer", "index of the block; null outside blocks")
_ROLE = _text(
    "role",
    "`query key value attn_out mlp_up mlp_gate mlp_down embedding lm_head router other`; `qk ov`: products of a head",
    required=True,
)
_HEAD = _int("head", "index of the attention head, if heads are analyzed separately")
_EXPERT = _int("expert", "index of the expert, where there are several")
_ROWS = _int("rows", "output features m", required=True)
_COLS = _int("cols", "input features n", required=True)
_MODULE = _text(
    "module",
    "`cross_attention shared_expert context mla_a mla_b indexer`, where a block has one role twice",
)
_K = _int("k", "rank of the singular value, 0 = largest", required=True)
_STARTED = _time("started_at", "start of the run that completed it")
_FINISHED = _time("finished_at", "end of the run that completed it")
_SCANNER = _text("scanner_version", "version of rmtscan")
_METHOD = _text("method", "parameters that the id is made of (JSON)")
_ENVIRONMENT = _text("environment", "workers, devices and library versions (JSON)")
_FILES = _text("files", "size, rows and SHA-256 of the committed files (JSON); null in stores of earlier versions")
_DATASET = _text("dataset", "name of the text or data")


def _optional(column: Column) -> Column:
    return Column(column.name, column.type, column.unit, column.description)


_VECTOR_COLUMNS = {column.name: column for column in declared_columns(Analysis, "vector").values()}
_PAIR_PLACE = (_STACK, _LAYER, _ROLE, _HEAD, _EXPERT, _ROWS, _COLS, _MODULE)
_PAIR_ORDER = ("stack", "layer", "role", "base_tensor", "head", "expert")
_BASE_TENSOR = _text("base_tensor", "name of the tensor in the base model", required=True)
_MODELS_OF_A_PAIR = (
    _PAIR_ID,
    _text("base_scan_id", "scan of the base model"),
    _text("tuned_scan_id", "scan of the tuned model"),
    _text("base_model", "name of the base model", required=True),
    _text("tuned_model", "name of the tuned model", required=True),
)


def _before_and_after(name: str, type_: ColumnType, description: str, *, required: bool = False) -> tuple[Column, ...]:
    """The same value of the base and of the tuned matrix."""
    return tuple(
        Column(f"{name}_{which}", type_, "", f"{description} of the {which} matrix", required)
        for which in ("base", "tuned")
    )


# ---- the tables

_ALL = (
    Table(
        name="scans",
        kind="scan",
        row="one row per scan",
        description="models, revisions, the method and counts; the row commits the scan",
        file="<scan_id>",
        paths=("base_model", "source", "method", "environment"),
        declared=(
            _SCAN_ID,
            _MODEL,
            _REVISION,
            _text("source", "path or URL of the checkpoint"),
            _text("format", "format of the weights, such as `safetensors` or `gguf`"),
            _text("architecture", "architecture that the config names"),
            _text("base_model", "model that this one was made from, if the checkpoint says so"),
            _bigint("parameters", "stored floating-point entries"),
            _text("dtype", "most common stored type"),
            _STARTED,
            _FINISHED,
            _float("seconds", "time of the workers, summed over matrices", unit="s"),
            _int("matrices", "number of analyzed matrices", required=True),
            _int("vectors", "number of singular triplets", required=True),
            _int("failed", "number of matrices that could not be analyzed", required=True),
            _int("skipped", "number of tensors that were skipped"),
            _SCANNER,
            _METHOD,
            _ENVIRONMENT,
            _text("skipped_tensors", "names of skipped tensors by reason (JSON)"),
            _text("identity", "hash of the content"),
            _FILES,
            _float("initializer_range", "standard deviation of the initial entries, if the config names it"),
        ),
    ),
    Table(
        name="matrices",
        kind="scan",
        row="one row per matrix",
        description="σ and the edges of the bulk, outliers, ranks, norms and mean p-values",
        order=("layer", "role", "tensor", "head", "expert"),
        file="<scan_id>",
        listed_by="scans",
        counted_by="matrices",
        metrics_of="matrix",
        declared=(
            _SCAN_ID,
            _MODEL,
            _REVISION,
            _TENSOR,
            _STACK,
            _LAYER,
            _ROLE,
            _text("role_source", "which table recognized the name, or how a fused weight was split"),
            _HEAD,
            _EXPERT,
            _ROWS,
            _COLS,
            _MODULE,
            _text("dtype", "type as stored"),
            *declared_columns(Analysis, "matrix").values(),
            *MATRIX_COLUMNS,
            _int("kv_head", "of a product: index of its key-value head, which several heads may share"),
            _text(
                "between",
                "of a product: what the model does between its factors, `rotary`, `norm` or `rotary,norm`; then the product "
                "is the part without it",
            ),
            _float("seconds", "time of reading, decomposing and testing", unit="s"),
            _text("device", "where it was computed: `cpu` or `cuda`"),
            _float("read_seconds", "time of reading and decoding the weight", unit="s"),
            _float("decompose_seconds", "time of the singular value decomposition", unit="s"),
            _float("test_seconds", "time of the tests that follow the decomposition", unit="s"),
            _bigint(
                "bytes_read",
                "stored size of the tensors that the matrix is read from; a tensor of several matrices counts in each",
                unit="bytes",
            ),
        ),
    ),
    Table(
        name="vectors",
        kind="scan",
        row="one row per singular triplet",
        description="singular value and region; for the left (u, output side) and right (v, input side) vector the "
        "Kolmogorov-Smirnov distance to the Gaussian, its p-value, inverse participation ratio and largest entry",
        order=("layer", "role", "tensor", "head", "expert", "k"),
        file="<scan_id>",
        listed_by="scans",
        counted_by="vectors",
        metrics_of="vector",
        declared=(
            _SCAN_ID,
            _MODEL,
            _REVISION,
            _TENSOR,
            _STACK,
            _LAYER,
            _ROLE,
            _HEAD,
            _EXPERT,
            _ROWS,
            _COLS,
            _K,
            _MODULE,
            *_VECTOR_COLUMNS.values(),
            *VECTOR_COLUMNS,
        ),
    ),
    Table(
        name="failures",
        kind="scan",
        row="one row per matrix that could not be analyzed",
        description="where the analysis failed, and why",
        order=("tensor",),
        file="<scan_id>",
        listed_by="scans",
        counted_by="failed",
        paths=("message",),
        declared=(
            _SCAN_ID,
            _MODEL,
            _optional(_TENSOR),
            _text(
                "stage",
                "`read` (reading or decoding the weight) or `analyse` (decomposition and tests, or loss of the worker)",
                required=True,
            ),
            _text("error", "type of the exception, or `WorkerLost`", required=True),
            _text("message", "what the exception says"),
            Column(
                "transient",
                "bool",
                "",
                "whether the next scan tries it again, because it may succeed (a busy server, a broken connection, a full GPU)",
            ),
        ),
    ),
    Table(
        name="controls",
        kind="shared",
        row="one row per singular triplet of a random matrix",
        description="random matrices of the same shapes, analyzed like weights: what noise looks like",
        order=("k",),
        file="<rows>x<cols>-<ensemble>-<seed>",
        declared=(
            _ROWS,
            _COLS,
            _text("ensemble", "distribution of the entries: `gaussian` or `kaiming_uniform`", required=True),
            _bigint("seed", "seed of the random numbers", required=True),
            _K,
            _float("singular_value", "singular value; the entries have variance 1/max(rows, cols)", required=True),
            *(_VECTOR_COLUMNS[name] for name in ("u_p", "v_p", "u_p_local", "v_p_local")),
        ),
    ),
    Table(
        name="matrix_controls",
        kind="shared",
        row="one row per singular triplet of a random matrix made from a weight",
        description="a weight with entries in random order or of random signs, or a draw of its scale null, analyzed like it",
        order=("k",),
        file="<scan_id>-<hash of the matrix>-<ensemble>-<seed>",
        declared=(
            _SCAN_ID,
            _MODEL,
            _TENSOR,
            _LAYER,
            _ROLE,
            _HEAD,
            _EXPERT,
            _ROWS,
            _COLS,
            _text("ensemble", "how it is made: `permuted`, `sign` or `scale`", required=True),
            _bigint("seed", "seed of the random numbers", required=True),
            _K,
            *(
                _VECTOR_COLUMNS[name]
                for name in ("singular_value", "region", "region_scale", "u_p", "v_p", "u_p_scale", "v_p_scale")
            ),
        ),
    ),
    Table(
        name="comparisons",
        kind="comparison",
        row="one row per comparison of two models",
        description="a base and a tuned model with counts; the row commits the comparison",
        file="<pair_id>",
        paths=("base_model", "environment", "method"),
        declared=(
            _PAIR_ID,
            _text("base_scan_id", "scan of the base model", required=True),
            _text("tuned_scan_id", "scan of the tuned model", required=True),
            _text("delta_scan_id", "scan of the difference ΔW"),
            *_MODELS_OF_A_PAIR[3:],
            _STARTED,
            _FINISHED,
            _float("seconds", "duration of the run", unit="s"),
            _int("matrices", "number of compared pairs", required=True),
            _int("identical", "number of pairs that are equal to the last bit"),
            _int("unmatched", "number of tensors without a partner"),
            _int("failed", "number of pairs that could not be compared"),
            _text("unmatched_tensors", "names of unmatched tensors by reason (JSON)"),
            _SCANNER,
            _METHOD,
            _ENVIRONMENT,
            _FILES,
        ),
    ),
    Table(
        name="pairs",
        kind="comparison",
        row="one row per pair of matrices",
        description="how far fine-tuning moved a matrix, outliers before and after, intruder dimensions. The spectrum of ΔW and "
        "the tests of its vectors are in `matrices` and `vectors`, as model `delta:BASE..TUNED`",
        order=_PAIR_ORDER,
        file="<pair_id>",
        listed_by="comparisons",
        paths=("base_model",),
        declared=(
            *_MODELS_OF_A_PAIR,
            *_PAIR_PLACE,
            _BASE_TENSOR,
            _text("tuned_tensor", "name of the tensor in the tuned model", required=True),
            _float("relative_change", "‖ΔW‖/‖W_base‖ (Frobenius norms)"),
            _float("cosine", "cosine of the two matrices as vectors"),
            Column("identical", "bool", "", "whether both are equal to the last bit", required=True),
            *_before_and_after("outliers_left", "int32", "number of singular values below the bulk"),
            *_before_and_after("outliers_right", "int32", "number of singular values above the bulk"),
            _int(
                "intruders",
                "number of the ten largest tuned left vectors whose overlap with every base vector is below 0.5",
            ),
            _float("delta_effective_rank", "effective rank of ΔW"),
            _int("delta_outliers_left", "number of singular values of ΔW below its bulk"),
            _int("delta_outliers_right", "number of singular values of ΔW above its bulk"),
            _float("delta_stable_rank", "stable rank of ΔW"),
            _float("delta_spectral_norm", "largest singular value of ΔW"),
            _float("delta_u_p_mean", "mean p-value of the left vectors of ΔW"),
            _float("delta_v_p_mean", "mean p-value of the right vectors of ΔW"),
            *_before_and_after("u_p_mean", "float64", "mean p-value of the left vectors"),
            *_before_and_after("v_p_mean", "float64", "mean p-value of the right vectors"),
            _float("seconds", "time of reading, decomposing and comparing", unit="s"),
        ),
    ),
    Table(
        name="pair_vectors",
        kind="comparison",
        row="one row per rank of a pair",
        description="singular values and p-values before and after, and the base vector that each tuned vector overlaps with "
        "most. Numerically zero triplets have no overlap",
        order=(*_PAIR_ORDER, "k"),
        file="<pair_id>",
        listed_by="comparisons",
        declared=(
            _PAIR_ID,
            _BASE_TENSOR,
            *_PAIR_PLACE,
            _K,
            *_before_and_after("singular_value", "float64", "singular value", required=True),
            *_before_and_after("u_p", "float32", "p-value of u_k"),
            *_before_and_after("v_p", "float32", "p-value of v_k"),
            _single("u_overlap", "largest |u_k · u⁰_j| over the base vectors"),
            _int("u_match", "the j of `u_overlap`"),
            _single("v_overlap", "largest |v_k · v⁰_j| over the base vectors"),
            _int("v_match", "the j of `v_overlap`"),
        ),
    ),
    Table(
        name="pair_subspaces",
        kind="comparison",
        row="one row per pair, side and decile",
        description="overlap and principal angles between the same tenth of the singular vectors before and after",
        order=_PAIR_ORDER,
        file="<pair_id>",
        listed_by="comparisons",
        declared=(
            _PAIR_ID,
            _BASE_TENSOR,
            *(_optional(column) if column in (_ROWS, _COLS) else column for column in _PAIR_PLACE),
            _text("side", "`u` (output side) or `v` (input side)", required=True),
            _int("decile", "1 = smallest tenth of the singular values, 10 = largest", required=True),
            _int("dimensions", "dimension d of the subspaces", required=True),
            _float("overlap", "mean squared cosine of the principal angles: 1 if equal, about d/n if unrelated"),
            _float("angle_smallest", "smallest principal angle", unit="rad"),
            _float("angle_mean", "mean principal angle", unit="rad"),
            _float("angle_largest", "largest principal angle", unit="rad"),
        ),
    ),
    Table(
        name="experiments",
        kind="run",
        row="one row per run",
        description="runs with forward passes: activations, ablation, slicing, fine-tuning, lazy learning",
        file="<run_id>",
        paths=("source", "environment", "method", "dataset"),
        declared=(
            _RUN_ID,
            _text("kind", "`activations ablation slicing finetune lazy_learning`", required=True),
            _MODEL,
            _REVISION,
            _text("source", "path or URL of the checkpoint"),
            _DATASET,
            _STARTED,
            _FINISHED,
            _float("seconds", "duration of the run", unit="s"),
            _bigint("tokens", "number of tokens of the text"),
            _SCANNER,
            _METHOD,
            _ENVIRONMENT,
            _bigint("batch_tokens", "tokens that batches were reduced to because of memory; null if they were not"),
            _FILES,
        ),
    ),
    Table(
        name="overlaps",
        kind="run",
        row="one row per right singular vector",
        description="overlap of the right singular vectors with the eigenvectors of the covariance of the activations. "
        "`overlaps` is a keyword of SQL: write it in double quotes",
        file="<run_id>-<block>",
        declared=(
            _RUN_ID,
            _MODEL,
            _REVISION,
            _TENSOR,
            _STACK,
            _LAYER,
            _ROLE,
            _MODULE,
            _EXPERT,
            _optional(_ROWS),
            _optional(_COLS),
            _K,
            _VECTOR_COLUMNS["singular_value"],
            _VECTOR_COLUMNS["region"],
            _single("overlap", "O_k = max_j |v_k · f_j|, f_j the eigenvectors"),
            _int("match", "the j of `overlap`"),
            _float("eigenvalue", "eigenvalue of f_j"),
            _single("peak", "largest |entry| of v_k"),
            Column("centred", "bool", "", "whether the mean of the activations was subtracted"),
            _bigint("tokens", "number of tokens that the covariance was computed from"),
            _float(
                "importance", "s_k² v_kᵀ C v_k: what the triplet adds to the mean square of the output of the matrix"
            ),
            _float(
                "signs_p", "p-value of `overlap` for random signs of the entries of v_k, which keep its localization"
            ),
            _single("signs_median", "median of `overlap` for random signs"),
            _float(
                "signs_bound", "bound on the p-value for random signs, below the smallest `signs_p` that draws can give"
            ),
            _single(
                "overlap_even", "`overlap` with the covariance of every other sequence, the first included (--halves)"
            ),
            _single("overlap_odd", "`overlap` with the covariance of the other sequences (--halves)"),
        ),
    ),
    Table(
        name="overlap_maps",
        kind="run",
        row="one row per singular vector and eigenvector",
        description="overlap of every right singular vector of a chosen matrix with every eigenvector of the covariance of the "
        "activations",
        file="<run_id>-<block>",
        declared=(
            _RUN_ID,
            _MODEL,
            _REVISION,
            _TENSOR,
            _STACK,
            _LAYER,
            _ROLE,
            _MODULE,
            _optional(_COLS),
            _K,
            _int("j", "rank of the eigenvalue, 0 = largest", required=True),
            _single("overlap", "|v_k · f_j|"),
            Column("centred", "bool", "", "whether the mean of the activations was subtracted"),
            _bigint("tokens", "number of tokens that the covariance was computed from"),
        ),
    ),
    Table(
        name="activation_spectra",
        kind="run",
        row="one row per eigenvalue",
        description="eigenvalues of the covariance of the activations that enter a matrix",
        file="<run_id>-<block>",
        declared=(
            _RUN_ID,
            _MODEL,
            _REVISION,
            _TENSOR,
            _STACK,
            _LAYER,
            _ROLE,
            _MODULE,
            _optional(_COLS),
            _int("index", "rank of the eigenvalue, 0 = largest", required=True),
            _float("eigenvalue", "eigenvalue of the covariance", required=True),
            Column("centred", "bool", "", "whether the mean of the activations was subtracted"),
            _bigint("tokens", "number of tokens that the covariance was computed from"),
        ),
    ),
    Table(
        name="ablations",
        kind="point",
        row="one row per measured point",
        description="what a model loses when singular values are removed",
        file="<point>",
        paths=("dataset",),
        declared=(
            _RUN_ID,
            _MODEL,
            _REVISION,
            _text(
                "roles",
                "roles of the changed matrices; `before norm`, `after norm` (slicing) or `hidden` (lazy learning)",
            ),
            _text("layers", "blocks of the changed matrices, as in `0-5,7`; with two stacks `encoder:0-5 decoder:0-5`"),
            _text(
                "set",
                "what was removed: `decile:1` ... `decile:10`, `region:left`, `range:A:B`, `smallest:10` and "
                "`most-random:10` (percent), `random:SEED`, `energy:SEED`, `directions:SEED` and `scale:SEED` (controls), "
                "`slice:1` (slicing), `smallest:20%`, `mass:20%` and `random:20%` (lazy learning); `none`: the intact model",
                required=True,
            ),
            _bigint("removed", "number of singular values that were removed (`directions`, `scale`: replaced)"),
            _float("fraction", "share of the singular values that was removed"),
            _int("seed", "seed of a control, or of a network"),
            _text("metric", "`perplexity`, `accuracy`, `kl` or `lm-eval:TASK`", required=True),
            _DATASET,
            _bigint("tokens", "number of tokens that were measured"),
            _float("baseline", "value of the intact model"),
            _float("value", "value without the set", required=True),
            _float("delta", "value - baseline"),
            _float("stderr", "standard error of `delta` over windows or examples"),
            _float("seconds", "time of the measurement", unit="s"),
            _bigint("examples", "number of windows or examples"),
            _time("finished_at", "end of the measurement"),
            _bigint(
                "batch_tokens", "largest number of tokens per batch, where batches had to be made smaller to fit memory"
            ),
            _text("beside", "for a control: the set that it is compared with (random sets: a set of the same size)"),
            _float("energy", "share of the sum of the squared singular values that was removed or replaced"),
            Column(
                "window_sums",
                "float64[]",
                "",
                "what `value` is computed from, one entry per window or example as in `baselines`: nats, or 1 if correct",
            ),
        ),
    ),
    Table(
        name="finetunes",
        kind="point",
        row="one row per tuned model",
        description="accuracy after fine-tuning, with singular values, or directions of the activations, removed before or after",
        file="<point>",
        paths=("base_model", "dataset", "checkpoint"),
        declared=(
            _RUN_ID,
            _text("base_model", "name of the model that was tuned", required=True),
            _DATASET,
            _text("order", "`none`, `remove-first` or `tune-first`", required=True),
            _int("decile", "removed decile, 1 = smallest singular values (or eigenvalues); null for `none`"),
            _int("seed", "seed of the head, dropout and the order of the examples", required=True),
            _text(
                "roles",
                "roles of the changed matrices; `before norm` or `after norm` where directions were projected out; null for `none`",
            ),
            _float("accuracy", "share of the test examples that are classified correctly", required=True),
            _bigint("examples", "number of training examples"),
            _int("epochs", "passes over the training examples"),
            _float("seconds", "time of training and measurement", unit="s"),
            _text("checkpoint", "folder of the tuned model, if it was kept"),
            _time("finished_at", "end of the measurement"),
            _text("device", "where it was trained: `cpu` or `cuda`"),
            _bigint("removed", "number of singular values that were removed (`directions`, `scale`: replaced)"),
            _float("loss", "mean training loss of the last epoch"),
            _int("examples_at_a_time", "examples per forward pass, where batches had to be divided to fit memory"),
            _bigint(
                "batch_tokens", "largest number of tokens per batch, where batches had to be made smaller to fit memory"
            ),
        ),
    ),
    Table(
        name="baselines",
        kind="run",
        row="one row per window or example",
        description="score of the intact model, window by window, that the points of a run are compared with",
        order=("window",),
        file="<run_id>",
        declared=(
            _RUN_ID,
            _int("window", "index of the window or example", required=True),
            _float("sum", "sum of the scores of the window", required=True),
            _float("weight", "number of scored tokens or examples in the window", required=True),
        ),
    ),
    Table(
        name="run_skips",
        kind="run",
        row="one row per matrix that a run left out",
        description="matrices that a run did not measure, and why",
        file="<run_id>-<block>",
        paths=("reason",),
        declared=(
            _RUN_ID,
            _MODEL,
            _TENSOR,
            _text("reason", "why it was skipped", required=True),
        ),
    ),
    Table(
        name="nights",
        kind="night",
        row="one row per night",
        description="nightly scans of new releases on the Hub: what was listed, planned and done. The newest row of a `watch_id` "
        "holds its watermark",
        file="<night_id>",
        paths=("problems", "failed_upgrades", "config"),
        published={"config": ("watch", "budget", "method")},
        declared=(
            _NIGHT_ID,
            _text("watch_id", "what was watched: hash of section `watch` of the config", required=True),
            _text("state", "`planned` (running, or interrupted) or `done`", required=True),
            _time("started_at", "start of the night"),
            _time("finished_at", "end of its last run"),
            _time("watermark", "the newest change on the Hub that this night has recorded"),
            _int("listed", "number of models that the Hub listed"),
            _int("new", "number of releases that were not known before"),
            _int("planned", "number of releases that were planned"),
            _int("scanned", "number of releases that were scanned"),
            _int("failed", "number of releases that failed, those that are tried again included"),
            _int("skipped", "number of releases that are left out for good"),
            _int("waiting", "number of releases that wait for a later night"),
            _int("upgraded", "number of scans of an earlier method that were computed again"),
            _bigint("bytes", "expected bytes of what was planned", unit="bytes"),
            _float("expected_seconds", "expected duration of what was planned", unit="s"),
            _float("seconds", "duration of its runs", unit="s"),
            _text("problems", "what could not be watched, with the reason (JSON)"),
            _text(
                "failed_upgrades", "scans of an earlier method that could not be computed again, with the reason (JSON)"
            ),
            _text("config", "the configuration (JSON)"),
            _SCANNER,
        ),
    ),
    Table(
        name="releases",
        kind="night",
        row="one row per release and night in which its state changed",
        description="commits of models on the Hub that a nightly scan has seen; `rmtscan query releases` shows the newest state "
        "of each",
        order=("repository", "commit"),
        file="<night_id>",
        paths=("reason",),
        declared=(
            _NIGHT_ID,
            _text("watch_id", "what was watched: hash of section `watch` of the config", required=True),
            _text("repository", "name of the repository, as the Hub listed it", required=True),
            _text("commit", "commit of the release", required=True),
            _text("branch", "branch or tag, for a repository that the config names with one"),
            _text("state", "`waiting planned scanned failed skipped`", required=True),
            _text("reason", "why it waits, failed or was skipped; what is missing of a release that was scanned"),
            _int("attempts", "number of nights in which it was tried and failed", required=True),
            _time("first_seen_at", "when it was listed first"),
            _time("updated_at", "when this state was recorded"),
            _time("last_modified", "time of the change, according to the Hub"),
            _bigint("parameters", "number of parameters, according to the Hub"),
            _bigint("bytes", "size of the weights, expected", unit="bytes"),
            _float("expected_seconds", "expected duration of scan and comparison", unit="s"),
            _text("task", "task of the model, according to the Hub"),
            _text("library", "library of the model, according to the Hub"),
            _text("license", "license, according to the Hub"),
            _text("gated", "`auto` or `manual` if its terms have to be accepted"),
            _bigint("downloads", "downloads of the last month when it was listed"),
            _text("base_model", "repository of the model that it was fine-tuned from, if it names one"),
            _text("base_commit", "commit of the base that it was compared with"),
            _text("scan_id", "its scan"),
            _text("pair_id", "its comparison with the base"),
            _int("matrices", "number of analyzed matrices"),
            _int("failed_tensors", "number of tensors that could not be analyzed"),
        ),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
"""Every table by name, in the order of the documentation."""


def listed_tables() -> tuple[str, ...]:
    """Tables of which every file counts; the files of the others count if `scans` or `comparisons` say so."""
    return tuple(table.name for table in _ALL if not table.listed_by)


def metric_columns(scope: Scope) -> dict[str, str]:
    """Return the columns of metrics, registered ones included, each with the name that the method of a scan has for it."""
    found = {
        column.name: metric.name
        for metric in SPECTRAL_METRICS
        for column in (metric.matrix if scope == "matrix" else metric.vector)
    }
    return found | {metric.column.name: metric.column.name for metric in metrics(scope)}


def tables_of(commits: str) -> tuple[str, ...]:
    """Tables whose files count if the table `commits` (`scans` or `comparisons`) has a row for them."""
    return tuple(table.name for table in _ALL if table.listed_by == commits)


def experiment_tables() -> tuple[str, ...]:
    """Tables that runs of experiments write."""
    return tuple(table.name for table in _ALL if table.kind in ("run", "point"))


def shared_tables() -> tuple[str, ...]:
    """Tables of random controls, whose files count by themselves."""
    return tuple(table.name for table in _ALL if table.kind == "shared")


def fleet_tables() -> tuple[str, ...]:
    """Tables that nightly scans write."""
    return tuple(table.name for table in _ALL if table.kind == "night")


def views() -> tuple[str, ...]:
    """Names that SQL can use: the tables, and `all_` tables with the results that newer ones superseded."""
    superseded = [f"all_{name}" for name in ("matrices", "vectors", *tables_of("comparisons"))]
    return (*TABLES, *superseded)
