"""Texts read side by side, through kernels or through modules, have the logits that transformers gives each alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_bundle import Case, make_case
from torch import Tensor

from device_client.model.backends.choose import REFERENCE, BackendOptions
from device_client.model.decoding.reader import SideBySideReader, reader_of
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.text_network.network import network_for_text

TEXTS = [[7, 1, 200, 31, 31, 5, 90, 12, 4], [3, 3, 7], [250, 4, 17, 66, 128], [9, 9, 1, 1]]
TOLERANCE = 2e-5
"""Of the largest logit: float32 sums in another order."""


def opened(case: Case, kernels: Path | None) -> SparseModel:
    options = REFERENCE if kernels is None else BackendOptions("native", kernels, lambda _: None)
    model = load_model(case.bundle, device="cpu", backend=options, make_network=network_for_text)
    model.write_theta(model.initial_theta())
    return model


@torch.no_grad()
def assert_right(found: Tensor, case: Case, texts: list[list[int]]) -> None:
    expected = torch.stack([case.reference(input_ids=torch.tensor([ids])).logits[0, -1] for ids in texts])
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_number_of_texts_has_the_logits_of_each_alone(
    model_type: str, is_native: bool, tmp_path: Path, kernels: Path
) -> None:
    case = make_case(tmp_path, model_type)
    reader = reader_of(opened(case, kernels if is_native else None))
    assert isinstance(reader, SideBySideReader)
    texts = [reader.begin() for _ in TEXTS]

    prompts = reader.read(texts, [ids[:-2] for ids in TEXTS])
    assert_right(prompts, case, [ids[:-2] for ids in TEXTS])
    next_of_all = reader.read(texts, [ids[-2:-1] for ids in TEXTS])  # more texts than go one by one
    assert_right(next_of_all, case, [ids[:-1] for ids in TEXTS])
    next_of_two = reader.read(texts[:2], [ids[-1:] for ids in TEXTS[:2]])
    assert_right(next_of_two, case, TEXTS[:2])

    copy = texts[0].copy()
    texts[0].cut(4)
    mixed = reader.read([texts[0], copy], [[11, 12], [13]])
    assert_right(mixed, case, [[*TEXTS[0][:4], 11, 12], [*TEXTS[0], 13]])


def test_one_text_outgrows_its_buffers_token_by_token(tmp_path: Path, kernels: Path) -> None:
    case = make_case(tmp_path, "mistral")
    reader = reader_of(opened(case, kernels))
    text, ids = reader.begin(), [token % 200 for token in range(3, 3 + 7 * 60, 7)]

    found = [reader.read([text], [ids[:1]])]
    found += [reader.read([text], [[token]]) for token in ids[1:]]

    assert_right(torch.cat(found[::13]), case, [ids[: 1 + end] for end in range(0, len(ids), 13)])


def test_texts_take_turns_with_the_kernels_of_one_token(tmp_path: Path, kernels: Path) -> None:
    """The kernels keep where a text's keys lie: another text, or values written anew, must not be read from there."""
    case = make_case(tmp_path, "llama")
    model = opened(case, kernels)
    reader = reader_of(model)
    texts = [reader.begin() for _ in TEXTS[:2]]
    reader.read(texts, [ids[:-1] for ids in TEXTS[:2]])
    for _ in range(2):
        for text, ids in zip(texts, TEXTS, strict=False):
            assert_right(reader.read([text], [ids[-1:]]), case, [ids])
            text.cut(len(ids) - 1)

    model.write_theta(model.initial_theta() * 3)
    changed = reader.read(texts[:1], [TEXTS[0][-1:]])
    model.write_theta(model.initial_theta())
    texts[0].cut(len(TEXTS[0]) - 1)

    assert not torch.allclose(changed, reader.read(texts[:1], [TEXTS[0][-1:]]), rtol=1e-3)
