"""Passwords: argon2id in a small executor that refuses rather than queues without end."""

import asyncio
import base64
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from argon2.low_level import ARGON2_VERSION

from meshkit.errors import ResourceExhausted
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_R = TypeVar("_R")
_SHORTEST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_FIRST_GUESS_S = 0.15
_WEIGHT_OF_LAST = 0.2
_CORE_SHARE = 0.25
_BURST_S = 1.0
_NICE = 10


def _hasher() -> PasswordHasher:
    # RFC 9106's second recommended option (64 MiB, 3 passes), but with one lane: the
    # number of workers, not of lanes, bounds the cores that log-ins may take.
    return PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password in PHC string form; takes about 0.1 s."""
    return _hasher().hash(password)


def _hash_of_nothing(hasher: PasswordHasher) -> str:
    """Return a hash that costs as much to verify as any other and that no password has."""
    sizes = (hasher.salt_len, hasher.hash_len)
    salt, digest = (base64.b64encode(os.urandom(size)).rstrip(b"=").decode() for size in sizes)
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"


class _Turns:
    """Tells those who are refused when to come again: one after the other, as fast as passwords are done.

    Were all told the same, all would come at once again, and refusing them would take the core that the
    others need. More than can be served within the longest wait share its turns.

    Args:
        workers: how many passwords are done at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._work_s = _FIRST_GUESS_S
        self._last_s = 0.0

    def took(self, seconds: float) -> None:
        """Note what one password took; the mean of the last ones is what a turn lasts."""
        self._work_s += _WEIGHT_OF_LAST * (seconds - self._work_s)

    def wait_s(self) -> float:
        """Return how long the next who is refused is to wait, in seconds."""
        now_s = time.monotonic()
        next_s = max(self._last_s, now_s + _SHORTEST_WAIT_S) + self._work_s / self._workers
        if next_s > now_s + _LONGEST_WAIT_S:
            next_s = now_s + _SHORTEST_WAIT_S
        self._last_s = next_s
        return next_s - now_s


class _CoreTime(threading.local):
    """The time of a core that this worker may take: a burst, and a quarter from then on.

    A low priority alone does not do: while a thread works without end, whoever wakes up finds no idle
    core. With half of a core the p99 of others on a machine of two was still twice what it was alone.
    """

    def __init__(self) -> None:
        self._left_s = _BURST_S
        self._at_s = time.monotonic()

    def rest(self) -> None:
        """Wait until some is left."""
        self._earn()
        if self._left_s < 0:
            time.sleep(-self._left_s / _CORE_SHARE)
            self._earn()

    def spend(self, seconds: float) -> None:
        """Note what was taken."""
        self._left_s -= seconds

    def _earn(self) -> None:
        now_s = time.monotonic()
        self._left_s = min(_BURST_S, self._left_s + _CORE_SHARE * (now_s - self._at_s))
        self._at_s = now_s


class PasswordVerifier:
    """Verifies and hashes passwords; verifying costs the same, whether the user exists or not.

    Args:
        workers: how many are verified or hashed at once.
        queue: how many more may wait; the next is refused.
    """

    def __init__(self, *, workers: int, queue: int) -> None:
        self._hasher = _hasher()
        self._executor = ThreadPoolExecutor(
            workers, thread_name_prefix="argon2", initializer=_yield_to_others
        )
        self._free = threading.BoundedSemaphore(workers + queue)
        self._turns = _Turns(workers)
        self._core_time = _CoreTime()
        self._nobodys_hash = _hash_of_nothing(self._hasher)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def require_place(self) -> None:
        """Refuse somebody who would be refused by `verify` now.

        Raises:
            ResourceExhausted: LOGIN_BUSY, too many wait already.
        """
        if not self._free.acquire(blocking=False):
            raise self._busy()
        self._free.release()

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a password fits a hash; None stands for an unknown user.

        Cancelling the call takes it from the queue; work begun in a worker is finished.

        Raises:
            ResourceExhausted: LOGIN_BUSY, too many wait already.
        """
        fits = await self._run(lambda: self._fits(password, password_hash or self._nobodys_hash))
        return fits and password_hash is not None

    async def hash(self, password: str) -> str:
        """Return the argon2id hash of a password in PHC string form.

        Cancelling as for `verify`.

        Raises:
            ResourceExhausted: LOGIN_BUSY, too many wait already.
        """
        return await self._run(lambda: self._hasher.hash(password))

    def _fits(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerifyMismatchError:
            return False

    async def _run(self, work: Callable[[], _R]) -> _R:
        if not self._free.acquire(blocking=False):
            raise self._busy()
        future = self._executor.submit(self._timed, work)
        # Not when the caller goes away, but when the worker is free again.
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)

    def _timed(self, work: Callable[[], _R]) -> _R:
        began_s = time.monotonic()
        self._core_time.rest()
        worked_s = time.thread_time()
        try:
            return work()
        finally:
            self._core_time.spend(time.thread_time() - worked_s)
            self._turns.took(time.monotonic() - began_s)

    def _busy(self) -> ResourceExhausted:
        wait_s = self._turns.wait_s()
        return ResourceExhausted(
            f"too many log-ins at once; retry in {wait_s:.1f} s",
            reason=ErrorReason.ERROR_REASON_LOGIN_BUSY,
            retry_after_s=wait_s,
        )


def _yield_to_others() -> None:
    """Let this thread have what cores others leave: who logs in waits, not who sends."""
    if sys.platform == "linux":  # Elsewhere threads have no priority of their own.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
