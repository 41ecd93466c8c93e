"""Random bundles, made once per family, storage form and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from random_bundle import Case, make_case


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Make (or return again) the case of a family and storage form."""
    made: dict[tuple[Any, ...], Case] = {}

    def get(model_type: str = "llama", form: str = "per_row", **options: Any) -> Case:
        key = (model_type, form, *sorted(options.items()))
        if key not in made:
            made[key] = make_case(tmp_path_factory.mktemp(f"{model_type}-{form}"), model_type, form, **options)
        return made[key]

    return get
