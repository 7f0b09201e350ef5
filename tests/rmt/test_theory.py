"""The minimal model: its closed forms, compared with published numbers, with sampled matrices, and with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

import scanner
from scanner.rmt.sigma import SigmaKind
from scanner.rmt.theory import MinimalModel, Outlier, Sample, measure, merging_betas

# t: nu_min to four digits, and the overlaps with u and v that others measured on three draws of 512 x 2048
TABLE = {
    0.0: (0.1720, 0.85, 0.993),
    0.05: (0.2501, 0.54, 0.982),
    0.1: (0.3070, 0.40, 0.968),
    0.2: (0.3909, 0.26, 0.930),
    0.4: (0.4873, 0.10, 0.687),
}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def samples() -> dict[float, list[Sample]]:
    return {t: [MinimalModel.at(t).sample(seed) for seed in SEEDS] for t in TABLE}


@pytest.fixture(scope="module")
def measured(samples: dict[float, list[Sample]]) -> dict[float, list[Outlier]]:
    return {t: [measure(sample) for sample in drawn] for t, drawn in samples.items()}


@pytest.mark.parametrize("t", TABLE)
def test_the_closed_forms_give_the_table(t: float) -> None:
    outlier = MinimalModel.at(t).outlier()
    assert outlier is not None
    assert outlier.side == "left"
    assert round(outlier.singular_value, 4) == TABLE[t][0]
    assert outlier.overlap_u == pytest.approx(TABLE[t][1], abs=0.005)
    assert outlier.overlap_v == pytest.approx(TABLE[t][2], abs=0.003)


@pytest.mark.parametrize("t", TABLE)
def test_sampled_matrices_agree_with_the_closed_forms(t: float, measured: dict[float, list[Outlier]]) -> None:
    expected = MinimalModel.at(t).outlier()
    assert expected is not None
    value, u, v = (
        np.mean([getattr(one, name) for one in measured[t]]) for name in ("singular_value", "overlap_u", "overlap_v")
    )
    # of one draw: |w| has relative deviation 1/sqrt(2N) = 0.016, u about 1/sqrt(N) = 0.022 beside it; near the edge more
    assert value == pytest.approx(expected.singular_value, rel=0.02)
    assert u == pytest.approx(expected.overlap_u, abs=0.05)
    assert v == pytest.approx(expected.overlap_v, abs=0.01 if t < 0.3 else 0.08)


@pytest.mark.parametrize("t", [t for t in TABLE if t <= 0.2])
def test_analyze_reports_exactly_this_outlier(
    t: float, samples: dict[float, list[Sample]], measured: dict[float, list[Outlier]]
) -> None:
    found = scanner.analyze(samples[t][0].matrix)
    assert (found.outliers_left, found.outliers_right) == (1, 0)
    assert found.sigma_kind == "median"
    assert found.singular_values[-1] == pytest.approx(measured[t][0].singular_value)
    assert found.sigma == pytest.approx(1 / math.sqrt(2048), rel=0.005)
    assert found.mp_lower == pytest.approx(0.5, rel=0.01)


def test_every_estimate_of_sigma_finds_it_and_few_draws_have_a_second() -> None:
    # One value of 512 moves none of the estimates; `init` is 1/sqrt(rows), which is 1/sqrt(N) when the N inputs are the rows.
    # A second value below the sharp edge is the Tracy-Widom tail of the bulk itself: P(TW1 > 0) = 0.17, and just below the edge.
    model = MinimalModel.at(0.1, rows=128, cols=512)
    kinds: tuple[SigmaKind, ...] = ("median", "std", "init", "bulk")
    counts = []
    for seed in range(12):
        sample = model.sample(seed)
        for kind in kinds:
            found = scanner.analyze(sample.matrix.T if kind == "init" else sample.matrix, sigma=kind)
            counts.append(found.outliers_left)
            assert found.outliers_left >= 1
            others = found.singular_values[found.region == "left"][:-1]
            assert np.all(others > 0.96 * found.mp_lower)
    assert np.mean(np.array(counts) == 1) >= 0.7


def test_untrained_and_merged_models_have_no_outlier() -> None:
    assert MinimalModel.at(1.0).outlier() is None
    assert MinimalModel.at(0.6).outlier() is None
    untrained = MinimalModel(beta=0.0).sample(3).matrix
    assert np.std(untrained) == pytest.approx(1 / math.sqrt(2048), rel=0.005)


def test_the_outlier_appears_where_beta_says() -> None:
    interval = merging_betas(alpha=1.0, strength=0.2, q=0.25)
    assert interval is not None
    first, last = interval
    assert first == pytest.approx(1.0426, abs=1e-4)
    assert last == math.inf
    assert MinimalModel(beta=first * 0.999).outlier() is None
    at_birth = MinimalModel(beta=first * 1.0001).outlier()
    assert at_birth is not None
    assert at_birth.singular_value == pytest.approx(0.5, abs=1e-6)  # it leaves the edge with the edge's value
    assert at_birth.overlap_v < 0.05


def test_without_a_teacher_the_condition_is_the_covariance_spike() -> None:
    # eta = alpha (1 - c), so c = sqrt q, beta = sqrt q / (alpha (1 - sqrt q)); alpha = 2, q = 1/4: beta = 0.5
    interval = merging_betas(alpha=2.0, strength=0.0, q=0.25)
    assert interval is not None
    assert interval[0] == pytest.approx(0.5)
    assert math.isinf(interval[1])


def test_a_strong_teacher_lifts_the_direction_back_into_the_bulk_and_above_it() -> None:
    interval = merging_betas(alpha=1.0, strength=0.705, q=0.1)
    assert interval is not None
    assert math.isinf(interval[1])
    interval = merging_betas(alpha=1.0, strength=0.84, q=0.1)
    assert interval is not None
    middle = math.sqrt(interval[0] * interval[1])
    for beta, inside in ((interval[0] * 0.99, False), (middle, True), (interval[1] * 1.01, False)):
        assert (MinimalModel(beta=beta, strength=0.84, rows=100, cols=1000).outlier() is not None) == inside
    assert merging_betas(strength=5.0, q=0.25) is None
    model = MinimalModel.at(0.05, strength=2.0)
    expected, seen = model.outlier(), measure(model.sample(0), "right")
    assert expected is not None
    assert expected.side == "right"
    assert seen.singular_value == pytest.approx(expected.singular_value, rel=0.01)
    assert seen.overlap_u == pytest.approx(expected.overlap_u, abs=0.02)
    assert seen.overlap_v == pytest.approx(expected.overlap_v, abs=0.02)


def test_alpha_sets_the_scale() -> None:
    one, four = MinimalModel.at(0.1), MinimalModel.at(0.1, alpha=4.0, strength=0.4)
    first, second = one.outlier(), four.outlier()
    assert first is not None
    assert second is not None
    assert second.singular_value == pytest.approx(2 * first.singular_value)
    assert second.overlap_u == pytest.approx(first.overlap_u)
    assert list(four.edges) == pytest.approx([1.0, 3.0])


def test_the_sampled_row_covariance_is_sigma() -> None:
    model = MinimalModel.at(0.25, strength=0.0, rows=4, cols=200_000)
    sample = model.sample(1)
    expected = np.eye(4) - 0.75 * np.outer(sample.v, sample.v)
    assert sample.matrix @ sample.matrix.T == pytest.approx(expected, abs=0.02)


def test_a_direction_that_holds_nothing_has_no_right_vector_to_speak_of() -> None:
    assert (
        MinimalModel.at(0.0, strength=0.0).outlier() is None
    )  # eta = 0: the singular value is zero, its vectors are not unique


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0, "beta": 1.0},
        {"beta": -1.0},
        {"beta": 1.0, "strength": -0.1},
        {"beta": math.nan},
        {"beta": 1.0, "rows": 0},
        {"beta": 1.0, "rows": 3000},
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"required|needs"):
        MinimalModel(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="t = "):
        MinimalModel.at(1.5)
    with pytest.raises(ValueError, match="q <= 1"):
        merging_betas(q=0.0)
