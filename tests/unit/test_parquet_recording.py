"""A Parquet recording is cut into the same batches every time, and nothing of it changes on the way."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.validation import validate
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh_cli import parquet_recording
from twinmesh_cli.outgoing import Outgoing
from twinmesh_cli.parquet_recording import ParquetRecording
from twinmesh_cli.parquet_rows import metric_columns
from twinmesh_cli.recording import Mapping, MetricColumn, RecordingError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2020, 3, 1, tzinfo=UTC)
FLOW = Mapping("time", (MetricColumn("flow", "flow"),), device_id="pump-1")
# (device, metric, microseconds since the epoch, value)
Sample = tuple[str, str, int, Any]
# The file is written anew for each example.
fresh_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(folder: Path, row_group_size: int | None = None, **columns: Any) -> Path:
    path = folder / "recording.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def at(seconds: Sequence[float], **type_of: Any) -> pa.Array:
    moments = [START + timedelta(seconds=each) for each in seconds]
    return pa.array(moments, pa.timestamp(type_of.get("unit", "us"), tz=type_of.get("tz", "UTC")))


def micros(second: float) -> int:
    return (START + timedelta(seconds=second) - EPOCH) // timedelta(microseconds=1)


def refused(path: Path, mapping: Mapping) -> str:
    with pytest.raises(RecordingError) as caught:
        ParquetRecording(path, mapping)
    return str(caught.value)


def decoded(recording: ParquetRecording, outgoing: Outgoing) -> list[Sample]:
    """Return the samples of a batch, as the contract reads it."""
    batch = ingest_service_pb2.Batch(sequence=outgoing.sequence)
    batch.MergeFromString(outgoing.content)
    validate(batch)
    columns = batch.columns
    texts = [columns.string_dictionary[code] for code in columns.string_codes]
    values = iter([*columns.double_values, *columns.int_values, *columns.bool_values, *texts])
    times = iter(columns.times)
    found: list[Sample] = []
    for alias, length in zip(columns.series, columns.run_lengths, strict=True):
        definition = recording.definitions[alias]
        assert definition.alias == alias
        found += [(definition.device_id, definition.metric, next(times), next(values)) for _ in range(length)]
    assert len(found) == outgoing.samples
    return found


def samples_of(path: Path, mapping: Mapping) -> list[Sample]:
    recording = ParquetRecording(path, mapping)
    found = [sample for outgoing in recording.batches(0) for sample in decoded(recording, outgoing)]
    assert len(found) == recording.samples
    return found


rows = st.lists(
    st.tuples(
        st.sampled_from(["pump-1", "pump-2", "fan-1"]),
        # Years apart and in any order, so that batches end at the borders of spans as well.
        st.integers(0, 4 * 365 * 86_400),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.booleans(),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    min_size=1,
    max_size=60,
)


@fresh_files
@given(rows=rows, window=st.integers(1, 40), batch_bytes=st.integers(24, 400), group=st.integers(1, 20))
def test_batches_hold_exactly_the_file(
    tmp_path: Path, rows: list[tuple[Any, ...]], window: int, batch_bytes: int, group: int
) -> None:
    devices, seconds, *values = (list(column) for column in zip(*rows, strict=True))
    names = ["a", "b", "c", "d"]
    types = [pa.float64(), pa.int64(), pa.bool_(), pa.string()]
    columns = {name: pa.array(column, held) for name, column, held in zip(names, values, types, strict=True)}
    path = write(tmp_path, group, time=at(seconds), who=pa.array(devices).dictionary_encode(), **columns)
    mapping = Mapping("time", (), device_column="who")
    mapping = replace(mapping, metrics=metric_columns(path, mapping))
    assert [column.kind for column in mapping.metrics] == ["double", "int", "bool", "string"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_recording, "WINDOW_SAMPLES", window)
        patch.setattr(parquet_recording, "BATCH_BYTES", batch_bytes)
        recording = ParquetRecording(path, mapping)
        batches = list(recording.batches(0))
        # However the rows are grouped in another file of the same content.
        pq.write_table(pq.read_table(path), path)
        assert batches == list(ParquetRecording(path, mapping).batches(0))
        half = len(batches) // 2
        rest = list(recording.batches(half))
        assert [outgoing.content for outgoing in rest] == [
            *[b""] * half,
            *(outgoing.content for outgoing in batches[half:]),
        ]
    assert [outgoing.sequence for outgoing in batches] == list(range(1, len(batches) + 1))
    expected = [
        (device, name, micros(second), value)
        for device, second, *values in rows
        for name, value in zip(names, values, strict=True)
        if value is not None
    ]
    found = [sample for outgoing in batches for sample in decoded(recording, outgoing)]
    # Of a series the file's order is kept, so that the last of equal times counts.
    by_series = lambda sample: sample[:2]  # noqa: E731
    assert sorted(found, key=by_series) == sorted(expected, key=by_series)
    reported = {(device, column.metric) for device, each in recording.reported.items() for column in each}
    assert reported == {sample[:2] for sample in expected}
    for outgoing in batches:
        first, last = recording.ranges[outgoing.span]
        assert last - first < timedelta(days=365)
        assert all(
            first <= EPOCH + timedelta(microseconds=time) <= last
            for _, _, time, _ in decoded(recording, outgoing)
        )


def test_a_row_may_name_its_metric(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        time=at([0, 0, 1, 2]),
        device=["pump-1", "pump-2", "pump-1", "pump-1"],
        name=["Flow (l/min)", "rpm", "Flow (l/min)", "other"],
        value=[1.5, 3000.0, 2.5, None],
    )
    mapping = Mapping("time", (), device_column="device", metric_column="name", value_column="value")
    every = replace(mapping, metrics=metric_columns(path, mapping))
    flow, rpm = ("pump-1", "flow_l_min", micros(0), 1.5), ("pump-2", "rpm", micros(0), 3000.0)
    later = ("pump-1", "flow_l_min", micros(1), 2.5)
    assert samples_of(path, every) == [flow, later, rpm]
    assert ParquetRecording(path, every).reported == {
        "pump-1": [MetricColumn("Flow (l/min)", "flow_l_min")],
        "pump-2": [MetricColumn("rpm", "rpm")],
    }
    mapped = (MetricColumn("rpm", "speed", "int", "rpm"), MetricColumn("Flow (l/min)", "flow"))
    assert samples_of(path, replace(mapping, metrics=mapped)) == [
        ("pump-1", "flow", micros(0), 1.5),
        ("pump-1", "flow", micros(1), 2.5),
        ("pump-2", "speed", micros(0), 3000),
    ]


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (at([1.5], unit="ms"), ""),
        (at([1.5], unit="ns"), ""),
        (at([1.5], tz=None), ""),
        (at([1.5], tz="Europe/Vienna"), ""),
        (pa.array(["2020-03-01T00:00:01.5Z"]), ""),
        (pa.array(["2020-03-01 01:00:01.500000+01:00"]), ""),
        (pa.array(["2020-03-01T00:00:01.5"]).dictionary_encode(), ""),
        (pa.array([micros(1.5) // 1000]), "ms"),
        (pa.array([micros(1.5) * 1000]), "ns"),
        (pa.array([micros(1.5) / 1e6]), "s"),
    ],
)
def test_times_may_have_many_forms(tmp_path: Path, times: pa.Array, unit: str) -> None:
    path = write(tmp_path, time=times, flow=[1.0])
    assert samples_of(path, replace(FLOW, time_unit=unit)) == [("pump-1", "flow", micros(1.5), 1.0)]


def test_what_stands_for_nothing_is_no_sample(tmp_path: Path) -> None:
    path = write(tmp_path, time=at([0, 1, 2]), flow=[1.0, np.nan, 3.0], state=["on", "n/a", None])
    metrics = (MetricColumn("flow", "flow", "int"), MetricColumn("state", "state", "string"))
    assert samples_of(path, replace(FLOW, metrics=metrics, missing=("NaN", "n/a"))) == [
        ("pump-1", "flow", micros(0), 1),
        ("pump-1", "flow", micros(2), 3),
        ("pump-1", "state", micros(0), "on"),
    ]


@pytest.mark.parametrize(
    ("columns", "mapping", "why"),
    [
        ({"time": at([0, 1]), "flow": [1.0, np.nan]}, FLOW, "row 2: column 'flow': nan is no value"),
        ({"time": at([0, 1]), "flow": [np.inf, 1.0]}, FLOW, "row 1: column 'flow': inf is no value"),
        ({"time": pa.array([None, START]), "flow": [1.0, 2.0]}, FLOW, "row 1: column 'time' holds no time"),
        ({"time": at([0, -(10**9)]), "flow": [1.0, 2.0]}, FLOW, "row 2: column 'time': 1988-"),
        ({"time": [1, 2], "flow": [1.0, 2.0]}, FLOW, "holds numbers; say --time-unit"),
        ({"time": ["noon", "soon"], "flow": [1.0, 2.0]}, FLOW, "column 'time' holds no times"),
        ({"time": at([0]), "rpm": [1.0]}, FLOW, "no column 'flow'; it has 'time', 'rpm'"),
        ({"time": at([0]), "flow": ["warm"]}, FLOW, "column 'flow' of string is no double"),
        (
            {"time": at([0]), "flow": [1.5]},
            replace(FLOW, metrics=(MetricColumn("flow", "flow", "int"),)),
            "column 'flow' of double is no int",
        ),
        (
            {"time": at([0, 1]), "flow": [1.0, 1.0], "who": ["a", "A b"]},
            replace(FLOW, device_id="", device_column="who"),
            "row 2: column 'who': 'A b' is no device id",
        ),
        (
            {"time": at([0]), "flow": [1.0], "who": pa.array([None], pa.string())},
            replace(FLOW, device_id="", device_column="who"),
            "row 1: column 'who': None is no device id",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, columns: dict[str, Any], mapping: Mapping, why: str
) -> None:
    assert why in refused(write(tmp_path, **columns), mapping)


def test_a_row_is_counted_through_windows(tmp_path: Path) -> None:
    path = write(tmp_path, time=at(range(10)), flow=[*map(float, range(9)), np.nan])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_recording, "WINDOW_SAMPLES", 4)
        assert "row 10: column 'flow'" in refused(path, FLOW)


def test_a_column_that_no_metric_can_be_has_to_be_mapped_around(tmp_path: Path) -> None:
    path = write(tmp_path, time=at([0]), flow=[1.0], tags=[["a"]])
    with pytest.raises(RecordingError, match="column 'tags' holds list"):
        metric_columns(path, FLOW)
    assert samples_of(path, FLOW) == [("pump-1", "flow", micros(0), 1.0)]


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recording.parquet"
    path.write_text("time,flow\n")
    assert "is no Parquet file" in refused(path, FLOW)
