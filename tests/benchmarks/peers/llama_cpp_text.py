"""llama.cpp's greedy text, by the server that a wheel of PyPI brings: a program of its own, JSON in and out.

    pip download --no-deps xllamacpp==2026.10.11549        # 34 MB, MIT; unzip it anywhere
    echo '{"gguf": …, "new_tokens": 32, "prompts": ["…"]}' | PYTHONPATH=<there> python llama_cpp_text.py

Prints [{"ids": what the prompt is in tokens, "new_ids": what follows}, …] on its last line. One thread, no sampling.
With "id_prompts", which are tokens, it prints [[[token, log-probability], …], …] of the ten likeliest next tokens
instead, computed without flash attention, which rounds to float16; an empty list where the likeliest is no text by
itself.
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
    if "id_prompts" in question:
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)

    def ask(path: str, fields: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  its own server
            server.listening_address + path, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
        return answer

    greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True}
    found: list[Any] = []
    for ids in question.get("id_prompts", ()):
        answer = ask("/completion", {"prompt": ids, "n_predict": 1, "n_probs": 10, **greedy})
        (likeliest,) = answer.get("completion_probabilities") or [{"top_logprobs": []}]
        found.append([[each["id"], each["logprob"]] for each in likeliest["top_logprobs"]])
    for prompt in question.get("prompts", ()):
        ids = ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        text = ask("/completion", {"prompt": ids, "n_predict": question["new_tokens"], **greedy})
        found.append({"ids": ids, "new_ids": text["tokens"]})
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # its threads would wait for more


if __name__ == "__main__":
    main()
