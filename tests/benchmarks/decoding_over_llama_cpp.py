"""How fast prompts are read and tokens written, beside llama.cpp with Q4_1, Q4_0 and Q4_K_M in the same process.

    generate     tokens a second, one after the other, behind 32 tokens
    prompt256    tokens a second of a prompt of 256 tokens
    decode.over_llama_cpp.<smollm2|7b_blocks>.<generate|prompt256>
                 ours over llama.cpp's with Q4_1, the format in which SmolLM2 is published; medians of turns that take
                 one another's place, with one or two threads, where that is least
    decode.over_llama_cpp_fastest.…
                 the same over the fastest of the three formats, which is Q4_0: its codes are one scale for 32 weights

``7b_blocks`` is three decoder blocks of Llama-2-7B's shape with a vocabulary of 4,096 and random weights: ours in
codebooks of 16 values for each row, theirs quantised by llama.cpp from other random weights. llama-cpp-python comes
from a folder of its own (``--peer``, its site-packages), so that this project does not depend on it. A process for each
number of threads; nothing else should run. Waiting threads of both programs spin for a moment, which costs whoever has
the next turn: with two threads each is faster alone. Takes ten minutes, most of it to quantise.
Run: python tests/benchmarks/decoding_over_llama_cpp.py --peer SITE_PACKAGES --home HOME --gguf SMOLLM2_Q4_1.gguf
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

PROMPT_TOKENS, BEFORE_TOKENS, TURN_TOKENS, TURNS, PROMPTS = 256, 32, 8, 40, 7
BLOCKS = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 3, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
BLOCK_VOCABULARY = 4096
FORMATS = ("Q4_1", "Q4_0", "Q4_K_M")


def main() -> None:
    """Measure both models with one and two threads, write the result, record the headlines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="site-packages with llama-cpp-python")
    parser.add_argument("--home", type=Path, required=True, help="a home of zo-device with the bundle of SmolLM2")
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2 in Q4_1")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.append(str(arguments.peer))
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]), arguments.home)))
        return
    import llama_cpp
    from recording import record_headlines, write_result

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"smollm2": quantized_smollm2(arguments.gguf, Path(scratch)), "7b_blocks": made_blocks(Path(scratch))}
        for name, folder in folders.items():
            for threads in (1, 2):
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--measure", name, str(folder)],
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, check=True,
                )  # fmt: skip
                found.setdefault(name, {})[f"{threads} threads"] = json.loads(done.stdout.splitlines()[-1])
    path = write_result("decoding_over_llama_cpp", {"llama_cpp_python": llama_cpp.__version__, "models": found})
    record_headlines(
        path,
        {
            f"decode.{key}.{name}.{what}": (least_ratio(by_threads, what, formats), "of llama.cpp's tokens a second")
            for name, by_threads in found.items()
            for what in ("generate", "prompt256")
            for key, formats in (("over_llama_cpp", FORMATS[:1]), ("over_llama_cpp_fastest", FORMATS))
        },
    )
    sys.stdout.write(path.read_text())


def least_ratio(by_threads: dict[str, dict[str, dict[str, float]]], what: str, formats: Sequence[str]) -> float:
    """Return ours over the fastest of some of llama.cpp's formats, at the number of threads where that is least."""
    ratios = []
    for measured in by_threads.values():
        ratios.append(measured["ours"][what] / max(measured[name][what] for name in formats))
    return round(min(ratios), 2)


def measure(name: str, folder: Path, home: Path) -> dict[str, dict[str, float]]:
    """Return tokens a second of ours and of each format of llama.cpp, in turns."""
    import llama_cpp

    threads = int(os.environ["OMP_NUM_THREADS"])
    write, read = {}, {}
    write["ours"], read["ours"] = ours(name, folder, home)
    for path in sorted(folder.glob("*.gguf")):
        counts = {"n_ctx": 1024, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
        peer = llama_cpp.Llama(str(path), verbose=False, **counts)
        write[path.stem], read[path.stem] = theirs(peer)
    written = in_turns(write, TURNS, TURN_TOKENS)
    prompts = in_turns(read, PROMPTS, PROMPT_TOKENS)
    return {each: {"generate": written[each], "prompt256": prompts[each]} for each in write}


def in_turns(workers: dict[str, Callable[[], None]], turns: int, tokens: int) -> dict[str, float]:
    """Return each worker's tokens a second, median of its turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns + 1):
        for name, work in workers.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: tokens / statistics.median(each[1:]) for name, each in seconds.items()}


def ours(name: str, folder: Path, home: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what writes some tokens, and what reads a prompt."""
    from device_client.model.backends.choose import BackendOptions
    from device_client.model.decoding.reader import reader_of
    from device_client.model.open import Machine, open_for_text
    from device_client.store import resolve_reference
    from shared.bundle.layout import ImageLayout
    from shared.bundle.read import read_bundle

    layout = ImageLayout(home / "bundles" if name == "smollm2" else folder / "bundle")
    reference = resolve_reference(layout, None)[1] if name == "smollm2" else None
    digest = reference.digest if reference else (folder / "digest").read_text()
    options = BackendOptions("native", home / "backends", lambda _: None)
    model = open_for_text(read_bundle(layout, digest), Machine(device="cpu", backend=options))
    model.write_theta(model.initial_theta())
    reader = reader_of(model)
    text = reader.begin()
    reader.read([text], [list(range(100, 100 + BEFORE_TOKENS))])

    def write() -> None:
        text.cut(BEFORE_TOKENS)
        for token in range(TURN_TOKENS):
            reader.read([text], [[500 + token]])

    return write, lambda: void(reader.read([reader.begin()], [list(range(100, 100 + PROMPT_TOKENS))]))


def void(_: object) -> None:
    """Return nothing."""


def theirs(peer: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the same of llama.cpp."""

    def begin(tokens: int) -> None:
        peer.reset()
        peer.eval(list(range(100, 100 + tokens)))

    begin(BEFORE_TOKENS)

    def write() -> None:
        peer.n_tokens = BEFORE_TOKENS
        for token in range(TURN_TOKENS):
            peer.eval([500 + token])

    return write, lambda: begin(PROMPT_TOKENS)


def quantized_smollm2(source: Path, scratch: Path) -> Path:
    """Return a folder with SmolLM2 in the three formats."""
    folder = scratch / "smollm2"
    folder.mkdir()
    (folder / "Q4_1.gguf").symlink_to(source.resolve())
    for name in ("Q4_0", "Q4_K_M"):
        quantize(source, folder / f"{name}.gguf", name)
    return folder


def made_blocks(scratch: Path) -> Path:
    """Return a folder with the blocks as a bundle, and in the three formats."""
    from random_bundle import make_case

    folder = scratch / "blocks"
    folder.mkdir()
    case = make_case(
        folder / "bundle", "llama", "per_row", sensitive=16384, vocabulary=BLOCK_VOCABULARY, embedding_bits=8, **BLOCKS
    )
    (folder / "digest").write_text(case.bundle.digest)
    plain = scratch / "blocks.gguf"
    write_gguf(plain)
    for name in FORMATS:
        quantize(plain, folder / f"{name}.gguf", name)
    return folder


def write_gguf(path: Path) -> None:
    """Write random blocks of the same shape in 16 bits."""
    import gguf
    import numpy as np

    hidden, wide, blocks = BLOCKS["hidden_size"], BLOCKS["intermediate_size"], BLOCKS["num_hidden_layers"]
    generator = np.random.Generator(np.random.Philox(0))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(BLOCKS["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(BLOCKS["num_attention_heads"])
    writer.add_head_count_kv(BLOCKS["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(BLOCK_VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (BLOCK_VOCABULARY, hidden), "output_norm": (hidden,), "output": (BLOCK_VOCABULARY, hidden),
    }  # fmt: skip
    for block in range(blocks):
        shapes |= {
            f"blk.{block}.{name}": shape
            for name, shape in {
                "attn_norm": (hidden,), "ffn_norm": (hidden,),
                **{f"attn_{part}": (hidden, hidden) for part in ("q", "k", "v", "output")},
                "ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
            }.items()
        }  # fmt: skip
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        else:
            writer.add_tensor(
                f"{name}.weight", (generator.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, name: str) -> None:
    """Let llama.cpp quantise a file."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp did not quantise {source} to {name}")


if __name__ == "__main__":
    main()
