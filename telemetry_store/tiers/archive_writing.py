"""New objects of the archive: written to a file of their own, brought to the store, and read back."""

import asyncio
import os
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import uuid4

from telemetry_store.tiers.archive_block import CorruptObjectError
from telemetry_store.tiers.archive_file import (
    BlockWriter,
    Checksum,
    Written,
    footer_size,
    read_blocks,
    read_footer,
)
from telemetry_store.tiers.archive_store import ArchiveStore

_GROUPS_PER_READ = 8


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was read back and is what was written."""

    path: str
    written: Written
    bytes: int
    footer_bytes: int
    footer_crc: int
    verified_at: datetime


class ObjectFile:
    """An object that is being written, in a file of its own.

    Args:
        folder: where the file is.
        tenant: whose samples.
        day: of all of them, UTC.

    Attributes:
        path: of the file.
        writer: takes the samples.
    """

    def __init__(self, folder: Path, *, tenant: str, day: date) -> None:
        self.path = folder / uuid4().hex
        self._sink = self.path.open("w+b")
        self.writer = BlockWriter(self._sink, tenant=tenant, day=day.isoformat())

    def finish(self) -> tuple[Written, int, int, int]:
        """Write its end; returns what it holds, its size, and its footer's size and CRC-32."""
        written = self.writer.finish()
        size = self._sink.seek(0, os.SEEK_END)
        self._sink.seek(-8, os.SEEK_END)
        footer_bytes = footer_size(self._sink.read())
        self._sink.seek(-footer_bytes, os.SEEK_END)
        footer_crc = zlib.crc32(self._sink.read())
        self.close()
        return written, size, footer_bytes, footer_crc

    def close(self) -> None:
        """Give up what is not finished; after `finish` nothing is left to do."""
        self.writer.close()
        self._sink.close()


async def store_object(store: ArchiveStore, file: ObjectFile, path: str) -> StoredObject:
    """Finish an object, bring it to the store and read it back; its file is gone then.

    Args:
        store: where to.
        file: the object, with all its samples.
        path: its own in the store; who is interrupted may leave something there.

    Raises:
        StoreError: the store does not answer.
        CorruptObjectError: what is read back is not what was written.
    """
    facts, size, footer_bytes, footer_crc = await asyncio.to_thread(file.finish)
    await store.write(path, file.path)
    await asyncio.to_thread(file.path.unlink)
    footer = read_footer(await store.read(path, size - footer_bytes, size), footer_crc)
    checksum = Checksum()
    samples = 0
    groups = range(len(footer.rows))
    for start in range(0, len(groups), _GROUPS_PER_READ):
        chosen = groups[start : start + _GROUPS_PER_READ]
        source = store.reader(path, size)
        blocks = await store.run(lambda: list(read_blocks(source, footer, chosen)))  # noqa: B023 - awaited
        for block in blocks:
            await asyncio.to_thread(checksum.add, block)
            samples += len(block)
    if samples != facts.samples or checksum.digest() != facts.checksum:
        raise CorruptObjectError(f"{path} does not hold the samples that were written to it")
    return StoredObject(path, facts, size, footer_bytes, footer_crc, datetime.now(UTC))
