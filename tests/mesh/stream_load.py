"""Random batches for the gateway stream, and the samples that they hold."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshkit.clock import MICROS_PER_SECOND
from tests.mesh.oracle import Sample, Value
from tests.rpc.ingest.neighbours import METRICS
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2

# One sample in ten milliseconds of a lane; the lanes of senders lie side by side in between.
_STEP_US = 10_000
_BEFORE_US = 36 * 3600 * MICROS_PER_SECOND
_READINGS_SHARE = 0.2


@dataclass
class RandomBatches:
    """Batches of columns or readings whose samples no other batch has.

    Attributes:
        devices: ids; each has a metric of every kind.
        lane: whose samples these are, below 10,000.
        chance: decides everything.
        runs: most runs of a batch.
        run_length: most samples of a run.
    """

    devices: Sequence[str]
    lane: int
    chance: random.Random
    runs: int = 6
    run_length: int = 20
    _steps: int = field(default=0, init=False)
    _origin_us: int = field(init=False)
    _series: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self._origin_us = (time.time_ns() // 1000 - _BEFORE_US) // _STEP_US * _STEP_US + self.lane
        self._series = [(device, metric) for device in self.devices for metric in METRICS]

    def definitions(self) -> ingest_pb2.SeriesDefs:
        """Return what columns need."""
        return ingest_pb2.SeriesDefs(
            defs=[
                ingest_pb2.SeriesDef(alias=alias, device_id=device, metric=metric, kind=METRICS[metric][0])
                for alias, (device, metric) in enumerate(self._series)
            ]
        )

    def make(self, sequence: int) -> tuple[ingest_pb2.Batch, list[Sample]]:
        """Return a batch and what is to be stored of it."""
        if self.chance.random() < _READINGS_SHARE:
            return self.readings(sequence)
        return self._columns(sequence)

    def _columns(self, sequence: int) -> tuple[ingest_pb2.Batch, list[Sample]]:
        batch = ingest_pb2.Batch(sequence=sequence)
        columns = batch.columns
        samples = []
        for _ in range(self.chance.randint(1, self.runs)):
            alias = self.chance.randrange(len(self._series))
            device, metric = self._series[alias]
            length = self.chance.randint(1, self.run_length)
            columns.series.append(alias)
            columns.run_lengths.append(length)
            for _ in range(length):
                sample = Sample(device, metric, self._time_us(), self._value(metric))
                columns.times.append(sample.time_us)
                _COLUMNS[METRICS[metric][0]](columns, sample.value)
                samples.append(sample)
        return batch, samples

    def readings(self, sequence: int) -> tuple[ingest_pb2.Batch, list[Sample]]:
        """Return a batch of readings, as both doors take it, and what is to be stored of it."""
        batch = ingest_pb2.Batch(sequence=sequence)
        samples = []
        for _ in range(self.chance.randint(1, self.run_length)):
            reading = batch.readings.add(device_id=self.chance.choice(self.devices))
            time_us = self._time_us()
            reading.time.FromMicroseconds(time_us)
            for metric in self.chance.sample(sorted(METRICS), self.chance.randint(1, 3)):
                value = self._value(metric)
                reading.values[metric].CopyFrom(message_of(metric, value))
                samples.append(Sample(reading.device_id, metric, time_us, value))
        return batch, samples

    def _time_us(self) -> int:
        self._steps += 1
        return self._origin_us + self._steps * _STEP_US

    def _value(self, metric: str) -> Value:
        chance = self.chance
        match METRICS[metric][0]:
            case value_pb2.VALUE_KIND_DOUBLE:
                return chance.uniform(-1e9, 1e9)
            case value_pb2.VALUE_KIND_INT:
                return chance.randint(-(2**63), 2**63 - 1)
            case value_pb2.VALUE_KIND_BOOL:
                return chance.random() < 0.5
            case value_pb2.VALUE_KIND_STRING:
                return "".join(chance.choices("aé€😀\n\\\t", k=chance.randint(0, 8)))
            case _:
                altitude = chance.choice([None, chance.uniform(-100, 9_000)])
                return chance.uniform(-90, 90), chance.uniform(-180, 180), altitude


def message_of(metric: str, value: Value) -> value_pb2.Value:
    """Return a value of a metric of METRICS as readings have it."""
    return _FORMS[METRICS[metric][0]](value)


def _point(value: Value) -> value_pb2.Point:
    assert isinstance(value, tuple)
    latitude, longitude, altitude = value
    return value_pb2.Point(latitude=latitude, longitude=longitude, altitude=altitude)


_FORMS: dict[int, Callable[..., value_pb2.Value]] = {
    value_pb2.VALUE_KIND_DOUBLE: lambda value: value_pb2.Value(double_value=value),
    value_pb2.VALUE_KIND_INT: lambda value: value_pb2.Value(int_value=value),
    value_pb2.VALUE_KIND_BOOL: lambda value: value_pb2.Value(bool_value=value),
    value_pb2.VALUE_KIND_STRING: lambda value: value_pb2.Value(string_value=value),
    value_pb2.VALUE_KIND_POINT: lambda value: value_pb2.Value(point_value=_point(value)),
}
_COLUMNS: dict[int, Callable[..., None]] = {
    value_pb2.VALUE_KIND_DOUBLE: lambda columns, value: columns.double_values.append(value),
    value_pb2.VALUE_KIND_INT: lambda columns, value: columns.int_values.append(value),
    value_pb2.VALUE_KIND_BOOL: lambda columns, value: columns.bool_values.append(value),
    value_pb2.VALUE_KIND_STRING: lambda columns, value: columns.string_values.append(value),
    value_pb2.VALUE_KIND_POINT: lambda columns, value: columns.point_values.append(_point(value)),
}
