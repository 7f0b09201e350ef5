"""Comparisons of real and synthetic pairs, checked with numpy on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scanner import Method, PoolOptions, Selection, Store, compare, open_checkpoint, open_store
from scanner.checkpoint import Checkpoint, difference, list_matrices
from scanner.engine.compare import compare_pair, find_reference, stored_method
from scanner.engine.method import scan_id
from scanner.engine.rows import unpack
from scanner.errors import CheckpointError, ConfigError
from tests.checkpoint.writing import checkpoint
from tests.store.rows import Matrix, add_scan, failure, scan_values

from .checkpoints import small, tensors, weight
from .observer import Recorder

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = {"architectures": ["LlamaForCausalLM"]}
POOL = PoolOptions(workers=1)


def tuned_tensors() -> dict[str, torch.Tensor]:
    """`tensors()` with the first block rotated and scaled, and the other blocks unchanged."""
    made = dict(tensors())
    for number, (name, tensor) in enumerate(made.items()):
        if ".layers.0." in name and tensor.ndim == 2:
            made[name] = tensor + 0.1 * weight(tensor.shape[0], tensor.shape[1], 77 + number)
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Store]:
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = small(folder / "base"), checkpoint(folder / "tuned", tuned_tensors(), CONFIG)
    compare(base, tuned, store=folder / "store", pool=POOL)
    return base, tuned, open_store(str(folder / "store"))


def test_a_pair_is_what_numpy_says_of_it(pair: tuple[str, str, Store]) -> None:
    *_, store = pair
    before, after = tensors(), tuned_tensors()
    rows = {row["base_tensor"]: row for row in store.sql("SELECT * FROM pairs").to_pylist()}
    assert len(rows) == 12
    for name, row in rows.items():
        a, b = before[name].double().numpy(), after[name].double().numpy()
        assert row["relative_change"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9, abs=1e-15)
        assert row["identical"] == (".layers.0." not in name)
        u0, _, _ = np.linalg.svd(a, full_matrices=False)
        u, _, _ = np.linalg.svd(b, full_matrices=False)
        assert row["intruders"] == np.count_nonzero(np.abs(u[:, :10].T @ u0).max(axis=1) < 0.5)
        s = np.linalg.svd(b - a, compute_uv=False)
        share = s[s > 0] / s.sum() if s.sum() else np.array([])
        assert row["delta_effective_rank"] == pytest.approx(np.exp(-np.sum(share * np.log(share))) if len(share) else 0)


def test_vectors_are_matched_with_what_they_were(pair: tuple[str, str, Store]) -> None:
    *_, store = pair
    name = "model.layers.0.mlp.up_proj.weight"
    found = store.sql("SELECT * FROM pair_vectors WHERE base_tensor = ? ORDER BY k", [name]).to_pylist()
    a, b = tensors()[name].double().numpy(), tuned_tensors()[name].double().numpy()
    (u0, s0, v0), (u, s, v) = (np.linalg.svd(one, full_matrices=False) for one in (a, b))
    np.testing.assert_allclose([row["singular_value_base"] for row in found], s0, rtol=1e-9)
    np.testing.assert_allclose([row["singular_value_tuned"] for row in found], s, rtol=1e-9)
    for side, old, new in (("u", u0.T, u.T), ("v", v0, v)):
        product = np.abs(new @ old.T)
        np.testing.assert_allclose([row[f"{side}_overlap"] for row in found], product.max(axis=1), atol=1e-6)
        assert [row[f"{side}_match"] for row in found] == product.argmax(axis=1).tolist()


def test_p_values_and_outliers_are_those_of_the_scans(pair: tuple[str, str, Store]) -> None:
    *_, store = pair
    for side in ("base", "tuned"):
        differing = store.sql(
            f"SELECT count(*) AS n, count(*) FILTER (WHERE p.u_p_{side} IS NOT DISTINCT FROM v.u_p "
            f"AND p.v_p_{side} IS NOT DISTINCT FROM v.v_p) AS same "
            f"FROM pair_vectors p JOIN pairs USING (pair_id, base_tensor) JOIN all_vectors v "
            f"ON v.scan_id = {side}_scan_id AND v.tensor = base_tensor AND v.k = p.k"
        ).to_pylist()
        assert differing == [{"n": 12 * 24, "same": 12 * 24}]


def test_what_is_there_is_not_compared_again(pair: tuple[str, str, Store]) -> None:
    base, tuned, store = pair
    told = Recorder()
    report = compare(base, tuned, store=store.url, pool=POOL, observer=told)
    assert (report.new, report.matrices, len(report.identical), told.tasks) == (False, 12, 8, [])
    named = compare(report.base_model, report.tuned_model, store=store.url)
    assert named.pair_id == report.pair_id, "models of the store can be named"


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    base, tuned = small(tmp_path / "base"), checkpoint(tmp_path / "tuned", tuned_tensors(), CONFIG)

    class Stops(Recorder):
        """Ctrl-C after four pairs."""

        pairs = 0

        def task_done(self, task: object, *, failed: list[str]) -> None:
            self.pairs += type(task).__name__ == "PairTask"
            if self.pairs == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(base, tuned, store=tmp_path / "store", pool=POOL, observer=Stops())
    store = open_store(str(tmp_path / "store"))
    assert store.sql("SELECT * FROM pairs").num_rows == 0
    assert len(store.committed()) == 3, "base, tuned and their difference"
    told = Recorder()
    report = compare(base, tuned, store=tmp_path / "store", pool=POOL, observer=told)
    assert (report.matrices, told.kept, len(told.tasks)) == (12, 4, 8)
    assert store.sql("SELECT * FROM pairs").num_rows == 12


def test_what_has_no_counterpart_is_listed_and_a_broken_matrix_fails_alone(tmp_path: Path) -> None:
    changed = tuned_tensors()
    gone = "model.layers.2.self_attn.k_proj.weight"
    wider = "model.layers.1.mlp.up_proj.weight"
    broken = "model.layers.0.self_attn.q_proj.weight"
    del changed[gone]
    changed[wider] = weight(60, 24, 1)
    changed[broken] = torch.full_like(changed[broken], float("nan"))
    changed["model.layers.3.self_attn.q_proj.weight"] = weight(24, 24, 9)
    base, tuned = small(tmp_path / "base"), checkpoint(tmp_path / "tuned", changed, CONFIG)
    report = compare(base, tuned, store=tmp_path / "store", pool=POOL)
    assert report.matrices == 9
    assert [line.split(":")[0] for line in report.failed] == [broken]
    assert report.unmatched == {
        f"only in base ({report.base_model})": [gone],
        f"only in tuned ({report.tuned_model})": ["model.layers.3.self_attn.q_proj.weight"],
        "of another shape": [f"{wider} (48x24 became 60x24)"],
    }


def test_one_broken_head_leaves_its_siblings_and_each_is_named(tmp_path: Path) -> None:
    config = CONFIG | {"num_attention_heads": 4, "hidden_size": 24}
    query, gone = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    before = tensors(layers=2)
    changed = before | {query: before[query] + 0.1 * weight(24, 24, 5)}
    changed[query][6:12] = float("nan")
    del changed[gone]
    base, tuned = checkpoint(tmp_path / "base", before, config), checkpoint(tmp_path / "tuned", changed, config)
    method = Method(selection=Selection(heads=True, only=("query",)))
    report = compare(base, tuned, store=tmp_path / "store", method=method, pool=POOL)
    assert report.matrices == 3
    assert [line.partition(": ")[0] for line in report.failed] == [f"{query} (query, head 1)"]
    assert report.unmatched == {"only in base (base)": [f"{gone} (query, head {head})" for head in range(4)]}
    rows = open_store(report.store).sql("SELECT head, relative_change FROM pairs ORDER BY head").to_pylist()
    assert [row["head"] for row in rows] == [0, 2, 3]
    assert all(0 < row["relative_change"] < 1 for row in rows)


def test_two_checkpoints_of_one_name_keep_their_lists_apart(tmp_path: Path) -> None:
    before = tensors(layers=1)
    changed = {name: tensor + 0.1 if tensor.ndim == 2 else tensor for name, tensor in before.items()}
    gone, new = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    changed[new] = changed.pop(gone)
    folders = [checkpoint(tmp_path / side / "same", made, CONFIG) for side, made in (("a", before), ("b", changed))]
    report = compare(folders[0], folders[1], store=tmp_path / "store", pool=POOL)
    assert report.base_model == report.tuned_model == "same"
    assert report.unmatched == {"only in base (same)": [gone], "only in tuned (same)": [new]}


def test_a_difference_that_was_not_analyzed_is_a_failure_and_the_pair_is_kept(tmp_path: Path) -> None:
    changed = {name: tensor * 1.5 for name, tensor in tensors(layers=1).items()}
    base, tuned = small(tmp_path / "base", layers=1), checkpoint(tmp_path / "tuned", changed, CONFIG)
    opened = difference(open_checkpoint(base), open_checkpoint(tuned))
    store = open_store(str(tmp_path / "store"), create=True)
    refs = list_matrices(opened).matrices
    writer = store.writer(scan_id(opened.identity, Method()), method=Method().as_dict(), model=opened.model)
    for ref in refs:
        writer.stage_failure(ref.key, failure(writer.scan_id, ref.tensor, opened.model))
    writer.commit(scan_values())
    report = compare(base, tuned, store=store.url, pool=POOL)
    assert report.matrices == 4
    assert report.unmatched == {}
    assert sorted(report.failed) == sorted(
        f"{ref.tensor}: its difference was not analyzed: OSError: gone" for ref in refs
    )
    [row] = store.sql("SELECT failed FROM comparisons").to_pylist()
    assert row["failed"] == 4
    for pair in store.sql("SELECT * FROM pairs").to_pylist():
        assert pair["relative_change"] == pytest.approx(0.5)
        assert pair["delta_effective_rank"] is None


def test_deciles_above_the_numerical_rank_keep_their_angles() -> None:
    base, tuned = weight(40, 30, 1).double(), weight(40, 30, 2).double()
    whole = unpack(compare_pair(base, tuned).subspaces).to_pylist()
    u, s, vh = torch.linalg.svd(base, full_matrices=False)
    s[-1] = 0.0  # in decile 1; the others are unchanged
    lacking = unpack(compare_pair(u @ torch.diag(s) @ vh, tuned).subspaces).to_pylist()
    assert [(row["side"], row["decile"]) for row in lacking] == [
        (side, decile) for side in "uv" for decile in range(2, 11)
    ]
    expected = {(row["side"], row["decile"]): row for row in whole}
    for row in lacking:
        assert row == pytest.approx(expected[row["side"], row["decile"]], abs=1e-6)


def test_a_zero_matrix_has_no_subspaces() -> None:
    outcome = compare_pair(torch.zeros(12, 12), weight(12, 12, 3))
    assert unpack(outcome.subspaces).num_rows == 0


def test_checkpoints_that_are_no_pair_are_refused(tmp_path: Path, pair: tuple[str, str, Store]) -> None:
    base = pair[0]
    same = small(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="the same checkpoint"):
        compare(base, same, store=tmp_path / "store")
    other = checkpoint(tmp_path / "other", {"encoder.weight": weight(5, 5, 0)}, CONFIG)
    with pytest.raises(CheckpointError, match="nothing in common: they have no matrices at the same position"):
        compare(base, other, store=tmp_path / "store")
    wider = small(tmp_path / "wider", hidden=32)
    with pytest.raises(CheckpointError, match="differ in shape"):
        compare(base, wider, store=tmp_path / "store")
    with pytest.raises(CheckpointError, match="does not exist"):
        compare(base, "nowhere", store=tmp_path / "store")


def scanned(store: Store, name: str, opened: Checkpoint, method: Method | None = None) -> None:
    """The row of a scan."""
    method = method or Method()
    writer = store.writer(scan_id(opened.identity, method), method=method.as_dict(), model=name)
    writer.stage_failure("m", failure(writer.scan_id, "m", name))
    told = {"source": opened.source, "identity": opened.identity, "base_model": opened.base_model}
    writer.commit(scan_values(method=json.dumps(method.as_dict()), **told))


def test_the_name_of_a_difference_is_the_difference_and_not_its_tuned_model(tmp_path: Path) -> None:
    base, tuned = small(tmp_path / "base", layers=1), small(tmp_path / "tuned", layers=1, seed=1)
    store = open_store(str(tmp_path / "store"), create=True)
    opened = [open_checkpoint(base), open_checkpoint(tuned)]
    for one in (*opened, difference(*opened)):
        scanned(store, one.model, one)
    assert find_reference(store, "delta:base..tuned") == f"delta:{base}..{tuned}"
    assert open_checkpoint(find_reference(store, "delta:base..tuned")).base is not None
    assert find_reference(store, "tuned") == tuned


def test_a_name_that_cannot_be_opened_is_told_what_the_store_has(tmp_path: Path) -> None:
    base = small(tmp_path / "base", layers=1)
    store = open_store(str(tmp_path / "store"), create=True)
    with pytest.raises(CheckpointError, match=r"tuned does not exist: give (?!.*scanned models)"):
        compare(base, "tuned", store=store.url)
    writer = store.writer("begun", method={}, model="tuned")
    writer.stage("m", *Matrix().tables("begun", "tuned", "r"))
    with pytest.raises(
        CheckpointError, match=r"'tuned' in .* is not finished \(1 matrices so far\): 'rmtscan scan REF"
    ) as told:
        compare(base, "tuned", store=store.url)
    assert "\n" not in str(told.value)
    for name, method in (("mine-tuned", Method()), ("other", Method(sigma="std"))):
        scanned(store, name, open_checkpoint(base), method)
    with pytest.raises(
        CheckpointError, match=r"tunet does not exist.*; scanned models with a similar name: mine-tuned"
    ):
        compare(base, "tunet", store=store.url)
    with pytest.raises(CheckpointError, match="same checkpoint"):
        compare(base, "other", store=store.url)


def test_models_that_are_named_are_compared_as_they_were_scanned(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    opened = [open_checkpoint(small(tmp_path / name, layers=1, seed=seed)) for seed, name in enumerate(("a", "b"))]
    some = Method(sigma="bulk", selection=Selection(only=("query", "key"), layers=(1, 0)))
    assert stored_method(store, ["a", "b"]) == Method()
    for one in opened:
        scanned(store, one.model, one, some)
    assert stored_method(store, ["a", "b"]).as_dict() == some.as_dict()
    assert stored_method(store, [opened[0].source, "b"]).as_dict() == some.as_dict()
    assert stored_method(store, [one.source for one in opened]) == Method()
    mc = Method(null="mc:1000")
    scanned(store, "a", opened[0], mc)
    assert stored_method(store, ["a", "b"]).as_dict() == some.as_dict(), "the one that both have"
    for one in opened:
        scanned(store, one.model, one)
    assert stored_method(store, ["a", "b"]) == Method()


def test_a_comparison_needs_vectors(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    with pytest.raises(ConfigError, match=r"values_only. leaves out the singular vectors, which a comparison needs"):
        compare("a", "b", store=store.url, method=Method(values_only=True))
    [opened] = [open_checkpoint(small(tmp_path / "a", layers=1))]
    scanned(store, "a", opened, Method(values_only=True, sigma="std"))
    assert stored_method(store, ["a"]) == Method()
    scanned(store, "a", opened, Method(sigma="bulk"))
    assert stored_method(store, ["a"]) == Method(sigma="bulk")


def test_scans_of_another_version_say_nothing_about_the_method(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "old", [Matrix()], model="old")
    assert stored_method(store, ["old"]) == Method()


def test_the_real_pair(minilm: Path, minilm_tuned: Path, tmp_path: Path) -> None:
    report = compare(minilm, minilm_tuned, store=tmp_path / "store")
    assert report.identical == ("pooler.dense.weight",)
    assert (report.matrices, report.unmatched, report.failed) == (37, {}, ())
    assert report.change_median == pytest.approx(0.0132, abs=5e-5)
    assert (report.change_largest, report.largest_in) == (pytest.approx(0.0251, abs=5e-5), "layer 5, mlp_down")
    store = open_store(report.store)
    changes = {row["base_tensor"]: row for row in store.sql("SELECT * FROM pairs").to_pylist()}
    before, after = (load_file(folder / "model.safetensors") for folder in (minilm, minilm_tuned))
    for name, row in changes.items():
        a, b = before[name].double().numpy(), after[row["tuned_tensor"]].double().numpy()
        assert row["relative_change"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9, abs=1e-15)
    relative = [row["relative_change"] for row in changes.values()]
    assert np.median(relative) == pytest.approx(0.0132, abs=5e-5)
    largest = max(changes.values(), key=lambda row: row["relative_change"])
    assert (largest["layer"], largest["role"]) == (5, "mlp_down")
    assert largest["relative_change"] == pytest.approx(0.0251, abs=5e-5)
    summary = {row["role"]: row for row in store.query("pair_summary").to_pylist()}
    assert summary["mlp_down"]["largest_in"] == 5
    assert summary["other"]["identical"] == 1
