"""The rules of exports of history: how long, of one snapshot."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from meshkit.db import DATABASE_ERRORS, Connection
from meshkit.errors import FailedPrecondition
from meshkit.exports import ExportSlots
from telemetry_store.history import HistoryQuestion, SeriesHistory, find_series, read_history
from telemetry_store.series import Position
from telemetry_store.tiers.reader import Archive
from twin_svc.export_formats import ExportFormat, export_writer
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# A snapshot that is held keeps PostgreSQL from removing what was replaced or sealed since.
LONGEST_S = 15 * 60
_SAMPLES_AT_ONCE = 65_536


class Exports:
    """Runs exports, few at once.

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
        # Each holds a connection and about 50 MB.
        self._slots = ExportSlots()

    def export(
        self,
        tenant: str,
        *,
        device_ids: Sequence[str],
        metrics: Sequence[str],
        question: HistoryQuestion,
        export_format: ExportFormat,
    ) -> AsyncGenerator[bytes, None]:
        """Return a file in pieces.

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
        reading = self._read(tenant, device_ids, metrics, question)
        return self._slots.file(tenant, reading, export_writer(export_format))

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
