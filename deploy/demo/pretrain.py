"""Pretrains a tiny Llama on the grammar's text, for about a minute, and saves it like any Hugging Face model.

Four blocks of width 192, grouped-query attention, a byte-level BPE of at most 1,024 tokens learnt from the same text.
AdamW, warm-up then linear decay over a fixed number of steps: the result depends on the seed and not on the clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, BATCH, CONTEXT, PEAK_LR, WARM_UP = 420, 32, 64, 4e-3, 30
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>"]


def pretrain(folder: Path, corpus: list[str], generator: np.random.Generator, advance: Callable[[int], None]) -> float:
    """Train on ``corpus``, save config, weights, tokenizer to ``folder`` and return the last training loss in nats."""
    tokenizer = train_tokenizer(corpus)
    stream = token_stream(tokenizer, corpus)
    model = LlamaForCausalLM(tiny_config(tokenizer.get_vocab_size()))
    initialise(model, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_share)
    loss_average = float("nan")
    for step in range(STEPS):
        windows = torch.from_numpy(generator.integers(0, len(stream) - CONTEXT, BATCH))
        tokens = stream[windows[:, None] + torch.arange(CONTEXT)]
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        value = float(loss.detach())
        loss_average = value if step == 0 else 0.95 * loss_average + 0.05 * value
        advance(step + 1)
    save(folder, model, tokenizer)
    return loss_average


def learning_rate_share(step: int) -> float:
    """Linear warm-up, then linear decay to 5 %."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return max(0.05, 1 - (step - WARM_UP) / (STEPS - WARM_UP))


def train_tokenizer(corpus: list[str]) -> Tokenizer:
    """Learn a byte-level BPE; special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, corpus: list[str]) -> Tensor:
    """All documents behind each other, each as <s> document </s>, int64."""
    encodings = tokenizer.encode_batch(corpus)
    return torch.tensor([token for encoding in encodings for token in (0, *encoding.ids, 1)])


def tiny_config(vocab_size: int) -> LlamaConfig:
    """The model's shape: 1.6 M weights in its linear layers."""
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip


def initialise(model: LlamaForCausalLM, generator: np.random.Generator) -> None:
    """Draw every matrix from N(0, 0.02²) with the given generator instead of torch's global one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                values = generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
                parameter.copy_(torch.from_numpy(values) * 0.02)


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the folder that a hub would serve: fp16 safetensors, config and tokenizer."""
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "model_max_length": 256, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
