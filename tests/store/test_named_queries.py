"""Named queries, compared with numbers computed by hand or with numpy."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from scanner.errors import QueryError
from scanner.store import Store

from .rows import NOON, Matrix, add_scan, control, scan_values


def rows(answer: pa.Table, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in answer.select(list(columns)).to_pylist()]


def test_scans_lists_every_committed_scan_the_latest_first(store: Store) -> None:
    add_scan(store, "one", [Matrix(), Matrix(tensor="x")], model="m1", revision="0123456789abcdef", failed=["y"])
    add_scan(store, "two", [Matrix()], model="m2", hours=2)
    add_scan(store, "three", [Matrix()], model="m1", revision="fedcba9876543210", hours=1)
    answer = store.query("scans")
    assert rows(answer, "scan_id", "model", "revision", "matrices", "vectors", "failed", "skipped", "seconds") == [
        ("two", "m2", "r1", 1, 4, 0, 0, 1.5),
        ("three", "m1", "fedcba987654", 1, 4, 0, 0, 1.5),
        ("one", "m1", "0123456789ab", 2, 8, 1, 0, 1.5),
    ]
    assert answer["finished_at"].to_pylist()[-1] == NOON
    assert rows(store.query("scans", model="m1"), "scan_id") == [("three",), ("one",)]
    assert rows(store.query("scans", revision="0123456789ab"), "scan_id") == [("one",)]


def test_spectrum_by_role_averages_in_units_of_sigma_root_hi(store: Store) -> None:
    spectra = {"a": ([8.0, 4.0], 1.0), "b": ([24.0, 6.0], 2.0), "wide": ([5.0, 1.0], 1.0)}
    edges = {"a": (1.0, 6.0), "b": (4.0, 12.0), "wide": (1.0, 6.0)}
    shapes = {"a": (4, 2), "b": (4, 2), "wide": (2, 4)}
    add_scan(
        store,
        "one",
        [
            Matrix(
                tensor=name,
                role="mlp_up",
                layer=layer,
                rows=shapes[name][0],
                cols=shapes[name][1],
                singular_values=values,
                more={"sigma": sigma, "mp_lower": edges[name][0], "mp_upper": edges[name][1]},
            )
            for layer, (name, (values, sigma)) in enumerate(spectra.items())
        ],
    )
    tall = np.array([[8.0, 4.0], [24.0, 6.0]]) / np.array([[1.0], [2.0]]) / math.sqrt(4)
    expected = [
        ("org/model", "mlp_up", 2, 4, 0, 1, 2.5, None, 0.5, 3.0),
        ("org/model", "mlp_up", 2, 4, 1, 1, 0.5, None, 0.5, 3.0),
    ]
    for k in range(2):
        mean, spread = tall[:, k].mean(), tall[:, k].std(ddof=1)
        expected.append(("org/model", "mlp_up", 4, 2, k, 2, mean, spread, (0.5 + 1) / 2, (3.0 + 3.0) / 2))
    answer = store.query("spectrum_by_role")
    for row, wanted in zip(rows(answer, *answer.schema.names), expected, strict=True):
        assert row == pytest.approx(wanted)


def test_spectrum_by_role_matches_slices_with_their_own_sigma(store: Store) -> None:
    slices = [
        Matrix(head=head, singular_values=(4.0,), rows=1, cols=4, more={"sigma": sigma})
        for head, sigma in enumerate((1.0, 2.0))
    ]
    experts = [
        Matrix(tensor="e", role="mlp_up", expert=expert, singular_values=(4.0,), rows=1, cols=4, more={"sigma": sigma})
        for expert, sigma in enumerate((1.0, 4.0))
    ]
    add_scan(store, "one", [Matrix(singular_values=(8.0,), rows=1, cols=4), *slices, *experts])
    assert rows(store.query("spectrum_by_role"), "role", "matrices", "singular_value") == [
        ("query", 1, 4.0),
        ("mlp_up", 2, pytest.approx((2.0 + 0.5) / 2)),
    ]
    assert rows(store.query("spectrum_by_role", heads="yes"), "role", "matrices", "singular_value") == [
        ("query", 2, pytest.approx((2.0 + 1.0) / 2))
    ]


def test_a_matrix_of_zeros_has_no_units(store: Store) -> None:
    add_scan(store, "one", [Matrix(singular_values=(0.0, 0.0), rows=2, cols=2, more={"sigma": 0.0})])
    assert rows(store.query("spectrum_by_role"), "k", "singular_value", "mp_upper") == [
        (0, None, None),
        (1, None, None),
    ]


def test_pvalues_by_role_averages_rank_by_rank_beside_the_controls(store: Store) -> None:
    add_scan(
        store,
        "one",
        [
            Matrix(tensor="a", layer=0, rows=2, cols=2, singular_values=(2, 1), u_p=(0.1, 0.2), v_p=(0.3, 0.4)),
            Matrix(tensor="b", layer=1, rows=2, cols=2, singular_values=(2, 1), u_p=(0.3, None), v_p=(0.5, None)),
            Matrix(tensor="c", layer=1, rows=2, cols=3, singular_values=(2, 1), u_p=(0.9, 0.9), v_p=(0.9, 0.9)),
        ],
    )
    for seed, shift in ((0, 0.0), (1, 0.2)):
        table = control(2, 2, singular_values=(2, 1), u_p=(0.4 + shift, 0.5), v_p=(0.6, 0.5 + shift), seed=seed)
        store.write_control(table, 2, 2, "gaussian", seed)
    answer = store.query("pvalues_by_role")
    columns = ("rows", "cols", "k", "matrices", "u_p_local", "v_p_local", "control_u_p_local", "control_v_p_local")
    expected = [
        (2, 2, 0, 2, 0.2, 0.4, 0.5, 0.6),
        (2, 2, 1, 2, 0.2, 0.4, 0.5, 0.6),
        (2, 3, 0, 1, 0.9, 0.9, None, None),
        (2, 3, 1, 1, 0.9, 0.9, None, None),
    ]
    for row, wanted in zip(rows(answer, *columns), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


def counted(tensor: str, layer: int | None, role: str, left: int, right: int, **more: object) -> Matrix:
    return Matrix(tensor=tensor, layer=layer, role=role, more={"outliers_left": left, "outliers_right": right}, **more)


def test_outliers_is_shaped_like_the_paper_s_table(store: Store) -> None:
    add_scan(
        store,
        "one",
        [
            counted("q0", 0, "query", 0, 1485),
            counted("k0", 0, "key", 356, 412),
            counted("q1", 1, "query", 2, 3),
            counted("d1", 1, "mlp_down", 90, 153, expert=0),
            counted("d1", 1, "mlp_down", 10, 7, expert=1),
            counted("r1", 1, "router", 1, 2),
            counted("o1", 1, "other", 10, 20),
            counted("emb", None, "embedding", 5, 6),
            counted("q1", 1, "query", 100, 100, head=0),
        ],
    )
    answer = store.query("outliers")
    assert answer.to_pylist() == [
        outlier_row(layer=0, query=(0, 1485), key=(356, 412)),
        outlier_row(layer=1, query=(2, 3), mlp_down=(100, 160), other=(11, 22)),
        outlier_row(layer=None, other=(5, 6)),
    ]
    assert store.query("outliers", heads=True).to_pylist() == [outlier_row(layer=1, query=(100, 100))]


def outlier_row(*, layer: int | None, **counts: tuple[int, int]) -> dict[str, object]:
    roles = ("query", "key", "value", "attn_out", "mlp_up", "mlp_gate", "mlp_down", "other")
    found: dict[str, object] = {"model": "org/model", "stack": None, "layer": layer}
    for role in roles:
        found[f"{role}_below"], found[f"{role}_above"] = counts.get(role, (None, None))
    return found


def test_encoder_and_decoder_are_kept_apart(store: Store) -> None:
    add_scan(store, "one", [counted(f"{stack}.q", 0, "query", 1, 2, stack=stack) for stack in ("decoder", "encoder")])
    columns = ("stack", "layer", "query_below", "query_above")
    assert rows(store.query("outliers"), *columns) == [("encoder", 0, 1, 2), ("decoder", 0, 1, 2)]
    assert rows(store.query("layer_trend"), "stack", "layer") == [("encoder", 0), ("decoder", 0)]


def test_outlier_share_is_a_share_of_all_singular_values(store: Store) -> None:
    add_scan(
        store,
        "one",
        [
            counted("a", 0, "mlp_up", 3, 30, rows=400, cols=100),
            counted("b", 1, "mlp_up", 5, 10, rows=400, cols=100),
            counted("c", 1, "mlp_down", 1, 1, rows=100, cols=400),
            counted("a", 0, "mlp_up", 50, 50, rows=400, cols=100, head=0),
        ],
    )
    columns = ("role", "rows", "cols", "matrices", "below_percent", "above_percent")
    assert rows(store.query("outlier_share"), *columns) == [
        ("mlp_up", 400, 100, 2, 4.0, 20.0),
        ("mlp_down", 100, 400, 1, 1.0, 1.0),
    ]


def test_layer_trend_averages_each_layer_s_matrices(store: Store) -> None:
    def trend(tensor: str, layer: int | None, u_p: float, v_p: float, **more: object) -> Matrix:
        return Matrix(tensor=tensor, layer=layer, more={"u_p_mean": u_p, "v_p_mean": v_p}, **more)

    add_scan(
        store,
        "one",
        [
            trend("e", 1, 0.1, 0.2, role="mlp_up", expert=0),
            trend("e", 1, 0.3, 0.4, role="mlp_up", expert=1),
            trend("q1", 1, 0.5, 0.25),
            trend("q0", 0, 0.4, 0.3),
            trend("emb", None, 0.9, 0.9, role="embedding"),
        ],
    )
    expected = [(0, "query", 1, 0.4, 0.3, 0.35), (1, "query", 1, 0.5, 0.25, 0.375), (1, "mlp_up", 2, 0.2, 0.3, 0.25)]
    answer = rows(store.query("layer_trend"), "layer", "role", "matrices", "u_p", "v_p", "p")
    for row, wanted in zip(answer, expected, strict=True):
        assert row == pytest.approx(wanted)
    assert rows(store.query("layer_trend", role="mlp_up"), "layer", "matrices") == [(1, 2)]


def test_head_trend_lists_the_heads_one_by_one(store: Store) -> None:
    def head(layer: int, role: str, index: int | None, u_p: float) -> Matrix:
        more = {"u_p_mean": u_p, "v_p_mean": 0.5}
        return Matrix(tensor=f"{layer}{role}", layer=layer, role=role, head=index, more=more)

    heads = [
        head(1, "query", 1, 0.1),
        head(1, "query", 0, 0.2),
        head(0, "attn_out", 0, 0.3),
        head(0, "query", None, 0.9),
    ]
    add_scan(store, "one", heads)
    answer = rows(store.query("head_trend"), "layer", "role", "head", "u_p", "p")
    expected = [(0, "attn_out", 0, 0.3, 0.4), (1, "query", 0, 0.2, 0.35), (1, "query", 1, 0.1, 0.3)]
    assert [row[:3] for row in answer] == [row[:3] for row in expected]
    assert [row[3:] for row in answer] == [pytest.approx(row[3:]) for row in expected]
    assert rows(store.query("head_trend", role="attn_out"), "layer", "head") == [(0, 0)]


def random_control(rows: int, cols: int, seed: int, *, uniform: bool = False, scale: float = 1.0) -> pa.Table:
    """A random matrix; its p-values are drawn, because only their mean matters here."""
    random = np.random.default_rng(seed)
    low, high = min(rows, cols), max(rows, cols)
    # Entries of variance 1: uniform ones between -sqrt(3) and sqrt(3).
    shape, bound = (rows, cols), math.sqrt(3)
    entries = random.uniform(-bound, bound, shape) if uniform else random.normal(size=shape)
    values = np.linalg.svd(scale * entries / math.sqrt(high), compute_uv=False)
    u_p, v_p = random.uniform(size=(2, low))
    ensemble = "kaiming_uniform" if uniform else "gaussian"
    return control(rows, cols, singular_values=values, u_p=u_p, v_p=v_p, ensemble=ensemble, seed=seed)


def put(store: Store, table: pa.Table) -> pa.Table:
    [key] = table.select(["rows", "cols", "ensemble", "seed"]).slice(0, 1).to_pylist()
    store.write_control(table, **key)
    return table


@pytest.mark.parametrize("uniform", [False, True], ids=["gaussian", "uniform"])
@pytest.mark.parametrize(
    ("m", "n"), [(64, 64), (300, 300), (384, 1536), (1536, 384), (128, 120), (200, 199), (16, 512)]
)
def test_random_matrices_pass_the_control_check(store: Store, m: int, n: int, uniform: bool) -> None:
    for seed in range(4):
        put(store, random_control(m, n, seed, uniform=uniform))
    answer = store.query("control_check")
    assert answer["verdict"].to_pylist() == ["ok"] * 4, answer.to_pylist()


@pytest.mark.parametrize(("m", "n"), [(1, 300), (400, 1), (1, 1)])
def test_a_side_of_one_entry_has_no_p_values_and_is_not_held_against_a_control(store: Store, m: int, n: int) -> None:
    value = float(np.linalg.norm(np.random.default_rng(0).normal(size=(m, n)))) / math.sqrt(max(m, n))
    u_p, v_p = (None if m == 1 else 0.3, None if n == 1 else 0.8)
    put(store, control(m, n, singular_values=[value], u_p=[u_p], v_p=[v_p]))
    [row] = store.query("control_check").to_pylist()
    assert row["verdict"] == "ok", row


def test_control_check_measures_what_it_says(store: Store) -> None:
    table = put(store, random_control(40, 160, 5))
    values = np.array(table["singular_value"])
    u_p, v_p = (np.array(table[name], dtype=float) for name in ("u_p", "v_p"))
    lower, upper = 1 - math.sqrt(40 / 160), 1 + math.sqrt(40 / 160)
    [row] = store.query("control_check").to_pylist()
    assert row["singular_values"] == 40
    assert row["outside"] == ((values < lower) | (values > upper)).sum()
    assert row["variance"] == pytest.approx((values**2).sum() / (40 * 160) * 160)
    assert row["standard_error"] == pytest.approx(math.sqrt(1 / 12 / 40))
    assert row["u_p"] == pytest.approx(u_p.mean())
    assert row["v_deviation"] == pytest.approx((v_p.mean() - 0.5) / math.sqrt(1 / 12 / 40))


def planted(values: Sequence[float], rows: int, cols: int) -> pa.Table:
    low = min(rows, cols)
    return control(rows, cols, singular_values=values, u_p=[0.5] * low, v_p=[0.5] * low)


def test_control_check_measures_the_excess_in_tracy_widom_widths(store: Store) -> None:
    # Wishart eigenvalues at the edges: centre (sqrt n +- sqrt m)^2, scale |sqrt n +- sqrt m| |1/sqrt m +- 1/sqrt n|^(1/3).
    m, n = 100, 400
    upper, lower = 1 + math.sqrt(m / n), 1 - math.sqrt(m / n)
    scale = (10 + 20) * (1 / 10 + 1 / 20) ** (1 / 3)
    width = scale / (10 + 20) ** 2 / 2
    inside = np.linspace(upper, lower, m)
    put(store, planted([upper * 1.01, *inside[1:]], m, n))
    [row] = store.query("control_check").to_pylist()
    assert row["outside"] == 1
    assert row["largest_excess"] == pytest.approx(0.01)
    assert row["excess_widths"] == pytest.approx(0.01 / width)

    scale = (20 - 10) * (1 / 10 - 1 / 20) ** (1 / 3)
    width = scale / (20 - 10) ** 2 / 2
    put(store, planted([*inside[:-1], lower * 0.98], m, n))
    [row] = store.query("control_check").to_pylist()
    assert row["largest_excess"] == pytest.approx(0.02)
    assert row["excess_widths"] == pytest.approx(0.02 / width)


def broken_controls() -> dict[str, pa.Table]:
    good = random_control(300, 600, 1)

    def changed(column: str, change: object) -> pa.Table:
        values = np.array(good[column], dtype=float)
        kind = good.schema.field(column).type
        return good.set_column(good.column_names.index(column), column, pa.array(change(values), kind))  # type: ignore[operator]

    return {
        "spike": changed("singular_value", lambda values: np.append(values[:1] * 1.3, values[1:])),
        "vanishing value": changed("singular_value", lambda values: np.append(values[:-1], values[-1] * 0.5)),
        "scale too small": random_control(300, 600, 1, scale=0.98),
        "scale too large": random_control(300, 600, 1, scale=1.02),
        "left p-values too large": changed("u_p", lambda values: values * 0.8 + 0.2),
        "right p-values too small": changed("v_p", lambda values: values * 0.8),
    }


@pytest.mark.parametrize("name", broken_controls())
def test_controls_that_are_not_random_fail_the_check(store: Store, name: str) -> None:
    put(store, broken_controls()[name])
    assert store.query("control_check")["verdict"].to_pylist() == ["off"]


def test_control_check_can_be_asked_for_one_ensemble(store: Store) -> None:
    put(store, random_control(8, 8, 0))
    put(store, random_control(8, 8, 0, uniform=True))
    answer = store.query("control_check", ensemble="kaiming_uniform")
    assert rows(answer, "ensemble", "seed") == [("kaiming_uniform", 0)]


def test_role_table_averages_over_a_matrix_first_and_counts_deciles_from_the_smallest(store: Store) -> None:
    random = np.random.default_rng(3)
    u = {"a": random.uniform(size=20), "b": random.uniform(size=25)}
    v = {"a": random.uniform(size=20), "b": random.uniform(size=25)}
    shapes = {"a": (20, 40), "b": (25, 25)}
    counts = {"a": (1, 10), "b": (0, 5)}
    sigmas = {"a": 0.5, "b": 1.5}
    matrices = [
        Matrix(
            tensor=name,
            layer=layer,
            role="mlp_up",
            rows=shapes[name][0],
            cols=shapes[name][1],
            singular_values=np.linspace(2, 1, len(u[name])),
            u_p=u[name].tolist(),
            v_p=v[name].tolist(),
            more={"sigma": sigmas[name], "outliers_left": counts[name][0], "outliers_right": counts[name][1]},
        )
        for layer, name in enumerate("ab")
    ]
    add_scan(store, "one", [*matrices, Matrix(role="query")])
    answer = store.query("role_table").to_pylist()
    assert [(row["role"], row["side"]) for row in answer] == [(r, s) for r in ("query", "mlp_up") for s in "vu"]
    for up, side, values in ((answer[2], "v", v), (answer[3], "u", u)):
        assert (up["side"], up["matrices"], up["shapes"]) == (side, 2, "20x40, 25x25")
        assert (up["sigma"], up["outliers_below"], up["outliers_above"]) == (1.0, 0.5, 7.5)
        for decile in range(1, 11):
            # Decile 10 holds ranks 0 <= k < K/10, decile 1 the last ones.
            means = [
                one[[k for k in range(len(one)) if 10 - decile <= 10 * k / len(one) < 11 - decile]].mean()
                for one in values.values()
            ]
            assert up[f"d{decile}"] == pytest.approx(np.mean(means), abs=1e-6)


def test_role_table_leaves_out_vectors_without_a_p_value(store: Store) -> None:
    p = [0.5, 0.3, *[0.5] * 17, None]
    add_scan(store, "one", [Matrix(rows=20, cols=20, singular_values=np.linspace(2, 0, 20), u_p=p, v_p=p)])
    for row in store.query("role_table").to_pylist():
        assert row["d1"] == pytest.approx(0.5)
        assert row["d10"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "name", ["spectrum_by_role", "pvalues_by_role", "outliers", "outlier_share", "layer_trend", "role_table"]
)
def test_queries_show_one_revision_of_a_model_and_the_newest_of_its_matrices(store: Store, name: str) -> None:
    def of(marker: int, tensor: str = "q") -> Matrix:
        p = [marker / 10] * 2
        more = {"outliers_left": 0, "outliers_right": marker, "sigma": 1.0}
        return Matrix(tensor=tensor, rows=2, cols=2, singular_values=(marker, marker), u_p=p, v_p=p, more=more)

    add_scan(store, "a1", [of(1)], model="a", revision="r1", hours=3)
    add_scan(store, "a2", [of(2)], model="a", revision="r2", hours=4)
    add_scan(store, "a2-again", [of(3)], model="a", revision="r2", hours=5)
    add_scan(store, "b", [of(4)], model="b", revision="r1", hours=1)
    values = {
        "spectrum_by_role": ("singular_value", lambda marker: marker / math.sqrt(2)),
        "pvalues_by_role": ("u_p_local", lambda marker: marker / 10),
        "outliers": ("query_above", lambda marker: marker),
        "outlier_share": ("above_percent", lambda marker: 50.0 * marker),
        "layer_trend": ("u_p", lambda marker: marker / 10),
        "role_table": ("outliers_above", lambda marker: float(marker)),
    }
    column, value = values[name]

    def shown(**params: str) -> list[tuple[object, ...]]:
        answer = store.query(name, **params)
        return sorted({(row["model"], row[column]) for row in answer.to_pylist()})

    def expected(*pairs: tuple[str, int]) -> list[object]:
        return [
            (model, value(marker) if isinstance(value(marker), str) else pytest.approx(value(marker)))
            for model, marker in pairs
        ]

    assert shown() == expected(("a", 3), ("b", 4))
    assert shown(model="a") == expected(("a", 3))
    assert shown(model="a", revision="r1") == expected(("a", 1))
    assert shown(revision="r1") == expected(("a", 1), ("b", 4))
    with pytest.raises(QueryError, match="there is no model 'nobody': the store has a, b"):
        shown(model="nobody")


def test_answers_have_the_scan_s_own_row_counts_as_integers(store: Store) -> None:
    writer = store.writer("one", method={}, model="m")
    writer.stage("q", *Matrix().tables("one", "m", "r1"))
    writer.commit(scan_values())
    for name in ("spectrum_by_role", "pvalues_by_role", "outlier_share", "layer_trend", "role_table"):
        assert store.query(name).schema.field("matrices").type == pa.int32()
