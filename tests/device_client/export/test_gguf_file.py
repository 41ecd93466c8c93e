"""A GGUF file holds the model's weights and tokenizer as llama.cpp wants them.

What is written here is read back by the cloud's reader, which knows llama.cpp's files from elsewhere. That llama.cpp
itself writes the same text is measured in ``tests/benchmarks/take_elsewhere.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoint_tokenizers import PAGE, byte_tokenizer_with, sentence_piece_tokenizer
from exported_subject import published, tuned
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from random_bundle import Case
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cloud_service.pipeline.model.gguf.checkpoint import read_gguf, write_checkpoint
from cloud_service.progress import SilentProgress
from device_client.export.gguf_family import FAMILIES, RotaryPositions, frequency_factors
from device_client.export.gguf_file import GgufFile
from device_client.export.gguf_vocabulary import gguf_vocabulary
from device_client.export.hugging_face import HuggingFaceFolder
from device_client.export.subject import Subject
from shared.errors import UnsupportedModel, ZoError

GEMMA = {"query_pre_attn_scalar": 16, "rope_local_base_freq": 10_000.0}
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": GEMMA | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6},
}
"""What llama.cpp takes for granted."""

CaseOf = Callable[..., Case]


def written(subject: Subject, folder: Path, outtype: str = "f16") -> Path:
    folder.mkdir()
    GgufFile(subject, outtype).write(folder / "model.gguf", lambda _: None)
    return folder / "model.gguf"


def read_back(path: Path) -> dict[str, torch.Tensor]:
    target = path.parent / "read"
    write_checkpoint(read_gguf(path.parent, path.name), target, SilentProgress())
    return {name: tensor for file in target.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_weights_that_are_read_back_are_the_bundles(case_of: CaseOf, tmp_path: Path, family: str) -> None:
    case = case_of(family, **AS_PUBLISHED.get(family, {}))
    found = read_back(written(published(case.bundle), tmp_path / "out"))
    wanted = dict(case.reference.named_parameters())
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.float(), wanted[name]), name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_numbers_that_are_read_back_are_the_bundles(case_of: CaseOf, tmp_path: Path, family: str) -> None:
    case = case_of(family, **AS_PUBLISHED.get(family, {}))
    path = written(published(case.bundle), tmp_path / "out")
    found, wanted = read_gguf(path.parent, path.name).architecture, case.reference.config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "max_position_embeddings", "vocab_size", "head_dim", "rms_norm_eps")  # fmt: skip
    for name in (name for name in names if name in found and hasattr(wanted, name)):
        assert found[name] == pytest.approx(getattr(wanted, name), rel=1e-6), name


@pytest.mark.parametrize(("method", "blocks"), [("sparse", "upper:1"), ("lora", "all")])
def test_tuned_weights_are_those_of_the_checkpoint_for_transformers(
    case_of: CaseOf, tmp_path: Path, method: str, blocks: str
) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run", method, blocks)  # type: ignore[arg-type]
    (tmp_path / "hf").mkdir()
    HuggingFaceFolder(subject, "float16").write(tmp_path / "hf", lambda _: None)
    wanted = load_file(tmp_path / "hf" / "model.safetensors")
    found = read_back(written(subject, tmp_path / "gguf"))
    assert all(torch.equal(found[name].half(), wanted[name]) for name in wanted)


def test_eight_bits_round_by_half_a_step_and_other_rows_stay_in_sixteen(case_of: CaseOf, tmp_path: Path) -> None:
    subject = published(case_of("llama").bundle)
    exact = {tensor.name: tensor for tensor in GGUFReader(written(subject, tmp_path / "f16")).tensors}
    kinds = set()
    for tensor in GGUFReader(written(subject, tmp_path / "q8", "q8_0")).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        wanted = exact[tensor.name].data.astype(np.float32)
        kinds.add((tensor.tensor_type, int(tensor.shape[0]) % 32 == 0 and len(tensor.shape) > 1))
        if tensor.tensor_type == GGMLQuantizationType.Q8_0:
            step = np.abs(wanted).max() / 127  # of the largest block; its scale is rounded to float16
            assert np.abs(values - wanted).max() <= step * (0.5 + 127 / 2048)
        else:
            assert np.array_equal(values, wanted)
    assert kinds == {
        (GGMLQuantizationType.Q8_0, True),
        (GGMLQuantizationType.F16, False),
        (GGMLQuantizationType.F32, False),
    }


@pytest.mark.parametrize("tokenizer", [byte_tokenizer_with("<|im_start|>", "<|im_end|>"), sentence_piece_tokenizer()])
def test_the_tokenizer_that_is_read_back_gives_the_same_tokens(
    case_of: CaseOf, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = tokenizer.get_vocab_size() + 3
    found = gguf_vocabulary(tokenizer.to_str(), rows)
    assert len(found.tokens) == len(found.types) == rows
    assert found.tokens[-1] == f"[PAD{rows - 1}]"
    assert [found.tokens[token] for token in tokenizer.encode(PAGE[0]).ids] == tokenizer.encode(PAGE[0]).tokens


def test_a_score_is_the_place_of_the_merge_that_makes_the_token() -> None:
    found = gguf_vocabulary(sentence_piece_tokenizer().to_str(), 268)
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert (scores["▁a"], scores["ab"], scores["▁ab"]) == (0.0, -1.0, -2.0)
    assert scores["b"] < -1e8  # no merge makes it: it must never be preferred
    assert (found.model, found.has_space_prefix, found.unknown_id) == ("llama", True, 0)
    # unknown, control, byte, normal
    assert [found.types[token] for token in (0, 1, 3, 259)] == [2, 3, 6, 1]


def test_a_byte_level_tokenizer_is_named_by_how_it_splits() -> None:
    found = gguf_vocabulary(byte_tokenizer_with("<|im_end|>").to_str(), 260)
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", [])
    assert found.types[256:] == [3, 3, 3, 3]


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UnsupportedModel, match="WordLevel"):
        gguf_vocabulary(words.to_str(), 2)


def test_frequencies_are_divided_as_transformers_divides_them_for_llama_3() -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=rope
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 128, 2).float() / 128)
    found = frequency_factors(RotaryPositions(500_000.0, "llama3", rope), 128)
    assert found is not None
    torch.testing.assert_close(found, plain / scaled, rtol=1e-5, atol=0)
    assert len({round(float(factor), 4) for factor in found}) > 2  # 1, 8, and some between


def test_a_window_that_llama_cpp_does_not_know_ends_the_context(case_of: CaseOf) -> None:
    assert GgufFile(published(case_of("mistral").bundle), "f16").context_length == 6
    assert GgufFile(published(case_of("gemma2", **AS_PUBLISHED["gemma2"]).bundle), "f16").context_length == 64


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {}, "family opt"),
        ("gemma2", {}, "queries divided by √24"),
        ("gemma3_text", GEMMA, "another order of layers"),
        ("gemma3_text", AS_PUBLISHED["gemma3_text"] | {"rope_local_base_freq": 100.0}, "positions of base 100"),
        ("llama", {"hidden_act": "relu"}, "activation 'relu'"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(
    case_of: CaseOf, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        GgufFile(published(case_of(family, **changes).bundle), "f16")


def test_without_the_package_the_error_names_what_to_install(case_of: CaseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ZoError, match=r"pip install 'zo-device\[device,export\]'"):
        GgufFile(published(case_of("llama").bundle), "f16")
