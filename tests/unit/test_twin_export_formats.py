"""Files read back by others hold what was written, whatever it is and however it was cut."""

import csv
import io
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import VALUE_TYPES, Kind
from telemetry_store.history import SeriesHistory
from telemetry_store.quality import NOT_JUDGED, pack
from telemetry_store.series import Series
from twin_svc.export_formats import CSV_COLUMNS, SCHEMA, ExportFormat, export_writer

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8) | st.sampled_from(
    ["", "a,b", 'say "x"', "two\nlines", "ä", "# NOT WHOLE"]
)
_COORDINATES = st.tuples(st.floats(-90, 90), st.floats(-180, 180), st.just(math.nan) | st.floats(-1e4, 1e4))
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    Kind.INT: st.integers(-(2**63), 2**63 - 1),
    Kind.BOOL: st.booleans(),
    Kind.STRING: _TEXTS,
    Kind.POINT: _COORDINATES,
}
_QUALITY = st.just(NOT_JUDGED) | st.tuples(st.integers(0, 100), st.booleans()).map(
    lambda one: int(pack(np.array([one[0]], np.int32), np.full((4, 1), 20, np.int32), np.array([one[1]]))[0])
)


@st.composite
def _histories(draw: st.DrawFn) -> list[SeriesHistory]:
    made = []
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(list(Kind)))
        values = draw(st.lists(_VALUES[kind], min_size=1, max_size=6))
        times = draw(st.lists(st.integers(-(2**50), 2**51), min_size=len(values), max_size=len(values)))
        quality = draw(st.lists(_QUALITY, min_size=len(values), max_size=len(values)))
        series = Series(
            number, "demo", f"pump-{number}", "m", kind, draw(st.sampled_from(["", "bar", "m,s"]))
        )
        dtype = np.object_ if kind is Kind.STRING else VALUE_TYPES[kind]
        column = np.array(values, dtype)
        made.append(SeriesHistory(series, np.array(times, np.int64), column, np.array(quality, np.int32)))
    return made


def rows(histories: list[SeriesHistory]) -> list[dict[str, Any]]:
    """What a file is to say, in Python's values; absent is None."""
    expected = []
    for history in histories:
        series, quality = history.series, history.quality
        assert quality is not None
        for micros, value, code in zip(
            history.times.tolist(), history.values.tolist(), quality.tolist(), strict=True
        ):
            row = dict.fromkeys(SCHEMA.names)
            row |= {"device": series.device_id, "metric": series.metric, "unit": series.unit}
            row |= {"kind": series.kind.name, "time": micros}
            if series.kind is Kind.POINT:
                row |= {"latitude": value[0], "longitude": value[1]}
                row["altitude"] = None if math.isnan(value[2]) else value[2]
            else:
                row[f"{series.kind.name.lower()}_value"] = value
            if code != NOT_JUDGED:
                row |= {"quality": code & 127, "anomaly": bool(code & 1 << 27)}
            expected.append(row)
    return expected


def written(export_format: ExportFormat, histories: list[SeriesHistory], at_once: int) -> bytes:
    writer = export_writer(export_format)
    parts = [writer.write(histories[first : first + at_once]) for first in range(0, len(histories), at_once)]
    return b"".join([*parts, writer.end()])


def test_series_of_one_sample_take_the_room_of_their_rows() -> None:
    quality = np.full(1, NOT_JUDGED, np.int32)
    histories = [
        SeriesHistory(
            Series(number, "demo", f"pump-{number}", "flow", Kind.DOUBLE, ""),
            np.array([number]),
            np.array([number / 8]),
            quality,
        )
        for number in range(3_000)
    ]
    writer = export_writer(ExportFormat.ARROW)
    held = pa.total_allocated_bytes()
    file = writer.write(histories)
    # Some 150 bytes a row.
    assert pa.total_allocated_bytes() - held < 1_000_000
    file += writer.end()
    table = pa.ipc.open_stream(pa.BufferReader(file)).read_all()
    assert table["double_value"].to_pylist() == [number / 8 for number in range(3_000)]


def test_long_texts_are_not_held_until_there_are_many_rows() -> None:
    series = Series(1, "demo", "pump-1", "log", Kind.STRING, "")
    quality = np.full(100, NOT_JUDGED, np.int32)
    histories = [
        SeriesHistory(
            series,
            np.arange(100) + 100 * page,
            np.array([f"{page} {row}".ljust(16_384) for row in range(100)], np.object_),
            quality,
        )
        for page in range(30)
    ]
    file = pyarrow.parquet.ParquetFile(pa.BufferReader(written(ExportFormat.PARQUET, histories, 1)))
    # 49 MB in all.
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [
        1_100,
        1_100,
        800,
    ]
    assert file.read(["time"])["time"].cast(pa.int64()).to_pylist() == list(range(3_000))


@given(histories=_histories(), at_once=st.integers(1, 3))
@pytest.mark.parametrize("export_format", [ExportFormat.PARQUET, ExportFormat.ARROW])
def test_typed_files_read_back(
    export_format: ExportFormat, histories: list[SeriesHistory], at_once: int
) -> None:
    file = pa.BufferReader(written(export_format, histories, at_once))
    if export_format is ExportFormat.PARQUET:
        table = pyarrow.parquet.read_table(file)
    else:
        table = pa.ipc.open_stream(file).read_all()

    assert table.schema.equals(SCHEMA)
    table = table.set_column(2, "time", table["time"].cast(pa.int64()))
    assert table.to_pylist() == rows(histories)


@given(histories=_histories(), at_once=st.integers(1, 3))
def test_csv_reads_back(histories: list[SeriesHistory], at_once: int) -> None:
    text = written(ExportFormat.CSV, histories, at_once).decode()
    head, *found = csv.reader(io.StringIO(text, newline=""))

    assert tuple(head) == CSV_COLUMNS
    for row, expected in zip(found, rows(histories), strict=True):
        cells = dict(zip(CSV_COLUMNS, row, strict=True))
        moment = datetime.strptime(cells.pop("time"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6) == expected["time"]
        kind, value = cells["kind"], cells.pop("value")
        match kind:
            case "DOUBLE":
                assert float(value) == expected["double_value"]
            case "INT":
                assert int(value) == expected["int_value"]
            case "BOOL":
                assert value == str(expected["bool_value"]).lower()
            case "STRING":
                assert value == expected["string_value"]
            case "POINT":
                assert value == ""
        for name in ("latitude", "longitude", "altitude", "quality"):
            assert (float(cells[name]) if cells[name] else None) == expected[name]
        assert cells["anomaly"] == ("" if expected["anomaly"] is None else str(expected["anomaly"]).lower())
        for name in ("device", "metric", "kind", "unit"):
            assert cells[name] == expected[name]


@pytest.mark.parametrize("export_format", list(ExportFormat))
def test_what_stops_early_cannot_be_taken_for_whole(export_format: ExportFormat) -> None:
    series = Series(1, "demo", "pump-1", "m", Kind.DOUBLE, "bar")
    count = 200_000
    history = SeriesHistory(
        series, np.arange(count, dtype=np.int64), np.ones(count), np.full(count, NOT_JUDGED, np.int32)
    )
    writer = export_writer(export_format)
    part = writer.write([history]) + writer.failed("EXPORT_EXPIRED", "too\nlong")

    match export_format:
        case ExportFormat.CSV:
            *_, last = csv.reader(io.StringIO(part.decode()))
            assert last == ["# NOT WHOLE: EXPORT_EXPIRED: too long"]
        case ExportFormat.PARQUET:
            with pytest.raises(pa.ArrowInvalid):
                pyarrow.parquet.read_table(pa.BufferReader(part))
        case ExportFormat.ARROW:
            assert not part.endswith(b"\xff\xff\xff\xff\0\0\0\0")
            assert (part + writer.end()).endswith(b"\xff\xff\xff\xff\0\0\0\0")
