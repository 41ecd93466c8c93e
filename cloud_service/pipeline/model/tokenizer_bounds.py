"""Looks through a tokenizer.json before it is built: what its ids would allocate, how often its steps double a text.

    ids       < max(2 · V, V + 65,536)
    growth    Π over steps (characters out / characters in) ≤ 64
    steps     ≤ 64 of each kind, nested ≤ 8 deep; the forms of Unicode and the like at most once

Symbol: V vocabulary of the model. The library's tables have a place for every id below the largest: a tokenizer of
541 KB with the id 4,294,967,290 takes 8.7 GiB. Forty steps that each double a text never end. Real tokenizers have a
few tokens more than their model (padding, tokens added later) and a growth of 1 to 16. Imports neither torch nor
tokenizers. Knows nothing about files.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from cloud_service.pipeline.model.weight_files import unsupported
from shared.errors import UnsupportedModel

_UNKNOWN_VOCABULARY = 1 << 20
_SPARE_IDS = 65_536
_MAX_TOKEN_CHARACTERS = 4096
_MERGES_PER_ID = 8
_MAX_STEPS = 64
_MAX_DEPTH = 8
_MAX_GROWTH = 64
_MAX_REPLACED_CHARACTERS = 32
_STEP_KINDS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""Name of a kind of step → name of the list of steps in a sequence of that kind."""

_BYTE_LEVEL_GROWTH = 4
_ONCE = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "BertNormalizer", "Lowercase", "StripAccents"})
"""Steps that may make several characters of one; a second time they have nothing left to do in a real tokenizer."""


def check_tokenizer(document: Mapping[str, Any], vocabulary: int | None) -> None:
    """Refuse a tokenizer.json that would take memory or time out of proportion.

    Args:
        document: Its content.
        vocabulary: Number V of tokens that the model has; None where it is not known.

    Raises:
        UnsupportedModel: A number, a length or a step is beyond its bound; the message names both.
    """
    limit = id_limit(vocabulary)
    _check_model(document.get("model"), limit)
    added = document.get("added_tokens") or []
    for token in _list_of(added, "added_tokens", limit):
        if not isinstance(token, dict):
            raise _refusal(f"an added token is {type(token).__name__}", "an object")
        check_token(token.get("content"), token.get("id"), limit)
    for kind in _STEP_KINDS:
        _check_steps(kind, document.get(kind))
    _check_template(document.get("post_processor"), limit)


def id_limit(vocabulary: int | None) -> int:
    """Return what every token id must be below."""
    size = _UNKNOWN_VOCABULARY if vocabulary is None else vocabulary
    return max(2 * size, size + _SPARE_IDS)


def check_token(text: object, token_id: object, limit: int) -> None:
    """Refuse a token that is not text, is too long, or whose id is not below ``limit``.

    Raises:
        UnsupportedModel: It is.
    """
    if not isinstance(text, str) or len(text) > _MAX_TOKEN_CHARACTERS:
        raise _refusal(f"a token is {str(text)[:40]!r}…", f"text of at most {_MAX_TOKEN_CHARACTERS} characters")
    if type(token_id) is not int or not 0 <= token_id < limit:
        raise _refusal(f"token {text[:40]!r} has the id {str(token_id)[:40]}", f"ids below {limit}")


def _check_model(model: object, limit: int) -> None:
    if not isinstance(model, dict):
        raise _refusal("there is no model", "a tokenizer that AutoTokenizer has saved")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: [token, score], and the place is the id
        for place, entry in enumerate(_list_of(vocabulary, "vocab", limit)):
            check_token(entry[0] if isinstance(entry, list) and entry else entry, place, limit)
    elif isinstance(vocabulary, dict):
        for text, token_id in vocabulary.items():
            check_token(text, token_id, limit)
    else:
        raise _refusal(f"vocab is {type(vocabulary).__name__}", "an object or a list")
    for merge in _list_of(model.get("merges") or [], "merges", _MERGES_PER_ID * limit):
        if not isinstance(merge, str | list) or len(merge) > 2 * _MAX_TOKEN_CHARACTERS + 1:
            raise _refusal(f"a merge is {str(merge)[:40]!r}", "two tokens")


def _check_steps(kind: str, root: object) -> None:
    steps = list(_steps(root, _STEP_KINDS[kind]))
    names = [step.get("type") for step in steps]
    if twice := [name for name in _ONCE if names.count(name) > 1]:
        raise _refusal(f"the {kind} has the step {twice[0]} {names.count(twice[0])} times", "it once")
    growth = 1.0
    for step in steps:
        growth *= _growth(kind, step)
    if growth > _MAX_GROWTH:
        raise _refusal(f"the {kind} can make a text {growth:.3g} times as long", f"at most {_MAX_GROWTH} times")


def _steps(root: object, list_name: str) -> Iterator[dict[str, Any]]:
    """Yield all steps, those in sequences too."""
    waiting: list[tuple[object, int]] = [(root, 0)]
    seen = 0
    while waiting:
        step, depth = waiting.pop()
        if step is None:
            continue
        seen += 1
        if not isinstance(step, dict) or seen > _MAX_STEPS or depth > _MAX_DEPTH:
            raise _refusal(
                f"{list_name} are not objects, more than {_MAX_STEPS}, or nested deeper than {_MAX_DEPTH}",
                "the steps that tokenizers of this family have",
            )
        if not isinstance(step.get("type"), str):  # the library then guesses the type from the other keys
            raise _refusal(f"one of the {list_name} has no type", "a tokenizer that AutoTokenizer has saved")
        yield step
        inner = step.get(list_name) or []
        waiting += [(each, depth + 1) for each in _list_of(inner, list_name, _MAX_STEPS)]


def _growth(kind: str, step: Mapping[str, Any]) -> float:
    """Return how many times as long a step can make a text."""
    match step.get("type"):
        case "Replace":
            return _growth_of_replacement(step)
        case "ByteLevel" if kind in ("normalizer", "pre_tokenizer"):
            return _BYTE_LEVEL_GROWTH
        case "Prepend":
            check_token(step.get("prepend"), 0, 1)
        case "Precompiled":
            _check_character_map(step.get("precompiled_charsmap"))
    return 1.0


def _growth_of_replacement(step: Mapping[str, Any]) -> float:
    pattern, content = step.get("pattern"), step.get("content")
    text = pattern.get("String", pattern.get("Regex")) if isinstance(pattern, dict) else pattern
    for each in (text, content):
        check_token(each, 0, 1)
    is_literal = isinstance(pattern, dict) and "String" in pattern and bool(text)
    # An expression may match in front of every character, without taking any away.
    return max(1.0, len(str(content)) / len(str(text))) if is_literal else 1.0 + len(str(content))


def _check_character_map(encoded: object) -> None:
    """Refuse a map that makes a long text of one character.

    Its layout: 4 bytes of size, an index of that size, and then texts that end in a zero.
    """
    try:
        data = base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal("precompiled_charsmap is not base64", "a map of characters") from error
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    longest = max(len(text.decode("utf-8", errors="replace")) for text in texts)
    if longest > _MAX_REPLACED_CHARACTERS:
        raise _refusal(
            f"precompiled_charsmap replaces a character by {longest} characters",
            f"at most {_MAX_REPLACED_CHARACTERS}",
        )


def _check_template(root: object, limit: int) -> None:
    for step in _steps(root, _STEP_KINDS["post_processor"]):
        for name in ("single", "pair"):
            _list_of(step.get(name) or [], name, _MAX_STEPS)
        special = step.get("special_tokens")
        for token in special.values() if isinstance(special, dict) else ():
            ids = token.get("ids") if isinstance(token, dict) else None
            for token_id in _list_of(ids or [], "ids", _MAX_STEPS):
                check_token("", token_id, limit)


def _list_of(value: object, name: str, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        size = len(value) if isinstance(value, list) else type(value).__name__
        raise _refusal(f"{name} has {size} entries", f"a list of at most {longest}")
    return value


def _refusal(found: str, needed: str) -> UnsupportedModel:
    return unsupported(f"tokenizer.json: {found}", needed)
