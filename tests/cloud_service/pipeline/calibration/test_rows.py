"""Task rows as calibration sequences, worked by hand on one token per byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import byte_tokenizer

from cloud_service.pipeline.calibration.sequences import Calibration, read_calibration, tokens_digest
from cloud_service.pipeline.model.tokenization import TextEncoder
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import CalibrationSpec
from shared.bundle.config import TokenizerSettings
from shared.errors import DataError, InvalidRequest

BOS, EOS = 256, 257


def encoder_of(context: int = 128) -> TextEncoder:
    settings = TokenizerSettings(prepend_bos=True, bos_token_id=BOS, eos_token_ids=[EOS], context_length=context)
    return TextEncoder(byte_tokenizer(None), settings)


def calibrate(path: Path, spec: CalibrationSpec, *, model_type: str = "opt", context: int = 128) -> Calibration:
    source = TextSource(path, spec.task)
    return read_calibration(source, encoder_of(context), spec, policy=SourcePolicy(), model_type=model_type)


def own_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(count: int, task: str = "rows", **fields: Any) -> CalibrationSpec:
    return CalibrationSpec.model_validate({"text": "x", "task": task, "sequences": count, **fields})


def texts(calibration: Calibration) -> list[tuple[str, str]]:
    """What is read and what is predicted of each sequence; every sequence begins with BOS and is padded with 0."""
    tokenizer = byte_tokenizer(None)
    found = []
    for row, start, end in zip(*calibration.to_tensors().values(), strict=True):
        assert row[0] == BOS
        assert not row[end:].any()
        prompt, answer = row[1:start].tolist(), row[start:end].tolist()
        found.append(
            (tokenizer.decode(prompt, skip_special_tokens=False), tokenizer.decode(answer, skip_special_tokens=False))
        )
    return found


def test_completions_are_predicted_after_their_prompts_with_the_end_of_text(tmp_path: Path) -> None:
    path = own_rows(
        tmp_path / "rows.jsonl", [{"prompt": "2+2=", "completion": "4"}, {"prompt": "a ", "completion": "b"}]
    )
    assert sorted(texts(calibrate(path, spec_of(2)))) == [("2+2=", "4</s>"), ("a", " b</s>")]


def test_the_true_label_is_predicted_and_no_other(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "rows.jsonl", [{"text": "bad", "label": 0}, {"text": "good", "label": 1}])
    words = {"0": "terrible", "1": "great"}
    spec = spec_of(2, template="{text} It was {label}", label_words=words)
    assert sorted(texts(calibrate(path, spec))) == [("bad It was", " terrible"), ("good It was", " great")]


def test_a_named_task_is_prompted_in_the_style_of_the_models_family(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\na fine film\t1\na dull film\t0\n")
    opt = calibrate(path, spec_of(2, "SST-2"), model_type="opt")
    llama = calibrate(path, spec_of(2, "SST-2"), model_type="llama")
    assert sorted(texts(opt)) == [("a dull film It was", " terrible"), ("a fine film It was", " great")]
    assert ("### Sentence: a fine film ### Sentiment:", " positive") in texts(llama)


def test_a_prompt_that_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    rows = [{"prompt": "0123456789", "completion": "ab"}, {"prompt": "x", "completion": "yz"}]
    calibration = calibrate(own_rows(tmp_path / "rows.jsonl", rows), spec_of(2, tokens_per_sequence=8))
    # BOS + 4 letters of the prompt + 2 of the answer + end of text make 8 tokens.
    assert ("6789", "ab</s>") in texts(calibration)
    assert calibration.tokens.shape == (2, 8)


def test_rows_are_drawn_without_replacement_by_the_seed(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "rows.jsonl", [{"prompt": f"{n}", "completion": f"{n}"} for n in range(40)])
    draws = {seed: texts(calibrate(path, spec_of(20, seed=seed))) for seed in (1, 2)}
    assert all(len(set(draw)) == 20 for draw in draws.values())
    assert set(draws[1]) != set(draws[2])
    assert draws[1] == texts(calibrate(path, spec_of(20, seed=1)))


def test_too_few_rows_are_counted(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    with pytest.raises(DataError, match=r"3 rows\nNeeded: 4: .*\nNext: .*--sequences 3") as caught:
        calibrate(path, spec_of(4))
    assert caught.value.param == "calibration.sequences"


def test_conversations_are_refused(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * 2
    with pytest.raises(DataError, match="conversations"):
        calibrate(own_rows(tmp_path / "rows.jsonl", rows), spec_of(2))


def test_a_template_for_rows_without_labels_is_refused(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 2)
    with pytest.raises(InvalidRequest, match="without labels"):
        calibrate(path, spec_of(2, template="{text} {label}"))


def test_a_row_of_another_task_is_named_by_its_line(tmp_path: Path) -> None:
    path = own_rows(tmp_path / "train.jsonl", [{"text": "a", "label": 1}] * 2)
    with pytest.raises(DataError, match=r"train\.jsonl line \d: 'sentence' is missing"):
        calibrate(path, spec_of(2, "SST-2"))


def test_a_texts_digest_is_that_of_its_tokens_alone() -> None:
    calibration = Calibration.of_windows(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    expected = hashlib.sha256(np.array([1, 2, 3, 4, 5, 6], dtype="<i4").tobytes()).hexdigest()
    assert tokens_digest(calibration) == f"sha256:{expected}"


def test_the_digest_of_rows_covers_what_is_predicted() -> None:
    tokens = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    ends = torch.tensor([3], dtype=torch.int32)
    first, second = (Calibration(tokens, torch.tensor([start], dtype=torch.int32), ends) for start in (1, 2))
    assert tokens_digest(first) != tokens_digest(second)


def test_a_checkpoint_gives_the_calibration_back() -> None:
    calibration = Calibration.of_windows(torch.arange(6).view(2, 3))
    restored = Calibration.from_tensors(calibration.to_tensors())
    assert tokens_digest(restored) == tokens_digest(calibration)
    assert len(restored) == 2


@pytest.mark.parametrize("task", ["SST-2", "RTE", "CB", "BoolQ", "WSC", "WiC", "COPA"])
def test_the_published_files_of_every_task_calibrate(real_data: Path, task: str) -> None:
    folder = real_data / "tasks" / task
    path = next(folder / name for name in ("train.tsv", "train.jsonl", "train32.jsonl") if (folder / name).is_file())
    calibration = calibrate(path, spec_of(16, task, tokens_per_sequence=64), context=64)
    assert len(calibration) == 16
    assert bool((calibration.starts >= 1).all())
    assert bool((calibration.starts < calibration.ends).all())
    assert bool((calibration.ends <= 64).all())
