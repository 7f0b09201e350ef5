"""A fully connected network in the rich and the lazy regime: training, and accuracy after removing singular values.

The output scale alpha determines the regime. With softmax(alpha * logits) and loss / alpha^2, the scaled logits learn at the same
rate for every alpha, but the weights change by 1/alpha of what they change at alpha = 1. At large alpha the weights stay close
to their random initialization, and learned information is spread over the whole spectrum instead of a few outliers.

Sources: Chizat, Oyallon, Bach, arXiv 1812.07956; Geiger, Spigler, Jacot, Wyart, arXiv 1906.08034 (alpha and loss / alpha^2);
Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. A (the network, alpha = 1 and 15, the removal).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional

from scanner.experiments.images import Images
from scanner.experiments.regimes import HIDDEN, ORDERINGS, Ordering, Regime, Training


class DivergedError(Exception):
    """The loss became NaN or infinite during training."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Weights (out, in) and biases (out,) of all layers in order, with ReLU between layers."""

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]

    def logits(self, images: torch.Tensor, weights: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return unscaled logits (count, classes) for images (count, pixels); `weights` replace those of the network."""
        values = images
        chosen = self.weights if weights is None else weights
        for layer, (weight, bias) in enumerate(zip(chosen, self.biases, strict=True)):
            values = functional.linear(values, weight, bias)
            if layer < len(chosen) - 1:
                values = functional.relu(values)
        return values


def initial(sizes: Sequence[int], generator: torch.Generator) -> Network:
    """Return a new network: Gaussian weights of variance 2 / fan_in, in the last layer 1 / fan_in (arXiv 1502.01852), no bias."""
    weights = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        gain = 2.0 if layer < len(sizes) - 2 else 1.0
        weights.append(torch.randn(fan_out, fan_in, generator=generator) * math.sqrt(gain / fan_in))
    return Network(weights=tuple(weights), biases=tuple(torch.zeros(size) for size in sizes[1:]))


def train(
    images: Images,
    regime: Regime,
    training: Training,
    seed: int,
    device: str = "cpu",
    *,
    widths: Sequence[int] = HIDDEN,
) -> Network:
    """Train one network with hidden layers of these widths.

    The same seed gives the same initial weights and the same batches in every regime.

    Raises:
        DivergedError: the loss is NaN or infinite.
        ValueError: a frozen layer does not exist, or all layers are frozen.
    """
    generator = torch.Generator().manual_seed(seed)
    network = initial((images.pixels, *widths, images.classes), generator)
    layers = len(network.weights)
    trained = [layer for layer in range(layers) if layer not in regime.frozen]
    if any(not 0 <= layer < layers for layer in regime.frozen) or not trained:
        raise ValueError(f"`frozen` must be some of the layers 0 to {layers - 1}, not all, got {regime.frozen}")
    network = Network(
        weights=tuple(weight.to(device) for weight in network.weights),
        biases=tuple(bias.to(device) for bias in network.biases),
    )
    parameters = [part[layer].requires_grad_() for layer in trained for part in (network.weights, network.biases)]
    optimizer = torch.optim.SGD(parameters, lr=training.rate)
    inputs, labels = torch.from_numpy(images.train).to(device), torch.from_numpy(images.train_labels).to(device)
    for _ in range(training.epochs):
        order = torch.randperm(len(labels), generator=generator).to(device)
        for chosen in torch.split(order, training.batch):
            scaled = regime.alpha * network.logits(inputs[chosen])
            loss = functional.cross_entropy(scaled, labels[chosen]) / regime.alpha**2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise DivergedError(f"the loss is {loss.item()} at learning rate {training.rate:g}: reduce `lr`")
    return Network(
        weights=tuple(weight.detach() for weight in network.weights),
        biases=tuple(bias.detach() for bias in network.biases),
    )


def correct(network: Network, images: Images, weights: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """Return 1 for each test image whose label has the largest logit, else 0; (images,), float64, on the CPU."""
    device = network.biases[0].device
    with torch.no_grad():
        logits = network.logits(torch.from_numpy(images.test).to(device), weights)
    return (logits.argmax(dim=1).cpu() == torch.from_numpy(images.test_labels)).to(torch.float64)


def removed_ranks(
    singular_values: torch.Tensor, ordering: Ordering, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Return the ranks to remove from descending singular values, for a share in [0, 1]; see `ORDERINGS`.

    Raises:
        ValueError: `share` is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"`share` must be between 0 and 1, got {share}")
    count = len(singular_values)
    number = round(share * count)
    if ordering == "random":
        return torch.randperm(count, generator=generator)[:number].sort().values
    if ordering == "mass":
        ascending = singular_values.to(torch.float64).flip(0).cumsum(0)
        # the last sum and share * total are rounded differently, and share 1 must remove everything
        number = int(torch.count_nonzero(ascending <= share * ascending[-1] * (1.0 + 1e-12)))
    return torch.arange(count - number, count)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Accuracy of a network without a set of its singular values."""

    ordering: Ordering
    share: float
    removed: int
    """Number of removed singular values, over all hidden matrices."""
    fraction: float
    """`removed` as a share of all singular values of the hidden matrices."""
    accuracy: float
    delta: float
    """Accuracy minus the accuracy of the intact network."""
    stderr: float
    """Standard error of `delta`, from the differences image by image: both accuracies are measured on the same test images."""


def removals(network: Network, images: Images, shares: Sequence[float], seed: int) -> tuple[float, list[Removal]]:
    """Return the accuracy of the intact network, and a removal for each ordering and share, in all hidden matrices at once."""
    return _accuracy(correct(network, images)), list(_removals(network, images, shares, seed))


def _removals(network: Network, images: Images, shares: Sequence[float], seed: int) -> Iterator[Removal]:
    whole = correct(network, images)
    parts = [torch.linalg.svd(weight.to(torch.float64), full_matrices=False) for weight in network.weights[:-1]]
    total = sum(len(part.S) for part in parts)
    generator = torch.Generator().manual_seed(seed)
    for ordering in ORDERINGS:
        for share in shares:
            weights, removed = [], 0
            for part, weight in zip(parts, network.weights, strict=False):
                kept = part.S.clone()
                ranks = removed_ranks(part.S, ordering, share, generator)
                kept[ranks] = 0.0
                removed += len(ranks)
                weights.append(((part.U * kept) @ part.Vh).to(weight.dtype))
            after = correct(network, images, [*weights, network.weights[-1]])
            difference = after - whole
            yield Removal(
                ordering=ordering,
                share=share,
                removed=removed,
                fraction=removed / total,
                accuracy=_accuracy(after),
                delta=float(difference.mean()),
                stderr=float(difference.std(correction=0)) / math.sqrt(len(difference)),
            )


def _accuracy(correct_ones: torch.Tensor) -> float:
    return float(correct_ones.mean())
