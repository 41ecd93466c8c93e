"""Batches of token rows, all of whose positions are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from device_client.model.token_batch import TokenBatch


def batch_of(rows: Sequence[list[int]], *, padding: int = 3, extra_columns: int = 0) -> TokenBatch:
    """Return the rows, padded on the right."""
    columns = max(map(len, rows)) + extra_columns
    ids = torch.tensor([row + [padding] * (columns - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in rows])
    wanted = mask.nonzero()
    return TokenBatch(ids, mask, wanted[:, 0], wanted[:, 1])


def batch_of_lengths(*lengths: int) -> TokenBatch:
    """Return random rows of these lengths; a row of one length is the same in every batch."""
    return batch_of([np.random.default_rng(length).integers(4, 250, length).tolist() for length in lengths])
