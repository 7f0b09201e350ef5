"""Accuracy on labeled texts: of the classifier of a checkpoint, of the answers of a language model, or of a linear probe."""

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

#: Ridge penalty of the probe, on standardized features.
RIDGE = 10.0
#: Largest number of classes listed in a message.
_LISTED = 20


def labels_of(texts: Texts, names: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Return the class of each text as an index into the sorted classes, or into `names`, the classes of a classifier.

    With `names`, labels are either names (case is ignored where this is unambiguous) or indices.

    Raises:
        ScannerError: there are fewer than two classes, or labels are neither names nor indices of the classes of the classifier.
    """
    classes = texts.classes
    if names is None:
        order: dict[str, int] | None = {name: index for index, name in enumerate(classes)}
    else:
        order = _named(classes, names) or _numbered(classes, len(names))
    if order is None:
        raise ScannerError(
            f"{printable(texts.name)}: labels ({_listed(classes)}) are neither classes of the classifier of the model "
            f"({_listed(names or ())}) nor their indices from 0: give the column of such labels as `label`"
        )
    return np.array([order[label] for label in texts.labels], dtype=np.int64)


def _named(classes: Sequence[str], names: Sequence[str]) -> dict[str, int] | None:
    """Return the index of each class in `names`; None if a class is missing or ambiguous."""
    for form in (str, str.casefold):
        index = {form(name): number for number, name in enumerate(names)}
        formed = [form(name) for name in classes]
        if len(index) == len(names) and len({*formed}) == len(formed) and {*formed} <= {*index}:
            return dict(zip(classes, map(index.__getitem__, formed), strict=True))
    return None


def _numbered(classes: Sequence[str], count: int) -> dict[str, int] | None:
    """Return the classes as integers; None if one is not an integer from 0 to `count` - 1."""
    if not all(is_integer(name) and 0 <= int(name) < count for name in classes):
        return None
    return {name: int(name) for name in classes}


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def _right(found: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 where the label has the largest value of its row, else 0; NaN for rows that contain NaN."""
    return np.where(np.isnan(found).any(axis=1), np.nan, found.argmax(axis=1) == labels)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Accuracy of the classifier of the checkpoint."""

    examples: Examples
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Number of tokens of all examples."""
        return self.examples.tokens

    @property
    def units(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Do nothing: the intact model is not needed."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """Score each example 1 if its prediction is correct, else 0."""
        right = np.zeros(self.units)

        def compute(batch: Batch, indices: list[int]) -> None:
            logits = model(**batch.inputs(model)).logits.double().cpu().numpy()
            right[indices] = _right(logits, self.examples.labels[indices])

        with torch.inference_mode():
            batches.of(model).run(self.examples, compute)
        return Scores(sums=right, weights=np.ones(self.units))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Accuracy of a language model that chooses the most likely answer.

    `ids` are the prompts and `answers` the tokens of the answer for each class. The likelihood of an answer is that of all its
    tokens.
    """

    ids: tuple[Ids, ...]
    answers: tuple[Ids, ...]
    labels: NDArray[np.int64]
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(map(len, self.ids))

    @property
    def units(self) -> int:
        """Number of examples."""
        return len(self.ids)

    def prepare(self, model: Any, batches: Batches) -> None:
        """Do nothing: the intact model is not needed."""

    def scores(self, model: Any, prepared: Any, batches: Batches) -> Scores:
        """Score each example 1 if its prediction is correct, else 0; the first of equally likely answers is chosen."""
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
    """Accuracy of a linear classifier on features of the model.

    Features are the last hidden states averaged over tokens. The classifier (ridge regression of class indicators on standardized
    features) is fitted once, on features of the intact model for every other example of each class, starting with the first.
    Accuracy is measured on the remaining examples.
    """

    examples: Examples
    metric: str = "accuracy"

    @property
    def tokens(self) -> int:
        """Number of tokens of the test examples."""
        return self._half(1).tokens

    @property
    def units(self) -> int:
        """Number of test examples."""
        return len(self._half(1))

    def prepare(self, model: Any, batches: Batches) -> torch.Tensor:
        """Fit the classifier on the intact model; returns its weights (features + 1, classes), intercepts in the last row."""
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
        """Score each test example 1 if its prediction is correct, else 0."""
        chosen = self._half(1)
        found = self._features(model, chosen, batches) @ prepared[:-1] + prepared[-1]
        return Scores(sums=_right(found.numpy(), chosen.labels), weights=np.ones(len(chosen)))

    def _half(self, which: int) -> Examples:
        """Return the examples for fitting (0) or testing (1), which alternate within each class."""
        labels = self.examples.labels
        turn = np.zeros(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            turn[mine] = np.arange(len(mine)) % 2
        return self.examples.taken(np.flatnonzero(turn == which).tolist())

    def _features(self, model: Any, chosen: Examples, batches: Batches) -> torch.Tensor:
        """Return the features, (examples, features), in float64 on the CPU."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(chosen)

        def compute(batch: Batch, indices: list[int]) -> None:
            inputs = batch.inputs(model)
            layers = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
            if layers is None:
                raise ScannerError(f"{type(model).__name__} returns no hidden states, which a probe needs as features")
            states = layers[-1].double()
            mask = inputs["attention_mask"].double()[:, :, None]
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            for row, index in enumerate(indices):
                found[index] = mean[row].cpu()

        with torch.inference_mode():
            batches.run(chosen, compute)
        return torch.stack(found)
