"""The tested families of causal language models, described by data: what config.json says, and how each computes.

Whatever one family does otherwise than the others is a field of its record, so that no other module asks for a name.
A family enters the table when a random model of it has gone through prepare, pull, tune and generate, and its logits
have agreed with those of transformers. Costs nothing. Knows nothing about torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3"})
"""How rotary frequencies may be scaled, by the names that transformers gives to it."""

_COMMON_KEYS = frozenset(
    {
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
        "initializer_range", "attention_dropout",
    }
)  # fmt: skip
_ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
_LLAMA_KEYS = (
    _COMMON_KEYS
    | _ROPE_KEYS
    | {
        "intermediate_size", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "attention_bias",
        "mlp_bias", "pretraining_tp",
    }
)  # fmt: skip
_WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_OPT_KEYS = _COMMON_KEYS | {
    "ffn_dim", "do_layer_norm_before", "word_embed_proj_dim", "activation_function", "dropout", "layerdrop",
    "enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm", "init_std",
}  # fmt: skip
_GEMMA_KEYS = (
    _COMMON_KEYS
    | _ROPE_KEYS
    | {
        "intermediate_size", "num_key_value_heads", "head_dim", "hidden_activation", "rms_norm_eps", "attention_bias",
        "query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping", "attn_logit_softcapping",
    }
)  # fmt: skip
_PHI3_KEYS = (
    _COMMON_KEYS
    | _ROPE_KEYS
    | {
        "intermediate_size", "num_key_value_heads", "hidden_act", "rms_norm_eps", "sliding_window",
        "original_max_position_embeddings", "partial_rotary_factor", "embd_pdrop", "resid_pdrop",
    }
)  # fmt: skip
_GPT2_KEYS = (_COMMON_KEYS - {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}) | {
    "n_embd", "n_layer", "n_head", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon",
    "embd_pdrop", "resid_pdrop", "attn_pdrop", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
}  # fmt: skip
_GPT_NEOX_KEYS = (
    _COMMON_KEYS
    | _ROPE_KEYS
    | {
        "intermediate_size", "hidden_act", "layer_norm_eps", "rotary_pct", "rotary_emb_base", "partial_rotary_factor",
        "use_parallel_residual", "attention_bias", "hidden_dropout",
    }
)  # fmt: skip
_STABLELM_KEYS = (
    _COMMON_KEYS
    | _ROPE_KEYS
    | {
        "intermediate_size", "num_key_value_heads", "hidden_act", "layer_norm_eps", "partial_rotary_factor",
        "use_qkv_bias", "qk_layernorm", "use_parallel_residual", "hidden_dropout",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One family of causal language models.

    Attributes:
        model_type: The value of ``model_type`` in config.json.
        architecture: The transformers class; empty where transformers itself looks it up (an untested family).
        config_keys: Configuration keys that are kept; empty keeps every plain one (an untested family).
        decoder_blocks: Dotted path of the list of decoder blocks; empty where it is not known beforehand.
        dimension_keys: What config.json calls a dimension, where that is not the usual name.
        defaults: What the transformers class takes where config.json leaves a key out.
        widening: Width of the MLP as a multiple of the hidden size, where config.json does not state it.
        is_gated: Whether the MLP multiplies two projections of its input.
        has_rotary_embedding: Whether positions turn pairs of numbers in queries and keys.
        rope_types: How rotary frequencies may be scaled.
        attention: Which of transformers' attention functions computes it rightly; None lets transformers choose.
        logit_divisor: Configuration key of a number that logits are divided by.
        logit_cap: Configuration key of a number c: logits become c · tanh(logits / c).
        stores_transposed: Whether checkpoints hold the blocks' linear weights as (in_features, out_features).
            A bundle stores them as (out_features, in_features), like every linear weight.
        renamed: Stored names of parameters, where transformers' names differ.
        computed_weights: Endings of stored names that hold no parameter: masks that a network computes.
        is_llama_like: Whether a block is RMS norm, q, k, v, attention, o, RMS norm, gate, up, down, and nothing else.
        biases: Of a Llama-like family: projection → the configuration key that gives it a bias; empty always does.
        has_head_norms: Of a Llama-like family: whether queries and keys are normed, head by head.
        has_window: Of a Llama-like family: whether ``sliding_window`` alone says what all layers attend to.
        carried_hidden_states: Hidden states that are alive inside a block at once, without gradients.
        activation_copies: Matrices of the MLP's width that its activation makes, where the MLP is not gated.
        is_tested: Whether the family is in the table of this module.
    """

    model_type: str
    architecture: str = ""
    config_keys: frozenset[str] = frozenset()
    decoder_blocks: str = "model.layers"
    dimension_keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, int | bool] = field(default_factory=dict)
    widening: int | None = None
    is_gated: bool = True
    has_rotary_embedding: bool = True
    rope_types: frozenset[str] = ROPE_TYPES
    attention: Literal["sdpa", "eager"] | None = "sdpa"
    logit_divisor: str | None = None
    logit_cap: str | None = None
    stores_transposed: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    computed_weights: tuple[str, ...] = ()
    is_llama_like: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)
    has_head_norms: bool = False
    has_window: bool = False
    carried_hidden_states: int = 4
    activation_copies: int = 1
    is_tested: bool = True


_ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_STATED_ATTENTION_BIASES = dict.fromkeys(_ATTENTION_PROJECTIONS, "attention_bias")
_GEMMA_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True}

FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ModelFamily(
            model_type="llama",
            architecture="LlamaForCausalLM",
            config_keys=_LLAMA_KEYS,
            is_llama_like=True,
            biases=_STATED_ATTENTION_BIASES | dict.fromkeys(_MLP_PROJECTIONS, "mlp_bias"),
        ),
        ModelFamily(
            model_type="mistral",
            architecture="MistralForCausalLM",
            config_keys=_LLAMA_KEYS | _WINDOW_KEYS,
            defaults={"num_key_value_heads": 8},
            is_llama_like=True,
            has_window=True,
        ),
        ModelFamily(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            config_keys=_LLAMA_KEYS | _WINDOW_KEYS,
            defaults={"num_key_value_heads": 32, "use_sliding_window": False},
            is_llama_like=True,
            biases=dict.fromkeys(("q_proj", "k_proj", "v_proj"), ""),
        ),
        ModelFamily(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            config_keys=_LLAMA_KEYS | _WINDOW_KEYS,
            defaults={"num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False},
            is_llama_like=True,
            biases=_STATED_ATTENTION_BIASES,
            has_head_norms=True,
        ),
        ModelFamily(
            model_type="opt",
            architecture="OPTForCausalLM",
            config_keys=_OPT_KEYS,
            decoder_blocks="model.decoder.layers",
            dimension_keys={"intermediate_size": "ffn_dim"},
            defaults={"tie_word_embeddings": True},
            is_gated=False,
            has_rotary_embedding=False,
        ),
        ModelFamily(
            model_type="gemma2",
            architecture="Gemma2ForCausalLM",
            config_keys=_GEMMA_KEYS,
            defaults=_GEMMA_DEFAULTS | {"final_logit_softcapping": 30},
            attention="eager",  # the others do not cap attention logits
            logit_cap="final_logit_softcapping",
        ),
        ModelFamily(
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            config_keys=_GEMMA_KEYS | {"rope_local_base_freq", "sliding_window_pattern"},
            defaults=_GEMMA_DEFAULTS,
            logit_cap="final_logit_softcapping",
        ),
        ModelFamily(
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            config_keys=_PHI3_KEYS,
            rope_types=frozenset({"default", "longrope", "su", "yarn"}),  # transformers takes the last two for longrope
            carried_hidden_states=5,
        ),
        ModelFamily(
            model_type="gpt2",
            architecture="GPT2LMHeadModel",
            config_keys=_GPT2_KEYS,
            decoder_blocks="transformer.h",
            dimension_keys={
                "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
            },
            defaults={"tie_word_embeddings": True},
            widening=4,
            is_gated=False,
            has_rotary_embedding=False,
            stores_transposed=True,
            carried_hidden_states=5,
            activation_copies=3,
            computed_weights=(".attn.bias", ".attn.masked_bias"),
        ),
        ModelFamily(
            model_type="gpt_neox",
            architecture="GPTNeoXForCausalLM",
            config_keys=_GPT_NEOX_KEYS,
            decoder_blocks="gpt_neox.layers",
            is_gated=False,
            renamed={"embed_out.weight": "lm_head.weight"},
            computed_weights=(".attention.bias", ".attention.masked_bias"),
        ),
        ModelFamily(
            model_type="granite",
            architecture="GraniteForCausalLM",
            config_keys=_LLAMA_KEYS
            | {"embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"},
            logit_divisor="logits_scaling",
        ),
        ModelFamily(model_type="olmo2", architecture="Olmo2ForCausalLM", config_keys=_LLAMA_KEYS),
        ModelFamily(
            model_type="smollm3",
            architecture="SmolLM3ForCausalLM",
            config_keys=_LLAMA_KEYS | _WINDOW_KEYS | {"no_rope_layers", "no_rope_layer_interval"},
            defaults={"num_key_value_heads": 4, "tie_word_embeddings": True, "use_sliding_window": False},
        ),
        ModelFamily(
            model_type="stablelm",
            architecture="StableLmForCausalLM",
            config_keys=_STABLELM_KEYS,
            defaults={"num_key_value_heads": 32},
            carried_hidden_states=6,
        ),
    )
}  # fmt: skip
