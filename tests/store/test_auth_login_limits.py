"""Failed log-ins, counted in PostgreSQL by several processes together."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from auth_svc.login_limits import ACCOUNT, ADDRESS, FORGOTTEN_AFTER_S, TOKENS, Guess, LoginLimits, Secret
from auth_svc.stores.login_limits import FailureStore
from meshkit import db
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import ResourceExhausted, Unauthenticated, Unavailable, dependency_unavailable
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NOW = 1_800_000_000 * MICROS_PER_SECOND
_HOME = "192.0.2.1"
_ADA = Guess("demo", "ada", _HOME)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(_NOW)


@pytest.fixture
async def pools(database: TestDatabase) -> AsyncIterator[list[asyncpg.Pool]]:
    url = database.url("twinmesh_auth")
    async with db.pool(url, application="one") as one, db.pool(url, application="other") as other:
        yield [one, other]


@pytest.fixture
def processes(pools: list[asyncpg.Pool], clock: ManualClock) -> list[LoginLimits]:
    return [LoginLimits(store=FailureStore(pool=pool), clock=clock) for pool in pools]


@pytest.fixture
def limits(processes: list[LoginLimits]) -> LoginLimits:
    return processes[0]


async def fail(limits: LoginLimits, guess: Guess = _ADA) -> float:
    """Guess wrong; returns the wait when it was not looked at, else 0."""
    with pytest.raises((Unauthenticated, ResourceExhausted)) as refused:
        async with limits.attempt(guess):
            raise Unauthenticated("wrong", reason=ErrorReason.ERROR_REASON_LOGIN_FAILED)
    if isinstance(refused.value, Unauthenticated):
        return 0.0
    assert refused.value.reason == ErrorReason.ERROR_REASON_LOGIN_LIMITED
    assert refused.value.retry_after_s
    return refused.value.retry_after_s


async def succeed(limits: LoginLimits, guess: Guess = _ADA) -> None:
    async with limits.attempt(guess) as attempt:
        attempt.succeed()


def elsewhere(number: int) -> Guess:
    """The same account, tried from another address."""
    return Guess("demo", "ada", f"198.51.100.{number}")


async def test_waits_for_an_account_double_whoever_counts(
    processes: list[LoginLimits], clock: ManualClock
) -> None:
    for n in range(ACCOUNT.free + 1):
        assert await fail(processes[n % 2], elsewhere(n)) == 0
    for n, wait_s in enumerate((1, 2, 4, 8)):
        assert [await fail(each, elsewhere(100 + n)) for each in processes] == [wait_s, wait_s]
        clock.advance(wait_s)
        assert await fail(processes[n % 2], elsewhere(100 + n)) == 0


async def test_guesses_at_once_are_no_more_than_one_after_another(processes: list[LoginLimits]) -> None:
    waits = await asyncio.gather(*(fail(processes[n % 2], elsewhere(n)) for n in range(60)))
    assert waits.count(0) == ACCOUNT.free + 1


async def test_an_address_that_tries_many_accounts_waits_too(
    processes: list[LoginLimits], clock: ManualClock
) -> None:
    for n in range(ADDRESS.free + 1):
        assert await fail(processes[n % 2], Guess(f"tenant-{n % 7}", f"user-{n}", _HOME)) == 0
    assert await fail(processes[0], Guess("demo", "fresh", _HOME)) == 1
    # Others are not concerned.
    assert await fail(processes[0], Guess("demo", "fresh", "192.0.2.99")) == 0
    clock.advance(1)
    assert await fail(processes[1], Guess("demo", "fresh", _HOME)) == 0
    assert await fail(processes[0], Guess("demo", "fresh", _HOME)) == 2


async def test_what_is_refused_unseen_lengthens_no_wait(limits: LoginLimits, clock: ManualClock) -> None:
    for n in range(ACCOUNT.free + 1):
        await fail(limits, elsewhere(n))
    assert [await fail(limits, elsewhere(99)) for _ in range(20)] == [1.0] * 20
    clock.advance(1)
    await succeed(limits)


async def test_a_log_in_frees_its_account_and_not_its_address(
    limits: LoginLimits, clock: ManualClock
) -> None:
    """Else whoever has an account could guess at others without end."""
    for n in range(ADDRESS.free + 1):
        assert await fail(limits, Guess("demo", f"user-{n}", _HOME)) == 0
        if n < ADDRESS.free:
            await succeed(limits)
    assert await fail(limits, Guess("demo", "fresh", _HOME)) == 1
    for n in range(ACCOUNT.free):
        await fail(limits, elsewhere(n))
    await succeed(limits, elsewhere(50))
    for n in range(ACCOUNT.free + 1):
        assert await fail(limits, elsewhere(n)) == 0


async def test_what_was_not_looked_at_is_no_failure(limits: LoginLimits) -> None:
    for n in range(ADDRESS.free + 2):
        with pytest.raises(Unavailable):
            async with limits.attempt(_ADA):
                raise dependency_unavailable("postgresql")
        with pytest.raises(ResourceExhausted, match="busy"):
            async with limits.attempt(_ADA):
                raise ResourceExhausted("busy", reason=ErrorReason.ERROR_REASON_LOGIN_BUSY)
        assert n or await fail(limits) == 0
    assert await fail(limits) == 0


async def test_whoever_leaves_before_the_answer_has_guessed(limits: LoginLimits) -> None:
    for n in range(ACCOUNT.free + 1):
        with pytest.raises(asyncio.CancelledError):
            async with limits.attempt(elsewhere(n)):
                raise asyncio.CancelledError
    assert await fail(limits, elsewhere(99)) == 1


async def test_refresh_tokens_are_counted_apart(processes: list[LoginLimits], clock: ManualClock) -> None:
    for n in range(TOKENS.free + 1):
        await processes[n % 2].require_refresh_allowed(_HOME)
        await processes[n % 2].failed(Secret.REFRESH_TOKEN, _HOME)
    for each in processes:
        with pytest.raises(ResourceExhausted) as refused:
            await each.require_refresh_allowed(_HOME)
        assert refused.value.retry_after_s == 1
        await each.require_refresh_allowed("192.0.2.99")
    await succeed(processes[0])
    clock.advance(1)
    await processes[0].require_refresh_allowed(_HOME)


async def test_what_is_old_is_dropped_in_all_tenants(
    limits: LoginLimits, pools: list[asyncpg.Pool], database: TestDatabase
) -> None:
    await fail(limits)
    await fail(limits, Guess("rival", "ada", _HOME))
    await limits.failed(Secret.REFRESH_TOKEN, _HOME)
    store = FailureStore(pool=pools[1])
    connection = await asyncpg.connect(database.admin_url)

    async def rows() -> tuple[int, int]:
        accounts = await connection.fetchval("SELECT count(*) FROM auth.account_failures")
        addresses = await connection.fetchval("SELECT count(*) FROM auth.address_failures")
        return accounts, addresses

    try:
        await store.forget(_NOW)
        assert await rows() == (2, 2)
        await store.forget(_NOW + FORGOTTEN_AFTER_S * MICROS_PER_SECOND)
        assert await rows() == (0, 0)
    finally:
        await connection.close()


async def test_two_processes_that_count_and_forget_do_not_stand_in_each_others_way(
    processes: list[LoginLimits], pools: list[asyncpg.Pool], clock: ManualClock
) -> None:
    store = FailureStore(pool=pools[0])

    async def forget() -> None:
        for _ in range(30):
            await store.forget(_NOW + 1)

    async def log_in(n: int) -> None:
        for _ in range(10):
            try:
                await succeed(processes[n % 2], Guess("demo", f"user-{n % 3}", f"192.0.2.{n % 2}"))
            except ResourceExhausted:
                clock.advance(60)

    async with asyncio.timeout(60):
        await asyncio.gather(forget(), *(log_in(n) for n in range(8)))
