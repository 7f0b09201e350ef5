"""The registry of formats: one module adds a format to everything that reads checkpoints."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fsspec
import pytest
import torch

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix, register_format
from scanner.checkpoint.formats import Format, decoder_of, format, format_of, formats, get_format
from scanner.errors import CheckpointError

from ..writing import checkpoint, matrix, reasons

BUILT_IN = ["safetensors", "gguf", "pytorch", "peft"]
QUERY = "model.layers.0.self_attn.q_proj.weight"
TENSORS = {
    QUERY: torch.arange(48, dtype=torch.uint8).reshape(6, 8),
    "model.layers.0.mlp.up_proj.weight": torch.randn(9, 8),
    "model.layers.0.norm.weight": torch.ones(8),
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the toy format; the format is unknown again after the test."""
    monkeypatch.setattr(format, "_FORMATS", dict(format._FORMATS))
    module = importlib.import_module("tests.checkpoint.formats.toy_format")
    module.register_format(module.Toy())
    return module


def test_an_extension_adds_a_format_to_all_that_reads_checkpoints(tmp_path: Path, toy: ModuleType) -> None:
    toy.write_toy(tmp_path / "weights.toy", TENSORS)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    for reference in (tmp_path, tmp_path / "weights.toy"):
        opened = open_checkpoint(str(reference))
        assert (opened.format, opened.parameters, opened.architecture) == (
            "toy",
            6 * 8 + 9 * 8 + 8,
            "LlamaForCausalLM",
        )
        inventory = list_matrices(opened)
        assert [(ref.role, ref.layer, ref.dtype) for ref in inventory.matrices] == [
            ("query", 0, "TOY8"),
            ("mlp_up", 0, "F32"),
        ]
        assert reasons(inventory) == {"model.layers.0.norm.weight": "1-D: not a matrix"}
        read = read_matrix(opened.source, matrix(inventory, QUERY))
        assert torch.equal(read, (TENSORS[QUERY].float() - 128) / 16)


def test_a_registered_suffix_names_a_file_in_a_remote_store(tmp_path: Path, toy: ModuleType) -> None:
    toy.write_toy(tmp_path / "weights.toy", TENSORS)
    fsspec.filesystem("memory").pipe("/store/llama.toy", (tmp_path / "weights.toy").read_bytes())
    opened = open_checkpoint("memory://store/llama.toy")
    assert (opened.model, len(opened.tensors)) == ("llama", 3)


def test_differences_of_a_registered_format_are_taken(tmp_path: Path, toy: ModuleType) -> None:
    toy.write_toy(tmp_path / "base" / "weights.toy", TENSORS)
    tuned = {QUERY: (TENSORS[QUERY].float() - 128) / 16 + 1}
    opened = open_checkpoint(f"delta:{tmp_path / 'base'}..{checkpoint(tmp_path / 'tuned', tuned)}")
    (ref,) = list_matrices(opened).matrices
    assert torch.equal(read_matrix(opened.source, ref), torch.ones(6, 8, dtype=torch.float64))


def test_a_damaged_file_of_a_registered_format_is_an_error_of_one_line(tmp_path: Path, toy: ModuleType) -> None:
    (tmp_path / "weights.toy").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"weights\.toy is not a \.toy file"):
        open_checkpoint(str(tmp_path))


def test_formats_that_come_with_the_scanner_go_first(tmp_path: Path, toy: ModuleType) -> None:
    toy.write_toy(tmp_path / "weights.toy", TENSORS)
    assert open_checkpoint(checkpoint(tmp_path, {QUERY: torch.ones(2, 2)})).format == "safetensors"


def test_the_command_knows_the_formats_of_extensions(tmp_path: Path) -> None:
    from . import toy_format

    toy_format.write_toy(tmp_path / "llama" / "weights.toy", TENSORS)
    environment = os.environ | {"RMTSCAN_EXTENSIONS": "tests.checkpoint.formats.toy_format"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "scanner.cli.main", "inspect", str(tmp_path / "llama"), "--format", "json"]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {row["tensor"]: row["role"] for row in json.loads(ran.stdout)} == {
        QUERY: "query",
        "model.layers.0.mlp.up_proj.weight": "mlp_up",
        "model.layers.0.norm.weight": None,
    }
    assert "toy" in ran.stderr
    unknown = subprocess.run(
        command, env=environment | {"RMTSCAN_EXTENSIONS": ""}, capture_output=True, check=False, text=True
    )
    assert unknown.returncode == 1
    assert "holds no weights: no .safetensors, GGUF or PyTorch file is in it" in " ".join(unknown.stderr.split())


def test_a_checkpoint_of_an_unknown_format_says_what_to_do(
    tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_toy(tmp_path / "weights.toy", TENSORS)
    opened = pickle.loads(pickle.dumps(open_checkpoint(str(tmp_path))))
    (ref, *_) = list_matrices(opened).matrices
    monkeypatch.delitem(format._FORMATS, "toy")
    with pytest.raises(CheckpointError, match="format 'toy' is unknown: load the extension"):
        list_matrices(opened, Selection())
    with pytest.raises(CheckpointError, match="codec 'toy8' is unknown: load the extension"):
        read_matrix(opened.source, ref)


def test_names_and_codecs_are_registered_once(toy: ModuleType) -> None:
    before = formats()
    register_format(toy.Toy())
    assert formats() == before

    class Other(toy.Toy):  # type: ignore[name-defined,misc]
        pass

    with pytest.raises(ValueError, match="'toy' is registered already"):
        register_format(Other())
    Other.name = "other"
    with pytest.raises(ValueError, match="codec 'toy8' is defined already"):
        register_format(Other())
    assert formats() == before


def test_the_formats_that_come_with_the_scanner() -> None:
    assert [known.name for known in formats()][:4] == BUILT_IN
    assert all(isinstance(known, Format) and known.title for known in formats())
    for file, name in {
        "a.safetensors": "safetensors",
        "a.gguf": "gguf",
        "a.bin": "pytorch",
        "optimizer.pt": None,
        "a.txt": None,
    }.items():
        found = format_of(file)
        assert (found.name if found else None) == name
    assert [known.name for known in formats() if known.holds_changes] == ["peft", "mlx_adapter"]
    assert get_format("gguf").transformers_options(["b.gguf", "a.gguf"]) == {"gguf_file": "a.gguf"}
    assert get_format("safetensors").transformers_options(["a.safetensors"]) == {}
    assert decoder_of("lora") is get_format("peft").decoders["lora"]
