"""Covariance of the activations that enter a weight matrix, and overlaps of its eigenvectors with the right singular vectors.

C = 1/N sum_i (h_i - hbar)(h_i - hbar)^T (centered, arXiv 2410.17770v3, sec. 4) and F = 1/N sum_i h_i h_i^T (not centered, v1,
sec. 5) are averages over tokens. O_k = max_j |v_k . f_j| over the eigenvectors f_j; M_k = max_i |v_k . e_i| over the standard
basis (v3, App. C). s_k^2 v_k^T C v_k is what triplet k adds to the mean square of the output of the matrix, E |W (h - hbar)|^2.

A singular vector that is localized on few features overlaps with eigenvectors that are localized on them by chance. So O_k has a
null that keeps the size of every entry of v_k and draws its sign. N draws give its median and p = (1 + #{O >= O_k}) / (1 + N).
Beyond all draws there is a bound: v_k . f_j is a sum of independent terms of variance v_ki^2 f_ij^2, nearly Gaussian,
and P(max_j |v_k . f_j| >= x) <= 1 - prod_j (2 Phi(x / sigma_kj) - 1), because dependence between the sums makes it smaller only
(Sidak, J. Am. Stat. Assoc. 62, 626, 1967). Signs in place of Gaussian numbers change a tail by a factor of 3.2 at most (Pinelis,
Ann. Probab. 22, 1679, 1994). All computations are in float64, those of draws in float32.
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

#: Quantiles of the largest of n Gaussian entries that bound the band of random overlaps, as in docs/method.md and the papers.
BAND = (0.00135, 0.5, 0.99865)

#: Entries of vectors that are compared at a time.
_BLOCK = 1 << 21

#: Values of `model_type` whose states are (tokens, batch, width) in some or all linear layers.
_TOKENS_FIRST = ("led", "longformer", "xlnet")
#: Values of `model_type` that append padding of their own, up to a whole number of windows, blocks or chunks.
_OWN_PADDING = ("big_bird", "bigbird_pegasus", "led", "longformer", "reformer")


@dataclass(kw_only=True)
class Moments:
    """Sums over the input tokens of one matrix: count, sum of h (n,) and sum of h h^T (n, n), in float64 on their device.

    Only the lower triangle of `second` is valid.
    """

    count: int
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def zero(cls, width: int, device: Any = "cpu") -> Moments:
        """Return sums over no tokens, for `width` features."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(count=0, first=torch.zeros(width, **options), second=torch.zeros(width, width, **options))

    def add(self, tokens: torch.Tensor) -> None:
        """Add tokens, (count, width) of any floating type. On a CPU, syrk computes only half of the symmetric product."""
        rows = tokens.detach().to(torch.float64).contiguous()
        self.count += rows.shape[0]
        self.first += rows.sum(dim=0)
        if rows.device.type != "cpu":
            self.second.addmm_(rows.T, rows)
            return
        # Row-major memory read in column-major order is the transpose: its upper triangle is our lower one.
        target = self.second.numpy().T
        done = dsyrk(1.0, rows.numpy().T, beta=1.0, c=target, trans=0, lower=0, overwrite_c=1)
        assert np.shares_memory(done, target), "syrk works in place on column-major memory"

    def to(self, device: Any) -> Moments:
        """Return the sums on another device."""
        return Moments(count=self.count, first=self.first.to(device), second=self.second.to(device))

    def copy(self) -> Moments:
        """Return the sums in memory of their own."""
        return Moments(count=self.count, first=self.first.clone(), second=self.second.clone())

    def merge(self, other: Moments) -> None:
        """Add the sums over other tokens, those of the next shard of a text."""
        self.count += other.count
        self.first = self.first + other.first
        self.second = self.second + other.second

    def covariance(self, *, centred: bool) -> torch.Tensor:
        """Return C (centered) or F, (width, width), symmetric.

        Raises:
            ValueError: no token has been added.
        """
        if self.count == 0:
            raise ValueError("a covariance needs at least one token")
        lower = self.second.tril() / self.count
        if centred:
            mean = self.first / self.count
            lower -= torch.outer(mean, mean).tril()
        return lower + lower.tril(-1).T


@dataclass(frozen=True, kw_only=True)
class Eigensystem:
    """Eigenvalues (n,), largest first, and eigenvectors as columns (n, n)."""

    values: torch.Tensor
    vectors: torch.Tensor


def eigensystem(covariance: torch.Tensor) -> Eigensystem:
    """Return eigenvalues and eigenvectors of a covariance; eigenvalues that rounding made negative become zero."""
    if covariance.device.type == "cpu":
        values, vectors = scipy.linalg.eigh(covariance.numpy(), driver="evd", check_finite=True)
        found = torch.from_numpy(values), torch.from_numpy(vectors)
    else:
        eigen = torch.linalg.eigh(covariance)
        found = eigen.eigenvalues, eigen.eigenvectors
    return Eigensystem(values=found[0].flip(0).clamp_min(0.0), vectors=found[1].flip(1))


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """O_k of each singular vector, the index j of the best eigenvector (0 = largest eigenvalue), and its eigenvalue; all (r,).

    `energy` is v_k^T C v_k. For random signs of the entries of v_k, `signs_median` is the median of O_k and `signs_p` its p-value,
    which are NaN without draws, and `signs_bound` a bound on the p-value.
    """

    overlap: FloatArray
    match: NDArray[np.int64]
    eigenvalue: FloatArray
    energy: FloatArray
    signs_p: FloatArray
    signs_median: FloatArray
    signs_bound: FloatArray


def overlaps(right: torch.Tensor, eigen: Eigensystem, *, draws: int = 0) -> Overlaps:
    """Return O_k of right singular vectors, given as rows (r, n), with `draws` draws of random signs.

    The formula in v1 has no absolute value. It is taken here because the sign of a singular vector is arbitrary.
    """
    vectors = right.to(torch.float64).to(eigen.vectors.device)
    products = overlap_map(vectors, eigen)
    best = products.max(dim=1)
    match = best.indices.cpu().numpy()
    energy = products.square_() @ eigen.values
    p, median = _random_signs(vectors, eigen, best.values, draws)
    return Overlaps(
        overlap=best.values.cpu().numpy(),
        match=match,
        eigenvalue=eigen.values.cpu().numpy()[match].astype(np.float64),
        energy=energy.cpu().numpy(),
        signs_p=p.cpu().numpy(),
        signs_median=median.cpu().numpy(),
        signs_bound=_signs_bound(vectors, eigen, best.values).cpu().numpy(),
    )


def overlap_map(right: torch.Tensor, eigen: Eigensystem) -> torch.Tensor:
    """Return |v_k . f_j| of right singular vectors, given as rows (r, n); (r, n), j = 0 the largest eigenvalue."""
    return (right.to(torch.float64).to(eigen.vectors.device) @ eigen.vectors).abs_()


def _random_signs(
    right: torch.Tensor, eigen: Eigensystem, overlap: torch.Tensor, draws: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return p-value and median of O_k for random signs of the entries of v_k, both (r,); the signs are the same on every call."""
    if not draws:
        unknown = torch.full_like(overlap, torch.nan)
        return unknown, unknown
    generator = np.random.default_rng(0)
    sizes, directions = right.float(), eigen.vectors.float()
    drawn = torch.empty(draws, len(right), device=right.device)
    step = max(1, _BLOCK // right.shape[1])
    for start in range(0, len(right), step):
        block = sizes[start : start + step]
        for draw in range(draws):
            bits = np.unpackbits(
                np.frombuffer(generator.bytes(-(-block.numel() // 8)), dtype=np.uint8), count=block.numel()
            )
            signs = torch.from_numpy(bits).to(block.device).reshape(block.shape).float().mul_(2.0).sub_(1.0)
            drawn[draw, start : start + step] = (signs.mul_(block) @ directions).abs_().amax(dim=1)
    # Equal up to rounding is equal: with one entry, signs change nothing.
    reached = (drawn >= overlap.float() * (1.0 - 1e-5)).sum(dim=0)
    return (1.0 + reached.double()) / (1.0 + draws), drawn.double().quantile(0.5, dim=0)


def _signs_bound(right: torch.Tensor, eigen: Eigensystem, overlap: torch.Tensor) -> torch.Tensor:
    """Return the bound on the p-value of O_k for random signs, (r,)."""
    squares = eigen.vectors.square()
    bound = torch.empty_like(overlap)
    step = max(1, _BLOCK // squares.shape[1])
    for start in range(0, len(right), step):
        part = slice(start, start + step)
        spread = (right[part].square() @ squares).mul_(2.0).sqrt_()  # sigma_kj sqrt 2
        each = torch.special.erfc(overlap[part, None] / spread.clamp_(min=torch.finfo(torch.float64).tiny))
        bound[part] = -torch.expm1(torch.log1p(each.neg_().clamp_(min=-1.0 + 1e-15)).sum(dim=1))
    return bound


def random_band(width: int) -> tuple[float, float, float]:
    """Return the 0.135, 50 and 99.865 % quantiles of O_k for a random vector with n = `width` entries.

    O_k is the largest absolute value of n Gaussian entries of variance 1/n: P(max < x) = (2 Phi(x sqrt n) - 1)^n, so
    x_q = Phi^-1((1 + q^(1/n)) / 2) / sqrt n. The normalization of the vector shifts this by less than 1e-3 for n >= 256.

    Raises:
        ValueError: `width` is less than 1.
    """
    if width < 1:
        raise ValueError(f"`width` must be at least 1, got {width}")
    low, middle, high = (float(norm.isf(-np.expm1(np.log(q) / width) / 2)) / np.sqrt(width) for q in BAND)
    return float(low), float(middle), float(high)


class AmbiguousError(Exception):
    """A batch has as many rows as tokens, so its states may be (rows, tokens) or (tokens, rows)."""


def passes(run: Callable[[dict[str, torch.Tensor]], None], inputs: dict[str, torch.Tensor]) -> None:
    """Call `run(inputs)`; if rows could be confused with tokens, call it with each half of the rows instead."""
    with contextlib.suppress(AmbiguousError):
        run(inputs)
        return
    half = len(inputs["attention_mask"]) // 2
    for part in (slice(None, half), slice(half, None)):
        passes(run, {name: values[part] for name, values in inputs.items()})


def states_of_tokens(states: torch.Tensor, mask: torch.Tensor, model_type: str) -> torch.Tensor | None:
    """Return a copy of the states of all tokens without padding, (tokens, width); later layers may change them in place.

    Returns None if the states are not one state per token of the batch (pooled or repeated states, or states of positions).

    Args:
        states: (batch, tokens, width), (batch x tokens, width), or the layout of this type of model.
        mask: (batch, tokens), true for tokens that are not padding.
        model_type: `model_type` of the configuration of the model.

    Raises:
        AmbiguousError: there are as many rows as tokens, and the layout matters.
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
    """Return a shape without dimensions of size 1, such as a single group of heads in (batch, 1, tokens, width)."""
    return tuple(size for size in sizes if size != 1)


@dataclass(kw_only=True)
class Recorder:
    """Accumulates moments of the inputs of several modules; modules that read the same tensor share one sum.

    A hook on each module keeps its input until the end of a forward pass. Inputs are added only after a complete pass, because a
    pass that runs out of memory is repeated in halves. `mask` (batch, tokens) marks the tokens of the current batch that are not
    padding. The input of a module must be one state per token, in the layout of its type of model; otherwise the module is
    unusable.
    """

    modules: dict[str, torch.nn.Module]
    mask: torch.Tensor | None = None
    moments: dict[str, Moments] = field(default_factory=dict)
    """By the module that represents its group."""
    shared: dict[str, str] = field(default_factory=dict)
    """Module -> the module that represents it."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Modules whose input is not one state per token in at least one batch -> reason."""
    _type: str = ""
    """`model_type` of the model."""
    _hooks: list[Any] = field(default_factory=list)
    _inputs: dict[tuple[int, tuple[int, ...]], tuple[str, torch.Tensor]] = field(default_factory=dict)
    """Current pass: address and shape of an input -> the first module that read it, and the input."""
    _tokens: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    """Current pass: modules, and the tokens to be added to their sums."""
    _uses: Counter[str] = field(default_factory=Counter)
    """Current pass: number of uses of each module."""
    _usual: Counter[str] | None = None
    """Uses in a complete pass. The first pass is complete, because some models (ALBERT) use a module in several blocks."""

    def __enter__(self) -> Recorder:
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def forward(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        """Run the model up to the last use of a recorded module, and add the recorded inputs.

        Raises:
            ScannerError: there is enough memory for the pass but not for its sums.
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
            return  # embeddings of relative positions, which also pass through the query and key matrices
        # The input is kept until the end of the pass, so that its address is not used again.
        key = (states.data_ptr(), tuple(states.shape))
        first, _ = self._inputs.setdefault(key, (name, states))
        stands_for = self.shared.setdefault(name, first)
        if stands_for != name and stands_for == first:
            return
        if stands_for != name:  # it shared an input before and does not now
            raise RuntimeError(f"the inputs of {name} and {stands_for} are the same in some batches only")

        assert self.mask is not None, "forward() sets the mask"
        if states.ndim == 2 and "experts" in name.split("."):
            # Experts see some of the tokens in an order of their own, which is usable only without padding.
            tokens = states.clone() if bool(self.mask.all()) else None
        else:
            tokens = states_of_tokens(states, self.mask, self._type)
        if tokens is not None:
            self._tokens.append((name, tokens))
        else:
            batch, given = tuple(self.mask.shape), tuple(states.shape)
            self.unusable[name] = f"its input of shape {given} is not one state per token of a batch of {batch}"

    def _sum_up(self) -> None:
        for number, (name, tokens) in enumerate(self._tokens):
            try:
                if name not in self.moments:
                    self.moments[name] = Moments.zero(tokens.shape[1], tokens.device)
                self.moments[name].add(tokens)
            except (MemoryError, RuntimeError) as error:
                if number and is_memory(error):  # part of this pass is in the sums, so it must not be repeated
                    raise ScannerError(
                        "the sums of a forward pass do not fit into the memory of the device: select fewer `layers`"
                    ) from error
                raise


class _Enough(Exception):
    """Every recorded module has been used, so the rest of the forward pass is not needed."""


@dataclass(kw_only=True)
class Sums:
    """Sums over the inputs of some modules in shards of a text; modules that read the same tensor share one sum."""

    moments: dict[str, Moments]
    """By the module that represents its group."""
    shared: dict[str, str]
    """Module -> the module that represents it."""
    unusable: dict[str, str]
    """Modules whose input is not one state per token -> reason."""
    shards: int = 1
    """Number of shards in the sums, from the first shard of the text on."""
    half: dict[str, Moments] = field(default_factory=dict)
    """The part of `moments` that every other sequence contributes, the first included; empty unless it was asked for."""

    def halves(self, group: str) -> tuple[Moments, Moments] | None:
        """Return the sums over both halves of the sequences; None if one of them has no token, or they were not asked for."""
        one, total = self.half.get(group), self.moments[group]
        if one is None or not 0 < one.count < total.count:
            return None
        other = Moments(count=total.count - one.count, first=total.first - one.first, second=total.second - one.second)
        return one, other

    def to(self, device: Any) -> Sums:
        """Return the sums on another device; only those on the CPU can be sent."""
        moved, half = (
            {name: moments.to(device) for name, moments in sums.items()} for sums in (self.moments, self.half)
        )
        return replace(self, moments=moved, half=half)

    def add(self, other: Sums) -> None:
        """Add the sums of the next shard.

        Raises:
            ScannerError: modules share an input in one shard and not in the other.
        """
        if other.shared != self.shared:
            raise ScannerError("the sets of matrices that read the same input differ between shards of the text")
        self.unusable |= other.unusable
        self.shards += other.shards
        for mine, theirs in ((self.moments, other.moments), (self.half, other.half)):
            for name, moments in theirs.items():
                if name in mine:
                    mine[name].merge(moments)
                else:
                    mine[name] = moments

    def packed(self) -> bytes:
        """Return the sums as bytes (safetensors), which `unpacked` reads."""
        tensors: dict[str, torch.Tensor] = {}
        for name, moments in self.moments.items():
            tensors |= {f"first {name}": moments.first, f"second {name}": moments.second.contiguous()}
        for name, moments in self.half.items():
            tensors |= {f"half first {name}": moments.first, f"half second {name}": moments.second.contiguous()}
        counts = {name: moments.count for name, moments in self.moments.items()}
        told = {"counts": counts, "shared": self.shared, "unusable": self.unusable, "shards": self.shards}
        told["half"] = {name: moments.count for name, moments in self.half.items()}
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
            half = {
                name: Moments(count=count, first=tensors[f"half first {name}"], second=tensors[f"half second {name}"])
                for name, count in told.get("half", {}).items()
            }
            return cls(
                moments=moments, shared=told["shared"], unusable=told["unusable"], shards=told["shards"], half=half
            )
        except (SafetensorError, ValueError, KeyError):
            return None


def accumulate(
    model: Any, text: Sequences, modules: dict[str, torch.nn.Module], batches: Batches, *, halves: bool = False
) -> Sums:
    """Run sequences through a model up to the last of the modules, and sum over the inputs of the modules, without padding.

    With `halves`, the sums over every other sequence are kept beside the sums over all of them.
    """
    recorder = Recorder(modules=modules)

    def compute(batch: Batch, indices: list[int]) -> None:
        recorder.forward(model, batch.inputs(model, decoder=True))

    half: dict[str, Moments] = {}
    if modules:
        with recorder:
            if halves:
                batches.of(model).run(text.part([*range(0, len(text.ids), 2)]), compute)
                half = {name: moments.copy() for name, moments in recorder.moments.items()}
                text = text.part([*range(1, len(text.ids), 2)])
            if text.ids:
                batches.of(model).run(text, compute)
    return Sums(moments=recorder.moments, shared=recorder.shared, unusable=recorder.unusable, half=half)
