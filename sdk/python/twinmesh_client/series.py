"""The series of one client: handles to add samples to, and what their aliases stand for."""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from numpy.typing import ArrayLike

from buf.validate import validate_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client.values import Kind

_SERIES = 100_000

AddOne = Callable[["Series", datetime | int | None, Any], Awaitable[None]]
AddMany = Callable[["Series", ArrayLike, Any], Awaitable[None]]


class Series:
    """One metric of one device; made by `GatewayClient.series`."""

    __slots__ = ("_add_many", "_add_one", "alias", "definition", "kind")

    def __init__(self, definition: ingest_pb2.SeriesDef, *, add_one: AddOne, add_many: AddMany) -> None:
        self._add_one = add_one
        self._add_many = add_many
        self.definition = definition
        self.alias = definition.alias
        self.kind = Kind(definition.kind)

    async def add(self, value: Any, time: datetime | int | None = None) -> None:
        """Add one sample; waits while the spool is full.

        Args:
            value: of the series' kind: float, int, bool, str, or (latitude, longitude[, altitude]).
            time: event time, a datetime with a time zone or microseconds since the epoch; now unless stated.

        Raises:
            TypeError, ValueError, OverflowError: the value or the time is none.
            GatewayError: the client stopped.
        """
        await self._add_one(self, time, value)

    async def add_many(self, times: ArrayLike, values: ArrayLike | Iterable[str]) -> None:
        """Add many samples; waits while the spool is full. When cancelled, a first part may have been added.

        Args:
            times: event times of shape (n,): integers, microseconds since the epoch, or datetime64.
            values: of the series' kind and shape (n,); points (n, 2) or (n, 3).

        Raises:
            TypeError, ValueError: the values or the times are none, or their lengths differ; nothing
                was added.
            GatewayError: the client stopped.
        """
        await self._add_many(self, times, values)


class SeriesTable:
    """All series of a spool's life, one per definition; their aliases number them.

    Args:
        add_one: called with a series, a time and a value.
        add_many: called with a series, times and values.
    """

    def __init__(self, *, add_one: AddOne, add_many: AddMany) -> None:
        self._add_one = add_one
        self._add_many = add_many
        self._definitions: list[ingest_pb2.SeriesDef] = []
        self._series: dict[tuple[str, str, int, str], Series] = {}

    @property
    def definitions(self) -> Sequence[ingest_pb2.SeriesDef]:
        """Return all definitions, by alias; those that are remembered later are seen in it."""
        return self._definitions

    def series(self, device_id: str, metric: str, kind: Kind, unit: str) -> Series:
        """Return a series; the same one when asked again.

        Raises:
            ValueError: an id or a name that the contract does not allow, or too many series.
        """
        known = self._series.get((device_id, metric, kind, unit))
        if known is not None:
            return known
        definition = ingest_pb2.SeriesDef(
            alias=len(self._definitions), device_id=device_id, metric=metric, kind=kind.value, unit=unit
        )
        _check(definition)
        return self.remember(definition)

    def remember(self, definition: ingest_pb2.SeriesDef) -> Series:
        """Return the series of a definition that follows on those that are there."""
        series = Series(definition, add_one=self._add_one, add_many=self._add_many)
        self._definitions.append(definition)
        self._series[definition.device_id, definition.metric, definition.kind, definition.unit] = series
        return series


def _check(definition: ingest_pb2.SeriesDef) -> None:
    """Raise ValueError for what the contract's own rules refuse, before it lies in a spool for ever."""
    if definition.alias >= _SERIES:
        raise ValueError(f"a spool holds at most {_SERIES:,} series in its life; begin with an empty one")
    for name in ("device_id", "metric"):
        value = getattr(definition, name)
        field = definition.DESCRIPTOR.fields_by_name[name]
        pattern = field.GetOptions().Extensions[validate_pb2.field].string.pattern
        if not re.search(pattern, value) or value.endswith("\n"):
            raise ValueError(f"{name} {value!r} does not match {pattern}")
    if len(definition.unit) > 32:
        raise ValueError(f"unit {definition.unit!r} has more than 32 characters")
