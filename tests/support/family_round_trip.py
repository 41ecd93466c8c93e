"""One model through both programs: prepare, pull from a running service, tune, generate; and its logits compared."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from served_shelf import Served, serving_shelf
from shelf import Shelf, make_shelf
from tiny_checkpoint import write_text
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from cloud_service.cli import main as zo_cloud
from device_client.cli import main as zo_device
from device_client.model.embeddings import QuantizedEmbedding, QuantizedHead
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.loader import load_model
from device_client.model.token_batch import TokenBatch
from shared.bundle.config import BundleConfig
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.read import Bundle, read_bundle
from shared.quantization.codec import dequantize

TOKENS = 40
TOLERANCE = 1e-4
"""Of the largest logit, with the same weights: float32 sums in another order change logits by 1e-6 of it."""

ROWS = [{"prompt": f"the {word} is", "completion": f" {colour}"} for word, colour in (
    ("sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black"), ("sun", "gold"), ("rose", "red"),
)]  # fmt: skip


@dataclass(frozen=True)
class FamilyRun:
    """What came of a round trip.

    Attributes:
        config: The bundle's configuration.
        digest_prepared: Of the bundle that ``zo-cloud prepare`` published.
        digest_pulled: Of the bundle that ``zo-device pull`` accepted.
        tuned_steps: Steps that ``zo-device tune`` took.
        generated_tokens: Tokens that ``zo-device generate`` gave.
        difference: Largest one between the pulled bundle's logits and those of transformers with the bundle's weights.
        difference_of_codes: The same with the checkpoint's weights: what 8-bit codes change.
        largest_logit: Of the checkpoint.
    """

    config: BundleConfig
    digest_prepared: str
    digest_pulled: str
    tuned_steps: int
    generated_tokens: int
    difference: float
    difference_of_codes: float
    largest_logit: float

    @property
    def agrees(self) -> bool:
        """Whether the device computes what transformers computes."""
        return self.difference <= TOLERANCE * self.largest_logit


@dataclass(frozen=True)
class RoundTrip:
    """A running service, and a device that pulls from it; made by ``round_trips``."""

    folder: Path
    shelf: Shelf
    served: Served

    def run(self, checkpoint: Path, *options: str) -> FamilyRun:
        """Take a checkpoint all the way.

        Args:
            checkpoint: A Hugging Face folder; its name becomes the bundle's.
            options: Further options of ``zo-cloud prepare``.
        """
        name, output = checkpoint.name.replace("_", "-"), self.folder / f"{checkpoint.name}-bundle"
        prepared = _json(
            zo_cloud, "prepare", str(checkpoint), "--output", str(output), "--name", name, "--bits", "8",
            "--sparsity", "0.01", "--calibration-text", str(self.folder / "text.jsonl"), "--sequences", "4",
            "--tokens", "32", "--evaluation-documents", "2", "--offline", "--quiet",
            "--signing-key", str(self.folder / "signing-key.pem"), *options,
        )  # fmt: skip
        self._publish(name, ImageLayout(output), prepared["digest"])
        pulled = _json(zo_device, "pull", name, "--server", f"http://{self.served.host}")
        tuned = _json(
            zo_device, "tune", name, "--data", str(self.folder / "rows.jsonl"), "--steps", "3", "--batch", "2",
            "--device", "cpu", "--output", str(self.folder / f"{name}-run"),
        )  # fmt: skip
        generated = _json(zo_device, "generate", name, "the sky", "--max-new-tokens", "5", "--device", "cpu")
        bundle = read_bundle(ImageLayout(self.folder / "home" / "bundles"), pulled["digest"])
        with_codes, original, found = logits_of(bundle, checkpoint)
        return FamilyRun(
            config=bundle.config,
            digest_prepared=prepared["digest"],
            digest_pulled=pulled["digest"],
            tuned_steps=tuned["result"]["steps_done"],
            generated_tokens=generated["new_tokens"],
            difference=float((found - with_codes).abs().max()),
            difference_of_codes=float((found - original).abs().max()),
            largest_logit=float(original.abs().max()),
        )

    def _publish(self, name: str, layout: ImageLayout, digest: str) -> None:
        shutil.copytree(layout.root / "blobs", self.shelf.layout.root / "blobs", dirs_exist_ok=True)
        self.shelf.publish(name, "latest", manifest_descriptor(layout.read_blob(digest, max_bytes=1 << 22)))


@contextlib.contextmanager
def round_trips(folder: Path, kernels: Path | None = None) -> Iterator[RoundTrip]:
    """Serve a folder, and let the device's home be beside it.

    Args:
        folder: Empty.
        kernels: The device's compiled kernels, where there are some.
    """
    write_text(folder / "text.jsonl")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 4))
    (folder / "home").mkdir()
    if kernels is not None:
        shutil.copytree(kernels, folder / "home" / "backends")
    shelf = make_shelf(folder)
    with (
        serving_shelf(folder) as served,
        _environment(ZO_DEVICE_HOME=str(folder / "home"), ZO_DEVICE_API_KEY=served.key),
    ):
        yield RoundTrip(folder, shelf, served)
    shelf.engine.dispose()


@torch.no_grad()
def logits_of(bundle: Bundle, checkpoint: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (40, vocabulary): transformers' with the bundle's weights, with its own, and the device's.

    All compute in float32 on a CPU; the checkpoint's weights are stored in float16.
    """
    transformers.logging.disable_progress_bar()
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    original = network(tokens).logits[0]
    model = load_model(bundle, device="cpu")
    for name, layer in model.network.named_modules():
        if isinstance(layer, QuantizedSparseLinear):
            owner, weight = network.get_submodule(name), layer.effective_weight()
            owner.weight.copy_(weight.T if isinstance(owner, Conv1D) else weight)
        elif isinstance(layer, QuantizedEmbedding):
            network.get_submodule(name).weight.copy_(dequantize(layer.table))
        elif isinstance(layer, QuantizedHead):
            network.get_submodule(name).weight.copy_(dequantize(layer.packed.quantized))
    wanted = torch.arange(TOKENS)
    batch = TokenBatch(tokens, torch.ones_like(tokens), torch.zeros_like(wanted), wanted)
    return network(tokens).logits[0], original, model.logits(batch)[0]


def _json(program: Callable[[Sequence[str]], int], *words: str) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program([*words, "--json"])
    assert code == 0, f"{' '.join(words)}: exit code {code}: {out.getvalue()} {err.getvalue()}"
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
