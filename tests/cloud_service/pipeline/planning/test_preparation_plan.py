"""Which plan is chosen, for known models and budgets, and the laws that every plan obeys."""

from __future__ import annotations

import dataclasses
import json

import accelerate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_service.pipeline.model.load_model import build_skeleton
from cloud_service.pipeline.planning.family_shapes import shapes_of_config
from cloud_service.pipeline.planning.model_shape import ModelShape, shape_of_tensors
from cloud_service.pipeline.planning.plan_table import format_seconds, plan_line, plan_table
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan, plan_preparation
from cloud_service.pipeline.planning.workload import Machine, Rates, Workload
from shared.architecture import safe_config
from shared.errors import ResourceError

GIB = 1 << 30
RATES = Rates(1.5e14, 1e12, 4e10, 1.2e10, 1e9, 5e7)
WORKLOAD = Workload(sequences=128, tokens=512, shards=16, evaluation_tokens=100_000)
SEVEN_BILLION = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
SEVENTY_BILLION = SEVEN_BILLION | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048,
}  # fmt: skip
WEIGHTS_7B, SUMS_7B = 2 * 6_738_415_616, 4 * 32 * 202_375_168


def shape_of(config: dict[str, object]) -> ModelShape:
    return shape_of_tensors(config, shapes_of_config(config))


def planned(
    config: dict[str, object], *accelerators_gib: float, host_gib: float = 128, workload: Workload = WORKLOAD
) -> PreparationPlan:
    budgets = tuple(int(gib * GIB) for gib in accelerators_gib)
    return plan_preparation(shape_of(config), workload, Machine(budgets, int(host_gib * GIB), GIB // 2, RATES))


def assert_within_budgets(plan: PreparationPlan) -> None:
    assert plan.host_bytes <= plan.host_budget
    for stage in plan.stages:
        assert len(stage.accelerator_bytes) <= len(plan.accelerator_budgets)
        for count, budget in zip(stage.accelerator_bytes, plan.accelerator_budgets, strict=False):
            assert count <= budget
    assert sorted(block for group in plan.passes for block in group) == list(range(len(set(sum(plan.passes, ())))))


def test_7b_on_80_gib_runs_in_one_pass_with_everything_beside_the_weights() -> None:
    plan = planned(SEVEN_BILLION, 80)
    assert (len(plan.passes), plan.accumulators, plan.recomputes_activations) == (1, "accelerator", False)
    assert plan.compute_dtype == "bfloat16"
    assert plan.device_map is None
    assert WEIGHTS_7B + SUMS_7B < plan.accelerator_bytes < WEIGHTS_7B + SUMS_7B + 5 * GIB
    assert_within_budgets(plan)


def test_7b_on_40_gib_recomputes_activations_in_one_pass() -> None:
    plan = planned(SEVEN_BILLION, 40)
    assert (len(plan.passes), plan.accumulators, plan.recomputes_activations) == (1, "accelerator", True)
    assert_within_budgets(plan)


def test_7b_on_24_gib_takes_several_passes_over_contiguous_groups() -> None:
    plan = planned(SEVEN_BILLION, 24)
    assert len(plan.passes) > 1
    assert plan.accumulators == "accelerator"
    assert plan.passes[0] == tuple(range(len(plan.passes[0])))
    assert WEIGHTS_7B < plan.accelerator_bytes <= 24 * GIB
    assert_within_budgets(plan)


def test_7b_over_two_accelerators_of_24_gib_needs_one_pass_and_spreads_evenly() -> None:
    plan = planned(SEVEN_BILLION, 24, 24)
    assert len(plan.passes) == 1
    first, second = plan.stage("calibrating").accelerator_bytes
    assert abs(first - second) < 2 * GIB
    assert plan.device_map is not None
    assert plan.device_map["model.embed_tokens"] == 0
    assert plan.device_map["lm_head"] == plan.device_map["model.layers.31"] == 1
    assert_within_budgets(plan)


def test_70b_over_eight_accelerators_of_80_gib_fits() -> None:
    plan = planned(SEVENTY_BILLION, *[80] * 8, host_gib=512)
    assert plan.device_map is not None
    assert [plan.device_map[f"model.layers.{block}"] for block in range(80)] == sorted(
        plan.device_map[f"model.layers.{block}"] for block in range(80)
    )
    assert plan.accumulators == "accelerator"
    assert_within_budgets(plan)


def test_a_model_that_fits_one_accelerator_uses_one() -> None:
    assert planned(SEVEN_BILLION, 80, 80).device_map is None


def test_a_cpu_computes_in_float32_and_fits_what_an_accelerator_may_not_hold() -> None:
    plan = planned(SEVEN_BILLION, host_gib=128)
    assert plan.compute_dtype == "float32"
    assert plan.host_bytes > 4 * 6_738_415_616
    assert plan.accelerator_bytes == 0
    assert_within_budgets(plan)


def test_little_main_memory_leaves_the_totals_on_disk() -> None:
    roomy, tight = planned(SEVEN_BILLION, 80, host_gib=64), planned(SEVEN_BILLION, 80, host_gib=8)
    assert roomy.totals_in_memory
    assert not tight.totals_in_memory or len(tight.passes) > 1
    assert tight.host_bytes <= 8 * GIB


def test_a_budget_that_is_too_small_names_the_smallest_that_is_not() -> None:
    with pytest.raises(ResourceError) as caught:
        planned(SEVEN_BILLION, 10)
    needed = float(caught.value.needed.split(", and ")[1].split()[0])
    assert WEIGHTS_7B / GIB < needed < 20
    assert planned(SEVEN_BILLION, needed + 0.1).accelerator_bytes <= (needed + 0.1) * GIB
    with pytest.raises(ResourceError):
        planned(SEVEN_BILLION, needed - 0.2)
    assert "--tokens" in caught.value.next_step
    assert caught.value.param == "max_accelerator_bytes"


def test_too_little_main_memory_on_a_cpu_names_what_would_do() -> None:
    with pytest.raises(ResourceError, match="main memory") as caught:
        planned(SEVEN_BILLION, host_gib=4)
    assert caught.value.param == "max_host_bytes"
    needed = float(caught.value.needed.removeprefix("at least ").split()[0])
    assert planned(SEVEN_BILLION, host_gib=needed + 0.1).host_bytes <= (needed + 0.1) * GIB


def test_a_cpu_whose_memory_does_not_hold_the_network_reads_it_block_by_block() -> None:
    whole, streamed = planned(SEVEN_BILLION, host_gib=64), planned(SEVEN_BILLION, host_gib=20)
    assert whole.streamed_shards is None
    assert streamed.streamed_shards in range(1, 16)
    assert (streamed.passes, streamed.recomputes_activations) == ((tuple(range(32)),), True)
    assert "network read block by block" in plan_line(streamed)
    assert streamed.stage("calibrating").seconds > whole.stage("calibrating").seconds
    assert_within_budgets(streamed)


def test_two_short_sequences_of_a_7b_model_are_prepared_on_a_cpu_within_8_gib() -> None:
    few = Workload(sequences=2, tokens=64, shards=2, evaluation_tokens=512, compensates=True)
    plan = planned(SEVEN_BILLION, host_gib=8, workload=few)
    assert plan.streamed_shards == 2
    trunk, block = 4 * 2 * 32000 * 4096, 4 * 202_383_360
    assert trunk + block < plan.host_bytes < 8 * GIB


def test_more_memory_lets_more_shards_go_through_a_streamed_network_together() -> None:
    shards = [planned(SEVEN_BILLION, host_gib=gib).streamed_shards or 0 for gib in (12, 16, 24)]
    assert shards == sorted(shards)
    assert shards[0] < shards[-1]


def test_what_needs_the_whole_network_is_never_streamed() -> None:
    writes_its_text = dataclasses.replace(WORKLOAD, needs_whole_network=True)
    assert planned(SEVEN_BILLION, host_gib=64, workload=writes_its_text).streamed_shards is None
    with pytest.raises(ResourceError, match="main memory"):
        planned(SEVEN_BILLION, host_gib=20, workload=writes_its_text)


def test_an_accelerator_holds_the_whole_network_or_refuses_it() -> None:
    assert planned(SEVEN_BILLION, 24, host_gib=20).streamed_shards is None
    with pytest.raises(ResourceError):
        planned(SEVEN_BILLION, 8, host_gib=20)


@pytest.mark.parametrize(
    "config",
    [
        SEVEN_BILLION,
        SEVEN_BILLION | {"num_key_value_heads": 8},
        SEVEN_BILLION | {"tie_word_embeddings": True},
        SEVEN_BILLION | {"model_type": "qwen3", "head_dim": 128},
        OPT,
    ],
    ids=["llama", "grouped queries", "tied", "qwen3", "opt"],
)
def test_a_device_map_places_every_module_of_the_real_network(config: dict[str, object]) -> None:
    small = config | {"num_hidden_layers": 4}
    one = planned(small, 80).accelerator_bytes / GIB
    plan = planned(small, *[0.75 * one] * 2)
    assert plan.device_map is not None
    network = build_skeleton(safe_config(small))
    accelerate.utils.check_device_map(network, dict(plan.device_map))
    head, embedding = plan.device_map["lm_head"], plan.device_map[shape_of(small).front_modules[0]]
    assert (head == embedding) == shape_of(small).is_tied


def test_compensation_keeps_hidden_states_and_weights_while_quantizing() -> None:
    plain = planned(SEVEN_BILLION, 80)
    compensated = planned(
        SEVEN_BILLION, 80, workload=Workload(128, 512, 16, evaluation_tokens=100_000, compensates=True)
    )
    hidden_states = 128 * 512 * 4096 * 2
    grown = compensated.stage("quantizing").host_bytes - plain.stage("quantizing").host_bytes
    assert grown == hidden_states
    assert compensated.stage("quantizing").accelerator_bytes[0] > WEIGHTS_7B


def test_a_plan_is_json_and_text_with_its_budget() -> None:
    plan = planned(SEVEN_BILLION, 24)
    document = json.loads(json.dumps(plan.to_json()))
    assert document["accelerator_bytes"] == plan.accelerator_bytes
    assert [stage["stage"] for stage in document["stages"]] == ["calibrating", "selecting", "quantizing", "evaluating"]
    table = plan_table(plan)
    assert "24.0 GiB" in table
    assert f"{len(plan.passes)} passes" in table
    assert "predicted peak" in plan_line(plan)
    assert "accelerator" not in plan_table(planned(OPT))


def test_durations_are_written_for_people() -> None:
    assert [format_seconds(seconds) for seconds in (0.2, 12, 200, 12_060)] == [
        "under 1 s",
        "12 s",
        "3 min",
        "3 h 21 min",
    ]


budgets = st.lists(st.floats(4, 90), min_size=0, max_size=3)


@given(accelerators=budgets, host=st.floats(1, 200), more=st.floats(1, 2), which=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_more_memory_never_makes_a_plan_slower_nor_impossible(
    accelerators: list[float], host: float, more: float, which: int
) -> None:
    config = SEVEN_BILLION | {"num_hidden_layers": 12}
    try:
        before = planned(config, *accelerators, host_gib=host)
    except ResourceError:
        return
    larger = [gib * more if index == which else gib for index, gib in enumerate(accelerators)]
    after = planned(config, *larger, host_gib=host * more)
    assert after.stage("calibrating").seconds <= before.stage("calibrating").seconds
    assert after.compute_dtype == before.compute_dtype
    assert_within_budgets(after)


@given(tokens=st.integers(16, 4096), budget=st.floats(14.5, 80))
@settings(max_examples=40, deadline=None)
def test_every_plan_stays_within_its_budget(tokens: int, budget: float) -> None:
    try:
        plan = planned(SEVEN_BILLION, budget, workload=Workload(128, tokens, 16))
    except ResourceError:
        return
    assert_within_budgets(plan)
