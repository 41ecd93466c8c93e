"""The tokenizer as devices will use it: tokenizer.json with no special token added, and one rule about BOS.

    tokens(text) = [bos] · prepend_bos + encode(text, add_special_tokens=False)

``prepend_bos`` holds where the tokenizer has a BOS token and either adds it itself, or the family (llama, mistral) was
pretrained with it, unless tokenizer_config.json says ``add_bos_token: false``. Cloud and device tokenise by this
one rule, so that calibration, perplexity and tuning see the same tokens. Knows nothing about models' weights.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cloud_service.contained_folder import MAX_DOCUMENT_BYTES, MAX_JSON_BYTES, ContainedFolder
from cloud_service.pipeline.model.tokenizer_bounds import check_token, check_tokenizer, id_limit
from cloud_service.pipeline.model.weight_files import parse_object, read_json, unsupported
from shared.bundle.manifest import TokenizerSettings
from shared.errors import UnsupportedModel, ZoError

_FAMILIES_WITH_BOS = ("llama", "mistral")
_MAX_TEMPLATE_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Turns text into token ids.

    Attributes:
        tokenizer: The tokenizer of tokenizer.json, without truncation and padding.
        settings: What else a client must know.
        vocabulary: Number of tokens that the model has; None where it is not known. A tokenizer may have more.
    """

    tokenizer: Tokenizer
    settings: TokenizerSettings
    vocabulary: int | None = None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text`` without any special token.

        Raises:
            UnsupportedModel: The tokenizer fails, or gives a token that the model does not have.
        """
        with tokenizer_errors("the tokenizer fails at a text"):
            ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise _beyond_vocabulary(f"tokenizer.json gives the text token {max(ids)}", self.vocabulary)
        return ids

    @property
    def bos(self) -> list[int]:
        """What every text starts with: [bos_token_id] or nothing."""
        token = self.settings.bos_token_id
        return [token] if self.settings.prepend_bos and token is not None else []

    def to_json(self) -> bytes:
        """Return the tokenizer.json to publish."""
        return str(self.tokenizer.to_str()).encode()


@contextmanager
def tokenizer_errors(found: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into ``UnsupportedModel``; ``found`` says where."""
    try:
        yield
    except BaseException as error:
        # The library raises bare Exception, and where it panics something that is not even an Exception.
        is_failure = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if isinstance(error, ZoError) or not is_failure:
            raise
        raise unsupported(f"{found}: {str(error)[:200]}", "a tokenizer that the tokenizers library reads") from error


def load_encoder(folder: Path, architecture: dict[str, Any], context_length: int) -> TextEncoder:
    """Return the encoder of the checkpoint in ``folder``.

    Raises:
        UnsupportedModel: There is no tokenizer that can be read without running code, it would take memory or time out
            of proportion, or texts would begin or end with a token that the model does not have.
    """
    files = ContainedFolder(folder)
    vocabulary: int | None = architecture.get("vocab_size")
    tokenizer = _read_tokenizer(files, vocabulary)
    settings = _optional_json(files, "special_tokens_map.json") | _optional_json(files, "tokenizer_config.json")
    generation = {**architecture, **_optional_json(files, "generation_config.json")}
    bos = _token_id(tokenizer, settings.get("bos_token"))
    if bos is None and architecture["model_type"] in _FAMILIES_WITH_BOS:
        bos = _first_id(architecture.get("bos_token_id"))
    pad = _token_id(tokenizer, settings.get("pad_token"))
    ends = _ids(generation.get("eos_token_id"))
    with tokenizer_errors("the tokenizer fails at a text"):
        prepends = bos is not None and _prepends_bos(tokenizer, bos, settings, architecture["model_type"])
    if vocabulary is not None and (beyond := [token for token in (bos, *ends) if (token or 0) >= vocabulary]):
        raise _beyond_vocabulary(f"texts begin or end with token {beyond[0]}", vocabulary)
    return TextEncoder(
        tokenizer,
        TokenizerSettings(
            prepend_bos=prepends,
            bos_token_id=bos,
            eos_token_ids=ends,
            pad_token_id=pad if pad is not None else _first_id(generation.get("pad_token_id")),
            context_length=context_length,
            chat_template=_chat_template(files, settings),
        ),
        vocabulary,
    )


def _beyond_vocabulary(found: str, vocabulary: int) -> UnsupportedModel:
    return unsupported(f"{found}, and the model has {vocabulary}", "the model's own tokenizer")


def _read_tokenizer(folder: ContainedFolder, vocabulary: int | None) -> Tokenizer:
    if folder.has("tokenizer.json"):
        data = folder.read("tokenizer.json", max_bytes=MAX_JSON_BYTES)
        check_tokenizer(parse_object(data, "tokenizer.json", has_unique_keys=True), vocabulary)
        with tokenizer_errors("tokenizer.json cannot be read"):
            tokenizer = Tokenizer.from_buffer(data)
    elif folder.has("merges.txt") and folder.has("vocab.json"):
        tokenizer = _byte_level_bpe(folder, vocabulary)
    else:
        raise UnsupportedModel(
            "there is no tokenizer.json (nor vocab.json with merges.txt)",
            needed="a fast tokenizer",
            next_step="AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            param="model",
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_level_bpe(folder: ContainedFolder, size: int | None) -> Tokenizer:
    """Return GPT-2's kind of tokenizer, which OPT ships without a tokenizer.json."""
    vocabulary = read_json(folder, "vocab.json")
    for text, token_id in vocabulary.items():
        check_token(text, token_id, id_limit(size))
    merges = _read_merges(folder)
    with tokenizer_errors("vocab.json and merges.txt make no tokenizer"):
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_merges(folder: ContainedFolder) -> list[tuple[str, str]]:
    try:
        text = folder.read("merges.txt", max_bytes=MAX_JSON_BYTES).decode()
    except UnicodeDecodeError as error:
        raise unsupported(f"merges.txt is not UTF-8: {error.reason}", "UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    pairs = [line.split(" ") for line in lines if not line.startswith("#version")]
    if strange := [pair for pair in pairs if len(pair) != 2]:
        raise unsupported(f"merges.txt has the line {' '.join(strange[0])[:80]!r}", "two tokens in each line")
    return [(first, second) for first, second in pairs]


def _prepends_bos(tokenizer: Tokenizer, bos: int, settings: dict[str, Any], model_type: str) -> bool:
    if tokenizer.encode("a", add_special_tokens=True).ids[:1] == [bos]:
        return True
    stated = settings.get("add_bos_token")
    return bool(stated) if isinstance(stated, bool) else model_type in _FAMILIES_WITH_BOS


def _token_id(tokenizer: Tokenizer, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _ids(value: object) -> list[int]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if type(item) is int and 0 <= item < 1 << 31]


def _first_id(value: object) -> int | None:
    return next(iter(_ids(value)), None)


def _chat_template(folder: ContainedFolder, settings: dict[str, Any]) -> str | None:
    name = "chat_template.jinja"
    template = _read_template(folder, name) if folder.has(name) else settings.get("chat_template")
    return template if isinstance(template, str) and len(template) <= _MAX_TEMPLATE_CHARACTERS else None


def _read_template(folder: ContainedFolder, name: str) -> str:
    try:
        data = folder.read(name, max_bytes=MAX_DOCUMENT_BYTES)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise unsupported(f"{name} is not UTF-8: {error.reason}", "UTF-8") from error


def _optional_json(folder: ContainedFolder, name: str) -> dict[str, Any]:
    return read_json(folder, name) if folder.has(name) else {}
