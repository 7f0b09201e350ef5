"""`rmtscan finetune` from its arguments to its table and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.experiments.finetune import FineTuneTask
from scanner.experiments.nlp.training import NoClassifier
from scanner.store import open_store
from tests.experiments.calls import without_ray
from tests.experiments.classifiers import BAD, GOOD, NEUTRAL, bert, jsonl, llama, reviews

from .conftest import Run

QUICK = ("--epochs", 1, "--batch", 16, "--lr", 1e-3, "--length", 32, "--workers", 1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return bert(tmp_path / "base")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "reviews.jsonl", reviews(60))


def test_a_tuned_model_is_measured_kept_and_compared(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, local_ray: None
) -> None:
    store = ("--store", tmp_path / "store")
    command = ("finetune", base, "--task", texts, "--deciles", "1,10", "--seeds", 2, "--order", "tune-first", *QUICK)
    ran = rmtscan(*command, "--keep", tmp_path / "tuned", *store, "--format", "json")
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert [(row["order"], row["decile"], row["seeds"]) for row in rows] == [
        ("none", None, 2),
        ("tune-first", 1, 2),
        ("tune-first", 10, 2),
    ]
    assert "2 classes, the most frequent is 50.0% of the test" in ran.told
    assert "6 points, 0 of them from earlier runs" in ran.told
    again = rmtscan(*command, "--keep", tmp_path / "tuned", *store, "--format", "json")
    assert json.loads(again.out) == rows
    assert "6 points, 6 of them from earlier runs" in again.told

    [kept] = (tmp_path / "tuned").glob("*-none-seed0")
    compared = rmtscan("compare", base, kept, *store, "--workers", 1, "--format", "json")
    assert compared.status == 0, compared.err
    assert "0 exactly unchanged" in compared.told
    assert {row["role"] for row in json.loads(compared.out)} >= {
        "query",
        "key",
        "value",
        "attn_out",
        "mlp_up",
        "mlp_down",
    }


def pairs(count: int) -> list[dict[str, object]]:
    """Pairs with label 1 if both texts begin with the same word; each text by itself stands as often with either label."""
    generator, words = np.random.default_rng(0), (GOOD[0], BAD[0])
    rows: list[dict[str, object]] = []
    for index in range(count):
        first, second = index % 2, index // 2 % 2
        texts = (f"{words[which]} {generator.choice(NEUTRAL)}" for which in (first, second))
        rows.append(dict(zip(("sentence1", "sentence2"), texts, strict=True)) | {"label": int(first == second)})
    return rows


def test_of_pairs_the_model_learns_what_only_both_texts_tell(
    tmp_path: Path, rmtscan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    base = bert(tmp_path / "base", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = ("--task", jsonl(tmp_path / "pairs.jsonl", pairs(160)), "--second", "sentence2")
    recipe = ("--order", "remove-first", "--deciles", 1, "--seeds", 1, "--epochs", 12, "--batch", 8, "--lr", 3e-3)
    ran = rmtscan("finetune", base, *task, *recipe, "--length", 16, "--store", tmp_path / "store")
    assert ran.status == 0, ran.err
    rows = open_store(str(tmp_path / "store")).sql('select * from finetunes order by "order"').to_pylist()
    assert [(row["order"], row["decile"], row["dataset"]) for row in rows] == [
        ("none", None, "pairs.jsonl"),
        ("remove-first", 1, "pairs.jsonl"),
    ]
    assert "the most frequent is 50.0% of the test" in ran.told
    assert rows[0]["accuracy"] > 0.8


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    (tmp_path / "taken").write_text("", "utf-8")
    command = ("finetune", base, "--task", texts, "--order", "none", "--seeds", 1, *QUICK)
    ran = rmtscan(*command, "--keep", tmp_path / "taken", "--store", tmp_path / "store")
    assert ran.status == 1, ran.err
    assert "the tuned models cannot be kept in" in ran.told
    assert not (tmp_path / "store" / "finetunes").exists()


def test_a_model_that_cannot_be_kept_is_told_and_its_accuracy_stays(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)

    def full(*_: object) -> None:
        raise ScannerError("the tuned model cannot be kept in there: No space left on device")

    command = (
        "finetune",
        base,
        "--task",
        texts,
        "--order",
        "none",
        "--seeds",
        1,
        *QUICK,
        "--store",
        tmp_path / "store",
    )
    with monkeypatch.context() as patched:
        patched.setattr("scanner.experiments.nlp.training.keep", full)
        ran = rmtscan(*command, "--keep", tmp_path / "a", "--format", "json")
    assert ran.status == 3, ran.err
    assert "FAILED none-seed0: the tuned model cannot be kept in there: No space left on device" in ran.told
    assert [row["seeds"] for row in json.loads(ran.out)] == [1]
    # It is made again to be kept, and once more for another folder.
    for folder, kept in (("a", 0), ("a", 1), ("b", 0)):
        again = rmtscan(*command, "--keep", tmp_path / folder)
        assert again.status == 0, again.err
        assert f"1 points, {kept} of them from earlier runs" in again.told
        assert len([*(tmp_path / folder).glob("*-none-seed0")]) == 1


def test_a_model_that_no_training_makes_a_classifier_ends_the_run_with_one_line(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    tried: list[int] = []

    def none(*_: object, **__: object) -> None:
        tried.append(1)
        raise NoClassifier("transformers has no classifier of texts for 'such' models")

    monkeypatch.setattr("scanner.experiments.nlp.training.new_classifier", none)
    ran = rmtscan("finetune", base, "--task", texts, "--seeds", 3, *QUICK, "--store", tmp_path / "store")
    assert ran.status == 1
    assert ran.errors == ["error: transformers has no classifier of texts for 'such' models"]
    assert len(tried) == 1


def test_an_interruption_says_that_the_same_command_goes_on(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_worker: type, tasks: list[FineTuneTask], *_: object, **__: object) -> None:
        # One training a seed and decile, and the untouched one that both removals afterwards share.
        assert [[point.label for point in task.points] for task in tasks] == [
            ["none-seed0", "tune-first-decile1-seed0", "tune-first-decile2-seed0"],
            ["remove-first-decile1-seed0"],
            ["remove-first-decile2-seed0"],
        ]
        raise KeyboardInterrupt

    monkeypatch.setattr("scanner.engine.run.run_tasks", interrupted)
    ran = rmtscan("finetune", base, "--task", texts, "--deciles", "1,2", "--seeds", 1, "--store", tmp_path / "store")
    assert ran.status == 130
    assert "existing results are kept" in ran.told


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--order", "sideways"), 2, "'sideways' is not one of none, remove-first, tune-first"),
        (("--deciles", "one"), 2, "'one' is not a decile"),
        (("--deciles", "11"), 1, "--deciles has 11, which must be at most 10"),
        (("--roles", "mlp"), 2, "'mlp' is not one of"),
        (("--roles", "mlp_gate"), 1, "no matrix with role 'mlp_gate': it has"),
        (("--column", "body"), 1, "no column 'body': it has text, label"),
        (("--where", "label=0"), 1, "two or more classes are needed, but all are '0'"),
        (("--lr", "0"), 1, "--lr must be positive"),
        (("--test-share", "2"), 1, "--test-share must be between 0 and 1"),
        (("--keep", "s3://bucket/x"), 1, "not a URL"),
        (("--remove", "norm"), 2, "'norm' is not one of"),
        (("--remove", "after-norm", "--keep", "x"), 1, "--keep cannot be given with --remove after-norm"),
        (
            ("--remove", "after-norm", "--roles", "key"),
            1,
            "--roles choose matrices, but --remove after-norm changes none",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, base: Path, texts: Path, rmtscan: Run, arguments: tuple[str, ...], status: int, said: str
) -> None:
    ran = rmtscan("finetune", base, "--task", texts, "--store", tmp_path / "store", *arguments)
    assert ran.status == status
    assert said in ran.told
    assert status == 2 or len(ran.errors) == 1
    assert not (tmp_path / "store").exists()


def test_a_text_or_model_that_does_not_serve_is_one_line(tmp_path: Path, base: Path, texts: Path, rmtscan: Run) -> None:
    empty, latin = tmp_path / "empty.csv", tmp_path / "latin.csv"
    empty.write_text("", "utf-8")
    latin.write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    for model, text, said in (
        (base, empty, "is empty"),
        (base, latin, "is not UTF-8"),
        (base, tmp_path / "gone.csv", "does not exist"),
        (llama(tmp_path / "llama"), texts, "neither a padding nor an end-of-text token"),
    ):
        ran = rmtscan("finetune", model, "--task", text, "--store", tmp_path / "store")
        assert ran.status == 1
        assert len(ran.errors) == 1
        assert said in ran.told
