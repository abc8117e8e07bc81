"""Serialized requests of the gateway stream, made before the clock starts: pure numpy, no I/O.

Packed fields of fixed width are the arrays' own bytes, so building a request costs a
copy, and sending it costs no serializer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from meshkit import wire
from telemetry_store.columns import Kind, KindColumns
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh.type.v1 import value_pb2

_MAX_DEFS = 10_000
_STEP_US = 1_000


@dataclass(slots=True)
class SeriesLoad:
    """The samples of one stream: every series in turn, each run after the one before.

    Attributes:
        series: how many, with aliases from 0.
        run_length: samples of a series in a batch.
        runs_per_batch: series in a batch; divides `series`.
        start_us: time of the first sample; samples of a series are a millisecond apart.
    """

    series: int
    run_length: int
    runs_per_batch: int
    start_us: int
    _made: int = field(default=0, init=False)

    @property
    def samples_per_batch(self) -> int:
        """Return how many samples a batch holds."""
        return self.runs_per_batch * self.run_length

    def batches(self, count: int) -> list[bytes]:
        """Return the next requests; the first of all has sequence 1."""
        return [self._request() for _ in range(count)]

    def columns(self, count: int, *, first_series: int) -> Iterator[KindColumns]:
        """Yield the next batches as the store would get them, aliases being ids from `first_series` on."""
        for _ in range(count):
            aliases, times, values = self._next()
            yield KindColumns(
                kind=Kind.DOUBLE,
                series=np.repeat(aliases.astype(np.int32) + np.int32(first_series), self.run_length),
                times=times,
                values=values,
            )

    def _request(self) -> bytes:
        aliases, times, values = self._next()
        lengths = np.full(self.runs_per_batch, self.run_length, dtype=np.uint32)
        return batch_request(
            sequence=self._made, series=aliases, run_lengths=lengths, times=times, values=values
        )

    def _next(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        cycle, part = divmod(self._made, self.series // self.runs_per_batch)
        self._made += 1
        aliases = np.arange(self.runs_per_batch, dtype=np.uint32) + np.uint32(part * self.runs_per_batch)
        run = (
            self.start_us + (cycle * self.run_length + np.arange(self.run_length, dtype=np.int64)) * _STEP_US
        )
        times = np.tile(run, self.runs_per_batch)
        return aliases, times, times % 1_000_003 / 7


def batch_request(
    *,
    sequence: int,
    series: npt.NDArray[np.uint32],
    run_lengths: npt.NDArray[np.uint32],
    times: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
) -> bytes:
    """Return a serialized StreamTelemetryRequest with a batch of doubles.

    Args:
        sequence: the batch's number.
        series: [r], alias of each run.
        run_lengths: [r], samples of each run.
        times: [n], microseconds since the epoch.
        values: [n].
    """
    columns = ingest_service_pb2.Columns.DESCRIPTOR.fields_by_name
    body = b"".join(
        [
            wire.field(columns["series"].number, series.astype("<u4", copy=False).tobytes()),
            wire.field(columns["run_lengths"].number, run_lengths.astype("<u4", copy=False).tobytes()),
            wire.field(columns["times"].number, times.astype("<i8", copy=False).tobytes()),
            wire.field(columns["double_values"].number, values.astype("<f8", copy=False).tobytes()),
        ]
    )
    batch = ingest_service_pb2.Batch.DESCRIPTOR.fields_by_name["columns"]
    head = ingest_service_pb2.Batch(sequence=sequence).SerializeToString()
    request = ingest_service_pb2.StreamTelemetryRequest.DESCRIPTOR.fields_by_name["batch"]
    return wire.field(request.number, head + wire.field(batch.number, body))


def series_defs(names: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return the requests that define series of doubles, (device, metric) each, by alias from 0."""
    requests = []
    for first in range(0, len(names), _MAX_DEFS):
        defs = [
            ingest_service_pb2.SeriesDef(
                alias=alias, device_id=device, metric=metric, kind=value_pb2.VALUE_KIND_DOUBLE
            )
            for alias, (device, metric) in enumerate(names[first : first + _MAX_DEFS], first)
        ]
        request = ingest_service_pb2.StreamTelemetryRequest(
            series_defs=ingest_service_pb2.SeriesDefs(defs=defs)
        )
        requests.append(request.SerializeToString())
    return requests


def reading_request(*, sequence: int, device: str, metric: str, time_us: int, value: float) -> bytes:
    """Return a serialized StreamTelemetryRequest with a batch of one reading of one double."""
    reading = ingest_service_pb2.Reading(device_id=device, numbers={metric: value})
    reading.time.FromMicroseconds(time_us)
    batch = ingest_service_pb2.Batch(sequence=sequence, readings=[reading])
    return ingest_service_pb2.StreamTelemetryRequest(batch=batch).SerializeToString()
