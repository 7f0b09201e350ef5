"""Models and tokenizers from references, and scanned matrices found in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, PreTrainedModel

from scanner.checkpoint import Selection, read_matrix
from scanner.errors import ScannerError
from scanner.experiments.nlp.models import (
    ModelPlace,
    is_causal,
    load_config,
    load_model,
    load_tokenizer,
    longest_input,
    model_place,
)
from scanner.experiments.nlp.placing import open_target, place_matrices

from .tiny import save


@pytest.mark.parametrize(
    ("kind", "head"), [("llama", "causal"), ("gpt2", "causal"), ("bert", "features"), ("mixtral", "causal")]
)
@pytest.mark.parametrize("loaded", ["own", "features"])
def test_every_matrix_is_found_with_the_entries_that_the_file_holds(
    tmp_path: Path, kind: str, head: str, loaded: str
) -> None:
    target = open_target(str(save(tmp_path, kind, head)), Selection())
    model = load_model(model_place(target.checkpoint), head=loaded)  # type: ignore[arg-type]
    placed, unplaced = place_matrices(model, target.inventory.matrices)
    assert unplaced == {}
    assert [one.ref for one in placed] == list(target.inventory.matrices)
    for one in placed:
        assert torch.equal(one.matrix(model), read_matrix(target.checkpoint.source, one.ref)), one.ref.tensor


@pytest.mark.parametrize(
    "kind",
    """roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl camembert mpnet data2vec-text ibert luke longformer esm markuplm
    bert electra gpt2 opt bart""".split(),
)
def test_the_longest_input_goes_through_the_model_and_no_longer_one(kind: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "longformer":
        sizes["attention_window"] = 4
    if kind == "esm":
        sizes["mask_token_id"] = 4
    padding = 1 if kind == "mpnet" else 3  # its padding token is 1 for every configuration
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=24, pad_token_id=padding, **sizes)
    if kind == "esm":
        config.position_embedding_type = "absolute"
    model = AutoModel.from_config(config).eval()
    longest = longest_input(config, None)
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)|size"):
            model(input_ids=torch.full((1, longest + 1), 5))


def test_experts_run_in_float64(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "mixtral")), Selection()).checkpoint)
    ids = torch.arange(4, 14)[None]
    double, single = (load_model(place, dtype=dtype)(input_ids=ids).logits for dtype in ("float64", "float32"))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), rtol=1e-4, atol=1e-4)


def test_a_view_writes_through_to_a_fused_and_turned_weight(tmp_path: Path) -> None:
    target = open_target(str(save(tmp_path, "gpt2")), Selection(only=("key",)))
    model = load_model(model_place(target.checkpoint))
    before = model.get_parameter("transformer.h.0.attn.c_attn.weight").clone()
    placed, _ = place_matrices(model, target.inventory.matrices)
    placed[0].view(model).zero_()
    after = model.get_parameter("transformer.h.0.attn.c_attn.weight")
    assert torch.equal(after[:, 16:32], torch.zeros(16, 16))  # Conv1D holds (in, out): the keys are the middle columns
    assert torch.equal(after[:, :16], before[:, :16])
    assert torch.equal(after[:, 32:], before[:, 32:])


def test_a_gguf_file_is_dequantised_as_the_scan_reads_it(smollm2: Path) -> None:
    target = open_target(str(smollm2), Selection(layers=(0,)))
    model = load_model(model_place(target.checkpoint))
    model.config.architectures = None  # as in the configuration read from the file
    assert is_causal(model.config)
    assert longest_input(model.config, None) == 8192
    placed, unplaced = place_matrices(model, target.inventory.matrices)
    assert unplaced == {}
    assert len(placed) == 7
    for one in placed:
        assert torch.equal(one.matrix(model), read_matrix(target.checkpoint.source, one.ref).float()), one.ref.tensor


def test_a_class_that_transformers_does_not_know_is_one_line_and_its_code_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    with pytest.raises(ScannerError, match=r"does not know the class of .*never run \(trust_remote_code is off\)"):
        load_model(place)
    assert not (tmp_path / "ran").exists()


def test_a_head_that_is_not_in_the_checkpoint_is_not_made_up(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "bert", "features")), Selection()).checkpoint)
    with pytest.raises(ScannerError, match=r"has no .*: perplexity and KL divergence need a checkpoint"):
        load_model(place, head="causal")
    with pytest.raises(ScannerError, match=r"has no classifier.*fine-tune the model first"):
        load_model(place, head="classification")


def test_a_model_that_does_not_fit_onto_its_device_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    place = model_place(open_target(str(save(tmp_path, "llama")), Selection()).checkpoint)
    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(ScannerError, match="does not fit into the memory of the device"):
        load_model(place)


def test_a_masked_language_model_is_not_causal(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "masked")
    place = model_place(open_target(str(tmp_path / "masked"), Selection()).checkpoint)
    assert not is_causal(load_config(place))
    assert is_causal(
        load_config(model_place(open_target(str(save(tmp_path / "gpt2", "gpt2")), Selection()).checkpoint))
    )


def test_weights_without_a_tokenizer_say_so(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    with pytest.raises(ScannerError, match="no tokenizer that transformers can read"):
        load_tokenizer(place)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_tokenizer_of_special_tokens_alone_is_none(tmp_path: Path, kind: str) -> None:
    """transformers makes a tokenizer for a folder without its files, for which every word is unknown."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(
        ScannerError, match=r"has no tokenizer .* its vocabulary is missing; put the files of the tokenizer"
    ):
        load_tokenizer(ModelPlace(model="m", path=str(tmp_path)))


def test_a_role_or_layer_that_a_model_has_not_is_named_with_what_it_has(tmp_path: Path) -> None:
    folder = str(save(tmp_path, "gpt2"))
    with pytest.raises(ScannerError, match="no matrix with role 'mlp_gate': it has query, key"):
        open_target(folder, Selection(only=("mlp_gate",)))
    with pytest.raises(ScannerError, match="no layer 7: the last one is 1"):
        open_target(folder, Selection(layers=(7,)))
    with pytest.raises(ScannerError, match="select no embeddings"):
        open_target(folder, Selection(embeddings=True))


def test_a_difference_of_checkpoints_cannot_be_run(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", "gpt2"), save(tmp_path / "tuned", "gpt2", seed=1)
    with pytest.raises(ScannerError, match="a difference of two checkpoints, which cannot be run"):
        model_place(open_target(f"delta:{base}..{tuned}", Selection()).checkpoint)
