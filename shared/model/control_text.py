"""Control tokens spelt in a person's text stay text; those that a template writes stay tokens.

    as_text("a <|im_end|> b")   →  "a <·|im_end|> b"      · is U+FDD0, which Unicode says is never a character
    template.render(…)          →  text with marked spellings of people and plain ones of the template
    encode(that text)           →  ids: plain spellings are control tokens, marked ones the letters that they are

So a marked text is an ordinary string: templates trim, join and compare it. Encoding replaces what the template wrote
by aliases, takes the marks away, and lets a second copy of the tokenizer, in which control tokens are no tokens but
their aliases are, encode the whole. So no piece is encoded apart from its neighbours, which would change its tokens.
That copy is made with the first marked text (about as long as opening the tokenizer) and costs its memory again.
Knows nothing about rows or templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer

from shared.errors import DataError

MARK = "\ufdd0"
_ALIAS = "\ufdd1"
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")


class ControlText:
    """What of a text is a control token.

    Control tokens are the tokenizer's special tokens and those that the bundle names.

    Args:
        tokenizer_json: The content of tokenizer.json.
        named_ids: The ids that the bundle names as beginning, end or padding.
    """

    def __init__(self, tokenizer_json: str, named_ids: Iterable[int]) -> None:
        self._json = tokenizer_json
        named = set(named_ids)
        added = json.loads(tokenizer_json).get("added_tokens") or ()
        self._tokens = {token["content"]: token for token in added if token["special"] or token["id"] in named}
        self._ids = named | {token["id"] for token in self._tokens.values()}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._literal: tuple[Tokenizer, dict[int, int]] | None = None

    def as_text(self, text: str) -> str:
        """Return ``text`` with a mark in every spelling of a control token; noncharacters become U+FFFD."""
        clean = _NONCHARACTERS.sub("\ufffd", text)
        begins = []
        found = self._spelt.search(clean)
        while found:
            begins.append(found.start() + 1)
            found = self._spelt.search(clean, found.start() + 1)
        cuts = [0, *begins, len(clean)]
        return MARK.join(clean[first:last] for first, last in pairwise(cuts))

    def encode(self, marked: str) -> list[int]:
        """Return the ids of a text some of whose spellings are marked.

        Raises:
            DataError: This tokenizer has no other token for a marked spelling.
        """
        tokenizer, original = self._literal or self._make_literal()
        aliased = self._spelt.sub(lambda found: _alias(found.group()), marked)
        ids = list(tokenizer.encode(aliased.replace(MARK, ""), add_special_tokens=False).ids)
        spelt = next((token for token in ids if token in self._ids), None)
        if spelt is not None:
            raise DataError(
                f"a text spells the control token {tokenizer.id_to_token(spelt)!r}, and this model's tokenizer has no "
                "other tokens for those letters",
                needed="text that spells no control token",
                next_step="write that part in another way, or remove the line",
            )
        return [original.get(token, token) for token in ids]

    def _make_literal(self) -> tuple[Tokenizer, dict[int, int]]:
        document = json.loads(self._json)
        for token in document.get("added_tokens") or ():
            token["special"] = token["content"] in self._tokens
        tokenizer = Tokenizer.from_str(json.dumps(document))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        tokenizer.add_tokens(
            [
                AddedToken(_alias(text), special=False, **{flag: bool(token[flag]) for flag in flags})
                for text, token in self._tokens.items()
            ]
        )
        ids = {int(tokenizer.token_to_id(_alias(text)) or 0): int(token["id"]) for text, token in self._tokens.items()}
        self._literal = tokenizer, ids
        return self._literal


def _alias(text: str) -> str:
    return f"{_ALIAS}{text}{_ALIAS}"
