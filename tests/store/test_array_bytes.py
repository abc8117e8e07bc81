"""Arrays leave the database in one of two forms (docs/adr/0016); what is read is the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

import telemetry_store
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.tiers.reader import Span, read_spans
from tests.store.writing import T0, admin, columns, numbered, running_writer

_MIGRATIONS = Path(telemetry_store.__file__).parent / "migrations"
_BY_KIND: Mapping[Kind, Any] = {
    Kind.DOUBLE: lambda place: place / 3,
    Kind.INT: lambda place: place - (1 << 60),
    Kind.BOOL: lambda place: place % 3 == 0,
    Kind.STRING: lambda place: f"text {place % 4}" if place < 20 else "always the same",
    Kind.POINT: lambda place: (place / 7, -place, float("nan")),
}
_MEMORY, _SENT = 20 + 2 * 8, 20 + 2 * (4 + 8)


async def migrate_again(connection: asyncpg.Connection) -> None:
    for way in ("down", "up"):
        await connection.execute((_MIGRATIONS / f"0017_array_bytes.{way}.sql").read_text())


async def form(connection: asyncpg.Connection) -> int:
    """Return how many bytes two numbers of eight bytes are."""
    found: int = await connection.fetchval("SELECT length(telemetry.array_bytes(ARRAY [1, 2]::bigint[]))")
    return found


async def test_samples_are_the_same_in_both_forms(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        superuser = await asyncpg.connect(database.superuser_url)
        # Runs of one sample and of many, in several commits.
        for sequence, (first, last) in enumerate([(0, 1), (1, 25), (25, 26), (26, 40)], start=1):
            await writer.write(
                numbered(
                    sequence,
                    samples=[
                        columns(kind, [(int(kind), place, value(place)) for place in range(first, last)])
                        for kind, value in _BY_KIND.items()
                    ],
                )
            )
        seen = []
        for migrates, size in ((None, _MEMORY), (connection, _SENT), (superuser, _MEMORY)):
            if migrates is connection:
                await superuser.execute("DROP FUNCTION public.twinmesh_array_bytes CASCADE")
            if migrates is not None:
                await migrate_again(migrates)
            assert await form(superuser) == size
            for kind, value in _BY_KIND.items():
                found = await read_spans(
                    superuser, kind, [Span("demo", int(kind), T0, T0 + 100)], archive=None
                )
                assert found.samples.times.tolist() == [T0 + place for place in range(40)]
                wanted = np.array([value(place) for place in range(40)], found.samples.values.dtype)
                np.testing.assert_array_equal(found.samples.values, wanted)
                seen.append(found.samples.quality.tolist())
        await superuser.close()
    assert all(quality == seen[0] for quality in seen)


async def test_only_a_function_that_a_superuser_made_is_taken(database: TestDatabase) -> None:
    """Whoever may make functions in the schema public could have roles run theirs that see all tenants."""
    async with admin(database) as connection:
        superuser = await asyncpg.connect(database.superuser_url)
        await superuser.execute("DROP FUNCTION public.twinmesh_array_bytes CASCADE")
        await superuser.close()
        await connection.execute(
            """
            CREATE FUNCTION public.twinmesh_array_bytes(anyarray) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
                SELECT '\\x010000000000000014000000020000000100000001000000000000000200000000000000'::bytea
            $$
            """
        )
        await migrate_again(connection)
        assert await form(connection) == _SENT
