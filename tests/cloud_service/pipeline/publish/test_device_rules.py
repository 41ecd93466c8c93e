"""Nothing is signed that a device would refuse: the job fails and says what the device would have said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from random_bundle import make_case
from tiny_bundle import byte_tokenizer_json

from cloud_service.pipeline.prepare import prepare
from cloud_service.pipeline.publish.device_rules import check_devices_open
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import CalibrationSpec, EvaluationSpec, PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]


def test_what_a_device_would_say_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    config = make_case(tmp_path / "layout", "llama", vocabulary=258).bundle.config
    with pytest.raises(UnsupportedModel) as caught:
        check_devices_open(config, byte_tokenizer_json().encode())
    assert caught.value.found == "a device would refuse the bundle: tokenizer.json has token 258"
    assert caught.value.needed == "ids below 258"
    assert "nothing was signed" in caught.value.next_step
    check_devices_open(
        make_case(tmp_path / "good", "llama", vocabulary=259).bundle.config, byte_tokenizer_json().encode()
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", "{% for m in messages %}", "chat template fails"),
        ("generation_config.json", json.dumps({"eos_token_id": 300}), "begin or end with token 300"),
    ],
)
def test_a_model_that_devices_would_refuse_is_refused_before_any_work(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    folder = make_checkpoint()
    (folder / name).write_text(content)
    request = PrepareRequest(
        model=str(folder),
        calibration=CalibrationSpec(text=str(text), sequences=4, tokens_per_sequence=16),
        evaluation=EvaluationSpec(text=str(text), documents=2),
    )
    layout = ImageLayout(tmp_path / "bundle")
    with pytest.raises(UnsupportedModel, match=message):
        prepare(
            request,
            workspace=tmp_path / "work",
            layout=layout,
            progress=SilentProgress(),
            sources=SourcePolicy(allow_any_local=True),
        )
    assert not [path for path in (tmp_path / "bundle" / "blobs").rglob("*") if path.is_file()]
