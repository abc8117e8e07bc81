"""Values of metrics in a small SQLite file: written by the OTLP receiver, read by `twinmesh metrics`.

Of each series it holds the newest value and the one before, which a rate is of. What a part of the mesh
reports after it was started again replaces all that it reported before.
"""

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from enum import StrEnum
from itertools import accumulate
from pathlib import Path

from twinmesh_cli import sqlite_file

_KEPT_SERIES = 10_000
_NANOS_PER_SECOND = 1_000_000_000

# Made anew at each start: what an earlier mesh reported is no present value. At once, for readers.
_SCHEMA = """
BEGIN;
DROP TABLE IF EXISTS series;
CREATE TABLE series (
    part TEXT NOT NULL,
    name TEXT NOT NULL,
    attributes TEXT NOT NULL,
    service TEXT NOT NULL,
    instance TEXT NOT NULL,
    unit TEXT NOT NULL,
    kind TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    value TEXT NOT NULL,
    time_ns_before INTEGER,
    value_before TEXT,
    PRIMARY KEY (part, name, attributes)
);
COMMIT;
"""


class Kind(StrEnum):
    """What the values of a series are: the present, what only rises, or a distribution."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Process:
    """Who reports.

    Attributes:
        service: its name.
        part: of the mesh; a service may be several.
        instance: another one for each start.
    """

    service: str
    part: str
    instance: str


@dataclass(frozen=True)
class Series:
    """What is reported: a metric of a process with its attributes, in the order of their names."""

    process: Process
    name: str
    unit: str
    kind: Kind
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Histogram:
    """A distribution since its process began.

    Attributes:
        count: of what was measured.
        total: of its values.
        bounds: upper bounds of the buckets, ascending; the last bucket has none.
        counts: of the buckets, one more than bounds.
    """

    count: int
    total: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def quantile(self, share: float) -> float | None:
        """The value that a share of what was measured does not pass, None when nothing was.

        Estimated as Prometheus does: values lie evenly in their bucket, the first one begins at 0, and
        what passes the last bound stands at it.
        """
        if not self.count or not self.bounds:
            return None
        rank = share * self.count
        through = list(accumulate(self.counts))
        bucket = bisect_left(through, rank)
        if bucket >= len(self.bounds):
            return self.bounds[-1]
        low = self.bounds[bucket - 1] if bucket else min(0.0, self.bounds[0])
        below = through[bucket - 1] if bucket else 0
        within = (rank - below) / self.counts[bucket] if self.counts[bucket] else 1.0
        return low + (self.bounds[bucket] - low) * within


@dataclass(frozen=True)
class Point:
    """A value, and when it was measured, nanoseconds since the epoch."""

    time_ns: int
    value: float | Histogram

    @property
    def count(self) -> float:
        """What a rate is of: the value itself, of a distribution how much was measured."""
        return self.value.count if isinstance(self.value, Histogram) else self.value


@dataclass(frozen=True)
class Kept:
    """A series with its newest value and the one before."""

    series: Series
    newest: Point
    before: Point | None

    @property
    def rate(self) -> float | None:
        """How much it rose per second between the two, None when it is not one that only rises."""
        if self.before is None or self.series.kind is Kind.GAUGE:
            return None
        seconds = (self.newest.time_ns - self.before.time_ns) / _NANOS_PER_SECOND
        return (self.newest.count - self.before.count) / seconds


class MetricStore:
    """The file, opened by one writer or by any number of readers."""

    def __init__(self, connection: sqlite3.Connection, *, kept_series: int = _KEPT_SERIES) -> None:
        self._connection = connection
        self._kept_series = kept_series

    @classmethod
    @contextmanager
    def writing(cls, path: Path, *, kept_series: int = _KEPT_SERIES) -> Iterator["MetricStore"]:
        """Opens the file to write, empty."""
        with sqlite_file.writing(path, _SCHEMA) as connection:
            yield cls(connection, kept_series=kept_series)

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator["MetricStore"]:
        """Opens the file to read.

        Raises:
            FileNotFoundError: there is none.
        """
        with sqlite_file.reading(path) as connection:
            yield cls(connection)

    def add(self, points: Iterable[tuple[Series, Point]]) -> None:
        """Takes over values and forgets the series beyond the limit that were not heard of for longest."""
        points = list(points)
        with self._connection as transaction:
            for process in {series.process for series, _ in points}:
                transaction.execute(
                    "DELETE FROM series WHERE part = ? AND instance <> ?", (process.part, process.instance)
                )
            transaction.executemany(
                "INSERT INTO series (part, name, attributes, service, instance, unit, kind, time_ns, value)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (part, name, attributes) DO UPDATE SET"
                " time_ns_before = time_ns, value_before = value, time_ns = excluded.time_ns,"
                " value = excluded.value WHERE excluded.time_ns > time_ns",
                [
                    (
                        series.process.part,
                        series.name,
                        json.dumps(series.attributes),
                        series.process.service,
                        series.process.instance,
                        series.unit,
                        series.kind,
                        point.time_ns,
                        _to_text(point.value),
                    )
                    for series, point in points
                ],
            )
            transaction.execute(
                "DELETE FROM series WHERE rowid IN"
                " (SELECT rowid FROM series ORDER BY time_ns DESC LIMIT -1 OFFSET ?)",
                (self._kept_series,),
            )

    def kept(self, service: str = "") -> list[Kept]:
        """All series by name, part and attributes; of one service, or one part of it, when it is named."""
        rows = self._connection.execute(
            "SELECT service, part, instance, name, unit, kind, attributes, time_ns, value, time_ns_before,"
            " value_before FROM series WHERE ?1 IN ('', service, part) ORDER BY name, part, attributes",
            (service,),
        )
        return [_to_kept(*row) for row in rows]


def _to_text(value: float | Histogram) -> str:
    return json.dumps(astuple(value) if isinstance(value, Histogram) else value)


def _to_point(time_ns: int, text: str) -> Point:
    match json.loads(text):
        case [count, total, bounds, counts]:
            return Point(time_ns, Histogram(count, total, tuple(bounds), tuple(counts)))
        case value:
            return Point(time_ns, value)


def _to_kept(
    service: str,
    part: str,
    instance: str,
    name: str,
    unit: str,
    kind: str,
    attributes: str,
    time_ns: int,
    value: str,
    time_ns_before: int | None,
    value_before: str | None,
) -> Kept:
    pairs = tuple((attribute, text) for attribute, text in json.loads(attributes))
    before = None
    if time_ns_before is not None and value_before is not None:
        before = _to_point(time_ns_before, value_before)
    series = Series(Process(service, part, instance), name, unit, Kind(kind), pairs)
    return Kept(series, _to_point(time_ns, value), before)
