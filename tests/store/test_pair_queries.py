"""Named queries about pretrained and fine-tuned pairs, compared with numbers computed by hand or with numpy."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from scanner.errors import QueryError
from scanner.store import Store

from .rows import Matrix, Pair, add_comparison, add_scan

P_COLUMNS = ("u_p_base", "u_p_tuned", "v_p_base", "v_p_tuned")


def rows(answer: pa.Table, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in answer.select(list(columns)).to_pylist()]


def mean(values: object) -> float:
    return float(np.nanmean(np.array(values, dtype=float)))


def drawn(seed: int, tensor: str, rows: int, cols: int, **more: object) -> Pair:
    """A pair with random values in every column; the last triplet of the base is numerically zero and has no p-value."""
    random = np.random.default_rng(seed)
    low = min(rows, cols)
    base, tuned = (np.sort(random.uniform(1, 2, low))[::-1] for _ in range(2))
    base[-1] = 0.0
    vectors = {name: random.uniform(size=low).tolist() for name in (*P_COLUMNS, "u_overlap", "v_overlap")}
    vectors |= {name: [*vectors[name][:-1], None] for name in ("u_p_base", "v_p_base")}
    return Pair(tensor=tensor, rows=rows, cols=cols, base=base.tolist(), tuned=tuned.tolist(), vectors=vectors, **more)


CHANGED: dict[str, object] = {
    "relative_change": 0.02,
    "cosine": 0.75,
    "outliers_left_base": 1,
    "outliers_left_tuned": 2,
    "outliers_right_base": 2,
    "outliers_right_tuned": 2,
    "intruders": 1,
    "delta_effective_rank": 3.5,
    "delta_outliers_right": 4,
    "delta_u_p_mean": 0.5,
    "delta_v_p_mean": 0.25,
}


def test_pair_changes_has_one_line_a_matrix_in_the_order_of_the_model(store: Store) -> None:
    values = [6.0, 5.0, 4.0, 3.0, 2.0, 0.0]
    p: list[float | None] = [0.5, 0.5, 0.5, 0.5, 0.5, None]  # the last singular value is numerically zero
    vectors: dict[str, list[float | None]] = dict.fromkeys(P_COLUMNS, p)
    # Rank 0 is what base rank 1 was and rank 1 nothing that the base has; ranks 3 and 4 are below the bulk now, of which
    # rank 4 was before.
    vectors |= {"u_overlap": [0.9, 0.4, 0.9, 0.9, 0.4, 0.9], "u_match": [1, 1, 2, 3, 0, 5]}
    vectors |= {"v_overlap": [0.8, 0.3, 0.9, 0.9, 0.7, 0.9], "v_match": [3, 0, 2, 3, 4, 5]}
    one = Pair(tensor="q", rows=6, cols=6, base=values, tuned=values, vectors=vectors, more=CHANGED)
    plain = Pair(tensor="v", role="value", layer=1, more=CHANGED | {"identical": True, "relative_change": 0.0})
    embedding = Pair(tensor="e", role="embedding", layer=None)
    add_comparison(store, "one", [plain, embedding, one, Pair(tensor="q", head=0, more={"cosine": 0.5})])
    found = store.query("pair_changes").to_pylist()
    assert found[0] == {
        "base_model": "org/base",
        "tuned_model": "org/tuned",
        "stack": None,
        "layer": 0,
        "role": "query",
        "head": None,
        "expert": None,
        "tensor": "q",
        "relative_change": 0.02,
        "cosine": 0.75,
        "identical": False,
        "below_base": 1,
        "below_tuned": 2,
        "above_base": 2,
        "above_tuned": 2,
        "below_gained": 1,
        "below_lost": 0,
        "above_gained": 1,
        "above_lost": 1,
        "intruders": 1,
        "delta_effective_rank": 3.5,
        "delta_above": 4,
        "delta_u_p": 0.5,
        "delta_v_p": 0.25,
        "base_revision": None,
        "tuned_revision": None,
    }
    assert [(row["tensor"], row["identical"], row["relative_change"]) for row in found[1:]] == [
        ("v", True, 0.0),
        ("e", False, None),
    ]
    assert found[1]["above_gained"] is None, "overlaps are not known"
    assert rows(store.query("pair_changes", role="value"), "tensor") == [("v",)]
    assert rows(store.query("pair_changes", heads=True), "head", "cosine") == [(0, 0.5)]


def test_pair_summary_has_one_line_a_role(store: Store) -> None:
    pairs = [
        Pair(tensor="a", layer=0, more=CHANGED),
        Pair(
            tensor="b",
            layer=7,
            more=CHANGED
            | {"relative_change": 0.06, "outliers_left_base": 2, "outliers_right_tuned": 5, "intruders": 2},
        ),
        Pair(tensor="c", layer=3, more=CHANGED | {"relative_change": 0.0, "identical": True}),
        Pair(tensor="d", role="mlp_up", more=CHANGED | {"delta_effective_rank": 9.0}),
    ]
    add_comparison(store, "one", [*pairs, Pair(tensor="a", head=0, more=CHANGED)])
    first, second = store.query("pair_summary").to_pylist()
    assert first == {
        "base_model": "org/base",
        "tuned_model": "org/tuned",
        "role": "query",
        "matrices": 3,
        "identical": 1,
        "change_median": 0.02,
        "change_max": 0.06,
        "largest_in": 7,
        "below_base": pytest.approx(4 / 3),
        "below_tuned": 2.0,
        "above_base": 2.0,
        "above_tuned": 3.0,
        "intruders": 4,
        "delta_rank": 3.5,
        "delta_above": 4.0,
        "delta_p": 0.375,
        "base_revision": None,
        "tuned_revision": None,
    }
    assert (second["role"], second["matrices"], second["delta_rank"]) == ("mlp_up", 1, 9.0)
    assert rows(store.query("pair_summary", heads=True), "role", "matrices") == [("query", 1)]


def test_pair_ranks_averages_rank_by_rank_over_matrices_of_one_role_and_shape(store: Store) -> None:
    same = [drawn(1, "a", 3, 5, role="mlp_up"), drawn(2, "b", 3, 5, role="mlp_up", layer=1)]
    add_comparison(store, "one", [*same, drawn(3, "c", 5, 3, role="mlp_up"), drawn(4, "q", 3, 3)])
    answer = store.query("pair_ranks")
    assert rows(answer, "role", "rows", "cols", "k", "matrices") == [
        *(("query", 3, 3, k, 1) for k in range(3)),
        *(("mlp_up", 3, 5, k, 2) for k in range(3)),
        *(("mlp_up", 5, 3, k, 1) for k in range(3)),
    ]
    for k, row in enumerate(answer.slice(3, 3).to_pylist()):
        assert row["singular_value_base"] == pytest.approx(mean([pair.base[k] for pair in same]))
        assert row["singular_value_tuned"] == pytest.approx(mean([pair.tuned[k] for pair in same]))
        if k < 2:
            change = mean([pair.tuned[k] / pair.base[k] - 1 for pair in same])
            assert row["singular_value_change"] == pytest.approx(change)
            means = [mean([pair.vectors[name][k] for pair in same]) for name in P_COLUMNS]
            assert [row[name] for name in P_COLUMNS] == pytest.approx(means, abs=1e-6)
            shift = (means[1] + means[3] - means[0] - means[2]) / 2
            assert row["p_change"] == pytest.approx(shift, abs=1e-6)
        else:
            assert (row["singular_value_change"], row["u_p_base"], row["p_change"]) == (None, None, None)
            assert row["u_p_tuned"] == pytest.approx(mean([pair.vectors["u_p_tuned"][k] for pair in same]), abs=1e-6)


def test_pair_shift_has_one_row_a_role_for_one_pair_and_one_row_a_pair_for_several(store: Store) -> None:
    pairs = [drawn(1, "a", 20, 30, role="mlp_up"), drawn(2, "b", 20, 20, layer=1), drawn(3, "c", 20, 20, layer=2)]
    add_comparison(store, "one", [*pairs, drawn(4, "h", 20, 20, head=0)])
    parts = {"small": range(18, 20), "middle": range(2, 18), "large": range(2)}

    def expected(of: list[Pair]) -> dict[str, float]:
        found = {}
        for part, ranks in parts.items():
            there = [(pair, k) for pair in of for k in ranks]
            found[f"s_{part}"] = mean([100 * (pair.tuned[k] / pair.base[k] - 1) for pair, k in there if pair.base[k]])
            change = [
                (p["u_p_tuned"][k] + p["v_p_tuned"][k] - p["u_p_base"][k] - p["v_p_base"][k]) / 2  # type: ignore[operator]
                for p, k in ((pair.vectors, k) for pair, k in there)
                if None not in (p[name][k] for name in P_COLUMNS)
            ]
            found[f"p_{part}"] = mean(change)
        return found

    answer = store.query("pair_shift").to_pylist()
    assert [(row["role"], row["matrices"]) for row in answer] == [("query", 2), ("mlp_up", 1)]
    for row, of in zip(answer, (pairs[1:], pairs[:1]), strict=True):
        wanted = expected(of)
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    add_comparison(store, "two", pairs[:1], tuned="org/other")
    several = store.query("pair_shift").to_pylist()
    assert [(row["tuned_model"], row["role"], row["matrices"]) for row in several] == [
        ("org/other", None, 1),
        ("org/tuned", None, 3),
    ]
    wanted = expected(pairs)
    assert {name: several[1][name] for name in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert rows(store.query("pair_shift", tuned="tuned"), "role") == [("query",), ("mlp_up",)]
    assert store.query("pair_shift", by_role=True).num_rows == 3


def test_pair_intruders_lists_the_matrices_that_have_some_the_most_first(store: Store) -> None:
    # 0.5 itself is no intruder; the third matrix has one beyond the top ten; the fourth has none.
    overlaps = {
        "a": [0.9, 0.4, *[0.9] * 10],
        "b": [0.3, 0.5, 0.2, *[0.8] * 9],
        "c": [*[0.9] * 10, 0.1, 0.9],
        "d": [0.9] * 12,
    }
    pairs = [
        Pair(
            tensor=name,
            layer=layer,
            rows=12,
            cols=12,
            base=np.linspace(2, 1, 12).tolist(),
            tuned=np.linspace(2, 1, 12).tolist(),
            vectors={"u_overlap": values, "u_p_tuned": [k / 20 for k in range(12)]},
            more={"relative_change": 0.01 * (layer + 1), "outliers_right_base": 3, "outliers_right_tuned": 3 + layer},
        )
        for layer, (name, values) in enumerate(overlaps.items())
    ]
    add_comparison(store, "one", pairs)
    columns = (
        "tensor",
        "layer",
        "intruders",
        "examined",
        "ranks",
        "smallest_overlap",
        "u_p",
        "relative_change",
        "above_gained",
    )
    found = store.query("pair_intruders")
    expected = [
        ("b", 1, 2, 10, "0, 2", 0.2, (0 + 2) / 20 / 2, 0.02, 1),
        ("a", 0, 1, 10, "1", 0.4, 1 / 20, 0.01, 0),
    ]
    assert found.num_rows == 2
    for row, wanted in zip(rows(found, *columns), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)
    assert rows(store.query("pair_intruders", top=12), "tensor", "ranks") == [("b", "0, 2"), ("c", "10"), ("a", "1")]
    assert rows(store.query("pair_intruders", threshold=0.25), "tensor", "ranks") == [("b", "2")]
    assert rows(store.query("pair_intruders", threshold=0.6, top=1), "tensor", "examined") == [("b", 1)]


def test_pair_intruders_tells_slices_of_one_weight_apart(store: Store) -> None:
    overlap = {"u_overlap": [0.1, 0.9, 0.9, 0.9]}
    experts = [
        Pair(tensor="e", role="mlp_up", expert=expert, vectors=overlap, more={"relative_change": 0.1 + expert})
        for expert in range(3)
    ]
    heads = [Pair(tensor="q", head=head, vectors=overlap, more={"relative_change": 5.0 + head}) for head in range(2)]
    add_comparison(store, "one", [*experts, *heads])
    assert rows(store.query("pair_intruders"), "expert", "intruders", "relative_change") == [
        (0, 1, 0.1),
        (1, 1, 1.1),
        (2, 1, 2.1),
    ]
    assert rows(store.query("pair_intruders", heads=True), "head", "relative_change") == [(0, 5.0), (1, 6.0)]


def test_pair_by_decile_averages_over_the_deciles_of_every_matrix(store: Store) -> None:
    pairs = [
        drawn(1, "a", 20, 30, role="mlp_up", overlaps={("u", 1): 0.5, ("v", 1): 0.9, ("u", 10): 1.0}),
        drawn(2, "b", 25, 25, role="mlp_up", layer=1, overlaps={("u", 1): 0.7}),
    ]
    add_comparison(store, "one", [*pairs, drawn(3, "q", 20, 20)])
    answer = [row for row in store.query("pair_by_decile").to_pylist() if row["role"] == "mlp_up"]
    assert [(row["decile"], row["matrices"]) for row in answer] == [(decile, 2) for decile in range(1, 11)]
    for row in answer:
        # Decile 10 holds ranks 0 <= k < K/10, decile 1 the last ones.
        there = [
            (pair, k)
            for pair in pairs
            for k in range(len(pair.base))
            if 10 - row["decile"] <= 10 * k / len(pair.base) < 11 - row["decile"]
        ]
        for side in "uv":
            turned = mean([1 - pair.vectors[f"{side}_overlap"][k] for pair, k in there])  # type: ignore[operator]
            assert row[f"{side}_turned"] == pytest.approx(turned, abs=1e-6)
        moves = np.array([pair.tuned[k] / pair.base[k] - 1 for pair, k in there if pair.base[k] > 0])
        assert row["singular_value_change"] == pytest.approx(moves.mean())
        assert row["singular_value_moved"] == pytest.approx(np.abs(moves).mean())
        means = [mean([pair.vectors[name][k] for pair, k in there]) for name in P_COLUMNS]
        assert [row[name] for name in P_COLUMNS] == pytest.approx(means, abs=1e-6)
        assert row["p_change"] == pytest.approx((means[1] + means[3] - means[0] - means[2]) / 2, abs=1e-6)
    lost = [(row["u_subspace_turned"], row["v_subspace_turned"]) for row in answer]
    assert lost[0] == (pytest.approx(1 - (0.5 + 0.7) / 2), pytest.approx(1 - 0.9))
    assert lost[1:] == [(None, None)] * 8 + [(0.0, None)]


@pytest.mark.parametrize("name", ["pair_ranks", "pair_shift", "pair_intruders", "pair_by_decile"])
def test_pair_queries_show_the_newest_comparison_of_the_pairs_that_are_wanted(store: Store, name: str) -> None:
    def of(marker: int, **more: object) -> Pair:
        vectors = {"u_overlap": [marker / 10] * 4, "v_overlap": [0.9] * 4} | dict.fromkeys(P_COLUMNS, [0.5] * 4)
        tuned = [value * (1 + marker / 10) for value in (4.0, 3.0, 2.0, 1.0)]
        return Pair(tuned=tuned, vectors=vectors, **more)

    add_comparison(store, "old", [of(1)], hours=1)
    add_comparison(store, "new", [of(2), of(4, head=0)], hours=2)
    add_comparison(store, "other", [of(3, role="mlp_up")], tuned="org/other")
    column, value = {
        "pair_ranks": ("singular_value_change", lambda marker: marker / 10),
        "pair_shift": ("s_middle", lambda marker: 10.0 * marker),
        "pair_intruders": ("smallest_overlap", lambda marker: marker / 10),
        "pair_by_decile": ("u_turned", lambda marker: 1 - marker / 10),
    }[name]

    def shown(**params: object) -> list[tuple[object, ...]]:
        more = {"by_role": True} if name == "pair_shift" else {}
        answer = store.query(name, **params, **more).to_pylist()
        found = {(row["tuned_model"], row["role"], round(row[column], 6)) for row in answer}
        assert {row["base_model"] for row in answer} <= {"org/base"}
        return sorted(found)

    def expected(*lines: tuple[str, str, int]) -> list[tuple[object, ...]]:
        return [(tuned, role, pytest.approx(value(marker))) for tuned, role, marker in lines]

    other, mine = ("org/other", "mlp_up", 3), ("org/tuned", "query", 2)
    assert shown() == expected(other, mine)
    assert shown(base="org/base") == expected(other, mine)
    assert shown(tuned="org/tuned") == expected(mine)
    assert shown(role="mlp_up") == expected(other)
    assert shown(heads=True) == expected(("org/tuned", "query", 4))
    with pytest.raises(QueryError, match="no model 'nobody': the store has org/base, org/other, org/tuned"):
        shown(base="nobody")


def of(marker: int, **more: object) -> Pair:
    """A pair whose relative change is the marker, and whose overlaps are a tenth of it."""
    values = [marker / 10] * 4
    vectors = {"u_overlap": values, "v_overlap": values, **dict.fromkeys(P_COLUMNS, [0.5] * 4)}
    own: dict[str, object] = {"relative_change": float(marker)}
    return Pair(vectors=vectors, overlaps={("u", 1): marker / 10}, more=own, **more)  # type: ignore[arg-type]


def changes(store: Store, **params: object) -> list[tuple[object, ...]]:
    return rows(store.query("pair_changes", **params), "tensor", "relative_change")


def test_a_comparison_of_some_matrices_replaces_those_only(store: Store) -> None:
    whole = [of(1, tensor="q0"), of(2, tensor="q1", layer=1), of(3, tensor="up", role="mlp_up", layer=1)]
    add_comparison(store, "whole", whole, hours=1)
    add_comparison(store, "some", [of(4, tensor="q1", layer=1)], hours=2)
    add_comparison(store, "heads", [of(1, tensor="q0", head=head) for head in range(2)], hours=3)
    assert changes(store) == [("q0", 1.0), ("q1", 4.0), ("up", 3.0)]
    assert rows(store.query("pair_summary"), "role", "matrices", "change_max") == [
        ("query", 2, 4.0),
        ("mlp_up", 1, 3.0),
    ]
    assert set(rows(store.query("pair_ranks", role="query"), "k", "matrices")) == {(k, 2) for k in range(4)}
    [smallest] = [row for row in store.query("pair_by_decile", role="query").to_pylist() if row["decile"] == 3]
    assert smallest["u_turned"] == pytest.approx(1 - (0.1 + 0.4) / 2)
    assert rows(store.query("pair_intruders"), "tensor", "relative_change") == [("q0", 1.0), ("up", 3.0), ("q1", 4.0)]
    assert store.query("pair_summary", heads=True).num_rows == 1
    # The same for who asks the tables.
    for table, each in (("pairs", 1), ("pair_vectors", 4), ("pair_subspaces", 1)):
        assert store.sql(f"from {table}").num_rows == 5 * each
        assert store.sql(f"from all_{table}").num_rows == 6 * each
        assert store.sql(f"select distinct pair_id from {table} where base_tensor = 'q1'").to_pylist() == [
            {"pair_id": "some"}
        ]
    assert store.sql("from pairs").column_names == store.sql("from all_pairs").column_names


@pytest.mark.parametrize(
    "name", ["pair_changes", "pair_summary", "pair_shift", "pair_ranks", "pair_by_decile", "pair_intruders"]
)
def test_one_comparison_can_be_asked_for_whole(store: Store, name: str) -> None:
    add_comparison(store, "old", [of(1, tensor="q"), of(1, tensor="up", role="mlp_up")], hours=1)
    add_comparison(store, "new", [of(2, tensor="q")], hours=2)

    def shown(pair_id: str) -> set[tuple[object, ...]]:
        return set(rows(store.query(name, pair_id=pair_id), "role"))

    assert shown("old") == {("query",), ("mlp_up",)}
    assert shown("new") == {("query",)}
    assert shown("none") == set()
    assert changes(store, pair_id="old") == [("q", 1.0), ("up", 1.0)]


def test_a_comparison_with_no_newest_result_is_not_chosen(store: Store) -> None:
    add_comparison(store, "old", [of(1)], hours=1)
    add_comparison(store, "new", [of(2), of(3, tensor="other")], hours=2)
    chosen = store.sql("select pair_id from chosen_comparisons(null, null)").to_pylist()
    assert chosen == [{"pair_id": "new"}]
    assert store.sql("select pair_id from pairs semi join chosen_comparisons(null, null) using (pair_id)").num_rows == 2


def test_revisions_are_models_of_their_own(store: Store) -> None:
    for number, revision in enumerate(("step1000", "step2000", "0123456789abcdef")):
        add_scan(store, f"s{number}", [Matrix()], model="org/run", revision=revision, hours=number)
    run = {"base": "org/run", "tuned": "org/run"}
    add_comparison(store, "early", [of(1)], scans=("s0", "s1"), hours=1, **run)
    add_comparison(store, "late", [of(2)], scans=("s1", "s2"), hours=2, **run)
    add_comparison(store, "early-again", [of(3)], scans=("s0", "s1"), hours=3, **run)
    for name in ("pair_changes", "pair_summary"):
        found = store.query(name, base="org/run")
        assert rows(found, "base_revision", "tuned_revision") == [
            ("step1000", "step2000"),
            ("step2000", "0123456789ab"),
        ]
    assert rows(store.query("pair_changes"), "relative_change") == [(3.0,), (2.0,)]
    assert store.query("pair_ranks").num_rows == 8


def test_questions_about_one_pair_read_no_other_pair_s_rows(store: Store) -> None:
    many = [drawn(n, f"t{n}", 20, 20, layer=n) for n in range(20)]
    for number in range(4):
        add_comparison(store, f"p{number}", many, tuned=f"m{number}")
    add_comparison(store, "again", many[:1], tuned="m2", hours=1)

    def scans(operators: list[dict[str, object]]) -> list[dict[str, object]]:
        own = [one for one in operators if "READ_PARQUET" in str(one["extra_info"].get("Function"))]  # type: ignore[attr-defined]
        return own + [scan for one in operators for scan in scans(one.get("children", []))]  # type: ignore[arg-type]

    for query in store.queries():
        if not query.name.startswith("pair_") or "pair_id" not in [param.name for param in query.params]:
            continue
        for model, own in (("m1", ["p1"]), ("m2", ["p2", "again"])):
            text = f"explain (analyze, format json) {query.sql}"
            [(_, profile)] = store._database().connection.execute(text, query.bind({"tuned": model})).fetchall()
            for scan in scans(json.loads(profile)["operator"]):
                place = Path(str(scan["extra_info"]["Filename(s)"]).split(",")[0]).parent.name  # type: ignore[index]
                pushed = str(scan["extra_info"].get("Dynamic Filters"))  # type: ignore[attr-defined]
                if place in ("pairs", "pair_vectors"):
                    assert all(f"'{name}'" in pushed for name in own), (query.name, place, pushed)


def test_pair_unmatched_lists_what_was_not_compared_under_old_names_and_new(store: Store) -> None:
    new = {
        "only in base (org/base)": ["old.weight (router, expert 2)"],
        "only in tuned (org/tuned)": ["lora", "qkv (query, head 3)"],
        "of another shape": ["e (10x4 became 12x4)", "qkv (value) (4x4 became 2x4)"],
        "failed": ["q (head 1): OSError: gone (really)", "v: no numbers: NaN"],
    }
    add_comparison(store, "first", [of(1)], hours=1, unmatched_tensors=json.dumps(new))
    add_comparison(store, "later", [of(1, tensor="v", role="value")], hours=2, unmatched_tensors="{}")
    old = {"only in org/base": ["a"], "only in org/other": ["b"], "failed": ["c: broken"]}
    add_comparison(store, "old", [of(1)], tuned="org/other", unmatched_tensors=json.dumps(old))
    add_comparison(store, "none", [of(1)], tuned="org/same")
    columns = ("side", "reason", "tensor", "role", "head", "expert", "detail")
    whole = [
        ("both", "another shape", "e", None, None, None, "10x4 became 12x4"),
        ("both", "another shape", "qkv", "value", None, None, "4x4 became 2x4"),
        ("both", "failed", "q", None, 1, None, "OSError: gone (really)"),
        ("both", "failed", "v", None, None, None, "no numbers: NaN"),
        ("base", "no counterpart", "old.weight", "router", None, 2, None),
        ("tuned", "no counterpart", "lora", None, None, None, None),
        ("tuned", "no counterpart", "qkv", "query", 3, None, None),
    ]
    assert rows(store.query("pair_unmatched", tuned="org/tuned", pair_id="first"), *columns) == whole
    assert rows(store.query("pair_unmatched", tuned="org/tuned"), *columns) == [*whole[:3], *whole[4:]]
    assert rows(store.query("pair_unmatched", tuned="org/other"), *columns) == [
        ("both", "failed", "c", None, None, None, "broken"),
        ("base", "no counterpart", "a", None, None, None, None),
        ("tuned", "no counterpart", "b", None, None, None, None),
    ]
    assert store.query("pair_unmatched", tuned="org/same").num_rows == 0
    assert set(rows(store.query("pair_unmatched"), "tuned_model")) == {("org/tuned",), ("org/other",)}
