"""Compile the Triton kernels for GPUs that are not here: ``python compile_triton_kernels.py CAPABILITY …``.

Prints, as JSON, the PTX of every kernel by capability and name. Needs no GPU, only Triton's own compiler; runs in a
process of its own because Triton decides once whether it compiles or interprets.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from device_client.model.backends.triton import kernels

SIZES = ("row_count", "column_count", "row_bytes", "groups")
PER_ROW = {"codes": "*u8", "lut": "*fp16"} | dict.fromkeys(SIZES, "i32")
UNIFORM = {"codes": "*u8", "scale": "*fp16", "bias": "*fp16"} | dict.fromkeys(SIZES, "i32")
SPARSE = {"indices": "*i32", "row_starts": "*i32", "values": "*fp16"}
INPUTS = {"inputs": "*fp16", "words": "*i32", "out": "*fp16"}
TILE = {"ROWS": 4, "LUT_STRIDE": 16, "GROUP_SIZE": 128}
FEW = TILE | {"BITS": 4, "PAIRED": True, "WIDTH": 16, "SPAN": 512, "COUNT": 32}
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "dequantize, per row": (kernels.dequantize_pairs, PER_ROW | {"out": "*fp16"}, TILE | {"BYTES": 512}),
    "dequantize, uniform": (kernels.dequantize_pairs, UNIFORM | {"out": "*fp32"}, TILE | {"BYTES": 512}),
    "dequantize, 3 bits": (kernels.dequantize_columns, PER_ROW | {"out": "*bf16"}, TILE | {"BITS": 3, "COLUMNS": 512}),
    "dequantize, 8 bits, uniform": (
        kernels.dequantize_columns,
        UNIFORM | {"out": "*fp16"},
        TILE | {"BITS": 8, "GROUP_SIZE": 576, "COLUMNS": 512},
    ),
    "write_sparse": (
        kernels.write_sparse,
        {"out": "*fp16", "indices": "*i32", "values": "*fp16", "count": "i32"},
        {"BLOCK": 512},
    ),
    "linear_small, dense": (kernels.linear_small, PER_ROW | INPUTS, FEW | {"TOKENS": 1, "LANES": 1}),
    "linear_small, sparse": (kernels.linear_small, PER_ROW | INPUTS | SPARSE, FEW | {"TOKENS": 1, "LANES": 1}),
    "linear_small, uniform, 3 tokens": (
        kernels.linear_small,
        UNIFORM | INPUTS | SPARSE | {"added": "*fp16"},
        FEW | {"TOKENS": 3, "LANES": 4},
    ),
    "linear_small, a head of 8 bits": (
        kernels.linear_small,
        UNIFORM | INPUTS | {"indices": "*i32", "row_starts": "*i32"},
        FEW | {"BITS": 8, "GROUP_SIZE": 576, "PAIRED": False, "TOKENS": 1, "LANES": 1},
    ),
    "linear_small, 3 bits": (
        kernels.linear_small,
        PER_ROW | INPUTS | SPARSE,
        FEW | {"BITS": 3, "PAIRED": False, "TOKENS": 1, "LANES": 1},
    ),
}


def ptx_of(name: str, capability: int) -> str:
    """Return the PTX of a kernel; its machine code is made too, and thrown away.

    Pointers and sizes count as multiples of 16, as in a real model; what the signature does not name is a constant,
    None where it has no value.
    """
    kernel, signature, constants = KERNELS[name]
    names = kernel.arg_names
    aligned = [index for index, argument in enumerate(names) if argument in signature and argument != "count"]
    source = ASTSource(
        fn=kernel,
        signature={argument: signature.get(argument, "constexpr") for argument in names},
        constexprs={(index,): constants.get(a) for index, a in enumerate(names) if a not in signature},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    return str(compiled.asm["ptx"])


if __name__ == "__main__":
    print(
        json.dumps(
            {capability: {name: ptx_of(name, int(capability)) for name in KERNELS} for capability in sys.argv[1:]}
        )
    )
