"""Compression of a model: factors of every matrix, perplexity beside other factors of the same size, and the new checkpoint.

The beginning of the text gives the second moments of the activations, and perplexity is measured on what follows. Every way of
compressing is measured on the same windows, so differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from scanner.checkpoint import Checkpoint, MatrixRef, Selection
from scanner.checkpoint.names import printable
from scanner.compress import folder, rules
from scanner.compress.config import Config, TripletRule
from scanner.compress.factored import factor_layer, require_own_layers, require_whole
from scanner.compress.rules import Factors
from scanner.errors import ScannerError
from scanner.experiments.nlp.evaluation import Scores, Windows, require_finite, summarize
from scanner.experiments.nlp.measures import measurement
from scanner.experiments.nlp.models import (
    ModelPlace,
    is_causal,
    load_config,
    load_model,
    load_tokenizer,
    model_place,
    without_chatter,
)
from scanner.experiments.nlp.placing import Placed, open_target, place_matrices
from scanner.experiments.nlp.recording import accumulate
from scanner.experiments.nlp.tokens import BATCH_TOKENS, Batches, Sequences
from scanner.rmt.decomposition import DecompositionError, decompose
from scanner.version import __version__

WHITENED = "svd-llm"
"""Name of the truncation after whitening, which is measured beside the rules."""
INTACT = "intact"
"""Name of the model without compression."""
#: Bytes of second moments that are kept at a time; more needs another pass over the text.
_MOMENTS = 4 << 30
#: Share of the intervals.
_CONFIDENCE = 0.95
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of compressing: its size, and what it costs. Values that were not measured are None.

    `nats` is the increase of the negative log-likelihood per token over the intact model, with its 95 % interval; `versus_chosen`
    that over the checkpoint that was written. Both come from differences window by window.
    """

    rule: str
    parameters: int
    """Of the compressed matrices, as two factors (of the intact model as they are)."""
    share: float
    perplexity: float | None = None
    nats: float | None = None
    nats_low: float | None = None
    nats_high: float | None = None
    versus_chosen: float | None = None
    versus_low: float | None = None
    versus_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What was written, and what it costs."""

    path: Path
    model: str
    matrices: int
    parameters_before: int
    """Of the whole model."""
    parameters_after: int
    """Of the whole model with the compressed matrices as factors."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Text:
    """What is measured: windows for the second moments, and those for perplexity."""

    calibration: Sequences
    windows: Windows
    padding: int
    config: Any
    tokenizer: Any
    described: str


def compress(config: Config, *, tell: Callable[[str], None] = lambda _: None) -> Compression:
    """As `scanner.compress.compress`."""
    path = folder.check_output(config.output)
    require_whole(config.model)
    target = open_target(config.model, Selection(only=config.roles, layers=config.layers))
    checkpoint = target.checkpoint
    refs = [ref for ref in target.inventory.matrices if ref.layer is not None]
    if not refs:
        raise ScannerError(f"{printable(checkpoint.model)} has no matrix with these roles in a block")
    _refuse_quantized(checkpoint, refs)
    dtype = _written_type(config, checkpoint)
    place = model_place(checkpoint)
    text = _text(config, place) if config.text else None
    tell("loading the model")
    model = _loaded(place, text)
    placed = _placed(model, refs)
    if config.factored:
        require_own_layers(model, placed)
    tokenizer, notes = text.tokenizer if text else None, []
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(place)
        except ScannerError:
            notes.append(
                f"the new checkpoint has no tokenizer: {printable(checkpoint.model)} has none that transformers can read"
            )
    scores: dict[str, Scores] = {}
    if text is not None:
        tell(f"measuring the intact model: {text.described}")
        scores[INTACT] = _measured(model, text)
    _round(model, dtype)  # what is not compressed is written in this type, too
    found = _Factored(config, text).of(model, placed, tell)
    chosen: str = config.by
    for rule in [*(rule for rule in found.by_rule if rule != chosen), chosen]:  # the last one stays in the model
        with torch.no_grad():
            _apply(model, placed, found.by_rule[rule], dtype, factored=config.factored and rule == chosen)
        if text is not None:
            tell(f"measuring {rule}")
            scores[rule] = _measured(model, text)
    table = _rows(scores, found, placed, chosen)
    before = sum(parameter.numel() for parameter in model.parameters())
    compressed = sum(one.ref.rows * one.ref.cols for one in placed.values())
    kept = sum(factors.parameters for factors in found.by_rule[chosen].values())
    if config.factored:
        before += compressed - kept
    notes += _notes(model, config, checkpoint, found)
    report = {
        "rmtscan": __version__,
        "model": checkpoint.model,
        "revision": checkpoint.revision,
        "identity": checkpoint.identity,
        "factored": config.factored,
        "budget": config.budget,
        "by": chosen,
        "dtype": str(dtype).removeprefix("torch."),
        "measured": None if text is None else text.described,
        "results": [asdict(row) for row in table],
        "matrices": {
            f"{one.parameter}/{one.ref.role}" + ("" if one.index is None else f"/{one.index}"): {
                "rows": one.ref.rows,
                "cols": one.ref.cols,
                "rank": found.by_rule[chosen][key].rank,
                "kept": None if (ranks := found.by_rule[chosen][key].kept) is None else rules.as_ranges(ranks),
            }
            for key, one in placed.items()
        },
    }
    tell(f"writing {printable(str(path))}")
    folder.write(path, model, tokenizer, report, dtype=dtype, factored=config.factored, quiet=without_chatter)
    return Compression(
        path=path,
        model=checkpoint.model,
        matrices=len(placed),
        parameters_before=before,
        parameters_after=before - compressed + kept,
        rows=table,
        notes=tuple(notes),
    )


def _refuse_quantized(checkpoint: Checkpoint, refs: Sequence[MatrixRef]) -> None:
    """Weights of a GGUF file are dequantized when they are loaded; others would need to be quantized again.

    Raises:
        ScannerError: the checkpoint is quantized.
    """
    if checkpoint.format == "gguf":
        return
    codec = next((ref.codec for ref in refs if ref.codec), "")
    declared = checkpoint.config.get("quantization_config")
    if codec or declared:
        how = declared.get("quant_method") if isinstance(declared, dict) else None
        raise ScannerError(
            f"{printable(checkpoint.model)} is quantized or stored in parts ({printable(str(how or codec or 'quantized'))}), and "
            "its factors would have to be quantized again: compress the model that it was made from"
        )


def _written_type(config: Config, checkpoint: Checkpoint) -> torch.dtype:
    if config.saved_dtype is not None:
        found: torch.dtype = getattr(torch, config.saved_dtype)
        return found
    return _TYPES.get(checkpoint.dtype, torch.float32)


def _text(config: Config, place: ModelPlace) -> _Text:
    """Read the text, and cut it into windows for the second moments and windows for perplexity.

    Raises:
        ScannerError: the text is too short for both, or the model is not a causal language model.
    """
    measured = measurement(place, config.measure())
    windows = measured.measure.windows  # type: ignore[attr-defined]
    first = max(1, config.calibration_tokens // windows.length)
    if len(windows) - first < 2:
        raise ScannerError(
            f"the text has {windows.tokens} tokens, too few for `calibration_tokens` {config.calibration_tokens} and two windows "
            f"of {windows.length} on which perplexity is measured: give more text, or reduce one of these or `window`"
        )
    rest = replace(windows, ids=windows.ids[first:], scored=windows.scored[first:])
    return _Text(
        calibration=Sequences(ids=windows.ids[:first]),
        windows=rest,
        padding=measured.padding,
        config=measured.config,
        tokenizer=measured.tokenizer,
        described=f"perplexity on {printable(measured.dataset)}: {sum(rest.scored):,} tokens predicted in {len(rest):,} windows "
        f"of {rest.length}, after {first * rest.length:,} tokens for the second moments",
    )


def _loaded(place: ModelPlace, text: _Text | None) -> Any:
    config = load_config(place) if text is None else text.config
    named = bool(getattr(config, "architectures", None))
    return load_model(place, head="own" if named or not is_causal(config) else "causal", config=config)


def _placed(model: Any, refs: Sequence[MatrixRef]) -> dict[str, Placed]:
    """Return where the matrices are in the model, by key; of matrices that share their memory, the first.

    Raises:
        ScannerError: one is not found.
    """
    placed, unplaced = place_matrices(model, refs)
    if unplaced:
        name, why = next(iter(unplaced.items()))
        raise ScannerError(f"{len(unplaced)} matrices cannot be changed, for example {printable(name)}: {why}")
    found: dict[tuple[object, ...], Placed] = {}
    for one in placed:
        view = one.view(model)
        found.setdefault((view.data_ptr(), tuple(view.shape), view.stride()), one)
    return {one.ref.key: one for one in found.values()}


def _measured(model: Any, text: _Text) -> Scores:
    from scanner.experiments.nlp.evaluation import Perplexity

    batches = Batches(text.padding, BATCH_TOKENS[model.device.type]).of(model)
    measure = Perplexity(windows=text.windows)
    measure.prepare(model, batches)
    found = measure.scores(model, None, batches)
    require_finite(measure.metric, summarize("nats", found).value, model)
    return found


def _round(model: Any, dtype: torch.dtype) -> None:
    """Round every weight to the type in which it is written; the model computes in float32 all the same."""
    if dtype != torch.float32:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype))


class _Factored:
    """Factors of all matrices of a model for each rule."""

    def __init__(self, config: Config, text: _Text | None) -> None:
        self.config, self.text = config, text
        own: tuple[TripletRule, ...] = () if config.by == "svd-llm" else (config.by,)
        self.rules: tuple[TripletRule, ...] = tuple(dict.fromkeys((*own, *(("energy",) if text else ()))))
        self.by_rule: dict[str, dict[str, Factors]] = {rule: {} for rule in self.rules}
        if text:
            self.by_rule[WHITENED] = {}
        self.without_scale = 0
        """Matrices without a scale null, which are ranked by p."""

    def of(self, model: Any, placed: dict[str, Placed], tell: Callable[[str], None]) -> _Factored:
        """Compute the factors; the model stays as it is.

        Raises:
            ScannerError: a matrix has no decomposition, or no hook sees its input.
        """
        done = 0
        for keys in self._parts(placed):
            moments = self._moments(model, {key: placed[key] for key in keys})
            roots: dict[str, torch.Tensor] = {}
            for key in keys:
                if done % 20 == 0:
                    tell(f"decomposing {len(placed)} matrices: {done} done")
                self._add(key, placed[key], placed[key].matrix(model), moments, roots)
                done += 1
        return self

    def _parts(self, placed: dict[str, Placed]) -> Iterator[list[str]]:
        """Yield matrices in parts whose second moments fit into the memory that they may take."""
        part: list[str] = []
        size = 0
        for key, one in placed.items():
            needed = 8 * one.ref.cols**2 if self.text else 0
            if part and size + needed > _MOMENTS:
                yield part
                part, size = [], 0
            part.append(key)
            size += needed
        yield part

    def _moments(self, model: Any, placed: dict[str, Placed]) -> dict[str, tuple[str, torch.Tensor]]:
        """Return by key of a matrix the name of its input, and the second moments of that, not centered."""
        if self.text is None:
            return {}
        for one in placed.values():
            module = model.get_submodule(one.module)
            if one.index is not None or getattr(getattr(module, "weight", None), "ndim", 0) != 2:
                raise ScannerError(
                    f"{printable(one.ref.tensor)} is one of a stack of experts, and no hook sees its input: leave these out with "
                    "`roles` or `layers`, or compress by energy, p or p_scale without `text`"
                )
        modules = {one.module: model.get_submodule(one.module) for one in placed.values()}
        batches = Batches(self.text.padding, BATCH_TOKENS[model.device.type])
        sums = accumulate(model, self.text.calibration, modules, batches)
        if sums.unusable:
            name, why = next(iter(sums.unusable.items()))
            raise ScannerError(f"{printable(name)} cannot be compressed beside `text`: {why}")
        seconds = {name: moments.covariance(centred=False) for name, moments in sums.moments.items()}
        found = {}
        for key, one in placed.items():
            group = sums.shared.get(one.module)
            if group not in seconds:
                raise ScannerError(
                    f"{printable(one.module)} is not used by the model on this text: leave it out with `roles`"
                )
            found[key] = group, seconds[group]
        return found

    def _add(
        self,
        key: str,
        one: Placed,
        matrix: torch.Tensor,
        moments: dict[str, tuple[str, torch.Tensor]],
        roots: dict[str, torch.Tensor],
    ) -> None:
        rank = rules.rank_within(self.config.budget, one.ref.rows, one.ref.cols)
        group, second = moments.get(key, ("", None))
        try:
            parts = decompose(matrix)
            for rule in self.rules:
                scores, used = rules.scores_of(rule, parts, float(matrix.sum(dtype=torch.float64)), second)
                self.without_scale += used != rule
                self.by_rule[rule][key] = rules.truncated(parts, rules.kept_ranks(scores, rank))
            if second is not None:
                if group not in roots:
                    roots[group] = rules.cholesky(second)
                self.by_rule[WHITENED][key] = rules.whitened(matrix, roots[group], rank)
        except (DecompositionError, ValueError) as error:
            raise ScannerError(f"{printable(one.ref.tensor)} cannot be compressed: {error}") from error


def _apply(
    model: Any, placed: dict[str, Placed], factors: dict[str, Factors], dtype: torch.dtype, *, factored: bool
) -> None:
    """Put factors into the model as they are written, in the place of the matrices or of other factors."""
    for key, one in placed.items():
        if factored:
            factor_layer(model, one, factors[key].to(dtype))
            continue
        view = one.view(model)
        product = (factors[key].left @ factors[key].right).to(dtype)
        view.copy_(product.to(view).view(view.shape))


def _rows(scores: dict[str, Scores], found: _Factored, placed: dict[str, Placed], chosen: str) -> tuple[Row, ...]:
    """Return the table: the intact model, the rule that was chosen, and the others."""
    total = sum(one.ref.rows * one.ref.cols for one in placed.values())
    rows = [_row(INTACT, total, total, scores, chosen)]
    for rule in dict.fromkeys((chosen, *found.by_rule)):
        kept = sum(factors.parameters for factors in found.by_rule[rule].values())
        rows.append(_row(rule, kept, total, scores, chosen))
    return tuple(rows)


def _row(rule: str, kept: int, total: int, scores: dict[str, Scores], chosen: str) -> Row:
    if not scores:
        return Row(rule=rule, parameters=kept, share=kept / total)
    own = scores[rule]
    nats = _interval(own, scores[INTACT]) if rule != INTACT else (None, None, None)
    versus = _interval(own, scores[chosen]) if rule not in (INTACT, chosen) else (None, None, None)
    perplexity = summarize("perplexity", own).value
    return Row(
        rule=rule,
        parameters=kept,
        share=kept / total,
        perplexity=perplexity if math.isfinite(perplexity) else None,
        nats=nats[0],
        nats_low=nats[1],
        nats_high=nats[2],
        versus_chosen=versus[0],
        versus_low=versus[1],
        versus_high=versus[2],
    )


def _interval(scores: Scores, other: Scores) -> tuple[float, float, float]:
    """Return the difference of the mean negative log-likelihood per token, and its interval (Student's t, paired by window)."""
    found = summarize("nats", scores, other)
    half = float(student.ppf((1.0 + _CONFIDENCE) / 2.0, len(scores.sums) - 1)) * found.stderr
    return found.delta, found.delta - half, found.delta + half


def _notes(model: Any, config: Config, checkpoint: Checkpoint, found: _Factored) -> list[str]:
    notes = []
    if checkpoint.format == "gguf":
        notes.append("the weights of the GGUF file were dequantized: the new checkpoint is not quantized")
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        notes.append("the output head is tied with the embeddings: neither is compressed, and they stay tied")
    if found.without_scale:
        notes.append(f"{found.without_scale} matrices have no scale null: their vectors are ranked by p")
    if config.factored:
        notes.append(
            f"open it with scanner.compress.load({str(config.output)!r}); transformers alone does not know the factors"
        )
    else:
        notes.append("the factors are merged: the file is as large as before, and --factored writes fewer parameters")
    if not config.text:
        notes.append("without --text, perplexity was not measured")
    return notes
