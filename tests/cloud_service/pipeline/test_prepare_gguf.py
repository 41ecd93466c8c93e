"""A whole preparation from a GGUF file, and the same one from the folder that it stands for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from gguf import GGMLQuantizationType as Storage
from tiny_gguf import quantized, random_weights, write_gguf

from cloud_service.cli import main
from cloud_service.pipeline.model.gguf.checkpoint import read_gguf, write_checkpoint
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import resolve
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import PreparedBundle, prepare
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE
from shared.bundle.read import Bundle, read_bundle
from shared.errors import UnsupportedModel
from shared.quantization.codec import QuantizedTensor, dequantize

POLICY = SourcePolicy(allow_any_local=True)


def request_of(model: Path, text: Path, **changes: object) -> PrepareRequest:
    calibration = {"text": str(text), "sequences": 4, "tokens_per_sequence": 16}
    settings = {"model": str(model), "sparsity": 0.01, "calibration": calibration, "evaluation": {"documents": 2}}
    return PrepareRequest.model_validate(settings | changes)


def run(request: PrepareRequest, root: Path) -> tuple[PreparedBundle, Bundle]:
    layout = ImageLayout.create(root / "store")
    made = prepare(
        request,
        workspace=root / "work",
        layout=layout,
        progress=SilentProgress(),
        sources=POLICY,
        means=Means(device="cpu"),
    )
    return made, read_bundle(layout, made.manifest.digest)


def sensitive(bundle: Bundle) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(bundle.path(SENSITIVE_TITLE).read_bytes())


def test_a_file_and_the_folder_it_stands_for_give_the_same_masks_and_values(tmp_path: Path, text: Path) -> None:
    path = write_gguf(tmp_path / "Tiny-Model.Q4_1.gguf")
    write_checkpoint(read_gguf(tmp_path, path.name), tmp_path / "folder", SilentProgress())
    made, of_file = run(request_of(path, text), tmp_path / "one")
    _, of_folder = run(request_of(tmp_path / "folder", text), tmp_path / "two")
    assert made.name == "tiny-model-q4-1"
    assert sensitive(of_file).keys() == sensitive(of_folder).keys()
    for name, values in sensitive(of_file).items():
        assert torch.equal(values, sensitive(of_folder)[name]), name
    assert of_file.config.tokenizer == of_folder.config.tokenizer


def test_manifest_report_and_card_say_what_the_16_bit_weights_are(tmp_path: Path, text: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    made, bundle = run(request_of(path, text), tmp_path)
    digest = digest_of_bytes(path.read_bytes())
    source = bundle.config.source.dequantized_from
    assert source is not None
    assert (source.file, source.digest, source.tensor_types) == ("m.gguf", digest, {"Q4_1": 15, "F32": 5})
    assert made.report["source"]["dequantized_from"]["digest"] == digest
    assert bundle.config.source.license == "apache-2.0"
    card = bundle.path("README.md").read_text()
    assert f"* 16-bit baseline: dequantised Q4_1 (15 tensors), F32 (5) of m.gguf, {digest}" in card
    assert "dequantised Q4_1 (15 tensors)" in made.report_html.read_text()


def test_where_the_file_lies_changes_nothing_and_a_folder_with_only_it_names_it(tmp_path: Path, text: Path) -> None:
    first = write_gguf(tmp_path / "a" / "m.gguf")
    (tmp_path / "b").mkdir()
    second = Path(shutil.copy(first, tmp_path / "b"))
    requests = [request_of(model, text) for model in (first, second, second.parent)]
    requests.append(request_of(second.parent, text, gguf_file="m.gguf"))
    found = {resolve(NamedInput.of_preparation(request), POLICY, SilentProgress()).fingerprint for request in requests}
    assert len(found) == 1
    second.write_bytes(second.read_bytes()[:-1] + b"\1")
    other = resolve(NamedInput.of_preparation(requests[1]), POLICY, SilentProgress()).fingerprint
    assert other not in found


def test_a_folder_with_several_files_asks_which_one(tmp_path: Path, text: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / "models" / name)
    with pytest.raises(UnsupportedModel, match=r"holds 2 GGUF files, such as a\.gguf, b\.gguf") as caught:
        run(request_of(tmp_path / "models", text), tmp_path)
    assert "--gguf-file" in caught.value.next_step


def test_a_file_in_a_hubs_cache_is_read_through_its_link(tmp_path: Path, text: Path) -> None:
    cache = tmp_path / "models--someone--tiny-GGUF"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    blob = write_gguf(tmp_path / "m.gguf").rename(cache / "blob")
    (snapshot / "tiny.gguf").symlink_to(os.path.relpath(blob, snapshot))
    named = NamedInput.of_preparation(request_of(snapshot / "tiny.gguf", text))
    source = resolve(named, POLICY, SilentProgress())
    assert (source.folder, source.gguf_file, source.model_id) == (snapshot, "tiny.gguf", "tiny")


@pytest.mark.attack
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, text: Path) -> None:
    secret = write_gguf(tmp_path / "outside" / "m.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").symlink_to(secret)
    with pytest.raises(UnsupportedModel, match=r"m\.gguf is a link out of the model folder"):
        run(request_of(tmp_path / "models", text), tmp_path)


def test_the_plan_of_a_file_counts_the_copy_and_reads_the_header_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:-10_000] + b"\xff" * 10_000)  # the weights in it are not finite any more
    assert main(["plan", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    matrices = 2 * 262 * 32 + 2 * 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert plan["copied_bytes"] == matrices + 4 * 5 * 32  # float16, and the five norms in float32
    assert plan["seconds"] > plan["copying_seconds"] > 0
    assert main(["plan", str(path)]) == 0
    assert "16-bit copy of" in capsys.readouterr().out


def test_a_file_of_four_bit_codes_keeps_them_exactly_where_that_is_asked_for(tmp_path: Path, text: Path) -> None:
    weights = random_weights()
    path = write_gguf(tmp_path / "m.gguf", weights=weights, storage=Storage.Q4_0)
    made, bundle = run(request_of(path, text, quantizer={"method": "source"}), tmp_path)
    quantizer = bundle.config.quantizer
    assert (quantizer.method, quantizer.bits, quantizer.group_size, quantizer.compensation) == ("source", 4, 32, None)
    for entry in bundle.config.block_tensors:
        meant = torch.from_numpy(np.array(quantized(weights[entry.name], Storage.Q4_0)))
        parts = safetensors.torch.load(bundle.path(entry.blob).read_bytes())
        codes, scale, bias = (parts[f"{entry.name}.{part}"] for part in ("codes", "scale", "bias"))
        kept = QuantizedTensor(codes, entry.shape[1], 4, scale=scale, bias=bias, group_size=32)
        assert torch.equal(dequantize(kept), meant), entry.name
        assert entry.relative_error < 1e-6  # against the 16-bit copy, which rounds
    assert "the 4-bit codes of that file, exactly" in bundle.path("README.md").read_text()
    assert made.report["quantizer"]["method"] == "source"


@pytest.mark.parametrize("storage", [None, Storage.Q8_0])
def test_source_is_refused_where_there_are_no_codes_to_keep(
    tmp_path: Path, text: Path, storage: Storage | None
) -> None:
    model = write_gguf(tmp_path / "m.gguf", storage=storage or Storage.Q4_1)
    if storage is None:
        write_checkpoint(read_gguf(tmp_path, model.name), tmp_path / "folder", SilentProgress())
        model = tmp_path / "folder"
    with pytest.raises(UnsupportedModel, match="Q4_0 or Q4_1") as caught:
        run(request_of(model, text, quantizer={"method": "source"}), tmp_path)
    assert caught.value.param == "quantizer.method"


def test_whoever_takes_another_quantiser_hears_that_the_codes_could_be_kept(tmp_path: Path, text: Path) -> None:
    class Notes(SilentProgress):
        def note(self, message: str) -> None:
            notes.append(message)

    notes: list[str] = []
    path = write_gguf(tmp_path / "m.gguf")
    request = request_of(path, text)
    layout = ImageLayout.create(tmp_path / "store")
    prepare(request, workspace=tmp_path / "work", layout=layout, progress=Notes(), sources=POLICY)
    assert "the file's weights are Q4_1: --quantizer source would keep these codes exactly" in notes
