"""The only configuration keys that ever leave a checkpoint's config.json, and the family that they belong to.

A foreign config.json is data, not instructions: transformers before 5.3 could be made to run code by one
(CVE-2026-4372). So it is parsed here, reduced to the keys that its family needs, and devices get this regenerated form.
Of an untested family, which needs permission, every plain key is kept but for those that choose code, a precision or
what a call returns. Knows nothing about torch or transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.errors import UnsupportedModel
from shared.model_families import FAMILIES, ModelFamily

__all__ = ["FAMILIES", "ModelFamily", "family_of", "safe_config"]

_LARGEST_NUMBER = 2**63
_MODEL_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_KEY = re.compile(r"[a-zA-Z][A-Za-z0-9_]{0,63}")
_NEVER_KEPT = frozenset(
    {
        "architectures", "attn_implementation", "auto_map", "chunk_size_feed_forward", "custom_pipelines", "dtype",
        "experts_implementation", "extra_config_files", "extra_files", "id2label", "label2id", "name_or_path",
        "output_attentions", "output_hidden_states", "per_layer_config", "problem_type", "quantization_config",
        "return_dict", "task_specific_params", "torch_dtype", "transformers_version", "trust_remote_code", "use_cache",
        "use_kernels",
    }
)  # fmt: skip
_ELSEWHERE = {"text_config", "vision_config", "audio_config", "thinker_config", "llm_config"}
_NOT_CAUSAL = ("use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder")
_OTHER_TASK = re.compile(r"\w+For(?!CausalLM$)\w+")
_ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
}
"""What configurations of other families call a dimension."""


def family_of(config: Mapping[str, Any], *, allow_untested: bool = False) -> ModelFamily:
    """Return the family of a configuration.

    Args:
        config: The configuration.
        allow_untested: Return a record of what is usual where the family is not among ``FAMILIES``.

    Raises:
        UnsupportedModel: There is no model type, or it is not among ``FAMILIES`` and that is not allowed.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    is_name = isinstance(model_type, str) and _MODEL_TYPE.fullmatch(model_type) is not None
    if allow_untested and is_name:
        return _untested_family(str(model_type), config)
    instead = "choose a model of one of these families"
    raise UnsupportedModel(
        f"model_type {str(model_type)[:80]!r} in config.json"
        if "model_type" in config
        else "no model_type in config.json",
        needed=f"one of {', '.join(sorted(FAMILIES))}",
        next_step=f"{instead}, or prepare it as an untested family: --allow-untested" if is_name else instead,
        param="model",
    )


def safe_config(config: Mapping[str, Any], *, allow_untested: bool = False) -> dict[str, Any]:
    """Return the configuration reduced to keys that describe the model, with plain values.

    Args:
        config: What config.json holds.
        allow_untested: Take a family that is not among ``FAMILIES``.

    Raises:
        UnsupportedModel: The family is not served, the weights are already quantised, the model is not a causal
            language model, or a kept value is no plain value.
    """
    _refuse_other_models(config)
    family = family_of(config, allow_untested=allow_untested)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(
            "config.json has a quantization_config: the weights are already quantised",
            needed="16- or 32-bit weights",
            next_step="give the id of the original, unquantised model",
            param="model",
        )
    keys = family.config_keys or {key for key in config if _KEY.fullmatch(str(key)) and key not in _NEVER_KEPT}
    kept = {key: config[key] for key in sorted(keys) if key in config}
    for key, value in kept.items():
        if not _is_plain(value):
            raise UnsupportedModel(
                f"config.json: {key} is {str(value)[:80]!r}",
                needed="a finite number, a word or a flat list or table of them",
            )
    return kept | ({"architectures": [family.architecture]} if family.is_tested else {})


def _refuse_other_models(config: Mapping[str, Any]) -> None:
    """Refuse what config.json itself says is no causal language model of text."""
    model_type = config.get("model_type")
    next_step = "give a causal language model (text in, text out)"
    if model_type not in FAMILIES and (inner := sorted(_ELSEWHERE & set(config))):
        raise UnsupportedModel(
            f"config.json: {inner[0]} inside a model of type {str(model_type)[:80]!r}, which takes more than text",
            needed="a model of text alone",
            next_step=next_step,
            param="model",
        )
    for key in _NOT_CAUSAL:
        if config.get(key):
            raise UnsupportedModel(
                f"config.json: {key} is {str(config[key])[:80]}",
                needed="a decoder whose tokens see only those before them",
                next_step=next_step,
                param="model",
            )
    stated = config.get("architectures")
    for name in stated if isinstance(stated, list) else ():
        if isinstance(name, str) and _OTHER_TASK.fullmatch(name):
            raise UnsupportedModel(
                f"config.json: architectures names {name[:80]}",
                needed="a class for causal language models, such as LlamaForCausalLM",
                next_step=next_step,
                param="model",
            )


def _untested_family(model_type: str, config: Mapping[str, Any]) -> ModelFamily:
    other_names = {
        usual: next(alias for alias in aliases if config.get(alias) is not None)
        for usual, aliases in _ALIASES.items()
        if config.get(usual) is None and any(config.get(alias) is not None for alias in aliases)
    }
    return ModelFamily(
        model_type=model_type,
        decoder_blocks="",
        dimension_keys=other_names,
        widening=4,
        attention=None,
        is_tested=False,
    )


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
