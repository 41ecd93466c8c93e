"""What people keep models as is prepared rightly, or refused by what it is and with what to do first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cloud_service.cli import main
from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.folder_kinds import adapter_note, refuse_other_kinds, refuse_without_safetensors
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
Change = Callable[[Path], None]

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 524912\n"
LORA = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": 8}


def check(folder: Path) -> None:
    refuse_other_kinds(ContainedFolder(folder.resolve()))


def change_config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def replace_tensors(rename: Callable[[str], str], value: torch.Tensor | None = None) -> Change:
    """Rename the matrices of the blocks, and give them a value."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        changed = {
            (rename(name) if "proj" in name else name): (
                tensor if value is None or "proj" not in name else value.clone()
            )
            for name, tensor in weights.items()
        }
        safetensors.torch.save_file(changed, path)

    return change


def write(name: str, content: bytes | dict[str, Any]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return change


def without_weights(*names: str) -> Change:
    """Leave files of these names in the place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"x")

    return change


def adapter_alone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    write("adapter_config.json", LORA)(folder)
    write("adapter_model.safetensors", b"")(folder)


QUANTIZED = "already quantised: "
KINDS: dict[str, tuple[Change, str, str]] = {
    "gptq": (change_config(quantization_config={"quant_method": "gptq", "bits": 4}), f"{QUANTIZED}GPTQ", "original"),
    "awq": (change_config(quantization_config={"quant_method": "awq"}), f"{QUANTIZED}AWQ", "original"),
    "bitsandbytes": (change_config(quantization_config={"load_in_4bit": True}), f"{QUANTIZED}bitsandbytes", "original"),
    "fp8": (change_config(quantization_config={"quant_method": "fp8"}), f"{QUANTIZED}FP8", "original"),
    "compressed": (
        change_config(quantization_config={"quant_method": "compressed-tensors"}),
        f"{QUANTIZED}compressed-tensors",
        "original",
    ),
    "mlx": (change_config(quantization={"group_size": 64, "bits": 4}), f"{QUANTIZED}MLX", "original"),
    "old_gptq_file": (write("quantize_config.json", {"bits": 4}), f"{QUANTIZED}GPTQ or AWQ", "original"),
    "old_gptq_tensors": (
        replace_tensors(lambda name: name.replace(".weight", ".qweight"), torch.zeros(4, 4, dtype=torch.int32)),
        rf"{QUANTIZED}GPTQ or AWQ \(model.*qweight in model.safetensors",
        "original",
    ),
    "mlx_tensors": (
        replace_tensors(lambda name: name, torch.zeros(4, 4, dtype=torch.uint32)),
        f"{QUANTIZED}MLX",
        "original",
    ),
    "fp8_tensors": (
        replace_tensors(lambda name: name, torch.zeros(4, 4).to(torch.float8_e4m3fn)),
        f"{QUANTIZED}FP8",
        "original",
    ),
    "bitsandbytes_tensors": (
        replace_tensors(lambda name: f"{name}.absmax", torch.zeros(4)),
        f"{QUANTIZED}bitsandbytes",
        "original",
    ),
    "adapter": (adapter_alone, r"is an adapter \(LORA\) of someone/base", "merge_and_unload"),
    "unmerged": (
        replace_tensors(lambda name: name.replace(".weight", ".lora_A.weight")),
        "holds the adapter weight",
        "merge_and_unload",
    ),
    "pointer_of_weights": (
        write("model.safetensors", POINTER),
        "model.safetensors is a git-lfs pointer",
        "git lfs pull",
    ),
    "pointer_of_tokenizer": (write("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer", "git lfs pull"),
    "pickle": (without_weights("pytorch_model.bin", "training_args.bin"), "only pickled weights", "save_pretrained"),
    "pth": (without_weights("consolidated.00.pth"), "only pickled weights", "a machine you trust"),
    "onnx": (without_weights("model.onnx"), r"for ONNX only \(model.onnx\)", "made from"),
    "core_ml": (without_weights("m.mlmodel"), "for Core ML only", "made from"),
    "tensorflow": (without_weights("tf_model.h5"), "for TensorFlow only", "made from"),
    "flax": (without_weights("flax_model.msgpack"), "for Flax only", "made from"),
    "openvino": (without_weights("openvino_model.xml"), "for OpenVINO only", "made from"),
    "sentence_transformers": (write("modules.json", b"[]"), "is a sentence-transformers model", "ForCausalLM"),
    "diffusers": (write("model_index.json", {}), "is a diffusers pipeline", "ForCausalLM"),
    "encoder": (change_config(model_type="bert"), r"an encoder \(bert\)", "ForCausalLM"),
    "seq2seq": (change_config(model_type="t5", is_encoder_decoder=True), "an encoder with a decoder", "ForCausalLM"),
    "classifier": (
        change_config(architectures=["LlamaForSequenceClassification"]),
        r"a classifier \(LlamaForSequenceClassification\)",
        "ForCausalLM",
    ),
    "pictures": (change_config(vision_config={}), "pictures or sound", "ForCausalLM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_by_its_name_and_with_the_next_step(kind: str, make_checkpoint: MakeCheckpoint) -> None:
    change, found, next_step = KINDS[kind]
    folder = make_checkpoint()
    check(folder)
    change(folder)
    with pytest.raises(UnsupportedModel, match=found) as caught:
        check(folder)
    assert next_step in caught.value.next_step


def test_the_files_of_a_training_run_beside_the_weights_do_not_matter(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(name="checkpoint-500")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        (folder / name).write_bytes(b"{}")
    check(folder)


def test_an_adapter_beside_a_model_is_left_out_and_said(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    assert adapter_note(ContainedFolder(folder)) is None
    write("adapter_config.json", LORA)(folder)
    safetensors.torch.save_file({"lora_A.weight": torch.zeros(8, 32)}, folder / "adapter_model.safetensors")
    check(folder)
    assert "an adapter lies beside the model and is left out" in str(adapter_note(ContainedFolder(folder)))


def test_a_repository_of_gguf_files_alone_asks_which_one() -> None:
    with pytest.raises(UnsupportedModel, match=r"only GGUF files, such as a\.gguf, b\.gguf") as caught:
        refuse_without_safetensors(["README.md", "b.gguf", "a.gguf"], "org/tiny-GGUF")
    assert caught.value.param == "gguf_file"


@pytest.mark.parametrize("kind", ["gptq", "mlx", "old_gptq_tensors", "adapter", "pointer_of_weights", "pickle"])
def test_a_plan_refuses_what_a_preparation_refuses(
    kind: str, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    change, *_ = KINDS[kind]
    folder = make_checkpoint()
    change(folder)
    assert main(["plan", str(folder), "--offline"]) == UnsupportedModel.exit_code
    in_plan = capsys.readouterr().err
    output = folder.parent / "out"
    assert main(["prepare", str(folder), "--offline", "--quiet", "--output", str(output)]) == 2
    assert capsys.readouterr().err == in_plan
    assert not output.exists()
