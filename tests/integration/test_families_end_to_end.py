"""Every tested family through the programs: prepare, pull, tune, generate, and the logits of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from family_round_trip import FamilyRun, run_family
from tiny_checkpoint import build_checkpoint

from shared.architecture import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_prepared_pulled_tuned_and_asked_and_computes_what_transformers_computes(
    tmp_path: Path, family: str
) -> None:
    run: FamilyRun = run_family(build_checkpoint(tmp_path / "model", family), tmp_path)

    assert run.digest_pulled == run.digest_prepared
    assert run.tuned_steps == 3
    assert run.generated_tokens == 5
    # 8-bit codebooks have 256 values for at most 96 columns: every weight is its own value, rounded to float16 once.
    assert run.largest_logit_difference < 1e-3
    assert run.config.get("untested_family") is None


def test_json_of_a_run_is_plain(tmp_path: Path) -> None:
    assert json.loads(json.dumps({"family": "llama"}))["family"] == "llama"
