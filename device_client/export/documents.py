"""The small files of an exported folder: configuration, tokenizer, chat template, generation settings.

What plain transformers makes of them equals what zo-device does: the same token ids for a text, with the
beginning-of-text token where texts begin with one. Older versions of transformers and other programs read rotary
frequencies from ``rope_theta``, so that the base stands there as well. Knows nothing about weights.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from shared.bundle.config import BundleConfig
from shared.bundle.manifest import TOKENIZER_TITLE
from shared.bundle.read import Bundle
from shared.model.tokenizer import BundleTokenizer

_PROBE = "The 3 cats don't sleep."


def folder_documents(bundle: Bundle, dtype_name: str) -> dict[str, bytes]:
    """Return name → content of every file but the weights and the model card."""
    config, tokenizer = bundle.config, BundleTokenizer.from_bundle(bundle)
    documents = {
        "config.json": _json(model_config(config, dtype_name)),
        "generation_config.json": _json(_generation(config)),
        "tokenizer.json": _tokenizer_json(bundle, tokenizer).encode(),
        "tokenizer_config.json": _json(_tokenizer_settings(tokenizer)),
    }
    if config.tokenizer.chat_template is not None:
        documents["chat_template.jinja"] = config.tokenizer.chat_template.encode()
    return documents


def model_config(config: BundleConfig, dtype_name: str) -> dict[str, Any]:
    """Return the content of config.json."""
    fields = dict(config.architecture)
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        fields.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            fields.setdefault("rope_scaling", rope)
    return fields | _token_ids(config) | {"torch_dtype": dtype_name}


def _generation(config: BundleConfig) -> dict[str, Any]:
    return _token_ids(config) | {"do_sample": False}


def _token_ids(config: BundleConfig) -> dict[str, Any]:
    settings = config.tokenizer
    ends = settings.eos_token_ids
    ids: dict[str, Any] = {
        "bos_token_id": settings.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": settings.pad_token_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _tokenizer_settings(tokenizer: BundleTokenizer) -> dict[str, Any]:
    settings = tokenizer.settings
    ids = {
        "bos_token": settings.bos_token_id,
        "eos_token": next(iter(settings.eos_token_ids), None),
        "pad_token": settings.pad_token_id,
    }
    texts = {name: tokenizer.text_of(token) for name, token in ids.items() if token is not None}
    return {name: text for name, text in texts.items() if text is not None} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": settings.prepend_bos,
    }


def _tokenizer_json(bundle: Bundle, tokenizer: BundleTokenizer) -> str:
    """Return tokenizer.json so that transformers puts in front of a text what zo-device does."""
    stored = bundle.path(TOKENIZER_TITLE).read_text(encoding="utf-8")
    wanted = tokenizer.bos_ids + tokenizer.encode(_PROBE)
    fast = Tokenizer.from_str(stored)
    fast.no_padding()
    fast.no_truncation()
    if fast.encode(_PROBE).ids != wanted:
        begin = [(tokenizer.text_of(token) or "", token) for token in tokenizer.bos_ids]
        fast.post_processor = TemplateProcessing(
            single=" ".join([text for text, _ in begin] + ["$A"]), special_tokens=begin
        )
    return str(fast.to_str())


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
