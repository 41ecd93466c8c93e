"""How large a model is, block by block: read from its files' headers, or worked out from config.json alone.

    parameters = Σ over blocks (linear weights + others) + trunk          a tied embedding counts once

Symbols: H hidden · Q, K width of all queries and of all keys · M width of the MLP · V vocabulary.
Costs a read of the headers, some kilobytes. Imports no torch. Knows nothing about devices or budgets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.block_names import block_index, decoder_path
from cloud_service.pipeline.model.config_bounds import check_config
from cloud_service.pipeline.model.weight_files import (
    COMPUTED_TENSORS,
    read_json,
    stored_tensors,
    unsupported,
    weight_files,
)
from cloud_service.pipeline.planning.family_shapes import TIED_COPY, Shapes, shapes_of_config
from cloud_service.pipeline.planning.saved_activations import SavedActivations, saved_activations
from shared.architecture import ModelFamily, family_of, safe_config
from shared.model_dimensions import dimensions_of, is_tied

_IN_FRONT = ("embed", "wte", "wpe", "project_in")
"""How the names of modules in front of the blocks begin."""


@dataclass(frozen=True)
class BlockShape:
    """One decoder block.

    Attributes:
        linears: Shape (out_features, in_features) of every linear weight.
        other_elements: Elements of its norms and biases.
    """

    linears: tuple[tuple[int, int], ...]
    other_elements: int

    @functools.cached_property
    def linear_elements(self) -> int:
        """Elements of all linear weights."""
        return sum(map(prod, self.linears))

    @functools.cached_property
    def elements(self) -> int:
        """All elements."""
        return self.linear_elements + self.other_elements

    @functools.cached_property
    def largest_linear(self) -> int:
        """Elements of the largest linear weight."""
        return max(map(prod, self.linears))


@dataclass(frozen=True)
class ModelShape:
    """A causal language model.

    Attributes:
        family: Its family.
        blocks: The decoder blocks, in order.
        block_path: Dotted path of the list of decoder blocks.
        embedding_elements: Elements in front of the blocks.
        head_elements: Elements behind the blocks: the final norm, and the output matrix where it is no tied copy.
        hidden: H.
        intermediate: M.
        query_width: Q.
        key_width: K.
        heads: Query heads.
        key_heads: Key and value heads.
        vocabulary: V.
        is_tied: Whether the output matrix is the embedding.
        context: Positions that the model was made for.
        window: Tokens that some block attends to at most; None is all of them.
        saved: What autograd saves of a block.
        caps_logits: Whether logits are capped, which keeps them until the backward pass.
        front_modules: Names of the modules in front of the blocks.
        rear_modules: Names of those behind them.
    """

    family: ModelFamily
    blocks: tuple[BlockShape, ...]
    block_path: str
    embedding_elements: int
    head_elements: int
    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    heads: int
    key_heads: int
    vocabulary: int
    is_tied: bool
    context: int
    window: int | None
    saved: SavedActivations
    caps_logits: bool
    front_modules: tuple[str, ...]
    rear_modules: tuple[str, ...]

    @functools.cached_property
    def elements(self) -> int:
        """All parameters; a tied matrix counts once."""
        return self.embedding_elements + self.head_elements + sum(block.elements for block in self.blocks)

    @functools.cached_property
    def linear_elements(self) -> int:
        """Linear weights of all blocks: what the Fisher diagonal is estimated for."""
        return sum(block.linear_elements for block in self.blocks)

    @functools.cached_property
    def largest_linear(self) -> int:
        """Elements of the largest linear weight."""
        return max(block.largest_linear for block in self.blocks)

    @functools.cached_property
    def largest_tensor(self) -> int:
        """Elements of the largest tensor; the embedding is often it."""
        return max(self.largest_linear, self.vocabulary * self.hidden)


def read_model_shape(folder: Path, *, allow_untested: bool = False) -> ModelShape:
    """Return the shape of the model in a Hugging Face folder: from the headers of its weights where they are there.

    Args:
        folder: The checkpoint.
        allow_untested: Take a family that is not tested.

    Raises:
        UnsupportedModel: config.json or a header is missing or malformed, its numbers contradict each other or the
            headers, or the family is not served.
    """
    files = ContainedFolder(folder)
    config = safe_config(read_json(files, "config.json"), allow_untested=allow_untested)
    headers = (stored_tensors(files, name) for name in weight_files(files))
    shapes = {name: tensor.shape for header in headers for name, tensor in header.items()}
    check_config(config, shapes)
    family = family_of(config, allow_untested=True)
    if family.stores_transposed:
        is_in_block = {name: block_index(name, family.decoder_blocks) is not None for name in shapes}
        shapes = {name: shape[::-1] if is_in_block[name] else shape for name, shape in shapes.items()}
    return shape_of_tensors(config, shapes or shapes_of_config(config))


def read_config_shape(folder: Path, *, allow_untested: bool = False) -> ModelShape:
    """Return the shape of the model that the config.json in a folder describes; nothing else is read.

    Args:
        folder: The checkpoint.
        allow_untested: Take a family that is not tested; its weights are needed, so that only the refusal differs.

    Raises:
        UnsupportedModel: config.json is missing or malformed, its numbers contradict each other, or the family is not
            served.
    """
    config = safe_config(read_json(ContainedFolder(folder), "config.json"), allow_untested=allow_untested)
    check_config(config)
    return shape_of_tensors(config, shapes_of_config(config))


def shape_of_tensors(config: Mapping[str, Any], shapes: Shapes) -> ModelShape:
    """Return the shape of a model whose tensors have these names and shapes.

    Args:
        config: Its configuration, reduced by ``safe_config``.
        shapes: Name → shape of every parameter; a linear weight's as (out_features, in_features).

    Raises:
        UnsupportedModel: A dimension is missing from the configuration, or a block has no linear weight.
    """
    family, dimensions = family_of(config, allow_untested=True), dimensions_of(config)
    path = decoder_path(family, shapes)
    has_tied_head = is_tied(config)
    known = {
        _canonical(name, family, path): shape
        for name, shape in shapes.items()
        if not name.endswith((*COMPUTED_TENSORS, *family.computed_weights))
    }
    if has_tied_head:
        known.pop(TIED_COPY, None)
    blocks = tuple(_blocks(known, path, dimensions.blocks))
    trunk = {name: prod(shape) for name, shape in known.items() if not name.startswith(f"{path}.")}
    front, rear = _trunk_modules(trunk)
    embedding = sum(count for name, count in trunk.items() if name.rpartition(".")[0] in front)
    return ModelShape(
        family=family,
        blocks=blocks,
        block_path=path,
        embedding_elements=embedding,
        head_elements=sum(trunk.values()) - embedding,
        hidden=dimensions.hidden,
        intermediate=dimensions.intermediate,
        query_width=dimensions.queries,
        key_width=dimensions.keys,
        heads=dimensions.heads,
        key_heads=dimensions.key_heads,
        vocabulary=dimensions.vocabulary,
        is_tied=has_tied_head,
        context=dimensions.context,
        window=_window(config, family),
        saved=saved_activations(config),
        caps_logits=bool(family.logit_cap and config.get(family.logit_cap, family.defaults.get(family.logit_cap))),
        front_modules=front,
        rear_modules=rear,
    )


def _window(config: Mapping[str, Any], family: ModelFamily) -> int | None:
    stated = config.get("sliding_window")
    is_used = config.get("use_sliding_window", family.defaults.get("use_sliding_window", True))
    return stated if type(stated) is int and is_used else None


def _canonical(name: str, family: ModelFamily, path: str) -> str:
    """Return the name in the causal-LM class; checkpoints of the bare decoder leave out its first part."""
    name = family.renamed.get(name, name)
    root = path.split(".", maxsplit=1)[0]
    return name if not family.is_tested or name.startswith((f"{root}.", "lm_head.")) else f"{root}.{name}"


def _blocks(shapes: Shapes, path: str, count: int) -> Iterator[BlockShape]:
    members: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
    for name, shape in shapes.items():
        if (index := block_index(name, path)) is not None and index < count:
            members[index].append(shape)
    for index, block in enumerate(members):
        linears = tuple((shape[0], shape[1]) for shape in block if len(shape) == 2)
        if not linears:
            raise unsupported(f"{path}.{index} has no linear weight", "every block's weights")
        yield BlockShape(linears, sum(prod(shape) for shape in block if len(shape) != 2))


def _trunk_modules(trunk: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that hold the trunk's parameters: those in front of the blocks, and those behind."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in trunk)
    front = tuple(module for module in modules if module.rpartition(".")[2].startswith(_IN_FRONT))
    rear = tuple(module for module in modules if module not in front)
    return front, rear
