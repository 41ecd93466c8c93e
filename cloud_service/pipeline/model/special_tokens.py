"""Which tokens begin and end a text: gathered from every place where a model's makers may have stated them.

    begin   what the tokenizer itself puts before a text, if it is one token
    end     eos_token of the tokenizer · eos_token_id of generation_config.json, else of config.json · the token with
            which the chat template ends the assistant's turn; where nothing says anything, a token of a well-known name

The first end is the tokenizer's own: it is the one that is learnt. All of them stop a generation. Costs a few calls of
the tokenizer, and one rendering of the template. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from cloud_service.pipeline.model.weight_files import unsupported
from shared.errors import DataError
from shared.model.opening import ANSWER, QUESTION
from shared.model.tokenizer import BundleTokenizer

_FAMILIES_WITH_BOS = ("llama", "mistral", "gemma", "gemma2", "gemma3", "gemma3_text")
_BYTE_PIECE = "<0x0A>"
"""A token that sentence pieces have and vocabularies of bytes do not."""

_WELL_KNOWN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<|end_of_text|>", "<|endoftext|>",
                    "<eos>")  # fmt: skip


def token_id(tokenizer: Tokenizer, token: object) -> int | None:
    """Return the id of a token that a settings file names, as text or as an object with its ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def ids_of(value: object) -> list[int]:
    """Return the ids in a settings file's id or list of ids; what is not an id is left out."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if type(item) is int and 0 <= item < 1 << 31]


def beginning(
    tokenizer: Tokenizer, settings: Mapping[str, Any], architecture: Mapping[str, Any]
) -> tuple[bool, int | None]:
    """Return whether a text begins with the beginning-of-text token, and that token where there is one.

    Args:
        tokenizer: As transformers reads it.
        settings: The content of tokenizer_config.json.
        architecture: The model's safe configuration.

    Raises:
        UnsupportedModel: The tokenizer puts more than one token before a text.
    """
    named = token_id(tokenizer, settings.get("bos_token"))
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    added = next((whole[:start] for start in range(len(whole)) if whole[start : start + len(plain)] == plain), [])
    if len(added) > 1:
        raise unsupported(f"the tokenizer puts {len(added)} tokens before each text", "one at most")
    if added:
        return True, added[0]
    family = architecture["model_type"] in _FAMILIES_WITH_BOS
    bos = named if named is not None or not family else next(iter(ids_of(architecture.get("bos_token_id"))), None)
    # Sentence pieces of these families were trained with it; their own library adds it, and no file needs to say so.
    is_understood = family and tokenizer.post_processor is None and tokenizer.token_to_id(_BYTE_PIECE) is not None
    stated = settings.get("add_bos_token")
    return bos is not None and (stated if isinstance(stated, bool) else is_understood), bos


def endings(
    tokenizer: Tokenizer, settings: Mapping[str, Any], architecture: Mapping[str, Any], generation: Mapping[str, Any]
) -> list[int]:
    """Return the tokens that end a text as the model's files state them, the tokenizer's own first.

    Args:
        tokenizer: As transformers reads it.
        settings: The content of tokenizer_config.json.
        architecture: The model's safe configuration.
        generation: The content of generation_config.json.
    """
    own = token_id(tokenizer, settings.get("eos_token"))
    stated = ids_of(generation.get("eos_token_id")) or ids_of(architecture.get("eos_token_id"))
    return list(dict.fromkeys(([] if own is None else [own]) + stated))


def turn_ending(tokenizer: BundleTokenizer) -> int | None:
    """Return the token with which the chat template ends the assistant's turn, or None where it is ordinary text.

    Raises:
        UnsupportedModel: The template fails.
    """
    if tokenizer.settings.chat_template is None:
        return None
    try:
        text = tokenizer.apply_chat_template([QUESTION, ANSWER], add_generation_prompt=False)
    except DataError:  # check_conversations says what is wrong
        return None
    _, has_answer, after = text.rpartition(ANSWER["content"])
    first = next(iter(tokenizer.encode(after.lstrip())), None) if has_answer else None
    return first if first is not None and tokenizer.is_added(first) else None


def well_known_ending(tokenizer: Tokenizer) -> int | None:
    """Return an end that has no other sign than its name, for a model that states none."""
    added = {str(token): number for number, token in tokenizer.get_added_tokens_decoder().items()}
    return next((added[name] for name in _WELL_KNOWN_ENDS if name in added), None)
