"""What a model is worth on a text: perplexity, and how far its predictions are from those of the intact model.

A measure is a small picklable object. `prepare(model)` is called once on the intact model, on every worker; `scores(model,
prepared)` returns sums over independent units (windows, examples), and `summarize` turns these into a value with its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.errors import ScannerError
from scanner.experiments.nlp.tokens import Batch, Batches, Ids, Sequences

FloatArray = NDArray[np.float64]
#: Tokens that are enough to see whether a model looks ahead.
_LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Per unit (a window, an example): the `sums` of what is measured over `weights` tokens or examples. Arrays of one length."""

    sums: FloatArray
    weights: FloatArray


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One measured point.

    `stderr` is the standard error of `delta`, from the differences unit by unit (the same windows or examples were measured on
    the intact model); without a baseline that of `value`. NaN for a single unit.
    """

    value: float
    delta: float
    stderr: float


class Measure(Protocol):
    """Something to be measured on a model, with the tokens it is measured on."""

    @property
    def metric(self) -> str:
        """`perplexity`, `kl` or `accuracy`."""

    @property
    def tokens(self) -> int:
        """Tokens that are scored (examples' tokens for accuracy)."""

    @property
    def units(self) -> int:
        """Windows or examples."""

    def prepare(self, model: Any, batches: Batches) -> Any:
        """What has to be remembered of the intact model; None if nothing."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """The measurement."""


def summarize(metric: str, scores: Scores, baseline: Scores | None = None) -> Summary:
    """Value, difference from the baseline and standard error of one measurement.

    With m = sum of `sums` / sum of `weights`, the value is exp(m) for perplexity and m else. The error is that of a ratio of
    sums: unit w contributes g'(m) (s_w - m n_w) / N, minus the same of the baseline, N = sum of n_w; the variance is
    W / (W - 1) times the sum of their squares (linearisation; Cochran, Sampling Techniques, sec. 6.3).
    """
    value, influence = _estimate(metric, scores)
    reference = 0.0
    if baseline is not None:
        reference, of_baseline = _estimate(metric, baseline)
        influence = influence - of_baseline
    count = len(influence)
    # hypot: the squares of a ruined model's perplexities may be beyond float64 where their root is not.
    stderr = math.sqrt(count / (count - 1)) * math.hypot(*influence) if count > 1 else math.nan
    return Summary(value=value, delta=value - reference if baseline is not None else 0.0, stderr=stderr)


def _estimate(metric: str, scores: Scores) -> tuple[float, FloatArray]:
    total = float(scores.weights.sum())
    mean = float(scores.sums.sum()) / total
    influence = (scores.sums - mean * scores.weights) / total
    if metric != "perplexity":
        return mean, influence
    if not mean < 700.0:  # beyond it float64 has no number for the value, nor for its error
        return math.inf if mean == mean else math.nan, np.full_like(influence, math.nan)
    return math.exp(mean), influence * math.exp(mean)


def require_finite(metric: str, value: float, model: Any) -> None:
    """Nothing can be compared with what is no number.

    Raises:
        ScannerError: `value`, measured on `model`, is NaN or infinite.
    """
    if math.isfinite(value):
        return
    what = "not a number" if math.isnan(value) else "larger than any number"
    narrow = getattr(model, "dtype", None) == torch.float16
    why = "float16 overflow? try `dtype` float32" if narrow else "the model overflows, or its weights hold no numbers"
    raise ScannerError(f"its {metric} is {what}: {why}")


def require_causal(metric: str, model: Any, windows: Windows) -> None:
    """Whether a model's predictions depend on nothing that stands behind them: the name of its class does not tell in every case.

    Raises:
        ScannerError: another last token changes what is predicted before it.
    """
    ids = windows.ids[0][:_LOOKED_AT].astype(np.int64)
    other = ids.copy()
    other[-1] = ids[0] if ids[-1] != ids[0] else (ids[0] + 1) % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        first, second = (
            model(**Batch(ids=one, mask=torch.ones_like(one)).inputs(model)).logits[0, :-1].float()
            for one in (torch.from_numpy(both)[None] for both in (ids, other))
        )
    largest = float(first.abs().max())  # one that is no number is told of where it is measured
    rounding = max(1e-4, 4 * torch.finfo(model.dtype).eps)
    if math.isfinite(largest) and not torch.allclose(first, second, rtol=0.0, atol=rounding * largest):
        raise ScannerError(
            f"{type(model).__name__} sees the tokens that it predicts (another last token changes what it says before): {metric} "
            "needs a causal language model"
        )


@dataclass(frozen=True, kw_only=True)
class Windows(Sequences):
    """A running text in strided windows.

    Of a window's tokens the last `scored[w]` are predicted, with all before them in the window as context. No token is predicted
    twice; the first of the text is not, nor, without overlap (`stride` = `length`), the first of any window: nothing stands before
    it.
    """

    scored: tuple[int, ...]
    length: int
    stride: int

    @classmethod
    def cut(cls, ids: Ids, *, length: int, stride: int | None = None) -> Windows:
        """Cut a text into windows of `length` tokens, each beginning `stride` tokens after the one before (None: `length`).

        Raises:
            ScannerError: fewer tokens than one window has, or a stride that is none.
        """
        stride = length if stride is None else stride
        if not 1 <= stride <= length or length < 2:
            raise ScannerError(
                f"a window of {length} tokens with stride {stride}: 1 <= stride <= window is needed, window >= 2"
            )
        if len(ids) < length:
            raise ScannerError(
                f"the text has {len(ids)} tokens, too short for a window of {length}: give more text or a smaller `window`"
            )
        pieces: list[Ids] = []
        scored: list[int] = []
        done = 1  # the first token has nothing before it
        for start in range(0, len(ids), stride):
            end = min(start + length, len(ids))
            fresh = end - max(done, start + 1)
            if fresh > 0:
                pieces.append(ids[start:end])
                scored.append(fresh)
            done = end
            if end == len(ids):
                break
        return cls(ids=tuple(pieces), scored=tuple(scored), length=length, stride=stride)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean negative log likelihood of a token, over strided windows."""

    windows: Windows
    metric: str = "perplexity"

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(self.windows.scored)

    @property
    def units(self) -> int:
        """Windows."""
        return len(self.windows)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Nothing has to be remembered.

        Raises:
            ScannerError: the model sees the tokens that it predicts.
        """
        require_causal(self.metric, model, self.windows)

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """Negative log likelihood per window, in nats."""
        sums = np.zeros(self.units)

        def compute(batch: Batch, indices: list[int]) -> None:
            logits = model(**batch.inputs(model)).logits
            for row, index in enumerate(indices):
                ids, scored = self.windows.ids[index], self.windows.scored[index]
                predicted = logits[row, len(ids) - scored - 1 : len(ids) - 1].float()
                targets = batch.ids[row, len(ids) - scored : len(ids)].to(predicted.device)
                losses = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
                sums[index] = float(losses.double().sum())

        with torch.inference_mode():
            batches.run(self.windows, compute)
        return Scores(sums=sums, weights=np.array(self.windows.scored, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Mean Kullback-Leibler divergence KL(intact || changed) of the next token's distribution, in nats a token.

    Of the intact model the states that enter its head are remembered, not the distributions: these are hundreds of times as large,
    and the head makes them again.
    """

    windows: Windows
    metric: str = "kl"

    @property
    def tokens(self) -> int:
        """Positions whose predictions are compared."""
        return sum(self.windows.scored)

    @property
    def units(self) -> int:
        """Windows."""
        return len(self.windows)

    def prepare(self, model: Any, batches: Batches) -> list[torch.Tensor]:
        """The states that enter the head, (scored, hidden) per window.

        Raises:
            ScannerError: a model whose output is not its head applied to these states (logits scaled or capped afterwards), or one
                that sees the tokens that it predicts.
        """
        require_causal(self.metric, model, self.windows)
        states: list[torch.Tensor] = [torch.empty(0)] * self.units
        head = model.get_output_embeddings()
        if head is None:
            raise ScannerError(f"{type(model).__name__} has no output head: KL divergence needs a language model")
        seen: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))

        def compute(batch: Batch, indices: list[int]) -> None:
            seen.clear()
            logits = model(**batch.inputs(model)).logits
            for row, index in enumerate(indices):
                part = self._part(index)
                states[index] = seen[0][row, part].clone()
                require_finite(self.metric, float(logits[row, part].double().sum()), model)
                if not torch.allclose(head(states[index][-1:]), logits[row, part][-1:], rtol=1e-3, atol=1e-3):
                    raise ScannerError(
                        f"{type(model).__name__} changes its logits after the output head: KL divergence is not measured for it"
                    )

        try:
            with torch.inference_mode():
                batches.run(self.windows, compute)
        finally:
            hook.remove()
        return states

    def scores(self, model: Any, prepared: list[torch.Tensor], batches: Batches) -> Scores:
        """Summed divergence per window, in nats."""
        sums = np.zeros(self.units)
        head = model.get_output_embeddings()

        def compute(batch: Batch, indices: list[int]) -> None:
            logits = model(**batch.inputs(model)).logits
            for row, index in enumerate(indices):
                changed = logits[row, self._part(index)].float().log_softmax(dim=-1)
                intact = head(prepared[index]).float().log_softmax(dim=-1)
                divergence = torch.nn.functional.kl_div(changed, intact, log_target=True, reduction="none").sum(dim=-1)
                sums[index] = float(divergence.double().sum())

        with torch.inference_mode():
            batches.run(self.windows, compute)
        return Scores(sums=sums, weights=np.array(self.windows.scored, dtype=np.float64))

    def _part(self, index: int) -> slice:
        """The positions of a window whose predictions count."""
        length, scored = len(self.windows.ids[index]), self.windows.scored[index]
        return slice(length - scored - 1, length - 1)
