"""A GGUF file as an ordinary Hugging Face folder in a workspace, written tensor by tensor.

    config.json · generation_config.json · tokenizer.json · tokenizer_config.json · chat_template.jinja · README.md
    model-00001-of-0000N.safetensors …     float16, and float32 where the file has float32
    model.safetensors.index.json           written last: with it the folder is whole

Everything after this reads that folder, with the same rules as for anybody's folder. Costs a piece of a tensor in main
memory, and on the disk two bytes for a weight. A file that was finished is not written again. Knows nothing about
calibration and plans.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.config_bounds import check_config
from cloud_service.pipeline.model.folder_kinds import refuse_pointers
from cloud_service.pipeline.model.gguf.configuration import ROPE_FACTORS, architecture_of, read_configuration
from cloud_service.pipeline.model.gguf.header import GgufHeader, read_header, refusal
from cloud_service.pipeline.model.gguf.tensors import SourceTensor, read_pieces, source_tensors
from cloud_service.pipeline.model.gguf.tokenizer import end_tokens, tokenizer_documents
from cloud_service.pipeline.model.load_model import build_skeleton
from cloud_service.progress import ProgressSink
from shared.api import Stage
from shared.architecture import safe_config
from shared.checkpoint_files import INDEX_NAME, shard_header, shards
from shared.durable_files import disk_errors, replacing, write_atomically

_SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header has been read and checked.

    Attributes:
        folder: Where it is.
        name: Its name.
        header: Its header.
        architecture: What config.json will be, reduced by ``safe_config``.
        tensors: Its tensors by their names in transformers.
        documents: The other files of the folder that it stands for.
    """

    folder: Path
    name: str
    header: GgufHeader
    architecture: dict[str, Any]
    tensors: dict[str, SourceTensor]
    documents: dict[str, bytes]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name."""
        return {name: source.shape for name, source in self.tensors.items()}

    @property
    def copied_bytes(self) -> int:
        """What the folder will take on the disk, but for some megabytes of documents."""
        return sum(source.size for source in self.tensors.values())


def read_gguf(folder: Path, name: str) -> GgufFile:
    """Return the GGUF file ``name`` in ``folder``, its header read; no weight is.

    Raises:
        UnsupportedModel: It is damaged, or does not describe a model of a family that is served; the message says why.
    """
    files = ContainedFolder(folder)
    refuse_pointers(files, [name])
    with files.open(name) as file, file.stream() as stream:
        header = read_header(stream, file.size, name)
        config = read_configuration(header, _rope_factors(header, stream))
    architecture = safe_config(config)
    check_config(architecture)
    parameters = dict(build_skeleton(architecture).named_parameters())
    tensors = source_tensors(header, config, list(parameters), architecture_of(header))
    for parameter, source in tensors.items():
        if source.shape != (shape := tuple(parameters[parameter].shape)):
            raise refusal(name, f"has the shape {source.shape} in {source.name!r}", f"{shape}, as its numbers say")
    return GgufFile(folder, name, header, architecture, tensors, _documents(header, architecture))


def missing_copy_bytes(file: GgufFile, target: Path) -> int:
    """Return the disk space that ``write_checkpoint`` still needs."""
    written = sum(path.stat().st_size for path in target.glob("*.safetensors")) if target.exists() else 0
    return 0 if (target / INDEX_NAME).exists() else max(0, file.copied_bytes - written)


def write_checkpoint(file: GgufFile, target: Path, progress: ProgressSink, *, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write the folder that the file stands for; nothing is done where it is whole.

    Args:
        file: From ``read_gguf``.
        target: The folder; whatever is in it was written by this function for the same file.
        progress: Receives the weights written so far, in bytes.
        shard_bytes: Length of a file of weights, if no single one is longer; always the same one for a folder.

    Raises:
        UnsupportedModel: A weight is not finite in float16, or the tokenizer is not one that is known.
        DiskError: The disk is full or not writable; finished files are kept.
    """
    if (target / INDEX_NAME).exists():
        return
    files = list(shards(file.tensors, shard_bytes))
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name, data in file.documents.items():
            write_atomically(target / name, data)
    progress.note(f"dequantising {file.name} ({', '.join(file.header.type_counts)}) into the workspace")
    progress.stage(Stage.RESOLVING, total=file.copied_bytes, unit="bytes")
    places: dict[str, str] = {}
    done = 0
    with ContainedFolder(file.folder).open(file.name) as opened, opened.stream() as stream:
        for number, shard in enumerate(files, 1):
            path = target / f"model-{number:05d}-of-{len(files):05d}.safetensors"
            if not path.exists():
                _write_shard(path, shard, stream, file.name, progress, done)
            places |= dict.fromkeys(shard, path.name)
            done += sum(source.size for source in shard.values())
            progress.advance(done)
    with disk_errors(target):
        write_atomically(target / INDEX_NAME, json.dumps({"metadata": {}, "weight_map": places}).encode())


def _rope_factors(header: GgufHeader, stream: BinaryIO) -> list[float] | None:
    if (stored := header.tensors.get(ROPE_FACTORS)) is None:
        return None
    if len(stored.shape) != 1 or stored.type.name != "F32":
        raise refusal(header.name, f"has {ROPE_FACTORS} of the shape {stored.shape}", "a float32 for each frequency")
    stream.seek(stored.offset)
    return [float(value) for value in np.frombuffer(stream.read(stored.size), "<f4")]


def _documents(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, bytes]:
    ends = end_tokens(header)
    generation = {key: config.get(key) for key in ("bos_token_id", "pad_token_id")}
    if ends:
        generation["eos_token_id"] = ends
    stated = header.text("general.license") or ""
    licence = stated if re.fullmatch(r"[\w.+-]{1,64}", stated, re.ASCII) else None
    card = f"---\nlicense: {licence}\n---\n" if licence else ""
    return tokenizer_documents(header) | {
        "config.json": json.dumps(config, indent=1, sort_keys=True).encode(),
        "generation_config.json": json.dumps(generation, indent=1, sort_keys=True).encode(),
        "README.md": f"{card}# The weights of {header.name}, dequantised\n".encode(),
    }


def _write_shard(
    path: Path, shard: Mapping[str, SourceTensor], stream: BinaryIO, name: str, progress: ProgressSink, done: int
) -> None:
    with disk_errors(path.parent), _finished_file(path) as output:
        output.write(shard_header(shard))
        for source in shard.values():
            for piece in read_pieces(stream, source, name):
                output.write(piece)
            progress.advance(done := done + source.size)


@contextmanager
def _finished_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name when everything is written."""
    temporary = path.with_suffix(".partial")
    with replacing(path, temporary), temporary.open("wb") as output:
        yield output
        output.flush()
        os.fsync(output.fileno())
