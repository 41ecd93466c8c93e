"""A real model: the published greedy text of stories260K, from a bundle that holds its weights without loss."""

from __future__ import annotations

from pathlib import Path

from lossless_bundle import make_lossless_bundle

from device_client.model.loader import load_model

# The output of karpathy/llama2.c for stories260K at temperature 0, as its own test suite expects it.
PUBLISHED_TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)


def test_stories260k_tells_the_published_story(real_data: Path, tmp_path: Path) -> None:
    model = load_model(make_lossless_bundle(tmp_path, real_data / "models" / "stories260K-hf"), device="cpu")

    tokens = model.generate(model.tokenizer.bos_ids, max_new_tokens=200, stop_ids=model.tokenizer.eos_ids)

    assert model.tokenizer.decode(list(tokens)).strip() == PUBLISHED_TEXT
