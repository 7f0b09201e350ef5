"""Sparsities for AlphaPruning, and its file of alphas: against its code.

github.com/haiquanlu/AlphaPruning, commit 5f0e984: `net_esd_estimator` in lib/esd_utils.py and `ww_sparsity` in lib/prune.py;
main.py saves and reads `METRIC.npy` in `--ww_metric_cache`.
The frozen numbers are what these functions themselves computed, in float32.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ConfigError, ScannerError
from scanner.export import alpha_values, alphapruning
from scanner.export.alphapruning import alpha_mid, alpha_peak, hill_alpha, sparsities
from scanner.store import Store, open_store
from tests.export.test_unfrozen import heavy
from tests.store.rows import Matrix, add_scan


@pytest.mark.parametrize(
    ("seed", "rows", "cols", "peak", "mid"),
    [
        (0, 48, 32, 1.5790901184082031, 1.7974921464920044),
        (1, 32, 32, 1.6881022453308105, 1.6889605522155762),
        (2, 24, 60, 1.8097882270812988, 1.9246522188186646),
    ],
)
def test_alphas_are_those_of_the_tool(seed: int, rows: int, cols: int, peak: float, mid: float) -> None:
    s = np.linalg.svd(heavy(seed, rows, cols), compute_uv=False)
    assert alpha_peak(s) == pytest.approx(peak, rel=1e-6)
    assert alpha_mid(s) == pytest.approx(mid, rel=1e-6)


def test_the_hill_estimate_finds_the_exponent_of_a_power_law() -> None:
    drawn = np.sort(np.random.default_rng(0).pareto(1.5, 200_000) + 1.0)  # density ~ x^-2.5
    assert hill_alpha(drawn, 0) == pytest.approx(2.5, abs=0.02)
    assert hill_alpha(drawn, 100_000) == pytest.approx(2.5, abs=0.02)
    assert hill_alpha(np.ones(5), 2) == np.inf


def test_alpha_is_scale_invariant_and_zeros_do_not_count() -> None:
    s = np.linalg.svd(heavy(0, 48, 32), compute_uv=False)
    assert alpha_mid(np.concatenate([1e5 * s, np.zeros(7)])) == pytest.approx(alpha_mid(s), rel=1e-12)


def test_the_mean_is_kept_and_the_range_is_that_of_epsilon() -> None:
    alphas, sizes = [2.0, 3.0, 2.5, 4.0], [10, 20, 30, 40]
    found = sparsities(alphas, sizes, target=0.6, epsilon=0.3)
    assert np.average(found, weights=sizes) == pytest.approx(0.6, rel=1e-12)
    assert found[3] / found[0] == pytest.approx(1.3 / 0.7, rel=1e-12)
    assert (found[2] - found[0]) / (found[3] - found[0]) == pytest.approx(0.25, rel=1e-12)
    np.testing.assert_allclose(sparsities([2.0, 2.0], [1, 2], target=0.5, epsilon=0.3), 0.5)


def test_the_sparsities_are_those_of_the_tool(store: Store) -> None:
    """`ww_sparsity`, line by line, on the file of alphas that the tool reads."""
    content, left_out = alpha_values(store, "llama")
    metrics = np.load(io.BytesIO(content))
    assert (metrics.shape, metrics.dtype, left_out) == ((28,), np.float64, ())
    found = json.loads(alphapruning(store, "llama", sparsity=0.6)[0], parse_constant=pytest.fail)
    prunables = np.array(4 * ([32 * 32, 16 * 32, 16 * 32, 32 * 32] + 3 * [32 * 56]))
    scores = np.repeat(metrics.reshape(4, 7).mean(axis=1), 7)
    ratios = (scores - scores.min()) / (scores.max() - scores.min()) * (1.3 - 0.7) + 0.7
    ratios *= prunables.sum() * 0.6 / (prunables * ratios).sum()
    np.testing.assert_allclose([one["sparsity"] for one in found["layers"]], ratios[::7], rtol=1e-9)
    names = [
        f"model.layers.0.{name}"
        for name in "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj".split()
    ]
    np.testing.assert_allclose([found["modules"][name]["alpha"] for name in names], metrics[:4], rtol=1e-12)
    assert {one["sparsity"] for name, one in found["modules"].items() if ".3." in name} == {
        found["layers"][3]["sparsity"]
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"roles": ("embedding",)}, "'embedding', which AlphaPruning does not know"),
        ({"sparsity": 1.0}, "`sparsity` must be between 0 and 1"),
        ({"epsilon": -0.1}, "`epsilon` must be at least 0"),
        ({"sparsity": 0.95, "epsilon": 0.9}, "0.9 is too large for a sparsity of 0.95"),
        ({"ww_metric": "alpha"}, "`ww_metric` must be one of"),
    ],
)
def test_unsuitable_arguments_are_refused(store: Store, more: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        alphapruning(store, "llama", **more)  # type: ignore[arg-type]


def test_blocks_of_different_sizes_have_no_file_of_alphas(tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    roles = ((0, "query"), (0, "key"), (1, "query"))
    add_scan(made, "a", [Matrix(tensor=f"h.{layer}.{role}.weight", layer=layer, role=role) for layer, role in roles])
    with pytest.raises(ScannerError, match="different numbers of modules"):
        alpha_values(made, "org/model")
    add_scan(made, "b", [Matrix(tensor="h.0.q.weight", singular_values=(1.0, 1.0, 1.0, 1.0))], model="org/flat")
    with pytest.raises(ScannerError, match=r"h\.0\.q has no alpha_mid"):
        alphapruning(made, "org/flat", ww_metric="alpha_mid")
