"""What docs/coming-from-weightwatcher.md says about the columns `ww_...` and ours, each line on one matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import scanner
from scanner import analyze

from .rmt.matrices import Matrix, with_spectrum


def trained(rows: int = 200, cols: int = 300) -> Matrix:
    """Noise and spikes, of the size of trained weights."""
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal((rows, cols))
    spikes = [k * np.outer(rng.standard_normal(rows), rng.standard_normal(cols)) for k in (1, 2, 3, 4, 6, 8)]
    return np.asarray(noise + 0.3 * sum(spikes) / np.sqrt(rows * cols))


def test_alpha_does_not_depend_on_the_units() -> None:
    found = {factor: analyze(factor * trained()).metrics for factor in (1.0, 0.005, 0.001)}
    for metrics in found.values():
        assert metrics["alpha"] == pytest.approx(found[1.0]["alpha"], rel=1e-9)
    assert abs(found[0.005]["ww_alpha"] - found[1.0]["ww_alpha"]) > 0.5
    assert found[0.001]["ww_alpha"] is None
    assert "ww_alpha" in found[0.001]["metrics_failure"]


def test_random_entries_have_no_tail() -> None:
    found = analyze(np.random.default_rng(1).standard_normal((200, 300))).metrics
    assert found["ww_alpha"] > 1.0
    assert "random" in found["alpha_failure"]


def test_a_fit_that_fails_has_a_reason() -> None:
    flat = analyze(np.eye(40)).metrics
    assert flat["ww_alpha"] is None
    assert flat["alpha"] is None
    assert flat["alpha_failure"]


def test_the_random_order_has_a_seed() -> None:
    matrix = trained(60, 80)
    one, other = (analyze(matrix, metrics=["ww_rand_distance"]).metrics["ww_rand_distance"] for _ in range(2))
    assert one == other > 0.0


def test_rows_of_unequal_size_are_no_spikes() -> None:
    rng = np.random.default_rng(2)
    found = analyze(rng.standard_normal((300, 400)) * np.geomspace(10.0, 1.0, 300)[:, None])
    assert found.metrics["ww_num_spikes"] > 20
    assert found.outliers_right_scale == 0


def test_small_matrices_have_a_row() -> None:
    weight = torch.from_numpy(np.random.default_rng(3).standard_normal((5, 40)))
    analysis = scanner.analyze_model({"model.layers.0.mlp.up_proj.weight": weight})
    assert analysis.matrices.num_rows == 1
    assert analysis.vectors.num_rows == 5


def test_small_singular_values_keep_their_digits() -> None:
    spectrum = np.append(np.linspace(1.0, 0.1, 30), 1e-7)
    matrix = with_spectrum(spectrum, 40, 31, np.random.default_rng(4))
    from_eigenvalues = np.sqrt(np.abs(np.linalg.eigvalsh(matrix.T @ matrix)[0]))
    assert abs(from_eigenvalues / 1e-7 - 1.0) > 1e-4
    assert analyze(matrix).singular_values[-1] == pytest.approx(1e-7, rel=1e-8)


def test_a_fused_weight_is_three_matrices() -> None:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=10, n_positions=8))
    roles = scanner.analyze_model(model).matrices["role"].to_pylist()
    assert sorted(roles) == sorted(["query", "key", "value", "attn_out", "mlp_up", "mlp_down"])


@pytest.mark.parametrize(
    "matrix", [np.zeros((20, 20)), np.ones((20, 30)), np.diag([1.0, *[0.0] * 19])], ids=["zero", "constant", "one"]
)
def test_no_number_is_infinite(matrix: Matrix) -> None:
    analysis = scanner.analyze_model({"model.layers.0.mlp.up_proj.weight": torch.from_numpy(matrix)}, metrics="all")
    [row] = analysis.matrices.to_pylist()
    metrics = {
        name: value for name, value in row.items() if name.startswith(("ww_", "alpha", "tw_", "bema", "gd_", "spacing"))
    }
    json.dumps(metrics, allow_nan=False)
    assert row["metrics_failure"]
