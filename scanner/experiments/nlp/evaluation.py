"""Measures of a model on a text: perplexity, and the divergence of its predictions from those of the intact model.

A measure is a small picklable object. `prepare(model)` is called once per worker, with the intact model. `scores(model, prepared)`
returns sums over independent units (windows or examples), which `summarize` turns into a value and its standard error.
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
#: Number of tokens with which `require_causal` tests a model.
_LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The measured `sums` over `weights` tokens or examples; both (units,), where a unit is a window or an example."""

    sums: FloatArray
    weights: FloatArray


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One measured point.

    `stderr` is the standard error of `delta`, from the differences unit by unit: the intact model was measured on the same windows
    or examples. Without a baseline it is the standard error of `value`. It is NaN for a single unit.
    """

    value: float
    delta: float
    stderr: float


class Measure(Protocol):
    """A quantity that is measured on a model, with the tokens it is measured on."""

    @property
    def metric(self) -> str:
        """`perplexity`, `kl` or `accuracy`."""

    @property
    def tokens(self) -> int:
        """Number of scored tokens (for accuracy: tokens of the examples)."""

    @property
    def units(self) -> int:
        """Number of windows or examples."""

    def prepare(self, model: Any, batches: Batches) -> Any:
        """Return what `scores` needs from the intact model; None if it needs nothing."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """Measure a model."""


def summarize(metric: str, scores: Scores, baseline: Scores | None = None) -> Summary:
    """Return the value, the difference from the baseline, and the standard error of a measurement.

    With m = sum of `sums` / sum of `weights`, the value is exp(m) for perplexity and m otherwise. The standard error is that of a
    ratio of sums: unit w contributes g'(m) (s_w - m n_w) / N, minus the same for the baseline, with N = sum of n_w, and the
    variance is W / (W - 1) times the sum of the squared contributions (linearization; Cochran, Sampling Techniques, sec. 6.3).
    """
    value, influence = _estimate(metric, scores)
    reference = 0.0
    if baseline is not None:
        reference, of_baseline = _estimate(metric, baseline)
        influence = influence - of_baseline
    count = len(influence)
    # hypot: the squared perplexities of a damaged model may overflow float64 although their root does not.
    stderr = math.sqrt(count / (count - 1)) * math.hypot(*influence) if count > 1 else math.nan
    return Summary(value=value, delta=value - reference if baseline is not None else 0.0, stderr=stderr)


def _estimate(metric: str, scores: Scores) -> tuple[float, FloatArray]:
    total = float(scores.weights.sum())
    mean = float(scores.sums.sum()) / total
    influence = (scores.sums - mean * scores.weights) / total
    if metric != "perplexity":
        return mean, influence
    if not mean < 700.0:  # otherwise exp, and with it the error, overflows float64
        return math.inf if mean == mean else math.nan, np.full_like(influence, math.nan)
    return math.exp(mean), influence * math.exp(mean)


def require_finite(metric: str, value: float, model: Any) -> None:
    """Check that a value measured on a model is finite, so that others can be compared with it.

    Raises:
        ScannerError: `value` is NaN or infinite.
    """
    if math.isfinite(value):
        return
    what = "not a number" if math.isnan(value) else "infinite"
    narrow = getattr(model, "dtype", None) == torch.float16
    why = "float16 may overflow, try `dtype` float32" if narrow else "the model overflows, or its weights contain NaN"
    raise ScannerError(f"the {metric} of the model is {what}: {why}")


def require_causal(metric: str, model: Any, windows: Windows) -> None:
    """Check that no prediction depends on later tokens. The name of the class of a model does not always show this.

    Raises:
        ScannerError: changing the last token changes earlier predictions.
    """
    ids = windows.ids[0][:_LOOKED_AT].astype(np.int64)
    other = ids.copy()
    other[-1] = ids[0] if ids[-1] != ids[0] else (ids[0] + 1) % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        first, second = (
            model(**Batch(ids=one, mask=torch.ones_like(one)).inputs(model)).logits[0, :-1].float()
            for one in (torch.from_numpy(both)[None] for both in (ids, other))
        )
    largest = float(first.abs().max())  # NaN is reported by the measurement
    rounding = max(1e-4, 4 * torch.finfo(model.dtype).eps)
    if math.isfinite(largest) and not torch.allclose(first, second, rtol=0.0, atol=rounding * largest):
        raise ScannerError(
            f"{type(model).__name__} sees the tokens that it predicts (changing the last token changes earlier predictions): "
            f"{metric} needs a causal language model"
        )


@dataclass(frozen=True, kw_only=True)
class Windows(Sequences):
    """A continuous text in strided windows.

    The last `scored[w]` tokens of window w are predicted, with all earlier tokens of the window as context. No token is predicted
    twice. The first token of the text is not predicted, because it has no context; without overlap (`stride` = `length`), neither
    is the first token of any window.
    """

    scored: tuple[int, ...]
    length: int
    stride: int

    @classmethod
    def cut(cls, ids: Ids, *, length: int, stride: int | None = None) -> Windows:
        """Cut a text into windows of `length` tokens that start `stride` tokens apart (None: `length`).

        Raises:
            ScannerError: the text has fewer than `length` tokens, or `length` or `stride` is out of range.
        """
        stride = length if stride is None else stride
        if not 1 <= stride <= length or length < 2:
            raise ScannerError(
                f"`window` must be at least 2 and `stride` between 1 and `window`, got window {length} and stride {stride}"
            )
        if len(ids) < length:
            raise ScannerError(
                f"the text has {len(ids)} tokens, too short for a window of {length}: give more text or a smaller `window`"
            )
        pieces: list[Ids] = []
        scored: list[int] = []
        done = 1  # the first token has no context
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
    """exp of the mean negative log likelihood per token, over strided windows."""

    windows: Windows
    metric: str = "perplexity"

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(self.windows.scored)

    @property
    def units(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Check that the model is causal; nothing else is needed from the intact model.

        Raises:
            ScannerError: the model sees the tokens that it predicts.
        """
        require_causal(self.metric, model, self.windows)

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """Return the negative log likelihood per window, in nats."""
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
    """Mean Kullback-Leibler divergence KL(intact || changed) of the next-token distribution, in nats per token.

    `prepare` keeps the states that enter the output head of the intact model, not the distributions, which are hundreds of times
    as large; the head computes them again from the states.
    """

    windows: Windows
    metric: str = "kl"

    @property
    def tokens(self) -> int:
        """Number of positions whose predictions are compared."""
        return sum(self.windows.scored)

    @property
    def units(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def prepare(self, model: Any, batches: Batches) -> list[torch.Tensor]:
        """Return the states that enter the output head, (scored, hidden) per window.

        Raises:
            ScannerError: the model has no output head, changes its logits after the head (scales or caps them), or sees the tokens
                that it predicts.
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
                        f"{type(model).__name__} changes its logits after the output head: KL divergence cannot be measured"
                    )

        try:
            with torch.inference_mode():
                batches.run(self.windows, compute)
        finally:
            hook.remove()
        return states

    def scores(self, model: Any, prepared: list[torch.Tensor], batches: Batches) -> Scores:
        """Return the summed divergence per window, in nats."""
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
        """Return the positions of a window whose predictions are compared."""
        length, scored = len(self.windows.ids[index]), self.windows.scored[index]
        return slice(length - scored - 1, length - 1)
