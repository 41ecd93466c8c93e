"""Every tested family through both programs: prepare, pull, tune, generate; and the logits of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from family_round_trip import RoundTrip, round_trips
from tiny_checkpoint import build_checkpoint

from shared.architecture import FAMILIES


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundTrip]:
    with round_trips(tmp_path_factory.mktemp("service")) as opened:
        yield opened


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_prepared_pulled_tuned_and_asked_and_computes_what_transformers_computes(
    trip: RoundTrip, tmp_path: Path, family: str
) -> None:
    run = trip.run(build_checkpoint(tmp_path / family, family))

    assert run.digest_pulled == run.digest_prepared
    assert run.tuned_steps == 3
    assert 1 <= run.generated_tokens <= 5
    assert run.agrees
    assert run.config.untested_family is None


def test_an_untested_family_goes_the_same_way_and_its_bundle_says_so(trip: RoundTrip, tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "starcoder2", "starcoder2")

    run = trip.run(folder, "--allow-untested")

    assert (run.config.untested_family, run.config.architecture["model_type"]) == (True, "starcoder2")
    assert run.tuned_steps == 3
    assert run.agrees
