"""The account of every call: who asked for what, from where, and how it ended.

A call costs a few microseconds: what is known of it is noted while it runs, and put into words by the
task that hands events on. Events that nobody takes wait, so many at most; more are counted as lost.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import structlog
from google.rpc import code_pb2

from meshkit.errors import DomainError, InvalidArgument
from meshkit.status import code_of
from meshkit.tasks import background
from meshkit.telemetry import current_trace_id

if TYPE_CHECKING:
    from meshkit.clock import Clock
    from meshkit.identity import Principal

_log = structlog.get_logger()
BATCH_EVENTS = 1_000
# Half of what a message may have: a batch that is refused for its size would be sent again for ever.
_BATCH_BYTES = 2 * 1024 * 1024
MOST_WAITING = 20_000
MOST_TARGETS = 100
# As many as a hundred names of usual length take: what a caller makes up is no reason to keep more.
MOST_TARGET_BYTES = 3_200
LONGEST_TEXT = 256
_EVERY_S = 0.5
_FLUSH_S = 5.0
_FLUSH_AGAIN_S = 0.1
_TOGETHER = 100
_MOST_BYTES_OF_NUMBERS = 160  # and of the trace id, and the tags of all fields
_Item = TypeVar("_Item")
# Asked over and over by machines, about no resource: health and reflection; what was revoked, which devices
# are gone and which tenants closed; what is open; what the account itself is given by; and whether a key
# is good, whose answer is followed by the call itself or by Envoy's refusal.
_UNRECORDED = (
    "/grpc.",
    "/twinmesh.mesh.v1.HealthService/",
    "/twinmesh.auth.v1.AuditService/",
    "/twinmesh.auth.v1.RevocationService/",
    "/twinmesh.auth.v1.TenantDeletionService/ListClosedTenants",
    "/twinmesh.asset.v1.ProfileService/ListDeletedDevices",
    "/twinmesh.ingest.v1.ConnectionService/",
    "/envoy.service.",
)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """The record of one call; what is not known is empty.

    Attributes:
        id: unique with tenant and time.
        time_us: when it began, microseconds since the epoch.
        tenant: whose call it was.
        principal: the caller's name.
        credential_id: of the caller's session or key.
        address: of the client.
        rpc: full rpc path, or method and path of what is no rpc.
        targets: ids of resources, MOST_TARGETS of MOST_TARGET_BYTES at most.
        code: a google.rpc.Code.
        duration_us: how long it took, microseconds.
        trace_id: 32 hexadecimal digits.
        changed_fields: which fields of a resource it changed.
        received: messages of the caller's stream.
        sent: messages of the stream to the caller.
    """

    id: str
    time_us: int
    tenant: str
    principal: str
    credential_id: str
    address: str
    rpc: str
    targets: Sequence[str]
    code: int
    duration_us: int
    trace_id: str
    changed_fields: Sequence[str] = ()
    received: int = 0
    sent: int = 0

    @property
    def most_bytes(self) -> int:
        """What it takes at most when it is sent."""
        texts = (self.id, self.tenant, self.principal, self.credential_id, self.address, self.rpc)
        characters = sum(map(len, chain(texts, self.targets, self.changed_fields)))
        return _MOST_BYTES_OF_NUMBERS + 4 * characters + 4 * len(self.targets) + 4 * len(self.changed_fields)


async def unhurried(items: Iterable[_Item]) -> AsyncIterator[_Item]:
    """Yield what is made of many events, and let calls come in between: a thousand take milliseconds."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _TOGETHER == 0:
            await asyncio.sleep(0)


class Recordable(Protocol):
    """What is over, and can be put into words later."""

    def event(self, event_id: str) -> AuditEvent:
        """Return the record of it."""
        ...


class AuditedCall:
    """A call while it runs. A context manager: how it is left is how the call ended."""

    __slots__ = (
        "_context",
        "_ended_ns",
        "_started_ns",
        "_trail",
        "address",
        "changed",
        "claimed",
        "code",
        "principal",
        "received",
        "rpc",
        "sent",
        "targets",
        "time_us",
        "trace_id",
    )

    def __init__(self, trail: AuditTrail | None, rpc: str, context: Any, time_us: int) -> None:
        self._trail = trail
        self._context = context
        self._started_ns = time.monotonic_ns()
        self._ended_ns = 0
        self.rpc = rpc
        self.time_us = time_us
        self.principal: Principal | None = None
        self.claimed: tuple[str, str] = ("", "")
        self.address = ""
        self.targets: Sequence[str] = ()
        self.code: int = code_pb2.CANCELLED
        self.trace_id = ""
        self.changed: Sequence[str] = ()
        self.received = self.sent = 0

    def __enter__(self) -> Self:
        _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._trail is None:
            return
        self._ended_ns = time.monotonic_ns()
        if kind is None:
            self.code = code_pb2.OK
        elif issubclass(kind, grpc.aio.AbortError):
            self.code = self._context.code().value[0]
        elif isinstance(error, DomainError):
            self.code = code_of(error).value[0]
        elif issubclass(kind, Exception):
            self.code = code_pb2.UNKNOWN
        self.trace_id = current_trace_id()
        # It holds the request.
        self._context = None
        self._trail.take(self)

    def renew(self, principal: Principal) -> None:
        """Go on with another credential; what was done with the former one is a record by itself."""
        former = self.principal
        if self._trail is None or former is None or former.credential_id == principal.credential_id:
            self.principal = principal
            return
        self._ended_ns = time.monotonic_ns()
        self.trace_id = current_trace_id()
        self._trail.take(_Part(replace(self.event(""), code=code_pb2.OK)))
        self.principal = principal
        self.time_us += (self._ended_ns - self._started_ns) // 1000
        self._started_ns = self._ended_ns
        self.received = self.sent = 0

    def event(self, event_id: str) -> AuditEvent:
        """Return the record of the call, which has ended."""
        principal = self.principal
        tenant, name = self.claimed if principal is None else (principal.tenant, principal.name)
        return AuditEvent(
            id=event_id,
            time_us=self.time_us,
            tenant=tenant,
            principal=storable(name),
            credential_id="" if principal is None else storable(principal.credential_id),
            address=storable(self.address),
            rpc=self.rpc,
            targets=list(self.targets),
            code=self.code,
            duration_us=(self._ended_ns - self._started_ns) // 1000,
            trace_id=self.trace_id,
            changed_fields=self.changed,
            received=self.received,
            sent=self.sent,
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """What is over of a call that goes on."""

    known: AuditEvent

    def event(self, event_id: str) -> AuditEvent:
        """Return the record of it."""
        return replace(self.known, id=event_id)


_current: ContextVar[AuditedCall | None] = ContextVar("twinmesh_audited_call", default=None)


def changed(fields: Iterable[str]) -> None:
    """Say which fields of a resource the present call changes."""
    call = _current.get()
    if call is not None:
        call.changed = [*islice(chain(call.changed, fields), MOST_TARGETS)]


def concerns(tenant: str, principal: str) -> None:
    """Say whose the present call is that brings no token: a log-in, or a key or certificate to be judged.

    Args:
        tenant: whose tenant.
        principal: whose name, as principals have it.
    """
    call = _current.get()
    if call is not None:
        call.claimed = (tenant, principal)


def concerned() -> tuple[str, str]:
    """Return what `concerns` was told of the present call: tenant and principal, both "" when nothing was."""
    call = _current.get()
    return ("", "") if call is None else call.claimed


def storable(text: str) -> str:
    """Return a text that came from outside as it is kept: without NUL, LONGEST_TEXT characters at most."""
    return text[:LONGEST_TEXT].replace("\0", "")


def storable_targets(targets: Iterable[str]) -> Sequence[str]:
    """Return the ids of resources, MOST_TARGETS at most, as they are kept, as far as there is room."""
    kept: list[str] = []
    left = MOST_TARGET_BYTES
    for target in targets:
        text = storable(target)
        left -= len(text.encode())
        if left < 0:
            break
        kept.append(text)
    return kept


def is_recorded(method: str) -> bool:
    """Say whether calls of an rpc are recorded.

    Args:
        method: full rpc path, "/package.Service/Method".
    """
    return not method.startswith(_UNRECORDED)


class AuditTrail:
    """Takes what is over, and hands its events on in batches.

    An async context manager: in the end it hands on what waits, and gives up after some seconds.

    Args:
        send: keeps events for good; is given the same ones again when it raises anything but
            InvalidArgument.
        clock: tells when calls begin.
        most_waiting: events that wait; those that come on top are lost.

    Attributes:
        lost: how many events were.
    """

    def __init__(
        self,
        *,
        send: Callable[[Sequence[AuditEvent]], Awaitable[object]],
        clock: Clock,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._send = send
        self._clock = clock
        self._most_waiting = most_waiting
        self._recorder = secrets.token_hex(8)
        self._waiting: deque[tuple[int, Recordable]] = deque()
        self._taken = 0
        self._is_full = asyncio.Event()
        self._is_away = False
        self._stack = AsyncExitStack()
        self.lost = 0

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(background(self._hand_on(), name="audit"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                while self._waiting:
                    await self._send_waiting()
                    if self._waiting:
                        await asyncio.sleep(_FLUSH_AGAIN_S)
        if self._waiting:
            self._lose(len(self._waiting), "nobody took them before the process ended")

    def call(self, rpc: str, context: Any, *, recorded: bool) -> AuditedCall:
        """Return the call that begins now, to be entered.

        Args:
            rpc: full rpc path.
            context: tells the code when the call was aborted.
            recorded: whether it is taken when it ends.
        """
        return AuditedCall(self if recorded else None, rpc, context, self._clock.now_us())

    def take(self, recordable: Recordable) -> None:
        """Take what is over."""
        self._taken += 1
        if len(self._waiting) >= self._most_waiting:
            self.lost += 1
        else:
            self._waiting.append((self._taken, recordable))
            if len(self._waiting) == BATCH_EVENTS:
                self._is_full.set()

    async def _hand_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._is_full.wait()
            self._is_full.clear()
            await self._send_waiting()

    async def _send_waiting(self) -> None:
        """Send what waits, batch after batch, until one cannot be sent."""
        while self._waiting:
            batch = await self._next_batch()
            try:
                await self._send(batch)
            except InvalidArgument as error:
                # It would be refused again and again, and all behind it would wait.
                self._lose(len(batch), str(error))
            except Exception as error:
                if not self._is_away:
                    self._is_away = True
                    _log.warning("audit events wait", error=repr(error))
                return
            self._is_away = False
            for _ in batch:
                self._waiting.popleft()

    async def _next_batch(self) -> list[AuditEvent]:
        next_ones = list(islice(self._waiting, BATCH_EVENTS))
        events = (recordable.event(f"{self._recorder}-{number}") for number, recordable in next_ones)
        batch: list[AuditEvent] = []
        left = _BATCH_BYTES
        async for event in unhurried(events):
            left -= event.most_bytes
            if left < 0 and batch:
                break
            batch.append(event)
        return batch

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        _log.error("audit events lost", count=count, why=why)
