"""Reads the tokenizer of a checkpoint as transformers reads it, from whatever files it is kept in.

    tokenizer.json            taken as it is; tokens that tokenizer_config.json adds are added
    vocab.json + merges.txt   made into a fast tokenizer by the class of the family
    tokenizer.model           the same, where the package sentencepiece is installed

transformers never sees the foreign folder. It gets a folder of its own, with copies of these files after a look at
their bounds, and with settings reduced to the ones that are listed here: no class of the model's own, no path, no
code. What comes out is looked through once more. Costs about what AutoTokenizer costs. Knows nothing about weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cloud_service.contained_folder import MAX_JSON_BYTES, ContainedFolder
from cloud_service.pipeline.model.sentence_pieces import check_conversion, check_convertible
from cloud_service.pipeline.model.tokenizer_bounds import check_token, check_tokenizer, id_limit
from cloud_service.pipeline.model.weight_files import parse_object, read_json, unsupported
from shared.errors import UnsupportedModel, ZoError

_JSON = "tokenizer.json"
_SENTENCE_PIECES = "tokenizer.model"
_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
)  # fmt: skip
_KEPT_SETTINGS = (
    *_SPECIAL_TOKENS, "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "add_bos_token",
    "add_eos_token", "add_prefix_space", "legacy", "tokenizer_class",
)  # fmt: skip
_CLASSES_FOR_PIECES = {"llama": "LlamaTokenizer", "mistral": "LlamaTokenizer"}
"""Which class makes a tokenizer of a family's sentence pieces; of others AutoTokenizer knows."""


def tokenizer_settings(folder: ContainedFolder) -> dict[str, Any]:
    """Return what tokenizer_config.json says, completed by special_tokens_map.json.

    Raises:
        UnsupportedModel: One of them is not a JSON object.
    """
    stated = {key: value for key, value in optional_json(folder, "tokenizer_config.json").items() if value is not None}
    return optional_json(folder, "special_tokens_map.json") | stated


def read_tokenizer(folder: ContainedFolder, architecture: Mapping[str, Any], settings: Mapping[str, Any]) -> Tokenizer:
    """Return the checkpoint's tokenizer, without truncation and padding.

    Args:
        folder: The checkpoint.
        architecture: Its safe configuration; ``vocab_size`` bounds the ids where it is stated.
        settings: From ``tokenizer_settings``.

    Raises:
        UnsupportedModel: There is no tokenizer that can be read without running code, or it would take memory or time
            out of proportion.
    """
    vocabulary: int | None = architecture.get("vocab_size")
    files = _tokenizer_files(folder, vocabulary)
    kept = {key: _marked(settings[key]) for key in _KEPT_SETTINGS if key in settings}
    _check_added(kept, optional_json(folder, "added_tokens.json"), id_limit(vocabulary))
    files |= {
        "tokenizer_config.json": json.dumps(kept).encode(),
        "config.json": json.dumps(dict(architecture)).encode(),
    }
    if folder.has("added_tokens.json"):
        files["added_tokens.json"] = folder.read("added_tokens.json", max_bytes=MAX_JSON_BYTES)
    tokenizer = _read_by_transformers(files, architecture["model_type"])
    if _SENTENCE_PIECES in files:
        with tokenizer_errors(f"{_SENTENCE_PIECES} cannot be read"):
            check_conversion(tokenizer, files[_SENTENCE_PIECES])
    if "add_bos_token" not in kept and _is_silent(files):
        tokenizer.post_processor = None  # transformers has put one there that adds nothing
    check_tokenizer(json.loads(tokenizer.to_str()), vocabulary)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def optional_json(folder: ContainedFolder, name: str) -> dict[str, Any]:
    """Return a JSON object of the checkpoint, empty where there is no such file.

    Raises:
        UnsupportedModel: It is not a JSON object.
    """
    return read_json(folder, name) if folder.has(name) else {}


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


def _tokenizer_files(folder: ContainedFolder, vocabulary: int | None) -> dict[str, bytes]:
    """Return the content of the files that make the tokenizer, by name, after a look at their bounds."""
    if folder.has(_JSON):
        data = folder.read(_JSON, max_bytes=MAX_JSON_BYTES)
        check_tokenizer(parse_object(data, _JSON, has_unique_keys=True), vocabulary)
        return {_JSON: data}
    if folder.has("vocab.json") and folder.has("merges.txt"):
        for text, token_id in read_json(folder, "vocab.json").items():
            check_token(text, token_id, id_limit(vocabulary))
        merges = folder.read("merges.txt", max_bytes=MAX_JSON_BYTES)
        _check_merges(merges)
        return {"vocab.json": folder.read("vocab.json", max_bytes=MAX_JSON_BYTES), "merges.txt": merges}
    if not folder.has(_SENTENCE_PIECES):
        raise UnsupportedModel(
            "there is no tokenizer.json (nor vocab.json with merges.txt, nor tokenizer.model)",
            needed="a fast tokenizer",
            next_step="where the model was made: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            param="model",
        )
    model = folder.read(_SENTENCE_PIECES, max_bytes=MAX_JSON_BYTES)
    check_convertible(model)
    return {_SENTENCE_PIECES: model}


def _read_by_transformers(files: Mapping[str, bytes], model_type: str) -> Tokenizer:
    import transformers

    transformers.logging.set_verbosity_error()
    if _JSON in files:
        # Classes of families make their tokenizer anew from its vocabulary; the file that is there is the truth.
        reader: Any = transformers.PreTrainedTokenizerFast
    elif _SENTENCE_PIECES in files and model_type in _CLASSES_FOR_PIECES:
        reader = getattr(transformers, _CLASSES_FOR_PIECES[model_type])
    else:
        reader = transformers.AutoTokenizer
    source = next(iter(files))
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as own:
        for name, data in files.items():
            (Path(own) / name).write_bytes(data)
        with tokenizer_errors(f"{source} cannot be read"):
            fast = reader.from_pretrained(own, local_files_only=True, trust_remote_code=False)
            return Tokenizer.from_str(fast.backend_tokenizer.to_str())


def _is_silent(files: Mapping[str, bytes]) -> bool:
    """Whether nothing in the files says what comes before a text."""
    return _SENTENCE_PIECES in files or (_JSON in files and json.loads(files[_JSON]).get("post_processor") is None)


def _check_merges(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise unsupported(f"merges.txt is not UTF-8: {error.reason}", "UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    rules = [line for line in lines if line and not line.startswith("#version")]
    if strange := [line for line in rules if len(line.split(" ")) != 2]:
        raise unsupported(f"merges.txt has the line {strange[0][:80]!r}", "two tokens in each line")


def _check_added(settings: Mapping[str, Any], added: Mapping[str, Any], limit: int) -> None:
    """Refuse tokens beside the vocabulary that are not text, too long, or have an id out of proportion."""
    for text, token_id in added.items():
        check_token(text, token_id, limit)
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise unsupported("added_tokens_decoder is not an object", "tokens by their ids")
    for number, token in decoder.items():
        token_id = int(number) if number.isdecimal() and len(number) < 12 else number
        check_token(token.get("content") if isinstance(token, dict) else token, token_id, limit)
    if tokens := [settings[key] for key in _SPECIAL_TOKENS if key in settings and not _is_token(settings[key])]:
        raise unsupported(f"tokenizer_config.json names the token {str(tokens[0])[:80]!r}", "text")


def _marked(value: Any) -> Any:
    """Return a setting with tokens that are objects marked as such, which special_tokens_map.json does not do."""
    if isinstance(value, list):
        return [_marked(item) for item in value]
    is_token = isinstance(value, dict) and isinstance(value.get("content"), str)
    return value | {"__type": "AddedToken"} if is_token else value


def _is_token(value: object) -> bool:
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)
