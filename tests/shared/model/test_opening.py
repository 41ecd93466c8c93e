"""What a device requires of a bundle, and whoever makes one checks before signing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_bundle import Case, make_case
from tiny_bundle import byte_tokenizer_json

from shared.bundle.config import BundleConfig
from shared.errors import TensorMismatch, UnsupportedModel, ZoError
from shared.model.opening import check_opening

ANSWERING = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("opening") / "layout", "llama")


def with_tokenizer(config: BundleConfig, **changes: Any) -> BundleConfig:
    return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update=changes)})


def with_architecture(config: BundleConfig, **changes: Any) -> BundleConfig:
    return config.model_copy(update={"architecture": config.architecture | changes})


def test_a_good_bundle_opens(case: Case) -> None:
    check_opening(with_tokenizer(case.bundle.config, chat_template=ANSWERING), byte_tokenizer_json())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: with_architecture(c, model_type="unknown"), UnsupportedModel, "model_type 'unknown'"),
        (lambda c: with_architecture(c, num_attention_heads=5), UnsupportedModel, "makes no LlamaForCausalLM"),
        (lambda c: with_architecture(c, intermediate_size=48), TensorMismatch, r"in the bundle\nNeeded: \(48, 32\)"),
        (lambda c: with_architecture(c, num_hidden_layers=1), TensorMismatch, "is no parameter of the architecture"),
        (lambda c: with_architecture(c, attention_bias=True), TensorMismatch, "bias is not in the bundle"),
        (lambda c: with_tokenizer(c, eos_token_ids=[257, 259]), TensorMismatch, "texts begin or end with token 259"),
        (lambda c: with_tokenizer(c, chat_template="{% for"), UnsupportedModel, "chat template fails"),
        (lambda c: with_tokenizer(c, chat_template=" "), UnsupportedModel, "writes nothing"),
    ],
)
def test_what_a_device_could_not_use_is_refused(
    case: Case, change: Callable[[BundleConfig], BundleConfig], error: type[ZoError], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_opening(change(case.bundle.config), byte_tokenizer_json())


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    small = make_case(tmp_path / "layout", "llama", vocabulary=258)
    with pytest.raises(TensorMismatch, match=r"token 258\nNeeded: ids below 258"):
        check_opening(small.bundle.config, byte_tokenizer_json())
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        check_opening(small.bundle.config, "{}")
