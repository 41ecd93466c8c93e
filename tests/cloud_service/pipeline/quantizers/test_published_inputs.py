"""Second moments behind published blocks: equal to hooks on the whole network, and resumable block by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.select_sensitive import Masks, select_random
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.model.streamed_model import stream_model
from cloud_service.pipeline.quantizers.published_inputs import PublishedInputs
from cloud_service.pipeline.quantizers.split_blocks import missing_bundle_bytes, split_blocks
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from cloud_service.pipeline.workspace import Workspace
from shared.api import QuantizerSpec
from shared.bundle.layout import ImageLayout
from shared.errors import Interrupted

MakeCheckpoint = Callable[..., Path]
GPTQ = QuantizerSpec(method="rtn", bits=3, group_size=16, compensation="gptq")


class Setting(NamedTuple):
    """A tiny model, masks and calibration."""

    model: LoadedModel
    calibration: Calibration
    masks: Masks
    fisher: dict[str, Tensor]
    loads: list[str]

    def load(self) -> LoadedModel:
        """Return the network, and remember that it was asked for."""
        self.loads.append("network")
        return self.model

    def restore(self) -> None:
        """Give the network the checkpoint's weights again."""
        for name in self.model.outline.linear_names:
            self.model.parameters[name].data.copy_(self.model.outline.weights.read(name))

    def split(self, folder: Path, stop_after: int | None = None) -> list[TensorBlob]:
        def after_block(done: int) -> None:
            if done == stop_after:
                raise Interrupted("stopped by the test")

        return split_blocks(
            self.model.outline,
            self.masks,
            self.fisher,
            GPTQ,
            16,
            layout=ImageLayout.create(folder / "store"),
            workspace=Workspace(folder),
            device="cpu",
            after_block=after_block,
            inputs=PublishedInputs(self.load, self.calibration),
        )


@pytest.fixture
def setting(make_checkpoint: MakeCheckpoint) -> Setting:
    model = load_model(read_outline(make_checkpoint()), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 256, (5, 20), generator=generator, dtype=torch.int32)
    ends = torch.tensor([20, 20, 12, 20, 7], dtype=torch.int32)
    calibration = Calibration(tokens, torch.ones(5, dtype=torch.int32), ends)
    shapes = {name: model.outline.shapes[name] for name in model.outline.linear_names}
    masks = select_random({name: rows * columns for name, (rows, columns) in shapes.items()}, 0.02, "per_tensor", 0)
    fisher = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return Setting(model, calibration, masks, fisher, [])


def hooked_moment(setting: Setting, name: str) -> Tensor:
    """H of one weight's input, by a hook on the whole network as it stands."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].flatten(0, -2))

    handle = setting.model.network.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(keep)
    with torch.no_grad():
        for row, end in zip(setting.calibration.tokens, setting.calibration.ends.tolist(), strict=True):
            setting.model.network(input_ids=row[None, :end].long(), use_cache=False)
    handle.remove()
    tokens = torch.cat(seen)
    return tokens.T @ tokens / len(tokens)


def test_the_second_blocks_moments_are_measured_behind_the_published_first(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        setting.split(tmp_path, stop_after=1)
    names = setting.model.outline.block_linears[1]
    behind_the_original = {name: hooked_moment(setting, name) for name in names}

    inputs = PublishedInputs(setting.load, setting.calibration)
    layout, workspace = ImageLayout(tmp_path / "store"), Workspace(tmp_path)
    blob = TensorBlob.from_json(workspace.read_json("block-00000"))
    values = workspace.read_tensors("sensitive-00000")
    assert values is not None
    inputs.advance(0, layout, blob, setting.masks, values)
    moments = inputs.second_moments(1)  # block 0 of the network is now as published, block 1 as it was
    assert list(moments) == names
    for name, moment in moments.items():
        torch.testing.assert_close(moment, hooked_moment(setting, name), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moment, behind_the_original[name], rtol=1e-2)


def test_a_compensated_split_that_was_killed_ends_with_the_same_blobs(setting: Setting, tmp_path: Path) -> None:
    whole = setting.split(tmp_path / "whole")
    setting.restore()
    with pytest.raises(Interrupted):
        setting.split(tmp_path / "cut", stop_after=1)
    setting.restore()
    resumed = setting.split(tmp_path / "cut")
    assert [blob.layer.digest for blob in resumed] == [blob.layer.digest for blob in whole]


def test_a_resumed_split_loads_the_network_only_where_a_block_is_missing(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        setting.split(tmp_path, stop_after=1)
    setting.restore()
    assert len(setting.loads) == 1
    cut = setting.split(tmp_path)
    assert len(setting.loads) == 2
    assert setting.split(tmp_path) == cut
    assert len(setting.loads) == 2


def test_a_resumed_split_asks_only_for_the_space_of_what_is_not_stored(setting: Setting, tmp_path: Path) -> None:
    layout, workspace = ImageLayout.create(tmp_path / "store"), Workspace(tmp_path)
    block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32 + 2 * 32
    trunk = 2 * (260 * 32 + 32)
    outline = setting.model.outline
    assert missing_bundle_bytes(outline, 16, layout, workspace) == 2 * block + trunk
    assert missing_bundle_bytes(outline, 8, layout, workspace) == 2 * block + 260 * 32 * 9 // 8 + 2 * 32
    with pytest.raises(Interrupted):
        setting.split(tmp_path, stop_after=1)
    assert missing_bundle_bytes(outline, 16, layout, workspace) == block + trunk


def test_a_block_that_was_passed_is_in_the_network_as_published(setting: Setting, tmp_path: Path) -> None:
    name = setting.model.outline.block_linears[0][-1]
    before = setting.model.parameters[name].detach().clone()
    setting.split(tmp_path)
    after = setting.model.parameters[name].detach().flatten()
    index = torch.from_numpy(setting.masks[name].indices).long()
    assert torch.equal(after[index], before.flatten()[index])
    assert not torch.equal(after, before.flatten())


def test_a_streamed_network_gives_the_same_blobs(setting: Setting, tmp_path: Path) -> None:
    whole = setting.split(tmp_path / "whole")
    streamed = setting._replace(model=stream_model(setting.model.outline, dtype=torch.float32))
    assert [blob.layer.digest for blob in streamed.split(tmp_path / "streamed")] == [
        blob.layer.digest for blob in whole
    ]
