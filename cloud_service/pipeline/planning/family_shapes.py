"""The parameters of every tested family, as tables: what a block and the trunk hold, and how wide it is.

A width is the sum of named widths: ``("queries", "keys", "keys")`` is that of a fused q, k and v. A part that only some
models of a family have carries the configuration key that says so. tests/cloud_service/pipeline/planning compares every
table with the parameters of transformers' own networks. Costs nothing. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.architecture import family_of
from shared.errors import UnsupportedModel
from shared.model_dimensions import Dimensions, dimensions_of

Shapes = dict[str, tuple[int, ...]]
TIED_COPY = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class When:
    """True where a configuration key has a value.

    Attributes:
        key: The key.
        default: Its value where config.json leaves it out.
        is_wanted: The value that makes this true.
    """

    key: str
    default: bool = False
    is_wanted: bool = True

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Return whether it is true of a configuration."""
        return bool(config.get(self.key, self.default)) is self.is_wanted


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: its widths, and whether it has a bias."""

    name: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    bias: bool | When = False


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation: its width, whether it has a bias beside its weight, and in which models it is.

    Attributes:
        copies: How many of the width lie side by side, by name of a number of heads; None is a single one.
    """

    name: str
    width: str = "hidden"
    has_bias: bool = False
    when: tuple[When, ...] = ()
    copies: str | None = None


@dataclass(frozen=True, slots=True)
class FamilyShapes:
    """What one family's networks hold.

    Attributes:
        linears: The linear layers of a block.
        norms: The normalisations of a block.
        embedding: The module that holds a row for each token.
        final_norm: The normalisation behind the blocks.
        positions: Learned positions: the module, and how many rows it has beyond the context.
    """

    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    embedding: str = "model.embed_tokens"
    final_norm: Norm = Norm("model.norm")
    positions: tuple[str, int] | None = None


def _attention(*, qkv_bias: bool | When, output_bias: bool | When) -> tuple[Linear, ...]:
    widths = {"q": ("queries",), "k": ("keys",), "v": ("keys",)}
    inputs = tuple(Linear(f"self_attn.{part}_proj", width, ("hidden",), qkv_bias) for part, width in widths.items())
    return (*inputs, Linear("self_attn.o_proj", ("hidden",), ("queries",), output_bias))


def _gated(bias: bool | When = False) -> tuple[Linear, ...]:
    upward = tuple(Linear(f"mlp.{part}_proj", ("middle",), ("hidden",), bias) for part in ("gate", "up"))
    return (*upward, Linear("mlp.down_proj", ("hidden",), ("middle",), bias))


_HAS_BIAS = When("attention_bias")
_LLAMA_LINEARS = _attention(qkv_bias=_HAS_BIAS, output_bias=_HAS_BIAS) + _gated(When("mlp_bias"))
_PLAIN_LINEARS = _attention(qkv_bias=_HAS_BIAS, output_bias=_HAS_BIAS) + _gated()
_QKV = ("queries", "keys", "keys")
_BEFORE = (Norm("input_layernorm"), Norm("post_attention_layernorm"))
_AFTER = (Norm("post_attention_layernorm"), Norm("post_feedforward_layernorm"))
_GEMMA_NORMS = (*_BEFORE, Norm("pre_feedforward_layernorm"), Norm("post_feedforward_layernorm"))
_HEAD_NORMS = (Norm("self_attn.q_norm", "head"), Norm("self_attn.k_norm", "head"))
_LLAMA = FamilyShapes(_LLAMA_LINEARS, _BEFORE)

_OPT_BIAS = When("enable_bias", default=True)
_OPT_AFFINE = When("layer_norm_elementwise_affine", default=True)
_OPT_NAMES = {"self_attn.q_proj": "queries", "self_attn.k_proj": "queries", "self_attn.v_proj": "queries"}
_OPT = FamilyShapes(
    linears=(
        *(Linear(name, (width,), ("hidden",), _OPT_BIAS) for name, width in _OPT_NAMES.items()),
        Linear("self_attn.out_proj", ("hidden",), ("queries",), _OPT_BIAS),
        Linear("fc1", ("middle",), ("hidden",), _OPT_BIAS),
        Linear("fc2", ("hidden",), ("middle",), _OPT_BIAS),
    ),
    norms=tuple(
        Norm(name, has_bias=True, when=(_OPT_AFFINE,)) for name in ("self_attn_layer_norm", "final_layer_norm")
    ),
    embedding="model.decoder.embed_tokens",
    final_norm=Norm(
        "model.decoder.final_layer_norm",
        has_bias=True,
        when=(
            _OPT_AFFINE,
            When("do_layer_norm_before", default=True),
            When("_remove_final_layer_norm", is_wanted=False),
        ),
    ),
    positions=("model.decoder.embed_positions", 2),
)
_GPT2 = FamilyShapes(
    linears=(
        Linear("attn.c_attn", _QKV, ("hidden",), bias=True),
        Linear("attn.c_proj", ("hidden",), ("queries",), bias=True),
        Linear("mlp.c_fc", ("middle",), ("hidden",), bias=True),
        Linear("mlp.c_proj", ("hidden",), ("middle",), bias=True),
    ),
    norms=(Norm("ln_1", has_bias=True), Norm("ln_2", has_bias=True)),
    embedding="transformer.wte",
    final_norm=Norm("transformer.ln_f", has_bias=True),
    positions=("transformer.wpe", 0),
)
_NEOX_BIAS = When("attention_bias", default=True)
_GPT_NEOX = FamilyShapes(
    linears=(
        Linear("attention.query_key_value", _QKV, ("hidden",), _NEOX_BIAS),
        Linear("attention.dense", ("hidden",), ("queries",), _NEOX_BIAS),
        Linear("mlp.dense_h_to_4h", ("middle",), ("hidden",), bias=True),
        Linear("mlp.dense_4h_to_h", ("hidden",), ("middle",), bias=True),
    ),
    norms=(Norm("input_layernorm", has_bias=True), Norm("post_attention_layernorm", has_bias=True)),
    embedding="gpt_neox.embed_in",
    final_norm=Norm("gpt_neox.final_layer_norm", has_bias=True),
)
_PHI3 = FamilyShapes(
    linears=(
        Linear("self_attn.qkv_proj", _QKV, ("hidden",)),
        Linear("self_attn.o_proj", ("hidden",), ("queries",)),
        Linear("mlp.gate_up_proj", ("middle", "middle"), ("hidden",)),
        Linear("mlp.down_proj", ("hidden",), ("middle",)),
    ),
    norms=_BEFORE,
)
_NORMS_OF_HEADS = (When("qk_layernorm"),)
_STABLELM = FamilyShapes(
    linears=_attention(qkv_bias=When("use_qkv_bias"), output_bias=False) + _gated(),
    norms=(
        Norm("input_layernorm", has_bias=True),
        Norm("post_attention_layernorm", has_bias=True, when=(When("use_parallel_residual", is_wanted=False),)),
        Norm("self_attn.q_layernorm.norms", "head", when=_NORMS_OF_HEADS, copies="heads"),
        Norm("self_attn.k_layernorm.norms", "head", when=_NORMS_OF_HEADS, copies="key_heads"),
    ),
    final_norm=Norm("model.norm", has_bias=True),
)

FAMILY_SHAPES: dict[str, FamilyShapes] = {
    "llama": _LLAMA,
    "mistral": FamilyShapes(_attention(qkv_bias=False, output_bias=False) + _gated(), _BEFORE),
    "qwen2": FamilyShapes(_attention(qkv_bias=True, output_bias=False) + _gated(), _BEFORE),
    "qwen3": FamilyShapes(_PLAIN_LINEARS, _BEFORE + _HEAD_NORMS),
    "opt": _OPT,
    "gemma2": FamilyShapes(_PLAIN_LINEARS, _GEMMA_NORMS),
    "gemma3_text": FamilyShapes(_PLAIN_LINEARS, _GEMMA_NORMS + _HEAD_NORMS),
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "granite": _LLAMA,
    "olmo2": FamilyShapes(
        _PLAIN_LINEARS, (*_AFTER, Norm("self_attn.q_norm", "queries"), Norm("self_attn.k_norm", "keys"))
    ),
    "smollm3": _LLAMA,
    "stablelm": _STABLELM,
}


def shapes_of_config(config: Mapping[str, Any]) -> Shapes:
    """Return the parameters that a model of this configuration has, by name.

    Raises:
        UnsupportedModel: A dimension is missing, or the family is not a tested one.
    """
    family, dimensions = family_of(config, allow_untested=True), dimensions_of(config)
    table = FAMILY_SHAPES.get(family.model_type)
    if table is None:
        raise UnsupportedModel(
            f"no weights, and a model of the untested family {family.model_type!r}",
            needed="a folder with the model's weights: their headers say what such a model holds",
            next_step="fetch the whole model first, then plan with its folder",
            param="model",
        )
    widths = {
        "hidden": dimensions.hidden,
        "middle": dimensions.intermediate,
        "queries": dimensions.queries,
        "keys": dimensions.keys,
        "head": dimensions.head_width,
        "heads": dimensions.heads,
        "key_heads": dimensions.key_heads,
    }
    block = dict(_block(table, config, widths))
    numbered = {
        f"{family.decoder_blocks}.{index}.{name}": shape
        for index in range(dimensions.blocks)
        for name, shape in block.items()
    }
    return _trunk(table, config, dimensions, widths) | numbered


def _block(
    table: FamilyShapes, config: Mapping[str, Any], widths: Mapping[str, int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for linear in table.linears:
        outputs, inputs = (sum(widths[part] for part in side) for side in (linear.outputs, linear.inputs))
        yield f"{linear.name}.weight", (outputs, inputs)
        if linear.bias.holds(config) if isinstance(linear.bias, When) else linear.bias:
            yield f"{linear.name}.bias", (outputs,)
    for norm in table.norms:
        yield from _norm(norm, config, widths)


def _norm(norm: Norm, config: Mapping[str, Any], widths: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not all(condition.holds(config) for condition in norm.when):
        return
    owners = [norm.name] if norm.copies is None else [f"{norm.name}.{index}" for index in range(widths[norm.copies])]
    for owner in owners:
        yield f"{owner}.weight", (widths[norm.width],)
        if norm.has_bias:
            yield f"{owner}.bias", (widths[norm.width],)


def _trunk(table: FamilyShapes, config: Mapping[str, Any], dimensions: Dimensions, widths: Mapping[str, int]) -> Shapes:
    hidden, vocabulary = dimensions.hidden, dimensions.vocabulary
    width = config.get("word_embed_proj_dim") or hidden
    shapes: Shapes = {f"{table.embedding}.weight": (vocabulary, width)}
    if table.positions is not None:
        module, more = table.positions
        shapes[f"{module}.weight"] = (dimensions.context + more, hidden)
    if width != hidden:
        decoder = table.embedding.rpartition(".")[0]
        shapes |= {f"{decoder}.project_in.weight": (hidden, width), f"{decoder}.project_out.weight": (width, hidden)}
    return shapes | dict(_norm(table.final_norm, config, widths)) | {TIED_COPY: (vocabulary, width)}
