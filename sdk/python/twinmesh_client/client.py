"""The gateway client: samples in, durable at the server, exactly once."""

import asyncio
import logging
import re
import reprlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinmesh_client.buffer import SampleBuffer
from twinmesh_client.connection import Connection
from twinmesh_client.errors import GatewayClosed, GatewayError, SpoolFull
from twinmesh_client.outbox import Outbox
from twinmesh_client.recurring import Recurring
from twinmesh_client.refusals import Refusals, RefusedBatch
from twinmesh_client.series import Series, SeriesTable
from twinmesh_client.stats import Counters, Observed, Stats, observe
from twinmesh_client.tokens import Token, TokenSource
from twinmesh_client.values import RULES, Kind, encoded_strings, times_column, to_micros, values_column
from twinmesh_client.waiting import Changes

_log = logging.getLogger("twinmesh_client")
_KIB = 1024
_LEAST_BATCH_BYTES = 64 * _KIB
_LARGEST_BATCH_BYTES = 1024 * _KIB  # What every server takes.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_NO_ROOM_RETRY_S = 1.0  # Others may free the disk without telling us.


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
        server_name: with TLS, the name that the server's certificate bears when it is not the target's host.
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
        server_name: str = "",
        max_batch_bytes: int = 512 * _KIB,
        max_age: float = 1.0,
        max_spool_bytes: int = 1024 * _KIB * _KIB,
        when_full: Literal["block", "drop_oldest"] = "block",
        drain_timeout: float = 5.0,
        on_refused: Callable[[RefusedBatch], None] | None = None,
    ) -> None:
        if not (found := _TARGET.fullmatch(target)) or not 0 < int(found[1]) < 1 << 16:
            raise ValueError(f"target {target!r} is not host:port, such as mesh.example:443")
        tokens = TokenSource(token)
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name!r} is not 1 to 100 of letters, digits and _.:-")
        if not _LEAST_BATCH_BYTES <= max_batch_bytes <= _LARGEST_BATCH_BYTES:
            raise ValueError(f"max_batch_bytes is {_LEAST_BATCH_BYTES:,} to {_LARGEST_BATCH_BYTES:,}")
        if max_spool_bytes < 4 * max_batch_bytes:
            raise ValueError("max_spool_bytes is at least four times max_batch_bytes")
        if when_full not in {"block", "drop_oldest"}:
            raise ValueError('when_full is "block" or "drop_oldest"')
        self._max_age_s = max_age
        self._drops = when_full == "drop_oldest"
        self._drain_s = drain_timeout
        self._changes = Changes()
        self._spool = Path(spool)
        self._outbox = Outbox(self._spool, name=name, max_bytes=max_spool_bytes, changes=self._changes)
        self._buffer = SampleBuffer(max_bytes=max_batch_bytes)
        self._series_table = SeriesTable(add_one=self._add, add_many=self._add_many)
        self._counters = Counters()
        self._observed = Observed(name, self.stats)
        self._added = self._taken = self._spooled = 0
        self._wanted_in_spool = 0
        self._failure: BaseException | None = None
        self._is_open = False
        self._is_closing = False
        self._is_hurried = False
        self._refusals = Refusals(name=name, counters=self._counters, on_refused=on_refused)
        self._drops_told = Recurring(self._warn_of_drops)
        self._waits_told = Recurring(self._warn_of_waits)
        self._connection = Connection(
            name=name,
            target=target,
            credentials=credentials,
            server_name=server_name,
            tokens=tokens,
            outbox=self._outbox,
            definitions=self._series_table.definitions,
            changes=self._changes,
            counters=self._counters,
            on_result=self._refusals.take,
            leaving=self._is_leaving,
        )
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the spool and begin to connect; the server may be away."""
        await self._resources.enter_async_context(self._outbox)
        for definition in self._outbox.definitions:
            self._series_table.remember(definition)
        self._sealing = self._start(self._seal_batches(), name="twinmesh-seal")
        self._background = [
            self._start(self._connection.stay_connected(), name="twinmesh-connect"),
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
        return self._series_table.series(device_id, metric, kind, unit)

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
                await self._outbox.put(columns, self._series_table.definitions, beyond_limit=self._is_closing)
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
        connecting = self._background[0]
        await self._changes.until(
            lambda: (
                connecting.done()
                or self._is_hurried
                or (self._outbox.is_acknowledged and not self._counters.connected)
            )
        )

    def _is_leaving(self) -> bool:
        return self._is_closing and self._sealing.done()

    def _warn_of_drops(self, samples: Counter[str]) -> None:
        _log.warning(
            "%s: %s; dropped the oldest %d samples", self._observed.name, next(iter(samples)), samples.total()
        )

    def _warn_of_waits(self, times: Counter[str]) -> None:
        _log.warning("%s: %s; waiting until the server took some", self._observed.name, next(iter(times)))


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


def _now_us() -> int:
    return time.time_ns() // 1000
