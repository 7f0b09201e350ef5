"""Fine-tuning of a classifier on top of a pretrained body: create, train, evaluate and save it. Uses neither Ray nor a store."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.labels import Examples
from scanner.experiments.nlp.tokens import Batch, Batches, is_memory

#: Batches that are sorted by length together: little padding, but different batches in every epoch.
_SORTED_TOGETHER = 16
_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters of a training with AdamW: the learning rate rises and then falls linearly, gradients are clipped at norm 1."""

    epochs: int = 2
    batch: int = 32
    rate: float = 5e-5
    decay: float = 0.01
    """Weight decay of matrices; biases and norms have none."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise ScannerError(f"`epochs` and `batch` must be at least 1, got {self.epochs} and {self.batch}")
        if not 0.0 < self.rate < math.inf:
            raise ScannerError(f"`lr` must be positive, got {self.rate:g}")

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (steps - step) / max(1, steps - rising)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of a training: mean loss of the last epoch, and number of examples per forward pass."""

    loss: float
    at_a_time: int


class NoClassifier(ScannerError):
    """A model cannot become a classifier of texts."""


def require_classifier(config: Any) -> None:
    """Check, before weights are loaded, that transformers has a classifier of texts for models with this configuration.

    Raises:
        NoClassifier: it has none, or only for encoder-decoder models while the checkpoint is an encoder.
    """
    import transformers

    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise NoClassifier(
            f"transformers has no classifier of texts for {printable(str(config.model_type))!r} models, and code from a "
            "checkpoint is never run (trust_remote_code is off)"
        )
    for name in map(str, getattr(config, "architectures", None) or ()):
        if name.endswith("EncoderModel"):
            raise NoClassifier(
                f"transformers has no classifier of texts for {printable(name)}, an encoder without its decoder"
            )


def new_classifier(body: Any, classes: Sequence[str], padding: int, seed: int, *, pooler: bool) -> Any:
    """Return a sequence classifier whose body is a copy of `body` and whose head is drawn from `seed`.

    The head is always new, even if the checkpoint was saved with a classifier.

    Args:
        body: the pretrained model without a head.
        classes: names of the classes.
        padding: the padding token.
        seed: seed of the head.
        pooler: whether the checkpoint has the pooler of the body; if not, the pooler is drawn from `seed` like the head.

    Raises:
        NoClassifier: transformers has no classifier of texts for this model, or its body has other weights than `body`.
    """
    import transformers

    require_classifier(body.config)
    config = type(body.config).from_dict(body.config.to_dict())
    config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.pad_token_id = padding
    for name in ("quantization_config", "problem_type"):  # GGUF files are dequantized when they are read
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    torch.manual_seed(seed)
    factory: Any = transformers.AutoModelForSequenceClassification
    model = factory.from_config(config, dtype=torch.float32, trust_remote_code=False)
    inside = getattr(model, model.base_model_prefix, None)
    wanted = {} if inside is None else inside.state_dict()
    given = {
        name: tensor
        for name, tensor in body.state_dict().items()
        if name in wanted and (pooler or "pooler" not in name)
    }
    lacking = [name for name in wanted if name not in given and "pooler" not in name]
    if inside is None or lacking:
        raise NoClassifier(
            f"the body of {type(model).__name__} differs from {type(body).__name__}, so it cannot be fine-tuned"
        )
    inside.load_state_dict(given, strict=False)
    return model.to(body.device)


def train(model: Any, data: Examples, padding: int, recipe: Recipe, seed: int) -> Trained:
    """Train all weights of a classifier; on a CPU the result depends only on the arguments.

    A batch that does not fit into the memory of the device is split into halves, quarters and so on, and their gradients are added:
    the steps stay the same, except for the random numbers of dropout.

    Raises:
        ScannerError: the loss is NaN or infinite, or one example does not fit into memory.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.train().requires_grad_(True)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * math.ceil(len(data) / recipe.batch)
    step, at_a_time, loss = 0, recipe.batch, math.nan
    for _ in range(recipe.epochs):
        losses = 0.0
        for indices in _shuffled(data, recipe.batch, generator):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step, steps)
            found, at_a_time = _gradients(model, data, indices, padding, at_a_time)
            if not math.isfinite(found):
                raise ScannerError(f"training diverged at step {step + 1} of {steps}: reduce `lr`")
            losses += found * len(indices)
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        loss = losses / len(data)
    model.eval().requires_grad_(False)
    return Trained(loss=loss, at_a_time=at_a_time)


def correct(model: Any, data: Examples, batches: Batches) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which examples a classifier predicts correctly, (examples,).

    Raises:
        ScannerError: one example does not fit into the memory of the device.
    """
    right = np.zeros(len(data), dtype=np.bool_)

    def compute(batch: Batch, indices: list[int]) -> None:
        predicted = model(**batch.inputs(model)).logits.argmax(dim=-1).cpu().numpy()
        right[indices] = predicted == data.labels[indices]

    with torch.inference_mode():
        batches.run(data, compute)
    return right


def keep(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a checkpoint (safetensors, configuration, tokenizer) completely or not at all; an existing one is replaced.

    Raises:
        ScannerError: it cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished, safe_serialization=True)
        tokenizer.save_pretrained(unfinished)
        if folder.is_dir():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScannerError(f"the tuned model cannot be kept in {printable(str(folder))}: {reason}") from error


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    decaying = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decaying, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate)


def _shuffled(data: Examples, batch: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Yield the batches of one epoch in random order, each with sequences of similar length."""
    order = generator.permutation(len(data))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch * _SORTED_TOGETHER):
        together = sorted(order[start : start + batch * _SORTED_TOGETHER].tolist(), key=lambda i: len(data.ids[i]))
        batches += [together[first : first + batch] for first in range(0, len(together), batch)]
    for position in generator.permutation(len(batches)):
        yield batches[position]


def _gradients(model: Any, data: Examples, indices: list[int], padding: int, at_a_time: int) -> tuple[float, int]:
    """Accumulate the gradients of the mean loss of a batch; returns the loss and the number of examples per forward pass."""
    while True:
        total = 0.0
        try:
            for start in range(0, len(indices), at_a_time):
                part = indices[start : start + at_a_time]
                logits = model(**data.batch(part, padding).inputs(model)).logits
                labels = torch.from_numpy(data.labels[part]).to(logits.device)
                loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / len(indices)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            return total, at_a_time
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            if at_a_time == 1:
                raise ScannerError(
                    "one example does not fit into the memory of the device beside the model: reduce `window`"
                ) from error
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        at_a_time = min(at_a_time, len(indices)) // 2 or 1
