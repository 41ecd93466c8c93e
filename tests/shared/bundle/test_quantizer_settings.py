"""The quantiser's settings in the configuration: manifests from before error compensation still read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.bundle.config import Quantizer


def test_settings_without_compensation_read_as_before_it_existed() -> None:
    old = Quantizer.model_validate_json(b'{"bits":4,"method":"lut"}')
    assert (old.method, old.bits, old.group_size, old.compensation) == ("lut", 4, None, None)


def test_settings_without_compensation_are_written_as_before_it_existed() -> None:
    assert (
        Quantizer(method="uniform", bits=3, group_size=64).to_bytes()
        == b'{"bits":3,"group_size":64,"method":"uniform"}'
    )


def test_compensation_is_recorded_by_name() -> None:
    written = Quantizer(method="lut", bits=4, compensation="gptq").to_bytes()
    assert written == b'{"bits":4,"compensation":"gptq","method":"lut"}'
    assert Quantizer.model_validate_json(written).compensation == "gptq"


def test_a_setting_that_no_reader_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Quantizer.model_validate_json(b'{"bits":4,"method":"lut","rotation":"hadamard"}')
