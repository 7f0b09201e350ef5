"""A LoRA configuration for PEFT from what was measured: rank and scaling of each matrix, and where to initialize.

The rank of a matrix is the number of its singular values outside the support of the scale null: so many directions cannot be
explained by unequal rows and columns.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.matrices import FloatArray, Matrix, choose
from scanner.store import Store

KNOWN = ("query", "key", "value", "attn_out", "mlp_up", "mlp_gate", "mlp_down", "embedding", "lm_head", "other")
Part = Literal["smallest", "middle", "largest"]
Init = Literal["advised", "default"]
#: Mean p-value from which vectors count as random: 0.5 is expected, and scale leaves it at 0.5.
RANDOM = 0.4
#: Values of `init_lora_weights` that begin at these components; PEFT has none for the middle.
INITS: dict[Part, str | bool] = {"largest": "pissa", "smallest": "mica", "middle": True}

_REASONS: dict[Part, str] = {
    "smallest": "in {count} of {total} matrices vectors of the smallest singular values are nearly random: little is lost there",
    "middle": "in {count} of {total} matrices the smallest singular values carry information and those of the middle are nearly "
    "random; PEFT has no initialization there, so its default is kept",
    "largest": "in {count} of {total} matrices neither the smallest nor the middle ones are random: an adapter begins at "
    "the strongest directions",
}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which singular components an adapter should begin at: mean p-values of the smallest, the middle and the largest ones."""

    components: Part
    p_smallest: float | None
    p_middle: float | None
    p_largest: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A configuration and its explanation.

    `config` is the content of `adapter_config.json`, and `advice` says where to begin and why, for the model and for each matrix.
    """

    config: dict[str, Any]
    advice: dict[str, Any]
    left_out: tuple[str, ...]

    def files(self) -> dict[str, str]:
        """Return the texts of the files of a folder for `LoraConfig.from_pretrained`, by name."""
        found = {"adapter_config.json": self.config, "advice.json": self.advice}
        return {name: json.dumps(content, indent=2, allow_nan=False) + "\n" for name, content in found.items()}


def rank_of(outliers: int, rows: int, cols: int, *, least: int, most: int) -> int:
    """Return the rank of an adapter for a matrix with so many outliers: within `least` and `most`, and at most min(rows, cols)."""
    return min(max(outliers, least), most, rows, cols)


def means_of_parts(p: FloatArray, rank: int) -> tuple[list[float], list[float], list[float]]:
    """Return the p-values of the `rank` smallest, middle and largest components of those that have one, as lists."""
    known = p[~np.isnan(p)]
    count = min(rank, len(known))
    start = (len(known) - count) // 2
    return known[len(known) - count :].tolist(), known[start : start + count].tolist(), known[:count].tolist()


def advise(smallest: Sequence[float], middle: Sequence[float], largest: Sequence[float]) -> Advice:
    """Return where an adapter should begin, from the p-values of three parts of the spectrum.

    Components whose vectors are random hold nothing that was learned: an adapter that begins there replaces nothing. The smallest
    ones are taken if they are random (as in MiLoRA, arXiv 2406.09044, and MiCA, arXiv 2604.01694), otherwise the middle ones. If
    neither are, nothing is free, and the adapter begins at what matters most, the largest ones (PiSSA, arXiv 2404.02948).
    """
    low, mid, high = (float(np.mean(part)) if part else math.nan for part in (smallest, middle, largest))
    if low >= RANDOM:
        part: Part = "smallest"
        reason = f"the vectors of the smallest singular values are nearly random (mean p {low:.2f})"
    elif mid >= RANDOM:
        part = "middle"
        reason = (
            f"the vectors of the smallest singular values carry information (mean p {low:.2f}), those of the middle are nearly "
            f"random (mean p {mid:.2f})"
        )
    else:
        part = "largest"
        reason = "no part of the spectrum is random: begin at the strongest directions"
        if not math.isnan(mid):
            reason = f"neither the smallest (mean p {low:.2f}) nor the middle (mean p {mid:.2f}) are random: begin at the strongest"
    known = [None if math.isnan(value) else value for value in (low, mid, high)]
    return Advice(components=part, p_smallest=known[0], p_middle=known[1], p_largest=known[2], reason=reason)


def peft(
    store: Store,
    model: str,
    *,
    roles: Sequence[str] = (),
    least: int = 1,
    most: int = 64,
    alpha: float = 1.0,
    init: Init = "advised",
) -> Lora:
    """Return a LoRA configuration for PEFT.

    `target_modules` are the names of the modules, `r` is the most frequent rank and `rank_pattern` has the others. The scaling
    alpha / r is the same for all matrices. Of a fused weight, the ranks of its parts are added.

    Args:
        store: where the model was scanned, with a scale null.
        model: its name, as in `rmtscan models`.
        roles: use only these; empty: all blocks' matrices that PEFT knows, without embeddings and output head.
        least: smallest rank.
        most: largest rank.
        alpha: scaling of the adapters, `lora_alpha` / `r`.
        init: `advised` sets `init_lora_weights` by `advise`; `default` leaves PEFT's.

    Raises:
        ConfigError: an argument is not accepted.
        ScannerError: the scan has no scale null, or PEFT knows none of its matrices.
    """
    if least < 1 or most < least:
        raise ConfigError("most", f"must be at least `least`, which is at least 1: got {most} and {least}")
    if not 0.0 < alpha < math.inf:
        raise ConfigError("alpha", f"must be a positive number, got {alpha:g}")
    chosen = choose(store, model, tool="PEFT", known=KNOWN, roles=roles)
    matrices = [one for one in chosen.matrices if one.layer is not None or one.role in roles]
    if not matrices:
        raise ScannerError(f"{printable(model)} has no matrix in a block: name other `roles`")
    without = [one for one in matrices if one.outliers is None]
    if without:
        raise ScannerError(
            f"{len(without)} matrices of {printable(model)} have no scale null, for example {printable(without[0].name)}: scan it "
            "again with `scale` robust"
        )
    ranks: dict[str, int] = {}
    parts: dict[str, list[Matrix]] = {}
    for one in matrices:
        parts.setdefault(one.name, []).append(one)
    for name, of_name in parts.items():
        added = sum(rank_of(one.outliers or 0, one.rows, one.cols, least=least, most=most) for one in of_name)
        ranks[name] = min(added, most, of_name[0].cols)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    advice = _advice(matrices, ranks)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,  # PEFT fills it in when it wraps a model
        "target_modules": sorted(ranks),
        "r": usual,
        "lora_alpha": _alpha(alpha, usual),
        "rank_pattern": {name: rank for name, rank in sorted(ranks.items()) if rank != usual},
        "alpha_pattern": {name: _alpha(alpha, rank) for name, rank in sorted(ranks.items()) if rank != usual},
        "init_lora_weights": INITS[advice["model"]["components"]] if init == "advised" else True,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": False,
    }
    return Lora(config=config, advice=advice, left_out=chosen.left_out)


def _alpha(alpha: float, rank: int) -> int | float:
    found = alpha * rank
    return int(found) if found.is_integer() else found


def _advice(matrices: Sequence[Matrix], ranks: dict[str, int]) -> dict[str, Any]:
    """Return the advice for each matrix, and for the model that of most parameters: PEFT has one option for all."""
    parts: dict[Part, list[list[float]]] = {"smallest": [], "middle": [], "largest": []}
    votes: Counter[Part] = Counter()
    agree: Counter[Part] = Counter()
    each: dict[str, Any] = {}
    for one in matrices:
        found = means_of_parts(one.p, ranks[one.name])
        for part, values in zip(parts, found, strict=True):
            parts[part].append(values)
        own = advise(*found)
        votes[own.components] += one.parameters
        agree[own.components] += 1
        key = one.name if one.parts == 1 else f"{one.name} ({one.role})"
        each[key] = {"rank": ranks[one.name], "outliers": one.outliers} | asdict(own)
    chosen = max(parts, key=lambda part: votes[part])
    pooled = {part: [p for values in parts[part] for p in values] for part in parts}
    means = {part: float(np.mean(values)) if values else None for part, values in pooled.items()}
    init = INITS[chosen]
    return {
        "model": {
            "components": chosen,
            "init_lora_weights": init,
            "matrices": {part: agree[part] for part in parts},
            "p": means,
            "reason": _REASONS[chosen].format(count=agree[chosen], total=len(matrices))
            + "; mean p of the components: "
            + ", ".join(f"{part} {'-' if mean is None else f'{mean:.2f}'}" for part, mean in means.items()),
        },
        "matrices": each,
    }
