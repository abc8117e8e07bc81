"""How fast samples are sealed, and how small they are then: synthetic ones, copied as ingest writes them."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg
import numpy as np

from bench.hot_rows import TENANT, copy_hot
from bench.report import Case
from meshkit import db
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind, KindColumns
from telemetry_store.maintenance.sealing import Round
from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.tiers.floor import Bound
from telemetry_store.tiers.sealing import Moved

RUN_LENGTH = 20
_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Fill:
    """1 Hz data: every series commits 20 samples at a time, all of them in one commit."""

    name: str
    series: int
    start_us: int
    samples: int

    @property
    def total(self) -> int:
        """Return how many samples there are."""
        return self.series * self.samples


async def measure(admin_url: str, maintenance_url: str) -> list[Case]:
    """Fill and seal an hour and a day.

    Args:
        admin_url: of the owner of a database in which nobody else seals.
        maintenance_url: of the maintenance role.
    """
    now_us = time.time_ns() // 1000
    day = now_us - now_us % MICROS_PER_DAY - MICROS_PER_DAY
    cases = []
    async with db.pool(maintenance_url, application="bench") as pool:
        # Enough that the throttle's first look, which takes two seconds, matters little.
        for fill in (Fill("day", 250, day, 86_400), Fill("hour", 6_000, day + MICROS_PER_DAY, 3_600)):
            await fill_hot(admin_url, fill)
            # The hour is one of a day that is not over, the day is.
            through = fill.start_us + (MICROS_PER_HOUR if fill.samples <= 3_600 else MICROS_PER_DAY)
            moved, seconds = await seal(pool, Bound(1 << 62, through))
            if moved.samples != fill.total:
                raise RuntimeError(f"{moved.samples} samples were sealed, not {fill.total}")
            cases += [
                Case(f"{fill.name}: sealed", fill.total / seconds / 1e6, "M samples/s"),
                Case(f"{fill.name}: hot", moved.hot_bytes / fill.total, "bytes/sample"),
                Case(f"{fill.name}: sealed columns", moved.sealed_bytes / fill.total, "bytes/sample"),
            ]
    return cases


async def seal(pool: asyncpg.Pool, bound: Bound) -> tuple[Moved, float]:
    """Seal all that is due; returns what was moved and the seconds it took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    sealing = Round(pool, bound, Throttle(pool=pool), began_s=began)
    await sealing.work(until_s=float("inf"))
    return sealing.moved, clock() - began


async def fill_hot(admin_url: str, fill: Fill) -> None:
    """Store hot rows of series of their own."""
    connection = await asyncpg.connect(admin_url)
    try:
        rows = await connection.fetch(
            """
            INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
            SELECT $1, $2 || number, 'flow', 1, 'm3/h' FROM generate_series(1, $3) AS number
            RETURNING series_id
            """,
            TENANT,
            f"{fill.name}-",
            fill.series,
        )
        ids = np.array([row["series_id"] for row in rows], np.int32)
        await copy_hot(connection, _commits(fill, ids))
    finally:
        await connection.close()


def _commits(fill: Fill, ids: np.ndarray) -> Iterator[KindColumns]:
    random = np.random.default_rng(1)
    level = random.normal(100, 10, fill.series)
    for first in range(0, fill.samples, RUN_LENGTH):
        walk = level[:, None] + np.cumsum(random.normal(0, 0.05, (fill.series, RUN_LENGTH)), axis=1)
        level = walk[:, -1]
        times = fill.start_us + (first + np.arange(RUN_LENGTH)) * _SECOND
        yield KindColumns(
            Kind.DOUBLE,
            np.repeat(ids, RUN_LENGTH),
            np.tile(times, fill.series),
            np.round(walk, 2).reshape(-1),
        )
