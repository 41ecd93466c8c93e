"""Recognises what people keep models as besides checkpoints that can be prepared, and says what each needs first.

    git-lfs pointers          git lfs pull
    LoRA and other adapters   merge them into their model
    quantised weights         the original model (GPTQ, AWQ, bitsandbytes, MLX, FP8, compressed-tensors …)
    pickles                   save them as safetensors, on a machine that trusts them
    ONNX, Core ML, TensorFlow, Flax, OpenVINO …      the original weights
    encoders, sentence-transformers, classifiers, pictures, diffusers     another model

Recognised by names of files, by config.json, and by names and types of tensors: none of the files is run or unpickled.
Costs a read of config.json and of the headers of the weights. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.weight_files import ADAPTER_WEIGHTS, header_of, read_json, weight_files
from shared.errors import UnsupportedModel

ADAPTER_CONFIG = "adapter_config.json"
"""Name of the file that describes an adapter."""

_LFS_POINTER = b"version https://git-lfs.github.com/"
_MAX_POINTER_BYTES = 1024
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_WEIGHTS = ("optimizer.", "scheduler.", "rng_state", "training_args.", ADAPTER_WEIGHTS)
_OTHER_FRAMEWORKS = {
    ".onnx": "ONNX",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
    ".h5": "TensorFlow",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax",
    ".xml": "OpenVINO",
    ".engine": "TensorRT",
    ".npz": "NumPy (older MLX)",
    ".ot": "rust-bert",
}
_FOLDERS_OF_OTHER_KINDS = {
    "modules.json": "a sentence-transformers model: it gives vectors, not text",
    "config_sentence_transformers.json": "a sentence-transformers model: it gives vectors, not text",
    "model_index.json": "a diffusers pipeline: it gives pictures, not text",
}
_OTHER_TASKS = {
    "ForMaskedLM": "an encoder",
    "ForSequenceClassification": "a classifier",
    "ForTokenClassification": "a classifier of words",
    "ForQuestionAnswering": "a model that marks answers",
    "ForConditionalGeneration": "a model of an input (pictures, sound or another text) and a text",
    "ForImageClassification": "a classifier of pictures",
    "ForSpeechSeq2Seq": "a model of speech",
    "ForCTC": "a model of speech",
}
_ENCODERS = ("bert", "roberta", "distilbert", "electra", "deberta", "deberta-v2", "albert", "xlm-roberta", "mpnet",
             "modernbert", "nomic_bert")  # fmt: skip
_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FP8",
    "compressed-tensors": "compressed-tensors", "aqlm": "AQLM", "hqq": "HQQ", "mxfp4": "MXFP4", "quanto": "quanto",
    "eetq": "EETQ", "torchao": "torchao", "exl2": "EXL2", "exl3": "EXL3",
}  # fmt: skip
"""Value of ``quant_method`` → name of the method."""

_QUANTIZED_TENSORS = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".trellis": "EXL3",
    ".q_weight": "EXL2",
}
"""End of a tensor's name → the method that leaves such tensors."""


def refuse_other_kinds(files: ContainedFolder) -> None:
    """Refuse a folder that holds something else than a checkpoint which can be prepared.

    A folder without weights passes: plans need none.

    Raises:
        UnsupportedModel: It does; the message says what it is and what to do first.
    """
    names = files.names()
    refuse_pointers(files, names)
    has_weights = safetensors_among(names)
    if files.has(ADAPTER_CONFIG) and not has_weights:
        raise _unmerged(files, f"{files.root.name} is an adapter")
    for name, kind in _FOLDERS_OF_OTHER_KINDS.items():
        if name in names:
            raise _other_model(f"{files.root.name} is {kind} ({name})")
    if "config.json" in names:
        config = read_json(files, "config.json")
        _check_task(config)
        _check_config_is_not_quantized(config)
    if not has_weights:
        if others := [name for name in names if name.endswith((*_PICKLE_SUFFIXES, *_OTHER_FRAMEWORKS))]:
            refuse_without_safetensors(others, files.root.name)
        return
    for name in ("quantize_config.json", "quant_config.json", "quantization_config.json"):
        if name in names:
            raise _quantized("GPTQ or AWQ", name)
    for file in weight_files(files):
        _check_tensors(files, file)


def safetensors_among(names: Iterable[str]) -> bool:
    """Whether there are weights among the names of files: not an adapter's, not a training run's."""
    return any(name.endswith(".safetensors") and not name.startswith(_NOT_WEIGHTS) for name in names)


def adapter_note(files: ContainedFolder) -> str | None:
    """Return what a person should know of an adapter that lies beside a model and is not read, or None."""
    if not files.has(ADAPTER_CONFIG):
        return None
    return f"{ADAPTER_CONFIG}: an adapter lies beside the model and is left out; {_merge_command(files.root.name)}"


def refuse_pointers(files: ContainedFolder, names: Iterable[str]) -> None:
    """Refuse a folder that was cloned without git-lfs, where large files are notes of three lines.

    Raises:
        UnsupportedModel: One of the files that are read is such a note.
    """
    for name in names:
        if not name.endswith((".safetensors", ".json", ".gguf", ".model")):
            continue
        with files.open(name) as file:
            if file.size > _MAX_POINTER_BYTES:
                continue
            with file.stream() as stream:
                is_pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise UnsupportedModel(
                f"{name} is a git-lfs pointer, not the file itself",
                needed="the files that the pointers stand for",
                next_step="in the folder, type: git lfs install && git lfs pull",
                param="model",
            )


def refuse_without_safetensors(names: Iterable[str], model: str) -> None:
    """Refuse a checkpoint without safetensors, by what it has instead.

    Args:
        names: Of all its files.
        model: Its name, for messages.

    Raises:
        UnsupportedModel: Always.
    """
    files = sorted(name for name in names if not name.startswith(_NOT_WEIGHTS))
    if pickles := [name for name in files if name.endswith(_PICKLE_SUFFIXES)]:
        raise UnsupportedModel(
            f"{model} has only pickled weights ({pickles[0]})",
            needed="weights as .safetensors: a pickle can run code when it is opened",
            next_step="convert it on a machine you trust: "
            "model = AutoModelForCausalLM.from_pretrained(FOLDER); model.save_pretrained(NEW_FOLDER)",
            param="model",
        )
    if gguf := [name for name in files if name.endswith(".gguf")]:
        raise UnsupportedModel(
            f"{model} has only GGUF files, such as {', '.join(gguf[:3])}",
            needed="the name of one of them",
            next_step=f"name it: --gguf-file {gguf[0]}, or gguf_file in a request",
            param="gguf_file",
        )
    for name in files:
        if framework := _OTHER_FRAMEWORKS.get(PurePath(name).suffix):
            raise UnsupportedModel(
                f"{model} has its weights for {framework} only ({name})",
                needed="weights as .safetensors",
                next_step="give the model that it was made from; a converted one cannot be trained",
                param="model",
            )
    raise UnsupportedModel(
        f"{model} has no weight files",
        needed="a folder with config.json, tokenizer and weights as .safetensors, or a .gguf file",
        next_step="check the path; of a training run, give the folder of one checkpoint",
        param="model",
    )


def quantized_tensor_method(name: str, dtype: str) -> str | None:
    """Return the quantisation that a tensor of that name and type comes from, or None."""
    if dtype.startswith("F8"):
        return "FP8"
    if dtype == "U32" and name.endswith(".weight"):
        return "MLX"
    return next((method for ending, method in _QUANTIZED_TENSORS.items() if name.endswith(ending)), None)


def _check_tensors(files: ContainedFolder, file: str) -> None:
    for name, tensor in header_of(files, file).items():
        if ".lora_A." in name or ".lora_B." in name:
            raise _unmerged(files, f"{file} holds the adapter weight {name[:80]}")
        if method := quantized_tensor_method(name, tensor.dtype):
            raise _quantized(method, f"{name[:80]} in {file}")


def _check_task(config: Mapping[str, Any]) -> None:
    model_type, names = config.get("model_type"), config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if model_type in _ENCODERS:
        raise _other_model(f"config.json describes an encoder ({model_type}): it gives vectors, not text")
    if config.get("is_encoder_decoder") is True:
        raise _other_model(f"config.json describes an encoder with a decoder ({model_type})")
    if task := next((task for ending, task in _OTHER_TASKS.items() if architecture.endswith(ending)), None):
        raise _other_model(f"config.json describes {task} ({architecture[:80]})")
    if "vision_config" in config or "audio_config" in config:
        raise _other_model(f"config.json describes a model of pictures or sound and text ({model_type})")


def _check_config_is_not_quantized(config: Mapping[str, Any]) -> None:
    stated = config.get("quantization_config")
    if isinstance(stated, dict):
        method = stated.get("quant_method") or stated.get("quant_algo")
        if method is None and any(str(key).startswith(("load_in_", "_load_in_", "bnb_")) for key in stated):
            method = "bitsandbytes"
        name = _METHODS.get(str(method).lower(), str(method)[:40])
        raise _quantized(name, "quantization_config in config.json")
    if stated is not None:
        raise _quantized("an unknown method", "quantization_config in config.json")
    if isinstance(config.get("quantization"), dict):
        raise _quantized("MLX", "quantization in config.json")


def _quantized(method: str, evidence: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the weights are already quantised: {method} ({evidence})",
        needed="16- or 32-bit weights, or a GGUF file",
        next_step="give the id or folder of the original, unquantised model",
        param="model",
    )


def _unmerged(files: ContainedFolder, found: str) -> UnsupportedModel:
    stated = read_json(files, ADAPTER_CONFIG) if files.has(ADAPTER_CONFIG) else {}
    kind, base = (str(stated.get(key) or "")[:96] for key in ("peft_type", "base_model_name_or_path"))
    about = f" ({kind})" if kind else ""
    return UnsupportedModel(
        f"{found}{about}" + (f" of {base}" if base else ""),
        needed="a whole model, with the adapter merged into it",
        next_step=_merge_command(files.root.name),
        param="model",
    )


def _merge_command(folder: str) -> str:
    return (
        f"merge it: model = peft.AutoPeftModelForCausalLM.from_pretrained({folder!r}); "
        "model.merge_and_unload().save_pretrained(MERGED), and give MERGED with the tokenizer"
    )


def _other_model(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        found,
        needed="a causal language model, which continues a text",
        next_step="choose a model whose config.json names …ForCausalLM",
        param="model",
    )
