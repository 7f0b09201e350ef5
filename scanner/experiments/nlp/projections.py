"""Remove directions of the activations at every norm of a model: one decile of the eigenvectors of their covariance at a time.

SliceGPT (Ashkboos et al., arXiv 2401.15024, sec. 3) splits a norm into the division by the length and the scale (which the next
matrix absorbs), rotates into the eigenvectors Q of the covariance of the signal, and drops the last ones. Here a set D of
eigenvectors is removed with the projection P = 1 - Q_D Q_D^T, in either order:

    before   y = g * unit(P x)      covariance of x, the input of the norm
    after    y = g * P unit(x)      covariance of unit(x)

with unit(x) = x / rms(x); for LayerNorm, x is replaced by x minus its mean. P acts on what the norm passes on; the residual stream
itself is unchanged. The covariance is not centered (X^T X, as in SliceGPT). Decile 1 holds the smallest eigenvalues. P is constant:
a model can be trained with it, and then the weights adapt, including the scale g.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. F.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from scanner.errors import ScannerError
from scanner.experiments.nlp.recording import AmbiguousError, Moments, eigensystem, passes, states_of_tokens
from scanner.experiments.nlp.removal import Counts
from scanner.experiments.nlp.tokens import Batch, Batches, Sequences

Order = Literal["before", "after"]
ORDERS: tuple[Order, ...] = get_args(Order)
DECILES = tuple(range(1, 11))


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm of a model, split into the division by the length and the scale."""

    module: torch.nn.Module
    centred: bool
    """True for LayerNorm, which subtracts the mean first; false for an RMS norm."""
    eps: float
    scale: torch.Tensor
    """g, (width,), when the norm was taken apart."""

    def signal(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the norm divides by its length: x, or x minus its mean; (..., width)."""
        return states - states.mean(dim=-1, keepdim=True) if self.centred else states

    def unit(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states divided by their length, in float32 as in the models; (..., width)."""
        shape = states.shape[-1:]
        wide = states.float()
        if self.centred:
            return functional.layer_norm(wide, shape, eps=self.eps)
        return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)


#: Names of norms of queries, keys and values, whose width may equal that of the states; and the name of the norm of DeBERTa over
#: the embeddings of relative positions.
_OTHERS = frozenset(
    "q_norm k_norm v_norm kv_norm qk_norm q_ln k_ln query_norm key_norm q_layernorm k_layernorm query_layernorm key_layernorm "
    "q_a_layernorm kv_a_layernorm".split()
)
_OF_POSITIONS = "encoder.LayerNorm"


def norms_of(model: Any) -> dict[str, Norm]:
    """Return the norms over the hidden states of a model by name, in the order of the model (without norms of queries and keys).

    A norm is recognized by its output, because there are many classes of norms and their scales differ (weight, 1 + weight, none).

    Raises:
        ScannerError: the model has no such norm.
    """
    width: int = getattr(model.config.get_text_config(), "hidden_size", 0)
    deberta = getattr(model.config, "model_type", "").startswith("deberta")
    found: dict[str, Norm] = {}
    for name, module in model.named_modules():
        if not _may_be_norm(module, width) or not _OTHERS.isdisjoint(name.split(".")):
            continue
        if deberta and f".{name}".endswith(f".{_OF_POSITIONS}"):
            continue
        if (norm := _taken_apart(module, width, next(model.parameters()).device)) is not None:
            found[name] = norm
    if not found:
        raise ScannerError(
            f"{type(model).__name__} has no LayerNorm or RMSNorm over its hidden states: slicing needs one"
        )
    return found


def _may_be_norm(module: torch.nn.Module, width: int) -> bool:
    if not width or next(module.children(), None) is not None:
        return False
    if next(module.parameters(), None) is None:  # the norm of OLMo has neither scale nor bias
        return "norm" in type(module).__name__.lower()
    scale = getattr(module, "weight", None)
    return isinstance(scale, torch.Tensor) and tuple(scale.shape) == (width,)


def _taken_apart(module: torch.nn.Module, width: int, device: torch.device) -> Norm | None:
    """Determine the parts of a norm from its output for chosen states; None if the module is not a norm."""
    alone = copy.deepcopy(module).float().cpu()  # exact for every precision of the model
    signs = 1.0 - 2.0 * (torch.arange(width) % 2)
    drawn = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    samples = torch.cat([drawn + 1.0, 0.01 * drawn])
    with torch.no_grad():  # tensors of the inference mode could not be used in a training
        try:  # without its hooks
            one, other, tiny, made = (
                alone.forward(states[None])[0] for states in (signs[None], -signs[None], 1e-3 * signs[None], samples)
            )
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return None
        if not isinstance(made, torch.Tensor) or made.shape != samples.shape:
            return None
        scaled, bias = (one - other) / 2.0, (one + other) / 2.0
        known = (getattr(module, key, None) for key in ("variance_epsilon", "eps"))
        eps = next((float(value) for value in known if isinstance(value, float)), None)
        if eps is None:  # y = x / sqrt(x^2 + eps), up to the scale: a small x shows eps
            ratio = float(scaled.norm() / (tiny - bias).norm())
            eps = max(0.0, 1e-6 * (ratio**2 - 1.0))
        for centred in (True, False):
            norm = Norm(module=module, centred=centred, eps=eps, scale=torch.ones(width))
            scale = scaled[0] / norm.unit(signs)
            if torch.allclose(scale * norm.unit(samples) + bias, made, rtol=1e-4, atol=1e-5 * float(made.abs().max())):
                return replace(norm, scale=scale.clone().to(device))
    return None


def require_full_rank(tokens: int, width: int) -> None:
    """Check that there are enough tokens for a covariance of full rank.

    Raises:
        ScannerError: there are fewer tokens than dimensions.
    """
    if tokens < width:
        raise ScannerError(f"a covariance of {width} dimensions needs at least {width} tokens, got {tokens}")


def bases(model: Any, text: Sequences, batches: Batches, order: Order) -> dict[str, torch.Tensor]:
    """Return the eigenvectors of the covariance before or after every norm that a forward pass uses.

    Norms whose input is not one state per token, or that take a second argument, are left out; `sliced` does not change them.

    Args:
        model: the intact model, on its device.
        text: sequences to average over, without padding.
        batches: how sequences are batched.
        order: `before`: covariance of the input of the norm (minus its mean, for LayerNorm); `after`: of the divided states.

    Returns:
        By name of the norm: (width, width), float32, eigenvectors as columns, smallest eigenvalue first.

    Raises:
        ScannerError: there are fewer tokens than dimensions, so the smallest directions would be arbitrary; or no norm is left.
    """
    norms = norms_of(model)
    width = next(iter(norms.values())).scale.shape[0]
    require_full_rank(text.tokens, width)
    moments = {name: Moments.zero(width, model.device) for name in norms}
    model_type = getattr(model.config, "model_type", "")
    mask: list[torch.Tensor] = []
    seen: list[tuple[str, torch.Tensor]] = []
    others: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Any:
        def record(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            chosen = None
            if len(arguments) == 1:  # some norms take a gate beside the states
                chosen = states_of_tokens(arguments[0], mask[0], model_type)
            if chosen is None:
                others[name] = tuple(arguments[0].shape) if arguments else ()
            else:
                seen.append((name, chosen))

        return record

    def run(inputs: dict[str, torch.Tensor]) -> None:
        mask[:] = [inputs["attention_mask"].bool()]
        before = len(seen)
        try:
            model(**inputs)
        except AmbiguousError:
            del seen[before:]
            raise

    def compute(batch: Batch, indices: list[int]) -> None:
        seen.clear()
        passes(run, batch.inputs(model, decoder=True))
        # After the pass: a pass that runs out of memory is repeated in halves and must not count twice.
        for name, chosen in seen:
            norm = norms[name]
            moments[name].add(norm.signal(chosen) if order == "before" else norm.unit(chosen))
        seen.clear()

    hooks = [norm.module.register_forward_pre_hook(recorder(name)) for name, norm in norms.items()]
    try:
        with torch.no_grad():  # what a model caches in inference mode could not be used in a training
            batches.of(model).run(text, compute)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, torch.Tensor] = {}
    for name in norms:
        sums = moments.pop(name)
        if sums.count and name not in others:
            found[name] = eigensystem(sums.covariance(centred=False)).vectors.flip(1).float()
    if not found:
        told = ", ".join(f"{name} {shape}" for name, shape in others.items()) or "no forward pass reaches one"
        raise ScannerError(
            f"no norm of {type(model).__name__} has one state per token as input ({told}): slicing needs one"
        )
    return found


def decile_slice(width: int, decile: int) -> slice:
    """Return the columns of a basis in a decile: 1 has the smallest eigenvalues, 10 the largest; the deciles cover all columns.

    Raises:
        ValueError: `decile` is not 1 to 10.
    """
    if decile not in DECILES:
        raise ValueError(f"`decile` must be 1 to 10, got {decile}")
    return slice(width * (decile - 1) // 10, width * decile // 10)


@contextlib.contextmanager
def sliced(model: Any, directions: Mapping[str, torch.Tensor], order: Order) -> Iterator[int]:
    """Remove these directions at the norms of the model inside the context; yields their number over all norms.

    The model can be trained inside the context: gradients pass through the projection, and the scales may change.

    Args:
        model: the model, on its device.
        directions: by name of the norm, (width, count) with orthonormal columns.
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
        weight = getattr(norm.module, "weight", None)
        earlier = None if weight is None else weight.detach().clone()

        def project(module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            # The weight of a norm is its scale, or 1 less: both change by the same.
            scale = norm.scale if earlier is None else norm.scale + (module.weight - earlier)
            lost = scale * ((norm.unit(arguments[0]) @ dropped) @ dropped.T)
            return (output.float() - lost).to(output.dtype)

        return norm.module.register_forward_hook(project)

    place = before if order == "before" else after
    hooks = [place(norms[name], dropped) for name, dropped in directions.items()]
    try:
        yield sum(dropped.shape[1] for dropped in directions.values())
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def without_decile(model: Any, found: Mapping[str, torch.Tensor], decile: int, order: Order) -> Iterator[Counts]:
    """Remove one decile of the eigenvectors at every norm inside the context; yields how many directions of how many.

    Args:
        model: the model, on its device.
        found: what `bases` returns for this order.
        decile: 1 (the smallest eigenvalues) to 10.
        order: project `before` the norm or `after` its division.
    """
    dropped = {name: basis[:, decile_slice(basis.shape[0], decile)] for name, basis in found.items()}
    with sliced(model, dropped, order) as removed:
        yield Counts(removed, sum(basis.shape[0] for basis in found.values()), math.nan)
