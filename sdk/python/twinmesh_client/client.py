"""The gateway client: samples in, durable at the server, exactly once."""

import asyncio
import inspect
import logging
import re
import reprlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from buf.validate import validate_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_client.buffer import SampleBuffer
from twinmesh_client.errors import (
    Disconnected,
    Gap,
    GatewayClosed,
    GatewayError,
    SpoolFull,
    TakenOver,
    TokenFunctionInvalid,
    from_rpc_error,
)
from twinmesh_client.outbox import Outbox
from twinmesh_client.recurring import Recurring
from twinmesh_client.stats import Counters, Observed, Stats, observe
from twinmesh_client.stream import Stream
from twinmesh_client.values import RULES, Kind, encoded_strings, times_column, to_micros, values_column
from twinmesh_client.waiting import Changes

_log = logging.getLogger("twinmesh_client")
_KIB = 1024
_LEAST_BATCH_BYTES = 64 * _KIB
_LARGEST_BATCH_BYTES = 1024 * _KIB  # What every server takes.
_SERIES = 100_000
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_TOKEN = re.compile(r"[!-~]+")
_NO_ROOM_RETRY_S = 1.0  # Others may free the disk without telling us.
_LISTED = 10  # Refusals in a warning.
_STEADY_S = 10.0  # A stream that lived for so long makes the next failure the first one.
_BACK_OFF = wait_random_exponential(multiplier=0.5, min=0.1, max=30.0)
_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # While a ping of grpc's own is under way, which measures the line, no other one is sent, and that one
    # would be waited for 60 s.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Each attempt is a connection of its own; the waiting between them is done here.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * _KIB * _KIB),
]

Token = str | Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Samples that the server refused for good.

    Attributes:
        device_id: of their series.
        metric: of their series.
        reason: the contract's ErrorReason without its prefix, such as "DEVICE_UNKNOWN".
        message: the reason to read.
        first_sample: place of the first one in its batch.
        samples: how many, one after the other.
    """

    device_id: str
    metric: str
    reason: str
    message: str
    first_sample: int
    samples: int


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """A batch of which the server refused something for good.

    Attributes:
        sequence: the batch's number.
        reason: why the whole batch was refused, empty when it was not.
        message: that reason to read.
        stored_samples: how many were stored.
        refused_samples: how many were not.
        refusals: why, the first 100.
    """

    sequence: int
    reason: str
    message: str
    stored_samples: int
    refused_samples: int
    refusals: tuple[Refusal, ...]


class Series:
    """One metric of one device; made by `GatewayClient.series`."""

    __slots__ = ("_client", "alias", "definition", "kind")

    def __init__(self, client: "GatewayClient", definition: ingest_pb2.SeriesDef) -> None:
        self._client = client
        self.definition = definition
        self.alias = definition.alias
        self.kind = Kind(definition.kind)

    async def add(self, value: Any, time: datetime | int | None = None) -> None:
        """Add one sample; waits while the spool is full.

        Args:
            value: of the series' kind: float, int, bool, str, or (latitude, longitude[, altitude]).
            time: event time, a datetime with a time zone or microseconds since the epoch; now unless stated.

        Raises:
            TypeError, ValueError, OverflowError: the value or the time is none.
            GatewayError: the client stopped.
        """
        await self._client._add(self, time, value)  # noqa: SLF001

    async def add_many(self, times: ArrayLike, values: ArrayLike | Iterable[str]) -> None:
        """Add many samples; waits while the spool is full. When cancelled, a first part may have been added.

        Args:
            times: event times of shape (n,): integers, microseconds since the epoch, or datetime64.
            values: of the series' kind and shape (n,); points (n, 2) or (n, 3).

        Raises:
            TypeError, ValueError: the values or the times are none, or their lengths differ; nothing
                was added.
            GatewayError: the client stopped.
        """
        await self._client._add_many(self, times, values)  # noqa: SLF001


class GatewayClient:
    """Sends telemetry over the gateway stream, by way of a spool on disk.

    Use it as an asynchronous context manager. Leaving it writes what is in memory to the spool
    and, when the body did not fail, waits for the server a while; what is not acknowledged then
    goes on at the next start.

    Args:
        target: host:port of the mesh's gateway, or [address]:port with IPv6.
        token: access token or API key with telemetry:write, or an async function that is asked for
            one at each connect. Whitespace around it is taken off.
        name: of this gateway, up to 100 of letters, digits and `_.:-`.
        spool: folder for what is not durable at the server yet, of this client alone.
        credentials: for TLS, such as `grpc.ssl_channel_credentials()`; without them the connection
            is plain text.
        max_batch_bytes: a batch is sealed at this size, 64 KiB to 1 MiB.
        max_age: or this long after its first sample, in seconds.
        max_spool_bytes: most bytes of batches on the disk, at least four batches.
        when_full: "block" lets add wait, "drop_oldest" gives up the oldest batches and counts their
            samples. A full disk is treated in the same way.
        drain_timeout: how long leaving waits for the server, in seconds.
        on_refused: called with each batch of which samples were refused; at least once, also after a
            crash. They are counted and logged besides.

    Raises:
        ValueError: an option that cannot be.
        SpoolError: when it is entered, the spool cannot be used.
        GatewayError: when it is left, what stopped it, unless the body raised.
    """

    def __init__(
        self,
        target: str,
        *,
        token: Token,
        name: str,
        spool: str | Path,
        credentials: grpc.ChannelCredentials | None = None,
        max_batch_bytes: int = 512 * _KIB,
        max_age: float = 1.0,
        max_spool_bytes: int = 1024 * _KIB * _KIB,
        when_full: Literal["block", "drop_oldest"] = "block",
        drain_timeout: float = 5.0,
        on_refused: Callable[[RefusedBatch], None] | None = None,
    ) -> None:
        if not (found := _TARGET.fullmatch(target)) or not 0 < int(found[1]) < 1 << 16:
            raise ValueError(f"target {target!r} is not host:port, such as mesh.example:443")
        if isinstance(token, str):
            token = _checked_token(token)
        elif not callable(token):
            # As every option that cannot be.
            raise ValueError(f"token is a str or an async function, not {type(token).__name__}")  # noqa: TRY004
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name!r} is not 1 to 100 of letters, digits and _.:-")
        if not _LEAST_BATCH_BYTES <= max_batch_bytes <= _LARGEST_BATCH_BYTES:
            raise ValueError(f"max_batch_bytes is {_LEAST_BATCH_BYTES:,} to {_LARGEST_BATCH_BYTES:,}")
        if max_spool_bytes < 4 * max_batch_bytes:
            raise ValueError("max_spool_bytes is at least four times max_batch_bytes")
        if when_full not in {"block", "drop_oldest"}:
            raise ValueError('when_full is "block" or "drop_oldest"')
        self._target = target
        self._token = token
        self._credentials = credentials
        self._max_age_s = max_age
        self._drops = when_full == "drop_oldest"
        self._drain_s = drain_timeout
        self._session_id = secrets.token_hex(16)
        self._has_opened = False
        self._met_gap = False
        self._on_refused = on_refused
        self._changes = Changes()
        self._spool = Path(spool)
        self._outbox = Outbox(self._spool, name=name, max_bytes=max_spool_bytes, changes=self._changes)
        self._buffer = SampleBuffer(max_bytes=max_batch_bytes)
        self._definitions: list[ingest_pb2.SeriesDef] = []
        self._series: dict[tuple[str, str, int, str], Series] = {}
        self._counters = Counters()
        self._observed = Observed(name, self.stats)
        self._added = self._taken = self._spooled = 0
        self._wanted_in_spool = 0
        self._failure: BaseException | None = None
        self._is_open = False
        self._is_closing = False
        self._is_hurried = False
        self._refusals = Recurring(self._warn_of_refusals)
        self._drops_told = Recurring(self._warn_of_drops)
        self._waits_told = Recurring(self._warn_of_waits)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the spool and begin to connect; the server may be away."""
        await self._resources.enter_async_context(self._outbox)
        for definition in self._outbox.definitions:
            self._remember(definition)
        self._sealing = self._start(self._seal_batches(), name="twinmesh-seal")
        self._background = [
            self._start(self._stay_connected(), name="twinmesh-connect"),
            self._start(self._outbox.keep_trimmed(), name="twinmesh-trim"),
        ]
        self._is_open = True
        observe(self._observed)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Spool what is in memory, wait for the server a while, and let go."""
        self._is_open, self._is_closing = False, True
        self._changes.notify()
        closing = asyncio.create_task(self._close(drain=exc_type is None), name="twinmesh-close")
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            self._is_hurried = True
            self._changes.notify()
            await closing
            raise
        if self._failure is not None and exc is None:
            raise self._failure

    def series(self, device_id: str, metric: str, *, kind: Kind = Kind.DOUBLE, unit: str = "") -> Series:
        """Return the series of a device's metric; the same one when asked again.

        Args:
            device_id: the device.
            metric: the metric.
            kind: of its values, which is the metric's own.
            unit: as the device sends it; empty for the metric's own.

        Raises:
            ValueError: an id or a name that the contract does not allow, or more than 100,000 series
                in the life of the spool.
            GatewayError: the client is not open.
        """
        self._check()
        known = self._series.get((device_id, metric, kind, unit))
        if known is not None:
            return known
        definition = ingest_pb2.SeriesDef(
            alias=len(self._definitions), device_id=device_id, metric=metric, kind=kind.value, unit=unit
        )
        _check_definition(definition)
        return self._remember(definition)

    async def persist(self) -> None:
        """Return when all that was added before is on this machine's disk.

        From then on it reaches the server, whatever happens to this process.

        Raises:
            GatewayError: the client stopped.
        """
        self._check()
        goal = self._wanted_in_spool = self._added
        self._changes.notify()
        await self._until(lambda: self._spooled >= goal)

    async def flush(self) -> None:
        """Return when all that was added before is durable at the server, or refused or dropped for good.

        Raises:
            GatewayError: the client stopped.
        """
        await self.persist()
        goal = self._outbox.last_sequence
        await self._until(lambda: self._outbox.trimmed_through >= goal)

    def stats(self) -> Stats:
        """Return what was done so far and what waits."""
        return self._counters.snapshot(
            buffered_samples=self._added - self._spooled,
            backlog=self._outbox.backlog,
            durable_samples=self._outbox.durable_samples,
            stopped="" if self._failure is None else f"{type(self._failure).__name__}: {self._failure}",
        )

    async def _add(self, series: Series, time: datetime | int | None, value: Any) -> None:
        await self._room_in_memory()
        try:
            time_us = _now_us() if time is None else to_micros(time)
        except (TypeError, ValueError) as error:
            raise _of_series(series, error, str(error)) from None
        try:
            self._buffer.add(series.alias, series.kind, time_us, value)
        except (TypeError, ValueError, OverflowError) as error:
            told = f"{reprlib.repr(value)} is not {RULES[series.kind]}"
            raise _of_series(series, error, told) from None
        self._count_added(1)

    async def _add_many(self, series: Series, times: ArrayLike, values: Any) -> None:
        try:
            times_us, column = _columns(series.kind, times, values)
        except (TypeError, ValueError, OverflowError) as error:
            raise _of_series(series, error, str(error)) from None
        while len(times_us):
            await self._room_in_memory()
            taken = self._buffer.extend(series.alias, series.kind, times_us, column)
            times_us, column = times_us[taken:], column[taken:]
            self._count_added(taken)

    async def _room_in_memory(self) -> None:
        self._check()
        if self._buffer.is_full:
            await self._until(lambda: not self._buffer.is_full)

    def _count_added(self, samples: int) -> None:
        self._added += samples
        if self._buffer.samples == samples or self._buffer.is_full:
            self._changes.notify()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_open:
            raise GatewayClosed("the client is not open; use it inside of `async with`")

    async def _until(self, condition: Callable[[], bool]) -> None:
        await self._changes.until(lambda: self._failure is not None or not self._is_open or condition())
        self._check()

    def _remember(self, definition: ingest_pb2.SeriesDef) -> Series:
        series = Series(self, definition)
        self._definitions.append(definition)
        self._series[definition.device_id, definition.metric, definition.kind, definition.unit] = series
        return series

    def _start(self, work: Any, *, name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            _log.error("%s: the client stopped: %s", self._observed.name, self._failure)
        self._changes.notify()

    async def _seal_batches(self) -> None:
        """Move samples from memory to the spool, batch by batch, until the client is left."""
        while True:
            await self._changes.until(lambda: self._buffer.samples > 0 or self._is_closing)
            if not self._buffer.samples:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._max_age_s):
                    await self._changes.until(
                        lambda: (
                            self._buffer.is_full or self._is_closing or self._wanted_in_spool > self._taken
                        )
                    )
            await self._seal()

    async def _seal(self) -> None:
        samples = self._buffer.samples
        columns = self._buffer.take()
        self._taken += samples
        self._changes.notify()
        while True:
            try:
                await self._outbox.put(columns, self._definitions, beyond_limit=self._is_closing)
            except SpoolFull as error:
                if await self._dropped_oldest(error):
                    continue
                if self._is_closing:
                    raise SpoolFull(f"{error}; {samples:,} samples in memory are lost") from None
                await self._room(error)
            else:
                break
        self._spooled += samples
        self._changes.notify()

    async def _dropped_oldest(self, error: SpoolFull) -> bool:
        dropped = await self._outbox.drop_oldest() if self._drops else 0
        if dropped:
            self._counters.dropped_samples += dropped
            self._drops_told.note(str(error), dropped)
        return dropped > 0

    async def _room(self, error: SpoolFull) -> None:
        """Wait until there may be room again."""
        self._waits_told.note(str(error))
        before = self._outbox.backlog
        with suppress(TimeoutError):
            async with asyncio.timeout(_NO_ROOM_RETRY_S):
                await self._changes.until(lambda: self._is_closing or self._outbox.backlog != before)

    async def _close(self, *, drain: bool) -> None:
        try:
            async with self._resources:
                await asyncio.wait([self._sealing])
                if drain:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._drained(), self._drain_s)
                for task in self._background:
                    task.cancel()
                await asyncio.gather(*self._background, return_exceptions=True)
        except GatewayError as error:
            self._failure = self._failure or error
        for told in (self._refusals, self._drops_told, self._waits_told):
            told.close()
        backlog = self._outbox.backlog
        if backlog.batches:
            _log.warning(
                "%s: left with %d batches, %d bytes, in %s; they go on at the next start",
                self._observed.name, backlog.batches, backlog.size, self._spool,
            )  # fmt: skip

    async def _drained(self) -> None:
        connection = self._background[0]
        await self._changes.until(
            lambda: (
                connection.done()
                or self._is_hurried
                or (self._outbox.is_acknowledged and not self._counters.connected)
            )
        )

    def _is_leaving(self) -> bool:
        return self._is_closing and self._sealing.done()

    async def _stay_connected(self) -> None:
        """Stream, again and again, until the client is left and all is durable."""
        while not (self._is_leaving() and self._outbox.is_acknowledged):
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Disconnected), wait=_waiting_s, before_sleep=self._log_wait
            ):
                with attempt:
                    await self._stream_once()

    async def _stream_once(self) -> None:
        token = await self._ask_token()
        started = time.monotonic()
        async with _channel(self._target, self._credentials) as channel:
            failure, may_follow = await self._stream_over(channel, token)
        was_steady = may_follow or time.monotonic() - started > _STEADY_S
        if failure is None and not was_steady and not self._is_leaving():
            failure = Disconnected("the server ended the stream at once")
        if isinstance(failure, Disconnected):
            failure.was_steady = was_steady
        if failure is not None:
            raise failure

    async def _stream_over(self, channel: grpc.aio.Channel, token: str) -> tuple[Exception | None, bool]:
        """Return why a stream failed, and whether the next one may follow at once.

        It may when something became durable over this one, or the client itself ended it to open anew.
        """
        call = ingest_grpc.IngestServiceStub(channel).StreamTelemetry(
            metadata=(("authorization", f"Bearer {token}"),)
        )
        stream = Stream(
            call,
            session_id=self._session_id,
            resume=self._has_opened,
            outbox=self._outbox,
            definitions=self._definitions,
            changes=self._changes,
            on_opened=self._count_opened,
            on_result=self._take_result,
            on_throttle=self._count_throttle,
            leaving=self._is_leaving,
        )
        failure: Exception | None = None
        resumes = self._has_opened
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(
                error,
                renews_token=not isinstance(self._token, str),
                is_resuming=resumes and not stream.is_open,
                met_gap=self._met_gap and not stream.progressed,
            )
            # What was taken over had been opened, though Opened may have been lost.
            self._has_opened |= isinstance(failure, TakenOver)
        except Disconnected as error:
            # Its frames would hold the call, and so the connection, while the next one is waited for.
            failure = error.with_traceback(None)
        finally:
            self._met_gap = isinstance(failure, Gap) or (self._met_gap and not stream.progressed)
            self._counters.connected = False
            call.cancel()
        if stream.is_sent_away:
            _log.info("%s: the server asked to move to another stream", self._observed.name)
        return failure, stream.progressed or stream.reopens

    async def _ask_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        try:
            asked: Any = self._token()
            token = await asked if (is_async := inspect.isawaitable(asked)) else asked
            if is_async and isinstance(token, str):
                return _checked_token(token)
        except Exception as error:
            raise Disconnected(f"no token: {error!r}") from error
        raise TokenFunctionInvalid(
            f"the token function {'returns no str' if is_async else 'is not async'}: it gave "
            f"{type(token).__name__}; write `async def token() -> str`"
        )

    def _count_opened(self) -> None:
        self._has_opened = True
        self._counters.connected = True
        self._counters.streams += 1
        _log.info("%s: connected to %s", self._observed.name, self._target)
        self._changes.notify()

    def _count_throttle(self, throttle: ingest_pb2.Throttle) -> None:
        self._counters.throttles += 1
        _log.info("%s: throttled: %s", self._observed.name, throttle.message or _reason(throttle.reason))

    def _take_result(self, result: ingest_pb2.BatchResult) -> None:
        self._counters.refused_samples += result.refused_samples
        refused = RefusedBatch(
            sequence=result.sequence,
            reason=_reason(result.reason),
            message=result.message,
            stored_samples=result.stored_samples,
            refused_samples=result.refused_samples,
            refusals=tuple(
                Refusal(
                    device_id=refusal.device_id,
                    metric=refusal.metric,
                    reason=_reason(refusal.reason),
                    message=refusal.message,
                    first_sample=refusal.reading_index,
                    samples=refusal.sample_count,
                )
                for refusal in result.refusals
            ),
        )
        if refused.reason:
            self._refusals.note(f"a batch: {refused.reason}, {refused.message}", refused.refused_samples)
        for refusal in refused.refusals:
            self._refusals.note(
                f"{refusal.device_id}/{refusal.metric}: {refusal.reason}, {refusal.message}", refusal.samples
            )
        if self._on_refused is not None:
            try:
                self._on_refused(refused)
            except Exception:
                _log.exception("%s: on_refused failed", self._observed.name)

    def _warn_of_refusals(self, samples: Counter[str]) -> None:
        told = "; ".join(f"{what} ({count} samples)" for what, count in samples.most_common(_LISTED))
        more = f"; and {len(samples) - _LISTED} more" if len(samples) > _LISTED else ""
        _log.warning("%s: samples were refused: %s%s", self._observed.name, told, more)

    def _warn_of_drops(self, samples: Counter[str]) -> None:
        _log.warning(
            "%s: %s; dropped the oldest %d samples", self._observed.name, next(iter(samples)), samples.total()
        )

    def _warn_of_waits(self, times: Counter[str]) -> None:
        _log.warning("%s: %s; waiting until the server took some", self._observed.name, next(iter(times)))

    def _log_wait(self, state: RetryCallState) -> None:
        _log.warning(
            "%s: %s; trying again in %.1f s",
            self._observed.name, state.outcome and state.outcome.exception(), state.upcoming_sleep,
        )  # fmt: skip


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)


def _waiting_s(state: RetryCallState) -> float:
    """Return how long to wait after a failure: more each time, at random, after what the server asked."""
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, Disconnected):
        return 0.0
    if error.was_steady:
        state.attempt_number = 1
    return error.retry_after_s + _BACK_OFF(state)


def _columns(kind: Kind, times: ArrayLike, values: Any) -> tuple[NDArray[np.int64], Any]:
    times_us = times_column(times)
    column = encoded_strings(values) if kind is Kind.STRING else values_column(kind, values)
    if len(times_us) != len(column):
        raise ValueError(f"{len(times_us):,} times and {len(column):,} values")
    return times_us, column


def _of_series(series: Series, error: Exception, told: str) -> Exception:
    """Return an error of a value or a time that names the series."""
    kind = next(kind for kind in (TypeError, OverflowError, ValueError) if isinstance(error, kind))
    return kind(f"{series.definition.device_id}/{series.definition.metric}: {told}")


def _checked_token(token: str) -> str:
    """Return a token as it is sent; files of keys end in a newline."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError("token is empty, or has whitespace or characters beyond ASCII in it")
    return token


def _check_definition(definition: ingest_pb2.SeriesDef) -> None:
    """Raise ValueError for what the contract's own rules refuse, before it lies in a spool for ever."""
    if definition.alias >= _SERIES:
        raise ValueError(f"a spool holds at most {_SERIES:,} series in its life; begin with an empty one")
    for name in ("device_id", "metric"):
        value = getattr(definition, name)
        field = definition.DESCRIPTOR.fields_by_name[name]
        pattern = field.GetOptions().Extensions[validate_pb2.field].string.pattern
        if not re.search(pattern, value) or value.endswith("\n"):
            raise ValueError(f"{name} {value!r} does not match {pattern}")
    if len(definition.unit) > 32:
        raise ValueError(f"unit {definition.unit!r} has more than 32 characters")


def _reason(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_") if reason else ""


def _now_us() -> int:
    return time.time_ns() // 1000
