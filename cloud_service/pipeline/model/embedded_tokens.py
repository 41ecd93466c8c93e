"""Tokens that a tokenizer knows and its model does not: no row of the embedding is theirs.

    an added token         left out: its text is then ordinary text, and no device meets the id
    one that is needed     refused: it begins or ends texts, or the chat template writes it
    one of the vocabulary  refused: the tokenizer is another model's

A padding token that was added without resizing the embedding is the usual case; transformers fails at it only when a
text has it. Costs writing and reading the tokenizer once, where there is such a token. Knows nothing about files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer

from shared.errors import UnsupportedModel


def check_has_row(needed: Sequence[int | None], vocabulary: int) -> None:
    """Refuse a token that begins or ends texts and has no row.

    Args:
        needed: Ids of such tokens.
        vocabulary: Number V of rows.

    Raises:
        UnsupportedModel: There is one.
    """
    for token in needed:
        if token is not None and token >= vocabulary:
            raise _rowless(f"texts begin or end with token {token}", vocabulary)


def without_rowless_tokens(
    tokenizer: Tokenizer, vocabulary: int, chat_template: str | None
) -> tuple[Tokenizer, tuple[str, ...]]:
    """Return the tokenizer without the added tokens that have no row, and their texts.

    Args:
        tokenizer: Any tokenizer.
        vocabulary: Number V of rows.
        chat_template: The model's template, where there is one.

    Raises:
        UnsupportedModel: A token of the vocabulary itself has no row, or the template writes one that has none.
    """
    for text, token in tokenizer.get_vocab(with_added_tokens=False).items():
        if token >= vocabulary:
            raise _rowless(f"the tokenizer's vocabulary has token {token}, {text[:40]!r}", vocabulary)
    added = {number: str(token) for number, token in tokenizer.get_added_tokens_decoder().items()}
    rowless = {number: text for number, text in sorted(added.items()) if number >= vocabulary}
    for number, text in rowless.items():
        if chat_template is not None and text in chat_template:
            raise _rowless(f"the chat template writes {text!r}, token {number}", vocabulary)
    if not rowless:
        return tokenizer, ()
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] not in rowless]
    return Tokenizer.from_str(json.dumps(document, ensure_ascii=False)), tuple(rowless.values())


def _rowless(found: str, vocabulary: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"{found}, and the model has {vocabulary}",
        needed=f"a model with a row for each of its tokens: ids below {vocabulary}",
        next_step="where the model was made: model.resize_token_embeddings(len(tokenizer)) and save both; or take the "
        "token out of the tokenizer",
        param="model",
    )
