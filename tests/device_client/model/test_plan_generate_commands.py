"""``zo-device plan`` and ``zo-device generate`` through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from random_bundle import make_case
from tiny_bundle import TinyBundle, make_tiny_bundle

from device_client.cli import main
from device_client.console import printable
from device_client.model.loader import load_model
from device_client.tuning.run_directory import RunDirectory
from shared.bundle.layout import manifest_descriptor
from shared.bundle.read import read_bundle
from shared.perturbation import random_generator


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def stored(home: Path) -> TinyBundle:
    return make_tiny_bundle(home / "bundles")


@pytest.fixture(autouse=True)
def _at_home(home: Path, stored: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(home))


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    exit_code = main([*words, "--json"])
    return exit_code, json.loads(capsys.readouterr().out)


def test_plan_returns_the_parts_and_their_sum(capsys: pytest.CaptureFixture[str], stored: TinyBundle) -> None:
    exit_code, plan = json_of(capsys, "plan", "tiny", "--device", "cpu", "--length", "100", "--rows", "4")

    assert exit_code == 0
    assert (plan["bundle"], plan["rows"], plan["columns"]) == (stored.digest, 4, 100)
    assert plan["micro_batch_rows"] == 4
    assert plan["total_bytes"] == sum(plan["parts"].values()) <= plan["budget_bytes"] == 8 * 2**30


def test_plan_predicts_memory_and_cost_of_upper_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "tiny", "--device", "cpu", "--length", "100", "--rows", "4", "--sequences", "50", "--blocks")
    _, whole = json_of(capsys, *words, "all")
    exit_code, upper = json_of(capsys, *words, "auto")

    assert (exit_code, upper["blocks"], whole["blocks"]) == (0, "upper:1", "all")  # a third of two, rounded up
    assert upper["tuned_values"] * 2 == whole["tuned_values"]
    assert 0.5 < upper["step_cost_share"] < upper["step_cost_share_of_new_rows"] < whole["step_cost_share"] == 1
    assert (upper["kept_states_bytes"], whole["kept_states_bytes"]) == (50 * 100 * 32 * 4, 0)
    assert upper["parts"]["kept hidden states"] == (50 + 4) * 100 * 32 * 4


def test_plan_says_what_upper_blocks_cost_and_keep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--device", "cpu", "--length", "100", "--blocks", "upper:1"]) == 0
    spoken = " ".join(capsys.readouterr().err.split())
    assert "the last 1 of 2 blocks" in spoken
    assert "for 1,500 of 1,500 sequences" in spoken


def test_plan_shrinks_the_micro_batch_to_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, plan = json_of(capsys, "plan", "tiny", "--device", "cpu", "--rows", "4096", "--memory-budget", "600MiB")

    assert exit_code == 0
    assert 1 < plan["micro_batch_rows"] < 4096
    assert plan["points_at_once"] == 2  # batches short enough to pair take less than the widest one
    assert plan["total_bytes"] <= 600 * 2**20


def test_plan_counts_queries_and_their_points(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "tiny", "--device", "cpu", "--length", "100", "--rows", "4", "--dtype", "bfloat16")
    _, one = json_of(capsys, *words)
    _, many = json_of(capsys, *words, "--queries", "4", "--answers", "3")
    _, none = json_of(capsys, *words, "--queries", "0")

    assert [plan["points_at_once"] for plan in (one, many, none)] == [2, 8, 1]
    assert [plan["queries"] for plan in (one, many, none)] == [1, 4, 0]
    assert (one["answers_per_row"], many["answers_per_row"]) == (1, 3)
    assert many["parts"]["activations and logits"] == 4 * one["parts"]["activations and logits"]


def test_plan_counts_the_backend_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "tiny", "--device", "cpu")
    likeliest, native, reference = (
        json_of(capsys, *words, "--backend", name)[1] for name in ("auto", "native", "reference")
    )

    assert [plan["backend"] for plan in (likeliest, native, reference)] == ["native", "native", "reference"]
    assert likeliest == native
    assert native["parts"]["workspace"] < reference["parts"]["workspace"]


def test_plan_shows_both_orders_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "tiny", "--device", "cpu", "--length", "100", "--rows", "4")
    _, plan = json_of(capsys, *words)
    first_order = plan["first_order"]

    assert first_order["micro_batch_rows"] == 4
    assert first_order["total_bytes"] == sum(first_order["parts"].values())
    assert first_order["parts"]["inputs of blocks"] == 2 * 4 * 100 * 32 * 4  # blocks, tokens, hidden size, float32
    assert first_order["parts"]["theta and moments"] == 14 * 8 * 4 * 7
    same = {"codes", "codebooks and scales", "unquantised parameters", "workspace", "libraries"}
    assert all(first_order["parts"][part] == plan["parts"][part] for part in same)

    assert main([*words]) == 0
    shown = capsys.readouterr().err
    for text in ("zeroth order", "first order", "inputs of blocks", "First order: 4 of 4 sequences at a time"):
        assert text in shown


def test_plan_says_where_first_order_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "tiny", "--device", "cpu", "--length", "128", "--rows", "1", "--queries", "1")
    _, plan = json_of(capsys, *words)
    between = (plan["total_bytes"] + plan["first_order"]["total_bytes"]) // 2
    assert plan["total_bytes"] < between

    _, tight = json_of(capsys, *words, "--memory-budget", str(between))
    assert tight["first_order"] is None
    assert main([*words, "--memory-budget", str(between)]) == 0
    assert "First order does not fit" in capsys.readouterr().err


def test_plan_shows_every_part_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cpu"]) == 0

    shown = capsys.readouterr().err
    for part in (
        "codes",
        "workspace",
        "theta and z",
        "activations and logits",
        "packed operands",
        "allocator slack",
        "libraries",
        "in all",
        "1 × 16 × 128 tokens on cpu, native backend",
        "Micro-batch: 16 of 16 sequences at a time within 8.0 GiB; 2 of 2 points side by side in passes of up to 256 "
        "tokens.",
        "Left for decoded weights: 7.",
    ):
        assert part in shown


@pytest.mark.parametrize("flags", ["fpu avx512_bf16 avx512vbmi amx_bf16 amx_int8", "fpu"])
def test_plan_leaves_nothing_for_decoded_weights_where_a_matrix_unit_decodes_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr("device_client.model.backends.native.cpu.CPUINFO", tmp_path / "cpuinfo")
    bundle = make_case(tmp_path / "bundles", "llama", hidden_size=128, intermediate_size=256).bundle
    manifest = bundle.layout.read_blob(bundle.digest, max_bytes=1 << 20)
    bundle.layout.tag("wide:latest", manifest_descriptor(manifest))
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    has_unit = "amx" in flags

    for words, is_decoded in (
        (("--dtype", "bfloat16"), not has_unit),
        (("--dtype", "bfloat16", "--backend", "reference"), True),
        (("--dtype", "float16"), True),
        ((), True),
    ):
        assert main(["plan", "wide", "--device", "cpu", "--json", *words]) == 0
        printed = capsys.readouterr()
        assert ("Left for decoded weights" in printed.err) is is_decoded
        assert (json.loads(printed.out)["decoded_cache_bytes"] > 0) is is_decoded


@pytest.mark.parametrize("command", [("plan", "tiny"), ("generate", "tiny", "Hello")])
def test_a_budget_that_is_too_small_ends_with_code_8(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    exit_code, result = json_of(capsys, *command, "--device", "cpu", "--memory-budget", "1MiB")

    assert exit_code == 8
    assert result["error"]["type"] == "resource-error"
    assert "at least" in result["error"]["needed"]


@pytest.mark.parametrize("command", [("plan", "tiny"), ("generate", "tiny", "Hello", "--max-new-tokens", "1")])
def test_the_next_step_of_a_budget_that_is_too_small_is_an_option_that_does(
    capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    _, result = json_of(capsys, *command, "--device", "cpu", "--memory-budget", "10MiB")

    option, size = result["error"]["next_step"].partition(",")[0].split()
    assert option == "--memory-budget"
    assert json_of(capsys, *command, "--device", "cpu", option, size)[0] == 0
    assert json_of(capsys, *command, "--device", "cpu", option, f"{float(size.removesuffix('MiB')) - 0.1}MiB")[0] == 8


def test_generate_continues_greedily(capsys: pytest.CaptureFixture[str], stored: TinyBundle) -> None:
    model = load_model(read_bundle(stored.layout, stored.digest), device="cpu")
    prompt = [256, *model.tokenizer.encode("Hello")]
    expected = list(model.generate(prompt, max_new_tokens=6, stop_ids=[257]))

    exit_code, result = json_of(capsys, "generate", "tiny", "Hello", "--max-new-tokens", "6", "--device", "cpu")

    assert exit_code == 0
    assert result["text"] == model.tokenizer.decode(expected)
    assert (result["prompt_tokens"], result["new_tokens"], result["seed"]) == (6, len(expected), None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generate_computes_in_the_format_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], stored: TinyBundle, dtype: str
) -> None:
    words = ("generate", "tiny", "Once", "--max-new-tokens", "8", "--device", "cpu", "--dtype", dtype)
    exit_code, found = json_of(capsys, *words)

    model = load_model(read_bundle(stored.layout, stored.digest), device="cpu", compute_dtype=getattr(torch, dtype))
    prompt = model.tokenizer.bos_ids + model.tokenizer.encode("Once")
    assert (exit_code, found["compute_dtype"]) == (0, dtype)
    assert found["text"] == model.tokenizer.decode(list(model.generate(prompt, max_new_tokens=8)))


def test_generate_streams_the_text_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "tiny", "Hello", "--max-new-tokens", "6", "--device", "cpu")
    _, result = json_of(capsys, *words)

    assert main([*words]) == 0

    assert capsys.readouterr().out.rstrip("\n") == printable(result["text"]).rstrip("\ufffd\n")


def test_generate_repeats_a_sample_by_its_seed(capsys: pytest.CaptureFixture[str], stored: TinyBundle) -> None:
    words = ("generate", "tiny", "Hello", "--max-new-tokens", "8", "--temperature", "2", "--device", "cpu")
    model = load_model(read_bundle(stored.layout, stored.digest), device="cpu")
    prompt = [256, *model.tokenizer.encode("Hello")]
    sample = model.generate(prompt, max_new_tokens=8, temperature=2, generator=random_generator(11), stop_ids=[257])

    _, drawn = json_of(capsys, *words)
    _, again = json_of(capsys, *words, "--seed", str(drawn["seed"]))
    _, seeded = json_of(capsys, *words, "--seed", "11")

    assert again["text"] == drawn["text"]
    assert seeded["text"] == model.tokenizer.decode(list(sample))


def make_run(folder: Path, bundle_digest: str, theta: torch.Tensor) -> None:
    run = RunDirectory(folder)
    run.create()
    run.write_json("config.json", {"bundle_digest": bundle_digest})
    run.write_theta("best.safetensors", theta, 1)


def test_generate_speaks_with_the_values_of_a_run(
    capsys: pytest.CaptureFixture[str], stored: TinyBundle, home: Path
) -> None:
    model = load_model(read_bundle(stored.layout, stored.digest), device="cpu")
    untuned = list(model.generate([256, 7], max_new_tokens=6))
    theta = model.initial_theta() * -20
    model.write_theta(theta)
    expected = list(model.generate([256, 7], max_new_tokens=6))
    assert expected != untuned
    make_run(home / "runs" / "mine", stored.digest, theta)
    words = (
        "generate",
        "tiny",
        model.tokenizer.decode([7]),
        "--max-new-tokens",
        "6",
        "--device",
        "cpu",
        "--raw",
        "--run",
    )

    by_name = json_of(capsys, *words, "mine")[1]
    by_folder = json_of(capsys, *words, str(home / "runs" / "mine"))[1]

    assert by_name["text"] == by_folder["text"] == model.tokenizer.decode(expected)


@pytest.mark.parametrize(("digest", "count"), [("sha256:" + "0" * 64, 112), (None, 3)])
def test_a_run_of_another_bundle_is_refused(
    capsys: pytest.CaptureFixture[str], stored: TinyBundle, tmp_path: Path, digest: str | None, count: int
) -> None:
    make_run(tmp_path / "other", digest or stored.digest, torch.zeros(count))

    exit_code, result = json_of(capsys, "generate", "tiny", "Hello", "--raw", "--run", str(tmp_path / "other"))

    assert (exit_code, result["error"]["type"]) == (11, "conflict")


@pytest.mark.parametrize(
    "option",
    [("--max-new-tokens", "0"), ("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--seed", "-1")],
)
def test_generate_refuses_options_out_of_range(capsys: pytest.CaptureFixture[str], option: tuple[str, str]) -> None:
    exit_code, result = json_of(capsys, "generate", "tiny", "Hello", *option)

    assert exit_code == 2
    assert option[0] in result["error"]["found"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("generate", "absent", "Hello"), 4),
        (("generate", "tiny", "Hello", "--run", "absent"), 4),
        (("generate", "tiny", "x" * 200), 9),
        (("plan", "absent"), 4),
        (("plan", "tiny", "--rows", "0"), 2),
        (("plan", "tiny", "--length", "0"), 2),
        (("plan", "tiny", "--queries", "-1"), 2),
        (("plan", "tiny", "--memory-budget", "much"), 2),
        (("plan", "tiny", "--backend", "abacus"), 2),
        (("plan", "tiny", "--backend", "triton", "--device", "cpu"), 8),
        (("plan", "tiny", "--device", "abacus"), 8),
    ],
)
def test_a_wrong_call_ends_with_its_code(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int) -> None:
    assert json_of(capsys, *words)[0] == code


def test_generating_imports_no_library_that_takes_seconds() -> None:
    """transformers alone takes longer to import than everything else until the first token."""
    slow = {"transformers", "matplotlib", "scipy", "triton", "sympy", "torch._dynamo", "pandas", "sklearn"}
    program = (
        "import sys; from device_client.cli import main; "
        "code = main(['generate', 'tiny', 'Hello', '--max-new-tokens', '2', '--quiet']); "
        f"print(code, sorted({slow!r} & set(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "0 []"
