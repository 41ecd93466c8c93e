"""How byte-level tokenizers cut a text before bytes are merged, by the names that GGUF files have for it.

A GGUF file says how by a name (``tokenizer.ggml.pre``) and tokenizer.json by a program of steps. What is not listed
here would give other tokens than the model was trained with. Knows nothing about vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PROBE = (
    "Hello World, it's WE'LL don't\tcan\u2019T  x=3.14159; a1b22c333d4444 ÄÖü naïve Ünïcode\n\n\n  \r\n end/\n//  "
    "日本語テキスト 한국어 \U0001f600\U0001f680 ...!!! ((a)) 12345 67 \u00bd \u0e2a\u0e27\u0e31\u0e2a camelCaseHTML   "
)
"""Every two ways of splitting that are listed below cut it differently."""


@dataclass(frozen=True, slots=True)
class TextSplit:
    """How a text is cut before bytes are merged.

    Attributes:
        expression: Each match is a piece; None cuts as GPT-2 does.
        cuts_digits: Whether every digit is a piece of its own.
        takes_whole_tokens: Whether a piece that is a token is not merged from bytes.
        adds_bos: Whether texts begin with BOS where a GGUF file does not say.
        is_composed: Whether characters are composed first (Unicode's NFC).
    """

    expression: str | None = None
    cuts_digits: bool = False
    takes_whole_tokens: bool = False
    adds_bos: bool = False
    is_composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return what cuts so."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.cuts_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.expression is not None:
            steps.append(pre_tokenizers.Split(Regex(self.expression), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.expression is None))
        return pre_tokenizers.Sequence(steps)


_LIKE_LLAMA3 = TextSplit(_LLAMA3, takes_whole_tokens=True, adds_bos=True)
SPLITS: Mapping[str, TextSplit] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), TextSplit()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), TextSplit(cuts_digits=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LIKE_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), TextSplit(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), TextSplit(_QWEN2, is_composed=True)),
    **dict.fromkeys(("gpt-4o", "llama4"), TextSplit(_GPT4O)),
    "tekken": TextSplit(_TEKKEN, takes_whole_tokens=True, adds_bos=True),
}
"""Value of ``tokenizer.ggml.pre`` → how llama.cpp splits for it; of several names of one way the usual one first."""


def split_name(tokenizer: Tokenizer, *, takes_whole_tokens: bool) -> str | None:
    """Return the GGUF name of the way in which a tokenizer cuts texts, or None where there is none.

    llama.cpp composes no characters, so that whether the tokenizer does is not asked.

    Args:
        tokenizer: From tokenizer.json.
        takes_whole_tokens: Whether its model ignores merges where a piece is a token.
    """
    if tokenizer.pre_tokenizer is None:
        return None
    normalizer = tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str(_PROBE) != normalizers.NFC().normalize_str(_PROBE):
        return None
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)
    for name, split in SPLITS.items():
        is_like = split.takes_whole_tokens == takes_whole_tokens
        if is_like and split.pre_tokenizer().pre_tokenize_str(_PROBE) == pieces:
            return name
    return None
