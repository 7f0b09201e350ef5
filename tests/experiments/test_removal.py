"""Sets of singular values, and weights without them compared with an explicit U S~ V^T."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scanner.checkpoint import Selection
from scanner.errors import ScannerError
from scanner.experiments.nlp.models import load_model, model_place
from scanner.experiments.nlp.placing import Placed, open_target, place_matrices
from scanner.experiments.nlp.removal import (
    FactorCache,
    RemovalSet,
    factors_of,
    indices_by_rank,
    parse_sets,
    random_frame,
    removed,
)
from scanner.rmt.analysis import analyze

from .tiny import save


def placed_in(folder: Path, *roles: str) -> tuple[torch.nn.Module, list[Placed]]:
    target = open_target(str(folder), Selection(only=roles))
    model = load_model(model_place(target.checkpoint))
    return model, place_matrices(model, target.inventory.matrices)[0]


def test_deciles_are_those_of_the_queries_and_cover_everything_once() -> None:
    for count in (10, 57, 192, 576):
        deciles = [indices_by_rank(f"decile:{d}", count) for d in range(1, 11)]
        assert sorted(np.concatenate(deciles).tolist()) == list(range(count))
        assert deciles[0][-1] == count - 1  # 1 = the smallest
        assert deciles[9][0] == 0
        assert {len(one) for one in deciles} <= {count // 10, count // 10 + 1}
        assert all((10 * k // count == 10 - d).all() for d, k in enumerate(deciles, start=1))


def test_ranges_shares_and_regions_pick_what_their_names_say() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 30)) / 8)
    matrix += 3.0 * torch.outer(
        torch.ones(60, dtype=torch.float64) / 60**0.5, torch.ones(30, dtype=torch.float64) / 30**0.5
    )
    factors = factors_of("name", matrix)
    analysis = analyze(matrix)
    assert factors.indices(RemovalSet(name="range:3:7")).tolist() == [3, 4, 5, 6]
    assert factors.indices(RemovalSet(name="range:28:99")).tolist() == [28, 29]
    assert factors.indices(RemovalSet(name="smallest:10")).tolist() == [27, 28, 29]
    for region in ("left", "bulk", "right"):
        expected = np.flatnonzero(analysis.region == region).tolist()
        assert factors.indices(RemovalSet(name=f"region:{region}")).tolist() == expected
    assert 0 in factors.indices(RemovalSet(name="region:right"))
    p = (analysis.u_p_local + analysis.v_p_local) / 2
    expected = sorted(np.argsort(-p, kind="stable")[:6].tolist())
    assert factors.indices(RemovalSet(name="most-random:20")).tolist() == expected


def test_random_sets_have_the_size_of_their_neighbour_and_depend_on_seed_and_matrix_only() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 25)))
    one, other = factors_of("one", matrix), factors_of("other", matrix)
    first = RemovalSet(name="random:1", beside="decile:3")
    drawn = one.indices(first)
    assert len(drawn) == len(one.indices(RemovalSet(name="decile:3"))) == len({*drawn.tolist()})
    assert drawn.tolist() == factors_of("one", matrix).indices(first).tolist()
    assert drawn.tolist() != other.indices(first).tolist()
    assert drawn.tolist() != one.indices(RemovalSet(name="random:2", beside="decile:3")).tolist()


def test_words_stand_for_sets_each_beside_random_ones() -> None:
    assert [one.name for one in parse_sets("regions", 0)] == ["region:left", "region:bulk", "region:right"]
    found = parse_sets("0:5, decile:2", 2)
    assert [(one.name, one.beside) for one in found] == [
        ("range:0:5", None),
        ("random:1", "range:0:5"),
        ("random:2", "range:0:5"),
        ("decile:2", None),
        ("random:1", "decile:2"),
        ("random:2", "decile:2"),
    ]
    assert [one.name for one in parse_sets("random", 3)] == ["random:1", "random:2", "random:3"]
    assert len(parse_sets("deciles", 1)) == 20
    assert len(parse_sets("pruning", 0)) == 8


@pytest.mark.parametrize(
    "text", ["", "decile:11", "decile:0", "5:5", "region:middle", "3", "random:1", "smallest:0", "tenths"]
)
def test_other_words_are_errors(text: str) -> None:
    with pytest.raises(ScannerError, match="set of singular values"):
        parse_sets(text)


@pytest.mark.parametrize(
    ("kind", "role"), [("llama", "mlp_down"), ("llama", "key"), ("gpt2", "key"), ("mixtral", "mlp_down")]
)
@pytest.mark.parametrize("name", ["decile:10", "range:0:4", "smallest:50"])
def test_a_weight_without_a_set_is_u_s_v_and_comes_back_bit_for_bit(
    tmp_path: Path, kind: str, role: str, name: str
) -> None:
    model, placed = placed_in(save(tmp_path, kind), role)
    intact = {key: value.clone() for key, value in model.state_dict().items()}
    wanted, cache = RemovalSet(name=name), FactorCache(1 << 30)
    before = [one.matrix(model).double().numpy().copy() for one in placed]
    with removed(model, placed, wanted, cache) as (gone, total, energy):
        assert total == sum(min(w.shape) for w in before)
        gone_energy = every_energy = 0.0
        for one, w in zip(placed, before, strict=True):
            u, s, vh = np.linalg.svd(w, full_matrices=False)
            k = indices_by_rank(name, len(s))
            gone_energy, every_energy = gone_energy + (s[k] ** 2).sum(), every_energy + (s**2).sum()
            s[k] = 0.0
            gone -= len(k)
            np.testing.assert_allclose(one.matrix(model).numpy(), u * s @ vh, atol=3e-6)
        assert gone == 0
        assert energy == pytest.approx(gone_energy / every_energy, rel=1e-5)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, intact[key])}
        assert changed == {one.parameter for one in placed}
    assert all(torch.equal(value, intact[key]) for key, value in model.state_dict().items())


def test_weights_come_back_after_an_error_too_and_factors_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, placed = placed_in(save(tmp_path, "llama"), "mlp_up")
    intact = placed[0].matrix(model).clone()
    cache = FactorCache(1 << 30)
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        removed(model, placed, RemovalSet(name="decile:10"), cache),
    ):
        raise RuntimeError("in the middle")
    assert torch.equal(placed[0].matrix(model), intact)
    monkeypatch.setattr("scanner.experiments.nlp.removal.factors_of", lambda *given: pytest.fail("computed twice"))
    with removed(model, placed, RemovalSet(name="decile:9"), cache):
        pass


def test_what_does_not_fit_beside_its_own_point_is_not_kept_and_later_points_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, placed = placed_in(save(tmp_path, "llama"), "mlp_up", "mlp_down")
    up, down = placed[:2], placed[2:]
    computed: list[str] = []
    monkeypatch.setattr(
        "scanner.experiments.nlp.removal.factors_of",
        lambda key, matrix: computed.append(key) or factors_of(key, matrix),  # type: ignore[func-returns-value]
    )
    one = factors_of("", up[0].matrix(model)).size  # both roles have matrices of one size

    def points(cache: FactorCache, matrices: list[Placed], count: int) -> int:
        """How many decompositions `count` points of these matrices cost."""
        computed.clear()
        for decile in range(1, 1 + count):
            with removed(model, matrices, RemovalSet(name=f"decile:{decile}"), cache):
                pass
        return len(computed)

    whole = FactorCache(2 * one)
    assert [points(whole, up, 3), points(whole, down, 3), points(whole, up, 1)] == [2, 2, 2]
    assert points(FactorCache(one), up, 3) == 1 + 3, "one of two is kept in every order"
    assert points(FactorCache(1), up, 3) == 3 * 2
    assert points(FactorCache(4 * one), placed, 3) == 4


def test_controls_keep_what_they_promise(tmp_path: Path) -> None:
    """energy: the sum of squares; directions: all singular values, and the vectors of the rest; scale: energy by row and column."""
    rng = np.random.default_rng(3)
    matrix = torch.from_numpy(rng.standard_normal((70, 40)) * rng.uniform(0.2, 3.0, (70, 1)))
    factors = factors_of("name", matrix)
    for beside in ("decile:1", "decile:10", "range:5:25"):
        k = factors.indices(RemovalSet(name=beside))
        energy = (factors.s[k] ** 2).sum()

        taken = factors.indices(RemovalSet(name="energy:1", beside=beside))
        missing = energy - (factors.s[taken] ** 2).sum()
        left_out = np.setdiff1d(np.arange(40), taken)
        assert -1e-9 * energy <= missing < (factors.s[left_out] ** 2).min()
        assert taken.tolist() != factors.indices(RemovalSet(name="energy:2", beside=beside)).tolist()

        wanted = RemovalSet(name="directions:1", beside=beside)
        assert factors.indices(wanted).tolist() == k.tolist()
        change = factors.change(wanted, k).double()
        found = torch.linalg.svd(matrix + change)
        np.testing.assert_allclose(found.S.numpy(), factors.s, atol=1e-5)
        rest = np.setdiff1d(np.arange(40), k)
        np.testing.assert_allclose((change @ factors.right[rest].double().T).norm(), 0.0, atol=1e-4)
        np.testing.assert_allclose((factors.left[rest].double() @ change).norm(), 0.0, atol=1e-4)
        removed_part = (factors.left[k] * torch.from_numpy(factors.s[k]).float()[:, None]).T @ factors.right[k]
        assert float(removed_part.norm()) > 0.5 * float(change.norm()) > 0.1 * float(removed_part.norm())

        put = factors.change(RemovalSet(name="scale:1", beside=beside), k) + removed_part
        assert float(put.norm()) == pytest.approx(energy**0.5, rel=1e-5)

    part = removed_part.double().numpy()
    draws = [factors.change(RemovalSet(name=f"scale:{seed}", beside=beside), k) + removed_part for seed in range(300)]
    squares = np.mean([draw.double().numpy() ** 2 for draw in draws], axis=0)
    np.testing.assert_allclose(squares.mean(axis=1), (part**2).mean(axis=1), rtol=0.12)
    np.testing.assert_allclose(squares.mean(axis=0), (part**2).mean(axis=0), rtol=0.12)


def test_random_frames_are_uniform_in_what_is_left() -> None:
    rng = np.random.default_rng(4)
    kept = torch.linalg.qr(torch.from_numpy(rng.standard_normal((12, 12)))).Q[:7]
    frames = [random_frame(kept, 5, rng) for _ in range(2000)]
    assert all(torch.allclose(one @ one.T, torch.eye(5, dtype=torch.float64), atol=1e-12) for one in frames[:20])
    projector = torch.eye(12, dtype=torch.float64) - kept.T @ kept
    mean = torch.stack([one[:1].T @ one[:1] for one in frames]).mean(dim=0)
    np.testing.assert_allclose(mean, projector / 5, atol=0.02)


def test_each_set_has_its_controls_beside_it() -> None:
    found = parse_sets("decile:1,random", 1, ("energy", "scale"), 2)
    assert [(one.name, one.beside) for one in found] == [
        ("decile:1", None),
        ("random:1", "decile:1"),
        ("energy:1", "decile:1"),
        ("energy:2", "decile:1"),
        ("scale:1", "decile:1"),
        ("scale:2", "decile:1"),
    ]
