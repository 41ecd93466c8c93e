"""Text that the model writes itself: sampled as its probabilities say, reproducible, and enough to prepare a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_service.pipeline.calibration.written_text import write_sequences
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.model.tokenization import TextEncoder, load_encoder
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import prepare
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest, Stage
from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle
from shared.errors import Interrupted, InvalidRequest, NetworkError, UnsupportedModel
from shared.perturbation import random_generator

MakeCheckpoint = Callable[..., Path]
OFFLINE = SourcePolicy(allow_any_local=True, is_offline=True)
PLENTY = 1 << 30


def opened(folder: Path) -> tuple[LoadedModel, TextEncoder]:
    """Return the network and the tokenizer of a checkpoint."""
    outline = read_outline(folder)
    return load_model(outline, device="cpu"), load_encoder(folder, outline.architecture, outline.context_length)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_each_token_is_where_its_draw_falls_in_the_models_distribution(
    make_checkpoint: MakeCheckpoint, family: str
) -> None:
    model, encoder = opened(make_checkpoint(family))
    tokens = write_sequences(model, encoder, 3, 12, seed=5, cache_bytes=PLENTY).long()
    draws = random_generator(5).random((3, 11))
    with torch.no_grad():
        known = encoder.tokenizer.get_vocab_size()  # the model has more tokens, which were never trained
        probabilities = model.network(input_ids=tokens).logits[..., :known].double().softmax(-1)
    for row, column in np.ndindex(*draws.shape):
        chosen = int(tokens[row, column + 1])
        below = float(probabilities[row, column, :chosen].sum())
        above = below + float(probabilities[row, column, chosen])
        assert below - 1e-5 <= draws[row, column] <= above + 1e-5
    first = encoder.settings.bos_token_id
    assert first is None or tokens[:, 0].tolist() == [first] * 3


def test_the_seed_decides_and_the_batch_does_not(make_checkpoint: MakeCheckpoint) -> None:
    model, encoder = opened(make_checkpoint())
    together = write_sequences(model, encoder, 7, 16, seed=1, cache_bytes=PLENTY)
    alone = write_sequences(model, encoder, 7, 16, seed=1, cache_bytes=0)
    other = write_sequences(model, encoder, 7, 16, seed=2, cache_bytes=PLENTY)
    assert torch.equal(together, alone)
    assert not torch.equal(together, other)
    assert len({tuple(row) for row in together.tolist()}) == 7


def test_a_stopped_writer_goes_on(make_checkpoint: MakeCheckpoint) -> None:
    model, encoder = opened(make_checkpoint())
    whole = write_sequences(model, encoder, 5, 16, seed=3, cache_bytes=PLENTY)
    kept: list[torch.Tensor] = []

    def stop(tokens: torch.Tensor) -> None:
        kept.append(tokens)
        if len(tokens) == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        write_sequences(model, encoder, 5, 16, seed=3, cache_bytes=0, after_batch=stop)
    assert torch.equal(write_sequences(model, encoder, 5, 16, seed=3, cache_bytes=PLENTY, written=kept[-1]), whole)


def test_a_model_that_gives_no_probabilities_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    model, encoder = opened(make_checkpoint())
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(UnsupportedModel, match="not finite"):
        write_sequences(model, encoder, 2, 8, seed=0, cache_bytes=PLENTY)


class _StopsWriting(SilentProgress):
    """Interrupts after the first batch of what the model writes for the calibration."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._unit = ""

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        self._unit = unit

    def advance(self, done: int) -> None:
        if self._unit == "written sequences" and done and any("calibration" in note for note in self.notes):
            raise Interrupted("stopped")


def test_a_bundle_needs_no_text_and_says_who_wrote_it(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    request = PrepareRequest(
        model=str(make_checkpoint()),
        sparsity=0.01,
        calibration={"text": "self", "sequences": 6, "tokens_per_sequence": 24},  # type: ignore[arg-type]
    )

    def made(name: str, progress: SilentProgress) -> tuple[str, dict[str, object]]:
        layout = ImageLayout.create(tmp_path / name / "store")
        bundle = prepare(
            request,
            workspace=tmp_path / name / "work",
            layout=layout,
            progress=progress,
            sources=OFFLINE,
            means=Means(device="cpu"),
        )
        assert read_bundle(layout, bundle.manifest.digest).config.mask.calibration_text == "self"
        return bundle.manifest.digest, bundle.report["perplexity"]

    digest, perplexity = made("one", SilentProgress())
    assert (perplexity["text"], perplexity["documents"]) == ("self", 6)
    with pytest.raises(Interrupted):
        made("two", _StopsWriting())
    assert made("two", SilentProgress())[0] == digest


def test_task_rows_are_nothing_that_a_model_writes() -> None:
    with pytest.raises(ValueError, match="self has no task rows"):
        PrepareRequest(model="m", calibration={"text": "self", "task": "SST-2"})  # type: ignore[arg-type]


def test_it_is_offered_where_c4_is_out_of_reach(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    request = PrepareRequest(model=str(make_checkpoint()))
    with pytest.raises(NetworkError, match="--calibration-text self"):
        prepare(
            request,
            workspace=tmp_path / "work",
            layout=ImageLayout.create(tmp_path / "store"),
            progress=SilentProgress(),
            sources=OFFLINE,
        )
    missing = request.model_copy(update={"calibration": request.calibration.model_copy(update={"text": "absent.txt"})})
    with pytest.raises(InvalidRequest, match="'self'"):
        prepare(
            missing,
            workspace=tmp_path / "work",
            layout=ImageLayout.create(tmp_path / "store"),
            progress=SilentProgress(),
            sources=OFFLINE,
        )
