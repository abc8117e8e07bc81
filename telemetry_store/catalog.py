"""Series ids: which number stands for a device's metric."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Self

import asyncpg
import numpy as np
import numpy.typing as npt

from meshkit.db import Connection, connected
from meshkit.gathering import Gatherer
from meshkit.lookups import Lookups
from telemetry_store.series import SeriesKey

_REMEMBERED = 1_000_000
_QUESTIONS_AT_ONCE = 2
_QUESTION_REST_S = 0.02
_MOST_ASKED = 10_000

_Name = tuple[str, str, int]  # device id, metric, kind


class SeriesCatalog:
    """Finds and makes series ids, remembering the ones used last.

    What many callers need at the same time is found or made together. An async context
    manager: statements still running in the end are cancelled.

    Args:
        pool: of the ingest role.
        remembered: most ids in memory.

    Attributes:
        lookups: of ids.
    """

    def __init__(self, *, pool: asyncpg.Pool, remembered: int = _REMEMBERED) -> None:
        self._pool = pool
        self._limit = remembered
        # By name, with the unit: when it changes and changes back, the table has to hear of both.
        self._remembered: OrderedDict[tuple[str, _Name], tuple[str, int]] = OrderedDict()
        self.lookups = Lookups()
        self._missing = Gatherer(
            self._find_or_make, at_once=_QUESTIONS_AT_ONCE, most_items=_MOST_ASKED, rest_s=_QUESTION_REST_S
        )

    async def __aenter__(self) -> Self:
        await self._missing.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._missing.__aexit__(*exc_info)

    async def resolve(self, tenant: str, keys: Sequence[SeriesKey]) -> npt.NDArray[np.int32]:
        """Return the id of each key, in the keys' order; absent series are made.

        The unit is no part of a series' name: a new one is noted on the same series.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        found: dict[SeriesKey, int] = {}
        for key in keys:
            name = tenant, (key.device_id, key.metric, int(key.kind))
            unit, series_id = self._remembered.get(name, (None, 0))
            if unit == key.unit:
                found[key] = series_id
                self._remembered.move_to_end(name)
        absent = [key for key in dict.fromkeys(keys) if key not in found]
        self.lookups.hits += len(found)
        self.lookups.misses += len(absent)
        if absent:
            made = await asyncio.shield(self._missing.join(tenant, absent))
            found.update((key, made[key]) for key in absent)
        return np.fromiter((found[key] for key in keys), dtype=np.int32, count=len(keys))

    def _remember(self, tenant: str, ids: Mapping[SeriesKey, int]) -> None:
        for key, series_id in ids.items():
            self._remembered[tenant, (key.device_id, key.metric, int(key.kind))] = key.unit, series_id
        while len(self._remembered) > self._limit:
            self._remembered.popitem(last=False)

    async def _find_or_make(self, tenant: str, keys: Sequence[SeriesKey]) -> dict[SeriesKey, int]:
        # One unit per name in a statement: the last one asked for stays.
        units = {(key.device_id, key.metric, int(key.kind)): key.unit for key in keys}
        async with connected(self._pool) as connection:
            ids = await _find(connection, tenant, units)
            absent = {name: unit for name, unit in units.items() if name not in ids}
            if absent:  # Only these: each conflict costs a series id.
                ids |= await _make(connection, tenant, absent)
        made = {key: ids[key.device_id, key.metric, int(key.kind)] for key in keys}
        self._remember(tenant, made)
        return made


async def _find(connection: Connection, tenant: str, units: Mapping[_Name, str]) -> dict[_Name, int]:
    """Return the ids of series that exist with these units."""
    rows = await connection.fetch(
        """
        SELECT known.device_id, known.metric, known.kind, known.series_id
        FROM telemetry.series AS known
        JOIN unnest($2::text[], $3::text[], $4::smallint[], $5::text[])
            AS wanted (device_id, metric, kind, unit)
          ON known.device_id = wanted.device_id AND known.metric = wanted.metric
         AND known.kind = wanted.kind AND known.unit = wanted.unit
        WHERE known.tenant_id = $1
        """,
        tenant,
        *_columns(units),
    )
    return {(row["device_id"], row["metric"], row["kind"]): row["series_id"] for row in rows}


async def _make(connection: Connection, tenant: str, units: Mapping[_Name, str]) -> dict[_Name, int]:
    """Insert series, or note their new units, and return their ids."""
    rows = await connection.fetch(
        """
        INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
        SELECT $1, device_id, metric, kind, unit
        FROM unnest($2::text[], $3::text[], $4::smallint[], $5::text[])
            AS wanted (device_id, metric, kind, unit)
        ON CONFLICT (tenant_id, device_id, metric, kind) DO UPDATE SET unit = excluded.unit
        RETURNING device_id, metric, kind, series_id
        """,
        tenant,
        *_columns(units),
    )
    return {(row["device_id"], row["metric"], row["kind"]): row["series_id"] for row in rows}


def _columns(units: Mapping[_Name, str]) -> tuple[list[str], list[str], list[int], list[str]]:
    # All processes insert in this order, so none waits for one that waits for it.
    names = sorted(units)
    return (
        [device_id for device_id, _, _ in names],
        [metric for _, metric, _ in names],
        [kind for _, _, kind in names],
        [units[name] for name in names],
    )
