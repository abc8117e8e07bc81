"""Batches for the writer, and what the database says became of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import numpy as np

from meshkit import db
from meshkit.errors import DomainError
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_HOUR, Kind, KindColumns
from telemetry_store.requests import RequestIdentity, WriteRequest, WriterIdentity
from telemetry_store.writer import TelemetryWriter
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# The start of the hour before this one: in a partition, and no hour boundary is near.
T0 = (time.time_ns() // 1000 // MICROS_PER_HOUR - 1) * MICROS_PER_HOUR


def columns(kind: Kind, samples: Sequence[tuple[int, int, Any]]) -> KindColumns:
    """Return samples of (series, microseconds after T0, value)."""
    return KindColumns.of(
        kind,
        np.array([series for series, _, _ in samples], dtype=np.int32),
        np.array([T0 + offset for _, offset, _ in samples], dtype=np.int64),
        [value for _, _, value in samples],
    )


def request(
    identity: WriterIdentity | RequestIdentity | None = None,
    *samples: KindColumns,
    tenant: str = "demo",
    principal: str = "user:ada",
    content: str = "content",
) -> WriteRequest:
    return WriteRequest(
        tenant=tenant,
        principal=principal,
        identity=identity,
        digest=content.encode().ljust(32, b"."),
        samples=samples,
        outcome=f"stored {content}".encode(),
        refused_outcome=f"refused {content}".encode(),
    )


def numbered(sequence: int, *, writer_id: str = "w", epoch: int | None = None, **kwargs: Any) -> WriteRequest:
    """Return a writer's batch with one sample of its own."""
    samples = kwargs.pop("samples", [columns(Kind.INT, [(1, sequence, sequence)])])
    kwargs.setdefault("content", f"{writer_id} {sequence}")
    return request(WriterIdentity(writer_id, sequence, epoch), *samples, **kwargs)


@asynccontextmanager
async def running_writer(
    database: TestDatabase, *, url: str = "", **kwargs: Any
) -> AsyncIterator[TelemetryWriter]:
    """An ingest process's writer, by default directly on the database."""
    async with (
        db.pool(url or database.url("twinmesh_ingest"), application="writer", max_size=5) as pool,
        TelemetryWriter(pool=pool, **kwargs) as writer,
    ):
        yield writer


@asynccontextmanager
async def admin(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.admin_url)
    try:
        yield connection
    finally:
        await connection.close()


async def stored_ints(connection: asyncpg.Connection) -> list[tuple[int, int, int]]:
    """Return all stored int samples as (series, microseconds after T0, value), repeated ones too."""
    rows = await connection.fetch(
        """
        SELECT series_id, sample.time, sample.value
        FROM telemetry.segment, unnest(times, ints) AS sample (time, value)
        ORDER BY series_id, sample.time
        """
    )
    return [(row["series_id"], row["time"] - T0, row["value"]) for row in rows]


async def commit_numbers(connection: asyncpg.Connection) -> list[tuple[int, int]]:
    """Return (instance, commit_no) of all commits."""
    rows = await connection.fetch(
        "SELECT instance, commit_no FROM telemetry.ingest_commit ORDER BY instance, commit_no"
    )
    return [(row["instance"], row["commit_no"]) for row in rows]


def reason_of(error: BaseException) -> str:
    assert isinstance(error, DomainError), repr(error)
    return ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")


async def until_blocked(connection: asyncpg.Connection, backends: int = 1) -> list[int]:
    """Wait until so many of this database's backends wait for a lock; returns their pids."""
    while True:
        # Within a transaction the view would stay as it was first seen.
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        rows = await connection.fetch(
            """
            SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE NOT granted AND datname = current_database()
            """
        )
        if len(rows) >= backends:
            return [row["pid"] for row in rows]
        await asyncio.sleep(0.01)


async def terminate(database: TestDatabase, pids: Sequence[int], *, role: str = "twinmesh_ingest") -> None:
    """Kill backends of a role."""
    connection = await asyncpg.connect(database.url(role))
    try:
        for pid in pids:
            assert await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    finally:
        await connection.close()
