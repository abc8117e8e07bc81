"""Limits that several processes count together in PostgreSQL."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from ingest_svc.ingest_policies import TenantLimits
from ingest_svc.limiter import Limited, Limiter, Sent
from meshkit import db
from meshkit.errors import ResourceExhausted
from meshkit.testing.database import TestDatabase
from telemetry_store.ingest_policies import SubjectKind, SubjectLimits
from telemetry_store.limits import CapacityAsk, LimitKey, LimitStore, Measure, TokenAsk
from tests.store.writing import admin

SAMPLES = LimitKey("acme", SubjectKind.TENANT, "", Measure.SAMPLES_PER_SECOND)
STREAMS = LimitKey("acme", SubjectKind.PRINCIPAL, "api_key:a", Measure.STREAMS)


def device(number: int) -> LimitKey:
    return LimitKey("acme", SubjectKind.DEVICE, f"d-{number}", Measure.SAMPLES_PER_SECOND)


def ask(wanted: float, *, needed: float = 0.0, returned: float = 0.0, rate: float = 100.0) -> TokenAsk:
    return TokenAsk(SAMPLES, rate, returned, needed, wanted)


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_ingest"), application="limits", max_size=8) as opened:
        yield opened


@pytest.fixture
def store(pool: asyncpg.Pool) -> LimitStore:
    return LimitStore(pool=pool, holder=uuid.uuid4())


async def age(database: TestDatabase, interval: str) -> None:
    """Let time pass for what is counted."""
    async with admin(database) as connection:
        await connection.execute(
            f"UPDATE telemetry.limit_bucket SET updated_at = updated_at - interval '{interval}'"
        )
        await connection.execute(
            f"UPDATE telemetry.limit_lease SET renewed_at = renewed_at - interval '{interval}'"
        )


async def test_a_bucket_holds_half_a_second_and_fills_with_time(
    store: LimitStore, database: TestDatabase
) -> None:
    slow = 1e-6  # so that nothing comes in while the test runs
    (first,) = await store.take_tokens([ask(1, rate=slow)])
    assert first.granted == pytest.approx(slow / 2)
    (empty,) = await store.take_tokens([ask(1, rate=slow)])
    assert empty.granted < slow

    await age(database, "1 hour")
    (full,) = await store.take_tokens([ask(1000, rate=100)])
    assert (full.granted, full.tokens) == (50, 0)
    await age(database, "100 ms")
    (some,) = await store.take_tokens([ask(1000, rate=100)])
    assert 10 <= some.granted <= 50
    assert full.used == 50 <= some.used


async def test_what_is_needed_comes_on_credit_and_is_paid_off(
    store: LimitStore, database: TestDatabase
) -> None:
    (large,) = await store.take_tokens([ask(1000, needed=1000)])
    assert (large.granted, large.tokens) == (1000, -950)
    await age(database, "5 s")
    (owing,) = await store.take_tokens([ask(1, needed=1)])
    assert owing.granted == 0
    assert -450 <= owing.tokens < 0
    await age(database, "10 s")
    (paid,) = await store.take_tokens([ask(1, needed=1)])
    assert paid.granted == 1


async def test_what_is_given_back_is_there_for_others(store: LimitStore) -> None:
    slow = 1e-3
    taken = ask(1e-3 / 2, rate=slow)
    (first,) = await store.take_tokens([taken])
    (back,) = await store.take_tokens([ask(0, returned=first.granted, rate=slow)])
    assert back.tokens == pytest.approx(slow / 2)
    assert back.used == pytest.approx(0)


async def test_answers_come_in_the_order_asked(store: LimitStore) -> None:
    keys = [
        LimitKey("acme", SubjectKind.DEVICE, f"d-{number}", Measure.BYTES_PER_SECOND) for number in (3, 1, 2)
    ]
    asks = [TokenAsk(key, 1000.0, 0.0, 0.0, float(place + 1)) for place, key in enumerate(keys)]
    assert [grant.granted for grant in await store.take_tokens(asks)] == [1, 2, 3]
    streams = [CapacityAsk(key._replace(measure=Measure.STREAMS), 9, place) for place, key in enumerate(keys)]
    assert [grant.granted for grant in await store.hold(streams)] == [0, 1, 2]


async def test_processes_do_not_lock_each_other_out(pool: asyncpg.Pool) -> None:
    """Each asks for the same buckets in an order of its own; a deadlock would fail one."""
    stores = [LimitStore(pool=pool, holder=uuid.uuid4()) for _ in range(4)]
    keys = [
        LimitKey("acme", SubjectKind.DEVICE, f"d-{number}", Measure.SAMPLES_PER_SECOND)
        for number in range(50)
    ]
    chance = random.Random(7)

    async def work(store: LimitStore) -> None:
        for _ in range(20):
            chance.shuffle(mixed := list(keys))
            await store.take_tokens([TokenAsk(key, 10.0, 0.0, 1.0, 2.0) for key in mixed])
            await store.hold([CapacityAsk(key._replace(measure=Measure.STREAMS), 5, 2) for key in mixed])

    await asyncio.gather(*map(work, stores))


async def test_capacity_is_shared_with_those_that_live(pool: asyncpg.Pool, database: TestDatabase) -> None:
    first, second = (LimitStore(pool=pool, holder=uuid.uuid4()) for _ in range(2))
    assert await first.hold([CapacityAsk(STREAMS, 10, 7)]) == [(7, 7)]
    assert await second.hold([CapacityAsk(STREAMS, 10, 7)]) == [(3, 10)]
    assert await first.hold([CapacityAsk(STREAMS, 10, 2)]) == [(2, 5)]
    assert await second.hold([CapacityAsk(STREAMS, 10, 7)]) == [(7, 9)]
    # The first dies.
    await age(database, "6 s")
    assert await second.hold([CapacityAsk(STREAMS, 10, 10)]) == [(10, 10)]
    assert await second.hold([CapacityAsk(STREAMS, 10, 0)]) == [(0, 0)]


async def test_usage_tells_what_is_taken_now(store: LimitStore, database: TestDatabase) -> None:
    await store.take_tokens([ask(40)])
    await store.hold([CapacityAsk(STREAMS, 10, 2)])
    used = {usage.key.name: usage.used for usage in await store.usage("acme")}
    assert used["principal_streams"] == 2
    assert 1 <= used["tenant_samples_per_second"] <= 40
    assert await store.usage("other") == []
    await age(database, "11 s")
    assert await store.usage("acme") == []


class Process:
    """One ingest process's limiter, and what it let in."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.passed: list[tuple[float, int]] = []  # by the loop's clock

    async def send(self, size: int, *, until_s: float) -> None:
        """Send batches of so many samples, as fast as limits allow."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            try:
                await self.limiter.admit(
                    self.limiter.limits_of("acme"), Sent("acme", "api_key:a", size, size * 16)
                )
            except ResourceExhausted as error:
                await asyncio.sleep((error.retry_after_s or 0) * random.uniform(1, 1.5))
            else:
                self.passed.append((loop.time(), size))
                await asyncio.sleep(0)


@asynccontextmanager
async def processes(pool: asyncpg.Pool, count: int, limits: TenantLimits) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        hits: list[Limited] = []
        made: list[Any] = [
            await stack.enter_async_context(
                Limiter(
                    limits_of=lambda _: limits,
                    source=LimitStore(pool=pool, holder=uuid.uuid4()),
                    on_limited=hits.append,
                )
            )
            for _ in range(count)
        ]
        yield [Process(limiter) for limiter in made]


@pytest.mark.parametrize(("count", "senders", "size"), [(3, 3, 1_000), (2, 1, 15_000)])
async def test_a_limit_holds_for_all_processes_together(
    pool: asyncpg.Pool, count: int, senders: int, size: int
) -> None:
    rate, seconds = 20_000, 5.0
    limits = TenantLimits([SubjectLimits(SubjectKind.TENANT, samples_per_second=rate)])
    async with processes(pool, count, limits) as made:
        end_s = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(process.send(size, until_s=end_s) for process in made for _ in range(senders)))
    passed = sorted(each for process in made for each in process.passed)
    window_s = 3.5
    most = max(
        sum(amount for at_s, amount in passed if start_s <= at_s < start_s + window_s)
        for start_s, _ in passed
        if start_s + window_s <= end_s
    )
    assert most <= 1.2 * rate * window_s + (size if size > rate / 10 else 0)
    steady = sum(amount for at_s, amount in passed if end_s - window_s <= at_s < end_s)
    assert steady >= 0.8 * rate * window_s - (size if size > rate / 10 else 0)
