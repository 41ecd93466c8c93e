"""The configuration of a GGUF file, as config.json would have it.

transformers' public entry (``AutoConfig`` with ``gguf_file``) maps the keys. It receives a small GGUF file of the
numbers that were checked here, never the file of the model: its reader takes half a minute for a vocabulary, and has no
bounds.
What that mapping leaves out is taken from the file itself: tied or own head, rows of the embedding, width of a head,
biases, scaled positions.

Llama 3's scaled positions are stored as the factors alone, one for each frequency:

    wavelength w = 2π · θ^(2i/d)      1 where w < L/4 · f where w > L · 1/((1 − s)/f + s) between, s = (L/w − 1)/3

Symbols: θ base, d width of a head, L context before scaling (8192), f factor. They are accepted where they are exactly
these. Knows nothing about weights and tokenizers.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

from cloud_service.pipeline.model.gguf.header import GgufHeader, refusal

ROPE_FACTORS = "rope_freqs.weight"
"""Name of the tensor of Llama 3's factors."""

_ARCHITECTURES = ("gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen3", "stablelm")
"""Values of ``general.architecture`` whose tensors are arranged as this package knows them."""

_NEEDED = ("context_length", "embedding_length", "feed_forward_length", "attention.head_count")
"""Keys whose absence transformers would fill with those of some other model."""

_NORM_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_TOKEN_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}
"""Special tokens: their names in config.json, and in the file."""

_OLD_CONTEXT, _LOW, _HIGH = 8192, 1.0, 4.0
_LONGEST_LIST = 1024


def architecture_of(header: GgufHeader) -> str:
    """Return the name of the architecture.

    Raises:
        UnsupportedModel: The file is no language model by itself (an adapter, a part, a picture encoder), or is one
            whose tensors are arranged in a way that is not known here.
    """
    kind, name = header.text("general.type"), header.text("general.architecture")
    if kind not in (None, "model"):
        raise refusal(header.name, f"holds: {str(kind)[:40]}", "a whole model (general.type 'model')")
    if (parts := header.number("split.count")) is not None and parts > 1:
        raise refusal(
            header.name,
            f"is one of {parts} parts of a model",
            "one file: llama-gguf-split --merge FIRST_PART WHOLE_FILE joins them",
        )
    if name not in _ARCHITECTURES:
        raise refusal(header.name, f"has the architecture {str(name)[:40]!r}", f"one of {', '.join(_ARCHITECTURES)}")
    return name


def read_configuration(header: GgufHeader, rope_factors: Sequence[float] | None) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        header: Of the file.
        rope_factors: Content of the tensor ``ROPE_FACTORS``, where there is one.

    Raises:
        UnsupportedModel: The architecture is not read from GGUF files, or a number is missing or contradicts another.
    """
    name = architecture_of(header)
    blocks = {int(match[1]) for key in header.tensors if (match := re.match(r"blk\.(\d{1,5})\.", key))}
    stated = header.number(f"{name}.block_count")
    if stated != len(blocks) or blocks != set(range(len(blocks))):
        raise refusal(header.name, f"states {stated} blocks and holds {len(blocks)}", "a file that is whole")
    if "token_embd.weight" not in header.tensors:
        raise refusal(header.name, "has no embedding (token_embd.weight)", "a file that is whole")
    missing = [f"{name}.{key}" for key in _NEEDED if f"{name}.{key}" not in header.pairs]
    if not any(f"{name}.{key}" in header.pairs for key in _NORM_EPSILONS):
        missing.append(f"{name}.{_NORM_EPSILONS[0]}")
    if missing:
        raise refusal(header.name, f"does not say its {missing[0]}", "the keys of a GGUF file by llama.cpp's converter")
    config = _mapped(header, name) | {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        # Where the file has none, transformers fills in those of some other model.
        **{f"{key}_token_id": header.number(f"tokenizer.ggml.{stored}_token_id") for key, stored in _TOKEN_IDS.items()},
    }
    if (width := header.number(f"{name}.attention.key_length")) is not None:
        config["head_dim"] = width
    if name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    if (scaling := _scaled_positions(header, name, config, rope_factors)) is not None:
        config["rope_parameters"] = scaling | {"rope_theta": _base(header, name)}
    return config


def _mapped(header: GgufHeader, name: str) -> dict[str, Any]:
    """Return what transformers makes of the file's numbers."""
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        _write_numbers(Path(folder) / "numbers.gguf", header, name)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, gguf_file="numbers.gguf")
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            found = f"does not make the configuration of a model: {str(error)[:200]}"
            raise refusal(header.name, found, f"the keys that {name} has in GGUF files") from error
        return dict(config.to_dict())


def _write_numbers(path: Path, header: GgufHeader, name: str) -> None:
    writer = GGUFWriter(path, name)
    for key, value in header.pairs.items():
        if key.startswith(f"{name}.") and key != f"{name}.vocab_size":
            _add(writer, key, value)
    writer.add_uint32(f"{name}.vocab_size", header.tensors["token_embd.weight"].shape[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint64(key, value) if value >= 0 else writer.add_int64(key, value)
        case float():
            writer.add_float64(key, value)
        case str() if len(value) <= _LONGEST_LIST:
            writer.add_string(key, value)
        case list() if 0 < len(value) <= _LONGEST_LIST:
            writer.add_array(key, value)


def _base(header: GgufHeader, name: str) -> float:
    value = header.pairs.get(f"{name}.rope.freq_base", 10000.0)
    if not isinstance(value, int | float) or not 1 < value < 1e12:
        raise refusal(header.name, f"has the rope.freq_base {str(value)[:40]}", "a number above 1")
    return float(value)


def _scaled_positions(
    header: GgufHeader, name: str, config: Mapping[str, Any], factors: Sequence[float] | None
) -> dict[str, Any] | None:
    kind = header.text(f"{name}.rope.scaling.type")
    factor = header.pairs.get(f"{name}.rope.scaling.factor")
    if any(key.startswith("rope_factors_") for key in header.tensors):
        raise refusal(header.name, "has factors of positions for long texts", "positions that are not scaled so")
    if factors is not None:
        return _llama3(header, name, config, factors)
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float):
        raise refusal(header.name, f"scales its positions by {kind[:40]!r}", "none, linear or yarn, with a factor")
    original = header.number(f"{name}.rope.scaling.original_context_length")
    known = {} if original is None or kind == "linear" else {"original_max_position_embeddings": original}
    return {"rope_type": kind, "factor": float(factor), **known}


def _llama3(header: GgufHeader, name: str, config: Mapping[str, Any], factors: Sequence[float]) -> dict[str, Any]:
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    largest = float(max(factors))
    base = _base(header, name)
    right = [_llama3_factor(2 * math.pi * base ** (2 * place / width), largest) for place in range(width // 2)]
    is_right = len(right) == len(factors) and all(
        math.isclose(*pair, rel_tol=1e-4) for pair in zip(right, factors, strict=True)
    )
    if not is_right:
        raise refusal(header.name, f"scales its positions ({ROPE_FACTORS}) in its own way", "Llama 3's way")
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _OLD_CONTEXT,
    }


def _llama3_factor(wavelength: float, factor: float) -> float:
    if wavelength < _OLD_CONTEXT / _HIGH:
        return 1.0
    if wavelength > _OLD_CONTEXT / _LOW:
        return factor
    smooth = (_OLD_CONTEXT / wavelength - _LOW) / (_HIGH - _LOW)
    return 1 / ((1 - smooth) / factor + smooth)
