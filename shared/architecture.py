"""Which model families are served, and the only configuration keys that ever leave a checkpoint's config.json.

A foreign config.json is data, not instructions: transformers before 5.3 could be made to run code by one
(CVE-2026-4372). So it is parsed here, reduced to the keys listed below, and devices get this regenerated form.
Knows nothing about torch or transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.errors import UnsupportedModel

_LARGEST_NUMBER = 2**63
_COMMON_KEYS = frozenset(
    {
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
        "initializer_range", "attention_dropout",
    }
)  # fmt: skip
_LLAMA_KEYS = _COMMON_KEYS | {
    "intermediate_size", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "pretraining_tp",
}  # fmt: skip
_WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_OPT_KEYS = _COMMON_KEYS | {
    "ffn_dim", "do_layer_norm_before", "word_embed_proj_dim", "activation_function", "dropout", "layerdrop",
    "enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm", "init_std",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One family of causal language models.

    Attributes:
        model_type: The value of ``model_type`` in config.json.
        architecture: The transformers class.
        decoder_blocks: Dotted path of the list of decoder blocks.
        config_keys: Configuration keys that are kept.
    """

    model_type: str
    architecture: str
    decoder_blocks: str
    config_keys: frozenset[str]


FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ModelFamily("llama", "LlamaForCausalLM", "model.layers", _LLAMA_KEYS),
        ModelFamily("mistral", "MistralForCausalLM", "model.layers", _LLAMA_KEYS | _WINDOW_KEYS),
        ModelFamily("qwen2", "Qwen2ForCausalLM", "model.layers", _LLAMA_KEYS | _WINDOW_KEYS),
        ModelFamily("qwen3", "Qwen3ForCausalLM", "model.layers", _LLAMA_KEYS | _WINDOW_KEYS),
        ModelFamily("opt", "OPTForCausalLM", "model.decoder.layers", _OPT_KEYS),
    )
}


def family_of(config: dict[str, Any]) -> ModelFamily:
    """Return the family of a configuration.

    Raises:
        UnsupportedModel: The model type is not among ``FAMILIES``.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(
            f"model_type {model_type!r} in config.json",
            needed=f"one of {', '.join(sorted(FAMILIES))}",
            next_step="choose a model of one of these families",
            param="model",
        )
    return FAMILIES[model_type]


def safe_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration reduced to allow-listed keys with plain values.

    Raises:
        UnsupportedModel: The family is unknown, the weights are already quantised, or a kept value is no plain value.
    """
    family = family_of(config)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(
            "config.json has a quantization_config: the weights are already quantised",
            needed="16- or 32-bit weights",
            next_step="give the id of the original, unquantised model",
            param="model",
        )
    kept = {key: config[key] for key in sorted(family.config_keys) if key in config}
    for key, value in kept.items():
        if not _is_plain(value):
            raise UnsupportedModel(
                f"config.json: {key} is {str(value)[:80]!r}",
                needed="a finite number, a word or a flat list or table of them",
            )
    return kept | {"architectures": [family.architecture]}


def _is_plain(value: object, *, depth: int = 0) -> bool:
    match value:
        case None | bool():
            return True
        case int() | float():
            return -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER  # neither NaN nor infinite
        case str():
            return len(value) <= 64
        case list():
            return depth < 2 and len(value) <= 1024 and all(_is_plain(item, depth=depth + 1) for item in value)
        case dict():
            return depth < 2 and all(
                isinstance(name, str) and len(name) <= 64 and _is_plain(item, depth=depth + 1)
                for name, item in value.items()
            )
        case _:
            return False
