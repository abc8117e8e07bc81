"""Between HistoryService's messages and the types of its rules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration

from meshkit import wire
from meshkit.time_bounds import time_bound
from telemetry_store.rollups.aggregates import Buckets
from twin_svc.charts import AUTO_POINTS
from twin_svc.history import TimeRange
from twin_svc.messages import history_message
from twin_svc.resolution import Resolution, possible, zone_named
from twin_svc.series_answers import Answer, AnswerPage, Question
from twinmesh.twin.v1 import history_service_pb2 as contract
from twinmesh.twin.v1.twin_service_pb2 import MetricHistory
from twinmesh.type.v1 import value_pb2

_FIELDS = {
    contract.STATISTIC_COUNT: ("counts",),
    contract.STATISTIC_MINIMUM: ("minimums",),
    contract.STATISTIC_MAXIMUM: ("maximums",),
    contract.STATISTIC_SUM: ("sums",),
    contract.STATISTIC_MEAN: ("means",),
    contract.STATISTIC_STANDARD_DEVIATION: ("standard_deviations",),
    contract.STATISTIC_FIRST: ("firsts", "first_times"),
    contract.STATISTIC_LAST: ("lasts", "last_times"),
    contract.STATISTIC_ANOMALIES: ("anomalies",),
    contract.STATISTIC_MEAN_QUALITY: ("mean_qualities",),
}
_NUMBERS = {field.name: field.number for field in contract.BucketColumns.DESCRIPTOR.fields}


def asked_json(request: contract.QuerySeriesRequest) -> object:
    """Return what a page token is bound to."""
    return [
        sorted(request.ids),
        sorted(request.metrics),
        time_bound(request, "start_time"),
        time_bound(request, "end_time"),
        request.resolution,
        request.max_points,
        request.time_zone,
        sorted(request.statistics),
        request.include_quality,
    ]


def question(
    request: contract.QuerySeriesRequest, span: TimeRange, *, now_us: int, future_us: int
) -> Question:
    """Return what is asked of each series.

    Raises:
        InvalidArgument: there is no such time zone.
    """
    resolution = Resolution(request.resolution or Resolution.AUTO)
    max_points = request.max_points or (AUTO_POINTS if resolution is Resolution.AUTO else None)
    return Question(
        range=span,
        possible=possible(span, now_us=now_us, future_us=future_us),
        resolution=resolution,
        max_points=max_points,
        zone=zone_named(request.time_zone),
        bucket_columns=len(_fields(request)),
        with_quality=request.include_quality,
    )


def response(
    page: AnswerPage,
    request: contract.QuerySeriesRequest,
    *,
    next_page_token: str,
    unknown_ids: Sequence[str],
) -> contract.QuerySeriesResponse:
    """Return a page as the contract has it."""
    fields = _fields(request)
    return contract.QuerySeriesResponse(
        series=[_series_message(found, fields) for found in page.answers],
        next_page_token=next_page_token,
        unknown_ids=unknown_ids,
        left_out=[
            contract.LeftOutSeries(
                device_id=one.device_id, metric=one.metric, kind=value_pb2.ValueKind.ValueType(one.kind)
            )
            for one in page.left_out
        ],
    )


def _fields(request: contract.QuerySeriesRequest) -> list[str]:
    return [name for statistic in request.statistics or _FIELDS for name in _FIELDS[statistic]]


def _series_message(found: Answer, fields: Sequence[str]) -> contract.DeviceSeries:
    series = found.series
    message = contract.DeviceSeries(
        device_id=series.device_id, reduction=contract.Reduction.ValueType(found.reduction)
    )
    if found.samples is not None:
        message.resolution = contract.RESOLUTION_RAW
        message.history.CopyFrom(history_message(found.samples))
    if found.buckets is not None and found.width is not None:
        message.history.CopyFrom(
            MetricHistory(
                metric=series.metric, kind=value_pb2.ValueKind.ValueType(series.kind), unit=series.unit
            )
        )
        message.resolution = contract.Resolution.ValueType(found.width.resolution)
        width = Duration()
        width.FromMicroseconds(found.width.micros)
        message.bucket_width.CopyFrom(width)
        message.buckets.MergeFromString(_packed(found.buckets, fields))
    return message


def _packed(buckets: Buckets, fields: Sequence[str]) -> bytes:
    """Return columns as on the wire, which is parsed at once."""
    return b"".join(
        wire.field(_NUMBERS[name], np.ascontiguousarray(column).tobytes())
        for name, column in [("start_times", buckets.starts.astype("<i8"))]
        + [(name, _column(buckets, name)) for name in fields]
    )


def _column(buckets: Buckets, name: str) -> npt.NDArray[Any]:
    match name:
        case "standard_deviations":
            return np.sqrt(buckets.m2s / buckets.counts).astype("<f8")
        case "mean_qualities":
            judged = np.maximum(buckets.quality_counts, 1)
            return np.where(buckets.quality_counts > 0, buckets.quality_sums / judged, -1.0).astype("<f8")
    column: npt.NDArray[Any] = getattr(buckets, name)
    return column.astype("<i8" if column.dtype.kind == "i" else "<f8")
