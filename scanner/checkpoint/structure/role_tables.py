"""The tables from names to roles: the vocabulary of the gguf package, and rules for names that it lacks.

A name is split at its transformer block: in `model.layers.3.self_attn.q_proj` the block is 3 and the tail is
`self_attn.q_proj`. The tail determines the role; the part before the block depends on the model class only.
"""

import re
from dataclasses import dataclass
from functools import cache

BLOCK_WORDS = frozenset(
    {
        "layers",
        "layer",
        "h",
        "blocks",
        "block",
        "resblocks",
        "decoder_layer",
        "decoder_layers",
        "encoder_layer",
        "encoder_layers",
        "transformer_blocks",
        "transformer_layers",
        "transformer_encoder",
        "albert_layers",
        "attentions",
        "ffns",
    }
)
"""The components of a name that are followed by the index of a transformer block."""

# Ordered: if gguf gives one name to several tensors, the one listed first wins.
GGUF_ROLES = {
    "query": "ATTN_Q V_ENC_ATTN_Q A_ENC_ATTN_Q DEC_ATTN_Q ENC_ATTN_Q DEC_CROSS_ATTN_Q V_RESMPL_ATTN_Q A_QF_SELF_ATTN_Q "
    "A_QF_CROSS_ATTN_Q ATTN_Q_A ATTN_Q_B TIME_MIX_RECEPTANCE",
    "key": "ATTN_K V_ENC_ATTN_K A_ENC_ATTN_K DEC_ATTN_K ENC_ATTN_K DEC_CROSS_ATTN_K V_RESMPL_ATTN_K A_QF_SELF_ATTN_K "
    "A_QF_CROSS_ATTN_K ATTN_K_B ATTN_KV_A_MQA TIME_MIX_KEY",
    "value": "ATTN_V V_ENC_ATTN_V A_ENC_ATTN_V DEC_ATTN_V ENC_ATTN_V DEC_CROSS_ATTN_V V_RESMPL_ATTN_V A_QF_SELF_ATTN_V "
    "A_QF_CROSS_ATTN_V ATTN_V_B TIME_MIX_VALUE",
    "attn_out": "ATTN_OUT V_ENC_ATTN_O A_ENC_OUTPUT DEC_ATTN_OUT ENC_ATTN_OUT DEC_CROSS_ATTN_OUT V_RESMPL_ATTN_OUT "
    "A_QF_SELF_ATTN_O A_QF_CROSS_ATTN_O V_SAM_ATTN_OUT VISEXP_ATTN_OUT TIME_MIX_OUTPUT",
    "mlp_down": "FFN_DOWN FFN_DOWN_EXP FFN_DOWN_SHEXP FFN_DOWN_CHEXP VISEXP_DOWN V_ENC_FFN_DOWN A_ENC_FFN_DOWN "
    "A_ENC_FFN_DOWN_1 DEC_FFN_DOWN ENC_FFN_DOWN A_QF_FFN_DOWN V_SAM_MLP_LIN_2 CHANNEL_MIX_VALUE",
    "mlp_gate": "FFN_GATE FFN_GATE_EXP FFN_GATE_SHEXP FFN_GATE_CHEXP VISEXP_GATE V_ENC_FFN_GATE A_ENC_FFN_GATE "
    "A_ENC_FFN_GATE_1 DEC_FFN_GATE ENC_FFN_GATE",
    "mlp_up": "FFN_UP FFN_UP_EXP FFN_UP_SHEXP FFN_UP_CHEXP VISEXP_UP V_ENC_FFN_UP A_ENC_FFN_UP A_ENC_FFN_UP_1 "
    "DEC_FFN_UP ENC_FFN_UP A_QF_FFN_UP V_SAM_MLP_LIN_1 CHANNEL_MIX_KEY",
    "router": "FFN_GATE_INP FFN_GATE_INP_SHEXP ALTUP_ROUTER",
    "embedding": "TOKEN_EMBD TOKEN_TYPES POS_EMBD PER_LAYER_TOKEN_EMBD NEXTN_EMBED_TOKENS V_ENC_EMBD_POS "
    "V_MM_EMBEDDING A_ENC_EMBD_POS A_MM_EMBEDDING V_RESMPL_POS_EMBD_K V_SAM_POS_EMBD DEC_ATTN_REL_B ENC_ATTN_REL_B "
    "A_ENC_ATTN_REL_POS_EMB",
    "lm_head": "OUTPUT NEXTN_SHARED_HEAD_HEAD",
}  # fmt: skip

# Tails that gguf lists as attention outputs for two models and as state-space outputs for others.
_DISPUTED_TAILS = frozenset({"mixer.out_proj"})


@dataclass(frozen=True, kw_only=True)
class GgufRoles:
    """Roles by name without `.weight`: `whole` has the name with `{bid}` for the index of the block, `tail` the part after it."""

    whole: dict[str, str]
    tail: dict[str, str]


@cache
def gguf_roles() -> GgufRoles:
    """Return the names that gguf knows, over all of its architectures, so that a new model type needs no new table.

    A tensor that gguf knows but that is outside the vocabulary of roles (a norm, a state-space projection) is `other`.
    """
    from gguf.tensor_mapping import TensorNameMap  # imported here: only listing matrices needs it

    ranks = {
        tensor: (rank, role) for role, tensors in GGUF_ROLES.items() for rank, tensor in enumerate(tensors.split())
    }
    other = (len(ranks), "other")
    whole: dict[str, tuple[int, str]] = {}
    tail: dict[str, tuple[int, str]] = {}
    for mapping in (TensorNameMap.mappings_cfg, TensorNameMap.block_mappings_cfg):
        for tensor, names in mapping.items():
            ranked = ranks.get(tensor.name, other)
            for name in names:
                whole[name] = min(ranked, whole.get(name, ranked))
                before, block, after = name.partition(".{bid}.")
                if block and before.rpartition(".")[2] in BLOCK_WORDS and after not in _DISPUTED_TAILS:
                    tail[after] = min(ranked, tail.get(after, ranked))
    return GgufRoles(
        whole={name: role for name, (_, role) in whole.items()},
        tail={name: role for name, (_, role) in tail.items()},
    )


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(rf"(?:^|\.)(?:{pattern})(?:\.linear)?\Z", re.IGNORECASE), role) for role, pattern in rules)


FUSED = re.compile(
    r"(?:^|[._])(?:[wW]?qkv|qkv_proj|query_key_value|c_attn|in_proj_(?:qkvz?|weight)|kv_proj|kv_b_proj|wkv_b|to_kv|gate_up_proj"
    r"|gated_layers|up_gated_layer|w12|w13(?:_weight|_dn)?|weights_in|W_pack|att_proj|ff_proj|qkv_linear)\Z"
    r"|(?:^|\.)weight_[ih]h(?:_l\d+(?:_reverse)?)?(?:_raw)?\Z"  # the gates of a recurrent cell
    r"|(?:^|\.)mlp\.Wi\Z|(?:mlp|moe|block_sparse_moe|shared_mlp)\.input_linear\Z"
    r"|encoder\.layers\.\{bid\}\.mlp\.dense_h_to_4h\Z",  # the last one is ChatGLM, whose FFN is gated
)
"""Names of tensors that contain several matrices; gguf lists some of them under the role of one matrix."""

_ATTENTION = r"(?:\w*att(?:n|ention)?\d?)"

BLOCK_RULES = _rules(
    ("other", r"bottleneck\.[\w.]+"),
    ("other", r"(?:mamba2?|ssm|mixer|linear_attn|\w*conv\d?|temporal_block|recurrent_block)\.\w+"),
    ("router", r"router(?:\.(?:classifier|layer|gate|proj|wg))?|shared_expert_gate|router_proj"),
    ("router", r"(?:mlp|\w*moe|ffn|feed_forward|feedforward)\.gate(?:\.(?:wg|proj))?"),
    ("mlp_up", r"(?:ffn|feed_forward)\.key"),
    ("mlp_down", r"(?:ffn|feed_forward)\.value"),
    ("query", r"(?:q|query)_(?:proj|lin|head|attn|layer|global|a_proj|b_proj)|(?:w|to_|linear_)q|query|wq_[ab]|q_attn"),
    ("key", r"(?:k|key)_(?:proj|lin|head|layer|global|b_proj)|(?:w|to_|linear_)k|key"),
    ("value", r"(?:v|value)_(?:proj|lin|head|layer|global|b_proj)|(?:w|to_|linear_)v|value"),
    ("query", r"self_attention\.experts\.input_linear"),
    ("attn_out", r"self_attention\.experts\.output_linear"),
    ("query", rf"{_ATTENTION}\.(?:q|receptance)"),
    ("key", rf"{_ATTENTION}\.k"),
    ("value", rf"{_ATTENTION}\.v"),
    ("attn_out", rf"{_ATTENTION}\.(?:o|dense|c_proj|proj|projection(?:_layer)?|wo|linear_out|output|post_proj)"),
    ("attn_out", rf"{_ATTENTION}\.(?:output\.dense|out_proj|out_lin|to_out(?:\.0)?|out)|o_proj|out_lin"),
    ("mlp_gate", r"gate_proj|wi_0|(?:experts|shared_experts?|feed_forward|ffn)\.w1"),
    ("mlp_up", r"up_proj|wi(?:_1)?|(?:experts|shared_experts?|feed_forward|ffn)\.w3|intermediate(?:_dense|\.dense)?"),
    ("mlp_up", r"fc1|fc_in|lin1|lin_1|linear_?1|linear_fc1|proj_1|c_fc|dense_h_to_4h|ffn|ffn_1|fc_1|ff\.layer_1"),
    ("mlp_down", r"down_proj|(?:experts|shared_experts?|feed_forward|ffn)\.w2|wo|output(?:_dense|\.dense)"),
    ("mlp_down", r"fc2|fc_out|lin2|lin_2|linear_?2|linear_fc2|proj_2|mlp\.c_proj|dense_4h_to_h|ffn_output|ffn_2|fc_2"),
    ("mlp_up", r"\w*(?:ff|ffn|mlp|feed_?forward)(?:_context)?\.net\.0\.proj"),
    ("mlp_down", r"\w*(?:ff|ffn|mlp|feed_?forward)(?:_context)?\.net\.2"),
    ("mlp_down", r"weights_out|ff\.layer_2|(?:ffn|feed_forward)\.output"),
    ("embedding", r"\w*relative_attention_bias|\w*position_bias_table|\w*embed(?:ding)?s?|rel_pos_emb|embed_positions"),
)  # fmt: skip
"""Roles by the end of a tail; the first match counts. `experts.7` is shortened to `experts` before matching."""

OUTER_RULES = _rules(
    ("other", r"\w*patch_embed(?:ding)?s?"),
    ("embedding", r"(?:\w*_)?embed(?:ding)?s?|embed_(?:tokens(?:_per_layer)?|positions|in)|\w*relative_attention_bias"),
    ("embedding", r"wte|wpe|emb|shared|rel_pos\w*|\w*pos(?:itional|ition)?_emb(?:ed|eddings?|s)?|\w*embedding_table"),
    ("lm_head", r"\w*lm_head(?:\.decoder)?|predictions\.decoder|embed_out|output_layer|output_projection"),
    ("lm_head", r"pred_layer\.proj|vocab_projector|lm_loss"),
    ("query", rf"(?:{_ATTENTION}|attn_?pool)\.q_proj"),
    ("key", rf"(?:{_ATTENTION}|attn_?pool)\.k_proj"),
    ("value", rf"(?:{_ATTENTION}|attn_?pool)\.v_proj"),
    ("attn_out", rf"{_ATTENTION}\.(?:out|o)_proj"),
    ("mlp_up", r"(?:head|\w*pool\w*)\.mlp\.fc1"),
    ("mlp_down", r"(?:head|\w*pool\w*)\.mlp\.fc2"),
)  # fmt: skip
"""The same for names outside of blocks, where attention and an MLP may pool the output of the blocks."""

WHOLE_NAMES = {"proj_out": "lm_head", "decoder": "lm_head"}
"""Names that count only with no prefix except `model.` (the heads of Whisper and ModernBERT)."""

COMMON_WORDS = frozenset({"output", "head", "encoder", "dense", "norm", "layer_norm", "classifier"})
"""One-word names in the table of gguf that are also parts of other names: they count only as whole names."""
