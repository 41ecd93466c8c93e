"""Takes runs of a real model elsewhere, and looks at what arrives.

    python tests/benchmarks/take_elsewhere.py --home HOME --runs RUN … --long RUN --llama-cpp FOLDER

``--home`` is a device's home with the bundle; ``--runs`` are finished runs in it, the first of which is exported, and
``--long`` is one of 2,000 steps. ``--llama-cpp`` holds the package ``xllamacpp`` (see ``peers/llama_cpp_text``).

* hf: the export's own comparison; and AutoModelForCausalLM.from_pretrained, whose logits must be those it compared.
* gguf: the tokens of texts, and 64 more that llama.cpp and the run each find likeliest, until they differ.
* families: of a random model of each family that is written as GGUF, the log-probabilities of the ten likeliest next
  tokens after texts of random bytes, beside those of transformers.
* share and apply: bytes of the artifact; the run made again from its journal in another home, and compared with
  the run bit for bit; the same with values, up to float16.

Writes results/take_elsewhere.json and the headlines ``export.hf_max_logit_difference``,
``export.gguf_same_greedy_tokens``, ``share.bytes_2000_steps`` and ``replay.identical``. Two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from recording import record_headlines, write_result  # noqa: E402

from shared.perturbation import random_generator  # noqa: E402

NEW_TOKENS = 64
TEXTS = (
    "Once upon a time there was",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "The gate is broken and nobody noticed. Ask",
    "def fibonacci(n):\n    ",
    "In 1969, 12345 people\n\n  don't  know çé 日本 \t🙂, but they said:",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the capital of France?\nA:",
)
GEMMA = {"query_pre_attn_scalar": 16}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}},
    "llama llama3": {"rope_parameters": LLAMA_3 | {"original_max_position_embeddings": 32}},
    "llama yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16
        }
    },
    "llama biases": {"attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA
    | {
        "rope_local_base_freq": 1e4, "rope_theta": 1e6, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
}  # fmt: skip


def main() -> None:
    """Export, share, apply, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--long", required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    given = parser.parse_args()
    exported = given.runs[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        hf = {
            dtype: checkpoint(given.home, exported, work / dtype, dtype) for dtype in ("float16", "bfloat16", "float32")
        }
        related = {name: log_probabilities(work / name, name, given.llama_cpp) for name in RANDOM_MODELS}
        gguf = {form: greedy(given.home, exported, work / form, form, given.llama_cpp) for form in ("f16", "q8_0")}
        shared = [carried(given.home, run, work / run) for run in [*given.runs, given.long]]
    long = shared[-1]
    if long["steps"] != 2000:
        raise SystemExit(f"{given.long} has {long['steps']} steps; needed 2000")
    result = {
        "model": "SmolLM2-135M-Instruct, 4 bits (lut, gptq), embedding in 8 bits",
        "exported_run": exported,
        "hf": hf,
        "gguf": gguf,
        "families": related,
        "shared": shared,
        "long_run": "2,000 measured steps of three upper blocks on rows of two words: real in length, not in task",
    }
    path = write_result("take_elsewhere", result)
    same = gguf["f16"]
    record_headlines(
        path,
        {
            "export.hf_max_logit_difference": (
                round(hf["float16"]["max_logit_difference"], 4),
                f"logit, of up to {hf['float16']['largest_logit']:.1f}",
            ),
            "export.gguf_same_greedy_tokens": (same["same_tokens"], f"tokens of {same['tokens']}"),
            "share.bytes_2000_steps": (long["journal"]["content_bytes"], "bytes"),
            "replay.identical": (all(run["journal"]["is_identical"] for run in shared), "bool"),
        },
    )
    print(path.read_text())


def command(home: Path, *words: str | Path) -> dict[str, Any]:
    """Return the JSON answer of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "device_client.cli", *map(str, words), "--json", "--quiet"],
        env=os.environ | {"ZO_DEVICE_HOME": str(home)}, check=True, stdout=subprocess.PIPE, cwd=HERE.parents[1],
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def checkpoint(home: Path, run: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Return how a checkpoint for transformers differs from the run."""
    import torch
    import transformers

    from device_client.export.self_check import TEXT, plain_logits

    begin = time.monotonic()
    answer = command(home, "export", run, folder, "--to", "hf", "--dtype", dtype)
    seconds = time.monotonic() - begin
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"][:64]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    kept = ("max_logit_difference", "largest_logit", "same_likeliest_tokens", "positions", "size_bytes")
    return {name: answer[name] for name in kept} | {
        "seconds": round(seconds, 1),
        "from_pretrained_max_difference": float((logits - plain_logits(folder, ids)).abs().max()),
    }


def greedy(home: Path, run: str, folder: Path, outtype: str, llama_cpp: Path) -> dict[str, Any]:
    """Return how long llama.cpp and the run write the same text."""
    from device_client.export.subject import find_subject
    from device_client.model.open import Machine, open_for_text
    from device_client.settings import Settings
    from device_client.tuning.tuned_values import answer_as_tuned

    answer = command(home, "export", run, folder, "--to", "gguf", "--outtype", outtype)
    question = {"gguf": str(folder / answer["file"]), "new_tokens": NEW_TOKENS, "prompts": TEXTS}
    theirs = asked_of_llama_cpp(question, llama_cpp)
    subject = find_subject(Settings(home=home), run)
    model = open_for_text(subject.bundle, Machine(device="cpu"))
    assert subject.tuned is not None
    answer_as_tuned(subject.tuned.directory, model)
    ends = model.tokenizer.eos_ids
    rows = []
    for text, found in zip(TEXTS, theirs, strict=True):
        ids = model.tokenizer.encode_prompt(text)
        own = list(model.generate(ids, max_new_tokens=NEW_TOKENS, stop_ids=ends))
        other = [token for token in found["new_ids"] if token not in ends]
        pairs = enumerate(zip(own, other, strict=False))
        same = next((index for index, (one, two) in pairs if one != two), min(len(own), len(other)))
        rows.append({"same_prompt": ids == found["ids"], "tokens": max(len(own), len(other)), "same_tokens": same})
    return {
        "size_bytes": answer["size_bytes"],
        "same_prompts": all(row["same_prompt"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "same_tokens": sum(row["same_tokens"] for row in rows),
        "texts": rows,
    }


def log_probabilities(folder: Path, name: str, llama_cpp: Path) -> dict[str, Any]:
    """Return how far llama.cpp's log-probabilities of a random model are from those of transformers."""
    import torch
    from exported_subject import published
    from random_bundle import make_case

    from device_client.export.gguf_file import GgufFile

    family, changes = name.partition(" ")[0], RANDOM_MODELS[name]
    case = make_case(folder / "bundle", family, vocabulary=260, tokenizer_json=tokenizer_with_a_merge(), **changes)
    GgufFile(published(case.bundle), "f16").write(folder / "model.gguf", lambda _: None)
    drawn = random_generator(0).integers(0, 256, (6, 48)).tolist()
    prompts = [[256, *ids[:length]] for ids in drawn for length in range(6, 49, 2)]
    found = asked_of_llama_cpp({"gguf": str(folder / "model.gguf"), "id_prompts": prompts}, llama_cpp)
    differences = []
    with torch.no_grad():
        for ids, likeliest in zip(prompts, found, strict=True):
            wanted = torch.log_softmax(case.reference(input_ids=torch.tensor([ids])).logits[0, -1], 0)
            differences += [abs(float(wanted[token]) - log_probability) for token, log_probability in likeliest]
    return {"log_probabilities": len(differences), "max_difference": max(differences)}


def tokenizer_with_a_merge() -> str:
    """Return one token per byte and one of two bytes: llama.cpp takes no byte-level tokenizer without merges."""
    from tiny_bundle import byte_tokenizer_json

    document = json.loads(byte_tokenizer_json())
    document["model"]["vocab"]["th"] = 259
    document["model"]["merges"] = [["t", "h"]]
    return json.dumps(document)


def asked_of_llama_cpp(question: dict[str, Any], llama_cpp: Path) -> Any:
    """Return what ``peers/llama_cpp_text`` prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / "peers" / "llama_cpp_text.py")], input=json.dumps(question), text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(llama_cpp)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def carried(home: Path, run: str, work: Path) -> dict[str, Any]:
    """Return what a run takes to share in either form, and what arrives in another home."""
    other = work / "home"
    other.mkdir(parents=True)
    for name in ("bundles", "backends"):
        (other / name).symlink_to(home / name)
    shutil.copyfile(home / "trusted_keys.json", other / "trusted_keys.json")
    result = json.loads((home / "runs" / run / "result.json").read_text())
    found: dict[str, Any] = {"run": run, "steps": result["steps_done"], "best_step": result["best_step"]}
    for form in ("journal", "values"):
        sent = command(home, "share", run, work / form, "--as", form, "--name", form, "--yes")
        begin = time.monotonic()
        arrived = command(other, "apply", work / form, "--trusted-key", sent["signer"])
        seconds = time.monotonic() - begin
        found[form] = {
            "content_bytes": sent["content_bytes"],
            "size_bytes": sent["size_bytes"],
            "apply_seconds": round(seconds, 1),
            **compared(home / "runs" / run, Path(arrived["path"])),
        }
    return found


def compared(run: Path, applied: Path) -> dict[str, Any]:
    """Return whether best and last values have the same bits, and how far the best ones are apart."""
    from device_client.tuning.run_directory import RunDirectory, load_theta

    one, two = load_theta(run), load_theta(applied)
    is_identical = one.numpy().tobytes() == two.numpy().tobytes()
    last, again = (RunDirectory(folder).read_theta("last.safetensors") for folder in (run, applied))
    if last is not None and again is not None:  # of a journal; the last values come after many more steps
        is_identical = is_identical and last.theta.numpy().tobytes() == again.theta.numpy().tobytes()
    return {"is_identical": is_identical, "max_difference": float((one - two).abs().max())}


if __name__ == "__main__":
    main()
