"""OTLP's messages as what is kept of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from twinmesh_cli.metric_store import Histogram, Kind, Point, Process, Series
from twinmesh_cli.service import PART
from twinmesh_cli.traces import Link, Span

_SERVICE = "service.name"
_INSTANCE = "service.instance.id"
_UNKNOWN = "unknown"
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


def spans_of(resource_spans: Iterable[trace_pb2.ResourceSpans]) -> Iterable[Span]:
    """The spans of an export, each with its service's name."""
    for resource in resource_spans:
        service = str(_attributes(resource.resource.attributes).get(_SERVICE, _UNKNOWN))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    service=service,
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                    links=tuple(Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def series_of(
    resource_metrics: Iterable[metrics_pb2.ResourceMetrics],
) -> tuple[list[tuple[Series, Point]], int]:
    """The series of an export with their values, and how many values were of no use.

    Of use are gauges, cumulative sums, and cumulative histograms with explicit buckets: what is
    cumulative tells the whole, whatever was lost before.
    """
    kept: list[tuple[Series, Point]] = []
    refused = 0
    for resource in resource_metrics:
        process = _process(_attributes(resource.resource.attributes))
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            kind = _kind(metric)
            points: Iterable[Any] = getattr(metric, metric.WhichOneof("data") or "gauge").data_points
            if kind is None:
                refused += sum(1 for _ in points)
                continue
            for point in points:
                series = Series(process, metric.name, metric.unit, kind, _texts(point.attributes))
                kept.append((series, Point(point.time_unix_nano, _measured(point))))
    return kept, refused


def _process(attributes: Mapping[str, object]) -> Process:
    service = str(attributes.get(_SERVICE, _UNKNOWN))
    instance = str(attributes.get(_INSTANCE, ""))
    # Of a process that no launcher started, nobody can say in whose place it is.
    part = str(attributes.get(PART, f"{service}/{instance}"))
    return Process(service, part, instance)


def _kind(metric: metrics_pb2.Metric) -> Kind | None:
    match metric.WhichOneof("data"):
        case "gauge":
            return Kind.GAUGE
        case "sum" if metric.sum.aggregation_temporality == _CUMULATIVE:
            return Kind.COUNTER if metric.sum.is_monotonic else Kind.GAUGE
        case "histogram" if metric.histogram.aggregation_temporality == _CUMULATIVE:
            return Kind.HISTOGRAM
        case _:
            return None


def _measured(point: Any) -> float | Histogram:
    if isinstance(point, metrics_pb2.HistogramDataPoint):
        return Histogram(point.count, point.sum, tuple(point.explicit_bounds), tuple(point.bucket_counts))
    return float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)


def _texts(pairs: Iterable[common_pb2.KeyValue]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in _attributes(pairs).items()))


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> object:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case _:
            plain: object = getattr(value, kind)
            return plain
