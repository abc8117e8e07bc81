"""A fleet that does not exist: what its devices measure, and what goes wrong on the way.

At each tick every device measures one metric, in turns. What is measured and what goes
wrong depends on the seed alone; only the times begin when the simulation does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshkit.clock import MICROS_PER_SECOND
from twinmesh_client import Kind

_Floats = NDArray[np.float64]

LOCATION = "location"
_UNKNOWN_METRIC = "not_of_this_type"
_WRONG_VALUE = "hot"
# Live telemetry may be 365 days old at most, however the mesh is set up.
_OUT_OF_WINDOW_US = 730 * 86_400 * MICROS_PER_SECOND
_LATE_S = 60.0, 3600.0
# Within its period a sample is up to a half early by its device, and up to 0.4 by jitter: the order stays.
_PHASE, _JITTER = 0.5, 0.4
_CENTRE = 48.2, 16.37
_DISTRICT = 0.05  # degrees around the centre in which devices are at home


@dataclass(frozen=True, slots=True)
class Metric:
    """What devices measure."""

    name: str
    kind: Kind
    unit: str
    display_name: str


METRICS = (
    Metric("temperature", Kind.DOUBLE, "°C", "Bearing temperature"),
    Metric("pressure", Kind.DOUBLE, "bar", "Pressure"),
    Metric("speed", Kind.DOUBLE, "1/min", "Speed"),
    Metric("starts", Kind.INT, "", "Starts"),
    Metric("state", Kind.STRING, "", "State"),
)
_KINDS = {metric.name: metric.kind for metric in METRICS} | {LOCATION: Kind.POINT}
# What moves is measured more often.
_TURNS = (*("temperature", "pressure", "speed") * 3, "starts", "state", LOCATION)


class State(IntEnum):
    """What a machine does."""

    RUNNING = 0
    IDLE = 1
    FAULT = 2


# How long a state lasts in the mean, in seconds.
_RUNS_S, _IDLES_S, _FAULT_S, _UNTIL_FAULT_S = 300.0, 30.0, 60.0, 3000.0


class Defect(IntEnum):
    """What happens to a sample on its way; the last three are refused."""

    NONE = 0
    LATE = 1
    DUPLICATE = 2
    UNKNOWN_METRIC = 3
    OUT_OF_WINDOW = 4
    WRONG_KIND = 5

    @property
    def is_bad(self) -> bool:
        """Tell whether the mesh refuses such a sample."""
        return self >= Defect.UNKNOWN_METRIC


@dataclass(frozen=True, slots=True)
class Traits:
    """How a fleet behaves.

    Attributes:
        rate: samples of each device per second.
        has_jitter: times are not even.
        late: share of the samples with a time 1 min to 1 h ago.
        duplicates: share of the samples sent twice.
        bad: share of the samples that are to be refused.

    Raises:
        ValueError: the shares make more than the whole.
    """

    rate: float = 1.0
    has_jitter: bool = False
    late: float = 0.0
    duplicates: float = 0.0
    bad: float = 0.0

    def __post_init__(self) -> None:
        if self.late + self.duplicates + self.bad > 1 + 1e-9:
            raise ValueError("the shares of late, duplicate and bad samples make more than 1 together")


@dataclass(frozen=True, slots=True)
class Run:
    """Samples of one series, in the order in which they are sent; times in microseconds since the epoch."""

    device: str
    metric: str
    kind: Kind
    times_us: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


class Fleet:
    """The machines: smooth values, that remember the past.

    Args:
        devices: how many.
        chance: decides what is random.
        step_s: time between two steps.
    """

    def __init__(self, devices: int, chance: np.random.Generator, step_s: float) -> None:
        self._chance = chance
        self._step_s = step_s
        self._time_s = 0.0
        self._state = np.full(devices, State.RUNNING)
        self._starts = chance.integers(1, 500, devices)
        self._phase = chance.uniform(0, 2 * np.pi, devices)
        self._temperature = 60 + chance.normal(0, 3, devices)
        self._pressure = 4 + chance.normal(0, 0.3, devices)
        self._speed = np.full(devices, 1480.0)
        self._home = chance.uniform(-_DISTRICT, _DISTRICT, (2, devices))
        self._away = np.zeros((2, devices))

    def step(self) -> None:
        """Let time pass."""
        self._time_s += self._step_s
        devices = len(self._state)
        self._change_states(self._chance.random(devices))
        noise = self._chance.standard_normal((5, devices))
        is_running = self._state == State.RUNNING
        day = np.sin(2 * np.pi * self._time_s / 600 + self._phase)
        self._temperature = self._drawn(self._temperature, 45 + 15 * is_running + 4 * day, 60, 0.8, noise[0])
        self._pressure = self._drawn(self._pressure, 1 + 3 * is_running, 20, 0.1, noise[1])
        self._speed = np.maximum(
            0, self._drawn(self._speed, 1480.0 * is_running, 5, 4, noise[2] * is_running)
        )
        self._away = self._drawn(self._away, 0.0, 300, 0.002, noise[3:])

    def value(self, metric: str, device: int) -> Any:
        """Return what a device measures now."""
        match metric:
            case "temperature":
                return round(float(self._temperature[device]), 2)
            case "pressure":
                return round(float(self._pressure[device]), 3)
            case "speed":
                return round(float(self._speed[device]), 1)
            case "starts":
                return int(self._starts[device])
            case "state":
                return State(self._state[device]).name.lower()
        north, east = self._home[:, device] + self._away[:, device]
        return round(_CENTRE[0] + float(north), 6), round(_CENTRE[1] + float(east), 6)

    def _change_states(self, chance: _Floats) -> None:
        before = self._state
        runs, idles, faulty = (before == state for state in State)
        fails = runs & (chance < self._within_step(_UNTIL_FAULT_S))
        rests = runs & ~fails & (chance > 1 - self._within_step(_RUNS_S))
        starts = idles & (chance < self._within_step(_IDLES_S))
        is_mended = faulty & (chance < self._within_step(_FAULT_S))
        self._state = np.select(
            [fails, rests | is_mended, starts], [State.FAULT, State.IDLE, State.RUNNING], before
        )
        self._starts = self._starts + starts

    def _within_step(self, mean_s: float) -> float:
        """Return how probable it is that what takes `mean_s` in the mean happens within a step."""
        return float(1 - np.exp(-self._step_s / mean_s))

    def _drawn(
        self, values: _Floats, target: _Floats | float, time_s: float, spread: float, noise: _Floats
    ) -> _Floats:
        """Return the next step of a random walk that is drawn to a target (Ornstein-Uhlenbeck, exact)."""
        kept = float(np.exp(-self._step_s / time_s))
        drawn: _Floats = target + (values - target) * kept + spread * np.sqrt(1 - kept * kept) * noise
        return drawn


@dataclass(frozen=True, slots=True)
class Sent:
    """What a simulation has made: `samples` counts duplicates twice."""

    samples: int
    defects: Counter[Defect]

    @property
    def bad(self) -> int:
        """Return how many are to be refused."""
        return sum(count for defect, count in self.defects.items() if defect.is_bad)

    @property
    def good(self) -> int:
        """Return how many are to be stored, duplicates twice."""
        return self.samples - self.bad


class Simulation:
    """Makes the samples of a fleet, tick by tick.

    Args:
        traits: how the fleet behaves.
        device_ids: its devices.
        start_us: time of tick 0, microseconds since the epoch. No sample of a tick is later than the tick.
        seed: decides what is random.
    """

    def __init__(self, traits: Traits, *, device_ids: Sequence[str], start_us: int, seed: int) -> None:
        self._traits = traits
        self._device_ids = device_ids
        self._start_us = start_us
        self._chance = np.random.default_rng(seed)
        self._fleet = Fleet(len(device_ids), self._chance, 1 / traits.rate)
        self._phase = _PHASE * np.arange(len(device_ids)) / len(device_ids)
        self._defects: Counter[Defect] = Counter()
        self._samples = 0
        self.ticks = 0

    @property
    def sent(self) -> Sent:
        """Return what was made so far."""
        return Sent(self._samples, self._defects.copy())

    def advance(self, ticks: int) -> list[Run]:
        """Make the samples of the next ticks."""
        batch = _Batch()
        for _ in range(ticks):
            self._tick(batch)
        return list(batch.runs.values())

    def _tick(self, batch: "_Batch") -> None:
        number, metric = self.ticks, _TURNS[self.ticks % len(_TURNS)]
        self.ticks += 1
        self._fleet.step()
        devices = len(self._device_ids)
        # Drawn at each tick, wanted or not: one trait does not change what another one does.
        defects = self._draw_defects(self._chance.random(devices), self._chance.integers(0, 3, devices))
        lateness_us = (self._chance.uniform(*_LATE_S, devices) * MICROS_PER_SECOND).astype(np.int64)
        jitter = self._chance.uniform(0, _JITTER, devices) * self._traits.has_jitter
        periods = number - self._phase - jitter
        times_us = self._start_us + (periods * MICROS_PER_SECOND / self._traits.rate).astype(np.int64)
        for device, id_ in enumerate(self._device_ids):
            defect = Defect(defects[device])
            time_us, value = int(times_us[device]), self._fleet.value(metric, device)
            name, kind = metric, _KINDS[metric]
            match defect:
                case Defect.LATE:
                    time_us -= int(lateness_us[device])
                case Defect.OUT_OF_WINDOW:
                    time_us -= _OUT_OF_WINDOW_US
                case Defect.UNKNOWN_METRIC:
                    name, kind, value = _UNKNOWN_METRIC, Kind.DOUBLE, 1.0
                case Defect.WRONG_KIND:
                    name, kind, value = METRICS[0].name, Kind.STRING, _WRONG_VALUE
            times = 2 if defect is Defect.DUPLICATE else 1
            batch.add(id_, name, kind, time_us, value, times=times)
            self._samples += times
            if defect is not Defect.NONE:
                self._defects[defect] += 1

    def _draw_defects(self, chance: _Floats, which: NDArray[np.int64]) -> NDArray[np.int64]:
        traits = self._traits
        late = traits.late
        twice = late + traits.duplicates
        return np.select(
            [chance < late, chance < twice, chance < twice + traits.bad],
            [np.int64(Defect.LATE), np.int64(Defect.DUPLICATE), which + Defect.UNKNOWN_METRIC],
            np.int64(Defect.NONE),
        )


class _Batch:
    """Samples by series."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str, Kind], Run] = {}

    def add(self, device: str, metric: str, kind: Kind, time_us: int, value: Any, *, times: int) -> None:
        run = self.runs.get((device, metric, kind))
        if run is None:
            run = self.runs[device, metric, kind] = Run(device, metric, kind)
        run.times_us.extend([time_us] * times)
        run.values.extend([value] * times)
