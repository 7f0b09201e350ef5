"""Tied weights: the headers say which matrices may be copies, and bytes decide, on any machine that reads the source."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from scanner.checkpoint import Inventory, Selection, list_matrices, open_checkpoint, resolve_ties
from scanner.checkpoint.sources.files import LocalFiles

from ..writing import checkpoint, reasons

VOCABULARY = Selection(embeddings=True)
EMBEDDING = torch.randn(12, 4)
QUERY = {"model.layers.0.self_attn.q_proj.weight": torch.randn(6, 4)}
TIED = QUERY | {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": EMBEDDING.clone()}
UNTIED = TIED | {"lm_head.weight": EMBEDDING + 1}


def resolved(inventory: Inventory) -> Inventory:
    """The final inventory, as an engine makes it: the comparison runs elsewhere."""
    checks = pickle.loads(pickle.dumps(inventory.tie_checks))
    return inventory.without(pickle.loads(pickle.dumps(resolve_ties(checks))))


@pytest.mark.parametrize("tensors", [TIED, UNTIED])
def test_ties_that_are_resolved_later_are_those_that_are_resolved_at_once(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(checkpoint(tmp_path, tensors))
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "read_ranges", lambda self, ranges: pytest.fail("weights are read"))
        inventory = list_matrices(opened, VOCABULARY, compare_bytes=False)
    assert inventory.perhaps_tied == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert {ref.tensor for ref in inventory.matrices} == set(tensors)
    final = list_matrices(opened, VOCABULARY)
    assert resolved(inventory) == final
    assert (final.perhaps_tied, final.tie_checks) == ((), ())
    assert ("lm_head.weight" in reasons(final)) is (tensors is TIED)


def test_a_tensor_in_the_place_of_a_copy_is_tied_with_the_original(tmp_path: Path) -> None:
    copy = EMBEDDING.clone()
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    torch.save({"shared.weight": EMBEDDING} | dict.fromkeys(names, copy) | QUERY, tmp_path / "pytorch_model.bin")
    opened = open_checkpoint(str(tmp_path))
    inventory = list_matrices(opened, VOCABULARY, compare_bytes=False)
    assert len(inventory.matrices) == 3
    final = list_matrices(opened, VOCABULARY)
    assert resolved(inventory) == final
    assert reasons(final) == dict.fromkeys(names, "tied with shared.weight")


def test_nothing_is_left_to_compare_without_embeddings(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path, TIED))
    inventory = list_matrices(opened, compare_bytes=False)
    assert inventory.tie_checks == ()
    assert inventory == list_matrices(opened) == inventory.without({})


@pytest.mark.parametrize(("base", "tuned"), [(TIED, UNTIED), (UNTIED, TIED), (TIED, TIED), (UNTIED, UNTIED)])
def test_a_difference_is_paired_again_when_the_ties_of_both_sides_are_known(
    tmp_path: Path, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]
) -> None:
    changed = {name: tensor + 1 for name, tensor in tuned.items()}
    folders = checkpoint(tmp_path / "base", base), checkpoint(tmp_path / "tuned", changed)
    opened = open_checkpoint(f"delta:{folders[0]}..{folders[1]}")
    inventory = list_matrices(opened, VOCABULARY, compare_bytes=False)
    assert len(inventory.matrices) == 3
    final = list_matrices(opened, VOCABULARY)
    assert resolved(pickle.loads(pickle.dumps(inventory))) == final
    expected = {
        (True, False): "no counterpart in base",
        (False, True): "only in base",
        (True, True): "tied with model.embed_tokens.weight",
        (False, False): None,
    }[base is TIED, tuned is TIED]
    found = [skip.reason for skip in final.skipped if skip.tensor == "lm_head.weight"]
    assert (found[-1] if found else None) == expected


def test_the_key_of_a_matrix_is_its_identity(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path, TIED))
    refs = list_matrices(opened).matrices
    assert [ref.identity for ref in refs] == [("model.layers.0.self_attn.q_proj.weight", "query", None, None)]
    assert refs[0].key == "model.layers.0.self_attn.q_proj.weight-af45252d6b3d398a"
