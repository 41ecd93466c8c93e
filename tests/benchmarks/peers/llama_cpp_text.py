"""llama.cpp's greedy text, by the server that a wheel of PyPI brings: a program of its own, JSON in and out.

    pip download --no-deps xllamacpp==2026.10.11549        # 34 MB, MIT; unzip it anywhere
    echo '{"gguf": …, "new_tokens": 32, "prompts": ["…"]}' | PYTHONPATH=<there> python llama_cpp_text.py

Prints [{"ids": what the prompt is in tokens, "new_ids": what follows}, …] on its last line. One thread, no sampling.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any


def main() -> None:
    """Answer the question on standard input."""
    import xllamacpp

    question = json.load(sys.stdin)
    settings = xllamacpp.CommonParams()
    settings.model.path = question["gguf"]
    settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)

    def ask(path: str, fields: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  its own server
            server.listening_address + path, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
        return answer

    found = []
    for prompt in question["prompts"]:
        ids = ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True}
        text = ask("/completion", {"prompt": ids, "n_predict": question["new_tokens"], **greedy})
        found.append({"ids": ids, "new_ids": text["tokens"]})
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # its threads would wait for more


if __name__ == "__main__":
    main()
