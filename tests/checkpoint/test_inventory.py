import json
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.checkpoint import ROLES, Inventory, MatrixRef, Selection, TensorEntry, list_matrices, open_checkpoint
from scanner.checkpoint.sources.files import BLOCK_BYTES, LocalFiles
from scanner.errors import CheckpointError, ScannerError

from .writing import WEIGHTS, checkpoint, info, matrix, raw_checkpoint, reasons, sharded


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


LLAMA = {
    "model.embed_tokens.weight": torch.arange(12.0).reshape(6, 2),
    "model.layers.0.self_attn.q_proj.weight": ones(2, 2),
    "model.layers.0.mlp.up_proj.weight": ones(4, 2),
    "model.layers.1.self_attn.q_proj.weight": ones(2, 2),
    "model.layers.1.mlp.up_proj.weight": ones(4, 2),
    "model.norm.weight": ones(2),
    "lm_head.weight": -torch.arange(12.0).reshape(6, 2),
}


def listed(inventory: Inventory) -> set[str]:
    return {ref.tensor for ref in inventory.matrices}


def test_matrices_carry_role_layer_shape_and_place(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA))
    ref = matrix(list_matrices(opened), "model.layers.1.mlp.up_proj.weight")
    assert (ref.role, ref.role_source, ref.layer, ref.stack, ref.head, ref.expert) == (
        "mlp_up",
        "gguf",
        1,
        None,
        None,
        None,
    )
    assert (ref.rows, ref.cols, ref.dtype, ref.transposed) == (4, 2, "F32", False)
    assert ref.entry == next(entry for entry in opened.tensors if entry.name == ref.tensor)


def test_every_tensor_is_listed_or_skipped_with_its_reason(tmp_path: Path) -> None:
    size = 0
    header = {}
    for name, dtype, shape, bytes_each in [
        ("scalar", "F32", (), 4),
        ("vector", "F32", (3,), 4),
        ("stack", "BF16", (2, 2, 2), 2),
        ("kernel", "F16", (2, 2, 1, 1), 2),
        ("no_rows", "F32", (0, 4), 4),
        ("no_cols", "F32", (4, 0), 4),
        ("ids", "I64", (1, 4), 8),
        ("packed", "U8", (2, 2), 1),
        ("mask", "BOOL", (2, 2), 1),
        ("complex", "C64", (2, 2), 8),
        ("eighth", "F8_E4M3", (2, 2), 1),
        ("other_eighth", "F8_E5M2", (2, 2), 1),
        ("row", "F32", (1, 4), 4),
        ("column", "BF16", (4, 1), 2),
        ("double", "F64", (2, 2), 8),
        ("half", "F16", (2, 2), 2),
        ("embeddings.word_embeddings.weight", "F32", (4, 2), 4),
    ]:
        end = size + torch.Size(shape).numel() * bytes_each
        header[name] = info(dtype, shape, size, end)
        size = end
    inventory = list_matrices(open_checkpoint(raw_checkpoint(tmp_path / "all", header, bytes(size))))
    assert listed(inventory) == {"row", "column", "double", "half", "eighth", "other_eighth"}
    assert reasons(inventory) == {
        "scalar": "0-D: not a matrix",
        "vector": "1-D: not a matrix",
        "stack": "3-D: not a matrix",
        "kernel": "4-D: not a matrix",
        "no_rows": "0 x 4: no entries",
        "no_cols": "4 x 0: no entries",
        "ids": "I64: not floating point",
        "packed": "U8: not floating point",
        "mask": "BOOL: not floating point",
        "complex": "C64: not floating point",
        "embeddings.word_embeddings.weight": "embedding: ask with --embeddings",
    }


def test_embeddings_and_heads_wait_to_be_asked_for(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA))
    vocabulary = {"model.embed_tokens.weight", "lm_head.weight"}
    assert reasons(list_matrices(opened))["lm_head.weight"] == "lm_head: ask with --embeddings"
    assert not listed(list_matrices(opened)) & vocabulary
    assert listed(list_matrices(opened, Selection(embeddings=True))) >= vocabulary
    assert listed(list_matrices(opened, Selection(only=("embedding", "lm_head")))) == vocabulary
    assert listed(list_matrices(opened, Selection(only=("embedding",)))) == {"model.embed_tokens.weight"}


def test_whole_attention_matrices_know_their_number_of_heads(minilm: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(str(minilm), identify=False)
    of_block = list_matrices(opened, Selection(layers=(0,))).matrices
    attention = dict.fromkeys(("query", "key", "value", "attn_out"), 12)
    assert {ref.role: ref.heads for ref in of_block} == attention | {"mlp_up": None, "mlp_down": None}
    assert {ref.heads for ref in list_matrices(opened, Selection(heads=True, layers=(0,))).matrices} == {None}
    without_config = list_matrices(open_checkpoint(checkpoint(tmp_path / "llama", LLAMA)))
    assert {ref.heads for ref in without_config.matrices} == {None}


def test_a_selection_of_roles_and_layers_says_what_it_left_out(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA))
    inventory = list_matrices(opened, Selection(only=("query",), layers=(1,)))
    assert listed(inventory) == {"model.layers.1.self_attn.q_proj.weight"}
    assert reasons(inventory) == {
        "model.embed_tokens.weight": "not selected: role",
        "lm_head.weight": "not selected: role",
        "model.layers.0.mlp.up_proj.weight": "not selected: role",
        "model.layers.1.mlp.up_proj.weight": "not selected: role",
        "model.layers.0.self_attn.q_proj.weight": "not selected: layer",
        "model.norm.weight": "1-D: not a matrix",
    }


def test_tensors_outside_of_blocks_are_in_no_layer(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA | {"pooler.dense.weight": ones(2, 2)}))
    assert matrix(list_matrices(opened), "pooler.dense.weight").layer is None
    assert reasons(list_matrices(opened, Selection(layers=(0, 1))))["pooler.dense.weight"] == "not selected: layer"


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_with_the_bytes_of_the_embedding_is_analyzed_once(tmp_path: Path, tied: bool) -> None:
    head = LLAMA["model.embed_tokens.weight"].clone()
    head[5, 1] += 0 if tied else 1
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA | {"lm_head.weight": head}))
    inventory = list_matrices(opened, Selection(embeddings=True))
    assert ("lm_head.weight" in listed(inventory)) is not tied
    assert (reasons(inventory).get("lm_head.weight") == "tied with model.embed_tokens.weight") is tied
    assert "model.embed_tokens.weight" in listed(inventory)


def test_ties_are_found_across_shards(tmp_path: Path) -> None:
    values = torch.randn(100, 7, dtype=torch.float32).to(torch.bfloat16)
    shards = {"b.safetensors": {"shared.weight": values}, "a.safetensors": {"lm_head.weight": values.clone()}}
    inventory = list_matrices(open_checkpoint(sharded(tmp_path / "t5", shards)), Selection(embeddings=True))
    assert listed(inventory) == {"shared.weight"}
    assert reasons(inventory) == {"lm_head.weight": "tied with shared.weight"}


def test_ties_are_compared_to_the_last_byte(tmp_path: Path) -> None:
    values = torch.zeros(2200, 1024)
    head = values.clone()
    head[-1, -1] = 1
    opened = open_checkpoint(checkpoint(tmp_path / "big", {"shared.weight": values, "lm_head.weight": head}))
    assert values.nbytes > BLOCK_BYTES
    assert listed(list_matrices(opened, Selection(embeddings=True))) == {"shared.weight", "lm_head.weight"}


def test_all_copies_of_an_embedding_count_as_one(tmp_path: Path) -> None:
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    opened = open_checkpoint(checkpoint(tmp_path / "t5", {name: LLAMA["lm_head.weight"].clone() for name in names}))
    inventory = list_matrices(opened, Selection(embeddings=True))
    assert len(inventory.matrices) == 1
    assert len(inventory.skipped) == 3


def test_the_same_codes_with_other_scales_are_another_matrix(tmp_path: Path) -> None:
    codes = torch.randn(6, 4).to(torch.float8_e4m3fn)
    tensors = {
        "model.embed_tokens.weight": codes,
        "model.embed_tokens.weight_scale": torch.tensor([1.0]),
        "lm_head.weight": codes.clone(),
        "lm_head.weight_scale": torch.tensor([2.0]),
    }
    opened = open_checkpoint(checkpoint(tmp_path / "other", tensors))
    assert listed(list_matrices(opened, Selection(embeddings=True))) == {"model.embed_tokens.weight", "lm_head.weight"}
    opened = open_checkpoint(checkpoint(tmp_path / "same", tensors | {"lm_head.weight_scale": torch.tensor([1.0])}))
    assert listed(list_matrices(opened, Selection(embeddings=True))) == {"model.embed_tokens.weight"}
    by_row = tensors | {"lm_head.weight_scale": torch.ones(6, 1)}
    opened = open_checkpoint(checkpoint(tmp_path / "rows", by_row))
    assert listed(list_matrices(opened, Selection(embeddings=True))) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_without_reading_weights_a_tie_is_a_guess_unless_it_is_declared_or_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = LLAMA["model.embed_tokens.weight"]
    tensors = LLAMA | {"lm_head.weight": values.clone()}
    plain = open_checkpoint(checkpoint(tmp_path / "plain", tensors))
    declared = open_checkpoint(checkpoint(tmp_path / "declared", tensors, {"tie_word_embeddings": True}))
    (tmp_path / "shared").mkdir()
    torch.save(LLAMA | {"lm_head.weight": values}, tmp_path / "shared" / "pytorch_model.bin")
    shared = open_checkpoint(str(tmp_path / "shared"))
    monkeypatch.setattr("scanner.checkpoint.structure.ties.open_files", lambda source: pytest.fail("weights are read"))
    both = Selection(embeddings=True)
    guess = list_matrices(plain, both, compare_bytes=False)
    assert guess.perhaps_tied == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= listed(guess)
    for opened in (declared, shared):
        known = list_matrices(opened, both, compare_bytes=False)
        assert known.perhaps_tied == ()
        assert reasons(known)["lm_head.weight"] == "tied with model.embed_tokens.weight"


def test_tensors_of_one_place_are_tied_without_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = LLAMA["model.embed_tokens.weight"]
    torch.save(LLAMA | {"lm_head.weight": values}, tmp_path / "pytorch_model.bin")
    opened = open_checkpoint(str(tmp_path))
    monkeypatch.setattr(LocalFiles, "read_ranges", lambda self, ranges: pytest.fail("weights are read"))
    inventory = list_matrices(opened, Selection(embeddings=True))
    assert reasons(inventory)["lm_head.weight"] == "tied with model.embed_tokens.weight"


def test_thousands_of_embeddings_are_not_compared_with_each_other(tmp_path: Path) -> None:
    count = 3000
    header = {f"model.layers.{at}.embed_tokens.weight": info("F32", (1, 1), 4 * at, 4 * at + 4) for at in range(count)}
    header |= {f"m{at}.wte.weight": info("F32", (1, 1), 4 * at, 4 * at + 4) for at in range(count, 2 * count)}
    content = b"".join(at.to_bytes(4, "little") for at in range(2 * count))
    opened = open_checkpoint(raw_checkpoint(tmp_path / "model", header, content))
    started = time.process_time()
    inventory = list_matrices(opened, Selection(embeddings=True))
    assert sum(ref.role == "embedding" for ref in inventory.matrices) >= count
    assert time.process_time() - started < 60


@pytest.mark.parametrize("declared", [True, False, None])
def test_a_config_can_declare_the_tie(tmp_path: Path, declared: bool | None) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA, {"tie_word_embeddings": declared}))
    assert ("lm_head.weight" in listed(list_matrices(opened, Selection(embeddings=True)))) is not (declared is True)


def test_a_head_asked_for_alone_is_analyzed_although_tied(tmp_path: Path) -> None:
    tensors = LLAMA | {"lm_head.weight": LLAMA["model.embed_tokens.weight"].clone()}
    opened = open_checkpoint(checkpoint(tmp_path / "llama", tensors))
    assert listed(list_matrices(opened, Selection(only=("lm_head",)))) == {"lm_head.weight"}


def test_equal_matrices_inside_blocks_are_not_ties(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA))
    assert len(list_matrices(opened, Selection(embeddings=True)).matrices) == 6


def test_encoder_and_decoder_are_told_apart_where_a_model_has_both(tmp_path: Path) -> None:
    both = {f"{stack}.block.0.layer.0.SelfAttention.q.weight": ones(2, 2) for stack in ("encoder", "decoder")}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path / "t5", both)))
    assert {ref.stack for ref in inventory.matrices} == {"encoder", "decoder"}
    bert = {"encoder.layer.0.attention.self.query.weight": ones(2, 2), "cls.predictions.decoder.weight": ones(2, 2)}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path / "bert", bert)), Selection(embeddings=True))
    assert {ref.stack for ref in inventory.matrices} == {None}


def test_unknown_roles_and_layers_are_refused() -> None:
    with pytest.raises(ScannerError, match=r"`only` has 'querry', which must be one of query, key, "):
        Selection(only=("query", "querry"))
    for layer in (-1, True, 1.0, "3"):
        with pytest.raises(ScannerError, match=r"`layers` has .*, which must be (a whole number|at least 0)"):
            Selection(layers=(layer,))  # type: ignore[arg-type]


NAMES = st.one_of(
    st.sampled_from([*LLAMA, "position_ids", "x.bias"]),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.builds("model.layers.{}.mlp.experts.{}.w1.weight".format, st.integers(0, 99), st.integers(0, 9)),
    st.builds("model.layers.{}.mlp.experts.gate_up_proj".format, st.integers(0, 9)),
    st.builds("h.{}.attn.c_attn.weight".format, st.integers(0, 9)),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.bool])
    shapes = st.lists(st.integers(0, 2), max_size=3)
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=8))
    return {name: torch.ones(draw(shapes), dtype=draw(dtypes)) for name in names}


@settings(deadline=None)
@given(
    tensors=checkpoints(),
    only=st.lists(st.sampled_from(ROLES), max_size=2),
    layers=st.lists(st.integers(0, 3), max_size=2),
    embeddings=st.booleans(),
    heads=st.booleans(),
    config=st.sampled_from(
        [None, {"model_type": "gpt2", "n_embd": 2, "n_head": 1}, {"hidden_size": 2, "num_heads": 2}]
    ),
)
def test_matrices_and_skipped_add_up_to_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, torch.Tensor],
    only: list[str],
    layers: list[int],
    embeddings: bool,
    heads: bool,
    config: dict[str, object],
) -> None:
    opened = open_checkpoint(checkpoint(tmp_path_factory.getbasetemp() / "any", tensors, config))
    selection = Selection(only=tuple(only), layers=tuple(layers), embeddings=embeddings, heads=heads)
    inventory = list_matrices(opened, selection)
    analyzed = {ref.entry.name for ref in inventory.matrices}
    assert sorted([*analyzed, *(skipped.tensor for skipped in inventory.skipped)]) == sorted(tensors)
    assert len({ref.key for ref in inventory.matrices}) == len(inventory.matrices)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{16,80}", ref.key) for ref in inventory.matrices)


def ref_named(tensor: str, **changes: int) -> MatrixRef:
    entry = TensorEntry(name=tensor, dtype="F32", shape=(1, 1), file=WEIGHTS, start=0, size=4)
    fields = {"head": None, "expert": None} | changes
    return MatrixRef(
        tensor=tensor, stack=None, layer=None, role="other", role_source="none", rows=1, cols=1, dtype="F32",
        entry=entry, transposed=False, **fields,
    )  # fmt: skip


def test_keys_are_stable_short_and_distinct() -> None:
    names = ["a/b", "a_b", "a.b", "A.b", "../../etc/passwd", "", "x" * 500, "x" * 501, "ü", "con", ".hidden"]
    refs = [ref_named(name) for name in names] + [ref_named("a.b", head=1), ref_named("a.b", expert=1)]
    keys = [ref.key for ref in refs]
    assert len({key.lower() for key in keys}) == len(refs)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", key) and len(key) < 80 for key in keys)
    assert keys == [pickle.loads(pickle.dumps(ref)).key for ref in refs]
    assert ref_named("a.b").key == "a.b-" + ref_named("a.b").key[-16:]


def test_a_description_is_small_enough_to_send(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "llama", LLAMA))
    for ref in list_matrices(opened).matrices:
        assert pickle.loads(pickle.dumps(ref)) == ref
        assert len(pickle.dumps(ref)) < 1000


# ---- more than any model has


@pytest.mark.timeout(120)
def test_a_million_tensors_are_refused(tmp_path: Path) -> None:
    count = 10**6
    tensors = (f'"m.{at}":{{"dtype":"I8","shape":[1],"data_offsets":[{at},{at + 1}]}}' for at in range(count))
    folder = raw_checkpoint(tmp_path / "model", f"{{{','.join(tensors)}}}".encode(), bytes(count))
    with pytest.raises(CheckpointError, match="more than 500000 tensors"):
        open_checkpoint(folder, identify=False)


def test_too_many_tensors_in_several_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.checkpoint.formats.format.MAX_TENSORS", 5)
    shards = {f"m-{at}.safetensors": {f"{at}.{name}": ones(1) for name in "ab"} for at in range(3)}
    with pytest.raises(CheckpointError, match=r"more than 5 tensors up to m-2\.safetensors"):
        open_checkpoint(sharded(tmp_path / "model", shards))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("shape", "name", "config", "heads"),
    [
        ((16384, 1, 1), "model.layers.{}.mlp.experts.down_proj", {"model_type": "gpt_oss"}, False),
        ((4096, 1), "model.layers.{}.self_attn.q_proj.weight", {"num_attention_heads": 4096, "head_dim": 1}, True),
    ],
    ids=["experts", "heads"],
)
def test_a_million_matrices_are_refused(
    tmp_path: Path, shape: tuple[int, ...], name: str, config: dict[str, object], heads: bool
) -> None:
    size, count = shape[0], 10**6 // shape[0] + 100
    header = {name.format(at): info("F8_E5M2", shape, at * size, (at + 1) * size) for at in range(count)}
    folder = raw_checkpoint(tmp_path / "model", header, bytes(count * size))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(folder, identify=False)
    assert list_matrices(replace(opened, tensors=opened.tensors[:1]), Selection(heads=heads)).matrices
    with pytest.raises(CheckpointError, match="more than 500000 matrices"):
        list_matrices(opened, Selection(heads=heads))
