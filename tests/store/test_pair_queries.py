"""The named queries about pretrained and fine-tuned pairs against numbers worked out here, by hand or with numpy."""

import numpy as np
import pyarrow as pa
import pytest

from scanner.store import Store

from .rows import Pair, add_comparison

P_COLUMNS = ("u_p_base", "u_p_tuned", "v_p_base", "v_p_tuned")


def rows(answer: pa.Table, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in answer.select(list(columns)).to_pylist()]


def mean(values: object) -> float:
    return float(np.nanmean(np.array(values, dtype=float)))


def drawn(seed: int, tensor: str, rows: int, cols: int, **more: object) -> Pair:
    """A pair of which every column is random; the last triplet of the base is numerically zero and has no p-value."""
    random = np.random.default_rng(seed)
    low = min(rows, cols)
    base, tuned = (np.sort(random.uniform(1, 2, low))[::-1] for _ in range(2))
    base[-1] = 0.0
    vectors = {name: random.uniform(size=low).tolist() for name in (*P_COLUMNS, "u_overlap", "v_overlap")}
    vectors |= {name: [*vectors[name][:-1], None] for name in ("u_p_base", "v_p_base")}
    return Pair(tensor=tensor, rows=rows, cols=cols, base=base.tolist(), tuned=tuned.tolist(), vectors=vectors, **more)


def test_pair_shift_averages_rank_by_rank_over_matrices_of_one_role_and_shape(store: Store) -> None:
    same = [drawn(1, "a", 3, 5, role="mlp_up"), drawn(2, "b", 3, 5, role="mlp_up", layer=1)]
    add_comparison(store, "one", [*same, drawn(3, "c", 5, 3, role="mlp_up"), drawn(4, "q", 3, 3)])
    answer = store.query("pair_shift")
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
    columns = ("tensor", "layer", "intruders", "examined", "ranks", "smallest_overlap", "u_p")
    columns += ("relative_change", "right_gained")
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
    lost = [(row["u_left"], row["v_left"]) for row in answer]
    assert lost[0] == (pytest.approx(1 - (0.5 + 0.7) / 2), pytest.approx(1 - 0.9))
    assert lost[1:] == [(None, None)] * 8 + [(0.0, None)]


@pytest.mark.parametrize("name", ["pair_shift", "pair_intruders", "pair_by_decile"])
def test_pair_queries_show_the_newest_comparison_of_the_pairs_that_are_wanted(store: Store, name: str) -> None:
    def of(marker: int, **more: object) -> Pair:
        vectors = {"u_overlap": [marker / 10] * 4, "v_overlap": [0.9] * 4} | dict.fromkeys(P_COLUMNS, [0.5] * 4)
        tuned = [value * (1 + marker / 10) for value in (4.0, 3.0, 2.0, 1.0)]
        return Pair(tuned=tuned, vectors=vectors, **more)

    add_comparison(store, "old", [of(1)], hours=1)
    add_comparison(store, "new", [of(2), of(4, head=0)], hours=2)
    add_comparison(store, "other", [of(3, role="mlp_up")], tuned="org/other")
    column, value = {
        "pair_shift": ("singular_value_change", lambda marker: marker / 10),
        "pair_intruders": ("smallest_overlap", lambda marker: marker / 10),
        "pair_by_decile": ("u_turned", lambda marker: 1 - marker / 10),
    }[name]

    def shown(**params: object) -> list[tuple[object, ...]]:
        answer = store.query(name, **params).to_pylist()
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
    assert shown(base="nobody") == []
