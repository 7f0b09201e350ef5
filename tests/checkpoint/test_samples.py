from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix

BLOCK_ROLES = ("query", "key", "value", "attn_out", "mlp_up", "mlp_down")


def test_a_sentence_encoder_has_six_blocks_of_six_matrices_and_a_pooler(minilm: Path) -> None:
    opened = open_checkpoint(str(minilm))
    inventory = list_matrices(opened)
    assert (opened.architecture, opened.dtype, opened.parameters) == ("BertModel", "F32", 22_713_216)
    assert opened.base_model == "nreimers/MiniLM-L6-H384-uncased"
    found = Counter((ref.layer, ref.role, ref.role_source) for ref in inventory.matrices)
    assert found == {(layer, role, "gguf"): 1 for layer in range(6) for role in BLOCK_ROLES} | {
        (None, "other", "none"): 1
    }
    assert {(ref.rows, ref.cols) for ref in inventory.matrices if ref.role == "mlp_up"} == {(1536, 384)}
    assert len(inventory.matrices) + len(inventory.skipped) == len(opened.tensors) == 104
    assert Counter(skipped.reason for skipped in inventory.skipped) == {
        "1-D: not a matrix": 63,
        "embedding: ask with --embeddings": 3,
        "I64: not floating point": 1,
    }
    assert len(list_matrices(opened, Selection(embeddings=True)).matrices) == 40


def test_its_fine_tune_has_the_same_matrices_and_another_identity(minilm: Path, minilm_tuned: Path) -> None:
    base, tuned = open_checkpoint(str(minilm)), open_checkpoint(str(minilm_tuned))
    shapes = [
        {(ref.tensor, ref.role, ref.layer, ref.rows, ref.cols, ref.key) for ref in list_matrices(one).matrices}
        for one in (base, tuned)
    ]
    assert shapes[0] == shapes[1]
    assert base.identity != tuned.identity
    assert base.model != tuned.model


def test_every_matrix_is_what_safetensors_reads(minilm: Path) -> None:
    opened = open_checkpoint(str(minilm))
    with safe_open(minilm / "model.safetensors", framework="pt") as file:
        for ref in list_matrices(opened, Selection(embeddings=True)).matrices:
            assert torch.equal(read_matrix(opened.source, ref), file.get_tensor(ref.tensor))
