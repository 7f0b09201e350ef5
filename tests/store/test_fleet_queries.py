"""Named queries about models and fleets, compared with numbers computed by hand or with numpy."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from scanner.errors import QueryError
from scanner.store import Store
from scanner.store.queries import find_query

from .rows import NOON, Matrix, add_scan, control, scan_values, table


def rows(answer: pa.Table, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in answer.select(list(columns)).to_pylist()]


def measured(tensor: str, layer: int | None, role: str, p: float | tuple[float, float], **more: object) -> Matrix:
    """A matrix with these mean p-values, one for both sides or (u, v); `more` are columns of `matrices`, or fields."""
    own = {name: more.pop(name) for name in ("rows", "cols", "head", "expert", "stack") if name in more}
    u, v = p if isinstance(p, tuple) else (p, p)
    low = min(int(str(own.get("rows", 4))), int(str(own.get("cols", 4))))
    columns = {"u_p_mean": u, "v_p_mean": v, **more}
    return Matrix(tensor=tensor, layer=layer, role=role, singular_values=[1.0] * low, more=columns, **own)  # type: ignore[arg-type]


def drawn(seed: int, tensor: str, layer: int, low: int, cols: int, **more: object) -> Matrix:
    random = np.random.default_rng(seed)
    u, v = random.uniform(size=(2, low)).tolist()
    values = np.linspace(2, 1, low).tolist()
    return Matrix(tensor=tensor, layer=layer, rows=low, cols=cols, singular_values=values, u_p=u, v_p=v, **more)  # type: ignore[arg-type]


def decile_of(values: object, decile: int) -> list[float]:
    """Decile 10 holds ranks 0 <= k < K/10, decile 1 the last ones."""
    every = list(values)  # type: ignore[call-overload]
    return [p for k, p in enumerate(every) if 10 - decile <= 10 * k / len(every) < 11 - decile and p is not None]


# ---- small_end


def test_small_end_compares_decile_1_with_controls_of_the_same_shape(store: Store) -> None:
    informative = drawn(1, "a", 0, 40, 60)
    informative.u_p = [*informative.u_p[:36], 0.001, 0.002, 0.003, None]
    experts = [drawn(2 + e, "e", 1, 20, 20, role="mlp_up", expert=e) for e in range(2)]
    add_scan(store, "one", [informative, *experts, drawn(9, "a", 0, 40, 60, head=0)])
    random = np.random.default_rng(5)
    controls = {seed: random.uniform(size=(2, 40)).tolist() for seed in range(2)}
    for seed, (u, v) in controls.items():
        store.write_control(
            control(40, 60, singular_values=[1] * 40, u_p=u, v_p=v, seed=seed), 40, 60, "gaussian", seed
        )

    expected: dict[tuple[int, str, str], tuple[Any, ...]] = {}
    for side in "uv":
        mine = decile_of(getattr(informative, f"{side}_p"), 1)
        theirs = [p for pair in controls.values() for p in decile_of(pair["uv".index(side)], 1)]
        error = math.sqrt(1 / 12 / len(mine))
        expected[0, "query", side] = (1, len(mine), np.mean(mine), np.mean(theirs), error)
        mine = [p for one in experts for p in decile_of(getattr(one, f"{side}_p"), 1)]
        expected[1, "mlp_up", side] = (2, 4, np.mean(mine), None, math.sqrt(1 / 12 / 4))
    answer = store.query("small_end").to_pylist()
    assert len(answer) == len(expected)
    assert [row["z"] for row in answer] == sorted(row["z"] for row in answer)
    for row in answer:
        matrices, vectors, p, control_p, error = expected[row["layer"], row["role"], row["side"]]
        assert (row["matrices"], row["vectors"]) == (matrices, vectors)
        assert row["p"] == pytest.approx(p, abs=1e-6)
        assert row["control_p"] == (None if control_p is None else pytest.approx(control_p, abs=1e-6))
        assert row["standard_error"] == pytest.approx(error)
        z = (p - 0.5) / error  # one draw of a control is no reference
        assert row["z"] == pytest.approx(z, abs=1e-5)
        assert row["p_value"] == pytest.approx(2 * scipy.stats.norm.sf(abs(row["z"])), rel=1e-6)
        assert row["family_p_value"] == pytest.approx(min(1, 4 * row["p_value"]))
    assert {row["matrices"] for row in store.query("small_end", heads=True).to_pylist()} == {1}


@pytest.mark.parametrize("filters", [{"role": "query"}, {"role": "mlp_up"}, {"role": "query", "layers": False}])
def test_a_filter_does_not_make_the_p_value_of_a_family_smaller(filters: dict[str, Any], store: Store) -> None:
    add_scan(
        store, "one", [drawn(1, "a", 0, 30, 30), *(drawn(n, f"b{n}", n, 30, 40, role="mlp_up") for n in range(2, 6))]
    )
    whole = {
        (row["layer"], row["role"], row["side"]): row
        for row in store.query("small_end", **{**filters, "role": None}).to_pylist()
    }
    some = store.query("small_end", **filters).to_pylist()
    assert some
    assert {row["role"] for row in some} == {filters["role"]}
    assert all(row == whole[row["layer"], row["role"], row["side"]] for row in some)


@pytest.mark.parametrize(("draw", "measured"), [(0.435, 0.336), (0.3, 0.3), (0.6, 0.5)])
def test_small_end_does_not_take_a_draw_of_a_control_for_chance(draw: float, measured: float, store: Store) -> None:
    p = [0.5] * 540 + [measured] * 60
    add_scan(store, "one", [Matrix(rows=600, cols=600, singular_values=[1.0] * 600, u_p=p, v_p=p)])
    random = [0.5] * 540 + [draw] * 60
    store.write_control(
        control(600, 600, singular_values=[1] * 600, u_p=random, v_p=random, seed=0), 600, 600, "gaussian", 0
    )
    for row in store.query("small_end").to_pylist():
        assert row["control_p"] == pytest.approx(draw, abs=1e-6)
        assert row["z"] == pytest.approx((measured - 0.5) * math.sqrt(12 * 60), abs=1e-4)


def test_small_end_s_p_value_holds_far_out(store: Store) -> None:
    for number, count in enumerate((10, 100, 1000, 4000)):
        p = [0.5] * (9 * count) + [0.25] * count
        one = Matrix(rows=10 * count, cols=10 * count, singular_values=[1.0] * len(p), u_p=p, v_p=p)
        add_scan(store, f"s{number}", [one], model=f"m{number}")
    for row in store.query("small_end").to_pylist():
        assert row["z"] == pytest.approx(-0.25 * math.sqrt(12 * row["vectors"]))
        assert row["p_value"] == pytest.approx(2 * scipy.stats.norm.sf(abs(row["z"])), rel=1e-6, abs=1e-300)


def test_small_end_can_put_all_layers_of_a_role_in_one_line(store: Store) -> None:
    layers = [drawn(layer, f"q{layer}", layer, 30, 30) for layer in range(3)]
    add_scan(store, "one", layers)
    answer = {row["side"]: row for row in store.query("small_end", layers=False).to_pylist()}
    for side in "uv":
        mine = [p for one in layers for p in decile_of(getattr(one, f"{side}_p"), 1)]
        assert (answer[side]["layer"], answer[side]["matrices"], answer[side]["vectors"]) == (None, 3, 9)
        assert answer[side]["p"] == pytest.approx(np.mean(mine), abs=1e-6)


def test_small_end_keeps_a_line_for_vectors_that_have_no_p_value(store: Store) -> None:
    p = [*[0.5] * 9, None]
    add_scan(store, "one", [Matrix(rows=10, cols=10, singular_values=[*[1.0] * 9, 0.0], u_p=p, v_p=p)])
    assert rows(store.query("small_end"), "side", "vectors", "p", "z", "p_value", "family_p_value") == [
        ("v", 0, None, None, None, None),
        ("u", 0, None, None, None, None),
    ]


# ---- most_learned, most_random


def test_most_learned_ranks_matrices_of_every_model_by_their_mean_p(store: Store) -> None:
    one = [
        measured("a", 0, "query", (0.30, 0.20), rank=4, outliers_left=1, outliers_right=2, mp_ks=0.1),
        measured("b", 1, "key", (0.10, 0.20), rank=3),
        measured("c", 2, "value", 0.5),
        measured("a", 0, "query", 0.01, head=0),
        measured("e", 0, "mlp_up", 0.2, expert=1, rows=4, cols=8),
    ]
    add_scan(store, "one", one, model="m1")
    add_scan(store, "two", [measured("x", 0, "query", 0.4)], model="m2")
    answer = store.query("most_learned")
    assert rows(answer, "model", "place", "tensor", "expert", "rows", "cols") == [
        ("m1", 1, "b", None, 4, 4),
        ("m1", 2, "e", 1, 4, 8),
        ("m1", 3, "a", None, 4, 4),
        ("m1", 4, "c", None, 4, 4),
        ("m2", 1, "x", None, 4, 4),
    ]
    first, third = answer.to_pylist()[0], answer.to_pylist()[2]
    # The mean of 2 * 3 uniform p-values has standard deviation sqrt(1 / 12 / 6).
    assert (first["p"], first["z"]) == (pytest.approx(0.15), pytest.approx(-0.35 / math.sqrt(1 / 12 / 6)))
    assert [third[name] for name in ("u_p", "v_p", "p", "outlier_percent", "mp_ks")] == [0.3, 0.2, 0.25, 75.0, 0.1]
    assert rows(store.query("most_learned", top=1), "model", "tensor") == [("m1", "b"), ("m2", "x")]
    assert rows(store.query("most_learned", role="value"), "place", "tensor") == [(1, "c")]
    assert rows(store.query("most_learned", heads=True), "head", "p") == [(0, 0.01)]


def test_most_random_ranks_by_the_distance_from_one_half(store: Store) -> None:
    add_scan(
        store,
        "one",
        [
            measured("far", 0, "query", 0.3, mp_ks=0.1),
            measured("above", 1, "query", 0.75, mp_ks=0.1),
            measured("spiked", 2, "query", 0.5, mp_ks=0.3, outliers_right=2),
            measured("random", 3, "query", 0.5, mp_ks=0.1, outliers_right=1),
            measured("wide", 4, "mlp_up", 0.375, rows=4, cols=16),
        ],
    )
    entries = {"random": 16, "spiked": 16, "wide": 64, "far": 16, "above": 16}
    answer = rows(store.query("most_random"), "place", "tensor", "outlier_percent", "parameters_percent")
    assert [line[1] for line in answer] == list(entries)
    assert [line[0] for line in answer] == [1, 2, 3, 4, 5]
    assert [line[2] for line in answer] == [25.0, 50.0, 0.0, 0.0, 0.0]
    assert [line[3] for line in answer] == pytest.approx((100 * np.cumsum(list(entries.values())) / 128).tolist())
    few = store.query("most_random", max_outlier_percent=25, top=2)
    assert rows(few, "place", "tensor", "parameters_percent") == [(1, "random", 12.5), (2, "wide", 62.5)]


# ---- role_consistency


def test_role_consistency_measures_how_the_profiles_of_the_blocks_agree(store: Store) -> None:
    matrices = [drawn(layer, f"q{layer}", layer, 30, 50, role="query") for layer in range(4)]
    experts = [drawn(10 + e, "e", e // 2, 20, 20, role="mlp_up", expert=e) for e in range(4)]
    add_scan(store, "one", [*matrices, *experts, drawn(20, "alone", 0, 20, 20, role="key")])
    answer = {(row["role"], row["side"]): row for row in store.query("role_consistency").to_pylist()}
    assert list(answer) == [("query", "v"), ("query", "u"), ("mlp_up", "v"), ("mlp_up", "u")]
    for (role, side), row in answer.items():
        blocks = [[one] for one in matrices] if role == "query" else [experts[:2], experts[2:]]
        profiles = np.array(
            [
                [np.mean([p for one in block for p in decile_of(getattr(one, f"{side}_p"), d)]) for d in range(1, 11)]
                for block in blocks
            ]
        )
        means = profiles.mean(axis=1)
        vectors = sum(len(decile_of(one.u_p, 1)) for one in blocks[0])
        others = [np.delete(profiles, i, axis=0).mean(axis=0) for i in range(len(profiles))]
        correlations = [np.corrcoef(own, other)[0, 1] for own, other in zip(profiles, others, strict=True)]
        expected = {
            "blocks": len(blocks),
            "p": means.mean(),
            "p_std": means.std(ddof=1),
            "lowest_p": means.min(),
            "lowest_layer": means.argmin(),
            "highest_p": means.max(),
            "highest_layer": means.argmax(),
            "range": np.ptp(profiles.mean(axis=0)),
            "spread": math.sqrt(profiles.var(axis=0, ddof=1).mean()),
            "noise": math.sqrt(1 / 12 / vectors),
            "correlation": np.mean(correlations),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), abs=1e-6), name


def test_flat_profiles_have_no_correlation(store: Store) -> None:
    flat = [Matrix(tensor=f"q{n}", layer=n, rows=10, cols=10, singular_values=[1.0] * 10) for n in range(2)]
    add_scan(store, "one", flat)
    assert rows(store.query("role_consistency"), "side", "p", "range", "spread", "correlation") == [
        ("v", 0.25, 0.0, 0.0, None),
        ("u", 0.5, 0.0, 0.0, None),
    ]


# ---- model_roles, model_compare, checkpoint_roles, family_trend


def test_model_roles_puts_models_under_one_another_by_role(store: Store) -> None:
    ranks = {"stable_rank": 1.0, "effective_rank": 2.0, "mp_ks": 0.2}
    add_scan(
        store,
        "one",
        [
            measured("a", 0, "query", (0.2, 0.4), outliers_left=1, outliers_right=2, **ranks),
            measured("b", 1, "query", (0.4, 0.6), rows=2, cols=8, outliers_right=1, **(ranks | {"mp_ks": 0.4})),
            measured("h", 1, "query", 0.9, head=0),
        ],
        model="m1",
    )
    add_scan(store, "two", [measured("a", 0, "query", 0.2), measured("k", 0, "key", 0.3)], model="m2")
    add_scan(store, "three", [measured("a", 0, "query", 0.6)], model="m3")
    answer = store.query("model_roles")
    assert rows(answer, "role", "model", "matrices") == [
        ("query", "m1", 2),
        ("query", "m2", 1),
        ("query", "m3", 1),
        ("key", "m2", 1),
    ]
    first = answer.to_pylist()[0]
    assert first == {
        "role": "query",
        "model": "m1",
        "matrices": 2,
        "shapes": "2x8, 4x4",
        "parameters": 32,
        "p": pytest.approx(0.4),
        "p_difference": pytest.approx(0.4 - (0.4 + 0.2 + 0.6) / 3),
        "u_p": pytest.approx(0.3),
        "v_p": pytest.approx(0.5),
        "below_percent": pytest.approx(100 / 6),
        "above_percent": pytest.approx(50),
        "mp_ks": pytest.approx(0.3),
        "stable_rank_percent": pytest.approx((25 + 50) / 2),
        "effective_rank_percent": pytest.approx((50 + 100) / 2),
    }
    two = store.query("model_roles", a="m1", b="m3", role="query")
    assert rows(two, "model", "p_difference") == [("m1", pytest.approx(-0.1)), ("m3", pytest.approx(0.1))]
    assert rows(store.query("model_roles", b="m3"), "model") == [("m3",)]
    assert rows(store.query("model_roles", heads=True), "model", "p") == [("m1", 0.9)]


def test_model_compare_has_one_row_a_model_and_says_where_it_differs(store: Store) -> None:
    measures = {"mp_ks": 0.2, "stable_rank": 1.0}
    add_scan(
        store,
        "one",
        [
            measured("a", 0, "query", (0.2, 0.4), outliers_left=1, outliers_right=2, **measures),
            measured("b", 1, "query", (0.4, 0.6), rows=2, cols=8, outliers_right=1, **(measures | {"mp_ks": 0.4})),
            measured("l", None, "lm_head", 0.7, **measures),
            measured("h", 1, "query", 0.9, head=0),
        ],
        model="m1",
    )
    add_scan(store, "two", [measured("a", 0, "query", 0.2), measured("k", 0, "key", 0.3)], model="m2")
    add_scan(store, "three", [measured("a", 0, "query", 0.6), measured("k", 0, "key", 0.2)], model="m3")
    near = pytest.approx
    columns = ("model", "matrices", "overall", "query", "key", "value", "other", "differs_in", "differs_by")
    assert rows(store.query("model_compare"), *columns) == [
        ("m2", 2, near(0.25), near(0.2), near(0.3), None, None, "query", near(0.2 - (0.4 + 0.6) / 2)),
        ("m3", 2, near(0.4), near(0.6), near(0.2), None, None, "query", near(0.6 - (0.4 + 0.2) / 2)),
        ("m1", 3, near((0.3 + 0.5 + 0.7) / 3), near(0.4), None, None, near(0.7), "query", near(0.0)),
    ]
    two = store.query("model_compare", a="m1", b="m3")
    assert rows(two, "model", "differs_in", "differs_by") == [("m3", "query", near(0.2)), ("m1", "query", near(-0.2))]
    [alone] = store.query("model_compare", a="m3").to_pylist()
    assert (alone["model"], alone["differs_in"], alone["differs_by"]) == ("m3", None, None)
    shares = rows(store.query("model_compare", a="m1", measure="above_percent"), "overall", "query", "other")
    assert shares == [(near(100 * 3 / (4 + 2 + 4)), near(100 * 3 / (4 + 2)), near(0.0))]
    assert rows(store.query("model_compare", a="m1", measure="mp_ks"), "query") == [(near(0.3),)]
    assert rows(store.query("model_compare", heads=True), "model", "overall") == [("m1", near(0.9))]
    with pytest.raises(QueryError, match="measure must be one of p, u_p, v_p"):
        store.query("model_compare", measure="q")


def test_models_that_differ_equally_in_several_roles_are_said_to_differ_in_the_first(store: Store) -> None:
    """Threads add in any order, so without an order of roles the answer was another one each time."""
    roles = ("mlp_down", "key", "value", "query")
    for name, p in (("a", 0.1), ("b", 0.1), ("c", 0.3)):
        add_scan(store, name, [measured(role, 0, role, p) for role in roles], model=name)
    differs = ("model", "differs_in", "differs_by")
    assert rows(store.query("model_compare", a="a", b="b"), *differs) == [("a", "query", 0.0), ("b", "query", 0.0)]
    near = pytest.approx
    assert rows(store.query("model_compare", a="a", b="c"), *differs) == [
        ("a", "query", near(-0.2)),
        ("c", "query", near(0.2)),
    ]


def test_every_measure_that_the_queries_document_is_one(store: Store) -> None:
    add_scan(store, "one", [measured("a", 0, "query", 0.2, stable_rank=1.0)], model="m")
    for name in ("model_compare", "family_trend"):
        [parameter] = [one for one in find_query(name).params if one.name == "measure"]
        documented = re.split(r",\s*|\s+(?:and|or)\s+", re.sub(r"\s*\([^)]*\)", "", parameter.help))
        for measure in documented:
            store.query(name, measure=measure)
        with pytest.raises(QueryError) as caught:
            store.query(name, measure="q")
        told = str(caught.value).removeprefix("measure must be one of ").split(", ")
        assert sorted(documented) == sorted(told)


def test_checkpoints_are_the_revisions_of_a_model_in_time(store: Store) -> None:
    def at(p: float, **more: object) -> list[Matrix]:
        return [measured("a", 0, "query", p, outliers_left=1, spectral_norm=8 * p, stable_rank=4 * p, **more)]

    add_scan(store, "s3", at(0.2), model="m", revision="step3000", hours=1)
    add_scan(store, "s1", at(0.5), model="m", revision="step1000", hours=2)
    add_scan(store, "s20", at(0.1), model="m", revision="step20000", hours=3)
    add_scan(store, "s20b", [measured("k", 0, "key", 0.3)], model="m", revision="step20000", hours=9)
    add_scan(store, "s1b", at(0.4, outliers_right=2), model="m", revision="step1000", hours=4)  # replaces s1
    add_scan(store, "x", at(0.7), model="other")
    columns = ("role", "place", "revision", "step", "matrices", "p", "p_change", "p_since_first", "below_percent")
    found = store.query("checkpoint_roles", model="m", role="query")
    near = pytest.approx
    assert rows(found, *columns) == [
        ("query", 1, "step3000", 3000, 1, 0.2, None, 0.0, 25.0),
        ("query", 2, "step1000", 1000, 1, 0.4, near(0.2), near(0.2), 25.0),
        ("query", 3, "step20000", 20000, 1, 0.1, near(-0.3), near(-0.1), 25.0),
    ]
    assert rows(found, "above_percent", "spectral_norm", "stable_rank")[1] == (50.0, near(3.2), near(1.6))
    assert [(time - NOON).total_seconds() / 3600 for time in found["finished_at"].to_pylist()] == [1, 2, 3]
    by_step = rows(store.query("checkpoint_roles", model="m", by_step=True), "role", "place", "step", "p_since_first")
    assert by_step == [
        ("query", 1, 1000, 0.0),
        ("query", 2, 3000, near(-0.2)),
        ("query", 3, 20000, near(-0.3)),
        ("key", 1, 20000, 0.0),
    ]
    assert set(rows(store.query("checkpoint_roles"), "family")) == {("m",), ("other",)}
    columns = ("place", "revision", "step", "matrices", "overall", "since_first", "query", "key", "mlp_up")
    assert rows(store.query("family_trend", model="m"), *columns) == [
        (1, "step3000", 3000, 1, near(0.2), 0.0, near(0.2), None, None),
        (2, "step1000", 1000, 1, near(0.4), near(0.2), near(0.4), None, None),
        (3, "step20000", 20000, 2, near(0.2), near(0.0), near(0.1), near(0.3), None),
    ]
    by_step = rows(store.query("family_trend", model="m", by_step=True, measure="spectral_norm"), "step", "query")
    assert by_step == [(1000, near(3.2)), (3000, near(1.6)), (20000, near(0.8))]
    assert rows(store.query("family_trend"), "family") == [("m",)] * 3 + [("other",)]


def test_checkpoints_can_be_models_with_names_of_their_own(store: Store) -> None:
    for hours, (step, p) in enumerate(((1000, 0.3), (200, 0.4))):
        one = [measured("a", 0, "query", p)]
        add_scan(store, f"s{step}", one, model=f"run/checkpoint-{step}", revision=f"r{9 - hours}", hours=hours)
    add_scan(store, "y", [measured("a", 0, "query", 0.9)], model="other/checkpoint-5")
    trend = store.query("family_trend", family="run/", by_step=True)
    assert rows(trend, "place", "step", "query", "since_first") == [
        (1, 200, pytest.approx(0.4), 0.0),
        (2, 1000, pytest.approx(0.3), pytest.approx(-0.1)),
    ]
    found = store.query("checkpoint_roles", family="run/", by_step=True)
    assert rows(found, "family", "place", "model", "step", "p_change") == [
        ("run/", 1, "run/checkpoint-200", 200, None),
        ("run/", 2, "run/checkpoint-1000", 1000, pytest.approx(-0.1)),
    ]


# ---- fleet_overview, scan_cost, failures_by_reason


def test_fleet_overview_has_one_line_a_model_whatever_was_scanned_how_often(store: Store) -> None:
    first = [
        measured("a", 0, "query", 0.2, outliers_left=1, outliers_right=1),
        measured("b", 3, "query", 0.4, outliers_left=1),
        measured("d", 3, "mlp_down", 0.6, rows=2, cols=8, outliers_right=1),
        measured("a", 0, "query", 0.01, head=0),
    ]
    add_scan(store, "one", first, model="m1", revision="0123456789abcdef", failed=["x", "y"], hours=1)
    more = [measured("e", None, "embedding", 0.5)]
    add_scan(store, "again", more, model="m1", revision="0123456789abcdef", failed=["z"], hours=3)
    add_scan(store, "old", [measured("a", 0, "query", 0.9)], model="m1", revision="older", hours=0)
    writer = store.writer("nothing", method={}, model="m2")
    writer.commit(scan_values(hours=2, architecture="Llama", parameters=7, base_model="b", seconds=3.0))
    answer = store.query("fleet_overview").to_pylist()
    assert [row["model"] for row in answer] == ["m1", "m2"]
    assert answer[0] == {
        "model": "m1",
        "revision": "0123456789ab",
        "architecture": None,
        "base_model": None,
        "parameters": None,
        "finished_at": answer[0]["finished_at"],
        "scans": 2,
        "failed": 3,
        "seconds": 3.0,
        "layers": 2,
        "matrices": 4,
        "slices": 1,
        "p": pytest.approx((0.2 + 0.4 + 0.6 + 0.5) / 4),
        "p_scale": None,
        "below_percent": pytest.approx(100 * 2 / 14),
        "above_percent": pytest.approx(100 * 2 / 14),
        "learned_role": "query",
        "learned_p": pytest.approx(0.3),
        "random_role": "mlp_down",
        "random_p": 0.6,
    }
    assert [answer[1][name] for name in ("architecture", "parameters", "base_model", "seconds", "scans")] == [
        *("Llama", 7, "b", 3.0, 1)
    ]
    assert [answer[1][name] for name in ("layers", "matrices", "slices", "p", "learned_role")] == [0, 0, 0, None, None]
    assert rows(store.query("fleet_overview", revision="older"), "model", "p") == [("m1", pytest.approx(0.9))]


def test_scan_cost_adds_up_the_seconds_of_all_scans(store: Store) -> None:
    def one(tensor: str, seconds: float, device: str, **more: object) -> Matrix:
        return measured(tensor, 0, "query", 0.5, seconds=seconds, device=device, svd_method="gram", **more)

    add_scan(store, "one", [one("a", 1.0, "cpu"), one("b", 2.0, "cpu"), one("c", 6.0, "cpu")], revision="r1", hours=1)
    add_scan(store, "two", [one("a", 1.0, "cpu"), one("w", 30.0, "cuda:0", rows=4, cols=8)], revision="r2", hours=2)
    add_scan(store, "heads", [one("a", 100.0, "cpu", head=0)], model="m2")
    columns = ("rows", "cols", "role", "device", "svd_method", "matrices", "seconds", "percent")
    answer = store.query("scan_cost")
    assert rows(answer, *columns) == [
        (4, 8, "query", "cuda:0", "gram", 1, 30.0, 75.0),
        (4, 4, "query", "cpu", "gram", 4, 10.0, 25.0),
    ]
    assert rows(answer, "median_seconds", "largest_seconds", "rate") == [
        (30.0, 30.0, pytest.approx(4 * 8 * 4 / 30 * 1e-9)),
        (1.5, 6.0, pytest.approx(4 * 4**3 / 10 * 1e-9)),
    ]
    assert rows(store.query("scan_cost", heads=True), "seconds", "percent") == [(100.0, 100.0)]


def test_failures_by_reason_counts_messages_that_differ_in_numbers_and_names_once(store: Store) -> None:
    def failing(scan_id: str, model: str, *lines: tuple[str | None, str, str, str], hours: float = 0) -> None:
        writer = store.writer(scan_id, method={}, model=model)
        for tensor, stage, error, message in lines:
            row: dict[str, object] = {
                "scan_id": scan_id,
                "model": model,
                "tensor": tensor,
                "stage": stage,
                "error": error,
            }
            writer.stage_failure(str(tensor), table("failures", [row | {"message": message}]))
        writer.commit(scan_values(revision=scan_id, hours=hours))

    nan = ("analyse", "ValueError")
    failing("old", "m1", ("a", *nan, "from an older revision"))
    failing(
        "new",
        "m1",
        ("b", *nan, "NaN in row 17"),
        ("c", *nan, "NaN in row 3"),
        ("d", "read", "OSError", "file 'x 1' ends at 1.5 MB"),
        hours=1,
    )
    failing("other", "m0", ("z", *nan, "NaN in row 5"), (None, "open", "OSError", 'no "file"'))
    answer = store.query("failures_by_reason")
    assert [tuple(row.values()) for row in answer.to_pylist()] == [
        ("analyse", "ValueError", "NaN in row #", 3, 2, "m0", "z", "NaN in row 5"),
        ("open", "OSError", "no '...'", 1, 1, "m0", None, 'no "file"'),
        ("read", "OSError", "file '...' ends at # MB", 1, 1, "m1", "d", "file 'x 1' ends at 1.5 MB"),
    ]
    assert rows(store.query("failures_by_reason", stage="read"), "example_tensor") == [("d",)]
    assert rows(store.query("failures_by_reason", model="m1"), "failures", "models") == [(2, 1), (1, 1)]
    assert rows(store.query("failures_by_reason", model="m1", revision="old"), "example_tensor") == [("a",)]


# ---- which revision


def near_one(row: dict[str, object], column: str) -> float:
    return round(float(str(row[column])), 6)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("small_end", "p", lambda marker: marker / 10),
        ("most_learned", "p", lambda marker: marker / 10),
        ("most_random", "p", lambda marker: marker / 10),
        ("role_consistency", "p", lambda marker: marker / 10),
        ("fleet_overview", "p", lambda marker: marker / 10),
    ],
)
def test_fleet_queries_show_one_revision_of_a_model_and_the_newest_of_its_matrices(
    store: Store, name: str, column: str, value: Callable[[int], float]
) -> None:
    def of(marker: int) -> list[Matrix]:
        p = [marker / 10] * 10
        shape = {"rows": 10, "cols": 10, "singular_values": [1.0] * 10}
        return [Matrix(tensor=f"q{n}", layer=n, u_p=p, v_p=p, **shape) for n in range(2)]  # type: ignore[arg-type]

    add_scan(store, "a1", of(1), model="a", revision="r1", hours=3)
    add_scan(store, "a2", of(2), model="a", revision="r2", hours=4)
    add_scan(store, "a2-again", of(3), model="a", revision="r2", hours=5)
    add_scan(store, "b", of(4), model="b", revision="r1", hours=1)

    def shown(**params: str) -> list[tuple[object, float]]:
        return sorted({(row["model"], near_one(row, column)) for row in store.query(name, **params).to_pylist()})

    assert shown() == [("a", value(3)), ("b", value(4))]
    assert shown(model="a") == [("a", value(3))]
    assert shown(model="a", revision="r1") == [("a", value(1))]
    assert shown(revision="r1") == [("a", value(1)), ("b", value(4))]
    with pytest.raises(QueryError, match="there is no model 'nobody': the store has a, b"):
        shown(model="nobody")


# ---- differences, steps


@pytest.mark.parametrize(
    "name",
    "small_end most_learned most_random role_consistency fleet_overview model_compare model_roles family_trend "
    "checkpoint_roles role_table layer_trend outliers outlier_share pvalues_by_role spectrum_by_role".split(),
)
def test_differences_are_no_models_unless_they_are_named(store: Store, name: str) -> None:
    delta = "delta:base..tuned"
    for model in ("base", "tuned", delta):
        values: dict[str, Any] = {"singular_values": [1.0] * 10, "u_p": [0.1] * 10, "v_p": [0.2] * 10}
        matrices = [Matrix(tensor=f"q{layer}", layer=layer, rows=10, cols=10, **values) for layer in range(2)]
        add_scan(store, model.replace(":", "-").replace(".", "-"), matrices, model=model)
    assert set(store.query(name)["model"].to_pylist()) == {"base", "tuned"}
    parameter = "a" if name in ("model_compare", "model_roles") else "model"
    assert set(store.query(name, **{parameter: delta})["model"].to_pylist()) == {delta}


def test_two_models_are_compared_or_none(store: Store) -> None:
    for model, p in (("m1", 0.2), ("m2", 0.4), ("m3", 0.9)):
        add_scan(store, model, [measured("a", 0, "query", p)], model=model)
    for name in ("model_compare", "model_roles"):
        for named in ({"a": "nobody", "b": "m1"}, {"a": "m1", "b": "nobody"}):
            with pytest.raises(QueryError, match="no model 'nobody'"):
                store.query(name, **named)
        assert rows(store.query(name, a="m2", b="m1"), "model") == [("m1",), ("m2",)]
    two = store.query("model_roles", a="m2", b="m1")
    assert rows(two, "model", "p_difference") == [("m1", pytest.approx(-0.1)), ("m2", pytest.approx(0.1))]
    assert rows(store.query("model_roles", a="m3"), "model", "p_difference") == [("m3", None)]


def test_steps_are_read_from_names_and_never_from_a_hash(store: Store) -> None:
    commits = ("9f86d081884c7d65", "2c26b46b68ffc68f", "0000000000000001")
    for hours, revision in enumerate(commits):
        add_scan(store, f"c{hours}", [measured("a", 0, "query", 0.2)], model="m", revision=revision, hours=hours)
    found = store.query("family_trend", model="m", by_step=True)
    assert rows(found, "place", "revision", "step") == [(n + 1, one, None) for n, one in enumerate(commits)]
    names = {"stage1-step500-tokens42B": 500, "global_step_30": 30, "Checkpoint-7": 7, "v2": None, "main": None}
    for hours, revision in enumerate(names):
        add_scan(store, f"n{hours}", [measured("a", 0, "query", 0.2)], model="n", revision=revision, hours=hours)
    found = store.query("family_trend", model="n", by_step=True)
    assert rows(found, "revision", "step") == sorted(names.items(), key=lambda item: (item[1] is None, item[1] or 0))


@pytest.mark.parametrize("name", "role_table layer_trend small_end role_consistency".split())
def test_one_role_in_two_modules_of_a_block_is_two(store: Store, name: str) -> None:
    def one(layer: int, module: str | None) -> Matrix:
        values: dict[str, Any] = {"singular_values": [1.0] * 10, "u_p": [0.1] * 10, "v_p": [0.2] * 10}
        return InModule(tensor=f"{module}{layer}", layer=layer, rows=10, cols=10, more={"module": module}, **values)

    add_scan(store, "one", [one(layer, module) for layer in range(2) for module in (None, "cross_attention")])
    answer = store.query(name)
    modules = answer["module"].to_pylist()
    assert modules.count(None) == modules.count("cross_attention") == answer.num_rows / 2
    if name != "role_consistency":
        assert set(answer["matrices"].to_pylist()) == {1} if name in ("layer_trend", "small_end") else {2}


class InModule(Matrix):
    """A matrix whose vectors have its module, too."""

    def tables(self, scan_id: str, model: str, revision: str) -> tuple[pa.Table, pa.Table]:
        matrices, vectors = super().tables(scan_id, model, revision)
        index = vectors.schema.get_field_index("module")
        field = vectors.schema.field(index)
        return matrices, vectors.set_column(index, field, pa.array([self.more["module"]] * len(vectors), field.type))


# ---- what deviations consist of


def test_decompose_splits_the_deviation_by_part_of_the_spectrum(store: Store) -> None:
    random = np.random.default_rng(3)
    count = 40
    matrices, values = [], []
    for number in range(2):
        # Means of p, p_scale and p_within by rank.
        by_part = [(0.3, 0.5, 0.5)] * 4 + [(0.5, 0.5, 0.5)] * 32 + [(0.1, 0.2, 0.3)] * 4
        names = [(f"{side}_p{null}", at) for side in "uv" for at, null in enumerate(("", "_scale", "_within"))]
        drawn_values = {
            name: [float(np.float32(mean[at] + random.uniform(-0.05, 0.05))) for mean in by_part] for name, at in names
        }
        del drawn_values["v_p_within"]  # the columns of a query are no heads
        drawn_values["u_p_scale"][0] = float("nan")  # stored as NULL: has no part in any mean
        scaled = {
            name: [None if math.isnan(p) else p for p in column]
            for name, column in drawn_values.items()
            if name not in ("u_p", "v_p")
        }
        more = {"u_p": drawn_values["u_p"], "v_p": drawn_values["v_p"], "by_rank": scaled}
        spectrum = np.linspace(2, 1, count).tolist()
        matrices.append(Matrix(tensor=f"t{number}", layer=number, rows=40, cols=60, singular_values=spectrum, **more))  # type: ignore[arg-type]
        values.append(drawn_values)
    add_scan(store, "one", [*matrices, drawn(1, "old", 5, 40, 40, role="key")])

    answer = store.query("decompose", layers=False).to_pylist()
    assert [(row["part"], row["side"]) for row in answer] == [
        (part, side) for part in ("small end", "middle", "large end") for side in ("v", "u")
    ]
    ranks = {"large end": slice(0, 4), "middle": slice(4, 36), "small end": slice(36, 40)}
    for row in answer:
        side, part = row["side"], ranks[row["part"]]
        columns = [f"{side}_p", f"{side}_p_scale", f"{side}_p_within" if side == "u" else f"{side}_p_scale"]
        vectors = [
            together
            for one in values
            for together in zip(*(one[name][part] for name in columns), strict=True)
            if not any(map(math.isnan, together))
        ]
        p, p_scale, p_left = np.mean(vectors, axis=0)
        assert (row["role"], row["matrices"], row["vectors"]) == ("query", 2, len(vectors))
        assert (row["p"], row["p_scale"]) == pytest.approx((p, p_scale), abs=1e-6)
        assert row["p_within"] == (None if side == "v" else pytest.approx(p_left, abs=1e-6))
        assert row["head_structure"] == (None if side == "v" else pytest.approx(p_left - p_scale, abs=1e-6))
        assert row["scale"] + (row["head_structure"] or 0.0) + row["direction"] == pytest.approx(0.5 - row["p"])
        for name, mean in (("z", p), ("z_scale", p_scale), ("z_direction", p_left)):
            assert row[name] == pytest.approx((mean - 0.5) * math.sqrt(12 * len(vectors)), abs=1e-4)
    assert {row["layer"] for row in store.query("decompose").to_pylist()} == {0, 1}


def test_decompose_says_what_remains(store: Store) -> None:
    cases = {"direction": (0.1, 0.1, 0.1), "head structure": (0.1, 0.1, 0.5), "scale": (0.1, 0.5, 0.5)}
    cases["nothing"] = (0.5, 0.5, 0.5)
    matrices = [
        Matrix(
            tensor=name,
            layer=layer,
            rows=40,
            cols=60,
            singular_values=np.linspace(2, 1, 40).tolist(),
            u_p=[p] * 40,
            v_p=[0.5] * 40,
            by_rank={"u_p_scale": [scaled] * 40, "v_p_scale": [0.5] * 40, "u_p_within": [left] * 40},
        )
        for layer, (name, (p, scaled, left)) in enumerate(cases.items())
    ]
    add_scan(store, "one", matrices)
    found = [row for row in store.query("decompose", z=2).to_pylist() if row["part"] == "small end"]
    assert [row["differs_by"] for row in found if row["side"] == "u"] == list(cases)
    assert {row["differs_by"] for row in found if row["side"] == "v"} == {"nothing"}
    # Four vectors: |z| of 0.4 sqrt(48) is below the usual limit.
    assert {row["differs_by"] for row in store.query("decompose").to_pylist() if row["part"] == "small end"} == {
        "nothing"
    }


def test_decompose_counts_the_values_outside_both_laws_at_their_end(store: Store) -> None:
    count = 30
    regions = ["right"] * 5 + ["bulk"] * 21 + ["left"] * 4  # more than a tenth
    scaled = ["right"] * 2 + ["bulk"] * 27 + ["left"]
    p = {"u_p": [0.5] * count, "v_p": [0.5] * count}

    def matrix(tensor: str, layer: int, **more: object) -> Matrix:
        values = np.linspace(2, 1, count).tolist()
        place = {"layer": layer, "rows": 30, "cols": 60, "singular_values": values}
        return Matrix(tensor=tensor, **place, **p, **more)  # type: ignore[arg-type]

    unequal = {"scale_row_inequality": 1.5, "scale_col_inequality": 3.0, "scale_upper": 1.8}
    ranks = {"u_p_scale": [0.5] * count, "v_p_scale": [0.5] * count, "region_scale": scaled, "region": regions}
    both = [matrix("a", 0, by_rank=ranks, more=unequal), matrix("b", 1, by_rank=ranks, more=unequal)]
    add_scan(store, "one", [*both, matrix("old", 2, by_rank={"region": regions})])
    columns = ("part", "side", "matrices", "outside", "outside_scale", "inequality")
    expected = [
        ("small end", "v", 2, 8, 2, 3.0),
        ("small end", "u", 2, 8, 2, 1.5),
        ("middle", "v", 2, None, None, 3.0),
        ("middle", "u", 2, None, None, 1.5),
        ("large end", "v", 2, 10, 4, 3.0),
        ("large end", "u", 2, 10, 4, 1.5),
    ]
    answer = store.query("decompose", layers=False)
    assert rows(answer, *columns) == expected
    assert answer["without_scale"].to_pylist() == [1] * 6


def test_decompose_has_a_row_for_each_head(store: Store) -> None:
    p = {"u_p": [0.5] * 4, "v_p": [0.5] * 4}
    slices = [
        Matrix(head=head, singular_values=[4.0, 3.0, 2.0, 1.0], by_rank={f"{s}_p_scale": [0.5] * 4 for s in "uv"}, **p)  # type: ignore[arg-type]
        for head in range(3)
    ]
    add_scan(store, "one", slices)
    assert store.query("decompose").num_rows == 0
    answer = store.query("decompose", heads=True).to_pylist()
    assert {(row["head"], row["matrices"]) for row in answer} == {(0, 1), (1, 1), (2, 1)}
    assert {
        (row["head"], row["matrices"]) for row in store.query("decompose", heads=True, layers=False).to_pylist()
    } == {(None, 3)}
