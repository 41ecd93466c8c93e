"""The report's figures: worked by hand, tensor by tensor, and free of what differs between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from example_report import HEADER_BYTES, example_report
from torch import Tensor

from cloud_service.pipeline.report.document import bytes_by_part, fisher_figures, mass_curve
from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.sensitivity_mask import SensitivityMask

BIN_ERROR = 1 / 4096


class LoadedOnAccess(Mapping[str, Tensor]):
    """Makes a tensor anew at each access, and counts."""

    def __init__(self, rows: dict[str, list[float]]) -> None:
        self._rows = rows
        self.accesses: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.accesses.append(name)
        return torch.tensor(self._rows[name]).view(1, -1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def mask_of(*indices: int) -> SensitivityMask:
    return SensitivityMask(np.array(indices, np.int32), np.arange(len(indices), dtype=np.int32))


def test_the_mass_of_a_mask_worked_by_hand() -> None:
    fisher = LoadedOnAccess({"a": [4.0, 3.0, 2.0, 1.0], "b": [0.0, 30.0, 0.0, 60.0]})
    figures = fisher_figures(fisher, {"a": mask_of(0), "b": mask_of(1, 3)}, 0.75)
    assert figures.tensor_mass == {"a": 0.4, "b": 1.0}
    assert figures.gradient_mass == pytest.approx(94 / 100)
    assert figures.split_half_overlap == 0.75
    # The whole of each tensor holds everything; its largest value alone holds 4/10 and 60/90.
    assert figures.curve_mean[-1] == pytest.approx(1)
    assert figures.curve_mean[0] == pytest.approx((0.4 + 2 / 3) / 2, rel=BIN_ERROR)
    assert figures.curve_std[0] == pytest.approx((2 / 3 - 0.4) / 2, rel=0.01)


def test_every_tensor_is_loaded_once_and_in_order() -> None:
    fisher = LoadedOnAccess({"c": [1.0], "a": [2.0], "b": [3.0]})
    fisher_figures(fisher, {name: mask_of(0) for name in "abc"}, None)
    assert fisher.accesses == ["c", "a", "b"]


def test_the_curve_is_that_of_the_sorted_values_up_to_the_width_of_a_bin() -> None:
    values = torch.exp(6 * torch.randn(20_000, generator=torch.Generator().manual_seed(1)))
    fractions = [0.0001, 0.001, 0.01, 0.1, 0.5, 1.0]
    ordered = np.sort(values.double().numpy())[::-1]
    exact = [ordered[: max(1, round(f * len(ordered)))].sum() / ordered.sum() for f in fractions]
    assert mass_curve(values, fractions) == pytest.approx(exact, rel=2 * BIN_ERROR)


def test_the_curve_does_not_depend_on_the_order_of_the_values() -> None:
    values = torch.rand(5_000, generator=torch.Generator().manual_seed(2))
    shuffled = values[torch.randperm(5_000, generator=torch.Generator().manual_seed(3))]
    assert mass_curve(values, [0.01, 0.3]) == mass_curve(shuffled, [0.01, 0.3])


def test_a_tensor_without_gradient_has_no_mass() -> None:
    assert mass_curve(torch.zeros(10), [0.1, 1.0]) == [0.0, 0.0]
    figures = fisher_figures({"a": torch.zeros(2, 2)}, {"a": mask_of(0)}, None)
    assert (figures.gradient_mass, figures.tensor_mass) == (0.0, {"a": 0.0})


def quantized(codebook: str, group_size: int | None, has_bias: bool, sensitive: int) -> QuantizedEntry:
    return QuantizedEntry(
        name="model.layers.0.mlp.up_proj.weight",
        shape=(10, 172),
        blob="block-00000.safetensors",
        bits=3,
        codebook=codebook,  # type: ignore[arg-type]
        group_size=group_size,
        has_bias=has_bias,
        sensitive_count=sensitive,
        relative_error=0.0,
        weighted_relative_error=0.0,
    )


def test_the_bytes_of_every_part_worked_by_hand() -> None:
    dense = [
        DenseEntry(name="model.embed_tokens.weight", shape=[100, 8], blob="t"),
        DenseEntry(name="lm_head.weight", shape=[100, 8], blob="t"),
        DenseEntry(name="model.norm.weight", shape=[8], blob="t"),
    ]
    parts = bytes_by_part([quantized("per_row", None, False, 5), quantized("none", 64, True, 2)], dense)
    assert parts == {
        "codes": 2 * 10 * 65,  # 172 codes of 3 bits are 516 bits, 65 bytes a row
        "codebooks": 10 * 8 * 2,
        "scales": 10 * 3 * 2 * 2,  # three groups, the last of 44 columns; scale and zero
        "embeddings": 1600,
        "head": 1600,
        "norms_and_biases": 16,
        "sensitive_values": 7 * 2,
        "sensitive_indices": 7 * 4,
        "sensitive_ranks": 7 * 4,
    }


def test_the_parts_and_the_headers_are_all_that_is_stored() -> None:
    report = example_report(3)
    assert report["bytes_tensors"] - sum(report["bytes_by_part"].values()) == HEADER_BYTES
