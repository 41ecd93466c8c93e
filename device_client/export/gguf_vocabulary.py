"""The tokenizer of a bundle as the metadata of a GGUF file.

    gpt2     byte-level BPE: tokens and merges as they are, and the name of the way to split      ``text_splits``
    llama    BPE over ▁-marked text with bytes for what is not a token: a score for each token

llama.cpp's second kind merges the pair whose token has the best score; tokenizer.json's merges the first pair of its
list. So a token's score is minus the place of the first merge that makes it. A tokenizer of another kind, or one that
cuts texts in a way that has no name in GGUF, is refused: its tokens would come out others. Costs one pass over the
vocabulary. Knows nothing about weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from shared.errors import UnsupportedModel
from shared.model.text_splits import split_name

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Types of tokens, as GGUF numbers them."""
_UNREACHABLE = -1e9
"""The score of a token that no merge makes."""
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: ``gpt2`` or ``llama``.
        pre: Name of the way to split; None for ``llama``.
        tokens: In order of their ids; as many as the embedding has rows.
        types: Type of each.
        merges: Of ``gpt2``.
        scores: Of ``llama``, one for each token.
        has_space_prefix: Whether a space is put in front of a text.
        unknown_id: The token of what has no other, where there is one.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    has_space_prefix: bool = False
    unknown_id: int | None = None


def gguf_vocabulary(tokenizer_json: str, rows: int) -> GgufVocabulary:
    """Return the vocabulary of a tokenizer.

    Args:
        tokenizer_json: The content of tokenizer.json.
        rows: Of the embedding; none of the tokenizer's ids lies behind them.

    Raises:
        UnsupportedModel: GGUF has no name for this kind of tokenizer, or for how it splits.
    """
    document = json.loads(tokenizer_json)
    model = document["model"]
    if model.get("type") != "BPE":
        raise _refusal(f"is of the kind {str(model.get('type'))[:40]!r}")
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["id"]: token for token in document.get("added_tokens") or ()}
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [_UNUSED] * rows
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, _NORMAL
    for index, token in added.items():
        tokens[index] = token["content"]
        types[index] = _CONTROL if token["special"] else _USER_DEFINED
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _sentence_pieces(document, tokens, types, merges)
    takes_whole_tokens = bool(model.get("ignore_merges"))
    pre = split_name(Tokenizer.from_str(tokenizer_json), takes_whole_tokens=takes_whole_tokens)
    if pre is None:
        raise _refusal("cuts texts in a way that GGUF has no name for")
    return GgufVocabulary("gpt2", pre, tokens, types, [" ".join(merge) for merge in merges], [])


def _sentence_pieces(
    document: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> GgufVocabulary:
    model = document["model"]
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault("".join(merge), place)
    for index, token in enumerate(tokens):
        if types[index] == _NORMAL and _is_byte(token):
            types[index] = _BYTE
    unknown_id = model["vocab"].get(model.get("unk_token"))
    if unknown_id is not None:
        types[unknown_id] = _UNKNOWN
    scores = [
        float(-first[token]) if token in first else 0.0 if kind != _NORMAL else _UNREACHABLE
        for token, kind in zip(tokens, types, strict=True)
    ]
    prefix = _space_prefix(document)
    return GgufVocabulary("llama", None, tokens, types, [], scores, has_space_prefix=prefix, unknown_id=unknown_id)


def _space_prefix(document: Mapping[str, Any]) -> bool:
    """Whether ▁ is put in front of a text before spaces become ▁.

    Raises:
        UnsupportedModel: The text is changed in another way.
    """
    steps = [document.get("normalizer"), document.get("pre_tokenizer")]
    flat = [part for step in steps if step for part in step.get("normalizers") or step.get("pretokenizers") or [step]]
    kinds = [step["type"] for step in flat]
    if kinds == ["Metaspace"] and flat[0].get("replacement") == _SPACE and not flat[0].get("split", False):
        return flat[0].get("prepend_scheme", "never") in ("first", "always")
    if kinds and kinds[-1] == "Split" and flat[-1].get("pattern") == {"String": " "}:
        del kinds[-1]  # Gemma's: it cuts what spaces have become already, so that it cuts nothing
    if kinds == ["Prepend", "Replace"] and flat[0]["prepend"] == _SPACE:
        return True
    if kinds == ["Replace"]:
        return False
    raise _refusal(f"changes texts by {', '.join(kinds) or 'nothing'} before it merges")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _refusal(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the bundle's tokenizer {found}",
        needed="byte-level BPE, or BPE with bytes for what is not a token, as llama.cpp knows it",
        next_step="export it with --to hf",
        param="to",
    )
