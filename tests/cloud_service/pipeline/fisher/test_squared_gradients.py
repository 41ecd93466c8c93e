"""Sums of squared gradients against gradients computed one by one, shard totals, and passes over groups of blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork, LocalLauncher, sum_shard
from cloud_service.pipeline.fisher.shards import half_of, shard_count, shard_rows
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.workspace import Workspace
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint()


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return load(folder)


@pytest.fixture
def calibration() -> Calibration:
    tokens = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return Calibration.of_windows(tokens)


def load(folder: Path, device: str = "cpu") -> LoadedModel:
    return load_model(read_outline(folder), device=device)


def linears(model: LoadedModel) -> dict[str, torch.nn.Parameter]:
    return {name: model.parameters[name] for name in model.outline.linear_names}


def squares(
    model: LoadedModel, calibration: Calibration, rows: range, *, recomputes: bool = False
) -> dict[str, Tensor]:
    sums = zero_sums(linears(model))
    blocks = model.blocks if recomputes else ()
    sum_squares(model.network, linears(model), calibration, rows, sums, recomputed_blocks=blocks)
    return sums


def gradients(model: LoadedModel, batch: Tensor) -> list[Tensor]:
    weights = [weight.requires_grad_(True) for weight in linears(model).values()]
    logits = model.network(input_ids=batch.long()).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].long().flatten())
    return list(torch.autograd.grad(loss, weights))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def estimate(
    folder: Path,
    calibration: Calibration,
    workspace: Path,
    passes: FisherPasses,
    *,
    stop_after: int | None = None,
    keeps_in_memory: bool = True,
) -> FisherTotals:
    """Run the pass, interrupted after some sequences if asked."""
    outline = read_outline(folder)
    Workspace(workspace).claim("fingerprint")
    totals = FisherTotals(
        Workspace(workspace), outline.block_linears, len(calibration), keeps_in_memory=keeps_in_memory
    )

    def stop(done: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    LocalLauncher().estimate(FisherWork(outline, folder, calibration, passes, "cpu"), totals, after_sequence=stop)
    return totals


def test_sums_are_those_of_squared_per_example_gradients(model: LoadedModel, calibration: Calibration) -> None:
    expected = [torch.zeros_like(weight) for weight in linears(model).values()]
    for sequence in calibration.tokens:
        for total, gradient in zip(expected, gradients(model, sequence[None]), strict=True):
            total += gradient**2
    measured = squares(model, calibration, range(5))
    for total, value in zip(expected, measured.values(), strict=True):
        # Float32 sums in another order: a few units in the last place of the largest term.
        torch.testing.assert_close(value, total, rtol=1e-5, atol=1e-12)


def test_the_square_of_the_batch_gradient_is_another_quantity(model: LoadedModel, calibration: Calibration) -> None:
    batch = gradients(model, calibration.tokens)[0] ** 2
    mean = next(iter(squares(model, calibration, range(5)).values())) / 5
    assert float(batch.sum()) < 0.6 * float(mean.sum())


def test_only_the_tokens_between_start_and_end_are_predicted(model: LoadedModel) -> None:
    answer = Calibration(torch.tensor([[5, 6, 7, 8, 0, 0]]), torch.tensor([2]), torch.tensor([4]))
    weights = [weight.requires_grad_(True) for weight in linears(model).values()]
    logits = model.network(torch.tensor([[5, 6, 7, 8]])).logits[0]
    loss = -(logits[1].log_softmax(0)[7] + logits[2].log_softmax(0)[8]) / 2
    expected = torch.autograd.grad(loss, weights)
    for value, gradient in zip(squares(model, answer, range(1)).values(), expected, strict=True):
        torch.testing.assert_close(value, gradient**2, rtol=1e-4, atol=1e-12)


def test_no_gradient_is_left_and_only_linear_weights_ever_have_one(
    model: LoadedModel, calibration: Calibration
) -> None:
    seen: set[str] = set()

    def look() -> None:
        seen.update(name for name, parameter in model.parameters.items() if parameter.grad is not None)

    sums = zero_sums(linears(model))
    sum_squares(model.network, linears(model), calibration, range(2), sums, after_sequence=look)
    assert seen == set()
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_gradient_checkpointing_changes_no_bit(
    make_checkpoint: MakeCheckpoint, calibration: Calibration, family: str
) -> None:
    model = load(make_checkpoint(family))
    assert same(squares(model, calibration, range(5)), squares(model, calibration, range(5), recomputes=True))
    assert all("forward" not in vars(block) for block in model.blocks)


def test_gradient_checkpointing_leaves_the_hooks_of_accelerate_in_place(
    folder: Path, model: LoadedModel, calibration: Calibration
) -> None:
    spread = load_model(read_outline(folder), device_map={"": "cpu", "model.layers.0": "cpu"})
    assert same(squares(model, calibration, range(2)), squares(spread, calibration, range(2), recomputes=True))
    assert all("forward" in vars(block) for block in spread.blocks)


@pytest.mark.parametrize("sequences", [2, 3, 5, 16, 17, 128, 1000])
def test_shards_are_an_even_number_of_runs_that_cover_every_sequence_once(sequences: int) -> None:
    count = shard_count(sequences)
    assert count % 2 == 0
    assert 2 <= count <= 16
    assert [row for shard in range(count) for row in shard_rows(sequences, shard)] == list(range(sequences))
    assert all(len(shard_rows(sequences, shard)) >= 1 for shard in range(count))
    assert [half_of(sequences, shard) for shard in range(count)] == [0] * (count // 2) + [1] * (count // 2)


def test_halves_add_their_shards_and_the_diagonal_is_the_mean(
    folder: Path, model: LoadedModel, calibration: Calibration, tmp_path: Path
) -> None:
    totals = estimate(folder, calibration, tmp_path / "work", FisherPasses(((0, 1),)))
    name = model.outline.linear_names[3]
    shards = [squares(model, calibration, rows)[name] for rows in (range(1), range(1, 2), range(2, 3), range(3, 5))]
    first, second = totals.halves()
    assert torch.equal(first[name], shards[0] + shards[1])
    assert torch.equal(second[name], shards[2] + shards[3])
    assert torch.equal(totals.diagonal()[name], (first[name] + second[name]) / 5)


@pytest.mark.parametrize(
    "passes",
    [
        FisherPasses(((0,), (1,))),
        FisherPasses(((1,), (0,)), recomputes_activations=True),
        FisherPasses(((0, 1),), accumulates_on_host=True, recomputes_activations=True),
    ],
)
@pytest.mark.parametrize("keeps_in_memory", [True, False])
def test_how_memory_is_used_changes_no_bit(
    folder: Path, calibration: Calibration, tmp_path: Path, passes: FisherPasses, *, keeps_in_memory: bool
) -> None:
    plain = estimate(folder, calibration, tmp_path / "plain", FisherPasses(((0, 1),)))
    other = estimate(folder, calibration, tmp_path / "other", passes, keeps_in_memory=keeps_in_memory)
    for ours, theirs in zip(plain.halves(), other.halves(), strict=True):
        assert same(dict(ours), dict(theirs))


@pytest.mark.parametrize("stop_after", range(1, 10))
@pytest.mark.parametrize("keeps_in_memory", [True, False])
def test_a_pass_that_was_stopped_anywhere_goes_on_to_the_same_totals(
    folder: Path, calibration: Calibration, tmp_path: Path, stop_after: int, *, keeps_in_memory: bool
) -> None:
    plain = estimate(folder, calibration, tmp_path / "plain", FisherPasses(((0, 1),)))
    groups = FisherPasses(((0,), (1,)))
    with pytest.raises(KeyboardInterrupt):
        estimate(folder, calibration, tmp_path / "work", groups, stop_after=stop_after, keeps_in_memory=keeps_in_memory)
    resumed = estimate(folder, calibration, tmp_path / "work", FisherPasses(((0, 1),)))
    assert resumed.is_complete
    assert same(dict(plain.diagonal()), dict(resumed.diagonal()))


def test_a_block_never_counts_a_shard_twice_nor_skips_one(
    folder: Path, model: LoadedModel, calibration: Calibration, tmp_path: Path
) -> None:
    blocks = model.outline.block_linears
    Workspace(tmp_path / "work").claim("fingerprint")
    totals = FisherTotals(Workspace(tmp_path / "work"), blocks, 5, keeps_in_memory=False)
    sums = sum_shard(model, calibration, 0, (0,), FisherPasses(((0, 1),)))
    totals.add(0, 0, sums)
    totals.add(0, 0, sums)
    assert (totals.next_shard((0,)), totals.next_shard((0, 1))) == (1, 0)
    with pytest.raises(ValueError, match="block 1 waits for shard 0, not 1"):
        totals.add(1, 1, sums)
    stored = Workspace(tmp_path / "work").read_tensors("fisher-00000-0")
    assert stored is not None
    assert same(stored, {name: sums[name] for name in blocks[0]})


def test_totals_of_other_arithmetic_begin_anew_and_are_never_mixed(
    folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    blocks = read_outline(folder).block_linears
    whole = FisherPasses(((0, 1),))
    plain = estimate(folder, calibration, tmp_path / "plain", whole)
    workspace = Workspace(tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        estimate(folder, calibration, workspace.folder, whole, stop_after=4)
    for name in ("fisher-00000-0", "fisher-00000-1"):
        stored = {key: tensor + 1 for key, tensor in (workspace.read_tensors(name) or {}).items()}
        labels = workspace.read_labels(name) or {}
        workspace.write_tensors(name, stored, labels | {"arithmetic": "bfloat16 cuda"})
    begun = FisherTotals(workspace, blocks, 5, keeps_in_memory=True)
    here = f"float32 cpu threads={torch.get_num_threads()}"
    assert begun.begun_in() == {"bfloat16 cuda", here}
    assert same(dict(plain.diagonal()), dict(estimate(folder, calibration, workspace.folder, whole).diagonal()))
    assert FisherTotals(workspace, blocks, 5, keeps_in_memory=True).begun_in() == {here}


def test_complete_totals_are_kept_whatever_would_compute_them_now(
    folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    totals = estimate(folder, calibration, tmp_path / "work", FisherPasses(((0, 1),)))
    totals.begin("bfloat16 cuda")
    assert totals.is_complete


@pytest.mark.parametrize(
    ("device", "device_map", "expected"),
    [
        ("cpu", None, "float32 cpu threads="),
        ("cuda:1", None, "bfloat16 cuda"),
        ("cpu", {"model.embed_tokens": 2, "model.layers": 3}, "bfloat16 cuda"),
    ],
)
def test_arithmetic_is_dtype_device_and_threads(
    folder: Path, calibration: Calibration, device: str, device_map: dict[str, int | str] | None, expected: str
) -> None:
    work = FisherWork(read_outline(folder), folder, calibration, FisherPasses(((0, 1),)), device, device_map)
    threads = str(torch.get_num_threads()) if expected.endswith("=") else ""
    assert LocalLauncher().arithmetic(work) == expected + threads


def test_a_gradient_that_is_not_finite_is_named(folder: Path, calibration: Calibration, tmp_path: Path) -> None:
    totals = estimate(folder, calibration, tmp_path / "work", FisherPasses(((0, 1),)))
    workspace = Workspace(tmp_path / "work")
    stored = workspace.read_tensors("fisher-00001-1") or {}
    name = next(iter(stored))
    stored[name][0, 0] = float("inf")
    workspace.write_tensors("fisher-00001-1", stored, {"shards": "4"})
    with pytest.raises(UnsupportedModel, match=f"the gradient of {name} is not finite"):
        dict(totals.diagonal())


def test_a_loss_that_is_not_finite_is_refused(model: LoadedModel, calibration: Calibration) -> None:
    model.parameters[model.outline.linear_names[0]].data[0, 0] = float("nan")
    with pytest.raises(UnsupportedModel, match="the loss of calibration sequence 1 is not finite"):
        squares(model, calibration, range(1, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fisher_on_cuda_agrees_with_the_cpu(folder: Path, calibration: Calibration) -> None:
    expected = squares(load(folder), calibration, range(5))
    measured = squares(load(folder, "cuda"), calibration, range(5))
    for name, total in expected.items():
        # bfloat16 gradients carry 8 bits; squares double the relative error.
        torch.testing.assert_close(measured[name].cpu(), total, rtol=0.2, atol=float(total.max()) * 0.05)
