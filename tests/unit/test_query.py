"""History as a table, as CSV and as a chart."""

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from twinmesh.twin.v1 import history_service_pb2
from twinmesh.twin.v1.history_service_pb2 import (
    BucketColumns,
    DeviceSeries,
    LeftOutSeries,
    QuerySeriesRequest,
    QuerySeriesResponse,
)
from twinmesh.twin.v1.history_service_pb2_grpc import (
    HistoryServiceServicer,
    add_HistoryServiceServicer_to_server,
)
from twinmesh.twin.v1.twin_service_pb2 import MetricHistory, QualityColumns
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.value_pb2 import Point
from twinmesh_cli import query
from twinmesh_cli.chart import chart
from twinmesh_cli.main import app

SECOND = 1_000_000
START = 1_583_020_800 * SECOND  # 2020-03-01T00:00:00Z

EVERY_KIND = [
    MetricHistory(
        metric="flow", kind=value_pb2.VALUE_KIND_DOUBLE, unit="l/min", times=[START], double_values=[0.1]
    ),
    MetricHistory(metric="starts", kind=value_pb2.VALUE_KIND_INT, times=[START + 1], int_values=[2**53 + 1]),
    MetricHistory(metric="running", kind=value_pb2.VALUE_KIND_BOOL, times=[START], bool_values=[True]),
    MetricHistory(
        metric="state", kind=value_pb2.VALUE_KIND_STRING, times=[START], string_values=['on, "warm"']
    ),
    MetricHistory(
        metric="location",
        kind=value_pb2.VALUE_KIND_POINT,
        times=[START, START + SECOND],
        point_values=[Point(latitude=1.5, longitude=-2), Point(latitude=0, longitude=0, altitude=0)],
    ),
]
BUCKETS = DeviceSeries(
    device_id="pump-2",
    history=MetricHistory(metric="flow", kind=value_pb2.VALUE_KIND_DOUBLE, unit="l/min"),
    buckets=BucketColumns(
        start_times=[START, START + SECOND],
        counts=[2, 1],
        minimums=[0.5, 2.0],
        maximums=[1.5, 2.0],
        sums=[2.0, 2.0],
        means=[1.0, 2.0],
        standard_deviations=[0.5, 0.0],
        firsts=[0.5, 2.0],
        first_times=[START, START],
        lasts=[1.5, 2.0],
        last_times=[START, START],
        anomalies=[1, 0],
        mean_qualities=[87.5, -1.0],
    ),
)


def samples(*histories: MetricHistory) -> list[DeviceSeries]:
    return [DeviceSeries(device_id="pump-1", history=history) for history in histories]


def test_buckets_and_samples_of_several_devices_are_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    query._csv([*samples(EVERY_KIND[0]), BUCKETS])
    head, raw, first, second = csv.reader(io.StringIO(capsys.readouterr().out))
    statistics = ["count", "minimum", "mean", "maximum", "sum", "deviation", "first", "last"]
    assert head == ["time", "device", "metric", "value", *statistics, "anomalies", "quality", "unit"]
    assert raw == ["2020-03-01T00:00:00+00:00", "pump-1", "flow", "0.1", *[""] * 10, "l/min"]
    values = ["2", "0.5", "1.0", "1.5", "2.0", "0.5", "0.5", "1.5", "1", "87.5"]
    assert first == ["2020-03-01T00:00:00+00:00", "pump-2", "flow", "", *values, "l/min"]
    assert second[-3:] == ["0", "", "l/min"]


def test_no_number_of_a_table_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    query._table([BUCKETS])
    told = capsys.readouterr().out
    assert "…" not in told
    assert sum("│ 2020-03-01T" in line and "+00:00 │" in line for line in told.splitlines()) == 2


def test_a_chart_of_buckets_shows_their_means(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    query._chart([BUCKETS, *samples(EVERY_KIND[0])])
    titles = [line for line in capsys.readouterr().out.splitlines() if " of pump" in line]
    assert [title.partition(", 2020")[0] for title in titles] == [
        "flow of pump-1, 1 samples",
        "flow of pump-2, 2 means",
    ]


def test_csv_holds_every_kind_to_the_last_digit(capsys: pytest.CaptureFixture[str]) -> None:
    query._csv(samples(*EVERY_KIND))
    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert list(csv.reader(io.StringIO(shown))) == [
        ["time", "metric", "value", "unit"],
        ["2020-03-01T00:00:00+00:00", "flow", "0.1", "l/min"],
        ["2020-03-01T00:00:00.000001+00:00", "starts", "9007199254740993", ""],
        ["2020-03-01T00:00:00+00:00", "running", "true", ""],
        ["2020-03-01T00:00:00+00:00", "state", 'on, "warm"', ""],
        ["2020-03-01T00:00:00+00:00", "location", "1.5 -2.0", ""],
        ["2020-03-01T00:00:01+00:00", "location", "0.0 0.0 0.0", ""],
    ]


def test_csv_holds_the_quality_when_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    judged = MetricHistory(
        metric="flow",
        kind=value_pb2.VALUE_KIND_DOUBLE,
        times=[START, START + 1],
        double_values=[0.1, 0.2],
        quality=QualityColumns(
            scores=[88, -1],
            completeness=[100, -1],
            validity=[50, -1],
            consistency=[100, -1],
            timeliness=[100, -1],
            anomalous=[True, False],
        ),
    )
    query._csv(samples(judged))
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        [
            *("time", "metric", "value", "unit", "quality"),
            *("completeness", "validity", "consistency", "timeliness", "anomaly"),
        ],
        ["2020-03-01T00:00:00+00:00", "flow", "0.1", "", "88", "100", "50", "100", "100", "yes"],
        ["2020-03-01T00:00:00.000001+00:00", "flow", "0.2", "", "", "", "", "", "", ""],
    ]


def test_the_table_shows_what_devices_send_and_obeys_none_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = "[/] [red]hot[/red] :boom: \x1b[2J\n"
    history = MetricHistory(
        metric="state", kind=value_pb2.VALUE_KIND_STRING, times=[START], string_values=[text]
    )
    query._table(samples(history))
    shown = capsys.readouterr().out
    assert r"[/] [red]hot[/red] :boom: \x1b[2J\n" in shown
    assert "\x1b" not in shown


def test_a_chart_is_drawn_for_each_metric_that_has_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    query._chart(samples(*EVERY_KIND))
    titles = [line for line in capsys.readouterr().out.splitlines() if "samples" in line]
    assert [title.partition(" samples")[0] for title in titles] == ["flow, 1", "running, 1", "starts, 1"]
    query._chart(samples(*EVERY_KIND[3:]))
    assert capsys.readouterr().out == "no numbers to draw\n"


def test_a_chart_in_full() -> None:
    times = [START + minute * 60 * SECOND for minute in range(5)]
    drawn = chart("t", "°C", times, [0, 1, 2, 3, 4], width=43, height=2)
    assert drawn.replace("\N{BRAILLE PATTERN BLANK}", "·").splitlines() == [
        "t, 2020-03-01 00:00:00 to 2020-03-01 00:04:00",
        "   (°C)    ^",
        "4.40000000 |",
        "         2 | ··········⡀····⠐····⠈",
        "-0.4000000 | ⠄····⠂",
        "-----------|-|---------|---------|--> (UTC)",
        "           | 00:00:00  00:01:57  00:03:54",
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 10**15), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=30,
    ),
    st.integers(20, 90),
    st.integers(1, 12),
)
@example([(0, 0.0), (1, 5e-324)], 60, 10)
@example([(0, 1.0), (1, 1.0000000000000002)], 60, 10)
@example([(0, -1.7e308), (1, 1.7e308)], 60, 10)
def test_a_chart_never_leaves_its_frame(
    samples: Sequence[tuple[int, float]], width: int, height: int
) -> None:
    times, values = zip(*sorted(samples), strict=True)
    title, *lines = chart("title", "", times, values, width=width, height=height).splitlines()
    assert title.startswith("title, ")
    if "too far apart" in lines[0]:
        assert max(values) / 2 - min(values) / 2 > 1e299
        return
    assert len(lines) == height + 4
    assert any(0x2800 < ord(char) <= 0x28FF for line in lines for char in line)
    assert all(len(line) <= max(42, width) for line in lines)


class Twins(HistoryServiceServicer):
    """A twin_svc that gives pages of at most two samples; remembers what it was asked."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.asked: list[QuerySeriesRequest] = []

    def QuerySeries(self, request: QuerySeriesRequest, context: grpc.ServicerContext) -> QuerySeriesResponse:
        self.asked.append(request)
        begin = int(request.page_token or 0)
        end = min(begin + min(2, request.page_size), self.samples)
        history = MetricHistory(
            metric="m", kind=value_pb2.VALUE_KIND_INT, times=range(begin, end), int_values=range(begin, end)
        )
        token = "" if end == self.samples else str(end)
        return QuerySeriesResponse(
            series=[DeviceSeries(device_id="pump-1", history=history)],
            next_page_token=token,
            unknown_ids=["gone"] if begin == 0 else [],
            left_out=[LeftOutSeries(device_id="pump-1", metric="state")] if begin == 0 else [],
        )


def run_query(twins: Twins, *arguments: str) -> Result:
    server = grpc.server(ThreadPoolExecutor(1))
    add_HistoryServiceServicer_to_server(twins, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environment = {"TWINMESH_GATEWAY": f"127.0.0.1:{port}", "TWINMESH_API_KEY": "key"}
    try:
        return CliRunner().invoke(app, ["query", "pump-1", "--as", "csv", *arguments], env=environment)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("limit", "found"), [(10, 5), (5, 5), (4, 4), (1, 1)])
def test_pages_are_followed_up_to_the_limit(limit: int, found: int) -> None:
    twins = Twins(5)
    done = run_query(twins, "--limit", str(limit))
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [int(row["value"]) for row in rows] == list(range(found))
    assert ("there is more" in done.stderr) is (found < 5)
    assert "no such devices: gone\n" in done.stderr
    assert "state of pump-1 is no number" in done.stderr
    assert all(request.page_size <= limit for request in twins.asked)


def test_a_page_is_never_larger_than_the_server_gives() -> None:
    twins = Twins(1)
    run_query(twins, "--limit", str(10**12))
    assert [request.page_size for request in twins.asked] == [50_000]


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        ("2026-03-01T12:00:00.5Z", datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-03-01T12:00:00+02:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_times_are_taken_as_they_are_told(told: str, moment: datetime) -> None:
    twins = Twins(1)
    run_query(twins, "--start", told, "--metric", "a", "--metric", "b")
    (request,) = twins.asked
    assert (list(request.ids), list(request.metrics)) == (["pump-1"], ["a", "b"])
    assert request.resolution == history_service_pb2.RESOLUTION_RAW
    assert request.start_time.ToDatetime(tzinfo=UTC) == moment
    assert not request.HasField("end_time")


def test_what_is_no_time_is_quoted() -> None:
    done = run_query(Twins(1), "--end", "yesterday")
    assert done.exit_code == 2
    assert "'yesterday' is not a time" in done.stderr


@pytest.mark.parametrize(
    ("form", "resolution"),
    [("csv", history_service_pb2.RESOLUTION_RAW), ("chart", history_service_pb2.RESOLUTION_AUTO)],
)
def test_a_chart_is_of_all_that_was_asked_for(
    form: str, resolution: history_service_pb2.Resolution.ValueType
) -> None:
    twins = Twins(1)
    run_query(twins, "--as", form)
    assert [request.resolution for request in twins.asked] == [resolution]


def test_how_fine_is_asked_as_told() -> None:
    twins = Twins(1)
    run_query(twins, "pump-2", *("--resolution", "day", "--max-points", "30", "--time-zone", "Europe/Berlin"))
    (request,) = twins.asked
    assert list(request.ids) == ["pump-1", "pump-2"]
    assert (request.resolution, request.max_points) == (history_service_pb2.RESOLUTION_DAY, 30)
    assert request.time_zone == "Europe/Berlin"
