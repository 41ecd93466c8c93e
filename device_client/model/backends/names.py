"""The backends by name, and which serve which kind of device; imports nothing, so that commands can offer them."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["auto", "reference", "native", "triton"]
BACKEND_NAMES: tuple[BackendName, ...] = ("auto", "reference", "native", "triton")
CANDIDATES: dict[str, tuple[BackendName, ...]] = {"cpu": ("native", "reference"), "cuda": ("triton", "reference")}
"""Device type → backends, the likeliest fastest first."""

Products = Literal["library", "matrix unit", "bfloat16"]
"""What makes the products of many tokens; each sums in another order or rounds otherwise:

library: of decoded weights · matrix unit: decodes within · bfloat16: the library, with the sensitive values beside it.
"""
PRODUCTS: tuple[Products, ...] = ("library", "matrix unit", "bfloat16")
