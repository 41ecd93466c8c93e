"""What the doctor finds."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from device_client.commands.doctor import package_problems

ROOT = Path("/opt/zo")


def test_this_checkout_is_healthy(command, home: Path) -> None:
    home.mkdir(mode=0o700)
    outcome = command("doctor")
    assert outcome.result["problems"] == []
    assert outcome.code == 0
    assert outcome.result["python"] == platform.python_version()
    assert outcome.result["devices"][0]["name"] == "cpu"
    assert "GTX 1080 Ti" in outcome.told


def test_the_cpu_kernels_are_ready_where_there_is_a_compiler(command, home: Path) -> None:
    home.mkdir(mode=0o700)
    assert command("doctor").result["backends"]["native"] is None


@pytest.fixture
def machine_with(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the system say these flags of its CPU."""

    def make(flags: str) -> None:
        home.mkdir(mode=0o700)
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nprocessor\t: 1\n")
        monkeypatch.setattr("device_client.model.backends.native.cpu.CPUINFO", tmp_path / "cpuinfo")

    return make


@pytest.mark.parametrize(
    ("flags", "has_unit"),
    [
        ("fpu avx512_bf16 avx512vbmi amx_bf16 amx_tile amx_int8", True),
        ("fpu avx512_bf16 avx512vbmi amx_bf16 amx_tile", False),
        ("fpu avx512_bf16 avx512vbmi", False),
    ],
)
def test_a_matrix_unit_is_named(command, machine_with: Callable[[str], None], flags: str, has_unit: bool) -> None:
    machine_with(flags)
    outcome = command("doctor")
    assert outcome.result["has_matrix_unit"] is has_unit
    assert ("--dtype bfloat16" in outcome.told) is has_unit


@pytest.mark.parametrize(("flags", "has_them"), [("fpu avx512_bf16", True), ("asimd bf16", True), ("fpu avx2", False)])
def test_instructions_for_bfloat16_are_named(
    command, machine_with: Callable[[str], None], flags: str, has_them: bool
) -> None:
    machine_with(flags)
    outcome = command("doctor")
    assert outcome.result["has_bfloat16"] is has_them
    assert ("--products bfloat16" in outcome.told) is has_them


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("fpu fma f16c avx2 avx512f avx512bw avx512dq avx512vl", "AVX-512"),
        ("fpu fma f16c avx2 avx512f", "AVX2"),  # without words of 16 bits
        ("fp asimd evtstrm", "NEON"),
        ("fpu sse2 avx2", None),  # without products that are rounded once
    ],
)
def test_the_vector_unit_that_kernels_use_is_named(
    command, machine_with: Callable[[str], None], flags: str, unit: str | None
) -> None:
    machine_with(flags)
    outcome = command("doctor")
    assert outcome.result["vector_unit"] == unit
    assert (unit or "texts come slowly") in outcome.told


def test_a_missing_compiler_is_named_with_what_it_costs(
    command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = command("doctor")
    assert outcome.code == 0
    assert "no C++ compiler" in outcome.result["backends"]["native"]
    assert "apt install g++" in outcome.told


def test_a_home_that_others_can_change_is_a_problem(command, home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    outcome = command("doctor")
    assert outcome.code == 1
    assert "chmod" in outcome.result["problems"][0]


def test_another_distribution_that_claims_a_package_is_named() -> None:
    claims = {"shared": ["zo-device", "shared"], "device_client": ["zo-device"]}
    origins = {name: ROOT / name for name in ("shared", "device_client")}
    problems = package_problems(claims, origins, ROOT)
    assert problems == ["distribution shared claims the package shared; next: pip uninstall shared"]


def test_a_package_from_elsewhere_is_named() -> None:
    problems = package_problems({}, {"shared": Path("/usr/lib/python3/shared")}, ROOT)
    assert len(problems) == 1
    assert "/usr/lib/python3/shared" in problems[0]


def test_packages_of_one_place_and_one_distribution_are_no_problem() -> None:
    claims = {"shared": ["zo-device", "zo-device"]}
    assert package_problems(claims, {"shared": ROOT / "shared"}, ROOT) == []
