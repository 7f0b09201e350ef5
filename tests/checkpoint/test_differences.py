"""`delta:BASE..TUNED` and the matching of matrices behind it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrices, read_matrix
from scanner.checkpoint.differences import difference, split_reference
from scanner.checkpoint.sources.files import ByteRange, LocalFiles
from scanner.errors import CheckpointError

from .writing import checkpoint


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("delta:a..b", ("a", "b")),
        ("delta:org/base..org/tuned@main", ("org/base", "org/tuned@main")),
        ("delta:../base..../tuned", ("../base", "../tuned")),
        ("delta:/x/../base../y/tuned", ("/x/../base", "/y/tuned")),
        ("delta:./base....cache/tuned", ("./base", "..cache/tuned")),
        ("delta:base...hidden/tuned", ("base", ".hidden/tuned")),
        ("delta:s3://b/base..hf://org/tuned", ("s3://b/base", "hf://org/tuned")),
    ],
)
def test_a_reference_is_split_between_its_two_checkpoints(reference: str, parts: tuple[str, str]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize("reference", ["delta:", "delta:a", "delta:a..", "delta:..b", "delta:a..b..c", "delta:../a"])
def test_anything_but_two_references_is_refused(reference: str) -> None:
    with pytest.raises(CheckpointError, match=r"delta:BASE\.\.TUNED"):
        split_reference(reference)


def test_real_differences_are_those_of_the_stored_weights(minilm: Path, minilm_tuned: Path) -> None:
    opened = open_checkpoint(f"delta:{minilm}..{minilm_tuned}")
    inventory = list_matrices(opened)
    assert len(inventory.matrices) == 37
    base, tuned = (load_file(folder / "model.safetensors") for folder in (minilm, minilm_tuned))
    for ref in inventory.matrices[::9]:
        expected = tuned[ref.tensor].double() - base[ref.tensor].double()
        found = read_matrix(opened.source, ref)
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected)
    assert opened.base_model == open_checkpoint(str(minilm)).model
    assert opened.identity not in {open_checkpoint(str(minilm)).identity, open_checkpoint(str(minilm_tuned)).identity}


def _layer(index: int, seed: int, prefix: str = "") -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(100 * seed + index)
    names = {"self_attn.q_proj": (6, 4), "self_attn.v_proj": (3, 4), "odd.one": (5, 4), "odd.two": (5, 4)}
    return {
        f"{prefix}layers.{index}.{name}.weight": torch.randn(shape, generator=random) for name, shape in names.items()
    }


def test_matrices_are_matched_by_place_and_not_by_the_prefix_or_order_of_names(tmp_path: Path) -> None:
    one, two = _layer(0, 1) | _layer(10, 1) | _layer(1, 1), _layer(1, 2, "model.") | _layer(0, 2, "model.")
    base = checkpoint(tmp_path / "base", one)
    tuned = checkpoint(tmp_path / "tuned", two)
    opened = open_checkpoint(f"delta:{base}..{tuned}")
    inventory = list_matrices(opened)
    assert {ref.tensor for ref in inventory.matrices} == set(two)
    for ref in inventory.matrices:
        found = read_matrix(opened.source, ref)
        assert torch.equal(found, two[ref.tensor].double() - one[ref.tensor.removeprefix("model.")].double())
    assert {skip.tensor for skip in inventory.skipped} == {name for name in one if ".10." in name}
    assert {skip.reason for skip in inventory.skipped} == {"only in base"}


def test_what_has_no_partner_or_another_shape_is_listed(tmp_path: Path) -> None:
    one, two = _layer(0, 1), _layer(0, 2)
    two["layers.0.self_attn.v_proj.weight"] = torch.ones(2, 4)
    two["layers.0.odd.three.weight"] = torch.ones(2, 4)
    opened = open_checkpoint(f"delta:{checkpoint(tmp_path / 'base', one)}..{checkpoint(tmp_path / 'tuned', two)}")
    inventory = list_matrices(opened)
    reasons = {skip.tensor.removeprefix("layers.0."): skip.reason for skip in inventory.skipped}
    assert reasons == {
        "self_attn.v_proj.weight": "2x4 against 3x4 in base",
        "odd.three.weight": "no counterpart in base",
    }
    assert len(inventory.matrices) == 3


def test_heads_of_a_difference_are_cut_from_both_sides(minilm: Path, minilm_tuned: Path) -> None:
    opened = open_checkpoint(f"delta:{minilm}..{minilm_tuned}")
    refs = list_matrices(opened, Selection(only=("query",), layers=(2,), heads=True)).matrices
    assert [ref.head for ref in refs] == list(range(12))
    name = refs[0].tensor
    base, tuned = (load_file(folder / "model.safetensors")[name].double() for folder in (minilm, minilm_tuned))
    stacked = np.concatenate([np.asarray(read_matrix(opened.source, ref)) for ref in refs])
    assert np.array_equal(stacked, (tuned - base).numpy())


def test_all_heads_of_a_difference_cost_one_read_of_each_weight(
    minilm: Path, minilm_tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(f"delta:{minilm}..{minilm_tuned}")
    refs = list_matrices(opened, Selection(only=("query",), layers=(0,), heads=True)).matrices
    read: list[int] = []
    read_ranges = LocalFiles.read_ranges

    def counted(self: LocalFiles, ranges: Sequence[ByteRange]) -> object:
        read.extend(wanted.size for wanted in ranges)
        return read_ranges(self, ranges)

    monkeypatch.setattr(LocalFiles, "read_ranges", counted)
    assert len(read_matrices(opened.source, refs)) == 12
    assert sum(read) == 2 * 384 * 384 * 4


def test_the_same_checkpoint_twice_is_refused(minilm: Path) -> None:
    with pytest.raises(CheckpointError, match="same checkpoint"):
        open_checkpoint(f"delta:{minilm}..{minilm}")


def test_a_base_may_be_a_difference_and_a_tuned_one_may_not(tmp_path: Path) -> None:
    weights = [_layer(0, seed) for seed in (1, 2, 3)]
    one, two, three = (
        open_checkpoint(checkpoint(tmp_path / name, made)) for name, made in zip("abc", weights, strict=True)
    )
    change = difference(one, two)
    opened = difference(change, three)
    for ref in list_matrices(opened).matrices:
        a, b, c = (made[ref.tensor].double() for made in weights)
        found = read_matrix(opened.source, ref)
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, c - (b - a), rtol=0, atol=1e-12)
    with pytest.raises(CheckpointError, match=r"delta:a\.\.b is a difference already"):
        difference(three, change)


def test_a_ref_with_a_difference_travels(minilm: Path, minilm_tuned: Path) -> None:
    import pickle

    opened = open_checkpoint(f"delta:{minilm}..{minilm_tuned}")
    ref = list_matrices(opened).matrices[0]
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert dataclasses.replace(ref, minus=None) != ref


def _adapter(folder: Path, seed: int) -> str:
    random = torch.Generator().manual_seed(seed)
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {f"{module}.lora_A.weight": (2, 4), f"{module}.lora_B.weight": (6, 2)}
    save_file(
        {name: torch.randn(shape, generator=random) for name, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return str(folder)


def test_an_adapter_is_a_difference_already(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", _layer(0, seed=1, prefix="model."))
    one, other = _adapter(tmp_path / "one", 1), _adapter(tmp_path / "other", 2)
    for reference in (f"delta:{model}..{one}", f"delta:{one}..{model}"):
        with pytest.raises(
            CheckpointError, match=r"one is an adapter and therefore a difference already: scan it by itself"
        ):
            open_checkpoint(reference)
    opened = open_checkpoint(f"delta:{one}..{other}")
    (ref,) = list_matrices(opened).matrices
    tensors = [load_file(Path(folder) / "adapter_model.safetensors") for folder in (one, other)]
    before, after = ([found[name].double() for name in sorted(found)] for found in tensors)
    found = read_matrix(opened.source, ref)
    assert isinstance(found, torch.Tensor)
    assert torch.allclose(found, after[1] @ after[0] - before[1] @ before[0])
