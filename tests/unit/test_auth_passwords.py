import asyncio
import os
import threading

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
        assert all(error.retry_after_s for error in refused)
        assert await passwords.verify("correct horse", stored)


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


async def test_work_on_passwords_leaves_the_cores_to_others() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async with PasswordVerifier(workers=1, queue=0) as passwords:
        assert await passwords._run(priority) > priority()
