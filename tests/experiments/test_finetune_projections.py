"""Fine-tuning with directions projected out at the norms: compared with models that have explicit projections as layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from scanner.errors import ScannerError
from scanner.experiments.finetune import FineTuneTask, Measured, Point, Remove, fine_tune
from scanner.experiments.nlp.models import load_model
from scanner.experiments.nlp.removal import FactorCache
from scanner.experiments.nlp.tokens import Batches, Sequences
from scanner.experiments.nlp.training import correct, new_classifier, train
from scanner.store import open_store

from .calls import without_ray
from .classifiers import bert, jsonl, llama, reviews
from .test_finetuning import NONE, run, task_of

REMOVES: tuple[Remove, ...] = ("before-norm", "after-norm")
ROLES = {"before-norm": "before norm", "after-norm": "after norm"}
COLUMNS = {5: slice(12, 16), 9: slice(25, 28), 10: slice(28, 32)}
"""Of 32 eigenvectors, smallest eigenvalue first. The embeddings of the few words and positions do not fill 32 dimensions, so that
the smallest directions of the first norm are arbitrary."""
TOKENS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jsonl(tmp_path_factory.mktemp("texts") / "reviews.jsonl", reviews(120))


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The covariance is that of fewer texts than there are."""
    monkeypatch.setattr("scanner.experiments.finetune.TOKENS_PER_DIMENSION", TOKENS)


class Projected(torch.nn.Module):
    """A LayerNorm with its own weight and bias, whose input or normalized states lose some directions."""

    def __init__(self, norm: torch.nn.LayerNorm, dropped: np.ndarray, place: Literal["before", "after"]) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.place = norm.weight, norm.bias, norm.eps, place
        projection = np.eye(len(dropped)) - dropped @ dropped.T
        self.projection = torch.from_numpy(projection).float()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states - states.mean(dim=-1, keepdim=True)
        if self.place == "before":
            states = states @ self.projection
        states = states / torch.sqrt(states.var(dim=-1, correction=0, keepdim=True) + self.eps)
        if self.place == "after":
            states = states @ self.projection
        return self.weight * states + self.bias


def layer_norms(model: Any) -> dict[str, torch.nn.LayerNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}


def directions(model: Any, task: FineTuneTask, decile: int) -> dict[str, np.ndarray]:
    """Eigenvectors at every norm, computed with numpy from the first training texts, one by one and without padding."""
    norms = layer_norms(model)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0][0].detach().numpy()))
        for name, norm in norms.items()
    ]
    model.eval()
    tokens = 0
    for ids in task.data.train.ids:
        if tokens < TOKENS * 32:
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
        tokens += len(ids)
    assert tokens > 2 * TOKENS * 32  # some were left out
    for hook in hooks:
        hook.remove()
    found = {}
    for name, norm in norms.items():
        states = np.concatenate(seen[name]).astype(np.float64)
        assert TOKENS * 32 <= len(states) < TOKENS * 32 + 32
        states -= states.mean(axis=1, keepdims=True)
        if task.remove == "after-norm":
            states /= np.sqrt((states**2).mean(axis=1, keepdims=True) + norm.eps)
        found[name] = np.linalg.eigh(states.T @ states)[1][:, COLUMNS[decile]]
    return found


def replace_norms(model: Any, dropped: dict[str, np.ndarray], remove: Remove) -> None:
    place: Any = remove.partition("-")[0]
    for name, norm in layer_norms(model).items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Projected(norm, dropped[name], place))


def logits(model: Any, task: FineTuneTask) -> torch.Tensor:
    test = task.data.test.batch(range(len(task.data.test)), task.data.padding)
    with torch.no_grad():
        found: torch.Tensor = model(**test.inputs(model)).logits
    return found


def classifier(task: FineTuneTask) -> Any:
    body = load_model(task.place, head="features")
    return new_classifier(body, task.data.classes, task.data.padding, task.seed, pooler=task.pooler)


def results(task: FineTuneTask, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Measured], list[torch.Tensor], Any]:
    """Accuracies, logits of the test texts at every measurement, and the tuned model."""
    seen: list[tuple[torch.Tensor, Any]] = []

    def measuring(model: Any, *rest: Any) -> Any:
        seen.append((logits(model, task), model))
        return correct(model, *rest)

    measured: list[Measured] = []
    with monkeypatch.context() as patched:
        patched.setattr("scanner.experiments.nlp.training.correct", measuring)
        fine_tune(load_model(task.place, head="features"), task, FactorCache(1 << 30), measured)
    return measured, [one for one, _ in seen], seen[0][1]


@pytest.mark.parametrize("remove", REMOVES)
def test_removed_first_is_the_training_of_a_model_with_projections(
    base: Path, texts: Path, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Point(order="remove-first", decile=10, seed=0)
    task = task_of(base, texts, points=(first,), first=10, remove=remove, refs=(), roles=ROLES[remove])
    [one], [found], tuned = results(task, monkeypatch)
    other = classifier(task)
    scales = {name: norm.weight.detach().clone() for name, norm in layer_norms(other).items()}
    replace_norms(other, directions(other, task, 10), remove)
    trained = train(other, task.data.train, task.data.padding, task.recipe, task.seed)
    assert torch.allclose(found, logits(other, task), atol=1e-4)
    for name, tensor in other.state_dict().items():
        assert torch.allclose(tensor, tuned.state_dict()[name], atol=1e-3), name
    assert one.accuracy == correct(other, task.data.test, Batches(task.data.padding, 1024)).mean()
    assert one.removed == 5 * 4
    assert trained.loss < 0.6
    # the comparison would not notice a projection that keeps the scale of the base, if the scale stayed the same
    assert max(float((norm.weight - scales[name]).abs().max()) for name, norm in layer_norms(tuned).items()) > 0.02


@pytest.mark.parametrize("remove", REMOVES)
@pytest.mark.parametrize("decile", [5, 10])
def test_no_state_has_a_removed_direction_at_any_step_of_the_training(
    base: Path, texts: Path, remove: Remove, decile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []
    size: list[float] = []

    def training(model: Any, *rest: Any) -> Any:
        dropped = {name: torch.from_numpy(one).float() for name, one in wanted.items()}

        def note(name: str) -> Any:
            def hook(module: Any, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
                if remove == "before-norm":
                    states = (given[0] - given[0].mean(dim=-1, keepdim=True)).detach()
                else:
                    states = ((output - module.bias) / module.weight).detach()
                left.append(float((states @ dropped[name]).abs().max()))
                size.append(float(states.abs().max()))

            return hook

        hooks = [norm.register_forward_hook(note(name)) for name, norm in layer_norms(model).items()]
        found = train(model, *rest)
        for hook in hooks:
            hook.remove()
        return found

    first = Point(order="remove-first", decile=decile, seed=0)
    task = task_of(base, texts, points=(first,), first=decile, remove=remove, refs=(), roles=ROLES[remove])
    wanted = directions(classifier(task), task, decile)
    monkeypatch.setattr("scanner.experiments.nlp.training.train", training)
    fine_tune(load_model(task.place, head="features"), task, FactorCache(1 << 30), [])
    assert len(left) == 5 * 6 * 12  # norms, epochs, steps
    assert max(left) < 1e-4 * max(size)


@pytest.mark.parametrize("remove", REMOVES)
def test_removed_afterward_is_the_tuned_model_with_projections_of_its_own_states(
    base: Path, texts: Path, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (NONE, *(Point(order="tune-first", decile=decile, seed=0) for decile in (10, 9)))
    task = task_of(base, texts, points=points, remove=remove, refs=(), roles=ROLES[remove])
    trainings: list[int] = []

    def training(*given: Any) -> Any:
        trainings.append(1)
        return train(*given)

    monkeypatch.setattr("scanner.experiments.nlp.training.train", training)
    measured, found, tuned = results(task, monkeypatch)
    assert trainings == [1]
    assert [(one.point, one.removed) for one in measured] == [(points[0], 0), (points[1], 5 * 4), (points[2], 5 * 3)]
    other = classifier(task)
    train(other, task.data.train, task.data.padding, task.recipe, task.seed)
    assert torch.equal(found[0], logits(other, task))
    of_tuned = [directions(other, task, decile) for decile in (10, 9)]
    for dropped, expected in zip(of_tuned, found[1:], strict=True):
        sliced = classifier(task)
        sliced.load_state_dict(other.state_dict())
        replace_norms(sliced.eval(), dropped, remove)
        assert torch.allclose(logits(sliced, task), expected, atol=1e-5)
        assert not torch.allclose(found[0], expected, atol=1e-3)
    assert torch.equal(logits(tuned, task), found[0])  # the tuned model is whole again


@pytest.mark.parametrize("remove", REMOVES)
def test_a_decoder_with_rms_norms(tmp_path: Path, texts: Path, remove: Remove, monkeypatch: pytest.MonkeyPatch) -> None:
    first, after = (Point(order=order, decile=1, seed=0) for order in ("remove-first", "tune-first"))
    model = llama(tmp_path / "llama", eos_token="[SEP]")
    for point, decile in ((first, 1), (after, None)):
        task = task_of(model, texts, points=(point,), first=decile, remove=remove, refs=(), roles=ROLES[remove])
        [one], _, _ = results(task, monkeypatch)
        assert one.accuracy >= 0.8
        assert one.removed == 5 * 3


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return without_ray(monkeypatch)


def test_points_stand_beside_those_of_singular_values_and_share_the_untouched_runs(
    tmp_path: Path, base: Path, texts: Path, in_process: list[Any]
) -> None:
    plain = run(tmp_path / "store", base, texts)
    sliced = run(tmp_path / "store", base, texts, remove="before-norm")
    assert (sliced.run_id, sliced.points, sliced.kept) == (plain.run_id, 3, 1)
    assert [[point.label for point in task.points] for task in in_process[2:]] == [
        ["tune-first-decile1-seed0"],
        ["remove-first-decile1-seed0"],
    ]
    run(tmp_path / "store", base, texts, remove="after-norm", orders=("tune-first",))
    names = {path.stem for path in (tmp_path / "store" / "finetunes").iterdir()}
    assert f"{plain.run_id}-tune-first-decile1-seed0-after-norm" in names
    again = run(tmp_path / "store", base, texts, remove="before-norm")
    assert (again.points, again.kept) == (3, 3)
    store = open_store(str(tmp_path / "store"))
    rows = store.query("finetune_by_decile", run=plain.run_id).to_pylist()
    assert [(row["order"], row["roles"], row["decile"], row["pairs"]) for row in rows] == [
        ("none", None, None, 0),
        ("tune-first", "after norm", 1, 1),
        ("remove-first", "all", 1, 1),
        ("tune-first", "all", 1, 1),
        ("remove-first", "before norm", 1, 1),
        ("tune-first", "before norm", 1, 1),
    ]
    removed = store.sql("select roles, removed from finetunes where decile = 1").to_pylist()
    assert {(row["roles"], row["removed"]) for row in removed} == {
        ("all", 12 * 3),
        ("before norm", 5 * 3),
        ("after norm", 5 * 3),
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"remove": "norm"}, "`remove` must be one of singular-values, before-norm, after-norm, got 'norm'"),
        (
            {"remove": "after-norm", "roles": ("query",)},
            "`roles` choose matrices, but `remove` after-norm changes none",
        ),
        ({"remove": "after-norm", "folder": "kept"}, "`keep` cannot be given with `remove` after-norm: the projection"),
        ({"remove": "before-norm", "examples": 3}, "a covariance of 32 dimensions needs at least 32 tokens, got "),
    ],
)
def test_what_cannot_be_projected_is_told(
    tmp_path: Path, base: Path, texts: Path, wrong: dict[str, Any], said: str, in_process: list[Any]
) -> None:
    with pytest.raises(ScannerError, match=said) as raised:
        run(tmp_path / "store", base, texts, **wrong)
    assert "\n" not in str(raised.value)
    assert in_process == []
    assert not (tmp_path / "store").exists()
    assert not Path("kept").exists()


def test_the_first_sequences_with_so_many_tokens() -> None:
    data = Sequences(ids=tuple(np.arange(length, dtype=np.int32) for length in (3, 4, 5)))
    for tokens, count in ((0, 0), (1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (12, 3), (99, 3)):
        assert [len(one) for one in data.beginning(tokens).ids] == [3, 4, 5][:count]


def test_the_texts_of_the_covariance_follow_from_the_width(
    base: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(base, texts, points=(NONE,), remove="after-norm")
    assert 4 * 32 <= task.calibration.tokens < 4 * 32 + 12
    monkeypatch.undo()
    assert task.calibration.tokens == task.data.train.tokens < 32 * 32
