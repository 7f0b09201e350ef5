"""The analysis of random, planted, degenerate and real matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from scanner import analyze
from scanner.rmt.analysis import NotFiniteError
from scanner.rmt.ensembles import ENSEMBLES, MATRIX_ENSEMBLES, control, control_of, kaiming_uniform
from scanner.rmt.ks_null import KsNull
from scanner.rmt.scale_null import Profile
from scanner.rmt.sigma import SigmaKind
from tests.rmt.matrices import orthonormal

#: Role, tensor, and over the six layers: sigma, outliers left and right, and an independent float64 computation's mean v_p of its
#: tenth and u_p of its first bin of 384 // 10 ranks. Its bins leave the four smallest values out; `role_table`'s deciles do not.
MINILM = [
    ("attention.self.query", 0.062, 0.0, 54.5, 0.51, 0.35),
    ("attention.self.key", 0.061, 0.0, 48.5, 0.44, 0.30),
    ("attention.self.value", 0.047, 0.0, 50.5, 0.36, 0.37),
    ("attention.output.dense", 0.040, 0.0, 46.3, 0.46, 0.20),
    ("intermediate.dense", 0.056, 30.8, 55.7, 0.16, 0.05),
    ("output.dense", 0.038, 33.5, 60.7, 0.46, 0.31),
]


@pytest.mark.parametrize(("name", "sigma", "left", "right", "v_small", "u_large"), MINILM)
def test_real_matrices_have_the_published_numbers(
    minilm: Path, name: str, sigma: float, left: float, right: float, v_small: float, u_large: float
) -> None:
    from safetensors import safe_open

    with safe_open(minilm / "model.safetensors", "pt") as file:
        found = [analyze(file.get_tensor(f"encoder.layer.{layer}.{name}.weight")) for layer in range(6)]
    # Half a unit of the last printed digit; the p-values carry the Monte Carlo noise of two nulls as well.
    assert np.mean([a.sigma for a in found]) == pytest.approx(sigma, abs=6e-4)
    assert np.mean([a.outliers_left for a in found]) == pytest.approx(left, abs=0.05)
    assert np.mean([a.outliers_right for a in found]) == pytest.approx(right, abs=0.05)
    assert np.mean([a.v_p[342:380] for a in found]) == pytest.approx(v_small, abs=0.01)
    assert np.mean([a.u_p[:38] for a in found]) == pytest.approx(u_large, abs=0.01)


def test_the_very_smallest_values_of_mlp_up_are_the_least_random(minilm: Path) -> None:
    from safetensors import safe_open

    with safe_open(minilm / "model.safetensors", "np") as file:
        weights = [file.get_tensor(f"encoder.layer.{layer}.intermediate.dense.weight") for layer in range(6)]
    means = []
    for w in weights:
        right = np.linalg.svd(w.astype(np.float64), full_matrices=False)[2][-38:]
        d = [stats.kstest(v * np.sqrt(384), "norm").statistic for v in right]
        means.append(KsNull().p_values(d, 384).mean())
    assert np.mean(means) == pytest.approx(0.132, abs=0.002)
    assert np.mean([analyze(w).v_p[-38:].mean() for w in weights]) == pytest.approx(np.mean(means), abs=1e-3)


def test_every_column_agrees_with_numpy_and_scipy(minilm: Path) -> None:
    from safetensors import safe_open

    with safe_open(minilm / "model.safetensors", "np") as file:
        w = file.get_tensor("encoder.layer.3.attention.self.key.weight").astype(np.float64)
    u, s, vt = np.linalg.svd(w)
    found = analyze(w)
    assert found.singular_values == pytest.approx(s, rel=1e-9)
    for vectors, ks, ipr, peak in (
        (u.T, found.u_ks, found.u_ipr, found.u_peak),
        (vt, found.v_ks, found.v_ipr, found.v_peak),
    ):
        expected = [stats.kstest(x * np.sqrt(384), "norm").statistic for x in vectors]
        # A triplet is fixed up to its sign, and with the sign D may change: the better of the two must agree.
        mirrored = [stats.kstest(-x * np.sqrt(384), "norm").statistic for x in vectors]
        assert np.minimum(np.abs(ks - expected), np.abs(ks - mirrored)).max() < 1e-6
        assert ipr == pytest.approx((vectors**4).sum(axis=1), rel=1e-4)
        assert peak == pytest.approx(np.abs(vectors).max(axis=1), rel=1e-4)
    assert found.sigma_std == pytest.approx(w.std(), rel=1e-9)
    assert found.sigma_init == pytest.approx(1 / np.sqrt(384))
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(w))
    assert found.spectral_norm == pytest.approx(np.linalg.norm(w, 2))
    assert found.stable_rank == pytest.approx(np.linalg.norm(w) ** 2 / s[0] ** 2)
    assert found.effective_rank == pytest.approx(np.exp(stats.entropy(s / s.sum())))
    assert found.rank == np.linalg.matrix_rank(w)
    assert found.outliers_right == (s > found.mp_upper).sum()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("shape", [(384, 384), (256, 1024), (1024, 256)])
def test_random_matrices_have_learned_nothing(ensemble: str, shape: tuple[int, int]) -> None:
    found = analyze(control(ensemble, *shape, seed=11))  # type: ignore[arg-type]
    count = min(shape)
    assert found.sigma == pytest.approx(1 / np.sqrt(max(shape)), rel=0.01)
    assert found.outliers_left + found.outliers_right <= 2
    assert found.mp_ks < 0.03
    for p, p_local in ((found.u_p, found.u_p_local), (found.v_p, found.v_p_local)):
        assert stats.kstest(p, "uniform").pvalue > 1e-4
        assert p.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * count))
        assert p_local.std() == pytest.approx(1 / np.sqrt(180), rel=0.45)


def test_p_local_is_the_mean_over_a_window_that_shrinks_at_the_ends() -> None:
    found = analyze(np.random.default_rng(0).standard_normal((50, 60)))
    expected = [found.u_p[max(k - 7, 0) : k + 8].mean() for k in range(50)]
    assert found.u_p_local == pytest.approx(expected)


def test_square_matrices_have_no_left_outliers_and_a_small_value_planted_in_a_rectangle_is_one() -> None:
    rng = np.random.default_rng(1)
    square = analyze(rng.standard_normal((200, 200)))
    assert square.mp_lower == 0.0
    assert square.outliers_left == 0
    w = rng.standard_normal((400, 100))
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    s[-1] = 0.3 * s[-1]
    found = analyze(u * s @ vt)
    assert found.region[-1] == "left"
    assert found.outliers_left == 1


@pytest.mark.parametrize("kind", ["median", "std", "init", "bulk"])
def test_the_sigma_that_is_asked_for_sets_the_edges(kind: str) -> None:
    w = np.random.default_rng(2).standard_normal((120, 80)) * 0.7
    found = analyze(w, sigma=kind)  # type: ignore[arg-type]
    assert found.sigma_kind == kind
    assert found.sigma == getattr(found, f"sigma_{kind}")
    if kind != "bulk":
        assert found.mp_upper == pytest.approx(found.sigma * (np.sqrt(120) + np.sqrt(80)))


def test_rank_deficient_triplets_are_null_and_have_no_p_value() -> None:
    rng = np.random.default_rng(3)
    found = analyze(rng.standard_normal((60, 20)) @ rng.standard_normal((20, 90)))
    assert found.rank == 20
    assert (found.region[20:] == "null").all()
    assert np.isnan(found.u_p[20:]).all()
    assert np.isnan(found.v_p_local[20:]).all()
    assert np.isfinite(found.u_p[:20]).all()
    assert found.svd_method == "svd"


def test_a_zero_matrix_is_all_null() -> None:
    found = analyze(np.zeros((5, 8)))
    assert found.rank == 0
    assert set(found.region) == {"null"}
    assert (found.sigma, found.mp_lower, found.mp_upper, found.stable_rank, found.effective_rank) == (0, 0, 0, 0, 0)
    assert np.isnan(found.u_p_mean)


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (1, 1), (2, 2)])
def test_the_smallest_shapes_are_analyzed(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(4).standard_normal(shape)
    found = analyze(w)
    assert found.singular_values == pytest.approx(np.linalg.svd(w, compute_uv=False))
    assert np.isnan(found.u_p).all() == (shape[0] == 1)
    assert np.isnan(found.v_p).all() == (shape[1] == 1)


def test_nan_and_inf_are_counted() -> None:
    w = np.ones((4, 5), dtype=np.float32)
    w[0, :2], w[3, 3] = np.nan, -np.inf
    with pytest.raises(NotFiniteError, match="2 NaN and 1 infinite of 20 entries"):
        analyze(w)


def test_large_finite_entries_are_not_taken_for_infinite() -> None:
    half = np.full((300, 300), 6e4, dtype=np.float16)  # their sum is not a float16
    assert analyze(half).spectral_norm == pytest.approx(float(np.float16(6e4)) * 300)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 0)), np.zeros((2, 2, 2)), np.ones((2, 2)) * 1j])
def test_what_is_no_real_matrix_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="matrix"):
        analyze(bad)


def test_integers_lists_and_half_precision_are_matrices_too() -> None:
    assert analyze([[3, 0], [0, 4]]).singular_values.tolist() == [4.0, 3.0]
    half = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert analyze(half).singular_values == pytest.approx(
        np.linalg.svd(half.double().numpy(), compute_uv=False), rel=1e-10
    )


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown sigma 'mean'"):
        analyze(np.eye(3), sigma="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown null"):
        analyze(np.eye(3), null="kstwo")


def test_controls_are_the_same_everywhere_and_differ_by_seed_and_ensemble() -> None:
    a = control("gaussian", 30, 40, seed=0)
    assert (a == control("gaussian", 30, 40, seed=0)).all()
    assert not np.allclose(a, control("gaussian", 30, 40, seed=1))
    for ensemble in ENSEMBLES:
        assert control(ensemble, 300, 200, seed=0).var() == pytest.approx(1 / 300, rel=0.02)
    assert np.abs(control("kaiming_uniform", 128, 3072, 0)).max() <= np.sqrt(3 / 3072)
    with pytest.raises(ValueError, match="unknown ensemble"):
        control("cauchy", 3, 3, seed=0)  # type: ignore[arg-type]


def test_controls_of_a_matrix_keep_what_they_say() -> None:
    rng = np.random.default_rng(12)
    w = rng.standard_normal((60, 40)) * rng.uniform(0.5, 2.0, 60)[:, None]
    rows, cols = (torch.from_numpy(np.mean(w**2, axis=axis) / np.sqrt(np.mean(w**2))) for axis in (1, 0))
    law = Profile(rows=rows, cols=cols)
    for ensemble in MATRIX_ENSEMBLES:
        found = control_of(ensemble, w, 3, law)
        assert (found == control_of(ensemble, w, 3, law)).all()
        assert not np.allclose(found, control_of(ensemble, w, 4, law))
    assert (np.sort(control_of("permuted", w, 0).ravel()) == np.sort(w.ravel())).all()
    assert (np.abs(control_of("sign", w, 0)) == np.abs(w)).all()
    assert abs(np.sign(control_of("sign", w, 0)).mean()) < 0.1
    draws = np.stack([control_of("scale", w, seed, law) for seed in range(200)])
    assert (draws**2).mean(axis=(0, 2)) == pytest.approx((w**2).mean(axis=1), rel=0.1)
    with pytest.raises(ValueError, match="without its variances"):
        control_of("scale", w, 0)
    with pytest.raises(ValueError, match="cannot be drawn from a matrix"):
        control_of("gaussian", w, 0)


def test_kaiming_uniform_has_the_edges_of_its_law() -> None:
    s = np.linalg.svd(kaiming_uniform(128, 3072, np.random.default_rng(0)), compute_uv=False)
    assert (s[-1], s[0]) == pytest.approx((0.796, 1.204), abs=0.02)


def test_localised_vectors_are_far_from_gaussian() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((100, 80)) * 0.1
    w[7, 9] += 50.0
    found = analyze(w)
    assert found.region[0] == "right"
    assert found.u_peak[0] > 0.99
    assert found.u_p[0] < 1e-5
    assert found.v_ipr[0] > 0.98


def test_orthogonal_spikes_keep_their_own_outliers() -> None:
    rng = np.random.default_rng(6)
    w = rng.standard_normal((300, 300)) + (orthonormal(300, 3, rng) * [80.0, 90.0, 100.0]) @ orthonormal(300, 3, rng).T
    assert analyze(w).outliers_right == 3


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
@pytest.mark.parametrize("kind", ["median", "std", "bulk"])
def test_a_matrix_of_any_scale_is_judged_as_the_same_matrix_at_scale_1(scale: float, kind: SigmaKind) -> None:
    matrix = np.random.default_rng(0).standard_normal((40, 30))
    matrix[:, 0] *= 5.0
    one, scaled = analyze(matrix, sigma=kind), analyze(matrix * scale, sigma=kind)
    for name in (
        "sigma",
        "sigma_median",
        "sigma_std",
        "sigma_bulk",
        "mp_lower",
        "mp_upper",
        "frobenius_norm",
        "spectral_norm",
    ):
        assert getattr(scaled, name) == pytest.approx(getattr(one, name) * scale, rel=1e-12)
    np.testing.assert_array_equal(scaled.region, one.region)
    assert scaled.mp_ks == pytest.approx(one.mp_ks, rel=1e-9)
    assert scaled.sigma_init == one.sigma_init
