"""When the machine is to be left alone, by a file tree that stands for Linux's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from device_client.machine_strain import DEFAULT_LIMITS, MachineStrain, parse_limits

NOW = 1_000_000.0


class FakeMachine:
    """``sys``, ``proc`` and ``dev`` of a machine whose sensors are set by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._whole, self._others = 0, 0
        self.work(0, 0)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def battery(self, percent: int, status: str = "Discharging", name: str = "BAT0", **more: str) -> None:
        supply = f"sys/class/power_supply/{name}"
        for file, text in {"type": "Battery", "status": status, "capacity": str(percent), **more}.items():
            self.write(f"{supply}/{file}", text)

    def heat(self, degrees: float, zone: int = 0) -> None:
        self.write(f"sys/class/thermal/thermal_zone{zone}/temp", str(int(degrees * 1000)))

    def work(self, ticks: int, others: int) -> None:
        """Let so many ticks pass, of which other processes work some and this one none."""
        self._whole, self._others = self._whole + ticks, self._others + others
        own = 700
        self.write("proc/stat", f"cpu  {self._others + own} 0 0 {self._whole - self._others} 0 0 0 0 0 0\ncpu0 1 2 3")
        self.write("proc/self/stat", f"7 (a name) with) S {' '.join('0' for _ in range(10))} 600 100 0 0 20 0 1")

    def terminal(self, seconds_ago: float, number: int = 5) -> None:
        self.write(f"dev/pts/{number}", "")
        os.utime(self.root / f"dev/pts/{number}", (NOW - seconds_ago, NOW))


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def strain(machine: FakeMachine, limits: str) -> MachineStrain:
    return MachineStrain(parse_limits(limits), machine.root, now=lambda: NOW)


def test_a_battery_counts_while_it_discharges_below_the_limit_and_until_5_percent_above(machine: FakeMachine) -> None:
    looks = strain(machine, "battery=20")
    found = []
    for percent, status in (
        (21, "Discharging"), (20, "Discharging"), (19, "Discharging"), (24, "Discharging"), (25, "Discharging"),
        (24, "Discharging"), (19, "Charging"), (19, "Not charging"),
    ):  # fmt: skip
        machine.battery(percent, status)
        found.append(looks.reason() is not None)
    assert found == [False, False, True, True, False, False, False, False]


def test_the_reason_says_what_was_found_and_when_it_ends(machine: FakeMachine) -> None:
    machine.battery(12)
    machine.heat(91.4)
    assert strain(machine, "battery,temperature").reason() == (
        "the battery is at 12 % and discharges (continues at 25 % or on mains) and "
        "a sensor is at 91 °C (continues at 75 °C)"
    )


def test_the_emptiest_battery_counts_and_that_of_a_mouse_does_not(machine: FakeMachine) -> None:
    machine.battery(90)
    machine.battery(3, name="hid-mouse", scope="Device")
    machine.write("sys/class/power_supply/AC/type", "Mains")
    assert strain(machine, "battery").reason() is None
    machine.battery(5, name="BAT1")
    assert "at 5 %" in str(strain(machine, "battery").reason())


def test_the_hottest_plausible_sensor_counts_until_10_degrees_below(machine: FakeMachine) -> None:
    looks = strain(machine, "temperature=80")
    machine.heat(-273, zone=1)
    machine.heat(200, zone=2)
    found = []
    for degrees in (80, 80.5, 71, 70, 75):
        machine.heat(degrees)
        found.append(looks.reason() is not None)
    assert found == [False, True, True, False, False]


def test_the_share_of_others_counts_and_that_of_this_process_does_not(machine: FakeMachine) -> None:
    looks = strain(machine, "busy=40")
    found = []
    for others in (400, 401, 201, 200, 390):
        machine.work(1000, others)
        found.append(looks.reason() is not None)
    assert found == [False, True, True, False, False]


def test_a_look_too_soon_after_the_last_one_changes_nothing(machine: FakeMachine) -> None:
    looks = strain(machine, "busy=40")
    machine.work(1000, 900)
    assert looks.reason() == "other programs take 90 % of the CPUs (continues at 20 %)"
    machine.work(10, 0)
    assert looks.reason() == "other programs are working"
    machine.work(990, 0)  # together with the ten before
    assert looks.reason() is None


def test_somebody_who_typed_two_minutes_ago_has_stopped(machine: FakeMachine) -> None:
    machine.terminal(119)
    assert "somebody is typing" in str(strain(machine, "busy").reason())
    machine.terminal(120)
    assert strain(machine, "busy").reason() is None


def test_what_the_system_does_not_say_never_counts(tmp_path: Path) -> None:
    looks = MachineStrain(parse_limits("battery,temperature,busy"), tmp_path)
    assert looks.reason() is None
    machine = FakeMachine(tmp_path)
    machine.write("sys/class/power_supply/BAT0/type", "Battery")  # and nothing more
    machine.write("sys/class/thermal/thermal_zone0/temp", "cold")
    machine.write("proc/stat", "cpu")
    assert looks.reason() is None


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("none", {}), ("battery", {"battery": 20}), ("battery=35,busy", {"battery": 35, "busy": 50}),
        ("temperature=90", {"temperature": 90}),
    ],
)  # fmt: skip
def test_limits_are_read(text: str, limits: dict[str, float]) -> None:
    assert parse_limits(text) == limits


@pytest.mark.parametrize("text", ["", "disk", "battery=", "battery=0", "battery=-3", "battery=5000", "battery<20"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="needed"):
        parse_limits(text)


def test_only_the_battery_counts_unless_more_is_asked_for() -> None:
    assert DEFAULT_LIMITS == {"battery": 20}
