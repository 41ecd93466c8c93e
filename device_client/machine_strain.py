"""When a long run should leave the machine alone: what Linux says of battery, heat, and work of others.

    battery       the emptiest battery of the machine, while it discharges     /sys/class/power_supply/*/
    temperature   the hottest thermal zone, degrees Celsius                    /sys/class/thermal/thermal_zone*/temp
    busy          share of the machine's CPU time that other processes took    /proc/stat less /proc/self/stat
                  since the last look; 100 % while somebody types in another terminal    /dev/pts/*, time of last read

    a limit is met       battery < limit,  temperature > limit,  busy > limit
    it is met no more    battery ≥ limit + 5 or on mains,  temperature ≤ limit − 10,  busy ≤ limit / 2

Between both it stays as it was, so that a run does not stop and start every few seconds. What the system does not say
(no battery, no sensor, another system than Linux) never meets a limit. Only the battery's limit holds unless a person
asks for more: to go on would end the run by an empty battery soon. Heat has no number that is right everywhere, since
many laptops run at 95 °C by design, and whether others' work should come first is for their owner to say.
Costs a few small files per look. Knows nothing about runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

StrainKind = Literal["battery", "temperature", "busy"]

LIMITS: Mapping[StrainKind, float] = {"battery": 20, "temperature": 85, "busy": 50}
"""Where a person names a kind and no number."""
DEFAULT_LIMITS: Mapping[StrainKind, float] = {"battery": LIMITS["battery"]}
NO_LIMITS = "none"
TYPING_SECONDS = 120.0
"""Somebody who typed so recently is working."""

_RECOVERY_PERCENT, _COOLING_DEGREES = 5, 10
_PLAUSIBLE_DEGREES = range(1, 150)
_LEAST_TICKS = 100
"""Of all CPUs between two looks; a share of fewer says nothing."""


def parse_limits(text: str) -> dict[StrainKind, float]:
    """Return the limits that ``battery=30,busy`` names; ``none`` names none.

    Raises:
        argparse.ArgumentTypeError: A kind is unknown or its number is out of range; the parser adds the option's name.
    """
    limits: dict[StrainKind, float] = {}
    for part in [] if text == NO_LIMITS else text.split(","):
        name, is_given, number = part.strip().partition("=")
        kind = next((kind for kind in get_args(StrainKind) if kind == name), None)
        if kind is None:
            kinds = ", ".join(get_args(StrainKind))
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r}; needed: some of {kinds}, with or without =NUMBER behind each, or {NO_LIMITS}"
            )
        limits[kind] = _limit(number, part) if is_given else LIMITS[kind]
    return limits


def _limit(number: str, part: str) -> float:
    if not number.isdecimal() or not 0 < int(number) < 150:
        raise argparse.ArgumentTypeError(f"{part.strip()!r}; needed: a whole number from 1 to 149 behind =")
    return float(number)


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """CPU time since the machine was started, in ticks of all CPUs.

    Attributes:
        total: Idle time included.
        others: What processes other than this one took.
    """

    total: int
    others: int


class MachineStrain:
    """Looks at the machine.

    Args:
        limits: Which limits hold.
        root: Where ``sys``, ``proc`` and ``dev`` are.
        now: Seconds since the epoch, as file times have them.
    """

    def __init__(
        self, limits: Mapping[StrainKind, float], root: Path = Path("/"), now: Callable[[], float] = time.time
    ) -> None:
        self._limits, self._root, self._now = limits, root, now
        self._met: set[StrainKind] = set()
        self._ticks = self._cpu_ticks() if "busy" in limits else None

    def reason(self) -> str | None:
        """Look, and return for people why to leave the machine alone; None where nothing speaks against going on."""
        looks: dict[StrainKind, Callable[[float], str | None]] = {
            "battery": self._battery_reason,
            "temperature": self._temperature_reason,
            "busy": self._busy_reason,
        }
        found = {kind: looks[kind](limit) for kind, limit in self._limits.items()}
        self._met = {kind for kind, reason in found.items() if reason}
        return " and ".join(filter(None, found.values())) or None

    def _battery_reason(self, limit: float) -> str | None:
        percent = min(self._discharging(), default=None)
        until = limit + _RECOVERY_PERCENT
        if percent is None or percent >= (until if "battery" in self._met else limit):
            return None
        return f"the battery is at {percent} % and discharges (continues at {until:.0f} % or on mains)"

    def _temperature_reason(self, limit: float) -> str | None:
        degrees = max(self._temperatures(), default=None)
        until = limit - _COOLING_DEGREES
        if degrees is None or degrees <= (until if "temperature" in self._met else limit):
            return None
        return f"a sensor is at {degrees:.0f} °C (continues at {until:.0f} °C)"

    def _busy_reason(self, limit: float) -> str | None:
        if self._is_somebody_typing():
            return f"somebody is typing (continues {TYPING_SECONDS / 60:.0f} min after the last key)"
        before, self._ticks = self._ticks, self._cpu_ticks()
        if before is None or self._ticks is None or self._ticks.total - before.total < _LEAST_TICKS:
            self._ticks = before or self._ticks  # too soon: what was seen last still holds
            return "other programs are working" if "busy" in self._met else None
        percent = 100 * max(0, self._ticks.others - before.others) / (self._ticks.total - before.total)
        if percent <= (limit / 2 if "busy" in self._met else limit):
            return None
        return f"other programs take {percent:.0f} % of the CPUs (continues at {limit / 2:.0f} %)"

    def _discharging(self) -> Iterator[int]:
        """Yield the percentages of the machine's discharging batteries; those of mice and headsets do not count."""
        for supply in self._root.glob("sys/class/power_supply/*"):
            is_battery = _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
            capacity = _text(supply / "capacity")
            if is_battery and _text(supply / "status") == "Discharging" and capacity.isdecimal():
                yield int(capacity)

    def _temperatures(self) -> Iterator[float]:
        for zone in self._root.glob("sys/class/thermal/thermal_zone*"):
            text = _text(zone / "temp")
            if text.isdecimal() and int(text) // 1000 in _PLAUSIBLE_DEGREES:
                yield int(text) / 1000

    def _is_somebody_typing(self) -> bool:
        """Return whether another terminal than this program's was read from a moment ago."""
        now = self._now()
        for terminal in self._root.glob("dev/pts/[0-9]*"):
            try:
                state = terminal.stat()
            except OSError:  # closed meanwhile
                continue
            if state.st_rdev not in _own_terminals() and 0 <= now - state.st_atime < TYPING_SECONDS:
                return True
        return False

    def _cpu_ticks(self) -> CpuTicks | None:
        whole = _text(self._root / "proc/stat").partition("\n")[0].split()[1:9]
        own = _text(self._root / "proc/self/stat").rpartition(")")[2].split()[11:15]
        if len(whole) < 8 or len(own) < 4:
            return None
        user, nice, system, idle, waiting, interrupts, soft, stolen = map(int, whole)
        working = user + nice + system + interrupts + soft
        return CpuTicks(working + idle + waiting + stolen, working - sum(map(int, own)))


def _own_terminals() -> set[int]:
    """Return the device numbers of the terminals that this program is connected to."""
    found = set()
    for descriptor in range(3):
        try:
            found.add(os.fstat(descriptor).st_rdev)
        except OSError:
            continue
    return found - {0}


def _text(path: Path) -> str:
    """Return what a small file says, or nothing where there is none: a sensor may vanish or refuse at any time."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
