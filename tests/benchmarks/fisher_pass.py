"""How fast the Fisher pass is beside a plain forward and backward pass, and how well its peak memory is planned.

    OMP_NUM_THREADS=2 python tests/benchmarks/fisher_pass.py             about 10 minutes, 12 GiB of memory
    OMP_NUM_THREADS=1 python tests/benchmarks/fisher_pass.py --quick     small shapes only, a minute

Two shapes: picollama (hidden 320, 5 blocks) and two blocks of Llama-2-7B (hidden 4096, MLP 11008, vocabulary 32,000),
512 tokens, float32, random weights; activations kept, and recomputed. Every configuration runs in a process of its own.

    throughput_over_plain   median seconds of loss.backward() with the same weights' gradients, then freed
                            / median seconds of ``sum_squares``, one sequence each, alternating in one process
    peak_over_plan          high-water mark of a process that loads a checkpoint and sums all shards / planned peak
    beyond_over_block       (peak − process before − weights − sums and totals) / (one block's weights + activations)

Plain recomputation is transformers' own gradient checkpointing. Goals: at least 0.90; within 5 %; at most 1.
The headlines are the worst of all configurations; ``beyond`` is that of the large blocks with recomputation, the plan
that saves memory: picollama's blocks are smaller than what the mathematical libraries take once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

import torch  # noqa: E402
from random_network import SEVEN_BILLION, RandomNetwork, random_network  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from cloud_service.pipeline.calibration.sequences import Calibration  # noqa: E402
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork, LocalLauncher  # noqa: E402
from cloud_service.pipeline.fisher.shards import shard_count  # noqa: E402
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums  # noqa: E402
from cloud_service.pipeline.fisher.totals import FisherTotals  # noqa: E402
from cloud_service.pipeline.model.load_model import read_outline  # noqa: E402
from cloud_service.pipeline.planning.input_plan import NOMINAL_RATES  # noqa: E402
from cloud_service.pipeline.planning.machine_probe import LIBRARIES_BYTES  # noqa: E402
from cloud_service.pipeline.planning.memory_meter import MemoryMeter  # noqa: E402
from cloud_service.pipeline.planning.model_shape import read_model_shape  # noqa: E402
from cloud_service.pipeline.planning.peak_memory import FisherRun, PeakModel  # noqa: E402
from cloud_service.pipeline.planning.sequence_memory import SequenceMemory  # noqa: E402
from cloud_service.pipeline.planning.workload import Machine, Workload  # noqa: E402
from cloud_service.pipeline.workspace import Workspace  # noqa: E402
from shared.process_memory import process_bytes  # noqa: E402

TOKENS = 512
SHAPES: dict[str, dict[str, Any]] = {
    "picollama": {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 320, "intermediate_size": 832,
        "num_hidden_layers": 5, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
    "llama_7b_blocks": SEVEN_BILLION | {"num_hidden_layers": 2},
}  # fmt: skip
REPEATS = {"picollama": 15, "llama_7b_blocks": 5}
SEQUENCES = {"picollama": 32, "llama_7b_blocks": 4}
POLICIES = {"kept": False, "recomputed": True}


def main() -> None:
    """Run every configuration in its own process, write the result, record the headlines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="picollama only, nothing is recorded")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "SHAPE", "POLICY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, shape, policy = arguments.child
        figures = {"speed": speed_figures, "memory": memory_figures}[what](shape, POLICIES[policy])
        print(json.dumps(figures))
        return
    shapes = list(SHAPES)[:1] if arguments.quick else list(SHAPES)
    figures = {
        f"{shape}.{policy}": in_own_process("speed", shape, policy) | in_own_process("memory", shape, policy)
        for shape in shapes
        for policy in POLICIES
    }
    summary = {
        "throughput_over_plain": min(figure["throughput_over_plain"] for figure in figures.values()),
        "peak_over_plan": max((figure["peak_over_plan"] for figure in figures.values()), key=lambda r: abs(r - 1)),
        "beyond_over_block": figures[f"{shapes[-1]}.recomputed"]["beyond_over_block"],
    }
    result = {"threads": torch.get_num_threads(), "tokens": TOKENS, "configurations": figures, "worst": summary}
    if arguments.quick:
        print(json.dumps(result, indent=1))
        return
    path = write_result("fisher_pass", result)
    record_headlines(path, {f"fisher.{name}": (summary[name], "ratio") for name in summary})
    print(path.read_text())


def in_own_process(what: str, shape: str, policy: str) -> dict[str, Any]:
    """Return the figures that a fresh process prints."""
    command = [sys.executable, __file__, "--child", what, shape, policy]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def speed_figures(shape: str, recomputes: bool) -> dict[str, Any]:
    """Time our pass and the plain one, alternating."""
    made = random_network(SHAPES[shape], device="cpu", dtype=torch.float32)
    tokens = calibration_of(SHAPES[shape]["vocab_size"], 1)
    ours, plain = our_pass(made, tokens, recomputes), plain_pass(made, tokens, recomputes)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(REPEATS[shape] + 1):
        for name, action in (("ours", ours), ("plain", plain)):
            begin = time.perf_counter()
            action()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds_per_sequence": medians["ours"],
        "plain_seconds_per_sequence": medians["plain"],
        "throughput_over_plain": medians["plain"] / medians["ours"],
        "repeats": REPEATS[shape],
    }


def our_pass(made: RandomNetwork, calibration: Calibration, recomputes: bool) -> Callable[[], None]:
    """Return the Fisher pass over one sequence."""
    weights = made.weights(range(len(made.blocks)))
    sums = zero_sums(weights)
    recomputed = made.blocks if recomputes else ()

    def run() -> None:
        made.network.eval()
        sum_squares(made.network, weights, calibration, range(1), sums, recomputed_blocks=recomputed)

    return run


def plain_pass(made: RandomNetwork, calibration: Calibration, recomputes: bool) -> Callable[[], None]:
    """Return a forward and backward pass that keeps gradients until its end, as a training step does."""
    weights = made.weights(range(len(made.blocks)))
    tokens = calibration.tokens.long()

    def run() -> None:
        network = made.network
        if recomputes:
            network.train()  # transformers recomputes while training only; there is no dropout
            switch_checkpointing(network, "enable")
        for weight in weights.values():
            weight.requires_grad_(True)
        logits = network(input_ids=tokens, use_cache=False).logits[0, :-1]
        cross_entropy(logits, tokens[0, 1:]).backward()  # type: ignore[no-untyped-call]
        for weight in weights.values():
            assert weight.grad is not None
            weight.grad = None
            weight.requires_grad_(False)
        if recomputes:
            switch_checkpointing(network, "disable")

    return run


def switch_checkpointing(network: torch.nn.Module, state: str) -> None:
    """Call transformers' own switch, whose name has changed."""
    current, former = (getattr(network, f"{word}_checkpointing_{state}", None) for word in ("activation", "gradient"))
    (current or former)()


def memory_figures(shape: str, recomputes: bool) -> dict[str, Any]:
    """Load a checkpoint of random weights, sum all shards, and compare the peak with the plan's."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, __file__, "--write", shape, str(folder / "model")], check=True)
        return peak_figures(folder, shape, recomputes)


def peak_figures(folder: Path, shape: str, recomputes: bool) -> dict[str, Any]:
    """Run the pass on the checkpoint in ``folder`` / model."""
    (folder / "workspace").mkdir()
    outline, model_shape = read_outline(folder / "model"), read_model_shape(folder / "model")
    blocks, sequences = tuple(range(outline.block_count)), SEQUENCES[shape]
    baseline = process_bytes()[0]
    workload = Workload(sequences, TOKENS, shard_count(sequences))
    machine = Machine((), 1 << 40, baseline, NOMINAL_RATES)
    run = FisherRun((blocks,), recomputes, "accelerator", totals_in_memory=True)
    planned = PeakModel(model_shape, workload, machine).host("calibrating", run)
    totals = FisherTotals(Workspace(folder / "workspace"), outline.block_linears, sequences, keeps_in_memory=True)
    calibration = calibration_of(model_shape.vocabulary, sequences)
    work = FisherWork(
        outline, folder / "model", calibration, FisherPasses((blocks,), recomputes_activations=recomputes), "cpu"
    )
    meter = MemoryMeter()
    with meter.stage("calibrating"):
        LocalLauncher().estimate(work, totals, after_sequence=lambda _: None)
    assert totals.is_complete
    peak = meter.peaks["calibrating"].host_bytes
    held = 4 * model_shape.elements + 2 * 4 * model_shape.linear_elements
    block = 4 * model_shape.blocks[0].elements + SequenceMemory(model_shape, TOKENS, 4).block_bytes()
    return {
        "peak_bytes": peak,
        "planned_bytes": planned,
        "peak_over_plan": peak / planned,
        "before_bytes": baseline,
        "assumed_before_bytes": LIBRARIES_BYTES,
        "beyond_bytes": peak - baseline - held,
        "block_bytes": block,
        "beyond_over_block": (peak - baseline - held) / block,
    }


def write_checkpoint(shape: str, folder: Path) -> None:
    """Write a checkpoint of random float16 weights; done in a process of its own, whose memory does not count."""
    folder.mkdir(parents=True)
    made = random_network(SHAPES[shape], device="cpu", dtype=torch.float16)
    save_file(
        {name: parameter.detach() for name, parameter in made.network.named_parameters()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))


def calibration_of(vocabulary: int, rows: int) -> Calibration:
    """Return random sequences."""
    generator = torch.Generator().manual_seed(0)
    return Calibration.of_windows(torch.randint(0, vocabulary, (rows, TOKENS), generator=generator, dtype=torch.int32))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_checkpoint(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
