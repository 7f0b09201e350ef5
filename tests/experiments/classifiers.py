"""Tiny untrained models with tokenizers, and texts whose label depends on one word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

GOOD, BAD = ("bright", "fine", "warm"), ("dull", "poor", "cold")
NEUTRAL = tuple("a the of film it and scene with plot this".split())
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def tokenizer(**special: str) -> Any:
    """Words are tokens; `[CLS] text [SEP] pair [SEP]`."""
    words = {word: index for index, word in enumerate((*SPECIAL, *NEUTRAL, *GOOD, *BAD))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


def bert(folder: Path, **config: Any) -> Path:
    """A BERT of two blocks without a head."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = transformers.BertConfig(vocab_size=32, max_position_embeddings=32, **(sizes | config))
    transformers.BertModel(made).save_pretrained(folder)
    tokenizer(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    return folder


def llama(folder: Path, **special: str) -> Path:
    """A Llama of two blocks with the head of a language model; its tokenizer has only these special tokens."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, max_position_embeddings=32, **sizes)
    transformers.LlamaForCausalLM(made).save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return folder


def reviews(count: int = 80, seed: int = 0) -> list[dict[str, object]]:
    """Texts of a few neutral words and one word that determines the label."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for index in range(count):
        words = generator.choice(NEUTRAL, size=generator.integers(3, 9)).tolist()
        words.insert(int(generator.integers(len(words))), str(generator.choice((BAD, GOOD)[index % 2])))
        rows.append({"text": " ".join(words), "label": index % 2})
    return rows


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
