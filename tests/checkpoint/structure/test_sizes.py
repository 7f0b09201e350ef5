from __future__ import annotations

import pytest

from scanner.checkpoint.structure.sizes import _DEFAULTS, sizes_of

LLAMA = {"model_type": "llama", "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
VISION = {"model_type": "clip_vision_model", "hidden_size": 20, "num_attention_heads": 4}


@pytest.mark.parametrize("model_type", _DEFAULTS)
def test_what_a_section_leaves_out_is_what_transformers_assumes(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    assert {key: getattr(config, key) for key in _DEFAULTS[model_type]} == _DEFAULTS[model_type]
    inside = sizes_of({"text_config": {"model_type": model_type}, "vision_config": {"model_type": model_type}}, "model")
    assert inside.heads == config.num_attention_heads
    # At the top of a config nothing is left out, so what is missing there is unknown.
    assert sizes_of({"model_type": model_type}, "model").heads is None


@pytest.mark.parametrize(
    ("before", "config", "heads"),
    [
        ("model.layers", LLAMA, 6),
        ("model.language_model.layers", {"text_config": LLAMA, "vision_config": VISION}, 6),
        ("model.layers", {"text_config": LLAMA, "vision_config": VISION}, 6),
        ("language_model.model.layers", {"llm_config": LLAMA, "vision_config": VISION}, 6),
        ("vision_tower.vision_model.encoder.layers", {"text_config": LLAMA, "vision_config": VISION}, 4),
        ("model.visual.blocks", LLAMA | {"vision_config": VISION}, 4),
        ("thinker.model.layers", {"thinker_config": {"text_config": LLAMA, "vision_config": VISION}}, 6),
        ("thinker.visual.blocks", {"thinker_config": {"text_config": LLAMA, "vision_config": VISION}}, 4),
        ("decoder.model.decoder.layers", {"encoder": VISION, "decoder": LLAMA | {"model_type": "trocr"}}, 6),
        ("encoder.encoder.layer", {"encoder": VISION, "decoder": LLAMA}, 4),
        ("audio_tower.layers", {"text_config": LLAMA, "audio_config": {"encoder_attention_heads": 3}}, 3),
        ("qformer.encoder.layer", {"text_config": LLAMA, "qformer_config": {"num_attention_heads": 5}}, 5),
        ("model.encoder.layers", {"encoder_attention_heads": 3, "decoder_attention_heads": 4}, 3),
        ("model.decoder.layers", {"encoder_attention_heads": 3, "decoder_attention_heads": 4}, 4),
        ("transformer.blocks", {"n_heads": 6, "attn_config": {"n_heads": 99}}, 6),
        ("model.layers", {"text_config": "nonsense", "num_attention_heads": 6}, 6),
        ("vision_tower.blocks", {"text_config": LLAMA}, None),  # what the text has says nothing about a tower
    ],
)
def test_the_section_of_the_part_that_a_name_belongs_to_is_found(
    before: str, config: dict[str, object], heads: int | None
) -> None:
    assert sizes_of(config, before).heads == heads


def test_sections_inside_sections_end_somewhere() -> None:
    config: dict[str, object] = dict(LLAMA)
    for _ in range(500):
        config = {"text_config": config}
    assert sizes_of(config, "model.layers").heads is None
