"""What the launcher's receiver keeps of metrics, and how `twinmesh metrics` shows it."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from typer.testing import CliRunner

from twinmesh_cli.main import app
from twinmesh_cli.metric_store import Histogram, Kind, MetricStore, Point, Process, Series
from twinmesh_cli.otlp import series_of

_S = 1_000_000_000
_FIRST = Process("ingest_svc", "ingest_svc-2", "first")
_SECOND = Process("ingest_svc", "ingest_svc-2", "second")
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_DELTA = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA


def series(process: Process = _FIRST, name: str = "twinmesh.samples", **attributes: str) -> Series:
    return Series(process, name, "{sample}", Kind.COUNTER, tuple(sorted(attributes.items())))


def exported(*metrics: metrics_pb2.Metric, **attributes: str) -> list[metrics_pb2.ResourceMetrics]:
    pairs = [_pair(name.replace("_", "."), value) for name, value in attributes.items()]
    return [
        metrics_pb2.ResourceMetrics(
            resource=resource_pb2.Resource(attributes=pairs),
            scope_metrics=[metrics_pb2.ScopeMetrics(metrics=metrics)],
        )
    ]


def _pair(key: str, value: str) -> common_pb2.KeyValue:
    return common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value))


def number(value: float, time_ns: int = 1) -> metrics_pb2.NumberDataPoint:
    return metrics_pb2.NumberDataPoint(
        time_unix_nano=time_ns, as_double=value, attributes=[_pair("door", "unary")]
    )


def test_the_newest_value_and_a_rate_are_kept(tmp_path: Path) -> None:
    with MetricStore.writing(tmp_path / "metrics") as store:
        for time_s, value in ((1, 10), (3, 16), (2, 12)):  # The last one came late.
            store.add([(series(door="unary"), Point(time_s * _S, value))])
        with MetricStore.reading(tmp_path / "metrics") as reader:
            (kept,) = reader.kept()
    assert kept.series == series(door="unary")
    assert (kept.newest, kept.rate) == (Point(3 * _S, 16), 3.0)


def test_what_started_again_replaces_all_that_it_reported_before(tmp_path: Path) -> None:
    other = Process("ingest_svc", "ingest_svc", "other")
    with MetricStore.writing(tmp_path / "metrics") as store:
        store.add([(series(door="unary"), Point(_S, 10)), (series(door="stream"), Point(_S, 20))])
        store.add([(series(other, door="stream"), Point(_S, 30))])
        store.add([(series(_SECOND, door="unary"), Point(2 * _S, 1))])
        kept = store.kept()
    assert [(each.series.process.instance, each.newest.value) for each in kept] == [
        ("other", 30),
        ("second", 1),
    ]
    assert kept[1].rate is None


def test_a_store_begins_empty_and_forgets_what_was_not_heard_of(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with MetricStore.writing(path, kept_series=2) as store:
        for place, door in enumerate(("a", "b", "c")):
            store.add([(series(door=door), Point(place * _S, 1))])
        assert [dict(each.series.attributes)["door"] for each in store.kept()] == ["b", "c"]
    with MetricStore.writing(path) as store:
        assert store.kept() == []


def test_a_service_or_one_process_of_it_is_chosen(tmp_path: Path) -> None:
    first = Process("ingest_svc", "ingest_svc", "other")
    twin = Process("twin_svc", "twin_svc", "twin")
    with MetricStore.writing(tmp_path / "metrics") as store:
        store.add([(series(process), Point(1, 1)) for process in (first, _FIRST, twin)])
        assert [each.series.process.part for each in store.kept("ingest_svc")] == [
            "ingest_svc",
            "ingest_svc-2",
        ]
        assert [each.series.process.part for each in store.kept("ingest_svc-2")] == ["ingest_svc-2"]
        assert len(store.kept()) == 3
        assert store.kept("auth_svc") == []


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((10, 0, 0), 0.5, 0.5),
        ((0, 10, 0), 0.5, 2.0),
        ((5, 5, 0), 0.5, 1.0),
        ((5, 5, 0), 0.9, 2.6),
        ((0, 0, 4), 0.99, 3.0),  # Beyond the last bound nobody knows.
        ((0, 0, 0), 0.5, None),
    ],
)
def test_quantiles_are_estimated_from_buckets(
    counts: tuple[int, ...], share: float, expected: float | None
) -> None:
    quantile = Histogram(sum(counts), 0.0, (1.0, 3.0), counts).quantile(share)
    assert quantile == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any))
def test_quantiles_rise_and_stay_within_the_bounds(counts: list[int]) -> None:
    histogram = Histogram(sum(counts), 0.0, (1.0, 2.0, 5.0), tuple(counts))
    quantiles = [histogram.quantile(share / 20) for share in range(1, 21)]
    known = [quantile for quantile in quantiles if quantile is not None]
    assert len(known) == 20
    assert known == sorted(known)
    assert 0 <= known[0] <= known[-1] <= 5


def test_an_export_becomes_series() -> None:
    cumulative = metrics_pb2.Sum(
        data_points=[number(5)], is_monotonic=True, aggregation_temporality=_CUMULATIVE
    )
    open_now = metrics_pb2.Sum(data_points=[number(6)], aggregation_temporality=_CUMULATIVE)
    lag = metrics_pb2.Histogram(
        aggregation_temporality=_CUMULATIVE,
        data_points=[
            metrics_pb2.HistogramDataPoint(
                time_unix_nano=2, count=3, sum=1.5, explicit_bounds=[1], bucket_counts=[2, 1]
            )
        ],
    )
    found, refused = series_of(
        exported(
            metrics_pb2.Metric(name="count", unit="{x}", sum=cumulative),
            metrics_pb2.Metric(name="open", sum=open_now),
            metrics_pb2.Metric(name="lag", unit="s", histogram=lag),
            metrics_pb2.Metric(name="now", gauge=metrics_pb2.Gauge(data_points=[number(7)])),
            service_name="twin_svc",
            service_instance_id="id",
            twinmesh_part="twin_svc-2",
        )
    )
    process = Process("twin_svc", "twin_svc-2", "id")
    door = (("door", "unary"),)
    assert refused == 0
    assert found == [
        (Series(process, "count", "{x}", Kind.COUNTER, door), Point(1, 5.0)),
        (Series(process, "open", "", Kind.GAUGE, door), Point(1, 6.0)),
        (Series(process, "lag", "s", Kind.HISTOGRAM, ()), Point(2, Histogram(3, 1.5, (1.0,), (2, 1)))),
        (Series(process, "now", "", Kind.GAUGE, door), Point(1, 7.0)),
    ]


def test_what_is_not_the_whole_is_refused_and_counted() -> None:
    delta = metrics_pb2.Sum(data_points=[number(5), number(6)], aggregation_temporality=_DELTA)
    exponential = metrics_pb2.ExponentialHistogram(
        data_points=[metrics_pb2.ExponentialHistogramDataPoint()], aggregation_temporality=_CUMULATIVE
    )
    assert series_of(
        exported(
            metrics_pb2.Metric(name="delta", sum=delta),
            metrics_pb2.Metric(name="exponential", exponential_histogram=exponential),
            metrics_pb2.Metric(name="nothing"),
        )
    ) == ([], 3)


def test_a_process_that_no_launcher_started_is_a_part_of_its_own() -> None:
    gauge = metrics_pb2.Metric(name="now", gauge=metrics_pb2.Gauge(data_points=[number(7)]))
    found, _ = series_of(exported(gauge, service_name="mine", service_instance_id="id"))
    assert found[0][0].process == Process("mine", "mine/id", "id")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINMESH_HOME", str(tmp_path))
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    return tmp_path


def test_the_command_prints_values_rates_and_quantiles(home: Path) -> None:
    lag = Series(_FIRST, "twinmesh.lag", "s", Kind.HISTOGRAM, ())
    now_ns = time.time_ns()
    with MetricStore.writing(home / "metrics.sqlite") as store:
        for ago_s, value in ((2, 1_000), (0, 3_000)):
            store.add([(series(door="unary"), Point(now_ns - ago_s * _S, value))])
        store.add([(lag, Point(now_ns, Histogram(10, 2.0, (1.0, 3.0), (10, 0, 0))))])
    runner = CliRunner()
    lines = runner.invoke(app, ["metrics"]).stdout.splitlines()
    told = json.loads(runner.invoke(app, ["metrics", "--json"]).stdout)

    assert lines[0].split() == [
        "metric",
        "process",
        "attributes",
        "value",
        "per",
        "second",
        "p50",
        "p99",
        "age",
        "unit",
    ]
    assert lines[1].split()[:5] == ["twinmesh.lag", "ingest_svc-2", "10", "0.5", "0.99"]
    assert lines[2].split()[:5] == ["twinmesh.samples", "ingest_svc-2", "door=unary", "3,000", "1,000"]
    assert [(each["name"], each.get("value"), each.get("p50")) for each in told] == [
        ("twinmesh.lag", None, 0.5),
        ("twinmesh.samples", 3_000, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no metrics were kept"),
        (["--watch"], "on a terminal"),
    ],
)
def test_without_a_mesh_the_command_says_so(home: Path, arguments: list[str], told: str) -> None:
    answer = CliRunner().invoke(app, ["metrics", *arguments])
    assert answer.exit_code == 1
    assert told in answer.stderr


def test_a_service_that_reported_nothing_is_named(home: Path) -> None:
    with MetricStore.writing(home / "metrics.sqlite") as store:
        store.add([(series(), Point(1, 1))])
    answer = CliRunner().invoke(app, ["metrics", "--service", "twin_svc"])
    assert (answer.exit_code, "by twin_svc" in answer.stderr) == (1, True)


def test_metrics_that_go_elsewhere_are_not_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    answer = CliRunner().invoke(app, ["metrics"])
    assert (answer.exit_code, "http://collector:4317" in answer.stderr) == (1, True)
