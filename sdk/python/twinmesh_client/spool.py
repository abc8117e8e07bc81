"""The spool: a folder that holds what the server has not acknowledged yet.

    writer.json           the writer's id, made once
    durable.json          up to which sequence batches are durable at the server
    series.log            definitions of series, by alias, one after the other
    batches-<first>.log   segments of batches, numbered without gaps
    lock                  held while a process uses the spool

All functions here wait for the disk; the client calls them in one thread of their own. What its
event loop reads meanwhile are attributes that this thread replaces as a whole, when the disk has
what they say: `Spool.backlog`, and the numbers that come from it, and `Spool.saved_through`.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from google.protobuf.message import DecodeError

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client import disk
from twinmesh_client.errors import SpoolDamaged, SpoolError, SpoolFull, SpoolInUse
from twinmesh_client.records import Record, pack
from twinmesh_client.segment import Segment

_FORMAT = 2
_LARGEST_SEGMENT_BYTES = 8 * 1024 * 1024
_SEGMENTS = 8  # The least number that a full spool consists of: it is freed by whole segments.


@dataclass(frozen=True, slots=True)
class Backlog:
    """The batches that the spool holds and the server has not acknowledged.

    Attributes:
        first: the number of the oldest, or of the next one without any.
        end: the number of the next one.
        size: their bytes.
        oldest_us: when the oldest was sealed, microseconds since the epoch; None without any.
    """

    first: int
    end: int
    size: int
    oldest_us: int | None

    @property
    def batches(self) -> int:
        """Return how many."""
        return self.end - self.first


class Spool:
    """Keeps batches on disk until they are durable elsewhere.

    Args:
        folder: made when it is not there; on a disk that keeps what was fsynced.
        name: the gateway's; the writer's id begins with it.
        max_bytes: most bytes of batches on the disk.

    Raises:
        SpoolInUse: another process has it.
        SpoolDamaged: a file is not what was written.
        SpoolError: it belongs to a gateway of another name.
    """

    def __init__(self, folder: Path, *, name: str, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(_LARGEST_SEGMENT_BYTES, max_bytes // _SEGMENTS)
        self._lock = self._locked(folder)
        self._active: int | None = None
        try:
            self.writer_id = self._writer_id(name)
            self.durable_through = self.saved_through = self._read_durable()
            self._segments = self._read_segments()
            self.definitions = self._read_definitions()
        except BaseException:
            os.close(self._lock)
            raise
        self.backlog = self._count_backlog()

    @property
    def first_sequence(self) -> int:
        """Return the first sequence after `durable_through` that is here, or the next one to be."""
        return self.backlog.first

    @property
    def next_sequence(self) -> int:
        """Return the number of the next batch."""
        return self.backlog.end

    def define(self, definitions: Sequence[ingest_pb2.SeriesDef]) -> None:
        """Add definitions, whose aliases follow on those that are there; on disk when it returns.

        Raises:
            SpoolFull: the disk is full.
            SpoolError: the disk failed.
        """
        path = self._folder / "series.log"
        packed = pack(
            Record(definitions[0].alias, ingest_pb2.SeriesDefs(defs=definitions).SerializeToString())
        )
        is_new = not path.exists()
        with disk.errors_told():
            descriptor = disk.open_to_append(path)
            try:
                disk.append(descriptor, packed)
            finally:
                os.close(descriptor)
            if is_new:
                disk.sync_folder(self._folder)
        self.definitions.extend(definitions)

    def append(self, payload: bytes, *, samples: int, beyond_limit: bool = False) -> None:
        """Add the batch numbered `next_sequence`; on disk when it returns.

        Args:
            payload: a serialized Batch.
            samples: how many it holds.
            beyond_limit: may exceed `max_bytes`, since there is no later.

        Raises:
            SpoolFull: the disk or the spool is full; nothing was added.
            SpoolError: the disk failed.
        """
        record = Record(self.next_sequence, payload, time.time_ns() // 1000, samples, len(self.definitions))
        packed = pack(record)
        used = sum(segment.size for segment in self._segments)
        if used + len(packed) > self._max_bytes and not beyond_limit:
            raise SpoolFull(f"{self._folder} holds {used:,} bytes of at most {self._max_bytes:,}")
        with disk.errors_told():
            segment = self._open_segment(record.number)
            assert self._active is not None  # noqa: S101 - the segment was just opened
            disk.append(self._active, packed)
        segment.index(segment.size + len(packed), record)
        backlog = self.backlog
        self.backlog = Backlog(
            backlog.first,
            record.number + 1,
            backlog.size + len(packed),
            record.time_us if backlog.oldest_us is None else backlog.oldest_us,
        )

    def read(self, sequence: int, *, max_bytes: int) -> list[Record]:
        """Return batches from a sequence on, or from the first later one that is here.

        Args:
            sequence: from which on.
            max_bytes: ends before the batch that would exceed it; one is returned anyway.

        Raises:
            SpoolDamaged: a file changed under us.
            SpoolError: the disk failed.
        """
        found: list[Record] = []
        size = 0
        for segment in self._segments:
            if segment.last < sequence or not segment.ends:
                continue
            place = segment.place(sequence)
            start, end = segment.start(place), segment.start(place)
            for later in segment.ends[place:]:
                if size + later - start > max_bytes and (found or end > start):
                    break
                end = later
            size += end - start
            found += segment.read(start, end)
            if end < segment.size:
                break
        return found

    def trim(self, durable_through: int, *, unsaved: int) -> int:
        """Forget batches that are durable at the server.

        Args:
            durable_through: up to which sequence they are.
            unsaved: so many sequences may be forgotten again if this process crashes.

        Returns:
            How many samples they hold.

        Raises:
            SpoolError: the disk failed.
        """
        samples = 0
        for segment in self._segments:
            first, end = segment.place(self.durable_through + 1), segment.place(durable_through + 1)
            samples += sum(segment.samples[first:end])
        self.durable_through = max(self.durable_through, durable_through)
        over = [segment for segment in self._segments[:-1] if segment.last <= self.durable_through]
        if over or self.durable_through - self.saved_through > unsaved:
            # On a full disk it is saved the next time.
            with suppress(SpoolFull):
                self.save()
        with disk.errors_told():
            for segment in over:
                segment.path.unlink()
        del self._segments[: len(over)]
        self.backlog = self._count_backlog()
        return samples

    def drop_oldest(self) -> int:
        """Give up the oldest batches, a segment of them, to make room.

        Returns:
            How many samples were lost; 0 when there is nothing to drop.

        Raises:
            SpoolError: the disk failed.
        """
        if not self.backlog.batches:
            return 0
        with disk.errors_told():
            if len(self._segments) == 1:
                # The next batch's number must survive: it is in the name of the new file.
                self._begin_segment(self.next_sequence)
            segment = self._segments[0]
            segment.path.unlink()
            disk.sync_folder(self._folder)
        del self._segments[0]
        self.backlog = self._count_backlog()
        return sum(segment.samples[segment.place(self.durable_through + 1) :])

    def save(self) -> None:
        """Write down what is durable, so that the next start does not send it again.

        Raises:
            SpoolFull: the disk is full; what was written before still stands.
            SpoolError: the disk failed.
        """
        with disk.errors_told():
            disk.write_file(self._folder / "durable.json", {"durable_through": self.durable_through})
        self.saved_through = self.durable_through

    def close(self) -> None:
        """Save, and let another process have the spool."""
        try:
            if self.saved_through != self.durable_through:
                self.save()
        except SpoolFull:
            pass  # Some batches are sent once more, and stored once.
        finally:
            if self._active is not None:
                os.close(self._active)
            os.close(self._lock)

    def _locked(self, folder: Path) -> int:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(
                f"{folder}: {error.strerror}; the client needs a folder it can write to"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise SpoolInUse(
                f"{folder} is in use by another process; give each gateway a folder of its own"
            ) from None
        return descriptor

    def _writer_id(self, name: str) -> str:
        path = self._folder / "writer.json"
        stored = disk.read_file(path)
        if stored is None:
            if any(self._folder.glob("batches-*.log")):
                raise SpoolDamaged(path, 0, "the file is missing, and batches are there")
            stored = {"format": _FORMAT, "writer_id": f"{name}:{secrets.token_hex(8)}"}
            with disk.errors_told():
                disk.write_file(path, stored)
        writer_id = stored.get("writer_id")
        if stored.get("format") != _FORMAT or not isinstance(writer_id, str):
            raise SpoolDamaged(path, 0, f"not a spool of format {_FORMAT}")
        owner = writer_id.rpartition(":")[0]
        if owner != name:
            raise SpoolError(f"{self._folder} is the spool of gateway {owner!r}, not of {name!r}")
        return writer_id

    def _read_durable(self) -> int:
        path = self._folder / "durable.json"
        stored = disk.read_file(path)
        through = 0 if stored is None else stored.get("durable_through")
        if not isinstance(through, int) or through < 0:
            raise SpoolDamaged(path, 0, "durable_through is no sequence")
        return through

    def _read_definitions(self) -> list[ingest_pb2.SeriesDef]:
        path = self._folder / "series.log"
        definitions: list[ingest_pb2.SeriesDef] = []
        end = 0
        for after, record in disk.records_of(path, is_last=True) if path.exists() else ():
            try:
                definitions += ingest_pb2.SeriesDefs.FromString(record.payload).defs
            except DecodeError as error:
                raise SpoolDamaged(path, end, "no definitions of series") from error
            if [definition.alias for definition in definitions[record.number :]] != [
                *range(record.number, len(definitions))
            ]:
                raise SpoolDamaged(path, end, f"other aliases than those from {record.number} on")
            end = after
        # They were on disk before those batches: what is missing now is not a write that a crash cut.
        needed = max((segment.definitions for segment in self._segments), default=0)
        if len(definitions) < needed:
            raise SpoolDamaged(
                path, end, f"{len(definitions)} definitions of series, and batches rely on {needed}"
            )
        if path.exists():
            disk.cut_off(path, end)
        return definitions

    def _read_segments(self) -> list[Segment]:
        paths = sorted(self._folder.glob("batches-*.log"))
        try:
            found = [Segment(path, int(path.stem.partition("-")[2])) for path in paths]
        except ValueError as error:
            raise SpoolError(f"{self._folder}: not all files batches-*.log are segments") from error
        segments: list[Segment] = []
        for segment, later in zip_longest(found, found[1:]):
            if later is not None and later.first <= self.durable_through + 1:
                segment.path.unlink()  # Trimmed when the process ended.
                continue
            if segments and segment.first != segments[-1].last + 1:
                raise SpoolDamaged(
                    segments[-1].path,
                    segments[-1].size,
                    f"batch {segments[-1].last + 1} is missing, and batch {segment.first} is there",
                )
            segment.load(is_last=later is None)
            segments.append(segment)
        return segments

    def _open_segment(self, sequence: int) -> Segment:
        """Return the segment that is written to; the next one when it is large enough."""
        last = self._segments[-1] if self._segments else None
        # A last segment that ends before the durable sequence lost its end to the disk: numbers go on
        # after it, and so in another file.
        if last is None or last.size >= self._segment_bytes or last.last + 1 != sequence:
            return self._begin_segment(sequence)
        if self._active is None:
            self._active = disk.open_to_append(last.path)
        return last

    def _begin_segment(self, sequence: int) -> Segment:
        segment = Segment(self._folder / f"batches-{sequence:020}.log", sequence)
        descriptor = disk.open_to_append(segment.path)
        if self._active is not None:
            os.close(self._active)
        self._active = descriptor
        disk.sync_folder(self._folder)
        self._segments.append(segment)
        return segment

    def _count_backlog(self) -> Backlog:
        last = self._segments[-1].last if self._segments else 0
        end = max(last, self.durable_through) + 1
        first = max(self._segments[0].first if self._segments else end, self.durable_through + 1)
        size = 0
        oldest_us = None
        for segment in self._segments:
            place = segment.place(self.durable_through + 1)
            if place >= len(segment.ends):
                continue
            size += segment.size - segment.start(place)
            oldest_us = segment.times_us[place] if oldest_us is None else oldest_us
        return Backlog(first, end, size, oldest_us)
