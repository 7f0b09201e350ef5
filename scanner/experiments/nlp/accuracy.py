"""Accuracy on labelled texts: by a checkpoint's own classifier, by the answers of a language model, or by a probe on features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.evaluation import Scores, require_finite
from scanner.experiments.nlp.labels import Examples
from scanner.experiments.nlp.texts import Texts, is_integer
from scanner.experiments.nlp.tokens import Batch, Batches, Ids, Sequences

#: Strength of the probe's penalty on standardised features.
RIDGE = 10.0
#: Classes that are named in a message.
_LISTED = 20


def labels_of(texts: Texts, names: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The class of each text as an index into the sorted classes, or into the `names` of a classifier's.

    Labels are such names, in whatever case if that is no matter of doubt, or else their indices.

    Raises:
        ScannerError: fewer than two classes, or labels that are neither names of the classifier's classes nor their indices.
    """
    classes = texts.classes
    if names is None:
        order: dict[str, int] | None = {name: index for index, name in enumerate(classes)}
    else:
        order = _named(classes, names) or _numbered(classes, len(names))
    if order is None:
        raise ScannerError(
            f"{printable(texts.name)}: labels ({_listed(classes)}) are neither names of the classes of the model's classifier "
            f"({_listed(names or ())}) nor their indices from 0: name a column of such labels with `label`"
        )
    return np.array([order[label] for label in texts.labels], dtype=np.int64)


def _named(classes: Sequence[str], names: Sequence[str]) -> dict[str, int] | None:
    """The index of each class in `names`; None if not every class is one of them, or which one is in doubt."""
    for form in (str, str.casefold):
        index = {form(name): number for number, name in enumerate(names)}
        formed = [form(name) for name in classes]
        if len(index) == len(names) and len({*formed}) == len(formed) and {*formed} <= {*index}:
            return dict(zip(classes, map(index.__getitem__, formed), strict=True))
    return None


def _numbered(classes: Sequence[str], count: int) -> dict[str, int] | None:
    """The classes as the indices that they are; None if not every class is one, from 0 up to `count`."""
    if not all(is_integer(name) and 0 <= int(name) < count for name in classes):
        return None
    return {name: int(name) for name in classes}


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def _right(found: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the largest of a row is that of its label, else 0; NaN where one is: no class is the largest there."""
    return np.where(np.isnan(found).any(axis=1), np.nan, found.argmax(axis=1) == labels)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Share of examples that the checkpoint's own classifier gets right."""

    examples: Examples
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return self.examples.tokens

    @property
    def units(self) -> int:
        """Examples."""
        return len(self.examples)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Nothing has to be remembered."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """1 for every example that is right, else 0."""
        right = np.zeros(self.units)

        def compute(batch: Batch, indices: list[int]) -> None:
            logits = model(**batch.inputs(model)).logits.double().cpu().numpy()
            right[indices] = _right(logits, self.examples.labels[indices])

        with torch.inference_mode():
            batches.of(model).run(self.examples, compute)
        return Scores(sums=right, weights=np.ones(self.units))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Share of examples for which a language model finds the right answer likelier than the others.

    `ids` are the prompts, `answers` the tokens of each class's answer; the likelihood is that of all of an answer's tokens.
    """

    ids: tuple[Ids, ...]
    answers: tuple[Ids, ...]
    labels: NDArray[np.int64]
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.ids))

    @property
    def units(self) -> int:
        """Examples."""
        return len(self.ids)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Nothing has to be remembered."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """1 for every example that is right, else 0; of equally likely answers the first counts."""
        likelihood = np.zeros((self.units, len(self.answers)))
        whole = Sequences(ids=tuple(np.concatenate([prompt, answer]) for prompt in self.ids for answer in self.answers))

        def compute(batch: Batch, indices: list[int]) -> None:
            logits = model(**batch.inputs(model)).logits
            for row, index in enumerate(indices):
                example, chosen = divmod(index, len(self.answers))
                start, end = len(self.ids[example]), len(whole.ids[index])
                predicted = logits[row, start - 1 : end - 1].float().log_softmax(dim=-1)
                targets = batch.ids[row, start:end].to(predicted.device)
                likelihood[example, chosen] = float(predicted.gather(1, targets[:, None]).double().sum())

        with torch.inference_mode():
            batches.run(whole, compute)
        return Scores(sums=_right(likelihood, self.labels), weights=np.ones(self.units))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Share of examples that a linear classifier on the model's features gets right.

    Features are the last hidden states averaged over tokens. The classifier (ridge regression on the classes' indicators,
    standardised features) is fitted once, on the intact model and every other example of each class, the first of them included;
    the rest is what counts.
    """

    examples: Examples
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Tokens of the examples that count."""
        return self._half(1).tokens

    @property
    def units(self) -> int:
        """Examples that count."""
        return len(self._half(1))

    def prepare(self, model: Any, batches: Batches) -> torch.Tensor:
        """The classifier: mean and scale of the features and weights, (3 + classes) x features with the intercepts in a column."""
        chosen = self._half(0)
        features = self._features(model, chosen, batches)
        require_finite(self.metric, float(features.sum()), model)
        mean, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-12)
        standard = (features - mean) / scale
        classes = int(self.examples.labels.max()) + 1
        targets = torch.nn.functional.one_hot(torch.from_numpy(chosen.labels), num_classes=classes).double()
        gram = standard.T @ standard + RIDGE * torch.eye(standard.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, standard.T @ (targets - targets.mean(dim=0)))
        intercept = targets.mean(dim=0) - (mean / scale) @ weights
        return torch.cat([weights / scale[:, None], intercept[None]])

    def scores(self, model: Any, prepared: torch.Tensor, batches: Batches) -> Scores:
        """1 for every example that counts and is right, else 0."""
        chosen = self._half(1)
        found = self._features(model, chosen, batches) @ prepared[:-1] + prepared[-1]
        return Scores(sums=_right(found.numpy(), chosen.labels), weights=np.ones(len(chosen)))

    def _half(self, which: int) -> Examples:
        """Examples that the classifier is fitted on (0) or that count (1), by turns within each class."""
        labels = self.examples.labels
        turn = np.zeros(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            turn[mine] = np.arange(len(mine)) % 2
        return self.examples.taken(np.flatnonzero(turn == which).tolist())

    def _features(self, model: Any, chosen: Examples, batches: Batches) -> torch.Tensor:
        """(examples, features) in float64 on the CPU."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(chosen)

        def compute(batch: Batch, indices: list[int]) -> None:
            inputs = batch.inputs(model)
            layers = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
            if layers is None:
                raise ScannerError(f"{type(model).__name__} shows no hidden states: a probe has no features")
            states = layers[-1].double()
            mask = inputs["attention_mask"].double()[:, :, None]
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            for row, index in enumerate(indices):
                found[index] = mean[row].cpu()

        with torch.inference_mode():
            batches.run(chosen, compute)
        return torch.stack(found)
