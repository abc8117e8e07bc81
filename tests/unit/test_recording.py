"""A recording is cut into the same chunks every time, and nothing of it changes on the way."""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.validation import validate
from twinmesh.ingest.v1.ingest_service_pb2 import IngestTelemetryRequest, Reading
from twinmesh.type.v1 import value_pb2
from twinmesh_cli import recording
from twinmesh_cli.recording import Mapping, MetricColumn, RecordingError

START = datetime(2020, 3, 1, tzinfo=UTC)
# The file is written anew for each example.
fresh_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

ONE_METRIC = Mapping("time", (MetricColumn("t", "temperature"),), device_id="pump-1")


def write(folder: Path, *lines: str) -> Path:
    path = folder / "recording.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(path: Path, mapping: Mapping) -> str:
    with pytest.raises(RecordingError) as caught:
        recording.plan(path, mapping)
    return str(caught.value)


def readings_of(path: Path, mapping: Mapping) -> list[Reading]:
    return [reading for chunk in recording.chunks(path, mapping) for reading in chunk.readings]


finite = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
# Years apart, in any order, so that chunks end at the borders of spans as well.
seconds = st.integers(0, 4 * 365 * 86_400)
rows_of_every_kind = st.lists(
    st.tuples(
        seconds,
        finite,
        int64,
        st.booleans(),
        # Without line ends: how a reader takes those apart is csv's affair.
        text.filter(lambda told: told.isprintable()),
    ),
    min_size=1,
    max_size=60,
)
EVERY_KIND = Mapping(
    "time",
    (
        MetricColumn("a", "a"),
        MetricColumn("b", "b", "int"),
        MetricColumn("c", "c", "bool"),
        MetricColumn("d", "d", "string"),
    ),
    device_id="pump-1",
)


@fresh_files
@given(rows=rows_of_every_kind, size=st.integers(1, 7))
def test_chunks_hold_exactly_the_rows(
    tmp_path: Path, rows: Sequence[tuple[int, float, int, bool, str]], size: int
) -> None:
    path = tmp_path / "every-kind.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "a", "b", "c", "d"])
        for second, *values in rows:
            writer.writerow([(START + timedelta(seconds=second)).isoformat(), *values])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "CHUNK_READINGS", size)
        chunks = list(recording.chunks(path, EVERY_KIND))
        plan = recording.plan(path, EVERY_KIND)
        assert chunks == list(recording.chunks(path, EVERY_KIND))

    assert [chunk.sequence for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert all(1 <= len(chunk.readings) <= size for chunk in chunks)
    assert [
        (
            (reading.time.ToDatetime(tzinfo=UTC) - START) // timedelta(seconds=1),
            reading.values["a"].double_value,
            reading.values["b"].int_value,
            reading.values["c"].bool_value,
            reading.values["d"].string_value,
        )
        for chunk in chunks
        for reading in chunk.readings
    ] == rows
    assert (plan.chunks, plan.readings) == (len(chunks), len(rows))
    for chunk in chunks:
        first, last = plan.ranges[chunk.span]
        assert last - first < recording.SPAN
        assert all(first <= reading.time.ToDatetime(tzinfo=UTC) <= last for reading in chunk.readings)


@fresh_files
@given(value=finite)
def test_a_double_keeps_its_last_digit(tmp_path: Path, value: float) -> None:
    (reading,) = readings_of(write(tmp_path, "time,t", f"2020-03-01T00:00:00Z,{value!r}"), ONE_METRIC)
    sent = reading.values["temperature"].double_value
    assert (sent, math.copysign(1, sent)) == (value, math.copysign(1, value))


@fresh_files
@given(value=int64, form=st.sampled_from(["{}", "{}.0", "{}e0", " {} "]))
def test_an_integer_keeps_its_last_digit(tmp_path: Path, value: int, form: str) -> None:
    mapping = Mapping("time", (MetricColumn("n", "count", "int"),), device_id="pump-1")
    path = write(tmp_path, "time,n", f"2020-03-01T00:00:00Z,{form.format(value)}")
    assert readings_of(path, mapping)[0].values["count"].int_value == value


def test_chunks_fit_into_one_message(tmp_path: Path) -> None:
    mapping = Mapping(
        "time", tuple(MetricColumn(f"c{n}", f"c{n}", "string") for n in range(4)), device_id="pump-1"
    )
    cells = ",".join(["x" * 4096] * 4)
    path = write(tmp_path, "time,c0,c1,c2,c3", *[f"2020-03-01T00:00:00Z,{cells}"] * 600)
    chunks = list(recording.chunks(path, mapping))
    sizes = [IngestTelemetryRequest(readings=chunk.readings).ByteSize() for chunk in chunks]
    assert len(chunks) == 10
    assert max(sizes) < 1024 * 1024
    assert sum(len(chunk.readings) for chunk in chunks) == 600


def test_an_empty_cell_is_no_sample_and_a_row_without_samples_no_reading(tmp_path: Path) -> None:
    mapping = Mapping("time", (*ONE_METRIC.metrics, MetricColumn("u", "u")), device_id="pump-1")
    rows = ["2020-03-01T00:00:00Z,,", "", "2020-03-01T00:00:01Z,2,", "2020-03-01T00:00:02Z,,3", ""]
    path = write(tmp_path, "time,t,u", *rows)
    assert [dict(reading.values) for reading in readings_of(path, mapping)] == [
        {"temperature": value_pb2.Value(double_value=2)},
        {"u": value_pb2.Value(double_value=3)},
    ]
    assert recording.plan(path, mapping).readings == 2


def test_devices_may_stand_in_a_column_and_headings_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufefftime;who;t", "2020-03-01 00:00:00;pump-1;1", "2020-03-01 00:00:00;pump-2;2")
    mapping = Mapping("time", (MetricColumn("t", "t"),), device_column="who", delimiter=";")
    assert recording.header(path, ";") == ["time", "who", "t"]
    assert [reading.device_id for reading in readings_of(path, mapping)] == ["pump-1", "pump-2"]


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        ("2020-03-01T12:00:00Z", datetime(2020, 3, 1, 12, tzinfo=UTC)),
        ("2020-03-01 12:00:00", datetime(2020, 3, 1, 12, tzinfo=UTC)),
        ("2020-03-01T12:00:00.000001+02:00", datetime(2020, 3, 1, 10, 0, 0, 1, tzinfo=UTC)),
        ("2020-03-01", datetime(2020, 3, 1, tzinfo=UTC)),
    ],
)
def test_times_without_a_zone_are_utc(told: str, moment: datetime) -> None:
    assert recording.parse_time(told) == moment


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("yesterday,1", "'yesterday' is no time by ISO 8601; numbers need --time-unit"),
        ("2020-03-01T00:00:01Z,warm", "column 't': 'warm' is no double"),
        ("2020-03-01T00:00:01Z", "1 columns, but the heading has 2"),
        ("2020-03-01T00:00:01Z,1,2", "3 columns, but the heading has 2"),
        ("2020-03-01T00:00:01Z,nan", "finite"),
        ("2020-03-01T00:00:01Z,-inf", "finite"),
        ("2020-03-01T00:00:01Z," + "1" * 140_000, "field larger than field limit"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(tmp_path: Path, row: str, why: str) -> None:
    path = write(tmp_path, "time,t", "2020-03-01T00:00:00Z,1", row, "2020-03-01T00:00:02Z,3")
    told = refused(path, ONE_METRIC)
    assert told.startswith(f"{path}, line 3: ")
    assert why in told


def test_cells_that_stand_for_nothing_hold_no_sample(tmp_path: Path) -> None:
    path = write(tmp_path, "time,t", "2020-03-01T00:00:00Z,1", "2020-03-01T00:00:01Z,NaN")
    mapping = replace(ONE_METRIC, missing=("NaN", "n/a"))
    (chunk,) = recording.chunks(path, mapping)
    assert [dict(reading.values).popitem()[1].double_value for reading in chunk.readings] == [1.0]
    assert recording.writer_id(path, mapping) != recording.writer_id(path, ONE_METRIC)


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("int", "1.5"),
        ("int", "9223372036854775808"),
        ("int", "1e999999999"),
        ("int", "NaN"),
        ("int", "1,5"),
        ("bool", "yes"),
        ("string", "a\0b"),
        ("string", "x" * 4097),
    ],
)
def test_a_value_of_another_kind_is_named_by_its_line(tmp_path: Path, kind: str, cell: str) -> None:
    mapping = Mapping("time", (MetricColumn("v", "v", kind),), device_id="pump-1", delimiter=";")
    told = refused(write(tmp_path, "time;v", f"2020-03-01T00:00:00Z;{cell}"), mapping)
    assert told.startswith(f"{tmp_path / 'recording.csv'}, line 2: ")


@pytest.mark.parametrize("device_id", ["", "A", "a b", "a/b"])
def test_a_device_id_that_the_contract_refuses_is_found_before_anything_is_sent(
    tmp_path: Path, device_id: str
) -> None:
    mapping = Mapping("time", (MetricColumn("t", "t"),), device_column="who")
    path = write(tmp_path, "time,who,t", "2020-03-01T00:00:00Z,a,1", f"2020-03-01T00:00:01Z,{device_id},1")
    assert "line 3: device_id" in refused(path, mapping)


def test_bytes_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"time,t\n2020-03-01T00:00:00Z,\xe9\n")
    assert "after line 0: it is not UTF-8" in refused(path, ONE_METRIC)


def test_headings_must_have_each_column_once(tmp_path: Path) -> None:
    assert "no column 't'; it has 'time', 'u'" in refused(write(tmp_path, "time,u"), ONE_METRIC)
    assert "more than one column 't'" in refused(write(tmp_path, "time,t,t"), ONE_METRIC)
    empty = tmp_path / "empty.csv"
    empty.touch()
    assert refused(empty, ONE_METRIC) == f"{empty} is empty"


@pytest.mark.parametrize("delimiter", ["", ";;"])
def test_a_delimiter_is_one_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(RecordingError, match="one character"):
        recording.header(write(tmp_path, "time,t"), delimiter)


@pytest.mark.parametrize(
    ("option", "column"),
    [
        ("Pressure=pressure", MetricColumn("Pressure", "pressure")),
        ("Pressure=pressure:", MetricColumn("Pressure", "pressure")),
        ("n=count:int", MetricColumn("n", "count", "int")),
        ("Volume Flow=flow:double:l/min", MetricColumn("Volume Flow", "flow", "double", "l/min")),
        ("t=temperature::°C", MetricColumn("t", "temperature", "double", "°C")),
        ("a=b=c:string:x:y", MetricColumn("a=b", "c", "string", "x:y")),
    ],
)
def test_metric_options(option: str, column: MetricColumn) -> None:
    assert recording.parse_metric_option(option) == column


@pytest.mark.parametrize(
    "option",
    ["", "=", "t", "t=", "=t", "t=a:float", "t=two words", "t=1st", "t=location", "t=a:int:" + "x" * 33],
)
def test_metric_options_that_mean_nothing_are_quoted(option: str) -> None:
    with pytest.raises(RecordingError) as caught:
        recording.parse_metric_option(option)
    assert str(caught.value).startswith(repr(option))


@given(st.text(max_size=40))
def test_any_heading_becomes_a_metric_name(heading: str) -> None:
    name = recording.metric_name(heading)
    validate(Reading(device_id="a", values={name: value_pb2.Value(int_value=1)}))


def test_two_columns_never_become_one_metric() -> None:
    columns = ("Flow (l/min)", "flow l min")
    with pytest.raises(RecordingError, match=r"'Flow \(l/min\)' and 'flow l min' would both become"):
        Mapping("time", tuple(MetricColumn(name, recording.metric_name(name)) for name in columns))


def test_a_writer_is_one_content_read_in_one_way(tmp_path: Path) -> None:
    path = write(tmp_path, "time,t", "2020-03-01T00:00:00Z,1")
    writer_id = recording.writer_id(path, ONE_METRIC)
    assert writer_id == recording.writer_id(path, ONE_METRIC)
    validate(IngestTelemetryRequest(readings=[Reading(device_id="a")], writer_id=writer_id, sequence=1))
    others = [
        Mapping("time", ONE_METRIC.metrics, device_id="pump-2"),
        Mapping("time", (MetricColumn("t", "t"),), device_id="pump-1"),
    ]
    assert writer_id not in {recording.writer_id(path, mapping) for mapping in others}
    path.write_text("time,t\n2020-03-01T00:00:00Z,2\n")
    assert recording.writer_id(path, ONE_METRIC) != writer_id
