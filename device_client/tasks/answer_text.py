"""How close a written answer comes to the one that was wanted: SQuAD's exact match and F1.

    normalised   lower case, no punctuation, no articles, single spaces
    exact match  1 where both are the same, else 0
    F1           2·P·R / (P + R) of their words, each counted as often as it stands in both; of two texts without words
                 1 where both have none, else 0

Reference: Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, and its published evaluation script.
"""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return the text without what makes no difference."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, wanted: str) -> float:
    """Return 1 or 0."""
    return float(normalised(answer) == normalised(wanted))


def f1(answer: str, wanted: str) -> float:
    """Return 0 … 1."""
    said, meant = normalised(answer).split(), normalised(wanted).split()
    if not said or not meant:
        return float(said == meant)
    shared = sum((Counter(said) & Counter(meant)).values())
    return 2 * shared / (len(said) + len(meant))
