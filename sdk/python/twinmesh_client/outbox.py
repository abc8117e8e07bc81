"""The spool as the event loop sees it: batches go in at one end and are durable at the other."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client.encoding import BatchColumns, encode
from twinmesh_client.records import Record
from twinmesh_client.spool import Backlog, Spool
from twinmesh_client.waiting import Changes

_R = TypeVar("_R")
_SAVE_RETRY_S = 1.0


class Outbox:
    """Owns the spool and the one thread that touches it.

    Args:
        folder: of the spool.
        name: of the gateway.
        max_bytes: most bytes of batches on the disk.
        changes: told about everything that happens here.

    Raises:
        SpoolError: when it is entered; see `Spool`.
    """

    def __init__(self, folder: Path, *, name: str, max_bytes: int, changes: Changes) -> None:
        self._open = lambda: Spool(folder, name=name, max_bytes=max_bytes)
        self._changes = changes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="twinmesh-spool")
        self._acknowledged = self._trimmed = 0
        self._unsaved = 0
        self._refused = 0
        self.durable_samples = 0

    async def __aenter__(self) -> Self:
        """Open the spool, checking what is in it."""
        try:
            self._spool = await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._acknowledged = self._trimmed = self._spool.durable_through
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Save what is durable, and let go of the spool."""
        try:
            await self._trim()
        finally:
            await self._in_thread(self._spool.close)
            self._thread.shutdown(wait=False)

    @property
    def writer_id(self) -> str:
        """Return the id under which batches are numbered."""
        return self._spool.writer_id

    @property
    def definitions(self) -> Sequence[ingest_pb2.SeriesDef]:
        """Return the definitions on disk, by alias."""
        return self._spool.definitions

    @property
    def backlog(self) -> Backlog:
        """Return what is not durable yet."""
        return self._spool.backlog

    @property
    def last_sequence(self) -> int:
        """Return the number of the last batch put in, 0 before the first."""
        return self._spool.next_sequence - 1

    @property
    def first_sequence(self) -> int:
        """Return the number of the oldest batch that is held and not durable, or of the next one."""
        return max(self._spool.first_sequence, self._acknowledged + 1)

    @property
    def durable_through(self) -> int:
        """Return up to which sequence batches are durable at the server."""
        return self._acknowledged

    @property
    def trimmed_through(self) -> int:
        """Return up to which sequence durable batches are off the spool and counted."""
        return self._trimmed

    @property
    def saved_through(self) -> int:
        """Return what would be known of `durable_through` after a crash."""
        return self._spool.saved_through

    async def put(
        self,
        columns: BatchColumns,
        definitions: Sequence[ingest_pb2.SeriesDef],
        *,
        beyond_limit: bool = False,
    ) -> None:
        """Number a batch and write it to the disk; durable there when this returns.

        Args:
            columns: the samples.
            definitions: of all series, by alias; those that are new are written before the batch.
            beyond_limit: may exceed the spool's size.

        Raises:
            SpoolFull: no room; the batch was not added.
            SpoolError: the disk failed.
        """

        def write() -> None:
            new = definitions[len(self._spool.definitions) :]
            if new:
                self._spool.define(new)
            payload = encode(self._spool.next_sequence, columns)
            self._spool.append(payload, samples=len(columns.times), beyond_limit=beyond_limit)

        await self._in_thread(write)
        self._changes.notify()

    async def read(self, sequence: int, *, max_bytes: int) -> list[Record]:
        """Return batches from a sequence on, or from the first later one that is held."""
        return await self._in_thread(lambda: self._spool.read(sequence, max_bytes=max_bytes))

    async def drop_oldest(self) -> int:
        """Give up the oldest batches; returns how many samples they held."""
        dropped = await self._in_thread(self._spool.drop_oldest)
        self._changes.notify()
        return dropped

    @property
    def is_acknowledged(self) -> bool:
        """Tell whether all that was put in is durable at the server."""
        return self._acknowledged >= self.last_sequence

    def allow_unsaved(self, sequences: int) -> None:
        """Say how many sequences a crash may make us forget, since the server still knows their outcomes."""
        self._unsaved = sequences
        self._changes.notify()

    def acknowledge(self, durable_through: int, *, refused_samples: int) -> None:
        """Take note of what is durable at the server; `keep_trimmed` does the work.

        Args:
            durable_through: up to this sequence.
            refused_samples: of the batches that are newly durable.
        """
        self._acknowledged = max(self._acknowledged, durable_through)
        self._refused += refused_samples
        self._changes.notify()

    async def keep_trimmed(self) -> None:
        """Trim what was acknowledged, for ever."""
        while True:
            await self._changes.until(
                lambda: self._acknowledged > self._trimmed or self._has_too_many_unsaved()
            )
            await self._trim()
            while self._has_too_many_unsaved():
                # The disk is full. The stream waits with us.
                await asyncio.sleep(_SAVE_RETRY_S)
                await self._trim()

    def _has_too_many_unsaved(self) -> bool:
        return self._trimmed - self._spool.saved_through > self._unsaved

    async def _trim(self) -> None:
        through, unsaved = self._acknowledged, self._unsaved
        refused, self._refused = self._refused, 0
        samples = await self._in_thread(lambda: self._spool.trim(through, unsaved=unsaved))
        self.durable_samples += max(0, samples - refused)
        self._trimmed = through
        self._changes.notify()

    async def _in_thread(self, work: Callable[[], _R]) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
