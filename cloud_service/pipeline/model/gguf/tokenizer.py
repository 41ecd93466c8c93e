"""The tokenizer of a GGUF file, as the documents of a Hugging Face folder.

    gpt2     byte-level BPE: tokens and merges from the file, text split as ``tokenizer.ggml.pre`` says
    llama    SentencePiece's BPE: tokens from the file, merges from their scores, bytes for what is not a token

Built here, from the values of the checked header: transformers' own reader takes a minute and 0.6 GB for 49,152 tokens,
and which ways to split a text it knows depends on its version. A way that is not listed below would give other tokens
than the model was trained with, so it is refused by name. Knows nothing about files and weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from cloud_service.pipeline.model.gguf.header import GgufHeader, refusal
from cloud_service.pipeline.model.tokenizer_files import tokenizer_errors
from shared.model.text_splits import SPLITS, TextSplit

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Types of tokens, as GGUF numbers them."""

_LONGEST_PIECE = 512
_SPACE = "▁"


def tokenizer_documents(header: GgufHeader) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json and, where the file has one, chat_template.jinja.

    Raises:
        UnsupportedModel: The file has no tokenizer, one of a kind or with a way to split that is not known, or one that
            contradicts itself.
    """
    tokens = header.texts(f"{_PREFIX}tokens")
    if tokens is None:
        raise refusal(header.name, "has no tokenizer", "a file with the model's own tokenizer in it")
    kind = header.text(f"{_PREFIX}model")
    with tokenizer_errors(f"the tokenizer in {header.name}"):
        if kind == "gpt2":
            split = _split_of(header)
            tokenizer, adds_bos = _byte_level(header, tokens, split), split.adds_bos
        elif kind == "llama":
            tokenizer, adds_bos = _sentence_piece(header, tokens), True
        else:
            raise refusal(header.name, f"has a tokenizer of the kind {str(kind)[:40]!r}", "the kind 'gpt2' or 'llama'")
        tokenizer.add_tokens(list(_added_tokens(header, tokens)))
        special = _special_tokens(header, tokens)
        stated = header.pairs.get(f"{_PREFIX}add_bos_token")
        adds_bos = (stated if isinstance(stated, bool) else adds_bos) and special["bos_token"] is not None
        if adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="$bos $A".replace("$bos", str(special["bos_token"])),
                special_tokens=[(special["bos_token"], header.number(f"{_PREFIX}bos_token_id"))],
            )
        documents = {"tokenizer.json": tokenizer.to_str().encode()}
    settings: dict[str, Any] = {**special, "add_bos_token": adds_bos, "clean_up_tokenization_spaces": False}
    documents["tokenizer_config.json"] = json.dumps(settings, indent=1, sort_keys=True).encode()
    if (template := header.text("tokenizer.chat_template")) is not None:
        documents["chat_template.jinja"] = template.encode()
    return documents


def end_tokens(header: GgufHeader) -> list[int]:
    """Return the ids that end a text or a turn."""
    named = (header.number(f"{_PREFIX}{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in named if token is not None))


def _split_of(header: GgufHeader) -> TextSplit:
    name = header.text(f"{_PREFIX}pre")
    if name is None or name not in SPLITS:
        found = "does not say how texts are split" if name is None else f"splits texts as {name[:40]!r}"
        raise refusal(header.name, f"{found} (tokenizer.ggml.pre)", f"one of {', '.join(sorted(SPLITS))}")
    return SPLITS[name]


def _byte_level(header: GgufHeader, tokens: list[str], split: TextSplit) -> Tokenizer:
    parts = [merge.split(" ") for merge in header.texts(f"{_PREFIX}merges") or []]
    if strange := [merge for merge in parts if len(merge) != 2]:
        raise refusal(header.name, f"has the merge {' '.join(strange[0])[:80]!r}", "two tokens in each merge")
    merges = [(left, right) for left, right in parts]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.takes_whole_tokens)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    if split.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(header: GgufHeader, tokens: list[str]) -> Tokenizer:
    is_gemma = str(header.text("general.architecture")).startswith("gemma")
    if is_gemma:  # its files write tokens of several spaces as spaces
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    unknown = header.number(f"{_PREFIX}unknown_token_id")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Gemma's scores do not follow the order of its merges; the order of its tokens does.
    scores = [-float(index) for index in range(len(tokens))] if is_gemma else _scores(header, len(tokens))
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges_of_scores(header, vocabulary, scores),
        unk_token=_token_at(header, tokens, unknown),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    has_prefix = header.pairs.get(f"{_PREFIX}add_space_prefix", not is_gemma) is True
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if has_prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer


def _scores(header: GgufHeader, count: int) -> list[float]:
    scores = header.pairs.get(f"{_PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != count or any(isinstance(score, str) for score in scores):
        raise refusal(header.name, "does not have a score for every token", "the scores of a SentencePiece tokenizer")
    return [float(score) for score in scores]


def _merges_of_scores(header: GgufHeader, vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges by which the tokens arise from single characters: the best score first."""
    if (longest := max(map(len, vocabulary))) > _LONGEST_PIECE:
        raise refusal(header.name, f"has a token of {longest} characters", f"at most {_LONGEST_PIECE}")
    found = []
    for token, index in vocabulary.items():
        pairs = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[index], len(left), len(right), left, right) for left, right in known]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _added_tokens(header: GgufHeader, tokens: list[str]) -> Iterator[AddedToken]:
    """Yield the tokens that are found in a text before it is split; special ones are left out of decoded text."""
    types = header.pairs.get(f"{_PREFIX}token_type")
    for token, kind in zip(tokens, types if isinstance(types, list) else itertools.repeat(None, 0), strict=False):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token:
            yield AddedToken(token, normalized=False, special=kind != _USER_DEFINED)


def _special_tokens(header: GgufHeader, tokens: list[str]) -> dict[str, str | None]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: header.number(f"{_PREFIX}{key}_token_id") for name, key in keys.items()}
    return {name: _token_at(header, tokens, token_id) for name, token_id in ids.items()}


def _token_at(header: GgufHeader, tokens: list[str], token_id: int | None) -> str | None:
    if token_id is None:
        return None
    if not 0 <= token_id < len(tokens):
        raise refusal(header.name, f"names the special token {token_id}", f"one of its {len(tokens)} tokens")
    return tokens[token_id]
