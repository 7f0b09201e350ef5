"""Leaving out directions of the activations around every norm of a model: a tenth of the covariance's eigenvectors at a time.

SliceGPT (Ashkboos et al., arXiv 2401.15024, sec. 3) splits a norm into the division by the length and the scale (which the next
matrix absorbs), rotates into the eigenvectors Q of the signal's covariance and drops the last ones. Here a set D of them is dropped
(P = 1 - Q_D Q_D^T), in either order:

    before   y = g * unit(P x)      covariance of x, the input of the norm
    after    y = g * P unit(x)      covariance of unit(x)

with unit(x) = x / rms(x); for LayerNorm, x less its mean stands for x. P acts on what the norm passes on; the residual stream
itself stays whole. The covariance is not centred (SliceGPT's X^T X). Decile 1 holds the smallest eigenvalues.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. F.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from scanner.errors import ScannerError
from scanner.experiments.activations import Moments, eigensystem
from scanner.experiments.tokens import Batch, Batches, Sequences

Order = Literal["before", "after"]
ORDERS: tuple[Order, ...] = get_args(Order)
DECILES = tuple(range(1, 11))


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm of a model, taken apart: the division by the length, and the scale."""

    module: torch.nn.Module
    centred: bool
    """LayerNorm, which takes the mean off first; else an RMS norm."""
    eps: float
    scale: torch.Tensor
    """g, (width,)."""

    def signal(self, states: torch.Tensor) -> torch.Tensor:
        """What is divided by its length: x, or x less its mean; (..., width)."""
        return states - states.mean(dim=-1, keepdim=True) if self.centred else states

    def unit(self, states: torch.Tensor) -> torch.Tensor:
        """The states divided by their length, in float32 as the models do; (..., width)."""
        shape = states.shape[-1:]
        wide = states.float()
        if self.centred:
            return functional.layer_norm(wide, shape, eps=self.eps)
        return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)


def norms_of(model: Any) -> dict[str, Norm]:
    """The norms over the whole width of a model's states, by name, in the order of the model (not those of single heads).

    Raises:
        ScannerError: there are none that can be taken apart.
    """
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    found: dict[str, Norm] = {}
    for name, module in model.named_modules():
        scale = getattr(module, "weight", None)
        if not isinstance(scale, torch.Tensor) or tuple(scale.shape) != (width,):
            continue
        if isinstance(module, torch.nn.LayerNorm):
            found[name] = Norm(module=module, centred=True, eps=module.eps, scale=scale.detach().float())
        elif type(module).__name__.endswith("RMSNorm"):
            eps = next(
                (float(getattr(module, key)) for key in ("variance_epsilon", "eps") if hasattr(module, key)), 0.0
            )
            with torch.inference_mode():
                # Some scale by the weight, some by 1 + weight: what becomes of ones tells.
                ones = torch.ones(1, *scale.shape, dtype=scale.dtype, device=scale.device)
                factor = module(ones)[0].double() * (1.0 + eps) ** 0.5
            found[name] = Norm(module=module, centred=False, eps=eps, scale=factor.float())
    if not found:
        raise ScannerError(
            f"{type(model).__name__} has no LayerNorm or RMSNorm over its hidden states: nothing to slice around"
        )
    return found


def require_full_rank(tokens: int, width: int) -> None:
    """Whether so many tokens can fill a covariance.

    Raises:
        ScannerError: fewer tokens than dimensions.
    """
    if tokens < width:
        raise ScannerError(f"{tokens} tokens for a covariance of {width} dimensions: at least as many are needed")


def bases(model: Any, text: Sequences, batches: Batches, order: Order) -> dict[str, torch.Tensor]:
    """Eigenvectors of the covariance at every norm that a forward pass goes through, before or after it.

    Args:
        model: intact, on its device.
        text: what is averaged over; padding is left out.
        batches: how they are batched.
        order: `before`: of the norm's input (less its mean, for LayerNorm); `after`: of what it divided.

    Returns:
        By the norm's name: (width, width), float32, eigenvectors as columns, smallest eigenvalue first.

    Raises:
        ScannerError: fewer tokens than dimensions: the smallest directions would be arbitrary.
    """
    norms = norms_of(model)
    width = next(iter(norms.values())).scale.shape[0]
    require_full_rank(text.tokens, width)
    moments = {name: Moments.zero(width, model.device) for name in norms}
    mask: list[torch.Tensor] = []
    seen: list[tuple[str, torch.Tensor]] = []

    def recorder(name: str) -> Any:
        def record(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            states = arguments[0]
            if states.shape[:-1] != mask[0].shape:
                raise ScannerError(f"the input of {name} has shape {tuple(states.shape)}: no state for each token")
            seen.append((name, states[mask[0]]))  # a copy: what comes later may work in place

        return record

    def compute(batch: Batch, indices: list[int]) -> None:
        inputs = batch.inputs(model, decoder=True)
        mask[:] = [inputs["attention_mask"].bool()]
        seen.clear()
        model(**inputs)
        # After the pass: one that runs out of memory is made again in halves, and must not count twice.
        for name, chosen in seen:
            norm = norms[name]
            moments[name].add(norm.signal(chosen) if order == "before" else norm.unit(chosen))
        seen.clear()

    hooks = [norm.module.register_forward_pre_hook(recorder(name)) for name, norm in norms.items()]
    try:
        with torch.inference_mode():
            batches.of(model).run(text, compute)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, torch.Tensor] = {}
    for name in norms:
        sums = moments.pop(name)
        if sums.count:
            found[name] = eigensystem(sums.covariance(centred=False)).vectors.flip(1).float()
    return found


def decile_slice(width: int, decile: int) -> slice:
    """The columns of a basis that belong to a decile: 1 the smallest eigenvalues, 10 the largest; all deciles cover all.

    Raises:
        ValueError: no decile.
    """
    if decile not in DECILES:
        raise ValueError(f"deciles are 1 to 10, got {decile}")
    return slice(width * (decile - 1) // 10, width * decile // 10)


@contextlib.contextmanager
def sliced(model: Any, directions: Mapping[str, torch.Tensor], order: Order) -> Iterator[int]:
    """While it lasts, the model's norms leave these directions out; yields how many there are in all.

    Args:
        model: on its device.
        directions: by the norm's name, (width, count) orthonormal columns.
        order: project `before` the norm or `after` its division.
    """
    norms = norms_of(model)

    def before(norm: Norm, dropped: torch.Tensor) -> Any:
        def project(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            signal = norm.signal(arguments[0].float())
            kept = signal - (signal @ dropped) @ dropped.T
            return (kept.to(arguments[0].dtype), *arguments[1:])

        return norm.module.register_forward_pre_hook(project)

    def after(norm: Norm, dropped: torch.Tensor) -> Any:
        def project(module: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            lost = norm.scale * ((norm.unit(arguments[0]) @ dropped) @ dropped.T)
            return (output.float() - lost).to(output.dtype)

        return norm.module.register_forward_hook(project)

    place = before if order == "before" else after
    hooks = [place(norms[name], dropped) for name, dropped in directions.items()]
    try:
        yield sum(dropped.shape[1] for dropped in directions.values())
    finally:
        for hook in hooks:
            hook.remove()
