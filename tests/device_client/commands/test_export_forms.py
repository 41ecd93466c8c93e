"""``zo-device export --to``: a run or a bundle in a form for other programs, whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from exported_subject import tuned
from safetensors import safe_open

from shared.bundle.layout import ImageLayout
from shared.bundle.read import Bundle, read_bundle


@pytest.fixture
def bundle(store: ImageLayout) -> Bundle:
    return read_bundle(store, store.resolve("tiny:latest").digest)


@pytest.fixture
def run_of(home: Path, bundle: Bundle) -> Callable[..., str]:
    """Make a run of the tiny bundle and return its name."""

    def make(method: str = "sparse", name: str = "mine") -> str:
        tuned(bundle, home / "runs" / name, method)  # type: ignore[arg-type]
        return name

    return make


def test_a_run_for_transformers_is_compared_and_reported(command, run_of, tmp_path: Path) -> None:
    outcome = command("export", run_of(), str(tmp_path / "out"), "--to", "hf")
    assert (outcome.code, outcome.result["run"], outcome.result["to"]) == (0, "mine", "hf")
    assert 0 < outcome.result["max_logit_difference"] < 0.01 * outcome.result["largest_logit"]
    assert "functions" in (tmp_path / "out" / "README.md").read_text()
    assert "give it only to people who may know them" in outcome.told
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")).__name__ == "LlamaForCausalLM"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_bundle_is_exported_as_published(command, store, tmp_path: Path) -> None:
    outcome = command("export", "tiny", str(tmp_path / "out"), "--to", "hf", "--no-check")
    assert (outcome.code, "run" in outcome.result, "max_logit_difference" in outcome.result) == (0, False, False)


def test_a_run_for_ollama_is_a_gguf_file_and_a_modelfile(command, run_of, tmp_path: Path) -> None:
    outcome = command("export", run_of(), str(tmp_path / "out"), "--to", "ollama", "--outtype", "q8_0")
    assert (outcome.code, outcome.result["context_length"]) == (0, 128)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "mine-q8_0.gguf"]
    assert "FROM ./mine-q8_0.gguf" in (tmp_path / "out" / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("method", "parts"), [("sparse", {".values"}), ("lora", {".lora_A", ".lora_B"}), ("prefix", {"theta"})]
)
def test_the_delta_holds_the_runs_values_exactly(
    command, run_of, home: Path, bundle: Bundle, tmp_path: Path, method: str, parts: set[str]
) -> None:
    assert command("export", run_of(method), str(tmp_path / "out"), "--to", "delta").code == 0
    with safe_open(str(tmp_path / "out" / "delta.safetensors"), "pt") as file:
        assert file.metadata()["bundle"] == bundle.digest
        assert file.metadata()["method"] == method
        names = [entry.name for entry in bundle.config.block_tensors] if method != "prefix" else [""]
        ordered = [f"{name}{part}" for name in names for part in sorted(parts)]
        assert set(ordered) == set(file.keys())
        values = torch.cat([file.get_tensor(name).flatten() for name in ordered])
    with safe_open(str(home / "runs" / "mine" / "best.safetensors"), "pt") as file:
        assert torch.equal(values, file.get_tensor("theta"))


@pytest.mark.parametrize("words", [(), ("--to", "bundle")])
def test_a_run_needs_a_form(command, run_of, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = command("export", run_of(), str(tmp_path / "out"), *words)
    assert (outcome.code, outcome.result["error"]["param"]) == (2, "to")
    assert "--to hf" in outcome.result["error"]["next_step"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("gguf", ("--dtype", "float16")),
        ("delta", ("--outtype", "f16")),
        ("ollama", ("--no-check",)),
        ("bundle", ("--no-check",)),
    ],
)
def test_an_option_of_another_form_is_refused(
    command, store, tmp_path: Path, form: str, words: tuple[str, ...]
) -> None:
    outcome = command("export", "tiny", str(tmp_path / "out"), "--to", form, *words)
    assert (outcome.code, outcome.result["error"]["param"]) == (2, words[0].lstrip("-"))
    assert not (tmp_path / "out").exists()


def test_a_malformed_digest_is_named(command, store, tmp_path: Path) -> None:
    assert command("export", "tiny@sha256:12", str(tmp_path / "out")).result["error"]["type"] == "invalid-digest"


def test_a_bundle_has_no_delta(command, store, tmp_path: Path) -> None:
    assert command("export", "tiny", str(tmp_path / "out"), "--to", "delta").code == 2


def test_a_prefix_becomes_no_weights(command, run_of, tmp_path: Path) -> None:
    for form in ("hf", "gguf", "ollama"):
        outcome = command("export", run_of("prefix"), str(tmp_path / form), "--to", form)
        assert (outcome.code, outcome.result["error"]["type"]) == (2, "unsupported-model")
    assert list(tmp_path.glob(".*.partial")) == []


def test_what_is_neither_run_nor_bundle_exits_4(command, store, tmp_path: Path) -> None:
    outcome = command("export", "nothing", str(tmp_path / "out"), "--to", "hf")
    assert (outcome.code, "tiny:latest" in outcome.result["error"]["needed"]) == (4, True)


def test_a_name_of_both_a_run_and_a_bundle_is_refused(command, run_of, tmp_path: Path) -> None:
    outcome = command("export", run_of(name="tiny"), str(tmp_path / "out"), "--to", "hf")
    assert outcome.code == 2
    assert "for the bundle" in outcome.result["error"]["next_step"]


def test_a_run_whose_bundle_is_gone_exits_4_and_names_it(command, run_of, bundle: Bundle, tmp_path: Path) -> None:
    name = run_of()
    assert command("rm", "tiny").code == 0
    outcome = command("export", name, str(tmp_path / "out"), "--to", "hf")
    assert (outcome.code, bundle.digest in outcome.result["error"]["found"]) == (4, True)


@pytest.mark.parametrize("form", ["hf", "gguf", "ollama", "delta"])
def test_other_files_are_never_overwritten(command, run_of, tmp_path: Path, form: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"file")
    for name in ("photos", "file"):
        assert command("export", run_of(), str(tmp_path / name), "--to", form).code == 2
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    assert (tmp_path / "file").read_bytes() == b"file"


def test_an_interrupted_export_leaves_nothing(home: Path, run_of, tmp_path: Path) -> None:
    """SIGTERM comes while the folder is being written, which a named pipe in the place of a file makes sure of."""
    target = tmp_path / "deep" / "out"
    words = [sys.executable, "-m", "device_client.cli", "export", run_of(), str(target), "--to", "hf", "--quiet"]
    process = subprocess.Popen(words, env=os.environ | {"ZO_DEVICE_HOME": str(home)}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("deep/.out.*.partial")) and process.poll() is None and time.monotonic() < end:
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert not (tmp_path / "deep").exists()
