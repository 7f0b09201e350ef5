"""The query about metrics of the spectrum: medians over the matrices of a role, and NULL where a scan has none."""

import numpy as np
import pytest

from scanner.store import Store

from .rows import Matrix, add_scan


def matrices(role: str, values: list[dict[str, object]]) -> list[Matrix]:
    return [Matrix(tensor=f"{role}.{at}", layer=at, role=role, more=more) for at, more in enumerate(values)]


def test_medians_by_role(store: Store) -> None:
    alphas = [2.5, 3.5, 9.0]
    values = [
        {
            "alpha": alpha,
            "alpha_failure": "not a power law" if alpha > 5 else None,
            "ww_alpha": alpha + 1.0,
            "tw_outliers": int(alpha),
            "outliers_right": 3 * at,
            "gd_rank": at,
        }
        for at, alpha in enumerate(alphas)
    ]
    failed = [{"alpha": None, "alpha_failure": "all singular values are equal", "tw_p": 0.5}]
    add_scan(store, "one", [*matrices("query", values), *matrices("key", failed), *matrices("value", [{}])])
    query, key, value = store.query("metrics_by_role").to_pylist()
    assert query["matrices"] == 3
    assert query["alpha"] == np.median(alphas[:2]), "the third one is no power law"
    assert query["alpha_fits"] == 2
    assert query["ww_alpha"] == 4.5
    assert (query["tw_outliers"], query["outliers"], query["gd_rank"]) == (3, 3, 1)
    assert query["tw_p"] is None
    assert (key["alpha"], key["alpha_fits"], key["tw_p"]) == (None, 0, 0.5)
    assert (value["alpha"], value["alpha_fits"], value["ww_alpha"]) == (None, None, None), "the scan computed none"


@pytest.mark.parametrize("role", ["query", "key"])
def test_one_role(store: Store, role: str) -> None:
    add_scan(store, "one", [*matrices("query", [{}]), *matrices("key", [{}])])
    assert [row["role"] for row in store.query("metrics_by_role", role=role).to_pylist()] == [role]
