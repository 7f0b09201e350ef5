"""`rmtscan activations`: rows, shards, skipped matrices, interruptions, and runs on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scanner.checkpoint import Selection, read_matrix
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine import run as engine_run
from scanner.errors import ScannerError
from scanner.experiments import activations
from scanner.experiments.activations import ActivationWork
from scanner.experiments.nlp import models, recording
from scanner.experiments.nlp.models import load_model, load_tokenizer, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.recording import Sums
from scanner.experiments.nlp.texts import TextSource, read_texts
from scanner.experiments.nlp.tokens import sequences
from scanner.store import open_store
from scanner.store.checksums import checked

from .calls import Found, measure_activations
from .test_activations import naive
from .tiny import save, table_file, text_file


def run(reference: Path, text: Path, store: Path, **more: Any) -> Found:
    return measure_activations(str(reference), TextSource(reference=str(text)), store=str(store), window=16, **more)


def rows(store: Path) -> list[dict[str, Any]]:
    query = "select * exclude (run_id) from 'overlaps' order by layer, role, centred, k".replace("'", '"')
    found: list[dict[str, Any]] = open_store(str(store)).sql(query).to_pylist()
    return found


def test_rows_are_right_and_the_same_for_any_number_of_actors(tmp_path: Path, local_ray: None) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    one = run(folder, text, tmp_path / "one", pool=PoolOptions(workers=1))
    two = run(folder, text, tmp_path / "two", pool=PoolOptions(workers=2))
    assert one.run_id == two.run_id
    assert (one.matrices, one.skipped, one.failed, one.new) == (14, {}, {}, True)
    found = rows(tmp_path / "one")
    assert found == rows(tmp_path / "two")

    target = open_target(str(folder), Selection())
    place = model_place(target.checkpoint)
    model = load_model(place)
    read = sequences(load_tokenizer(place), read_texts(TextSource(reference=str(text))), length=16)
    ref = next(ref for ref in target.inventory.matrices if (ref.layer, ref.role) == (1, "mlp_down"))
    hidden = naive(model, "model.layers.1.mlp.down_proj", read)
    _, s, vh = np.linalg.svd(read_matrix(target.checkpoint.source, ref).double().numpy(), full_matrices=False)
    for centred, covariance in ((True, np.cov(hidden.T, bias=True)), (False, hidden.T @ hidden / len(hidden))):
        values, vectors = np.linalg.eigh(covariance)
        expected = np.abs(vh @ vectors[:, ::-1])
        mine = [row for row in found if (row["layer"], row["role"], row["centred"]) == (1, "mlp_down", centred)]
        np.testing.assert_allclose([row["singular_value"] for row in mine], s, rtol=1e-9)
        np.testing.assert_allclose([row["overlap"] for row in mine], expected.max(axis=1), atol=2e-3)
        np.testing.assert_allclose([row["peak"] for row in mine], np.abs(vh).max(axis=1), rtol=1e-5)
        assert {row["tokens"] for row in mine} == {len(hidden)}
        query = (
            "select eigenvalue from activation_spectra where layer = 1 and role = 'mlp_down' "
            f"and centred = {centred} order by index"
        )
        spectrum = open_store(str(tmp_path / "one")).sql(query)["eigenvalue"].to_numpy()
        np.testing.assert_allclose(spectrum, values[::-1], rtol=1e-4, atol=1e-6 * values.max())


def test_importance_halves_and_the_map_are_those_of_numpy(tmp_path: Path, in_process: list[Any]) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    plain = run(folder, text, tmp_path / "store")
    more = run(folder, text, tmp_path / "store", halves=True, map="mlp_down:1")
    assert more.run_id != plain.run_id
    store = open_store(str(tmp_path / "store"))

    def mine(table: str, run_id: str) -> list[dict[str, Any]]:
        return store.sql(
            f"""select * from "{table}" where run_id = '{run_id}' and layer = 1 and role = 'mlp_down' and centred order by all"""
        ).to_pylist()

    target = open_target(str(folder), Selection())
    place = model_place(target.checkpoint)
    model = load_model(place)
    read = sequences(load_tokenizer(place), read_texts(TextSource(reference=str(text))), length=16)
    ref = next(ref for ref in target.inventory.matrices if (ref.layer, ref.role) == (1, "mlp_down"))
    _, s, vh = np.linalg.svd(read_matrix(target.checkpoint.source, ref).double().numpy(), full_matrices=False)

    def products(part: Any) -> np.ndarray:
        hidden = naive(model, "model.layers.1.mlp.down_proj", part)
        covariance = np.cov(hidden.T, bias=True)
        assert np.isfinite(covariance).all()
        return np.abs(vh @ np.linalg.eigh(covariance)[1][:, ::-1])

    rows_of_run = sorted(mine("overlaps", more.run_id), key=lambda row: row["k"])
    hidden = naive(model, "model.layers.1.mlp.down_proj", read)
    importance = s**2 * np.einsum("ki,ij,kj->k", vh, np.cov(hidden.T, bias=True), vh)
    np.testing.assert_allclose([row["importance"] for row in rows_of_run], importance, rtol=1e-4)
    for name, start in (("overlap_even", 0), ("overlap_odd", 1)):
        expected = products(read.part([*range(start, len(read.ids), 2)])).max(axis=1)
        np.testing.assert_allclose([row[name] for row in rows_of_run], expected, atol=5e-3)
    assert all(row["overlap_even"] is None for row in mine("overlaps", plain.run_id))
    assert not mine("overlap_maps", plain.run_id)
    stored = {(row["k"], row["j"]): row["overlap"] for row in mine("overlap_maps", more.run_id)}
    full = products(read)
    assert {*stored} == {(k, j) for k in range(full.shape[0]) for j in range(full.shape[1])}
    for k in range(full.shape[0]):
        assert stored[k, 0] == pytest.approx(full[k, 0], abs=2e-3)
        assert max(stored[k, j] for j in range(full.shape[1])) == pytest.approx(rows_of_run[k]["overlap"], abs=1e-6)
    with pytest.raises(ScannerError, match="name a measured matrix as ROLE:LAYER"):
        run(folder, text, tmp_path / "store", map="mlp_down:9")


def test_finished_blocks_are_not_measured_again(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = save(tmp_path / "model", "bert", "features"), table_file(tmp_path)
    first = run(folder, text, tmp_path / "store")
    assert {*first.skipped} == {"pooler.dense.weight"}
    second = run(folder, text, tmp_path / "store")
    assert (second.run_id, second.new, second.skipped) == (first.run_id, False, first.skipped)
    done: list[int] = []
    original = activations._tasks
    monkeypatch.setattr(
        activations,
        "_tasks",
        lambda base, blocks, workers: done.append(len(blocks)) or original(base, blocks, workers),
    )
    (tmp_path / "store" / "overlaps" / f"{first.run_id}-00001.parquet").unlink()
    assert run(folder, text, tmp_path / "store").new
    assert done == [1]
    kind = open_store(str(tmp_path / "store")).sql("select kind, dataset, tokens, method from experiments").to_pylist()
    assert [(row["kind"], row["dataset"], row["tokens"]) for row in kind] == [
        ("activations", "table.csv", first.tokens)
    ]
    assert json.loads(kind[0]["method"])["window"] == 16
    files = sorted((tmp_path / "store").glob("*/*.parquet"))
    written = {path: path.stat().st_mtime_ns for path in files}
    forced = run(folder, text, tmp_path / "store", force=True)
    assert (forced.run_id, forced.kept) == (first.run_id, 0)
    assert sorted((tmp_path / "store").glob("*/*.parquet")) == files
    assert [path for path in files if path.stat().st_mtime_ns == written[path]] == []


def test_what_is_skipped_is_told_by_every_call_and_the_row_of_the_run(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one token some experts have no input; the call after an interruption reports the skipped matrices of all blocks."""
    folder, text = save(tmp_path / "model", "nllb-moe", "features"), tmp_path / "table.csv"
    text.write_text("text\nw3\n")
    whole = run(folder, text, tmp_path / "whole")
    written = {ref.tensor for ref in open_target(str(folder), Selection()).inventory.matrices}
    assert {*whole.skipped} == written - {row["tensor"] for row in rows(tmp_path / "whole")} != set()
    again = run(folder, text, tmp_path / "whole")
    assert (again.new, again.skipped) == (False, whole.skipped)

    # Blocks are measured one by one, and the call ends after the first one with a skipped matrix.
    original = ActivationWork.done

    def interrupted(self: Any, task: Any, outcome: Any) -> Any:
        following = original(self, task, outcome)
        if any(rows.skipped for rows in outcome.blocks.values()):
            raise KeyboardInterrupt
        return following

    monkeypatch.setattr(ActivationWork, "done", interrupted)
    monkeypatch.setattr(activations, "MEMORY", 1)
    with pytest.raises(KeyboardInterrupt):
        run(folder, text, tmp_path / "parts")
    monkeypatch.setattr(ActivationWork, "done", original)
    before = len(in_process)
    continued = run(folder, text, tmp_path / "parts")
    assert len(in_process) > before
    assert continued.skipped == whole.skipped
    told = open_store(str(tmp_path / "parts")).sql("select tensor, reason from run_skips").to_pylist()
    assert {row["tensor"]: row["reason"] for row in told} == whole.skipped
    assert run(folder, text, tmp_path / "parts").skipped == whole.skipped


class Told(ScanObserver):
    """The announced cost, and the cost of the finished tasks."""

    announced = done = 0.0

    def starting(self, items: int, cost: float, kept: int, what: str = "") -> None:
        self.announced = cost

    def task_done(self, task: Any, *, failed: list[str]) -> None:
        self.done += task.cost


def test_sums_of_shards_are_added(tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    whole = run(folder, text, tmp_path / "whole")
    in_process.clear()
    monkeypatch.setattr(activations, "SHARD_TOKENS", 32)
    told = Told()
    sharded = run(folder, text, tmp_path / "sharded", observer=told)
    assert told.done == pytest.approx(told.announced), "progress ends at 100 %"
    assert len(in_process) == whole.tokens // 32 + 1
    assert (sharded.run_id, sharded.tokens, sharded.failed) == (whole.run_id, whole.tokens, {})
    of_one, of_many = rows(tmp_path / "whole"), rows(tmp_path / "sharded")
    assert len(of_one) == len(of_many) > 0
    for one, other in zip(of_one, of_many, strict=True):
        assert other == {
            **one,
            "overlap": pytest.approx(one["overlap"], abs=1e-9),
            "eigenvalue": pytest.approx(one["eigenvalue"]),
            "importance": pytest.approx(one["importance"]),
            "signs_bound": pytest.approx(one["signs_bound"]),
            "signs_median": pytest.approx(one["signs_median"], rel=1e-5),
        }
    # Shards are added in the order of the text, not in the order in which they are ready.
    serially = engine_run.run_tasks
    monkeypatch.setattr(
        engine_run, "run_tasks", lambda worker, tasks, options, **on: serially(worker, tasks[::-1], options, **on)
    )
    run(folder, text, tmp_path / "backwards")
    assert rows(tmp_path / "backwards") == of_many


def test_sums_of_shards_are_added_by_actors_on_ray(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    monkeypatch.setattr(activations, "SHARD_TOKENS", 32)
    run(folder, text, tmp_path / "one", pool=PoolOptions(workers=1))
    run(folder, text, tmp_path / "two", pool=PoolOptions(workers=2))
    assert rows(tmp_path / "one") == rows(tmp_path / "two") != []


def test_groups_are_sized_by_inputs_that_matrices_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = open_target(str(save(tmp_path, "llama")), Selection()).inventory.matrices
    blocks = activations._blocks(refs, "run")
    # A block has four inputs: of query, key and value, of attn_out, of up and gate (16 wide), and of down (28 wide).
    monkeypatch.setattr(activations, "TRANSFERRED", 2 * 8 * (3 * 16**2 + 28**2))
    assert [len(group) for group in activations._groups(blocks, 2, 1)] == [2]
    monkeypatch.setattr(activations, "TRANSFERRED", 2 * 8 * (3 * 16**2 + 28**2) - 1)
    assert [len(group) for group in activations._groups(blocks, 2, 1)] == [1, 1]


def test_experts_have_inputs_of_their_own(tmp_path: Path) -> None:
    refs = open_target(str(save(tmp_path, "mixtral")), Selection(only=("mlp_up", "mlp_gate"))).inventory.matrices
    assert len({activations._input(ref) for ref in refs}) == 3 == len(refs) // 2


@pytest.mark.parametrize(
    ("share", "planned"), [(None, 2), (0.5, 4), (0.0, 16)], ids=["one a GPU", "two a GPU", "on the CPU"]
)
def test_workers_are_planned_as_the_pool_starts_them(
    monkeypatch: pytest.MonkeyPatch, share: float | None, planned: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert activations._planned_workers(PoolOptions(gpus_per_worker=share)) == planned
    assert activations._planned_workers(PoolOptions(workers=3, gpus_per_worker=share)) == 3


def test_a_shard_that_fails_leaves_its_blocks_to_the_next_call(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    monkeypatch.setattr(activations, "SHARD_TOKENS", 32)
    original = recording.accumulate
    calls: list[int] = []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("lost its way")
        return original(*arguments, **options)

    monkeypatch.setattr(recording, "accumulate", fails_once)
    report = run(folder, text, tmp_path / "store")
    assert [*report.failed.values()] == ["RuntimeError: lost its way"]
    assert "shard 2 of" in next(iter(report.failed))
    assert open_store(str(tmp_path / "store")).sql('from "overlaps"').num_rows == 0
    assert run(folder, text, tmp_path / "store").failed == {}
    assert len(rows(tmp_path / "store")) > 0


@pytest.mark.parametrize("summed", [1, 3, 6], ids=["one", "three", "all"])
def test_shards_that_were_summed_up_are_not_measured_again(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch, summed: int
) -> None:
    """A call that ends after some shards and one that resumes give the same results as one call, bit for bit."""
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    monkeypatch.setattr(activations, "SHARD_TOKENS", 32)
    monkeypatch.setattr(activations, "KEPT_EVERY", 0.0)
    whole = run(folder, text, tmp_path / "whole")
    shards = len(in_process) - 1
    assert shards == 6
    original = ActivationWork.done

    def ended(self: Any, task: Any, outcome: Any) -> Any:
        following = original(self, task, outcome)
        if outcome.sums is not None and task.shard + 1 == summed:
            raise KeyboardInterrupt
        return following

    monkeypatch.setattr(ActivationWork, "done", ended)
    with pytest.raises(KeyboardInterrupt):
        run(folder, text, tmp_path / "parts")
    monkeypatch.setattr(ActivationWork, "done", original)
    in_process.clear()
    told = Told()
    report = run(folder, text, tmp_path / "parts", observer=told)
    assert 0 < told.done == pytest.approx(told.announced)
    assert len(in_process) == shards - summed + 1
    assert (report.run_id, report.failed, report.skipped) == (whole.run_id, {}, whole.skipped)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole") != []
    assert [*(tmp_path / "parts").glob("staging-*/*")] == []


def test_what_is_no_sums_is_measured_anew(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    monkeypatch.setattr(activations, "SHARD_TOKENS", 32)
    monkeypatch.setattr(activations, "KEPT_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.delattr(activations, "compare")  # fails after the last shard
        [message] = run(folder, text, tmp_path / "store").failed.values()
    assert message == "NameError: name 'compare' is not defined"
    [kept] = (tmp_path / "store").glob("staging-experiments/*/*")
    whole = checked(kept.read_bytes())
    assert whole is not None
    assert Sums.unpacked(whole) is not None
    for content in (b"", b"no sums", whole[:-1], whole[9:]):
        assert Sums.unpacked(content) is None
    kept.write_bytes(b"no sums")
    assert run(folder, text, tmp_path / "store").failed == {}
    assert len(rows(tmp_path / "store")) > 0


def test_a_pooler_has_no_rows_with_and_without_padding(tmp_path: Path, in_process: list[Any]) -> None:
    """The pooler reads one state per sequence; the first batch here needs no padding, the last one does."""
    folder, text = save(tmp_path / "model", "bert", "features"), tmp_path / "table.csv"
    text.write_text("text\n" + "w1 w2\n" * 300 + "w1 w2 w3 w4\nw5 w6 w7\n")
    report = run(folder, text, tmp_path / "store")
    assert report.failed == {}
    assert [*report.skipped] == ["pooler.dense.weight"]
    assert not any(row["tensor"].startswith("pooler") for row in rows(tmp_path / "store"))


def test_a_model_that_cannot_be_loaded_ends_the_run_with_a_line(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nat line 1")

    monkeypatch.setattr(models, "load_model", fails)
    with pytest.raises(ScannerError, match=r"^RuntimeError: no kernel$"):
        run(save(tmp_path / "model", "llama"), text_file(tmp_path), tmp_path / "store")


def test_a_text_or_model_that_does_not_serve_ends_before_ray_starts(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    with pytest.raises(ScannerError, match="has 10 tokens, too short for a window of 16"):
        run(folder, text_file(tmp_path, 10), tmp_path / "store")
    with pytest.raises(ScannerError, match="no matrix with role 'router'"):
        run(folder, text_file(tmp_path), tmp_path / "store", selection=Selection(only=("router",)))


def test_a_tokenizer_without_padding_serves(tmp_path: Path, in_process: list[Any]) -> None:
    folder = save(tmp_path / "model", "gpt2", padding=False)
    with_padding = save(tmp_path / "other", "gpt2")
    assert run(folder, table_file(tmp_path), tmp_path / "store").tokens > 0
    run(with_padding, table_file(tmp_path), tmp_path / "second")
    assert [row["overlap"] for row in rows(tmp_path / "store")] == [row["overlap"] for row in rows(tmp_path / "second")]


def test_no_more_tokens_are_read_than_are_asked_for(tmp_path: Path, in_process: list[Any]) -> None:
    """Ten tokens for a window of sixteen."""
    report = run(save(tmp_path / "model", "llama"), text_file(tmp_path), tmp_path / "store", tokens=10)
    assert report.tokens == 10
    assert {row["tokens"] for row in rows(tmp_path / "store")} == {10}


def test_normal_quantiles_of_the_query_are_those_of_scipy(tmp_path: Path, in_process: list[Any]) -> None:
    run(save(tmp_path / "model", "llama"), text_file(tmp_path), tmp_path / "store")
    for row in open_store(str(tmp_path / "store")).query("overlap_vs_region").to_pylist():
        expected = norm.isf(-np.expm1(np.log([0.00135, 0.5, 0.99865]) / row["cols"]) / 2) / np.sqrt(row["cols"])
        np.testing.assert_allclose([row["random_low"], row["random_middle"], row["random_high"]], expected, rtol=1e-7)
