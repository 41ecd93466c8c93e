"""How large a model is, block by block: read from its files' headers, or worked out from config.json alone.

    parameters = Σ over blocks (linear weights + others) + trunk          a tied embedding counts once

Symbols: H hidden · Q, K width of all queries and of all keys · M width of the MLP · V vocabulary.
Costs a read of the headers, some kilobytes. Imports no torch. Knows nothing about devices or budgets.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.config_bounds import check_config, dimension
from cloud_service.pipeline.model.weight_files import read_json, stored_tensors, unsupported, weight_files
from shared.architecture import ModelFamily, family_of, safe_config

Shapes = dict[str, tuple[int, ...]]

_TIED_COPY = "lm_head.weight"
_NOT_PARAMETERS = ("rotary_emb.inv_freq",)


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
        model_type: The family's name, a key of ``FAMILIES``.
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
        front_modules: Names of the modules in front of the blocks.
        rear_modules: Names of those behind them.
    """

    model_type: str
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


def read_model_shape(folder: Path) -> ModelShape:
    """Return the shape of the model in a Hugging Face folder: from the headers of its weights where they are there.

    Raises:
        UnsupportedModel: config.json or a header is missing or malformed, its numbers contradict each other or the
            headers, or the family is not served.
    """
    files = ContainedFolder(folder)
    config = safe_config(read_json(files, "config.json"))
    headers = (stored_tensors(files, name) for name in weight_files(files))
    shapes = {name: tensor.shape for header in headers for name, tensor in header.items()}
    check_config(config, shapes)
    return shape_of_tensors(config, shapes or shapes_of_config(config))


def read_config_shape(folder: Path) -> ModelShape:
    """Return the shape of the model that the config.json in a folder describes; nothing else is read.

    Raises:
        UnsupportedModel: config.json is missing or malformed, its numbers contradict each other, or the family is not
            served.
    """
    config = safe_config(read_json(ContainedFolder(folder), "config.json"))
    check_config(config)
    return shape_of_tensors(config, shapes_of_config(config))


def shape_of_tensors(config: Mapping[str, Any], shapes: Shapes) -> ModelShape:
    """Return the shape of a model whose tensors have these names and shapes.

    Args:
        config: Its configuration, reduced by ``safe_config``.
        shapes: Name → shape of every parameter.

    Raises:
        UnsupportedModel: A dimension is missing from the configuration, or a block has no linear weight.
    """
    family = family_of(dict(config))
    is_tied = config.get("tie_word_embeddings", family.model_type == "opt") is True
    known = {_canonical(name, family): shape for name, shape in shapes.items() if not name.endswith(_NOT_PARAMETERS)}
    if is_tied:
        known.pop(_TIED_COPY, None)
    blocks = tuple(_blocks(known, family, dimension(config, "num_hidden_layers")))
    trunk = {name: prod(shape) for name, shape in known.items() if not name.startswith(f"{family.decoder_blocks}.")}
    front, rear = _trunk_modules(trunk)
    heads = dimension(config, "num_attention_heads")
    head_width = dimension(config, "head_dim", dimension(config, "hidden_size") // heads)
    key_heads = dimension(config, "num_key_value_heads", heads)
    embedding = sum(count for name, count in trunk.items() if name.rpartition(".")[0] in front)
    return ModelShape(
        model_type=family.model_type,
        blocks=blocks,
        block_path=family.decoder_blocks,
        embedding_elements=embedding,
        head_elements=sum(trunk.values()) - embedding,
        hidden=dimension(config, "hidden_size"),
        intermediate=dimension(config, "ffn_dim" if family.model_type == "opt" else "intermediate_size"),
        query_width=heads * head_width,
        key_width=key_heads * head_width,
        heads=heads,
        key_heads=key_heads,
        vocabulary=dimension(config, "vocab_size"),
        is_tied=is_tied,
        context=dimension(config, "max_position_embeddings"),
        front_modules=front,
        rear_modules=rear,
    )


def shapes_of_config(config: Mapping[str, Any]) -> Shapes:
    """Return the parameters that a model of this configuration has, by name.

    Raises:
        UnsupportedModel: A dimension is missing.
    """
    family = family_of(dict(config))
    layers = dimension(config, "num_hidden_layers")
    block = _opt_block(config) if family.model_type == "opt" else _llama_block(config, family.model_type)
    trunk = _opt_trunk(config) if family.model_type == "opt" else _llama_trunk(config)
    numbered = {
        f"{family.decoder_blocks}.{index}.{name}": shape for index in range(layers) for name, shape in block.items()
    }
    return trunk | numbered


def _llama_block(config: Mapping[str, Any], model_type: str) -> Shapes:
    hidden, middle = dimension(config, "hidden_size"), dimension(config, "intermediate_size")
    heads = dimension(config, "num_attention_heads")
    head_width = dimension(config, "head_dim", hidden // heads)
    queries, keys = heads * head_width, dimension(config, "num_key_value_heads", heads) * head_width
    has_bias = config.get("attention_bias") is True
    shapes: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for letter, width in (("q", queries), ("k", keys), ("v", keys)):
        shapes[f"self_attn.{letter}_proj.weight"] = (width, hidden)
        if has_bias or model_type == "qwen2":
            shapes[f"self_attn.{letter}_proj.bias"] = (width,)
    shapes["self_attn.o_proj.weight"] = (hidden, queries)
    if has_bias and model_type != "qwen2":
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if model_type == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (head_width,), "self_attn.k_norm.weight": (head_width,)}
    for name, out, into in (("gate", middle, hidden), ("up", middle, hidden), ("down", hidden, middle)):
        shapes[f"mlp.{name}_proj.weight"] = (out, into)
        if config.get("mlp_bias") is True:
            shapes[f"mlp.{name}_proj.bias"] = (out,)
    return shapes


def _llama_trunk(config: Mapping[str, Any]) -> Shapes:
    hidden, vocabulary = dimension(config, "hidden_size"), dimension(config, "vocab_size")
    return {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        _TIED_COPY: (vocabulary, hidden),
    }


def _opt_block(config: Mapping[str, Any]) -> Shapes:
    hidden, middle = dimension(config, "hidden_size"), dimension(config, "ffn_dim")
    linears = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    linears |= {"fc1": (middle, hidden), "fc2": (hidden, middle)}
    shapes: Shapes = {f"{name}.weight": shape for name, shape in linears.items()}
    if config.get("enable_bias", True):
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    if config.get("layer_norm_elementwise_affine", True):
        norms = ("self_attn_layer_norm", "final_layer_norm")
        shapes |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    return shapes


def _opt_trunk(config: Mapping[str, Any]) -> Shapes:
    hidden, vocabulary = dimension(config, "hidden_size"), dimension(config, "vocab_size")
    width = dimension(config, "word_embed_proj_dim", hidden)
    decoder = "model.decoder"
    shapes: Shapes = {
        f"{decoder}.embed_tokens.weight": (vocabulary, width),
        f"{decoder}.embed_positions.weight": (dimension(config, "max_position_embeddings") + 2, hidden),
        _TIED_COPY: (vocabulary, width),
    }
    if width != hidden:
        shapes |= {f"{decoder}.project_in.weight": (hidden, width), f"{decoder}.project_out.weight": (width, hidden)}
    before = config.get("do_layer_norm_before", True)
    if before and not config.get("_remove_final_layer_norm") and config.get("layer_norm_elementwise_affine", True):
        shapes |= {f"{decoder}.final_layer_norm.{part}": (hidden,) for part in ("weight", "bias")}
    return shapes


def _canonical(name: str, family: ModelFamily) -> str:
    """Return the name in the causal-LM class; checkpoints of the bare decoder leave out its first part."""
    root = family.decoder_blocks.split(".", maxsplit=1)[0]
    return name if name.startswith((f"{root}.", "lm_head.")) else f"{root}.{name}"


def _blocks(shapes: Shapes, family: ModelFamily, count: int) -> Iterator[BlockShape]:
    members: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
    pattern = re.compile(rf"{re.escape(family.decoder_blocks)}\.(\d+)\.")
    for name, shape in shapes.items():
        if (match := pattern.match(name)) and int(match[1]) < count:
            members[int(match[1])].append(shape)
    for index, block in enumerate(members):
        linears = tuple((shape[0], shape[1]) for shape in block if len(shape) == 2)
        if not linears:
            raise unsupported(f"{family.decoder_blocks}.{index} has no linear weight", "every block's weights")
        yield BlockShape(linears, sum(prod(shape) for shape in block if len(shape) != 2))


def _trunk_modules(trunk: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that hold the trunk's parameters: those in front of the blocks, and those behind."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in trunk)
    front = tuple(module for module in modules if module.rpartition(".")[2].startswith(("embed_", "project_in")))
    rear = tuple(module for module in modules if module not in front)
    return front, rear
