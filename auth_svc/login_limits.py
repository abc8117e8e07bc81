"""Limits on guessing: how often a secret may be wrong, and how long to wait from then on.

Failures are counted by account, which bounds guesses at one password, and by address, which bounds guesses at
many. From so many on each one doubles the wait, in which nothing is looked at.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from typing import Protocol

import structlog

from meshkit.caller_address import parsed
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import ResourceExhausted, Unauthenticated, Unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
FORGOTTEN_AFTER_S = 60 * 60
# Whoever has an IPv6 address has all of its network.
_IPV6_NETWORK_BITS = 64


@dataclass(frozen=True, slots=True)
class Limit:
    """How much may fail.

    Attributes:
        free: failures without a wait; the next one is the first to be waited for.
        longest_wait_s: what doubling ends at.
    """

    free: int
    longest_wait_s: int


ACCOUNT = Limit(free=10, longest_wait_s=15 * 60)
# People of one network address share it.
ADDRESS = Limit(free=50, longest_wait_s=15 * 60)
# Those cannot be guessed anyway, and a client that is stuck must not lock others of its address out.
TOKENS = Limit(free=100, longest_wait_s=60)
_GOOD_ONES = 10_000


class Secret(StrEnum):
    """What is guessed."""

    PASSWORD = "password"  # noqa: S105 - a name
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a name
    API_KEY = "api_key"
    SUBJECT_TOKEN = "subject_token"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class Failures:
    """Failures of one account or address; times in microseconds since the epoch, 0 for no wait."""

    count: int = 0
    blocked_until_us: int = 0
    update_us: int = 0

    def blocked_us(self, now_us: int) -> int:
        """Return for how long nothing is looked at."""
        return max(self.blocked_until_us - now_us, 0)

    def with_one_more(self, limit: Limit, now_us: int) -> "Failures":
        """Return them with another one, and the wait that follows from it."""
        is_forgotten = now_us - self.update_us > FORGOTTEN_AFTER_S * MICROS_PER_SECOND
        count = 1 if is_forgotten else self.count + 1
        beyond = count - limit.free
        if beyond <= 0:
            return Failures(count, 0, now_us)
        wait_s = min(2 ** min(beyond - 1, 30), limit.longest_wait_s)
        return Failures(count, now_us + wait_s * MICROS_PER_SECOND, now_us)

    def with_one_less(self) -> "Failures":
        """Return them without one that was none; the wait for it ends."""
        return Failures(max(self.count - 1, 0), 0, self.update_us)


@dataclass(frozen=True, slots=True)
class Guess:
    """One password that is tried; `address` as `network` returns it."""

    tenant: str
    username: str
    address: str


# Takes failures of account and address, and returns what they are from now on; None: as they were.
Judgement = Callable[[Failures, Failures], tuple[Failures, Failures] | None]


class FailureStore(Protocol):
    """Where failures are counted."""

    async def change(self, guess: Guess, judge: Judgement) -> None:
        """Judge the failures of an account and an address for passwords while both are locked."""
        ...

    async def forgive(self, guess: Guess, judge: Callable[[Failures], Failures]) -> None:
        """Forget an account's failures, and judge those of the address."""
        ...

    async def change_of(self, secret: Secret, address: str, judge: Callable[[Failures], Failures]) -> None:
        """Judge an address's failures for a kind of secret while they are locked."""
        ...

    async def of(self, secret: Secret, address: str) -> Failures:
        """Read them."""
        ...


class Attempt:
    """A password that is being looked at."""

    def __init__(self) -> None:
        self.succeeded = False

    def succeed(self) -> None:
        """Say that it was right."""
        self.succeeded = True


class LoginLimits:
    """Lets guesses in, as far as limits allow.

    Args:
        store: counts for all processes.
        clock: tells how long is to wait.
        require_place: refuses a password that nobody would look at now, before it costs a look into the
            database; None: all are looked at.
    """

    def __init__(
        self, *, store: FailureStore, clock: Clock, require_place: Callable[[], None] | None = None
    ) -> None:
        self._require_place = require_place
        self._store = store
        self._clock = clock
        self._good: OrderedDict[bytes, None] = OrderedDict()

    @asynccontextmanager
    async def attempt(self, guess: Guess) -> AsyncIterator[Attempt]:
        """Look at a password inside of the context; unless it succeeds, it has failed.

        What was never looked at, since the service was busy or something was away, is no failure.

        Raises:
            ResourceExhausted: LOGIN_LIMITED, the same for accounts that do not exist; LOGIN_BUSY.
        """
        if self._require_place is not None:
            self._require_place()
        waits_us = 0

        def one_more(account: Failures, address: Failures) -> tuple[Failures, Failures] | None:
            nonlocal waits_us
            # Only now: whoever held the lock before may have set a wait since.
            now_us = self._clock.now_us()
            waits_us = max(account.blocked_us(now_us), address.blocked_us(now_us))
            if waits_us:
                return None
            return account.with_one_more(ACCOUNT, now_us), address.with_one_more(ADDRESS, now_us)

        await self._store.change(guess, one_more)
        if waits_us:
            raise _limited(guess.address, waits_us)
        attempt = Attempt()
        try:
            yield attempt
        except (ResourceExhausted, Unavailable):
            await self._store.change(guess, _one_less)
            raise
        if attempt.succeeded:
            await self._store.forgive(guess, Failures.with_one_less)

    @asynccontextmanager
    async def exchange(self, secret: Secret, address: str, shown: bytes) -> AsyncIterator[None]:
        """Look at a key or token inside of the context; it was wrong when that raises Unauthenticated.

        What was good here before is looked at in any case: a client that is stuck with a wrong one makes
        others of its address wait only until they are known.

        Args:
            secret: what is shown.
            address: where from.
            shown: its SHA-256.

        Raises:
            ResourceExhausted: LOGIN_LIMITED, too many from the address were wrong.
        """
        address = network(address)
        before = Failures() if shown in self._good else await self._require_allowed(secret, address)
        try:
            yield
        except Unauthenticated:
            self._good.pop(shown, None)
            await self.failed(secret, address)
            raise
        self._good[shown] = None
        self._good.move_to_end(shown)
        if len(self._good) > _GOOD_ONES:
            self._good.popitem(last=False)
        if before.count:
            # Of many who share an address a few are always wrong.
            await self._store.change_of(secret, address, Failures.with_one_less)

    async def require_refresh_allowed(self, address: str) -> None:
        """Refuse a refresh token unseen when too many from its address were no token.

        Raises:
            ResourceExhausted: LOGIN_LIMITED.
        """
        await self._require_allowed(Secret.REFRESH_TOKEN, address)

    async def failed(self, secret: Secret, address: str) -> None:
        """Count a key or token that nobody was given; `address` as `network` returns it."""
        await self._store.change_of(
            secret, address, lambda failures: failures.with_one_more(TOKENS, self._clock.now_us())
        )

    async def _require_allowed(self, secret: Secret, address: str) -> Failures:
        failures = await self._store.of(secret, address)
        if waits_us := failures.blocked_us(self._clock.now_us()):
            raise _limited(address, waits_us)
        return failures


def _one_less(account: Failures, address: Failures) -> tuple[Failures, Failures]:
    return account.with_one_less(), address.with_one_less()


def network(address: str) -> str:
    """Return what failures of an address are counted by: itself, or the network of an IPv6 address.

    Whatever is no address is counted as it is.
    """
    found = parsed(address)
    if found is None:
        return address
    if found.version == 4:
        return str(found)
    return str(ip_network((int(found), _IPV6_NETWORK_BITS), strict=False))


def _limited(address: str, waits_us: int) -> ResourceExhausted:
    wait_s = waits_us / MICROS_PER_SECOND
    _log.warning("log-in refused unseen", address=address, wait_s=round(wait_s, 1))
    return ResourceExhausted(
        "too many log-ins failed for this account or from this address; wait as long as it says, then retry",
        reason=ErrorReason.ERROR_REASON_LOGIN_LIMITED,
        retry_after_s=wait_s,
    )
