"""Queries about what is significant, and about edges of another sigma than that of the scan: against numpy and by hand."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from scanner import analyze
from scanner.errors import QueryError
from scanner.store import Store

from .rows import Matrix, add_scan, scan_values


def matrix(name: str, shape: tuple[int, int], seed: int, *, init: float = 1.0, **more: object) -> Matrix:
    """A random matrix with a few large directions, analyzed."""
    rng = np.random.default_rng(seed)
    w = init * rng.standard_normal(shape)
    w[: shape[0] // 3] *= 3.0
    found = analyze(w)
    columns = found.vector_columns()
    by_rank = {
        column: [
            None if isinstance(value, float) and np.isnan(value) else value for value in np.asarray(values).tolist()
        ]
        for column, values in columns.items()
        if column not in ("k", "singular_value") and values is not None
    }
    return Matrix(
        tensor=name,
        rows=shape[0],
        cols=shape[1],
        singular_values=found.singular_values.tolist(),
        more=found.matrix_columns(),
        by_rank=by_rank,
        **more,  # type: ignore[arg-type]
    )


def cell(one: Matrix, sigma: float) -> str:
    """What numpy counts outside the edges of a sigma."""
    low, high = min(one.rows, one.cols), max(one.rows, one.cols)
    s = np.array(one.singular_values)
    below = (s < sigma * (np.sqrt(high) - np.sqrt(low))).sum()
    return f"{below}|{(s > sigma * (np.sqrt(high) + np.sqrt(low))).sum()}"


def commit(store: Store, matrices: list[Matrix], scan_id: str = "one", **values: object) -> None:
    writer = store.writer(scan_id, method={"sigma": "median"}, model="org/model")
    for one in matrices:
        writer.stage(one.key, *one.tables(scan_id, "org/model", "r1"))
    writer.commit(scan_values(**values))  # type: ignore[arg-type]


def packed(row: dict[str, Any], role: str) -> str | None:
    """The counts below and above the bulk in one text."""
    below, above = row[f"{role}_below"], row[f"{role}_above"]
    return None if above is None else f"{below}|{above}"


def test_edges_of_every_sigma_come_from_one_scan(store: Store) -> None:
    query = matrix("q", (60, 60), 0, role="query")
    up = matrix("u", (90, 40), 1, role="mlp_up")
    commit(store, [query, up], initializer_range=0.5)
    sigmas = {kind: {one.tensor: one.more[f"sigma_{kind}"] for one in (query, up)} for kind in ("median", "std")} | {
        "init": {"q": 0.5, "u": 0.5},
        "init_rows": {"q": 1 / np.sqrt(60), "u": 1 / np.sqrt(90)},
    }
    for kind, values in sigmas.items():
        [row] = store.query("outliers", sigma=kind).to_pylist()
        assert packed(row, "query") == cell(query, float(values["q"])), kind  # type: ignore[arg-type]
        assert packed(row, "mlp_up") == cell(up, float(values["u"])), kind  # type: ignore[arg-type]
    assert len({cell(up, float(values["u"])) for values in sigmas.values()}) > 1  # type: ignore[arg-type]
    [plain] = store.query("outliers").to_pylist()
    assert plain == store.query("outliers", sigma="median").to_pylist()[0], "the scan used the median"
    [shares] = [row for row in store.query("outlier_share", sigma="std").to_pylist() if row["role"] == "mlp_up"]
    below, above = map(int, cell(up, float(up.more["sigma_std"])).split("|"))  # type: ignore[arg-type]
    assert (shares["below_percent"], shares["above_percent"]) == (100 * below / 40, 100 * above / 40)
    assert shares["above_scale_percent"] == 100 * int(up.more["outliers_right_scale"]) / 40  # type: ignore[call-overload]


def test_bulk_has_its_own_edges_and_none_where_it_failed(store: Store) -> None:
    fine, failed = matrix("f", (60, 60), 0, layer=0), matrix("x", (60, 60), 0, layer=1)
    assert fine.more["bulk_failed"] is False
    failed.more |= {"bulk_failed": True, "bulk_lower": None, "bulk_upper": None}
    commit(store, [fine, failed])
    s = np.array(fine.singular_values)
    first, second = store.query("outliers", sigma="bulk").to_pylist()
    assert packed(first, "query") == f"{(s < fine.more['bulk_lower']).sum()}|{(s > fine.more['bulk_upper']).sum()}"
    assert packed(second, "query") is None
    [share] = store.query("outlier_share", sigma="bulk").to_pylist()
    assert share["above_percent"] == 100 * (s > fine.more["bulk_upper"]).sum() / 60, "of the matrix that has edges"


def test_without_an_initializer_range_init_is_that_of_the_rows(store: Store) -> None:
    commit(store, [matrix("q", (60, 40), 0)])
    assert store.query("outliers", sigma="init").to_pylist() == store.query("outliers", sigma="init_rows").to_pylist()


def test_numerically_zero_values_are_in_no_count(store: Store) -> None:
    found = matrix("q", (60, 40), 0)
    found.by_rank["region"] = ["bulk"] * 38 + ["null"] * 2
    found.singular_values = [*found.singular_values[:38], 1e-18, 0.0]
    commit(store, [found])
    [row] = store.query("outliers", sigma="std").to_pylist()
    inside = Matrix(rows=60, cols=40, singular_values=found.singular_values[:38])
    assert packed(row, "query") == cell(inside, float(found.more["sigma_std"]))  # type: ignore[arg-type]


def test_an_unknown_sigma_is_refused(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    with pytest.raises(QueryError, match=r"^sigma is 'mean': choose from median, std, init, init_rows, bulk"):
        store.query("outliers", sigma="mean")


def significant(p: float, p_scale: float | None, q: list[float], q_scale: list[float], **more: object) -> Matrix:
    found = Matrix(**more)  # type: ignore[arg-type]
    found.more |= {"u_p_omnibus": p, "v_p_omnibus": 0.9, "u_p_scale_omnibus": p_scale, "v_p_scale_omnibus": 0.9}
    for name, values in {"u_q": q, "u_q_scale": q_scale, "v_q": [0.9] * 4, "v_q_scale": [0.9] * 4}.items():
        found.by_rank[name] = values
    found.by_rank |= {"u_effect": [2.0, 1.0, 0.0, 0.0], "u_effect_scale": [1.0, 0.0, 0.0, 0.0]}
    return found


def test_significance_counts_by_families_that_a_filter_does_not_change(store: Store) -> None:
    add_scan(
        store,
        "one",
        [
            # Two roles of two matrices, two sides: eight tests, so p must be at most 0.05 / 8.
            significant(0.006, 0.007, [0.01, 0.049, 0.2, 1.0], [0.04, 0.06, 1.0, 1.0], tensor="a"),
            significant(0.007, 0.5, [0.3] * 4, [1.0] * 4, tensor="b", layer=1),
            significant(0.0, 0.0, [0.01] * 4, [0.01] * 4, tensor="c", role="key"),
            significant(0.5, 0.5, [0.5] * 4, [0.5] * 4, tensor="d", role="key", layer=1),
        ],
    )
    by_role = {(row["role"], row["side"]): row for row in store.query("significance").to_pylist()}
    columns = ("matrices", "matrices_iid", "matrices_scale", "vectors", "vectors_iid", "vectors_scale", "tests")
    assert tuple(by_role["query", "u"][name] for name in columns) == (2, 1, 0, 8, 2, 1, 8)
    assert tuple(by_role["key", "u"][name] for name in columns) == (2, 1, 1, 8, 4, 4, 8)
    assert tuple(by_role["query", "v"][name] for name in columns) == (2, 0, 0, 8, 0, 0, 8)
    assert by_role["query", "u"]["effect"] == 0.75
    assert by_role["query", "u"]["effect_scale"] == 0.25
    alone = store.query("significance", role="query").to_pylist()
    assert alone == [by_role["query", "v"], by_role["query", "u"]]
    assert len(store.query("significance", layers=True).to_pylist()) == 8
    strict = {(row["role"], row["side"]): row for row in store.query("significance", level=0.01).to_pylist()}
    assert strict["query", "u"]["matrices_iid"] == 0


def test_a_matrix_without_a_scale_null_does_not_hide_the_others(store: Store) -> None:
    bare = significant(0.0, None, [0.01] * 4, [0.01] * 4, tensor="b", layer=1)
    for name in ("u_q_scale", "v_q_scale", "u_effect_scale"):
        del bare.by_rank[name]
    bare.more["v_p_scale_omnibus"] = None
    add_scan(store, "one", [significant(0.0, 0.0, [0.01] * 4, [0.01, 1.0, 1.0, 1.0], tensor="a"), bare])
    columns = ("matrices_iid", "matrices_scale", "without_scale", "vectors_iid", "vectors_scale", "effect_scale")
    [both] = store.query("significance").filter(pc.field("side") == "u").to_pylist()
    assert tuple(both[name] for name in columns) == (2, 1, 1, 8, 1, 0.25)
    one, other = store.query("significance", layers=True).filter(pc.field("side") == "u").to_pylist()
    assert tuple(one[name] for name in columns) == (1, 1, 0, 4, 1, 0.25)
    assert tuple(other[name] for name in columns) == (1, None, 1, 4, None, None)


def test_significance_leaves_out_scans_of_versions_without_these_columns(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    assert store.query("significance").num_rows == 0


def test_small_end_tests_the_same_vectors_under_the_scale_null(store: Store) -> None:
    ten = {"rows": 10, "cols": 10, "singular_values": [float(10 - k) for k in range(10)]}

    def with_scale(name: str, p: float, p_scale: float | None, **more: object) -> Matrix:
        return Matrix(
            tensor=name,
            u_p=[p] * 10,
            v_p=[0.5] * 10,
            by_rank={"u_p_scale": [p_scale] * 10, "v_p_scale": [0.5] * 10},
            **ten,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )

    add_scan(store, "one", [with_scale("a", 1e-3, 0.01), with_scale("b", 1e-3, None, role="key")])
    found = {(row["role"], row["side"]): row for row in store.query("small_end").to_pylist()}
    one = found["query", "u"]
    assert one["p_scale"] == pytest.approx(0.01)
    assert one["z_scale"] == pytest.approx(-0.49 * np.sqrt(12), rel=1e-6)
    assert one["family_p_value_scale"] == pytest.approx(4 * 0.0896, rel=0.01), "four rows are the family"
    assert found["key", "u"]["p_scale"] is None
    assert found["key", "u"]["family_p_value_scale"] is None


def test_standout_small_ends_say_by_what(store: Store) -> None:
    values = [float(1000 - k) for k in range(1000)]

    def end(role: str, p_scale: float | None) -> Matrix:
        by_rank = {"u_p_scale": [p_scale] * 1000, "v_p_scale": [0.5] * 1000}
        shape = {"rows": 1000, "cols": 1000, "singular_values": values}
        p = {"u_p": [0.1] * 1000, "v_p": [0.5] * 1000}
        return Matrix(tensor=role, role=role, by_rank=by_rank, **p, **shape)  # type: ignore[arg-type]

    add_scan(store, "one", [end("query", 0.2), end("key", 0.5), end("value", None)])
    found = {row["role"]: row["differs_by"] for row in store.query("standout_small_ends").to_pylist()}
    assert found == {"query": "direction", "key": "scale", "value": None}
