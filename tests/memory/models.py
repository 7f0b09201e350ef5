"""Tiny models with random weights, and how their results are compared."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

#: Columns that say when, where and from what a row was computed.
OF_THE_RUN = {"scan_id", "revision", "seconds", "read_seconds", "decompose_seconds", "test_seconds"}


def tiny(kind: str) -> Any:
    """A Llama with grouped keys, a GPT-2 (Conv1D, tied head) or a BERT (tied head) of two blocks."""
    import transformers

    torch.manual_seed(3)
    config: Any
    if kind == "llama":
        sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(num_hidden_layers=2, vocab_size=96, **sizes)
        return transformers.LlamaForCausalLM(config).eval()
    if kind == "gpt2":
        tokens = {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=96, n_positions=64, **tokens)
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
    return transformers.BertForMaskedLM(transformers.BertConfig(num_hidden_layers=2, vocab_size=96, **sizes)).eval()


def comparable(table: pa.Table) -> list[dict[str, Any]]:
    """The rows without the columns of the run; a float is compared by its bits, so that NaN equals NaN."""
    kept = table.select([name for name in table.column_names if name not in OF_THE_RUN])

    def exact(value: Any) -> Any:
        return value.hex() if isinstance(value, float) else value

    return [{name: exact(value) for name, value in row.items()} for row in kept.to_pylist()]
