"""Tiny models with random weights and a tokenizer of whole words, saved like checkpoints of users."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(90)]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
VOCABULARY = len(WORDS) + len(SPECIAL)

_PAIR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bert": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "albert": {
        "embedding_size": 8,
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "bart": _PAIR
    | {
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 28, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "mixtral": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "max_position_embeddings": 64,
    },
    "deberta-v2": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "type_vocab_size": 0,
    },
    "longformer": {
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "attention_window": [16, 16],
    },
    "led": _PAIR
    | {
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
        "attention_window": 8,
        "decoder_start_token_id": 2,
    },
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 28},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "nllb-moe": _PAIR
    | {
        "encoder_layers": 2,
        "num_experts": 3,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "decoder_start_token_id": 2,
    },
}
CLASSES = {"causal": AutoModelForCausalLM, "features": AutoModel, "classification": AutoModelForSequenceClassification}


def tokenizer(*, padding: bool = True, special: bool = False) -> PreTrainedTokenizerFast:
    """One token per word; with `special`, texts are between [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    names = {"pad_token": "[PAD]"} if padding else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **names)


def save(folder: Path, kind: str, head: str = "causal", *, padding: bool = True, seed: int = 0, **more: Any) -> Path:
    """A checkpoint with its tokenizer; weights are larger than those of a new model, so that predictions are far from uniform."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **({"vocab_size": VOCABULARY} | special | CONFIGS[kind] | more))
    torch.manual_seed(seed)
    model = CLASSES[head].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer(padding=padding, special=kind in ("bert", "bart")).save_pretrained(folder)
    return folder


def words(count: int, seed: int = 0) -> str:
    """A text of `count` words."""
    drawn = random.Random(seed)
    return " ".join(drawn.choices(WORDS, k=count))


def text_file(folder: Path, count: int = 200, seed: int = 0) -> Path:
    """A continuous text."""
    path = folder / "text.txt"
    path.write_text(words(count, seed), "utf-8")
    return path


def table_file(folder: Path, count: int = 24, name: str = "table.csv") -> Path:
    """Sentences of different lengths whose label is given by their first word."""
    lines = ["text,label"]
    for row in range(count):
        label = row % 2
        lines.append(f"w{label} {words(2 + row % 7, row)},{label}")
    path = folder / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
