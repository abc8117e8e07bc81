"""The list of revocations: its order, and that it goes with what it revokes."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from auth_svc.access_tokens import ACCESS_TOKEN_LIFE_S
from auth_svc.exchanged_tokens import CACHE_LIFE_S, TOKEN_LIFE_S
from auth_svc.revocations import kept_until
from auth_svc.stores.revocations import RevocationStore, insert_revocations
from meshkit import db
from meshkit.clock import SystemClock, from_datetime
from meshkit.db import tenant_transaction
from meshkit.revocations import KEPT_S, RevocationKind
from meshkit.testing.database import TestDatabase


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_auth"), application="test") as opened:
        yield opened


@pytest.fixture
def store(pool: asyncpg.Pool) -> RevocationStore:
    return RevocationStore(pool=pool)


async def revoke(
    connection: db.Connection, id_: str, *, tenant: str = "demo", kept_s: float = KEPT_S
) -> None:
    until = kept_until(SystemClock().now_us() + int((kept_s - KEPT_S) * 1_000_000))
    await insert_revocations(connection, tenant=tenant, kind=RevocationKind.USER, ids=[id_], until=until)


def test_they_are_kept_for_longer_than_any_token_lives() -> None:
    longest = max(ACCESS_TOKEN_LIFE_S, TOKEN_LIFE_S + CACHE_LIFE_S)
    # A log-in that was under way may take a while.
    assert longest + 60 <= KEPT_S


async def test_they_come_after_each_other(pool: asyncpg.Pool, store: RevocationStore) -> None:
    for tenant, id_ in (("demo", "ada"), ("other", "bob"), ("demo", "eve")):
        async with tenant_transaction(pool, tenant) as connection:
            await revoke(connection, id_, tenant=tenant)
    found = await store.all_after(0)
    assert [(each.tenant, each.kind, each.id) for each in found] == [
        ("demo", RevocationKind.USER, "ada"),
        ("other", RevocationKind.USER, "bob"),
        ("demo", RevocationKind.USER, "eve"),
    ]
    assert [each.id for each in await store.all_after(found[0].number)] == ["bob", "eve"]
    assert [each.id for each in await store.after(0, limit=1)] == ["ada"]
    assert await store.all_after(found[-1].number) == []


async def test_many_are_revoked_in_one_go(pool: asyncpg.Pool, store: RevocationStore) -> None:
    names = [f"user-{number:03}" for number in range(300)]
    until = kept_until(SystemClock().now_us())
    async with tenant_transaction(pool, "demo") as connection:
        await insert_revocations(connection, tenant="demo", kind=RevocationKind.USER, ids=names, until=until)
        await insert_revocations(connection, tenant="demo", kind=RevocationKind.USER, ids=[], until=until)
    assert sorted(each.id for each in await store.all_after(0)) == names


async def test_nothing_is_revoked_by_a_transaction_that_fails(
    pool: asyncpg.Pool, store: RevocationStore
) -> None:
    async def fail() -> None:
        async with tenant_transaction(pool, "demo") as connection:
            await revoke(connection, "ada")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await store.all_after(0) == []


async def test_none_that_commits_later_has_a_lower_number(pool: asyncpg.Pool, store: RevocationStore) -> None:
    """Else whoever has read the higher number would never hear of it."""
    async with tenant_transaction(pool, "demo") as slow:
        await revoke(slow, "slow")

        async def quick() -> None:
            async with tenant_transaction(pool, "other") as connection:
                await revoke(connection, "quick", tenant="other")

        other = asyncio.create_task(quick())
        await waits_for_a_lock(pool)
        assert await store.all_after(0) == []
    await other
    assert [each.id for each in await store.all_after(0)] == ["slow", "quick"]


async def test_what_is_revoked_counts_from_the_call_and_not_from_the_transaction(
    pool: asyncpg.Pool, store: RevocationStore
) -> None:
    async with tenant_transaction(pool, "demo") as connection:
        begun = await connection.fetchval("SELECT clock_timestamp()")
        await revoke(connection, "ada")
    (found,) = await store.all_after(0)
    assert found.revoke_us > from_datetime(begun)


async def test_a_tenant_s_next_one_takes_away_those_that_are_over(
    pool: asyncpg.Pool, store: RevocationStore
) -> None:
    async with tenant_transaction(pool, "demo") as connection:
        await revoke(connection, "over", kept_s=0)
    assert await store.all_after(0) == []
    async with tenant_transaction(pool, "demo") as connection:
        await revoke(connection, "ada")
        assert await connection.fetchval("SELECT array_agg(id) FROM auth.revocation") == ["ada"]


async def waits_for_a_lock(pool: asyncpg.Pool) -> None:
    """Return when somebody waits for an advisory lock."""
    async with asyncio.timeout(10):
        while not await pool.fetchval(  # noqa: ASYNC110 - it is PostgreSQL that makes it true
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ):
            await asyncio.sleep(0.01)
