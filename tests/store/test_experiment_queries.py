"""Queries about activations and ablations, compared with numbers computed here."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from scanner.store import Store

from .rows import NOON, Matrix, add_scan, table


def add_run(store: Store, run_id: str, kind: str, *, model: str = "org/model", hours: int = 0) -> None:
    row = {
        "run_id": run_id,
        "kind": kind,
        "model": model,
        "revision": "r1",
        "finished_at": NOON.replace(hour=12 + hours),
    }
    store.write_rows("experiments", run_id, table("experiments", [row]), method={})


def add_overlaps(
    store: Store, run_id: str, overlaps: Sequence[float], *, model: str = "org/model", **more: object
) -> None:
    rows = [
        {
            "run_id": run_id,
            "model": model,
            "tensor": "t",
            "layer": 0,
            "role": "query",
            "rows": 300,
            "cols": 200,
            "k": k,
            "singular_value": 10.0 - k,
            "region": "right" if k < 2 else "bulk",
            "overlap": value,
            "match": k,
            "eigenvalue": 1.0 + k,
            "peak": 0.2,
            "centred": True,
            "tokens": 99,
        }
        | more
        for k, value in enumerate(overlaps)
    ]
    store.write_rows("overlaps", f"{run_id}-{more.get('tensor', 't')}", table("overlaps", rows), method={})


def test_overlaps_are_averaged_by_rank_and_by_region_beside_the_band(store: Store) -> None:
    add_run(store, "old", "activations")
    add_overlaps(store, "old", [0.1] * 4)
    add_run(store, "new", "activations", hours=1)
    add_overlaps(store, "new", [0.9, 0.7, 0.2, 0.1])
    add_overlaps(store, "new", [0.5, 0.3, 0.4, 0.1], tensor="u", layer=1)
    band = norm.isf(-np.expm1(np.log([0.00135, 0.5, 0.99865]) / 200) / 2) / math.sqrt(200)
    by_rank = store.query("overlap_by_role").to_pylist()
    assert [row["k"] for row in by_rank] == [0, 1, 2, 3]
    assert [(row["matrices"], row["runs"]) for row in by_rank] == [(2, 1)] * 4
    np.testing.assert_allclose([row["overlap"] for row in by_rank], [0.7, 0.5, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose([by_rank[0][f"random_{name}"] for name in ("low", "middle", "high")], band, rtol=1e-8)
    by_region = store.query("overlap_vs_region").to_pylist()
    assert [(row["region"], row["vectors"]) for row in by_region] == [("bulk", 4), ("above", 4)]
    np.testing.assert_allclose([row["overlap"] for row in by_region], [0.2, 0.6], rtol=1e-6)
    assert band[2] == pytest.approx(0.318, abs=0.001)
    assert [row["above"] for row in by_region] == [0.25, 0.75]
    assert store.query("overlap_vs_region", run="old").to_pylist()[0]["overlap"] == pytest.approx(0.1)
    assert store.query("overlap_by_role", centred=False).num_rows == 0
    assert store.query("overlap_by_role", role="key").num_rows == 0


def test_a_run_of_some_roles_or_layers_hides_nothing_of_an_earlier_one(store: Store) -> None:
    add_run(store, "whole", "activations")
    add_overlaps(store, "whole", [0.1])
    add_overlaps(store, "whole", [0.2], tensor="u", role="key")
    add_run(store, "part", "activations", hours=1)
    add_overlaps(store, "part", [0.6], tensor="u", role="key")
    found = {row["role"]: row["overlap"] for row in store.query("overlap_by_role").to_pylist()}
    assert found == {"query": pytest.approx(0.1), "key": pytest.approx(0.6)}
    add_overlaps(store, "part", [0.6], tensor="v", layer=1)
    [mixed] = store.query("overlap_vs_region", role="query").to_pylist()
    assert (mixed["vectors"], mixed["runs"], mixed["overlap"]) == (2, 2, pytest.approx(0.35))
    found = {row["role"]: row["overlap"] for row in store.query("overlap_by_role", run="whole").to_pylist()}
    assert found == {"query": pytest.approx(0.1), "key": pytest.approx(0.2)}
    assert len(store.query("overlap_by_role", run="part").to_pylist()) == 2


def test_two_revisions_of_a_model_are_never_averaged(store: Store) -> None:
    add_run(store, "whole", "activations")
    add_overlaps(store, "whole", [0.1], revision="r1")
    add_overlaps(store, "whole", [0.2], revision="r1", tensor="u", layer=1)
    add_run(store, "later", "activations", hours=1)
    add_overlaps(store, "later", [0.6], revision="r2")
    (row,) = store.query("overlap_by_role").to_pylist()
    assert (row["matrices"], row["overlap"]) == (1, pytest.approx(0.6))


def test_the_band_of_narrow_matrices_is_right_too(store: Store) -> None:
    add_overlaps(store, "run", [0.5], cols=8)  # its run has not finished: there is no row of experiments
    row = store.query("overlap_by_role").to_pylist()[0]
    expected = norm.isf(-np.expm1(np.log([0.00135, 0.5, 0.99865]) / 8) / 2) / math.sqrt(8)
    np.testing.assert_allclose([row[f"random_{name}"] for name in ("low", "middle", "high")], expected, rtol=1e-8)


def test_importances_are_shares_of_each_matrix(store: Store) -> None:
    rng = np.random.default_rng(1)
    add_run(store, "run", "activations")
    shares = []
    for number in range(2):
        importance, s = rng.random(30) * 10.0**number, np.sort(rng.random(30))[::-1]
        rows = [
            {
                "run_id": "run",
                "model": "m",
                "tensor": f"t{number}",
                "layer": number,
                "role": "key",
                "rows": 30,
                "cols": 40,
            }
            | {"k": k, "singular_value": s[k], "region": "bulk", "importance": importance[k], "centred": True}
            for k in range(30)
        ]
        store.write_rows("overlaps", f"run-{number}", table("overlaps", rows), method={})
        tenths = [slice(27 - 3 * d, 30 - 3 * d) for d in range(10)]  # decile 1 has the smallest
        shares.append([(sum(s[t] ** 2) / sum(s**2), sum(importance[t]) / sum(importance)) for t in tenths])
    found = store.query("activation_importance").to_pylist()
    assert [(row["decile"], row["matrices"], row["vectors"]) for row in found] == [(d, 2, 6) for d in range(1, 11)]
    expected = 100 * np.mean(shares, axis=0)
    np.testing.assert_allclose([[row["energy_percent"], row["importance_percent"]] for row in found], expected)
    np.testing.assert_allclose([row["ratio"] for row in found], expected[:, 1] / expected[:, 0])


def test_halves_are_correlated_over_the_vectors_of_a_role(store: Store) -> None:
    add_run(store, "run", "activations")
    rng = np.random.default_rng(2)
    first = rng.random(12)
    second = first + 0.2 * rng.random(12)
    rows = [
        {"run_id": "run", "model": "m", "tensor": "t", "layer": 0, "role": "key", "rows": 300, "cols": 200, "tokens": 9}
        | {"k": k, "singular_value": 1.0, "region": "bulk", "centred": True, "overlap": first[k]}
        | {"overlap_even": first[k], "overlap_odd": second[k]}
        for k in range(12)
    ]
    store.write_rows("overlaps", "run-0", table("overlaps", rows), method={})
    [row] = store.query("overlap_reliability").to_pylist()
    r = np.corrcoef(first, second)[0, 1]
    assert row["correlation"] == pytest.approx(r, rel=1e-5)
    assert row["reliability"] == pytest.approx(2 * r / (1 + r), rel=1e-5)
    assert row["difference"] == pytest.approx(np.mean(np.abs(first - second)), rel=1e-5)
    high = norm.isf(-np.expm1(np.log(0.99865) / 200) / 2) / math.sqrt(200)
    assert row["above_both"] == pytest.approx(np.mean((first > high) & (second > high)))
    assert row["above_one"] == pytest.approx(np.mean((first > high) != (second > high)))


def test_overlaps_by_direction_are_told_from_those_of_localization(store: Store) -> None:
    add_run(store, "run", "activations")
    add_overlaps(store, "run", [0.9, 0.9], tensor="directed", signs_p=1 / 40, signs_bound=1e-8, signs_median=0.2)
    add_overlaps(store, "run", [0.9, 0.9], tensor="localized", signs_p=0.8, signs_bound=1.0, signs_median=0.95)
    add_overlaps(store, "run", [0.9, 0.9], tensor="unknown")
    [row] = store.query("overlap_signs").to_pylist()
    assert (row["region"], row["vectors"], row["above"], row["directed"], row["small"]) == ("above", 4, 1.0, 0.5, 0.5)
    assert (row["p"], row["signs_median"]) == (pytest.approx(0.4125), pytest.approx(0.575))


def add_point(store: Store, name: str, *, run_id: str = "run", **values: object) -> None:
    row = {
        "run_id": run_id,
        "model": "org/model",
        "revision": "r1",
        "roles": "query",
        "layers": "0-1",
        "removed": 10,
        "fraction": 0.1,
        "metric": "perplexity",
        "baseline": 20.0,
        "value": 20.0 + float(values.get("delta", 0.0)),  # type: ignore[arg-type]
        "stderr": 0.5,
    } | values
    store.write_rows("ablations", f"{run_id}-{name}", table("ablations", [row]), method={})


def test_a_curve_has_its_random_sets_of_the_same_size_beside_it(store: Store) -> None:
    add_run(store, "run", "ablation")
    add_run(store, "other", "lazy-learning")
    add_point(store, "base", set="none", removed=0, roles="", delta=0.0)
    for decile in (10, 2, 1):
        add_point(store, f"d{decile}", set=f"decile:{decile}", delta=float(decile), removed=11 if decile == 1 else 10)
    add_point(store, "r1", set="random:1", delta=3.0)
    add_point(store, "r2", set="random:2", delta=5.0)
    add_point(store, "r3", set="random:1", delta=7.0, removed=12)
    add_point(store, "x", run_id="other", set="decile:1", delta=9.0)
    found = store.query("ablation_curve").to_pylist()
    assert [(row["set"], row["delta"], row["random_delta"], row["random_sets"]) for row in found] == [
        ("decile:1", 1.0, None, None),
        ("decile:2", 2.0, 4.0, 2),
        ("decile:10", 10.0, 4.0, 2),
        ("random:1", 7.0, 7.0, 1),  # beside nothing: it stands for itself
    ]
    assert store.query("ablation_curve", metric="kl").num_rows == 0
    assert store.query("ablation_curve", run="other").num_rows == 0


def test_damage_is_correlated_with_what_the_scan_says_of_a_decile(store: Store) -> None:
    rng = np.random.default_rng(0)
    damage = rng.permutation(10).astype(float)
    p = rng.random((2, 20))
    matrices = [
        Matrix(
            tensor=f"m{layer}",
            layer=layer,
            rows=20,
            cols=20,
            singular_values=list(range(20, 0, -1)),
            u_p=[0.5] * 20,
            v_p=list(p[layer]),
        )
        for layer in (0, 1)
    ]
    strangers = [Matrix(tensor="k", role="key", layer=0, rows=20, cols=20, singular_values=[1.0] * 20)]
    strangers.append(Matrix(tensor="far", layer=2, rows=20, cols=20, singular_values=[1.0] * 20))
    add_scan(store, "scan", [*matrices, *strangers])
    add_run(store, "run", "ablation")
    for decile in range(1, 11):
        add_point(store, f"d{decile}", set=f"decile:{decile}", delta=damage[decile - 1], removed=4)
    row = store.query("ablation_vs_pvalue").to_pylist()[0]
    by_decile = [((p[:, 20 - 2 * d : 22 - 2 * d] + 0.5) / 2).mean() for d in range(1, 11)]
    assert row["p_correlation"] == pytest.approx(spearmanr(damage, by_decile).statistic)
    assert row["decile_correlation"] == pytest.approx(spearmanr(damage, range(1, 11)).statistic)
    assert (row["worst"], row["second"]) == (int(np.argmax(damage)) + 1, int(np.argsort(-damage)[1]) + 1)
    assert (row["damage_1"], row["damage_middle"]) == (damage[0], damage[3:7].mean())
    add_point(store, "d10", set="decile:10", delta=3.0, roles="value")
    assert store.query("ablation_vs_pvalue").num_rows == 0  # nine deciles are no curve


def test_damage_in_a_stack_is_compared_with_the_p_values_of_that_stack(store: Store) -> None:
    rng = np.random.default_rng(1)
    p = {stack: rng.random(10) for stack in ("encoder", "decoder")}
    add_scan(
        store,
        "scan",
        [
            Matrix(
                tensor=f"{stack}.m",
                stack=stack,
                rows=10,
                cols=10,
                singular_values=list(range(10, 0, -1)),
                u_p=[0.5] * 10,
                v_p=list(p[stack]),
            )
            for stack in p
        ],
    )
    add_run(store, "run", "ablation")
    damage = rng.permutation(10).astype(float)
    for decile in range(1, 11):
        for layers in ("encoder:0-1", "decoder:0", "encoder:0 decoder:0"):
            name = f"{layers.replace(' ', '-').replace(':', '-')}-{decile}"
            add_point(
                store,
                name,
                set=f"decile:{decile}",
                layers=layers,
                delta=damage[decile - 1],
                removed=len(layers.split()),
            )
    found = {row["layers"]: row["p_correlation"] for row in store.query("ablation_vs_pvalue").to_pylist()}
    for layers, means in (
        ("encoder:0-1", p["encoder"]),
        ("decoder:0", p["decoder"]),
        ("encoder:0 decoder:0", (p["encoder"] + p["decoder"]) / 2),
    ):
        assert found[layers] == pytest.approx(spearmanr(damage, means[::-1]).statistic), layers


def curve(store: Store, *, removed: int = 1, **more: object) -> None:
    """Ten deciles of `query` in block 0; removing the smallest changes nothing."""
    add_run(store, "run", "ablation")
    for decile in range(1, 11):
        add_point(store, f"d{decile}", set=f"decile:{decile}", layers="0", delta=decile - 1.0, removed=removed, **more)


def test_zeros_have_no_p_that_damage_could_be_compared_with(store: Store) -> None:
    values = [float(10 - k) if k < 9 else 0.0 for k in range(10)]
    p: list[float | None] = [0.05 * (k + 1) if k < 9 else None for k in range(10)]
    add_scan(store, "scan", [Matrix(tensor="m", rows=10, cols=10, singular_values=values, u_p=p, v_p=p)])
    curve(store)
    [row] = store.query("ablation_vs_pvalue").to_pylist()
    assert (row["p_correlation"], row["outlier_correlation"]) == (None, None)  # nor has a bulk alone outliers
    assert row["decile_correlation"] == pytest.approx(1.0)


def test_a_scan_of_a_part_of_what_was_changed_says_nothing(store: Store) -> None:
    add_scan(store, "scan", [Matrix(tensor="m", rows=10, cols=10, singular_values=[*range(10, 0, -1)])])
    curve(store, removed=2)
    assert store.query("ablation_vs_pvalue").num_rows == 0
    second = Matrix(tensor="n", rows=10, cols=10, singular_values=[*range(10, 0, -1)])
    add_scan(store, "rest", [second])
    assert store.query("ablation_vs_pvalue").num_rows == 1


def test_points_of_a_model_that_was_renamed_go_by_its_newest_name(store: Store) -> None:
    curve(store, finished_at=NOON)
    add_point(store, "d10", set="decile:10", layers="0", delta=5.0, model="org/new", finished_at=NOON.replace(hour=13))
    found = store.query("ablation_curve").to_pylist()
    assert [row["model"] for row in found] == ["org/new"] * 10
    assert store.query("ablation_curve", model="org/model").num_rows == 0
    add_scan(
        store, "scan", [Matrix(tensor="m", rows=10, cols=10, singular_values=[*range(10, 0, -1)])], model="org/new"
    )
    assert store.query("ablation_vs_pvalue").num_rows == 0  # the tenth took ten values out, not one
    add_point(
        store,
        "d10",
        set="decile:10",
        layers="0",
        delta=5.0,
        model="org/new",
        removed=1,
        finished_at=NOON.replace(hour=13),
    )
    assert [row["model"] for row in store.query("ablation_vs_pvalue").to_pylist()] == ["org/new"]


def test_pruning_puts_three_ways_side_by_side(store: Store) -> None:
    add_run(store, "run", "ablation")
    for percent, removed in ((10, 10), (20, 20)):
        add_point(store, f"s{percent}", set=f"smallest:{percent}", removed=removed, delta=1.0 * percent, stderr=0.1)
        add_point(store, f"m{percent}", set=f"most-random:{percent}", removed=removed, delta=0.5 * percent, stderr=0.2)
        add_point(store, f"r{percent}", set="random:1", removed=removed, delta=2.0 * percent, stderr=0.3)
        add_point(store, f"q{percent}", set="random:2", removed=removed, delta=4.0 * percent, stderr=0.4)
    found = store.query("guided_pruning").to_pylist()
    assert [(row["percent"], row["smallest"], row["most_random"], row["random"]) for row in found] == [
        (10, 10.0, 5.0, 30.0),
        (20, 20.0, 10.0, 60.0),
    ]
    assert found[0]["random_stderr"] == pytest.approx(0.35)  # not less: both were measured on the same windows
    assert (found[0]["smallest_stderr"], found[0]["most_random_stderr"]) == (0.1, 0.2)
