"""A segment of the spool: a file of batches, one after the other, and in memory where each of them lies."""

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from twinmesh_client import disk
from twinmesh_client.errors import SpoolDamaged
from twinmesh_client.records import HEADER_BYTES, Record, unpack


@dataclass(slots=True)
class Segment:
    """A file of batches and the index of it: per batch its end, samples and time.

    Attributes:
        path: the file.
        first: the number of its first batch.
        ends: per batch, the offset of the first byte after it.
        samples: per batch, how many it holds.
        times_us: per batch, when it was sealed, microseconds since the epoch.
        definitions: of series, how many its batches rely on.
    """

    path: Path
    first: int
    ends: "array[int]" = field(default_factory=lambda: array("L"))
    samples: "array[int]" = field(default_factory=lambda: array("L"))
    times_us: "array[int]" = field(default_factory=lambda: array("q"))
    definitions: int = 0

    @property
    def last(self) -> int:
        """Return the number of its last batch, of the one before its first without any."""
        return self.first + len(self.ends) - 1

    @property
    def size(self) -> int:
        """Return the bytes of its batches."""
        return self.start(len(self.ends))

    def place(self, sequence: int) -> int:
        """Return the place of a batch in the index, of the first batch for the earlier ones."""
        return max(sequence - self.first, 0)

    def start(self, place: int) -> int:
        """Return the offset at which the batch at a place begins."""
        return self.ends[place - 1] if place else 0

    def index(self, end: int, record: Record) -> None:
        """Take note of a batch that follows in the file.

        Args:
            end: of it in the file.
            record: the batch.
        """
        self.ends.append(end)
        self.samples.append(record.samples)
        self.times_us.append(record.time_us)
        self.definitions = max(self.definitions, record.definitions)

    def load(self, *, is_last: bool) -> None:
        """Index what is in the file.

        Args:
            is_last: may end in what was being written at a crash, which is cut off.

        Raises:
            SpoolDamaged: the file is not what was written.
            SpoolError: the disk failed.
        """
        for end, record in disk.records_of(self.path, is_last=is_last):
            if record.number != self.last + 1:
                raise SpoolDamaged(self.path, self.size, f"batch {record.number} instead of {self.last + 1}")
            self.index(end, record)
        if is_last:
            disk.cut_off(self.path, self.size)

    def read(self, start: int, end: int) -> list[Record]:
        """Return the batches from one offset to another.

        Raises:
            SpoolDamaged: the file changed under us.
            SpoolError: the disk failed.
        """
        with disk.errors_told():
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, end - start, start)
            finally:
                os.close(descriptor)
        found = []
        offset = 0
        while offset < end - start:
            record = unpack(data, offset)
            if record is None:
                raise SpoolDamaged(self.path, start + offset, "not the batch that was written there")
            found.append(record)
            offset += HEADER_BYTES + len(record.payload)
        return found
