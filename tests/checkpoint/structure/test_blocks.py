"""A layer index means one block: names that count anew in every part of a model."""

from pathlib import Path

import pytest
import torch

from scanner.checkpoint import MatrixRef, Selection, list_matrices, open_checkpoint

from ..writing import checkpoint

SIZE = 8


def listed(folder: Path, names: list[str], **config: object) -> list[MatrixRef]:
    tensors = {f"{name}.weight": torch.randn(SIZE, SIZE) for name in names}
    return list(list_matrices(open_checkpoint(checkpoint(folder, tensors, config or None))).matrices)


def blocks(refs: list[MatrixRef], depth: int) -> dict[tuple[str | None, int | None], set[str]]:
    """The blocks by their names, cut after `depth` indices: the truth, from the names alone."""
    found: dict[tuple[str | None, int | None], set[str]] = {}
    for ref in refs:
        components = ref.tensor.split(".")
        ends = [at for at, component in enumerate(components) if component.isdigit()]
        found.setdefault((ref.stack, ref.layer), set()).add(".".join(components[: ends[depth - 1] + 1]))
    return found


ATTENTION = ("to_q", "to_k", "to_out.0")
NESTED = {
    "swin": (
        [
            f"swin.encoder.layers.{stage}.blocks.{block}.attention.self.{what}"
            for stage, count in enumerate((2, 2, 6, 2))
            for block in range(count)
            for what in ("query", "key")
        ],
        2,
        12,
    ),
    "hiera": (
        [f"encoder.stages.{stage}.layers.{block}.mlp.fc1" for stage in range(3) for block in range(stage + 1)],
        2,
        6,
    ),
    "segformer": (
        [f"segformer.encoder.block.{stage}.{block}.attention.self.query" for stage in range(4) for block in range(2)],
        2,
        8,
    ),
    "unet": (
        [
            f"{part}.{index}.attentions.{block}.transformer_blocks.0.attn1.{what}"
            for part in ("down_blocks", "up_blocks")
            for index in range(3)
            for block in range(2)
            for what in ATTENTION
        ],
        2,
        12,
    ),
    "unet with deep transformers": (
        [
            f"{part}.{index}.attentions.{block}.transformer_blocks.{deep}.attn1.{what}"
            for part in ("down_blocks", "up_blocks")
            for index in range(2)
            for block in range(2)
            for deep in range(1 + 2 * index)
            for what in ATTENTION
        ],
        3,
        16,
    ),
    "an ensemble": ([f"models.{one}.h.{block}.mlp.c_fc" for one in range(2) for block in range(3)], 2, 6),
    "student and teacher": (
        [f"{one}backbone.blocks.{block}.attn.proj" for one in ("student.module.", "teacher.") for block in range(2)],
        1,
        4,
    ),
    "extra prediction layers": (
        [f"{one}.layers.{block}.self_attn.q_proj" for one in ("model", "mtp") for block in range(2)],
        1,
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_each_layer_is_one_block(name: str, tmp_path: Path) -> None:
    names, depth, count = NESTED[name]
    found = blocks(listed(tmp_path / "model", names), depth)
    assert len(found) == count
    assert all(len(places) == 1 for places in found.values()), found
    assert None not in {layer for _, layer in found}


def test_blocks_of_stages_are_numbered_through(tmp_path: Path) -> None:
    names, _, _ = NESTED["swin"]
    of = {ref.tensor: ref.layer for ref in listed(tmp_path / "model", names)}
    assert of["swin.encoder.layers.1.blocks.0.attention.self.query.weight"] == 2
    assert of["swin.encoder.layers.2.blocks.5.attention.self.key.weight"] == 9


def test_parts_and_copies_of_a_model_are_stacks(tmp_path: Path) -> None:
    assert {ref.stack for ref in listed(tmp_path / "a", NESTED["student and teacher"][0])} == {"student", "teacher"}
    assert {ref.stack for ref in listed(tmp_path / "b", NESTED["unet"][0])} == {"down_blocks", "up_blocks"}


def test_a_matrix_between_the_blocks_of_a_stage_has_no_layer(tmp_path: Path) -> None:
    names = [*NESTED["swin"][0], "swin.encoder.layers.1.downsample.reduction"]
    of = {ref.tensor: ref.layer for ref in listed(tmp_path / "model", names)}
    assert of["swin.encoder.layers.1.downsample.reduction.weight"] is None


def test_a_selection_of_layers_counts_the_same_blocks(tmp_path: Path) -> None:
    tensors = {f"{name}.weight": torch.randn(SIZE, SIZE) for name in NESTED["swin"][0]}
    opened = open_checkpoint(checkpoint(tmp_path / "model", tensors))
    found = list_matrices(opened, Selection(layers=(4,))).matrices
    assert {ref.tensor for ref in found} == {
        f"swin.encoder.layers.2.blocks.0.attention.self.{what}.weight" for what in ("query", "key")
    }


ONE_BLOCK = {
    "t5": [
        f"{side}.block.{block}.layer.{part}.{what}"
        for side, parts in (
            ("encoder", ("SelfAttention.q", "DenseReluDense.wi")),
            ("decoder", ("SelfAttention.q", "EncDecAttention.q", "DenseReluDense.wi")),
        )
        for block in range(2)
        for part, what in enumerate(parts)
    ],
    "xlm": [f"transformer.{what}.{block}" for what in ("attentions", "ffns") for block in range(2)],
    "llama with lists in its mlp": [
        f"model.layers.{block}.{what}"
        for block in range(2)
        for what in ("self_attn.q_proj", "mlp.layers.0.up_proj", "mlp.layers.1.up_proj")
    ],
    "mixture of experts": [
        f"model.layers.{block}.mlp.experts.{one}.up_proj" for block in range(2) for one in range(3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_BLOCK)
def test_parts_of_a_block_stay_in_it(name: str, tmp_path: Path) -> None:
    names = ONE_BLOCK[name]
    if name == "xlm":
        names = [one + (".q_lin" if "attentions" in one else ".lin1") for one in names]
    for ref in listed(tmp_path / "model", names):
        components = ref.tensor.split(".")
        assert ref.layer == int(next(component for component in components if component.isdigit()))


@pytest.mark.parametrize("name", ["ff", "ffn", "ff_context", "img_mlp", "txt_mlp", "feed_forward"])
@pytest.mark.parametrize("gated", [True, False])
def test_feed_forwards_of_diffusers(name: str, gated: bool, tmp_path: Path) -> None:
    up = torch.randn(64 if gated else 32, SIZE)
    block = f"transformer_blocks.0.{name}.net"
    tensors = {f"{block}.0.proj.weight": up, f"{block}.2.weight": torch.randn(SIZE, 32)}
    found = list_matrices(open_checkpoint(checkpoint(tmp_path / "model", tensors))).matrices
    roles = {ref.role: (ref.rows, ref.cols) for ref in found}
    assert roles == ({"mlp_gate": (32, SIZE)} if gated else {}) | {"mlp_up": (32, SIZE), "mlp_down": (SIZE, 32)}
    assert {ref.module for ref in found} == {"context" if name in ("ff_context", "txt_mlp") else None}
    if gated:  # GEGLU of diffusers: `hidden, gate = proj(x).chunk(2)`
        pattern = next(ref.row_pattern for ref in found if ref.role == "mlp_gate")
        assert pattern is not None
        assert (pattern.offset, pattern.width) == (32, 32)


STACKS = ("mlp.switch_mlp.up_proj.weight", "block_sparse_moe.switch_mlp.up_proj.weight", "mlp.bank.up_proj.weight")


@pytest.mark.parametrize("tail", STACKS)
def test_stacks_of_experts_are_one_matrix_per_expert(tail: str, tmp_path: Path) -> None:
    tensors = {f"model.layers.0.{tail}": torch.randn(4, 6, SIZE), "model.layers.0.conv.weight": torch.randn(4, 6, 3)}
    config = {"model_type": "qwen3_moe", "num_experts": 4, "hidden_size": SIZE}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path / "model", tensors, config)))
    assert [(ref.role, ref.expert, ref.rows, ref.cols) for ref in inventory.matrices] == [
        ("mlp_up", expert, 6, SIZE) for expert in range(4)
    ]
    assert [one.tensor for one in inventory.skipped] == ["model.layers.0.conv.weight"]


def test_square_stacks_of_mlx_are_not_transposed(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.experts.up_proj.weight": torch.randn(4, SIZE, SIZE)}
    config = {"model_type": "gpt_oss", "num_local_experts": 4, "hidden_size": SIZE}
    found = list_matrices(open_checkpoint(checkpoint(tmp_path / "model", tensors, config))).matrices
    assert [ref.transposed for ref in found] == [False] * 4
