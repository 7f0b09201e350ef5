import re

import pytest
from gguf.tensor_mapping import TensorNameMap
from hypothesis import given
from hypothesis import strategies as st

from scanner.checkpoint import ROLES
from scanner.checkpoint.structure.role_tables import BLOCK_WORDS, GGUF_ROLES, gguf_roles
from scanner.checkpoint.structure.roles import classify, stacks

# What each model class calls its tensors. "*" is the block's index; roles in the order of ATTENTION and MLP.
ATTENTION = ("query", "key", "value", "attn_out")
MLP = ("mlp_up", "mlp_down")
GATED = ("mlp_gate", "mlp_up", "mlp_down")

LLAMA_ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
BERT_ATTENTION = "attention.self.query attention.self.key attention.self.value attention.output.dense"
BART_ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj"
CROSS_ATTENTION = "encoder_attn.q_proj encoder_attn.k_proj encoder_attn.v_proj encoder_attn.out_proj"
T5_ATTENTION = "layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v layer.0.SelfAttention.o"

BLOCKS = [
    ("bert", "bert.encoder.layer.*", BERT_ATTENTION, ATTENTION),
    ("bert", "encoder.layer.*", "intermediate.dense output.dense", MLP),
    ("roberta", "roberta.encoder.layer.*", f"{BERT_ATTENTION} intermediate.dense output.dense", ATTENTION + MLP),
    ("electra", "electra.encoder.layer.*", f"{BERT_ATTENTION} intermediate.dense output.dense", ATTENTION + MLP),
    (
        "mpnet",
        "mpnet.encoder.layer.*",
        "attention.attn.q attention.attn.k attention.attn.v attention.attn.o intermediate.dense output.dense",
        ATTENTION + MLP,
    ),
    (
        "distilbert",
        "distilbert.transformer.layer.*",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        ATTENTION + MLP,
    ),
    (
        "deberta",
        "deberta.encoder.layer.*",
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj attention.output.dense",
        ATTENTION,
    ),
    (
        "albert",
        "albert.encoder.albert_layer_groups.0.albert_layers.*",
        "attention.query attention.key attention.value attention.dense ffn ffn_output",
        ATTENTION + MLP,
    ),
    ("xlm", "transformer.attentions.*", "q_lin k_lin v_lin out_lin", ATTENTION),
    ("xlm", "transformer.ffns.*", "lin1 lin2", MLP),
    ("gpt2", "transformer.h.*", "attn.c_proj mlp.c_fc mlp.c_proj", ("attn_out", *MLP)),
    ("gpt2 without its prefix", "h.*", "attn.c_proj mlp.c_fc mlp.c_proj", ("attn_out", *MLP)),
    (
        "gptj",
        "transformer.h.*",
        "attn.q_proj attn.k_proj attn.v_proj attn.out_proj mlp.fc_in mlp.fc_out",
        ATTENTION + MLP,
    ),
    ("gpt-neox", "gpt_neox.layers.*", "attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h", ("attn_out", *MLP)),
    ("opt", "model.decoder.layers.*", f"{BART_ATTENTION} fc1 fc2", ATTENTION + MLP),
    ("llama", "model.layers.*", f"{LLAMA_ATTENTION} mlp.gate_proj mlp.up_proj mlp.down_proj", ATTENTION + GATED),
    (
        "llama as Meta publishes it",
        "layers.*",
        "attention.wq attention.wk attention.wv attention.wo feed_forward.w1 feed_forward.w3 feed_forward.w2",
        ATTENTION + GATED,
    ),
    ("llama in peft", "base_model.model.model.layers.*", f"{LLAMA_ATTENTION} mlp.up_proj", (*ATTENTION, "mlp_up")),
    ("gemma 3", "model.language_model.layers.*", f"{LLAMA_ATTENTION} mlp.gate_proj", (*ATTENTION, "mlp_gate")),
    ("llava", "language_model.model.layers.*", f"{LLAMA_ATTENTION} mlp.down_proj", (*ATTENTION, "mlp_down")),
    ("phi", "model.layers.*", "self_attn.dense mlp.fc1 mlp.fc2", ("attn_out", *MLP)),
    (
        "qwen 1, whose w2 is the gate",
        "transformer.h.*",
        "attn.c_proj mlp.w2 mlp.w1 mlp.c_proj",
        ("attn_out", "mlp_gate", "mlp_up", "mlp_down"),
    ),
    ("mixtral", "model.layers.*", "block_sparse_moe.gate", ("router",)),
    (
        "deepseek",
        "model.layers.*",
        "self_attn.q_a_proj self_attn.q_b_proj self_attn.o_proj mlp.gate mlp.shared_experts.gate_proj "
        "mlp.shared_experts.up_proj mlp.shared_experts.down_proj",
        ("query", "query", "attn_out", "router", *GATED),
    ),
    ("t5", "encoder.block.*", f"{T5_ATTENTION} layer.1.DenseReluDense.wi layer.1.DenseReluDense.wo", ATTENTION + MLP),
    (
        "flan-t5",
        "decoder.block.*",
        "layer.2.DenseReluDense.wi_0 layer.2.DenseReluDense.wi_1 layer.2.DenseReluDense.wo",
        GATED,
    ),
    ("switch", "encoder.block.*", "layer.1.mlp.router.classifier layer.1.mlp.wi layer.1.mlp.wo", ("router", *MLP)),
    ("bart", "model.decoder.layers.*", f"{CROSS_ATTENTION} fc1 fc2", ATTENTION + MLP),
    ("whisper", "model.encoder.layers.*", f"{BART_ATTENTION} fc1 fc2", ATTENTION + MLP),
    (
        "vit",
        "vit.encoder.layer.*",
        "attention.attention.query attention.attention.key attention.attention.value attention.output.dense "
        "intermediate.dense output.dense",
        ATTENTION + MLP,
    ),
    ("vit in timm", "blocks.*", "attn.proj mlp.fc1 mlp.fc2", ("attn_out", *MLP)),
    (
        "vit since transformers 5",
        "layers.*",
        "attention.q_proj attention.o_proj mlp.fc1 mlp.fc2",
        ("query", "attn_out", *MLP),
    ),
    ("clip", "vision_model.encoder.layers.*", f"{BART_ATTENTION} mlp.fc1 mlp.fc2", ATTENTION + MLP),
    ("kimi-vl, which counts from 0", "vision_tower.encoder.blocks.*", "mlp.fc0 mlp.fc1", MLP),
    (
        "wav2vec2",
        "wav2vec2.encoder.layers.*",
        "attention.q_proj attention.k_proj attention.v_proj attention.out_proj feed_forward.intermediate_dense "
        "feed_forward.output_dense",
        ATTENTION + MLP,
    ),
    ("torch", "encoder.layers.*", "self_attn.out_proj linear1 linear2", ("attn_out", *MLP)),
    ("rwkv", "rwkv.blocks.*", "attention.receptance attention.key attention.value attention.output", ATTENTION),
    ("rwkv", "rwkv.blocks.*", "feed_forward.key feed_forward.value", MLP),
    ("mamba", "backbone.layers.*", "mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj", ("other",) * 4),
    ("an unknown state-space model", "net.layers.*", "mixer.out_proj", ("other",)),
    ("llama 4", "model.layers.*", "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj", GATED),
    ("jamba", "model.layers.*", "mamba.in_proj mamba.out_proj self_attn.o_proj", ("other", "other", "attn_out")),
    ("qwen3-next", "model.layers.*", "linear_attn.in_proj_ba linear_attn.out_proj", ("other", "other")),
    ("nemotron-h", "backbone.layers.*", "mixer.q_proj mixer.o_proj mixer.up_proj", ("query", "attn_out", "mlp_up")),
    ("mobilebert", "mobilebert.encoder.layer.*", "bottleneck.input.dense bottleneck.attention.dense", ("other",) * 2),
    ("a block's own adapter", "model.layers.*", "self_attn.q_proj.lora_A self_attn.q_proj.lora_B", ("other",) * 2),
    (
        "gemma 4 sees",
        "model.vision_tower.encoder.layers.*",
        "self_attn.q_proj.linear mlp.gate_proj.linear",
        ("query", "mlp_gate"),
    ),
    ("peft around a layer", "model.layers.*", "self_attn.q_proj.base_layer", ("query",)),
]


@pytest.mark.parametrize(("prefix", "tails", "roles"), [case[1:] for case in BLOCKS], ids=[case[0] for case in BLOCKS])
def test_block_tensors_of_many_architectures_have_their_roles(prefix: str, tails: str, roles: tuple[str, ...]) -> None:
    for layer in (0, 7, 123):
        before = prefix.replace("*", str(layer))
        found = [classify(f"{before}.{tail}.weight") for tail in tails.split()]
        assert [one.role for one in found] == list(roles)
        assert {one.layer for one in found} == {layer}


@pytest.mark.parametrize(
    ("name", "role", "layer", "expert"),
    [
        ("model.layers.4.block_sparse_moe.experts.7.w1.weight", "mlp_gate", 4, 7),
        ("model.layers.4.block_sparse_moe.experts.7.w3.weight", "mlp_up", 4, 7),
        ("model.layers.4.block_sparse_moe.experts.7.w2.weight", "mlp_down", 4, 7),
        ("model.layers.4.mlp.experts.127.gate_proj.weight", "mlp_gate", 4, 127),
        ("model.layers.4.mlp.experts.127.up_proj.weight", "mlp_up", 4, 127),
        ("model.layers.4.mlp.experts.127.down_proj.weight", "mlp_down", 4, 127),
        ("layers.4.feed_forward.experts.0.w1.weight", "mlp_gate", 4, 0),
        ("encoder.block.1.layer.1.mlp.experts.expert_3.wi.weight", "mlp_up", 1, 3),
        ("encoder.block.1.layer.1.mlp.experts.expert_3.wo.weight", "mlp_down", 1, 3),
        ("model.layers.4.mlp.shared_expert.up_proj.weight", "mlp_up", 4, None),
        ("model.layers.4.mlp.shared_expert_gate.weight", "router", 4, None),
        ("model.language_model.layers.4.mlp.experts.9.down_proj.weight", "mlp_down", 4, 9),
    ],
)
def test_experts_have_their_number_and_their_roles(name: str, role: str, layer: int, expert: int | None) -> None:
    found = classify(name)
    assert (found.role, found.layer, found.expert) == (role, layer, expert)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "transformer.h.0.self_attention.query_key_value.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "transformer.blocks.0.attn.Wqkv.weight",
        "layers.0.attn.Wqkv.weight",
        "layers.0.mlp.Wi.weight",
        "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight",
        "encoder.layers.0.self_attn.in_proj_weight",
        "blocks.0.attn.qkv.weight",
        "model.layers.0.self_attn.kv_b_proj.weight",
    ],
)
def test_fused_tensors_have_no_role_of_their_own(name: str) -> None:
    found = classify(name)
    assert (found.role, found.layer) == ("other", 0)


OUTSIDE = {
    "embedding": """bert.embeddings.word_embeddings bert.embeddings.position_embeddings embeddings.token_type_embeddings
        transformer.wte transformer.wpe wte wpe model.embed_tokens model.language_model.embed_tokens gpt_neox.embed_in
        shared encoder.embed_tokens model.decoder.embed_positions text_model.embeddings.token_embedding
        text_model.embeddings.position_embedding mpnet.encoder.relative_attention_bias transformer.word_embeddings
        model.language_model.embed_tokens_per_layer backbone.embeddings tok_embeddings model.tok_embeddings""",
    "lm_head": """lm_head language_model.lm_head cls.predictions.decoder lm_head.decoder embed_out output proj_out
        vocab_projector generator_lm_head predictions.decoder base_model.model.lm_head""",
    "other": """pooler.dense bert.pooler.dense classifier classifier.dense classifier.out_proj score qa_outputs head
        pre_classifier cls.predictions.transform.dense lm_head.dense vocab_transform cls.seq_relationship
        visual_projection multi_modal_projector.linear_1 vision_model.embeddings.patch_embedding some.other.output
        vit.embeddings.patch_embeddings.projection embeddings_project dense linear nothing.known""",
}


@pytest.mark.parametrize(("name", "role"), [(name, role) for role, names in OUTSIDE.items() for name in names.split()])
def test_tensors_outside_of_blocks_have_their_roles(name: str, role: str) -> None:
    found = classify(f"{name}.weight")
    assert (found.role, found.layer, found.expert) == (role, None, None)


def test_a_bare_head_is_an_output_head_in_rwkv_only() -> None:
    assert classify("head.weight", "RwkvForCausalLM").role == "lm_head"
    assert classify("head.weight", "ViTForImageClassification").role == "other"


def test_position_biases_inside_blocks_are_embeddings() -> None:
    found = classify("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    assert (found.role, found.layer) == ("embedding", 0)


def test_the_source_says_which_table_knew_the_name() -> None:
    assert classify("encoder.layer.0.attention.self.query.weight").source == "gguf"
    assert classify("mpnet.encoder.layer.0.attention.attn.q.weight").source == "supplement"
    assert classify("pooler.dense.weight").source == "none"


def test_every_name_that_gguf_has_a_role_for_gets_it() -> None:
    """Under a foreign prefix too; but for fused tensors, and names that gguf itself gives to several tensors."""
    roles = {tensor: role for role, tensors in GGUF_ROLES.items() for tensor in tensors.split()}
    disputed = ("mixer.out_proj", "feed_forward.down_proj", "mlp.fc1", "head", "encoder", "output")
    checked = 0
    for tensor, names in TensorNameMap.block_mappings_cfg.items():
        for name in names:
            _, block, tail = name.partition(".{bid}.")
            if tensor.name not in roles or not block or tail in disputed:
                continue
            for whole in (name, f"any.prefix.{name}"):
                found = classify(whole.format(bid=3) + ".weight")
                fused = found.role == "other" and found.source == "supplement"
                assert fused or (found.role, found.layer, found.source) == (roles[tensor.name], 3, "gguf"), whole
            checked += 1
    assert checked > 400


def test_gguf_knows_the_tensors_that_are_given_roles() -> None:
    known = {
        tensor.name for mapping in (TensorNameMap.mappings_cfg, TensorNameMap.block_mappings_cfg) for tensor in mapping
    }
    assert len([tensor for tensors in GGUF_ROLES.values() for tensor in tensors.split() if tensor in known]) > 60
    assert set(gguf_roles().whole.values()) == {*GGUF_ROLES, "other"}
    assert set(ROLES) == {*GGUF_ROLES, "other"}
    assert "layers" in BLOCK_WORDS


def test_stacks_are_named_only_where_a_model_has_both() -> None:
    t5 = [
        "shared.weight",
        "encoder.block.0.x",
        "encoder.final_layer_norm.weight",
        "decoder.block.0.x",
        "lm_head.weight",
    ]
    assert stacks(t5) == {
        "encoder.block.0.x": "encoder",
        "encoder.final_layer_norm.weight": "encoder",
        "decoder.block.0.x": "decoder",
    }
    assert stacks(["bert.encoder.layer.0.x", "cls.predictions.decoder.weight"]) == {}
    assert stacks(["model.decoder.layers.0.fc1.weight", "model.decoder.embed_tokens.weight"]) == {}


def test_what_a_model_sees_or_hears_with_is_a_stack_of_its_own() -> None:
    clip = ["text_model.encoder.layers.0.x", "vision_model.encoder.layers.0.x", "logit_scale"]
    assert stacks(clip) == {clip[0]: "encoder", clip[1]: "vision"}
    omni = ["thinker.visual.blocks.0.x", "thinker.audio_tower.layers.0.x", "thinker.model.layers.0.x"]
    assert stacks(omni) == {omni[0]: "vision", omni[1]: "audio", omni[2]: "decoder"}
    florence = ["vision_tower.blocks.0.x", "language_model.encoder.layers.0.x", "language_model.decoder.layers.0.x"]
    assert stacks(florence) == {florence[0]: "vision", florence[1]: "encoder", florence[2]: "decoder"}
    assert stacks(["vision_model.encoder.layers.0.x", "vision_model.head.x"]) == {}


def test_the_language_model_of_a_model_that_sees_is_its_decoder() -> None:
    llava = ["vision_tower.vision_model.encoder.layers.0.x", "language_model.model.layers.0.x", "projector.weight"]
    assert stacks(llava) == {llava[0]: "vision", llava[1]: "decoder"}


@pytest.mark.parametrize(
    ("module", "tails"),
    [
        (
            "cross_attention",
            "encoder_attn.q_proj layer.1.EncDecAttention.k crossattention.self.value crossattention.c_attn "
            "cross_attn.o_proj cross_attention.q_proj multihead_attn.out_proj cross_attn_q",
        ),
        ("shared_expert", "mlp.shared_experts.up_proj mlp.shared_expert_gate shared_mlp.output_linear ffn_up_shexp"),
        ("mla_a", "self_attn.q_a_proj self_attn.kv_a_proj_with_mqa attn.wkv_a attn_q_a attn_kv_a_mqa"),
        ("mla_b", "self_attn.q_b_proj self_attn.kv_b_proj attn.wq_b attn_kv_b attn_k_b"),
        ("indexer", "self_attn.indexer.wq_b self_attn.indexer.wk"),
        (None, "self_attn.q_proj mlp.experts.up_proj attn_q mlp.gate attention.self.query layer.0.SelfAttention.q"),
    ],
)
def test_the_part_of_a_block_that_is_not_the_usual_one_is_named(module: str | None, tails: str) -> None:
    for tail in tails.split():
        assert classify(f"model.layers.3.{tail}.weight").module == module, tail


def test_a_latent_of_keys_and_values_counts_as_a_key() -> None:
    assert classify("model.layers.0.self_attn.kv_a_proj_with_mqa.weight").role == "key"


def test_layers_that_pool_outside_of_blocks_have_roles() -> None:
    for name, role in [
        ("vision_model.head.attention.out_proj", "attn_out"),
        ("vision_model.head.mlp.fc1", "mlp_up"),
        ("visual.attnpool.q_proj", "query"),
        ("classifier.out_proj", "other"),
        ("multi_modal_projector.fc1", "other"),
    ]:
        assert classify(f"{name}.weight").role == role, name


def test_a_name_of_endless_components_is_classified_quickly() -> None:
    name = "a." * 10**5 + "layers.3." + "b." * 10**5 + "mlp.up_proj.weight"
    assert classify(name).layer == 3
    assert classify("layers." + "9" * 5000 + ".mlp.up_proj.weight").layer is None


PIECES = st.sampled_from([*"._0123456789", ".layers.", ".experts.", "mlp", ".weight", "q_proj", "ü", "\n"])


@given(st.lists(PIECES, max_size=20).map("".join))
def test_every_name_gets_a_role_of_the_vocabulary(name: str) -> None:
    found = classify(name)
    assert found.role in ROLES
    assert found.source in ("gguf", "supplement", "none")
    assert (found.source == "none") <= (found.role == "other")
    assert found.layer is None or re.search(r"\d", name)
