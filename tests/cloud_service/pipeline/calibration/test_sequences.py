"""Texts, calibration sequences and perplexity windows, worked by hand on one token per byte."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_checkpoint import build_checkpoint, byte_tokenizer
from torch.nn import functional

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.calibration.sequences import calibration_sequences, tokens_digest
from cloud_service.pipeline.evaluation.perplexity import LossSum, evaluation_windows, sum_losses
from cloud_service.pipeline.model.hub import TransportError
from cloud_service.pipeline.model.load_model import load_model, read_outline
from cloud_service.pipeline.model.tokenization import TextEncoder
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import CalibrationSpec
from shared.bundle.config import TokenizerSettings
from shared.errors import DataError, NetworkError, UnsupportedModel

BOS, EOS = 256, 257


def encoder_of(*, prepend_bos: bool, context: int = 64) -> TextEncoder:
    settings = TokenizerSettings(
        prepend_bos=prepend_bos, bos_token_id=BOS if prepend_bos else None, eos_token_ids=[EOS], context_length=context
    )
    return TextEncoder(byte_tokenizer(None), settings)


def spec_of(sequences: int, tokens: int, seed: int = 0) -> CalibrationSpec:
    return CalibrationSpec(sequences=sequences, tokens_per_sequence=tokens, seed=seed)


def test_sequences_are_packed_windows_that_each_begin_with_bos() -> None:
    encoder = encoder_of(prepend_bos=True)
    a, b = encoder.encode("a")[0], encoder.encode("b")[0]
    tokens = calibration_sequences(["a" * 10] * 2 + ["b" * 10] * 0, encoder, spec_of(2, 8), held_out=0).tokens
    # Stream: BOS a×10 BOS a×10; the first window takes seven a, the second three, the next document's BOS, three more.
    assert tokens.tolist() == [[BOS] + [a] * 7, [BOS] + [a] * 3 + [BOS] + [a] * 3]
    assert b not in tokens


def test_without_bos_documents_are_separated_by_eos() -> None:
    encoder = encoder_of(prepend_bos=False)
    a = encoder.encode("a")[0]
    tokens = calibration_sequences(["a" * 7] * 2, encoder, spec_of(2, 8), held_out=0).tokens
    assert tokens.tolist() == [[EOS] + [a] * 7] * 2


def test_a_window_that_would_begin_with_two_bos_has_one() -> None:
    encoder = encoder_of(prepend_bos=True)
    a = encoder.encode("a")[0]
    tokens = calibration_sequences(["a" * 7] * 3, encoder, spec_of(3, 8), held_out=0).tokens
    assert tokens.tolist() == [[BOS] + [a] * 7] * 3


def test_held_out_documents_are_not_used() -> None:
    encoder = encoder_of(prepend_bos=True)
    documents = ["x" * 50] * 5 + ["y" * 50] * 5
    tokens = calibration_sequences(documents, encoder, spec_of(4, 16), held_out=5).tokens
    assert encoder.encode("x")[0] not in tokens


def test_sequences_are_no_longer_than_the_context() -> None:
    encoder = encoder_of(prepend_bos=True, context=12)
    assert calibration_sequences(["z" * 100], encoder, spec_of(2, 512), held_out=0).tokens.shape == (2, 12)


def test_the_seed_decides_the_order() -> None:
    encoder = encoder_of(prepend_bos=True)
    documents = [letter * 20 for letter in "abcdefghij"]
    digests = {
        seed: tokens_digest(calibration_sequences(documents, encoder, spec_of(3, 16, seed), held_out=0))
        for seed in (0, 0, 1)
    }
    assert len(digests) == len(set(digests.values())) == 2


def test_too_little_text_says_how_many_sequences_it_makes() -> None:
    with pytest.raises(DataError, match=r"makes 3 sequences of 16 tokens \(1 documents\)") as caught:
        calibration_sequences(["a" * 50], encoder_of(prepend_bos=True), spec_of(4, 16), held_out=0)
    assert caught.value.param == "calibration.text"


@pytest.mark.parametrize("content", ["", "\n\n \n"])
def test_an_empty_text_is_a_data_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    documents = read_documents(TextSource(path), SourcePolicy())
    with pytest.raises(DataError, match="no document"):
        calibration_sequences(documents, encoder_of(prepend_bos=True), spec_of(2, 8), held_out=0)


def test_paragraphs_of_a_txt_file_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n \n\nthree\n")
    assert list(read_documents(TextSource(path), SourcePolicy())) == ["one\ntwo\n", "three\n"]


@pytest.mark.parametrize("line", ["not json", '{"txt": "a"}', '["text"]', '{"text": 3}'])
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        list(read_documents(TextSource(path), SourcePolicy()))


def test_bytes_that_are_not_utf8_are_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_documents(TextSource(path), SourcePolicy()))


def test_a_folder_laid_out_like_c4_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    with gzip.open(tmp_path / "en" / "c4-train.00000-of-00001.json.gz", "wt") as file:
        for text in ("first", "second"):
            file.write(json.dumps({"text": text, "url": "u", "timestamp": "t"}) + "\n")
    front = "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/c4-train.*.json.gz\n"
    (tmp_path / "README.md").write_text(f"---\n{front}---\n")
    assert list(read_documents(TextSource(tmp_path), SourcePolicy())) == ["first", "second"]


def test_c4_is_not_asked_for_offline() -> None:
    with pytest.raises(NetworkError, match="offline"):
        list(read_documents(TextSource(), SourcePolicy(is_offline=True)))


class CutStream:
    """Rows of a dataset, and then an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Iterator[dict[str, str]]:
        yield {"text": "first"}
        raise self._error


def test_c4_is_read_without_the_hub_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*_: Any, **options: Any) -> list[dict[str, str]]:
        asked.append(options["token"])
        return [{"text": "first"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_documents(TextSource(), SourcePolicy(hub_token="hf_secret"))) == ["first"]
    assert asked == [False]


@pytest.mark.parametrize("error", [TransportError(""), TimeoutError(), TransportError("cut\nmore")])
def test_a_stream_that_breaks_is_a_network_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: CutStream(error))
    with pytest.raises(NetworkError, match=r"C4 cannot be read: (HTTPError|TimeoutError|cut)\n"):
        list(read_documents(TextSource(), SourcePolicy()))


def test_windows_do_not_overlap_and_each_begins_with_bos() -> None:
    encoder = encoder_of(prepend_bos=True, context=5)
    a, b = encoder.encode("a")[0], encoder.encode("b")[0]
    windows = evaluation_windows(["aaaaaa", "b", ""], encoder)
    assert windows == [[BOS, a, a, a, a], [BOS, a, a], [BOS, b]]


def test_without_bos_a_windows_first_token_is_not_predicted() -> None:
    encoder = encoder_of(prepend_bos=False, context=4)
    a = encoder.encode("a")[0]
    assert evaluation_windows(["aaaaa"], encoder) == [[a, a, a, a]]


def test_a_text_without_a_token_to_predict_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no token to predict"):
        evaluation_windows([""], encoder_of(prepend_bos=True))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_perplexity_equals_a_plain_loop_over_windows_and_can_be_resumed(tmp_path: Path, family: str) -> None:
    network = load_model(read_outline(build_checkpoint(tmp_path, family)), device="cpu").network
    windows = evaluation_windows(["some text " * 20, "short", "and one more"], encoder_of(prepend_bos=True))
    nats = tokens = 0.0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window])
            logits = network(input_ids=ids).logits[0, :-1]
            nats += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += len(window) - 1
    seen: list[LossSum] = []
    total = sum_losses(network, windows, after_batch=seen.append)
    # Float32 losses summed in another order: relative error of a few 1e-6.
    assert total.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert (total.tokens, total.windows) == (tokens, len(windows))
    assert sum_losses(network, windows, seen[-1]) == total


def test_a_loss_that_is_not_finite_is_named_before_anything_is_saved(tmp_path: Path) -> None:
    network = load_model(read_outline(build_checkpoint(tmp_path)), device="cpu").network
    network.get_parameter("model.norm.weight").data.fill_(math.inf)
    seen: list[LossSum] = []
    with pytest.raises(UnsupportedModel, match=r"loss of the dense part alone .* not finite in float32") as caught:
        sum_losses(network, [[1, 2, 3]], after_batch=seen.append, subject="dense part alone")
    assert "--evaluation-documents 0" in str(caught.value)
    assert seen == []
