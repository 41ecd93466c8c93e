"""What a batch accepts."""

from __future__ import annotations

import pytest
import torch

from device_client.model.token_batch import TokenBatch

IDS = torch.tensor([[1, 2, 3], [4, 5, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ROWS, COLUMNS = torch.tensor([0, 1]), torch.tensor([2, 1])


def test_right_padded_rows_are_accepted_with_either_kind_of_mask() -> None:
    assert TokenBatch(IDS, MASK, ROWS, COLUMNS).shape == (2, 3)
    assert TokenBatch(IDS, MASK.bool(), ROWS, COLUMNS).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"input_ids": IDS.float()}, "needed int64"),
        ({"input_ids": IDS[0]}, "needed int64"),
        ({"attention_mask": MASK[:1]}, "attention_mask is"),
        ({"attention_mask": MASK.flip(1)}, "padded on the right"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 0]])}, "padded on the right"),
        ({"logit_columns": torch.tensor([2, 2])}, "padded position"),
        ({"logit_columns": torch.tensor([2])}, "same length"),
        ({"logit_columns": torch.tensor([2, 3])}, "outside the 2 × 3 positions"),
        ({"logit_columns": torch.tensor([2, -1])}, "outside the 2 × 3 positions"),
        ({"logit_rows": torch.tensor([0, 2])}, "outside the 2 × 3 positions"),
        ({"logit_rows": torch.tensor([-1, 1])}, "outside the 2 × 3 positions"),
        ({"logit_rows": ROWS.to("meta")}, "lie on cpu and meta; needed one device"),
    ],
)
def test_another_layout_is_refused(changes: dict[str, torch.Tensor], complaint: str) -> None:
    fields = {"input_ids": IDS, "attention_mask": MASK, "logit_rows": ROWS, "logit_columns": COLUMNS} | changes
    with pytest.raises(ValueError, match=complaint):
        TokenBatch(**fields)


def test_a_batch_on_another_device_is_accepted_without_looking_at_its_values() -> None:
    """The meta device has none to look at."""
    assert TokenBatch(*(tensor.to("meta") for tensor in (IDS, MASK, ROWS, COLUMNS))).shape == (2, 3)
