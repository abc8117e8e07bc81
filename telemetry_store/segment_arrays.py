"""Rows of telemetry.segment, read as columns: SQL that lays arrays end to end, and numpy that takes it apart.

The driver would make one Python object per sample; telemetry.array_bytes gives an array as bytes, in one of
two forms (docs/adr/0016). Both begin with 20 bytes of dimensions. Then come the elements, as they lie in
memory, or big-endian and each preceded by its length of four bytes: how many bytes there are tells which.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import POINT_WIDTH, Kind
from telemetry_store.quality import NOT_JUDGED

VALUE_COLUMNS = {
    Kind.DOUBLE: "doubles",
    Kind.INT: "ints",
    Kind.BOOL: "bools",
    Kind.STRING: "strings",
    Kind.POINT: "points",
}

_ARRAYS = """
       string_agg(int8send(order_no), '') AS order_nos,
       string_agg(int4send(cardinality(times)), '') AS lengths,
       string_agg(substr(telemetry.array_bytes(times), 21), '') AS times,
       string_agg(substr({bytes}({values}), 21), '') AS values"""
_QUALITY = """,
       string_agg(int4send(coalesce(cardinality(quality), 0)), '') AS judged,
       string_agg(substr(telemetry.array_bytes(quality), 21), '') AS quality"""
# How many texts a row has, how many codes, and these.
_CODES = """,
       string_agg(int4send(cardinality(strings)), '') AS text_counts,
       string_agg(int4send(coalesce(cardinality(codes), 0)), '') AS code_counts,
       coalesce(string_agg(substr(telemetry.array_bytes(codes), 21), ''), '') AS codes"""

_STORED = {Kind.DOUBLE: "f8", Kind.INT: "i8", Kind.BOOL: "?"}


def stored_columns(kind: Kind) -> str:
    """Return which columns of telemetry.segment `aggregates` reads, beside those of every kind."""
    return f"{VALUE_COLUMNS[kind]}, codes, quality"


def aggregates(kind: Kind, *, with_quality: bool) -> str:
    """Return the select list that lays segments of a kind end to end, for `SegmentArrays`."""
    further = (_CODES if kind is Kind.STRING else "") + (_QUALITY if with_quality else "")
    # The lengths of texts differ, so their bytes do not tell the form.
    as_bytes = "array_send" if kind is Kind.STRING else "telemetry.array_bytes"
    return _ARRAYS.format(values=VALUE_COLUMNS[kind], bytes=as_bytes) + further


class SegmentArrays:
    """What one statement with `aggregates` found, at least one segment.

    Attributes:
        lengths: intp[r], samples of each segment.
        order_nos: int64[r].
        times: int64[n], one segment's after the other's.
        values: likewise, by kind as in tiers.codec.Samples.
        quality: int32[n], likewise; NOT_JUDGED throughout when it was not read.
    """

    def __init__(self, kind: Kind, row: Any, *, with_quality: bool) -> None:
        self.lengths = np.frombuffer(row["lengths"], ">i4").astype(np.intp)
        self.order_nos = np.frombuffer(row["order_nos"], ">i8").astype(np.int64)
        count = int(self.lengths.sum())
        self.times = _elements(row["times"], count, "i8")
        self.values = (
            _strings(row, self.lengths) if kind is Kind.STRING else _numbers(kind, row["values"], count)
        )
        self.quality = (
            _quality(row, self.lengths) if with_quality else np.full(len(self.times), NOT_JUDGED, np.int32)
        )


def no_values(kind: Kind) -> npt.NDArray[Any]:
    """Return the values of no samples."""
    return np.empty(0, np.object_) if kind is Kind.STRING else _numbers(kind, b"", 0)


def merge(
    times: npt.NDArray[np.int64], order_nos: npt.NDArray[np.int64], *columns: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], ...]:
    """Return the samples by time, of equal times the one with the greatest order.

    Args:
        times: int64[n], in any order.
        order_nos: int64[n].
        columns: what else there is of them, [n, …] each.
    """
    if bool(np.all(times[1:] > times[:-1])):
        return times, order_nos, *columns
    ranked = np.lexsort((order_nos, times))
    ordered = times[ranked]
    kept = ranked[np.append(ordered[1:] != ordered[:-1], True)]
    return tuple(column[kept] for column in (times, order_nos, *columns))


def _quality(row: Any, lengths: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the quality of each sample of a row's segments, which hold none, one for all, or one each."""
    judged = np.frombuffer(row["judged"], ">i4").astype(np.intp)
    # Without any the sum is null; what was not judged finds its mark at the end.
    codes = np.append(_elements(row["quality"] or b"", int(judged.sum()), "i4"), np.int32(NOT_JUDGED))
    firsts = np.where(judged > 0, np.cumsum(judged) - judged, len(codes) - 1)
    places = np.repeat(firsts, lengths)
    each = np.repeat(judged == lengths, lengths)
    ends = np.cumsum(lengths)
    within = np.arange(len(places)) - np.repeat(ends - lengths, lengths)
    found: npt.NDArray[np.int32] = codes[places + np.where(each, within, 0)]
    return found


def _numbers(kind: Kind, payload: bytes, count: int) -> npt.NDArray[Any]:
    """Return the values of so many samples."""
    if kind is Kind.POINT:
        return _elements(payload, count * POINT_WIDTH, "f8").reshape(-1, POINT_WIDTH)
    return _elements(payload, count, _STORED[kind])


def _elements(payload: bytes, count: int, stored: str) -> npt.NDArray[Any]:
    """Return the elements of arrays that were laid end to end, in either form.

    Args:
        payload: of the arrays' elements.
        count: how many there are.
        stored: their type, without the order of its bytes.
    """
    if len(payload) == count * np.dtype(stored).itemsize:
        found: npt.NDArray[Any] = np.frombuffer(payload, f"<{stored}")
    else:
        found = np.frombuffer(payload, np.dtype([("length", ">i4"), ("value", f">{stored}")]))["value"]
    return found.astype(stored)


def _strings(row: Any, lengths: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return the strings of segments: of each by its codes, or the one for all, or one for each sample."""
    text_counts = np.frombuffer(row["text_counts"], ">i4").astype(np.intp)
    code_counts = np.frombuffer(row["code_counts"], ">i4").astype(np.intp)
    has_codes = np.repeat(code_counts > 0, lengths)
    codes = _elements(row["codes"], int(code_counts.sum()), "i2")
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(has_codes)) - np.repeat(starts, lengths)
    places[np.repeat(text_counts == 1, lengths)] = 0
    places[has_codes] = codes - np.intp(1)
    places += np.repeat(np.cumsum(text_counts) - text_counts, lengths)
    return _texts(row["values"], int(text_counts.sum()))[places]


def _texts(payload: bytes, count: int) -> npt.NDArray[Any]:
    texts = np.empty(count, np.object_)
    place = 0
    for index in range(count):
        (length,) = struct.unpack_from(">i", payload, place)
        place += 4 + length
        texts[index] = payload[place - length : place].decode()
    return texts
