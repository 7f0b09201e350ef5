"""Folders of several models: each is scanned, or listed with the command that scans it."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import open_checkpoint
from scanner.errors import CheckpointError

from ..sources.hub_server import Hub

ONE = {"w.weight": torch.ones(4, 3)}


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(ONE, path) if path.suffix == ".safetensors" else torch.save(ONE, path)


def listed(message: str) -> set[str]:
    """The references of the commands in a message."""
    commands = [shlex.split(part) for part in message.partition("rmtscan scan ")[2].split(", rmtscan scan ")]
    return {words[0] for words in commands}


def refused(reference: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(reference), identify=False)
    return str(caught.value)


def test_a_pipeline_lists_the_models_in_its_folders(tmp_path: Path) -> None:
    root = tmp_path / "a pipeline"
    weights = "diffusion_pytorch_model.safetensors"
    write(root / "unet" / weights, root / "vae" / weights, root / "text_encoder" / "model.safetensors")
    (root / "scheduler").mkdir()
    message = refused(root)
    assert listed(message) == {str(root / name) for name in ("unet", "vae", "text_encoder")}
    for reference in listed(message):
        assert open_checkpoint(reference).tensors


def test_folders_inside_folders_are_listed_too(tmp_path: Path) -> None:
    write(tmp_path / "pipes" / "one" / "unet" / "model.bin", tmp_path / "pipes" / "two" / "unet" / "model.bin")
    assert listed(refused(tmp_path / "pipes")) == {str(tmp_path / "pipes" / name / "unet") for name in ("one", "two")}


def test_old_sentence_transformers_list_both_modules(tmp_path: Path) -> None:
    write(tmp_path / "0_Transformer" / "pytorch_model.bin", tmp_path / "2_Dense" / "model.safetensors")
    assert listed(refused(tmp_path)) == {str(tmp_path / "0_Transformer"), str(tmp_path / "2_Dense")}


def test_models_beside_the_main_one_are_mentioned(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", tmp_path / "2_Dense" / "model.safetensors", tmp_path / "3_Dense" / "a.bin")
    write(tmp_path / "consolidated.safetensors", tmp_path / "q-1-of-2.gguf", tmp_path / "q-2-of-2.gguf")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "training_args.bin").write_bytes(b"")
    opened = open_checkpoint(str(tmp_path))
    assert {entry.file for entry in opened.tensors} == {"model.safetensors"}
    others = ("consolidated.safetensors", "q-1-of-2.gguf", "2_Dense", "3_Dense")
    assert set(opened.beside) == {str(tmp_path / name) for name in others}
    assert open_checkpoint(str(tmp_path / "model.safetensors")).beside == ()


def test_another_precision_is_mentioned_and_the_usual_one_scanned(tmp_path: Path) -> None:
    for suffix in ("safetensors", "bin"):
        folder = tmp_path / suffix
        write(folder / f"diffusion_pytorch_model.{suffix}", folder / f"diffusion_pytorch_model.fp16.{suffix}")
        opened = open_checkpoint(str(folder))
        assert {entry.file for entry in opened.tensors} == {f"diffusion_pytorch_model.{suffix}"}
        assert opened.beside == (str(folder / f"diffusion_pytorch_model.fp16.{suffix}"),)


def test_several_files_are_listed_with_a_command_for_each(tmp_path: Path) -> None:
    write(tmp_path / "best.pt", tmp_path / "last.pt")
    assert listed(refused(tmp_path)) == {str(tmp_path / "best.pt"), str(tmp_path / "last.pt")}


def test_a_pipeline_on_the_hub_lists_references_that_open(hub: Hub, tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    hub.commit("org/pipe", {f"{name}/model.safetensors": content for name in ("unet", "vae")})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("org/pipe")
    found = listed(str(caught.value))
    assert {open_checkpoint(reference).model for reference in found} == {"org/pipe/unet", "org/pipe/vae"}
    hub.commit("org/st", {"model.safetensors": content, "2_Dense/model.safetensors": content})
    (beside,) = open_checkpoint("org/st").beside
    assert open_checkpoint(beside).model == "org/st/2_Dense"
