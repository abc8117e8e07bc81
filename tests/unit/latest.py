"""Latest samples one by one, for tests that think in samples."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry_store.columns import Kind, KindColumns
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.series import Point, Value


@dataclass(frozen=True, slots=True)
class Latest:
    """One sample and where it was committed."""

    tenant: str
    series_id: int
    time_us: int
    order_no: int
    value: Value
    instance: int = 0
    commit_no: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """Decides which of two is the later."""
        return self.time_us, self.order_no, self.series_id

    @property
    def kind(self) -> Kind:
        """Of the value."""
        match self.value:
            case bool():
                return Kind.BOOL
            case int():
                return Kind.INT
            case float():
                return Kind.DOUBLE
            case str():
                return Kind.STRING
            case Point():
                return Kind.POINT


def columns(samples: Iterable[Latest]) -> list[LatestColumns]:
    """Return samples as columns by tenant and kind."""
    groups: defaultdict[tuple[str, Kind], list[Latest]] = defaultdict(list)
    for sample in samples:
        groups[sample.tenant, sample.kind].append(sample)
    return [
        LatestColumns(
            tenant,
            KindColumns.of(
                kind,
                _column((one.series_id for one in group), np.int32),
                _column((one.time_us for one in group), np.int64),
                [one.value for one in group],
            ),
            _column((one.order_no for one in group), np.int64),
            _column((one.instance for one in group), np.int32),
            _column((one.commit_no for one in group), np.int64),
        )
        for (tenant, kind), group in groups.items()
    ]


def samples(latest: Iterable[LatestColumns]) -> list[Latest]:
    """Return columns as samples."""
    return [
        Latest(one.tenant, series_id, time_us, order_no, _value(one.samples.kind, value), instance, commit_no)
        for one in latest
        for series_id, time_us, value, order_no, instance, commit_no in zip(
            one.samples.series.tolist(),
            one.samples.times.tolist(),
            one.samples.tolist(),
            one.orders.tolist(),
            one.instances.tolist(),
            one.commits.tolist(),
            strict=True,
        )
    ]


def _value(kind: Kind, value: Any) -> Value:
    if kind is not Kind.POINT:
        known: Value = value
        return known
    latitude, longitude, altitude = value
    return Point(latitude, longitude, None if np.isnan(altitude) else altitude)


def _column(numbers: Iterable[int], dtype: type[np.signedinteger[Any]]) -> Any:
    return np.fromiter(numbers, dtype=dtype)
