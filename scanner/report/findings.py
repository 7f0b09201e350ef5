"""Findings about models and pairs of models: sentences derived from the rows of named queries, with their numbers.

The functions take rows and return text; they do not read a store. A difference is stated only if its test rules out chance, and
together with its limits. What an i.i.d. null rejects "differs from i.i.d."; it is called direction only if the scale null, which
has the row and column variances of the matrix, is rejected by the same test, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import median

from scanner.checkpoint.names import printable
from scanner.report.wording import (
    Finding,
    Row,
    command,
    counted,
    layer_name,
    listing,
    number,
    parameter,
    percent,
    signed,
    where,
)

SIGNIFICANT = 0.01
"""Family-wise p-value below which a difference is stated."""
CLEAR = 4.0
"""Number of standard errors beyond which a difference among many is stated."""
RUNAWAY = 0.25
"""Ratio of the `bulk` estimate of sigma to the median one below which the fit kept a few of the values, and failed."""
SAME = 0.05
"""Relative difference up to which estimates of sigma agree."""
_NAMED = 4
_SIDES = {"u": "left (output-side)", "v": "right (input-side)"}
_KINDS = {
    "direction": "direction remains",
    "head structure": "head structure explains what scale does not",
    "scale": "scale explains all",
}
"""What a deviation can consist of by query `decompose`, and the words for it."""
_NOTHING = "nothing beyond chance"
_FLOATS = ("F64", "F32", "F16", "BF16")


def decomposition(rows: Sequence[Row], model: str) -> Finding | None:
    """Return what the deviations at both ends of the spectrum consist of; rows of query `decompose`, layers=false.

    Only roles are named whose mean p is below 0.5 beyond chance, and only as direction if the null hypotheses that explain scale
    and head structure are rejected, too.
    """
    if not rows:
        return None
    found = {
        part: {kind: [row for row in rows if row["part"] == part and _kind(row) == kind] for kind in _KINDS}
        for part in ("small end", "large end")
    }
    sentences = []
    for part, kinds in found.items():
        told = [
            f"{words} in {'; '.join(map(_nulls, sorted(kinds[kind], key=lambda row: row['p'])))}"
            for kind, words in _KINDS.items()
            if kinds[kind]
        ]
        sentences.append(
            f"{part.capitalize()}: {'. '.join([*told[:1], *(_sentence(one) for one in told[1:])]) or _NOTHING}."
        )
    small = found["small end"]
    roles = list(dict.fromkeys(row["role"] for row in sorted(small["direction"], key=lambda row: row["p"])))
    if roles:
        headline = f"Beyond scale and head structure, the small end has direction in {listing(roles)}"
    elif any(small.values()):
        headline = "Scale and head structure explain every deviation at the small end"
    else:
        headline = "At the small end, no role deviates from random vectors"
    detail = (
        "Mean p-values against independent entries → against random matrices with the same row and column variances → (where a "
        "side consists of attention heads) given the part of each head; random vectors have 0.50. "
    )
    return Finding(
        headline=headline, detail=detail + " ".join(sentences), query=command("decompose", model, "layers=false")
    )


def small_end(rows: Sequence[Row], model: str) -> Finding | None:
    """Return the role that differs most from i.i.d. in its smallest singular values; rows of query `small_end`, layers=false."""
    tested = [row for row in rows if row["z"] is not None]
    if not tested:
        return None
    found = [row for row in tested if row["family_p_value"] < SIGNIFICANT and row["z"] < 0]
    shown_by = command("small_end", model, "layers=false")
    if not found:
        least = min(tested, key=lambda row: row["z"])
        return Finding(
            headline="The smallest singular values look i.i.d. in every role",
            detail="In the smallest tenth of the spectrum, no role differs from random vectors by more than chance; "
            f"the largest deviation is {_side(least)}.",
            query=shown_by,
        )
    # Direction first: what the scale null does not explain.
    found.sort(key=lambda row: (_cause(row) != "direction", row["p"], row["z"]))
    first, others = found[0], found[1:]
    detail = (
        f"In the smallest tenth of its singular values, the {_SIDES[first['side']]} singular vectors have a mean "
        f"p-value of {number(first['p'])}, where {_expected(first)} (z = {signed(first['z'])}, {first['vectors']:,} vectors of "
        f"{counted(first['matrices'], 'matrix', 'matrices')}). {_by_scale(first)}"
    )
    if others:
        listed = "; ".join(_side(row) for row in others[:_NAMED])
        more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        detail += f" Also beyond chance: {listed}{more}."
    silent = _roles(tested) - _roles(found)
    if silent:
        detail += f" Not beyond chance: {listing(sorted(silent))}."
    what = {"direction": " by direction", "scale": " by scale"}.get(_cause(first), "")
    headline = f"{first['role']} differs from i.i.d.{what} in its smallest singular values"
    return Finding(headline=headline, detail=detail, query=shown_by)


def outliers(rows: Sequence[Row], model: str) -> Finding | None:
    """Return the share of singular values above and below the bulk; rows of query `outlier_share`."""
    total = sum(_values(row) for row in rows)
    if not total:
        return None
    left = sum(row["below_percent"] * _values(row) for row in rows) / total
    right = sum(row["above_percent"] * _values(row) for row in rows) / total
    most_right = max(rows, key=lambda row: row["above_percent"])
    oblong = [row for row in rows if row["rows"] != row["cols"]]
    detail = f"Most above the bulk: {most_right['role']}, {most_right['above_percent']:.1f} %."
    if oblong:
        oblong_total = sum(_values(row) for row in oblong)
        share = sum(row["below_percent"] * _values(row) for row in oblong) / oblong_total
        most_left = max(oblong, key=lambda row: row["below_percent"])
        detail += (
            f" Only matrices that are not square can have values below the bulk: {share:.1f} % of their values, most in "
            f"{most_left['role']}, {most_left['below_percent']:.1f} %."
        )
    else:
        detail += " All matrices are square, so no value can lie below the bulk."
    detail += f" These are shares of {total:,} singular values; a random matrix has only a few values outside, next to the edges."
    scaled = [row for row in rows if row.get("right_scale_percent") is not None]
    if len(scaled) == len(rows):
        left_scale = sum(row["left_scale_percent"] * _values(row) for row in rows) / total
        right_scale = sum(row["right_scale_percent"] * _values(row) for row in rows) / total
        detail += (
            f" By the scale null, which has the row and column variances of each matrix, {right_scale:.1f} % lie above and "
            f"{left_scale:.1f} % below: direction. Unequal scales explain the others."
        )
    headline = f"{right:.1f} % of the singular values lie above the i.i.d. bulk, {left:.1f} % below it"
    return Finding(headline=headline, detail=detail, query=command("outlier_share", model))


def depth(rows: Sequence[Row], most: Sequence[Row], model: str) -> Finding | None:
    """Return the layers and the matrix that differ most from i.i.d.; rows of table `matrices` and of query `most_learned`."""
    by_layer: dict[tuple[str | None, int], list[Row]] = {}
    for row in rows:
        if row["p"] is not None and row["layer"] is not None and row["rank"]:
            by_layer.setdefault((row["stack"], row["layer"]), []).append(row)
    means: list[tuple[float, float, str, float | None, float | None]] = []
    for place, found in by_layer.items():
        p = sum(row["p"] for row in found) / len(found)
        # Standard error of a mean over matrices, each of which averages over 2 rank vectors.
        error = sqrt(sum(1 / 24 / row["rank"] for row in found)) / len(found)
        known = [row["p_scale"] for row in found if row.get("p_scale") is not None]
        scale = sum(known) / len(known) if len(known) == len(found) else None
        means.append(
            (p, (p - 0.5) / error, layer_name(*place), scale, None if scale is None else (scale - 0.5) / error)
        )
    leader = next((row for row in most if row["p"] is not None), None)
    if len(means) < 2 or leader is None:
        return None
    means.sort()
    shown_by = command("layer_trend", model)
    single = (
        f"The least random single matrix is {where(leader)}: {number(leader['p'])} (left {number(leader['u_p'])}, right "
        f"{number(leader['v_p'])}; z = {signed(leader['z'])})."
    )
    low = [mean for mean in means[: max(1, min(3, len(means) // 2))] if mean[1] < -CLEAR]
    (lowest_p, _, lowest, *_), (highest_p, _, highest, *_) = means[0], means[-1]
    if not low:
        detail = (
            f"Mean p-values over the roles range from {number(lowest_p)} ({lowest}) to {number(highest_p)} ({highest})"
        )
        headline = "No layer as a whole differs from i.i.d. by more than chance"
        return Finding(headline=headline, detail=f"{detail}; chance is 0.5. {single}", query=shown_by)
    listed = listing(
        [
            f"{name} ({number(p)}, z = {signed(z)}"
            + (")" if scale is None else f"; given scales {number(scale)}, z = {signed(z_scale)})")
            for p, z, name, scale, z_scale in low
        ]
    )
    detail = f"Mean p-value over the roles, least random first: {listed}; the most random is {highest} "
    detail += f"({number(highest_p)}). Chance is 0.5. {single}"
    names = listing([name.removeprefix("layer ") for _, _, name, *_ in low])
    what = ""
    if all(z_scale is not None for *_, z_scale in low):
        # The variances of rows and columns are known: what they explain is scale.
        left = [z_scale is not None and z_scale < -CLEAR for *_, z_scale in low]
        within = all(z_scale is not None and abs(z_scale) <= CLEAR for *_, z_scale in low)
        what = ", by direction" if all(left) else ", by scale" if within else ""
    headline = f"{'Layer' if len(low) == 1 else 'Layers'} {names} {'differs' if len(low) == 1 else 'differ'} most from i.i.d.{what}"
    return Finding(headline=headline, detail=detail, query=shown_by)


def consistency(rows: Sequence[Row], model: str) -> Finding | None:
    """Return the roles that differ least and most between blocks; rows of query `role_consistency`."""
    known = [row for row in rows if row["correlation"] is not None and row["range"] > 2 * row["noise"]]
    if len(known) < 2:
        return None
    best = max(known, key=lambda row: row["correlation"])
    widest = max(known, key=lambda row: row["highest_p"] - row["lowest_p"])
    detail = (
        f"The p-values of its {_SIDES[best['side']]} vectors have a similar profile along the spectrum in all "
        f"{best['blocks']} blocks: the profile of a block has a correlation of {best['correlation']:.2f} with the mean of "
        f"the others. The blocks differ most in the {_SIDES[widest['side']]} vectors of {widest['role']}: mean p from "
        f"{number(widest['lowest_p'])} in layer {widest['lowest_layer']} to {number(widest['highest_p'])} in layer "
        f"{widest['highest_layer']}."
    )
    headline = f"{best['role']} is most similar across blocks, {widest['role']} least"
    if best["role"] == widest["role"]:
        headline = f"{best['role']} has the same profile in all blocks, at different levels"
    return Finding(headline=headline, detail=detail, query=command("role_consistency", model))


def sigma(rows: Sequence[Row], model: str) -> Finding | None:
    """Compare the estimates of sigma; rows of table `matrices`."""
    used = sorted({str(row["sigma_kind"]) for row in rows if row["sigma_kind"]})
    ratios = {
        kind: [
            row[f"sigma_{kind}"] / row["sigma_median"] for row in rows if row[f"sigma_{kind}"] and row["sigma_median"]
        ]
        for kind in ("std", "bulk")
    }
    if not used or not all(ratios.values()):
        return None
    std, bulk = (median(ratios[kind]) for kind in ("std", "bulk"))
    kinds = listing(used)
    failed = [row for row in rows if _bulk_failed(row)]
    told = ""
    if failed:
        shown = listing([where(row) for row in failed[:_NAMED]]) + (", ..." if len(failed) > _NAMED else "")
        told = (
            f" The fit of the bulk failed in {counted(len(failed), 'matrix', 'matrices')} ({shown}): it kept few values, and its σ "
            "means nothing there."
        )
    if abs(std - 1) <= SAME and abs(bulk - 1) <= SAME:
        detail = f"Relative to the median estimate, std is {std:.2f} and bulk {bulk:.2f} times as large (median over "
        f"{len(rows):,} matrices)."
        headline = (
            "The estimates of σ agree"
            if not failed
            else "The estimates of σ agree, where the fit of the bulk has not failed"
        )
        return Finding(headline=headline, detail=f"{detail} The edges come from: {kinds}.{told}", warning=bool(failed))
    furthest = max(rows, key=lambda row: abs((row["sigma_std"] or 0) / (row["sigma_median"] or 1) - 1))
    ratio = (furthest["sigma_std"] or 0) / (furthest["sigma_median"] or 1)
    detail = (
        f"Relative to the median estimate, the standard deviation of the entries is {std:.2f} times as large, and the "
        f"self-consistent fit of the bulk {bulk:.2f} times (median over {len(rows):,} matrices). The difference is largest in "
        f"{where(furthest)}, {ratio:.2f} times. The edges here come from: {kinds}. A larger σ means fewer values above the "
        f"bulk and more below it, so counts of outliers are comparable within one estimate only. The p-values of the "
        f"vectors do not depend on σ.{told}"
    )
    shown_by = f"rmtscan scan REF --sigma {'bulk' if 'bulk' not in used and not failed else 'median'}"
    return Finding(
        headline="The estimates of σ disagree: the edges of the bulk depend on the choice",
        detail=detail,
        query=shown_by,
        warning=True,
    )


def stored_as(rows: Sequence[Row]) -> Finding | None:
    """Report whether the scanned weights were quantized; rows of table `matrices`."""
    kinds: dict[str, int] = {}
    for row in rows:
        if row["dtype"] is not None:  # an earlier version did not store it
            kinds[str(row["dtype"])] = kinds.get(str(row["dtype"]), 0) + 1
    rounded = {kind: count for kind, count in kinds.items() if kind.upper() not in _FLOATS}
    if not rounded:
        return None
    listed = listing([printable(kind) for kind in sorted(rounded, key=lambda kind: -rounded[kind])])
    count = sum(rounded.values())
    those = f"All {count:,}" if count == len(rows) else f"{count:,} of {len(rows):,}"
    return Finding(
        headline="The scanned weights are quantized",
        detail=f"{those} matrices are stored as {listed}. Rounding adds noise, which affects the smallest singular values "
        "first; statements about the small end hold for the weights as they are stored.",
        warning=True,
    )


def coverage(scans: Sequence[Row]) -> Finding | None:
    """Report failed tensors; rows of table `scans`."""
    failed = sum(scan["failed"] for scan in scans)
    if not failed:
        return None
    return Finding(
        headline=f"{counted(failed, 'tensor', 'tensors')} could not be analyzed",
        detail="They are missing from all results on this page; see Coverage for the reasons.",
        query="rmtscan query failures_by_reason",
        warning=True,
    )


def controls(rows: Sequence[Row], shapes: set[tuple[int, int]]) -> Finding | None:
    """Report whether the random controls look random; rows of query `control_check`, shapes of the model's matrices."""
    ours = [row for row in rows if (row["rows"], row["cols"]) in shapes]
    if not ours:
        return Finding(
            headline="There are no random controls of these shapes",
            detail="Results are compared with the exact expectation 0.5 instead.",
            warning=True,
        )
    off = [row for row in ours if row["verdict"] != "ok"]
    if off:
        listed = listing([f"{row['rows']} × {row['cols']} {row['ensemble']}" for row in off[:_NAMED]])
        detail = f"{len(off)} of {len(ours)} controls deviate from the expectation for a random matrix: {listed}."
        return Finding(
            headline="Some random controls do not look random",
            detail=detail,
            query="rmtscan query control_check",
            warning=True,
        )
    values = [row[side] for row in ours for side in ("u_p", "v_p") if row[side] is not None]
    detail = (
        f"{counted(len(ours), 'random matrix', 'random matrices')} of the same shapes, analyzed with the same code, have "
        f"mean p-values between {min(values):.2f} and {max(values):.2f}, and no singular value outside the edges beyond "
        f"natural fluctuations."
    )
    return Finding(headline="The random controls look random", detail=detail, query="rmtscan query control_check")


# ---- pairs of models


def change(rows: Sequence[Row], shown_by: str = "") -> Finding | None:
    """Return how far fine-tuning moved the weights, and where most; rows of table `pairs`."""
    known = [row for row in rows if row["relative_change"] is not None]
    if not known:
        return None
    middle = median(row["relative_change"] for row in known)
    most = max(known, key=lambda row: row["relative_change"])
    same = [row for row in rows if row["identical"]]
    detail = (
        f"‖Δ‖/‖W‖ is {percent(middle)} in the median of {counted(len(known), 'matrix', 'matrices')}, and "
        f"{percent(most['relative_change'])} at most, in {where(most)}."
    )
    if same:
        listed = listing([where(row) for row in same[:_NAMED]])
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        detail += f" Exactly unchanged: {listed}{more}."
    else:
        detail += " No matrix is exactly unchanged."
    if len(same) == len(rows):
        return Finding(headline="No weight matrix differs", detail=detail, query=shown_by)
    return Finding(headline=f"Fine-tuning moved the weights by {percent(middle)}", detail=detail, query=shown_by)


def turned(rows: Sequence[Row], base: str, tuned: str) -> Finding | None:
    """Return the decile in which the singular vectors turned most; rows of query `pair_by_decile`."""
    deciles: dict[int, list[tuple[int, float]]] = {}
    inside = all(row["u_subspace_turned"] is not None and row["v_subspace_turned"] is not None for row in rows)
    columns = ("u_subspace_turned", "v_subspace_turned") if inside else ("u_turned", "v_turned")
    for row in rows:
        values = [row[column] for column in columns if row[column] is not None]
        if values:
            deciles.setdefault(row["decile"], []).append((row["matrices"] or 1, sum(values) / len(values)))
    means = {one: sum(n * value for n, value in found) / sum(n for n, _ in found) for one, found in deciles.items()}
    if len(means) < 2 or not max(means.values()) > 0:
        return None
    most, least = max(means, key=lambda one: means[one]), min(means, key=lambda one: means[one])
    what = (
        "the share of a decile's subspace that is no longer in it"
        if inside
        else "1 - overlap of a vector with its best base vector"
    )
    detail = (
        f"Decile {most} of ten ({_decile(most)}): {what} is {means[most]:.3g} on average over roles and both sides; "
        f"least in decile {least} ({_decile(least)}): {means[least]:.3g}. "
    )
    detail += (
        "By decile, smallest singular values first: " + ", ".join(f"{means[one]:.2g}" for one in sorted(means)) + "."
    )
    names = {1: "of the smallest singular values", 10: "of the largest singular values"}
    headline = f"The singular vectors {names.get(most, f'in decile {most}')} turned most"
    return Finding(
        headline=headline,
        detail=detail,
        query=f"rmtscan query pair_by_decile{parameter('base', base)}{parameter('tuned', tuned)}",
    )


def gained(rows: Sequence[Row], shown_by: str = "") -> Finding | None:
    """Return the outliers gained and lost, and intruder dimensions; rows of table `pairs`."""
    known = [row for row in rows if row["outliers_right_base"] is not None and row["outliers_right_tuned"] is not None]
    if not known:
        return None
    right, left = (
        [sum(row[f"outliers_{side}_{which}"] or 0 for row in known) for which in ("base", "tuned")]
        for side in ("right", "left")
    )
    intruding = [row for row in rows if row["intruders"]]
    count = sum(row["intruders"] for row in intruding)
    detail = (
        f"{right[0]:,} singular values lie above the bulk before and {right[1]:,} after fine-tuning; {left[0]:,} and "
        f"{left[1]:,} lie below it. An intruder is one of the ten leading left singular vectors that resembles no base "
        "vector (overlap below 0.5)"
    )
    if count:
        most = max(intruding, key=lambda row: row["intruders"])
        detail += f"; most in {where(most)}: {most['intruders']}."
    headline = f"{count or 'No'} intruder {'dimension' if count == 1 else 'dimensions'}"
    return Finding(
        headline=f"{headline}, and {_more(right[1] - right[0])} above the bulk",
        detail=detail if count else detail + ".",
        query=shown_by,
    )


def _bulk_failed(row: Row) -> bool:
    """Whether the fit of the bulk ran away; earlier versions did not store it."""
    told = row.get("bulk_failed")
    if told is not None:
        return bool(told)
    return bool(row["sigma_bulk"] and row["sigma_bulk"] < RUNAWAY * (row["sigma_median"] or 0))


def _values(row: Row) -> int:
    return int(row["matrices"] * min(row["rows"], row["cols"]))


def _roles(rows: Iterable[Row]) -> set[str]:
    return {str(row["role"]) for row in rows}


def _cause(row: Row) -> str:
    """Return what a deviation from i.i.d. is by the scale null: `direction`, `scale`, `opposite`, or `unknown` without a test.

    Opposite: the vectors are closer to its Gaussian than random ones, so that it is rejected, but not by what the deviation is.
    """
    if row.get("family_p_value_scale") is None:
        return "unknown"
    if row["family_p_value_scale"] >= SIGNIFICANT:
        return "scale"
    return "direction" if row["z_scale"] < 0 else "opposite"


def _by_scale(row: Row) -> str:
    cause = _cause(row)
    if cause == "unknown":
        return "Without a scale null in the scan, scale and direction are not told apart."
    meaning = {
        "direction": "the deviation is direction, not scale alone",
        "scale": "unequal scales explain the deviation",
        "opposite": "more than chance, so that unequal scales alone do not explain the vectors",
    }[cause]
    return (
        "Given the row and column variances of the matrices it is "
        f"{number(row['p_scale'])} (z = {signed(row['z_scale'])}): {meaning}."
    )


def _side(row: Row) -> str:
    beside = f", control {number(row['control_p'])}" if row["control_p"] is not None else ""
    what = ""
    if _cause(row) != "unknown":
        what = f"; given scales {number(row['p_scale'])}, z = {signed(row['z_scale'])}"
    return f"{row['role']}, {_SIDES[row['side']].split()[0]} ({number(row['p'])}{beside}; z = {signed(row['z'])}{what})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kind(row: Row) -> str | None:
    """Return the last hypothesis that leaves vectors less Gaussian than random ones; None if the first one does not.

    Query `decompose` calls means above 0.5 a direction, too. They follow from orthogonality to other vectors.
    """
    if row["z"] >= -CLEAR:
        return None
    return "direction" if row["z_direction"] < -CLEAR else "head structure" if row["z_scale"] < -CLEAR else "scale"


def _nulls(row: Row) -> str:
    values = [row["p"], row["p_scale"], *([] if row["p_within"] is None else [row["p_within"]])]
    return f"{row['role']}, {_SIDES[row['side']].split()[0]} ({' → '.join(number(p) for p in values)})"


def _expected(row: Row) -> str:
    control = "" if row["control_p"] is None else f" (their random control has {number(row['control_p'])})"
    return f"random vectors have 0.50{control}"


def _more(count: int) -> str:
    if not count:
        return "as many outliers as before"
    return f"{counted(abs(count), 'outlier', 'outliers')} {'more' if count > 0 else 'fewer'}"


def _decile(decile: int) -> str:
    return {1: "the smallest singular values", 10: "the largest"}.get(
        decile, "1 holds the smallest singular values, 10 the largest"
    )
