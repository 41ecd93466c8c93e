"""Real weights with real importance, and heavy-tailed rows made up in their likeness, to try quantisers on."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

Rows = tuple[Tensor, Tensor]


def real_rows(model: Path, texts: Path, sequences: int, tokens: int) -> dict[str, Rows]:
    """Return each linear weight of the model's blocks as (weight, importance), float32, by name.

    Importance as the pipeline has it: squared gradients of single sequences, averaged; a tenth of the row's mean on
    top; 0 for the largest 0.1 % of the weight, which are stored apart.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = {n: p for n, p in network.named_parameters() if p.ndim == 2 and ".layers." in n}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sequence in _sequences(texts, tokenizer, sequences, tokens):
        loss = network(input_ids=sequence[None], labels=sequence[None]).loss
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            squares[name] += gradient**2 / sequences
    return {name: (weight.detach(), _importance(squares[name])) for name, weight in weights.items()}


def heavy_tailed_rows(rows: int, columns: int, seed: int) -> Rows:
    """Return made-up rows: Student-t weights (5 degrees of freedom), log-normal importance (σ = 1.5) and the floor."""
    generator = torch.Generator().manual_seed(seed)
    size = (rows, columns)
    chi = torch.randn(5, *size, generator=generator).square_().mean(dim=0).sqrt_()
    weight = (0.02 * torch.randn(size, generator=generator) / chi).half().float()
    return weight, _importance(torch.exp(1.5 * torch.randn(size, generator=generator)))


def _sequences(texts: Path, tokenizer: object, sequences: int, tokens: int) -> Tensor:
    found: list[int] = []
    with texts.open(encoding="utf-8") as lines:
        for line in islice(lines, 200, None):
            found += tokenizer(json.loads(line)["text"], truncation=True, max_length=tokens).input_ids  # type: ignore[operator]
            if len(found) >= sequences * tokens:
                break
    return torch.tensor(found[: sequences * tokens]).view(sequences, tokens)


def _importance(squares: Tensor) -> Tensor:
    importance = squares / squares.mean(dim=1, keepdim=True) + 0.1
    importance.view(-1)[squares.flatten().topk(squares.numel() // 1000).indices] = 0
    return importance
