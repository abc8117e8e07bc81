"""How the spool's files are written: records with a number and a checksum, one after the other.

A record is a header of 36 bytes, little-endian, and a payload:

    magic "TMR2" · CRC-32 of all that follows · payload length uint32 ·
    number uint64 · time int64, microseconds since the epoch · samples uint32 ·
    definitions uint32
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"TMR2"
_HEADER = struct.Struct("<4sIIQqII")
_CHECKED_FROM = 8
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file.

    Attributes:
        number: a batch's sequence or a definition's alias.
        payload: a serialized message.
        time_us: when the batch was sealed, microseconds since the epoch.
        samples: how many the batch holds.
        definitions: of series, how many were on disk when the batch was written.
    """

    number: int
    payload: bytes
    time_us: int = 0
    samples: int = 0
    definitions: int = 0


def pack(record: Record) -> bytes:
    """Return a record as it stands in a file."""
    header = _HEADER.pack(
        _MAGIC, 0, len(record.payload), record.number, record.time_us, record.samples, record.definitions
    )
    checksum = zlib.crc32(record.payload, zlib.crc32(header[_CHECKED_FROM:]))
    return header[:4] + checksum.to_bytes(4, "little") + header[_CHECKED_FROM:] + record.payload


def unpack(data: bytes, offset: int = 0) -> Record | None:
    """Return the record at an offset, None when there is no whole and undamaged one."""
    if offset + HEADER_BYTES > len(data):
        return None
    magic, checksum, length, number, time_us, samples, definitions = _HEADER.unpack_from(data, offset)
    start, end = offset + HEADER_BYTES, offset + HEADER_BYTES + length
    if magic != _MAGIC or end > len(data):
        return None
    payload = data[start:end]
    if zlib.crc32(payload, zlib.crc32(data[offset + _CHECKED_FROM : start])) != checksum:
        return None
    return Record(number, payload, time_us, samples, definitions)


def records(data: bytes) -> Iterator[tuple[int, Record]]:
    """Yield the records from the front of a file with their ends, up to the first that is none."""
    offset = 0
    while (record := unpack(data, offset)) is not None:
        offset += HEADER_BYTES + len(record.payload)
        yield offset, record


def is_torn(data: bytes, offset: int) -> bool:
    """Tell whether what begins at an offset is the rest of one unfinished write.

    Records are written one at a time, each after the one before it was fsynced. So a whole
    record further on means that something in between was damaged later.
    """
    while (offset := data.find(_MAGIC, offset + 1)) >= 0:
        if unpack(data, offset) is not None:
            return False
    return True
