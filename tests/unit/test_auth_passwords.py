import asyncio
import itertools
import os
import threading
import time

import pytest

from auth_svc.passwords import PasswordVerifier, hash_password
from meshkit.errors import ResourceExhausted
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


async def test_only_the_password_fits() -> None:
    stored = hash_password("correct horse")
    assert stored.startswith("$argon2id$")
    async with PasswordVerifier(workers=1, queue=0) as passwords:
        assert await passwords.verify("correct horse", stored)
        assert not await passwords.verify("battery staple", stored)
        assert not await passwords.verify("correct horse", None)


async def test_more_than_may_wait_are_refused_and_the_rest_is_served() -> None:
    stored = hash_password("correct horse")
    async with PasswordVerifier(workers=1, queue=2) as passwords:
        outcomes = await asyncio.gather(
            *(passwords.verify("correct horse", stored) for _ in range(5)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, ResourceExhausted)]
        assert outcomes[:3] == [True, True, True]
        assert len(refused) == 2
        assert all(error.reason == ErrorReason.ERROR_REASON_LOGIN_BUSY for error in refused)
        waits = [error.retry_after_s for error in refused]
        assert None not in waits
        assert len(set(waits)) == len(refused), "told the same, they would come as one wave"
        assert await passwords.verify("correct horse", stored)


async def test_those_who_are_refused_come_again_as_fast_as_passwords_are_done() -> None:
    async with PasswordVerifier(workers=2, queue=0) as passwords:
        for _ in range(100):
            passwords._turns.took(3.0)
        began_s = time.monotonic()
        moments = [time.monotonic() + passwords._turns.wait_s() for _ in range(60)]
        took_s = time.monotonic() - began_s
    steps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    # 1.5 s each, until the longest wait, from where on turns are shared.
    assert all(abs(step - 1.5) <= took_s + 1e-6 for step in steps if step > 0)
    assert sum(step < 0 for step in steps) == 3
    assert all(1.0 <= moment - began_s <= 30.0 + took_s for moment in moments)


async def test_callers_that_go_away_leave_the_queue() -> None:
    stored = hash_password("correct horse")
    async with PasswordVerifier(workers=1, queue=1) as passwords:
        first = asyncio.create_task(passwords.verify("correct horse", stored))
        second = asyncio.create_task(passwords.verify("correct horse", stored))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted):
            await passwords.verify("correct horse", stored)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.create_task(passwords.verify("correct horse", stored))
        assert all(await asyncio.gather(first, third))


async def test_whoever_would_be_refused_is_refused_before_anything_else() -> None:
    stored = hash_password("correct horse")
    async with PasswordVerifier(workers=1, queue=0) as passwords:
        passwords.require_place()
        first = asyncio.create_task(passwords.verify("correct horse", stored))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted) as refused:
            passwords.require_place()
        assert refused.value.reason == ErrorReason.ERROR_REASON_LOGIN_BUSY
        assert await first
        passwords.require_place()


async def test_work_without_end_takes_a_quarter_of_a_worker_core() -> None:
    def work() -> float:
        # What a thread sleeps is no core time, so it turns.
        until_s = time.thread_time() + 0.25
        while time.thread_time() < until_s:
            pass
        return time.monotonic()

    async with PasswordVerifier(workers=1, queue=20) as passwords:
        began_s = time.monotonic()
        ends_s = await asyncio.gather(*(passwords._run(work) for _ in range(8)))
    # However slow the machine is: 1.75 s of core time before the last, of which 1 s is the burst's.
    assert ends_s[-1] - began_s >= (1.75 - 1.0) / 0.25


async def test_work_on_passwords_leaves_the_cores_to_others() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async with PasswordVerifier(workers=1, queue=0) as passwords:
        assert await passwords._run(priority) > priority()
