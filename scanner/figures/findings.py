"""What a scan found, in sentences: made from the answers of the named queries, each with the numbers behind it.

The functions take rows and return text; nothing here reads a store. A sentence is claimed only where its test says that chance
would not do it, and its limits are said with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import median

from scanner.checkpoint.names import printable
from scanner.figures.report_words import Finding, Row, command, counted, layer_name, listing, number, signed, where

SIGNIFICANT = 0.01
"""Of the family-wise p-value: below it, a difference is claimed."""
CLEAR = 4.0
"""In standard errors: beyond it, a difference is claimed where many are looked at."""
SAME = 0.05
"""Estimates of sigma that are within this share of one another agree."""
_NAMED = 4
_SIDES = {"u": "left (output-side)", "v": "right (input-side)"}
_FLOATS = ("F64", "F32", "F16", "BF16")


def small_end(rows: Sequence[Row], model: str) -> Finding | None:
    """Which role carries information in its smallest singular values; rows of query `small_end`, layers=false."""
    tested = [row for row in rows if row["z"] is not None]
    if not tested:
        return None
    found = [row for row in tested if row["family_p_value"] < SIGNIFICANT and row["z"] < 0]
    shown_by = command("small_end", model, "layers=false")
    if not found:
        least = min(tested, key=lambda row: row["z"])
        return Finding(
            headline="The smallest singular values look random in every role",
            detail="In the smallest tenth of the spectrum no role differs from its random control by more than chance "
            f"allows; the nearest to it is {_side(least)}.",
            query=shown_by,
        )
    found.sort(key=lambda row: (row["p"], row["z"]))
    first, others = found[0], found[1:]
    detail = (
        f"In the smallest tenth of its singular values, the {_SIDES[first['side']]} singular vectors have a mean "
        f"p-value of "
        f"{number(first['p'])}, where {_expected(first)} (z = {signed(first['z'])}, {first['vectors']:,} vectors of "
        f"{counted(first['matrices'], 'matrix', 'matrices')})."
    )
    if others:
        listed = "; ".join(_side(row) for row in others[:_NAMED])
        more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        detail += f" Also beyond chance: {listed}{more}."
    silent = _roles(tested) - _roles(found)
    if silent:
        detail += f" Not beyond chance: {listing(sorted(silent))}."
    return Finding(
        headline=f"{first['role']} carries information in its smallest singular values", detail=detail, query=shown_by
    )


def outliers(rows: Sequence[Row], model: str) -> Finding | None:
    """How many singular values lie outside the bulk, on both sides; rows of query `outlier_share`."""
    total = sum(_values(row) for row in rows)
    if not total:
        return None
    left = sum(row["left_percent"] * _values(row) for row in rows) / total
    right = sum(row["right_percent"] * _values(row) for row in rows) / total
    most_right = max(rows, key=lambda row: row["right_percent"])
    oblong = [row for row in rows if row["rows"] != row["cols"]]
    detail = f"Most above the bulk: {most_right['role']}, {most_right['right_percent']:.1f} %."
    if oblong:
        oblong_total = sum(_values(row) for row in oblong)
        share = sum(row["left_percent"] * _values(row) for row in oblong) / oblong_total
        most_left = max(oblong, key=lambda row: row["left_percent"])
        detail += (
            f" Below it can only be values of matrices that are not square: {share:.1f} % of theirs, most in "
            f"{most_left['role']}, "
            f"{most_left['left_percent']:.1f} %."
        )
    else:
        detail += " All matrices are square, so none can lie below it."
    detail += f" Of {total:,} singular values; a random matrix has none but a few next to the edges."
    headline = f"{right:.1f} % of the singular values lie above the random bulk, {left:.1f} % below it"
    return Finding(headline=headline, detail=detail, query=command("outlier_share", model))


def depth(rows: Sequence[Row], most: Sequence[Row], model: str) -> Finding | None:
    """Which layers and which matrix learned most; rows of table `matrices` and of query `most_learned`."""
    by_layer: dict[tuple[str | None, int], list[Row]] = {}
    for row in rows:
        if row["p"] is not None and row["layer"] is not None and row["rank"]:
            by_layer.setdefault((row["stack"], row["layer"]), []).append(row)
    means = []
    for place, found in by_layer.items():
        p = sum(row["p"] for row in found) / len(found)
        # Of a mean over matrices, each of which averages 2 rank vectors.
        error = sqrt(sum(1 / 24 / row["rank"] for row in found)) / len(found)
        means.append((p, (p - 0.5) / error, layer_name(*place)))
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
    (lowest_p, _, lowest), (highest_p, _, highest) = means[0], means[-1]
    if not low:
        detail = (
            f"Mean p-values over the roles reach from {number(lowest_p)} ({lowest}) to {number(highest_p)} ({highest})"
        )
        headline = "No layer as a whole is less random than chance"
        return Finding(headline=headline, detail=f"{detail}, and chance is 0.5. {single}", query=shown_by)
    listed = listing([f"{name} ({number(p)}, z = {signed(z)})" for p, z, name in low])
    detail = f"Mean p-value over the roles, least random first: {listed}; the most random is {highest} "
    detail += f"({number(highest_p)}), and chance is 0.5. {single}"
    names = listing([name.removeprefix("layer ") for _, _, name in low])
    headline = f"{'Layer' if len(low) == 1 else 'Layers'} {names} learned most"
    return Finding(headline=headline, detail=detail, query=shown_by)


def consistency(rows: Sequence[Row], model: str) -> Finding | None:
    """Which role looks the same in all blocks and which does not; rows of query `role_consistency`."""
    known = [row for row in rows if row["correlation"] is not None and row["range"] > 2 * row["noise"]]
    if len(known) < 2:
        return None
    best = max(known, key=lambda row: row["correlation"])
    widest = max(known, key=lambda row: row["highest_p"] - row["lowest_p"])
    detail = (
        f"The p-values of its {_SIDES[best['side']]} vectors run along the spectrum in one way in all "
        f"{best['blocks']} blocks: a block's "
        f"profile correlates by {best['correlation']:.2f} with the mean of the others. The blocks differ most in "
        f"{widest['role']} "
        f"({_SIDES[widest['side']]}): mean p from {number(widest['lowest_p'])} in layer {widest['lowest_layer']} to "
        f"{number(widest['highest_p'])} in layer {widest['highest_layer']}."
    )
    headline = f"{best['role']} looks most alike in all blocks, {widest['role']} least"
    if best["role"] == widest["role"]:
        headline = f"{best['role']} has one profile in all blocks, at different depths of it"
    return Finding(headline=headline, detail=detail, query=command("role_consistency", model))


def sigma(rows: Sequence[Row], model: str) -> Finding | None:
    """Whether the estimates of sigma agree; rows of table `matrices`."""
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
    if abs(std - 1) <= SAME and abs(bulk - 1) <= SAME:
        detail = f"Beside the median estimate, std is {std:.2f} and bulk {bulk:.2f} times as large (median over "
        f"{len(rows):,} matrices)."
        return Finding(headline="The estimates of σ agree", detail=detail + f" The edges come from: {kinds}.")
    furthest = max(rows, key=lambda row: abs((row["sigma_std"] or 0) / (row["sigma_median"] or 1) - 1))
    ratio = (furthest["sigma_std"] or 0) / (furthest["sigma_median"] or 1)
    detail = (
        f"Beside the median estimate, the standard deviation of the entries is {std:.2f} times as large, and the "
        f"self-consistent fit of the "
        f"bulk {bulk:.2f} times (median over {len(rows):,} matrices); they lie furthest apart in {where(furthest)}, "
        f"{ratio:.2f} times. "
        f"The edges here come from: {kinds}. A larger σ means fewer values above the bulk and more below it, so "
        f"counts of outliers are "
        f"comparable within one estimate only. The p-values of the vectors do not depend on σ."
    )
    shown_by = f"rmtscan scan REF --sigma {'bulk' if 'bulk' not in used else 'median'}"
    return Finding(
        headline="The estimates of σ disagree: the edges of the bulk are a choice",
        detail=detail,
        query=shown_by,
        warning=True,
    )


def stored_as(rows: Sequence[Row]) -> Finding | None:
    """Whether the weights were rounded before they were scanned; rows of table `matrices`."""
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[str(row["dtype"])] = kinds.get(str(row["dtype"]), 0) + 1
    rounded = {kind: count for kind, count in kinds.items() if kind.upper() not in _FLOATS}
    if not rounded:
        return None
    listed = listing([printable(kind) for kind in sorted(rounded, key=lambda kind: -rounded[kind])])
    count = sum(rounded.values())
    those = f"All {count:,}" if count == len(rows) else f"{count:,} of {len(rows):,}"
    return Finding(
        headline="These weights were quantised before they were scanned",
        detail=f"{those} matrices are stored as {listed}. Rounding adds noise of its own, which reaches the smallest "
        "singular values first; what is said of the small end holds for the weights as they are stored.",
        warning=True,
    )


def coverage(scans: Sequence[Row]) -> Finding | None:
    """Whether anything failed; rows of table `scans`."""
    failed = sum(scan["failed"] for scan in scans)
    if not failed:
        return None
    return Finding(
        headline=f"{counted(failed, 'tensor', 'tensors')} could not be analysed",
        detail="They are missing from everything that is said here; the reasons stand under coverage.",
        query="rmtscan query failures_by_reason",
        warning=True,
    )


def controls(rows: Sequence[Row], shapes: set[tuple[int, int]]) -> Finding | None:
    """Whether the random controls look random; rows of query `control_check`, shapes of the model's matrices."""
    ours = [row for row in rows if (row["rows"], row["cols"]) in shapes]
    if not ours:
        return Finding(
            headline="There are no random controls of these shapes",
            detail="Comparisons are made with the exact expectation 0.5 instead.",
            warning=True,
        )
    off = [row for row in ours if row["verdict"] != "ok"]
    if off:
        listed = listing([f"{row['rows']} × {row['cols']} {row['ensemble']}" for row in off[:_NAMED]])
        detail = f"{len(off)} of {len(ours)} controls deviate from what a random matrix must give: {listed}."
        return Finding(
            headline="Some random controls look odd", detail=detail, query="rmtscan query control_check", warning=True
        )
    values = [row[side] for row in ours for side in ("u_p", "v_p") if row[side] is not None]
    detail = (
        f"{counted(len(ours), 'random matrix', 'random matrices')} of the same shapes went through the same code: "
        f"mean p-values "
        f"between {min(values):.2f} and {max(values):.2f}, and no singular value outside its edges beyond the "
        f"natural fluctuation."
    )
    return Finding(headline="The random controls look random", detail=detail, query="rmtscan query control_check")


def _values(row: Row) -> int:
    return int(row["matrices"] * min(row["rows"], row["cols"]))


def _roles(rows: Iterable[Row]) -> set[str]:
    return {str(row["role"]) for row in rows}


def _side(row: Row) -> str:
    beside = f", control {number(row['control_p'])}" if row["control_p"] is not None else ""
    return f"{row['role']}, {_SIDES[row['side']].split()[0]} ({number(row['p'])}{beside}; z = {signed(row['z'])})"


def _expected(row: Row) -> str:
    return (
        "random vectors have 0.50" if row["control_p"] is None else f"the random control has {number(row['control_p'])}"
    )
