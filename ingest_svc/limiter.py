"""Lets telemetry in as far as the tenant's limits allow, which all processes keep to together.

A batch asks before it goes to the writer. What this process holds of its limits is mostly enough; if
not, the batch waits for the next round, in which the process asks PostgreSQL for all that its
batches need and will need soon, in one statement. What is not granted then is sent back to the
sender, who is told when to come again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import structlog

from ingest_svc.buckets import OwnBucket, SharedBucket, SharedCapacity
from ingest_svc.ingest_policies import TenantLimits
from meshkit.errors import DomainError, QuotaViolation, ResourceExhausted
from meshkit.tasks import background
from telemetry_store.ingest_policies import SubjectKind, SubjectLimits
from telemetry_store.limits import CapacityAsk, CapacityGrant, LimitKey, Measure, TokenAsk, TokenGrant
from telemetry_store.requests import WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_REST_S = (0.03, 0.06)  # Between two rounds: at random, so that no process always comes after another one.
_LOOK_EVERY_S = 0.03  # So long after that there is a round although nobody waits.
_RENEW_EVERY_S = 1.0
_CAPACITY_RETRY_S = 0.5
_NO_DEVICES: Mapping[str, float] = {}


class LimitSource(Protocol):
    """Where all processes count together."""

    async def take_tokens(self, asks: Sequence[TokenAsk]) -> Sequence[TokenGrant]:
        """Take tokens and give others back, as LimitStore does."""
        ...

    async def hold(self, asks: Sequence[CapacityAsk]) -> Sequence[CapacityGrant]:
        """Hold so much from now on, as LimitStore does."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What somebody wants to send.

    Attributes:
        tenant: whose.
        principal: who sends; "": none that is limited.
        samples: how many.
        size: bytes as sent.
        devices: samples by device, as far as devices are limited.
        writer_id: "" without one.
        sequence: of the batch, None without a writer.
    """

    tenant: str
    principal: str
    samples: int
    size: int
    devices: Mapping[str, float] = field(default_factory=lambda: _NO_DEVICES)
    writer_id: str = ""
    sequence: int | None = None


class Limited(NamedTuple):
    """A limit that was reached: which, its size, what is used of it, and by what."""

    key: LimitKey
    limit: int
    used: int
    sent: Sent


class Charge:
    """What was taken of limits for one batch, or for one stream.

    Args:
        tokens: of buckets, with how much of each.
        capacities: likewise, until it ends.
    """

    __slots__ = ("_capacities", "_tokens")

    def __init__(
        self,
        tokens: Sequence[tuple[SharedBucket | OwnBucket, float]] = (),
        capacities: Sequence[tuple[SharedCapacity, int]] = (),
    ) -> None:
        self._tokens = tokens
        self._capacities = capacities

    def end(self) -> None:
        """Give back what was in use for as long as it lasted; once is enough."""
        for capacity, amount in self._capacities:
            capacity.give_back(amount)
        self._capacities = ()

    def undo(self) -> None:
        """Give everything back: nothing came of it."""
        for bucket, amount in self._tokens:
            bucket.give_back(amount)
        self._tokens = ()
        self.end()

    def settle(self, written: asyncio.Future[WriteResult]) -> None:
        """Take in what became of the batch: what failed used up nothing, a duplicate only bytes."""
        if written.cancelled():
            self.end()
        elif written.exception() is not None:
            self.undo()
        else:
            if written.result().duplicate:
                for bucket, amount in self._tokens:
                    if bucket.key.measure == Measure.SAMPLES_PER_SECOND:
                        bucket.give_back(amount)
            self.end()


NO_CHARGE = Charge()


class Connection:
    """The limits of one gateway stream, counted here alone.

    Args:
        tenant: whose.
        writer_id: names it to people.
    """

    __slots__ = ("_buckets", "_tenant", "_writer_id")

    def __init__(self, *, tenant: str, writer_id: str) -> None:
        self._tenant = tenant
        self._writer_id = writer_id
        self._buckets: dict[Measure, OwnBucket] = {}

    def amounts(self, limits: SubjectLimits, sent: Sent, now_s: float) -> list[tuple[OwnBucket, float]]:
        """Return the buckets that a batch takes from, and how much of each."""
        found: list[tuple[OwnBucket, float]] = []
        for measure, rate, amount in _rates(limits, sent.samples, sent.size):
            bucket = self._buckets.get(measure)
            if bucket is None:
                key = LimitKey(self._tenant, SubjectKind.CONNECTION, self._writer_id, measure)
                bucket = self._buckets[measure] = OwnBucket(key, rate, now_s=now_s)
            bucket.rate = rate
            found.append((bucket, amount))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A batch that waits for the next round; `asked` is done after it."""

    tokens: Sequence[tuple[SharedBucket, float]]
    capacities: Sequence[tuple[SharedCapacity, int]]
    asked: asyncio.Future[None]

    def has_all(self) -> bool:
        """Say whether all that it needs is there."""
        return all(bucket.has(amount) for bucket, amount in self.tokens) and all(
            capacity.has(size) for capacity, size in self.capacities
        )

    def need(self) -> None:
        """Ask for what is not there."""
        for bucket, amount in self.tokens:
            if not bucket.has(amount):
                bucket.need(amount)
        for capacity, size in self.capacities:
            if not capacity.has(size):
                capacity.need(size)

    def go_on(self) -> None:
        """Let it look again."""
        if not self.asked.done():
            self.asked.set_result(None)

    def fail(self, error: Exception) -> None:
        """Tell why nobody could be asked."""
        if not self.asked.done():
            self.asked.set_exception(error)


class Limiter:
    """Counts for one process.

    Args:
        limits_of: says what of a tenant is limited, None for nothing.
        source: where all processes count together.
        on_limited: told of everything that is sent back.
        monotonic_s: the time, in seconds.

    Attributes:
        limits_of: says what of a tenant is limited, None for nothing.
    """

    def __init__(
        self,
        *,
        limits_of: Callable[[str], TenantLimits | None],
        source: LimitSource,
        on_limited: Callable[[Limited], None],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits_of = limits_of
        self._source = source
        self._on_limited = on_limited
        self._monotonic_s = monotonic_s
        self._buckets: dict[LimitKey, SharedBucket] = {}
        self._capacities: dict[LimitKey, SharedCapacity] = {}
        self._renewed_s = 0.0
        self._waiting: list[_Waiter] = []
        self._work = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to ask."""
        await self._stack.enter_async_context(background(self._run(), name="limits"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask no more; what is held is free again when it is not renewed."""
        await self._stack.aclose()

    async def admit(
        self, limits: TenantLimits | None, sent: Sent, connection: Connection | None = None
    ) -> Charge:
        """Let a batch in, if no limit is against it; then its charge is to be settled.

        Nothing is awaited when nothing is limited, or what this process holds is enough.

        Args:
            limits: the tenant's.
            sent: what it is.
            connection: the stream that it comes on, None for another way.

        Raises:
            ResourceExhausted: LIMIT_EXCEEDED, naming the limit; nothing was taken.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell.
        """
        if limits is None:
            return NO_CHARGE
        own: Sequence[tuple[OwnBucket, float]] = ()
        if connection is not None and limits.connection is not None:
            now_s = self._monotonic_s()
            own = connection.amounts(limits.connection, sent, now_s)
            for bucket, _ in own:
                if not bucket.has_any(now_s):
                    raise self._refuse(bucket.key, round(bucket.rate), bucket.used(), sent, bucket.retry_s())
        tokens = list(self._tokens(limits, sent))
        capacities = list(self._inflight(limits, sent))
        await self._have(tokens, capacities, sent)
        for bucket, amount in own:
            bucket.take(amount)
        return self._charge([*tokens, *own], capacities)

    async def open_stream(self, sent: Sent) -> Charge:
        """Let a stream in, if no limit is against it; its charge is to be ended with it.

        Raises:
            ResourceExhausted: LIMIT_EXCEEDED, naming the limit; nothing was taken.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell.
        """
        limits = self.limits_of(sent.tenant)
        if limits is None:
            return NO_CHARGE
        capacities = [
            (self._capacity(LimitKey(sent.tenant, kind, subject, Measure.STREAMS), of.streams), 1)
            for kind, subject, of in _senders(limits, sent)
            if of.streams
        ]
        await self._have((), capacities, sent)
        return self._charge((), capacities)

    def owe(self, sent: Sent) -> None:
        """Count what cannot be sent back: it is paid off before anything else is let in."""
        limits = self.limits_of(sent.tenant)
        if limits is None:
            return
        for bucket, amount in self._tokens(limits, sent):
            bucket.take(amount)
        self._work.set()

    def connection_inflight_bytes(self, tenant: str, *, most: int) -> int:
        """Return how many bytes one stream of a tenant may have in flight, at most so many."""
        limits = self.limits_of(tenant)
        if limits is None or limits.connection is None or not limits.connection.inflight_bytes:
            return most
        return min(limits.connection.inflight_bytes, most)

    # What a batch takes from.

    def _tokens(self, limits: TenantLimits, sent: Sent) -> Iterator[tuple[SharedBucket, float]]:
        for device_id, samples in sent.devices.items():
            of_device = limits.of_device(device_id)
            if of_device is not None:
                size = sent.size * samples / max(sent.samples, 1)
                for measure, rate, amount in _rates(of_device, samples, size):
                    yield (
                        self._bucket(LimitKey(sent.tenant, SubjectKind.DEVICE, device_id, measure), rate),
                        amount,
                    )
        for kind, subject, of in _senders(limits, sent):
            for measure, rate, amount in _rates(of, sent.samples, sent.size):
                yield self._bucket(LimitKey(sent.tenant, kind, subject, measure), rate), amount

    def _bucket(self, key: LimitKey, rate: int) -> SharedBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = SharedBucket(key, rate, now_s=self._monotonic_s())
        bucket.rate = rate
        return bucket

    def _inflight(self, limits: TenantLimits, sent: Sent) -> Iterator[tuple[SharedCapacity, int]]:
        for kind, subject, of in _senders(limits, sent):
            if of.inflight_bytes and sent.size:
                key = LimitKey(sent.tenant, kind, subject, Measure.INFLIGHT_BYTES)
                yield self._capacity(key, of.inflight_bytes), sent.size

    def _capacity(self, key: LimitKey, limit: int) -> SharedCapacity:
        capacity = self._capacities.get(key)
        if capacity is None:
            capacity = self._capacities[key] = SharedCapacity(key, limit)
        capacity.limit = limit
        return capacity

    # Having it.

    async def _have(
        self,
        tokens: Sequence[tuple[SharedBucket, float]],
        capacities: Sequence[tuple[SharedCapacity, int]],
        sent: Sent,
    ) -> None:
        """Return when all of it may be taken, or raise why not."""
        waiter = _Waiter(tokens, capacities, asyncio.get_running_loop().create_future())
        if waiter.has_all():
            return
        self._waiting.append(waiter)
        self._work.set()
        await waiter.asked
        now_s = self._monotonic_s()
        for bucket, amount in tokens:
            if not bucket.has(amount):
                retry_s = bucket.retry_s(amount, now_s)
                raise self._refuse(bucket.key, round(bucket.rate), bucket.used(now_s), sent, retry_s)
        for capacity, size in capacities:
            if not capacity.has(size):
                raise self._refuse(
                    capacity.key, capacity.limit, capacity.used_by_all(), sent, _CAPACITY_RETRY_S
                )

    def _charge(
        self,
        tokens: Sequence[tuple[SharedBucket | OwnBucket, float]],
        capacities: Sequence[tuple[SharedCapacity, int]],
    ) -> Charge:
        for bucket, amount in tokens:
            if isinstance(bucket, SharedBucket):
                bucket.take(amount)
        for capacity, size in capacities:
            capacity.take(size)
        return Charge(tokens, capacities)

    def _refuse(self, key: LimitKey, limit: int, used: int, sent: Sent, retry_s: float) -> DomainError:
        self._on_limited(Limited(key, limit, used, sent))
        return limit_exceeded(key, limit, used, retry_s)

    # Asking.

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            waiting, self._waiting = self._waiting, []
            # Whoever is first of those who need it gets a bucket's credit. In the order of their coming a
            # large batch would never be first: small ones wait again as soon as they were served.
            random.shuffle(waiting)
            try:
                await self._ask(waiting)
            except Exception as error:
                if not isinstance(error, DomainError):
                    _log.exception("limits are not counted")
                for waiter in waiting:
                    waiter.fail(error)
            for waiter in waiting:
                waiter.go_on()
            await asyncio.sleep(random.uniform(*_REST_S))  # noqa: S311 - spreads load, protects nothing
            if self._buckets or self._capacities:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._work.wait()
                self._work.set()

    async def _ask(self, waiting: Sequence["_Waiter"]) -> None:
        for waiter in waiting:
            waiter.need()
        now_s = self._monotonic_s()
        buckets = list(self._buckets.values())
        asks = [bucket.ask(now_s) for bucket in buckets]
        changed = [
            (bucket, ask) for bucket, ask in zip(buckets, asks, strict=True) if ask.returned or ask.wanted
        ]
        if changed:
            grants = await self._source.take_tokens([ask for _, ask in changed])
            now_s = self._monotonic_s()
            for (bucket, _), grant in zip(changed, grants, strict=True):
                bucket.granted(grant, now_s)
        await self._hold()
        # What somebody waits for who came meanwhile is asked for in the next round.
        awaited = {bucket.key for waiter in self._waiting for bucket, _ in waiter.tokens}
        for key in [key for key, bucket in self._buckets.items() if bucket.is_idle(now_s)]:
            if key not in awaited:
                del self._buckets[key]

    async def _hold(self) -> None:
        now_s = self._monotonic_s()
        is_due = now_s - self._renewed_s >= _RENEW_EVERY_S
        capacities = [each for each in self._capacities.values() if is_due or each.is_urgent]
        if not capacities:
            return
        if is_due:
            self._renewed_s = now_s
        grants = await self._source.hold([each.ask() for each in capacities])
        for capacity, grant in zip(capacities, grants, strict=True):
            capacity.granted(grant)
        awaited = {capacity.key for waiter in self._waiting for capacity, _ in waiter.capacities}
        for key in [key for key, capacity in self._capacities.items() if capacity.is_idle]:
            if key not in awaited:
                del self._capacities[key]


def limit_exceeded(key: LimitKey, limit: int, used: int, retry_s: float) -> ResourceExhausted:
    """Return the error for what a limit sends back."""
    subject = key.subject or key.tenant
    per_second = (
        " per second" if key.measure in (Measure.SAMPLES_PER_SECOND, Measure.BYTES_PER_SECOND) else ""
    )
    what = key.measure.name.lower().removesuffix("_per_second").replace("_", " ")
    message = (
        f"{key.kind.name.lower()} {subject!r} may have {limit} {what}{per_second} and uses {used} "
        f"({key.name}); send it again in {retry_s:.2f} s"
    )
    return ResourceExhausted(
        message,
        reason=ErrorReason.ERROR_REASON_LIMIT_EXCEEDED,
        metadata={"limit_name": key.name, "limit": str(limit), "used": str(used), "subject": subject},
        quota=QuotaViolation(f"{key.kind.name.lower()}:{subject}", key.name, limit, message),
        retry_after_s=retry_s,
    )


def _senders(limits: TenantLimits, sent: Sent) -> Iterator[tuple[SubjectKind, str, SubjectLimits]]:
    of_principal = limits.of_principal(sent.principal) if sent.principal else None
    if of_principal is not None:
        yield SubjectKind.PRINCIPAL, sent.principal, of_principal
    if limits.tenant is not None:
        yield SubjectKind.TENANT, "", limits.tenant


def _rates(limits: SubjectLimits, samples: float, size: float) -> Iterator[tuple[Measure, int, float]]:
    if limits.samples_per_second and samples:
        yield Measure.SAMPLES_PER_SECOND, limits.samples_per_second, samples
    if limits.bytes_per_second and size:
        yield Measure.BYTES_PER_SECOND, limits.bytes_per_second, size
