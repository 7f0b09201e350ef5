"""Covariance of the activations that enter a weight matrix, and how its eigenvectors overlap with the matrix's singular vectors.

C = 1/N sum_i (h_i - hbar)(h_i - hbar)^T (centred, arXiv 2410.17770v3, sec. 4) and F = 1/N sum_i h_i h_i^T (not centred, v1,
sec. 5), the average over tokens. O_k = max_j |v_k . f_j| over the eigenvectors f_j; M_k = max_i |v_k . e_i| on the standard
basis (v3, App. C). Everything in float64.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.linalg.blas import dsyrk
from scipy.stats import norm

from scanner.errors import ScannerError
from scanner.experiments.nlp.tokens import Batch, Batches, Sequences, is_memory

FloatArray = NDArray[np.float64]

#: Of the largest of n Gaussian entries, as RMT.md and the papers give the band of random overlaps.
BAND = (0.00135, 0.5, 0.99865)

#: By `model_type`: models that have states as (tokens, batch, width), in all of their linear layers or in some,
_TOKENS_FIRST = ("led", "longformer", "xlnet")
#: and models that put padding of their own behind the tokens: up to a whole number of windows, blocks or chunks.
_OWN_PADDING = ("big_bird", "bigbird_pegasus", "led", "longformer", "reformer")


@dataclass(kw_only=True)
class Moments:
    """Sums over the tokens that one matrix has seen: number, sum of h and sum of h h^T, in float64 on the activations' device.

    Only the lower triangle of `second` is kept up.
    """

    count: int
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def zero(cls, width: int, device: Any = "cpu") -> Moments:
        """No token yet, of `width` features."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(count=0, first=torch.zeros(width, **options), second=torch.zeros(width, width, **options))

    def add(self, tokens: torch.Tensor) -> None:
        """Add tokens, (count, width) of any floating type. On the CPU with BLAS's syrk, which does half of a full product."""
        rows = tokens.detach().to(torch.float64).contiguous()
        self.count += rows.shape[0]
        self.first += rows.sum(dim=0)
        if rows.device.type != "cpu":
            self.second.addmm_(rows.T, rows)
            return
        # Row-major memory read column by column is the transpose: its upper triangle is our lower one.
        target = self.second.numpy().T
        done = dsyrk(1.0, rows.numpy().T, beta=1.0, c=target, trans=0, lower=0, overwrite_c=1)
        assert np.shares_memory(done, target), "syrk works in place on memory in Fortran's order"

    def to(self, device: Any) -> Moments:
        """The same sums on another device."""
        return Moments(count=self.count, first=self.first.to(device), second=self.second.to(device))

    def merge(self, other: Moments) -> None:
        """Add the sums of other tokens: of the next shard of a text."""
        self.count += other.count
        self.first = self.first + other.first
        self.second = self.second + other.second

    def covariance(self, *, centred: bool) -> torch.Tensor:
        """C (centred) or F, (width, width), symmetric.

        Raises:
            ValueError: no token has been added.
        """
        if self.count == 0:
            raise ValueError("a covariance needs tokens")
        lower = self.second.tril() / self.count
        if centred:
            mean = self.first / self.count
            lower -= torch.outer(mean, mean).tril()
        return lower + lower.tril(-1).T


@dataclass(frozen=True, kw_only=True)
class Eigensystem:
    """Eigenvalues (n,), largest first, and eigenvectors as the columns of (n, n)."""

    values: torch.Tensor
    vectors: torch.Tensor


def eigensystem(covariance: torch.Tensor) -> Eigensystem:
    """Eigenvalues and eigenvectors of a covariance; rounding below zero becomes zero."""
    if covariance.device.type == "cpu":
        values, vectors = scipy.linalg.eigh(covariance.numpy(), driver="evd", check_finite=True)
        found = torch.from_numpy(values), torch.from_numpy(vectors)
    else:
        eigen = torch.linalg.eigh(covariance)
        found = eigen.eigenvalues, eigen.eigenvectors
    return Eigensystem(values=found[0].flip(0).clamp_min(0.0), vectors=found[1].flip(1))


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Per singular vector (r,): O_k, the index j of the eigenvector it is largest with (0 = largest eigenvalue), its eigenvalue."""

    overlap: FloatArray
    match: NDArray[np.int64]
    eigenvalue: FloatArray


def overlaps(right: torch.Tensor, eigen: Eigensystem) -> Overlaps:
    """O_k of right singular vectors, given as the rows of (r, n).

    v1's formula has no absolute value; the sign of a singular vector is arbitrary, so it is taken.
    """
    products = right.to(torch.float64).to(eigen.vectors.device) @ eigen.vectors
    best = products.abs_().max(dim=1)
    match = best.indices.cpu().numpy()
    return Overlaps(
        overlap=best.values.cpu().numpy(), match=match, eigenvalue=eigen.values.cpu().numpy()[match].astype(np.float64)
    )


def random_band(width: int) -> tuple[float, float, float]:
    """0.135, 50 and 99.865 % of O_k for a random vector of `width` entries: the largest of n Gaussian |entries| of variance 1/n.

    P(max < x) = (2 Phi(x sqrt n) - 1)^n, so x_q = Phi^-1((1 + q^(1/n)) / 2) / sqrt n. That the vector has length 1 shifts
    this by less than 1e-3 from n = 256 on.

    Raises:
        ValueError: no entry.
    """
    if width < 1:
        raise ValueError(f"a vector has at least one entry, got {width}")
    low, middle, high = (float(norm.isf(-np.expm1(np.log(q) / width) / 2)) / np.sqrt(width) for q in BAND)
    return float(low), float(middle), float(high)


class AmbiguousError(Exception):
    """A batch has as many rows as tokens: its states may be (rows, tokens) or (tokens, rows)."""


def passes(run: Callable[[dict[str, torch.Tensor]], None], inputs: dict[str, torch.Tensor]) -> None:
    """`run(inputs)`; where rows could be taken for tokens, `run` with half of the rows and then with the others."""
    with contextlib.suppress(AmbiguousError):
        run(inputs)
        return
    half = len(inputs["attention_mask"]) // 2
    for part in (slice(None, half), slice(half, None)):
        passes(run, {name: values[part] for name, values in inputs.items()})


def states_of_tokens(states: torch.Tensor, mask: torch.Tensor, model_type: str) -> torch.Tensor | None:
    """A copy of the states of tokens that are no padding, (tokens, width): what comes later in a pass may work in place.

    None for what is not one state for each token of the batch: pooled, repeated, of positions.

    Args:
        states: (batch, tokens, width), (batch x tokens, width), or as models of this type have them.
        mask: (batch, tokens), true for a token.
        model_type: of the model's configuration.

    Raises:
        AmbiguousError: as many rows as tokens, and which is which makes a difference.
    """
    width = states.shape[-1]
    rows, length = mask.shape
    each, rest = divmod(states.numel(), rows * width)
    own_padding = each > length and model_type in _OWN_PADDING
    if rest or (each != length and not own_padding):
        return None
    shape = _without_ones(*states.shape[:-1])
    if rows > 1 and shape == (rows, rows) and (own_padding or not mask.all()):
        raise AmbiguousError
    if shape == _without_ones(rows, each) or states.ndim == 2:
        by_row = states.reshape(rows, each, width)
    elif shape == (each, rows) and model_type in _TOKENS_FIRST:
        by_row = states.reshape(each, rows, width).transpose(0, 1)
    else:
        return None
    return by_row[:, :length][mask]


def _without_ones(*sizes: int) -> tuple[int, ...]:
    """A shape without the dimensions that hold nothing: the one group of heads of (batch, 1, tokens, width), say."""
    return tuple(size for size in sizes if size != 1)


@dataclass(kw_only=True)
class Recorder:
    """Moments of the inputs of several modules during forward passes; modules that read the same tensor share one sum.

    A hook on each module keeps its input till the end of a pass; only a whole pass is summed up, for one that runs out of memory is
    made again in halves. `mask` (batch, tokens) says which tokens of the present batch count. What a module reads has to be one
    state for each of these tokens, in the order and with the padding that its kind of model is known for; else the module is
    unusable, for its sums would be of something else.
    """

    modules: dict[str, torch.nn.Module]
    mask: torch.Tensor | None = None
    moments: dict[str, Moments] = field(default_factory=dict)
    """By the module that stands for its group."""
    shared: dict[str, str] = field(default_factory=dict)
    """Every module to the one that stands for it."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Modules whose input is not one state for each token, in some batch or in all, and why."""
    _type: str = ""
    """The model's."""
    _hooks: list[Any] = field(default_factory=list)
    _inputs: dict[tuple[int, tuple[int, ...]], tuple[str, torch.Tensor]] = field(default_factory=dict)
    """The present pass: by address and shape of an input, the first module that read it, and the input itself."""
    _tokens: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    """The present pass: what is to be added to whose sums."""
    _uses: Counter[str] = field(default_factory=Counter)
    """How often each module was used in the present pass."""
    _usual: Counter[str] | None = None
    """And in a whole pass: the first one is made to its end, for models (ALBERT) use one module for several blocks."""

    def __enter__(self) -> Recorder:
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def forward(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        """Run the model as far as the last use of a recorded module, and add what it saw.

        Raises:
            ScannerError: the memory lasts for the pass but not for its sums.
        """
        self._type = getattr(model.config, "model_type", "")

        def run(inputs: dict[str, torch.Tensor]) -> None:
            self.mask = inputs["attention_mask"].bool()
            self._uses.clear()
            before = len(self._tokens)
            try:
                with torch.inference_mode(), contextlib.suppress(_Enough):
                    model(**inputs)
            except AmbiguousError:
                del self._tokens[before:]
                raise
            finally:
                self._inputs.clear()
            if self._usual is None:
                self._usual = self._uses.copy()

        try:
            passes(run, inputs)
            self._sum_up()
        finally:
            self._tokens.clear()

    def _hook(self, name: str) -> Any:
        def record(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments:
                self._record(name, arguments[0])
            self._uses[name] += 1
            if self._usual is not None and all(self._uses[one] >= max(1, self._usual[one]) for one in self.modules):
                raise _Enough

        return record

    def _record(self, name: str, states: torch.Tensor) -> None:
        if self._type.startswith("deberta") and (self._uses[name] or name.rpartition(".")[2].startswith("pos_")):
            return  # embeddings of relative positions, which also go through the matrices of queries and keys
        # The input is kept till the end of the pass, so that its address cannot come back as another's.
        key = (states.data_ptr(), tuple(states.shape))
        first, _ = self._inputs.setdefault(key, (name, states))
        stands_for = self.shared.setdefault(name, first)
        if stands_for != name and stands_for == first:
            return
        if stands_for != name:  # it shared an input before and does not now: it was chance
            raise RuntimeError(f"the inputs of {name} and {stands_for} are the same in some batches only")

        assert self.mask is not None, "a forward pass sets the mask"
        if states.ndim == 2 and "experts" in name.split("."):
            # Experts see some of the tokens, in an order of their own: without padding all of them are real.
            tokens = states.clone() if bool(self.mask.all()) else None
        else:
            tokens = states_of_tokens(states, self.mask, self._type)
        if tokens is not None:
            self._tokens.append((name, tokens))
        else:
            batch, given = tuple(self.mask.shape), tuple(states.shape)
            self.unusable[name] = f"its input of shape {given} is not one state for each token of a batch of {batch}"

    def _sum_up(self) -> None:
        for number, (name, tokens) in enumerate(self._tokens):
            try:
                if name not in self.moments:
                    self.moments[name] = Moments.zero(tokens.shape[1], tokens.device)
                self.moments[name].add(tokens)
            except (MemoryError, RuntimeError) as error:
                if number and is_memory(error):  # a part of this pass is in the sums: it must not be made again
                    raise ScannerError(
                        "the sums of a forward pass do not fit into the device's memory: fewer `layers`"
                    ) from error
                raise


class _Enough(Exception):
    """Every recorded module has had its input: the rest of the forward pass is not needed."""


@dataclass(kw_only=True)
class Sums:
    """Sums over the inputs of some modules in a shard of the text; modules that read the same tensor share one sum."""

    moments: dict[str, Moments]
    """By the module that represents its group."""
    shared: dict[str, str]
    """Module -> the module that represents it."""
    unusable: dict[str, str]
    """Modules whose input is not one state per token -> reason."""
    shards: int = 1
    """Number of shards in the sums, from the first shard of the text on."""

    def to(self, device: Any) -> Sums:
        """Return the sums on another device; only those on the CPU can be sent."""
        moved = {name: moments.to(device) for name, moments in self.moments.items()}
        return replace(self, moments=moved)

    def add(self, other: Sums) -> None:
        """Add the sums of the next shard.

        Raises:
            ScannerError: modules share an input in one shard and not in the other.
        """
        if other.shared != self.shared:
            raise ScannerError("the sets of matrices that read the same input differ between shards of the text")
        self.unusable |= other.unusable
        self.shards += other.shards
        for name, moments in other.moments.items():
            if name in self.moments:
                self.moments[name].merge(moments)
            else:
                self.moments[name] = moments

    def packed(self) -> bytes:
        """Return the sums as bytes (safetensors), which `unpacked` reads."""
        tensors: dict[str, torch.Tensor] = {}
        for name, moments in self.moments.items():
            tensors |= {f"first {name}": moments.first, f"second {name}": moments.second.contiguous()}
        counts = {name: moments.count for name, moments in self.moments.items()}
        told = {"counts": counts, "shared": self.shared, "unusable": self.unusable, "shards": self.shards}
        return save(tensors, metadata={"sums": json.dumps(told)})

    @classmethod
    def unpacked(cls, content: bytes) -> Sums | None:
        """Return the sums that were packed into these bytes; None if they are something else."""
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            told = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["sums"])
            moments = {
                name: Moments(count=count, first=tensors[f"first {name}"], second=tensors[f"second {name}"])
                for name, count in told["counts"].items()
            }
            return cls(moments=moments, shared=told["shared"], unusable=told["unusable"], shards=told["shards"])
        except (SafetensorError, ValueError, KeyError):
            return None


def accumulate(model: Any, text: Sequences, modules: dict[str, torch.nn.Module], batches: Batches) -> Sums:
    """Run sequences through the model up to the last of the modules, and sum over the inputs of these, without padding."""
    recorder = Recorder(modules=modules)

    def compute(batch: Batch, indices: list[int]) -> None:
        recorder.forward(model, batch.inputs(model, decoder=True))

    if modules:
        with recorder:
            batches.of(model).run(text, compute)
    return Sums(moments=recorder.moments, shared=recorder.shared, unusable=recorder.unusable)
