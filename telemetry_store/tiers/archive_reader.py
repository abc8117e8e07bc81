"""What is archived of spans: named by the manifest in the caller's snapshot, read from immutable objects."""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from meshkit.db import Connection
from meshkit.errors import DataLoss, FailedPrecondition, Unavailable
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.tiers.archive_block import Block, CorruptObjectError
from telemetry_store.tiers.archive_file import Footer, read_kind
from telemetry_store.tiers.archive_manifest import OBJECT_COLUMNS, ArchivedObject, read_footer_of
from telemetry_store.tiers.archive_store import ArchiveStore, StoreError
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.reader import Piece, Span
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_OBJECTS = f"""
SELECT {OBJECT_COLUMNS}
FROM telemetry.archive_object
WHERE tenant_id = ANY ($1::text[]) AND retired_at IS NULL
  AND day BETWEEN date '1970-01-01' + $2::integer AND date '1970-01-01' + $3::integer
  AND first_series <= $4 AND last_series >= $5
"""  # noqa: S608 - a constant  # nosec B608
_RETRY_AFTER_S = 5.0
_FOOTERS_KEPT_BYTES = 64 << 20  # As they are stored; they take some times as much once read.
_AT_ONCE = 8
_log = structlog.get_logger()


class Footers:
    """Footers that were read before: objects never change.

    Args:
        store: where the objects are.
    """

    def __init__(self, store: ArchiveStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[Footer, int]] = OrderedDict()
        self._bytes = 0

    async def of(self, found: ArchivedObject) -> Footer:
        """Return an object's footer.

        Raises:
            StoreError: the store does not answer.
            CorruptObjectError: it is not the one that was verified.
        """
        kept = self._kept.get(found.path)
        if kept is not None:
            self._kept.move_to_end(found.path)
            return kept[0]
        footer = await read_footer_of(self._store, found)
        if found.path not in self._kept:
            self._kept[found.path] = footer, found.footer_bytes
            self._bytes += found.footer_bytes
        while self._bytes > _FOOTERS_KEPT_BYTES and len(self._kept) > 1:
            _, (_, size) = self._kept.popitem(last=False)
            self._bytes -= size
        return footer


class ArchiveReader:
    """Implements tiers.reader.Archive.

    Args:
        store: where the objects are; None: this process is not told, and says so when one is needed.
    """

    def __init__(self, store: ArchiveStore | None) -> None:
        self._store = store
        self._footers = None if store is None else Footers(store)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def holds(self, connection: Connection, spans: Sequence[Span]) -> bool:
        """Return whether samples of spans may be archived; the object store is not asked.

        Args:
            connection: in the snapshot of the whole answer.
            spans: which, at least one.
        """
        return bool(await _objects(connection, spans))

    async def read(self, connection: Connection, kind: Kind, spans: Sequence[Span]) -> Sequence[Piece]:
        """Return what is archived of spans.

        Args:
            connection: in the snapshot of the whole answer, in which the manifest is read.
            kind: of all series.
            spans: which.

        Raises:
            Unavailable: ARCHIVE_UNAVAILABLE, the object store does not answer.
            DataLoss: ARCHIVE_DAMAGED, an object is missing or not as it was verified.
            FailedPrecondition: ARCHIVE_NOT_CONFIGURED, samples are archived, and nobody said where.
        """
        wanted = await _objects(connection, spans)
        if not wanted:
            return []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._pieces(found, kind, spans, places)) for found, places in wanted
                ]
        except ExceptionGroup as failed:  # The others are cancelled: nothing is answered in part.
            raise failed.exceptions[0] from None
        return [piece for task in tasks for piece in task.result()]

    async def _pieces(
        self, found: ArchivedObject, kind: Kind, spans: Sequence[Span], places: Sequence[int]
    ) -> list[Piece]:
        if self._store is None or self._footers is None:
            raise FailedPrecondition(
                "samples of this range are archived, and TWINMESH_ARCHIVE_URL does not say where",
                reason=ErrorReason.ERROR_REASON_ARCHIVE_NOT_CONFIGURED,
                metadata={"day": found.day.isoformat()},
            )
        store = self._store
        async with self._turns:
            try:
                footer = await self._footers.of(found)
                groups = _groups(footer, [spans[place] for place in places])
                if not groups:
                    return []
                return await store.run(
                    lambda: list(
                        _cut(
                            read_kind(store.reader(found.path, found.bytes), footer, groups, kind),
                            kind,
                            spans,
                            places,
                        )
                    )
                )
            except StoreError as error:
                _log.warning("archive does not answer", path=found.path, error=str(error))
                raise unavailable() from error
            except CorruptObjectError as error:
                _log.error("archived object is damaged", path=found.path, error=str(error))
                raise DataLoss(
                    f"an archived object of {found.day} is missing or damaged; the log names it",
                    reason=ErrorReason.ERROR_REASON_ARCHIVE_DAMAGED,
                    metadata={"day": found.day.isoformat()},
                ) from error


def unavailable() -> Unavailable:
    """Return the error for an object store that does not answer."""
    return Unavailable(
        "the archive's object store does not answer; retry",
        reason=ErrorReason.ERROR_REASON_ARCHIVE_UNAVAILABLE,
        retry_after_s=_RETRY_AFTER_S,
    )


async def _objects(connection: Connection, spans: Sequence[Span]) -> list[tuple[ArchivedObject, list[int]]]:
    """Return the objects that may hold samples of spans, each with the places of those spans."""
    rows = await connection.fetch(
        _OBJECTS,
        list({span.tenant for span in spans}),
        min(span.start_us for span in spans) // MICROS_PER_DAY,
        max(span.end_us - 1 for span in spans) // MICROS_PER_DAY,
        max(span.series_id for span in spans),
        min(span.series_id for span in spans),
    )
    tenants = np.array([span.tenant for span in spans], np.object_)
    series = np.array([span.series_id for span in spans], np.int64)
    starts = np.array([span.start_us for span in spans], np.int64)
    ends = np.array([span.end_us for span in spans], np.int64)
    found = []
    for each in map(ArchivedObject.of, rows):
        held = (
            (tenants == each.tenant)
            & (series >= each.first_series)
            & (series <= each.last_series)
            & (starts <= each.last_time_us)
            & (ends > each.first_time_us)
        )
        if held.any():
            found.append((each, np.flatnonzero(held).tolist()))
    return found


def _groups(footer: Footer, spans: Sequence[Span]) -> list[int]:
    """Return which row groups may hold samples of spans."""
    held: npt.NDArray[np.bool_] = np.zeros(len(footer.rows), np.bool_)
    for span in spans:
        held |= (
            (footer.first_series <= span.series_id)
            & (footer.last_series >= span.series_id)
            & (footer.first_times < span.end_us)
            & (footer.last_times >= span.start_us)
        )
    return [int(place) for place in np.flatnonzero(held)]


def _cut(block: Block, kind: Kind, spans: Sequence[Span], places: Sequence[int]) -> Iterator[Piece]:
    """Yield each span's samples, a piece for each order."""
    if not len(block):
        return
    values = block.values[kind]
    of_series: dict[int, list[int]] = defaultdict(list)
    for place in places:
        of_series[spans[place].series_id].append(place)
    for series_id, sharing in of_series.items():
        # Of the same type: another one would have all ids converted, each time.
        first = int(np.searchsorted(block.series, np.int32(series_id)))
        end = int(np.searchsorted(block.series, np.int32(series_id), "right"))
        for place in sharing:
            span = spans[place]
            start, stop = first + np.searchsorted(block.times[first:end], [span.start_us, span.end_us])
            rows: Any
            for order_no, rows in _by_order(block.orders, int(start), int(stop)):
                samples = Samples(block.times[rows], values[rows], block.quality[rows])
                yield Piece(place, order_no, samples)


def _by_order(orders: npt.NDArray[np.int64], start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Yield each order of places start to stop, stop not included, and where it is: mostly there is one."""
    chosen = orders[start:stop]
    if len(chosen) and bool((chosen == chosen[0]).all()):
        yield int(chosen[0]), slice(start, stop)
        return
    for order_no in np.unique(chosen).tolist():
        yield order_no, start + np.flatnonzero(chosen == order_no)
