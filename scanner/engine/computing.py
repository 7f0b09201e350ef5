"""What workers compute of a matrix: its analysis with the time of each stage, and its random controls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from scanner.checkpoint import MatrixRef, read_matrices
from scanner.engine import rows
from scanner.engine.task import Context
from scanner.engine.tasks import MatrixControls, bytes_of
from scanner.rmt import ensembles
from scanner.rmt.analysis import (
    Analysis,
    Heads,
    analyze,
    decomposed,
    entries_of,
    scale_profile,
    summarize,
    summarize_values,
    values_of,
)
from scanner.rmt.decomposition import LowRank
from scanner.rmt.ensembles import control_of
from scanner.rmt.ks_null import KsNull
from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.scale_null import Profile, ScaleError
from scanner.rmt.vocabulary import ScaleKind, SigmaKind

if TYPE_CHECKING:
    from scanner.engine.tasks import ControlTask, MatrixControlTask

_DEFAULT_SIGMA: SigmaKind = "median"
_DEFAULT_SCALE: ScaleKind = "robust"


def analyze_timed(
    context: Context,
    matrix: Any,
    *,
    sigma: SigmaKind,
    null: str,
    scale: ScaleKind,
    heads: Heads | None = None,
    head_mass: bool = False,
    values_only: bool = False,
    metrics: tuple[str, ...] = (),
) -> tuple[Analysis, dict[str, float]]:
    """Analyze a matrix on the worker's device; returns the seconds of the stages `decompose` and `test` beside it."""
    before = {stage: context.seconds(stage) for stage in ("decompose", "test")}
    with context.computing():
        if values_only:
            with context.stage("decompose"):
                values, total = values_of(matrix, context.device)
            with context.stage("test"):
                analysis = summarize_values(
                    values, total, sigma=sigma, metrics=metrics, entries=partial(entries_of, matrix)
                )
        else:
            with context.stage("decompose"):
                parts, total = decomposed(matrix, context.device)
            with context.stage("test"):
                tests = KsNull.parse(null)
                analysis = summarize(
                    parts,
                    total,
                    sigma=sigma,
                    null=tests,
                    scale=scale,
                    heads=heads,
                    head_mass=head_mass,
                    metrics=metrics,
                )
    return analysis, {stage: context.seconds(stage) - seconds for stage, seconds in before.items()}


def heads_of(ref: MatrixRef) -> Heads | None:
    """Return which side of a whole attention projection is made of heads; None if it is not or if it is one head."""
    if ref.heads is None or ref.heads < 2 or ref.head is not None:
        return None
    return Heads(side="v" if ref.role == "attn_out" else "u", count=ref.heads)


def control(task: ControlTask, context: Context) -> bytes:
    """Draw one random matrix and return its rows of `controls`, packed."""
    drawn = ensembles.control(task.ensemble, task.rows, task.cols, task.seed)
    analysis, _ = analyze_timed(context, drawn, sigma=_DEFAULT_SIGMA, null="table", scale=_DEFAULT_SCALE)
    return rows.pack(rows.control_rows(task, analysis))


def matrix_controls(task: MatrixControlTask, context: Context) -> MatrixControls:
    """Read a matrix and return the rows of its controls; see `MatrixControlTask.run`."""
    with context.stage("read"):
        [read] = read_matrices(task.source, (task.ref,), task.versions)
    context.count_bytes(bytes_of([task.ref]))
    matrix, profile = _prepared(task, context, read)
    found = []
    for ensemble, seed in task.wanted:
        if ensemble == "scale" and not isinstance(profile, Profile):
            drawn = rows.no_control_rows()
        else:
            random = control_of(ensemble, matrix, seed, profile if isinstance(profile, Profile) else None)
            analysis, _ = analyze_timed(
                context,
                random,
                sigma=task.sigma,
                null=task.null,
                scale=task.scale,
                values_only=task.values_only,
            )
            drawn = rows.matrix_control_rows(task, ensemble, seed, analysis)
        found.append((ensemble, seed, rows.pack(drawn)))
    return MatrixControls(drawn=tuple(found), without_scale=str(profile) if isinstance(profile, ScaleError) else "")


def _prepared(task: MatrixControlTask, context: Context, read: Any) -> tuple[FloatArray, Profile | ScaleError | None]:
    """Return the entries of the weight and, for draws of the scale null, its variances; the vectors are not kept."""
    draws_scale = any(ensemble == "scale" for ensemble, _ in task.wanted)
    if not draws_scale and not isinstance(read, LowRank):
        return read.double().cpu().numpy(), None
    with context.computing(), context.stage("decompose"):
        parts, _ = decomposed(read, context.device)
        matrix = parts.left.T.mul(parts.singular_values) @ parts.right if isinstance(read, LowRank) else read
        entries: FloatArray = matrix.double().cpu().numpy()
        if not draws_scale:
            return entries, None
        try:
            return entries, scale_profile(parts, "total" if task.scale == "total" else "robust")
        except ScaleError as error:
            return entries, error


def warm_up() -> None:
    """Load the libraries of an analysis: this belongs to the start of a worker and not to its first matrix."""
    rows.warm_up(analyze([[1.0, 0.0], [0.0, 2.0]]))
