"""`rmtscan compress` on small models: what transformers and `scanner.compress.load` read back, and what is refused."""

from __future__ import annotations

import errno
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from scanner.checkpoint import list_matrices, open_checkpoint
from scanner.checkpoint.formats import is_change
from scanner.checkpoint.reading import read_matrix
from scanner.compress import Config, compress, load
from scanner.compress import folder as folders
from scanner.compress.factored import FactoredLinear
from scanner.errors import ConfigError, ScannerError
from scanner.rmt.decomposition import LowRank
from tests.experiments.tiny import VOCABULARY, save, text_file

OPTIONS: dict[str, Any] = {"tokens": 512, "calibration_tokens": 512, "window": 32, "budget": 0.7}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    text_file(folder, 3000)
    save(folder / "llama", "llama")
    save(folder / "tied", "llama", tie_word_embeddings=True)
    save(folder / "gpt2", "gpt2")
    save(folder / "mixtral", "mixtral")
    save(folder / "bert", "bert", "features")
    return folder


def config(checkpoints: Path, name: str, to: Path, **more: Any) -> Config:
    given = OPTIONS | {"text": str(checkpoints / "text.txt")} | more
    if not given["text"] and "window" not in more:
        del given["window"]
    return Config(model=str(checkpoints / name), output=str(to), **given)


def inputs() -> torch.Tensor:
    return torch.arange(40).reshape(2, 20) % VOCABULARY


def nats(model: Any, windows: np.ndarray) -> np.ndarray:
    """Negative log-likelihood per token of each window, by hand."""
    ids = torch.from_numpy(windows)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, :-1].float()
    return (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        .view(len(ids), -1)
        .mean(dim=1)
        .numpy()
    )


@pytest.mark.parametrize("by", ["energy", "p", "p_scale", "importance", "svd-llm"])
def test_transformers_loads_what_was_written_with_the_rank_that_was_said(
    checkpoints: Path, tmp_path: Path, by: Any
) -> None:
    done = compress(config(checkpoints, "llama", tmp_path / "new", by=by))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    intact = AutoModelForCausalLM.from_pretrained(checkpoints / "llama").eval()
    told = json.loads((tmp_path / "new" / "compression.json").read_text("utf-8"))
    assert done.matrices == len(told["matrices"]) == 14
    for name, about in told["matrices"].items():
        weight = model.get_parameter(name.partition("/")[0]).double()
        before = intact.get_parameter(name.partition("/")[0]).double()
        s = torch.linalg.svdvals(weight)
        assert int((s > 1e-5 * s[0]).sum()) == about["rank"] == int(0.7 * weight.numel() / sum(weight.shape))
        if by != "svd-llm":
            kept = [
                k
                for run in about["kept"].split(",")
                for k in range(int(run.split("-")[0]), int(run.split("-")[-1]) + 1)
            ]
            u, old, v = torch.linalg.svd(before, full_matrices=False)
            torch.testing.assert_close(weight, (u[:, kept] * old[kept]) @ v[kept], atol=1e-5, rtol=0.0)
    torch.testing.assert_close(model.lm_head.weight, intact.lm_head.weight)
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_perplexity_and_its_interval_are_those_of_the_written_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    from scipy.stats import ttest_rel
    from transformers import AutoTokenizer

    done = compress(config(checkpoints, "llama", tmp_path / "new", by="importance"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = np.array(tokenizer((checkpoints / "text.txt").read_text("utf-8"))["input_ids"][:1024]).reshape(32, 32)[16:]
    old, new = (
        nats(AutoModelForCausalLM.from_pretrained(path).eval(), ids)
        for path in (checkpoints / "llama", tmp_path / "new")
    )
    rows = {row.rule: row for row in done.rows}
    assert [*rows] == ["intact", "importance", "energy", "svd-llm"]
    assert rows["intact"].perplexity == pytest.approx(np.exp(old.mean()), rel=1e-4)
    assert rows["importance"].perplexity == pytest.approx(np.exp(new.mean()), rel=1e-4)
    interval = ttest_rel(new, old).confidence_interval(0.95)
    found = rows["importance"]
    assert (found.nats, found.nats_low, found.nats_high) == pytest.approx(
        ((new - old).mean(), interval.low, interval.high), abs=1e-4
    )
    assert {row.parameters for row in done.rows if row.rule != "intact"} == {found.parameters}
    assert found.share <= 0.7
    other = rows["energy"]
    assert other.nats is not None and found.nats is not None  # noqa: PT018
    assert other.versus_chosen == pytest.approx(other.nats - found.nats, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "tied"])
def test_a_factored_checkpoint_is_loaded_with_both_factors(checkpoints: Path, tmp_path: Path, name: str) -> None:
    merged = compress(config(checkpoints, name, tmp_path / "merged", by="energy"))
    done = compress(config(checkpoints, name, tmp_path / "new", by="energy", factored=True))
    model = load(tmp_path / "new")
    layers = [module for module in model.modules() if isinstance(module, FactoredLinear)]
    assert len(layers) == done.matrices == 14
    assert sum(parameter.numel() for parameter in model.parameters()) == done.parameters_after < done.parameters_before
    assert merged.parameters_after == done.parameters_after
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs()).logits, plain(inputs()).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layers[0].weight, plain.model.layers[0].self_attn.q_proj.weight, atol=1e-5, rtol=1e-4)
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied == (name == "tied")
    assert any("tied" in note for note in done.notes) == (name == "tied")


def test_transformers_alone_refuses_a_factored_checkpoint_instead_of_random_weights(
    checkpoints: Path, tmp_path: Path
) -> None:
    compress(config(checkpoints, "llama", tmp_path / "new", by="energy", factored=True, text=""))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "new")


def test_the_class_of_the_model_is_kept_where_the_checkpoint_does_not_name_it(
    checkpoints: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "unnamed"
    AutoModelForCausalLM.from_pretrained(checkpoints / "llama").save_pretrained(copy)
    about = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(about | {"architectures": None}), "utf-8")
    compress(Config(model=str(copy), output=str(tmp_path / "new"), by="energy", factored=True))
    assert type(load(tmp_path / "new")).__name__ == "LlamaForCausalLM"


def test_other_users_can_read_what_was_written(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    compress(config(checkpoints, "llama", tmp_path / "new", by="energy", text=""))
    assert {path.stat().st_mode for path in (tmp_path / "new").iterdir()} == {(tmp_path / "file").stat().st_mode}


def test_a_scan_of_a_factored_checkpoint_has_the_products(checkpoints: Path, tmp_path: Path) -> None:
    roles = ("attn_out", "mlp_up", "mlp_down")
    for name, only in (("llama", ()), ("gpt2", roles)):
        for kind in ("merged", "factored"):
            to = tmp_path / f"{name}-{kind}"
            compress(config(checkpoints, name, to, by="energy", roles=only, text="", factored=kind == "factored"))
        merged, factored = (open_checkpoint(str(tmp_path / f"{name}-{kind}")) for kind in ("merged", "factored"))
        inventory = list_matrices(factored)
        kept = {(ref.tensor, ref.role): ref for ref in inventory.matrices}
        assert {*kept} == {(ref.tensor, ref.role) for ref in list_matrices(merged).matrices}
        assert sum(skip.reason.startswith("factor of ") for skip in inventory.skipped) == (14 if name == "llama" else 6)
        assert not is_change(factored)
        for ref in list_matrices(merged).matrices:
            found = read_matrix(factored.source, kept[ref.tensor, ref.role])
            dense = found.left @ found.right if isinstance(found, LowRank) else found.double()
            torch.testing.assert_close(dense, read_matrix(merged.source, ref).double(), atol=1e-5, rtol=1e-4)


def test_factors_that_do_not_fit_are_skipped_with_the_reason(factored: Path) -> None:
    tensors = load_file(factored / "factors.safetensors")
    tensors[NAME] = torch.zeros(3, 16)
    save_file(tensors, factored / "factors.safetensors")
    inventory = list_matrices(open_checkpoint(str(factored)))
    reasons = [skip.reason for skip in inventory.skipped if skip.tensor == NAME]
    assert reasons == ["factor of model.layers.0.self_attn.q_proj that has no fitting other one"]
    assert len(inventory.matrices) == 13


def test_layers_with_a_bias_and_transposed_ones_are_factored(checkpoints: Path, tmp_path: Path) -> None:
    roles = ("attn_out", "mlp_up", "mlp_down")
    compress(config(checkpoints, "gpt2", tmp_path / "merged", by="energy", roles=roles))
    done = compress(config(checkpoints, "gpt2", tmp_path / "new", by="energy", roles=roles, factored=True))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            load(tmp_path / "new")(inputs()).logits, plain(inputs()).logits, atol=1e-4, rtol=1e-4
        )
    assert done.matrices == 6


def test_fused_weights_are_compressed_part_by_part_and_not_factored(checkpoints: Path, tmp_path: Path) -> None:
    done = compress(config(checkpoints, "gpt2", tmp_path / "new", by="energy"))
    assert done.matrices == 12
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    weight = model.get_parameter("transformer.h.0.attn.c_attn.weight")
    for part in weight.T.split(16):
        assert int(torch.linalg.matrix_rank(part.double(), rtol=1e-5)) == int(0.7 * 256 / 32)
    with pytest.raises(ScannerError, match=r"6 matrices are not layers of their own .* omit `factored`"):
        compress(config(checkpoints, "gpt2", tmp_path / "other", factored=True))


def test_experts_are_compressed_without_a_text_and_refused_with_one(checkpoints: Path, tmp_path: Path) -> None:
    done = compress(
        config(checkpoints, "mixtral", tmp_path / "new", by="energy", text="", roles=("mlp_up", "mlp_down"))
    )
    assert done.matrices == 6
    assert done.rows[0].perplexity is None
    with pytest.raises(ScannerError, match="no hook sees its input"):
        compress(config(checkpoints, "mixtral", tmp_path / "other", by="energy"))


def test_an_encoder_is_compressed_without_a_text(checkpoints: Path, tmp_path: Path) -> None:
    compress(config(checkpoints, "bert", tmp_path / "new", by="p", text=""))
    assert AutoModel.from_pretrained(tmp_path / "new").config.hidden_size == 16
    with pytest.raises(ScannerError, match="not a causal language model"):
        compress(config(checkpoints, "bert", tmp_path / "other", by="p"))


def test_every_weight_is_rounded_to_the_type_that_is_written(checkpoints: Path, tmp_path: Path) -> None:
    done = compress(config(checkpoints, "llama", tmp_path / "new", by="energy", saved_dtype="bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert model.dtype == torch.bfloat16
    ids = np.array([int(word[1:]) + 4 for word in (checkpoints / "text.txt").read_text("utf-8").split()[:1024]])
    found = nats(model.float(), ids.reshape(32, 32)[16:])
    assert done.rows[1].perplexity == pytest.approx(np.exp(found.mean()), rel=1e-4)


def test_a_quantized_checkpoint_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    copy = tmp_path / "quantized"
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "llama")
    model.save_pretrained(copy)
    about = json.loads((copy / "config.json").read_text("utf-8"))
    about["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    (copy / "config.json").write_text(json.dumps(about), "utf-8")
    with pytest.raises(ScannerError, match=r"is quantized .*compress the model that it was made from"):
        compress(Config(model=str(copy), output=str(tmp_path / "new"), by="energy"))


def test_nothing_is_overwritten_and_nothing_is_left_behind(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept", "utf-8")
    (tmp_path / "file").write_text("kept", "utf-8")
    for name, words in (("full", "is not empty"), ("file", "is a file"), ("gone/new", "there is no folder")):
        with pytest.raises(ConfigError, match=words):
            compress(config(checkpoints, "llama", tmp_path / name))
    assert (tmp_path / "full" / "file").read_text("utf-8") == "kept"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(ScannerError, match=r"new cannot be written: No space left on device"):
        compress(config(checkpoints, "llama", tmp_path / "new", by="energy", text="", factored=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_is_used(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    compress(config(checkpoints, "llama", tmp_path / "new", by="energy", text=""))
    assert (tmp_path / "new" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"budget": 1.0}, "`budget` must be between 0 and 1"),
        ({"by": "size"}, "`by` must be one of"),
        ({"by": "importance", "text": ""}, "`text` is missing"),
        ({"by": "svd-llm", "text": ""}, "`text` is missing"),
        ({"column": "review", "text": ""}, "`column` has no effect without `text`"),
        ({"window": 64, "text": ""}, "`window` has no effect without `text`"),
    ],
)
def test_unsuitable_options_are_refused(checkpoints: Path, tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(checkpoints, "llama", tmp_path / "new", **more)


def test_a_text_that_is_too_short_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match=r"too few for `calibration_tokens` 5000"):
        compress(config(checkpoints, "llama", tmp_path / "new", calibration_tokens=5000))


@pytest.fixture
def factored(checkpoints: Path, tmp_path: Path) -> Path:
    compress(config(checkpoints, "llama", tmp_path / "new", by="energy", text="", factored=True))
    return tmp_path / "new"


NAME = "model.layers.0.self_attn.q_proj.factor_in.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda tensors: tensors.pop(NAME.replace("factor_in", "factor_out")), "do not make a matrix of 16 x 16"),
        (lambda tensors: tensors.update({NAME: torch.zeros(3, 16)}), "do not make a matrix of 16 x 16"),
        (lambda tensors: tensors.update({"model.nothing.factor_in.weight": torch.zeros(3, 16)}), "has no linear layer"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}), "does not fit LlamaForCausalLM"),
        (lambda tensors: tensors.update({"more": torch.zeros(3)}), "more has no place in the model"),
    ],
)
def test_a_factored_checkpoint_whose_files_contradict_each_other_is_refused(
    factored: Path, change: Any, words: str
) -> None:
    tensors = load_file(factored / "factors.safetensors")
    change(tensors)
    save_file(tensors, factored / "factors.safetensors")
    with pytest.raises(ScannerError, match=words):
        load(factored)


def test_a_factored_checkpoint_is_not_compressed_again(factored: Path, tmp_path: Path) -> None:
    again = Config(model=str(factored), output=str(tmp_path / "again"), by="energy")
    with pytest.raises(ScannerError, match=r"holds factors of matrices.*: compress the model that it was made from"):
        compress(again)
    assert not (tmp_path / "again").exists()


def test_damaged_and_other_folders_are_refused(factored: Path, checkpoints: Path) -> None:
    with pytest.raises(ScannerError, match="it is not a folder that rmtscan compress --factored wrote"):
        load(checkpoints / "llama")
    content = (factored / "factors.safetensors").read_bytes()
    (factored / "factors.safetensors").write_bytes(content[:-100])
    with pytest.raises(ScannerError, match="cannot be read"):
        load(factored)
    (factored / "compression.json").write_text("{", "utf-8")
    with pytest.raises(ScannerError, match=r"compression\.json cannot be read"):
        load(factored)


def test_the_configuration_is_not_changed_by_a_run(checkpoints: Path, tmp_path: Path) -> None:
    wanted = config(checkpoints, "llama", tmp_path / "new", by="energy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = compress(wanted)
        second = compress(replace(wanted, output=str(tmp_path / "other")))
    assert first.rows == second.rows
