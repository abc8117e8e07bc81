"""Samples of one series as the three columns of a sealed segment: pure functions, no I/O.

Numbers are compressed by pcodec (https://pypi.org/project/pcodec/), which finds steady
intervals and decimal values by itself and gives every bit back. Each column begins with
a byte that says how it is written.

    times     pcodec of int64
    values    DOUBLE, INT: pcodec; BOOL: bits, zstandard; POINT: pcodec of latitude,
              longitude, altitude one after the other; STRING: the distinct texts,
              zstandard, and pcodec of each sample's place among them
    quality   one int32 when all samples have the same, otherwise pcodec
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import ChunkConfig, standalone

from telemetry_store.columns import POINT_WIDTH, VALUE_TYPES, Kind
from telemetry_store.quality import NOT_JUDGED

# Samples of one segment at the most: what reading a moment has to decode.
MOST_SAMPLES = 1 << 18
_FORMAT = b"\x01"
_CONFIG = ChunkConfig()
_SIZE = struct.Struct("<I")
_CODE = struct.Struct("<i")


class CorruptSegmentError(Exception):
    """Stored bytes are none that `encode` wrote."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one series, strictly ascending in time.

    Attributes:
        times: int64[n], microseconds since the epoch.
        values: by kind float64[n], int64[n], bool[n], object[n] of str, or float64[n, 3] of
            latitude, longitude and altitude (NaN when absent).
        quality: int32[n], as in telemetry_store.quality.
    """

    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)

    def at(self, places: slice | npt.NDArray[Any]) -> "Samples":
        """Return the samples at places: a slice, their numbers, or which of all."""
        return Samples(self.times[places], self.values[places], self.quality[places])


@dataclass(frozen=True, slots=True)
class Sealed:
    """The columns of a sealed segment; quality None: nobody has judged any of its samples."""

    times: bytes
    values: bytes
    quality: bytes | None


def encode(kind: Kind, samples: Samples) -> Sealed:
    """Return samples as they are stored.

    Args:
        kind: of the series.
        samples: 1 to MOST_SAMPLES.
    """
    return Sealed(
        _FORMAT + _compressed(samples.times),
        _FORMAT + _encoded_values(kind, samples.values),
        _encoded_quality(samples.quality),
    )


def decode(kind: Kind, sealed: Sealed, count: int) -> Samples:
    """Return stored samples.

    Args:
        kind: of the series.
        sealed: as stored.
        count: how many there are.

    Raises:
        CorruptSegmentError: the columns cannot be read, or are not of so many samples.
    """
    try:
        return Samples(
            _decompressed(_body(sealed.times), np.dtype(np.int64), count),
            _decoded_values(kind, _body(sealed.values), count),
            _decoded_quality(sealed.quality, count),
        )
    except (RuntimeError, ValueError, struct.error, zstandard.ZstdError) as error:
        raise CorruptSegmentError(str(error)) from error


def _body(column: bytes) -> bytes:
    if column[:1] != _FORMAT:
        raise CorruptSegmentError(f"a column begins with {column[:1]!r}, which this version does not know")
    return column[1:]


def _encoded_values(kind: Kind, values: npt.NDArray[Any]) -> bytes:
    match kind:
        case Kind.DOUBLE | Kind.INT:
            return _compressed(values)
        case Kind.BOOL:
            return zstandard.compress(np.packbits(values).tobytes())
        case Kind.POINT:
            return _joined([_compressed(np.ascontiguousarray(column)) for column in values.T])
        case Kind.STRING:
            places: dict[str, int] = {}
            codes = np.fromiter(
                (places.setdefault(text, len(places)) for text in values), np.uint32, len(values)
            )
            texts = _joined([text.encode() for text in places])
            return _joined([zstandard.compress(texts), _compressed(codes)])


def _decoded_values(kind: Kind, body: bytes, count: int) -> npt.NDArray[Any]:
    match kind:
        case Kind.DOUBLE | Kind.INT:
            return _decompressed(body, VALUE_TYPES[kind], count)
        case Kind.BOOL:
            bits = np.frombuffer(zstandard.decompress(body), np.uint8)
            return np.unpackbits(bits, count=count).view(np.bool_)
        case Kind.POINT:
            columns = [_decompressed(part, VALUE_TYPES[kind], count) for part in _parts(body)]
            return np.stack(columns, axis=1).reshape(count, POINT_WIDTH)
        case Kind.STRING:
            texts, codes = _parts(body)
            distinct = np.array([text.decode() for text in _parts(zstandard.decompress(texts))], np.object_)
            chosen: npt.NDArray[Any] = distinct[_decompressed(codes, np.dtype(np.uint32), count)]
            return chosen


def _encoded_quality(quality: npt.NDArray[np.int32]) -> bytes | None:
    first = int(quality[0])
    if not (quality == first).all():
        return _FORMAT + _compressed(np.ascontiguousarray(quality))
    return None if first == NOT_JUDGED else _FORMAT + _CODE.pack(first)


def _decoded_quality(column: bytes | None, count: int) -> npt.NDArray[np.int32]:
    if column is None:
        return np.full(count, NOT_JUDGED, np.int32)
    body = _body(column)
    if len(body) == _CODE.size:
        return np.full(count, _CODE.unpack(body)[0], np.int32)
    return _decompressed(body, np.dtype(np.int32), count)


def _compressed(numbers: npt.NDArray[Any]) -> bytes:
    compressed: bytes = standalone.simple_compress(numbers, _CONFIG)
    return compressed


def _decompressed(body: bytes, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] | None = standalone.simple_decompress(body)
    if numbers is None or numbers.dtype != dtype or numbers.shape != (count,):
        found = "nothing" if numbers is None else f"{numbers.dtype} {numbers.shape}"
        raise CorruptSegmentError(f"a column holds {found}, not {dtype} ({count},)")
    return numbers


def _joined(parts: Sequence[bytes]) -> bytes:
    return b"".join(_SIZE.pack(len(part)) + part for part in parts)


def _parts(joined: bytes) -> list[bytes]:
    parts = []
    place = 0
    while place < len(joined):
        (size,) = _SIZE.unpack_from(joined, place)
        place += _SIZE.size + size
        if place > len(joined):
            raise CorruptSegmentError("a part ends beyond its column")
        parts.append(joined[place - size : place])
    return parts
