"""Covariances compared with numpy on activations from simple hooks, and overlaps compared with their definition."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from scanner.checkpoint import Selection
from scanner.experiments.nlp.models import load_model, load_tokenizer, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.projections import bases, norms_of
from scanner.experiments.nlp.recording import (
    Eigensystem,
    Moments,
    Recorder,
    Sums,
    accumulate,
    eigensystem,
    overlaps,
    random_band,
)
from scanner.experiments.nlp.texts import Texts, TextSource, read_texts
from scanner.experiments.nlp.tokens import Batches, Sequences, sequences
from scanner.rmt.marchenko_pastur import FloatArray

from .tiny import CONFIGS, VOCABULARY, save, table_file, words


def naive(model: Any, module: str, text: Sequences) -> FloatArray:
    """The inputs of a module, (tokens, features), one sequence at a time and without padding."""
    seen: list[FloatArray] = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda _, given: seen.append(given[0][0].double().numpy())
    )
    with torch.no_grad():
        for index, one in enumerate(text.ids):
            given = {"input_ids": one} | ({"token_type_ids": text.types[index]} if text.types else {})
            model(**{name: torch.from_numpy(values.astype(np.int64))[None] for name, values in given.items()})
    hook.remove()
    return np.concatenate(seen)


def test_moments_give_the_covariance_of_numpy_whatever_the_shards() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((500, 7)) @ rng.standard_normal((7, 7)) + 30.0
    whole, first, second = (Moments.zero(7) for _ in range(3))
    for start in range(0, 500, 60):
        whole.add(torch.from_numpy(tokens[start : start + 60]))
    first.add(torch.from_numpy(tokens[:170]))
    second.add(torch.from_numpy(tokens[170:]))
    first.merge(second)
    for moments in (whole, first):
        assert moments.count == 500
        np.testing.assert_allclose(moments.covariance(centred=True), np.cov(tokens.T, bias=True), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.covariance(centred=False), tokens.T @ tokens / 500, rtol=1e-12)
    with pytest.raises(ValueError, match="needs at least one token"):
        Moments.zero(3).covariance(centred=True)


def test_a_pass_that_runs_out_of_memory_counts_once(tmp_path: Path) -> None:
    target = open_target(str(save(tmp_path, "llama")), Selection())
    model = load_model(model_place(target.checkpoint))
    text = Sequences(ids=tuple(np.arange(5 + i, 13 + i, dtype=np.int32) for i in range(8)))
    full: list[int] = []

    def runs_out(module: Any, given: tuple[torch.Tensor]) -> None:
        if given[0].shape[0] > 2:
            full.append(given[0].shape[0])
            raise torch.OutOfMemoryError("out of memory")

    names = [f"model.layers.{block}.{module}" for block in (0, 1) for module in ("self_attn.q_proj", "mlp.down_proj")]
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(runs_out)
    recorder = Recorder(modules={name: model.get_submodule(name) for name in names})
    with recorder:
        Batches(0, 64).run(text, lambda batch, indices: recorder.forward(model, batch.inputs(model)))
    hook.remove()
    assert full == [8, 4, 4]
    for name in names:
        moments, expected = recorder.moments[name], naive(model, name, text)
        assert moments.count == len(expected) == 64
        np.testing.assert_allclose(
            moments.covariance(centred=True), np.cov(expected.T, bias=True), rtol=1e-3, atol=1e-5
        )


def test_a_module_that_several_blocks_use_is_measured_in_each(tmp_path: Path) -> None:
    target = open_target(str(save(tmp_path, "albert", "features")), Selection())
    model = load_model(model_place(target.checkpoint))
    text = Sequences(ids=tuple(np.arange(start, start + 6, dtype=np.int32) for start in (3, 5, 20)))
    modules = {
        name: module
        for name, module in model.named_modules()
        if "albert_layers" in name and isinstance(module, torch.nn.Linear)
    }
    recorder = Recorder(modules=modules)
    with recorder:
        Batches(0, 6).run(text, lambda batch, indices: recorder.forward(model, batch.inputs(model)))
    assert len(recorder.moments) == 4
    for name in modules:
        expected = naive(model, name, text)
        assert len(expected) == 3 * 6 * 3, "three blocks read three texts of six tokens"
        moments = recorder.moments[recorder.shared[name]]
        assert moments.count == len(expected)
        np.testing.assert_allclose(
            moments.covariance(centred=True), np.cov(expected.T, bias=True), rtol=1e-3, atol=1e-5
        )


def test_a_classifier_that_knows_no_padding_reads_one_text_at_a_time(tmp_path: Path) -> None:
    place = model_place(
        open_target(str(save(tmp_path, "gpt2", "classification", pad_token_id=None)), Selection()).checkpoint
    )
    model, tokenizer = load_model(place), load_tokenizer(place)
    text = sequences(tokenizer, read_texts(TextSource(reference=str(table_file(tmp_path)))), length=6)
    name = "transformer.h.1.mlp.c_proj"
    sums = accumulate(model, text, {name: model.get_submodule(name)}, Batches(0, 40))
    expected = naive(model, name, text)
    assert sums.moments[name].count == len(expected) == text.tokens
    np.testing.assert_allclose(
        sums.moments[name].covariance(centred=True), np.cov(expected.T, bias=True), rtol=1e-4, atol=1e-5
    )
    assert {*bases(model, text, Batches(0, 40), "before")} == {*norms_of(model)}


def test_pairs_are_read_with_the_types_that_tell_their_texts_apart(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "bert", "features")), Selection()).checkpoint)
    model, tokenizer = load_model(place), load_tokenizer(place)
    firsts, seconds = [words(3 + i % 5, i) for i in range(12)], [words(2 + i % 4, 99 + i) for i in range(12)]
    pairs = Texts(name="t", items=tuple(firsts), seconds=tuple(seconds), whole=False)
    text = sequences(tokenizer, pairs, length=16)
    of_tokenizer = tokenizer(firsts, seconds, return_token_type_ids=True)
    assert [one.tolist() for one in text.ids] == of_tokenizer["input_ids"]
    assert [one.tolist() for one in text.types] == of_tokenizer["token_type_ids"]
    name = "encoder.layer.1.output.dense"
    sums = accumulate(model, text, {name: model.get_submodule(name)}, Batches(0, 40))
    covariance = sums.moments[name].covariance(centred=True)
    expected, without = (naive(model, name, one) for one in (text, Sequences(ids=text.ids)))
    np.testing.assert_allclose(covariance, np.cov(expected.T, bias=True), rtol=1e-4, atol=1e-5)
    assert not np.allclose(covariance, np.cov(without.T, bias=True), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("kind", "head"), [("bert", "features"), ("llama", "causal"), ("gpt2", "causal")])
def test_hooked_sums_leave_padding_out_and_agree_with_one_sequence_at_a_time(
    tmp_path: Path, kind: str, head: str
) -> None:
    target = open_target(str(save(tmp_path, kind, head)), Selection())
    place = model_place(target.checkpoint)
    model, tokenizer = load_model(place), load_tokenizer(place)
    text = sequences(tokenizer, read_texts(TextSource(reference=str(table_file(tmp_path)))), length=6)
    assert len({len(one) for one in text.ids}) > 1
    names = {"bert": "encoder.layer.1.", "llama": "model.layers.1.", "gpt2": "transformer.h.1."}[kind]
    linear = {
        name: m
        for name, m in model.named_modules()
        if name.startswith(names) and hasattr(m, "weight") and m.weight.ndim == 2
    }
    recorder = Recorder(modules=linear)
    with recorder:
        Batches(0, 40).run(text, lambda batch, indices: recorder.forward(model, batch.inputs(model)))
    assert (
        len(recorder.moments) == {"bert": 4, "llama": 4, "gpt2": 4}[kind]
    )  # query, key, value and gate, up share their input
    assert {*recorder.shared} == {*linear}
    for name in linear:
        moments, expected = recorder.moments[recorder.shared[name]], naive(model, name, text)
        assert moments.count == len(expected) == text.tokens
        np.testing.assert_allclose(
            moments.covariance(centred=True), np.cov(expected.T, bias=True), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            moments.covariance(centred=False), expected.T @ expected / len(expected), rtol=1e-4, atol=1e-5
        )


def model_of(kind: str, **more: Any) -> Any:
    """A model without a head, with random weights larger than those of a new model."""
    config = AutoConfig.for_model(kind, **({"vocab_size": VOCABULARY, "pad_token_id": 0} | CONFIGS[kind] | more))
    torch.manual_seed(4)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.requires_grad_(False).eval()


def sequences_of(*lengths: int) -> Sequences:
    rng = np.random.default_rng(5)
    return Sequences(ids=tuple(rng.integers(4, VOCABULARY, length).astype(np.int32) for length in lengths))


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def of_tokens(model: Any, modules: dict[str, torch.nn.Module], text: Sequences) -> dict[str, FloatArray]:
    """The first input of each module, sequence by sequence, with tokens first for every layout of the model."""
    found: dict[str, FloatArray] = {}
    for ids in text.ids:
        seen: dict[str, FloatArray] = {}

        def keep(_: Any, given: tuple[torch.Tensor], *, name: str, seen: Any = seen, length: int = len(ids)) -> None:
            seen.setdefault(name, given[0].reshape(-1, given[0].shape[-1])[:length].double().numpy())

        hooks = [module.register_forward_pre_hook(partial(keep, name=name)) for name, module in modules.items()]
        given = torch.from_numpy(ids.astype(np.int64))[None]
        decoder = {"decoder_input_ids": given} if model.config.is_encoder_decoder else {}
        model(input_ids=given, **decoder)
        for hook in hooks:
            hook.remove()
        found = {name: np.concatenate([*([found[name]] if name in found else []), seen[name]]) for name in seen}
    return found


#: Sequences and the size of their batches: padded, all of one length, one by one; as many rows as tokens, without and with the
#: padding that models add themselves; as long as the relative positions of DeBERTa are many.
SHAPES = {
    "padded": ((5, 7, 9, 11, 12, 12), 1024),
    "equal": ((12,) * 6, 1024),
    "single": ((16,) * 3, 16),
    "square": ((4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12, 12), 1024),
    "square with padding": ((14,) * 16, 1024),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["deberta-v2", "longformer", "led", "xlnet", "opt"])
def test_what_is_no_token_is_not_counted(kind: str, shape: str) -> None:
    lengths, batch = SHAPES[shape]
    model, text = model_of(kind), sequences_of(*lengths)
    modules = linear_layers(model)
    sums = accumulate(model, text, modules, Batches(0, batch))
    assert {*sums.unusable} <= {"pooler.dense"}
    expected = of_tokens(model, modules, text)
    assert {*expected} == {*sums.shared}
    for name in {*expected} - {"pooler.dense"}:
        moments = sums.moments[sums.shared[name]]
        assert moments.count == len(expected[name]) == text.tokens, name
        truth = expected[name].T @ expected[name] / text.tokens
        found = moments.covariance(centred=False).numpy()
        np.testing.assert_allclose(found, truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max(), err_msg=name)


def test_positions_and_pooled_states_are_no_tokens() -> None:
    """One sequence with as many tokens as relative positions, so that their embeddings have the same shape."""
    model = model_of("deberta-v2", share_att_key=False)
    modules = linear_layers(model)
    sums = accumulate(model, sequences_of(16), modules, Batches(0, 16))
    assert {name for name in modules if name not in sums.shared} == {
        name for name in modules if "attention.self.pos_" in name
    }
    assert len(sums.shared) == len(modules) - 4
    bert = model_of("bert")
    sums = accumulate(bert, sequences_of(8, 8, 8), linear_layers(bert), Batches(0, 1024))
    assert sums.unusable == {
        "pooler.dense": "its input of shape (3, 16) is not one state per token of a batch of (3, 8)"
    }


def test_experts_see_some_tokens_and_count_where_there_is_no_padding() -> None:
    model = model_of("nllb-moe")
    modules = {name: module for name, module in linear_layers(model).items() if ".experts." in name}
    seen: dict[str, list[FloatArray]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].double().numpy())
        )
        for name, module in modules.items()
    ]
    equal = accumulate(model, sequences_of(9, 9, 9, 9), modules, Batches(0, 1024))
    for hook in hooks:
        hook.remove()
    assert equal.unusable == {}
    for name, expected in seen.items():
        (rows,) = expected
        moments = equal.moments[equal.shared[name]]
        assert moments.count == len(rows)
        np.testing.assert_allclose(moments.covariance(centred=False), rows.T @ rows / len(rows), rtol=1e-6, atol=1e-9)
    padded = accumulate(model, sequences_of(9, 9, 9, 7), modules, Batches(0, 1024))
    assert {*padded.unusable} == {*padded.shared.values()}
    assert padded.moments == {}


def test_a_pass_in_halves_that_runs_out_of_memory_counts_once() -> None:
    """As many rows as tokens, with padding: the pass is split into halves, and the second half fails."""
    model, text = model_of("xlnet"), sequences_of(2, 3, 3)
    modules = linear_layers(model)
    calls: list[int] = []

    def runs_out(module: Any, given: tuple[torch.Tensor]) -> None:
        calls.append(given[0].shape[1])
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.layer[0].ff.layer_1.register_forward_pre_hook(runs_out)
    sums = accumulate(model, text, modules, Batches(0, 64))
    hook.remove()
    assert calls[:3] == [3, 1, 2]
    expected = of_tokens(model, modules, text)
    for name, rows in expected.items():
        moments = sums.moments[name]
        assert moments.count == len(rows) == 8
        np.testing.assert_allclose(moments.covariance(centred=False), rows.T @ rows / 8, rtol=1e-3, atol=1e-4)


def test_the_forward_pass_ends_with_the_last_recorded_module(tmp_path: Path) -> None:
    target = open_target(str(save(tmp_path, "llama")), Selection())
    model = load_model(model_place(target.checkpoint))
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, given, name=name: ran.append(name))
    recorder = Recorder(modules={name: model.get_submodule(name) for name in ("model.layers.0.self_attn.q_proj",)})
    with recorder:
        ones = torch.ones(1, 4, dtype=torch.int64)
        recorder.forward(model, {"input_ids": ones, "attention_mask": ones})
        assert "lm_head" in ran, "the first pass counts the uses of the modules"
        ran.clear()
        recorder.forward(model, {"input_ids": ones, "attention_mask": ones})
    assert "model.layers.0.self_attn.q_proj" in ran
    assert recorder.moments["model.layers.0.self_attn.q_proj"].count == 8
    assert not any("layers.1" in name or "mlp" in name for name in ran)
    assert not model.model.layers[0].self_attn.q_proj._forward_pre_hooks.keys() - {*range(10**6)}


def test_overlaps_find_the_planted_direction() -> None:
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    covariance = basis @ np.diag(np.arange(12, 0, -1.0)) @ basis.T
    eigen = eigensystem(torch.from_numpy(covariance))
    np.testing.assert_allclose(eigen.values, np.arange(12, 0, -1.0))
    vectors = np.stack([-basis[:, 3], (basis[:, 0] + 2 * basis[:, 5]) / np.sqrt(5)])
    found = overlaps(torch.from_numpy(vectors), eigen)
    np.testing.assert_allclose(found.overlap, [1.0, 2 / np.sqrt(5)], rtol=1e-9)
    assert found.match.tolist() == [3, 5]
    np.testing.assert_allclose(found.eigenvalue, [9.0, 7.0])


@pytest.mark.parametrize(
    ("width", "band"),
    [(768, (0.0949, 0.1198, 0.1725)), (1024, (0.0852, 0.1062, 0.1512)), (4096, (0.0493, 0.0588, 0.0798))],
)
def test_the_band_of_random_overlaps_is_that_of_the_papers(width: int, band: tuple[float, ...]) -> None:
    assert tuple(round(value, 4) for value in random_band(width)) == band


def test_the_band_is_that_of_simulated_vectors() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.standard_normal((20_000, 300))
    largest = (np.abs(drawn) / np.linalg.norm(drawn, axis=1, keepdims=True)).max(axis=1)
    low, middle, high = random_band(300)
    assert np.quantile(largest, 0.5) == pytest.approx(middle, rel=0.005)
    assert np.mean(largest < low) < 0.004
    assert np.mean(largest > high) < 0.004
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        random_band(0)


def _eigen(width: int, seed: int) -> tuple[torch.Tensor, Eigensystem]:
    """A covariance whose eigenvectors are partly localized, and its eigensystem."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((4 * width, width)) @ rng.standard_normal((width, width)) / np.sqrt(width)
    hidden[:, :3] *= 12.0
    covariance = torch.from_numpy(hidden.T @ hidden / len(hidden))
    return covariance, eigensystem(covariance)


def _vectors(count: int, width: int, spread: float, seed: int) -> np.ndarray:
    """Random unit vectors with entries of random sizes, more unequal with a larger `spread`."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, width)) * np.exp(spread * rng.standard_normal((count, width)))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_the_energy_of_a_vector_is_its_quadratic_form() -> None:
    covariance, eigen = _eigen(40, 5)
    vectors = _vectors(7, 40, 0.5, 6)
    truth = [v @ covariance.numpy() @ v for v in vectors]
    np.testing.assert_allclose(overlaps(torch.from_numpy(vectors), eigen).energy, truth, rtol=1e-10)


def test_importances_add_up_to_the_mean_square_of_the_output() -> None:
    rng = np.random.default_rng(7)
    weight, hidden = rng.standard_normal((9, 14)), rng.standard_normal((500, 14)) + 2.0
    moments = Moments.zero(14)
    moments.add(torch.from_numpy(hidden))
    _, s, vh = np.linalg.svd(weight, full_matrices=False)
    for centred in (True, False):
        energy = overlaps(torch.from_numpy(vh), eigensystem(moments.covariance(centred=centred))).energy
        seen = hidden - hidden.mean(axis=0) if centred else hidden
        assert np.sum(s**2 * energy) == pytest.approx(np.mean(np.sum((seen @ weight.T) ** 2, axis=1)))


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_p_is_uniform_for_random_signs_whether_vectors_are_extended_or_localized(spread: float) -> None:
    width, count = 120, 400
    _, eigen = _eigen(width, 8)
    rng = np.random.default_rng(9)
    sizes = np.abs(_vectors(1, width, spread, 10))
    found = overlaps(torch.from_numpy(sizes * rng.choice([-1.0, 1.0], size=(count, width))), eigen, draws=39)
    assert np.mean(found.signs_p) == pytest.approx(0.5, abs=4.0 / np.sqrt(12 * count))
    for level in (0.025, 0.1, 0.5):
        assert abs(np.mean(found.signs_p <= level) - level) < 4.0 * np.sqrt(level / count)
    assert np.median(found.overlap) == pytest.approx(np.median(found.signs_median), rel=0.05)
    for level in (0.1, 0.01):
        assert np.mean(found.signs_bound < level) < level + 3.0 * np.sqrt(level / count)


def test_an_overlap_that_signs_make_is_found_and_one_of_localization_is_not() -> None:
    _, eigen = _eigen(200, 11)
    directed = eigen.vectors[:, 50]
    localized = torch.zeros(200, dtype=torch.float64)
    localized[0] = 1.0  # f_0 to f_2 are localized on the first three features
    found = overlaps(torch.stack([directed, localized]), eigen, draws=39)
    assert min(found.overlap) > random_band(200)[2]
    assert found.signs_p.tolist() == [1 / 40, 1.0]
    assert found.signs_bound[0] < 1e-12
    assert found.signs_bound[1] > 0.2
    assert found.signs_median[1] == pytest.approx(found.overlap[1], rel=1e-5)
    assert np.isnan(overlaps(localized[None], eigen).signs_p).all()


def test_halves_of_the_sums_are_those_of_every_other_sequence(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path / "model", "llama")), Selection()).checkpoint)
    model, tokenizer = load_model(place), load_tokenizer(place)
    read = sequences(tokenizer, read_texts(TextSource(reference=str(table_file(tmp_path)))), length=6)
    name = "model.layers.1.mlp.down_proj"
    modules = {name: model.get_submodule(name)}
    whole = accumulate(model, read, modules, Batches(0, 64))
    halved = accumulate(model, read, modules, Batches(0, 64), halves=True)
    assert whole.halves(name) is None
    restored = Sums.unpacked(halved.packed())
    assert restored is not None
    assert restored.moments[name].count == whole.moments[name].count
    torch.testing.assert_close(
        restored.moments[name].covariance(centred=True),
        whole.moments[name].covariance(centred=True),
        rtol=1e-5,
        atol=1e-7,
    )
    found = restored.halves(name)
    assert found is not None
    for first, half in enumerate(found):
        hidden = naive(model, name, read.part([*range(first, len(read.ids), 2)]))
        assert half.count == len(hidden)
        np.testing.assert_allclose(half.covariance(centred=True), np.cov(hidden.T, bias=True), rtol=1e-3, atol=1e-6)
    total = accumulate(model, read, modules, Batches(0, 64), halves=True)
    total.add(halved)
    assert total.half[name].count == 2 * halved.half[name].count
