"""Which parameters to train, for Spectrum and axolotl: the part of each type of layer that has learned most.

Spectrum (arXiv 2406.06623) ranks the modules of one type, such as `mlp.down_proj`, by a signal-to-noise ratio and unfreezes the
first ones. Here they can be ranked by what the scan measured as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.matrices import Chosen, FloatArray, Matrix, choose
from scanner.store import Store

Measure = Literal["snr", "outliers", "p", "p_scale"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

KNOWN = (
    "query",
    "key",
    "value",
    "attn_out",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "embedding",
    "lm_head",
    "router",
    "other",
)
#: Spectrum unfreezes them always.
ALWAYS = ("^lm_head.weight$", "^model.embed_tokens.weight$")
_VOCABULARY = ("embedding", "lm_head")
_PLAIN = re.compile(r"[A-Za-z_^][A-Za-z0-9_.$^-]*")


def spectrum_snr(s: FloatArray, rows: int, cols: int) -> float:
    """Return Spectrum's signal-to-noise ratio of a matrix with singular values s (r,), largest first.

    sigma = IQR(s) / 1.349, threshold = sigma (1 + sqrt(gamma)) with gamma = min(rows, cols) / max(rows, cols), and
    SNR = (sum of s above / sum of s below) / s_max, where an empty sum below counts as 1. The threshold is the upper edge of the
    Marchenko-Pastur law for entries of variance sigma^2 / max(rows, cols); but the interquartile range of singular values is no
    estimate of that sigma, which is a defect of Spectrum's and is kept. Source: `calculate_snr_for_layer` in its spectrum.py.

    Returns:
        The ratio; infinite if all values below the threshold are zero, NaN for a matrix of zeros.
    """
    if not len(s) or not s[0] > 0.0:
        return math.nan
    upper, lower = np.quantile(s, 0.75), np.quantile(s, 0.25)
    threshold = (upper - lower) / 1.349 * (1.0 + math.sqrt(min(rows, cols) / max(rows, cols)))
    above = s > threshold
    noise = float(s[~above].sum()) if not above.all() else 1.0
    signal = float(s[above].sum())
    return (signal / noise if noise else math.inf) / float(s[0])


def measured(one: Matrix, by: Measure) -> float:
    """Return the number that modules are ranked by, the largest first; NaN if the scan does not have it.

    snr: Spectrum's ratio. outliers: share of the singular values outside the support of the scale null. p and p_scale: 0.5 minus
    the mean p-value of all singular vectors, under i.i.d. entries and under the scale null.
    """
    if by == "snr":
        return spectrum_snr(one.s, one.rows, one.cols)
    if by == "outliers":
        return math.nan if one.outliers is None else one.outliers / len(one.s)
    value = one.mean_p if by == "p" else one.mean_p_scale
    return math.nan if value is None else 0.5 - value


def layer_type(name: str) -> str:
    """Return Spectrum's type of a module: what follows the first number in its name, or the whole name if there is none."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[first + 1 :]) if first != -1 else name


def top_of_types(values: Mapping[str, float], top: float) -> dict[str, list[str]]:
    """Return the modules of each type with the largest values: the first `top` percent of a type, rounded down; NaN comes last."""
    types: dict[str, list[str]] = {}
    for name in values:
        types.setdefault(layer_type(name), []).append(name)

    def order(name: str) -> float:
        return -math.inf if math.isnan(values[name]) else values[name]

    return {
        kind: sorted(types[kind], key=order, reverse=True)[: int(len(types[kind]) * top / 100.0)]
        for kind in sorted(types)
    }


def spectrum(
    store: Store, model: str, *, by: Measure = "snr", top: float = 50.0, roles: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Return `unfrozen_parameters` as the YAML file that Spectrum writes, and one line for what is left out.

    Its entries are names of modules: a parameter is trained if its name contains one. Output head and embedding are always there.

    Args:
        store: where the model was scanned.
        model: its name, as in `rmtscan models`.
        by: `snr`, `outliers`, `p` or `p_scale`, as in `measured`.
        top: percent of the modules of each type.
        roles: use only these; empty: all that Spectrum knows.

    Raises:
        ConfigError: an argument is not accepted.
        ScannerError: the scan does not have what modules are ranked by, or the tool knows none of its matrices.
    """
    chosen, names = _selected(store, model, "Spectrum", by, top, roles)
    return _yaml({kind: names[kind] for kind in names}), chosen.left_out


def axolotl(
    store: Store, model: str, *, by: Measure = "snr", top: float = 50.0, roles: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Return `unfrozen_parameters` for a configuration of axolotl: patterns of whole names of parameters.

    axolotl matches a pattern at the beginning of a name and escapes its periods; the names end with `$`, so that none matches
    another parameter. Arguments and errors are those of `spectrum`.
    """
    chosen, names = _selected(store, model, "axolotl", by, top, roles)
    return _yaml({kind: [f"^{_pattern(name)}.weight$" for name in of_kind] for kind, of_kind in names.items()}), (
        chosen.left_out
    )


def snr_results(store: Store, model: str, *, roles: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
    """Return the SNR of every module as the JSON file that Spectrum and the plugin of axolotl read.

    {name of the module: {"snr": number, "type": type of the layer}}. Modules without a finite ratio are left out, because JSON has
    no infinity. Arguments and errors are those of `spectrum`.
    """
    chosen = choose(store, model, tool="Spectrum", known=KNOWN, roles=roles, fused=False)
    values = {one.name: measured(one, "snr") for one in chosen.matrices}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    missing = len(values) - len(finite)
    left = (*chosen.left_out, *([f"{missing} left out: their ratio is not finite"] if missing else []))
    found = {name: {"snr": value, "type": layer_type(name)} for name, value in finite.items()}
    return json.dumps(found, indent=4, allow_nan=False) + "\n", left


def _selected(
    store: Store, model: str, tool: str, by: Measure, top: float, roles: Sequence[str]
) -> tuple[Chosen, dict[str, list[str]]]:
    if by not in MEASURES:
        raise ConfigError("by", f"must be one of {', '.join(MEASURES)}, got {by!r}")
    if not 0.0 < top <= 100.0:
        raise ConfigError("top", f"must be between 0 and 100 percent, got {top:g}")
    chosen = choose(store, model, tool=tool, known=KNOWN, roles=roles, fused=False)
    values = {one.name: measured(one, by) for one in chosen.matrices if one.role not in _VOCABULARY}
    if values and all(math.isnan(value) for value in values.values()):
        without = "has no scale null" if by in ("outliers", "p_scale") else f"has no {by}"
        raise ScannerError(
            f"the scan of {printable(model)} {without}: scan it again, or choose another `by`, such as snr"
        )
    found = top_of_types(values, top)
    if values and not any(found.values()):
        most = max(len(names) for names in top_of_types(values, 100.0).values())
        raise ConfigError(
            "top", f"{top:g} selects no module: a type has at most {most}, so it must be at least {100.0 / most:.3g}"
        )
    return chosen, found


def _pattern(name: str) -> str:
    """Escape what means something in a pattern, except periods, which axolotl escapes itself."""
    return re.sub(r"[\\+*?()\[\]{}|^$]", r"\\\g<0>", name)


def _yaml(names: Mapping[str, Sequence[str]]) -> str:
    """Write the file as Spectrum does, the entries of each type after a comment. Unusual names of a checkpoint are quoted."""
    lines = ["unfrozen_parameters:", *(f"- {name}" for name in ALWAYS)]
    for kind, of_kind in names.items():
        lines.append(f"# {printable(kind)} layers")
        lines += [f"- {name if _PLAIN.fullmatch(name) else json.dumps(name)}" for name in of_kind]
    return "\n".join(lines) + "\n"
