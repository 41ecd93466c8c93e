"""An exported folder is what plain transformers loads: the very weights, in 16 bits, and the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from exported_subject import published, tuned
from random_bundle import Case

from device_client.export.hugging_face import HuggingFaceFolder
from device_client.export.self_check import check, plain_logits
from device_client.export.subject import Subject
from device_client.export.weight_files import write_weight_files
from device_client.export.weights import DecodedWeights
from device_client.model.open import Machine
from shared.architecture import FAMILIES
from shared.errors import IntegrityError, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer

CPU = Machine(device="cpu", compute_dtype=torch.float32)


def written(subject: Subject, folder: Path, dtype: str = "float16") -> Path:
    folder.mkdir()
    HuggingFaceFolder(subject, dtype).write(folder, lambda _: None)
    return folder


def loaded(folder: Path) -> transformers.PreTrainedModel:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_transformers_loads_the_bundles_own_weights(case_of: Callable[..., Case], tmp_path: Path, family: str) -> None:
    case = case_of(family)
    model = loaded(written(published(case.bundle), tmp_path / "out"))
    assert type(model).__name__ == FAMILIES[family].architecture
    assert model.dtype == torch.float16
    wanted = dict(case.reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wanted[name].half()), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text", "phi3"])
def test_the_exports_logits_are_the_models_own(case_of: Callable[..., Case], tmp_path: Path, family: str) -> None:
    subject = published(case_of(family).bundle)
    found = check(written(subject, tmp_path / "out"), subject, CPU)
    # Every weight of these bundles is a float16 number, so that nothing is rounded but sums in another order.
    assert found.max_logit_difference < 1e-4
    assert found.same_likeliest_tokens == found.positions


def test_embeddings_in_codes_and_grouped_scales_are_decoded(case_of: Callable[..., Case], tmp_path: Path) -> None:
    case = case_of("llama", "uniform", embedding_bits=8)
    model = loaded(written(published(case.bundle), tmp_path / "out"))
    wanted = dict(case.reference.named_parameters())
    assert all(torch.equal(parameter, wanted[name].half()) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("method", "blocks"), [("sparse", "all"), ("sparse", "upper:1"), ("lora", "all")])
def test_a_tuned_model_is_exported_as_it_answers(
    case_of: Callable[..., Case], tmp_path: Path, method: str, blocks: str
) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run", method, blocks)  # type: ignore[arg-type]
    before = written(published(subject.bundle), tmp_path / "before")
    after = written(subject, tmp_path / "after")
    found = check(after, subject, CPU)
    assert found.max_logit_difference < 2e-3 * found.largest_logit  # float16 rounds by up to 2^-11 of a weight
    ids = BundleTokenizer.from_bundle(subject.bundle).encode_prompt("In 1969 two people")
    moved = (plain_logits(after, ids) - plain_logits(before, ids)).abs().max()
    assert moved > 20 * found.max_logit_difference


def test_in_float32_nothing_is_lost(case_of: Callable[..., Case], tmp_path: Path) -> None:
    subject = tuned(case_of("llama", "uniform", embedding_bits=8).bundle, tmp_path / "run")
    folder = written(subject, tmp_path / "out", "float32")
    assert loaded(folder).dtype == torch.float32
    assert check(folder, subject, CPU).max_logit_difference < 1e-5


def test_an_export_of_other_weights_fails_the_check(case_of: Callable[..., Case], tmp_path: Path) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run")
    folder = written(published(subject.bundle), tmp_path / "out")
    with pytest.raises(IntegrityError, match="other logits"):
        check(folder, subject, CPU)


def test_weights_in_several_files_are_the_same(case_of: Callable[..., Case], tmp_path: Path) -> None:
    bundle = case_of("llama").bundle
    subject = published(bundle)
    one, many = written(subject, tmp_path / "one"), written(subject, tmp_path / "many")
    (many / "model.safetensors").unlink()
    weights = DecodedWeights(subject)
    write_weight_files(many, weights, bundle.config, FAMILIES["llama"], "float16", lambda _: None, file_bytes=10_000)
    assert len(list(many.glob("*.safetensors"))) > 3
    ids = BundleTokenizer.from_bundle(bundle).encode_prompt("In 1969 two people")
    assert torch.equal(plain_logits(many, ids), plain_logits(one, ids))
    assert all(torch.equal(*pair) for pair in zip(loaded(many).parameters(), loaded(one).parameters(), strict=True))


def test_transformers_puts_the_same_tokens_in_front(case_of: Callable[..., Case], tmp_path: Path) -> None:
    bundle = case_of("llama").bundle
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(published(bundle), tmp_path / "out"))
    own = BundleTokenizer.from_bundle(bundle)
    for text in ("Hello, 12 cats", "", " <s>ü"):
        assert tokenizer(text)["input_ids"] == own.bos_ids + own.encode(text)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


def test_bfloat16_is_written_where_it_is_asked_for(case_of: Callable[..., Case], tmp_path: Path) -> None:
    case = case_of("llama")
    model = loaded(written(published(case.bundle), tmp_path / "out", "bfloat16"))
    assert model.dtype == torch.bfloat16
    wanted = dict(case.reference.named_parameters())
    assert all(torch.equal(found, wanted[name].bfloat16()) for name, found in model.named_parameters())


def test_a_value_beyond_float16_is_refused_with_the_format_that_holds_it(
    case_of: Callable[..., Case], tmp_path: Path
) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run")
    assert subject.tuned is not None
    subject.tuned.theta[0] = 1e5
    with pytest.raises(UnsupportedModel, match="bfloat16"):
        written(subject, tmp_path / "out")
    assert loaded(written(subject, tmp_path / "wide", "bfloat16")).dtype == torch.bfloat16


def test_a_prefix_is_no_weight_and_is_refused(case_of: Callable[..., Case], tmp_path: Path) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run", "prefix")
    with pytest.raises(UnsupportedModel, match="--to delta"):
        HuggingFaceFolder(subject, "float16")


def test_older_programs_find_the_base_of_rotary_frequencies(case_of: Callable[..., Case], tmp_path: Path) -> None:
    config = json.loads((written(published(case_of("llama").bundle), tmp_path / "out") / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    assert "rope_scaling" not in config


def test_the_card_says_where_the_weights_come_from_and_that_they_may_tell_of_rows(
    case_of: Callable[..., Case], tmp_path: Path
) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run")
    card = (written(subject, tmp_path / "out") / "README.md").read_text()
    assert subject.bundle.digest in card
    assert "base_model: tests/random" in card
    assert "functions of the rows" in card
    assert (
        "functions of the rows"
        not in (written(published(subject.bundle), tmp_path / "plain") / "README.md").read_text()
    )
