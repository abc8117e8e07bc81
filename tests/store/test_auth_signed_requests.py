"""Signatures in the real table: each is taken once in its tenant, by one statement."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from auth_svc.stores.signed_requests import SignedRequestStore
from meshkit import db
from meshkit.clock import MICROS_PER_SECOND, from_datetime
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase

_NOW = 1_800_000_000 * MICROS_PER_SECOND
_SIGNATURE = b"s" * 32


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_auth"), application="test", max_size=4) as opened:
        yield opened


@pytest.fixture
def store(pool: asyncpg.Pool) -> SignedRequestStore:
    return SignedRequestStore(pool=pool, clock=ManualClock(_NOW))


async def test_a_signature_is_taken_once_in_each_tenant(
    store: SignedRequestStore, connection: asyncpg.Connection
) -> None:
    taken = [await store.take(tenant, _SIGNATURE, expire_us=_NOW) for tenant in ("demo", "other", "demo")]
    assert taken == [True, True, False]
    rows = await connection.fetch(
        "SELECT tenant_id, signature, expire_time FROM auth.signed_request ORDER BY tenant_id"
    )
    assert [(tenant, signature, from_datetime(until)) for tenant, signature, until in rows] == [
        ("demo", _SIGNATURE, _NOW),
        ("other", _SIGNATURE, _NOW),
    ]


async def test_of_many_at_once_one_is_taken(store: SignedRequestStore) -> None:
    taken = await asyncio.gather(*(store.take("demo", _SIGNATURE, expire_us=_NOW) for _ in range(20)))
    assert sorted(taken) == [False] * 19 + [True]


async def test_a_signature_costs_one_statement(database: TestDatabase) -> None:
    statements: list[str] = []

    async def log(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(lambda record: statements.append(record.query))

    async with asyncpg.create_pool(database.url("twinmesh_auth"), min_size=1, max_size=1, init=log) as pool:
        store = SignedRequestStore(pool=pool, clock=ManualClock(_NOW))
        assert await store.take("demo", _SIGNATURE, expire_us=_NOW)
    # asyncpg's own, when a connection goes back into the pool.
    assert len([each for each in statements if "RESET ALL" not in each]) == 1, statements
