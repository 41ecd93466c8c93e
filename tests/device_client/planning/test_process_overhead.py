"""What a process is said to hold beside its tensors."""

from __future__ import annotations

from device_client.planning.process_overhead import CUDA_CONTEXT_BYTES, libraries_bytes, product_bytes, slack_bytes

MIB = 1 << 20


def test_libraries_that_others_import_count_where_they_are_installed() -> None:
    bare = libraries_bytes("cpu", lambda _: False)

    assert libraries_bytes("cpu", {"triton"}.__contains__) == bare + 71 * MIB
    assert libraries_bytes("cpu", {"triton", "scipy", "pandas"}.__contains__) == bare + (71 + 36) * MIB


def test_on_cuda_only_its_context_counts() -> None:
    assert libraries_bytes("cuda", lambda _: True) == CUDA_CONTEXT_BYTES == 512 * MIB
    assert product_bytes("cuda", 90 * MIB) == slack_bytes("cuda", [MIB, 90 * MIB]) == 0


def test_products_pack_at_most_the_largest_weight() -> None:
    assert [product_bytes("cpu", weight) for weight in (MIB, 32 * MIB, 172 * MIB)] == [MIB, 32 * MIB, 32 * MIB]


def test_slack_is_half_of_the_pieces_that_malloc_does_not_map_and_the_end_of_its_heap() -> None:
    assert slack_bytes("cpu", [10 * MIB, 20 * MIB]) == 15 * MIB + 10 * MIB
    assert slack_bytes("cpu", [10 * MIB, 20 * MIB, 32 * MIB, 90 * MIB, 90 * MIB]) == 15 * MIB + 64 * MIB


def test_a_way_back_leaves_gaps_as_large_as_what_it_holds() -> None:
    assert slack_bytes("cpu", [10 * MIB, 20 * MIB], is_differentiated=True) == 30 * MIB + 10 * MIB
