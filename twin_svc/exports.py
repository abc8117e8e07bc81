"""The rules of exports: how many at once, how long, in pieces of which size."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager

from meshkit.db import DATABASE_ERRORS, Connection
from meshkit.errors import DomainError, FailedPrecondition, ResourceExhausted
from telemetry_store.history import HistoryQuestion, SeriesHistory, find_series, read_history
from telemetry_store.series import Position
from telemetry_store.tiers.reader import Archive
from twin_svc.export_formats import ExportFormat, export_writer
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Each holds a connection and about 50 MB.
MOST_EXPORTS = 4
# A snapshot that is held keeps PostgreSQL from removing what was replaced or sealed since.
LONGEST_S = 15 * 60
_SAMPLES_AT_ONCE = 65_536
_PIECE_BYTES = 512 * 1024
_RETRY_AFTER_S = 10.0
_INCOMPLETE = "the export ended before its end; start it again"


class Exports:
    """Runs exports, few at once.

    A tenant gets another one while more are free than it has: alone 2 of 4, and there is one left for others.

    Args:
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant, of connections that
            are for exports only, MOST_EXPORTS of them.
        archive: the tier below; None: nothing was ever archived.
        longest_s: how long one may take, in seconds.
    """

    def __init__(
        self,
        *,
        tenant_snapshot: Callable[[str], AbstractAsyncContextManager[Connection]],
        archive: Archive | None,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._tenant_snapshot = tenant_snapshot
        self._archive = archive
        self._longest_s = longest_s
        self._running: Counter[str] = Counter()

    async def export(
        self,
        tenant: str,
        *,
        device_ids: Sequence[str],
        metrics: Sequence[str],
        question: HistoryQuestion,
        export_format: ExportFormat,
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file in pieces of _PIECE_BYTES at the most.

        Args:
            tenant: whose.
            device_ids: which devices.
            metrics: which of their metrics; empty: all.
            question: which samples; with quality.
            export_format: of the file.

        Raises:
            ResourceExhausted: EXPORTS_BUSY, before anything was yielded.
            FailedPrecondition: EXPORT_EXPIRED.
            Unavailable: ARCHIVE_UNAVAILABLE.
        """
        writer = export_writer(export_format)
        has_begun = False
        with self._admitted(tenant):
            reading = self._read(tenant, device_ids, metrics, question)
            try:
                async with aclosing(reading):
                    async for histories in reading:
                        for piece in _pieces(await asyncio.to_thread(writer.write, histories)):
                            has_begun = True
                            yield piece
                for piece in _pieces(await asyncio.to_thread(writer.end)):
                    yield piece
            except Exception as error:
                mark = writer.failed(*_told(error)) if has_begun else b""
                if mark:
                    yield mark
                raise

    async def _read(
        self, tenant: str, device_ids: Sequence[str], metrics: Sequence[str], question: HistoryQuestion
    ) -> AsyncGenerator[Sequence[SeriesHistory], None]:
        """Yield the samples of one snapshot, some at a time."""
        expires = time.monotonic() + self._longest_s
        try:
            async with self._tenant_snapshot(tenant) as connection:
                # The server ends it also while a caller does not read and nothing happens here.
                await connection.execute(
                    "SELECT set_config('transaction_timeout', $1, true)", str(int(self._longest_s * 1000))
                )
                series = await find_series(connection, tenant=tenant, device_ids=device_ids, metrics=metrics)
                position: Position | None = None
                while True:
                    page = await read_history(
                        connection,
                        series,
                        question,
                        position=position,
                        limit=_SAMPLES_AT_ONCE,
                        archive=self._archive,
                    )
                    yield page.histories
                    if page.position is None:
                        return
                    position = page.position
                    if time.monotonic() > expires:
                        raise self._expired()
        except DATABASE_ERRORS as error:
            if time.monotonic() > expires:
                raise self._expired() from error
            raise

    def _expired(self) -> FailedPrecondition:
        return FailedPrecondition(
            f"the export took longer than {self._longest_s:g} s; export shorter ranges or fewer devices",
            reason=ErrorReason.ERROR_REASON_EXPORT_EXPIRED,
            metadata={"limit_seconds": f"{self._longest_s:g}"},
        )

    @contextmanager
    def _admitted(self, tenant: str) -> Iterator[None]:
        free, own = MOST_EXPORTS - self._running.total(), self._running[tenant]
        if not free:
            raise _busy(
                f"all {MOST_EXPORTS} exports of this process are running; retry when one has ended",
                limit_name="exports",
                used=MOST_EXPORTS,
            )
        if free <= own:
            raise _busy(
                f"your tenant has {own} of the {MOST_EXPORTS} exports of this process, and what is free is"
                " kept for other tenants; retry when one of yours has ended, or ask for more devices in one",
                limit_name="exports_of_tenant",
                used=own,
            )
        self._running[tenant] += 1
        try:
            yield
        finally:
            self._running[tenant] -= 1
            # What has none is not remembered.
            self._running += Counter()


def _busy(message: str, *, limit_name: str, used: int) -> ResourceExhausted:
    return ResourceExhausted(
        message,
        reason=ErrorReason.ERROR_REASON_EXPORTS_BUSY,
        metadata={"limit_name": limit_name, "limit": str(used), "used": str(used)},
        retry_after_s=_RETRY_AFTER_S,
    )


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def _told(error: Exception) -> tuple[str, str]:
    """Return an error's reason and message as a caller may read them."""
    if isinstance(error, DomainError):
        return ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_"), error.message
    return "INTERRUPTED", _INCOMPLETE
