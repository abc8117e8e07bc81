"""Sealed days that are archived, and object stores that go wrong."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import fsspec
from fsspec.implementations.local import LocalFileSystem

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers.archive_store import ArchiveStore, archive_store
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.reader import Archive, Span, SpanSamples, read_spans
from tests.store import stored

SECOND = 1_000_000
DAY = date(2026, 3, 1)
DAY_US = (DAY - date(1970, 1, 1)).days * MICROS_PER_DAY
NEVER = timedelta(days=3650)


def samples_of(kind: Kind, pairs: Sequence[tuple[int, Any]], quality: int = NOT_JUDGED) -> Samples:
    """Return samples of (seconds after the day's start, value)."""
    return stored.samples_of(kind, [(DAY_US + second * SECOND, value) for second, value in pairs], quality)


class SealedDays:
    """Puts series and sealed rows where sealing would."""

    def __init__(self, admin: asyncpg.Connection) -> None:
        self._admin = admin

    async def series(self, device_id: str, kind: Kind = Kind.DOUBLE, tenant: str = "demo") -> int:
        """Return the id of a new series."""
        found: int = await self._admin.fetchval(
            "INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit) "
            "VALUES ($1, $2, 'flow', $3, 'l/min') RETURNING series_id",
            tenant,
            device_id,
            kind,
        )
        return found

    async def seal(
        self,
        series_id: int,
        samples: Samples,
        order_no: int,
        *,
        kind: Kind = Kind.DOUBLE,
        tenant: str = "demo",
        age: timedelta = NEVER,
        compacted: bool = True,
    ) -> None:
        """Seal samples of one day, so long ago."""
        await stored.insert_sealed(
            self._admin, series_id, samples, order_no, kind=kind, tenant=tenant, age=age, compacted=compacted
        )

    async def sealed(self) -> int:
        """Return how many samples are sealed."""
        found: int = await self._admin.fetchval(
            "SELECT coalesce(sum(samples), 0) FROM telemetry.sealed_segment"
        )
        return found

    async def sealed_of(self, series_id: int) -> int:
        """Return how many samples of a series are sealed."""
        found: int = await self._admin.fetchval(
            "SELECT coalesce(sum(samples), 0) FROM telemetry.sealed_segment WHERE series_id = $1", series_id
        )
        return found

    async def manifest(self) -> list[asyncpg.Record]:
        """Return the rows of the manifest, current ones first."""
        rows: list[asyncpg.Record] = await self._admin.fetch(
            "SELECT * FROM telemetry.archive_object ORDER BY retired_at NULLS FIRST, first_series, first_time"
        )
        return rows

    async def age_retired(self, age: timedelta) -> None:
        """Make what is retired so old."""
        await self._admin.execute(
            "UPDATE telemetry.archive_object SET retired_at = now() - $1::interval "
            "WHERE retired_at IS NOT NULL",
            age,
        )


async def read(
    pool: asyncpg.Pool, spans: Sequence[Span], archive: Archive, kind: Kind = Kind.DOUBLE
) -> SpanSamples:
    """Read spans as a tenant's reader does."""
    async with db.tenant_transaction(pool, "demo", isolation="repeatable_read") as connection:
        return await read_spans(connection, kind, spans, archive=archive)


def pairs(found: SpanSamples, place: int = 0) -> list[tuple[int, Any]]:
    """Return (seconds after the day's start, value) of a span."""
    chosen = found.places == place
    seconds = (found.samples.times[chosen] - DAY_US) // SECOND
    return list(zip(seconds.tolist(), found.samples.values[chosen].tolist(), strict=True))


def span(series_id: int, start: int = 0, end: int = 86_400, tenant: str = "demo") -> Span:
    """Return a span of seconds after the day's start."""
    return Span(tenant, series_id, DAY_US + start * SECOND, DAY_US + end * SECOND)


@dataclass
class Faults:
    """What a `faulty://` store does next.

    Attributes:
        fails: how many calls fail yet.
        hangs: calls wait for `released`.
        tears: written objects lose their last bytes.
        flips: written objects have a wrong byte.
        reached: called with the name of each call, in the store's thread.
        calls: their names so far.
    """

    fails: int = 0
    hangs: bool = False
    tears: bool = False
    flips: bool = False
    reached: Callable[[str], None] = lambda name: None
    released: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)


class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc] # Untyped.
    """Local files behind a protocol of their own."""

    protocol = "faulty"
    cachable = False
    faults = Faults()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def _call(self, name: str) -> None:
        faults = FaultyFileSystem.faults
        faults.calls.append(name)
        faults.reached(name)
        if faults.hangs:
            faults.released.wait(60)
        if faults.fails:
            faults.fails -= 1
            raise OSError("the store is on fire")

    def cat_file(self, path: Any, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        self._call("read")
        return super().cat_file(path, start, end, **kwargs)

    def put_file(self, lpath: Any, rpath: Any, **kwargs: Any) -> None:
        self._call("write")
        rpath = self._strip_protocol(rpath)
        Path(rpath).parent.mkdir(parents=True, exist_ok=True)
        super().put_file(lpath, rpath, **kwargs)
        content = bytearray(Path(rpath).read_bytes())
        if FaultyFileSystem.faults.flips:
            content[len(content) // 3] ^= 1
        if FaultyFileSystem.faults.tears:
            del content[-len(content) // 2 :]
        Path(rpath).write_bytes(content)

    def rm_file(self, path: Any) -> None:
        self._call("remove")
        super().rm_file(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@asynccontextmanager
async def faulty_store(folder: Path, **timeouts: float) -> AsyncIterator[tuple[ArchiveStore, Faults]]:
    """Open a store whose faults the test chooses."""
    FaultyFileSystem.faults = faults = Faults()
    async with archive_store(f"faulty://{folder}", **timeouts) as store:
        assert store is not None
        try:
            yield store, faults
        finally:
            faults.released.set()


def objects(folder: Path) -> Iterator[Path]:
    """Yield the objects below a local archive."""
    yield from sorted(folder.rglob("*.parquet"))


@asynccontextmanager
async def maintenance(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool of the maintenance role."""
    async with db.pool(database.url("twinmesh_maintenance"), application="archiver") as pool:
        yield pool
