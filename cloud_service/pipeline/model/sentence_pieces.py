"""A tokenizer.model of SentencePiece: whether it can be converted here, and whether the conversion is right.

transformers makes a fast tokenizer of it, by rules of the family; a family's rules may not be this model's. So the two
are compared on a few texts before anything is built on the result. Needs the packages sentencepiece and protobuf,
which are not among the product's own. Costs a few milliseconds. Knows nothing about files.
"""

from __future__ import annotations

import importlib
import importlib.util

from tokenizers import Tokenizer

from shared.errors import UnsupportedModel

_PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
_PROBES = (
    "Once upon a time, there was 1 girl named Lily; she was 12.",
    "Grüße, 世界 🙂",
    "def f(x):\n    return x**2",
)


def check_convertible(model: bytes) -> None:
    """Refuse what cannot be converted here: packages are missing, or it is something else than sentence pieces.

    Args:
        model: The content of tokenizer.model.

    Raises:
        UnsupportedModel: It cannot.
    """
    if missing := [name for name, module in _PACKAGES.items() if not _is_installed(module)]:
        raise UnsupportedModel(
            f"there is only tokenizer.model, and {' and '.join(missing)} is not installed here",
            needed="a fast tokenizer, or the packages that make one of sentence pieces",
            next_step="where the model was made: AutoTokenizer.from_pretrained(folder).save_pretrained(folder); "
            f"or here: pip install {' '.join(missing)}",
            param="model",
        )
    try:
        importlib.import_module("sentencepiece").SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:  # what the library raises of whatever it cannot parse
        raise UnsupportedModel(
            f"tokenizer.model ({len(model):,} bytes) holds no sentence pieces",
            needed="a fast tokenizer: tokenizer.json",
            next_step="where the model was made: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            param="model",
        ) from error


def check_conversion(tokenizer: Tokenizer, model: bytes) -> None:
    """Refuse a fast tokenizer that gives other tokens than the sentence pieces it was made of.

    Args:
        tokenizer: The result.
        model: The content of tokenizer.model.

    Raises:
        UnsupportedModel: It does.
    """
    original = importlib.import_module("sentencepiece").SentencePieceProcessor(model_proto=model)
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != original.encode(text):
            raise UnsupportedModel(
                f"tokenizer.model: the conversion of this family gives other tokens for {text!r}",
                needed="a tokenizer.json that its makers have saved",
                next_step="where the model was made: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
                param="model",
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False
