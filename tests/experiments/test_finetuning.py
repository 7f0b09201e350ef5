"""Fine-tuning with removal in both orders: data, training, points and errors, with tiny models and separable texts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scanner.checkpoint import Selection
from scanner.engine import PoolOptions
from scanner.engine.worker import Worker
from scanner.errors import ScannerError
from scanner.experiments.finetune import FineTuneTask, Measured, Point, Tuned, fine_tune
from scanner.experiments.nlp.labels import encoded, prepare
from scanner.experiments.nlp.models import load_config, load_model, load_tokenizer, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.removal import FactorCache
from scanner.experiments.nlp.texts import Texts, TextSource, read_texts
from scanner.experiments.nlp.tokens import Batch, Batches, Sequences
from scanner.experiments.nlp.training import NoClassifier, Recipe, correct, new_classifier, train
from scanner.store import open_store

from .calls import Found, finetune, without_ray
from .classifiers import bert, jsonl, llama, reviews, tokenizer

QUICK = Recipe(epochs=6, batch=8, rate=3e-3)
ONE = PoolOptions(workers=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jsonl(tmp_path_factory.mktemp("texts") / "reviews.jsonl", reviews(120))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def task_of(
    model: Path, texts: Path, *, points: tuple[Point, ...], first: int | None = None, **more: Any
) -> FineTuneTask:
    """The task that the driver would create."""
    target = open_target(str(model), Selection())
    place = model_place(target.checkpoint)
    read = read_texts(TextSource(reference=str(texts)), labeled=True)
    task = FineTuneTask(
        run_id="r",
        place=place,
        config=load_config(place),
        pooler=any("pooler" in entry.name for entry in target.checkpoint.tensors),
        refs=tuple(ref for ref in target.inventory.matrices if ref.layer is not None),
        data=prepare(read, load_tokenizer(place), length=32, test_share=0.25),
        recipe=QUICK,
        seed=points[0].seed,
        first=first,
        points=points,
        roles="all",
        folder=None,
    )
    return dataclasses.replace(task, **more)


def run_one(task: FineTuneTask) -> list[Measured]:
    measured: list[Measured] = []
    fine_tune(load_model(task.place, head="features"), task, FactorCache(1 << 30), measured)
    return measured


NONE = Point(order="none", decile=None, seed=0)


# ---- data


def labelled(*rows: tuple[str, str], seconds: tuple[str, ...] = ()) -> Texts:
    items, labels = zip(*rows, strict=True)
    return Texts(name="t", items=items, whole=False, seconds=seconds, labels=labels)


def test_the_split_is_stratified_and_no_text_stands_on_both_sides(texts: Path) -> None:
    rows = [(f"film {index % 7} scene {index}", "yes" if index % 4 else "no") for index in range(40)]
    data = prepare(labelled(*rows), tokenizer(pad_token="[PAD]"), length=16, test_share=0.25)
    assert data.classes == ("no", "yes")
    assert np.bincount(data.test.labels).tolist() == [2, 8]
    assert np.bincount(data.train.labels).tolist() == [8, 22]
    assert data.majority == pytest.approx(8 / 10)
    twice = labelled(*(("a film", "no"), ("the plot", "yes"), ("the scene", "no")) * 10)
    same = prepare(labelled(*twice_rows(twice)), tokenizer(pad_token="[PAD]"), length=16, test_share=0.1, examples=50)
    assert same.dropped > 0
    assert len(same.train) + len(same.test) + same.dropped == 30 + 20
    fewer = prepare(labelled(*rows), tokenizer(pad_token="[PAD]"), length=16, test_share=0.25, examples=12)
    assert len(fewer.train) == 12
    assert fewer.digest != data.digest
    rare = [(f"film {index}", "yes" if index else "no") for index in range(39)] + [("the plot", "no")]
    with pytest.raises(ScannerError, match="2 training examples have fewer than two classes: increase `examples`"):
        prepare(labelled(*rare), tokenizer(pad_token="[PAD]"), length=16, test_share=0.25, examples=2)
    assert [one.tolist() for one in fewer.test.ids] == [one.tolist() for one in data.test.ids]


def twice_rows(texts: Texts) -> list[tuple[str, str]]:
    own = [(f"plot {index}", ("no", "yes")[index % 2]) for index in range(20)]
    return [*zip(texts.items, texts.labels, strict=True), *own]


def test_of_pairs_the_longer_text_is_cut_and_types_tell_them_apart() -> None:
    pairs = labelled(*(("a film of the plot " * 9, str(index % 2)) for index in range(8)), seconds=("bright",) * 8)
    pairs = dataclasses.replace(pairs, items=tuple(f"{item} {'a ' * i}" for i, item in enumerate(pairs.items)))
    data = prepare(pairs, tokenizer(pad_token="[PAD]", sep_token="[SEP]"), length=12, test_share=0.3)
    for ids, types in zip(data.train.ids, data.train.types, strict=True):
        assert len(ids) == 12
        assert ids.tolist()[-3:] == [3, 14, 3]  # [SEP] bright [SEP]
        assert types.tolist() == [0] * 10 + [1] * 2


def test_types_reach_a_model_that_knows_them(base: Path) -> None:
    rows = [row | {"second": "the film"} for row in reviews(16)]
    path = jsonl(base.parent / "pairs.jsonl", rows)
    read = read_texts(TextSource(reference=str(path), second="second"), labeled=True)
    place = model_place(open_target(str(base), Selection()).checkpoint)
    data = prepare(read, load_tokenizer(place), length=16, test_share=0.3)
    model = new_classifier(load_model(place, head="features"), data.classes, data.padding, 0, pooler=True)
    seen: list[dict[str, Any]] = []
    model.bert.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    correct(model, data.test, Batches(data.padding, 1024))
    assert seen[0]["token_type_ids"].sum() > 0


def unigram() -> Any:
    """A tokenizer like that of T5: its special tokens are pieces of its vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁film", *"afilms</>"]
    vocabulary = [(piece, 0.0 if index < 3 else -float(index)) for index, piece in enumerate(dict.fromkeys(pieces))]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=1)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (unigram(), "</s>"),
        (unigram(), "<pad>"),
        (unigram(), "<extra_id_0>"),
        (tokenizer(pad_token="[PAD]", eos_token="[SEP]"), "[SEP]"),
        (tokenizer(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"), "[CLS]"),
        (tokenizer(pad_token="[PAD]", extra_special_tokens=["[SEP]"]), "[SEP]"),
    ],
)
def test_a_text_that_spells_a_special_token_has_none(made: Any, name: str) -> None:
    [special] = made.convert_tokens_to_ids([name])
    plain = labelled(("a film", "0"), ("a a film", "1"), seconds=("film", "a film"))
    spelt = labelled((f"a {name} film", "0"), (f"a a{name}{name}film", "1"), seconds=(f"{name}film", f"a film {name}"))
    for more in ({}, {"seconds": ()}):
        wanted, found = (
            encoded(dataclasses.replace(texts, **more), np.array([0, 1]), [0, 1], made, 64, 0).ids
            for texts in (plain, spelt)
        )
        for one, other in zip(wanted, found, strict=True):
            assert (other == special).sum() == (one == special).sum()  # those that the tokenizer adds are kept
            assert one[0] == other[0]
            assert one[-1] == other[-1]
            assert len(other) > len(one)


def test_a_model_that_looks_for_its_end_of_text_takes_texts_that_spell_it(tmp_path: Path) -> None:
    torch.manual_seed(7)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 28, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    made, texts = unigram(), labelled(("a </s> film", "0"), ("film", "1"))
    body = transformers.T5Model(transformers.T5Config(vocab_size=len(made), **sizes))
    model = new_classifier(body.eval(), ("0", "1"), 0, 0, pooler=False)
    data = encoded(texts, np.array([0, 1]), [0, 1], made, 16, 0)
    assert math.isfinite(train(model, data, 0, Recipe(epochs=1, batch=2), 0).loss)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"text": "a film", "label": 1}, {"text": "a plot", "label": 1}],
            "two or more classes are needed, but all are '1'",
        ),
        ([{"text": f"a {n}", "label": n / 7} for n in range(9)], "single text.*are these labels classes"),
        ([{"words": "a film", "kind": 1}], "no label column found among words, kind"),
        ([], "is empty"),
    ],
)
def test_texts_without_classes_are_refused(
    tmp_path: Path, base: Path, rows: list[dict[str, object]], said: str
) -> None:
    path = jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(ScannerError, match=said):
        finetune(str(base), TextSource(reference=str(path)), store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_column_that_is_not_there_and_text_that_is_not_utf8_are_told(tmp_path: Path, base: Path, texts: Path) -> None:
    with pytest.raises(ScannerError, match="no column 'stars': it has text, label"):
        finetune(str(base), TextSource(reference=str(texts), label="stars"), store=str(tmp_path / "s"))
    with pytest.raises(ScannerError, match="no column 'other': it has text, label"):
        finetune(str(base), TextSource(reference=str(texts), second="other"), store=str(tmp_path / "s"))
    (tmp_path / "latin.tsv").write_bytes("text\tlabel\nun caf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(ScannerError, match="not UTF-8"):
        finetune(str(base), TextSource(reference=str(tmp_path / "latin.tsv")), store=str(tmp_path / "s"))


# ---- training


def test_the_rate_rises_then_falls_to_nothing() -> None:
    recipe = Recipe(rate=1.0, warmup=0.2)
    rates = [recipe.rate_at(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_a_training_learns_and_is_the_same_again(base: Path, texts: Path) -> None:
    task = task_of(base, texts, points=(NONE,))
    body = load_model(task.place, head="features")
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    states = []
    for seed in (0, 0, 1):
        model = new_classifier(body, task.data.classes, task.data.padding, seed, pooler=True)
        head = model.classifier.weight.clone()
        torch.rand(5)  # other code that draws random numbers
        trained = train(model, task.data.train, task.data.padding, QUICK, seed)
        states.append((head, model.state_dict()))
        assert correct(model, task.data.test, Batches(task.data.padding, 1024)).mean() >= 0.9
        assert trained.loss < 0.5
    assert all(torch.equal(states[0][1][name], tensor) for name, tensor in states[1][1].items())
    assert not torch.equal(states[0][0], states[2][0])
    assert all(torch.equal(before[name], tensor) for name, tensor in body.state_dict().items())


def test_a_pooler_that_the_checkpoint_has_not_is_drawn_from_the_seed(base: Path) -> None:
    place = model_place(open_target(str(base), Selection()).checkpoint)
    body = load_model(place, head="features")
    kept, drawn = (new_classifier(body, ("a", "b"), 0, 3, pooler=pooler) for pooler in (True, False))
    assert torch.equal(kept.bert.pooler.dense.weight, body.pooler.dense.weight)
    again = new_classifier(body, ("a", "b"), 0, 3, pooler=False)
    assert not torch.equal(drawn.bert.pooler.dense.weight, body.pooler.dense.weight)
    assert torch.equal(drawn.bert.pooler.dense.weight, again.bert.pooler.dense.weight)


def test_less_memory_means_smaller_parts_and_the_same_steps(
    base: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(
        bert(base.parent / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), texts, points=(NONE,)
    )
    body = load_model(task.place, head="features")
    recipe = Recipe(epochs=1, batch=8, rate=1e-3)

    def trained(most: int) -> tuple[int, dict[str, torch.Tensor]]:
        model = new_classifier(body, task.data.classes, task.data.padding, 0, pooler=True)

        def limit(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            if len(given[0]) > most:
                raise torch.OutOfMemoryError("no memory")

        model.bert.encoder.layer[1].output.dense.register_forward_pre_hook(limit)
        found = train(model, task.data.train, task.data.padding, recipe, 0)
        return found.at_a_time, model.state_dict()

    whole, parts = trained(8), trained(3)
    assert (whole[0], parts[0]) == (8, 2)
    for name, tensor in whole[1].items():
        assert torch.allclose(tensor, parts[1][name], atol=2e-4), name
    with pytest.raises(ScannerError, match="reduce `window`"):
        trained(0)


def test_a_training_that_diverges_says_so(base: Path, texts: Path) -> None:
    task = task_of(base, texts, points=(NONE,), recipe=Recipe(rate=1e30))
    with pytest.raises(ScannerError, match="reduce `lr`"):
        run_one(task)


def test_errors_of_a_task_are_data(base: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.engine.worker.granted_device", lambda: "cpu")  # it asks Ray
    outcome: Tuned = Worker().run(task_of(base, texts, points=(NONE,), recipe=Recipe(rate=1e30))).value
    assert outcome.measured == ()
    assert outcome.error is not None
    assert "reduce `lr`" in outcome.error
    monkeypatch.setattr("scanner.experiments.nlp.training.train", lambda *_: 1 / 0)
    unexpected: Tuned = Worker().run(task_of(base, texts, points=(NONE,))).value
    assert unexpected.error == "ZeroDivisionError: division by zero"


# ---- removal before and after


def test_removal_after_is_that_of_the_tuned_model_and_before_of_the_base(
    base: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectra: dict[str, np.ndarray] = {}
    name = "bert.encoder.layer.0.attention.self.query.weight"

    def note(when: str, model: Any) -> None:
        spectra[when] = torch.linalg.svdvals(model.get_parameter(name).detach().double()).numpy()

    def training(model: Any, *rest: Any) -> Any:
        note("before training", model)
        found = train(model, *rest)
        note("after training", model)
        return found

    def measuring(model: Any, *rest: Any) -> Any:
        note(f"measured {len(spectra)}", model)
        return correct(model, *rest)

    monkeypatch.setattr("scanner.experiments.nlp.training.train", training)
    monkeypatch.setattr("scanner.experiments.nlp.training.correct", measuring)
    after = Point(order="tune-first", decile=10, seed=0)
    found = run_one(task_of(base, texts, points=(NONE, after)))
    assert [one.point for one in found] == [NONE, after]
    assert [one.removed for one in found] == [0, 12 * 4]  # ranks 0 to 3 of 32, of two blocks of six matrices
    tuned, untouched, without = spectra["after training"], spectra["measured 2"], spectra["measured 3"]
    assert np.array_equal(tuned, untouched)
    assert without[:28] == pytest.approx(tuned[4:], rel=1e-4)
    assert without[28:] == pytest.approx(np.zeros(4), abs=1e-5)

    intact = spectra["before training"]
    spectra.clear()
    first = Point(order="remove-first", decile=1, seed=0)
    run_one(task_of(base, texts, points=(first,), first=1))
    assert spectra["before training"][:29] == pytest.approx(intact[:29], rel=1e-4)
    assert spectra["before training"][29:] == pytest.approx(np.zeros(3), abs=1e-5)
    assert spectra["after training"].min() > 1e-4  # training restores rank
    assert np.array_equal(spectra["after training"], spectra["measured 2"])


def test_without_the_largest_values_what_was_learned_is_gone(base: Path, texts: Path) -> None:
    points = (NONE, *(Point(order="tune-first", decile=decile, seed=0) for decile in (1, 10)))
    none, smallest, largest = (one.accuracy for one in run_one(task_of(base, texts, points=points)))
    assert none >= 0.9
    assert smallest >= 0.9
    assert largest <= 0.6


# ---- points and runs


def run(store: Path, base: Path, texts: Path, **more: Any) -> Found:
    options = {"deciles": (1,), "seeds": 1, "recipe": Recipe(epochs=1, batch=16, rate=1e-3), "length": 32, "pool": ONE}
    return finetune(str(base), TextSource(reference=str(texts)), store=str(store), **(options | more))  # type: ignore[arg-type]


def test_points_are_stored_once_and_compared_by_a_query(
    tmp_path: Path, base: Path, texts: Path, in_process: None
) -> None:
    first = run(tmp_path / "store", base, texts)
    assert (first.points, first.kept, first.failed, first.train, first.test) == (3, 0, {}, 96, 24)
    store = open_store(str(tmp_path / "store"))
    rows = store.sql('select * from finetunes order by "order"').to_pylist()
    assert [(row["order"], row["decile"], row["roles"]) for row in rows] == [
        ("none", None, None),
        ("remove-first", 1, "all"),
        ("tune-first", 1, "all"),
    ]
    assert {(row["base_model"], row["dataset"], row["examples"], row["epochs"]) for row in rows} == {
        (first.model, "reviews.jsonl", 96, 1)
    }
    one = store.sql("select * from experiments").to_pylist()
    assert [(row["run_id"], row["kind"]) for row in one] == [(first.run_id, "finetune")]
    assert json.loads(one[0]["method"])["rate"] == 1e-3
    assert [row["removed"] for row in rows] == [0, 12 * 3, 12 * 3]
    assert {row["device"] for row in rows} == {"cpu"}
    assert all(row["loss"] > 0 and row["examples_at_a_time"] is None for row in rows)

    again = run(tmp_path / "store", base, texts, seeds=2)
    assert (again.run_id, again.points, again.kept) == (first.run_id, 6, 3)
    some = run(tmp_path / "store", base, texts, orders=("tune-first",), roles=("value", "query"))
    assert (some.run_id, some.points, some.kept) == (first.run_id, 2, 1)
    other = run(tmp_path / "store", base, texts, orders=("none",), recipe=Recipe(epochs=1, batch=16, rate=2e-3))
    assert other.run_id != first.run_id
    answer = open_store(str(tmp_path / "store")).query("finetune_by_decile", run=first.run_id).to_pylist()
    assert [(row["order"], row["roles"], row["decile"], row["seeds"]) for row in answer] == [
        ("none", None, None, 2),
        ("remove-first", "all", 1, 2),
        ("tune-first", "all", 1, 2),
        ("tune-first", "query,value", 1, 1),
    ]


def test_smaller_batches_of_the_test_are_noted(
    tmp_path: Path, base: Path, texts: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Sequences.batch

    def scarce(data: Sequences, indices: list[int], padding: int) -> Batch:
        if len(indices) > 20:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return whole(data, indices, padding)

    monkeypatch.setattr(Sequences, "batch", scarce)
    report = run(tmp_path / "store", base, texts, orders=("none",))
    assert report.failed == {}
    [row] = (
        open_store(str(tmp_path / "store")).sql("select batch_tokens, examples_at_a_time from finetunes").to_pylist()
    )
    assert 0 < row["batch_tokens"] < 1024
    assert row["examples_at_a_time"] is None


def test_points_that_are_missing_are_computed_and_no_others(
    tmp_path: Path, base: Path, texts: Path, in_process: None
) -> None:
    """Files of a run that was interrupted."""
    report = run(tmp_path / "store", base, texts, deciles=(1, 10))
    files = sorted((tmp_path / "store" / "finetunes").glob("*.parquet"))
    before = {path: path.read_bytes() for path in files}
    lost = tmp_path / "store" / "finetunes" / f"{report.run_id}-tune-first-decile10-seed0.parquet"
    accuracy = accuracies(tmp_path / "store")
    lost.unlink()
    again = run(tmp_path / "store", base, texts, deciles=(1, 10))
    assert (again.points, again.kept) == (5, 4)
    assert accuracies(tmp_path / "store") == accuracy
    assert [path for path in files if path.read_bytes() != before[path]] == [lost]
    forced = run(tmp_path / "store", base, texts, deciles=(1, 10), force=True)
    assert (forced.run_id, forced.points, forced.kept) == (report.run_id, 5, 0)
    assert accuracies(tmp_path / "store") == accuracy


def accuracies(store: Path) -> list[dict[str, Any]]:
    found = open_store(str(store)).sql('select "order", decile, seed, accuracy from finetunes order by all')
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_kept_models_are_whole_checkpoints(tmp_path: Path, base: Path, texts: Path, in_process: None) -> None:
    plain = run(tmp_path / "store", base, texts, orders=("remove-first",))
    report = run(tmp_path / "store", base, texts, orders=("remove-first",), folder=str(tmp_path / "kept"))
    assert (plain.run_id, report.kept) == (report.run_id, 0)  # points whose models are required but missing
    again = run(tmp_path / "store", base, texts, orders=("remove-first",), folder=str(tmp_path / "kept"))
    assert again.kept == again.points == 2
    names = [f"{report.run_id}-{label}" for label in ("none-seed0", "remove-first-decile1-seed0")]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == names
    folder = tmp_path / "kept" / names[0]
    rows = open_store(str(tmp_path / "store")).sql("select checkpoint from finetunes").to_pylist()
    assert {row["checkpoint"] for row in rows} == {str(path) for path in (tmp_path / "kept").iterdir()}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "0", 1: "1"}
    task = task_of(base, texts, points=(NONE,), recipe=Recipe(epochs=1, batch=16, rate=1e-3))
    data = prepare(
        read_texts(TextSource(reference=str(texts)), labeled=True),
        load_tokenizer(task.place),
        length=32,
        test_share=0.2,
    )
    accuracy = next(row["accuracy"] for row in accuracies(tmp_path / "store") if row["order"] == "none")
    assert correct(model.eval(), data.test, Batches(data.padding, 1024)).mean() == pytest.approx(accuracy)
    assert {ref.role for ref in open_target(str(folder), Selection()).inventory.matrices} >= {"query", "mlp_down"}


def test_kept_models_of_other_roles_and_recipes_stand_beside_each_other(
    tmp_path: Path, base: Path, texts: Path, in_process: None
) -> None:
    more: dict[str, Any] = {"orders": ("tune-first",), "folder": str(tmp_path / "kept")}
    first = run(tmp_path / "store", base, texts, **more)
    run(tmp_path / "store", base, texts, roles=("value", "query"), **more)
    third = run(tmp_path / "store", base, texts, recipe=Recipe(epochs=1, batch=16, rate=2e-3), **more)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == sorted(
        [
            f"{first.run_id}-none-seed0",
            f"{first.run_id}-tune-first-decile1-seed0",
            f"{first.run_id}-tune-first-decile1-seed0-query.value",
            f"{third.run_id}-none-seed0",
            f"{third.run_id}-tune-first-decile1-seed0",
        ]
    )
    rows = open_store(str(tmp_path / "store")).sql("select checkpoint from finetunes").to_pylist()
    assert {Path(row["checkpoint"]) for row in rows} == {*(tmp_path / "kept").iterdir()}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"orders": ("both",)}, "`order` has 'both', which must be one of none, remove-first, tune-first"),
        ({"deciles": (0,)}, "`deciles` has 0, which must be at least 1"),
        ({"deciles": ()}, "`deciles` is empty"),
        ({"seeds": 0}, "`seeds` must be at least 1"),
        ({"test_share": 1.0}, "`test_share` must be between"),
        ({"length": 4}, "`window` must be at least 8, got 4"),
        ({"roles": ("mlp_gate",)}, "no matrix with role 'mlp_gate': it has "),
        ({"folder": "s3://bucket/models"}, "not a URL"),
    ],
)
def test_impossible_parameters_are_told(
    tmp_path: Path, base: Path, texts: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ScannerError, match=said):
        run(tmp_path / "store", base, texts, **wrong)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}])
def test_impossible_recipes_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ScannerError, match=r"`epochs` and `batch` must be at least 1|`lr` must be positive"):
        Recipe(**wrong)


# ---- models


def test_a_decoder_without_padding_uses_the_token_that_ends_a_text(tmp_path: Path, texts: Path) -> None:
    task = task_of(llama(tmp_path / "llama", eos_token="[SEP]"), texts, points=(NONE,))
    assert task.data.padding == 3
    after = Point(order="tune-first", decile=1, seed=0)
    found = run_one(dataclasses.replace(task, points=(NONE, after)))
    assert found[0].accuracy >= 0.8
    assert found[1].removed > 0


def test_a_tokenizer_that_cannot_fill_up_is_told(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(
        ScannerError, match=r"a padding nor an end-of-text token: set pad_token in the tokenizer_config\.json"
    ):
        run(tmp_path / "store", llama(tmp_path / "llama"), texts)


def test_a_class_that_transformers_does_not_know_is_told(tmp_path: Path, base: Path, texts: Path) -> None:
    model = bert(tmp_path / "odd")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config |= {"model_type": "oddity", "auto_map": {"AutoModel": "odd.Model", "AutoConfig": "odd.Config"}}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    (model / "odd.py").write_text("raise SystemExit('code of a checkpoint ran')", "utf-8")
    with pytest.raises(ScannerError, match="trust_remote_code is off"):
        run(tmp_path / "store", model, texts)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (transformers.T5EncoderModel, "no classifier of texts for T5EncoderModel, an encoder without its decoder$"),
        (transformers.UMT5EncoderModel, "no classifier of texts for UMT5EncoderModel, an encoder without its decoder$"),
        (transformers.ViTModel, "no classifier of texts for 'vit' models, and code"),
    ],
)
def test_a_model_without_a_classifier_is_told_before_anything_starts(
    tmp_path: Path, texts: Path, made: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"d_model": 16, "d_kv": 8, "d_ff": 28, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    if made is transformers.ViTModel:
        small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    made(made.config_class(**small)).save_pretrained(tmp_path / "model")
    tokenizer(pad_token="[PAD]").save_pretrained(tmp_path / "model")
    monkeypatch.setattr("scanner.engine.run.run_tasks", lambda *_, **__: pytest.fail("a worker started"))
    with pytest.raises(NoClassifier, match=said) as raised:
        run(tmp_path / "store", tmp_path / "model", texts)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_a_model_without_a_classifier_is_told(base: Path) -> None:
    config = transformers.ViTConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ScannerError, match="no classifier of texts for 'vit' models"):
        new_classifier(transformers.ViTModel(config), ("a", "b"), 0, 0, pooler=True)
