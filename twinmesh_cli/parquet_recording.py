"""Recordings in Parquet files, read as columns in windows of rows that never differ.

A window is sorted by series, so that what is sent has long runs, and cut into batches. All of it
depends on the file and the mapping alone, not on how the library reads: a load that was interrupted
sends exactly the same batches again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meshkit import wire
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh_cli.outgoing import Outgoing, Ranges
from twinmesh_cli.parquet_rows import EPOCH_US, Rows, moment, read_windows, require_columns
from twinmesh_cli.recording import SPAN, Mapping, MetricColumn, RecordingError

WINDOW_SAMPLES = 1 << 20
# A batch of a stream may have 1 MiB everywhere. A sample takes 16 bytes and a run 8, of strings 4 more
# for each text, its length and the text.
BATCH_BYTES = 1000 * 1024
_SAMPLE_BYTES = 24
_TEXT_BYTES = 8
MOST_SERIES = 100_000  # Of one stream.
_DEVICE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_SPAN_US = SPAN // timedelta(microseconds=1)
_VALUES = {  # field of Columns, how numpy writes it
    "double": ("double_values", "<f8"),
    "int": ("int_values", "<i8"),
    "bool": ("bool_values", "u1"),
}
_COLUMNS = {
    name: field.number for name, field in ingest_service_pb2.Columns.DESCRIPTOR.fields_by_name.items()
}
_COLUMNS_OF_BATCH = ingest_service_pb2.Batch.DESCRIPTOR.fields_by_name["columns"].number


@dataclass(frozen=True, slots=True)
class _Samples:
    """Samples of one kind, by series and, of each series, in the file's order.

    Attributes:
        pairs: int64[n], device's place times the number of metrics, and the metric's place.
        times: int64[n], microseconds since the epoch.
        values: [n], by kind; of strings object[n] of str.
    """

    kind: str
    pairs: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


class ParquetRecording:
    """A Parquet file, read in windows.

    Raises:
        RecordingError: a row does not fit; says which row (from 1) or column, and why.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self._path = path
        self._mapping = mapping
        self._metrics = mapping.metrics
        self._places = {column.column: place for place, column in enumerate(mapping.metrics)}
        self._devices: dict[str, int] = {}
        width = 1 if mapping.metric_column else max(len(self._metrics), 1)
        self._rows = max(1, WINDOW_SAMPLES // width)
        require_columns(path, mapping.columns)
        self.samples = 0
        spans: dict[int, tuple[int, int]] = {}
        pairs: set[int] = set()
        for span, samples in self._spans():
            self.samples += len(samples.times)
            pairs.update(samples.pairs[_starts(samples.pairs)].tolist())
            first, last = spans.get(span, (2**63, 0))
            spans[span] = min(first, int(samples.times.min())), max(last, int(samples.times.max()))
        if len(pairs) > MOST_SERIES:
            raise RecordingError(
                f"{path} has {len(pairs)} series, of {MOST_SERIES} at most; split it by devices"
            )
        self.ranges: Ranges = {span: (moment(first), moment(last)) for span, (first, last) in spans.items()}
        self._pairs = np.array(sorted(pairs), np.int64)
        devices = list(self._devices)
        series = [divmod(pair, len(self._metrics)) for pair in self._pairs.tolist()]
        self.reported: dict[str, list[MetricColumn]] = {}
        for device, metric in series:
            self.reported.setdefault(devices[device], []).append(self._metrics[metric])
        self.definitions = [
            ingest_service_pb2.SeriesDef(
                alias=alias,
                device_id=devices[device],
                metric=self._metrics[metric].metric,
                kind=self._metrics[metric].definition.kind,
                unit=self._metrics[metric].unit,
            )
            for alias, (device, metric) in enumerate(series)
        ]

    def batches(self, after: int) -> Iterator[Outgoing]:
        """Yield the samples, window by window and by series within; up to a sequence without content."""
        sequence = 0
        for span, samples in self._spans():
            for chosen in _cuts(samples):
                sequence += 1
                content = self._content(samples, chosen) if sequence > after else b""
                yield Outgoing(sequence, span, chosen.stop - chosen.start, content)

    def _content(self, samples: _Samples, chosen: slice) -> bytes:
        pairs, values = samples.pairs[chosen], samples.values[chosen]
        starts = _starts(pairs)
        parts = {
            "series": np.searchsorted(self._pairs, pairs[starts]).astype("<u4"),
            "run_lengths": np.diff(starts, append=len(pairs)).astype("<u4"),
            "times": samples.times[chosen].astype("<i8", copy=False),
        }
        dictionary = b""
        if samples.kind == "string":
            texts, codes = np.unique(values.astype(np.object_), return_inverse=True)
            dictionary = b"".join(wire.field(_COLUMNS["string_dictionary"], text.encode()) for text in texts)
            parts["string_codes"] = codes.astype("<u4")
        else:
            name, form = _VALUES[samples.kind]
            parts[name] = values.astype(form, copy=False)
        columns = b"".join(wire.field(_COLUMNS[name], part.tobytes()) for name, part in parts.items())
        return wire.field(_COLUMNS_OF_BATCH, columns + dictionary)

    def _spans(self) -> Iterator[tuple[int, _Samples]]:
        """Yield the samples of each window by span and kind."""
        for rows in read_windows(self._path, self._mapping.columns, self._rows):
            times = rows.times(self._mapping.time_column, self._mapping.time_unit)
            devices = self._devices_of(rows)
            for samples in self._samples_of(rows, times, devices):
                spans = (samples.times - EPOCH_US) // _SPAN_US
                for span in range(int(spans.min()), int(spans.max()) + 1):
                    chosen = np.flatnonzero(spans == span)
                    if len(chosen):
                        yield span, _sorted(samples, chosen)

    def _devices_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return each row's device, as its place among those met so far."""
        if not self._mapping.device_column:
            self._devices.setdefault(self._mapping.device_id, 0)
            return np.zeros(len(rows), np.int64)
        codes, names = rows.coded(self._mapping.device_column)
        places = []
        for code, name in enumerate(names):
            if name is None or not _DEVICE_ID.fullmatch(name):
                row = int(np.flatnonzero(codes == code)[0])
                raise rows.misfit(row, f"column {self._mapping.device_column!r}: {name!r} is no device id")
            places.append(self._devices.setdefault(name, len(self._devices)))
        return np.array(places, np.int64)[codes]

    def _samples_of(
        self, rows: Rows, times: npt.NDArray[np.int64], devices: npt.NDArray[np.int64]
    ) -> Iterator[_Samples]:
        """Yield a window's samples, all of one kind at a time."""
        mapping = self._mapping
        kinds = sorted({column.kind for column in self._metrics})
        if mapping.metric_column:
            codes, names = rows.coded(mapping.metric_column)
            places = np.array([self._places.get(name or "", -1) for name in names], np.int64)[codes]
            of_rows = np.array([column.kind for column in self._metrics], np.object_)[places]
            for kind in kinds:
                chosen = (places >= 0) & (of_rows == kind)
                known, values = rows.values(mapping.value_column, kind, mapping.missing, chosen)
                if len(known):
                    pairs = devices[known] * len(self._metrics) + places[known]
                    yield _Samples(kind, pairs, times[known], values)
            return
        for kind in kinds:
            found = []
            for place, column in enumerate(self._metrics):
                if column.kind == kind:
                    known, values = rows.values(column.column, kind, mapping.missing)
                    found.append((devices[known] * len(self._metrics) + place, times[known], values))
            if any(len(pairs) for pairs, _, _ in found):
                yield _Samples(kind, *(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _sorted(samples: _Samples, chosen: npt.NDArray[np.intp]) -> _Samples:
    """Return some of the samples by series, of each in the order that they have."""
    pairs = samples.pairs if len(chosen) == len(samples.pairs) else samples.pairs[chosen]
    # Small integers are sorted by their digits.
    order = np.argsort(pairs.astype(np.min_scalar_type(int(pairs.max()))), kind="stable")
    chosen = chosen[order]
    return _Samples(samples.kind, pairs[order], samples.times[chosen], samples.values[chosen])


def _starts(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return where runs of one series begin."""
    return np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))


def _cuts(samples: _Samples) -> Iterator[slice]:
    """Yield what fits into a batch, one part after the other."""
    count = len(samples.times)
    if samples.kind != "string":
        step = BATCH_BYTES // _SAMPLE_BYTES
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))
        return
    sizes = np.fromiter((len(text.encode()) for text in samples.values), np.int64, count)
    ends = np.cumsum(sizes + _SAMPLE_BYTES + _TEXT_BYTES)
    start = 0
    while start < count:
        before = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, before + BATCH_BYTES, side="right")), start + 1)
        yield slice(start, end)
        start = end
