"""What a load sends: numbered batches of a recording, whatever file it comes from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh_cli import recording
from twinmesh_cli.recording import MetricColumn

# Begin and end of event times, both inclusive, by span.
Ranges = Mapping[int, tuple[datetime, datetime]]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A batch to be sent.

    Attributes:
        sequence: from 1 on.
        span: of its times.
        samples: how many it holds.
        content: serialized fields of Batch: columns, or readings; empty when it is not to be sent.
    """

    sequence: int
    span: int
    samples: int
    content: bytes


class Recording(Protocol):
    """A file that was read once, and fits."""

    @property
    def samples(self) -> int:
        """Return how many it holds."""
        ...

    @property
    def ranges(self) -> Ranges:
        """Return the event times of each span."""
        ...

    @property
    def reported(self) -> Mapping[str, Sequence[MetricColumn]]:
        """Return by device which metrics it has samples of."""
        ...

    @property
    def definitions(self) -> Sequence[ingest_service_pb2.SeriesDef]:
        """Return the series that columns name by their places; none when batches hold readings."""
        ...

    def batches(self, after: int) -> Iterator[Outgoing]:
        """Yield the same batches each time, those up to a sequence without their content."""
        ...


class CsvRecording:
    """A CSV file, read row by row.

    Raises:
        RecordingError: a row does not fit; says which line and why.
    """

    definitions: Sequence[ingest_service_pb2.SeriesDef] = ()

    def __init__(self, path: Path, mapping: recording.Mapping) -> None:
        self._path = path
        self._mapping = mapping
        self.ranges: Ranges = recording.plan(path, mapping).ranges
        self.samples = 0
        devices: set[str] = set()
        for chunk in recording.chunks(path, mapping):
            self.samples += _samples(chunk)
            devices.update(reading.device_id for reading in chunk.readings)
        self.reported: Mapping[str, Sequence[MetricColumn]] = dict.fromkeys(sorted(devices), mapping.metrics)

    def batches(self, after: int) -> Iterator[Outgoing]:
        """Yield the rows, a thousand at a time; those up to a sequence without their content."""
        for chunk in recording.chunks(self._path, self._mapping):
            content = b""
            if chunk.sequence > after:
                content = ingest_service_pb2.Batch(readings=chunk.readings).SerializeToString()
            yield Outgoing(chunk.sequence, chunk.span, _samples(chunk), content)


def _samples(chunk: recording.Chunk) -> int:
    return sum(len(reading.values) for reading in chunk.readings)
