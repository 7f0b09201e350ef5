"""Tiny randomly initialised transformers models, one a model class, and what is in their blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scanner.checkpoint import Checkpoint, Inventory, list_matrices, open_checkpoint

ATTENTION = "query key value attn_out "
PLAIN = "mlp_up mlp_down "
GATED = "mlp_gate mlp_up mlp_down "
LATENT = "query query key key value attn_out "


def experts(count: int, roles: str = GATED) -> str:
    return roles * count + "router "


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model type, its sizes, and the roles of the matrices in its blocks, by stack."""

    config: dict[str, Any]
    blocks: dict[str | None, list[str]]
    model_type: str = ""
    outside: str = ""
    """The roles of the matrices outside of blocks."""
    fused: dict[str, int] = field(default_factory=dict)
    """How many matrices a live matrix holds whose name ends like this; one where nothing is said."""


WIDTHS = {
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "num_attention_heads": 6,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = WIDTHS | SPECIAL | {"num_key_value_heads": 3}
WIDE_HEADS = GROUPED | {"head_dim": 10}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 50} | SPECIAL
FALCON = WIDTHS | SPECIAL | {"ffn_hidden_size": 44}
VISION = {"image_size": 16, "patch_size": 8}

CASES = {
    "bert": Case(config=WIDTHS, blocks={None: [ATTENTION + PLAIN] * 2}, outside="other"),
    "roberta": Case(config=WIDTHS, blocks={None: [ATTENTION + PLAIN] * 2}, outside="other"),
    "distilbert": Case(
        config={"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 44, "vocab_size": 50},
        blocks={None: [ATTENTION + PLAIN] * 2},
    ),
    "mpnet": Case(config=WIDTHS, blocks={None: [ATTENTION + PLAIN] * 2}, outside="other"),
    "modernbert": Case(
        config=WIDTHS | SPECIAL | {"cls_token_id": 1, "sep_token_id": 2},
        blocks={None: [ATTENTION + GATED] * 2},
        fused={"Wqkv": 3, "Wi": 2},
    ),
    "gpt2": Case(config=GPT2 | {"n_inner": 44}, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"c_attn": 3}),
    "gpt2_square": Case(
        # Every matrix of the MLP is square: only the model type says that they are turned.
        model_type="gpt2",
        config=GPT2 | {"n_inner": 24},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"c_attn": 3},
    ),
    "gpt2_cross": Case(
        model_type="gpt2",
        config=GPT2 | {"n_inner": 44, "add_cross_attention": True},
        blocks={None: [ATTENTION * 2 + PLAIN] * 2},
        fused={"crossattention.c_attn": 2, "attn.c_attn": 3},
    ),
    "openai-gpt": Case(config=GPT2, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"c_attn": 3}),
    "gpt_bigcode": Case(config=GPT2 | {"n_inner": 44}, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"c_attn": 3}),
    "gpt_bigcode_many": Case(
        model_type="gpt_bigcode",
        config=GPT2 | {"n_inner": 44, "multi_query": False},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"c_attn": 3},
    ),
    "codegen": Case(
        config=GPT2 | {"n_head": 4, "n_inner": 44, "rotary_dim": 2},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"qkv_proj": 3},
    ),
    "gpt_neox": Case(config=WIDTHS, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"query_key_value": 3}),
    "persimmon": Case(config=WIDTHS | SPECIAL, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"query_key_value": 3}),
    "opt": Case(
        config=WIDTHS | SPECIAL | {"ffn_dim": 44, "word_embed_proj_dim": 24}, blocks={None: [ATTENTION + PLAIN] * 2}
    ),
    "bloom": Case(
        config={"hidden_size": 24, "n_layer": 2, "n_head": 3, "vocab_size": 50},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"query_key_value": 3},
    ),
    "falcon": Case(config=FALCON, blocks={None: [ATTENTION + PLAIN] * 2}, fused={"query_key_value": 3}),
    "falcon_grouped": Case(
        model_type="falcon",
        config=FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"query_key_value": 3},
    ),
    "falcon_many": Case(
        model_type="falcon",
        config=FALCON | {"multi_query": False, "alibi": True},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"query_key_value": 3},
    ),
    "mpt": Case(
        config={"d_model": 24, "n_layers": 2, "n_heads": 3, "vocab_size": 50},
        blocks={None: [ATTENTION + PLAIN] * 2},
        fused={"Wqkv": 3},
    ),
    "phi3": Case(config=GROUPED, blocks={None: [ATTENTION + GATED] * 2}, fused={"qkv_proj": 3, "gate_up_proj": 2}),
    "llama": Case(config=WIDE_HEADS, blocks={None: [ATTENTION + GATED] * 2}),
    "smollm": Case(
        model_type="llama",
        config=WIDTHS | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
        blocks={None: [ATTENTION + GATED] * 2},
    ),
    "mistral": Case(config=WIDE_HEADS, blocks={None: [ATTENTION + GATED] * 2}),
    "mixtral": Case(
        config=WIDE_HEADS | {"num_local_experts": 5},
        blocks={None: [ATTENTION + experts(5)] * 2},
        fused={"gate_up_proj": 2},
    ),
    "qwen2": Case(config=GROUPED, blocks={None: [ATTENTION + GATED] * 2}),
    "qwen3": Case(config=WIDE_HEADS, blocks={None: [ATTENTION + GATED] * 2}),
    "qwen3_moe": Case(
        config=WIDE_HEADS | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 14},
        blocks={None: [ATTENTION + experts(5)] * 2},
        fused={"gate_up_proj": 2},
    ),
    "qwen3_next": Case(
        config=WIDE_HEADS
        | {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 14,
            "shared_expert_intermediate_size": 18,
        }
        | {"layer_types": ["full_attention"] * 2},
        blocks={None: [ATTENTION + "other " + experts(5) + GATED + "router "] * 2},
        fused={"self_attn.q_proj": 2, "gate_up_proj": 2},
    ),
    "gemma3_text": Case(config=WIDE_HEADS, blocks={None: [ATTENTION + GATED] * 2}),
    "gemma3": Case(
        config={
            "text_config": WIDE_HEADS,
            "vision_config": VISION | WIDTHS | {"hidden_size": 20, "num_attention_heads": 4, "intermediate_size": 36},
            "mm_tokens_per_image": 4,
        },
        blocks={"decoder": [ATTENTION + GATED] * 2, "vision": [ATTENTION + PLAIN] * 2},
        outside=ATTENTION + PLAIN + "other",  # a head that pools, and the projector
        fused={"in_proj_weight": 3},
    ),
    "deepseek_v3": Case(
        config=WIDTHS
        | {"num_key_value_heads": 6, "num_hidden_layers": 3, "first_k_dense_replace": 1, "moe_intermediate_size": 14}
        | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 2}
        | {"q_lora_rank": 11, "kv_lora_rank": 13, "qk_rope_head_dim": 4, "qk_nope_head_dim": 7, "v_head_dim": 5},
        blocks={None: [LATENT + GATED, *[LATENT + GATED + experts(8)] * 2]},
        fused={"kv_b_proj": 2, "gate_up_proj": 2},
    ),
    "gpt_oss": Case(
        config=WIDE_HEADS | {"intermediate_size": 14, "num_local_experts": 5, "num_experts_per_tok": 2},
        blocks={None: [ATTENTION + experts(5)] * 2},
        fused={"gate_up_proj": 2},
    ),
    "gpt_oss_square": Case(
        # As published: only the model type says which way an expert's down projection lies.
        model_type="gpt_oss",
        config=WIDE_HEADS | {"intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2},
        blocks={None: [ATTENTION + experts(5)] * 2},
        fused={"gate_up_proj": 2},
    ),
    "llama4_text": Case(
        config=WIDE_HEADS | {"intermediate_size": 14, "intermediate_size_mlp": 44, "num_local_experts": 5},
        blocks={None: [ATTENTION + experts(5) + GATED] * 2},
        fused={"gate_up_proj": 2},
    ),
    "aria_text": Case(
        config=GROUPED | {"intermediate_size": 14, "moe_num_experts": 5, "moe_num_shared_experts": 1},
        blocks={None: [ATTENTION + experts(5) + GATED] * 2},
        fused={"gate_up_proj": 2},
    ),
    "granitemoeshared": Case(
        config=GROUPED | {"num_local_experts": 5, "shared_intermediate_size": 14},
        blocks={None: [ATTENTION + experts(5) + GATED] * 2},
        fused={"input_linear": 2, "gate_up_proj": 2},
    ),
    "dbrx": Case(
        config={
            "d_model": 24,
            "n_heads": 6,
            "n_layers": 2,
            "vocab_size": 50,
            "attn_config": {"kv_n_heads": 3, "clip_qkv": 1e9, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 14, "moe_num_experts": 5, "moe_top_k": 2, "hidden_size": 24},
        },
        blocks={None: [ATTENTION + experts(5)] * 2},
        fused={"Wqkv": 3},
    ),
    "t5": Case(
        config={"d_model": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3, "d_kv": 7, "d_ff": 44}
        | {"vocab_size": 50},
        blocks={"encoder": [ATTENTION + PLAIN] * 2, "decoder": [ATTENTION * 2 + PLAIN] * 3},
    ),
    "vit": Case(config=WIDTHS | VISION, blocks={None: [ATTENTION + PLAIN] * 2}, outside="other"),
    "clip": Case(
        config={
            "text_config": WIDTHS | SPECIAL,
            "vision_config": VISION
            | {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 36},
            "projection_dim": 9,
        },
        blocks={"encoder": [ATTENTION + PLAIN] * 2, "vision": [ATTENTION + PLAIN] * 3},
        outside="other other",
    ),
    "whisper": Case(
        config={"d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, "vocab_size": 50}
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 10, "decoder_start_token_id": 1}
        | SPECIAL,
        blocks={"encoder": [ATTENTION + PLAIN] * 2, "decoder": [ATTENTION * 2 + PLAIN] * 3},
    ),
    "moonshine": Case(
        config={"hidden_size": 24, "intermediate_size": 44, "vocab_size": 50, "decoder_start_token_id": 1}
        | {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
        | {"encoder_num_attention_heads": 3, "decoder_num_attention_heads": 3}
        | SPECIAL,
        blocks={"encoder": [ATTENTION + PLAIN] * 2, "decoder": [ATTENTION * 2 + GATED] * 2},
        fused={"decoder.layers.0.mlp.fc1": 2, "decoder.layers.1.mlp.fc1": 2},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A live model, and the same model saved, opened and inventoried."""

    case: Case
    model: Any
    opened: Checkpoint
    inventory: Inventory


def build(name: str, folder: Path) -> Built:
    import transformers

    case = CASES[name]
    model_type = case.model_type or name
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **case.config)
    model = transformers.AutoModel.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Some classes begin with zeros or with uninitialised memory; biases would hide what a matrix alone does.
            if parameter_name.rpartition(".")[2].endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_()
    model.save_pretrained(folder)
    opened = open_checkpoint(str(folder))
    return Built(case=case, model=model, opened=opened, inventory=list_matrices(opened))


def expected_roles(case: Case) -> Counter[tuple[str | None, int, str]]:
    return Counter(
        (stack, layer, role)
        for stack, blocks in case.blocks.items()
        for layer, roles in enumerate(blocks)
        for role in roles.split()
    )


def live_matrices(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every matrix of a live model that multiplies hidden states, by its name, as (out, in)."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.nn.Linear):
            yield name, module.weight
        elif isinstance(module, torch.nn.MultiheadAttention):
            yield f"{name}.in_proj_weight", module.in_proj_weight
        elif isinstance(module, Conv1D):
            yield name, module.weight.T
        elif kind == "DbrxExpertGLU":
            count = module.moe_num_experts
            for role, weight in (("w1", module.w1), ("v1", module.v1), ("w2", module.w2)):
                for expert, matrix in enumerate(weight.chunk(count)):
                    yield f"{name}.{role}.{expert}", matrix.T if role == "w2" else matrix
        elif kind.endswith("Experts"):
            turned = kind in ("GptOssExperts", "Llama4TextExperts", "AriaExperts", "AriaTextExperts")
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    for expert, matrix in enumerate(parameter):
                        yield f"{name}.{expert}.{parameter_name}", matrix.T if turned else matrix
        elif kind == "Gemma3MultiModalProjector":
            yield name, module.mm_input_projection_weight.T
        elif kind.endswith("Router") and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            yield name, module.weight
