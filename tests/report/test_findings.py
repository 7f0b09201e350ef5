"""Findings state what the rows contain, and nothing that chance explains."""

from __future__ import annotations

from typing import Any

import pytest

from scanner.report import findings
from scanner.report.wording import in_shell, listing, number, percent, signed, where


def small(role: str, side: str, p: float, z: float, family: float, control: float | None = 0.5) -> dict[str, Any]:
    counts = {"matrices": 6, "vectors": 228, "rows": 4, "cols": 4}
    row: dict[str, Any] = {"role": role, "side": side, "p": p, "z": z, "family_p_value": family, "control_p": control}
    return row | counts


def matrix(layer: int | None, p: float, *, role: str = "query", **more: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stack": None,
        "layer": layer,
        "role": role,
        "module": None,
        "expert": None,
        "tensor": "t",
        "rank": 384,
    }
    row |= {"p": p, "u_p": p, "v_p": p, "z": (p - 0.5) * 96, "dtype": "F32", "sigma_kind": "median"}
    return row | {"sigma_median": 1.0, "sigma_std": 1.0, "sigma_bulk": 1.0} | more


def decomposed(role: str, part: str, side: str, p: tuple[float, ...], z: tuple[float, float, float]) -> dict[str, Any]:
    values = {"p": p[0], "p_scale": p[1], "p_within": p[2] if len(p) > 2 else None}
    return {"role": role, "part": part, "side": side, "z": z[0], "z_scale": z[1], "z_direction": z[2]} | values


def test_deviations_are_called_direction_only_if_scale_and_heads_do_not_explain_them() -> None:
    rows = [
        decomposed("value", "small end", "v", (0.33, 0.5), (-8.8, -0.1, -0.1)),
        decomposed("query", "small end", "u", (0.33, 0.4, 0.49), (-8.8, -5.5, -0.3)),
        decomposed("mlp_up", "small end", "v", (0.13, 0.32), (-19.0, -9.4, -9.4)),
        decomposed("attn_out", "small end", "u", (0.11, 0.21), (-20.0, -15.0, -15.0)),
        decomposed("mlp_up", "small end", "u", (0.45, 0.45), (-2.0, -2.0, -2.0)),
        decomposed("attn_out", "large end", "u", (0.2, 0.66), (-16.0, 8.7, 8.7)),
        decomposed("key", "large end", "v", (0.7, 0.7), (9.0, 9.0, 9.0)),
        decomposed("mlp_up", "middle", "v", (0.1, 0.1), (-90.0, -90.0, -90.0)),
    ]
    found = findings.decomposition(rows, "m")
    assert found is not None
    assert found.headline == "Beyond scale and head structure, the small end has direction in attn_out and mlp_up"
    assert (
        "Small end: direction remains in attn_out, left (0.11 → 0.21); mlp_up, right (0.13 → 0.32). head structure explains what "
        "scale does not in query, left (0.33 → 0.40 → 0.49). scale explains all in value, right (0.33 → 0.50)."
    ).casefold() in found.detail.casefold()
    assert found.detail.endswith("Large end: scale explains all in attn_out, left (0.20 → 0.66).")
    assert found.query == "rmtscan query decompose -p model=m -p layers=false"
    explained = findings.decomposition(rows[:2], "m")
    assert explained is not None
    assert explained.headline == "Scale and head structure explain every deviation at the small end"
    assert explained.detail.endswith("Large end: nothing beyond chance.")
    silent = findings.decomposition(rows[4:5], "m")
    assert silent is not None
    assert silent.headline == "At the small end, no role deviates from random vectors"
    assert findings.decomposition([], "m") is None


def test_the_small_end_names_the_lowest_role_its_control_and_the_silent_ones() -> None:
    rows = [
        small("query", "u", 0.33, -9.0, 1e-9, 0.47),
        small("mlp_up", "v", 0.132, -8.5, 1e-15, 0.458),
        small("value", "v", 0.45, -1.0, 1.0),
    ]
    found = findings.small_end(rows, "a b")
    assert found is not None
    assert found.headline == "mlp_up differs from i.i.d. in its smallest singular values"
    assert "Without a scale null in the scan, scale and direction are not told apart." in found.detail
    assert (
        "right (input-side) singular vectors have a mean p-value of 0.13, where random vectors have 0.50 "
        "(their random control has 0.46)" in found.detail
    )
    assert "z = −8.5, 228 vectors of 6 matrices" in found.detail
    assert "Also beyond chance: query, left (0.33, control 0.47; z = −9.0)." in found.detail
    assert found.detail.endswith("Not beyond chance: value.")
    assert found.query == "rmtscan query small_end -p 'model=a b' -p layers=false"


def test_no_information_at_the_small_end_is_said_too() -> None:
    found = findings.small_end([small("query", "u", 0.4, -2.0, 0.3, None), small("key", "v", 0.7, 9.0, 1e-9)], "m")
    assert found is not None
    assert "look i.i.d. in every role" in found.headline, "a p above chance is no information"
    assert "query, left (0.40; z = −2.0)" in found.detail
    assert findings.small_end([small("query", "u", 0.4, -2.0, 0.3) | {"z": None}], "m") is None


def with_scale(p: float, z: float, family: float) -> dict[str, Any]:
    return {"p_scale": p, "z_scale": z, "family_p_value_scale": family}


def test_what_the_scale_null_explains_is_not_called_direction() -> None:
    explained = small("value", "v", 0.1, -12.0, 1e-20) | with_scale(0.49, -0.5, 1.0)
    left = small("attn_out", "u", 0.2, -10.0, 1e-20) | with_scale(0.25, -8.0, 1e-12)
    above = small("key", "u", 0.3, -9.0, 1e-15) | with_scale(0.7, 8.0, 1e-12)
    one = findings.small_end([explained], "m")
    assert one is not None
    assert one.headline == "value differs from i.i.d. by scale in its smallest singular values"
    assert "it is 0.49 (z = −0.5): unequal scales explain the deviation." in one.detail
    both = findings.small_end([explained, left], "m")
    assert both is not None
    assert both.headline == "attn_out differs from i.i.d. by direction in its smallest singular values"
    assert "it is 0.25 (z = −8.0): the deviation is direction, not scale alone." in both.detail
    assert "value, right (0.10, control 0.50; z = −12.0; given scales 0.49, z = −0.5)" in both.detail
    over = findings.small_end([above], "m")
    assert over is not None
    assert over.headline == "key differs from i.i.d. in its smallest singular values"
    assert "it is 0.70 (z = +8.0): more than chance, so that unequal scales alone" in over.detail


def test_layers_differ_by_direction_only_if_the_scale_null_is_rejected() -> None:
    def headline(first: float | None, second: float | None) -> str:
        rows = [
            matrix(0, 0.49, p_scale=0.5),
            matrix(1, 0.30, p_scale=first),
            matrix(2, 0.52, p_scale=0.5),
            matrix(3, 0.35, p_scale=second),
        ]
        found = findings.depth(rows, [matrix(1, 0.30)], "m")
        assert found is not None
        return found.headline

    assert headline(0.35, 0.4) == "Layers 1 and 3 differ most from i.i.d., by direction"
    assert headline(0.49, 0.5) == "Layers 1 and 3 differ most from i.i.d., by scale"
    assert headline(0.35, 0.5) == "Layers 1 and 3 differ most from i.i.d."
    assert headline(0.35, None) == "Layers 1 and 3 differ most from i.i.d."


def test_outliers_say_what_the_scale_null_leaves() -> None:
    row = {"role": "query", "rows": 10, "cols": 10, "matrices": 2, "below_percent": 0.0, "above_percent": 20.0}
    found = findings.outliers([row | {"left_scale_percent": 0.0, "right_scale_percent": 5.0}], "m")
    assert found is not None
    assert "5.0 % lie above and 0.0 % below: direction. Unequal scales explain the others." in found.detail
    plain = findings.outliers([row | {"left_scale_percent": None, "right_scale_percent": None}], "m")
    assert plain is not None
    assert "scale null" not in plain.detail


def test_outliers_are_shares_of_all_values_and_left_ones_of_oblong_matrices() -> None:
    square = {"role": "query", "rows": 10, "cols": 10, "matrices": 2, "below_percent": 0.0, "above_percent": 20.0}
    oblong = {"role": "mlp_up", "rows": 40, "cols": 10, "matrices": 2, "below_percent": 8.0, "above_percent": 10.0}
    found = findings.outliers([square, oblong], "m")
    assert found is not None
    assert found.headline.startswith("15.0 % of the singular values lie above the i.i.d. bulk, 4.0 % below")
    assert "8.0 % of their values, most in mlp_up, 8.0 %. These are shares of 40 singular values" in found.detail
    only = findings.outliers([square], "m")
    assert only is not None
    assert "All matrices are square" in only.detail
    assert findings.outliers([], "m") is None


def test_layers_are_named_only_where_chance_would_not_do_it() -> None:
    rows = [matrix(0, 0.49), matrix(1, 0.30), matrix(2, 0.52), matrix(3, 0.35), matrix(None, 0.1)]
    found = findings.depth(rows, [matrix(1, 0.30)], "m")
    assert found is not None
    assert found.headline == "Layers 1 and 3 differ most from i.i.d."
    assert "layer 1 (0.30, z = −19.2)" in found.detail
    assert "most random is layer 2 (0.52)" in found.detail
    random = findings.depth([matrix(0, 0.49), matrix(1, 0.51)], [matrix(0, 0.49)], "m")
    assert random is not None
    assert random.headline == "No layer as a whole differs from i.i.d. by more than chance"
    assert findings.depth([matrix(0, 0.1)], [matrix(0, 0.1)], "m") is None, "one layer is not more than others"


def test_estimates_of_sigma_agree_or_are_warned_about() -> None:
    agree = findings.sigma([matrix(0, 0.5), matrix(1, 0.5)], "m")
    assert agree is not None
    assert not agree.warning
    apart = findings.sigma(
        [matrix(0, 0.5, sigma_std=1.5, sigma_bulk=0.7), matrix(1, 0.5, sigma_std=2.5, sigma_bulk=0.7)], "m"
    )
    assert apart is not None
    assert apart.warning
    assert "2.00 times as large" in apart.detail
    assert "query of layer 1, 2.50 times" in apart.detail
    assert findings.sigma([matrix(0, 0.5, sigma_bulk=None)], "m") is None


def test_a_bulk_fit_that_ran_away_is_named() -> None:
    rows = [matrix(0, 0.5), matrix(1, 0.5, role="key", sigma_bulk=0.17), *(matrix(n, 0.5) for n in range(2, 5))]
    found = findings.sigma(rows, "m")
    assert found is not None
    assert found.warning
    assert "The fit of the bulk failed in 1 matrix (key of layer 1): it kept few values" in found.detail
    assert "failed" in found.headline


def test_a_stored_failure_of_the_bulk_fit_counts_whatever_its_sigma() -> None:
    rows = [matrix(0, 0.5, bulk_failed=False, sigma_bulk=0.1), matrix(1, 0.5, bulk_failed=True, sigma_bulk=0.9)]
    found = findings.sigma(rows, "m")
    assert found is not None
    assert "The fit of the bulk failed in 1 matrix (query of layer 1)" in found.detail


def test_quantized_weights_failures_and_odd_controls_are_warned_about() -> None:
    assert findings.stored_as([matrix(0, 0.5)]) is None
    rounded = findings.stored_as([matrix(0, 0.5, dtype="Q4_1")])
    assert rounded is not None
    assert rounded.warning
    assert "All 1 matrices are stored as Q4_1" in rounded.detail
    assert findings.coverage([{"failed": 0}]) is None
    failed = findings.coverage([{"failed": 1}, {"failed": 1}])
    assert failed is not None
    assert failed.headline == "2 tensors could not be analyzed"
    check = {"rows": 4, "cols": 4, "ensemble": "gaussian", "verdict": "ok", "u_p": 0.5, "v_p": 0.49}
    fine, odd, none = (
        findings.controls([check | {"verdict": verdict}], {shape})
        for verdict, shape in (("ok", (4, 4)), ("off", (4, 4)), ("ok", (8, 8)))
    )
    assert fine is not None
    assert odd is not None
    assert none is not None
    assert [fine.warning, odd.warning, none.warning] == [False, True, True]
    assert "4 × 4 gaussian" in odd.detail


def changed(layer: int | None, relative: float | None, *, identical: bool = False, **more: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stack": None,
        "layer": layer,
        "role": "mlp_down",
        "module": None,
        "expert": None,
        "tensor": "pooler.dense",
    }
    row |= {"relative_change": relative, "identical": identical, "intruders": 0}
    row |= {f"outliers_{side}_{when}": 2 for side in ("left", "right") for when in ("base", "tuned")}
    return row | more


def test_a_pair_tells_its_median_its_largest_change_and_what_is_unchanged() -> None:
    rows = [changed(5, 0.0251), changed(1, 0.0132), changed(None, 0.0, identical=True)]
    found = findings.change(rows)
    assert found is not None
    assert found.headline == "Fine-tuning moved the weights by 1.32 %"
    assert "2.51 % at most, in mlp_down of layer 5. Exactly unchanged: mlp_down (pooler.dense)." in found.detail
    same = findings.change([changed(0, 0.0, identical=True)])
    assert same is not None
    assert same.headline == "No weight matrix differs"
    assert findings.change([changed(0, None)]) is None


@pytest.mark.parametrize(
    ("tuned", "headline"), [(2, "as many outliers as before"), (3, "1 outlier more"), (0, "2 outliers fewer")]
)
def test_outliers_gained_and_lost(tuned: int, headline: str) -> None:
    found = findings.gained([changed(0, 0.1, outliers_right_tuned=tuned)])
    assert found is not None
    assert found.headline == f"No intruder dimensions, and {headline} above the bulk"
    intruding = findings.gained([changed(3, 0.1, intruders=2)])
    assert intruding is not None
    assert "most in mlp_down of layer 3: 2." in intruding.detail


def test_the_decile_that_turned_most_weighs_roles_by_their_matrices() -> None:
    rows = [
        {
            "decile": decile,
            "matrices": n,
            "u_subspace_turned": u,
            "v_subspace_turned": u,
            "u_turned": 0.9,
            "v_turned": 0.9,
        }
        for n, values in ((3, (0.4, 0.1)), (1, (0.0, 0.5)))
        for decile, u in zip((1, 10), values, strict=True)
    ]
    found = findings.turned(rows, "b", "t")
    assert found is not None
    assert found.headline == "The singular vectors of the smallest singular values turned most"
    assert "no longer in it is 0.3 on average" in found.detail
    unknown = findings.turned([row | {"u_subspace_turned": None} for row in rows], "b", "t")
    assert unknown is not None
    assert "1 - overlap of a vector" in unknown.detail
    assert findings.turned([], "b", "t") is None


def test_words() -> None:
    assert [number(0.13), number(0.0004), number(None)] == ["0.13", "0.0004", "unknown"]
    assert [percent(0.0132), percent(0.0)] == ["1.32 %", "0 %"]
    assert [signed(-16.44), signed(None)] == ["−16.4", "unknown"]
    assert [listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"]), listing([])] == [
        "a",
        "a and b",
        "a, b and c",
        "",
    ]
    assert where(matrix(3, 0.5, expert=7, module="cross_attention")) == "query (cross attention) of layer 3, expert 7"
    assert where(matrix(None, 0.5, role="other", tensor="x\u202ey")) == "other (x\\u202ey)"
    assert in_shell("it's; rm") == "'it'\"'\"'s; rm'"
